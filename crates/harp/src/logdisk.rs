//! A server's log on a real disk: segment files and two small double-slot files.
//! Owns: `log/head` and `view` of one server's directory, and the log's segments.
//! Never: retries a write or a sync that failed (rule 8).
//! Invariant: a segment that is written is whole, durable under its name and listed: writing to it changes no
//! metadata, and a short or missing file is never a torn one.
//! Source: docs/disk-format-log.md. Measured on ext4 over a virtual disk: one
//! `O_DIRECT | O_DSYNC` write costs 36 us of CPU at 4 KiB and 43 us at 256 KiB; write + fdatasync
//! through the page cache 41 and 62. So the segments are opened so, and a sync is free.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use harp_engine::MakeRoom;
use harp_node::log::{DiskError, LogDisk, LogPos, SLOT_BYTES, SlotFile, head_begin};

use crate::aligned::{Aligned, DIRECT_ALIGN};
use crate::segments::{Segment, Segments, sync_dir};

/// Directories below a server's own.
const LOG_DIR: &str = "log";
/// Memory that is not aligned is written in pieces of this size.
const BOUNCE_BYTES: usize = 1 << 20;

/// Carries out one server's log commands on files.
pub struct FileLogDisk {
    dir: PathBuf,
    segment_bytes: u64,
    segments_max: u64,
    segments: Segments,
    view: Option<File>,
    head: Option<File>,
    formatting: bool,
    /// The segments that the heads written in this life cover, by slot.
    heads: [Option<Range<u64>>; 2],
    /// A segment was found missing; it is made good once a new head is in both slots.
    lost: bool,
    bounce: Option<Aligned>,
}

/// A failure of the operating system, in the log's words.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> DiskError {
    DiskError { what: format!("{what} {}", path.display()), os_code: error.raw_os_error() }
}

impl FileLogDisk {
    /// The disk of a server that is being formatted: its small files may be created.
    pub fn format(dir: &Path, segment_bytes: u64, segments_max: u64) -> io::Result<FileLogDisk> {
        std::fs::create_dir_all(dir.join(LOG_DIR))?;
        sync_dir(dir)?;
        let segments = Segments::format(&dir.join(LOG_DIR), segment_bytes)?;
        let disk = FileLogDisk::new(dir, segment_bytes, segments_max, segments)?;
        Ok(FileLogDisk { formatting: true, ..disk })
    }

    /// The disk of a formatted server. What is missing shows when it is read.
    pub fn open(dir: &Path, segment_bytes: u64, segments_max: u64) -> io::Result<FileLogDisk> {
        std::fs::create_dir_all(dir.join(LOG_DIR))?;
        let segments = Segments::open(&dir.join(LOG_DIR), segment_bytes)?;
        FileLogDisk::new(dir, segment_bytes, segments_max, segments)
    }

    fn new(
        dir: &Path,
        segment_bytes: u64,
        segments_max: u64,
        segments: Segments,
    ) -> io::Result<FileLogDisk> {
        let open = |file| match OpenOptions::new().read(true).write(true).open(small(dir, file)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        Ok(FileLogDisk {
            dir: dir.to_path_buf(),
            segment_bytes,
            segments_max,
            segments,
            view: open(SlotFile::View)?,
            head: open(SlotFile::LogHead)?,
            formatting: false,
            heads: [None, None],
            lost: false,
            bounce: None,
        })
    }

    /// From now on `make_room` is asked when the file system has no room for a segment.
    pub fn with_room(self, make_room: MakeRoom) -> FileLogDisk {
        FileLogDisk { segments: self.segments.with_room(make_room), ..self }
    }

    fn number_of(&self, at: LogPos) -> u64 {
        at.0 / self.segment_bytes
    }

    /// The segments of a log that begins at `begin`.
    fn covered(&self, begin: LogPos) -> Range<u64> {
        let first = self.number_of(begin);
        first..first + self.segments_max
    }

    /// Bytes of the segments that are free to be used again, as they change.
    pub fn free_bytes(&self) -> Arc<AtomicU64> {
        self.segments.free_bytes()
    }

    /// Takes note of a head that is on disk. Once both slots hold one of this life, what neither covers is
    /// free, and nothing relies on a lost segment any more.
    fn on_head(&mut self, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        let Some(begin) = head_begin(bytes) else { return Ok(()) };
        self.heads[slot] = Some(self.covered(begin));
        if let [Some(one), Some(other)] = &self.heads {
            self.segments.cover(one.start.min(other.start)..one.end.max(other.end));
            if std::mem::take(&mut self.lost) {
                self.segments.accept_loss()?;
            }
        }
        Ok(())
    }

    fn small_file(&mut self, file: SlotFile) -> &mut Option<File> {
        match file {
            SlotFile::View => &mut self.view,
            SlotFile::LogHead => &mut self.head,
        }
    }
}

/// Writes through aligned memory.
fn write_bounced(
    segment: &Segment,
    bounce: &mut Option<Aligned>,
    bytes: &[u8],
    mut at: u64,
) -> io::Result<()> {
    let piece = bounce.get_or_insert_with(|| Aligned::zeroed(BOUNCE_BYTES));
    for part in bytes.chunks(BOUNCE_BYTES) {
        let aligned = &mut piece.bytes_mut()[..part.len()];
        aligned.copy_from_slice(part);
        segment.writes.write_all_at(aligned, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

fn small(dir: &Path, file: SlotFile) -> PathBuf {
    match file {
        SlotFile::View => dir.join("view"),
        SlotFile::LogHead => dir.join(LOG_DIR).join("head"),
    }
}

/// Creates a small file with one slot written and the other zero, all at once.
fn create_small(path: &Path, slot: usize, slot_bytes: &[u8]) -> io::Result<File> {
    let unfinished = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&unfinished)?;
    file.write_all_at(&[0; 2 * SLOT_BYTES], 0)?;
    file.write_all_at(slot_bytes, (slot * SLOT_BYTES) as u64)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    sync_dir(path.parent().expect("a small file lies in a directory"))?;
    Ok(file)
}

impl LogDisk for FileLogDisk {
    fn read(&mut self, mut at: LogPos, mut into: &mut [u8]) -> Result<(), DiskError> {
        while !into.is_empty() {
            let offset = at.0 % self.segment_bytes;
            let bytes = (into.len() as u64).min(self.segment_bytes - offset) as usize;
            let (now, later) = into.split_at_mut(bytes);
            let number = self.number_of(at);
            let path = self.segments.path(number);
            match self.segments.get(number)? {
                None => now.fill(0),
                Some(segment) => segment
                    .reads
                    .read_exact_at(now, offset)
                    .map_err(|error| failed("read", &path, &error))?,
            }
            into = later;
            at = at.plus(bytes as u64);
        }
        Ok(())
    }

    fn prepare(&mut self, at: LogPos) -> Result<(), DiskError> {
        self.segments.provide(self.number_of(at)).map(|_| ())
    }

    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        let offset = at.0 % self.segment_bytes;
        let end = offset + bytes.len() as u64;
        assert!(end <= self.segment_bytes, "a write within one segment");
        assert_eq!((offset as usize | bytes.len()) % DIRECT_ALIGN, 0, "an aligned write");
        let number = self.number_of(at);
        let segment =
            self.segments.get(number)?.expect("a segment is prepared before it is written");
        let wrote = if segment.direct && !bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN) {
            write_bounced(segment, &mut self.bounce, bytes, offset)
        } else {
            segment.writes.write_all_at(bytes, offset)
        };
        wrote.map_err(|error| failed("write", &self.segments.path(number), &error))?;
        if end > self.segment_bytes / 2 {
            self.segments.provide_ahead(number + 1);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        // Every write went through a descriptor opened with O_DSYNC.
        Ok(())
    }

    fn lost_segment(&mut self, begin: LogPos) -> Result<Option<String>, DiskError> {
        let lost = self.segments.lost(self.covered(begin));
        self.lost = lost.is_some();
        self.heads = [None, None];
        Ok(lost.map(|path| path.display().to_string()))
    }

    fn read_slot(&mut self, file: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        assert!(slot < 2, "slot {slot} of two");
        let path = small(&self.dir, file);
        let Some(opened) = self.small_file(file) else { return Ok(None) };
        let mut bytes = vec![0; SLOT_BYTES];
        opened
            .read_exact_at(&mut bytes, (slot * SLOT_BYTES) as u64)
            .map_err(|error| failed("read", &path, &error))?;
        Ok(Some(bytes))
    }

    fn write_slot(&mut self, file: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        assert!(slot < 2 && bytes.len() <= SLOT_BYTES, "{} bytes for slot {slot}", bytes.len());
        let path = small(&self.dir, file);
        let formatting = self.formatting;
        let mut whole = [0; SLOT_BYTES];
        whole[..bytes.len()].copy_from_slice(bytes);
        let wrote = match self.small_file(file) {
            Some(opened) => opened
                .write_all_at(&whole, (slot * SLOT_BYTES) as u64)
                .and_then(|()| opened.sync_data()),
            // A log that lost its head begins anew; a view file is never made up (rule 4).
            missing if formatting || file == SlotFile::LogHead => {
                create_small(&path, slot, &whole).map(|file| *missing = Some(file))
            }
            None => Err(io::ErrorKind::NotFound.into()),
        };
        wrote.map_err(|error| failed("write", &path, &error))?;
        if file == SlotFile::LogHead {
            self.on_head(slot, bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use harp_node::log::{DiskCommand, Log, LogSettings, Ring, Verdict, recover};

    use super::*;
    use crate::testdir::TestDir;

    const SEGMENT: u64 = 64 << 10;

    fn write(disk: &mut FileLogDisk, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        disk.prepare(at)?;
        disk.write(at, bytes)
    }

    fn page(fill: u8) -> Aligned {
        let mut piece = Aligned::zeroed(4096);
        piece.bytes_mut().fill(fill);
        piece
    }

    #[test]
    fn what_is_written_is_there_after_reopening_and_the_rest_is_zero() {
        let dir = TestDir::new("logdisk-reopen");
        let mut disk = FileLogDisk::format(dir.path(), SEGMENT, 4).expect("formats");
        let end_of_first = LogPos(SEGMENT - 4096);
        for (at, fill) in [(LogPos(0), 1), (end_of_first, 2), (LogPos(SEGMENT), 3)] {
            write(&mut disk, at, page(fill).bytes()).expect("writes");
        }
        disk.sync().expect("syncs");
        drop(disk);
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 4).expect("opens");
        let mut seen = [9; 3 * 4096];
        disk.read(end_of_first, &mut seen).expect("reads across segments");
        assert!(seen[..4096].iter().all(|b| *b == 2));
        assert!(seen[4096..8192].iter().all(|b| *b == 3));
        assert!(seen[8192..].iter().all(|b| *b == 0));
        disk.read(LogPos(3 * SEGMENT), &mut seen).expect("a missing segment reads as zeros");
        assert!(seen.iter().all(|b| *b == 0));
    }

    /// A new log on `disk`, and the commands that make it one.
    fn new_log() -> (Log, Ring, Vec<DiskCommand>) {
        let ring = Ring::on_heap(4 * SEGMENT as usize);
        let settings = LogSettings {
            segment_bytes: SEGMENT,
            segments_max: 8,
            start: 1,
            keeps_clean_mark: false,
        };
        let mut commands = Vec::new();
        let log = Log::format(ring.clone(), settings, 1, &mut commands);
        (log, ring, commands)
    }

    fn segments_of(dir: &TestDir) -> usize {
        let names = std::fs::read_dir(dir.path().join(LOG_DIR)).expect("lists");
        let is_segment = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("seg-");
        names.filter(|entry| is_segment(&entry.as_ref().expect("an entry").file_name())).count()
    }

    #[test]
    fn a_log_that_is_trimmed_uses_few_segments_again_and_again() {
        let dir = TestDir::new("logdisk-recycle");
        let mut disk = FileLogDisk::format(dir.path(), SEGMENT, 8).expect("formats");
        let (mut log, ring, mut commands) = new_log();
        for round in 0..400 {
            while !commands.is_empty() {
                for command in std::mem::take(&mut commands) {
                    log.on_disk(&command.run(&mut disk, &ring));
                }
                log.seal(0, &mut commands);
            }
            log.begin_record(3000).expect("there is room").fill(round as u8);
            let op = log.finish_record(1, 1, round, 3000);
            log.seal(op, &mut commands);
            log.trim(op - 1);
            log.pin(op - 1);
        }
        assert!(log.growing().end() == 400, "25 segments long");
        let count = segments_of(&dir);
        assert!(count <= 7, "{count} files");
        let settings = LogSettings {
            segment_bytes: SEGMENT,
            segments_max: 8,
            start: 2,
            keeps_clean_mark: false,
        };
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 8).expect("opens");
        let recovered = recover(&mut disk, ring, settings).expect("recovers");
        assert_eq!(recovered.verdict, Verdict::Intact);
        assert!(recovered.log.growing().end() >= 399);
    }

    #[test]
    fn unaligned_memory_is_written_too() {
        let dir = TestDir::new("logdisk-bounce");
        let mut disk = FileLogDisk::format(dir.path(), 4 << 20, 2).expect("formats");
        let bytes: Vec<u8> = (0..2 * BOUNCE_BYTES + 1).map(|i| (i % 251) as u8).collect();
        let shifted = if bytes.as_ptr().addr().is_multiple_of(4096) {
            &bytes[1..]
        } else {
            &bytes[..2 << 20]
        };
        write(&mut disk, LogPos(4096), shifted).expect("writes");
        let mut seen = vec![0; shifted.len()];
        disk.read(LogPos(4096), &mut seen).expect("reads");
        assert!(seen == shifted);
    }

    #[test]
    fn slots_are_apart_and_a_missing_file_is_not_an_empty_one() {
        let dir = TestDir::new("logdisk-slots");
        let mut disk = FileLogDisk::format(dir.path(), SEGMENT, 2).expect("formats");
        assert_eq!(disk.read_slot(SlotFile::View, 0).expect("reads"), None);
        disk.write_slot(SlotFile::View, 1, b"one").expect("creates");
        disk.write_slot(SlotFile::View, 0, b"two").expect("writes");
        drop(disk);
        // A torn write of slot 0 leaves slot 1 whole.
        let file = OpenOptions::new().write(true).open(dir.path().join("view")).expect("opens");
        file.write_all_at(&[0xff; 512], 0).expect("tears");
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 2).expect("opens");
        let slot = |disk: &mut FileLogDisk, i| disk.read_slot(SlotFile::View, i).expect("reads");
        assert_eq!(slot(&mut disk, 0).expect("there")[..4], [0xff; 4]);
        assert_eq!(slot(&mut disk, 1).expect("there")[..4], *b"one\0");
        assert_eq!(disk.read_slot(SlotFile::LogHead, 0).expect("reads"), None);
        disk.write_slot(SlotFile::LogHead, 0, b"x").expect("a log that lost its head begins anew");
        std::fs::remove_file(dir.path().join("view")).expect("removes");
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 2).expect("opens");
        assert!(disk.write_slot(SlotFile::View, 0, b"x").is_err(), "only a format creates");
        assert_eq!(disk.read_slot(SlotFile::View, 0).expect("reads"), None);
    }

    #[test]
    fn a_segment_of_the_wrong_length_is_an_error() {
        let dir = TestDir::new("logdisk-short");
        drop(FileLogDisk::format(dir.path(), SEGMENT, 2).expect("formats"));
        let path = dir.path().join("log/seg-000000000000");
        OpenOptions::new().write(true).open(path).expect("opens").set_len(4096).expect("cuts");
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 2).expect("opens");
        let error = disk.read(LogPos(0), &mut [0; 16]).expect_err("too short");
        assert!(error.what.contains("4096 bytes"), "{error}");
    }

    #[test]
    fn a_segment_that_is_gone_is_known_to_be_lost_until_a_new_head_stands() {
        let dir = TestDir::new("logdisk-lost");
        let mut disk = FileLogDisk::format(dir.path(), SEGMENT, 4).expect("formats");
        assert_eq!(disk.lost_segment(LogPos(0)), Ok(None));
        std::fs::remove_file(disk.segments.path(0)).expect("removes");
        let mut disk = FileLogDisk::open(dir.path(), SEGMENT, 4).expect("opens");
        let lost = |disk: &FileLogDisk| disk.segments.lost(0..4).is_some();
        assert!(disk.lost_segment(LogPos(0)).expect("looks").is_some());
        let (_, ring, mut commands) = new_log();
        let second = commands.pop().expect("two slots");
        for command in commands {
            command.run(&mut disk, &ring);
            assert!(lost(&disk), "the other slot may still name it");
        }
        second.run(&mut disk, &ring);
        assert!(!lost(&disk));
        assert!(!lost(&FileLogDisk::open(dir.path(), SEGMENT, 4).expect("opens")));
    }
}
