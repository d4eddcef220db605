//! Image: an image of a copy in plain maps, and a checkpointer that moves it forward.
//! Owns: rows, blocks, and the op they are exact at.
//! Never: keeps a block of zeros apart from any other; a block is there or it is a hole.
//! Invariant: equal images are equal as maps.
//! Source: the contract of `ImageReader`.

use std::collections::BTreeMap;

use harp_fs::blocks::LogBytes;
use harp_fs::generation::Generation;
use harp_fs::inode::BLOCK_BYTES;
use harp_fs::key;
use harp_fs::need::{ImageError, ImageReader};
use harp_fs::request::Time;

/// A row's key, and its value if it stays.
type Row = (Vec<u8>, Option<Vec<u8>>);

/// An image in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pub op: u64,
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    pub blocks: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Image {
    /// A freshly formatted one.
    pub fn formatted(now: Time) -> Image {
        let rows = key::format_rows(now).into_iter().collect();
        Image { op: 0, rows, blocks: BTreeMap::new() }
    }

    /// Puts a frozen generation in, as a store thread would.
    pub fn checkpoint(&mut self, generation: &Generation, log: &dyn LogBytes) {
        assert!(generation.end() >= self.op, "checkpoints go forward");
        let merged = generation.blocks(log, self).expect("the blocks merge");
        let blocks: Vec<_> = merged
            .iter()
            .inspect(|out| assert_eq!(crc32c::crc32c(out.data), out.crc))
            .map(|out| ((out.ino, out.block), out.data.to_vec()))
            .collect();
        assert!(blocks.is_sorted_by(|a, b| a.0 < b.0), "blocks come in order, each once");
        drop(merged);
        let mut rows: Vec<Row> = Vec::new();
        let done = generation.metadata(self, &mut |key, value| {
            rows.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok(())
        });
        done.expect("the metadata merges");
        assert!(rows.is_sorted_by(|a, b| a.0 < b.0), "rows come in order, each once");
        for (ino, first) in generation.cuts() {
            let doomed: Vec<_> =
                self.blocks.range((ino, first)..=(ino, u64::MAX)).map(|(at, _)| *at).collect();
            for at in doomed {
                self.blocks.remove(&at);
            }
        }
        self.blocks.extend(blocks);
        for (key, value) in rows {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        self.op = generation.end();
    }
}

impl ImageReader for Image {
    fn op(&self) -> u64 {
        self.op
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        for (key, value) in self.rows.range(from.to_vec()..).take(limit) {
            if !show(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn read_blocks(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        out.fill(0);
        let end = first.saturating_add(count.into());
        for ((_, block), bytes) in self.blocks.range((file, first)..(file, end)) {
            let at = (block - first) as usize * BLOCK_BYTES;
            out[at..at + BLOCK_BYTES].copy_from_slice(bytes);
            held(*block, 1);
        }
        Ok(())
    }
}
