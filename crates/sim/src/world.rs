//! The world: servers, network, disks, clients, and the one agenda that drives them all.
//! Owns: virtual time and everything in it.
//! Never: reads a wall clock, starts a thread, or lets the order of a hash table matter.
//! Invariant: the same wish gives the same sequence of events; `trace` is its running hash.

use std::collections::BTreeMap;

use harp_node::vr::{Durable, Envelope, OverrideAnswer, Planted, ServerId, ServerSet, View};

use crate::client::Client;
use crate::clock::Clock;
use crate::connections::{Connection, Supervisor};
use crate::copies::Copy;
use crate::glue;
use crate::hash::Running;
use crate::host::{Host, Incoming, Process};
use crate::nemesis::{Fault, Nemesis};
use crate::network::{MailRoom, Message, Network};
use crate::observer::Observer;
use crate::profile::{MILLI, Profile, SECOND, Wish};
use crate::properties::{Verdict, Violation};
use crate::queue::{Due, Queue};
use crate::rng::{Rng, Stream};

/// What a script does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The network decides.
    Pass,
    /// It waits until the script lets it go.
    Hold,
    /// It is lost.
    Drop,
    /// The network decides; a copy waits until the script lets it go.
    Copy,
}

/// Decides about messages as they are sent.
pub type Filter = Box<dyn FnMut(&Message, &Envelope) -> Fate>;

/// The random streams that no part of the world keeps to itself.
pub(crate) struct Streams {
    pub disk: Rng,
    pub workload: Rng,
    pub connections: Rng,
    pub identity: Rng,
    pub turns: Rng,
    pub clocks: Rng,
    pub users: Rng,
}

/// A simulated world.
pub struct World {
    /// True time, in nanoseconds.
    pub now: u64,
    /// Everything drawn once.
    pub profile: Profile,
    /// The servers.
    pub hosts: Vec<Host>,
    /// The network between them.
    pub network: Network,
    /// Who watches.
    pub observer: Observer,
    /// The clients.
    pub clients: Vec<Client>,
    /// Requests that clients may still make on their own.
    pub requests_left: u64,
    /// Whether faults are over.
    pub calm: bool,
    /// The running hash over all events.
    pub trace: Running,
    /// Whether events are printed.
    pub tracing: bool,
    /// Events so far.
    pub events: u64,
    pub(crate) queue: Queue,
    pub(crate) mail: MailRoom,
    pub(crate) connections: Vec<Connection>,
    pub(crate) copies: Vec<Option<Copy>>,
    pub(crate) supervisor: Supervisor,
    pub(crate) nemesis: Nemesis,
    pub(crate) streams: Streams,
    pub(crate) filter: Option<Filter>,
    pub(crate) held: Vec<u32>,
    /// Look-ups of these users hang.
    pub silent_users: Vec<u32>,
    pub(crate) buffers: Vec<Vec<u8>>,
    /// A copy's image was given up while another one's had damaged blocks: more than the design rides out.
    pub(crate) blocks_lost: bool,
    /// The barrier that the primary answered last, by token.
    pub barrier: Option<(u64, Option<u64>)>,
    /// How many orders the operator gave.
    pub(crate) orders: u64,
    /// What became of them, by number.
    pub answers: BTreeMap<u64, OverrideAnswer>,
}

/// A world with more events than this, and so many for each operation, has run away.
const EVENTS_MIN: u64 = 10_000_000;
const EVENTS_PER_OP: u64 = 2_000;

/// Prints an event when the world is traced; its words are built only then.
macro_rules! note {
    ($world:expr, $($what:tt)*) => {
        if $world.tracing {
            eprintln!("{:>14} {}", $world.now, format_args!($($what)*));
        }
    };
}
pub(crate) use note;

impl World {
    /// A freshly formatted group, all servers about to start, and its clients.
    pub fn new(profile: Profile) -> World {
        let seed = profile.wish.seed;
        let stream = |stream| Rng::new(seed, stream);
        let mut streams = Streams {
            disk: stream(Stream::Disk),
            workload: stream(Stream::Workload),
            connections: stream(Stream::Connections),
            identity: stream(Stream::Identity),
            turns: stream(Stream::Turns),
            clocks: stream(Stream::Clocks),
            users: stream(Stream::Users),
        };
        let hosts = (profile.shape.servers())
            .map(|id| Host::new(id, &profile, draw_clock(&profile, &mut streams.clocks)))
            .collect();
        let mut world = World {
            now: 0,
            hosts,
            network: Network::new(profile.network.clone(), stream(Stream::Network)),
            observer: Observer::new(profile.shape, !profile.wish.wild_clocks),
            clients: (0..profile.clients.clients)
                .map(|number| Client::new(number, profile.user))
                .collect(),
            requests_left: profile.wish.ops,
            calm: false,
            trace: Running::default(),
            tracing: false,
            events: 0,
            queue: Queue::default(),
            mail: MailRoom::default(),
            connections: Vec::new(),
            copies: Vec::new(),
            supervisor: Supervisor::default(),
            nemesis: Nemesis::new(stream(Stream::Nemesis)),
            streams,
            filter: None,
            held: Vec::new(),
            silent_users: Vec::new(),
            buffers: Vec::new(),
            blocks_lost: false,
            barrier: None,
            orders: 0,
            answers: BTreeMap::new(),
            profile,
        };
        world.observer.model.may_run_out = world.profile.may_run_out();
        world.observer.model.owner = world.profile.user;
        world.observer.model.may_lose_blocks = world.profile.faults.contains(Fault::BlockDamage);
        world.form_up();
        world
    }

    fn form_up(&mut self) {
        for index in 0..self.hosts.len() {
            let server = ServerId(index as u8);
            self.format(server, true);
            let at = self.streams.turns.below(MILLI);
            self.queue.put(at, Due::Start { server, life: 0 });
        }
        for client in 0..self.clients.len() {
            self.look_at(client as u32, 0);
        }
        if !self.profile.faults.is_empty() {
            self.queue.put(self.profile.fault_gap, Due::Strike);
        }
    }

    /// Formats one server's disks under a new disk id.
    pub(crate) fn format(&mut self, server: ServerId, first: bool) {
        let disk_id = self.streams.identity.draw() | 1;
        let host = &mut self.hosts[server.index()];
        glue::format(&self.profile, server, disk_id, first, &mut host.disk, host.store.as_ref());
    }

    /// Formats the disks of a server that lost them, as the supervisor does: never as on the first start.
    fn format_emptied(&mut self, server: ServerId) {
        let planted = self.profile.wish.planted == Some(Planted::MissingIsFirstStart);
        self.format(server, planted);
    }

    /// Takes the next event off the agenda. `false`: there is none.
    pub fn advance(&mut self) -> Result<bool, Violation> {
        let Some((at, due)) = self.queue.take() else { return Ok(false) };
        assert!(at >= self.now, "time moves on");
        self.now = at;
        self.events += 1;
        self.trace.add(at);
        self.carry_out(due)?;
        Ok(true)
    }

    /// Goes on until `done`, at most until `limit`. Returns whether it was `done`.
    pub fn run_until(
        &mut self,
        limit: u64,
        mut done: impl FnMut(&World) -> bool,
    ) -> Result<bool, Violation> {
        while !done(self) {
            self.check_events()?;
            let due = self.queue.next_at().is_some_and(|at| at <= limit);
            if !due {
                self.now = self.now.max(limit);
                return Ok(false);
            }
            self.advance()?;
        }
        Ok(true)
    }

    fn check_events(&self) -> Verdict {
        let most = EVENTS_MIN + EVENTS_PER_OP * self.profile.wish.ops;
        if self.events <= most {
            return Ok(());
        }
        let what = format!("{} events and no end; {}", self.events, self.states());
        Err(Violation { property: "the world comes to an end", what })
    }

    fn carry_out(&mut self, due: Due) -> Verdict {
        match due {
            Due::Turn { server, life } if self.lives(server, life) => self.turn_if_due(server),
            Due::Wake { server, life } if self.lives(server, life) => {
                self.wake(server);
                Ok(())
            }
            Due::Frame { slot } => {
                let to = self.mail.get(slot).to;
                if self.hosts[to.index()].is_up() {
                    self.deliver(to, Incoming::Frame(slot));
                } else {
                    self.mail.close(slot);
                }
                Ok(())
            }
            Due::DiskDone { server, life } if self.lives(server, life) => self.disk_done(server),
            Due::JobDone { server, life, lane } if self.lives(server, life) => {
                self.job_done(server, lane);
                Ok(())
            }
            Due::LookedUp { server, life, uid } if self.lives(server, life) => {
                let answer = self.look_up(uid);
                self.deliver(server, Incoming::Groups(uid, answer));
                Ok(())
            }
            Due::ToServer { conn } => {
                self.arrive_at_server(conn);
                Ok(())
            }
            Due::ToClient { conn } => {
                self.arrive_at_client(conn);
                Ok(())
            }
            Due::Client { client } => {
                self.look(client);
                Ok(())
            }
            Due::Copy { slot } => {
                self.copy_arrives(slot);
                Ok(())
            }
            Due::Supervise => {
                self.supervise();
                Ok(())
            }
            Due::Strike => self.strike(),
            Due::Mend { slot } => {
                self.mend(slot);
                Ok(())
            }
            Due::Start { server, life } => {
                let host = &self.hosts[server.index()];
                let wanted = host.life == life && !host.is_up() && !host.stays_down;
                if wanted { self.start(server) } else { Ok(()) }
            }
            // What belonged to an ended process is void.
            Due::PowerOff { server, life } => {
                if self.lives(server, life) {
                    self.kill(server, true);
                    self.restart_later(server);
                }
                Ok(())
            }
            Due::Turn { .. }
            | Due::Wake { .. }
            | Due::DiskDone { .. }
            | Due::JobDone { .. }
            | Due::LookedUp { .. } => Ok(()),
        }
    }

    fn lives(&self, server: ServerId, life: u32) -> bool {
        let host = &self.hosts[server.index()];
        host.is_up() && host.life == life
    }

    /// Puts something before a server's loop; it is lost if no process runs.
    pub(crate) fn deliver(&mut self, server: ServerId, what: Incoming) {
        let host = &mut self.hosts[server.index()];
        let Some(process) = &mut host.process else { return };
        process.inbox.push(what);
        let at = self.now.max(process.busy_until);
        if process.turn_at.is_none() {
            process.turn_at = Some(at);
            self.queue.put(at, Due::Turn { server, life: host.life });
        }
    }

    fn wake(&mut self, server: ServerId) {
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it lives");
        if process.wake_due != self.now {
            return; // a later or earlier wake-up took this one's place
        }
        process.wake_due = u64::MAX;
        if host.clock.read(self.now).steady >= process.wake_at {
            self.deliver(server, Incoming::Tick);
        } else {
            self.schedule_wake(server);
        }
    }

    /// Makes sure that the server is woken when it wants to be.
    pub(crate) fn schedule_wake(&mut self, server: ServerId) {
        let host = &mut self.hosts[server.index()];
        let Some(process) = &mut host.process else { return };
        let at = host.clock.when(process.wake_at, self.now);
        if at < process.wake_due {
            process.wake_due = at;
            self.queue.put(at, Due::Wake { server, life: host.life });
        }
    }

    /// A server's process starts from what its disks hold.
    pub(crate) fn start(&mut self, server: ServerId) -> Verdict {
        if std::mem::take(&mut self.hosts[server.index()].emptied) {
            self.format_emptied(server);
        }
        let booted = self.boot(server);
        let booted = match booted {
            Ok(booted) => booted,
            Err(glue::NoStart::MediaLost(why)) => {
                note!(self, "{server} cannot start, its disk is formatted again: {why}");
                self.empty(server);
                self.hosts[server.index()].emptied = false;
                self.format_emptied(server);
                self.boot(server).expect("a formatted disk starts")
            }
        };
        let host = &mut self.hosts[server.index()];
        host.life += 1;
        (host.ending, host.written_out) = (None, false);
        host.process = Some(Box::new(Process::new(booted.node, booted.store, self.now)));
        note!(self, "{server} starts");
        self.saw_view_file(server)?;
        let host = &self.hosts[server.index()];
        let process = host.process.as_ref().expect("just started");
        let pulse = glue::pulse(&process.node, &host.clock, self.now, host.life);
        self.observer.booted(&pulse)?;
        self.deliver(server, Incoming::Tick);
        Ok(())
    }

    fn boot(&mut self, server: ServerId) -> Result<glue::Booted, glue::NoStart> {
        let host = &mut self.hosts[server.index()];
        let now = host.clock.read(self.now);
        let (store, ring) = (host.store.as_ref(), host.ring.clone());
        glue::boot(&self.profile, server, &mut host.disk, store, ring, host.suspects, now)
    }

    /// The observer looks at a server's view file.
    pub(crate) fn saw_view_file(&mut self, server: ServerId) -> Verdict {
        match glue::view_file(&self.hosts[server.index()].disk) {
            Some(durable) => self.observer.view_written(server, &durable),
            None => Ok(()),
        }
    }

    /// What a server's view file says.
    pub fn durable(&self, server: ServerId) -> Option<Durable> {
        glue::view_file(&self.hosts[server.index()].disk)
    }

    /// The highest view that any server durably formed, with its members.
    pub fn highest_formed(&self) -> (View, ServerSet) {
        let files = self.hosts.iter().filter_map(|host| glue::view_file(&host.disk));
        let formed = files.map(|durable| (durable.formed, durable.members));
        formed.max_by_key(|(view, _)| *view).unwrap_or_default()
    }

    /// What the world sees of a server now; `None` while it is down.
    pub fn pulse(&self, server: ServerId) -> Option<crate::properties::Pulse> {
        let host = &self.hosts[server.index()];
        let process = host.process.as_ref()?;
        Some(glue::pulse(&process.node, &host.clock, self.now, host.life))
    }

    /// The server that serves clients in the highest view, if one does.
    pub fn serving(&self) -> Option<ServerId> {
        let pulses = self.profile.shape.servers().filter_map(|server| self.pulse(server));
        let serving = pulses.filter(|pulse| pulse.serving);
        serving.max_by_key(|pulse| pulse.formed).map(|pulse| pulse.server)
    }

    /// A clean buffer.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }
}

fn draw_clock(profile: &Profile, rng: &mut Rng) -> Clock {
    let most = profile.clock_ppm_max;
    let ppm = rng.between(0, 2 * most) as i64 - most as i64;
    Clock::new(rng.between(1, 1000) * SECOND, ppm)
}

/// A calm world, for scripts.
pub fn calm(n: u8) -> World {
    World::new(Profile::calm(Wish::new(1, n, 0)))
}
