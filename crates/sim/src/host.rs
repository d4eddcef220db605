//! One server: a machine with disks and clocks, and at times a process on it.
//! Owns: the process's queues, and what survives it.
//! Never: decides when something happens; the world does.
//! Invariant: `life` counts up with every start and every end, so that what belonged to an ended
//! process is void.

use std::collections::VecDeque;

use harp_node::log::{DiskCommand, DiskDone, DiskRunner, Ring};
use harp_node::vr::{Nanos, Order, ServerId};
use harp_node::{ConnId, LookedUp, Node, Output, Power, StoreDone, StoreJob, Suspects};

use crate::clock::Clock;
use crate::disk::SimLogDisk;
use crate::glue::{OpenStore, StoreHost};
use crate::profile::Profile;

/// Store threads: fetches on the first, checkpoints and digests on the second.
pub const LANES: usize = 2;

/// Something that waits for a server's loop.
#[derive(Debug)]
pub enum Incoming {
    /// A message, by its place in the mail room.
    Frame(u32),
    /// Calls on a connection, record marks included.
    Calls(u32, Vec<u8>),
    /// A client connected.
    Opened(u32),
    /// A client's connection ended.
    Closed(u32),
    /// A disk command was carried out.
    Disk(DiskDone),
    /// A store job was carried out.
    Store(StoreDone),
    /// What the user database says of a user.
    Groups(u32, LookedUp),
    /// Time passed.
    Tick,
    /// What the machine runs on changed.
    Power(Power),
    /// The operator asks for a barrier.
    Verify(u64),
    /// The operator orders an override.
    Override(Order),
}

/// What dies with a process.
pub struct Process {
    /// The server's logic.
    pub node: Node,
    /// Its store, if it is a copy.
    pub store: Option<OpenStore>,
    /// What its turns want done; kept for its memory.
    pub out: Output,
    /// What waits for the next turn.
    pub inbox: Vec<Incoming>,
    /// Disk commands, the one under way first.
    pub commands: VecDeque<DiskCommand>,
    /// Carries them out.
    pub runner: DiskRunner,
    /// Store jobs, the one under way first.
    pub lanes: [VecDeque<StoreJob>; LANES],
    /// When its next turn is due.
    pub turn_at: Option<u64>,
    /// It cannot take a turn before this.
    pub busy_until: u64,
    /// When it wants to be woken, by its own clock.
    pub wake_at: Nanos,
    /// When a wake-up is due at the earliest, in true time.
    pub wake_due: u64,
    /// Its commit point at its last turn.
    pub cp: u64,
    /// Its LB before its last turn, and after it; `None` without a whole image.
    pub images: (Option<u64>, Option<u64>),
    /// Up to here the observer has seen the records it counts as committed.
    pub counted: u64,
    /// Turns in a row to which nothing woke it but itself, that wanted nothing done but the next one at once.
    pub spins: u32,
    /// It dies at the end of its next turn, in the middle of what the turn wanted done.
    pub dies_next_turn: bool,
    /// Its next turn takes this much longer between computing and letting go.
    pub stalls_next_turn: u64,
}

impl Process {
    /// A process whose node has just booted at `now`.
    pub fn new(node: Node, store: Option<OpenStore>, now: u64) -> Process {
        Process {
            node,
            store,
            out: Output::default(),
            inbox: Vec::new(),
            commands: VecDeque::new(),
            runner: DiskRunner::default(),
            lanes: Default::default(),
            turn_at: None,
            busy_until: now,
            wake_at: Nanos(0),
            wake_due: u64::MAX,
            cp: 0,
            images: (None, None),
            counted: 0,
            spins: 0,
            dies_next_turn: false,
            stalls_next_turn: 0,
        }
    }
}

/// A server's machine.
pub struct Host {
    /// Which server.
    pub id: ServerId,
    /// Counts starts and ends of its process.
    pub life: u32,
    /// The process, while one runs. In a box, for every turn takes it out and puts it back.
    pub process: Option<Box<Process>>,
    /// The log disk.
    pub disk: SimLogDisk,
    /// The store's disk, at a copy.
    pub store: Option<StoreHost>,
    /// The clocks.
    pub clock: Clock,
    /// What the last process left behind for the next one.
    pub suspects: Suspects,
    /// Memory of the record ring. Where records count there it outlives the process, and not the machine.
    pub ring: Ring,
    /// How many rings there were.
    pub rings: u64,
    /// Its process was told to write its log out; whether the machine goes off then.
    pub ending: Option<bool>,
    /// Its log was written out whole, and it did not start since.
    pub written_out: bool,
    /// Disk commands take this many times longer.
    pub disk_slowness: u64,
    /// Turns take this many times longer.
    pub turn_slowness: u64,
    /// It stays down until the faults end.
    pub stays_down: bool,
    /// Its disk must be formatted as an emptied server's before it starts.
    pub emptied: bool,
}

impl Host {
    /// A machine with empty disks.
    pub fn new(id: ServerId, profile: &Profile, clock: Clock) -> Host {
        Host {
            id,
            life: 0,
            process: None,
            disk: profile.log_disk(),
            store: profile.shape.is_copy(id).then(|| StoreHost::new(profile.store_blocks)),
            clock,
            suspects: Suspects::default(),
            ring: profile.ring(id, 1),
            rings: 1,
            ending: None,
            written_out: false,
            disk_slowness: 1,
            turn_slowness: 1,
            stays_down: false,
            emptied: false,
        }
    }

    /// Whether a process runs.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }
}

/// A connection's number, as a node knows it.
pub fn conn_id(conn: u32) -> ConnId {
    ConnId(conn as u64)
}

/// The number of a connection that a node names.
pub fn conn_number(conn: ConnId) -> u32 {
    u32::try_from(conn.0).expect("the world numbered it")
}
