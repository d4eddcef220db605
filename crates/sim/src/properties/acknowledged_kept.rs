//! An acknowledged operation is never lost while the claimed fault bound holds.
//! Owns: the highest op that any client was told of.
//! Never: forgets it.
//! Source: property 1.

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "1, acknowledged operations are kept";

/// The highest op that any client was told of.
#[derive(Debug, Default)]
pub struct AcknowledgedKept {
    acknowledged: u64,
}

impl AcknowledgedKept {
    /// A reply that shows `op` reached a client.
    pub fn told(&mut self, op: u64) {
        self.acknowledged = self.acknowledged.max(op);
    }

    /// The highest op that a client was told of.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// An operator's override kept the history up to `kept`; what came after it was given up.
    pub fn overridden(&mut self, kept: u64) {
        self.acknowledged = self.acknowledged.min(kept);
    }

    /// A primary that serves under its lease has everything acknowledged.
    pub fn check(&self, pulse: &Pulse) -> Verdict {
        let serves = pulse.serving && pulse.lease_until > pulse.at;
        require(NAME, !serves || pulse.log_end >= self.acknowledged, || {
            let (server, view, end) = (pulse.server, pulse.formed, pulse.log_end);
            let acknowledged = self.acknowledged;
            format!(
                "{server} serves view {view} with a log that ends at {end}, acknowledged: {acknowledged}"
            )
        })
    }
}
