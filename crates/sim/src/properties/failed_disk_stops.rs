//! After a failed write or sync a server acknowledges nothing more.
//! Owns: which processes were told of a failure.
//! Never: counts reads.
//! Source: property 17, rule 8.

use harp_node::vr::{Envelope, Message, SERVERS_MAX, ServerId};

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "17, a failed disk stops its server";

/// Processes that were told that a write or sync failed.
#[derive(Debug, Default)]
pub struct FailedDiskStops {
    failed: [Option<u32>; SERVERS_MAX],
    /// Told in a turn that has not ended; what that turn did before may still leave.
    telling: [Option<u32>; SERVERS_MAX],
}

impl FailedDiskStops {
    /// A process was told.
    pub fn told(&mut self, server: ServerId, life: u32) {
        self.telling[server.index()] = Some(life);
    }

    /// A server's turn ended.
    pub fn turn_ended(&mut self, server: ServerId) {
        if let Some(life) = self.telling[server.index()].take() {
            self.failed[server.index()] = Some(life);
        }
    }

    fn silent(&self, server: ServerId, life: u32, what: &str) -> Verdict {
        require(NAME, self.failed[server.index()] != Some(life), || {
            format!("{server} {what} after its disk failed")
        })
    }

    /// A process sends a message.
    pub fn sent(&self, server: ServerId, life: u32, envelope: &Envelope) -> Verdict {
        match &envelope.message {
            Message::PrepareOk(_) | Message::Installed { .. } => {
                self.silent(server, life, "acknowledges")
            }
            Message::Promise { .. } => self.silent(server, life, "promises"),
            Message::Prepare(_) => self.silent(server, life, "leads"),
            _ => Ok(()),
        }
    }

    /// A primary commits something.
    pub fn committed(&self, server: ServerId, life: u32) -> Verdict {
        self.silent(server, life, "commits")
    }
}
