//! Reader: a consistent view of the image, with the right to read its blocks.
//! Owns: a snapshot and a place among the readers of its epoch.
//! Never: writes; returns bytes whose checksum it did not check, nor damaged ones but to who takes them as that.
//! Invariant: no block it can see is reused before it is dropped.
//! Source: docs/disk-format.md.

use crate::epochs::Epoch;
use crate::runs::{Apart, BLOCK_INDEX_MAX, Mark, Span, hidden, map_key, parse_run};
use crate::seal::{self, Head};
use crate::store::Shared;
use crate::{
    BLOCK_BYTES, BLOCK_BYTES_U64, Block, DamagedBlock, Disk, Engine, Show, Snapshot, StoreError,
    Table, Walk,
};
use std::sync::Arc;

/// A view of the image. It may move between threads but serves one at a time.
#[derive(Debug)]
pub struct Reader<E: Engine, D: Disk> {
    /// Ends the engine's view; always there until dropped.
    snapshot: E::Snapshot,
    head: Head,
    guard: Guard<E, D>,
}

/// A place among the readers.
#[derive(Debug)]
struct Guard<E: Engine, D: Disk> {
    shared: Arc<Shared<E, D>>,
    epoch: Epoch,
}

impl<E: Engine, D: Disk> Drop for Guard<E, D> {
    fn drop(&mut self) {
        self.shared.state().epochs.leave(self.epoch);
    }
}

/// A stretch of a file that has blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The file.
    pub file: u64,
    /// The first block's index in the file.
    pub first: u64,
    /// How many blocks.
    pub count: u64,
    /// Where the first block lies on the disk; the others follow it.
    pub position: u64,
}

/// Is shown stretches and the checksums of their blocks until it says stop or fails.
pub type ShowStretch<'a> =
    dyn FnMut(Stretch, &mut dyn Iterator<Item = u32>) -> Result<Walk, StoreError> + 'a;
/// Is shown damaged blocks until it fails.
pub type ShowDamaged<'a> = dyn FnMut(DamagedBlock) -> Result<(), StoreError> + 'a;
/// The same for runs.
type ShowSpan<'a> = dyn FnMut(Span, &mut dyn Iterator<Item = u32>) -> Result<Walk, StoreError> + 'a;

impl<E: Engine, D: Disk> Reader<E, D> {
    pub(crate) fn new(shared: Arc<Shared<E, D>>) -> Result<Reader<E, D>, StoreError> {
        shared.check_alive()?;
        // Enter first: a commit in between makes the view newer than the epoch, which is safe.
        let epoch = shared.state().epochs.enter();
        let guard = Guard { shared, epoch };
        let snapshot = guard.shared.engine.snapshot()?;
        let head = Head::read(&snapshot)?;
        Ok(Reader { snapshot, head, guard })
    }

    /// The op the view is exact at, if the image was complete.
    pub fn op(&self) -> u64 {
        self.head.op
    }

    /// Whether the image was complete.
    pub fn complete(&self) -> bool {
        self.head.complete
    }

    pub(crate) fn snapshot(&self) -> &E::Snapshot {
        &self.snapshot
    }

    /// The metadata value under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let sealed = self.snapshot.get(Table::Meta, key)?;
        sealed.map(|sealed| seal::open(Table::Meta, key, sealed)).transpose()
    }

    /// Shows metadata at or after `from`, in key order, at most `limit` entries, until `show`
    /// says stop or fails. Returns the number shown.
    pub fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut Show<'_>,
    ) -> Result<usize, StoreError> {
        let mut shown = 0;
        if limit == 0 {
            return Ok(0);
        }
        self.snapshot.scan(Table::Meta, from, &mut |key, sealed| {
            let walk = show(key, seal::open(Table::Meta, key, sealed)?)?;
            shown += 1;
            Ok(if shown == limit { Walk::Stop } else { walk })
        })?;
        Ok(shown)
    }

    /// Reads `out.len() / 4096` blocks of a file from block `first` on; what has no block reads
    /// as zeros. Every checksum is checked.
    ///
    /// Errors: `Damaged(Block)` names the first damaged block; `out` is then worthless.
    pub fn read_blocks(&self, file: u64, first: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.read_blocks_but(file, first, out, &mut |damaged| Err(damaged.into()))
    }

    /// The same, showing damaged blocks, in order, until `damaged` fails. In `out` they are as they were found,
    /// or zeros.
    pub fn read_blocks_but(
        &self,
        file: u64,
        first: u64,
        out: &mut [u8],
        damaged: &mut ShowDamaged<'_>,
    ) -> Result<(), StoreError> {
        assert!(out.len().is_multiple_of(BLOCK_BYTES));
        let count = (out.len() / BLOCK_BYTES) as u64;
        let mut done = 0;
        self.visible(file, first, count, &mut |span, crcs| {
            let skip = span.first - first;
            out[bytes(done)..bytes(skip)].fill(0);
            done = skip + span.count;
            let out = &mut out[bytes(skip)..bytes(done)];
            read_span(self.disk(), &span, crcs, out, damaged)?;
            Ok(Walk::On)
        })?;
        out[bytes(done)..].fill(0);
        Ok(())
    }

    /// The checksum of a block as the map has it, without reading the block; `None` for a hole.
    pub fn block_crc(&self, file: u64, block: u64) -> Result<Option<u32>, StoreError> {
        let mut crc = None;
        self.visible(file, block, 1, &mut |_, crcs| {
            crc = crcs.next();
            Ok(Walk::Stop)
        })?;
        Ok(crc)
    }

    /// Shows where the blocks of `[first, first + count)` lie and their checksums, in order,
    /// until `show` says stop or fails; holes are passed over. The places stay readable while the reader lives.
    pub fn locate(
        &self,
        file: u64,
        first: u64,
        count: u64,
        show: &mut ShowStretch<'_>,
    ) -> Result<(), StoreError> {
        self.visible(file, first, count, &mut |span, crcs| show(stretch(&span), crcs))
    }

    /// Shows every stretch of blocks, with their checksums, at or after `(file, block)` over all files, in order, until
    /// `show` says stop or fails. A stretch that begins before the place is shown from it on.
    /// For copying an image in pieces.
    pub fn stretches(
        &self,
        from: (u64, u64),
        show: &mut ShowStretch<'_>,
    ) -> Result<(), StoreError> {
        self.visible_spans(from, &mut |span, crcs| show(stretch(&span), crcs))
    }

    /// The same as runs.
    pub(crate) fn visible_spans(
        &self,
        from: (u64, u64),
        show: &mut ShowSpan<'_>,
    ) -> Result<(), StoreError> {
        let mut marks: (u64, Vec<Mark>) = (from.0, self.marks(from.0)?);
        let mut apart = Apart::default();
        self.snapshot.scan(Table::Map, &map_key(from.0, from.1), &mut |key, sealed| {
            let (span, crcs) = parse_run((key, sealed))?;
            apart.check(&span)?;
            if marks.0 != span.file {
                marks = (span.file, self.marks(span.file)?);
            }
            if hidden(&span, &marks.1) {
                return Ok(Walk::On);
            }
            let first = if span.file == from.0 { span.first.max(from.1) } else { span.first };
            let skip = (first - span.first) as usize;
            show(span.part(first, span.last()), &mut crcs.iter().skip(skip))
        })
    }

    /// Shows the visible parts of runs in `[first, first + count)`, with their checksums.
    fn visible(
        &self,
        file: u64,
        first: u64,
        count: u64,
        show: &mut ShowSpan<'_>,
    ) -> Result<(), StoreError> {
        if count == 0 {
            return Ok(());
        }
        assert!(first <= BLOCK_INDEX_MAX);
        let last = first.saturating_add(count - 1).min(BLOCK_INDEX_MAX);
        let marks = self.marks(file)?;
        let mut apart = Apart::default();
        self.snapshot.scan(Table::Map, &map_key(file, first), &mut |key, sealed| {
            let (span, crcs) = parse_run((key, sealed))?;
            if span.file != file || span.first > last {
                return Ok(Walk::Stop);
            }
            apart.check(&span)?;
            if !hidden(&span, &marks) {
                let part = span.part(span.first.max(first), span.last().min(last));
                let skip = (part.first - span.first) as usize;
                let walk = show(part, &mut crcs.iter().skip(skip).take(part.count as usize))?;
                if walk == Walk::Stop {
                    return Ok(walk);
                }
            }
            Ok(if span.last() >= last { Walk::Stop } else { Walk::On })
        })
    }

    /// The cut marks of a file, ascending.
    fn marks(&self, file: u64) -> Result<Vec<Mark>, StoreError> {
        let mut marks = Vec::new();
        if self.head.cut_marks > 0 {
            self.snapshot.scan(Table::Cut, &map_key(file, 0), &mut |key, sealed| {
                let mark = Mark::parse((key, sealed))?;
                if mark.file != file {
                    return Ok(Walk::Stop);
                }
                marks.push(mark);
                Ok(Walk::On)
            })?;
        }
        Ok(marks)
    }

    pub(crate) fn disk(&self) -> &D {
        &self.guard.shared.disk
    }
}

fn bytes(blocks: u64) -> usize {
    usize::try_from(blocks * BLOCK_BYTES_U64).expect("the caller's buffer is as long")
}

fn stretch(span: &Span) -> Stretch {
    Stretch { file: span.file, first: span.first, count: span.count, position: span.position }
}

/// Reads the blocks of a run into `out`, as long, and checks them; shows those that are damaged.
pub(crate) fn read_span<D: Disk>(
    disk: &D,
    span: &Span,
    crcs: &mut dyn Iterator<Item = u32>,
    out: &mut [u8],
    damaged: &mut ShowDamaged<'_>,
) -> Result<(), StoreError> {
    assert_eq!(out.len(), bytes(span.count));
    let unread = match disk.read(span.position, out) {
        Ok(()) => Vec::new(),
        // A sector that the medium does not give back fails a whole read: the others may be well.
        Err(StoreError::Io { .. }) => read_each(disk, span.position, out)?,
        Err(error) => return Err(error),
    };
    let (blocks, _) = out.as_chunks::<BLOCK_BYTES>();
    for (index, (block, crc)) in (0..).zip(blocks.iter().zip(crcs)) {
        let block: &Block = block;
        let position = span.position + index;
        if crate::block_crc(block) != crc || unread.contains(&position) {
            damaged(DamagedBlock { file: span.file, block: span.first + index, position, crc })?;
        }
    }
    Ok(())
}

/// Reads block by block. Returns the places of those that cannot be read; they become zeros.
fn read_each<D: Disk>(disk: &D, position: u64, out: &mut [u8]) -> Result<Vec<u64>, StoreError> {
    let mut unread = Vec::new();
    for (position, block) in (position..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
        match disk.read(position, block) {
            Ok(()) => {}
            Err(StoreError::Io { .. }) => {
                block.fill(0);
                unread.push(position);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unread)
}
