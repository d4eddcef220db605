//! One log: which records it has, where they lie in memory and on disk.
//! Owns: the index from ops to positions, the log's ends, its tag.
//! Never: writes a byte; `Log` does.
//! Invariant: records in memory are the newest ones, without a gap; groups cover `begin..=end`.

use crate::batch::BLOCK_BYTES;
use crate::record::Record;
use crate::ring::LogPos;

/// One log. A server has a current one, and at times a staged one that is to replace it.
#[derive(Debug)]
pub struct Body {
    #[allow(dead_code)]
    block: [u8; BLOCK_BYTES as usize],
}

impl Body {
    /// First op the log holds; `end() + 1` if it is empty.
    pub fn begin(&self) -> u64 {
        todo!()
    }

    /// Last op the log holds.
    pub fn end(&self) -> u64 {
        todo!()
    }

    /// Ops up to here are durable on this disk.
    pub fn durable(&self) -> u64 {
        todo!()
    }

    /// The log's number on this disk; never used again for another log.
    pub fn generation(&self) -> u64 {
        todo!()
    }

    /// The view the log is durably complete for, as the log's user numbers it. `None`: no vote.
    pub fn tag(&self) -> Option<u64> {
        todo!()
    }

    /// The members of the tag's view.
    pub fn members(&self) -> u8 {
        todo!()
    }

    /// The view whose log this one copies, while it is being built.
    pub fn source_view(&self) -> u64 {
        todo!()
    }

    /// Whether its records go to disk as they come.
    pub fn on_disk(&self) -> bool {
        todo!()
    }

    /// Checksum of the record before `begin()`, where known.
    pub fn begin_chain(&self) -> Option<u32> {
        todo!()
    }

    /// Checksum of the last record, where known.
    pub fn end_chain(&self) -> Option<u32> {
        todo!()
    }

    /// First op that lies in memory; `end() + 1` if none does.
    pub fn memory_begin(&self) -> u64 {
        todo!()
    }

    /// The record of `op`, if it lies in memory.
    pub fn record(&self, op: u64) -> Option<Record<'_>> {
        let _ = op;
        todo!()
    }

    /// The byte ranges of the ring that hold exactly the records from `from_op` on, up to `max_bytes`
    /// but at least one record. They are added to `out`, neighbours merged. Returns the last op held;
    /// `None` if `from_op` does not lie in memory.
    pub fn ranges(
        &self,
        from_op: u64,
        max_bytes: usize,
        out: &mut Vec<(LogPos, u32)>,
    ) -> Option<u64> {
        let _ = (from_op, max_bytes, out);
        todo!()
    }

    /// An extent on disk that holds `from_op` and what follows it: whole batches within one segment, up
    /// to `max_bytes` but at least the batches that hold `from_op`. Read it, then hand the bytes to
    /// [`crate::parse_extent`]. `None`: the log does not hold the op, or it is not written yet (then it
    /// lies in memory).
    pub fn disk_extent(&self, from_op: u64, max_bytes: usize) -> Option<(LogPos, u32)> {
        let _ = (from_op, max_bytes);
        todo!()
    }
}
