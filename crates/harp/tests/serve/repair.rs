//! Blocks go bad on the disk of one copy, and come back from the other.

use rustix::process::Signal;

use crate::client::Client;
use crate::deployment::{Deployment, host, succeeds};
use crate::files::damage;

const FILES: u8 = 3;
const BLOCKS: usize = 9;

fn head(file: u8, block: usize) -> Vec<u8> {
    format!("file {file} has block {block};").into_bytes()
}

fn content(file: u8) -> Vec<u8> {
    (0..BLOCKS).flat_map(|block| head(file, block).into_iter().cycle().take(4096)).collect()
}

/// What `harp status` says of a server.
fn number(group: &Deployment, server: usize, what: &str) -> u64 {
    group.status()["nodes"][server][what].as_u64().expect("a number")
}

fn read_all(group: &Deployment, server: usize) {
    let mut client = Client::mount(host(server), group.nfs(server), Some((0, 0))).expect("mounts");
    let root = client.root.clone();
    for file in 0..FILES {
        let handle = client.find(&root, &format!("file{file}")).expect("there");
        let read = client.read(&handle, 0, 65_536).expect("reads");
        assert!(read == content(file), "file {file} is not as it was written");
    }
}

/// The primary's disk flips bits of two files' blocks while it is down: they are read as they were written. The
/// backup's disk does while it runs: a comparison finds and mends that. What was mended is told.
#[test]
fn blocks_damaged_on_a_disk_are_mended_from_the_other_copy() {
    let mut group = Deployment::start("repair", &["--squash", "none"]);
    let mut client = Client::mount(host(0), group.nfs(0), Some((0, 0))).expect("mounts");
    let root = client.root.clone();
    for file in 0..FILES {
        let handle = client.make(&root, &format!("file{file}")).expect("makes");
        client.write(&handle, 0, &content(file)).expect("writes");
    }
    group.verify();
    assert_eq!((number(&group, 0, "mended"), number(&group, 1, "mended")), (0, 0));

    group.end(0, Signal::TERM);
    damage(&group.server_dir(0).join("store/data"), &head(0, 0));
    damage(&group.server_dir(0).join("store/data"), &head(0, 7));
    damage(&group.server_dir(0).join("store/data"), &head(1, 4));
    group.start_server(0);
    group.await_roles(&["primary", "backup", "witness"]);
    read_all(&group, 0);
    assert_eq!(number(&group, 0, "mended"), 3);
    assert_eq!((number(&group, 0, "damaged"), number(&group, 0, "lost")), (0, 0));
    let log = std::fs::read_to_string(group.dir.join("a.log")).expect("reads");
    assert!(log.contains("mended from b: block"), "{log}");
    group.verify();

    for block in [0, 3, 8] {
        damage(&group.server_dir(1).join("store/data"), &head(2, block));
    }
    let said = succeeds(&["verify", "--config", &group.config]);
    assert!(said.starts_with("3 blocks were damaged at b and are mended"), "{said}");
    assert_eq!(number(&group, 1, "mended"), 3);
    group.verify();
    let table = succeeds(&["status", "--config", &group.config]);
    assert!(table.contains("b: 3 damaged blocks mended (last: block 8 of inode"), "{table}");

    // What was mended is so on the disk.
    group.end(1, Signal::KILL);
    group.start_server(1);
    group.await_roles(&["primary", "backup", "witness"]);
    group.verify();
    group.end(0, Signal::KILL);
    group.await_roles(&["down", "primary", "promoted"]);
    read_all(&group, 1);
}
