//! Reading a configuration: from TOML to checked values.
//! Owns: the keys, their ranges, what must hold between them, and faults that name line and key.
//! Never: opens a file.
//! Invariant: what passes makes a node that runs; every fault is one line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use harp_node::fs::atime::AccessTimes;
use harp_node::fs::key::RootOwner;
use harp_node::log::{BATCH_HEADER_BYTES, RECORD_BYTES_MAX};
use harp_node::vr::{ServerId, Shape};
use harp_node::{Durability, Export, GroupSource, Network, Squash};
use serde::Deserialize;
use toml::Spanned;

use crate::config::{
    Config, MEMORY_DIR_DEFAULT, Machine, Place, Tuning, durability_named, from_hex,
};
use crate::configtext::{access_times_name, group_source_name, squash_name};
use crate::error::HarpError;

/// The shortest segment that the longest record fits into.
pub const SEGMENT_MIN: u64 = ((RECORD_BYTES_MAX + BATCH_HEADER_BYTES) as u64).next_power_of_two();

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    group: RawGroup,
    listen: Option<RawListen>,
    server: BTreeMap<Spanned<String>, RawServer>,
    export: Option<RawExport>,
    settings: RawTuning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: Spanned<String>,
    id: Spanned<String>,
    copies: Spanned<u64>,
    durability: Spanned<String>,
    memory_dir: Option<Spanned<String>>,
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
    nfs: Option<Spanned<String>>,
    dir: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExport {
    allow: Vec<Spanned<String>>,
    squash: Option<Spanned<String>>,
    anonymous_uid: Option<u32>,
    anonymous_gid: Option<u32>,
    groups: Option<Spanned<String>>,
    root_uid: Option<u32>,
    root_gid: Option<u32>,
    root_mode: Option<Spanned<u64>>,
    register_rpcbind: Option<bool>,
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
    access_times: Option<Spanned<String>>,
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
        let ring = 2 * segment_bytes..=(segment_bytes << 11).min(64 << 30);
        let ring_bytes = self.power_of_two("settings.ring_bytes", &raw.ring_bytes, ring)?;
        // A log holds what the ring does when an absent copy is given up, and as much again until that is committed; one
        // that replaces it needs the same room beside it.
        let segments_min = 4 * ring_bytes / segment_bytes + 4;
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
            ring_bytes,
            segment_bytes,
            segments_max: self.number(
                "settings.segments_max",
                &raw.segments_max,
                segments_min..=9999,
            )?,
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
            access_times: self.access_times(raw.access_times.as_ref())?,
        })
    }

    fn access_times(&self, name: Option<&Spanned<String>>) -> Result<AccessTimes, HarpError> {
        let Some(name) = name else { return Ok(AccessTimes::Relative) };
        let known = [AccessTimes::Relative, AccessTimes::Off];
        let found = known.into_iter().find(|known| access_times_name(*known) == name.get_ref());
        found.ok_or_else(|| {
            let why = "must be \"relatime\" or \"off\" (\"strict\" is not built)";
            self.fault(name.span().start, "settings.access_times", why)
        })
    }

    /// An address that others can connect to.
    fn reachable(&self, key: &str, value: &Spanned<String>) -> Result<SocketAddr, HarpError> {
        let address = self.address(key, value)?;
        if address.ip().is_unspecified() || address.port() == 0 {
            let why = "must be an address and a port that the other servers can connect to";
            return Err(self.fault(value.span().start, key, why));
        }
        Ok(address)
    }

    fn here(
        &self,
        listen: &RawListen,
        servers: &[(ServerId, &RawServer)],
    ) -> Result<Place, HarpError> {
        for (server, raw) in servers {
            for (name, value) in [("nfs", &raw.nfs), ("dir", &raw.dir)] {
                if let Some(value) = value {
                    let key = format!("server.{server}.{name}");
                    let why = "is for a group over several machines, which has no section [listen]";
                    return Err(self.fault(value.span().start, &key, why));
                }
            }
        }
        let nfs = self.address("listen.nfs", &listen.nfs)?;
        Ok(Place::Here { nfs, admin: self.address("listen.admin", &listen.admin)? })
    }

    fn machines(&self, servers: &[(ServerId, &RawServer)]) -> Result<Place, HarpError> {
        let machine = |(server, raw): &(ServerId, &RawServer)| {
            let missing = |name: &str| {
                let key = format!("server.{server}.{name}");
                let why = "is missing, and there is no section [listen] either (harp up's)";
                self.fault(raw.peer.span().start, &key, why)
            };
            let nfs = raw.nfs.as_ref().ok_or_else(|| missing("nfs"))?;
            let dir = raw.dir.as_ref().ok_or_else(|| missing("dir"))?;
            if dir.get_ref().is_empty() {
                let key = format!("server.{server}.dir");
                return Err(self.fault(dir.span().start, &key, "must be a directory"));
            }
            let nfs = self.address(&format!("server.{server}.nfs"), nfs)?;
            Ok(Machine { nfs, dir: PathBuf::from(dir.get_ref()) })
        };
        let machines = servers.iter().map(machine).collect::<Result<Vec<Machine>, _>>()?;
        for ((server, raw), machine) in servers.iter().zip(&machines) {
            // The primary's portmapper names its own port to the clients of all.
            if let (false, Some(nfs)) = (machine.nfs.port() == machines[0].nfs.port(), &raw.nfs) {
                let why = "must have the same port as server.a.nfs";
                return Err(self.fault(nfs.span().start, &format!("server.{server}.nfs"), why));
            }
        }
        Ok(Place::Machines(machines))
    }

    /// No two servers may take each other's place.
    fn distinct(
        &self,
        servers: &[(ServerId, &RawServer)],
        peers: &[SocketAddr],
        place: &Place,
    ) -> Result<(), HarpError> {
        let mut taken: BTreeMap<SocketAddr, String> = BTreeMap::new();
        let mut take = |address: SocketAddr, key: String, at: usize| {
            if let Some(other) = taken.get(&address) {
                return Err(self.fault(at, &key, format!("is the same as {other}")));
            }
            taken.insert(address, key);
            Ok(())
        };
        for ((server, raw), peer) in servers.iter().zip(peers) {
            take(*peer, format!("server.{server}.peer"), raw.peer.span().start)?;
        }
        let Place::Machines(machines) = place else { return Ok(()) };
        for (((server, raw), machine), peer) in servers.iter().zip(machines).zip(peers) {
            // An address that stands for all of a machine's is that machine's.
            let ip = machine.nfs.ip();
            let ip = if ip.is_unspecified() { peer.ip() } else { ip };
            let at = raw.nfs.as_ref().map_or(0, |nfs| nfs.span().start);
            let nfs = SocketAddr::new(ip, machine.nfs.port());
            take(nfs, format!("server.{server}.nfs"), at)?;
        }
        let mut dirs: BTreeMap<(std::net::IpAddr, &Path), ServerId> = BTreeMap::new();
        for (((server, raw), machine), peer) in servers.iter().zip(machines).zip(peers) {
            if let Some(other) = dirs.insert((peer.ip(), &machine.dir), *server) {
                let at = raw.dir.as_ref().map_or(0, |dir| dir.span().start);
                let why = format!("is the same as server.{other}.dir, on the same machine");
                return Err(self.fault(at, &format!("server.{server}.dir"), why));
            }
        }
        Ok(())
    }

    fn export(
        &self,
        raw: Option<&RawExport>,
        place: &Place,
    ) -> Result<(Export, RootOwner), HarpError> {
        let (mut export, mut root) = (Export::default(), RootOwner::default());
        let Some(raw) = raw else {
            let local = |machine: &Machine| machine.nfs.ip().is_loopback();
            if let Place::Machines(machines) = place
                && !machines.iter().all(local)
            {
                let why = "is missing: name the networks whose clients may connect";
                return Err(HarpError::Config {
                    file: self.file.to_path_buf(),
                    line: 0,
                    key: "export.allow".into(),
                    why: why.into(),
                });
            }
            return Ok((export, root));
        };
        let network = |text: &Spanned<String>| {
            let parsed: Result<Network, _> = text.get_ref().parse();
            let fault = |why: harp_node::NetworkError| {
                self.fault(text.span().start, "export.allow", format!("{:?} {why}", text.get_ref()))
            };
            parsed.map_err(fault)
        };
        export.allow = raw.allow.iter().map(network).collect::<Result<_, _>>()?;
        export.squash = match &raw.squash {
            None if export.is_beyond_loopback() => Squash::Root,
            None => Squash::None,
            Some(name) => squash_named(name.get_ref()).ok_or_else(|| {
                let why = "must be \"root\", \"all\" or \"none\"";
                self.fault(name.span().start, "export.squash", why)
            })?,
        };
        export.anonymous_uid = raw.anonymous_uid.unwrap_or(export.anonymous_uid);
        export.anonymous_gid = raw.anonymous_gid.unwrap_or(export.anonymous_gid);
        if let Some(name) = &raw.groups {
            export.groups = group_source_named(name.get_ref()).ok_or_else(|| {
                let why = "must be \"client\" (its calls say a user's groups) or \"server\" (the server's user \
                           database does)";
                self.fault(name.span().start, "export.groups", why)
            })?;
        }
        root.uid = raw.root_uid.unwrap_or(root.uid);
        root.gid = raw.root_gid.unwrap_or(root.gid);
        if let Some(mode) = &raw.root_mode {
            root.mode = self.number("export.root_mode", mode, 0..=0o7777)? as u32;
        }
        Ok((export, root))
    }

    fn memory_dir(
        &self,
        durability: Durability,
        dir: Option<&Spanned<String>>,
    ) -> Result<PathBuf, HarpError> {
        let Some(dir) = dir else { return Ok(MEMORY_DIR_DEFAULT.into()) };
        let path = PathBuf::from(dir.get_ref());
        let why = match durability {
            Durability::Disk => "is for durability \"ups\"",
            Durability::Ups if !path.is_absolute() => "must be an absolute path",
            Durability::Ups => return Ok(path),
        };
        Err(self.fault(dir.span().start, "group.memory_dir", why))
    }

    fn config(&self, raw: &RawConfig) -> Result<Config, HarpError> {
        let group = &raw.group;
        let copies = self.number("group.copies", &group.copies, 2..=3)? as u8;
        let durability = durability_named(group.durability.get_ref()).ok_or_else(|| {
            let why = "must be \"disk\" or \"ups\"";
            self.fault(group.durability.span().start, "group.durability", why)
        })?;
        let memory_dir = self.memory_dir(durability, group.memory_dir.as_ref())?;
        let (mut peers, mut found_servers) = (Vec::new(), Vec::new());
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
            peers.push(self.reachable(&key, &found.peer)?);
            found_servers.push((server, found));
        }
        for name in raw.server.keys() {
            let known = (0..peers.len() as u8).any(|i| *name.get_ref() == ServerId(i).to_string());
            if !known {
                let why = format!("a group of {copies} copies has no such server");
                return Err(self.fault(
                    name.span().start,
                    &format!("server.{}", name.get_ref()),
                    why,
                ));
            }
        }
        let place = match &raw.listen {
            Some(listen) => self.here(listen, &found_servers)?,
            None => self.machines(&found_servers)?,
        };
        self.distinct(&found_servers, &peers, &place)?;
        let (export, root) = self.export(raw.export.as_ref(), &place)?;
        Ok(Config {
            file: self.file.to_path_buf(),
            name: group.name.get_ref().clone(),
            id: self.hex("group.id", &group.id)?,
            copies,
            durability,
            memory_dir,
            peer_key: self.hex("group.peer_key", &group.peer_key)?,
            handle_key: self.hex("group.handle_key", &group.handle_key)?,
            place,
            export,
            root,
            register_rpcbind: raw.export.as_ref().is_some_and(|e| e.register_rpcbind == Some(true)),
            peers,
            tuning: self.tuning(&raw.settings)?,
        })
    }
}

/// The squashing of that name.
pub fn squash_named(name: &str) -> Option<Squash> {
    [Squash::None, Squash::Root, Squash::All]
        .into_iter()
        .find(|squash| squash_name(*squash) == name)
}

/// The source of groups of that name.
pub fn group_source_named(name: &str) -> Option<GroupSource> {
    [GroupSource::Client, GroupSource::Server]
        .into_iter()
        .find(|source| group_source_name(*source) == name)
}

impl Config {
    /// Checks a configuration's text; `file` is where it is from.
    pub fn parse(file: &Path, text: &str) -> Result<Config, HarpError> {
        let checker = Checker { file, text };
        let raw: RawConfig = toml::from_str(text).map_err(|error| checker.syntax(&error))?;
        checker.config(&raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::sample;

    #[test]
    fn every_fault_names_its_line_and_key() {
        let text = sample(Path::new("/x"), 2).text();
        let cases = [
            ("copies = 2", "copies = 9", "group.copies"),
            ("copies = 2", "copies = \"two\"", "group.copies"),
            ("copies = 2", "copys = 2", "group.copys"),
            ("durability = \"disk\"", "durability = \"hope\"", "group.durability"),
            ("nfs = \"127.0.0.1:2049\"", "nfs = \"localhost\"", "listen.nfs"),
            ("peer = \"127.0.0.1:21001\"", "peer = \"127.0.0.1\"", "server.b.peer"),
            ("lease_ms = 140", "lease_ms = 180", "settings.lease_ms"),
            ("heartbeat_ms = 20", "heartbeat_ms = -1", "settings.heartbeat_ms"),
            ("ring_bytes = 268435456", "ring_bytes = 268435457", "settings.ring_bytes"),
            ("segment_bytes = 67108864", "segment_bytes = 1048576", "settings.segment_bytes"),
            ("segments_max = 128", "segments_max = ", "settings.segments_max"),
            ("segments_max = 128", "segments_max = 19", "settings.segments_max"),
            ("squash = \"none\"", "squash = \"some\"", "export.squash"),
            ("groups = \"client\"", "groups = \"ldap\"", "export.groups"),
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
        let older = text.replace("groups = \"client\"\n", "");
        assert_eq!(
            Config::parse(Path::new("/x/harp.toml"), &older).ok(),
            Some(sample(Path::new("/x"), 2))
        );
        let without = text.replace("lease_ms = 140\n", "");
        assert_eq!(fault(&without), "settings");
    }
}
