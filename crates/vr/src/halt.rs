//! A copy that cannot apply a record (rule 14): it keeps its log, promises, and joins no view.
//! Owns: why it halted, and what that keeps it from.
//! Never: lets go of the log, which may be the only one that has the record.
//! Invariant: a halted copy is no member of a view for longer than until its next tick, and starts no view change.
//! Source: docs/protocol.md, rule 14.

use crate::action::Action;
use crate::replica::{Replica, Stage};
use crate::types::Nanos;

impl Replica {
    /// Nothing is applied from now on; `why` is for people. The log counts as before; the image does not, until
    /// another copy's takes its place.
    pub fn on_halted(&mut self, now: Nanos, why: String, out: &mut Vec<Action>) {
        assert!(self.image.is_some(), "only copies apply");
        out.push(Action::Refusing { why: why.clone() });
        self.halted = Some(why);
        self.leave_if_halted(now, out);
    }

    /// Whether this copy applies nothing any more.
    pub fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// The primary of a view must be able to plan, and whoever may become it, to apply.
    pub(crate) fn leave_if_halted(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let takes_part = self.is_normal() || matches!(self.stage, Stage::Installing { .. });
        // An adoption under way ends first.
        if self.halted.is_none() || !takes_part || self.tagging.is_some() {
            return;
        }
        self.leave_view(out);
        self.attempt = None;
        self.stage = Stage::Outside { since: now };
    }
}
