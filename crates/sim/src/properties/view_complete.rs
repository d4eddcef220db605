//! A new view's log contains every committed op.
//! Owns: up to where each view committed, and what each server formed.
//! Never: waits for a server to notice what it lacks.
//! Source: property 8.

use std::collections::BTreeMap;

use harp_node::vr::{SERVERS_MAX, ServerId, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "8, a new view's log is complete";

/// Commitments by view.
#[derive(Debug, Default)]
pub struct ViewComplete {
    committed: BTreeMap<View, u64>,
    formed: [(View, u64); SERVERS_MAX],
}

impl ViewComplete {
    /// Highest op committed in any view up to `view`.
    pub fn committed_upto(&self, view: View) -> u64 {
        self.committed.range(..=view).map(|(_, op)| *op).max().unwrap_or(0)
    }

    fn committed_below(&self, view: View) -> u64 {
        self.committed.range(..view).map(|(_, op)| *op).max().unwrap_or(0)
    }

    /// An operator's override kept the history up to `kept`.
    pub fn overridden(&mut self, kept: u64) {
        for committed in self.committed.values_mut() {
            *committed = kept.min(*committed);
        }
    }

    /// A server's turn ended.
    pub fn check(&mut self, pulse: &Pulse) -> Verdict {
        let known = &mut self.formed[pulse.server.index()];
        if !pulse.complete {
            *known = (View::NONE, 0);
            return Ok(());
        }
        let new = known.0 < pulse.formed;
        *known = (pulse.formed, pulse.log_end);
        if !new {
            return Ok(());
        }
        let committed = self.committed_below(pulse.formed);
        self.holds(pulse.server, pulse.formed, pulse.log_end, committed)
    }

    fn holds(&self, server: ServerId, view: View, fp: u64, committed: u64) -> Verdict {
        require(NAME, fp >= committed, || {
            format!("{server} formed view {view} with a log up to {fp}; {committed} was committed")
        })
    }

    /// The log of `server` was taken away by the world.
    pub fn damaged(&mut self, server: ServerId) {
        self.formed[server.index()] = (View::NONE, 0);
    }

    /// The primary of `view` has committed up to `op`.
    pub fn committed(&mut self, view: View, op: u64) -> Verdict {
        let known = self.committed.entry(view).or_default();
        *known = op.max(*known);
        for (server, (formed, fp)) in self.formed.iter().enumerate() {
            if *formed > view {
                self.holds(ServerId(server as u8), *formed, *fp, op)?;
            }
        }
        Ok(())
    }
}
