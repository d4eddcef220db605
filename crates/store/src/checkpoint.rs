//! Checkpoint: what moves the image from one op to a later one, whole or not at all.
//! Owns: the order data, one sync, one engine commit; and the undoing in memory when it fails.
//! Never: overwrites a block that the image or a reader uses; retries a failed sync.
//! Invariant: before the engine commits, all data it will refer to is durable.
//! Source: ARCHITECTURE.md; docs/disk-format.md; rule 8.

use crate::map_edit::{MapChanges, MapEdit};
use crate::runs::{BLOCK_INDEX_MAX, map_key};
use crate::seal::{self, HEAD_KEY, Head};
use crate::space::{PAGE_BLOCKS, PAGE_BYTES};
use crate::store::{Shared, Writer};
use crate::{
    BLOCK_BYTES_U64, Batch, Block, Disk, Engine, Extent, KEY_BYTES_MAX, Store, StoreError, Table,
    block_crc,
};
use std::collections::BTreeSet;
use std::io::IoSlice;

/// Blocks gathered into one write to the disk at most: 1 MiB.
const WINDOW_BLOCKS: usize = 256;

/// A cut: nothing of the file at or after block `first` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// The file.
    pub file: u64,
    /// The first block that goes.
    pub first: u64,
}

/// What a block becomes.
#[derive(Debug, Clone, Copy)]
pub enum Content<'d> {
    /// These bytes.
    Data(&'d Block),
    /// These bytes, under a checksum that is taken on trust: theirs, known already; or that of the bytes which
    /// should be here, and the block stays damaged until somebody has them.
    Checked(&'d Block, u32),
    /// What was written to a reserved block earlier, with its checksum.
    Placed {
        /// Where it lies; reserved and not yet used by the image.
        position: u64,
        /// Its checksum.
        crc: u32,
    },
}

/// One block of a file to be written.
#[derive(Debug, Clone, Copy)]
pub struct BlockWrite<'d> {
    /// The file.
    pub file: u64,
    /// The block's index in the file, at most `BLOCK_INDEX_MAX`.
    pub block: u64,
    /// What it becomes.
    pub content: Content<'d>,
}

/// Gives the metadata of a commit to the sink; called once.
pub type Metadata<'a> = dyn FnMut(&mut MetadataSink<'_>) -> Result<(), StoreError> + 'a;

/// A change of the image that makes it exact at `op`. Cuts come before its blocks.
pub struct Checkpoint<'a, 'd> {
    /// The op; above the image's.
    pub op: u64,
    /// In ascending order of files, at most one a file.
    pub cuts: &'a [Cut],
    /// Metadata, in ascending order of keys.
    pub metadata: &'a mut Metadata<'a>,
    /// Blocks, in ascending order of file and block.
    pub blocks: &'a mut dyn Iterator<Item = BlockWrite<'d>>,
    /// Called between pieces of work of a few microseconds each, so that the caller can let others go first.
    pub pause: &'a dyn Fn(),
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckpointReport {
    /// The op the image is exact at now.
    pub op: u64,
    /// Bytes of file data written by it (placed blocks were written before).
    pub data_bytes: u64,
    /// Blocks that came into the image, placed ones included.
    pub blocks: u64,
    /// Metadata keys set or deleted.
    pub entries: u64,
    /// Bytes of metadata keys and values given to the engine.
    pub entry_bytes: u64,
    /// Runs of the block map put or deleted.
    pub runs: u64,
    /// Blocks the image no longer uses.
    pub blocks_freed: u64,
    /// Cuts that are marked but not freed yet.
    pub cut_marks: u64,
}

/// Takes metadata in ascending order of keys.
pub struct MetadataSink<'b> {
    batch: &'b mut dyn Batch,
    sealed: &'b mut Vec<u8>,
    last_key: &'b mut Vec<u8>,
    report: &'b mut CheckpointReport,
    pause: &'b dyn Fn(),
}

impl MetadataSink<'_> {
    fn advance(&mut self, key: &[u8], value_bytes: usize) {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "a metadata key of bad length");
        assert!(&**self.last_key < key, "metadata out of order");
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        (self.pause)();
        self.report.entries += 1;
        self.report.entry_bytes += (key.len() + value_bytes) as u64;
    }

    /// Sets a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.advance(key, value.len());
        put(self.batch, self.sealed, Table::Meta, key, value)
    }

    /// Removes a key, which need not be there.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.advance(key, 0);
        self.batch.delete(Table::Meta, key)
    }

    /// Sets or removes a series of keys.
    pub fn extend<'k>(
        &mut self,
        pairs: impl IntoIterator<Item = (&'k [u8], Option<&'k [u8]>)>,
    ) -> Result<(), StoreError> {
        pairs.into_iter().try_for_each(|(key, value)| match value {
            Some(value) => self.put(key, value),
            None => self.delete(key),
        })
    }
}

impl<E: Engine, D: Disk> Store<E, D> {
    /// Moves the image to a later op. When it returns, that is durable; after a crash before,
    /// the image is exactly what it was or exactly what it becomes. An image being loaded stays one.
    ///
    /// Errors: `Full`, `Io`, `Damaged` (of the block map) changed nothing; `SyncFailed` is fatal.
    pub fn checkpoint(
        &self,
        checkpoint: Checkpoint<'_, '_>,
    ) -> Result<CheckpointReport, StoreError> {
        let mut writer = self.shared.writer();
        assert!(checkpoint.op > self.op(), "a checkpoint goes forward");
        assert!(checkpoint.cuts.is_sorted_by(|a, b| a.file < b.file), "cuts out of order");
        let commit = Commit { complete: self.complete(), moves: true, checkpoint };
        self.shared.note(commit.run(&self.shared, &mut writer))
    }
}

/// One change of the image, under the writer's lock.
pub(crate) struct Commit<'a, 'd> {
    pub complete: bool,
    /// Whether it moves the image to a new op.
    pub moves: bool,
    pub checkpoint: Checkpoint<'a, 'd>,
}

/// Blocks that the image comes to use.
#[derive(Default)]
struct Taken {
    /// Handed out by this commit; given back if it fails.
    allocated: Vec<Extent>,
    /// Reserved before; they stay reserved if it fails.
    placed: Vec<Extent>,
}

impl Taken {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        self.allocated.iter().chain(&self.placed).copied()
    }
}

impl Commit<'_, '_> {
    pub fn run<E: Engine, D: Disk>(
        self,
        shared: &Shared<E, D>,
        writer: &mut Writer,
    ) -> Result<CheckpointReport, StoreError> {
        shared.check_alive()?;
        let mut taken = Taken::default();
        let result = self.write_and_commit(shared, writer, &mut taken);
        if result.is_err() {
            let mut state = shared.state();
            taken.allocated.into_iter().for_each(|extent| state.bitmap.release(extent));
            state.under_way = 0;
        }
        result
    }

    fn write_and_commit<E: Engine, D: Disk>(
        self,
        shared: &Shared<E, D>,
        writer: &mut Writer,
        taken: &mut Taken,
    ) -> Result<CheckpointReport, StoreError> {
        let Commit { complete, moves, checkpoint } = self;
        let Checkpoint { op, cuts, metadata, blocks, pause } = checkpoint;
        let mut report = CheckpointReport { op, ..CheckpointReport::default() };
        let view = shared.engine.snapshot()?;
        let mut edit = MapEdit::new(&view, op, writer.marks.clone());
        let mut runs_freed = 0;
        let limits = &shared.limits;
        for cut in cuts {
            runs_freed += edit.cut(cut.file, cut.first, limits.cut_now_runs_max - runs_freed)?;
        }
        if moves {
            edit.free_hidden(limits.cut_later_runs_max - runs_freed)?;
        }
        let blocks = &mut blocks.inspect(|_| pause());
        write_blocks(shared, &mut edit, blocks, taken, &mut report)?;
        let changes = edit.finish();
        drop(view);
        if report.blocks > 0 {
            shared.disk.sync()?;
        }
        let pages = turn_image(shared, taken, &changes.freed);
        let head = Head { complete, op, cut_marks: changes.marks.len() as u64 };
        let committed = shared.engine.commit(&mut |batch| {
            let said = Said { head, changes: &changes, pages: &pages, pause };
            said.put_all(shared, writer, batch, metadata, &mut report)
        });
        if let Err(error) = committed {
            turn_image_back(shared, taken, &changes.freed);
            return Err(error);
        }
        report.cut_marks = head.cut_marks;
        report.blocks_freed = changes.freed.iter().map(|extent| extent.count).sum();
        writer.marks = changes.marks;
        let mut state = shared.state();
        state.op = op;
        state.under_way = 0;
        state.complete = complete;
        state.epochs.committed(changes.freed);
        state.reclaim();
        Ok(report)
    }
}

/// Writes new data to free space and puts it into the map.
fn write_blocks<'d, E: Engine, D: Disk>(
    shared: &Shared<E, D>,
    edit: &mut MapEdit<'_, E::Snapshot>,
    blocks: &mut dyn Iterator<Item = BlockWrite<'d>>,
    taken: &mut Taken,
    report: &mut CheckpointReport,
) -> Result<(), StoreError> {
    let mut window: Vec<(u64, u64, &'d Block, u32)> = Vec::new();
    let mut slices: Vec<IoSlice<'d>> = Vec::new();
    let mut placed = RunBuilder::default();
    let mut last = None;
    for BlockWrite { file, block, content } in blocks {
        assert!(last < Some((file, block)) && block <= BLOCK_INDEX_MAX, "blocks out of order");
        last = Some((file, block));
        report.blocks += 1;
        let (data, crc) = match content {
            Content::Data(data) => (data, block_crc(data)),
            Content::Checked(data, crc) => (data, crc),
            Content::Placed { position, crc } => {
                let extent = Extent { position, count: 1 };
                assert!(shared.state().bitmap.is_reserved(extent), "placed where not reserved");
                match taken.placed.last_mut() {
                    Some(before) if before.end() == position => before.count += 1,
                    _ => taken.placed.push(extent),
                }
                placed.add(edit, file, block, position, crc)?;
                continue;
            }
        };
        if window.is_empty() {
            window.reserve(WINDOW_BLOCKS);
        }
        window.push((file, block, data, crc));
        if window.len() == WINDOW_BLOCKS {
            flush(shared, edit, &mut window, &mut slices, taken, report)?;
        }
    }
    flush(shared, edit, &mut window, &mut slices, taken, report)?;
    placed.end(edit)
}

/// Writes the gathered blocks to free space, in as few pieces as there is room for.
fn flush<'d, E: Engine, D: Disk>(
    shared: &Shared<E, D>,
    edit: &mut MapEdit<'_, E::Snapshot>,
    window: &mut Vec<(u64, u64, &'d Block, u32)>,
    slices: &mut Vec<IoSlice<'d>>,
    taken: &mut Taken,
    report: &mut CheckpointReport,
) -> Result<(), StoreError> {
    let mut left = &window[..];
    while !left.is_empty() {
        let extent = shared.allocate(left.len() as u64)?;
        taken.allocated.push(extent);
        shared.state().under_way += extent.count;
        let (now, later) = left.split_at(extent.count as usize);
        left = later;
        slices.clear();
        slices.extend(now.iter().map(|(_, _, data, _)| IoSlice::new(&data[..])));
        shared.disk.write(extent.position, slices)?;
        report.data_bytes += extent.count * BLOCK_BYTES_U64;
        let mut builder = RunBuilder::default();
        for (position, (file, block, _, crc)) in (extent.position..).zip(now) {
            builder.add(edit, *file, *block, position, *crc)?;
        }
        builder.end(edit)?;
    }
    window.clear();
    Ok(())
}

/// Gathers neighbouring blocks at neighbouring places into runs.
#[derive(Default)]
struct RunBuilder {
    file: u64,
    first: u64,
    position: u64,
    crcs: Vec<u32>,
}

impl RunBuilder {
    fn add<S: crate::Snapshot>(
        &mut self,
        edit: &mut MapEdit<'_, S>,
        file: u64,
        block: u64,
        position: u64,
        crc: u32,
    ) -> Result<(), StoreError> {
        let count = self.crcs.len() as u64;
        let follows = file == self.file
            && block == self.first.wrapping_add(count)
            && position == self.position.wrapping_add(count)
            && self.crcs.len() < WINDOW_BLOCKS;
        if !follows {
            self.end(edit)?;
            (self.file, self.first, self.position) = (file, block, position);
        }
        self.crcs.push(crc);
        Ok(())
    }

    fn end<S: crate::Snapshot>(&mut self, edit: &mut MapEdit<'_, S>) -> Result<(), StoreError> {
        if !self.crcs.is_empty() {
            edit.write(self.file, self.first, self.position, &self.crcs)?;
            self.crcs.clear();
        }
        Ok(())
    }
}

/// Brings the bitmap to what the image is about to use. Returns the pages that changed.
fn turn_image<E, D>(shared: &Shared<E, D>, taken: &Taken, freed: &[Extent]) -> BTreeSet<u64>
where
    E: Engine,
    D: Disk,
{
    let mut state = shared.state();
    let mut pages = BTreeSet::new();
    for (extent, used) in
        taken.extents().map(|e| (e, true)).chain(freed.iter().map(|e| (*e, false)))
    {
        state.bitmap.set_image(extent, used);
        pages.extend(extent.position / PAGE_BLOCKS..=(extent.end() - 1) / PAGE_BLOCKS);
    }
    pages
}

fn turn_image_back<E: Engine, D: Disk>(shared: &Shared<E, D>, taken: &Taken, freed: &[Extent]) {
    let mut state = shared.state();
    freed.iter().for_each(|extent| state.bitmap.set_image(*extent, true));
    taken.extents().for_each(|extent| state.bitmap.set_image(extent, false));
}

/// What one commit changes beside the owner's metadata.
struct Said<'c> {
    head: Head,
    changes: &'c MapChanges,
    /// Pages of the bitmap that changed.
    pages: &'c BTreeSet<u64>,
    pause: &'c dyn Fn(),
}

impl Said<'_> {
    /// Says everything in the order of tables and keys.
    fn put_all<E: Engine, D: Disk>(
        &self,
        shared: &Shared<E, D>,
        writer: &mut Writer,
        batch: &mut dyn Batch,
        metadata: &mut Metadata<'_>,
        report: &mut CheckpointReport,
    ) -> Result<(), StoreError> {
        let Writer { sealed, last_key, .. } = writer;
        put(batch, sealed, Table::Head, HEAD_KEY, &self.head.encode())?;
        last_key.clear();
        metadata(&mut MetadataSink { batch, sealed, last_key, report, pause: self.pause })?;
        self.put_map(writer, batch, report)?;
        let sealed = &mut writer.sealed;
        let mut bytes = [0; PAGE_BYTES];
        for page in self.pages {
            let key = page.to_be_bytes();
            let used = shared.state().bitmap.page(*page, &mut bytes);
            match used {
                Some(()) => put(batch, sealed, Table::Used, &key, &bytes)?,
                None => batch.delete(Table::Used, &key)?,
            }
        }
        Ok(())
    }

    /// Says what changes in the block map and among the marks.
    fn put_map(
        &self,
        writer: &mut Writer,
        batch: &mut dyn Batch,
        report: &mut CheckpointReport,
    ) -> Result<(), StoreError> {
        let Writer { value, sealed, .. } = writer;
        for ((file, last), run) in self.changes.runs() {
            (self.pause)();
            report.runs += 1;
            let key = map_key(file, last);
            match run {
                Some((span, crcs)) => {
                    span.encode(crcs, value);
                    put(batch, sealed, Table::Map, &key, value)?;
                }
                None => batch.delete(Table::Map, &key)?,
            }
        }
        for ((file, first), mark) in self.changes.mark_changes() {
            let key = map_key(file, first);
            match mark {
                Some(mark) => put(batch, sealed, Table::Cut, &key, &mark.encode())?,
                None => batch.delete(Table::Cut, &key)?,
            }
        }
        Ok(())
    }
}

/// Puts a value under its seal.
fn put(
    batch: &mut dyn Batch,
    sealed: &mut Vec<u8>,
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreError> {
    seal::seal(table, key, value, sealed);
    batch.put(table, key, sealed)
}
