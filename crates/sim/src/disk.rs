//! One server's log disk: segments behind a page cache, and two small double-slot files.
//! Owns: what is durable, what is only in the cache, and the damage that faults do.
//! Never: takes time of its own; the server that owns it says when a command is done.
//! Invariant: `undo` holds the durable bytes of exactly those pages whose cached bytes may differ.
//! Source: the manners of page caches and disks, failed syncs included: a page whose sync failed
//! counts as clean and is on no disk.

use std::collections::{BTreeMap, BTreeSet};

use harp_node::log::{DiskError, LogDisk, LogPos, SLOT_BYTES, SlotFile, head_begin};

use crate::rng::Rng;

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
/// Writes remembered so that damage can be aimed at flushed records.
const RECENT_MAX: usize = 64;
/// A flushed write is fair game for silent damage once this many later ones were synced too.
const LATER_SYNCED_MIN: usize = 3;

type Page = Box<[u8; PAGE_BYTES]>;

/// Which command shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The next write to the log.
    Write,
    /// The next sync of the log.
    Sync,
    /// Room for the next write to the log: it is not begun.
    Room,
    /// The next write of this small file.
    Slot(SlotFile),
}

/// A small file: two slots, never-written ones zero.
type SmallFile = Option<Box<[[u8; SLOT_BYTES]; 2]>>;

/// The disk. It outlives the processes that use it.
#[derive(Debug)]
pub struct SimLogDisk {
    segment_bytes: u64,
    segments: Vec<Option<Box<[u8]>>>,
    undo: BTreeMap<u64, Page>,
    /// Pages that the next sync makes durable.
    dirty: BTreeSet<u64>,
    spare: Vec<Page>,
    files: [SmallFile; 2],
    /// The command that shall fail, if any.
    pub failing: Option<Failing>,
    /// (position, bytes) of the newest synced writes, oldest first.
    recent: Vec<(u64, u64)>,
    unsynced: Vec<(u64, u64)>,
    /// What the pages of those writes held before, durably.
    former: BTreeMap<u64, Page>,
    /// Segments that were in use are gone; known until both slots of a new head are written.
    lost: u8,
    /// Bytes written to the log so far.
    pub bytes_written: u64,
}

fn error(what: &str, os_code: i32) -> DiskError {
    DiskError { what: what.to_string(), os_code: Some(os_code) }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl SimLogDisk {
    /// An empty disk with room for `segments` segments.
    pub fn new(segment_bytes: u64, segments: u64) -> SimLogDisk {
        assert!(segment_bytes.is_multiple_of(PAGE_BYTES as u64) && segments > 0);
        SimLogDisk {
            segment_bytes,
            segments: (0..segments).map(|_| None).collect(),
            lost: 0,
            undo: BTreeMap::new(),
            dirty: BTreeSet::new(),
            spare: Vec::new(),
            files: [None, None],
            failing: None,
            recent: Vec::new(),
            unsynced: Vec::new(),
            former: BTreeMap::new(),
            bytes_written: 0,
        }
    }

    /// Bytes of all segments together.
    fn bytes(&self) -> u64 {
        self.segment_bytes * self.segments.len() as u64
    }

    /// Where position `at` lies: segment and offset in it.
    fn place(&self, at: u64) -> (usize, usize) {
        let segment = (at / self.segment_bytes) % self.segments.len() as u64;
        (segment as usize, (at % self.segment_bytes) as usize)
    }

    fn segment(&mut self, segment: usize) -> &mut [u8] {
        let bytes = self.segment_bytes as usize;
        self.segments[segment].get_or_insert_with(|| vec![0; bytes].into_boxed_slice())
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        let per_segment = self.segment_bytes / PAGE_BYTES as u64;
        let offset = (page % per_segment) as usize * PAGE_BYTES;
        &mut self.segment((page / per_segment) as usize)[offset..offset + PAGE_BYTES]
    }

    /// Number of the page, over all segments, that position `at` lies in.
    fn page_of(&self, at: u64) -> u64 {
        let (segment, offset) = self.place(at);
        (segment as u64 * self.segment_bytes + offset as u64) / PAGE_BYTES as u64
    }

    /// Puts `bytes` into the cache; nothing is durable yet.
    fn cache(&mut self, at: u64, bytes: &[u8]) {
        let first = self.page_of(at);
        for (page, new) in (first..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            if !self.undo.contains_key(&page) {
                let mut old = self.spare.pop().unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
                old.copy_from_slice(self.page(page));
                self.undo.insert(page, old);
            }
            self.dirty.insert(page);
            self.page(page).copy_from_slice(new);
        }
    }

    /// The machine loses power: each sector that was not synced is old or new, as `rng` says.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        let undo = std::mem::take(&mut self.undo);
        let spared = rng.below(1001) as u32; // some crashes keep nearly all, some nearly nothing
        for (page, old) in undo {
            let now = self.page(page);
            for sector in 0..PAGE_BYTES / SECTOR_BYTES {
                if !rng.chance(spared) {
                    let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    now[range.clone()].copy_from_slice(&old[range]);
                }
            }
            self.spare.push(old);
        }
        self.dirty.clear();
        self.unsynced.clear();
        self.failing = None;
    }

    /// A write was under way when the process or machine died: a first part reaches the cache.
    pub fn write_part(&mut self, at: LogPos, bytes: &[u8], rng: &mut Rng) {
        let pages = (bytes.len() / PAGE_BYTES) as u64;
        let part = rng.between(0, pages) as usize * PAGE_BYTES;
        self.cache(at.0, &bytes[..part]);
    }

    /// A slot was being written when power went: each of its sectors is old or new.
    pub fn tear_slot(&mut self, file: SlotFile, slot: usize, bytes: &[u8], rng: &mut Rng) {
        let slots = self.files[file as usize].get_or_insert_with(|| Box::new([[0; SLOT_BYTES]; 2]));
        let mut new = [0; SLOT_BYTES];
        new[..bytes.len()].copy_from_slice(bytes);
        for sector in 0..SLOT_BYTES / SECTOR_BYTES {
            if rng.chance(500) {
                let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                slots[slot][range.clone()].copy_from_slice(&new[range]);
            }
        }
    }

    /// Everything is gone.
    pub fn wipe(&mut self) {
        *self = SimLogDisk::new(self.segment_bytes, self.segments.len() as u64);
    }

    /// The log's head file is gone.
    pub fn lose_head(&mut self) {
        self.files[SlotFile::LogHead as usize] = None;
    }

    /// Both slots of a small file are damaged.
    pub fn damage_file(&mut self, file: SlotFile) {
        if let Some(slots) = &mut self.files[file as usize] {
            slots.iter_mut().for_each(|slot| slot[8..16].fill(0xa5));
        }
    }

    /// The view file is gone.
    pub fn lose_view(&mut self) {
        self.files[SlotFile::View as usize] = None;
    }

    /// All segments are gone: like those that were never written, they read as zeros. Returns whether there were
    /// any.
    pub fn lose_segments(&mut self) -> bool {
        let any = self.segments.iter().any(Option::is_some);
        if any {
            self.lost = 2;
        }
        self.segments.iter_mut().for_each(|segment| *segment = None);
        self.undo.clear();
        self.dirty.clear();
        self.recent.clear();
        self.unsynced.clear();
        self.former.clear();
        any
    }

    /// A write that was synced a while ago.
    fn pick_flushed(&self, rng: &mut Rng) -> Option<(u64, u64)> {
        let old = self.recent.len().checked_sub(LATER_SYNCED_MIN).filter(|old| *old > 0)?;
        Some(self.recent[rng.below(old as u64) as usize])
    }

    /// A write that was synced a while ago never reached the medium. Returns whether there was one.
    pub fn lose_flushed(&mut self, rng: &mut Rng) -> bool {
        let Some(lost) = self.pick_flushed(rng) else { return false };
        self.undo_flushed(lost);
        true
    }

    /// The pages of a write hold again what they held before it.
    fn undo_flushed(&mut self, (at, bytes): (u64, u64)) {
        let first = self.page_of(at);
        for page in first..first + bytes / PAGE_BYTES as u64 {
            let before = self.former.remove(&page);
            match before {
                Some(before) => self.page(page).copy_from_slice(&before[..]),
                None => self.page(page).fill(0),
            }
        }
    }

    /// A write that was synced a while ago went over another such one. Returns whether there were two.
    pub fn misdirect_flushed(&mut self, rng: &mut Rng) -> bool {
        let (Some(stray), Some(over)) = (self.pick_flushed(rng), self.pick_flushed(rng)) else {
            return false;
        };
        if stray == over {
            return false;
        }
        let (from, to) = (self.page_of(stray.0), self.page_of(over.0));
        for page in 0..stray.1.min(over.1) / PAGE_BYTES as u64 {
            let bytes = self.page(from + page).to_vec();
            self.page(to + page).copy_from_slice(&bytes);
        }
        self.undo_flushed(stray);
        true
    }

    /// Flips a bit in a write that was synced a while ago. Returns whether there was one.
    pub fn flip_flushed(&mut self, rng: &mut Rng) -> bool {
        let Some((at, _)) = self.pick_flushed(rng) else { return false };
        let (segment, offset) = self.place(at);
        // The front of a write always holds a header or a record; its end may be padding.
        let byte = offset + rng.below(64) as usize;
        self.segment(segment)[byte] ^= 1 << rng.below(8);
        true
    }

    /// The first segment that a head on the disk names; those below are free.
    fn first_covered(&self) -> u64 {
        let begin = |slot| head_begin(self.slot(SlotFile::LogHead, slot)?);
        let begins = [begin(0), begin(1)];
        begins.into_iter().flatten().min().map_or(0, |begin| begin.0 / self.segment_bytes)
    }

    /// The content of a small file's slot, if the file exists.
    pub fn slot(&self, file: SlotFile, slot: usize) -> Option<&[u8]> {
        self.files[file as usize].as_ref().map(|slots| &slots[slot][..])
    }

    /// Whether the command that is about to run is the one that shall fail.
    fn fails(&mut self, failing: Failing) -> bool {
        let hit = self.failing == Some(failing);
        if hit {
            self.failing = None;
        }
        hit
    }
}

impl LogDisk for SimLogDisk {
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError> {
        assert!(at.0 / self.segment_bytes >= self.first_covered(), "read at {}: it is free", at.0);
        let mut done = 0;
        while done < into.len() {
            let (segment, offset) = self.place(at.0 + done as u64);
            let count = (into.len() - done).min(self.segment_bytes as usize - offset);
            match &self.segments[segment] {
                Some(bytes) => {
                    into[done..done + count].copy_from_slice(&bytes[offset..offset + count]);
                }
                None => into[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(())
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        if self.fails(Failing::Room) {
            return Err(error("making room for the log", ENOSPC));
        }
        Ok(())
    }

    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        assert!(at.0.is_multiple_of(PAGE_BYTES as u64), "an aligned write");
        assert!(bytes.len().is_multiple_of(PAGE_BYTES), "whole pages");
        let (_, offset) = self.place(at.0);
        assert!(offset + bytes.len() <= self.segment_bytes as usize, "within one segment");
        if self.fails(Failing::Write) {
            self.cache(at.0, &bytes[..bytes.len() / 2 / PAGE_BYTES * PAGE_BYTES]);
            return Err(error("writing the log", EIO));
        }
        self.cache(at.0, bytes);
        self.unsynced.push((at.0, bytes.len() as u64));
        self.bytes_written += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        if self.fails(Failing::Sync) {
            self.dirty.clear(); // the cache forgets that these pages never reached the disk
            self.unsynced.clear();
            return Err(error("syncing the log", EIO));
        }
        for page in std::mem::take(&mut self.dirty) {
            let Some(before) = self.undo.remove(&page) else { continue };
            self.spare.extend(self.former.insert(page, before));
        }
        for (at, bytes) in std::mem::take(&mut self.unsynced) {
            // What lay there before is no more.
            let place = at % self.bytes();
            let all = self.bytes();
            self.recent.retain(|(old, len)| {
                let old = old % all;
                old + len <= place || place + bytes <= old
            });
            self.recent.push((at, bytes));
        }
        let excess = self.recent.len().saturating_sub(RECENT_MAX);
        let old: Vec<(u64, u64)> = self.recent.drain(..excess).collect();
        for (at, bytes) in old {
            let first = self.page_of(at);
            let pages = first..first + bytes / PAGE_BYTES as u64;
            self.spare.extend(pages.filter_map(|page| self.former.remove(&page)));
        }
        Ok(())
    }

    fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
        Ok((self.lost > 0).then(|| "all".to_string()))
    }

    fn read_slot(&mut self, file: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.slot(file, slot).map(|bytes| bytes.to_vec()))
    }

    fn write_slot(&mut self, file: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        assert!(bytes.len() <= SLOT_BYTES, "a slot's bytes fit it");
        if self.fails(Failing::Slot(file)) {
            return Err(error("writing a slot", EIO));
        }
        let slots = self.files[file as usize].get_or_insert_with(|| Box::new([[0; SLOT_BYTES]; 2]));
        slots[slot][..bytes.len()].copy_from_slice(bytes);
        slots[slot][bytes.len()..].fill(0);
        if file == SlotFile::LogHead {
            self.lost = self.lost.saturating_sub(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    const SEGMENT: u64 = 16384;

    fn disk() -> (SimLogDisk, Rng) {
        (SimLogDisk::new(SEGMENT, 3), Rng::new(3, Stream::Disk))
    }

    fn bytes(disk: &mut SimLogDisk, at: u64) -> u8 {
        let mut byte = [0];
        disk.read(LogPos(at), &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_tears_the_rest_by_sector() {
        let (mut disk, mut rng) = disk();
        disk.write(LogPos(0), &[1; 4096]).unwrap();
        disk.sync().unwrap();
        let mut torn = 0;
        for round in 0..20 {
            disk.write(LogPos(0), &[1; 4096]).unwrap();
            disk.sync().unwrap();
            disk.write(LogPos(0), &[2; 4096]).unwrap();
            disk.write(LogPos(4096), &[3; 4096]).unwrap();
            disk.power_cut(&mut rng);
            let sectors: Vec<u8> = (0..8).map(|s| bytes(&mut disk, s * 512)).collect();
            assert!(sectors.iter().all(|b| *b == 1 || *b == 2), "{round}: {sectors:?}");
            torn += (sectors.contains(&1) && sectors.contains(&2)) as u32;
        }
        assert!(torn > 3);
    }

    #[test]
    fn after_a_failed_sync_the_cache_lies_until_the_page_is_written_again() {
        let (mut disk, mut rng) = disk();
        disk.failing = Some(Failing::Sync);
        disk.write(LogPos(0), &[7; 4096]).unwrap();
        assert!(disk.sync().is_err());
        assert_eq!(bytes(&mut disk, 0), 7);
        disk.sync().unwrap();
        assert!(disk.undo.contains_key(&0));
        disk.write(LogPos(0), &[8; 4096]).unwrap();
        disk.sync().unwrap();
        disk.power_cut(&mut rng);
        assert_eq!(bytes(&mut disk, 0), 8);
    }

    #[test]
    fn positions_wrap_around_the_segments_and_lost_ones_are_zeros() {
        let (mut disk, _) = disk();
        disk.write(LogPos(3 * SEGMENT), &[5; 4096]).unwrap();
        disk.sync().unwrap();
        assert_eq!(bytes(&mut disk, 0), 5);
        assert_eq!(bytes(&mut disk, SEGMENT), 0);
        disk.lose_segments();
        assert_eq!(bytes(&mut disk, 0), 0);
        assert_eq!(bytes(&mut disk, SEGMENT), 0);
    }

    #[test]
    fn a_lost_write_leaves_what_was_there_and_a_misdirected_one_hits_another() {
        for misdirected in [false, true] {
            let (mut disk, mut rng) = disk();
            for number in (10..15).chain(20..25) {
                disk.write(LogPos(4096 * (number % 10)), &[number as u8; 4096]).unwrap();
                disk.sync().unwrap();
            }
            let mut strike = || match misdirected {
                true => disk.misdirect_flushed(&mut rng),
                false => disk.lose_flushed(&mut rng),
            };
            while !strike() {}
            // The newest three are spared.
            let now: Vec<u8> = (0..5).map(|page| bytes(&mut disk, 4096 * page)).collect();
            let outcomes = if misdirected { [[10, 20], [21, 11]] } else { [[10, 21], [20, 11]] };
            assert!(outcomes.iter().any(|first| now[..2] == first[..]), "{misdirected}: {now:?}");
            assert_eq!(now[2..], [22, 23, 24]);
        }
    }

    #[test]
    fn a_small_file_does_not_exist_until_written_and_tears_in_one_slot_only() {
        let (mut disk, mut rng) = disk();
        assert_eq!(disk.read_slot(SlotFile::View, 0).unwrap(), None);
        disk.write_slot(SlotFile::View, 0, &[4; 100]).unwrap();
        assert_eq!(disk.slot(SlotFile::View, 1).unwrap(), [0; SLOT_BYTES]);
        disk.tear_slot(SlotFile::View, 1, &[9; 4000], &mut rng);
        assert_eq!(disk.slot(SlotFile::View, 0).unwrap()[..100], [4; 100]);
        assert_eq!(disk.read_slot(SlotFile::LogHead, 0).unwrap(), None);
    }
}
