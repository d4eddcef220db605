//! The log of one server: appends, batches, durability, room.
//! Owns: the ring's writing end, what is written and what is durable.
//! Never: does I/O; it hands out [`DiskCommand`]s and is told of their completion.
//! Invariant: no byte is overwritten, in the ring or on disk, that is pinned, unwritten, or covered by
//! the durable head.
//! Source: docs/protocol.md, rules 3, 8 and 10; docs/disk-format-log.md.

use std::collections::VecDeque;

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader};
use crate::body::{Body, Seam};
use crate::disk::{DiskCommand, DiskDone, SlotFile};
use crate::head::{HEAD_EXTRA_BYTES, Head};
use crate::record::{BadRecord, RECORD_HEADER_BYTES, RawRecord, Record, RecordHeader, record_len};
use crate::ring::{LogPos, Ring};
use crate::settings::LogSettings;

/// A batch that has reached this length is closed.
const BATCH_BYTES_SOFT_MAX: u64 = 1 << 20;

/// A write behind a log in memory that has reached this length grows no more: what comes after it waits for it.
const BEHIND_BYTES_SOFT_MAX: u64 = 2 << 20;

/// Why nothing can be appended now. Nothing was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFull {
    /// The ring holds pinned or unwritten records up to the end.
    Ring,
    /// The segments hold records that are still needed.
    Disk,
}

impl std::fmt::Display for LogFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogFull::Ring => write!(f, "the log's memory is full"),
            LogFull::Disk => write!(f, "the log's disk segments are full"),
        }
    }
}

impl std::error::Error for LogFull {}

/// Why a peer's record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// It is not the next record.
    Bad(BadRecord),
    /// There is no room.
    Full(LogFull),
}

impl std::fmt::Display for AppendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AppendError::Bad(bad) => write!(f, "{bad}"),
            AppendError::Full(full) => write!(f, "{full}"),
        }
    }
}

impl std::error::Error for AppendError {}

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

/// The batch that appends go to. Its header's place is kept free until it is closed.
#[derive(Clone, Copy, Debug)]
struct OpenBatch {
    pos: u64,
    /// Where the next record goes.
    end: u64,
    /// No further record at or beyond this.
    soft_end: u64,
    /// The segment's end.
    hard_end: u64,
    count: u32,
}

/// A write that is to be handed out, or was and is not done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) generation: u64,
    pos: u64,
    bytes: u64,
    /// Last op the log holds at its end.
    end_op: u64,
}

/// A head that was handed out and is not durable.
#[derive(Clone, Copy, Debug)]
struct HeadWrite {
    /// As of its second slot.
    head: Head,
    /// Whether somebody waits for it.
    awaited: bool,
}

/// The log of one server.
#[derive(Debug)]
pub struct Log {
    pub(crate) ring: Ring,
    pub(crate) settings: LogSettings,
    pub(crate) current: Body,
    pub(crate) staged: Option<Body>,
    /// The growing log's open batch.
    open: Option<OpenBatch>,
    /// Where the record lies that was begun, and the space given to its body.
    begun: Option<(u64, usize)>,
    pub(crate) pending: VecDeque<Extent>,
    in_flight: VecDeque<Extent>,
    /// A write of the staged log was handed out without a sync, and none with one after it.
    unsynced: bool,
    /// The ring's and the disk's bytes from here on may not be overwritten.
    ring_limit: u64,
    disk_limit: u64,
    /// When the end passes this, a record in memory is about to be overwritten.
    forget_at: u64,
    /// The newest head handed out, and the newest durable one.
    pub(crate) head: Head,
    pub(crate) durable_head: Head,
    head_writes: VecDeque<HeadWrite>,
    pub(crate) generation_last: u64,
    pub(crate) cp: u64,
    /// Up to here the head of memory that outlives the process knows what the growing log overwrites.
    pub(crate) claimed: u64,
    /// The log was found not intact and must be reset.
    pub(crate) amnesia: bool,
}

impl Log {
    /// A new, empty log whose first record will be `begin_op`; untagged. For a disk being formatted,
    /// whose segments read as zeros.
    pub fn format(
        ring: Ring,
        settings: LogSettings,
        begin_op: u64,
        out: &mut Vec<DiskCommand>,
    ) -> Log {
        let mut log = Log::forgotten(ring, settings, 0, 0);
        log.reset(begin_op, out);
        log
    }

    /// A log that must be reset. `sequence`: of the newest head on the disk; `generation`: of the newest log.
    pub(crate) fn forgotten(
        ring: Ring,
        settings: LogSettings,
        sequence: u64,
        generation: u64,
    ) -> Log {
        let seam = Seam { pos: 0, op: 0, chain: Some(0), prev_header: 0 };
        let body = Body::new(ring.clone(), settings.segment_bytes, 0, seam);
        let head = Head::of(&body, &settings, sequence);
        if let Some(memory) = ring.memory_head() {
            memory.forget();
        }
        let mut log = Log::of(ring, settings, body, head);
        log.generation_last = generation;
        log.amnesia = true;
        log
    }

    /// A log with nothing open and nothing under way.
    pub(crate) fn of(ring: Ring, settings: LogSettings, current: Body, head: Head) -> Log {
        settings.check(&ring);
        let mut log = Log {
            claimed: 0,
            ring,
            settings,
            generation_last: current.generation,
            current,
            staged: None,
            open: None,
            begun: None,
            pending: VecDeque::new(),
            in_flight: VecDeque::new(),
            unsynced: false,
            ring_limit: 0,
            disk_limit: 0,
            forget_at: 0,
            head,
            durable_head: head,
            head_writes: VecDeque::new(),
            cp: 0,
            amnesia: false,
        };
        log.refresh_limits();
        log
    }

    /// The log that votes when tagged.
    pub fn current(&self) -> &Body {
        &self.current
    }

    /// The log being built to replace the current one.
    pub fn staged(&self) -> Option<&Body> {
        self.staged.as_ref()
    }

    /// The log that appends go to: the staged one if there is one.
    pub fn growing(&self) -> &Body {
        self.staged.as_ref().unwrap_or(&self.current)
    }

    pub(crate) fn growing_mut(&mut self) -> &mut Body {
        self.staged.as_mut().unwrap_or(&mut self.current)
    }

    fn body_mut(&mut self, generation: u64) -> Option<&mut Body> {
        let staged = self.staged.as_mut().filter(|body| body.generation == generation);
        staged.or(Some(&mut self.current).filter(|body| body.generation == generation))
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
        &self.ring
    }

    /// The user's bytes in the newest durable head.
    pub fn extra(&self) -> &[u8; HEAD_EXTRA_BYTES] {
        &self.durable_head.extra
    }

    /// What was known to be committed beyond `cp` was of a history that does not go on: batches written from now
    /// on do not claim it.
    pub fn forget_commits(&mut self, cp: u64) {
        self.cp = cp;
    }

    fn write_space(&mut self, pos: u64, len: usize) -> &mut [u8] {
        debug_assert!(pos >= self.growing().tail.pos);
        // SAFETY: `&mut self` is the one writer. The place lies in the open batch, above the log's end;
        // `place` made sure that what lay there a ring length ago is neither pinned nor unwritten, and
        // took it out of the index.
        unsafe { self.ring.bytes_mut(LogPos(pos), len as u32) }
    }

    /// Room for the body of the next record, at most `body_max` bytes
    /// ([`crate::RECORD_BODY_BYTES_MAX`], and it must fit into a segment), in place. What is in it is
    /// arbitrary. Given up silently if the record is not finished.
    pub fn begin_record(&mut self, body_max: usize) -> Result<&mut [u8], LogFull> {
        let len = record_len(body_max) as u64;
        assert!(len <= self.settings.record_bytes_max(), "a body of {body_max} bytes is too long");
        let pos = self.place(len)?;
        self.begun = Some((pos, body_max));
        Ok(self.write_space(pos + RECORD_HEADER_BYTES as u64, body_max))
    }

    /// Completes the record begun last with the first `body_len` bytes of its body. Returns its op.
    pub fn finish_record(&mut self, kind: u8, view: u64, time: u64, body_len: usize) -> u64 {
        let (pos, body_max) = self.begun.take().expect("a record was begun");
        assert!(body_len <= body_max, "a body longer than the space asked for");
        let body = self.growing();
        let (op, prev_crc) = (body.end() + 1, body.end_chain().unwrap_or(0));
        let body_len_field = body_len as u32;
        let header = RecordHeader {
            len: 0,
            crc: 0,
            prev_crc,
            body_len: body_len_field,
            op,
            view,
            time,
            kind,
        };
        let len = record_len(body_len);
        let crc = header.finish(self.write_space(pos, len));
        self.take_in(pos, len as u64, crc)
    }

    /// Appends a record as a peer sent it. Returns its op.
    pub fn append_raw(&mut self, record: &RawRecord<'_>) -> Result<u64, AppendError> {
        let body = self.growing();
        record.follows(body.end() + 1, body.end_chain()).map_err(AppendError::Bad)?;
        let len = record.bytes().len();
        if len as u64 > self.settings.record_bytes_max() {
            return Err(AppendError::Bad(BadRecord::Length(len as u32)));
        }
        let pos = self.place(len as u64).map_err(AppendError::Full)?;
        self.begun = None;
        self.write_space(pos, len).copy_from_slice(record.bytes());
        Ok(self.take_in(pos, len as u64, record.header().crc))
    }

    fn take_in(&mut self, pos: u64, len: u64, crc: u32) -> u64 {
        let open = self.open.as_mut().expect("a record lies in the open batch");
        assert_eq!(open.end, pos, "records lie one after the other");
        open.end += len;
        open.count += 1;
        let end = open.end;
        if self.forget_at == u64::MAX {
            self.forget_at = pos + self.ring.len();
        }
        let body = self.staged.as_mut().unwrap_or(&mut self.current);
        if let Some(memory) = self.ring.memory_head() {
            memory.set_end(body.slot, end);
        }
        body.push_record(pos, crc)
    }

    /// Finds the place of a record of `len` bytes, opening a batch if need be.
    fn place(&mut self, len: u64) -> Result<u64, LogFull> {
        if let Some(open) = self.open {
            let end = open.end + len;
            if open.end < open.soft_end && end <= open.hard_end {
                self.claim(end)?;
                return Ok(open.end);
            }
            self.close_batch();
        }
        assert!(!self.amnesia, "a log that is not intact is reset before it is used");
        let (pos, hard_end) = self.batch_place(len);
        let records = pos + BATCH_HEADER_BYTES as u64;
        let soft_end = pos + BATCH_BYTES_SOFT_MAX.min(self.settings.segment_bytes / 4);
        self.open = Some(OpenBatch { pos, end: records, soft_end, hard_end, count: 0 });
        self.refresh_limits();
        if let Err(full) = self.claim(records + len) {
            self.open = None;
            self.refresh_limits();
            return Err(full);
        }
        if self.ring.outlives() {
            // Whoever finds this batch open must not take what lay here before for its header.
            self.write_space(pos, BATCH_HEADER_BYTES).fill(0);
        }
        Ok(records)
    }

    /// Where a batch with `len` bytes of records goes, and the end of that segment.
    fn batch_place(&self, len: u64) -> (u64, u64) {
        let tail = self.growing().tail.pos;
        let segment_end = self.settings.segment_floor(tail) + self.settings.segment_bytes;
        if tail + BATCH_HEADER_BYTES as u64 + len <= segment_end {
            (tail, segment_end)
        } else {
            (segment_end, segment_end + self.settings.segment_bytes)
        }
    }

    /// Makes sure that everything up to `end` may be written, and lets go of what it overwrites.
    fn claim(&mut self, end: u64) -> Result<(), LogFull> {
        if end > self.ring_limit {
            return Err(LogFull::Ring);
        }
        if end > self.disk_limit {
            return Err(LogFull::Disk);
        }
        let end = end.next_multiple_of(BLOCK_BYTES);
        if end > self.claimed
            && let Some(memory) = self.ring.memory_head()
        {
            self.claimed = end;
            memory.raise_floors(self.growing().slot, end.saturating_sub(self.ring.len()));
        }
        if end > self.forget_at {
            let floor = end.saturating_sub(self.ring.len());
            self.current.forget_below(floor);
            if let Some(staged) = &mut self.staged {
                staged.forget_below(floor);
            }
            self.refresh_forget();
        }
        Ok(())
    }

    fn refresh_forget(&mut self) {
        let staged = self.staged.as_ref().and_then(Body::memory_floor);
        let floor = self.current.memory_floor().into_iter().chain(staged).min();
        self.forget_at = floor.map_or(u64::MAX, |floor| floor + self.ring.len());
    }

    /// End of what is appended.
    fn end_pos(&self) -> u64 {
        self.open.map_or(self.growing().tail.pos, |open| open.end)
    }

    /// Computes anew up to where ring and disk may be written.
    pub(crate) fn refresh_limits(&mut self) {
        let (at, ring) = (self.end_pos(), self.ring.len());
        let growing = self.growing();
        let mut limit = at + ring;
        for floor in growing.pinned_floor().into_iter().chain(self.open.map(|open| open.pos)) {
            limit = limit.min(floor + ring);
        }
        for extent in self.pending.iter().chain(&self.in_flight) {
            // Where the extent's bytes come next in the ring, at or after the end. An extent above
            // the end belongs to a dropped log.
            let end = extent.pos + extent.bytes;
            let ahead = (end as i64 - at as i64 - 1).rem_euclid(ring as i64) as u64;
            limit = limit.min((at + 1 + ahead).saturating_sub(extent.bytes).max(at));
        }
        let on_disk = growing.on_disk;
        self.ring_limit = limit & !(BLOCK_BYTES - 1);
        self.disk_limit = if on_disk {
            self.settings.segment_floor(self.durable_head.begin_pos) + self.settings.disk_bytes()
        } else {
            u64::MAX
        };
        self.refresh_forget();
    }

    /// Writes the open batch's header and padding. A batch without records is given up.
    pub(crate) fn close_batch(&mut self) {
        self.begun = None;
        if let Some(open) = self.open.take().filter(|open| open.count > 0) {
            self.finish_batch(open);
        }
    }

    fn finish_batch(&mut self, open: OpenBatch) {
        let (start, cp) = (self.settings.start, self.cp);
        let body = self.growing();
        let header = BatchHeader {
            crc: 0,
            generation: body.generation,
            pos: open.pos,
            first_op: body.tail.op + 1,
            durable_mark: body.durable.1,
            cp,
            start,
            count: open.count,
            record_bytes: (open.end - open.pos) as u32 - BATCH_HEADER_BYTES as u32,
            prev_header: body.tail.prev_header,
            end_crc: body.end_chain().unwrap_or(0),
        };
        let bytes = header.padded_bytes();
        let space = self.write_space(open.pos, bytes as usize);
        let header_crc = header.write(space);
        space[(open.end - open.pos) as usize..].fill(0);
        let body = self.growing_mut();
        assert_eq!(body.end() - body.tail.op, open.count as u64, "a batch holds all new records");
        body.push_batch(open.pos, bytes, header_crc);
        body.mark = body.mark.max(header.durable_mark);
        body.cp_named = header.cp;
        if body.on_disk {
            let (generation, end_op) = (body.generation, body.end());
            self.push_pending(Extent { generation, pos: open.pos, bytes, end_op });
        }
    }

    pub(crate) fn push_write(&mut self, generation: u64, pos: u64, bytes: u64, end_op: u64) {
        self.push_pending(Extent { generation, pos, bytes, end_op });
    }

    fn push_pending(&mut self, extent: Extent) {
        let segment_bytes = self.settings.segment_bytes;
        let most = if self.ring.outlives() { BEHIND_BYTES_SOFT_MAX } else { u64::MAX };
        match self.pending.back_mut() {
            Some(last)
                if last.generation == extent.generation
                    && last.bytes < most
                    && last.pos + last.bytes == extent.pos
                    && last.pos / segment_bytes == extent.pos / segment_bytes =>
            {
                last.bytes += extent.bytes;
                last.end_op = extent.end_op;
            }
            _ => self.pending.push_back(extent),
        }
    }

    /// Hands out what is closed. What belongs to the current log, or to one being swapped in, is synced;
    /// with `sync`, everything closed is durable when it is done.
    pub(crate) fn hand_out(&mut self, sync: bool, out: &mut Vec<DiskCommand>) -> bool {
        let swapping = self.swapping();
        let current = self.current.generation;
        let needed = self.pending.iter().any(|w| w.generation == current || swapping);
        let sync = sync || needed;
        if self.pending.is_empty() && sync && self.unsynced {
            // Nothing new to carry the sync: the newest block once more, the same bytes.
            let body = self.growing();
            let (generation, pos) = (body.generation, body.tail.pos - BLOCK_BYTES);
            let end_op = body.tail.op;
            self.pending.push_back(Extent { generation, pos, bytes: BLOCK_BYTES, end_op });
        }
        let handed = !self.pending.is_empty();
        while let Some(extent) = self.pending.pop_front() {
            let sync = sync && self.pending.is_empty();
            let (at, bytes) = (LogPos(extent.pos), extent.bytes as u32);
            out.push(DiskCommand::Write { at, bytes, sync });
            self.unsynced = !sync;
            self.in_flight.push_back(extent);
        }
        handed
    }

    /// Closes the open batch and hands out what is unwritten, unless a write is under way; the group
    /// commit. `cp` is the commit point known. Also writes the head when trimming makes it due. Returns
    /// whether a write was handed out. Call it once at the end of each step.
    pub fn seal(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> bool {
        self.cp = self.cp.max(cp);
        self.write_trimmed_head(out);
        if !self.in_flight.is_empty() {
            return false;
        }
        if self.growing().on_disk {
            self.close_batch();
        }
        self.hand_out(false, out)
    }

    /// Bytes of a log in memory that no write was handed out for.
    pub fn unwritten_bytes(&self) -> u64 {
        let open = self
            .open
            .filter(|_| self.growing().on_disk)
            .map_or(0, |open| if open.count > 0 { open.end - open.pos } else { 0 });
        self.pending.iter().map(|extent| extent.bytes).sum::<u64>() + open
    }

    /// For a log in memory that outlives the process: unless a write is under way, hands out the oldest of what
    /// is unwritten, if that is `least` bytes or more in all (and not nothing). Also writes the head when trimming
    /// makes it due. Returns whether a write was handed out.
    pub fn write_behind(&mut self, cp: u64, least: u64, out: &mut Vec<DiskCommand>) -> bool {
        assert!(self.ring.outlives(), "records count here as soon as they are in memory");
        self.cp = self.cp.max(cp);
        self.write_trimmed_head(out);
        if !self.in_flight.is_empty() || self.unwritten_bytes() < least.max(1) {
            return false;
        }
        if self.pending.is_empty() {
            self.close_batch();
        }
        let extent = self.pending.pop_front().expect("something is unwritten");
        let (at, bytes) = (LogPos(extent.pos), extent.bytes as u32);
        out.push(DiskCommand::Write { at, bytes, sync: true });
        self.in_flight.push_back(extent);
        true
    }

    /// Up to where the records of the current log count as held by this server.
    pub fn held(&self) -> u64 {
        if self.ring.outlives() { self.current.end() } else { self.current.durable() }
    }

    /// Hands out an empty batch if no batch says of what is committed that it is. Without room it stays unsaid.
    pub(crate) fn name_commit_point(&mut self, out: &mut Vec<DiskCommand>) {
        if self.current.cp_named >= self.cp.min(self.current.end()) {
            return;
        }
        let (pos, hard_end) = self.batch_place(0);
        let end = pos + BATCH_HEADER_BYTES as u64;
        if self.claim(end).is_ok() {
            self.finish_batch(OpenBatch { pos, end, soft_end: end, hard_end, count: 0 });
            self.hand_out(true, out);
        }
    }

    /// Whether all is durable and no batch's or head's mark says so yet (rule 3), or `cp`, the commit point
    /// known, covers records that no batch names as committed. If that lasts for 10 ms, call
    /// [`Log::seal_mark`].
    pub fn mark_due(&self, cp: u64) -> bool {
        let unmarked = |body: &Body| {
            body.on_disk && body.mark < body.records_end && body.records_end <= body.durable.1
        };
        if self.staged.is_some() && !self.swapping() {
            return unmarked(&self.current) && self.head_writes.is_empty();
        }
        let growing = self.growing();
        let unnamed = growing.on_disk && growing.cp_named < cp.min(growing.end());
        (unmarked(growing) || unnamed)
            && self.open.is_none_or(|open| open.count == 0)
            && self.in_flight.is_empty()
            && self.pending.is_empty()
    }

    /// If [`Log::mark_due`], writes an empty batch whose mark covers what is durable, or a head while a staged
    /// log stands behind the current one. False if it is not due or there is no room.
    pub fn seal_mark(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> bool {
        if !self.mark_due(cp) {
            return false;
        }
        self.cp = self.cp.max(cp);
        if self.staged.is_some() && !self.swapping() {
            self.write_begin(out);
            return true;
        }
        (self.open, self.begun) = (None, None);
        let (pos, hard_end) = self.batch_place(0);
        let end = pos + BATCH_HEADER_BYTES as u64;
        if self.claim(end).is_err() {
            return false;
        }
        self.finish_batch(OpenBatch { pos, end, soft_end: end, hard_end, count: 0 });
        self.hand_out(true, out)
    }

    /// Takes note of a completion. A failure changes nothing here: it is a crash, the caller's business.
    pub fn on_disk(&mut self, done: &DiskDone) -> Progress {
        match done {
            DiskDone::Written { upto, synced } => {
                let progress = Progress { durable: self.on_written(upto.0, *synced), head: None };
                self.refresh_limits();
                progress
            }
            DiskDone::Slot { file: SlotFile::LogHead, sequence } => {
                let head = self.on_head(*sequence);
                self.refresh_limits();
                Progress { durable: false, head }
            }
            DiskDone::Slot { .. }
            | DiskDone::Read { .. }
            | DiskDone::Unprepared { .. }
            | DiskDone::Failed { .. } => Progress::default(),
        }
    }

    fn on_written(&mut self, upto: u64, synced: bool) -> bool {
        let extent = self.in_flight.pop_front().expect("a write was under way");
        assert_eq!(extent.pos + extent.bytes, upto, "writes are done in order");
        if let Some(body) = self.body_mut(extent.generation) {
            body.written = (extent.end_op, upto);
        }
        let before = self.growing().durable.0;
        if synced {
            for body in [Some(&mut self.current), self.staged.as_mut()].into_iter().flatten() {
                if body.on_disk {
                    body.durable = body.written;
                }
                if let Some(memory) = self.ring.memory_head() {
                    memory.set_written(body.slot, body.durable.1);
                }
            }
        }
        self.growing().durable.0 > before
    }

    /// Hands out a head, to both slots. Returns the sequence of the second.
    pub(crate) fn hand_out_head(
        &mut self,
        head: Head,
        awaited: bool,
        out: &mut Vec<DiskCommand>,
    ) -> u64 {
        assert!(head.sequence == self.head.sequence, "a head is made from the newest one");
        let mut head = head;
        if self.settings.keeps_clean_mark {
            head.clean = head.clean.or(self.head.clean);
        }
        for _ in 0..2 {
            head.sequence += 1;
            let (sequence, bytes) = (head.sequence, head.to_bytes());
            out.push(DiskCommand::Slot { file: SlotFile::LogHead, sequence, bytes });
        }
        self.head = head;
        self.head_writes.push_back(HeadWrite { head, awaited });
        head.sequence
    }

    fn on_head(&mut self, sequence: u64) -> Option<u64> {
        let write = *self.head_writes.front().expect("a head write was under way");
        if write.head.sequence != sequence {
            assert_eq!(write.head.sequence, sequence + 1, "heads are written in order");
            return None;
        }
        self.head_writes.pop_front();
        let head = write.head;
        self.durable_head = head;
        if self.staged.as_ref().is_some_and(|body| body.generation == head.generation) {
            self.current = self.staged.take().expect("looked at above");
            // Of the log that was replaced nothing need be written any more.
            self.pending.retain(|extent| extent.generation == head.generation);
        }
        if self.current.generation == head.generation {
            self.current.tag = (head.tag != 0).then_some(head.tag);
            self.current.members = head.members;
            self.current.mark = self.current.mark.max(head.durable_mark);
        }
        write.awaited.then_some(sequence)
    }

    /// Whether a swap was asked for whose head is not durable yet.
    pub fn swapping(&self) -> bool {
        let staged = self.staged.as_ref().map(|body| body.generation);
        self.head_writes.iter().any(|write| Some(write.head.generation) == staged)
    }

    pub(crate) fn heads_under_way(&self) -> bool {
        !self.head_writes.is_empty()
    }

    /// Forgets what was appended to a dropped log and not handed out.
    pub(crate) fn drop_unwritten(&mut self, generation: u64) {
        (self.open, self.begun) = (None, None);
        self.unsynced = false;
        self.pending.retain(|extent| extent.generation != generation);
    }

    /// Keeps the growing log's records above `op` in memory, and lets go of those up to it. At first all
    /// that memory holds is kept.
    pub fn pin(&mut self, op: u64) {
        self.growing_mut().pin = op;
        self.refresh_limits();
    }

    /// Whether records of `bytes` bytes in all, headers included, can be appended now, however they
    /// fall into batches and segments.
    pub fn room(&self, bytes: u64) -> Room {
        let settings = &self.settings;
        let soft_max = BATCH_BYTES_SOFT_MAX.min(settings.segment_bytes / 4);
        let batches = bytes / soft_max + 2;
        let lost = bytes.min(settings.record_bytes_max()) + BLOCK_BYTES;
        let crossed = (bytes + batches * BLOCK_BYTES) / settings.segment_bytes + 1;
        let end = self.end_pos() + bytes + batches * BLOCK_BYTES + crossed * lost;
        if end > self.ring_limit {
            Room::RingFull
        } else if end > self.disk_limit {
            Room::DiskFull
        } else {
            Room::Ok
        }
    }

    /// Bytes of the ring that are pinned or unwritten.
    pub fn used_ring_bytes(&self) -> u64 {
        self.ring.len().saturating_sub(self.ring_limit.saturating_sub(self.end_pos()))
    }

    /// Bytes of disk that hold records still needed, gaps between batches included.
    pub fn used_disk_bytes(&self) -> u64 {
        let end = if self.growing().on_disk { self.end_pos() } else { self.current.tail.pos };
        end.saturating_sub(self.current.begin_seam().pos)
    }

    /// Bytes of disk there are.
    pub fn disk_bytes(&self) -> u64 {
        self.settings.disk_bytes()
    }
}
