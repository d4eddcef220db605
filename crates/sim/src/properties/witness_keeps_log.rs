//! A witness that was promoted keeps its log, without a gap from where the copies' images end, past its demotion:
//! until every copy that counts has it in its image.
//! Owns: up to where each witness must have a log, and where the copies' images stand.
//! Never: counts a log that the world damaged, or a copy that a committed record marks `needs image`.
//! Source: property 10, rule 10.

use harp_node::vr::{SERVERS_MAX, ServerId, ServerSet, Shape, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "10, a promoted witness keeps its log";

/// What the witnesses owe.
#[derive(Debug, Default)]
pub struct WitnessKeepsLog {
    owed: [Option<(View, u64)>; SERVERS_MAX],
    /// The view that each had formed when it was last seen, and when its log was damaged.
    formed: [View; SERVERS_MAX],
    damaged: [Option<View>; SERVERS_MAX],
    /// What the primary of the highest view that served knows to be marked: a record in the log that all members of a
    /// view formed it with is settled, whether or not its primary may commit yet.
    settled: (View, ServerSet),
    /// The newest LB of each copy; one whose disk was lost needs nothing that it did not need before.
    images: [u64; SERVERS_MAX],
}

impl WitnessKeepsLog {
    /// The world did something to the log of `server`.
    pub fn damaged(&mut self, server: ServerId) {
        self.owed[server.index()] = None;
        self.damaged[server.index()] = Some(self.formed[server.index()]);
    }

    /// An operator's override: what was owed to the history before it is owed no more.
    pub fn overridden(&mut self) {
        self.owed = Default::default();
        self.settled = Default::default();
    }

    /// A server started, or its turn ended. `marked`: the copies that need an image, by committed records.
    pub fn check(&mut self, shape: Shape, pulse: &Pulse, marked: ServerSet) -> Verdict {
        let index = pulse.server.index();
        if pulse.serving && pulse.formed >= self.settled.0 {
            self.settled = (pulse.formed, pulse.marked);
        }
        if pulse.copy {
            self.images[index] = self.images[index].max(pulse.lb);
            return Ok(());
        }
        let exempt = |copy: &ServerId| marked.contains(*copy) || self.settled.1.contains(*copy);
        let counted = shape.copies().filter(|copy| !exempt(copy));
        let needed_above = counted.map(|copy| self.images[copy.index()]).min().unwrap_or(u64::MAX);
        let owed = &mut self.owed[index];
        self.formed[index] = pulse.formed;
        let whole = self.damaged[index] != Some(pulse.formed);
        if pulse.complete && pulse.normal && whole {
            let end = owed.filter(|(view, _)| *view == pulse.formed).map_or(0, |(_, end)| end);
            // What is committed, it has durably.
            *owed = Some((pulse.formed, end.max(pulse.cp.min(pulse.log_end))));
        }
        if owed.is_some_and(|(_, end)| end <= needed_above) {
            *owed = None;
        }
        let Some((view, end)) = *owed else { return Ok(()) };
        let (begin, has) = (pulse.log_begin, pulse.log_end);
        require(NAME, begin <= needed_above + 1 && has >= end, || {
            let server = pulse.server;
            format!(
                "{server} took part in view {view} up to op {end} and has [{begin}, {has}]; \
                 images reach to {needed_above}"
            )
        })
    }
}
