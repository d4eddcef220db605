//! Recovery: from a disk's bytes to a log, and whether it is intact.
//! Owns: the walk over the batches, and telling a torn tail from damage.
//! Never: repairs damage; a log that is not intact is only ever replaced.
//! Invariant: everything that was durable is in a log found intact, and nothing that was not appended.
//! Source: docs/protocol.md, rule 3; `docs/disk-format-log.md`.

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader};
use crate::body::{Body, Seam};
use crate::disk::{DiskError, LogDisk, SlotFile};
use crate::head::{CleanMark, Head, NUMBER_MAX};
use crate::log::Log;
use crate::memory::HeldLog;
use crate::record::{RawRecord, RawRecords};
use crate::ring::{LogPos, Ring};
use crate::settings::{LogSettings, STARTS_MAX};
use crate::swap::generations_of;

/// The walk reads this much at a time.
const READ_BYTES_MAX: u64 = 1 << 20;

/// The search for marks behind the log's end reads this much at a time.
const SCAN_BYTES_MAX: u64 = 256 << 10;

/// What says whether a log is whole. It depends on where its records counted as held in its last life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// On the disk: the marks in it.
    Marks,
    /// In the memory behind the ring, which is still there.
    Memory,
    /// In memory that is gone: only a mark that the log was written out helps.
    CleanMark {
        /// The disk that it must name.
        disk: u64,
        /// The start that it must name: that of the last life.
        start: u64,
    },
}

/// Why a log is not intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AmnesiaWhy {
    /// There is no head at all.
    HeadMissing,
    /// There are head slots, and none is valid.
    HeadInvalid,
    /// The head was written with segments of another length, or with more of them, than the settings name.
    Geometry {
        /// Segment length in the head.
        segment_bytes: u64,
        /// Number of segments in the head.
        segments_max: u64,
    },
    /// The log was written in a later start than this one: the start counter went back.
    LaterStart {
        /// The start counter that the log names.
        found: u64,
        /// That of this start.
        start: u64,
    },
    /// A segment that was in use is gone.
    SegmentMissing {
        /// Its name.
        name: String,
    },
    /// Part of the log cannot be read.
    Unreadable(DiskError),
    /// Its newest records were in memory that is gone, and it was not written out.
    NotWrittenOut,
    /// The memory does not know of the log that the head names.
    NotInMemory,
    /// The log ends elsewhere than the memory, or the mark that it was written out, says.
    EndsElsewhere {
        /// Where it ends.
        at: LogPos,
        /// Where it should end.
        end: LogPos,
    },
    /// Bytes below a place up to which the log was durable are damaged.
    Damaged {
        /// First place that does not validate.
        at: LogPos,
        /// Up to where the log is known to have been durable.
        mark: LogPos,
    },
}

impl std::fmt::Display for AmnesiaWhy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AmnesiaWhy::HeadMissing => write!(f, "the log's head is missing"),
            AmnesiaWhy::HeadInvalid => write!(f, "no slot of the log's head is valid"),
            AmnesiaWhy::Geometry { segment_bytes, segments_max } => {
                write!(f, "the log on disk has {segments_max} segments of {segment_bytes} bytes")
            }
            AmnesiaWhy::LaterStart { found, start } => write!(
                f,
                "the log was written in start {found} of this server, and this is only start {start}: \
                 its view file is older than its log"
            ),
            AmnesiaWhy::SegmentMissing { name } => write!(f, "the log's segment {name} is missing"),
            AmnesiaWhy::Unreadable(error) => write!(f, "the log cannot be read: {error}"),
            AmnesiaWhy::NotWrittenOut => {
                write!(f, "the log's newest records were in memory, and were not written out")
            }
            AmnesiaWhy::NotInMemory => write!(f, "the memory holds another log"),
            AmnesiaWhy::EndsElsewhere { at, end } => {
                write!(f, "the log is whole up to {} only, it ended at {}", at.0, end.0)
            }
            AmnesiaWhy::Damaged { at, mark } => {
                write!(f, "the log is damaged at {}, it was durable up to {}", at.0, mark.0)
            }
        }
    }
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
    /// The log. If it is intact, all of it is durable.
    pub log: Log,
    /// Whether it may be trusted.
    pub verdict: Verdict,
    /// The highest commit point that a batch header named; 0 if none did.
    pub cp_known: u64,
    /// Where a log that is intact ends on disk; a torn tail from there on was cut off.
    pub end: LogPos,
}

/// Why the walk stops before the log's end.
enum Stop {
    NotIntact(AmnesiaWhy),
    /// A write or a sync failed.
    Crash(DiskError),
}

impl Stop {
    fn unreadable(error: DiskError) -> Stop {
        Stop::NotIntact(AmnesiaWhy::Unreadable(error))
    }
}

/// [`recover_by`] the marks on the disk.
pub fn recover(
    disk: &mut dyn LogDisk,
    ring: Ring,
    settings: LogSettings,
) -> Result<Recovered, DiskError> {
    recover_by(disk, ring, settings, Evidence::Marks)
}

/// Reads the log back, into the ring as much of its end as fits: all that was pinned before is there. By
/// [`Evidence::Memory`] it is there already.
///
/// By [`Evidence::Marks`], what was appended last and is whole, but not known to have been durable, is written again and synced.
/// An error means that a write or sync failed: a crash (rule 8).
pub fn recover_by(
    disk: &mut dyn LogDisk,
    ring: Ring,
    settings: LogSettings,
    evidence: Evidence,
) -> Result<Recovered, DiskError> {
    settings.check(&ring);
    // The highest ones found: of a head's write, and of a log.
    let (mut sequence, mut generation) = (0, 0);
    let stop = match read_head(disk, &settings, &mut sequence, &mut generation) {
        Ok(head) => {
            let walk = Walk::new(disk, ring.clone(), settings, head);
            let walked = match evidence {
                Evidence::Marks => walk.run(None),
                Evidence::Memory => walk.run_held(),
                Evidence::CleanMark { disk, start } => walk.run(Some((disk, start))),
            };
            match walked {
                Ok(recovered) => return Ok(recovered),
                Err(stop) => stop,
            }
        }
        Err(stop) => stop,
    };
    if let Stop::NotIntact(AmnesiaWhy::LaterStart { found, .. }) = &stop {
        // It may have numbered logs that no head names any more.
        generation = generation.max(generations_of(*found).end);
    }
    match stop {
        Stop::Crash(error) => Err(error),
        Stop::NotIntact(why) => Ok(Recovered {
            log: Log::forgotten(ring, settings, sequence, generation),
            verdict: Verdict::Amnesia(why),
            cp_known: 0,
            end: LogPos(0),
        }),
    }
}

/// Finds the newest valid head and sees to it that both slots hold it. `sequence` and `generation` become the
/// highest ones found.
fn read_head(
    disk: &mut dyn LogDisk,
    settings: &LogSettings,
    sequence: &mut u64,
    generation: &mut u64,
) -> Result<Head, Stop> {
    let mut missing = true;
    let mut heads: [Option<Head>; 2] = [None, None];
    for (slot, head) in heads.iter_mut().enumerate() {
        let bytes = disk.read_slot(SlotFile::LogHead, slot).map_err(Stop::unreadable)?;
        missing &= bytes.is_none();
        *head = bytes.as_deref().and_then(Head::read).filter(|h| h.sequence % 2 == slot as u64);
    }
    let newest = heads.iter().flatten().max_by_key(|head| head.sequence).copied();
    let why = if missing { AmnesiaWhy::HeadMissing } else { AmnesiaWhy::HeadInvalid };
    let mut head = newest.ok_or(Stop::NotIntact(why))?;
    *sequence = head.sequence;
    *generation = heads.iter().flatten().map(|head| head.generation).max().unwrap_or(0);
    let Head { segment_bytes, segments_max, .. } = head;
    if !settings.allow(segment_bytes, segments_max) {
        return Err(Stop::NotIntact(AmnesiaWhy::Geometry { segment_bytes, segments_max }));
    }
    if let Some(name) = disk.lost_segment(LogPos(head.begin_pos)).map_err(Stop::unreadable)? {
        return Err(Stop::NotIntact(AmnesiaWhy::SegmentMissing { name }));
    }
    let mirrored =
        heads.iter().flatten().filter(|other| other.says_the_same_as(&head)).count() == 2;
    if !mirrored {
        head.sequence += 1;
        *sequence = head.sequence;
        let slot = (head.sequence % 2) as usize;
        disk.write_slot(SlotFile::LogHead, slot, &head.to_bytes()).map_err(Stop::Crash)?;
    }
    Ok(head)
}

impl LogSettings {
    /// What a later start wrote is not to be added to: its batches would not take ours for their successors.
    fn not_from_later(&self, found: u64) -> Result<(), Stop> {
        if found > self.start {
            return Err(Stop::NotIntact(AmnesiaWhy::LaterStart { found, start: self.start }));
        }
        Ok(())
    }
}

/// Where the walk looks for the log's bytes.
struct Seen {
    ring: Ring,
    /// The ring holds the log's bytes from here on; below, they are read into `aside`.
    held: Option<u64>,
    /// The ring, or `aside`, holds the disk's bytes of this range, within one segment.
    loaded: std::ops::Range<u64>,
    aside: Vec<u8>,
}

impl Seen {
    fn is_held(&self, at: u64) -> bool {
        self.held.is_some_and(|floor| at >= floor)
    }

    /// Bytes that are loaded or held.
    fn bytes(&self, at: u64, len: u32) -> &[u8] {
        if self.held.is_none() || self.is_held(at) {
            return self.ring.bytes(LogPos(at), len);
        }
        let from = (at - self.loaded.start) as usize;
        &self.aside[from..from + len as usize]
    }
}

struct Walk<'a> {
    disk: &'a mut dyn LogDisk,
    settings: LogSettings,
    head: Head,
    body: Body,
    seen: Seen,
    /// Start counter of the newest batch.
    start: u64,
    /// The log was durable up to here, as head and batches say.
    mark: u64,
    cp_known: u64,
    /// Where the last batch lies, and the end of the last record.
    last_batch: u64,
    records_end: u64,
}

impl<'a> Walk<'a> {
    fn new(disk: &'a mut dyn LogDisk, ring: Ring, settings: LogSettings, head: Head) -> Walk<'a> {
        let seam = Seam {
            pos: head.begin_pos,
            op: head.begin_op - 1,
            chain: head.chain,
            prev_header: head.prev_header,
        };
        let body = Body::new(ring.clone(), settings.segment_bytes, head.generation, seam);
        let (loaded, mark) = (head.begin_pos..head.begin_pos, head.durable_mark);
        let seen = Seen { ring, held: None, loaded, aside: Vec::new() };
        let (last_batch, records_end) = (head.begin_pos, head.begin_pos);
        let (start, cp_known) = (0, 0);
        Walk { disk, settings, head, body, seen, start, mark, cp_known, last_batch, records_end }
    }

    /// By what is on the disk. `clean`: whose mark must be there that the log was written out.
    fn run(mut self, clean: Option<(u64, u64)>) -> Result<Recovered, Stop> {
        let written_out = clean.map(|(disk, start)| match self.head.clean {
            Some(mark) if mark.disk == disk && mark.start == start => Ok(mark),
            _ => Err(Stop::NotIntact(AmnesiaWhy::NotWrittenOut)),
        });
        let written_out = written_out.transpose()?;
        // An empty batch of an earlier end may stand behind what was written out last.
        let upto = written_out.map_or(self.window_end(), |_| self.head.durable_mark);
        while self.body.tail.pos < upto {
            if !self.step()? {
                break;
            }
        }
        let end = self.body.tail.pos;
        let mark = self.mark.max(self.mark_beyond(end)?);
        if mark > end {
            let (at, mark) = (LogPos(end), LogPos(mark));
            return Err(Stop::NotIntact(AmnesiaWhy::Damaged { at, mark }));
        }
        if let Some(CleanMark { end: end_op, .. }) = written_out
            && (self.head.durable_mark, end_op) != (end, self.body.end())
        {
            let (at, end) = (LogPos(end), LogPos(self.head.durable_mark));
            return Err(Stop::NotIntact(AmnesiaWhy::EndsElsewhere { at, end }));
        }
        self.write_again(end).map_err(Stop::Crash)?;
        self.load_overwritten(end)?;
        self.body.written = (self.body.end(), end);
        self.body.durable = self.body.written;
        let records_end = self.records_end;
        if let Some(memory) = self.seen.ring.memory_head() {
            // Whatever else was in the ring, this is what it holds from now on.
            memory.forget();
            let floor = end.saturating_sub(self.seen.ring.len());
            let held = HeldLog { slot: 0, end: records_end, written: end, floor };
            self.body.slot = memory.take_in(self.body.generation, held, &[]);
        }
        Ok(self.found())
    }

    /// By what is in memory, which the last life left as it stood, and below that on the disk.
    fn run_held(mut self) -> Result<Recovered, Stop> {
        let ring = self.seen.ring.clone();
        let memory = ring.memory_head().expect("memory that outlives the process has a head");
        let found = memory.find(self.head.generation);
        let HeldLog { slot, end, written, floor } =
            found.ok_or(Stop::NotIntact(AmnesiaWhy::NotInMemory))?;
        self.seen.held = Some(floor);
        self.body.slot = slot;
        let mut unwritten = Vec::new();
        // Empty batches behind the last record are the log's too: one left out would stand, whole, where the next
        // batch keeps its header's place free, and would be taken for it after one more end of the process.
        while self.step()? || self.body.tail.pos < end && self.close_open(end) {
            let (from, tail) = (self.last_batch, self.body.tail);
            if tail.pos <= written {
                self.body.written = (tail.op, tail.pos);
            } else {
                unwritten.push((from, tail.pos - from, tail.op));
            }
        }
        if self.records_end != end.max(self.head.begin_pos) {
            let (at, end) = (LogPos(self.records_end), LogPos(end));
            return Err(Stop::NotIntact(AmnesiaWhy::EndsElsewhere { at, end }));
        }
        self.body.durable = self.body.written;
        // Another log may have lain where this one's end was; that one is given up now, and this one comes back.
        memory.keep_only(slot);
        let tail = self.body.tail.pos;
        let lowest = tail.saturating_sub(ring.len()).max(self.head.begin_pos);
        self.load_into_ring(lowest, floor.min(tail))?;
        memory.lower_floor(slot, lowest.min(floor));
        self.body.forget_below(lowest);
        let generation = self.head.generation;
        let mut recovered = self.found();
        for (pos, bytes, end_op) in unwritten {
            recovered.log.push_write(generation, pos, bytes, end_op);
        }
        recovered.log.refresh_limits();
        Ok(recovered)
    }

    /// The log as it was found.
    fn found(self) -> Recovered {
        let mut body = self.body;
        let end = LogPos(body.tail.pos);
        body.mark = self.mark;
        body.cp_named = self.cp_known;
        body.pin = body.memory_begin() - 1;
        body.tag = (self.head.tag != 0).then_some(self.head.tag);
        body.members = self.head.members;
        let mut log = Log::of(self.seen.ring, self.settings, body, self.head);
        log.cp = self.cp_known;
        let (verdict, cp_known) = (Verdict::Intact, self.cp_known);
        Recovered { log, verdict, cp_known, end }
    }

    /// Closes the batch that was open when the process ended, whose records end at `end`. False if they are not
    /// whole.
    fn close_open(&mut self, end: u64) -> bool {
        let tail = self.body.tail;
        let segment_end = self.settings.segment_floor(tail.pos) + self.settings.segment_bytes;
        let pos = if end <= segment_end { tail.pos } else { segment_end };
        let first = pos + BATCH_HEADER_BYTES as u64;
        if !self.seen.is_held(pos) || end <= first || end - pos > self.settings.segment_bytes {
            return false;
        }
        let records = self.seen.ring.bytes(LogPos(first), (end - first) as u32);
        let (mut at, mut count, mut chain) = (first, 0u32, tail.chain);
        for record in RawRecords::new(records) {
            let next = tail.op + 1 + u64::from(count);
            let Some(record) = record.ok().filter(|record| record.follows(next, chain).is_ok())
            else {
                return false;
            };
            chain = Some(record.header().crc);
            self.body.push_record(at, record.header().crc);
            at += u64::from(record.header().len);
            count += 1;
        }
        let header = BatchHeader {
            crc: 0,
            generation: self.head.generation,
            pos,
            first_op: tail.op + 1,
            durable_mark: self.body.written.1,
            cp: self.cp_known,
            start: self.settings.start,
            count,
            record_bytes: (end - first) as u32,
            prev_header: tail.prev_header,
            end_crc: chain.unwrap_or(0),
        };
        let bytes = header.padded_bytes();
        // SAFETY: nobody else has the ring yet. The header's place was kept free, and what lies behind the
        // records is beyond the log's end.
        let space = unsafe { self.seen.ring.bytes_mut(LogPos(pos), bytes as u32) };
        let crc = header.write(space);
        space[(end - pos) as usize..].fill(0);
        self.body.push_batch(pos, bytes, crc);
        self.start = self.settings.start;
        (self.last_batch, self.records_end) = (pos, end);
        true
    }

    /// Beyond this, positions fall on segments that the head covers.
    fn window_end(&self) -> u64 {
        self.settings.segment_floor(self.head.begin_pos) + self.settings.disk_bytes()
    }

    /// Takes in the next batch. False if there is none.
    fn step(&mut self) -> Result<bool, Stop> {
        let pos = self.body.tail.pos;
        self.load(pos, pos + BLOCK_BYTES)?;
        let block = self.seen.bytes(pos, BATCH_HEADER_BYTES as u32);
        if let Some(header) = BatchHeader::read(block).filter(|header| self.fits(header, pos))
            && self.take_in(&header)?
        {
            return Ok(true);
        }
        // The next record may not have fitted into the rest of the segment.
        let next = self.settings.segment_floor(pos) + self.settings.segment_bytes;
        if pos.is_multiple_of(self.settings.segment_bytes) || next >= self.window_end() {
            return Ok(false);
        }
        let mut block = [0; BLOCK_BYTES as usize];
        if self.seen.is_held(next) {
            block.copy_from_slice(self.seen.bytes(next, BLOCK_BYTES as u32));
        } else {
            self.disk.read(LogPos(next), &mut block).map_err(Stop::unreadable)?;
        }
        match BatchHeader::read(&block).filter(|header| self.fits(header, next)) {
            Some(header) => self.take_in(&header),
            None => Ok(false),
        }
    }

    /// Whether the header of a batch at `pos` continues the log.
    fn fits(&self, header: &BatchHeader, pos: u64) -> bool {
        let segment_end = self.settings.segment_floor(pos) + self.settings.segment_bytes;
        header.generation == self.head.generation
            && header.pos == pos
            && header.first_op == self.body.end() + 1
            && header.prev_header == self.body.tail.prev_header
            && (self.start..STARTS_MAX).contains(&header.start)
            && header.durable_mark <= pos
            && header.durable_mark.is_multiple_of(BLOCK_BYTES)
            && header.padded_bytes() <= segment_end - pos
    }

    /// Reads the disk's bytes up to `upto`, from `pos` on at the latest, unless the ring holds the log there.
    fn load(&mut self, pos: u64, upto: u64) -> Result<(), Stop> {
        if self.seen.is_held(pos) {
            return Ok(());
        }
        let Seen { ring, held, loaded, aside } = &mut self.seen;
        let fits = (loaded.start..=loaded.end).contains(&pos) && upto <= loaded.end;
        let segment_end = self.settings.segment_floor(pos) + self.settings.segment_bytes;
        if held.is_some() {
            if !fits {
                let upto = upto.max(pos + READ_BYTES_MAX).min(segment_end);
                aside.resize((upto - pos) as usize, 0);
                self.disk.read(LogPos(pos), aside).map_err(Stop::unreadable)?;
                *loaded = pos..upto;
            }
            return Ok(());
        }
        if !(loaded.start..=loaded.end).contains(&pos)
            || loaded.end.is_multiple_of(self.settings.segment_bytes) && pos == loaded.end
        {
            *loaded = pos..pos;
        }
        if upto <= loaded.end {
            return Ok(());
        }
        let from = loaded.end;
        let chunk = READ_BYTES_MAX.min(ring.len() / 8).max(BLOCK_BYTES);
        let upto = upto.max(from + chunk).min(segment_end);
        // SAFETY: nobody else has the ring yet. What lay here one ring length ago is out of the index or
        // is read again at the end of the walk.
        let into = unsafe { ring.bytes_mut(LogPos(from), (upto - from) as u32) };
        self.disk.read(LogPos(from), into).map_err(Stop::unreadable)?;
        loaded.end = upto;
        Ok(())
    }

    /// Reads again what lay in the ring where the walk read beyond the log's end.
    fn load_overwritten(&mut self, end: u64) -> Result<(), Stop> {
        let ring = &self.seen.ring;
        let upto = self.seen.loaded.end.saturating_sub(ring.len()).min(end);
        let from = end.saturating_sub(ring.len()).max(self.head.begin_pos);
        self.load_into_ring(from, upto)
    }

    /// Reads the disk's bytes into their place in the ring.
    fn load_into_ring(&mut self, from: u64, upto: u64) -> Result<(), Stop> {
        let ring = &self.seen.ring;
        let mut at = from;
        while at < upto {
            let segment_end = self.settings.segment_floor(at) + self.settings.segment_bytes;
            let bytes = (upto.min(segment_end) - at).min(READ_BYTES_MAX);
            // SAFETY: nobody else has the ring yet; what lies here is beyond the log's end, or of a log given up.
            let into = unsafe { ring.bytes_mut(LogPos(at), bytes as u32) };
            self.disk.read(LogPos(at), into).map_err(Stop::unreadable)?;
            at += bytes;
        }
        Ok(())
    }

    /// Takes in the batch under `header` if its records are whole and continue the log.
    fn take_in(&mut self, header: &BatchHeader) -> Result<bool, Stop> {
        let (pos, bytes) = (header.pos, header.padded_bytes());
        self.load(pos, pos + bytes)?;
        let first = pos + BATCH_HEADER_BYTES as u64;
        let records = self.seen.bytes(first, header.record_bytes);
        if !whole(header, records, self.body.end_chain()) {
            return Ok(false);
        }
        let mut at = first;
        while at < first + header.record_bytes as u64 {
            let bytes = &records[(at - first) as usize..];
            let record = crate::record::RecordHeader::read(bytes);
            self.body.push_record(at, record.crc);
            at += record.len as u64;
        }
        self.settings.not_from_later(header.start)?;
        self.body.push_batch(pos, bytes, header.crc);
        self.body.forget_below((pos + bytes).saturating_sub(self.seen.ring.len()));
        self.last_batch = pos;
        if header.count > 0 {
            self.records_end = at;
        }
        self.start = header.start;
        self.mark = self.mark.max(header.durable_mark);
        self.cp_known = self.cp_known.max(header.cp);
        Ok(true)
    }

    /// The highest durable mark in batches of this log behind its `end`, or any that is above it.
    ///
    /// The rest of the end's segment and the next segment are searched block by block; of others the first
    /// block tells whether this log reached them. If it did, or that block tells nothing, they are searched too: one
    /// sync may have covered a whole segment and the first batches of another, which all have the mark before it.
    fn mark_beyond(&mut self, end: u64) -> Result<u64, Stop> {
        let segment_bytes = self.settings.segment_bytes;
        let next = self.settings.segment_floor(end) + segment_bytes;
        let mut mark = self.scan(end, next.min(self.window_end()))?;
        let mut block = [0; BLOCK_BYTES as usize];
        for segment in (next..self.window_end()).step_by(segment_bytes as usize) {
            if mark > end {
                break;
            }
            self.disk.read(LogPos(segment), &mut block).map_err(Stop::unreadable)?;
            let reached = match BatchHeader::read(&block) {
                Some(header) => header.pos == segment && header.generation == self.head.generation,
                None => block.iter().any(|byte| *byte != 0),
            };
            if segment == next || reached {
                mark = mark.max(self.scan(segment, segment + segment_bytes)?);
            }
        }
        Ok(mark)
    }

    fn scan(&mut self, from: u64, upto: u64) -> Result<u64, Stop> {
        let mut mark = 0;
        let mut chunk = vec![0; SCAN_BYTES_MAX.min(upto.saturating_sub(from)) as usize];
        let mut at = from;
        while at < upto {
            let bytes = chunk.len().min((upto - at) as usize);
            self.disk.read(LogPos(at), &mut chunk[..bytes]).map_err(Stop::unreadable)?;
            for block in chunk[..bytes].chunks(BLOCK_BYTES as usize) {
                mark = mark.max(self.mark_in(block, at));
                at += block.len() as u64;
            }
        }
        Ok(mark)
    }

    fn mark_in(&self, block: &[u8], at: u64) -> u64 {
        match BatchHeader::read(block) {
            Some(header) if header.generation == self.head.generation && header.pos == at => {
                header.durable_mark.min(NUMBER_MAX)
            }
            _ => 0,
        }
    }

    /// Writes what is above the mark once more and syncs: the process that wrote it may have ended before its
    /// sync, or at a failed one.
    fn write_again(&mut self, end: u64) -> Result<(), DiskError> {
        let mut chunk = Vec::new();
        let mut at = self.mark;
        while at < end {
            let segment_end = self.settings.segment_floor(at) + self.settings.segment_bytes;
            let upto = (at + SCAN_BYTES_MAX).min(segment_end).min(end);
            chunk.resize((upto - at) as usize, 0);
            self.disk.read(LogPos(at), &mut chunk)?;
            self.disk.write(LogPos(at), &chunk)?;
            at = upto;
        }
        self.disk.sync()
    }
}

/// Whether `records` are what `header` says, after a record with checksum `chain`.
fn whole(header: &BatchHeader, records: &[u8], mut chain: Option<u32>) -> bool {
    let mut count = 0;
    for record in RawRecords::new(records) {
        let fits = |record: &RawRecord<'_>| record.follows(header.first_op + count, chain).is_ok();
        match record {
            Ok(record) if fits(&record) => chain = Some(record.header().crc),
            _ => return false,
        }
        count += 1;
    }
    count == header.count as u64 && chain.unwrap_or(0) == header.end_crc
}
