//! Batches: runs of records as they are written, each under a header on a block boundary.
//! Owns: the batch header's layout, and reading records back out of batches.
//! Never: decides whether a log is intact; `recover` does.
//! Invariant: a batch starts on a block boundary and lies within one segment.
//! Source: docs/protocol.md, rule 3; `docs/disk-format-log.md`.

use crate::record::{BadRecord, RawRecord};
use crate::ring::LogPos;

/// Batches start at multiples of this, and are padded to it.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes of a batch's header; the records follow at once.
pub const BATCH_HEADER_BYTES: usize = 72;

const MAGIC: u32 = u32::from_le_bytes(*b"HpB1");

/// What stands before the records of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// CRC32C of the header after this field; the next batch names it.
    pub crc: u32,
    /// Which log the batch belongs to.
    pub generation: u64,
    /// Where the batch lies.
    pub pos: u64,
    /// Op of its first record, or the op that would follow if it is empty.
    pub first_op: u64,
    /// The log was durable up to here when the batch was sealed.
    pub durable_mark: u64,
    /// The commit point known then.
    pub cp: u64,
    /// The server's start in which it was sealed.
    pub start: u64,
    /// Number of records.
    pub count: u32,
    /// Their bytes.
    pub record_bytes: u32,
    /// `crc` of the batch before.
    pub prev_header: u32,
    /// Checksum of the last record, or of the one before the batch if it is empty (0: unknown).
    pub end_crc: u32,
}

impl BatchHeader {
    /// Writes the header into the first bytes of `bytes`; computes and returns its checksum.
    pub fn write(&self, bytes: &mut [u8]) -> u32 {
        let bytes = &mut bytes[..BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        let longs =
            [self.generation, self.pos, self.first_op, self.durable_mark, self.cp, self.start];
        for (to, value) in bytes[8..56].chunks_exact_mut(8).zip(longs) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        let shorts = [self.count, self.record_bytes, self.prev_header, self.end_crc];
        for (to, value) in bytes[56..72].chunks_exact_mut(4).zip(shorts) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads the header at the start of `bytes`, if one is there.
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        if short(0) != MAGIC || crc32c::crc32c(&bytes[8..]) != short(4) {
            return None;
        }
        Some(BatchHeader {
            crc: short(4),
            generation: long(8),
            pos: long(16),
            first_op: long(24),
            durable_mark: long(32),
            cp: long(40),
            start: long(48),
            count: short(56),
            record_bytes: short(60),
            prev_header: short(64),
            end_crc: short(68),
        })
    }

    /// Bytes of the whole batch, padding included.
    pub fn padded_bytes(&self) -> u64 {
        (BATCH_HEADER_BYTES as u64 + self.record_bytes as u64).next_multiple_of(BLOCK_BYTES)
    }
}

/// Why bytes read back from the log's disk are not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadExtent {
    /// No batch of that position: it was damaged, or its place was used again meanwhile.
    NoBatch {
        /// Where a batch should be.
        at: LogPos,
    },
    /// A record in a batch is damaged.
    Record {
        /// The batch's position.
        at: LogPos,
        /// What is wrong with it.
        bad: BadRecord,
    },
}

impl std::fmt::Display for BadExtent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadExtent::NoBatch { at } => write!(f, "no batch at log position {}", at.0),
            BadExtent::Record { at, bad } => write!(f, "batch at log position {}: {bad}", at.0),
        }
    }
}

impl std::error::Error for BadExtent {}

/// The records of an extent that [`crate::DiskCommand::Read`] brought back, from an op on.
///
/// Each is checked; the iterator ends after the first error.
#[derive(Clone, Debug)]
pub struct ExtentRecords<'a> {
    rest: &'a [u8],
    at: LogPos,
    from_op: u64,
    batch_at: LogPos,
    records: &'a [u8],
    next_op: u64,
}

/// Reads the records of `from_op` and above out of `bytes`, which were read at `at`: an extent that
/// [`crate::Body::disk_extent`] named.
pub fn parse_extent(bytes: &[u8], at: LogPos, from_op: u64) -> ExtentRecords<'_> {
    ExtentRecords { rest: bytes, at, from_op, batch_at: at, records: &[], next_op: 0 }
}

impl<'a> ExtentRecords<'a> {
    fn open_batch(&mut self) -> Result<(), BadExtent> {
        let missing = BadExtent::NoBatch { at: self.at };
        let header = BatchHeader::read(self.rest).ok_or(missing)?;
        let padded = header.padded_bytes();
        if header.pos != self.at.0 || self.rest.len() < padded as usize {
            return Err(missing);
        }
        let end = BATCH_HEADER_BYTES + header.record_bytes as usize;
        self.records = &self.rest[BATCH_HEADER_BYTES..end];
        self.rest = &self.rest[padded as usize..];
        self.batch_at = self.at;
        self.at = self.at.plus(padded);
        self.next_op = header.first_op;
        Ok(())
    }

    fn record(&mut self) -> Result<RawRecord<'a>, BadExtent> {
        let parsed = RawRecord::parse(self.records)
            .and_then(|(record, rest)| record.follows(self.next_op, None).map(|()| (record, rest)));
        let (record, rest) = parsed.map_err(|bad| BadExtent::Record { at: self.batch_at, bad })?;
        self.records = rest;
        self.next_op = self.next_op.saturating_add(1);
        Ok(record)
    }
}

impl<'a> Iterator for ExtentRecords<'a> {
    type Item = Result<RawRecord<'a>, BadExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = if !self.records.is_empty() {
                self.record()
            } else if self.rest.is_empty() {
                return None;
            } else {
                match self.open_batch() {
                    Ok(()) => continue,
                    Err(bad) => Err(bad),
                }
            };
            match found {
                Ok(record) if record.op() < self.from_op => continue,
                Ok(record) => return Some(Ok(record)),
                Err(bad) => {
                    (self.rest, self.records) = (&[], &[]);
                    return Some(Err(bad));
                }
            }
        }
    }
}
