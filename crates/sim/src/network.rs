//! The network between servers: when, how often and whether a message arrives.
//! Owns: the state of every link and the mail room of messages under way.
//! Never: looks into a message.
//! Invariant: a message once sent arrives by its own fate, whatever becomes of its sender.

use harp_node::vr::{Incarnation, Report, SERVERS_MAX, ServerId, ServerSet, View};

use crate::profile::NetworkProfile;
use crate::rng::Rng;

/// A message under way.
#[derive(Debug)]
pub struct Message {
    /// Who sent it.
    pub from: ServerId,
    /// To whom.
    pub to: ServerId,
    /// One whole frame.
    pub bytes: Vec<u8>,
    /// What it reports, if it is a promise: the promised view, and what the server holds.
    pub report: Option<(View, Report)>,
    /// In which life it was sent, and to which life of the receiver.
    pub lives: (Incarnation, Incarnation),
}

/// The messages under way, by place. Places and buffers are used again.
#[derive(Debug, Default)]
pub struct MailRoom {
    messages: Vec<Message>,
    free: Vec<u32>,
}

impl MailRoom {
    /// An empty message from `from` to `to`; fill in its bytes.
    pub fn open(&mut self, from: ServerId, to: ServerId) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.messages.push(Message {
                from,
                to,
                bytes: Vec::new(),
                report: None,
                lives: Default::default(),
            });
            self.messages.len() as u32 - 1
        });
        let message = &mut self.messages[slot as usize];
        (message.from, message.to) = (from, to);
        message.bytes.clear();
        message.report = None;
        slot
    }

    /// The message at `slot`.
    pub fn get(&self, slot: u32) -> &Message {
        &self.messages[slot as usize]
    }

    /// The message at `slot`, to be filled in.
    pub fn get_mut(&mut self, slot: u32) -> &mut Message {
        &mut self.messages[slot as usize]
    }

    /// Another message with the same content.
    pub fn copy(&mut self, slot: u32) -> u32 {
        let (from, to) = (self.get(slot).from, self.get(slot).to);
        let copy = self.open(from, to);
        let bytes = std::mem::take(&mut self.messages[slot as usize].bytes);
        self.messages[copy as usize].bytes.extend_from_slice(&bytes);
        self.messages[slot as usize].bytes = bytes;
        self.messages[copy as usize].report = self.messages[slot as usize].report;
        self.messages[copy as usize].lives = self.messages[slot as usize].lives;
        copy
    }

    /// The message at `slot` was delivered or lost.
    pub fn close(&mut self, slot: u32) {
        self.free.push(slot);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// How many faults cut it now.
    cuts: u32,
    /// Nothing arrives before this.
    stalled_until: u64,
    /// When the last message arrives, for links that keep order.
    last: u64,
}

/// When a message arrives: not at all, once, or twice.
pub type Fate = [Option<u64>; 2];

/// All links.
#[derive(Debug)]
pub struct Network {
    profile: NetworkProfile,
    links: [[Link; SERVERS_MAX]; SERVERS_MAX],
    rng: Rng,
    calm: bool,
}

impl Network {
    /// A network with these manners.
    pub fn new(profile: NetworkProfile, rng: Rng) -> Network {
        Network { profile, links: Default::default(), rng, calm: false }
    }

    /// From now on nothing is lost, doubled, cut or stalled.
    pub fn calm_down(&mut self) {
        self.calm = true;
        for link in self.links.iter_mut().flatten() {
            link.cuts = 0;
            link.stalled_until = 0;
        }
    }

    /// Decides what becomes of a message of `bytes` bytes that leaves at `now`.
    pub fn fate(&mut self, now: u64, from: ServerId, to: ServerId, bytes: usize) -> Fate {
        let profile = &self.profile;
        let link = &mut self.links[from.index()][to.index()];
        let lost = !self.calm && self.rng.chance(profile.loss_per_mille);
        if link.cuts > 0 || lost {
            return [None, None];
        }
        let mut delay = profile.delay_min + bytes as u64 * profile.nanos_per_kib / 1024;
        delay += self.rng.wait(profile.delay_mean);
        let mut at = (now + delay).max(link.stalled_until);
        if !profile.reorders || self.calm {
            at = at.max(link.last);
        }
        link.last = link.last.max(at);
        let twice = !self.calm && self.rng.chance(profile.duplicate_per_mille);
        let again = twice.then(|| at + self.rng.wait(profile.delay_mean * 20));
        [Some(at), again]
    }

    /// Cuts (or mends one cut of) the way from `from` to `to`.
    pub fn cut(&mut self, from: ServerId, to: ServerId, cut: bool) {
        let cuts = &mut self.links[from.index()][to.index()].cuts;
        *cuts = if cut { *cuts + 1 } else { cuts.saturating_sub(1) };
    }

    /// Cuts (or mends) both ways between every pair across the two sides.
    pub fn part(&mut self, one: ServerSet, other: ServerSet, cut: bool) {
        for a in one.iter() {
            for b in other.iter() {
                self.cut(a, b, cut);
                self.cut(b, a, cut);
            }
        }
    }

    /// Nothing from `from` arrives at `to` before `until`.
    pub fn stall(&mut self, from: ServerId, to: ServerId, until: u64) {
        let link = &mut self.links[from.index()][to.index()];
        link.stalled_until = link.stalled_until.max(until);
    }

    /// Whether the way from `from` to `to` is cut.
    pub fn is_cut(&self, from: ServerId, to: ServerId) -> bool {
        self.links[from.index()][to.index()].cuts > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn network(profile: NetworkProfile) -> Network {
        Network::new(profile, Rng::new(1, Stream::Network))
    }

    const A: ServerId = ServerId(0);
    const B: ServerId = ServerId(1);

    #[test]
    fn a_network_that_keeps_order_delivers_in_order() {
        let profile = NetworkProfile { reorders: false, ..NetworkProfile::calm() };
        let mut network = network(profile);
        let mut last = 0;
        for now in 0..1000 {
            let [at, again] = network.fate(now, A, B, 100);
            assert!(again.is_none() && at.unwrap() >= last);
            last = at.unwrap();
        }
    }

    #[test]
    fn a_cut_has_two_ends_and_is_mended_as_often_as_it_was_made() {
        let mut network = network(NetworkProfile::calm());
        let (a, b) = (ServerSet(1), ServerSet(2));
        network.part(a, b, true);
        network.cut(A, B, true);
        assert_eq!(network.fate(0, A, B, 1), [None, None]);
        network.part(a, b, false);
        assert!(network.is_cut(A, B) && !network.is_cut(B, A));
        assert!(network.fate(0, B, A, 1)[0].is_some());
        network.calm_down();
        assert!(network.fate(0, A, B, 1)[0].is_some());
    }
}
