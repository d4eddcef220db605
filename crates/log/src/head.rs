//! The head: which log on the disk is the current one, where it begins, and what it may vote for.
//! Owns: the head slot's layout.
//! Never: chooses when to write one.
//! Invariant: every change is written to both slots, one after the other, and counts when both are
//! durable; so a torn write leaves the old or the new head, and one damaged slot takes nothing back.
//! Source: docs/protocol.md, rules 2, 3 and 5; `docs/disk-format-log.md`.

use crate::ring::LogPos;

/// Bytes in a head that belong to the log's user.
pub const HEAD_EXTRA_BYTES: usize = 104;
/// Where they lie.
const EXTRA_AT: usize = 128;

/// Bytes of a slot that are in use.
pub(crate) const HEAD_BYTES: usize = 256;

const MAGIC: u32 = u32::from_le_bytes(*b"HpH1");
const VERSION: u32 = 1;

/// Positions and ops read from a disk are below this, so that sums of them never overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 60;

/// Says that a log whose newest records were in memory is whole on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanMark {
    /// The disk that it was written to.
    pub disk: u64,
    /// The start counter of the server that wrote it: a later start voids it.
    pub start: u64,
    /// The log's last op.
    pub end: u64,
}

/// A head slot, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Number of the write.
    pub sequence: u64,
    /// The current log's generation.
    pub generation: u64,
    /// Position of its first batch.
    pub begin_pos: u64,
    /// Op of its first record.
    pub begin_op: u64,
    /// Everything from `begin_pos` to here was durable when the head was written.
    pub durable_mark: u64,
    /// The view the log is complete for; 0: it may not vote.
    pub tag: u64,
    /// Length of a segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segments_max: u64,
    /// Checksum of the record before `begin_op`, where known.
    pub chain: Option<u32>,
    /// Checksum of the header of the batch before `begin_pos`; 0 before the first batch.
    pub prev_header: u32,
    /// The members of the tag's view.
    pub members: u8,
    /// The log was written out whole, and its server stopped.
    pub clean: Option<CleanMark>,
    /// The user's bytes.
    pub extra: [u8; HEAD_EXTRA_BYTES],
}

impl Head {
    /// The slot's bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = self.chain.is_some() as u8;
        bytes[13] = self.members;
        let longs = [
            self.sequence,
            self.generation,
            self.begin_pos,
            self.begin_op,
            self.durable_mark,
            self.tag,
            self.segment_bytes,
            self.segments_max,
        ];
        for (to, value) in bytes[16..80].chunks_exact_mut(8).zip(longs) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes[80..84].copy_from_slice(&self.chain.unwrap_or(0).to_le_bytes());
        bytes[84..88].copy_from_slice(&self.prev_header.to_le_bytes());
        if let Some(CleanMark { disk, start, end }) = self.clean {
            bytes[14] = 1;
            for (to, value) in bytes[88..112].chunks_exact_mut(8).zip([disk, start, end]) {
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes[EXTRA_AT..EXTRA_AT + HEAD_EXTRA_BYTES].copy_from_slice(&self.extra);
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether the two differ in nothing but the number of the write.
    pub fn says_the_same_as(&self, other: &Head) -> bool {
        Head { sequence: other.sequence, ..*self } == *other
    }

    /// Reads a slot. `None`: torn, damaged, or no head.
    pub fn read(bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.get(..HEAD_BYTES)?;
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
        if short(0) != MAGIC || short(8) != VERSION || crc32c::crc32c(&bytes[8..]) != short(4) {
            return None;
        }
        let head = Head {
            sequence: long(16),
            generation: long(24),
            begin_pos: long(32),
            begin_op: long(40),
            durable_mark: long(48),
            tag: long(56),
            segment_bytes: long(64),
            segments_max: long(72),
            chain: (bytes[12] != 0).then(|| short(80)),
            prev_header: short(84),
            members: bytes[13],
            clean: (bytes[14] != 0).then(|| CleanMark {
                disk: long(88),
                start: long(96),
                end: long(104),
            }),
            extra: bytes[EXTRA_AT..EXTRA_AT + HEAD_EXTRA_BYTES].try_into().expect("as many"),
        };
        let bounded = [head.sequence, head.generation, head.begin_pos, head.begin_op]
            .iter()
            .all(|number| *number < NUMBER_MAX);
        let sound = head.begin_op > 0
            && head.begin_pos.is_multiple_of(crate::batch::BLOCK_BYTES)
            && head.durable_mark >= head.begin_pos
            && head.durable_mark.is_multiple_of(crate::batch::BLOCK_BYTES)
            && head.durable_mark < NUMBER_MAX;
        (bounded && sound).then_some(head)
    }
}

/// Where the log begins that the head in a slot names: while the slot says so, nothing from there on may be
/// used for anything else. `None`: no head.
pub fn head_begin(slot: &[u8]) -> Option<LogPos> {
    Head::read(slot).map(|head| LogPos(head.begin_pos))
}

/// The mark of a log that was written out, if the head in a slot has one, and the number of the head's write.
pub fn head_clean(slot: &[u8]) -> Option<(u64, Option<CleanMark>)> {
    Head::read(slot).map(|head| (head.sequence, head.clean))
}

/// Whether a slot holds a whole head of a newer version, whatever that says.
pub fn head_is_newer(slot: &[u8]) -> bool {
    let Some(bytes) = slot.get(..HEAD_BYTES) else { return false };
    let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    short(0) == MAGIC && short(8) > VERSION && crc32c::crc32c(&bytes[8..]) == short(4)
}

/// The length of a segment and the number of segments of the log that the newer of the two slots of the head names.
/// `None`: no head.
pub fn head_geometry(slots: &[Option<Vec<u8>>; 2]) -> Option<(u64, u64)> {
    let heads = slots.iter().flatten().filter_map(|slot| Head::read(slot));
    let newest = heads.max_by_key(|head| head.sequence)?;
    Some((newest.segment_bytes, newest.segments_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_every_changed_byte_is_noticed() {
        let head = Head {
            sequence: 4,
            generation: 1 << 24,
            begin_pos: 8192,
            begin_op: 17,
            durable_mark: 12288,
            tag: 0x107,
            segment_bytes: 1 << 20,
            segments_max: 8,
            chain: Some(5),
            prev_header: 6,
            members: 0b101,
            clean: Some(CleanMark { disk: 9, start: 4, end: 30 }),
            extra: [3; HEAD_EXTRA_BYTES],
        };
        let bytes = head.to_bytes();
        assert_eq!(Head::read(&bytes), Some(head));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Head::read(&bad), None, "byte {at}");
        }
        let mut newer = bytes.clone();
        newer[8] += 1;
        assert!(!head_is_newer(&newer), "damage");
        let crc = crc32c::crc32c(&newer[8..]);
        newer[4..8].copy_from_slice(&crc.to_le_bytes());
        assert!(head_is_newer(&newer) && !head_is_newer(&bytes));
        let unclean = Head { clean: None, ..head };
        assert_eq!(Head::read(&unclean.to_bytes()), Some(unclean));
        let unsound = Head { begin_pos: 8193, ..head };
        assert_eq!(Head::read(&unsound.to_bytes()), None);
    }
}
