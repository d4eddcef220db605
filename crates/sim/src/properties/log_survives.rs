//! What a server acknowledged as durable is in its log when it starts again.
//! Owns: the highest acknowledgement of each server in its formed view.
//! Never: counts a log that the world itself damaged.
//! Source: rules 1 and 3; docs/protocol.md, "Rules", durability `disk`; in `ups`, unless the memory went first.

use harp_node::vr::{Envelope, Message, SERVERS_MAX, ServerId, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "rules 1 and 3, acknowledged records survive a restart";

/// What each server acknowledged.
#[derive(Debug, Default)]
pub struct LogSurvives {
    acknowledged: [(View, u64); SERVERS_MAX],
}

impl LogSurvives {
    /// `from` sent a message.
    pub fn sent(&mut self, from: ServerId, envelope: &Envelope) {
        let (view, upto) = match &envelope.message {
            Message::Installed { view, end } => (*view, end.0),
            Message::PrepareOk(ok) => (ok.view, ok.durable.0),
            _ => return,
        };
        let known = &mut self.acknowledged[from.index()];
        if view >= known.0 {
            let before = if view == known.0 { known.1 } else { 0 };
            *known = (view, upto.max(before));
        }
    }

    /// The world took the log of `server` away.
    pub fn damaged(&mut self, server: ServerId) {
        self.acknowledged[server.index()] = (View::NONE, 0);
    }

    /// A server has just started.
    pub fn check(&self, pulse: &Pulse) -> Verdict {
        let (view, upto) = self.acknowledged[pulse.server.index()];
        require(NAME, pulse.formed != view || pulse.log_end >= upto, || {
            let (server, end) = (pulse.server, pulse.log_end);
            format!("{server} acknowledged op {upto} in view {view}, its log now ends at {end}")
        })
    }
}
