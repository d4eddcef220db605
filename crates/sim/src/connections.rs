//! Connections between clients and servers, and the supervisor that says where to connect.
//! Owns: bytes under way in both directions; who serves, as far as the supervisor heard.
//! Never: loses or reorders bytes of a connection that lives; a reset loses what was under way.
//! Invariant: a client has at most one connection, besides those it gave up (`copies`); a call that was not
//! answered is sent again, byte for byte, on the next one.

use harp_node::vr::{ServerId, View};

use crate::client::Client;
use crate::host::Incoming;
use crate::observer::Request;
use crate::profile::{MICRO, MILLI};
use crate::queue::Due;
use crate::world::{World, note};

/// A client without an answer for this many failure time-outs connects anew.
const PATIENCE: u64 = 10;

/// A connection. Its place in the world's list is its number; numbers are not used again.
#[derive(Debug)]
pub struct Connection {
    /// Whose.
    pub client: u32,
    /// To which server.
    pub server: ServerId,
    /// The client's port.
    pub port: u16,
    /// In which life of the server's process.
    life: u32,
    open: bool,
    /// The server asked not to be given more.
    held: bool,
    to_server: Way,
    to_client: Way,
}

impl Connection {
    /// One of `client`, from `port`, to the process of `server` in this life.
    pub fn new(client: u32, server: ServerId, port: u16, life: u32) -> Connection {
        let (to_server, to_client) = Default::default();
        Connection { client, server, port, life, open: true, held: false, to_server, to_client }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    bytes: Vec<u8>,
    arriving: bool,
}

/// Who serves, as far as the supervisor knows.
#[derive(Debug, Default)]
pub struct Supervisor {
    /// The server that said so in the highest view.
    pub serving: Option<(ServerId, View)>,
    highest: View,
}

impl World {
    /// A client looks around at `at` at the latest.
    pub(crate) fn look_at(&mut self, client: u32, at: u64) {
        let look_at = &mut self.clients[client as usize].look_at;
        if at < *look_at {
            *look_at = at;
            self.queue.put(at, Due::Client { client });
        }
    }

    /// All clients look around now.
    pub fn look_everywhere(&mut self) {
        (0..self.clients.len()).for_each(|client| self.look_at(client as u32, self.now));
    }

    /// A client connects if it must, and asks if it may.
    pub(crate) fn look(&mut self, client: u32) {
        if self.clients[client as usize].look_at != self.now {
            return; // another look took this one's place
        }
        self.clients[client as usize].look_at = u64::MAX;
        let pinned = self.clients[client as usize].pinned;
        if self.clients[client as usize].conn.is_none() && !self.connect(client) && !pinned {
            return; // the supervisor will tell
        }
        let patience = PATIENCE * self.profile.failure_timeout;
        let resets = self.profile.clients.reset_per_mille;
        let on_a_whim = !self.calm && self.streams.connections.chance(resets);
        let me = &self.clients[client as usize];
        let waited = !me.open.is_empty() && self.now >= me.heard_at + patience;
        if let Some(conn) = me.conn
            && (waited || on_a_whim)
        {
            note!(self, "client {client} drops its connection");
            self.reset(conn);
            return;
        }
        self.burst(client);
        let me = &self.clients[client as usize];
        let more = self.requests_left > 0 || !me.told.is_empty() || !me.is_mounted();
        if more || !me.open.is_empty() {
            let at = me.burst_at.max(self.now + 100 * MICRO);
            self.look_at(client, at.min(self.now + patience));
        }
    }

    /// A client asks for what it wants next, if its pause is over.
    fn burst(&mut self, client: u32) {
        let me = &self.clients[client as usize];
        if self.now < me.burst_at && me.told.is_empty() {
            return;
        }
        let room = (self.profile.clients.depth as usize).saturating_sub(me.open.len());
        for _ in 0..room {
            let me = &mut self.clients[client as usize];
            if self.requests_left == 0 && me.told.is_empty() && me.is_mounted() {
                break;
            }
            let tag = self.observer.requests.len() as u64 + 1;
            let own = me.told.is_empty() && me.is_mounted();
            let rng = &mut self.streams.workload;
            let Some(intent) = me.next(&self.profile.clients, tag, rng) else { break };
            self.requests_left -= own as u64;
            let number = self.ask(client, intent);
            self.send_call(client, number);
        }
        let pause = self.profile.clients.pause_mean;
        self.clients[client as usize].burst_at = self.now + self.streams.connections.wait(pause);
    }

    fn ask(&mut self, client: u32, intent: crate::intent::Intent) -> u32 {
        let buffer = self.buffer();
        let user = self.clients[client as usize].user;
        let number = self.observer.invoke(client, user, intent, buffer);
        note!(self, "client {client} asks {number}: {intent:?}");
        let me = &mut self.clients[client as usize];
        if me.open.is_empty() {
            me.heard_at = self.now;
        }
        me.open.push(number);
        number
    }

    fn send_call(&mut self, client: u32, number: u32) {
        let Some(conn) = self.clients[client as usize].conn else { return };
        let way = &mut self.connections[conn as usize].to_server;
        way.bytes.extend_from_slice(&self.observer.requests[number as usize].bytes);
        if !std::mem::replace(&mut way.arriving, true) {
            let delay = self.delay();
            self.queue.put(self.now + delay, Due::ToServer { conn });
        }
    }

    fn delay(&mut self) -> u64 {
        5 * MICRO + self.streams.connections.wait(self.profile.clients.delay_mean)
    }

    /// Connects to whoever serves, and asks again for what is outstanding. `false`: nobody serves.
    fn connect(&mut self, client: u32) -> bool {
        let Some((server, _)) = self.supervisor.serving else { return false };
        if self.clients[client as usize].pinned {
            return false; // it had one server, and stays with it
        }
        let buffer = self.buffer();
        let host = &self.hosts[server.index()];
        if !host.is_up() {
            return false;
        }
        let conn = self.connections.len() as u32;
        let keeps_port = self.streams.connections.chance(700);
        let port = if keeps_port { 900 } else { 10_000 + (conn % 50_000) as u16 };
        let fresh = Connection::new(client, server, port, host.life);
        self.connections
            .push(Connection { to_server: Way { bytes: buffer, arriving: false }, ..fresh });
        note!(self, "client {client} connects to {server}");
        self.deliver(server, Incoming::Opened(conn));
        let me = &mut self.clients[client as usize];
        me.conn = Some(conn);
        me.heard_at = self.now;
        for number in me.open.clone() {
            self.send_call(client, number);
        }
        true
    }

    /// A connection is no more: the server hears of it, and so does the client, a little later.
    pub(crate) fn reset(&mut self, conn: u32) {
        let connection = &mut self.connections[conn as usize];
        if !std::mem::replace(&mut connection.open, false) {
            return;
        }
        let (client, server, life) = (connection.client, connection.server, connection.life);
        let ways = [&mut connection.to_server, &mut connection.to_client];
        for way in ways {
            self.buffers.push(std::mem::take(&mut way.bytes));
        }
        if self.hosts[server.index()].life == life {
            self.deliver(server, Incoming::Closed(conn));
        }
        if self.clients[client as usize].conn == Some(conn) {
            self.clients[client as usize].conn = None;
            let delay = self.delay();
            self.look_at(client, self.now + delay);
        }
    }

    /// What a client sent arrives.
    pub(crate) fn arrive_at_server(&mut self, conn: u32) {
        let buffer = self.buffer();
        let connection = &mut self.connections[conn as usize];
        connection.to_server.arriving = false;
        if !connection.open || connection.held || connection.to_server.bytes.is_empty() {
            return;
        }
        let server = connection.server;
        let bytes = std::mem::replace(&mut connection.to_server.bytes, buffer);
        self.deliver(server, Incoming::Calls(conn, bytes));
    }

    /// The server does not want to be given more on a connection, or wants it again.
    pub(crate) fn hold(&mut self, conn: u32, hold: bool) {
        self.connections[conn as usize].held = hold;
        if !hold {
            self.arrive_at_server(conn);
        }
    }

    /// A reply leaves on a connection at `at`.
    pub(crate) fn send_to_client(&mut self, conn: u32, at: u64, bytes: &[u8]) {
        let connection = &self.connections[conn as usize];
        if !connection.open || self.clients[connection.client as usize].deaf {
            return;
        }
        let delay = self.delay();
        let way = &mut self.connections[conn as usize].to_client;
        way.bytes.extend_from_slice(bytes);
        if !std::mem::replace(&mut way.arriving, true) {
            self.queue.put(at + delay, Due::ToClient { conn });
        }
    }

    /// Replies arrive at their client.
    pub(crate) fn arrive_at_client(&mut self, conn: u32) {
        let connection = &mut self.connections[conn as usize];
        connection.to_client.arriving = false;
        if !connection.open {
            return;
        }
        let client = connection.client;
        let bytes = std::mem::take(&mut connection.to_client.bytes);
        let mut rest = &bytes[..];
        while let [m0, m1, m2, m3, x0, x1, x2, x3, ..] = *rest {
            let len = u32::from_be_bytes([m0, m1, m2, m3]) & 0x7fff_ffff;
            self.answered(client, u32::from_be_bytes([x0, x1, x2, x3]));
            rest = &rest[4 + len as usize..];
        }
        if self.clients[client as usize].conn != Some(conn) {
            return self.reset(conn); // nobody listens there
        }
        let way = &mut self.connections[conn as usize].to_client;
        way.bytes = bytes;
        way.bytes.clear();
    }

    fn answered(&mut self, client: u32, xid: u32) {
        let number = self.observer.number_of(xid).expect("the observer read it when it left");
        let Client { open, .. } = &mut self.clients[client as usize];
        let Some(at) = open.iter().position(|open| *open == number) else { return };
        open.remove(at);
        let bytes = self.observer.answered(number);
        self.may_copy(number, bytes);
        let Request { intent, answer, .. } = self.observer.requests[number as usize];
        let me = &mut self.clients[client as usize];
        me.heard_at = self.now;
        me.learn(&intent, answer, &self.observer.model, &mut self.streams.workload);
        if matches!(intent, crate::intent::Intent::Mount) || !me.told.is_empty() {
            self.look_at(client, self.now);
        }
    }

    /// The supervisor moves a client to another server, or leaves it where it is.
    pub fn pin(&mut self, client: u32, pinned: bool) {
        self.clients[client as usize].pinned = pinned;
        self.queue.put(self.now, Due::Supervise);
    }

    /// From now on no reply reaches this client, or again each.
    pub fn deafen(&mut self, client: u32, deaf: bool) {
        self.clients[client as usize].deaf = deaf;
    }

    /// Gives a client something to ask before anything of its own.
    pub fn tell(&mut self, client: u32, intent: crate::intent::Intent) {
        self.clients[client as usize].told.push_back(intent);
        self.look_at(client, self.now);
    }

    /// A server says that it serves.
    pub(crate) fn now_serves(&mut self, server: ServerId, view: View) {
        if view >= self.supervisor.highest {
            self.supervisor.highest = view;
            self.supervisor.serving = Some((server, view));
            self.queue.put(self.now + 100 * MICRO, Due::Supervise);
        }
    }

    /// A server says that it serves no longer, or it died.
    pub(crate) fn serves_no_longer(&mut self, server: ServerId, view: View) {
        if self.supervisor.serving == Some((server, view)) {
            self.supervisor.serving = None;
        }
        self.reset_all(server);
    }

    /// Resets all connections to a server.
    pub(crate) fn reset_all(&mut self, server: ServerId) {
        for client in 0..self.clients.len() {
            if let Some(conn) = self.clients[client].conn
                && self.connections[conn as usize].server == server
            {
                self.reset(conn);
            }
        }
    }

    /// The supervisor moves clients to whoever serves. Now and then it is late for one of them.
    pub(crate) fn supervise(&mut self) {
        let Some((server, _)) = self.supervisor.serving else { return };
        for client in 0..self.clients.len() {
            match self.clients[client].conn {
                None => self.look_at(client as u32, self.now),
                Some(conn) if self.connections[conn as usize].server != server => {
                    let lingers = self.profile.clients.linger_per_mille;
                    if self.clients[client].pinned {
                        continue;
                    }
                    if !self.calm && self.streams.connections.chance(lingers) {
                        let later = self.streams.connections.wait(10 * MILLI);
                        self.queue.put(self.now + later, Due::Supervise);
                    } else {
                        self.reset(conn);
                    }
                }
                Some(_) => {}
            }
        }
    }
}
