//! The group's configuration: `harp.toml`, written once, read by every process.
//! Owns: what it says, and the places of files that follow from it.
//! Never: changes a written file; identities in it are for ever.
//! Invariant: a [`Config`] in hand has passed every check, so its settings make a node that runs.
//! Source: README.md, "Commands".

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use harp_node::fs::atime::AccessTimes;
use harp_node::fs::key::RootOwner;
use harp_node::vr::{ServerId, Shape};
use harp_node::{Durability, Export, Settings};

use crate::clock::NANOS_PER_MS;
use crate::error::HarpError;
use crate::segments::sync_dir;

/// Name of the configuration file.
pub const FILE_NAME: &str = "harp.toml";
/// Name under which it waits while the group is being formatted.
pub const UNFINISHED_NAME: &str = "harp.toml.new";
/// Bytes of a configuration file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of an image that a copy hands over at once to one that lost its own: a few milliseconds of reading.
const IMAGE_PART_BYTES: usize = 1 << 20;

/// What can be tuned. Sizes in bytes, times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// A primary lets no link stay silent longer than this.
    pub heartbeat_ms: u64,
    /// Silence after which a server counts as failed.
    pub failure_timeout_ms: u64,
    /// How long a member promises not to help another primary.
    pub lease_ms: u64,
    /// By how much two clocks may differ in rate, in parts per million.
    pub clock_drift_ppm: u64,
    /// Memory of the record ring.
    pub ring_bytes: u64,
    /// Length of one log segment on disk.
    pub segment_bytes: u64,
    /// Segments that one server's log may have.
    pub segments_max: u64,
    /// Dirty bytes at which a checkpoint starts at the latest.
    pub checkpoint_bytes: u64,
    /// Memory of the cache of clean objects.
    pub cache_bytes: u64,
    /// Bytes that the file system may hold.
    pub capacity_bytes: u64,
    /// When reading an object changes its access time.
    pub access_times: AccessTimes,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            heartbeat_ms: 20,
            failure_timeout_ms: 180,
            lease_ms: 140,
            clock_drift_ppm: 1000,
            ring_bytes: 256 << 20,
            segment_bytes: 64 << 20,
            segments_max: 128,
            checkpoint_bytes: 64 << 20,
            cache_bytes: 256 << 20,
            capacity_bytes: 16 << 30,
            access_times: AccessTimes::Relative,
        }
    }
}

/// Where a group's servers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// All on this machine, below the file's directory; `harp up` owns the clients' address.
    Here {
        /// Where clients connect.
        nfs: SocketAddr,
        /// Where the supervisor answers status requests.
        admin: SocketAddr,
    },
    /// Each where `harp serve` is called for it, in the order of the servers.
    Machines(Vec<Machine>),
}

/// One server of a group over several machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Where its clients connect.
    pub nfs: SocketAddr,
    /// What it keeps; a relative path is below the file's directory.
    pub dir: PathBuf,
}

/// A group as its configuration file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The configuration file.
    pub file: PathBuf,
    /// The group's name, for people.
    pub name: String,
    /// The group's identity.
    pub id: [u8; 16],
    /// How many servers hold the files; n is one less.
    pub copies: u8,
    /// When a record counts as held.
    pub durability: Durability,
    /// Where the memory of servers lies that outlives them, with durability `ups`: a directory on a tmpfs.
    pub memory_dir: PathBuf,
    /// What servers prove to each other that they know.
    pub peer_key: [u8; 32],
    /// What file handles are signed with.
    pub handle_key: [u8; 16],
    /// Where the servers run.
    pub place: Place,
    /// Who may use the file system, and as whom.
    pub export: Export,
    /// Whose the file system's root is when it is made.
    pub root: RootOwner,
    /// Whether a server tells its machine's rpcbind where NFS and MOUNT are.
    pub register_rpcbind: bool,
    /// Where each server listens for its peers, in the order of the servers.
    pub peers: Vec<SocketAddr>,
    /// What can be tuned.
    pub tuning: Tuning,
}

/// Where memory that outlives a process lies unless told otherwise.
pub const MEMORY_DIR_DEFAULT: &str = "/dev/shm";

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that hexadecimal digits say; `None`: other digits, or more or fewer.
pub(crate) fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let digits = text.as_bytes();
    let mut bytes = [0; BYTES];
    if digits.len() != 2 * BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl Config {
    /// Reads and checks a configuration file. Relative paths in errors are as given.
    pub fn read(file: &Path) -> Result<Config, HarpError> {
        let opened = File::open(file).map_err(|error| HarpError::file("open", file, error))?;
        let mode =
            opened.metadata().map_err(|error| HarpError::file("look at", file, error))?.mode();
        if mode & 0o007 != 0 {
            let file = file.display();
            let why = format!("everybody can read the keys in {file}: chmod 600 it first");
            return Err(HarpError::Refused { why });
        }
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(opened, FILE_BYTES_MAX), &mut text)
            .map_err(|error| HarpError::file("read", file, error))?;
        Config::parse(file, &text)
    }

    /// Writes the configuration durably, readable by its owner alone, under [`UNFINISHED_NAME`].
    /// [`Config::publish`] gives it its name once the group is formatted.
    pub fn write_unfinished(&self) -> Result<(), HarpError> {
        let path = self.dir().join(UNFINISHED_NAME);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            sync_dir(self.dir())
        };
        write().map_err(|error| HarpError::file("write", &path, error))
    }

    /// Writes the configuration durably under its name, readable by its owner alone. Errors: there is one.
    pub fn write_new(&self) -> Result<(), HarpError> {
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&self.file)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            sync_dir(self.dir())
        };
        match write() {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let why = format!(
                    "{} exists, and its keys may be in use: choose another directory",
                    self.file.display()
                );
                Err(HarpError::Refused { why })
            }
            other => other.map_err(|error| HarpError::file("write", &self.file, error)),
        }
    }

    /// Gives the written configuration its name, durably: from here on the group exists.
    pub fn publish(&self) -> Result<(), HarpError> {
        std::fs::rename(self.dir().join(UNFINISHED_NAME), &self.file)
            .and_then(|()| sync_dir(self.dir()))
            .map_err(|error| HarpError::file("write", &self.file, error))
    }

    /// The directory that the configuration file lies in.
    pub fn dir(&self) -> &Path {
        match self.file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        }
    }

    /// The directory of one server.
    pub fn server_dir(&self, server: ServerId) -> PathBuf {
        match &self.place {
            Place::Here { .. } => self.dir().join(server.letter().to_string()),
            Place::Machines(machines) => self.dir().join(&machines[server.index()].dir),
        }
    }

    /// Where the clients of one server connect.
    pub fn nfs(&self, server: ServerId) -> SocketAddr {
        match &self.place {
            Place::Here { nfs, .. } => *nfs,
            Place::Machines(machines) => machines[server.index()].nfs,
        }
    }

    /// The admin socket of one server.
    pub fn admin_socket(&self, server: ServerId) -> PathBuf {
        self.server_dir(server).join("admin.sock")
    }

    /// The group's shape.
    pub fn shape(&self) -> Shape {
        Shape { n: self.copies - 1 }
    }

    /// The server of that name.
    pub fn server_named(&self, name: &str) -> Option<ServerId> {
        self.shape().servers().find(|server| server.letter().to_string() == name)
    }

    /// The settings of one server.
    pub fn settings(&self, me: ServerId) -> Settings {
        let tuning = &self.tuning;
        Settings {
            shape: self.shape(),
            me,
            group: self.id,
            handle_key: self.handle_key,
            durability: self.durability,
            heartbeat: tuning.heartbeat_ms * NANOS_PER_MS,
            failure_timeout: tuning.failure_timeout_ms * NANOS_PER_MS,
            lease: tuning.lease_ms * NANOS_PER_MS,
            clock_drift_ppm: tuning.clock_drift_ppm,
            segment_bytes: tuning.segment_bytes,
            segments_max: tuning.segments_max,
            checkpoint_bytes: tuning.checkpoint_bytes,
            image_part_bytes: IMAGE_PART_BYTES,
            cache_bytes: tuning.cache_bytes,
            capacity_blocks: tuning.capacity_bytes / 4096,
            access_times: tuning.access_times,
            export: self.export.clone(),
            nfs_port: self.nfs(me).port(),
            lethal_xid: None,
            planted: None,
        }
    }
}

/// The durability of that name.
pub fn durability_named(name: &str) -> Option<Durability> {
    [Durability::Disk, Durability::Ups].into_iter().find(|known| durability_name(*known) == name)
}

/// The name of a durability, as in the file and on the command line.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Disk => "disk",
        Durability::Ups => "ups",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testdir::TestDir;

    pub(crate) fn sample(dir: &Path, copies: u8) -> Config {
        Config {
            file: dir.join(FILE_NAME),
            name: "a \"name\"".into(),
            id: [1; 16],
            copies,
            durability: Durability::Disk,
            memory_dir: MEMORY_DIR_DEFAULT.into(),
            peer_key: [2; 32],
            handle_key: [3; 16],
            place: Place::Here {
                nfs: "127.0.0.1:2049".parse().expect("an address"),
                admin: "[::1]:8049".parse().expect("an address"),
            },
            export: Export::default(),
            root: RootOwner::default(),
            register_rpcbind: false,
            peers: (0..2 * copies as u16 - 1).map(|i| ([127, 0, 0, 1], 21000 + i).into()).collect(),
            tuning: Tuning::default(),
        }
    }

    /// A group over several machines.
    pub(crate) fn spread(dir: &Path, copies: u8) -> Config {
        let machine = |i: u16| Machine {
            nfs: ([10, 0, 0, i as u8], 2049).into(),
            dir: format!("/var/lib/harp/{i}").into(),
        };
        let servers = 0..2 * copies as u16 - 1;
        Config {
            durability: Durability::Ups,
            memory_dir: "/run/harp".into(),
            place: Place::Machines(servers.clone().map(machine).collect()),
            export: Export {
                allow: vec!["10.0.0.0/8".parse().expect("a network")],
                squash: harp_node::Squash::Root,
                groups: harp_node::GroupSource::Server,
                ..Export::default()
            },
            root: RootOwner { uid: 1000, gid: 100, mode: 0o1775 },
            register_rpcbind: true,
            peers: servers.map(|i| ([10, 0, 0, i as u8], 2050).into()).collect(),
            ..sample(dir, copies)
        }
    }

    #[test]
    fn a_written_configuration_reads_back_the_same_and_is_private() {
        let dir = TestDir::new("config-roundtrip");
        for (copies, config) in [2, 3].map(|copies| (copies, sample(dir.path(), copies))) {
            let text = spread(Path::new("/x"), copies).text();
            let parsed = Config::parse(Path::new("/x/harp.toml"), &text);
            assert_eq!(parsed.expect("reads"), spread(Path::new("/x"), copies));
            config.write_unfinished().expect("writes");
            config.publish().expect("publishes");
            assert_eq!(Config::read(&config.file).expect("reads"), config);
            let mode = std::fs::metadata(&config.file).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
