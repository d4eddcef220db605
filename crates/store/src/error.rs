//! Errors: what can go wrong with an image, its engine and its disk.
//! Owns: the one fault type of this crate.
//! Never: an outcome of a file operation; those belong to the records.
//! Invariant: a fault after which memory and disk may disagree is `SyncFailed` or `Failed`.
//! Source: docs/protocol.md, rule 8; docs/disk-format.md.

use std::fmt;
use std::io;

/// A block of file data that is not what the block map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedBlock {
    /// The file's number.
    pub file: u64,
    /// The block's index in the file.
    pub block: u64,
    /// Where it lies in the data segments, in blocks.
    pub position: u64,
    /// The checksum of what it should hold.
    pub crc: u32,
}

impl fmt::Display for DamagedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DamagedBlock { file, block, position, .. } = self;
        write!(f, "damaged block {block} of file {file} at position {position}")
    }
}

/// What was found not to be as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// A stored value's checksum does not match, or its bytes do not parse.
    Value {
        /// The table's name.
        table: &'static str,
        /// The whole key.
        key: Vec<u8>,
    },
    /// A 4 KiB block of file data does not match the checksum in the block map, or cannot be read.
    Block(DamagedBlock),
    /// Something that must be there is not: a segment, a head, a table.
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// Two parts of the image contradict each other.
    Contradiction {
        /// The contradiction, in words.
        what: &'static str,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Value { table, key } => {
                write!(f, "damaged value in table {table} under key ")?;
                key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Damage::Block(damaged) => damaged.fmt(f),
            Damage::Missing { what } => write!(f, "missing: {what}"),
            Damage::Contradiction { what } => write!(f, "contradiction: {what}"),
        }
    }
}

/// A fault of the store, its engine or its disk.
#[derive(Debug)]
pub enum StoreError {
    /// Checksums or structure say the image is damaged.
    Damaged(Damage),
    /// No space is left; nothing was changed.
    Full {
        /// What ran out.
        what: &'static str,
    },
    /// An operating system call failed; nothing durable was changed.
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// A sync or a durable commit failed: what is on disk is unknown. Fatal; never retried
    /// (rule 8): the process stops and the image is read anew.
    SyncFailed {
        /// What was being made durable.
        what: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// An earlier `SyncFailed` ended this store's life in this process.
    Failed,
    /// The engine holds no image: formatting is an explicit act.
    NotFormatted,
    /// The engine already holds an image, which formatting would destroy.
    AlreadyFormatted,
    /// The image was written by a format this program does not know.
    Version {
        /// The version found.
        found: u32,
    },
}

impl StoreError {
    /// An `Io` error.
    pub fn io(what: &'static str, source: io::Error) -> StoreError {
        StoreError::Io { what, source }
    }

    /// A damaged value.
    pub fn value(table: crate::Table, key: &[u8]) -> StoreError {
        StoreError::Damaged(Damage::Value { table: table.name(), key: key.to_vec() })
    }

    /// Whether the process must stop.
    pub fn is_fatal(&self) -> bool {
        matches!(self, StoreError::SyncFailed { .. } | StoreError::Failed)
    }
}

impl From<Damage> for StoreError {
    fn from(damage: Damage) -> StoreError {
        StoreError::Damaged(damage)
    }
}

impl From<DamagedBlock> for StoreError {
    fn from(damaged: DamagedBlock) -> StoreError {
        StoreError::Damaged(Damage::Block(damaged))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Damaged(damage) => damage.fmt(f),
            StoreError::Full { what } => write!(f, "no space left for {what}"),
            StoreError::Io { what, source } => write!(f, "{what}: {source}"),
            StoreError::SyncFailed { what, source } => {
                write!(f, "{what} could not be made durable: {source}")
            }
            StoreError::Failed => write!(f, "the store stopped after a failed sync"),
            StoreError::NotFormatted => write!(f, "no image here; format it first"),
            StoreError::AlreadyFormatted => write!(f, "an image is already here"),
            StoreError::Version { found } => write!(
                f,
                "it has format version {found}, which this version of harp does not know: run the one that wrote it, \
                 or a later one"
            ),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io { source, .. } | StoreError::SyncFailed { source, .. } => Some(source),
            _ => None,
        }
    }
}
