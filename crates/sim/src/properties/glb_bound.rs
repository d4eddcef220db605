//! GLB never passes the LB of a designated copy that the group counts on.
//! Owns: the GLB that each server knows or trimmed its log to. One that was said and that nobody acted on is
//! forgotten with those who knew it.
//! Never: counts copies whose disk was lost, or that a committed record marks `needs image`.
//! Source: property 11, rule 10.

use harp_node::vr::{SERVERS_MAX, ServerId};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "11, nothing at or below GLB is needed";

/// The GLB of each server, and who is exempt.
#[derive(Debug, Default)]
pub struct GlbBound {
    /// What each server knows while it runs, and what its log was trimmed to.
    known: [u64; SERVERS_MAX],
    trimmed: [u64; SERVERS_MAX],
    emptied: [bool; SERVERS_MAX],
}

impl GlbBound {
    /// The disk of `server` is gone.
    pub fn wiped(&mut self, server: ServerId) {
        self.emptied[server.index()] = true;
        self.trimmed[server.index()] = 0;
    }

    /// A server's process ended.
    pub fn ended(&mut self, server: ServerId) {
        self.known[server.index()] = 0;
    }

    fn highest(&self) -> u64 {
        self.known.iter().chain(&self.trimmed).copied().max().unwrap_or(0)
    }

    /// An operator's override: the new history's primary knows this GLB.
    pub fn overridden(&mut self, primary: ServerId, glb: u64) {
        *self = GlbBound { emptied: self.emptied, ..GlbBound::default() };
        self.known[primary.index()] = glb;
    }

    /// A server started, or its turn ended. `needs_image`: a committed record says so of it.
    pub fn check(&mut self, pulse: &Pulse, needs_image: bool) -> Verdict {
        // A member redoes its own log: whatever is trimmed from it, its image has, marked or not.
        let redoes = pulse.copy && pulse.complete && (pulse.primary || pulse.normal);
        require(NAME, !redoes || pulse.lb + 1 >= pulse.log_begin, || {
            let (server, lb, view) = (pulse.server, pulse.lb, pulse.formed);
            let begin = pulse.log_begin;
            format!("the image of {server} is at {lb}, its log in view {view} begins at {begin}")
        })?;
        let index = pulse.server.index();
        self.known[index] = pulse.glb;
        self.trimmed[index] = if pulse.complete { pulse.log_begin - 1 } else { 0 };
        let highest = self.highest();
        let emptied = &mut self.emptied[pulse.server.index()];
        // What GLB counted on may have been lost before anybody said that GLB.
        if pulse.lb > 0 && pulse.lb >= highest {
            *emptied = false;
        }
        let counts = pulse.copy && !*emptied && !needs_image;
        require(NAME, !counts || pulse.lb >= highest, || {
            let (server, lb, glb) = (pulse.server, pulse.lb, highest);
            format!("the image of {server} is at {lb}, GLB is {glb} for some server")
        })
    }
}
