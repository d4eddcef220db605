//! `harp init`: the configuration of a group over several machines.
//! Owns: what is asked for it, and the defaults.
//! Never: formats anything, or speaks to a machine; overwrites a configuration, whose keys may be in use.
//! Invariant: what it writes reads back.
//! Source: README.md, "Commands"; docs/operations.md, "Making a group".

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use harp_node::fs::key::RootOwner;
use harp_node::vr::Shape;
use harp_node::{Durability, GroupSource, Network, Squash};

use crate::config::{Config, FILE_NAME, MEMORY_DIR_DEFAULT, Machine, Place, Tuning};
use crate::error::HarpError;
use crate::up::{export_to, random};

/// The port for NFS unless told otherwise.
pub const NFS_PORT_DEFAULT: u16 = 2049;
/// The port for the other servers unless told otherwise.
pub const PEER_PORT_DEFAULT: u16 = 2050;
/// Where servers keep their directories unless told otherwise.
pub const DATA_DEFAULT: &str = "/var/lib/harp";

/// What the command line asks for; `None`: the default.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Where the configuration is written.
    pub dir: PathBuf,
    /// The group's name.
    pub name: Option<String>,
    /// How many servers hold the files.
    pub copies: Option<u8>,
    /// Each server's name and address; the port is for its peers.
    pub servers: Vec<(String, IpAddr, Option<u16>)>,
    /// The port for NFS, on every server.
    pub nfs_port: Option<u16>,
    /// Where each server keeps a directory of its name.
    pub data: Option<PathBuf>,
    /// The networks whose clients may connect.
    pub allow: Vec<Network>,
    /// Whose word about himself is not taken.
    pub squash: Option<Squash>,
    /// Whose word counts on a user's groups.
    pub groups: Option<GroupSource>,
    /// The owner of the file system's root.
    pub root: RootOwner,
    /// Bytes that the file system may hold.
    pub capacity: Option<u64>,
    /// When a record counts as held.
    pub durability: Option<Durability>,
    /// Where memory that outlives the servers lies, with durability `ups`.
    pub memory_dir: Option<PathBuf>,
}

fn usage(why: String) -> HarpError {
    HarpError::Usage { why }
}

/// Writes the configuration and returns it. Errors: there is one, or the servers do not make a group.
pub fn init(options: &InitOptions) -> Result<Config, HarpError> {
    let config = new_config(options)?;
    let text = config.text();
    // What is wrong with it is said now, and not when a server starts.
    Config::parse(&config.file, &text)?;
    let dir = config.dir();
    std::fs::create_dir_all(dir).map_err(|error| HarpError::file("create", dir, error))?;
    config.write_new()?;
    Ok(config)
}

fn new_config(options: &InitOptions) -> Result<Config, HarpError> {
    let copies = options.copies.unwrap_or(crate::up::COPIES_DEFAULT);
    let shape = Shape { n: copies - 1 };
    let wanted: Vec<String> = shape.servers().map(|server| server.to_string()).collect();
    let data = options.data.clone().unwrap_or_else(|| DATA_DEFAULT.into());
    let nfs_port = options.nfs_port.unwrap_or(NFS_PORT_DEFAULT);
    let (mut machines, mut peers) = (Vec::new(), Vec::new());
    for name in &wanted {
        let mut named = options.servers.iter().filter(|(other, ..)| other == name);
        let Some((_, host, port)) = named.next() else {
            let all = wanted.join(", ");
            return Err(usage(format!(
                "a group of {copies} copies has the servers {all}: say --server {name}=ADDRESS"
            )));
        };
        if named.next().is_some() {
            return Err(usage(format!("there are two servers {name}: each is named once")));
        }
        machines.push(Machine { nfs: SocketAddr::new(*host, nfs_port), dir: data.join(name) });
        peers.push(SocketAddr::new(*host, port.unwrap_or(PEER_PORT_DEFAULT)));
    }
    if let Some((name, ..)) = options.servers.iter().find(|(name, ..)| !wanted.contains(name)) {
        let all = wanted.join(", ");
        let why = format!("a group of {copies} copies has no server {name:?}, only {all}");
        return Err(usage(why));
    }
    if options.memory_dir.is_some() && options.durability != Some(Durability::Ups) {
        return Err(usage("--memory-dir is for --durability ups".into()));
    }
    let mut export = export_to(&options.allow);
    if !machines.iter().all(|machine| machine.nfs.ip().is_loopback()) && options.allow.is_empty() {
        let why =
            "say --allow NETWORK: the clients' network, like 10.1.0.0/16 (again for each more)";
        return Err(usage(why.into()));
    }
    export.squash = options.squash.unwrap_or(export.squash);
    export.groups = options.groups.unwrap_or(export.groups);
    let capacity_bytes = options.capacity.unwrap_or(Tuning::default().capacity_bytes);
    Ok(Config {
        file: options.dir.join(FILE_NAME),
        name: options.name.clone().unwrap_or_else(|| "harp".into()),
        id: random()?,
        copies,
        durability: options.durability.unwrap_or(Durability::Disk),
        memory_dir: options.memory_dir.clone().unwrap_or_else(|| MEMORY_DIR_DEFAULT.into()),
        peer_key: random()?,
        handle_key: random()?,
        place: Place::Machines(machines),
        export,
        root: options.root,
        register_rpcbind: false,
        peers,
        tuning: Tuning { capacity_bytes, ..Tuning::default() },
    })
}
