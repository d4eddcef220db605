//! Records: the log's entries, the same bytes in memory, on disk and on the wire.
//! Owns: the record's layout, its checksum and its place in the chain.
//! Never: looks into a body.
//! Invariant: a [`RawRecord`] was checked; its length, checksum and padding are right.
//! Source: docs/disk-format-log.md; `docs/disk-format-log.md`.

use crate::ring::LogPos;

/// Bytes of a record's header; the body follows at once.
pub const RECORD_HEADER_BYTES: usize = 48;

/// The longest record, header and padding included.
pub const RECORD_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// The longest body of a record.
pub const RECORD_BODY_BYTES_MAX: usize = RECORD_BYTES_MAX - RECORD_HEADER_BYTES;

/// Why bytes are not a record, or not the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// Fewer bytes than a record's header, or than it says.
    Short,
    /// A length that no record has.
    Length(u32),
    /// The checksum does not fit the bytes.
    Checksum,
    /// Not the op that follows.
    Op {
        /// The op that would follow.
        expected: u64,
        /// The op found.
        found: u64,
    },
    /// The record before it is another one than ours: the histories differ.
    Chain {
        /// Checksum of the record before, as we have it.
        expected: u32,
        /// Checksum of the record before, as the record says.
        found: u32,
    },
}

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadRecord::Short => write!(f, "a record is cut short"),
            BadRecord::Length(len) => write!(f, "a record cannot be {len} bytes long"),
            BadRecord::Checksum => write!(f, "a record's checksum does not fit"),
            BadRecord::Op { expected, found } => {
                write!(f, "record of op {found} where op {expected} follows")
            }
            BadRecord::Chain { expected, found } => {
                write!(f, "a record follows checksum {found:08x}, ours is {expected:08x}")
            }
        }
    }
}

impl std::error::Error for BadRecord {}

/// A record's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the whole record, padded to 8 bytes.
    pub len: u32,
    /// CRC32C of everything after this field, body and padding included.
    pub crc: u32,
    /// `crc` of the record before; 0 for the first op, or where the writer did not know it.
    pub prev_crc: u32,
    /// Length of the body.
    pub body_len: u32,
    /// The record's op.
    pub op: u64,
    /// The view in which it was first appended.
    pub view: u64,
    /// Its time, nanoseconds since 1970.
    pub time: u64,
    /// What it is, to whoever reads bodies.
    pub kind: u8,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Length of a record with a body of `body_len` bytes.
pub(crate) fn record_len(body_len: usize) -> usize {
    (RECORD_HEADER_BYTES + body_len + 7) & !7
}

impl RecordHeader {
    /// Reads a header without checking the checksum. `bytes` has at least [`RECORD_HEADER_BYTES`].
    pub(crate) fn read(bytes: &[u8]) -> RecordHeader {
        let bytes = &bytes[..RECORD_HEADER_BYTES];
        RecordHeader {
            len: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
            prev_crc: u32_at(bytes, 8),
            body_len: u32_at(bytes, 12),
            op: u64_at(bytes, 16),
            view: u64_at(bytes, 24),
            time: u64_at(bytes, 32),
            kind: bytes[40],
        }
    }

    /// Completes the record in `bytes`, whose body is in place: writes header and padding.
    ///
    /// `len` and `crc` are computed here, whatever the fields say. Returns the checksum.
    pub(crate) fn finish(&self, bytes: &mut [u8]) -> u32 {
        let body_end = RECORD_HEADER_BYTES + self.body_len as usize;
        assert_eq!(bytes.len(), record_len(self.body_len as usize), "record and body lengths");
        bytes[body_end..].fill(0);
        let len = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.op.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.view.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.time.to_le_bytes());
        bytes[40] = self.kind;
        bytes[41..48].fill(0);
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        crc
    }
}

/// One record as a peer or a disk gave it: length and checksum were found right.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    bytes: &'a [u8],
    header: RecordHeader,
}

impl<'a> RawRecord<'a> {
    /// Takes the record at the start of `bytes` and checks it. Returns it and the bytes after it.
    pub fn parse(bytes: &'a [u8]) -> Result<(RawRecord<'a>, &'a [u8]), BadRecord> {
        if bytes.len() < RECORD_HEADER_BYTES {
            return Err(BadRecord::Short);
        }
        let header = RecordHeader::read(bytes);
        let (len, body_len) = (header.len as usize, header.body_len as usize);
        if len > RECORD_BYTES_MAX || body_len > RECORD_BODY_BYTES_MAX || len != record_len(body_len)
        {
            return Err(BadRecord::Length(header.len));
        }
        if bytes.len() < len {
            return Err(BadRecord::Short);
        }
        let (bytes, rest) = bytes.split_at(len);
        if crc32c::crc32c(&bytes[8..]) != header.crc {
            return Err(BadRecord::Checksum);
        }
        Ok((RawRecord { bytes, header }, rest))
    }

    /// The header.
    pub fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The record's op.
    pub fn op(&self) -> u64 {
        self.header.op
    }

    /// The whole record.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The body.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + self.header.body_len as usize]
    }

    /// Whether this record may follow a record of `op - 1` with checksum `chain`, if that is known.
    ///
    /// A record that names 0 as its predecessor's checksum was made by a writer whose log was empty
    /// and began at an image; it fits everywhere.
    pub(crate) fn follows(&self, expected_op: u64, chain: Option<u32>) -> Result<(), BadRecord> {
        if self.header.op != expected_op {
            return Err(BadRecord::Op { expected: expected_op, found: self.header.op });
        }
        match chain {
            Some(expected) if self.header.prev_crc != 0 && self.header.prev_crc != expected => {
                Err(BadRecord::Chain { expected, found: self.header.prev_crc })
            }
            _ => Ok(()),
        }
    }
}

/// The records of a contiguous run of bytes, each checked. Ends after the first bad one.
#[derive(Clone, Debug)]
pub struct RawRecords<'a> {
    rest: &'a [u8],
}

impl<'a> RawRecords<'a> {
    /// The records in `bytes`, which hold nothing else.
    pub fn new(bytes: &'a [u8]) -> RawRecords<'a> {
        RawRecords { rest: bytes }
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<RawRecord<'a>, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match RawRecord::parse(self.rest) {
            Ok((record, rest)) => {
                self.rest = rest;
                Some(Ok(record))
            }
            Err(bad) => {
                self.rest = &[];
                Some(Err(bad))
            }
        }
    }
}

/// One record of the log that lies in the ring.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The header.
    pub header: RecordHeader,
    /// Where the record lies.
    pub at: LogPos,
    /// The body's bytes, in the ring.
    pub body: &'a [u8],
}

impl Record<'_> {
    /// Where the body lies.
    pub fn body_at(&self) -> LogPos {
        self.at.plus(RECORD_HEADER_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(op: u64, prev_crc: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xaa; record_len(body.len())];
        bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body.len()].copy_from_slice(body);
        let body_len = body.len() as u32;
        let header =
            RecordHeader { len: 0, crc: 0, prev_crc, body_len, op, view: 7, time: 9, kind: 3 };
        header.finish(&mut bytes);
        bytes
    }

    #[test]
    fn records_come_back_as_they_were_finished() {
        let mut run = record(1, 0, b"first");
        run.extend(record(2, 5, b""));
        run.extend(record(3, 6, &[9; 1000]));
        let records: Vec<_> = RawRecords::new(&run).map(|r| r.unwrap()).collect();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0].body(), b"first");
        assert_eq!((records[1].op(), records[1].body().len()), (2, 0));
        assert_eq!(records[2].header().kind, 3);
        assert!(records[1].follows(2, Some(5)).is_ok() && records[1].follows(2, None).is_ok());
        let other = records[1].follows(2, Some(4)).unwrap_err();
        assert_eq!(other, BadRecord::Chain { expected: 4, found: 5 });
        assert!(records[0].follows(1, Some(77)).is_ok(), "0: the writer did not know");
        assert!(records[0].follows(2, None).is_err());
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let good = record(4, 8, b"some body, odd length");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(RawRecord::parse(&bad).is_err(), "byte {at}");
            assert!(RawRecord::parse(&good[..at]).is_err(), "cut at {at}");
        }
        let mut long = good;
        long[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(RawRecord::parse(&long).unwrap_err(), BadRecord::Length(u32::MAX));
    }
}
