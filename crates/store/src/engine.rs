//! Engine: an ordered, durable key-value map with snapshots and atomic commits.
//! Owns: the contract every metadata engine keeps.
//! Never: knows files, checksums or what a key means.
//! Invariant: after a crash exactly the last completed commit is there, whole.
//! Source: docs/disk-format.md.

use crate::StoreError;

/// The key spaces of an engine. Each is ordered by its keys' bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// The image's head and identity.
    Head = 0,
    /// The owner's metadata.
    Meta = 1,
    /// The block map's runs.
    Map = 2,
    /// Marks of cuts whose blocks are freed later.
    Cut = 3,
    /// Pages of the bitmap of used blocks.
    Used = 4,
}

impl Table {
    /// How many tables there are.
    pub const COUNT: usize = 5;
    /// All tables, in the order in which a commit visits them.
    pub const ALL: [Table; Table::COUNT] =
        [Table::Head, Table::Meta, Table::Map, Table::Cut, Table::Used];

    /// The table's name, for messages and for engines that name their tables.
    pub fn name(self) -> &'static str {
        match self {
            Table::Head => "head",
            Table::Meta => "meta",
            Table::Map => "map",
            Table::Cut => "cut",
            Table::Used => "used",
        }
    }
}

/// Whether a scan goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// Show the next entry.
    On,
    /// Enough.
    Stop,
}

/// An entry: key and value.
pub type Entry<'a> = (&'a [u8], &'a [u8]);
/// Is shown entries, key and value, until it says stop or fails.
pub type Show<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Walk, StoreError> + 'a;
/// Says what a commit changes.
pub type Fill<'a> = dyn FnMut(&mut dyn Batch) -> Result<(), StoreError> + 'a;

/// The longest key an engine must take, in bytes.
pub const KEY_BYTES_MAX: usize = 400;
/// The longest value an engine must take, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

/// A map that outlives crashes. All methods may be called from any thread.
pub trait Engine: Send + Sync + 'static {
    /// A consistent view of the last completed commit.
    type Snapshot: Snapshot;

    /// Takes a view. It must be let go soon: an engine may not reuse space while a view lives.
    fn snapshot(&self) -> Result<Self::Snapshot, StoreError>;

    /// Calls `fill` exactly once and makes all it says durable at once, or nothing of it when
    /// `fill` or the commit fails. `fill` visits tables in the order of `Table::ALL` and, for
    /// speed, keys in ascending order within each. One commit runs at a time; a second waits.
    ///
    /// Errors: `Full` and `Io` changed nothing; `SyncFailed` leaves either the old state or the
    /// new on disk and ends the engine's life in this process.
    fn commit(&self, fill: &mut Fill<'_>) -> Result<(), StoreError>;

    /// Bytes the engine occupies and may still take.
    fn space(&self) -> Result<EngineSpace, StoreError>;
}

/// An engine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSpace {
    /// Bytes in use, free pages inside included.
    pub used_bytes: u64,
    /// Bytes that it has disk space for and does not use, free pages inside included.
    pub spare_bytes: u64,
    /// Bytes it could come to use before it is full.
    pub limit_bytes: u64,
}

/// A consistent read view of an engine.
pub trait Snapshot: Send {
    /// The value under `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, StoreError>;

    /// The first entry at or after `from`.
    fn seek(&self, table: Table, from: &[u8]) -> Result<Option<Entry<'_>>, StoreError>;

    /// Shows entries at or after `from` in order until `show` says stop or fails.
    fn scan(&self, table: Table, from: &[u8], show: &mut Show<'_>) -> Result<(), StoreError>;
}

/// The changes of one commit.
pub trait Batch {
    /// Sets the value under `key` (1 to `KEY_BYTES_MAX` bytes).
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Removes `key`; removing what is not there is no error.
    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError>;

    /// Removes every entry of a table.
    fn clear(&mut self, table: Table) -> Result<(), StoreError>;
}
