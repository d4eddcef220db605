//! The event log: a ring of records in memory and its segments on disk.
//! Owns: the bytes of records and batches, their checksums, what is durable, what may be dropped.
//! Never: does I/O of its own, knows what a record means.
//! Invariant: what was durable is found again or its loss is noticed; what is needed is never overwritten.
//! Source: docs/protocol.md, rules 2, 3, 5, 8, 10; bytes in `docs/disk-format-log.md`.

mod batch;
mod body;
pub mod disk;
mod head;
mod log;
pub mod memory;
mod record;
mod recover;
pub mod ring;
mod settings;
mod swap;

pub use batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, BadExtent, ExtentRecords, parse_extent};
pub use body::Body;
pub use disk::{DiskCommand, DiskDone, DiskError, DiskRunner, LogDisk, SLOT_BYTES, SlotFile};
pub use head::{CleanMark, HEAD_EXTRA_BYTES, head_begin, head_clean, head_geometry, head_is_newer};
pub use log::{AppendError, Log, LogFull, Progress, Room};
pub use memory::{MEMORY_HEAD_BYTES, MemoryHead, MemoryTie};
pub use record::{
    BadRecord, RECORD_BODY_BYTES_MAX, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RawRecord, RawRecords,
    Record, RecordHeader,
};
pub use recover::{AmnesiaWhy, Evidence, Recovered, Verdict, recover, recover_by};
pub use ring::{LogPos, Ring, RingMemory};
pub use settings::LogSettings;
