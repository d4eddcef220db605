//! Placed: data written to its final place before the checkpoint that takes it in.
//! Owns: reserving blocks, writing them, giving them back.
//! Never: durable by itself: a reservation is forgotten in a crash, and claimed again by the log
//! records that name it.
//! Invariant: a reserved block is handed to nobody else until it is released or taken in.
//! Source: docs/disk-format.md.

use crate::store::Shared;
use crate::{Damage, Disk, Engine, Extent, Store, StoreError};
use std::io::IoSlice;

impl<E: Engine, D: Disk> Store<E, D> {
    /// Reserves `blocks` blocks, all or none, appending their extents to `extents`. Never waits
    /// for the disk: it hands out what is owned.
    ///
    /// Errors: `Full`; `grow` may help.
    pub fn reserve(&self, blocks: u64, extents: &mut Vec<Extent>) -> Result<(), StoreError> {
        let first = extents.len();
        let mut left = blocks;
        while left > 0 {
            let Some(extent) = self.shared.allocate_owned(left) else {
                extents.drain(first..).for_each(|extent| self.release(extent));
                return Err(StoreError::Full { what: "file data" });
            };
            left -= extent.count;
            extents.push(extent);
        }
        Ok(())
    }

    /// Reserves again, after a restart, what a log record says it wrote before.
    ///
    /// Errors: `Damaged` if the blocks are not owned or not free: log and image contradict.
    pub fn claim(&self, extent: Extent) -> Result<(), StoreError> {
        let mut state = self.shared.state();
        if !state.bitmap.is_free(extent) {
            return Err(Damage::Contradiction { what: "a logged write lies in used blocks" }.into());
        }
        state.bitmap.claim(extent);
        Ok(())
    }

    /// Gives back reserved blocks that no checkpoint took in.
    pub fn release(&self, extent: Extent) {
        self.shared.state().bitmap.release(extent);
    }

    /// Writes whole blocks to reserved places. Durable after `sync_data`.
    pub fn write_reserved(&self, position: u64, slices: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.shared.check_alive()?;
        self.shared.disk.write(position, slices)
    }

    /// Makes reserved blocks written before the call durable.
    pub fn sync_data(&self) -> Result<(), StoreError> {
        self.shared.check_alive()?;
        self.shared.note(self.shared.disk.sync())
    }
}

impl<E: Engine, D: Disk> Shared<E, D> {
    /// Hands out up to `want` neighbouring blocks, growing the disk when none are free.
    pub fn allocate(&self, want: u64) -> Result<Extent, StoreError> {
        loop {
            if let Some(extent) = self.allocate_owned(want) {
                return Ok(extent);
            }
            let growth = self.growth();
            // Another thread may have grown it meanwhile.
            if let Some(extent) = self.allocate_owned(want) {
                return Ok(extent);
            }
            // Nothing was written yet: what was given up for it may let it succeed.
            while let Err(error) = self.grow_step(&growth, 1) {
                if !matches!(error, StoreError::Full { .. }) || !self.disk.make_room() {
                    return Err(error);
                }
            }
        }
    }

    fn allocate_owned(&self, want: u64) -> Option<Extent> {
        let mut state = self.state();
        state.reclaim();
        state.bitmap.allocate(want)
    }
}
