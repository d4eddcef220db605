//! Store: one copy's durable image, exact at one op (its LB).
//! Owns: the formats of metadata values, the block map, the data segments and their free space,
//! checksums, checkpoints, readers.
//! Never: knows what a file, a directory or a record is; reads a clock; starts a thread.
//! Invariant: what is durable is exactly the last completed checkpoint.
//! Source: ARCHITECTURE.md; docs/disk-format.md; redirect-on-write as in log-structured file systems.
//!
//! Metadata are opaque keys and values in an [`Engine`]; file data are 4 KiB blocks of numbered
//! files on a [`Disk`]. A checkpoint writes new data to free space, syncs the disk once, then
//! commits metadata, block map, used-block bitmap and the op in one engine commit.

mod checkpoint;
pub mod contract;
mod digest;
mod disk;
mod engine;
mod epochs;
mod error;
mod fuse;
mod loading;
mod map_edit;
mod mem_disk;
mod mem_engine;
mod mend;
mod placed;
mod reader;
mod runs;
mod seal;
mod space;
mod store;

pub use checkpoint::{
    BlockWrite, Checkpoint, CheckpointReport, Content, Cut, Metadata, MetadataSink,
};
pub use digest::{Digest, ScrubPlace, ScrubReport};
pub use disk::{BLOCK_BYTES, BLOCK_BYTES_U64, Block, Disk, Extent};
pub use engine::{
    Batch, Engine, EngineSpace, Entry, Fill, KEY_BYTES_MAX, Show, Snapshot, Table, VALUE_BYTES_MAX,
    Walk,
};
pub use error::{Damage, DamagedBlock, StoreError};
pub use fuse::Fuse;
pub use mem_disk::{MemDisk, SECTORS};
pub use mem_engine::{MemEngine, MemSnapshot};
pub use mend::Remedy;
pub use reader::{Reader, ShowDamaged, ShowStretch, Stretch};
pub use runs::{BLOCK_INDEX_MAX, block_crc};
pub use space::Space;
pub use store::{Limits, Opened, Store};
