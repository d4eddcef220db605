//! Staging, tagging, swapping and trimming: which log is the current one, and where it begins.
//! Owns: what a head says, and when one is written.
//! Never: cuts a log short; a log is only ever replaced whole, or loses its oldest batches.
//! Invariant: until a head is durable, everything the head before it covers stays on disk.
//! Source: docs/protocol.md, rules 2, 5 and 10.

use crate::body::{Body, Seam};
use crate::disk::DiskCommand;
use crate::head::{CleanMark, HEAD_EXTRA_BYTES, Head};
use crate::log::{Log, LogFull};
use crate::memory::HeldLog;
use crate::settings::LogSettings;

/// A head is written once so many segments are free: few, for what is used again soon is cheap to write to.
const TRIMMED_SEGMENTS: u64 = 2;

/// The generations of the logs that a start begins: its counter, then a count.
pub(crate) fn generations_of(start: u64) -> std::ops::Range<u64> {
    start << 24..(start + 1) << 24
}

impl Head {
    /// The head of `body`, untagged.
    pub(crate) fn of(body: &Body, settings: &LogSettings, sequence: u64) -> Head {
        let seam = body.begin_seam();
        Head {
            sequence,
            generation: body.generation,
            begin_pos: seam.pos,
            begin_op: seam.op + 1,
            durable_mark: body.durable.1.max(seam.pos),
            tag: 0,
            segment_bytes: settings.segment_bytes,
            segments_max: settings.segments_max,
            chain: seam.chain,
            prev_header: seam.prev_header,
            members: 0,
            clean: None,
            extra: [0; HEAD_EXTRA_BYTES],
        }
    }
}

impl Log {
    fn next_generation(&mut self) -> u64 {
        let first = generations_of(self.settings.start).start;
        self.generation_last = self.generation_last.max(first) + 1;
        self.generation_last
    }

    fn new_body(&mut self, begin_op: u64, chain: Option<u32>) -> Body {
        assert!(begin_op > 0, "ops count from 1");
        let generation = self.next_generation();
        let pos = self.settings.segment_ceil(self.current.tail.pos);
        let chain = if begin_op == 1 { Some(0) } else { chain };
        let seam = Seam { pos, op: begin_op - 1, chain, prev_header: 0 };
        let mut body = Body::new(self.ring.clone(), self.settings.segment_bytes, generation, seam);
        if let Some(memory) = self.ring.memory_head() {
            let kept =
                [self.current.generation, self.head.generation, self.durable_head.generation];
            let held = HeldLog { slot: 0, end: pos, written: pos, floor: pos };
            body.slot = memory.take_in(generation, held, &kept);
        }
        body
    }

    /// Begins a staged log at `begin_op`, dropping one there may be. `chain`: checksum of the record before
    /// `begin_op`, where known. `on_disk`: whether records are written as they come (without syncs, until
    /// the swap) or stay in memory only, where the oldest unpinned ones make room for the newest.
    ///
    /// False, and nothing changed, while a swap is under way ([`Log::swapping`]).
    pub fn stage(
        &mut self,
        begin_op: u64,
        chain: Option<u32>,
        on_disk: bool,
        source_view: u64,
    ) -> bool {
        if !self.drop_staged() {
            return false;
        }
        self.close_batch();
        let mut body = self.new_body(begin_op, chain);
        body.on_disk = on_disk;
        body.source_view = source_view;
        self.staged = Some(body);
        self.refresh_limits();
        true
    }

    /// Bytes of disk between the current log and what is left of the staged one: they are free again once it is staged
    /// anew. (Those before the current log are free once a head says so; no head says where a staged log begins.)
    pub fn staged_gap_bytes(&self) -> u64 {
        let first = self.settings.segment_ceil(self.current.tail.pos);
        let staged = self.staged.as_ref().filter(|staged| staged.on_disk);
        staged.map_or(0, |staged| staged.begin_seam().pos.saturating_sub(first))
    }

    /// Drops the staged log; the current one grows again. False, and nothing changed, while a swap is
    /// under way.
    pub fn drop_staged(&mut self) -> bool {
        if self.swapping() {
            return false;
        }
        if let Some(staged) = self.staged.take() {
            self.drop_unwritten(staged.generation);
            // The current log's next bytes lie below those of the dropped one.
            self.claimed = 0;
            self.refresh_limits();
        }
        true
    }

    /// Turns a staged log in memory into one on disk, and hands out the writes for all it holds.
    pub fn persist(&mut self, cp: u64, out: &mut Vec<DiskCommand>) -> Result<(), LogFull> {
        self.cp = self.cp.max(cp);
        let Some(staged) = self.staged.as_ref().filter(|body| !body.on_disk) else {
            return Ok(());
        };
        let begin = self.settings.segment_floor(staged.begin_seam().pos);
        let end = self.settings.segment_ceil(staged.tail.pos) + self.settings.segment_bytes;
        let covered = self.settings.segment_floor(self.durable_head.begin_pos);
        if end > covered + self.settings.disk_bytes() {
            // The durable head covers what would be overwritten; it can move on if that log is empty.
            let fits = end <= begin + self.settings.disk_bytes();
            if !fits || !self.current.is_empty() || self.heads_under_way() {
                return Err(LogFull::Disk);
            }
            self.current.move_empty(begin);
            self.write_begin(out);
        }
        self.write_staged();
        if !self.ring.outlives() {
            self.hand_out(false, out);
        }
        self.refresh_limits();
        Ok(())
    }

    fn write_staged(&mut self) {
        let staged = self.staged.as_mut().expect("there is a staged log");
        staged.on_disk = true;
        let seam = staged.begin_seam();
        staged.written = (seam.op, seam.pos);
        staged.durable = staged.written;
        let generation = staged.generation;
        let tail_op = staged.tail.op;
        let groups: Vec<_> = staged.groups().copied().collect();
        for (index, group) in groups.iter().enumerate() {
            let end_op = groups.get(index + 1).map_or(tail_op, |next| next.first_op - 1);
            self.push_write(generation, group.pos, group.bytes as u64, end_op);
        }
    }

    /// Makes the current log durable (one in memory that outlives the process needs no disk for that), then tags
    /// it: complete for `view` (not 0) with `members`. `extra` is
    /// kept in the head. Returns the sequence that [`crate::Progress::head`] names once the tag is
    /// durable. Not while a swap is under way.
    pub fn tag(
        &mut self,
        view: u64,
        members: u8,
        extra: [u8; HEAD_EXTRA_BYTES],
        cp: u64,
        out: &mut Vec<DiskCommand>,
    ) -> u64 {
        assert!(view != 0, "view 0 is no view");
        assert!(!self.amnesia, "a log that is not intact is reset before it is used");
        assert!(!self.swapping(), "the current log is about to be replaced");
        self.cp = self.cp.max(cp);
        let held = self.ring.outlives();
        if self.staged.is_none() && !held {
            self.close_batch();
        }
        if !held {
            self.hand_out(false, out);
        }
        let head = Head::of(&self.current, &self.settings, self.head.sequence);
        let durable_mark = if held { head.durable_mark } else { self.current.tail.pos };
        let head = Head { tag: view, members, extra, durable_mark, ..head };
        let sequence = self.hand_out_head(head, true, out);
        self.refresh_limits();
        sequence
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
        assert!(view != 0, "view 0 is no view");
        assert!(self.staged.is_some(), "there is a staged log to swap in");
        self.persist(cp, out)?;
        self.cp = self.cp.max(cp);
        self.close_batch();
        let held = self.ring.outlives();
        if !held {
            self.hand_out(true, out);
        }
        let staged = self.staged.as_ref().expect("asserted above");
        let head = Head::of(staged, &self.settings, self.head.sequence);
        let durable_mark = if held { head.durable_mark } else { staged.tail.pos };
        let head = Head { tag: view, members, extra, durable_mark, ..head };
        let sequence = self.hand_out_head(head, true, out);
        self.refresh_limits();
        Ok(sequence)
    }

    /// Replaces everything by an empty, untagged current log that begins at `begin_op`; the user's bytes
    /// in the head stay. Returns the sequence of its head. Needed after amnesia before anything else.
    pub fn reset(&mut self, begin_op: u64, out: &mut Vec<DiskCommand>) -> u64 {
        if let Some(staged) = self.staged.take() {
            self.drop_unwritten(staged.generation);
        }
        self.claimed = 0;
        self.drop_unwritten(self.current.generation);
        self.current = self.new_body(begin_op, None);
        let head = Head::of(&self.current, &self.settings, self.head.sequence);
        let head = Head { extra: self.head.extra, ..head };
        let sequence = self.hand_out_head(head, true, out);
        if self.amnesia {
            // There is no head whose log must be kept.
            self.durable_head = head;
            self.amnesia = false;
        }
        self.refresh_limits();
        sequence
    }

    /// Writes all of the current log out, and then a head that says so: `disk` and this start. A staged log is left
    /// as it is in memory, for a checkpoint may still read there. Nothing may be appended any more. Returns the sequence that [`crate::Progress::head`] names once that is
    /// durable; `None`, and nothing done, while another head is under way.
    pub fn write_out(&mut self, disk: u64, cp: u64, out: &mut Vec<DiskCommand>) -> Option<u64> {
        assert!(!self.amnesia, "a log that is not intact is reset before it is used");
        if self.heads_under_way() {
            return None;
        }
        self.cp = self.cp.max(cp);
        let generation = self.current.generation;
        match self.staged.is_some() {
            // The current log's batches are closed.
            true => self.pending.retain(|extent| extent.generation == generation),
            false => self.close_batch(),
        }
        self.hand_out(true, out);
        if self.staged.is_none() {
            self.name_commit_point(out);
        }
        let end = self.current.tail.op;
        let clean = Some(CleanMark { disk, start: self.settings.start, end });
        let head = Head::of(&self.current, &self.settings, self.head.sequence);
        let Head { tag, members, extra, .. } = self.head;
        let durable_mark = self.current.tail.pos;
        let head = Head { tag, members, extra, durable_mark, clean, ..head };
        Some(self.hand_out_head(head, true, out))
    }

    /// Records up to `glb` need not stay on disk. Takes effect in whole batches.
    pub fn trim(&mut self, glb: u64) {
        self.current.trim(glb);
        if let Some(staged) = &mut self.staged {
            staged.trim(glb);
        }
    }

    /// Hands out a head with the current log's new begin once enough was trimmed.
    pub(crate) fn write_trimmed_head(&mut self, out: &mut Vec<DiskCommand>) {
        let settings = &self.settings;
        let begin = settings.segment_floor(self.current.begin_seam().pos);
        let covered = settings.segment_floor(self.durable_head.begin_pos);
        if begin <= covered || self.heads_under_way() || self.amnesia {
            return;
        }
        let segments = (begin - covered) / settings.segment_bytes;
        let used = self.growing().tail.pos.saturating_sub(covered) / settings.segment_bytes + 1;
        let free = settings.segments_max.saturating_sub(used);
        if segments >= (settings.segments_max / 8).min(TRIMMED_SEGMENTS)
            || free <= (settings.segments_max / 4).max(2)
        {
            self.write_begin(out);
        }
    }

    /// Hands out a head that says of the current log what is true now.
    pub(crate) fn write_begin(&mut self, out: &mut Vec<DiskCommand>) {
        let begin = Head::of(&self.current, &self.settings, self.head.sequence);
        let Head { tag, members, extra, .. } = self.head;
        self.hand_out_head(Head { tag, members, extra, ..begin }, false, out);
    }
}
