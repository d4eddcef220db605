//! An acknowledged operation is never lost while the claimed fault bound holds.
//! Owns: the highest op that any client was told of.
//! Never: forgets it.
//! Source: property 1.

use super::{Pulse, Verdict, require};

const NAME: &str = "1, acknowledged operations are kept";

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

    /// A primary that serves commits on top of everything acknowledged.
    pub fn check(&self, pulse: &Pulse) -> Verdict {
        require(NAME, !pulse.serving || pulse.fp >= self.acknowledged, || {
            let (server, view, fp) = (pulse.server, pulse.formed, pulse.fp);
            let acknowledged = self.acknowledged;
            format!(
                "{server} serves view {view} with a log that ends at {fp}, acknowledged: {acknowledged}"
            )
        })
    }
}
