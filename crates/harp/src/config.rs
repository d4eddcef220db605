//! The group's configuration: `harp.toml`, written once, read by every process.
//! Owns: its text, its checks, and the places of files below its directory.
//! Never: changes a written file; identities in it are for ever.
//! Invariant: a [`Config`] in hand has passed every check, so its settings make a node that runs.
//! Source: README.md, "Commands".

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use harp_node::log::{BATCH_HEADER_BYTES, RECORD_BYTES_MAX};
use harp_node::vr::{ServerId, Shape};
use harp_node::{Durability, Settings};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use toml::Spanned;

use crate::clock::NANOS_PER_MS;
use crate::error::HarpError;
use crate::segments::sync_dir;

/// Name of the configuration file.
pub const FILE_NAME: &str = "harp.toml";
/// Name under which it waits while the group is being formatted.
pub const UNFINISHED_NAME: &str = "harp.toml.new";
/// Bytes of a configuration file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The shortest segment that the longest record fits into.
pub const SEGMENT_MIN: u64 = ((RECORD_BYTES_MAX + BATCH_HEADER_BYTES) as u64).next_power_of_two();
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
        }
    }
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
    /// What servers prove to each other that they know.
    pub peer_key: [u8; 32],
    /// What file handles are signed with.
    pub handle_key: [u8; 16],
    /// Where clients connect.
    pub nfs: SocketAddr,
    /// Where the supervisor answers status requests.
    pub admin: SocketAddr,
    /// Where each server listens for its peers, in the order of the servers.
    pub peers: Vec<SocketAddr>,
    /// What can be tuned.
    pub tuning: Tuning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    group: RawGroup,
    listen: RawListen,
    server: std::collections::BTreeMap<Spanned<String>, RawServer>,
    settings: RawTuning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: Spanned<String>,
    id: Spanned<String>,
    copies: Spanned<u64>,
    durability: Spanned<String>,
    peer_key: Spanned<String>,
    handle_key: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    nfs: Spanned<String>,
    admin: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    peer: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTuning {
    heartbeat_ms: Spanned<u64>,
    failure_timeout_ms: Spanned<u64>,
    lease_ms: Spanned<u64>,
    clock_drift_ppm: Spanned<u64>,
    ring_bytes: Spanned<u64>,
    segment_bytes: Spanned<u64>,
    segments_max: Spanned<u64>,
    checkpoint_bytes: Spanned<u64>,
    cache_bytes: Spanned<u64>,
    capacity_bytes: Spanned<u64>,
}

/// Reports faults with the line that they are in.
struct Checker<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Checker<'_> {
    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|b| **b == b'\n').count()
    }

    fn fault(&self, at: usize, key: &str, why: impl Into<String>) -> HarpError {
        let (file, key) = (self.file.to_path_buf(), key.to_string());
        HarpError::Config { file, line: self.line(at), key, why: why.into() }
    }

    /// The fault that the TOML reader found: its message has a span but no key, so the key is taken
    /// from the line and the section above it.
    fn syntax(&self, error: &toml::de::Error) -> HarpError {
        let at = error.span().map_or(0, |span| span.start);
        let line = self.line(at);
        let until: Vec<&str> = self.text.lines().take(line).collect();
        let section = until.iter().rev().find_map(|l| l.trim().strip_prefix('['));
        let section = section.map_or("", |l| l.trim_end_matches(']'));
        let name = until.last().and_then(|l| l.split_once('=')).map_or("", |(name, _)| name.trim());
        let key = match (section, name) {
            ("", name) => name.to_string(),
            (section, "") => section.to_string(),
            (section, name) => format!("{section}.{name}"),
        };
        let why = error.message().replace('\n', " ");
        self.fault(at, if key.is_empty() { "syntax" } else { &key }, why)
    }

    fn hex<const BYTES: usize>(
        &self,
        key: &str,
        value: &Spanned<String>,
    ) -> Result<[u8; BYTES], HarpError> {
        let why = || format!("must be {} hexadecimal digits", 2 * BYTES);
        from_hex(value.get_ref()).ok_or_else(|| self.fault(value.span().start, key, why()))
    }

    fn address(&self, key: &str, value: &Spanned<String>) -> Result<SocketAddr, HarpError> {
        let why = "must be an address and a port, like 127.0.0.1:2049";
        let parsed = value.get_ref().parse();
        parsed.map_err(|_| self.fault(value.span().start, key, why))
    }

    fn number(
        &self,
        key: &str,
        value: &Spanned<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<u64, HarpError> {
        if range.contains(value.get_ref()) {
            return Ok(*value.get_ref());
        }
        let why = format!("must be between {} and {}", range.start(), range.end());
        Err(self.fault(value.span().start, key, why))
    }

    fn power_of_two(
        &self,
        key: &str,
        value: &Spanned<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<u64, HarpError> {
        let number = self.number(key, value, range)?;
        if number.is_power_of_two() {
            return Ok(number);
        }
        Err(self.fault(value.span().start, key, "must be a power of two"))
    }

    fn tuning(&self, raw: &RawTuning) -> Result<Tuning, HarpError> {
        let failure_timeout_ms =
            self.number("settings.failure_timeout_ms", &raw.failure_timeout_ms, 10..=60_000)?;
        // A heartbeat may be lost without a server counting as failed; a lease ends before that.
        let below = failure_timeout_ms - 1;
        let segment_bytes =
            self.power_of_two("settings.segment_bytes", &raw.segment_bytes, SEGMENT_MIN..=1 << 30)?;
        let ring = 2 * segment_bytes..=64 << 30;
        Ok(Tuning {
            heartbeat_ms: self.number(
                "settings.heartbeat_ms",
                &raw.heartbeat_ms,
                1..=failure_timeout_ms / 3,
            )?,
            failure_timeout_ms,
            lease_ms: self.number("settings.lease_ms", &raw.lease_ms, 1..=below)?,
            clock_drift_ppm: self.number(
                "settings.clock_drift_ppm",
                &raw.clock_drift_ppm,
                0..=100_000,
            )?,
            ring_bytes: self.power_of_two("settings.ring_bytes", &raw.ring_bytes, ring)?,
            segment_bytes,
            segments_max: self.number("settings.segments_max", &raw.segments_max, 4..=9999)?,
            checkpoint_bytes: self.number(
                "settings.checkpoint_bytes",
                &raw.checkpoint_bytes,
                1 << 20..=1 << 30,
            )?,
            cache_bytes: self.number(
                "settings.cache_bytes",
                &raw.cache_bytes,
                1 << 20..=1 << 40,
            )?,
            capacity_bytes: self.number(
                "settings.capacity_bytes",
                &raw.capacity_bytes,
                1 << 20..=1 << 60,
            )?,
        })
    }

    fn config(&self, raw: &RawConfig) -> Result<Config, HarpError> {
        let group = &raw.group;
        let copies = self.number("group.copies", &group.copies, 2..=3)? as u8;
        let durability = match group.durability.get_ref().as_str() {
            "disk" => Durability::Disk,
            _ => {
                let at = group.durability.span().start;
                let why = "must be \"disk\"; \"ups\" is not built yet";
                return Err(self.fault(at, "group.durability", why));
            }
        };
        let mut peers = Vec::new();
        for server in (Shape { n: copies - 1 }).servers() {
            let name = server.letter().to_string();
            let found = raw.server.iter().find(|(key, _)| *key.get_ref() == name);
            let key = format!("server.{name}.peer");
            let (_, found) = found.ok_or_else(|| HarpError::Config {
                file: self.file.to_path_buf(),
                line: 0,
                key: key.clone(),
                why: "is missing".into(),
            })?;
            peers.push(self.address(&key, &found.peer)?);
        }
        for name in raw.server.keys() {
            let known = (0..peers.len() as u8).any(|i| *name.get_ref() == letter(i));
            if !known {
                let why = format!("a group of {copies} copies has no such server");
                return Err(self.fault(
                    name.span().start,
                    &format!("server.{}", name.get_ref()),
                    why,
                ));
            }
        }
        Ok(Config {
            file: self.file.to_path_buf(),
            name: group.name.get_ref().clone(),
            id: self.hex("group.id", &group.id)?,
            copies,
            durability,
            peer_key: self.hex("group.peer_key", &group.peer_key)?,
            handle_key: self.hex("group.handle_key", &group.handle_key)?,
            nfs: self.address("listen.nfs", &raw.listen.nfs)?,
            admin: self.address("listen.admin", &raw.listen.admin)?,
            peers,
            tuning: self.tuning(&raw.settings)?,
        })
    }
}

fn letter(server: u8) -> String {
    ServerId(server).letter().to_string()
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
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
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(opened, FILE_BYTES_MAX), &mut text)
            .map_err(|error| HarpError::file("read", file, error))?;
        Config::parse(file, &text)
    }

    /// Checks a configuration's text; `file` is where it is from.
    pub fn parse(file: &Path, text: &str) -> Result<Config, HarpError> {
        let checker = Checker { file, text };
        let raw: RawConfig = toml::from_str(text).map_err(|error| checker.syntax(&error))?;
        checker.config(&raw)
    }

    /// The configuration's text, with comments.
    pub fn text(&self) -> String {
        let Tuning {
            heartbeat_ms,
            failure_timeout_ms,
            lease_ms,
            clock_drift_ppm,
            ring_bytes,
            segment_bytes,
            segments_max,
            checkpoint_bytes,
            cache_bytes,
            capacity_bytes,
        } = self.tuning;
        let durability = durability_name(self.durability);
        let (id, peer_key) = (to_hex(&self.id), to_hex(&self.peer_key));
        let handle_key = to_hex(&self.handle_key);
        let (name, copies, nfs, admin) = (&self.name, self.copies, self.nfs, self.admin);
        let name = toml::Value::String(name.clone());
        let mut text = format!(
            "# Harp: one group of servers that keep one file system.\n\
             # Written when the group was formatted. It holds keys: keep it to yourself (mode 0600).\n\
             \n\
             [group]\n\
             name = {name}\n\
             # Identities and keys: made once, never to be changed.\n\
             id = \"{id}\"\n\
             peer_key = \"{peer_key}\"\n\
             handle_key = \"{handle_key}\"\n\
             # How many servers hold the files; there is one witness less.\n\
             copies = {copies}\n\
             # disk: a record is on the disk of every member before it is acknowledged.\n\
             durability = \"{durability}\"\n\
             \n\
             [listen]\n\
             # NFS, MOUNT and portmap, all on this port.\n\
             nfs = \"{nfs}\"\n\
             # Status, over HTTP.\n\
             admin = \"{admin}\"\n\n"
        );
        for (server, peer) in self.peers.iter().enumerate() {
            let letter = letter(server as u8);
            text += &format!("[server.{letter}]\npeer = \"{peer}\"\n\n");
        }
        text += &format!(
            "[settings]\n\
             # A primary lets no link stay silent longer than this.\n\
             heartbeat_ms = {heartbeat_ms}\n\
             # Silence after which a server counts as failed.\n\
             failure_timeout_ms = {failure_timeout_ms}\n\
             # How long a member promises not to help another primary; below the failure timeout.\n\
             lease_ms = {lease_ms}\n\
             # By how much the rates of two clocks may differ, in parts per million.\n\
             clock_drift_ppm = {clock_drift_ppm}\n\
             # Memory of the newest log records; a power of two, at least two segments.\n\
             ring_bytes = {ring_bytes}\n\
             # One segment of the log on disk, and how many a server may have.\n\
             segment_bytes = {segment_bytes}\n\
             segments_max = {segments_max}\n\
             # Dirty bytes at which a checkpoint starts at the latest.\n\
             checkpoint_bytes = {checkpoint_bytes}\n\
             # Memory of the cache of clean objects.\n\
             cache_bytes = {cache_bytes}\n\
             # Bytes that the file system may hold.\n\
             capacity_bytes = {capacity_bytes}\n"
        );
        text
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
        self.dir().join(server.letter().to_string())
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
            nfs_port: self.nfs.port(),
            planted: None,
        }
    }
}

/// The name of a durability, as in the file and on the command line.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Disk => "disk",
        Durability::Ups => "ups",
    }
}

/// A lock on a file, held until the value is dropped or the process ends.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File); // held open for the lock alone

impl Lock {
    /// Takes the lock `path`, creating the file if need be.
    pub fn take(path: &Path) -> Result<Lock, HarpError> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| HarpError::file("open", path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(HarpError::Locked { what: path.into() }),
            Err(error) => Err(HarpError::file("lock", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
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
            peer_key: [2; 32],
            handle_key: [3; 16],
            nfs: "127.0.0.1:2049".parse().expect("an address"),
            admin: "[::1]:8049".parse().expect("an address"),
            peers: (0..2 * copies as u16 - 1).map(|i| ([127, 0, 0, 1], 21000 + i).into()).collect(),
            tuning: Tuning::default(),
        }
    }

    #[test]
    fn a_written_configuration_reads_back_the_same_and_is_private() {
        let dir = TestDir::new("config-roundtrip");
        for copies in [2, 3] {
            let config = sample(dir.path(), copies);
            config.write_unfinished().expect("writes");
            config.publish().expect("publishes");
            assert_eq!(Config::read(&config.file).expect("reads"), config);
            let mode = std::fs::metadata(&config.file).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn every_fault_names_its_line_and_key() {
        let text = sample(Path::new("/x"), 2).text();
        let cases = [
            ("copies = 2", "copies = 9", "group.copies"),
            ("copies = 2", "copies = \"two\"", "group.copies"),
            ("copies = 2", "copys = 2", "group.copys"),
            ("durability = \"disk\"", "durability = \"ups\"", "group.durability"),
            ("nfs = \"127.0.0.1:2049\"", "nfs = \"localhost\"", "listen.nfs"),
            ("peer = \"127.0.0.1:21001\"", "peer = \"127.0.0.1\"", "server.b.peer"),
            ("lease_ms = 140", "lease_ms = 180", "settings.lease_ms"),
            ("heartbeat_ms = 20", "heartbeat_ms = -1", "settings.heartbeat_ms"),
            ("ring_bytes = 268435456", "ring_bytes = 268435457", "settings.ring_bytes"),
            ("segment_bytes = 67108864", "segment_bytes = 1048576", "settings.segment_bytes"),
            ("segments_max = 128", "segments_max = ", "settings.segments_max"),
        ];
        for (right, wrong, want) in cases {
            let line = 1 + text.lines().position(|l| l == right).expect(right);
            let error = Config::parse(Path::new("f"), &text.replace(right, wrong));
            let Err(HarpError::Config { line: at, key, .. }) = &error else {
                panic!("{wrong}: {error:?}");
            };
            assert_eq!((*at, key.as_str()), (line, want), "{wrong}: {error:?}");
            assert_eq!(error.expect_err("wrong").to_string().lines().count(), 1);
        }
    }

    #[test]
    fn keys_and_servers_are_checked() {
        let text = sample(Path::new("/x"), 2).text();
        let fault = |text: &str| match Config::parse(Path::new("f"), text) {
            Err(HarpError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(fault(&text.replace("id = \"0101", "id = \"01")), "group.id");
        assert_eq!(
            fault(&text.replace("peer_key = \"0202", "peer_key = \"zz02")),
            "group.peer_key"
        );
        assert_eq!(fault(&text.replace("[server.c]", "[server.d]")), "server.c.peer");
        let more = text.replace("[settings]", "[server.d]\npeer = \"1.1.1.1:1\"\n[settings]");
        assert_eq!(fault(&more), "server.d");
        let without = text.replace("lease_ms = 140\n", "");
        assert_eq!(fault(&without), "settings");
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = TestDir::new("config-lock");
        let path = dir.path().join("harp.lock");
        let held = Lock::take(&path).expect("free");
        assert!(matches!(Lock::take(&path), Err(HarpError::Locked { .. })));
        drop(held);
        Lock::take(&path).expect("free again");
    }
}
