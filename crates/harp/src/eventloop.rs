//! One server's loop: everything that happens to a node, in one thread.
//! Owns: the node, its connections, the hand-off to its disk and store threads.
//! Never: waits for a disk or for a slow reader; allocates per operation once warm.
//! Invariant: what a turn wants sent or written is on its way before the next event is fed.
//!
//! A turn: wait; feed all that is readable to the node, record by record; let it finish the turn;
//! then carry its wishes out: frames to peers first, since others wait for them, then disk commands
//! and jobs, then replies.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use harp_node::log::{DiskCommand, DiskDone, MemoryTie, Ring};
use harp_node::vr::{Nanos, OverrideAnswer, Room};
use harp_node::{ConnId, Event, LookedUp, Node, Notice, Output, Power, StoreDone, StoreJob};

use crate::admin::{Admins, Answer, Asked, PowerState, Request, ServerStatus, digest_answer};
use crate::clients::{CLIENTS_MAX, Clients};
use crate::clock;
use crate::control::{self, Packet, ToServer, ToSupervisor};
use crate::error::HarpError;
use crate::gate::Gate;
use crate::handshake::Purpose;
use crate::links::{Arrival, Links};
use crate::outliving;
use crate::overriding::Answered;
use crate::poller::{Interest, Poller, Ready, Source};
use crate::relay::{self, NOT_SERVING, ORIGIN_BYTES, Relays, TAKEN};
use crate::reserve::Reserve;
use crate::server::Signals;
use crate::suspects::SuspectsFile;
use crate::worker::{Bell, Worker};

/// Messages for the supervisor that wait for room in its socket. Beyond this, remarks are dropped;
/// nothing else comes in numbers.
const UNSENT_MAX: usize = 1 << 14;

/// Memory that a turn's replies may keep for the next turn.
const KEPT_BYTES: usize = 32 << 20;

/// A turn that takes longer (nanoseconds) delays heartbeats and is worth a line.
const LONG_TURN: u64 = 50_000_000;

/// A loop that did not turn for so long (nanoseconds) was stopped: what waits in its clients' sockets may be of clients
/// that had their answers elsewhere since. As long as a peer's link may be stuck.
const STOPPED: u64 = 1_000_000_000;

/// How long the loop looks for more work before it sleeps (nanoseconds).
const LINGER: u64 = 15_000;

/// How often (nanoseconds) it is looked what room there is.
const SPACE_PAUSE: u64 = 100_000_000;

/// The threads that a node's wishes go to.
pub struct Workers {
    /// Rings when any of them has results.
    pub bell: Bell,
    /// The log's disk.
    pub log: Worker<DiskCommand, DiskDone>,
    /// The store's reads, checkpoints and digests; `None` at a witness.
    pub store: Option<StoreWorkers>,
    /// Looks what room there is.
    pub space: Worker<(), std::io::Result<Room>>,
    /// Looks up who is in which groups; `None` where clients say so themselves.
    pub users: Option<Worker<u32, (u32, LookedUp)>>,
}

/// The threads of a copy's store.
pub struct StoreWorkers {
    /// Reads.
    pub fetch: Worker<StoreJob, StoreDone>,
    /// Checkpoints and digests.
    pub checkpoint: Worker<StoreJob, StoreDone>,
}

/// How clients come to a server without a supervisor.
pub struct Door {
    /// Its own NFS address.
    pub gate: Gate,
    /// Those whose calls another server answers.
    pub relays: Relays,
}

/// What a loop is made of.
pub struct Parts {
    /// The node, booted.
    pub node: Node,
    /// What it leaves behind for the next process.
    pub suspects: SuspectsFile,
    /// Its record ring.
    pub ring: Ring,
    /// Its threads.
    pub workers: Workers,
    /// The disk space that it keeps for need.
    pub reserve: Arc<Reserve>,
    /// Its links.
    pub links: Links,
    /// Its admin socket.
    pub admins: Admins,
    /// The socket to the supervisor, if there is one.
    pub control: Option<OwnedFd>,
    /// Its NFS address, if it has one of its own.
    pub door: Option<Door>,
    /// What asks the process to end.
    pub signals: Signals,
    /// What watches all of the above.
    pub poller: Poller,
    /// The durability's name, for status.
    pub durability: &'static str,
    /// Where the memory lies that is given back once the log is written out; `None`: the log is on the disk.
    pub memory: Option<(PathBuf, MemoryTie)>,
}

/// Why a loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal, or the supervisor's end.
    Asked,
    /// The battery is low.
    PowerLow,
    /// The node must stop (rule 8).
    Fatal(String),
}

/// A server's loop.
pub struct EventLoop {
    parts: Parts,
    clients: Clients,
    out: Output,
    wake_at: Nanos,
    /// When it was last seen not to be stopped.
    woke_at: Nanos,
    unsent: std::collections::VecDeque<ToSupervisor>,
    disk_done: Vec<DiskDone>,
    store_done: Vec<StoreDone>,
    space_done: Vec<std::io::Result<Room>>,
    users_done: Vec<(u32, LookedUp)>,
    /// When to look what room there is; `None` while that is under way.
    space_at: Option<Nanos>,
    /// It was told that looking fails.
    space_told: bool,
    broken: Vec<ConnId>,
    /// Why the log is being written out; then the loop ends.
    ending: Option<End>,
    /// Operators who wait for that.
    awaiting_end: Vec<usize>,
    end: Option<End>,
}

impl EventLoop {
    /// A loop that has not turned yet.
    pub fn new(parts: Parts) -> Result<EventLoop, HarpError> {
        let poller = &parts.poller;
        poller.add_bell(&parts.workers.bell)?;
        poller.add(&parts.signals.fd, Source::Signal, Interest::READ)?;
        if let Some(control) = &parts.control {
            poller.add(control, Source::Control(0), Interest::READ)?;
        }
        Ok(EventLoop {
            parts,
            clients: Clients::new(),
            out: Output::default(),
            wake_at: Nanos(0),
            woke_at: clock::steady(),
            unsent: Default::default(),
            disk_done: Vec::new(),
            store_done: Vec::new(),
            space_done: Vec::new(),
            users_done: Vec::new(),
            space_at: Some(Nanos(0)),
            space_told: false,
            broken: Vec::new(),
            ending: None,
            awaiting_end: Vec::new(),
            end: None,
        })
    }

    /// Tells the supervisor something; later if its socket is full.
    pub fn tell(&mut self, message: ToSupervisor) {
        let message = message.bounded();
        if self.parts.control.is_none() {
            return match message {
                ToSupervisor::Closed { .. } => {}
                // Nobody listening is no fault.
                other => drop(writeln!(std::io::stderr(), "{other}")),
            };
        }
        let idle = matches!(message, ToSupervisor::Remark { .. });
        if self.unsent.len() < UNSENT_MAX || !idle {
            self.unsent.push_back(message);
        }
    }

    fn tell_now(&mut self) {
        let Some(control) = &self.parts.control else { return };
        let before = self.unsent.len();
        while let Some(message) = self.unsent.front() {
            match control::send(control.as_fd(), message, None) {
                Ok(()) => drop(self.unsent.pop_front()),
                Err(rustix::io::Errno::AGAIN) => break,
                // Its end shows when the socket is read.
                Err(_) => self.unsent.clear(),
            }
        }
        if before > 0 {
            let interest = Interest { read: true, write: !self.unsent.is_empty() };
            self.parts.poller.change(control, Source::Control(0), interest);
        }
    }

    /// Turns until the process is to end.
    pub fn run(mut self) -> Result<End, HarpError> {
        loop {
            self.turn()?;
            if let Some(end) = self.end.take() {
                self.tell_now();
                // A log that waits for room waits no longer.
                self.parts.reserve.stop();
                return Ok(end);
            }
        }
    }

    fn turn(&mut self) -> Result<(), HarpError> {
        let door = self.parts.door.as_ref().and_then(|door| door.relays.deadline());
        let deadlines = [self.parts.links.deadline(), door, Some(self.wake_at)];
        let until = match deadlines.into_iter().flatten().min() {
            Some(until) if !self.clients.has_backlog() => until,
            _ => Nanos(0),
        };
        let ready = self.wait(until)?;
        let woke = clock::steady();
        self.look_whether_stopped(woke);
        for index in 0..ready {
            let ready = self.parts.poller.event(index);
            self.on_ready(ready);
        }
        self.clients.look_again(&self.parts.poller);
        self.clients.take_backlog(&mut self.parts.node, &mut self.out, &self.parts.poller);
        let now = clock::now();
        self.parts.links.on_time(now.steady, &self.parts.poller);
        self.tend_door(now.steady);
        if now.steady >= self.wake_at {
            self.parts.node.step(now, Event::Tick, &mut self.out);
        }
        self.look_at_space(now.steady);
        self.parts.node.finish(clock::now(), &mut self.out);
        self.carry_out(now.steady);
        let took = clock::steady().since(woke);
        if took > LONG_TURN {
            let text = format!("a turn of the loop took {} ms", took / 1_000_000);
            self.tell(ToSupervisor::Remark { text });
        }
        Ok(())
    }

    /// Waits for the next events. While work keeps coming the loop looks again for a moment before it
    /// sleeps, letting other threads run in between: waking a sleeper costs more than that moment.
    fn wait(&mut self, until: Nanos) -> Result<usize, HarpError> {
        let began = clock::steady();
        let mut now = began;
        while now < until && now.since(began) < LINGER {
            let ready = self.parts.poller.wait(now, Some(now))?;
            if ready > 0 {
                return Ok(ready);
            }
            std::thread::yield_now();
            now = clock::steady();
        }
        if until <= began {
            // What is left to do can wait for those that somebody waits for.
            std::thread::yield_now();
        }
        self.parts.poller.wait(now, Some(until))
    }

    fn on_ready(&mut self, ready: Ready) {
        if matches!(ready.source, Source::Relayed(_) | Source::Upstream(_) | Source::ClientListener)
        {
            self.look_whether_stopped(clock::steady());
        }
        let Parts { node, links, admins, poller, door, .. } = &mut self.parts;
        let out = &mut self.out;
        match ready.source {
            Source::Client(conn) => self.clients.on_ready(ready, ConnId(conn), node, out, poller),
            Source::Peer(index) => {
                links.on_peer(ready, index as usize, clock::steady(), poller, |from, frame| {
                    // Read once the frame is here: a lease promised by it counts from its receipt (rule 7).
                    node.step(clock::now(), Event::Peer { from, frame }, out);
                });
            }
            Source::Greeting(slot) => {
                links.on_greeting(slot as usize, clock::steady(), poller, |from, frame| {
                    node.step(clock::now(), Event::Peer { from, frame }, out);
                });
                while let Some(arrival) = self.parts.links.arrivals.pop() {
                    self.on_arrival(arrival);
                }
            }
            Source::PeerListener => links.on_listener(clock::steady(), poller),
            Source::Bell => self.on_bell(),
            Source::Control(_) => self.on_control(),
            Source::AdminListener => admins.on_listener(poller),
            Source::Admin(slot) => {
                if let Some(asked) = admins.on_ready(ready, slot as usize, poller) {
                    self.on_asked(asked);
                }
            }
            Source::Signal => self.on_signal(),
            Source::ClientListener => self.on_gate(),
            Source::Relayed(id) => {
                let door = door.as_mut().expect("only a server with a door relays");
                door.relays.on_client(ready, id, poller);
            }
            Source::Upstream(id) => {
                let door = door.as_mut().expect("only a server with a door relays");
                door.relays.on_upstream(ready, id, clock::steady(), poller);
            }
            Source::Child(_) => unreachable!("a server has no children"),
        }
    }

    /// Clients wait at this server's own address.
    fn on_gate(&mut self) {
        let Parts { node, poller, door: Some(door), .. } = &mut self.parts else { return };
        let here = node.replica().is_serving();
        let Door { gate, relays } = door;
        gate.accept(|socket, from| {
            if here {
                let client = (None, from.ip(), from.port());
                self.clients.open(socket, client, node, &mut self.out, poller);
            } else {
                relays.take_in(socket, from, poller);
            }
        });
    }

    /// If this server was stopped since it last looked, those whose calls it would pass on, and those who connected
    /// meanwhile, are reset: they send again what they still want.
    fn look_whether_stopped(&mut self, now: Nanos) {
        if now.since(std::mem::replace(&mut self.woke_at, now)) <= STOPPED {
            return;
        }
        if let Some(Door { gate, relays }) = &mut self.parts.door {
            relays.reset_all();
            gate.reset_waiting();
        }
    }

    /// Sends clients to whoever serves, and lets more in if somebody does.
    fn tend_door(&mut self, now: Nanos) {
        let Parts { node, links, poller, door: Some(door), .. } = &mut self.parts else { return };
        door.relays.on_links(|server| links.ended(server));
        let serving = node.replica().serving(now);
        let target = serving.map(|(view, server)| relay::Target {
            server,
            view,
            links_ended: links.ended(server),
        });
        for relay::Returned { socket, from } in door.relays.aim(target, poller) {
            let client = (None, from.ip(), from.port());
            self.clients.open(socket, client, node, &mut self.out, poller);
        }
        door.relays.on_time(now, poller);
        let room = self.clients.count() + door.relays.count() < CLIENTS_MAX;
        door.gate.set(serving.is_some() && room, poller);
    }

    /// Somebody proved that he is of this group, and is no link.
    fn on_arrival(&mut self, arrival: Arrival) {
        let Parts { node, admins, poller, .. } = &mut self.parts;
        let Arrival { purpose, socket, received, .. } = arrival;
        if purpose == Purpose::Operator {
            if let Some(asked) = admins.take_in(socket, received, poller) {
                self.on_asked(asked);
            }
            return;
        }
        let taken = node.replica().is_serving() && self.clients.count() < CLIENTS_MAX;
        let answer = if taken { TAKEN } else { NOT_SERVING };
        // A fresh socket takes one byte. Nothing but the origin comes before that.
        let told = rustix::io::write(&socket, &[answer]) == Ok(1);
        let Ok(origin) = <&[u8; ORIGIN_BYTES]>::try_from(&received[..]) else { return };
        if taken && told {
            relay::tune(&socket);
            let (address, port) = relay::parse_origin(origin);
            let client = (None, address, port);
            self.clients.open(socket, client, node, &mut self.out, poller);
        }
    }

    /// Feeds the results of all threads.
    fn on_bell(&mut self) {
        self.on_space();
        let Parts { node, workers, .. } = &mut self.parts;
        workers.log.take_done(&mut self.disk_done);
        for done in self.disk_done.drain(..) {
            node.step(clock::now(), Event::Disk(done), &mut self.out);
        }
        if let Some(users) = &workers.users {
            users.take_done(&mut self.users_done);
            for (uid, answer) in self.users_done.drain(..) {
                node.step(clock::now(), Event::Groups { uid, answer }, &mut self.out);
            }
        }
        let Some(store) = &workers.store else { return };
        for worker in [&store.fetch, &store.checkpoint] {
            worker.take_done(&mut self.store_done);
            for done in self.store_done.drain(..) {
                node.step(clock::now(), Event::Store(done), &mut self.out);
            }
        }
    }

    /// Every now and then a thread looks what room there is. The loop wakes often enough by itself.
    fn look_at_space(&mut self, now: Nanos) {
        if self.space_at.is_some_and(|at| at <= now) {
            self.space_at = None;
            self.parts.workers.space.give(std::iter::once(()));
        }
    }

    fn on_space(&mut self) {
        self.parts.workers.space.take_done(&mut self.space_done);
        while let Some(looked) = self.space_done.pop() {
            self.space_at = Some(clock::steady().plus(SPACE_PAUSE));
            match looked {
                Ok(room) => {
                    let event = Event::Space { room };
                    self.parts.node.step(clock::now(), event, &mut self.out);
                }
                Err(error) if !self.space_told => {
                    self.space_told = true;
                    let text = format!("cannot look what room the disk has: {error}");
                    self.tell(ToSupervisor::Remark { text });
                }
                Err(_) => {}
            }
        }
    }

    fn on_control(&mut self) {
        loop {
            let Some(control) = &self.parts.control else { return };
            match control::receive::<ToServer>(control.as_fd()) {
                Packet::Message(ToServer::Client { handle, address, port }, Some(socket)) => {
                    // The supervisor knows before anything is read: what was not taken it hands to another server.
                    self.tell(ToSupervisor::Taken { handle });
                    self.tell_now();
                    if !self.unsent.is_empty() {
                        self.tell(ToSupervisor::Closed { handle });
                        continue; // it is not listening: the client comes again
                    }
                    let Parts { node, poller, .. } = &mut self.parts;
                    let client = (Some(handle), address, port);
                    self.clients.open(socket, client, node, &mut self.out, poller);
                }
                Packet::Message(_, None) | Packet::Garbled => {
                    let text = "a control message made no sense".into();
                    self.tell(ToSupervisor::Remark { text });
                }
                Packet::Nothing => return,
                Packet::Closed => return self.end_with(End::Asked),
            }
        }
    }

    /// The first signal asks the server to end; a second one ends it as it stands.
    fn on_signal(&mut self) {
        let end = if self.parts.signals.take() { End::PowerLow } else { End::Asked };
        match self.ending {
            Some(_) if end == End::Asked => self.end = Some(end),
            _ => self.end_with(end),
        }
    }

    /// Ends the loop, once the log is written out if it is in memory. Low power matters to a log in memory alone.
    fn end_with(&mut self, end: End) {
        if self.parts.memory.is_none() {
            if end == End::Asked {
                self.end = Some(end);
            }
        } else if self.ending.is_none() {
            self.ending = Some(end);
            self.parts.node.step(clock::now(), Event::Power(Power::Ending), &mut self.out);
        }
    }

    /// The log is whole on the disk, and marked so: the memory is needed no more.
    fn on_written_out(&mut self, op: u64) {
        if let Some((dir, tie)) = &self.parts.memory {
            outliving::remove(dir, tie);
        }
        for slot in self.awaiting_end.drain(..) {
            self.parts.admins.answer(slot, &Answer::Done, &self.parts.poller);
        }
        if self.ending == Some(End::PowerLow) {
            self.tell(ToSupervisor::PowerLow);
        }
        let text = format!("the log is written out, up to op {op}");
        self.tell(ToSupervisor::Remark { text });
        self.end = self.ending.clone();
    }

    fn on_power(&mut self, slot: usize, power: PowerState) {
        if self.parts.memory.is_none() {
            return self.parts.admins.answer(slot, &Answer::Done, &self.parts.poller);
        }
        let (power, text) = match power {
            PowerState::Low => {
                self.awaiting_end.push(slot);
                return self.end_with(End::PowerLow);
            }
            PowerState::OnBattery => (Power::Battery, "on battery: what is in memory is written"),
            PowerState::Mains => (Power::Mains, "on the mains"),
        };
        self.parts.node.step(clock::now(), Event::Power(power), &mut self.out);
        self.tell(ToSupervisor::Remark { text: text.into() });
        self.parts.admins.answer(slot, &Answer::Done, &self.parts.poller);
    }

    fn on_asked(&mut self, Asked { slot, request }: Asked) {
        let now = clock::now();
        let Parts { node, admins, poller, durability, .. } = &mut self.parts;
        let answer = match request {
            Request::Status => {
                let status = ServerStatus::new(&node.status(now), durability);
                Answer::Status(Box::new(status))
            }
            Request::Digest(op) => digest_answer(op, &node.status(now)),
            Request::Power(power) => return self.on_power(slot, power),
            Request::Verify => {
                let token = admins.await_token(slot);
                return node.step(now, Event::Verify { token }, &mut self.out);
            }
            Request::Override(wanted) => {
                let token = admins.await_token(slot);
                match wanted.order(token, now.wall / clock::NANOS_PER_S) {
                    Some(order) => return node.step(now, Event::Override(order), &mut self.out),
                    None => Answer::Error("no group has such servers".into()),
                }
            }
        };
        admins.answer(slot, &answer, poller);
    }

    /// Carries the turn's wishes out.
    fn carry_out(&mut self, now: Nanos) {
        let Parts { node, ring, workers, links, poller, suspects, .. } = &mut self.parts;
        let out = &mut self.out;
        if let Some(remember) = out.remember.take()
            && let Err(error) = suspects.write(remember)
        {
            let text = format!("the records being redone could not be noted: {error}");
            out.notices.push(Notice::Remark { text });
        }
        links.send(out, ring, now, poller);
        if !out.disk.is_empty() {
            workers.log.give(out.disk.drain(..));
        }
        if !out.jobs.is_empty() {
            let store = workers.store.as_ref().expect("only a copy's node has store jobs");
            let mut slow = out.jobs.extract_if(.., |job| !job.is_short()).peekable();
            if slow.peek().is_some() {
                store.checkpoint.give(slow);
            } else {
                drop(slow);
            }
            if !out.jobs.is_empty() {
                store.fetch.give(out.jobs.drain(..));
            }
        }
        if !out.users.is_empty() {
            let users = workers.users.as_ref().expect("only where the server says who is in which");
            users.give(out.users.drain(..));
        }
        if !out.replies.is_empty() {
            self.clients.send(out, poller, &mut self.broken);
        }
        for (conn, held) in out.hold.drain(..) {
            self.clients.hold(conn, held, poller);
        }
        let mut notices = std::mem::take(&mut out.notices);
        self.broken.append(&mut out.close);
        self.wake_at = out.wake_at;
        out.clear();
        if out.bytes.capacity() > KEPT_BYTES {
            out.bytes.shrink_to(KEPT_BYTES / 2);
        }
        // From here on the output is the next turn's.
        for conn in self.broken.drain(..) {
            self.clients.close_broken(conn, node, out);
        }
        notices.drain(..).for_each(|notice| self.on_notice(notice));
        if self.out.notices.is_empty() {
            self.out.notices = notices; // keeps its memory
        }
        for text in std::mem::take(&mut self.parts.links.remarks) {
            self.tell(ToSupervisor::Remark { text });
        }
        while let Some(handle) = self.clients.closed.pop() {
            self.tell(ToSupervisor::Closed { handle });
        }
        if !self.unsent.is_empty() {
            self.tell_now();
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Serving { view } => self.tell(ToSupervisor::Serving { view: view.0 }),
            Notice::Stopped { view } => {
                self.tell(ToSupervisor::Stopped { view: view.0 });
                self.clients.reset_all(&mut self.parts.node, &mut self.out);
            }
            Notice::Formed { view, members, primary } => {
                let (view, members, primary) = (view.0, members.0, primary.0);
                self.tell(ToSupervisor::Formed { view, members, primary });
            }
            Notice::Barrier { token, op } => {
                self.parts.admins.on_barrier(token, op, &self.parts.poller);
            }
            Notice::Overridden { token, answer } => {
                if let OverrideAnswer::Done { view, plan } = &answer {
                    let (end, holder) = (plan.kept.end, plan.holder);
                    let text = format!(
                        "an operator's override: view {view} begins a new epoch at op {end}, as {holder} has it"
                    );
                    self.tell(ToSupervisor::Remark { text });
                }
                let answered = Answered::from(&answer);
                self.parts.admins.on_overridden(token, answered, &self.parts.poller);
            }
            Notice::Digest { op, digest } => {
                if let Err(why) = digest {
                    let text = format!("no digest at op {op}: {why}");
                    self.tell(ToSupervisor::Remark { text });
                }
            }
            Notice::Refusing { why } => self.tell(ToSupervisor::Refusing { why }),
            Notice::Remark { text } => self.tell(ToSupervisor::Remark { text }),
            Notice::WrittenOut { end } => self.on_written_out(end),
            Notice::Fatal { why } => {
                self.tell(ToSupervisor::Fatal { why: why.clone() });
                self.end = Some(End::Fatal(why));
            }
        }
    }
}
