//! Store: one image, opened; the root that readers and checkpoints hang from.
//! Owns: engine, disk, bitmap, epochs, and the order in which they are locked.
//! Never: waits for a reader; lets two commits run at once.
//! Invariant: the state in memory is that of the last completed commit.
//! Source: docs/disk-format.md.
//!
//! Locks, in the order they may be taken: `writer` (for a whole commit), `growth` (for a whole
//! growth of the disk), `state` (for moments).

use crate::epochs::Epochs;
use crate::map_edit::load_marks;
use crate::runs::Mark;
use crate::seal::{self, HEAD_KEY, Head, IDENTITY_KEY, read_identity};
use crate::space::{Bitmap, Space};
use crate::{
    BLOCK_BYTES_U64, Damage, Disk, Engine, Reader, Snapshot, StoreError, Table, VALUE_BYTES_MAX,
    Walk,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How the data segments grow, and how much a checkpoint frees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blocks to grow by when free blocks run out.
    pub grow_blocks: u64,
    /// Blocks the disk may own at most.
    pub blocks_max: u64,
    /// Runs that the cuts of one checkpoint free at once at most; the rest is marked.
    pub cut_now_runs_max: usize,
    /// Runs that one checkpoint visits at most to free what earlier cuts marked.
    pub cut_later_runs_max: usize,
}

impl Default for Limits {
    /// Steps of 1 GiB up to 64 TiB.
    fn default() -> Limits {
        let gib = (1 << 30) / BLOCK_BYTES_U64;
        Limits {
            grow_blocks: gib,
            blocks_max: 64 * 1024 * gib,
            cut_now_runs_max: 4096,
            cut_later_runs_max: 65_536,
        }
    }
}

/// One copy's durable image. Clones are handles of the same image; all methods may be called
/// from any thread.
#[derive(Debug)]
pub struct Store<E: Engine, D: Disk> {
    pub(crate) shared: Arc<Shared<E, D>>,
}

impl<E: Engine, D: Disk> Clone for Store<E, D> {
    fn clone(&self) -> Self {
        Store { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
pub(crate) struct Shared<E, D> {
    pub engine: E,
    pub disk: D,
    pub limits: Limits,
    writer: Mutex<Writer>,
    growth: Mutex<()>,
    state: Mutex<State>,
    /// Set by a failed sync, for ever.
    failed: AtomicBool,
}

/// What only the one commit at a time uses.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub marks: BTreeMap<(u64, u64), Mark>,
    pub value: Vec<u8>,
    pub sealed: Vec<u8>,
    pub last_key: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub op: u64,
    pub complete: bool,
    pub bitmap: Bitmap,
    pub epochs: Epochs,
    /// Blocks handed out to the commit that is under way.
    pub under_way: u64,
}

impl State {
    /// Makes blocks free whose last readers have ended.
    pub fn reclaim(&mut self) {
        while let Some(extents) = self.epochs.take_unread() {
            extents.into_iter().for_each(|extent| self.bitmap.release(extent));
        }
    }
}

/// An image just opened.
#[derive(Debug)]
pub struct Opened<E: Engine, D: Disk> {
    /// The image.
    pub store: Store<E, D>,
    /// The bytes given when it was formatted.
    pub identity: Vec<u8>,
    /// Its LB: the op it is exact at, if it is complete.
    pub op: u64,
    /// False for an image that was being loaded: it is exact at no op.
    pub complete: bool,
}

impl<E: Engine, D: Disk> Store<E, D> {
    /// Makes an image that is complete at op 0, carrying `identity` (at most 64 KiB) and the first
    /// `rows` (key, value).
    ///
    /// Errors: `AlreadyFormatted` if any image is there, damaged ones included.
    pub fn format(
        engine: &E,
        identity: &[u8],
        rows: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), StoreError> {
        let view = engine.snapshot()?;
        for table in Table::ALL {
            if view.seek(table, &[])?.is_some() {
                return Err(StoreError::AlreadyFormatted);
            }
        }
        drop(view);
        Self::reformat(engine, identity, Some(rows))
    }

    /// Throws away whatever is there. With `rows` it makes an image complete at op 0 that holds them;
    /// without, one to be loaded from another copy, exact at no op until that is done. Not to be called
    /// while a store has it open.
    pub fn reformat(
        engine: &E,
        identity: &[u8],
        rows: Option<&[(Vec<u8>, Vec<u8>)]>,
    ) -> Result<(), StoreError> {
        assert!(identity.len() <= VALUE_BYTES_MAX / 256);
        let head = Head { complete: rows.is_some(), op: 0, cut_marks: 0 };
        let mut sealed = Vec::new();
        engine.commit(&mut |batch| {
            Table::ALL.into_iter().try_for_each(|table| batch.clear(table))?;
            seal::seal(Table::Head, HEAD_KEY, &head.encode(), &mut sealed);
            batch.put(Table::Head, HEAD_KEY, &sealed)?;
            seal::seal(Table::Head, IDENTITY_KEY, identity, &mut sealed);
            batch.put(Table::Head, IDENTITY_KEY, &sealed)?;
            rows.unwrap_or_default().iter().try_for_each(|(key, value)| {
                seal::seal(Table::Meta, key, value, &mut sealed);
                batch.put(Table::Meta, key, &sealed)
            })
        })
    }

    /// Opens an image.
    ///
    /// Errors: `NotFormatted`; `Damaged` when head, identity, marks or bitmap are, or data
    /// segments are missing; `Version`.
    pub fn open(engine: E, disk: D, limits: Limits) -> Result<Opened<E, D>, StoreError> {
        assert!(
            limits.grow_blocks > 0 && limits.cut_later_runs_max >= limits.cut_now_runs_max.max(1)
        );
        let view = engine.snapshot()?;
        let head = Head::read(&view)?;
        let identity = read_identity(&view)?;
        let marks = load_marks(&view)?;
        if marks.len() as u64 != head.cut_marks {
            return Err(Damage::Contradiction { what: "the number of cut marks" }.into());
        }
        let mut bitmap = Bitmap::new(disk.blocks());
        view.scan(Table::Used, &[], &mut |key, sealed| {
            let value = seal::open(Table::Used, key, sealed)?;
            let page = key.try_into().map_err(|_| StoreError::value(Table::Used, key))?;
            bitmap.load_page(u64::from_be_bytes(page), value)?;
            Ok(Walk::On)
        })?;
        drop(view);
        let Head { op, complete, .. } = head;
        let state = State { op, complete, bitmap, epochs: Epochs::default(), under_way: 0 };
        let shared = Shared {
            engine,
            disk,
            limits,
            writer: Mutex::new(Writer { marks, ..Writer::default() }),
            growth: Mutex::new(()),
            state: Mutex::new(state),
            failed: AtomicBool::new(false),
        };
        Ok(Opened { store: Store { shared: Arc::new(shared) }, identity, op, complete })
    }

    /// The op the image is durably exact at (LB), if it is complete; else how far the log was redone.
    pub fn op(&self) -> u64 {
        self.shared.state().op
    }

    /// Whether the image is exact at its op, rather than being loaded.
    pub fn complete(&self) -> bool {
        self.shared.state().complete
    }

    /// A consistent view of the image as last committed. Keep it short: the blocks it may read
    /// are not reused, nor are the engine's pages, until it is dropped.
    pub fn reader(&self) -> Result<Reader<E, D>, StoreError> {
        Reader::new(Arc::clone(&self.shared))
    }

    /// Numbers of blocks of file data.
    pub fn space(&self) -> Space {
        let mut state = self.shared.state();
        state.reclaim();
        let (total_blocks, free_blocks) = state.bitmap.counts();
        let limit_blocks = self.shared.limits.blocks_max.max(total_blocks);
        let used_blocks = total_blocks - free_blocks;
        let (op, under_way_blocks) = (state.op, state.under_way);
        Space { op, total_blocks, used_blocks, free_blocks, under_way_blocks, limit_blocks }
    }

    /// Grows the disk until at least `free_blocks` are free, in whole steps.
    ///
    /// Errors: `Full` when that is not to be had; what was free stays so.
    pub fn grow(&self, free_blocks: u64) -> Result<Space, StoreError> {
        let growth = self.shared.growth();
        loop {
            let space = self.space();
            if space.free_blocks >= free_blocks {
                return Ok(space);
            }
            self.shared.grow_step(&growth, free_blocks - space.free_blocks)?;
        }
    }

    /// The engine, for its size.
    pub fn engine(&self) -> &E {
        &self.shared.engine
    }

    /// The disk, for reading at places a reader located.
    pub fn disk(&self) -> &D {
        &self.shared.disk
    }

    /// Readers alive, over all threads.
    pub fn readers(&self) -> u64 {
        self.shared.state().epochs.readers()
    }
}

impl<E: Engine, D: Disk> Shared<E, D> {
    /// The state; held for moments only.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a thread died holding the store's state")
    }

    /// The right to commit.
    pub fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a thread died in the middle of a commit")
    }

    /// The right to grow the disk.
    pub fn growth(&self) -> MutexGuard<'_, ()> {
        self.growth.lock().expect("a thread died growing the disk")
    }

    /// Grows the disk by one step, or by more if more blocks are wanted.
    pub fn grow_step(&self, _: &MutexGuard<'_, ()>, blocks: u64) -> Result<(), StoreError> {
        let total = self.disk.blocks();
        let room = self.limits.blocks_max.saturating_sub(total);
        if room < blocks.max(1) {
            return Err(StoreError::Full { what: "file data" });
        }
        let step = self.limits.grow_blocks;
        let mut wanted = blocks.max(1).next_multiple_of(step).min(room);
        // A file system nearly full may still have room for less than a step.
        while let Err(error) = self.disk.grow(total + wanted) {
            if !matches!(error, StoreError::Full { .. }) || wanted / 2 < blocks.max(1) {
                return Err(error);
            }
            wanted /= 2;
        }
        self.state().bitmap.grow(self.disk.blocks());
        Ok(())
    }

    /// `Failed` after a failed sync.
    pub fn check_alive(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) { Err(StoreError::Failed) } else { Ok(()) }
    }

    /// Remembers a fatal error.
    pub fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.as_ref().is_err_and(StoreError::is_fatal) {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}
