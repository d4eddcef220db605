//! Log records: what a peer attaches to a frame, and what an extent of the log's disk holds.
//! Owns: mending checksums, so that what is wrong in an input lies behind them.
//! Source: docs/disk-format-log.md.
//!
//! Input: bits (1: an extent, else a frame's records; 2: leave the checksums as they are), then the bytes.

use harp_node::log::{
    AppendError, BATCH_HEADER_BYTES, BLOCK_BYTES, DiskCommand, DiskDone, Log, LogPos, LogSettings,
    RECORD_HEADER_BYTES, RawRecord, RawRecords, Ring, parse_extent,
};

use crate::memory::within;

const EXTENT: u8 = 1;
const AS_THEY_ARE: u8 = 2;
/// Where the extent of an input was read.
const EXTENT_AT: LogPos = LogPos(3 << 20);
const RING_BYTES: usize = 32 << 10;
const SETTINGS: LogSettings =
    LogSettings { segment_bytes: 16 << 10, segments_max: 8, start: 1, keeps_clean_mark: false };

/// One input.
pub fn run(input: &[u8]) {
    let Some((bits, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if bits & EXTENT != 0 {
        if bits & AS_THEY_ARE == 0 {
            mend_extent(&mut bytes);
        }
        on_extent(&bytes);
    } else {
        if bits & AS_THEY_ARE == 0 {
            mend_records(&mut bytes, None);
        }
        on_records(&bytes);
    }
}

fn on_records(bytes: &[u8]) {
    let mut rest = bytes;
    let mut log = new_log();
    let mut records = RawRecords::new(bytes);
    while let Some(record) = within(0, || records.next()) {
        let Ok(record) = record else {
            assert!(records.next().is_none(), "it goes on behind a bad record");
            assert!(RawRecord::parse(rest).is_err());
            break;
        };
        let (bytes, behind) = rest.split_at(record.bytes().len());
        assert_eq!(record.bytes(), bytes, "records lie one behind the other");
        assert!(record.body().len() + RECORD_HEADER_BYTES <= bytes.len());
        rest = behind;
        let end = log.growing().end();
        match log.append_raw(&record) {
            Ok(op) => {
                assert_eq!((op, op), (end + 1, record.op()));
                let held = log.record(op).expect("it was just appended");
                assert_eq!((held.header, held.body), (*record.header(), record.body()));
            }
            Err(AppendError::Bad(_)) => assert_eq!(log.growing().end(), end),
            Err(AppendError::Full(_)) => break,
        }
    }
    written_reads_back(&mut log);
}

/// What was appended goes to the disk in batches, and comes back from there.
fn written_reads_back(log: &mut Log) {
    let mut commands = Vec::new();
    let mut op = log.current().begin();
    while log.seal(0, &mut commands) {
        for command in commands.drain(..) {
            let DiskCommand::Write { at, bytes, sync } = command else { continue };
            for record in parse_extent(log.ring().bytes(at, bytes), at, op) {
                let record = record.expect("our own batch");
                let held = log.record(op).expect("nothing was dropped");
                assert_eq!((record.op(), record.body()), (op, held.body));
                op += 1;
            }
            log.on_disk(&DiskDone::Written { upto: at.plus(bytes.into()), synced: sync });
        }
    }
    assert_eq!(op, log.current().end() + 1);
}

fn new_log() -> Log {
    Log::format(Ring::on_heap(RING_BYTES), SETTINGS, 1, &mut Vec::new())
}

fn on_extent(bytes: &[u8]) {
    let mut records = parse_extent(bytes, EXTENT_AT, 0);
    let mut total = 0;
    while let Some(record) = within(0, || records.next()) {
        match record {
            Ok(record) => total += record.bytes().len(),
            Err(_) => assert!(records.next().is_none(), "it goes on behind what is damaged"),
        }
    }
    assert!(total <= bytes.len());
    // From an op on it gives the same, without those below.
    let whole = |from| parse_extent(bytes, EXTENT_AT, from).map_while(Result::ok);
    let from = whole(0).nth(1).map_or(0, |record| record.op());
    let expected: Vec<u64> = whole(0).map(|r| r.op()).filter(|op| *op >= from).collect();
    assert_eq!(whole(from).map(|r| r.op()).collect::<Vec<_>>(), expected);
}

/// Gives the records at the front of `bytes` the checksums that fit; with `chain`, that of the record before
/// the first, each also names the one before it. Returns the last one's checksum.
pub(crate) fn mend_records(bytes: &mut [u8], chain: Option<u32>) -> Option<u32> {
    let (mut at, mut chain) = (0, chain);
    let chained = chain.is_some();
    while bytes.len() - at >= RECORD_HEADER_BYTES {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        if len < RECORD_HEADER_BYTES || len > bytes.len() - at {
            break;
        }
        let record = &mut bytes[at..at + len];
        if chained {
            record[8..12].copy_from_slice(&chain.unwrap_or(0).to_le_bytes());
        }
        let crc = crc32c::crc32c(&record[8..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        chain = Some(crc);
        at += len;
    }
    chain
}

/// Whether bytes say that they are a batch.
pub(crate) fn is_batch(bytes: &[u8]) -> bool {
    bytes.len() >= BATCH_HEADER_BYTES && bytes[..4] == *b"HpB1"
}

/// Gives a batch's header its checksum. Returns it and the bytes of the batch's records that are there.
pub(crate) fn mend_batch(bytes: &mut [u8]) -> Option<(u32, usize)> {
    if !is_batch(bytes) {
        return None;
    }
    let records = u32::from_le_bytes(bytes[60..64].try_into().expect("four bytes")) as usize;
    let crc = crc32c::crc32c(&bytes[8..BATCH_HEADER_BYTES]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    Some((crc, records.min(bytes.len() - BATCH_HEADER_BYTES)))
}

fn mend_extent(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let Some((_, records)) = mend_batch(&mut bytes[at..]) else { return };
        mend_records(&mut bytes[at + BATCH_HEADER_BYTES..][..records], None);
        at += (BATCH_HEADER_BYTES + records).next_multiple_of(BLOCK_BYTES as usize);
    }
}

/// Appends records with these bodies to a new log.
fn log_with(settings: LogSettings, ring_bytes: usize, bodies: &[&[u8]]) -> Log {
    let mut log = Log::format(Ring::on_heap(ring_bytes), settings, 1, &mut Vec::new());
    for body in bodies {
        log.begin_record(body.len()).expect("room").copy_from_slice(body);
        log.finish_record(1, 7, 1000, body.len());
    }
    log
}

/// Records of a frame, and an extent of batches.
pub fn seeds() -> Vec<Vec<u8>> {
    let log = log_with(SETTINGS, RING_BYTES, &[b"first", b"", &[9; 600], b"fourth"]);
    let mut ranges = Vec::new();
    log.current().ranges(1, usize::MAX, &mut ranges);
    let parts: Vec<&[u8]> = ranges.iter().map(|(at, len)| log.ring().bytes(*at, *len)).collect();
    let frame = parts.concat();
    let mut extent = Vec::new();
    for (first_op, bodies) in [(1, [&b"first"[..], b"second"]), (3, [b"third", &[3; 500]])] {
        extent.extend(batch(EXTENT_AT.0 + extent.len() as u64, first_op, &bodies));
    }
    let with = |bits: u8, bytes: &[u8]| [&[bits], bytes].concat();
    vec![
        with(0, &frame),
        with(AS_THEY_ARE, &frame),
        with(0, &frame[..frame.len() - 9]),
        with(EXTENT, &extent),
        with(EXTENT | AS_THEY_ARE, &extent[..100]),
    ]
}

/// A batch at `pos`, padded to whole blocks, as docs/disk-format-log.md lays it out.
fn batch(pos: u64, first_op: u64, bodies: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; BATCH_HEADER_BYTES];
    for (op, body) in (first_op..).zip(bodies) {
        let len = (RECORD_HEADER_BYTES + body.len()).next_multiple_of(8);
        let at = bytes.len();
        bytes.resize(at + len, 0);
        bytes[at..at + 4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&(body.len() as u32).to_le_bytes());
        bytes[at + 16..at + 24].copy_from_slice(&op.to_le_bytes());
        bytes[at + 40] = 1;
        bytes[at + RECORD_HEADER_BYTES..][..body.len()].copy_from_slice(body);
    }
    let record_bytes = (bytes.len() - BATCH_HEADER_BYTES) as u32;
    mend_records(&mut bytes[BATCH_HEADER_BYTES..], None);
    bytes[..4].copy_from_slice(b"HpB1");
    for (at, value) in [(8, 1), (16, pos), (24, first_op), (32, pos), (40, 0), (48, 1)] {
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    bytes[56..60].copy_from_slice(&(bodies.len() as u32).to_le_bytes());
    bytes[60..64].copy_from_slice(&record_bytes.to_le_bytes());
    mend_batch(&mut bytes);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    bytes
}
