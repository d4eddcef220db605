//! FileDisk: data segments in a few large preallocated files.
//! Owns: the files `segment-00000`, `segment-00001`, ... of one directory.
//! Never: gives space back; answers a sync before the disk did; syncs again after one failed.
//! Invariant: every segment but the last is full-sized; all of the bytes up to each file's size
//! are allocated on disk.
//! Source: docs/disk-format.md; rules 8 and 13.

use crate::make_room::{MakeRoom, nothing_to_give_up};
use harp_store::{BLOCK_BYTES, BLOCK_BYTES_U64, Block, Damage, Disk, StoreError};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Blocks in a full segment: 64 GiB.
pub const SEGMENT_BLOCKS: u64 = (64 << 30) / BLOCK_BYTES_U64;
/// Segments opened at most.
const SEGMENTS_MAX: usize = 4096;
/// Slices given to one call at most: what Linux takes.
const SLICES_MAX: usize = 1024;
/// Blocks in one direct write at most: 1 MiB.
const DIRECT_BLOCKS: usize = 256;
/// Bytes written at once where a file system cannot allocate without writing.
const ZEROS_BYTES: usize = 1 << 20;

#[derive(Debug)]
struct Segment {
    file: File,
    /// The same file past the page cache, where the file system can.
    direct: Option<File>,
    /// Written since the last sync began. Set after the write, so that a sync that does not see
    /// it began earlier and need not cover the write.
    dirty: AtomicBool,
    /// Held while syncing: who finds nothing dirty has waited for the sync that cleared it.
    syncing: Mutex<()>,
}

/// Segment files in a directory, used by this process alone.
pub struct FileDisk {
    dir: PathBuf,
    segment_blocks: u64,
    segments: RwLock<Vec<Arc<Segment>>>,
    blocks: AtomicU64,
    growth: Mutex<()>,
    /// Whether writes pass the page cache by.
    direct: AtomicBool,
    /// Aligned memory through which direct writes go.
    bounce: Mutex<Vec<Page>>,
    /// Asked when the file system is full and a checkpoint needs space.
    make_room: MakeRoom,
    /// Set by a failed sync, for ever.
    failed: AtomicBool,
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileDisk({}, {} blocks)", self.dir.display(), self.blocks())
    }
}

/// Memory that every disk takes direct writes from.
#[derive(Debug, Clone)]
#[repr(align(4096))]
struct Page(Block);

fn segment_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("segment-{index:05}"))
}

fn fault(what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { what, source }
}

impl FileDisk {
    /// Opens the segments in a directory that exists; there may be none yet. `segment_blocks` is
    /// the size of a full segment (`SEGMENT_BLOCKS`), the same at each opening.
    ///
    /// Errors: `Damaged` if a segment is missing between others or shorter than the rest need.
    pub fn open(dir: &Path, segment_blocks: u64) -> Result<FileDisk, StoreError> {
        assert!(segment_blocks > 0 && segment_blocks <= u64::MAX / BLOCK_BYTES_U64);
        let mut segments = Vec::new();
        let mut blocks = 0;
        let count = count_segments(dir)?;
        for index in 0..count {
            let file = OpenOptions::new().read(true).write(true).open(segment_path(dir, index));
            let file = file.map_err(fault("opening a data segment"))?;
            let length = file.metadata().map_err(fault("opening a data segment"))?.len();
            let here = length / BLOCK_BYTES_U64;
            if here > segment_blocks || (here < segment_blocks && index + 1 < count) {
                return Err(Damage::Contradiction { what: "the size of a data segment" }.into());
            }
            blocks += here;
            segments.push(Arc::new(Segment::new(file, &segment_path(dir, index))));
        }
        Ok(FileDisk {
            dir: dir.to_path_buf(),
            segment_blocks,
            segments: RwLock::new(segments),
            blocks: AtomicU64::new(blocks),
            growth: Mutex::new(()),
            direct: AtomicBool::new(false),
            bounce: Mutex::new(Vec::new()),
            make_room: nothing_to_give_up(),
            failed: AtomicBool::new(false),
        })
    }

    /// Asks `make_room` when a checkpoint needs space that the file system does not have.
    pub fn with_room(self, make_room: MakeRoom) -> FileDisk {
        FileDisk { make_room, ..self }
    }

    /// Says whether writes pass the page cache by (false when opened). It saves a copy's memory
    /// and the cost of fresh cache pages where data written are not read soon, as at a backup.
    /// May change at any time; reads see all writes either way.
    pub fn set_direct(&self, direct: bool) {
        self.direct.store(direct, Ordering::Relaxed);
    }

    /// Writes blocks to one segment.
    fn write_segment(
        &self,
        segment: &Segment,
        slices: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<(), StoreError> {
        match &segment.direct {
            Some(direct) if self.direct.load(Ordering::Relaxed) => {
                let mut bounce = self.bounce.lock().unwrap_or_else(PoisonError::into_inner);
                write_direct(direct, &mut bounce, slices, offset)?;
            }
            _ => write_slices(&segment.file, slices, offset)?,
        }
        segment.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Reads whole blocks only if that needs no waiting for the disk; false if it would, and
    /// `out` is then worthless.
    pub fn read_now(&self, position: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        assert!(out.len().is_multiple_of(BLOCK_BYTES));
        let count = (out.len() / BLOCK_BYTES) as u64;
        let (index, offset, left) = self.place(position);
        if count > left {
            return Ok(false);
        }
        let segment = self.segment(index)?;
        let wanted = out.len();
        let slices = &mut [IoSliceMut::new(out)];
        match preadv2(&segment.file, slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read == wanted),
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(false),
            Err(errno) => Err(StoreError::io("reading file data", errno.into())),
        }
    }

    /// Segment, byte offset in it and blocks left in it for a position.
    fn place(&self, position: u64) -> (usize, u64, u64) {
        let index = usize::try_from(position / self.segment_blocks).unwrap_or(usize::MAX);
        let within = position % self.segment_blocks;
        (index, within * BLOCK_BYTES_U64, self.segment_blocks - within)
    }

    fn segment(&self, index: usize) -> Result<Arc<Segment>, StoreError> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let segment = segments.get(index).cloned();
        segment.ok_or_else(|| Damage::Missing { what: "data segment" }.into())
    }

    /// Makes a new last segment, empty.
    fn add_segment(&self, index: usize) -> Result<Arc<Segment>, StoreError> {
        if index >= SEGMENTS_MAX {
            return Err(StoreError::Full { what: "file data" });
        }
        // The last segment's full size must not be lost when the next one exists.
        let before = index.checked_sub(1).map(|before| self.segment(before)).transpose()?;
        let synced = before.map_or(Ok(()), |before| before.file.sync_all());
        self.synced(synced, "a full data segment")?;
        let path = segment_path(&self.dir, index);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::Full { what: "file data" }
            }
            _ => StoreError::io("making a data segment", source),
        })?;
        let synced = file.sync_all().and_then(|()| File::open(&self.dir)?.sync_all());
        self.synced(synced, "a new data segment")?;
        let segment = Arc::new(Segment::new(file, &path));
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.push(Arc::clone(&segment));
        Ok(segment)
    }

    /// Remembers a failed sync.
    fn synced(&self, result: io::Result<()>, what: &'static str) -> Result<(), StoreError> {
        result.map_err(|source| {
            self.failed.store(true, Ordering::Release);
            StoreError::SyncFailed { what, source }
        })
    }

    fn check_alive(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) { Err(StoreError::Failed) } else { Ok(()) }
    }
}

/// How many segments there are.
fn count_segments(dir: &Path) -> Result<usize, StoreError> {
    let listing = "listing data segments";
    let mut present = Vec::new();
    for entry in dir.read_dir().map_err(fault(listing))? {
        let name = entry.map_err(fault(listing))?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("segment-"));
        if let Some(index) = index.and_then(|index| index.parse::<usize>().ok()) {
            present.push(index);
        }
    }
    present.sort_unstable();
    if present.len() > SEGMENTS_MAX || !present.iter().copied().eq(0..present.len()) {
        return Err(Damage::Missing { what: "data segment" }.into());
    }
    Ok(present.len())
}

impl Segment {
    fn new(file: File, path: &Path) -> Segment {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        let direct = options.open(path).ok();
        Segment { file, direct, dirty: AtomicBool::new(false), syncing: Mutex::new(()) }
    }

    /// Allocates bytes `from` to `to` and lets the file reach there only when all are.
    fn extend(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let growing = "growing a data segment";
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, from, to - from) {
            Ok(()) => self.file.set_len(to).map_err(fault(growing))?,
            Err(Errno::OPNOTSUPP) => self.extend_by_writing(from, to)?,
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                return Err(StoreError::Full { what: "file data" });
            }
            Err(errno) => return Err(StoreError::io(growing, errno.into())),
        }
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    fn extend_by_writing(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut at = from;
        while at < to {
            let length = (to - at).min(ZEROS_BYTES as u64) as usize;
            if let Err(source) = self.file.write_all_at(&zeros[..length], at) {
                self.file.set_len(from).map_err(fault("shrinking a data segment"))?;
                let full = matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                return Err(if full {
                    StoreError::Full { what: "file data" }
                } else {
                    StoreError::io("growing a data segment", source)
                });
            }
            at += length as u64;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), io::Error> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.dirty.swap(false, Ordering::AcqRel) { self.file.sync_data() } else { Ok(()) }
    }
}

/// Writes all slices from a byte offset on, in one call where the system takes them whole.
fn write_slices(file: &File, slices: &[IoSlice<'_>], offset: u64) -> Result<(), StoreError> {
    let writing = "writing file data";
    let mut offset = offset;
    for slices in slices.chunks(SLICES_MAX) {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut written = loop {
            match pwritev(file, slices, offset) {
                Ok(written) => break written,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::io(writing, errno.into())),
            }
        };
        if written < wanted {
            // Rare: the rest goes out slice by slice.
            let mut at = offset;
            for slice in slices {
                let skip = written.min(slice.len());
                let rest = &slice[skip..];
                file.write_all_at(rest, at + skip as u64).map_err(fault(writing))?;
                written -= skip;
                at += slice.len() as u64;
            }
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// The same past the page cache: through aligned memory, `DIRECT_BLOCKS` at a time.
fn write_direct(
    file: &File,
    bounce: &mut Vec<Page>,
    slices: &[IoSlice<'_>],
    offset: u64,
) -> Result<(), StoreError> {
    bounce.resize(DIRECT_BLOCKS, Page([0; BLOCK_BYTES]));
    let mut offset = offset;
    let mut blocks = slices.iter().flat_map(|slice| slice.as_chunks::<BLOCK_BYTES>().0).peekable();
    while blocks.peek().is_some() {
        let mut count = 0;
        for (page, block) in bounce.iter_mut().zip(&mut blocks) {
            page.0.copy_from_slice(block);
            count += 1;
        }
        let mut aligned = [IoSlice::new(&[]); DIRECT_BLOCKS];
        for (slice, page) in aligned.iter_mut().zip(&bounce[..count]) {
            *slice = IoSlice::new(&page.0);
        }
        write_slices(file, &aligned[..count], offset)?;
        offset += count as u64 * BLOCK_BYTES_U64;
    }
    Ok(())
}

impl Disk for FileDisk {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn grow(&self, blocks: u64) -> Result<(), StoreError> {
        self.check_alive()?;
        let _growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let have = self.blocks();
            if have >= blocks {
                return Ok(());
            }
            let (index, offset, left) = self.place(have);
            let segment = match self.segment(index) {
                Ok(segment) => segment,
                Err(_) => self.add_segment(index)?,
            };
            let step = left.min(blocks - have);
            segment.extend(offset, offset + step * BLOCK_BYTES_U64)?;
            self.blocks.store(have + step, Ordering::Release);
        }
    }

    fn make_room(&self) -> bool {
        (self.make_room)()
    }

    fn read(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        assert!(out.len().is_multiple_of(BLOCK_BYTES));
        let mut position = position;
        let mut out = out;
        while !out.is_empty() {
            let (index, offset, left) = self.place(position);
            let count = left.min((out.len() / BLOCK_BYTES) as u64);
            let (now, later) = out.split_at_mut(count as usize * BLOCK_BYTES);
            let read = self.segment(index)?.file.read_exact_at(now, offset);
            read.map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Damage::Missing { what: "data segment" }.into(),
                _ => StoreError::io("reading file data", source),
            })?;
            position += count;
            out = later;
        }
        Ok(())
    }

    fn write(&self, position: u64, slices: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.check_alive()?;
        let mut position = position;
        let mut slices = slices;
        while let Some(first) = slices.first() {
            let (index, offset, left) = self.place(position);
            let segment = self.segment(index)?;
            let room = left.saturating_mul(BLOCK_BYTES_U64);
            let mut bytes = 0;
            let fitting = slices.iter().take_while(|slice| {
                bytes += slice.len() as u64;
                bytes <= room
            });
            let fitting = fitting.count();
            if fitting > 0 {
                let (now, later) = slices.split_at(fitting);
                self.write_segment(&segment, now, offset)?;
                let bytes: u64 = now.iter().map(|slice| slice.len() as u64).sum();
                assert!(bytes.is_multiple_of(BLOCK_BYTES_U64));
                position += bytes / BLOCK_BYTES_U64;
                slices = later;
            } else {
                // The slice lies across the end of a segment.
                let (now, later) = first.split_at(room as usize);
                self.write_segment(&segment, &[IoSlice::new(now)], offset)?;
                self.write(position + left, &[IoSlice::new(later)])?;
                position += (first.len() / BLOCK_BYTES) as u64;
                slices = &slices[1..];
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.check_alive()?;
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner).clone();
        for segment in segments {
            self.synced(segment.sync(), "file data")?;
        }
        // Another thread's sync may have failed while this one waited for it.
        self.check_alive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn pattern(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK_BYTES).map(|at| (at / 7 % 251) as u8).collect()
    }

    #[test]
    fn blocks_cross_segments_and_outlive_reopening() {
        let scratch = Scratch::new();
        let disk = FileDisk::open(scratch.path(), 4).unwrap();
        assert_eq!(disk.blocks(), 0);
        disk.grow(10).unwrap();
        let data = pattern(7);
        let (one, rest) = data.split_at(BLOCK_BYTES);
        disk.write(2, &[IoSlice::new(one), IoSlice::new(rest)]).unwrap();
        disk.sync().unwrap();
        drop(disk);
        let disk = FileDisk::open(scratch.path(), 4).unwrap();
        assert_eq!(disk.blocks(), 10);
        let mut out = vec![1; 10 * BLOCK_BYTES];
        disk.read(0, &mut out).unwrap();
        assert!(out[..2 * BLOCK_BYTES].iter().all(|byte| *byte == 0));
        assert_eq!(out[2 * BLOCK_BYTES..9 * BLOCK_BYTES], data);
        let beyond = disk.read(8, &mut out[..3 * BLOCK_BYTES]);
        assert!(matches!(beyond, Err(StoreError::Damaged(_))));
        let mut two = vec![0; 2 * BLOCK_BYTES];
        if disk.read_now(4, &mut two).unwrap() {
            assert_eq!(two, data[2 * BLOCK_BYTES..4 * BLOCK_BYTES]);
        }
        assert!(!disk.read_now(3, &mut two).unwrap());
    }

    #[test]
    fn many_small_slices_are_written_in_order() {
        let scratch = Scratch::new();
        let disk = FileDisk::open(scratch.path(), 4000).unwrap();
        disk.grow(3000).unwrap();
        let data = pattern(2500);
        let slices: Vec<_> = data.chunks(BLOCK_BYTES).map(IoSlice::new).collect();
        for direct in [false, true] {
            disk.set_direct(direct);
            let position = 100 + u64::from(direct);
            disk.write(position, &slices).unwrap();
            let mut out = vec![0; data.len()];
            disk.read(position, &mut out).unwrap();
            assert!(out == data);
            disk.sync().unwrap();
        }
    }

    #[test]
    fn missing_or_short_segment_is_damage() {
        let scratch = Scratch::new();
        let disk = FileDisk::open(scratch.path(), 4).unwrap();
        disk.grow(10).unwrap();
        drop(disk);
        std::fs::remove_file(segment_path(scratch.path(), 1)).unwrap();
        let opened = FileDisk::open(scratch.path(), 4);
        assert!(matches!(opened, Err(StoreError::Damaged(Damage::Missing { .. }))));
        std::fs::write(segment_path(scratch.path(), 1), vec![0; BLOCK_BYTES]).unwrap();
        let opened = FileDisk::open(scratch.path(), 4);
        assert!(matches!(opened, Err(StoreError::Damaged(Damage::Contradiction { .. }))));
    }
}
