//! Group: two real nodes, a primary and a backup, led step by step without a world.
//! Owns: their turns, their clocks, one client's connection.
//! Never: changes a node but through its events.
//! Invariant: the same disks and the same requests give the same steps.
//! Source: ARCHITECTURE.md, "One turn of a server".

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use harp_fs::atime::AccessTimes;
use harp_fs::request::{Credential, HandleBytes, Request};
use harp_log::{DiskCommand, DiskDone, DiskRunner, Ring};
use harp_node::{
    ConnId, Durability, Event, Export, Node, Notice, Now, Output, Settings, StoreDone, StoreJob,
    Suspects, format_image, image_state,
};
use harp_store::{Limits, Store};
use harp_vr::{Nanos, Planted, Room, ServerId, Shape};
use harp_wire::{mount, nfs3, rpc};

use crate::disks::{DataOf, Disks, EngineOf, Machines};

pub const SEGMENT_BYTES: u64 = 32 << 10;
pub const SEGMENTS_MAX: u64 = 16;
const RING_BYTES: usize = 128 << 10;
const MILLI: u64 = 1_000_000;
/// Turns that anything may take.
const TURNS_MAX: u32 = 5_000;
/// The record mark before a call or reply.
const MARK_BYTES: usize = 4;

/// How a group goes about its work, where it is free to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// The primary's disk is slower than the backup: it writes when nothing else is to be done.
    pub primary_writes_last: bool,
    /// Checkpoints are carried out only when nothing else is to be done and another request was answered.
    pub checkpoints_wait: bool,
    /// A rule broken on purpose.
    pub planted: Option<Planted>,
}

thread_local! {
    /// Rings that no group uses any more. Like memory, they hold whatever was there before.
    static RINGS: RefCell<Vec<Ring>> = const { RefCell::new(Vec::new()) };
}

fn ring() -> Ring {
    RINGS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Ring::on_heap(RING_BYTES))
}

impl Drop for Group {
    fn drop(&mut self) {
        RINGS.with_borrow_mut(|rings| {
            rings.extend(self.servers.iter().map(|server| server.node.ring().clone()));
        });
    }
}

type OpenStore = Store<EngineOf, DataOf>;

enum Incoming {
    Frame(ServerId, Vec<u8>),
    Disk(DiskDone),
    Store(StoreDone),
    Opened,
    Call(Vec<u8>),
    Verify(u64),
    Room,
    Tick,
}

struct Server {
    node: Node,
    store: OpenStore,
    inbox: VecDeque<Incoming>,
    commands: VecDeque<DiskCommand>,
    jobs: VecDeque<StoreJob>,
    runner: DiskRunner,
    /// What its turns want done; kept for its memory.
    out: Output,
    wake_at: Nanos,
}

/// A group with its client.
pub struct Group {
    pub machines: Machines,
    manner: Manner,
    servers: [Server; 2],
    steady: u64,
    /// What the primary's clock shows; the client's requests move it.
    wall: u64,
    serving: Option<usize>,
    replies: Vec<Vec<u8>>,
    barrier: Option<u64>,
    digests: [Option<(u64, [u8; 32])>; 2],
    holding: bool,
    turns: u32,
    next_xid: u32,
}

fn settings(me: usize, planted: Option<Planted>) -> Settings {
    Settings {
        shape: Shape { n: 1 },
        me: ServerId(me as u8),
        group: *b"the crash points",
        handle_key: *b"a key of handles",
        durability: Durability::Disk,
        heartbeat: 20 * MILLI,
        failure_timeout: 100 * MILLI,
        lease: 50 * MILLI,
        clock_drift_ppm: 1_000,
        segment_bytes: SEGMENT_BYTES,
        segments_max: SEGMENTS_MAX,
        checkpoint_bytes: 1 << 30,
        image_part_bytes: 64 << 10,
        cache_bytes: 256 << 10,
        capacity_blocks: 1 << 20,
        access_times: AccessTimes::Off,
        export: Export::default(),
        nfs_port: 2049,
        lethal_xid: None,
        planted,
    }
}

fn limits() -> Limits {
    Limits { grow_blocks: 64, blocks_max: 1 << 16, ..Limits::default() }
}

/// Opens a store on disks that nobody else uses.
pub fn open_store(machines: &Machines, server: usize) -> Result<OpenStore, String> {
    let opened = OpenStore::open(machines.engine(server), machines.data(server), limits());
    Ok(opened.map_err(|error| format!("the image does not open: {error}"))?.store)
}

impl Group {
    /// Freshly formatted disks.
    pub fn format() -> [Disks; 2] {
        let machines = Machines::empty();
        for me in 0..2 {
            let (settings, engine) = (settings(me, None), machines.engine(me));
            let owner = harp_fs::key::RootOwner::default();
            format_image(&engine, &machines.data(me), &settings.group, owner, true)
                .expect("an empty engine takes a format");
            Node::format(&settings, 0, true, &mut machines.log(me)).expect("so does an empty disk");
        }
        [machines.disks_of(0), machines.disks_of(1)]
    }

    /// Both servers start from their disks and form a view. The clock shows `wall`.
    ///
    /// Errors: what keeps them from it.
    pub fn start(machines: Machines, manner: Manner, wall: u64) -> Result<Group, String> {
        let now = Now { steady: Nanos(MILLI), wall };
        let boot = |me: usize| -> Result<Server, String> {
            let store = open_store(&machines, me)?;
            let image = image_state(&store).map_err(|error| error.to_string())?;
            let (settings, ring) = (settings(me, manner.planted), ring());
            let node = Node::boot(
                settings,
                &mut machines.log(me),
                Some(image),
                ring,
                Suspects::default(),
                || now,
            );
            Ok(Server {
                node: node.map_err(|error| error.to_string())?,
                store,
                inbox: VecDeque::from([Incoming::Room, Incoming::Tick]),
                commands: VecDeque::new(),
                jobs: VecDeque::new(),
                runner: DiskRunner::default(),
                out: Output::default(),
                wake_at: Nanos(0),
            })
        };
        let servers = [boot(0)?, boot(1)?];
        let mut group = Group {
            machines,
            manner,
            servers,
            steady: MILLI,
            wall,
            serving: None,
            replies: Vec::new(),
            barrier: None,
            digests: [None; 2],
            holding: false,
            turns: 0,
            next_xid: 1,
        };
        group.until("a view serves", |group| group.serving.is_some())?;
        group.serving_server().inbox.push_back(Incoming::Opened);
        Ok(group)
    }

    fn serving_server(&mut self) -> &mut Server {
        &mut self.servers[self.serving.expect("a view serves")]
    }

    /// Goes on until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Group) -> bool) -> Result<(), String> {
        self.turns = 0;
        loop {
            while self.work()? {}
            if done(self) {
                return Ok(());
            }
            let wake_at = self.servers.iter().map(|server| server.wake_at.0).min();
            self.steady = self.steady.max(wake_at.expect("two servers"));
            for server in &mut self.servers {
                if server.wake_at.0 <= self.steady {
                    server.inbox.push_back(Incoming::Tick);
                }
            }
            if self.turns > TURNS_MAX {
                let states = [0, 1].map(|server| self.status(server).state);
                return Err(format!("it does not happen that {what}: {states:?}"));
            }
        }
    }

    /// Does one thing that is to be done, if there is one.
    fn work(&mut self) -> Result<bool, String> {
        for server in 0..2 {
            if !self.servers[server].inbox.is_empty() {
                self.turn(server)?;
                return Ok(true);
            }
            let waits = self.manner.primary_writes_last && server == 0;
            if !waits && self.command(server) {
                return Ok(true);
            }
        }
        Ok(self.command(0) || (0..2).any(|server| self.job(server)))
    }

    fn command(&mut self, server: usize) -> bool {
        let Server { commands, runner, node, inbox, .. } = &mut self.servers[server];
        let Some(command) = commands.pop_front() else { return false };
        let done = runner.run(command, &mut self.machines.log(server), node.ring());
        inbox.push_back(Incoming::Disk(done));
        true
    }

    fn job(&mut self, server: usize) -> bool {
        let Server { jobs, store, node, inbox, .. } = &mut self.servers[server];
        let held = |job: &StoreJob| self.holding && !job.is_short();
        let Some(next) = jobs.iter().position(|job| !held(job)) else { return false };
        let job = jobs.remove(next).expect("its place was just found");
        inbox.push_back(Incoming::Store(job.run(store, node.ring(), &|| ())));
        true
    }

    fn now(&self) -> Now {
        Now { steady: Nanos(self.steady), wall: self.wall }
    }

    fn turn(&mut self, me: usize) -> Result<(), String> {
        self.turns += 1;
        let (now, conn) = (self.now(), ConnId(1));
        let server = &mut self.servers[me];
        let mut out = std::mem::take(&mut server.out);
        for what in std::mem::take(&mut server.inbox) {
            let event = match &what {
                Incoming::Frame(from, frame) => Event::Peer { from: *from, frame },
                Incoming::Opened => {
                    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
                    Event::ConnOpened { conn, address, port: 700 }
                }
                Incoming::Call(call) => Event::Call { conn, call: &call[MARK_BYTES..] },
                Incoming::Verify(token) => Event::Verify { token: *token },
                Incoming::Room => Event::Space { room: Room::ENDLESS },
                Incoming::Tick => Event::Tick,
                Incoming::Disk(_) | Incoming::Store(_) => {
                    let event = match what {
                        Incoming::Disk(done) => Event::Disk(done),
                        Incoming::Store(done) => Event::Store(done),
                        _ => unreachable!("matched above"),
                    };
                    server.node.step(now, event, &mut out);
                    continue;
                }
            };
            server.node.step(now, event, &mut out);
        }
        server.node.finish(now, &mut out);
        server.wake_at = out.wake_at;
        server.commands.extend(out.disk.drain(..));
        server.jobs.extend(out.jobs.drain(..));
        if !out.replies.is_empty() {
            // One request is open at a time, and it is the log's last.
            self.machines.answered(server.node.log().current().end());
        }
        for reply in &out.replies {
            self.replies.push(out.bytes[reply.bytes.clone()][MARK_BYTES..].to_vec());
        }
        for notice in &out.notices {
            match notice {
                Notice::Serving { .. } => self.serving = Some(me),
                Notice::Stopped { .. } => return Err("the view ends".into()),
                Notice::Fatal { why } => return Err(format!("server {me} ends: {why}")),
                Notice::Barrier { op, .. } => self.barrier = *op,
                Notice::Digest { op, digest } => {
                    let digest = digest.clone().map_err(|why| format!("no digest: {why}"))?;
                    self.digests[me] = Some((*op, digest));
                }
                _ => {}
            }
        }
        let other = 1 - me;
        for frame in out.frames.iter().filter(|frame| frame.to.index() == other) {
            let mut bytes = out.bytes[frame.head.clone()].to_vec();
            for (at, len) in &out.ranges[frame.body.clone()] {
                bytes.extend_from_slice(self.servers[me].node.ring().bytes(*at, *len));
            }
            self.servers[other].inbox.push_back(Incoming::Frame(ServerId(me as u8), bytes));
        }
        out.clear();
        self.servers[me].out = out;
        Ok(())
    }

    /// What `harp status` would show of a server.
    pub fn status(&self, server: usize) -> harp_node::NodeStatus {
        self.servers[server].node.status(self.now())
    }

    /// The serving node.
    pub fn primary(&self) -> &Node {
        &self.servers[self.serving.expect("a view serves")].node
    }

    /// The last op of the primary's log.
    pub fn end(&self) -> u64 {
        self.primary().log().current().end()
    }

    /// Sends a call and waits for the reply.
    pub fn call(&mut self, call: &[u8]) -> Result<Vec<u8>, String> {
        self.replies.clear();
        self.serving_server().inbox.push_back(Incoming::Call(call.to_vec()));
        self.until("the call is answered", |group| !group.replies.is_empty())?;
        Ok(self.replies.remove(0))
    }

    /// The next request's call, from the superuser; the clock shows `wall` from then on.
    pub fn encode(&mut self, request: &Request<'_>, wall: u64) -> (u32, Vec<u8>) {
        self.wall = wall;
        let mut call = Vec::new();
        let xid = self.xid();
        let procedure = nfs3::procedure_of(request);
        let auth = root();
        let mark = rpc::begin_call(xid, nfs3::PROGRAM, nfs3::VERSION, procedure, &auth, &mut call);
        nfs3::encode_args(request, &mut call);
        rpc::finish(mark, &mut call);
        (procedure, call)
    }

    fn xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid
    }

    /// The root's handle.
    pub fn mount(&mut self) -> Result<HandleBytes, String> {
        let (mut call, xid) = (Vec::new(), self.xid());
        let (program, version) = (mount::PROGRAM, mount::VERSION);
        let mark = rpc::begin_call(xid, program, version, mount::proc::MNT, &root(), &mut call);
        mount::encode_args(&mount::Request::Mnt { path: b"/" }, &mut call);
        rpc::finish(mark, &mut call);
        let reply = self.call(&call)?;
        let mounted = mount::decode_mounted(results(&reply)?).map_err(|e| format!("{e:?}"))?;
        mounted.map_err(|status| format!("no mount: {status}"))
    }

    /// Calls and decodes the results.
    pub fn ask(
        &mut self,
        request: &Request<'_>,
    ) -> Result<(harp_fs::request::Response, Vec<u8>), String> {
        let (procedure, call) = self.encode(request, self.wall);
        let reply = self.call(&call)?;
        let decoded = nfs3::decode_body(procedure, results(&reply)?);
        let decoded = decoded.map_err(|error| format!("an unreadable reply: {error:?}"))?;
        Ok((decoded.response, decoded.data.to_vec()))
    }

    /// Every copy's image is brought to the log's end and digested; the digests must be equal.
    pub fn checkpoint(&mut self) -> Result<[u8; 32], String> {
        self.start_checkpoint()?;
        self.finish_checkpoint()
    }

    /// A barrier is logged. What it asks of the stores waits if that is the group's manner.
    pub fn start_checkpoint(&mut self) -> Result<(), String> {
        self.barrier = None;
        self.holding = self.manner.checkpoints_wait;
        self.serving_server().inbox.push_back(Incoming::Verify(1));
        self.until("the barrier is logged", |group| group.barrier.is_some())
    }

    /// The stores do what the barrier asked.
    pub fn finish_checkpoint(&mut self) -> Result<[u8; 32], String> {
        self.holding = false;
        let barrier = self.barrier.expect("a checkpoint was begun");
        let there = |digest: &Option<(u64, [u8; 32])>| digest.is_some_and(|d| d.0 == barrier);
        self.until("both copies digest", |group| group.digests.iter().all(there))?;
        let [one, other] = self.digests.map(|digest| digest.expect("waited for").1);
        if one != other {
            return Err(format!("the copies differ at op {barrier}"));
        }
        Ok(one)
    }

    /// Checks every checksum in both images.
    pub fn scrub(&self) -> Result<(), String> {
        for server in &self.servers {
            let mut damage = None;
            let report = server.store.scrub(&mut |found| damage = Some(found));
            let report = report.map_err(|error| error.to_string())?;
            if report.damaged > 0 {
                return Err(format!("{} places are damaged: {damage:?}", report.damaged));
            }
        }
        Ok(())
    }

    /// Lets time pass until nothing of the log is unknown to its disk.
    pub fn rest(&mut self) -> Result<(), String> {
        let until = self.steady + 60 * MILLI;
        self.until("time passes", |group| group.steady >= until)
    }
}

fn root() -> rpc::Auth<'static> {
    rpc::Auth::Sys(Credential { uid: 0, gid: 0, groups_be: &[] })
}

/// The results in a reply.
pub fn results(reply: &[u8]) -> Result<&[u8], String> {
    let reply = rpc::decode_reply(reply).map_err(|error| format!("no reply: {error:?}"))?;
    reply.outcome.map_err(|refusal| format!("refused: {refusal:?}"))
}
