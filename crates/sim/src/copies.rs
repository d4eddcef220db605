//! Copies of calls that come late: a network or a stopped server kept one, and its client was answered long ago.
//! Owns: the bytes of successes of which a copy is under way.
//! Never: keeps a copy of a call that failed: such a one leaves no record, and its copy is a new call.
//! Invariant: a copy arrives before the client table may have forgotten what it answers.
//! Source: DESIGN section 3, the client table; docs/notes/relays.md.

use harp_node::fs::request::Status;

use crate::connections::Connection;
use crate::host::Incoming;
use crate::observer::Request;
use crate::profile::MILLI;
use crate::queue::Due;
use crate::world::{World, note};

/// Mean time until a copy arrives.
const LATE_MEAN: u64 = 20 * MILLI;
/// A client's successes within which a copy of an earlier one arrives: fewer than the client table keeps of one
/// connection, less what may be under way.
const SUCCESSES_MAX: u64 = 200;

/// A call that is to arrive again.
#[derive(Debug)]
pub(crate) struct Copy {
    number: u32,
    bytes: Vec<u8>,
    /// The client's successes when its own was answered.
    successes: u64,
}

impl World {
    /// A client took the reply to `number`, whose call was `bytes`. Now and then a copy of it is under way.
    pub(crate) fn may_copy(&mut self, number: u32, bytes: Vec<u8>) {
        let Request { client, intent, answer, .. } = self.observer.requests[number as usize];
        let me = &mut self.clients[client as usize];
        let succeeded = intent.modifies() && answer.status == Some(Status::Ok);
        me.successes += succeeded as u64;
        let successes = me.successes;
        let late = self.profile.clients.late_per_mille;
        if !succeeded || self.calm || !self.streams.connections.chance(late) {
            return self.buffers.push(bytes);
        }
        let at = self.now + self.streams.connections.wait(LATE_MEAN);
        let slot = self.copies.len() as u32;
        self.copies.push(Some(Copy { number, bytes, successes }));
        self.queue.put(at, Due::Copy { slot });
    }

    /// A copy arrives at whoever serves, on a connection that its client gave up.
    pub(crate) fn copy_arrives(&mut self, slot: u32) {
        let Copy { number, bytes, successes } =
            self.copies[slot as usize].take().expect("each arrives once");
        let client = self.observer.requests[number as usize].client;
        let remembered = self.clients[client as usize].successes - successes < SUCCESSES_MAX;
        // What an operator's override gave up is not remembered either.
        if remembered && self.observer.overrides.is_empty() {
            self.send_copy(number, bytes);
        }
    }

    /// The bytes of call `number` arrive at whoever serves, on a connection that its client gave up. Without a
    /// server that serves, they are lost.
    pub fn send_copy(&mut self, number: u32, bytes: Vec<u8>) {
        let Some((server, _)) = self.supervisor.serving else { return };
        let host = &self.hosts[server.index()];
        if !host.is_up() {
            return;
        }
        let client = self.observer.requests[number as usize].client;
        note!(self, "a copy of {number} of client {client} reaches {server}");
        let conn = self.connections.len() as u32;
        let port = 10_000 + (conn % 50_000) as u16;
        self.connections.push(Connection::new(client, server, port, host.life));
        self.deliver(server, Incoming::Opened(conn));
        self.deliver(server, Incoming::Calls(conn, bytes));
    }
}
