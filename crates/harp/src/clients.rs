//! Client connections of one server: bytes in, calls out; replies in, bytes out.
//! Owns: the sockets, partial records, replies that a socket did not take yet.
//! Never: looks into a call; answers anything itself.
//! Invariant: a connection's calls reach the node in order and its replies leave in order; a client that
//! does not read its replies is not read from ([`WAITING_BYTES_HOLD`]).
//!
//! A connection's number is its slot and a count of connections, so that it is found without a search
//! and never comes again. Bytes are received into one block of memory that all connections share;
//! only what is left of a record that is not whole is kept per connection.

use std::net::IpAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;

use harp_node::wire::record::{self, RECORD_BYTES_MAX, Split};
use harp_node::{ConnId, Event, Node, Output};

use crate::clock;
use crate::netbuf::{Received, SendBuf, receive_behind, receive_into, send_pieces};
use crate::poller::{Interest, Poller, Ready, Source};
use crate::untaken::{Untaken, unacknowledged};

/// Connections of one server at most.
pub const CLIENTS_MAX: usize = 1 << 13;
/// Unsent bytes of one connection from which on it is not read.
pub const WAITING_BYTES_HOLD: usize = 1 << 20;
/// Unsent bytes of one connection at which it is closed: the node had many replies under way.
pub const WAITING_BYTES_MAX: usize = 256 << 20;
/// Replies of one connection that its client has not taken from which on it is not read. With as many calls at
/// the node they are no more than the client table keeps, so that each of them is known when it is repeated.
const UNTAKEN_MAX: usize = 128;
/// From so many on it is worth asking the socket how many were taken.
const UNTAKEN_LOOK: usize = 64;
/// Bytes of replies and frames in one turn from which on no further call is taken in that turn.
const TURN_BYTES_MAX: usize = 8 << 20;
/// Memory shared by all connections to receive into.
const SCRATCH_BYTES: usize = 256 << 10;
/// Memory that all connections together keep for partial records beyond what they need at the moment.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Bits of a connection's number that say its slot.
const SLOT_BITS: u32 = 16;

struct Client {
    conn: ConnId,
    socket: OwnedFd,
    /// The supervisor's number, if it comes from one.
    handle: Option<u64>,
    /// The front of a record that is not whole, or records not taken yet.
    partial: Vec<u8>,
    /// How long `partial` must be to be worth another look.
    needed: usize,
    waiting: SendBuf,
    untaken: Untaken,
    /// Too many replies are not taken.
    stuck: bool,
    /// This turn's replies, neighbours joined, as ranges of the output's bytes.
    replies: Vec<Range<usize>>,
    /// The node wants no calls from it now.
    held: bool,
    /// `partial` may hold whole records.
    backlog: bool,
    interest: Interest,
}

impl Client {
    fn readable(&self) -> bool {
        !self.held && !self.stuck && self.waiting.pending() < WAITING_BYTES_HOLD
    }

    /// Finds out whether too many replies are not taken.
    fn look(&mut self) {
        if self.untaken.count() >= UNTAKEN_LOOK {
            self.untaken.all_but(self.waiting.pending() + unacknowledged(&self.socket));
        }
        self.stuck = self.untaken.count() >= UNTAKEN_MAX;
    }

    fn watch(&mut self, poller: &Poller) {
        let read = self.readable() && !self.backlog;
        let interest = Interest { read, write: self.waiting.pending() > 0 };
        if interest != self.interest {
            self.interest = interest;
            poller.change(&self.socket, Source::Client(self.conn.0), interest);
        }
    }
}

/// All client connections of one server.
pub struct Clients {
    slots: Vec<Option<Client>>,
    free: Vec<usize>,
    opened: u64,
    kept_bytes: usize,
    scratch: Vec<u8>,
    /// Slots with replies in this turn.
    touched: Vec<usize>,
    /// Slots whose `partial` may hold whole records.
    backlogged: Vec<usize>,
    /// Slots that are, or were lately, stuck.
    stuck: Vec<usize>,
    /// The supervisor's numbers of connections that ended, taken by the loop.
    pub closed: Vec<u64>,
}

/// How taking calls from bytes ended.
struct Taken {
    /// Bytes that are done with.
    consumed: usize,
    /// How long the rest must be to be worth another look; 0: it is, later.
    needed: usize,
    /// The bytes make no sense.
    garbled: bool,
    /// The node wants no further call of this connection now.
    held: bool,
}

impl Clients {
    /// No connections.
    pub fn new() -> Clients {
        Clients {
            slots: Vec::new(),
            free: Vec::new(),
            opened: 0,
            kept_bytes: 0,
            scratch: vec![0; SCRATCH_BYTES],
            touched: Vec::new(),
            backlogged: Vec::new(),
            stuck: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether calls wait to be taken, so that the loop must not sleep.
    pub fn has_backlog(&self) -> bool {
        !self.backlogged.is_empty()
    }

    /// Takes a connected, nonblocking socket in; `handle`, if there is one, is reported when it ends.
    pub fn open(
        &mut self,
        socket: OwnedFd,
        (handle, address, port): (Option<u64>, IpAddr, u16),
        node: &mut Node,
        out: &mut Output,
        poller: &Poller,
    ) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < CLIENTS_MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return self.closed.extend(handle),
        };
        self.opened += 1;
        let conn = ConnId((self.opened << SLOT_BITS) | slot as u64);
        if poller.add(&socket, Source::Client(conn.0), Interest::READ).is_err() {
            self.free.push(slot);
            return self.closed.extend(handle);
        }
        self.slots[slot] = Some(Client {
            conn,
            socket,
            handle,
            partial: Vec::new(),
            needed: 0,
            waiting: SendBuf::default(),
            untaken: Untaken::default(),
            stuck: false,
            replies: Vec::new(),
            held: false,
            backlog: false,
            interest: Interest::READ,
        });
        node.step(clock::now(), Event::ConnOpened { conn, address, port }, out);
    }

    fn slot_of(&self, conn: ConnId) -> Option<usize> {
        let slot = (conn.0 & ((1 << SLOT_BITS) - 1)) as usize;
        let client = self.slots.get(slot)?.as_ref()?;
        (client.conn == conn).then_some(slot)
    }

    /// Forgets a connection. Its socket is shut down for all who hold it.
    fn close(&mut self, slot: usize, node: &mut Node, out: &mut Output) {
        let client = self.slots[slot].take().expect("an open connection");
        // The supervisor holds the socket too: closing alone would tell the client nothing.
        let _ = rustix::net::shutdown(&client.socket, rustix::net::Shutdown::Both);
        self.kept_bytes -= client.partial.capacity();
        self.free.push(slot);
        self.backlogged.retain(|other| *other != slot);
        self.stuck.retain(|other| *other != slot);
        self.closed.extend(client.handle);
        node.step(clock::now(), Event::ConnClosed { conn: client.conn }, out);
    }

    /// Ends all connections with a reset: this server serves no more.
    pub fn reset_all(&mut self, node: &mut Node, out: &mut Output) {
        for slot in 0..self.slots.len() {
            if let Some(client) = &self.slots[slot] {
                let _ = rustix::net::connect_unspec(&client.socket);
                self.close(slot, node, out);
            }
        }
    }

    /// Deals with an event of [`Source::Client`].
    pub fn on_ready(
        &mut self,
        ready: Ready,
        conn: ConnId,
        node: &mut Node,
        out: &mut Output,
        poller: &Poller,
    ) {
        let Some(slot) = self.slot_of(conn) else { return };
        let client = self.slots[slot].as_mut().expect("just found");
        if ready.broken {
            return self.close(slot, node, out);
        }
        if ready.write {
            if client.waiting.flush(&client.socket).is_err() {
                return self.close(slot, node, out);
            }
            self.resume(slot, poller);
        }
        let reads = self.slots[slot].as_ref().is_some_and(|client| client.interest.read);
        if ready.read && reads && !self.receive(slot, node, out) {
            self.close(slot, node, out);
        }
    }

    /// Reads once and takes the calls that are whole; `false`: the connection is done for.
    fn receive(&mut self, slot: usize, node: &mut Node, out: &mut Output) -> bool {
        let client = self.slots[slot].as_mut().expect("an open connection");
        if !client.partial.is_empty() {
            let missing = client.needed.saturating_sub(client.partial.len());
            // Exactly the rest of a long record, so that the next one starts afresh.
            let room = if missing >= SCRATCH_BYTES / 8 { missing } else { SCRATCH_BYTES / 4 };
            reserve(client, room, &mut self.kept_bytes);
            return match receive_behind(&client.socket, &mut client.partial) {
                Received::Bytes(_) if client.partial.len() < client.needed => true,
                Received::Bytes(_) => self.take_partial(slot, node, out),
                Received::Nothing => true,
                Received::Closed => false,
            };
        }
        match receive_into(&client.socket, &mut self.scratch) {
            Received::Bytes(bytes) => {
                let taken = take_calls(client.conn, &mut self.scratch[..bytes], node, out);
                let rest = &self.scratch[taken.consumed..bytes];
                if !rest.is_empty() {
                    reserve(client, rest.len().max(taken.needed), &mut self.kept_bytes);
                    client.partial.extend_from_slice(rest);
                }
                self.note_rest(slot, &taken)
            }
            Received::Nothing => true,
            Received::Closed => false,
        }
    }

    /// Takes calls from what a connection kept.
    fn take_partial(&mut self, slot: usize, node: &mut Node, out: &mut Output) -> bool {
        let client = self.slots[slot].as_mut().expect("an open connection");
        let taken = take_calls(client.conn, &mut client.partial, node, out);
        client.partial.drain(..taken.consumed);
        if client.partial.is_empty() && self.kept_bytes > KEPT_BYTES_MAX {
            self.kept_bytes -= client.partial.capacity();
            client.partial = Vec::new();
        }
        self.note_rest(slot, &taken)
    }

    fn note_rest(&mut self, slot: usize, taken: &Taken) -> bool {
        let client = self.slots[slot].as_mut().expect("an open connection");
        client.needed = taken.needed;
        client.held |= taken.held;
        let backlog = taken.needed == 0 && !client.partial.is_empty();
        if backlog && !client.backlog {
            self.backlogged.push(slot);
        }
        client.backlog = backlog;
        !taken.garbled
    }

    /// Takes calls that earlier turns left, from connections that may be read.
    pub fn take_backlog(&mut self, node: &mut Node, out: &mut Output, poller: &Poller) {
        let mut waiting = std::mem::take(&mut self.backlogged);
        for slot in waiting.drain(..) {
            let client = self.slots[slot].as_mut().expect("closing removes from the backlog");
            client.backlog = false;
            if !client.readable() {
                continue; // `resume` puts it back
            }
            if !self.take_partial(slot, node, out) {
                self.close(slot, node, out);
            } else if let Some(client) = &mut self.slots[slot] {
                client.watch(poller);
            }
        }
        // Keeps the memory of whichever list has more.
        waiting.append(&mut self.backlogged);
        self.backlogged = waiting;
    }

    /// Carries out [`Output::hold`].
    pub fn hold(&mut self, conn: ConnId, held: bool, poller: &Poller) {
        let Some(slot) = self.slot_of(conn) else { return };
        self.slots[slot].as_mut().expect("just found").held = held;
        self.resume(slot, poller);
    }

    /// After something changed about whether a connection may be read.
    fn resume(&mut self, slot: usize, poller: &Poller) {
        let client = self.slots[slot].as_mut().expect("an open connection");
        let whole = client.needed == 0 && !client.partial.is_empty();
        if client.readable() && whole && !client.backlog {
            client.backlog = true;
            self.backlogged.push(slot);
        }
        client.watch(poller);
    }

    /// Sends a turn's replies, each connection's in one call where its socket takes them.
    pub fn send(&mut self, out: &Output, poller: &Poller, broken: &mut Vec<ConnId>) {
        for reply in &out.replies {
            let Some(slot) = self.slot_of(reply.conn) else { continue };
            let client = self.slots[slot].as_mut().expect("just found");
            client.untaken.push(reply.bytes.len());
            let replies = &mut client.replies;
            match replies.last_mut() {
                None => {
                    self.touched.push(slot);
                    replies.push(reply.bytes.clone());
                }
                Some(last) if last.end == reply.bytes.start => last.end = reply.bytes.end,
                Some(_) => replies.push(reply.bytes.clone()),
            }
        }
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            let client = self.slots[slot].as_mut().expect("replies go to open connections");
            let pieces = client.replies.iter().map(|range| &out.bytes[range.clone()]);
            let sent = send_pieces(&client.socket, pieces, &mut client.waiting);
            client.replies.clear();
            if sent.is_err() || client.waiting.pending() > WAITING_BYTES_MAX {
                broken.push(client.conn);
            } else {
                let was_stuck = client.stuck;
                client.look();
                if client.stuck && !was_stuck {
                    self.stuck.push(slot);
                }
                self.resume(slot, poller);
            }
        }
        self.touched = touched;
    }

    /// Looks again at connections with too many replies not taken: nothing tells when they are.
    pub fn look_again(&mut self, poller: &Poller) {
        let mut stuck = std::mem::take(&mut self.stuck);
        stuck.retain(|slot| {
            let client = self.slots[*slot].as_mut().expect("closing removes from the stuck");
            client.look();
            if !client.stuck {
                self.resume(*slot, poller);
            }
            self.slots[*slot].as_ref().is_some_and(|client| client.stuck)
        });
        self.stuck = stuck;
    }

    /// Closes a connection that [`Clients::send`] found broken.
    pub fn close_broken(&mut self, conn: ConnId, node: &mut Node, out: &mut Output) {
        if let Some(slot) = self.slot_of(conn) {
            self.close(slot, node, out);
        }
    }
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::new()
    }
}

/// Makes room for `more` bytes and keeps the account of memory.
fn reserve(client: &mut Client, more: usize, kept_bytes: &mut usize) {
    *kept_bytes -= client.partial.capacity();
    client.partial.reserve_exact(more);
    *kept_bytes += client.partial.capacity();
}

/// Hands the whole calls at the front of `bytes` to the node, until it wants no more of them.
fn take_calls(conn: ConnId, bytes: &mut [u8], node: &mut Node, out: &mut Output) -> Taken {
    let now = clock::now();
    let mut at = 0;
    loop {
        let stop = |consumed, needed, garbled| Taken { consumed, needed, garbled, held: false };
        if at == bytes.len() || out.bytes.len() > TURN_BYTES_MAX {
            return stop(at, 0, false);
        }
        let (record, end) = match record::split(&bytes[at..], RECORD_BYTES_MAX) {
            Ok(Split::Complete { record }) => (at + record.start..at + record.end, at + record.end),
            Ok(Split::Fragmented { consumed }) => {
                let joined = record::join(&mut bytes[at..at + consumed]);
                (at + joined.start..at + joined.end, at + consumed)
            }
            Ok(Split::NeedMore { bytes_at_least }) => return stop(at, bytes_at_least, false),
            Err(_) => return stop(at, 0, true),
        };
        node.step(now, Event::Call { conn, call: &bytes[record] }, out);
        at = end;
        if out.hold.last() == Some(&(conn, true)) {
            return Taken { held: true, ..stop(at, 0, false) };
        }
    }
}
