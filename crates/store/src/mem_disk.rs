//! MemDisk: data segments in memory, with the manners of a disk that loses power.
//! Owns: what is durable, what is only written, and the faults asked for.
//! Never: reads a clock or draws random numbers; the caller chooses what a crash leaves.
//! Invariant: `crash` leaves of each unsynced 512-byte sector the old bytes or the new.
//! Source: docs/testing.md.

use crate::{BLOCK_BYTES, Block, Damage, Disk, Extent, Fuse, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Sectors in a block.
pub const SECTORS: usize = BLOCK_BYTES / SECTOR_BYTES;

/// A disk in memory. Clones share it, so that it survives the crash of its user.
#[derive(Debug, Clone)]
pub struct MemDisk {
    contents: Arc<Mutex<Contents>>,
    fuse: Fuse,
}

#[derive(Debug, Clone)]
struct Contents {
    blocks: u64,
    blocks_max: u64,
    durable: BTreeMap<u64, Arc<Block>>,
    /// Written, not synced.
    written: BTreeMap<u64, Arc<Block>>,
    /// What the newest sync that reached a block replaced.
    former: BTreeMap<u64, Arc<Block>>,
    /// Blocks that the medium does not give back.
    unreadable: BTreeSet<u64>,
    sync_fails: bool,
}

impl MemDisk {
    /// An empty disk that can grow to `blocks_max` blocks.
    pub fn new(blocks_max: u64) -> MemDisk {
        MemDisk::with_fuse(blocks_max, Fuse::new())
    }

    /// The same, stopping when `fuse` blows.
    pub fn with_fuse(blocks_max: u64, fuse: Fuse) -> MemDisk {
        let contents = Contents {
            blocks: 0,
            blocks_max,
            durable: BTreeMap::new(),
            written: BTreeMap::new(),
            former: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            sync_fails: false,
        };
        MemDisk { contents: Arc::new(Mutex::new(contents)), fuse }
    }

    /// A disk of its own that holds what this one holds now, synced or not. It has no fuse.
    pub fn fork(&self) -> MemDisk {
        let contents = self.contents().clone();
        MemDisk { contents: Arc::new(Mutex::new(contents)), fuse: Fuse::new() }
    }

    /// Blocks written and not synced.
    pub fn unsynced_blocks(&self) -> usize {
        self.contents().written.len()
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no holder of this lock panics")
    }

    /// Loses power: of each unsynced sector, `survives(position, sector)` says whether the new
    /// bytes reached the medium. Asked in ascending order. A set sync failure ends too.
    pub fn crash(&self, survives: &mut dyn FnMut(u64, usize) -> bool) {
        let mut contents = self.contents();
        contents.sync_fails = false;
        for (position, new) in std::mem::take(&mut contents.written) {
            let old =
                contents.durable.entry(position).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            let old = Arc::make_mut(old);
            for sector in 0..SECTORS {
                if survives(position, sector) {
                    let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    old[range.clone()].copy_from_slice(&new[range]);
                }
            }
        }
    }

    /// Makes every sync fail from now on, until a crash.
    pub fn fail_syncs(&self) {
        self.contents().sync_fails = true;
    }

    /// Flips the bits of `mask` in one byte of the medium. Returns whether a block was there.
    pub fn flip(&self, position: u64, byte: usize, mask: u8) -> bool {
        let mut contents = self.contents();
        let mut hit = false;
        if let Some(block) = contents.durable.get_mut(&position) {
            Arc::make_mut(block)[byte] ^= mask;
            hit = true;
        }
        if let Some(block) = contents.written.get_mut(&position) {
            Arc::make_mut(block)[byte] ^= mask;
            hit = true;
        }
        hit
    }

    /// The last durable write of a block never happened: the medium has what was there before. Returns whether
    /// there was one.
    pub fn lose_write(&self, position: u64) -> bool {
        let mut contents = self.contents();
        let Contents { durable, former, .. } = &mut *contents;
        let Some(block) = durable.get_mut(&position) else { return false };
        *block = former.remove(&position).unwrap_or_else(|| Arc::new([0; BLOCK_BYTES]));
        true
    }

    /// The last durable write of a block went to `over` instead, which was written too. Returns whether both were.
    pub fn misdirect(&self, position: u64, over: u64) -> bool {
        let mut contents = self.contents();
        let both = contents.durable.contains_key(&over) && position != over;
        let Some(bytes) = contents.durable.get(&position).filter(|_| both).cloned() else {
            return false;
        };
        contents.durable.insert(over, bytes);
        drop(contents);
        self.lose_write(position)
    }

    /// Reading a block fails from now on, until it is written again.
    pub fn spoil(&self, position: u64) {
        self.contents().unreadable.insert(position);
    }

    /// Positions that were ever written, ascending: for faults that pick one.
    pub fn positions(&self) -> Vec<u64> {
        self.contents().durable.keys().copied().collect()
    }

    /// Sets the size at which the disk is full, in blocks.
    pub fn set_blocks_max(&self, blocks_max: u64) {
        self.contents().blocks_max = blocks_max;
    }
}

fn within(contents: &Contents, extent: Extent) -> Result<(), StoreError> {
    match extent.position.checked_add(extent.count) {
        Some(end) if end <= contents.blocks => Ok(()),
        _ => Err(Damage::Missing { what: "data segment" }.into()),
    }
}

impl Disk for MemDisk {
    fn blocks(&self) -> u64 {
        self.contents().blocks
    }

    fn grow(&self, blocks: u64) -> Result<(), StoreError> {
        self.fuse.step("growing the memory disk")?;
        let mut contents = self.contents();
        if blocks > contents.blocks_max {
            return Err(StoreError::Full { what: "file data" });
        }
        contents.blocks = contents.blocks.max(blocks);
        Ok(())
    }

    fn read(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        assert!(out.len().is_multiple_of(BLOCK_BYTES));
        let contents = self.contents();
        within(&contents, Extent { position, count: (out.len() / BLOCK_BYTES) as u64 })?;
        for (position, out) in (position..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            if contents.unreadable.contains(&position) {
                return Err(StoreError::io("reading file data", io::Error::other("bad sector")));
            }
            let block = contents.written.get(&position).or_else(|| contents.durable.get(&position));
            match block {
                Some(block) => out.copy_from_slice(&block[..]),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, position: u64, slices: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.fuse.step("writing the memory disk")?;
        let mut contents = self.contents();
        let mut position = position;
        for slice in slices {
            assert!(slice.len().is_multiple_of(BLOCK_BYTES));
            within(&contents, Extent { position, count: (slice.len() / BLOCK_BYTES) as u64 })?;
            for bytes in slice.chunks_exact(BLOCK_BYTES) {
                let block: Arc<Block> = Arc::new(bytes.try_into().expect("chunks are blocks"));
                contents.written.insert(position, block);
                contents.unreadable.remove(&position);
                position += 1;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.fuse.step("syncing the memory disk")?;
        let mut contents = self.contents();
        if contents.sync_fails {
            let source = io::Error::other("sync made to fail");
            return Err(StoreError::SyncFailed { what: "file data", source });
        }
        let written = std::mem::take(&mut contents.written);
        for (position, block) in written {
            if let Some(old) = contents.durable.insert(position, block) {
                contents.former.insert(position, old);
            }
        }
        drop(contents);
        self.fuse.step("returning from a sync of the memory disk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Block {
        [byte; BLOCK_BYTES]
    }

    fn read(disk: &MemDisk, position: u64) -> Block {
        let mut out = block(9);
        disk.read(position, &mut out).unwrap();
        out
    }

    #[test]
    fn crash_tears_unsynced_sectors_only() {
        let disk = MemDisk::new(8);
        disk.grow(4).unwrap();
        disk.write(1, &[IoSlice::new(&block(1))]).unwrap();
        disk.sync().unwrap();
        disk.write(1, &[IoSlice::new(&block(2)), IoSlice::new(&block(3))]).unwrap();
        disk.crash(&mut |position, sector| position == 1 && sector == 7);
        let torn = read(&disk, 1);
        assert_eq!(torn[..7 * 512], block(1)[..7 * 512]);
        assert_eq!(torn[7 * 512..], block(2)[7 * 512..]);
        assert_eq!(read(&disk, 2), block(0));
    }

    #[test]
    fn reads_and_growth_beyond_the_end_are_refused() {
        let disk = MemDisk::new(8);
        disk.grow(4).unwrap();
        let mut out = block(0);
        assert!(matches!(disk.read(4, &mut out), Err(StoreError::Damaged(_))));
        assert!(matches!(disk.grow(9), Err(StoreError::Full { .. })));
        assert_eq!(disk.blocks(), 4);
    }
}
