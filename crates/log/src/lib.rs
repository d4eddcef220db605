//! The event log: a ring of records in memory and its segments on disk.
//! Owns: the bytes of records and batches, their checksums, what is durable, what may be dropped.
//! Never: does I/O of its own, knows what a record means.

pub mod disk;
pub mod ring;

pub use disk::{DiskCommand, DiskDone, DiskError, LogDisk, SLOT_BYTES, SlotFile};
pub use ring::{LogPos, Ring, RingMemory};
