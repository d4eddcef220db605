//! Links: one TCP connection to every other server of the group.
//! Owns: connecting, listening, handshakes, the framing, and what a link's socket did not take yet.
//! Never: decides whether a peer is alive; silence is the node's business.
//! Invariant: a frame is delivered whole, under the name that the handshake proved, and in order
//! within one connection; frames for a peer without a link are dropped, as a network may.
//!
//! The lower-numbered server of a pair connects. A frame is its length (4 bytes, big-endian) and its
//! bytes. Bytes that a peer does not take within a second ([`STUCK_MS`]) cut the link, so that after a
//! partition a new one forms soon instead of waiting for an old one's retransmission.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use harp_node::Output;
use harp_node::log::Ring;
use harp_node::vr::{Nanos, ServerId};
use rustix::net::{SocketFlags, accept_with, sockopt};

use crate::clock::NANOS_PER_MS;
use crate::connection::{self, Connection, nonce};
use crate::error::HarpError;
use crate::handshake::{Handshake, Identity, Progress, Purpose};
use crate::netbuf::{Received, receive_behind, send_pieces};
use crate::poller::{Interest, Poller, Ready, Source};
use crate::relay::ORIGIN_BYTES;

/// How long sent bytes may stay unacknowledged.
const STUCK_MS: u32 = 1000;
/// What is asked of the kernel for each direction.
const SOCKET_BYTES: usize = 4 << 20;
/// Bytes of one frame at most.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Bytes waiting for a peer at most; beyond, its link is cut.
pub const WAITING_BYTES_MAX: usize = 256 << 20;
/// Callers whose handshake is not done, at most.
const GREETINGS_MAX: usize = 64;
/// How long a handshake, or a connection attempt, may take.
pub(crate) const HANDSHAKE_MS: u64 = 1000;
/// Pauses between attempts to connect.
const RETRY_MS_MIN: u64 = 20;
const RETRY_MS_MAX: u64 = 500;
/// Memory for received bytes, more only while a longer frame arrives.
const RECEIVE_BYTES: usize = 1 << 20;
/// Bytes of a frame's length.
const PREFIX_BYTES: usize = 4;

enum State {
    /// This server itself, or a peer that is to connect to us.
    Absent,
    /// To be tried again then.
    Resting { until: Nanos },
    /// The connection is being made.
    Connecting { connection: Connection, deadline: Nanos },
    /// Connected by us, not yet proven.
    Shaking { connection: Connection, handshake: Box<Handshake>, deadline: Nanos },
    /// A link.
    Up(Connection),
}

struct Peer {
    address: SocketAddr,
    state: State,
    /// Links to it that ended.
    ended: u64,
    retry_ms: u64,
    complaint: String,
}

struct Greeting {
    connection: Connection,
    handshake: Handshake,
    /// Who it proved to be, for what; more bytes are to come.
    proven: Option<(ServerId, Purpose)>,
    from: String,
    deadline: Nanos,
}

/// A connection that proved itself and is to be no link.
pub struct Arrival {
    /// Whose it is.
    pub from: ServerId,
    /// What it is for.
    pub purpose: Purpose,
    /// The socket, watched by nobody.
    pub socket: OwnedFd,
    /// What arrived behind the proof: of a relayed client at least its origin.
    pub received: Vec<u8>,
}

/// All links of one server.
pub struct Links {
    identity: Identity,
    listener: TcpListener,
    peers: Vec<Peer>,
    greetings: Vec<Option<Greeting>>,
    prefixes: Vec<[u8; PREFIX_BYTES]>,
    /// Lines for the operator, taken by the loop.
    pub remarks: Vec<String>,
    /// Connections for others than links, taken by the loop.
    pub arrivals: Vec<Arrival>,
}

impl Links {
    /// Links of the server `identity.me`, which listens on `listener`; `addresses` are those of all servers.
    pub fn new(
        identity: Identity,
        listener: TcpListener,
        addresses: &[SocketAddr],
        now: Nanos,
        poller: &Poller,
    ) -> Result<Links, HarpError> {
        let me = identity.me.index();
        assert_eq!(addresses.len(), identity.servers as usize);
        let peers = addresses.iter().enumerate().map(|(index, address)| {
            let state = if index > me { State::Resting { until: now } } else { State::Absent };
            let (ended, retry_ms, complaint) = (0, RETRY_MS_MIN, String::new());
            Peer { address: *address, state, ended, retry_ms, complaint }
        });
        listener
            .set_nonblocking(true)
            .map_err(|error| HarpError::io("set up the peers' socket", error))?;
        poller.add(&listener, Source::PeerListener, Interest::READ)?;
        let greetings = (0..GREETINGS_MAX).map(|_| None).collect();
        Ok(Links {
            identity,
            listener,
            peers: peers.collect(),
            greetings,
            prefixes: Vec::new(),
            remarks: Vec::new(),
            arrivals: Vec::new(),
        })
    }

    /// How many links to a server have ended.
    pub fn ended(&self, server: ServerId) -> u64 {
        self.peers[server.index()].ended
    }

    /// When [`Links::on_time`] has something to do next.
    pub fn deadline(&self) -> Option<Nanos> {
        let peers = self.peers.iter().filter_map(|peer| match &peer.state {
            State::Resting { until } => Some(*until),
            State::Connecting { deadline, .. } | State::Shaking { deadline, .. } => Some(*deadline),
            State::Absent | State::Up(_) => None,
        });
        peers.chain(self.greetings.iter().flatten().map(|greeting| greeting.deadline)).min()
    }

    /// Tries again what failed and gives up what takes too long.
    pub fn on_time(&mut self, now: Nanos, poller: &Poller) {
        for index in 0..self.peers.len() {
            match &self.peers[index].state {
                State::Resting { until } if *until <= now => self.connect(index, now, poller),
                State::Connecting { deadline, .. } | State::Shaking { deadline, .. }
                    if *deadline <= now =>
                {
                    self.cut(index, now);
                }
                _ => {}
            }
        }
        for greeting in &mut self.greetings {
            if greeting.as_ref().is_some_and(|greeting| greeting.deadline <= now) {
                *greeting = None;
            }
        }
    }

    fn connect(&mut self, index: usize, now: Nanos, poller: &Poller) {
        let peer = &mut self.peers[index];
        let Ok(socket) = connection::begin(peer.address) else { return self.cut(index, now) };
        connection::tune(&socket, STUCK_MS, SOCKET_BYTES);
        if poller.add(&socket, Source::Peer(index as u64), Interest::WRITE).is_err() {
            return self.cut(index, now);
        }
        let deadline = now.plus(HANDSHAKE_MS * NANOS_PER_MS);
        peer.state = State::Connecting { connection: Connection::new(socket, true), deadline };
    }

    /// Ends whatever connection there is with a peer; the lower-numbered server tries again later.
    fn cut(&mut self, index: usize, now: Nanos) {
        let peer = &mut self.peers[index];
        peer.ended += matches!(peer.state, State::Up(_)) as u64;
        peer.state = if index > self.identity.me.index() {
            let until = now.plus(peer.retry_ms * NANOS_PER_MS);
            peer.retry_ms = (peer.retry_ms * 2).min(RETRY_MS_MAX);
            State::Resting { until }
        } else {
            State::Absent
        };
    }

    /// Says once why a peer gets no link.
    fn complain(&mut self, index: usize, why: String) {
        let peer = &mut self.peers[index];
        if peer.complaint != why {
            let name = ServerId(index as u8);
            self.remarks.push(format!("no link to {name} at {}: {why}", peer.address));
            peer.complaint = why;
        }
    }

    /// Deals with an event of [`Source::Peer`]; whole frames go to `deliver`.
    pub fn on_peer(
        &mut self,
        ready: Ready,
        index: usize,
        now: Nanos,
        poller: &Poller,
        deliver: impl FnMut(ServerId, &[u8]),
    ) {
        match &mut self.peers[index].state {
            State::Absent | State::Resting { .. } => {}
            State::Connecting { .. } => self.on_connected(index, now, poller),
            State::Shaking { .. } => self.on_answer(index, now, poller, deliver),
            State::Up(connection) => {
                let source = Source::Peer(index as u64);
                let mut alive = true;
                if ready.write {
                    alive = connection.waiting.flush(&connection.socket).is_ok();
                    connection.watch(poller, source);
                }
                if alive && ready.read {
                    alive = receive_frames(connection, ServerId(index as u8), deliver);
                }
                if !alive {
                    self.cut(index, now);
                }
            }
        }
    }

    fn on_connected(&mut self, index: usize, now: Nanos, poller: &Poller) {
        let peer = &mut self.peers[index];
        let resting = State::Resting { until: now };
        let State::Connecting { mut connection, deadline } =
            std::mem::replace(&mut peer.state, resting)
        else {
            unreachable!("the caller looked");
        };
        if !matches!(sockopt::socket_error(&connection.socket), Ok(Ok(()))) {
            return self.cut(index, now);
        }
        let (identity, to) = (self.identity.clone(), ServerId(index as u8));
        let handshake =
            Handshake::connect(identity, Purpose::Link, to, nonce(), connection.waiting.tail());
        if connection.waiting.flush(&connection.socket).is_err() {
            return self.cut(index, now);
        }
        connection.watch(poller, Source::Peer(index as u64));
        let handshake = Box::new(handshake);
        peer.state = State::Shaking { connection, handshake, deadline };
    }

    fn on_answer(
        &mut self,
        index: usize,
        now: Nanos,
        poller: &Poller,
        deliver: impl FnMut(ServerId, &[u8]),
    ) {
        let peer = &mut self.peers[index];
        let State::Shaking { connection, handshake, .. } = &mut peer.state else {
            unreachable!("the caller looked");
        };
        let progress = connection.shake(handshake);
        connection.watch(poller, Source::Peer(index as u64));
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Done { .. }) => {
                let resting = State::Resting { until: now };
                if let State::Shaking { connection, .. } =
                    std::mem::replace(&mut peer.state, resting)
                {
                    self.up(index, connection, now, deliver);
                }
            }
            Err(why) => {
                self.complain(index, why);
                self.cut(index, now);
            }
        }
    }

    /// A connection has become a link; frames may have come right behind the proof.
    fn up(
        &mut self,
        index: usize,
        mut connection: Connection,
        now: Nanos,
        deliver: impl FnMut(ServerId, &[u8]),
    ) {
        let peer = &mut self.peers[index];
        peer.ended += matches!(peer.state, State::Up(_)) as u64;
        peer.retry_ms = RETRY_MS_MIN;
        peer.complaint.clear();
        let alive = split_frames(&mut connection.received, ServerId(index as u8), deliver);
        peer.state = State::Up(connection);
        if !alive {
            self.cut(index, now);
        }
    }

    /// Takes callers in.
    pub fn on_listener(&mut self, now: Nanos, poller: &Poller) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            let Some(free) = self.greetings.iter().position(Option::is_none) else { continue };
            connection::tune(&socket, STUCK_MS, SOCKET_BYTES);
            let source = Source::Greeting(free as u64);
            if poller.add(&socket, source, Interest::READ).is_err() {
                continue;
            }
            let from = std::net::TcpStream::from(socket);
            let address = from.peer_addr().map_or("somebody".into(), |from| from.to_string());
            self.greetings[free] = Some(Greeting {
                connection: Connection::new(from.into(), false),
                handshake: Handshake::accept(self.identity.clone(), nonce()),
                proven: None,
                from: address,
                deadline: now.plus(HANDSHAKE_MS * NANOS_PER_MS),
            });
        }
    }

    /// Deals with an event of [`Source::Greeting`]. A caller that proves itself takes the place of its
    /// older link, which must be dead: it would not have called otherwise.
    pub fn on_greeting(
        &mut self,
        slot: usize,
        now: Nanos,
        poller: &Poller,
        deliver: impl FnMut(ServerId, &[u8]),
    ) {
        let Some(greeting) = &mut self.greetings[slot] else { return };
        let progress = greeting.go_on();
        greeting.connection.watch(poller, Source::Greeting(slot as u64));
        match progress {
            Ok(None) => {}
            Ok(Some((from, purpose @ (Purpose::Relay | Purpose::Operator)))) => {
                if let Some(Greeting { connection, .. }) = self.greetings[slot].take() {
                    let Connection { socket, received, .. } = connection;
                    poller.remove(&socket);
                    self.arrivals.push(Arrival { from, purpose, socket, received });
                }
            }
            Ok(Some((peer, Purpose::Link))) => {
                let Some(Greeting { mut connection, .. }) = self.greetings[slot].take() else {
                    unreachable!("it was just there");
                };
                let source = Source::Peer(peer.0 as u64);
                connection.watches_write = connection.waiting.pending() > 0;
                let interest = Interest { read: true, write: connection.watches_write };
                poller.change(&connection.socket, source, interest);
                self.up(peer.index(), connection, now, deliver);
            }
            Err(why) => {
                self.remarks.push(format!("refused a link from {}: {why}", greeting.from));
                self.greetings[slot] = None;
            }
        }
    }

    /// Sends a turn's frames, each peer's in one call where its socket takes them.
    pub fn send(&mut self, out: &Output, ring: &Ring, now: Nanos, poller: &Poller) {
        if out.frames.is_empty() {
            return;
        }
        self.prefixes.clear();
        for frame in &out.frames {
            let ranges = &out.ranges[frame.body.clone()];
            let body: usize = ranges.iter().map(|(_, bytes)| *bytes as usize).sum();
            let bytes = frame.head.len() + body;
            assert!(bytes <= FRAME_BYTES_MAX, "a frame of {bytes} bytes");
            self.prefixes.push((bytes as u32).to_be_bytes());
        }
        for index in 0..self.peers.len() {
            let State::Up(connection) = &mut self.peers[index].state else { continue };
            let to = ServerId(index as u8);
            let frames = out.frames.iter().zip(&self.prefixes).filter(|(f, _)| f.to == to);
            let pieces = frames.flat_map(|(frame, prefix)| {
                let body = out.ranges[frame.body.clone()].iter();
                let body = body.map(|(at, bytes)| ring.bytes(*at, *bytes));
                [&prefix[..], &out.bytes[frame.head.clone()]].into_iter().chain(body)
            });
            let sent = send_pieces(&connection.socket, pieces, &mut connection.waiting);
            if sent.is_err() || connection.waiting.pending() > WAITING_BYTES_MAX {
                self.cut(index, now);
            } else {
                connection.watch(poller, Source::Peer(index as u64));
            }
        }
    }
}

impl Greeting {
    /// Feeds what arrived; who it is once it proved that and said all that its purpose wants said.
    fn go_on(&mut self) -> Result<Option<(ServerId, Purpose)>, String> {
        let connection = &mut self.connection;
        if self.proven.is_none() {
            match connection.shake(&mut self.handshake)? {
                Progress::More => return Ok(None),
                Progress::Done { peer, purpose } => self.proven = Some((peer, purpose)),
            }
        } else {
            connection.received.reserve(ORIGIN_BYTES);
            match receive_behind(&connection.socket, &mut connection.received) {
                Received::Bytes(_) => {}
                Received::Nothing => return Ok(None),
                Received::Closed => return Err("it closed the connection".into()),
            }
        }
        let relayed = self.proven.is_some_and(|(_, purpose)| purpose == Purpose::Relay);
        let wanted = if relayed { ORIGIN_BYTES } else { 0 };
        Ok(self.proven.filter(|_| connection.received.len() >= wanted))
    }
}

/// Reads once and delivers the whole frames; `false`: the link is done for.
fn receive_frames(
    connection: &mut Connection,
    from: ServerId,
    deliver: impl FnMut(ServerId, &[u8]),
) -> bool {
    let received = &mut connection.received;
    let missing = match received.first_chunk() {
        Some(prefix) => (PREFIX_BYTES + u32::from_be_bytes(*prefix) as usize) - received.len(),
        None => PREFIX_BYTES,
    };
    let room = missing.max(RECEIVE_BYTES - received.len().min(RECEIVE_BYTES / 2));
    received.reserve(room);
    match receive_behind(&connection.socket, received) {
        Received::Bytes(_) => split_frames(received, from, deliver),
        Received::Nothing => true,
        Received::Closed => false,
    }
}

/// Delivers the whole frames at the front of `received` and takes them off it; `false`: a frame is too long.
pub fn split_frames(
    received: &mut Vec<u8>,
    from: ServerId,
    mut deliver: impl FnMut(ServerId, &[u8]),
) -> bool {
    let mut at = 0;
    while let Some(prefix) = received[at..].first_chunk() {
        let bytes = u32::from_be_bytes(*prefix) as usize;
        if bytes > FRAME_BYTES_MAX {
            return false;
        }
        let body = at + PREFIX_BYTES;
        let Some(frame) = received.get(body..body + bytes) else { break };
        deliver(from, frame);
        at = body + bytes;
    }
    received.drain(..at);
    if received.is_empty() && received.capacity() > 2 * RECEIVE_BYTES {
        received.shrink_to(RECEIVE_BYTES);
    }
    true
}

#[cfg(test)]
mod tests {
    use harp_node::Frame;
    use harp_node::log::LogPos;

    use super::*;
    use crate::clock::steady;
    use crate::handshake::PROTOCOL_VERSION;

    struct End {
        poller: Poller,
        links: Links,
        seen: Vec<Vec<u8>>,
    }

    impl End {
        fn turn(&mut self) {
            let soon = steady().plus(5 * NANOS_PER_MS);
            let until = self.links.deadline().map_or(soon, |deadline| deadline.min(soon));
            let count = self.poller.wait(steady(), Some(until)).expect("waits");
            let (links, poller, seen) = (&mut self.links, &self.poller, &mut self.seen);
            for index in 0..count {
                let ready = poller.event(index);
                let deliver = |_: ServerId, frame: &[u8]| seen.push(frame.to_vec());
                match ready.source {
                    Source::Peer(peer) => {
                        links.on_peer(ready, peer as usize, steady(), poller, deliver)
                    }
                    Source::PeerListener => links.on_listener(steady(), poller),
                    Source::Greeting(slot) => {
                        links.on_greeting(slot as usize, steady(), poller, deliver)
                    }
                    other => panic!("nothing else is watched: {other:?}"),
                }
            }
            links.on_time(steady(), poller);
        }

        fn is_up(&self) -> bool {
            self.links.peers.iter().any(|peer| matches!(peer.state, State::Up(_)))
        }
    }

    fn ends(keys: [[u8; 32]; 2]) -> [End; 2] {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("binds"));
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
        let mut number = 0;
        listeners.map(|listener| {
            let (me, key) = (ServerId(number), keys[number as usize]);
            number += 1;
            let poller = Poller::new().expect("a poller");
            let version = PROTOCOL_VERSION;
            let identity = Identity { group: [1; 16], key, me, servers: 2, version };
            let links = Links::new(identity, listener, &addresses, steady(), &poller);
            End { poller, links: links.expect("links"), seen: Vec::new() }
        })
    }

    fn turn_until(ends: &mut [End; 2], what: &str, done: impl Fn(&[End; 2]) -> bool) {
        for _ in 0..2000 {
            if done(ends) {
                return;
            }
            ends.iter_mut().for_each(End::turn);
        }
        panic!("never: {what}");
    }

    fn frames(to: u8, bodies: &[(LogPos, u32)], head: &[u8]) -> Output {
        let mut out = Output::default();
        for body in bodies {
            let at = out.bytes.len();
            out.bytes.extend_from_slice(head);
            out.ranges.push(*body);
            let body = out.ranges.len() - 1..out.ranges.len();
            out.frames.push(Frame { to: ServerId(to), head: at..out.bytes.len(), body });
        }
        out
    }

    #[test]
    fn frames_arrive_whole_and_in_order_and_a_cut_link_comes_back() {
        let mut ends = ends([[5; 32]; 2]);
        turn_until(&mut ends, "both up", |ends| ends.iter().all(End::is_up));
        let ring = Ring::on_heap(1 << 22);
        // SAFETY: nobody reads yet.
        unsafe { ring.bytes_mut(LogPos(0), 1 << 22) }.fill(0xab);
        let bodies: Vec<(LogPos, u32)> = (0..40).map(|i| (LogPos(i), 1 << (i % 22))).collect();
        for round in 0..2u8 {
            let out = frames(1, &bodies, &[round; 3]);
            let End { links, poller, .. } = &mut ends[0];
            links.send(&out, &ring, steady(), poller);
            turn_until(&mut ends, "all frames", |ends| ends[1].seen.len() == 40);
            for (frame, (_, bytes)) in ends[1].seen.drain(..).zip(&bodies) {
                assert_eq!(frame.len(), 3 + *bytes as usize);
                assert!(frame[..3] == [round; 3] && frame[3..].iter().all(|b| *b == 0xab));
            }
            // The accepting side drops the link; the connecting side makes a new one.
            ends[1].links.cut(0, steady());
            turn_until(&mut ends, "noticed", |ends| !ends[0].is_up());
            turn_until(&mut ends, "both up again", |ends| ends.iter().all(End::is_up));
        }
    }

    #[test]
    fn a_peer_with_the_wrong_key_gets_no_link_and_is_complained_of_once() {
        let mut ends = ends([[5; 32], [6; 32]]);
        turn_until(&mut ends, "complained", |ends| !ends[0].links.remarks.is_empty());
        for _ in 0..50 {
            ends.iter_mut().for_each(End::turn);
        }
        assert!(!ends.iter().any(End::is_up));
        assert_eq!(ends[0].links.remarks.len(), 1);
        assert!(ends[0].links.remarks[0].contains("peer key"), "{:?}", ends[0].links.remarks);
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        let mut received = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes().to_vec();
        assert!(!split_frames(&mut received, ServerId(0), |_, _| panic!("no frame")));
    }
}
