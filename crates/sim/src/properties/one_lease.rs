//! While a primary holds a lease, no higher view commits.
//! Owns: until when each server's lease runs, by its own clock, in true time.
//! Never: relies on servers' clocks for the comparison.
//! Source: rule 7; the ground under property 15.

use harp_node::vr::{SERVERS_MAX, ServerId, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "rule 7, no commit under another primary's lease";

/// The leases.
#[derive(Debug, Default)]
pub struct OneLease {
    held: [(View, u64); SERVERS_MAX],
}

impl OneLease {
    /// A server's turn ended.
    pub fn seen(&mut self, pulse: &Pulse) {
        let serves = pulse.primary && pulse.serving;
        let until = if serves { pulse.lease_until } else { 0 };
        self.held[pulse.server.index()] = (pulse.formed, until);
    }

    /// A server's process ended, and its lease with it.
    pub fn ended(&mut self, server: ServerId) {
        self.held[server.index()] = (View::NONE, 0);
    }

    /// The primary of `view` commits something at `at`.
    pub fn check(&self, primary: ServerId, view: View, at: u64) -> Verdict {
        for (other, (lower, until)) in self.held.iter().enumerate() {
            let other = ServerId(other as u8);
            require(NAME, other == primary || *lower >= view || *until <= at, || {
                let left = until - at;
                format!(
                    "{primary} commits in view {view} while {other} holds a lease of view {lower} \
                     for {left} ns"
                )
            })?;
        }
        Ok(())
    }
}
