//! Runs: the entries of the block map.
//! Owns: how a stretch of a file's blocks, its place and its checksums are written down.
//! Never: holds data; overlaps another run of the same file.
//! Invariant: keyed by its last block, so that the first entry at or after (file, block) is the
//! run that covers the block, or the next one.
//! Source: docs/disk-format.md.

use crate::seal::{self, Fields};
use crate::{Block, Damage, Entry, Extent, StoreError, Table};

/// Blocks in a run at most: its value stays small enough to share an engine page.
pub(crate) const RUN_BLOCKS_MAX: usize = 128;
/// Bytes of a run's value before its checksums.
const RUN_HEAD_BYTES: usize = 8 + 8;
/// The greatest block index; one less than the type's greatest, so that ends can be counted.
pub const BLOCK_INDEX_MAX: u64 = u64::MAX - 1;

/// Key of a table ordered by a file and a block.
pub(crate) type MapKey = [u8; 16];

/// The key for a file and a block.
pub(crate) fn map_key(file: u64, block: u64) -> MapKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&file.to_be_bytes());
    key[8..].copy_from_slice(&block.to_be_bytes());
    key
}

/// The file and block in a key, if it is one.
pub(crate) fn parse_map_key(key: &[u8]) -> Option<(u64, u64)> {
    let mut fields = Fields(key);
    let file = u64::from_be_bytes(fields.take()?);
    let block = u64::from_be_bytes(fields.take()?);
    fields.0.is_empty().then_some((file, block))
}

/// The checksum of a block of file data.
pub fn block_crc(block: &Block) -> u32 {
    crc32c::crc32c(block)
}

/// A run without its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub file: u64,
    /// Index of the first block in the file.
    pub first: u64,
    /// 1 to `RUN_BLOCKS_MAX`.
    pub count: u64,
    /// Where the first block lies; the others follow it.
    pub position: u64,
    /// The checkpoint that wrote it: later than a cut it outlives, or equal.
    pub op: u64,
}

impl Span {
    pub fn last(&self) -> u64 {
        self.first + (self.count - 1)
    }

    pub fn extent(&self) -> Extent {
        Extent { position: self.position, count: self.count }
    }

    /// The part that covers the blocks `first` to `last`, all of them inside.
    pub fn part(&self, first: u64, last: u64) -> Span {
        assert!(self.first <= first && first <= last && last <= self.last());
        let position = self.position + (first - self.first);
        Span { first, count: last - first + 1, position, ..*self }
    }

    /// The run's value in the engine, unsealed.
    pub fn encode(&self, crcs: &[u32], value: &mut Vec<u8>) {
        assert!(crcs.len() as u64 == self.count && crcs.len() <= RUN_BLOCKS_MAX);
        value.clear();
        value.extend_from_slice(&self.position.to_le_bytes());
        value.extend_from_slice(&self.op.to_le_bytes());
        crcs.iter().for_each(|crc| value.extend_from_slice(&crc.to_le_bytes()));
    }
}

/// The checksums of a run, as they lie in the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crcs<'a>(&'a [u8]);

impl<'a> Crcs<'a> {
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let words = self.0.as_chunks::<4>().0;
        words.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

/// Reads an entry of the block map.
pub(crate) fn parse_run(entry: Entry<'_>) -> Result<(Span, Crcs<'_>), StoreError> {
    let (key, sealed) = entry;
    let value = seal::open(Table::Map, key, sealed)?;
    let damaged = || StoreError::value(Table::Map, key);
    let (file, last) = parse_map_key(key).ok_or_else(damaged)?;
    let mut fields = Fields(value);
    let position = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
    let op = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
    let crcs = fields.0;
    let count = (crcs.len() / 4) as u64;
    let sound = crcs.len().is_multiple_of(4)
        && (1..=RUN_BLOCKS_MAX as u64).contains(&count)
        && last <= BLOCK_INDEX_MAX
        && last >= count - 1
        && position.checked_add(count).is_some();
    if !sound {
        return Err(damaged());
    }
    debug_assert_eq!(value.len(), RUN_HEAD_BYTES + crcs.len());
    Ok((Span { file, first: last - (count - 1), count, position, op }, Crcs(crcs)))
}

/// Notices runs of one file that share a block, where they are read in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    /// File and last block of the run before.
    before: Option<(u64, u64)>,
}

impl Apart {
    pub fn check(&mut self, span: &Span) -> Result<(), StoreError> {
        let before = self.before.replace((span.file, span.last()));
        if before.is_some_and(|(file, last)| file == span.file && span.first <= last) {
            return Err(Damage::Contradiction { what: "two runs of a file share a block" }.into());
        }
        Ok(())
    }
}

/// A durable mark: what was written before `op` at or after block `first` of `file` is not there,
/// though its blocks are not freed yet. At most one mark governs a block: the one with the
/// greatest `first` at or before it. Of two marks of a file the one with the greater `first`
/// has the greater `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub file: u64,
    pub first: u64,
    pub op: u64,
    /// Nothing hidden is left below this block.
    pub resume: u64,
}

impl Mark {
    pub fn encode(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.op.to_le_bytes());
        value[8..].copy_from_slice(&self.resume.to_le_bytes());
        value
    }

    pub fn parse(entry: Entry<'_>) -> Result<Mark, StoreError> {
        let (key, sealed) = entry;
        let damaged = || StoreError::value(Table::Cut, key);
        let (file, first) = parse_map_key(key).ok_or_else(damaged)?;
        let mut fields = Fields(seal::open(Table::Cut, key, sealed)?);
        let op = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
        let resume = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
        if !fields.0.is_empty() {
            return Err(damaged());
        }
        Ok(Mark { file, first, op, resume })
    }
}

/// Whether the marks of the run's file, in ascending order, hide it. No run that a mark hides
/// begins before the mark: a cut splits what lies across it.
pub(crate) fn hidden(span: &Span, marks: &[Mark]) -> bool {
    let governing = marks.iter().rev().find(|mark| mark.first <= span.first);
    governing.is_some_and(|mark| span.op < mark.op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_round_trip_and_refuse_impossible_lengths() {
        let span = Span { file: 7, first: 10, count: 3, position: 99, op: 5 };
        let mut value = Vec::new();
        span.encode(&[1, 2, 3], &mut value);
        let key = map_key(7, span.last());
        let mut sealed = Vec::new();
        seal::seal(Table::Map, &key, &value, &mut sealed);
        let (read, crcs) = parse_run((&key, &sealed)).unwrap();
        assert_eq!(read, span);
        assert_eq!(crcs.iter().collect::<Vec<_>>(), [1, 2, 3]);
        // Three blocks cannot end at block 1.
        let key = map_key(7, 1);
        seal::seal(Table::Map, &key, &value, &mut sealed);
        assert!(parse_run((&key, &sealed)).is_err());
        seal::seal(Table::Map, &key, &value[..RUN_HEAD_BYTES], &mut sealed);
        assert!(parse_run((&key, &sealed)).is_err());
    }

    #[test]
    fn runs_of_a_file_that_share_a_block_are_damage() {
        let span = |file, first, count| Span { file, first, count, position: 0, op: 1 };
        let mut apart = Apart::default();
        for sound in [span(7, 0, 3), span(7, 3, 1), span(8, 0, 9)] {
            apart.check(&sound).unwrap();
        }
        assert!(matches!(apart.check(&span(8, 8, 4)), Err(StoreError::Damaged(_))));
    }
}
