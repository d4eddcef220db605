//! A backup does not advance AP past the AP its primary had in this view.
//! Owns: the highest AP of each view's primary, and each server's AP at its last turn.
//! Never: compares across a change of view or of process.
//! Source: property 4.

use std::collections::BTreeMap;

use harp_node::vr::{SERVERS_MAX, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "4, backups apply behind their primary";

/// What primaries applied.
#[derive(Debug, Default)]
pub struct ApplyBound {
    primaries: BTreeMap<View, u64>,
    last: [(u32, View, u64); SERVERS_MAX],
}

impl ApplyBound {
    /// Checks a server's AP against its view's primary.
    pub fn check(&mut self, pulse: &Pulse) -> Verdict {
        let last = &mut self.last[pulse.server.index()];
        let (life, view, ap) = *last;
        *last = (pulse.life, pulse.formed, pulse.ap);
        if pulse.primary {
            let known = self.primaries.entry(pulse.formed).or_default();
            *known = pulse.ap.max(*known);
            return Ok(());
        }
        if !pulse.copy || pulse.learner || (life, view) != (pulse.life, pulse.formed) {
            return Ok(());
        }
        let heard = self.primaries.get(&view).copied().unwrap_or(0);
        require(NAME, pulse.ap <= ap.max(heard), || {
            let (server, to) = (pulse.server, pulse.ap);
            format!("{server} applied up to {to} in view {view}, its primary up to {heard}")
        })
    }
}
