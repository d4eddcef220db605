//! Log recovery: a log read back from a disk that may hold anything.
//! Owns: a disk of a few segments, and mending its checksums and chains, so that what is wrong lies behind them.
//! Source: docs/disk-format-log.md; docs/protocol.md, rule 3.
//!
//! A start's counter is durable before it opens the log, so a disk holds no generation of this start, or of a
//! later one; an input that says so is passed over.
//!
//! Input: bits (1: leave checksums and chains as they are; 2: leave the chains; 4: the second head slot is the
//! first one again, one write later), the two head slots, then stretches of the disk: block, length (2 bytes,
//! little-endian), bytes.

use harp_node::log::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, DiskCommand, DiskError, Log, LogDisk, LogPos, LogSettings,
    Recovered, Ring, SlotFile, Verdict, recover,
};

use crate::log_records::{is_batch, mend_batch, mend_records};
use crate::memory::within;

const AS_THEY_ARE: u8 = 1;
const UNCHAINED: u8 = 2;
const MIRRORED: u8 = 4;
const HEAD_BYTES: usize = 256;
const RING_BYTES: usize = 32 << 10;
const SETTINGS: LogSettings =
    LogSettings { segment_bytes: 16 << 10, segments_max: 4, start: 9, keeps_clean_mark: false };
const DISK_BYTES: usize = 64 << 10;
const BLOCKS: usize = DISK_BYTES / BLOCK_BYTES as usize;
/// Writes of a head that there may have been: a little below the bound, for no disk lives to see more.
const WRITES_MAX: u64 = (1 << 60) - (1 << 24);
/// What recovery needs beside the ring: the searches' pieces, and the index.
const BYTES_MAX: usize = 256 << 10;

/// One input.
pub fn run(input: &[u8]) {
    let Some(mut disk) = Disk::parse(input) else { return };
    let ring = Ring::on_heap(RING_BYTES);
    let recovered = within(BYTES_MAX, || recover(&mut disk, ring, SETTINGS));
    let recovered = recovered.expect("this disk never fails");
    let before = facts(&recovered);
    if recovered.verdict == Verdict::Intact {
        hangs_together(&recovered.log);
    }
    // Recovery leaves a disk that says the same.
    let again = recover(&mut disk, Ring::on_heap(RING_BYTES), SETTINGS).expect("nor now");
    assert_eq!(facts(&again), before);
    go_on(recovered, disk);
}

/// What matters of a recovered log.
fn facts(recovered: &Recovered) -> impl PartialEq + std::fmt::Debug + use<> {
    let log = recovered.log.current();
    let ends = (log.begin(), log.end(), log.durable(), log.memory_begin());
    let records: Vec<Vec<u8>> = (log.memory_begin()..=log.end())
        .map(|op| log.record(op).expect("in memory").body.to_vec())
        .collect();
    let verdict = recovered.verdict.clone();
    (verdict, ends, log.end_chain(), log.tag(), log.members(), recovered.cp_known, records)
}

fn hangs_together(log: &Log) {
    let body = log.current();
    assert!(body.begin() >= 1 && body.begin() <= body.end() + 1);
    assert_eq!(body.durable(), body.end());
    for op in body.memory_begin()..=body.end() {
        let record = body.record(op).expect("in memory");
        assert_eq!(record.header.op, op);
        assert_eq!(record.header.body_len as usize, record.body.len());
    }
}

/// A log that was found intact takes records, and has them after a restart. One that was not is reset first.
fn go_on(recovered: Recovered, mut disk: Disk) {
    let mut log = recovered.log;
    let mut commands = Vec::new();
    if recovered.verdict != Verdict::Intact {
        log.reset(41, &mut commands);
        carry_out(&mut commands, &mut disk, &mut log);
    }
    let begin = log.current().end() + 1;
    log.pin(begin - 1);
    for body in [&b"one more"[..], b"and another"] {
        let Ok(space) = log.begin_record(body.len()) else { return };
        space.copy_from_slice(body);
        log.finish_record(1, 7, 1000, body.len());
        while log.seal(0, &mut commands) {
            carry_out(&mut commands, &mut disk, &mut log);
        }
    }
    let end = log.current().end();
    assert_eq!((end, log.current().durable()), (begin + 1, begin + 1));
    let settings = LogSettings { start: SETTINGS.start + 1, ..SETTINGS };
    let again = recover(&mut disk, Ring::on_heap(RING_BYTES), settings).expect("nor now");
    assert_eq!(again.verdict, Verdict::Intact);
    assert_eq!(again.log.current().end(), end);
    assert_eq!(again.log.record(end).expect("in memory").body, b"and another");
}

fn carry_out(commands: &mut Vec<DiskCommand>, disk: &mut Disk, log: &mut Log) {
    while !commands.is_empty() {
        let mut more = Vec::new();
        for command in commands.drain(..) {
            let done = command.run(disk, log.ring());
            log.on_disk(&done);
            while log.seal(0, &mut more) {}
        }
        *commands = more;
    }
}

struct Disk {
    bytes: Vec<u8>,
    heads: [Option<Vec<u8>>; 2],
}

impl Disk {
    fn parse(input: &[u8]) -> Option<Disk> {
        let (bits, rest) = input.split_first()?;
        let (first, rest) = rest.split_at_checked(HEAD_BYTES)?;
        let (second, mut rest) = rest.split_at_checked(HEAD_BYTES)?;
        let mut heads = [first.to_vec(), second.to_vec()];
        let mut bytes = vec![0; DISK_BYTES];
        while let Some(([block, low, high], behind)) = rest.split_first_chunk() {
            let (len, at) = (u16::from_le_bytes([*low, *high]), *block as usize % BLOCKS);
            let stretch = &behind[..behind.len().min(len.into())];
            rest = &behind[stretch.len()..];
            let room = &mut bytes[at * BLOCK_BYTES as usize..];
            let fits = stretch.len().min(room.len());
            room[..fits].copy_from_slice(&stretch[..fits]);
        }
        if bits & MIRRORED != 0 {
            let sequence = u64::from_le_bytes(heads[0][16..24].try_into().expect("eight bytes"));
            heads[1].clone_from(&heads[0].clone());
            heads[1][16..24].copy_from_slice(&sequence.wrapping_add(1).to_le_bytes());
        }
        let number = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        };
        let batches = bytes.chunks(BLOCK_BYTES as usize).filter(|block| is_batch(block));
        let mut generations =
            heads.iter().map(|head| number(head, 24)).chain(batches.map(|batch| number(batch, 8)));
        let too_new = generations.any(|generation| generation >= SETTINGS.start << 24);
        if too_new || heads.iter().any(|head| number(head, 16) > WRITES_MAX) {
            return None;
        }
        if bits & AS_THEY_ARE == 0 {
            heads.iter_mut().for_each(|head| {
                let crc = crc32c::crc32c(&head[8..]);
                head[4..8].copy_from_slice(&crc.to_le_bytes());
            });
            let chained = bits & UNCHAINED == 0;
            let seam = |at: usize| u32::from_le_bytes(heads[0][at..at + 4].try_into().expect("4"));
            mend(&mut bytes, chained.then_some((seam(80), seam(84))));
        }
        // An empty slot is a file that is not there.
        let heads = heads.map(|head| head.iter().any(|byte| *byte != 0).then_some(head));
        Some(Disk { bytes, heads })
    }

    fn place(&self, at: LogPos, len: usize) -> std::ops::Range<usize> {
        let from = (at.0 % DISK_BYTES as u64) as usize;
        assert!(at.0.is_multiple_of(512) && len.is_multiple_of(512), "aligned");
        assert!(from + len <= DISK_BYTES, "within a segment");
        from..from + len
    }
}

/// Mends every batch on the disk; with `chain`, the checksums of the record and of the header before the first
/// one, each also fits to the one before it.
fn mend(disk: &mut [u8], chain: Option<(u32, u32)>) {
    let mut chain = chain;
    let mut block = 0;
    while block < BLOCKS {
        let batch = &mut disk[block * BLOCK_BYTES as usize..];
        block += 1;
        let Some((_, records)) = mend_batch(batch) else { continue };
        let last = chain.map(|(record, _)| record);
        let last = mend_records(&mut batch[BATCH_HEADER_BYTES..][..records], last);
        if let Some((_, header)) = chain {
            batch[64..68].copy_from_slice(&header.to_le_bytes());
            batch[68..72].copy_from_slice(&last.unwrap_or(0).to_le_bytes());
        }
        let (crc, records) = mend_batch(batch).expect("it was one");
        chain = chain.map(|_| (last.unwrap_or(0), crc));
        block += (BATCH_HEADER_BYTES + records - 1) / BLOCK_BYTES as usize;
    }
}

impl LogDisk for Disk {
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError> {
        into.copy_from_slice(&self.bytes[self.place(at, into.len())]);
        Ok(())
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        Ok(())
    }

    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        let place = self.place(at, bytes.len());
        self.bytes[place].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
        Ok(None)
    }

    fn read_slot(&mut self, _: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.heads[slot].clone())
    }

    fn write_slot(&mut self, _: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        self.heads[slot] = Some(bytes.to_vec());
        Ok(())
    }
}

/// Disks as a log leaves them: of a few batches, over several segments, with and without a tag, and of a later
/// start.
pub fn seeds() -> Vec<Vec<u8>> {
    let disk_of = |start: u64, bodies: &[&[u8]], tag: bool| {
        let mut disk = Disk { bytes: vec![0; DISK_BYTES], heads: [None, None] };
        let settings = LogSettings { start, ..SETTINGS };
        let mut commands = Vec::new();
        let mut log = Log::format(Ring::on_heap(RING_BYTES), settings, 1, &mut commands);
        carry_out(&mut commands, &mut disk, &mut log);
        for body in bodies {
            log.begin_record(body.len()).expect("room").copy_from_slice(body);
            log.finish_record(1, 7, 1000, body.len());
            while log.seal(0, &mut commands) {
                carry_out(&mut commands, &mut disk, &mut log);
            }
            log.pin(log.current().end());
        }
        if tag {
            log.tag(7, 3, [5; harp_node::log::HEAD_EXTRA_BYTES], 2, &mut commands);
            carry_out(&mut commands, &mut disk, &mut log);
        }
        disk.into_input()
    };
    let long: &[u8] = &[1; 5000];
    let longest: &[u8] = &[2; 9000];
    // The start in the first batch's header, behind both heads and the stretch's own.
    let mut later = disk_of(1, &[b"first"], false);
    later[1 + 2 * HEAD_BYTES + 3 + 48..][..8].copy_from_slice(&(SETTINGS.start + 3).to_le_bytes());
    vec![
        disk_of(1, &[], false),
        disk_of(1, &[b"first", b"second"], false),
        disk_of(1, &[b"first", b"second", b"", b"fourth"], true),
        disk_of(1, &[long, b"a", longest, b"b", longest], true),
        later,
    ]
}

impl Disk {
    /// The input that makes this disk.
    fn into_input(self) -> Vec<u8> {
        let mut input = vec![0];
        for head in self.heads {
            let mut head = head.unwrap_or_default();
            head.resize(HEAD_BYTES, 0);
            input.extend(head);
        }
        for (number, block) in self.bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            let len = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if len > 0 {
                input.push(number as u8);
                input.extend((len as u16).to_le_bytes());
                input.extend(&block[..len]);
            }
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use harp_node::log::AmnesiaWhy;

    use super::*;

    #[test]
    fn the_seeds_are_what_they_are_said_to_be() {
        let verdicts = seeds().into_iter().map(|seed| {
            let mut disk = Disk::parse(&seed).expect("a whole input");
            let recovered = recover(&mut disk, Ring::on_heap(RING_BYTES), SETTINGS);
            let recovered = recovered.expect("this disk never fails");
            (recovered.verdict, recovered.log.current().end())
        });
        let start = SETTINGS.start;
        let later = AmnesiaWhy::LaterStart { found: start + 3, start };
        let expected = [
            (Verdict::Intact, 0),
            (Verdict::Intact, 2),
            (Verdict::Intact, 4),
            (Verdict::Intact, 5),
            (Verdict::Amnesia(later), 0),
        ];
        assert_eq!(verdicts.collect::<Vec<_>>(), expected);
    }
}
