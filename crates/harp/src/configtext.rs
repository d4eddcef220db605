//! A configuration as text: what `harp up` and `harp init` write.
//! Owns: the comments, which are the settings' manual.
//! Never: opens a file.
//! Invariant: the text of a configuration reads back as the same configuration.

use harp_node::fs::atime::AccessTimes;
use harp_node::fs::key::RootOwner;
use harp_node::vr::ServerId;
use harp_node::{Durability, Export, GroupSource, Squash};

use crate::config::{Config, Place, Tuning, durability_name, to_hex};
use crate::status::designated;

impl Config {
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
            access_times,
        } = self.tuning;
        let access_times = access_times_name(access_times);
        let durability = durability_name(self.durability);
        let (id, peer_key) = (to_hex(&self.id), to_hex(&self.peer_key));
        let handle_key = to_hex(&self.handle_key);
        let (name, copies) = (toml_text(&self.name), self.copies);
        let mut text = format!(
            "# Harp: one group of servers that keep one file system.\n\
             # It holds keys: keep it to yourself (mode 0600).\n\
             \n\
             [group]\n\
             name = {name}\n\
             # Identities and keys: made once, never to be changed.\n\
             id = \"{id}\"\n\
             peer_key = \"{peer_key}\"\n\
             handle_key = \"{handle_key}\"\n\
             # How many servers hold the files; there is one witness less.\n\
             copies = {copies}\n\
             # disk: a record is on the disk of every member before it is acknowledged. ups: it is in the memory of\n\
             # every member, and written to disk behind that: without an uninterruptible power supply at each server,\n\
             # and harp power called by what watches it, a power cut of all servers loses the newest records.\n\
             durability = \"{durability}\"\n"
        );
        if self.durability == Durability::Ups {
            let memory_dir = toml_text(&self.memory_dir.to_string_lossy());
            text += &format!(
                "# Where that memory lies, so that it outlives the server's process: on a tmpfs.\n\
                 memory_dir = {memory_dir}\n"
            );
        }
        text += "\n";
        text += &self.place_text();
        text += &self.export_text();
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
             # One segment of the log on disk, and how many a server may have: four more than four rings take at least.\n\
             segment_bytes = {segment_bytes}\n\
             segments_max = {segments_max}\n\
             # Dirty bytes at which a checkpoint starts at the latest.\n\
             checkpoint_bytes = {checkpoint_bytes}\n\
             # Memory of the cache of clean objects.\n\
             cache_bytes = {cache_bytes}\n\
             # Bytes that the file system may hold.\n\
             capacity_bytes = {capacity_bytes}\n\
             # relatime: the time of access is recorded at the first read since a change, or once a day; off: never.\n\
             access_times = \"{access_times}\"\n"
        );
        text
    }

    fn place_text(&self) -> String {
        let mut text = String::new();
        if let Place::Here { nfs, admin } = &self.place {
            text += &format!(
                "[listen]\n\
                 # NFS, MOUNT and portmap, all on this port.\n\
                 nfs = \"{nfs}\"\n\
                 # Status, over HTTP.\n\
                 admin = \"{admin}\"\n\n"
            );
        }
        for (index, peer) in self.peers.iter().enumerate() {
            let server = ServerId(index as u8);
            text += &format!("[server.{server}]\n");
            let Place::Machines(machines) = &self.place else {
                text += &format!("peer = \"{peer}\"\n\n");
                continue;
            };
            let nfs = machines[index].nfs;
            let dir = toml_text(&machines[index].dir.to_string_lossy());
            let role = match designated(self.shape(), server) {
                "witness" => "A witness: it breaks ties, and keeps the log while a copy is away.",
                "primary" => "A copy, and primary while it is well.",
                _ => "A copy, and primary when those before it are away.",
            };
            text += &format!(
                "# {role}\n\
                 # Where the other servers and harp status reach it.\n\
                 peer = \"{peer}\"\n\
                 # Where clients connect: NFS, MOUNT and portmap, all on this port.\n\
                 nfs = \"{nfs}\"\n\
                 # What it keeps, on its own machine; harp serve --format makes it.\n\
                 dir = {dir}\n\n"
            );
        }
        text
    }

    fn export_text(&self) -> String {
        let Export { allow, squash, anonymous_uid, anonymous_gid, groups } = &self.export;
        let allow: Vec<String> = allow.iter().map(|network| format!("\"{network}\"")).collect();
        let (allow, squash) = (allow.join(", "), squash_name(*squash));
        let groups = group_source_name(*groups);
        let RootOwner { uid, gid, mode } = self.root;
        let register_rpcbind = self.register_rpcbind;
        format!(
            "[export]\n\
             # The networks whose clients may connect. Whoever can send from such an address, and reach an\n\
             # NFS address, may say that he is any user but those squashed.\n\
             allow = [{allow}]\n\
             # Whose word about himself is not taken: root's, all or none. He is the anonymous user instead.\n\
             squash = \"{squash}\"\n\
             anonymous_uid = {anonymous_uid}\n\
             anonymous_gid = {anonymous_gid}\n\
             # Who says which groups a user is in. client: each call, but no more than sixteen. server: the user\n\
             # database (passwd and group, LDAP, ...) of each server's own machine.\n\
             groups = \"{groups}\"\n\
             # The root directory's owner, group and mode as it is made; chown and chmod change it later.\n\
             root_uid = {uid}\n\
             root_gid = {gid}\n\
             root_mode = 0o{mode:o}\n\
             # Tell the machine's rpcbind where NFS and MOUNT are; no other NFS server may run there then.\n\
             register_rpcbind = {register_rpcbind}\n\n"
        )
    }
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

/// The name of a setting of access times, as in the file.
pub fn access_times_name(access_times: AccessTimes) -> &'static str {
    match access_times {
        AccessTimes::Relative => "relatime",
        AccessTimes::Off => "off",
    }
}

/// The name of a source of groups, as in the file and on the command line.
pub fn group_source_name(source: GroupSource) -> &'static str {
    match source {
        GroupSource::Client => "client",
        GroupSource::Server => "server",
    }
}

/// The name of a squashing, as in the file and on the command line.
pub fn squash_name(squash: Squash) -> &'static str {
    match squash {
        Squash::None => "none",
        Squash::Root => "root",
        Squash::All => "all",
    }
}
