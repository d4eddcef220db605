//! Disk: the data segments as one space of 4 KiB blocks.
//! Owns: the contract of data segments.
//! Never: orders writes; only `sync` makes anything durable.
//! Invariant: what was written before a `sync` that succeeded is there after a crash.
//! Source: docs/disk-format.md.

use crate::StoreError;
use std::io::IoSlice;

/// Bytes in a block of file data.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes in a block, for offsets.
pub const BLOCK_BYTES_U64: u64 = BLOCK_BYTES as u64;

/// A block of file data.
pub type Block = [u8; BLOCK_BYTES];

/// A stretch of the data segments, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The first block.
    pub position: u64,
    /// How many blocks; never zero.
    pub count: u64,
}

impl Extent {
    /// The position after the last block.
    pub fn end(&self) -> u64 {
        self.position + self.count
    }
}

/// Preallocated data segments, addressed by block. All methods may be called from any thread.
pub trait Disk: Send + Sync + 'static {
    /// Blocks the disk owns: preallocated, never to be refused for lack of space.
    fn blocks(&self) -> u64;

    /// Owns at least `blocks` blocks from now on, zero until written.
    /// Errors: `Full` when the space is not to be had; nothing changed.
    fn grow(&self, blocks: u64) -> Result<(), StoreError>;

    /// Gives up something that was kept for need, so that what was refused for lack of space may be tried again.
    /// False: there is nothing left to give up.
    fn make_room(&self) -> bool {
        false
    }

    /// Reads whole blocks from `position` on, as many as fill `out`.
    fn read(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError>;

    /// Writes whole blocks from `position` on; each slice is a whole number of blocks.
    fn write(&self, position: u64, slices: &[IoSlice<'_>]) -> Result<(), StoreError>;

    /// Makes durable everything written before the call, by whichever thread.
    /// Errors: `SyncFailed`, for ever after the first.
    fn sync(&self) -> Result<(), StoreError>;
}
