//! How far is explored.
//! Owns: the group's shape and settings, and how often each thing may happen.
//! Never: bounds how often a message is delivered, or how late.

use harp_vr::{Nanos, Planted, ServerId, Settings, Shape};

/// Now, at every server and always: what passes is what was waited for.
pub const NOW: Nanos = Nanos(1_000_000);
/// A lease; it lives until the explorer ends it.
const LEASE: u64 = 900;
/// Silence after which a server counts as failed.
const FAILURE_TIMEOUT: u64 = 40;
/// No link stays silent longer.
const HEARTBEAT: u64 = 5;

/// When a record counts as held, and what a crash leaves of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on disk. A crash may take what is not.
    Disk,
    /// When it is in memory, which a soft crash leaves alone.
    Ups,
}

/// What time does to leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leases {
    /// All run out together, whenever and as often as it may be.
    End,
    /// Nobody waits for one, and no primary loses its own: whatever leases delay may happen at any time. Reads
    /// are not judged then.
    Ignored,
}

/// When a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// In the turn that asks for it; a crash may come before any of them.
    AtOnce,
    /// Whenever, and anything may come between.
    Apart,
}

/// When an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// In the step that asks, or never: promises to their coordinator, records to whoever wants them. A presence
    /// is heard as its sender is then.
    AtOnce,
    /// By mail, like everything else.
    Late,
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many failures the group rides out.
    pub n: u8,
    /// The group's durability.
    pub durability: Durability,
    /// Records that primaries log for clients.
    pub ops: u8,
    /// View changes that are tried after the group serves in its first view.
    pub views: u8,
    /// Crashes that leave the disk: soft ones, and ones that cost the log (amnesia).
    pub crashes: u8,
    /// Crashes that cost the disk.
    pub media_losses: u8,
    /// Checkpoints that copies make.
    pub checkpoints: u8,
    /// What time does to leases.
    pub leases: Leases,
    /// When writes are done.
    pub writes: Writes,
    /// When answers come.
    pub answers: Answers,
    /// Whether servers outside of the running view catch up.
    pub catch_up: bool,
    /// A rule broken on purpose.
    pub planted: Option<Planted>,
}

impl Bounds {
    /// Nothing happens but the first view.
    pub fn none(n: u8, durability: Durability) -> Bounds {
        Bounds {
            n,
            durability,
            ops: 0,
            views: 0,
            crashes: 0,
            media_losses: 0,
            checkpoints: 0,
            leases: Leases::End,
            writes: Writes::AtOnce,
            answers: Answers::AtOnce,
            catch_up: true,
            planted: None,
        }
    }

    /// The group's shape.
    pub fn shape(&self) -> Shape {
        Shape { n: self.n }
    }

    /// The settings of the server `me`.
    pub fn settings(&self, me: ServerId) -> Settings {
        Settings {
            shape: self.shape(),
            me,
            heartbeat: HEARTBEAT,
            failure_timeout: FAILURE_TIMEOUT,
            lease: LEASE,
            clock_drift_ppm: 0,
            ack_received: self.durability == Durability::Ups,
            planted: self.planted,
        }
    }
}
