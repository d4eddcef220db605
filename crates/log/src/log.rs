//! The log of one server: appends, batches, durability, trimming.
//! Owns: the ring's writing end, what is written and what is durable, the head.
//! Never: does I/O; it hands out [`DiskCommand`]s and is told of their completion.
//! Invariant: no byte is overwritten, in the ring or on disk, that is pinned, unwritten, or covered by
//! the durable head.
//! Source: DESIGN rules 2, 3, 5, 8 and 10, section 7.

use crate::body::Body;
use crate::disk::{DiskCommand, DiskDone};
use crate::head::HEAD_EXTRA_BYTES;
use crate::record::{BadRecord, RawRecord, Record};
use crate::ring::{LogPos, Ring};

/// The settings of one server's log.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// Length of a segment: a power of two, at least 16 KiB, at most the ring's length.
    pub segment_bytes: u64,
    /// Segments on disk; together at least as long as the ring.
    pub segments_max: u64,
    /// The server's start counter (its incarnation's): above that of every earlier start on this disk, and
    /// durable before the log is opened.
    pub start: u64,
}

/// Why nothing can be appended now. Nothing was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFull {
    /// The ring holds pinned or unwritten records up to the end.
    Ring,
    /// The segments hold records that are still needed.
    Disk,
}

/// Why a peer's record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// It is not the next record.
    Bad(BadRecord),
    /// There is no room.
    Full(LogFull),
}

/// Whether there is room to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Ok,
    /// Not in the ring, until what is pinned or unwritten is freed.
    RingFull,
    /// Not on disk, until the log is trimmed and the head written.
    DiskFull,
}

/// What a completion changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The durable op of the growing log advanced.
    pub durable: bool,
    /// A tag, swap or reset became durable: the sequence that the call returned.
    pub head: Option<u64>,
}

/// The log of one server.
#[derive(Debug)]
pub struct Log {
    current: Body,
}

impl Log {
    /// A new, empty log whose first record will be `begin_op`; untagged. For a disk being formatted.
    pub fn format(
        ring: Ring,
        settings: LogSettings,
        begin_op: u64,
        out: &mut Vec<DiskCommand>,
    ) -> Log {
        let _ = (ring, settings, begin_op, out);
        todo!()
    }

    /// The log that votes when tagged.
    pub fn current(&self) -> &Body {
        &self.current
    }

    /// The log being built to replace the current one.
    pub fn staged(&self) -> Option<&Body> {
        todo!()
    }

    /// The log that appends go to: the staged one if there is one.
    pub fn growing(&self) -> &Body {
        todo!()
    }

    /// The record of `op` in the growing log, if it lies in memory.
    pub fn record(&self, op: u64) -> Option<Record<'_>> {
        self.growing().record(op)
    }

    /// [`Body::ranges`] of the growing log.
    pub fn ranges(
        &self,
        from_op: u64,
        max_bytes: usize,
        out: &mut Vec<(LogPos, u32)>,
    ) -> Option<u64> {
        self.growing().ranges(from_op, max_bytes, out)
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        todo!()
    }

    /// Room for the body of the next record, at most `body_max` bytes
    /// ([`crate::RECORD_BODY_BYTES_MAX`]), in place. Given up silently if not finished.
    pub fn begin_record(&mut self, body_max: usize) -> Result<&mut [u8], LogFull> {
        let _ = body_max;
        todo!()
    }

    /// Completes the record begun last with the first `body_len` bytes of its body. Returns its op.
    pub fn finish_record(&mut self, kind: u8, view: u64, time: u64, body_len: usize) -> u64 {
        let _ = (kind, view, time, body_len);
        todo!()
    }

    /// Appends a record as a peer sent it. Returns its op.
    pub fn append_raw(&mut self, record: &RawRecord<'_>) -> Result<u64, AppendError> {
        let _ = record;
        todo!()
    }

    /// Closes the open batch and hands out what is unwritten, unless a write is under way; the group
    /// commit. `cp` is the commit point known. Also writes the head when trimming makes it due. Returns
    /// whether a write was handed out. Call it once at the end of each step.
    pub fn seal(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> bool {
        let _ = (cp, out);
        todo!()
    }

    /// Whether records are durable that no durable batch's mark covers yet (rule 3). If that lasts for 10 ms,
    /// call [`Log::seal_mark`].
    pub fn mark_due(&self) -> bool {
        todo!()
    }

    /// Writes an empty batch, whose mark covers what is durable. Does nothing unless it is due.
    pub fn seal_mark(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> bool {
        let _ = (cp, out);
        todo!()
    }

    /// Takes note of a completion. A failure changes nothing here: it is a crash, the caller's business.
    pub fn on_disk(&mut self, done: &DiskDone) -> Progress {
        let _ = done;
        todo!()
    }

    /// Begins a staged log at `begin_op`, dropping one there may be. `chain`: checksum of the record before
    /// `begin_op`, where known. `on_disk`: whether records are written as they come (without syncs, until
    /// the swap) or stay in memory only, where the oldest make room for the newest.
    ///
    /// False, and nothing changed, while a swap is under way ([`Log::swapping`]).
    pub fn stage(
        &mut self,
        begin_op: u64,
        chain: Option<u32>,
        on_disk: bool,
        source_view: u64,
    ) -> bool {
        let _ = (begin_op, chain, on_disk, source_view);
        todo!()
    }

    /// Drops the staged log. False, and nothing changed, while a swap is under way.
    pub fn drop_staged(&mut self) -> bool {
        todo!()
    }

    /// Whether a swap was asked for whose head is not durable yet.
    pub fn swapping(&self) -> bool {
        todo!()
    }

    /// Turns a staged log in memory into one on disk, and hands out the writes for all it holds.
    pub fn persist(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> Result<(), LogFull> {
        let _ = (cp, out);
        todo!()
    }

    /// Makes the current log durable, then tags it: complete for `view` with `members`. `extra` is kept in
    /// the head. Returns the sequence that [`Progress::head`] names once the tag is durable.
    pub fn tag(
        &mut self,
        view: u64,
        members: u8,
        extra: [u8; HEAD_EXTRA_BYTES],
        cp: u64,
        out: &mut Vec<DiskCommand>,
    ) -> u64 {
        let _ = (view, members, extra, cp, out);
        todo!()
    }

    /// Makes the staged log durable, then makes it the current one, tagged as [`Log::tag`] does, by one
    /// atomic head write. Until that is durable the old log stays current; appends go to the staged one. A
    /// staged log in memory is persisted first, which may lack room.
    pub fn swap(
        &mut self,
        view: u64,
        members: u8,
        extra: [u8; HEAD_EXTRA_BYTES],
        cp: u64,
        out: &mut Vec<DiskCommand>,
    ) -> Result<u64, LogFull> {
        let _ = (view, members, extra, cp, out);
        todo!()
    }

    /// Replaces everything by an empty, untagged current log that begins at `begin_op`. Returns the
    /// sequence of its head. Needed after amnesia before anything else.
    pub fn reset(&mut self, begin_op: u64, out: &mut Vec<DiskCommand>) -> u64 {
        let _ = (begin_op, out);
        todo!()
    }

    /// The user's bytes in the newest durable head.
    pub fn extra(&self) -> &[u8; HEAD_EXTRA_BYTES] {
        todo!()
    }

    /// Records up to `glb` need not stay on disk. Takes effect in whole batches.
    pub fn trim(&mut self, glb: u64) {
        let _ = glb;
        todo!()
    }

    /// Keeps the growing log's records above `op` in memory, and lets go of those up to it. At first all
    /// that memory holds is kept.
    pub fn pin(&mut self, op: u64) {
        let _ = op;
        todo!()
    }

    /// Whether records of `bytes` bytes in all, headers included, can be appended now.
    pub fn room(&self, bytes: u64) -> Room {
        let _ = bytes;
        todo!()
    }

    /// Bytes of the ring that are pinned or unwritten.
    pub fn used_ring_bytes(&self) -> u64 {
        todo!()
    }

    /// Bytes of disk that hold records still needed, gaps between batches included.
    pub fn used_disk_bytes(&self) -> u64 {
        todo!()
    }

    /// Bytes of disk there are.
    pub fn disk_bytes(&self) -> u64 {
        todo!()
    }
}
