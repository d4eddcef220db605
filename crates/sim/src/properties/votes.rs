//! A log that is not intact and complete is never voted; only members acknowledge.
//! Owns: whose log the world damaged since it was last rewritten.
//! Never: believes a report; it compares it with what was committed.
//! Source: property 9, rules 2 and 3.

use harp_node::vr::{Envelope, Message, Report, SERVERS_MAX, ServerId, ServerSet, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "9, only intact and complete logs are voted";

/// Which logs may be voted.
#[derive(Debug, Default)]
pub struct Votes {
    /// The view a server had formed when its log was damaged.
    damaged: [Option<View>; SERVERS_MAX],
    /// The same, for damage that may not matter.
    doubtful: [Option<View>; SERVERS_MAX],
}

impl Votes {
    /// The world damaged the log of `server`, which had formed `view`.
    pub fn damaged(&mut self, server: ServerId, view: View) {
        self.damaged[server.index()] = Some(view);
        self.doubtful(server, view);
    }

    /// The world did something to the log of `server` that it may not suffer from.
    pub fn doubtful(&mut self, server: ServerId, view: View) {
        self.doubtful[server.index()] = Some(view);
    }

    /// Whether the log of `server` may be damaged and is not rewritten yet.
    pub fn is_doubtful(&self, server: ServerId) -> bool {
        self.doubtful[server.index()].is_some()
    }

    /// Whether the log of `server` is damaged and not rewritten yet.
    pub fn is_damaged(&self, server: ServerId) -> bool {
        self.damaged[server.index()].is_some()
    }

    /// A server's turn ended; forming a view rewrites its log.
    pub fn seen(&mut self, pulse: &Pulse) {
        let index = pulse.server.index();
        for damaged in [&mut self.damaged[index], &mut self.doubtful[index]] {
            if damaged.is_some_and(|view| pulse.formed > view) {
                *damaged = None;
            }
        }
    }

    /// `from` reports, in a promise. `committed`: highest op committed in views up to the one it formed.
    pub fn check_report(&self, from: ServerId, report: &Report, committed: u64) -> Verdict {
        let Some((begin, end)) = report.log else { return Ok(()) };
        require(NAME, !self.is_damaged(from), || {
            format!("{from} votes a log [{begin}, {end}] that was damaged")
        })?;
        require(NAME, end.0 >= committed, || {
            let formed = report.formed;
            format!(
                "{from} votes a log [{begin}, {end}] of view {formed}; {committed} was committed"
            )
        })
    }

    /// `from` sends a message; acknowledgements come from members only.
    pub fn check_sender(
        &self,
        from: ServerId,
        envelope: &Envelope,
        members: impl Fn(View) -> Option<ServerSet>,
    ) -> Verdict {
        let view = match &envelope.message {
            Message::Installed { view, .. } => *view,
            Message::PrepareOk(ok) => ok.view,
            _ => return Ok(()),
        };
        let member = members(view).is_none_or(|members| members.contains(from));
        require(NAME, member, || format!("{from} acknowledges in view {view}, it is no member"))
    }
}
