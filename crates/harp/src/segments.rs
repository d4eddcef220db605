//! The files of a log's segments: made, recycled, listed.
//! Owns: `log/seg-NNNNNNNNNNNN`, named by the segment's number, and `log/segments`, which lists them.
//! Never: lets go of a segment that a head on disk covers; gives a file its name before it is whole.
//! Invariant: a segment is listed, durably, before it is written; a listed one that is not there is lost.
//! Source: docs/disk-format-log.md; docs/protocol.md, rule 3.
//!
//! A segment that the log no longer needs becomes the next one by a new name: its blocks stay allocated and
//! written, so that later writes to it change no metadata, and a log takes no more room than it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use harp_engine::{MakeRoom, nothing_to_give_up};
use harp_node::log::DiskError;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use crate::aligned::{Aligned, DIRECT_ALIGN};
use crate::logdisk::failed;
use crate::reserve::is_full;
use crate::worker::Pace;

/// Zeros are written in pieces of this size, so that the log's own writes get in between.
const ZERO_PIECE_BYTES: usize = 1 << 20;
/// Free segments kept to be used again; more are removed.
const SPARES_MAX: usize = 4;
/// The file that lists the segments.
const LIST: &str = "segments";
const PREFIX: &str = "seg-";

/// One segment, opened.
pub struct Segment {
    /// For writing; each write is durable when it returns.
    pub writes: File,
    /// For reading, through the page cache.
    pub reads: File,
    /// Whether writes must be aligned in memory, too.
    pub direct: bool,
}

/// The segments of one server's log.
pub struct Segments {
    dir: PathBuf,
    segment_bytes: u64,
    present: BTreeSet<u64>,
    /// `None`: there is no list.
    listed: Option<BTreeSet<u64>>,
    open: BTreeMap<u64, Segment>,
    /// Numbers that the heads on disk may cover; `None` before they are known: nothing is free.
    covered: Option<Range<u64>>,
    ahead: Option<(u64, JoinHandle<io::Result<()>>)>,
    /// Asked when the file system is full.
    make_room: MakeRoom,
    /// Bytes of those that are free.
    free_bytes: Arc<AtomicU64>,
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Opens with `O_DIRECT`, or without where the file system knows no such thing.
fn open_direct(options: &OpenOptions, extra: OFlags, path: &Path) -> io::Result<(File, bool)> {
    let flags = |f: OFlags| f.bits() as i32;
    match options.clone().custom_flags(flags(OFlags::DIRECT | extra)).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Ok((options.clone().custom_flags(flags(extra)).open(path)?, false))
        }
        Err(error) => Err(error),
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:012}"))
}

fn read_list(dir: &Path) -> io::Result<Option<BTreeSet<u64>>> {
    let text = match std::fs::read_to_string(dir.join(LIST)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_list(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the list of segments: a number a line. `None`: a line is no number.
pub fn parse_list(text: &str) -> Option<BTreeSet<u64>> {
    text.lines().map(|line| line.parse().ok()).collect()
}

fn write_list(dir: &Path, listed: &BTreeSet<u64>) -> io::Result<()> {
    let unfinished = dir.join(LIST).with_extension("new");
    let mut file = File::create(&unfinished)?;
    let lines: Vec<String> = listed.iter().map(|number| format!("{number}\n")).collect();
    file.write_all(lines.concat().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, dir.join(LIST))?;
    sync_dir(dir)
}

/// The files under their final names. What was never finished is removed.
fn look(dir: &Path) -> io::Result<BTreeSet<u64>> {
    let mut present = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        match rest.parse() {
            Ok(number) => {
                present.insert(number);
            }
            Err(_) if rest.ends_with(".new") => std::fs::remove_file(entry.path())?,
            Err(_) => {}
        }
    }
    Ok(present)
}

/// Writes a new file of zeros, under its final name once it is durable.
fn create(dir: &Path, number: u64, segment_bytes: u64) -> io::Result<()> {
    let path = path_of(dir, number);
    let unfinished = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let (file, _) = open_direct(&options, OFlags::empty(), &unfinished)?;
    match fallocate(&file, FallocateFlags::empty(), 0, segment_bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = Aligned::zeroed(ZERO_PIECE_BYTES.min(segment_bytes as usize));
    let mut at = 0;
    while at < segment_bytes {
        let bytes = (zeros.bytes().len() as u64).min(segment_bytes - at);
        file.write_all_at(&zeros.bytes()[..bytes as usize], at)?;
        at += bytes;
    }
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)
}

/// How a segment comes to be.
struct Provision {
    dir: PathBuf,
    number: u64,
    segment_bytes: u64,
    /// The free segment that becomes this one.
    from: Option<u64>,
    /// Free ones that are too many.
    surplus: Vec<u64>,
    /// All segments there are afterwards.
    listed: BTreeSet<u64>,
}

impl Provision {
    fn carry_out(&self) -> io::Result<()> {
        match self.from {
            Some(from) => {
                std::fs::rename(path_of(&self.dir, from), path_of(&self.dir, self.number))?
            }
            None => create(&self.dir, self.number, self.segment_bytes)?,
        }
        for number in &self.surplus {
            std::fs::remove_file(path_of(&self.dir, *number))?;
        }
        // The names first: what is listed and not there is lost.
        sync_dir(&self.dir)?;
        write_list(&self.dir, &self.listed)
    }
}

impl Segments {
    /// The segments of a new log in `dir`: the first one.
    pub fn format(dir: &Path, segment_bytes: u64) -> io::Result<Segments> {
        let mut segments = Segments::open(dir, segment_bytes)?;
        if !segments.present.contains(&0) {
            create(dir, 0, segment_bytes)?;
            sync_dir(dir)?;
            segments.present.insert(0);
        }
        write_list(dir, &segments.present)?;
        segments.listed = Some(segments.present.clone());
        Ok(segments)
    }

    /// The segments of the log in `dir`, as they were left.
    pub fn open(dir: &Path, segment_bytes: u64) -> io::Result<Segments> {
        assert!(segment_bytes.is_power_of_two() && segment_bytes >= DIRECT_ALIGN as u64);
        Ok(Segments {
            dir: dir.to_path_buf(),
            segment_bytes,
            present: look(dir)?,
            listed: read_list(dir)?,
            open: BTreeMap::new(),
            covered: None,
            ahead: None,
            make_room: nothing_to_give_up(),
            free_bytes: Arc::default(),
        })
    }

    /// Bytes of the segments that are free to be used again, as they change.
    pub fn free_bytes(&self) -> Arc<AtomicU64> {
        self.free_bytes.clone()
    }

    fn count_free(&self) {
        let covered = self.covered.clone().unwrap_or(0..u64::MAX);
        let free = self.present.iter().filter(|number| !covered.contains(number)).count() as u64;
        self.free_bytes.store(free * self.segment_bytes, Ordering::Relaxed);
    }

    /// From now on `make_room` is asked when the file system has no room for a segment.
    pub fn with_room(self, make_room: MakeRoom) -> Segments {
        Segments { make_room, ..self }
    }

    /// The file of a segment.
    pub fn path(&self, number: u64) -> PathBuf {
        path_of(&self.dir, number)
    }

    /// From now on the heads on disk cover `covered` at most: all other segments are free.
    pub fn cover(&mut self, covered: Range<u64>) {
        self.covered = Some(covered);
        self.count_free();
    }

    /// The first listed segment of `covered` that is not there; the list itself, if it is not.
    pub fn lost(&self, covered: Range<u64>) -> Option<PathBuf> {
        let Some(listed) = &self.listed else { return Some(self.dir.join(LIST)) };
        let mut gone = listed.range(covered).filter(|number| !self.present.contains(number));
        gone.next().map(|number| self.path(*number))
    }

    /// The list names what is there from now on; what is lost is of no use any more.
    pub fn accept_loss(&mut self) -> Result<(), DiskError> {
        self.making_room(|segments| {
            segments.settle()?;
            let list = segments.dir.join(LIST);
            let wrote = write_list(&segments.dir, &segments.present);
            wrote.map_err(|error| failed("write", &list, &error))?;
            segments.listed = Some(segments.present.clone());
            Ok(())
        })
    }

    /// Tries something that only prepares, again while it lacks space and some can be had. What it left half done
    /// is looked at anew.
    fn making_room(
        &mut self,
        prepare: impl Fn(&mut Segments) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        while let Err(error) = prepare(self) {
            if !is_full(error.os_code) || !(self.make_room)() {
                return Err(error);
            }
            assert!(self.ahead.is_none(), "preparing waits for what is prepared ahead");
            let looked = look(&self.dir);
            self.present = looked.map_err(|error| failed("look into", &self.dir, &error))?;
        }
        Ok(())
    }

    /// A segment that may not exist: then `None`.
    pub fn get(&mut self, number: u64) -> Result<Option<&Segment>, DiskError> {
        if !self.open.contains_key(&number) && self.present.contains(&number) {
            let path = self.path(number);
            let opening = |error: io::Error| failed("open", &path, &error);
            let mut options = OpenOptions::new();
            let (writes, direct) =
                open_direct(options.write(true), OFlags::DSYNC, &path).map_err(opening)?;
            let reads = File::open(&path).map_err(opening)?;
            let bytes = reads.metadata().map_err(opening)?.len();
            if bytes != self.segment_bytes {
                let what =
                    format!("{} has {bytes} bytes, not {}", path.display(), self.segment_bytes);
                return Err(DiskError { what, os_code: None });
            }
            self.open.insert(number, Segment { writes, reads, direct });
        }
        Ok(self.open.get(&number))
    }

    /// A segment to be written, made if it does not exist.
    pub fn provide(&mut self, number: u64) -> Result<&Segment, DiskError> {
        if !self.is_listed(number) {
            self.making_room(|segments| segments.prepare(number))?;
        }
        let segment = self.get(number)?;
        Ok(segment.expect("just provided"))
    }

    fn prepare(&mut self, number: u64) -> Result<(), DiskError> {
        self.settle()?;
        if !self.present.contains(&number) {
            let provision = self.plan(number);
            let path = self.path(number);
            provision.carry_out().map_err(|error| failed("prepare", &path, &error))?;
            self.provided(number);
        } else if !self.is_listed(number) {
            self.accept_loss()?; // it got its name, and then the process ended
        }
        Ok(())
    }

    fn is_listed(&self, number: u64) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.contains(&number))
    }

    /// Sees to a segment that will be needed, on a thread of its own. If that fails, it shows when the segment is
    /// needed.
    pub fn provide_ahead(&mut self, number: u64) {
        if self.ahead.is_some() || self.present.contains(&number) {
            return;
        }
        let provision = self.plan(number);
        let thread = std::thread::Builder::new().name("harp-segment".into()).spawn(move || {
            Pace::Background.take();
            provision.carry_out()
        });
        self.ahead = thread.ok().map(|thread| (number, thread));
    }

    /// Waits for what is being provided.
    fn settle(&mut self) -> Result<(), DiskError> {
        let Some((number, thread)) = self.ahead.take() else { return Ok(()) };
        let prepared = thread.join().expect("preparing a segment does not panic");
        prepared.map_err(|error| failed("prepare", &self.path(number), &error))?;
        self.provided(number);
        Ok(())
    }

    fn provided(&mut self, number: u64) {
        self.present.insert(number);
        self.listed = Some(self.present.clone());
        self.count_free();
    }

    /// Decides where segment `number` comes from. What is free and goes is forgotten at once.
    fn plan(&mut self, number: u64) -> Provision {
        let covered = self.covered.clone().unwrap_or(0..u64::MAX);
        let free = |n: &u64| !covered.contains(n) && *n != number;
        let mut free: Vec<u64> = self.present.iter().copied().filter(free).collect();
        let from = free.pop();
        let surplus = free.split_off(free.len().min(SPARES_MAX));
        for gone in surplus.iter().chain(&from) {
            self.present.remove(gone);
            self.open.remove(gone);
        }
        self.count_free();
        let mut listed = self.present.clone();
        listed.insert(number);
        let (dir, segment_bytes) = (self.dir.clone(), self.segment_bytes);
        Provision { dir, number, segment_bytes, from, surplus, listed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    const BYTES: u64 = 64 << 10;

    fn names(dir: &Path) -> Vec<u64> {
        look(dir).expect("looks").into_iter().collect()
    }

    #[test]
    fn a_free_segment_becomes_the_next_and_surplus_ones_go() {
        let dir = TestDir::new("segments-recycle");
        let mut segments = Segments::format(dir.path(), BYTES).expect("formats");
        for number in 0..8 {
            let segment = segments.provide(number).expect("provides");
            segment.writes.write_all_at(&[number as u8; 8], 0).unwrap_or_else(|_| {
                // Direct writes are whole blocks.
                let mut block = Aligned::zeroed(4096);
                block.bytes_mut().fill(number as u8);
                segment.writes.write_all_at(block.bytes(), 0).expect("writes");
            });
        }
        assert_eq!(names(dir.path()), (0..8).collect::<Vec<_>>(), "nothing is free");
        segments.cover(6..70);
        segments.provide_ahead(8);
        segments.provide(8).expect("provides");
        assert_eq!(names(dir.path()), [0, 1, 2, 3, 6, 7, 8]);
        let mut first = [0; 1];
        let segment = segments.get(8).expect("opens").expect("is there");
        segment.reads.read_exact_at(&mut first, 0).expect("reads");
        assert_eq!(first, [5], "a file that was written before, under a new name");
        assert!(segments.get(5).expect("looks").is_none());
        let segments = Segments::open(dir.path(), BYTES).expect("opens");
        assert_eq!(segments.lost(0..u64::MAX), None);
    }

    #[test]
    fn segments_of_an_earlier_lap_are_free_too() {
        let dir = TestDir::new("segments-lap");
        let mut segments = Segments::format(dir.path(), BYTES).expect("formats");
        segments.provide(100).expect("provides");
        segments.cover(0..64);
        segments.provide(1).expect("provides");
        assert_eq!(names(dir.path()), [0, 1]);
    }

    #[test]
    fn a_listed_segment_that_is_gone_is_lost_only_where_a_head_covers_it() {
        let dir = TestDir::new("segments-lost");
        let mut segments = Segments::format(dir.path(), BYTES).expect("formats");
        segments.provide(1).expect("provides");
        std::fs::remove_file(segments.path(1)).expect("removes");
        let mut segments = Segments::open(dir.path(), BYTES).expect("opens");
        assert_eq!(segments.lost(0..64), Some(segments.path(1)));
        assert_eq!(segments.lost(2..64), None);
        segments.accept_loss().expect("writes");
        assert_eq!(Segments::open(dir.path(), BYTES).expect("opens").lost(0..64), None);
        std::fs::remove_file(dir.path().join(LIST)).expect("removes");
        let segments = Segments::open(dir.path(), BYTES).expect("opens");
        assert_eq!(segments.lost(0..64), Some(dir.path().join(LIST)));
    }

    #[test]
    fn an_unfinished_segment_is_none() {
        let dir = TestDir::new("segments-unfinished");
        drop(Segments::format(dir.path(), BYTES).expect("formats"));
        std::fs::write(dir.path().join("seg-000000000001.new"), b"part").expect("writes");
        let mut segments = Segments::open(dir.path(), BYTES).expect("opens");
        assert!(segments.get(1).expect("looks").is_none());
        assert_eq!(names(dir.path()), [0]);
        assert!(!dir.path().join("seg-000000000001.new").exists());
    }
}
