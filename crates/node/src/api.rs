//! What goes into a node and what comes out: the whole contract with the world around it.
//! Owns: events, outputs, settings. The program and the simulator are the two worlds.
//! Never: does I/O; a node only names what is to be done.
//! Invariant: a world delivers completions of [`Output::disk`] in order, and completions of
//! [`Output::jobs`] and [`Output::users`] in any order, each exactly once.

use std::net::IpAddr;

use harp_log::{DiskCommand, DiskDone, LogPos};
use harp_vr::{Nanos, Order, OverrideAnswer, Room, ServerId, Shape, View};

use crate::export::Export;
use crate::halt::Suspects;
use crate::jobs::{StoreDone, StoreJob};
use crate::users::LookedUp;

/// What the clocks show. `steady` runs during suspend and never goes back; `wall` may do anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Nanoseconds of the steady clock.
    pub steady: Nanos,
    /// Nanoseconds since 1970.
    pub wall: u64,
}

/// A client connection as the world numbers it; never reused within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// When a record counts as held by a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the member's disk.
    Disk,
    /// When it is in memory that outlives the process.
    Ups,
}

/// What a server's machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// The mains.
    Mains,
    /// A battery that lasts for a while: all goes on, and what is in memory alone is written as it can be.
    Battery,
    /// It will not be on for long, or the server is to end: the log is written out and the server falls silent.
    Ending,
}

/// The settings of one server. Times are in nanoseconds, sizes in bytes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The group's shape.
    pub shape: Shape,
    /// Which server this is.
    pub me: ServerId,
    /// The group's identity, the same on every server for ever.
    pub group: [u8; 16],
    /// The key of file handles, made at format.
    pub handle_key: [u8; 16],
    /// When records count as held.
    pub durability: Durability,
    /// A primary lets no link stay silent longer than this.
    pub heartbeat: u64,
    /// Silence after which a server counts as failed.
    pub failure_timeout: u64,
    /// How long a member promises not to help another primary; below `failure_timeout`.
    pub lease: u64,
    /// By how much two clocks may differ in rate, in parts per million.
    pub clock_drift_ppm: u64,
    /// Length of one log segment; divides the ring's length.
    pub segment_bytes: u64,
    /// Segments a log may have on disk.
    pub segments_max: u64,
    /// Dirty bytes (log pinned and memory) at which a checkpoint starts at the latest.
    pub checkpoint_bytes: u64,
    /// A part of an image that another copy loads ends at the first row or stretch that brings it to this length.
    pub image_part_bytes: usize,
    /// Memory of the cache of clean objects.
    pub cache_bytes: u64,
    /// Blocks of 4,096 bytes the file system may hold.
    pub capacity_blocks: u64,
    /// When reading an object changes its access time.
    pub access_times: harp_fs::atime::AccessTimes,
    /// Who may use the file system, and as whom.
    pub export: Export,
    /// The port that portmap names for NFS and MOUNT.
    pub nfs_port: u16,
    /// A fault of the software: a process that applies the record of the request with this transaction id, and
    /// did not plan it, dies. Always `None` in production.
    pub lethal_xid: Option<u32>,
    /// A rule broken on purpose, to see that the checkers find it. Always `None` in production.
    pub planted: Option<harp_vr::Planted>,
}

/// Something happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Time passed. Delivered at the latest when [`Output::wake_at`] is reached.
    Tick,
    /// A client connected from `address`.
    ConnOpened {
        /// The new connection.
        conn: ConnId,
        /// The client's address (the original one, when relayed).
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// A client connection ended; no more replies for it.
    ConnClosed {
        /// Which.
        conn: ConnId,
    },
    /// One whole RPC call, without its record mark.
    Call {
        /// From whom.
        conn: ConnId,
        /// The bytes, valid during the call only.
        call: &'a [u8],
    },
    /// One whole frame from a peer, as that peer's [`Frame`] gave it.
    Peer {
        /// Who sent it, as the link's handshake established.
        from: ServerId,
        /// The bytes, valid during the call only.
        frame: &'a [u8],
    },
    /// A command of [`Output::disk`] was carried out.
    Disk(DiskDone),
    /// A job of [`Output::jobs`] was carried out.
    Store(StoreDone),
    /// A user of [`Output::users`] was looked up, or could not be.
    Groups {
        /// Who.
        uid: u32,
        /// What the server's user database says.
        answer: LookedUp,
    },
    /// What this server has room for now, measured a few times a second.
    Space {
        /// At a copy, [`crate::image_room`].
        room: Room,
    },
    /// What the machine runs on changed. After [`Power::Ending`] nothing leaves any more; [`Notice::WrittenOut`]
    /// follows.
    Power(Power),
    /// An operator orders an override, or asks what one would do; see [`Notice::Overridden`].
    Override(Order),
    /// The operator asks that all copies checkpoint and digest at one op; see [`Notice::Barrier`].
    Verify {
        /// Comes back in the notice.
        token: u64,
    },
}

/// A frame for a peer: `head` bytes from [`Output::bytes`], then ranges of the ring.
///
/// The world prefixes whatever framing its links need and delivers head and body as one piece.
/// It copies what it cannot send at once: the ring's bytes are sure only until the next event.
#[derive(Clone, Debug)]
pub struct Frame {
    /// To whom.
    pub to: ServerId,
    /// Where the head lies in [`Output::bytes`].
    pub head: std::ops::Range<usize>,
    /// Ranges of the ring that follow the head, as indexes into [`Output::ranges`].
    pub body: std::ops::Range<usize>,
}

/// Bytes for a client: one whole RPC reply with its record mark, in [`Output::bytes`].
#[derive(Clone, Debug)]
pub struct Reply {
    /// To whom.
    pub conn: ConnId,
    /// Where the bytes lie in [`Output::bytes`].
    pub bytes: std::ops::Range<usize>,
}

/// Something an operator or the supervisor wants to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub enum Notice {
    /// This server is primary and serves: client connections may come here.
    Serving { view: View },
    /// It no longer is: client connections are to be reset.
    Stopped { view: View },
    /// A view formed here.
    Formed { view: View, members: harp_vr::ServerSet, primary: ServerId },
    /// A member's answer to [`Event::Verify`]: copies will digest at `op`. `None`: not primary.
    Barrier { token: u64, op: Option<u64> },
    /// This copy's digest at the barrier `op`.
    Digest { op: u64, digest: Result<[u8; 32], String> },
    /// What became of an operator's order.
    Overridden { token: u64, answer: OverrideAnswer },
    /// No view can form; which predicate of rule 2 fails and whom to bring back.
    Refusing { why: String },
    /// This server must stop (rule 8): a write or sync failed. The world ends the process.
    Fatal { why: String },
    /// The log is whole on the disk up to op `end`, and marked so: the process may end, and its memory go.
    WrittenOut { end: u64 },
    /// Something worth a line in the log.
    Remark { text: String },
}

/// What a step wants done. The world clears it after carrying it out, keeping its capacity.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes that replies and frame heads point into.
    pub bytes: Vec<u8>,
    /// Ring ranges that frame bodies point into.
    pub ranges: Vec<(LogPos, u32)>,
    /// Replies to clients, in order.
    pub replies: Vec<Reply>,
    /// Frames to peers, in order per peer.
    pub frames: Vec<Frame>,
    /// Commands for the log's disk, in order.
    pub disk: Vec<DiskCommand>,
    /// Jobs for the store's threads: fetches on one, checkpoints and digests on another.
    pub jobs: Vec<StoreJob>,
    /// Users whose groups are to be looked up, each once until the answer: [`Event::Groups`]. It may take its time.
    pub users: Vec<u32>,
    /// Connections to stop reading (`true`) or to read again (`false`).
    pub hold: Vec<(ConnId, bool)>,
    /// Connections to end: they do not speak RPC.
    pub close: Vec<ConnId>,
    /// For people and the supervisor.
    pub notices: Vec<Notice>,
    /// What this server's next process finds, should this one die; carried out before the next event.
    pub remember: Option<Suspects>,
    /// Deliver [`Event::Tick`] no later than this.
    pub wake_at: Nanos,
}

impl Output {
    /// Empties it, keeping memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ranges.clear();
        self.replies.clear();
        self.frames.clear();
        self.disk.clear();
        self.jobs.clear();
        self.users.clear();
        self.hold.clear();
        self.close.clear();
        self.notices.clear();
        self.remember = None;
    }
}

/// What `harp status` shows of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub struct NodeStatus {
    pub me: ServerId,
    pub role: &'static str,
    pub state: String,
    pub promised: View,
    pub formed: View,
    pub members: harp_vr::ServerSet,
    pub primary: Option<ServerId>,
    pub fp: u64,
    pub cp: u64,
    pub ap: u64,
    pub lb: u64,
    pub glb: u64,
    /// Nanoseconds of lease left at the primary.
    pub lease_left: u64,
    /// Whether this server is primary and serves.
    pub serving: bool,
    /// Bytes of log between GLB and the end.
    pub log_bytes: u64,
    /// Bytes of it that count and are in memory alone; about.
    pub unwritten_bytes: u64,
    /// First op of the log.
    pub log_begin: u64,
    /// Last op of the server's own log, and whether that may be voted.
    pub log_end: u64,
    pub votes: bool,
    /// Whether a copy's image is whole.
    pub whole: bool,
    /// Whether the server's disk counts, as far as it knows.
    pub admitted: bool,
    /// The newest override of the history that it follows.
    pub overridden: harp_vr::Override,
    /// The newest digest: op and result.
    pub digest: Option<(u64, Result<[u8; 32], String>)>,
    /// What became of damaged blocks.
    pub repair: RepairStatus,
}

/// Damaged blocks of a copy's image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairStatus {
    /// Blocks known to be damaged, which are being fetched from another copy.
    pub damaged: u64,
    /// Those that no other copy has, for all that is known.
    pub lost: u64,
    /// Blocks mended since the process began.
    pub mended: u64,
    /// The last of them, in words.
    pub last_mended: Option<String>,
}
