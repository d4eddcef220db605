//! The settings of one server's log.
//! Owns: what they must be, and how positions fall into segments.
//! Never: changes while a log is open.

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES};
use crate::record::RECORD_BYTES_MAX;
use crate::ring::Ring;

/// The settings of one server's log.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// Length of a segment: a power of two, at least 16 KiB, at most the ring's length.
    pub segment_bytes: u64,
    /// Segments on disk; together at least as long as the ring.
    pub segments_max: u64,
    /// The server's start counter (its incarnation's): above that of every earlier start on this disk, and
    /// durable before anything is written in it.
    pub start: u64,
    /// A rule broken on purpose: heads go on carrying the mark that an earlier start left. False in production.
    pub keeps_clean_mark: bool,
}

/// Start counters are below this, so that generations, and sums of them, never overflow.
pub(crate) const STARTS_MAX: u64 = 1 << 35;

impl LogSettings {
    pub(crate) fn check(&self, ring: &Ring) {
        assert!(self.segment_bytes.is_power_of_two(), "a segment's length is a power of two");
        assert!(self.segment_bytes >= 4 * BLOCK_BYTES, "a segment has at least four blocks");
        assert!(self.segment_bytes <= ring.len(), "a segment fits into the ring");
        assert!(self.disk_bytes() >= ring.len(), "the disk holds at least what the ring holds");
        assert!(self.start < STARTS_MAX, "start counters are below {STARTS_MAX}");
    }

    /// Whether a log in so many segments of this length is one of these settings: more of them may be allowed than
    /// when it was written, not fewer.
    pub fn allow(&self, segment_bytes: u64, segments_max: u64) -> bool {
        segment_bytes == self.segment_bytes && segments_max <= self.segments_max
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.segment_bytes * self.segments_max
    }

    /// The longest record that fits into a segment.
    pub(crate) fn record_bytes_max(&self) -> u64 {
        (self.segment_bytes - BATCH_HEADER_BYTES as u64).min(RECORD_BYTES_MAX as u64)
    }

    pub(crate) fn segment_floor(&self, pos: u64) -> u64 {
        pos & !(self.segment_bytes - 1)
    }

    pub(crate) fn segment_ceil(&self, pos: u64) -> u64 {
        pos.next_multiple_of(self.segment_bytes)
    }
}
