//! One log: which records it has, where they lie in memory and on disk.
//! Owns: the index from ops to positions, the log's ends, its tag.
//! Never: writes a byte; `Log` does.
//! Invariant: records in memory are the newest ones, without a gap; groups hold every closed batch
//! from `begin` on.

use std::collections::VecDeque;

use crate::record::{RECORD_HEADER_BYTES, Record, RecordHeader};
use crate::ring::{LogPos, Ring};

/// Neighbouring batches are indexed together up to this many bytes.
const GROUP_BYTES_MAX: u64 = 64 << 10;

/// Neighbouring batches of one segment, as they lie on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Position of the first batch.
    pub pos: u64,
    /// Its first op.
    pub first_op: u64,
    /// Bytes of all its batches.
    pub bytes: u32,
    /// Checksum of the header of the batch before.
    pub prev_header: u32,
    /// Checksum of the record before, where known.
    pub chain: Option<u32>,
}

impl Group {
    pub fn end_pos(&self) -> u64 {
        self.pos + self.bytes as u64
    }
}

/// A point of the log between two batches: what the next batch must fit to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seam {
    /// End of the batch before, padded. The next one is here or at the next segment's start.
    pub pos: u64,
    /// Last op before.
    pub op: u64,
    /// Checksum of that record, where known.
    pub chain: Option<u32>,
    /// Checksum of the header of the batch before; 0 if there is none.
    pub prev_header: u32,
}

/// One log. A server has a current one, and at times a staged one that is to replace it.
#[derive(Debug)]
pub struct Body {
    ring: Ring,
    segment_bytes: u64,
    pub(crate) generation: u64,
    pub(crate) on_disk: bool,
    pub(crate) source_view: u64,
    pub(crate) tag: Option<u64>,
    pub(crate) members: u8,
    /// Its place in the head of memory that outlives the process.
    pub(crate) slot: usize,
    /// First op held.
    begin: u64,
    /// Last op, and the checksum of its record where known.
    end: u64,
    end_chain: Option<u32>,
    /// After the last closed batch.
    pub(crate) tail: Seam,
    /// Ops and positions written, and durable. Never above `tail`.
    pub(crate) written: (u64, u64),
    pub(crate) durable: (u64, u64),
    /// Mark in the newest header or head, and end of the last batch that has records.
    pub(crate) mark: u64,
    pub(crate) records_end: u64,
    /// Commit point that the newest batch names.
    pub(crate) cp_named: u64,
    /// Records above this op stay in memory.
    pub(crate) pin: u64,
    /// Positions of the records in memory; the first is of op `memory_begin`.
    memory: VecDeque<u64>,
    memory_begin: u64,
    groups: VecDeque<Group>,
}

impl Body {
    /// An empty log; its first batch goes to `seam.pos` or behind it.
    pub(crate) fn new(ring: Ring, segment_bytes: u64, generation: u64, seam: Seam) -> Body {
        Body {
            ring,
            segment_bytes,
            generation,
            on_disk: true,
            source_view: 0,
            tag: None,
            members: 0,
            slot: 0,
            begin: seam.op + 1,
            end: seam.op,
            end_chain: seam.chain,
            tail: seam,
            written: (seam.op, seam.pos),
            durable: (seam.op, seam.pos),
            mark: seam.pos,
            records_end: seam.pos,
            cp_named: 0,
            pin: seam.op,
            memory: VecDeque::new(),
            memory_begin: seam.op + 1,
            groups: VecDeque::new(),
        }
    }

    /// First op the log holds; `end() + 1` if it is empty.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Last op the log holds.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.begin > self.end
    }

    /// Ops up to here are durable on this disk.
    pub fn durable(&self) -> u64 {
        self.durable.0
    }

    /// The log's number on this disk; never used again for another log.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The view the log is durably complete for, as the log's user numbers it. `None`: no vote.
    pub fn tag(&self) -> Option<u64> {
        self.tag
    }

    /// The members of the tag's view, one bit each; 0 without a tag.
    pub fn members(&self) -> u8 {
        self.members
    }

    /// The view whose log this one copies, while it is staged.
    pub fn source_view(&self) -> u64 {
        self.source_view
    }

    /// Whether its records go to disk as they come.
    pub fn on_disk(&self) -> bool {
        self.on_disk
    }

    /// Checksum of the record before `begin()`, where known.
    pub fn begin_chain(&self) -> Option<u32> {
        self.begin_seam().chain
    }

    /// Checksum of the last record, where known.
    pub fn end_chain(&self) -> Option<u32> {
        self.end_chain
    }

    /// First op that lies in memory; `end() + 1` if none does. It may lie below `begin()`.
    pub fn memory_begin(&self) -> u64 {
        self.memory_begin
    }

    fn position(&self, op: u64) -> Option<u64> {
        let index = op.checked_sub(self.memory_begin)?;
        self.memory.get(usize::try_from(index).ok()?).copied()
    }

    /// The record of `op`, if it lies in memory.
    pub fn record(&self, op: u64) -> Option<Record<'_>> {
        let at = LogPos(self.position(op)?);
        let header = RecordHeader::read(self.ring.bytes(at, RECORD_HEADER_BYTES as u32));
        assert_eq!(header.op, op, "the index names a position of another record");
        let body = self.ring.bytes(at.plus(RECORD_HEADER_BYTES as u64), header.body_len);
        Some(Record { header, at, body })
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
        let first = self.position(from_op)?;
        let skip = (from_op - self.memory_begin) as usize;
        let mut last = from_op - 1;
        let (mut run, mut run_bytes, mut total) = (first, 0u32, 0usize);
        for &at in self.memory.range(skip..) {
            let header = self.ring.bytes(LogPos(at), 4);
            let len = u32::from_le_bytes(header.try_into().expect("four bytes"));
            if total > 0 && total + len as usize > max_bytes {
                break;
            }
            if at != run + run_bytes as u64 {
                out.push((LogPos(run), run_bytes));
                (run, run_bytes) = (at, 0);
            }
            run_bytes += len;
            total += len as usize;
            last += 1;
        }
        out.push((LogPos(run), run_bytes));
        Some(last)
    }

    /// An extent on disk that holds `from_op` and what follows it: whole batches within one segment, up
    /// to `max_bytes` but at least the batches indexed with `from_op`'s. Read it, then hand the bytes to
    /// [`crate::parse_extent`]. `None`: the log does not hold the op, or it is not written yet (then it
    /// lies in memory).
    pub fn disk_extent(&self, from_op: u64, max_bytes: usize) -> Option<(LogPos, u32)> {
        let (written_op, written_pos) = self.written;
        if !self.on_disk || from_op < self.begin || from_op > written_op {
            return None;
        }
        let after = self.groups.partition_point(|group| group.first_op <= from_op);
        let mut groups = self.groups.range(after.checked_sub(1)?..);
        let first = groups.next()?;
        let mut end = first.end_pos().min(written_pos);
        for group in groups {
            let same_segment = group.pos / self.segment_bytes == first.pos / self.segment_bytes;
            let more = group.end_pos().min(written_pos);
            let fits = more > group.pos && more - first.pos <= max_bytes as u64;
            if group.pos != end || !same_segment || !fits {
                break;
            }
            end = more;
        }
        Some((LogPos(first.pos), (end - first.pos) as u32))
    }

    /// What the first batch must fit to.
    pub(crate) fn begin_seam(&self) -> Seam {
        match self.groups.front() {
            Some(group) => Seam {
                pos: group.pos,
                op: group.first_op - 1,
                chain: group.chain,
                prev_header: group.prev_header,
            },
            None => self.tail,
        }
    }

    /// Takes in a record at `pos`, which lies in memory.
    pub(crate) fn push_record(&mut self, pos: u64, crc: u32) -> u64 {
        self.end += 1;
        self.end_chain = Some(crc);
        self.memory.push_back(pos);
        self.end
    }

    /// Takes in a closed batch of `bytes` bytes at `pos` that ends with the last record.
    pub(crate) fn push_batch(&mut self, pos: u64, bytes: u64, header_crc: u32) {
        let limit = GROUP_BYTES_MAX.min(self.segment_bytes / 8);
        let seam = self.tail;
        match self.groups.back_mut() {
            Some(group)
                if group.end_pos() == pos
                    && group.pos / self.segment_bytes == pos / self.segment_bytes
                    && group.bytes as u64 + bytes <= limit =>
            {
                group.bytes += bytes as u32;
            }
            _ => self.groups.push_back(Group {
                pos,
                first_op: seam.op + 1,
                bytes: bytes as u32,
                prev_header: seam.prev_header,
                chain: seam.chain,
            }),
        }
        self.tail =
            Seam { pos: pos + bytes, op: self.end, chain: self.end_chain, prev_header: header_crc };
        if self.end > seam.op {
            self.records_end = self.tail.pos;
        }
    }

    /// Drops groups whose records are all at or below `op` and that need not be written any more.
    pub(crate) fn trim(&mut self, op: u64) {
        let settled = if self.on_disk { self.written.1 } else { self.tail.pos };
        while let Some(front) = self.groups.front() {
            let last_op = self.groups.get(1).map_or(self.tail.op, |next| next.first_op - 1);
            if last_op > op || front.end_pos() > settled {
                break;
            }
            self.groups.pop_front();
        }
        self.begin = self.begin_seam().op + 1;
    }

    /// Memory below position `floor` is about to be used again.
    pub(crate) fn forget_below(&mut self, floor: u64) {
        while self.memory.front().is_some_and(|pos| *pos < floor) {
            self.memory.pop_front();
            self.memory_begin += 1;
        }
        if !self.on_disk {
            while self.groups.front().is_some_and(|group| group.pos < floor) {
                self.groups.pop_front();
            }
            self.begin = self.begin_seam().op + 1;
        }
    }

    /// Position of the oldest record or, for a log in memory only, batch that memory holds.
    pub(crate) fn memory_floor(&self) -> Option<u64> {
        let record = self.memory.front().copied();
        let group = self.groups.front().filter(|_| !self.on_disk).map(|group| group.pos);
        record.into_iter().chain(group).min()
    }

    /// Lowest position in memory that the pin protects. A log in memory only needs whole batches, or
    /// they could not be written later.
    pub(crate) fn pinned_floor(&self) -> Option<u64> {
        let op = self.pin.saturating_add(1).max(self.memory_begin);
        let record = self.position(op)?;
        if self.on_disk {
            return Some(record);
        }
        let after = self.groups.partition_point(|group| group.first_op <= op);
        let group = after.checked_sub(1).map(|index| self.groups[index]);
        Some(group.filter(|group| record < group.end_pos()).map_or(record, |group| group.pos))
    }

    /// The groups, oldest first.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    /// For an empty log: its first batch goes to `pos` or behind it.
    pub(crate) fn move_empty(&mut self, pos: u64) {
        assert!(self.is_empty() && pos >= self.tail.pos, "only an empty log moves, and forward");
        self.groups.clear();
        self.tail.pos = pos;
        self.written.1 = pos;
        self.durable.1 = pos;
        self.mark = pos;
        self.records_end = pos;
    }
}
