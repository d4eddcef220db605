//! Relays: clients of this server whose calls another server, the primary, answers.
//! Owns: each such client's socket and a connection of its own to the primary's peer address, the bytes under way
//! between the two, and the count of its calls that it has no answer of.
//! Never: looks into a call; sends a call twice; reads a client before its primary took it.
//! Invariant: what one client makes this server keep is bounded ([`CHUNK_BYTES`] a direction), and of its calls
//! at most [`CALLS_MAX`] are under way or have replies that its system did not acknowledge: no more than the
//! client table keeps.
//! Source: docs/operations.md, "Which server a client uses"; docs/notes/relays.md.
//!
//! To the primary a relayed client is like any other: the connection proves itself with the group's key, names
//! the client's address ([`origin`]), hears [`TAKEN`], and from then on carries the client's bytes as they are.
//! When another server serves, or the connection or the link beside it breaks, the client's is reset: it connects anew
//! and sends again what it has no answer of. The client table makes that harmless, and the resets see to it that
//! nothing of it comes after the table forgot.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use harp_node::vr::{Nanos, ServerId, View};
use rustix::io::Errno;
use rustix::net::{connect_unspec, sockopt};

use crate::clock::NANOS_PER_MS;
use crate::connection::{self, Connection, begin, nonce};
use crate::handshake::{Handshake, Identity, Progress, Purpose};
use crate::links::HANDSHAKE_MS;
use crate::marks::Marks;
use crate::netbuf::{Received, SendBuf, receive_behind, receive_into, send_pieces};
use crate::poller::{Interest, Poller, Ready, Source};
use crate::untaken::{Untaken, unacknowledged};

/// Bytes that name the client: its address (16, IPv4 mapped into IPv6) and port (2, big-endian).
pub const ORIGIN_BYTES: usize = 18;
/// The primary's answer: the client's bytes may come.
pub const TAKEN: u8 = 1;
/// The answer of a server that does not serve.
pub const NOT_SERVING: u8 = 2;
/// Calls of a client under way, or answered and not acknowledged, beyond which it is not read.
pub const CALLS_MAX: usize = 256;
/// Bytes of one client that are kept for one direction at most.
const CHUNK_BYTES: usize = 256 << 10;
/// What is asked of the kernel for each direction of a relayed connection.
const SOCKET_BYTES: usize = 256 << 10;
/// A relayed connection whose other side takes nothing for so long is given up.
const STUCK_MS: u32 = 30_000;
/// Connections to the primary that are being made at once: it greets only so many.
const ATTEMPTS_MAX: usize = 8;
/// Pause after an attempt that failed.
const RETRY_MS: u64 = 50;
/// Bits of a client's number that say its slot.
const SLOT_BITS: u32 = 16;

/// What tells the primary whose bytes follow.
pub fn origin(client: SocketAddr) -> [u8; ORIGIN_BYTES] {
    let address = match client.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; ORIGIN_BYTES];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&client.port().to_be_bytes());
    bytes
}

/// The address and port that [`origin`] wrote.
pub fn parse_origin(bytes: &[u8; ORIGIN_BYTES]) -> (IpAddr, u16) {
    let (address, port) = bytes.split_first_chunk::<16>().expect("longer than an address");
    let port = u16::from_be_bytes([port[0], port[1]]);
    (IpAddr::V6(Ipv6Addr::from(*address)).to_canonical(), port)
}

/// Sets a relayed connection's socket up: bounded memory, and a dead or stuck other side is noticed in the end.
pub fn tune(socket: &OwnedFd) {
    connection::tune(socket, STUCK_MS, SOCKET_BYTES);
}

/// What was passed on and not yet delivered goes with its connection, whether it is closed or its process ends. Its
/// client sends it again elsewhere; left to the kernel, it could arrive long after that and be carried out once more.
fn abort_when_closed(socket: &OwnedFd) {
    // Without it a copy of a call may come late, no more.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// How far a client's connection to the primary is.
enum Upstream {
    /// None, and nothing of the client was read.
    None,
    /// Being made.
    Connecting(Connection),
    /// Proving that it is of this group.
    Shaking(Connection, Box<Handshake>),
    /// The primary was asked to take the client.
    Asking(Connection),
    /// Bytes go both ways.
    Up(Connection),
}

struct Relay {
    id: u64,
    client: OwnedFd,
    from: SocketAddr,
    upstream: Upstream,
    /// When an attempt is given up.
    deadline: Nanos,
    /// What the client sent that was not passed on.
    calls: Vec<u8>,
    call_marks: Marks,
    reply_marks: Marks,
    /// Replies for the client that its socket did not take.
    replies: SendBuf,
    untaken: Untaken,
    calls_passed: u64,
    replies_passed: u64,
    /// The client has too many calls under way.
    stuck: bool,
    interest: Interest,
    upstream_interest: Interest,
}

impl Relay {
    /// Calls that the client may still have passed on.
    fn calls_left(&mut self) -> usize {
        let open = |relay: &Relay| {
            let unanswered = relay.calls_passed.saturating_sub(relay.replies_passed) as usize;
            unanswered + relay.untaken.count()
        };
        if open(self) >= CALLS_MAX / 2 {
            self.untaken.all_but(self.replies.pending() + unacknowledged(&self.client));
        }
        CALLS_MAX.saturating_sub(open(self))
    }

    /// Passes on what may be of `calls` and returns how much that is; `None`: the primary is gone.
    fn pass(&mut self, calls: &[u8]) -> Option<usize> {
        let left = self.calls_left();
        let Upstream::Up(connection) = &mut self.upstream else { return Some(0) };
        let mut marks = self.call_marks.clone();
        let (may, _) = marks.take(calls, left, |_| ());
        self.stuck = may < calls.len();
        if may == 0 {
            return Some(0);
        }
        let sent = match rustix::io::write(&connection.socket, &calls[..may]) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => return None,
        };
        let (_, ended) = self.call_marks.take(&calls[..sent], usize::MAX, |_| ());
        self.calls_passed += ended as u64;
        Some(sent)
    }

    /// Passes on what was kept; `false`: the primary is gone.
    fn pass_kept(&mut self) -> bool {
        let mut calls = std::mem::take(&mut self.calls);
        let Some(passed) = self.pass(&calls) else { return false };
        if passed < calls.len() {
            calls.drain(..passed);
            self.calls = calls;
        }
        true
    }

    /// Watches both sockets for what can go on.
    fn watch(&mut self, poller: &Poller) {
        let up = matches!(self.upstream, Upstream::Up(_));
        let interest =
            Interest { read: up && self.calls.is_empty(), write: self.replies.pending() > 0 };
        if interest != self.interest {
            self.interest = interest;
            poller.change(&self.client, Source::Relayed(self.id), interest);
        }
        if let Upstream::Up(connection) = &self.upstream {
            let write = !self.calls.is_empty() && !self.stuck;
            let interest = Interest { read: self.replies.pending() == 0, write };
            if interest != self.upstream_interest {
                self.upstream_interest = interest;
                poller.change(&connection.socket, Source::Upstream(self.id), interest);
            }
        }
    }
}

/// A client that comes back out: this server serves it itself now.
pub struct Returned {
    /// Its socket, watched by nobody, of which nothing was read.
    pub socket: OwnedFd,
    /// Its address.
    pub from: SocketAddr,
}

/// Where calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who serves.
    pub server: ServerId,
    /// In which view.
    pub view: View,
    /// How many links to it have ended. What was passed on since one began to fail may arrive whenever the network lets
    /// it, so that a relayed connection lives no longer than the link beside it.
    pub links_ended: u64,
}

/// All relayed clients of one server.
pub struct Relays {
    identity: Identity,
    peers: Vec<SocketAddr>,
    target: Option<Target>,
    slots: Vec<Option<Relay>>,
    free: Vec<usize>,
    opened: u64,
    /// Clients without a connection to the primary, longest waiting first.
    waiting: VecDeque<u64>,
    /// Those for whom one is being made.
    attempts: Vec<u64>,
    /// No attempt begins before.
    retry_at: Nanos,
    /// Clients that have too many calls under way.
    stuck: Vec<u64>,
    scratch: Vec<u8>,
}

impl Relays {
    /// No clients; the servers of the group listen at `peers`.
    pub fn new(identity: Identity, peers: &[SocketAddr]) -> Relays {
        Relays {
            identity,
            peers: peers.to_vec(),
            target: None,
            slots: Vec::new(),
            free: Vec::new(),
            opened: 0,
            waiting: VecDeque::new(),
            attempts: Vec::new(),
            retry_at: Nanos(0),
            stuck: Vec::new(),
            scratch: vec![0; CHUNK_BYTES],
        }
    }

    /// How many clients there are.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// When [`Relays::on_time`] has something to do next.
    pub fn deadline(&self) -> Option<Nanos> {
        let attempts = self
            .attempts
            .iter()
            .filter_map(|id| Some(self.slots[self.slot_of(*id)?].as_ref()?.deadline));
        let begins =
            self.target.is_some() && !self.waiting.is_empty() && self.attempts.len() < ATTEMPTS_MAX;
        attempts.chain(begins.then_some(self.retry_at)).min()
    }

    fn slot_of(&self, id: u64) -> Option<usize> {
        let slot = (id & ((1 << SLOT_BITS) - 1)) as usize;
        let relay = self.slots.get(slot)?.as_ref()?;
        (relay.id == id).then_some(slot)
    }

    /// Takes a client in; nothing is read of it before the primary took it.
    pub fn take_in(&mut self, client: OwnedFd, from: SocketAddr, poller: &Poller) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.opened += 1;
        let id = (self.opened << SLOT_BITS) | slot as u64;
        if poller.add(&client, Source::Relayed(id), Interest::default()).is_err() {
            return self.free.push(slot);
        }
        self.slots[slot] = Some(Relay {
            id,
            client,
            from,
            upstream: Upstream::None,
            deadline: Nanos(0),
            calls: Vec::new(),
            call_marks: Marks::default(),
            reply_marks: Marks::default(),
            replies: SendBuf::default(),
            untaken: Untaken::default(),
            calls_passed: 0,
            replies_passed: 0,
            stuck: false,
            interest: Interest::default(),
            upstream_interest: Interest::READ,
        });
        self.waiting.push_back(id);
    }

    /// Forgets a client. With `reset` its connection is cut in a way that it notices at once.
    fn close(&mut self, id: u64, reset: bool) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].take().expect("just found");
        if reset {
            // Already reset by the client: as good.
            let _ = connect_unspec(&relay.client);
        }
        self.free.push(slot);
        self.attempts.retain(|other| *other != id);
        if matches!(relay.upstream, Upstream::None) {
            self.waiting.retain(|other| *other != id);
        }
    }

    /// An attempt came to nothing: its client waits for another one.
    fn fail_attempt(&mut self, id: u64, now: Nanos) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].as_mut().expect("just found");
        relay.upstream = Upstream::None;
        self.attempts.retain(|other| *other != id);
        self.waiting.push_front(id);
        self.retry_at = now.plus(RETRY_MS * NANOS_PER_MS);
    }

    /// Takes note of who serves. Clients of whoever served before are reset, those that wait go to the new one; if that
    /// is this server itself, they are returned. While nobody is known to serve, all stay as they are ([`Relays::on_links`] apart).
    pub fn aim(&mut self, target: Option<Target>, poller: &Poller) -> Vec<Returned> {
        if target.is_none() || target == self.target {
            return Vec::new();
        }
        self.target = target;
        self.retry_at = Nanos(0);
        let all: Vec<u64> = self.slots.iter().flatten().map(|relay| relay.id).collect();
        let mut returned = Vec::new();
        let me = target.is_some_and(|target| target.server == self.identity.me);
        for id in all {
            let slot = self.slot_of(id).expect("listed above");
            let relay = self.slots[slot].as_mut().expect("just found");
            match relay.upstream {
                Upstream::Up(_) => self.close(id, true),
                Upstream::None if !me => {}
                _ if !me => {
                    relay.upstream = Upstream::None;
                    self.waiting.push_back(id);
                }
                _ => {
                    let Relay { client, from, .. } = self.slots[slot].take().expect("just found");
                    self.free.push(slot);
                    poller.remove(&client);
                    returned.push(Returned { socket: client, from });
                }
            }
        }
        self.attempts.clear();
        if me {
            self.waiting.clear();
        }
        returned
    }

    /// Takes note of how many links to each server have ended. A cut is noticed when nobody is known to serve any more:
    /// it is the link to whoever served before that counts.
    pub fn on_links(&mut self, ended: impl Fn(ServerId) -> u64) {
        let Some(target) = &mut self.target else { return };
        let ended = ended(target.server);
        if std::mem::replace(&mut target.links_ended, ended) != ended {
            self.reset(|relay| matches!(relay.upstream, Upstream::Up(_)));
        }
    }

    /// Resets all clients: they send again what they still want.
    pub fn reset_all(&mut self) {
        self.reset(|_| true);
    }

    fn reset(&mut self, which: impl Fn(&Relay) -> bool) {
        let chosen = self.slots.iter().flatten().filter(|relay| which(relay));
        let chosen: Vec<u64> = chosen.map(|relay| relay.id).collect();
        chosen.into_iter().for_each(|id| self.close(id, true));
    }

    /// Begins and gives up attempts, and looks again at clients with too many calls under way: nothing tells
    /// when their systems acknowledge replies.
    pub fn on_time(&mut self, now: Nanos, poller: &Poller) {
        let late = |relays: &Relays, id: u64| {
            let relay = relays.slot_of(id).and_then(|slot| relays.slots[slot].as_ref());
            relay.is_some_and(|relay| relay.deadline <= now)
        };
        for id in self.attempts.clone() {
            if late(self, id) {
                self.fail_attempt(id, now);
            }
        }
        while let Some(Target { server: to, .. }) = self.target
            && to != self.identity.me
            && self.attempts.len() < ATTEMPTS_MAX
            && self.retry_at <= now
            && let Some(id) = self.waiting.pop_front()
        {
            self.begin(id, to, now, poller);
        }
        for id in std::mem::take(&mut self.stuck) {
            self.go_on(id, poller);
        }
    }

    fn begin(&mut self, id: u64, to: ServerId, now: Nanos, poller: &Poller) {
        let slot = self.slot_of(id).expect("closing removes from those that wait");
        let relay = self.slots[slot].as_mut().expect("just found");
        self.attempts.push(id);
        relay.deadline = now.plus(HANDSHAKE_MS * NANOS_PER_MS);
        let begun = begin(self.peers[to.index()]).ok().filter(|socket| {
            tune(socket);
            poller.add(socket, Source::Upstream(id), Interest::WRITE).is_ok()
        });
        match begun {
            Some(socket) => relay.upstream = Upstream::Connecting(Connection::new(socket, true)),
            None => self.fail_attempt(id, now),
        }
    }

    /// Deals with an event of [`Source::Relayed`].
    pub fn on_client(&mut self, ready: Ready, id: u64, poller: &Poller) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].as_mut().expect("just found");
        let mut alive = !ready.broken;
        if alive && ready.write {
            alive = relay.replies.flush(&relay.client).is_ok();
        }
        if alive && ready.read && relay.interest.read {
            alive = match receive_into(&relay.client, &mut self.scratch) {
                Received::Bytes(count) => {
                    let calls = &self.scratch[..count];
                    let Some(passed) = relay.pass(calls) else { return self.close(id, true) };
                    relay.calls.extend_from_slice(&calls[passed..]);
                    true
                }
                Received::Nothing => true,
                Received::Closed => false,
            };
        }
        if alive { self.settle(id, poller) } else { self.close(id, false) }
    }

    /// Passes calls on as far as they may go.
    fn go_on(&mut self, id: u64, poller: &Poller) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].as_mut().expect("just found");
        if !relay.calls.is_empty() && !relay.pass_kept() {
            return self.close(id, true);
        }
        self.settle(id, poller);
    }

    /// After bytes moved.
    fn settle(&mut self, id: u64, poller: &Poller) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].as_mut().expect("just found");
        if relay.stuck && !self.stuck.contains(&id) {
            self.stuck.push(id);
        }
        relay.watch(poller);
    }

    /// Deals with an event of [`Source::Upstream`].
    pub fn on_upstream(&mut self, ready: Ready, id: u64, now: Nanos, poller: &Poller) {
        let Some(slot) = self.slot_of(id) else { return };
        let relay = self.slots[slot].as_mut().expect("just found");
        match std::mem::replace(&mut relay.upstream, Upstream::None) {
            Upstream::Up(connection) => {
                relay.upstream = Upstream::Up(connection);
                self.on_up(ready, id, slot, poller);
            }
            Upstream::None => unreachable!("nothing is watched before an attempt begins"),
            attempt => match self.further(attempt, id, poller) {
                Some(upstream) => {
                    let up = matches!(upstream, Upstream::Up(_));
                    let relay = self.slots[slot].as_mut().expect("still there");
                    relay.upstream = upstream;
                    if up {
                        self.attempts.retain(|other| *other != id);
                        relay.watch(poller);
                    }
                }
                None => self.fail_attempt(id, now),
            },
        }
    }

    /// Takes an attempt a step further; `None`: it came to nothing.
    fn further(&mut self, attempt: Upstream, id: u64, poller: &Poller) -> Option<Upstream> {
        let source = Source::Upstream(id);
        let to = self.target?.server;
        match attempt {
            Upstream::Connecting(mut connection) => {
                if !matches!(sockopt::socket_error(&connection.socket), Ok(Ok(()))) {
                    return None;
                }
                let (identity, purpose) = (self.identity.clone(), Purpose::Relay);
                let send = connection.waiting.tail();
                let handshake = Handshake::connect(identity, purpose, to, nonce(), send);
                connection.waiting.flush(&connection.socket).ok()?;
                connection.watch(poller, source);
                Some(Upstream::Shaking(connection, Box::new(handshake)))
            }
            Upstream::Shaking(mut connection, mut handshake) => {
                match connection.shake(&mut handshake).ok()? {
                    Progress::More => Some(Upstream::Shaking(connection, handshake)),
                    Progress::Done { .. } => {
                        let relay = self.slots[self.slot_of(id)?].as_ref()?;
                        connection.waiting.push(&origin(relay.from));
                        connection.waiting.flush(&connection.socket).ok()?;
                        connection.watch(poller, source);
                        Some(Upstream::Asking(connection))
                    }
                }
            }
            Upstream::Asking(mut connection) => {
                connection.waiting.flush(&connection.socket).ok()?;
                connection.received.reserve(1);
                match receive_behind(&connection.socket, &mut connection.received) {
                    Received::Nothing => Some(Upstream::Asking(connection)),
                    // It speaks only when it is spoken to.
                    Received::Bytes(_) if connection.received == [TAKEN] => {
                        connection.received = Vec::new();
                        abort_when_closed(&connection.socket);
                        Some(Upstream::Up(connection))
                    }
                    Received::Bytes(_) | Received::Closed => None,
                }
            }
            Upstream::None | Upstream::Up(_) => unreachable!("the caller looked"),
        }
    }

    /// Passes replies on, and calls if there is room again.
    fn on_up(&mut self, ready: Ready, id: u64, slot: usize, poller: &Poller) {
        let relay = self.slots[slot].as_mut().expect("the caller looked");
        let Upstream::Up(connection) = &relay.upstream else { return };
        if ready.read && relay.replies.pending() == 0 {
            match receive_into(&connection.socket, &mut self.scratch) {
                Received::Bytes(count) => {
                    let replies = &self.scratch[..count];
                    let untaken = &mut relay.untaken;
                    let (_, ended) =
                        relay.reply_marks.take(replies, usize::MAX, |bytes| untaken.push(bytes));
                    relay.replies_passed += ended as u64;
                    let piece = std::iter::once(replies);
                    if send_pieces(&relay.client, piece, &mut relay.replies).is_err() {
                        return self.close(id, false);
                    }
                }
                Received::Nothing => {}
                Received::Closed => return self.close(id, true),
            }
        } else if ready.broken {
            return self.close(id, true);
        }
        self.go_on(id, poller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_address_travels_whole() {
        for address in ["10.1.2.3:900", "[fd00::7]:65535"] {
            let address: SocketAddr = address.parse().expect("an address");
            assert_eq!(parse_origin(&origin(address)), (address.ip(), address.port()));
        }
        let mapped = "[::ffff:10.1.2.3]:9".parse().expect("an address");
        assert_eq!(parse_origin(&origin(mapped)).0, IpAddr::from([10, 1, 2, 3]));
    }
}
