//! Recovery: from a disk's bytes to a log, and whether it is intact.
//! Owns: the walk over the batches, and telling a torn tail from damage.
//! Never: repairs damage; a log that is not intact is only ever replaced.
//! Invariant: everything that was durable is in a log found intact, and nothing that was not appended.
//! Source: DESIGN rule 3; `docs/disk-format-log.md`.

use crate::disk::{DiskError, LogDisk};
use crate::log::{Log, LogSettings};
use crate::ring::{LogPos, Ring};

/// Why a log is not intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AmnesiaWhy {
    /// There is no head at all.
    HeadMissing,
    /// There are head slots, and none is valid.
    HeadInvalid,
    /// The head was written with other segments than the settings name.
    Geometry {
        /// Segment length in the head.
        segment_bytes: u64,
        /// Number of segments in the head.
        segments_max: u64,
    },
    /// Part of the log cannot be read.
    Unreadable(DiskError),
    /// Bytes below a place up to which the log was durable are damaged.
    Damaged {
        /// First place that does not validate.
        at: LogPos,
        /// Up to where the log is known to have been durable.
        mark: LogPos,
    },
}

/// Whether the log is intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything this server ever made durable is there.
    Intact,
    /// It is not known to be; the log is empty and must be [`Log::reset`].
    Amnesia(AmnesiaWhy),
}

/// What recovery found.
#[derive(Debug)]
pub struct Recovered {
    /// The log. All of it is durable.
    pub log: Log,
    /// Whether it may be trusted.
    pub verdict: Verdict,
    /// The highest commit point that a batch header named; 0 if none did.
    pub cp_known: u64,
    /// Where a torn tail was cut off, if there was one.
    pub cut: Option<LogPos>,
}

/// Reads the log back. An error means a write or sync failed: a crash (rule 8).
pub fn recover(
    disk: &mut dyn LogDisk,
    ring: Ring,
    settings: LogSettings,
) -> Result<Recovered, DiskError> {
    let _ = (disk, ring, settings);
    todo!()
}
