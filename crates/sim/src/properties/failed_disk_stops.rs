//! After a failed write or sync a server says nothing more.
//! Owns: which processes were told of a failure.
//! Never: counts reads.
//! Source: property 17, rule 8.

use harp_node::vr::{SERVERS_MAX, ServerId};

use super::{Verdict, require};

const NAME: &str = "17, a failed disk stops its server";

/// Processes that were told that a write or sync failed.
#[derive(Debug, Default)]
pub struct FailedDiskStops {
    failed: [Option<u32>; SERVERS_MAX],
}

impl FailedDiskStops {
    /// A process was told.
    pub fn told(&mut self, server: ServerId, life: u32) {
        self.failed[server.index()] = Some(life);
    }

    /// A process's turn ended. `fatal`: it asked to be ended.
    pub fn check(&self, server: ServerId, life: u32, fatal: bool) -> Verdict {
        require(NAME, fatal || self.failed[server.index()] != Some(life), || {
            format!("{server} goes on after its disk failed")
        })
    }
}
