//! GLB never passes the LB of a designated copy that the group counts on.
//! Owns: the highest GLB that any server ever knew.
//! Never: counts copies whose disk was lost, or that a committed record marks `needs image`.
//! Source: property 11, rule 10.

use harp_node::vr::{SERVERS_MAX, ServerId};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "11, nothing at or below GLB is needed";

/// The highest GLB, and who is exempt.
#[derive(Debug, Default)]
pub struct GlbBound {
    highest: u64,
    emptied: [bool; SERVERS_MAX],
}

impl GlbBound {
    /// The disk of `server` is gone.
    pub fn wiped(&mut self, server: ServerId) {
        self.emptied[server.index()] = true;
    }

    /// An operator's override: the new history's primary knows this GLB.
    pub fn overridden(&mut self, glb: u64) {
        self.highest = glb;
    }

    /// A server started, or its turn ended. `needs_image`: a committed record says so of it.
    pub fn check(&mut self, pulse: &Pulse, needs_image: bool) -> Verdict {
        self.highest = self.highest.max(pulse.glb);
        let emptied = &mut self.emptied[pulse.server.index()];
        // What GLB counted on may have been lost before anybody said that GLB.
        if pulse.lb > 0 && pulse.lb >= self.highest {
            *emptied = false;
        }
        let counts = pulse.copy && !*emptied && !needs_image;
        require(NAME, !counts || pulse.lb >= self.highest, || {
            let (server, lb, glb) = (pulse.server, pulse.lb, self.highest);
            format!("the image of {server} is at {lb}, GLB was said to be {glb}")
        })
    }
}
