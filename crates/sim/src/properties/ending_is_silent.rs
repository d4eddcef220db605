//! A server that writes its log out says nothing more.
//! Owns: which processes were told that the power, or their time, is about to end.
//! Never: counts what the turn says in which it was told; the next one is early enough.
//! Source: rule 3; docs/protocol.md, "Rules".

use harp_node::vr::{Envelope, Message, SERVERS_MAX, ServerId};

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "3, a server that writes its log out is silent";

/// Processes that were told to write out.
#[derive(Debug, Default)]
pub struct EndingIsSilent {
    ending: [Option<u32>; SERVERS_MAX],
    /// Told in a turn that has not ended.
    telling: [Option<u32>; SERVERS_MAX],
}

impl EndingIsSilent {
    /// A process was told.
    pub fn told(&mut self, server: ServerId, life: u32) {
        self.telling[server.index()] = Some(life);
    }

    /// A server's turn ended.
    pub fn turn_ended(&mut self, server: ServerId) {
        if let Some(life) = self.telling[server.index()].take() {
            self.ending[server.index()] = Some(life);
        }
    }

    /// A process sends a message.
    pub fn sent(&self, server: ServerId, life: u32, envelope: &Envelope) -> Verdict {
        let what = match &envelope.message {
            Message::PrepareOk(_) | Message::Installed { .. } => "acknowledges",
            Message::Promise { .. } => "promises",
            Message::Prepare(_) => "leads",
            _ => return Ok(()),
        };
        require(NAME, self.ending[server.index()] != Some(life), || {
            format!("{server} {what} while it writes its log out")
        })
    }
}
