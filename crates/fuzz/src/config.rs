//! Configuration: `harp.toml`, as an operator may have left it.
//! Owns: nothing but the trial.
//! Source: `crates/harp/src/config.rs`.
//!
//! Input: the file's text.

use std::path::Path;

use harp::config::{Config, Place};
use harp_node::vr::ServerId;

use crate::memory::within;

/// A TOML reader makes a table, with room for a few keys, of each part of a dotted key.
const BYTES_PER_BYTE: usize = 2048;

/// One input.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let file = Path::new("harp.toml");
    let bytes_max = (64 << 10) + BYTES_PER_BYTE * input.len();
    match within(bytes_max, || Config::parse(file, text)) {
        Ok(config) => {
            assert_eq!(Config::parse(file, &config.text()).expect("our own text"), config);
            for server in config.shape().servers() {
                let settings = config.settings(server);
                assert_eq!(settings.me, server);
                assert!(settings.lease < settings.failure_timeout);
                assert!(config.tuning.ring_bytes <= settings.segment_bytes * settings.segments_max);
            }
            assert_eq!(config.server_named("a"), Some(ServerId(0)));
            assert_eq!(config.server_named("h"), None);
        }
        Err(error) => {
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "more than one line: {text:?}");
        }
    }
}

/// A configuration as it is written, and with a fault.
pub fn seeds() -> Vec<Vec<u8>> {
    let config = Config {
        file: "harp.toml".into(),
        name: "a \"name\"".into(),
        id: [1; 16],
        copies: 2,
        durability: harp_node::Durability::Disk,
        memory_dir: harp::config::MEMORY_DIR_DEFAULT.into(),
        peer_key: [2; 32],
        handle_key: [3; 16],
        place: Place::Here {
            nfs: "127.0.0.1:2049".parse().expect("an address"),
            admin: "[::1]:8049".parse().expect("an address"),
        },
        export: Default::default(),
        root: Default::default(),
        register_rpcbind: false,
        peers: (0..3).map(|i| ([127, 0, 0, 1], 21000 + i).into()).collect(),
        tuning: Default::default(),
    };
    let text = config.text();
    let bare: String =
        text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    vec![
        text.into_bytes(),
        bare.clone().into_bytes(),
        bare.replace("copies = 2", "copies = 3").into_bytes(),
        bare.replace("\"disk\"", "\"ups\"").into_bytes(),
        bare.replace("[settings]", "[settings").into_bytes(),
    ]
}
