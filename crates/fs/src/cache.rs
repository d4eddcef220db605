//! Cache: clean objects, as the image has them.
//! Owns: bounded tables of inodes, entries, targets, blocks and pages of directories.
//! Never: holds anything that is not in the image, or in its last checkpoint.
//! Invariant: every value is the image's at the last checkpoint that left memory, or newer and
//! then hidden by a layer above or equal to it.
//! Source: ARCHITECTURE.md.

use crate::clock::Clock;
use crate::hash::Seed;
use crate::inode::{BLOCK_BYTES, Block, Entry, Inode};
use crate::pages::Pages;

/// Bytes of a short name, kept in place.
const SHORT: usize = 30;

#[derive(Clone, Debug)]
enum NameBox {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl NameBox {
    fn new(name: &[u8]) -> NameBox {
        if name.len() > SHORT {
            return NameBox::Long(name.into());
        }
        let mut bytes = [0; SHORT];
        bytes[..name.len()].copy_from_slice(name);
        NameBox::Short(name.len() as u8, bytes)
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            NameBox::Short(len, bytes) => &bytes[..usize::from(*len)],
            NameBox::Long(bytes) => bytes,
        }
    }
}

#[derive(Clone, Debug)]
struct CleanEntry {
    dir: u64,
    name: NameBox,
    entry: Option<Entry>,
}

#[derive(Debug)]
struct CleanBlock {
    ino: u64,
    block: u64,
    data: Data,
}

/// Where a clean block's bytes are.
#[derive(Debug)]
enum Data {
    /// It is a hole.
    Hole,
    /// In a box of its own.
    Own(Box<Block>),
    /// Block `at` of a chunk.
    Part { chunk: u32, at: u32 },
}

/// Blocks that were fetched together and stay where they were read to.
#[derive(Debug, Default)]
struct Chunk {
    data: Vec<u8>,
    /// Blocks of it that are in the table.
    live: u32,
}

/// The clean objects.
#[derive(Debug)]
pub(crate) struct Clean {
    seed: Seed,
    inodes: Clock<(u64, Option<Inode>)>,
    entries: Clock<CleanEntry>,
    targets: Clock<(u64, Option<Box<[u8]>>)>,
    blocks: Clock<CleanBlock>,
    chunks: Vec<Chunk>,
    free_chunks: Vec<u32>,
    /// Bytes in boxes and chunks.
    block_bytes: usize,
    block_bytes_max: usize,
    pub pages: Pages,
    /// Boxes of blocks forgotten, to be used again.
    spare: Vec<Box<Block>>,
}

/// Boxes kept for use again.
const SPARE_MAX: usize = 512;
/// Fewer blocks fetched together are copied into boxes.
const CHUNK_BLOCKS_MIN: usize = 8;
/// The least room for blocks: four of the largest READs.
const BLOCK_BYTES_MIN: usize = 4 << 20;

impl Clean {
    /// Half of `bytes` goes to blocks, most of the rest to inodes and entries. No table is
    /// smaller than what one request may need.
    pub fn new(seed: Seed, bytes: usize) -> Clean {
        let share = |parts: usize, size: usize, min: usize| (bytes / 100 * parts / size).max(min);
        Clean {
            seed,
            inodes: Clock::new(share(20, 160, 8192)),
            entries: Clock::new(share(20, 96, 8192)),
            targets: Clock::new(share(2, 160, 256)),
            blocks: Clock::new(share(50, BLOCK_BYTES, BLOCK_BYTES_MIN / BLOCK_BYTES)),
            chunks: Vec::new(),
            free_chunks: Vec::new(),
            block_bytes: 0,
            block_bytes_max: share(50, 1, BLOCK_BYTES_MIN),
            pages: Pages::new(share(8, 1, 1)),
            spare: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.inodes.clear();
        self.entries.clear();
        self.targets.clear();
        self.blocks.clear();
        self.chunks.clear();
        self.free_chunks.clear();
        self.block_bytes = 0;
        self.pages.clear();
    }

    /// An inode; `Some(None)`: surely none.
    #[inline]
    pub fn inode(&self, ino: u64) -> Option<&Option<Inode>> {
        self.inodes.find(self.seed.one(ino), |(other, _)| *other == ino).map(|(_, inode)| inode)
    }

    pub fn put_inode(&mut self, ino: u64, inode: Option<Inode>, seen: bool) {
        self.inodes.insert(self.seed.one(ino), (ino, inode), seen, |(other, _)| *other == ino);
    }

    pub fn forget_inode(&mut self, ino: u64) {
        self.inodes.remove(self.seed.one(ino), |(other, _)| *other == ino);
    }

    /// What a name leads to; `hash` is [`Seed::name`].
    #[inline]
    pub fn entry(&self, hash: u64, dir: u64, name: &[u8]) -> Option<&Option<Entry>> {
        let is = |clean: &CleanEntry| clean.dir == dir && clean.name.bytes() == name;
        self.entries.find(hash, is).map(|clean| &clean.entry)
    }

    pub fn put_entry(
        &mut self,
        hash: u64,
        dir: u64,
        name: &[u8],
        entry: Option<Entry>,
        seen: bool,
    ) {
        let clean = CleanEntry { dir, name: NameBox::new(name), entry };
        let is = |clean: &CleanEntry| clean.dir == dir && clean.name.bytes() == name;
        self.entries.insert(hash, clean, seen, is);
    }

    pub fn forget_entry(&mut self, hash: u64, dir: u64, name: &[u8]) {
        self.entries.remove(hash, |clean| clean.dir == dir && clean.name.bytes() == name);
    }

    /// A target; `Some(None)`: surely none.
    pub fn target(&self, ino: u64) -> Option<&Option<Box<[u8]>>> {
        self.targets.find(self.seed.one(ino), |(other, _)| *other == ino).map(|(_, target)| target)
    }

    pub fn put_target(&mut self, ino: u64, target: Option<Box<[u8]>>) {
        self.targets.insert(self.seed.one(ino), (ino, target), true, |(other, _)| *other == ino);
    }

    pub fn forget_target(&mut self, ino: u64) {
        self.targets.remove(self.seed.one(ino), |(other, _)| *other == ino);
    }

    /// A block; `Some(None)`: a hole.
    #[inline]
    pub fn block(&self, ino: u64, block: u64) -> Option<Option<&Block>> {
        let is = |clean: &CleanBlock| clean.block == block && clean.ino == ino;
        let clean = self.blocks.find(self.seed.two(ino, block), is)?;
        Some(match &clean.data {
            Data::Hole => None,
            Data::Own(data) => Some(data),
            Data::Part { chunk, at } => {
                let data = &self.chunks[*chunk as usize].data;
                Some(&data.as_chunks::<BLOCK_BYTES>().0[*at as usize])
            }
        })
    }

    /// Puts in a copy of a block, or that it is a hole.
    pub fn put_block(&mut self, ino: u64, block: u64, data: Option<&Block>, seen: bool) {
        let data = match data {
            None => Data::Hole,
            Some(data) => {
                self.block_bytes += BLOCK_BYTES;
                Data::Own(match self.spare.pop() {
                    Some(mut spare) => {
                        *spare = *data;
                        spare
                    }
                    None => Box::new(*data),
                })
            }
        };
        self.put(CleanBlock { ino, block, data }, seen);
        self.shrink();
    }

    /// Puts in blocks that were read together; `held` says which of them are no holes. Many stay
    /// in the buffer they were read to.
    pub fn put_blocks(&mut self, ino: u64, first: u64, held: &[bool], data: Vec<u8>) {
        let live = held.iter().filter(|held| **held).count();
        if live < CHUNK_BLOCKS_MIN {
            let blocks = data.as_chunks::<BLOCK_BYTES>().0;
            for ((block, held), data) in (first..).zip(held).zip(blocks) {
                self.put_block(ino, block, held.then_some(data), true);
            }
            return;
        }
        self.block_bytes += data.len();
        let made = Chunk { data, live: live as u32 };
        let chunk = self.free_chunks.pop().unwrap_or(self.chunks.len() as u32);
        match self.chunks.get_mut(chunk as usize) {
            Some(free) => *free = made,
            None => self.chunks.push(made),
        }
        for (at, held) in held.iter().enumerate() {
            let data = match held {
                true => Data::Part { chunk, at: at as u32 },
                false => Data::Hole,
            };
            self.put(CleanBlock { ino, block: first + at as u64, data }, true);
        }
        self.shrink();
    }

    fn put(&mut self, clean: CleanBlock, seen: bool) {
        let (ino, block) = (clean.ino, clean.block);
        let is = |clean: &CleanBlock| clean.block == block && clean.ino == ino;
        if let Some(old) = self.blocks.insert(self.seed.two(ino, block), clean, seen, is) {
            self.release(old.data);
        }
    }

    fn shrink(&mut self) {
        while self.block_bytes > self.block_bytes_max {
            let Some(old) = self.blocks.forget_one() else { return };
            self.release(old.data);
        }
    }

    /// Gives back the memory of a block that left the table.
    fn release(&mut self, data: Data) {
        match data {
            Data::Hole => {}
            Data::Own(data) => {
                self.block_bytes -= BLOCK_BYTES;
                if self.spare.len() < SPARE_MAX {
                    self.spare.push(data);
                }
            }
            Data::Part { chunk, .. } => {
                let number = chunk;
                let chunk = &mut self.chunks[number as usize];
                chunk.live -= 1;
                if chunk.live == 0 {
                    self.block_bytes -= chunk.data.len();
                    chunk.data = Vec::new();
                    self.free_chunks.push(number);
                }
            }
        }
    }

    pub fn forget_block(&mut self, ino: u64, block: u64) {
        let is = |clean: &CleanBlock| clean.block == block && clean.ino == ino;
        if let Some(old) = self.blocks.remove(self.seed.two(ino, block), is) {
            self.release(old.data);
        }
    }

    /// Forgets blocks in `count` places from `from` on for which `gone(ino, block)` holds;
    /// returns whether there are places beyond.
    pub fn sweep_blocks(
        &mut self,
        from: usize,
        count: usize,
        gone: impl Fn(u64, u64) -> bool,
    ) -> bool {
        let mut taken = Vec::new();
        let is_gone = |clean: &CleanBlock| gone(clean.ino, clean.block);
        let more = self.blocks.sweep(from, count, is_gone, &mut taken);
        taken.into_iter().for_each(|old| self.release(old.data));
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: usize) -> Vec<u8> {
        (0..count).flat_map(|at| [at as u8; BLOCK_BYTES]).collect()
    }

    #[test]
    fn blocks_read_together_are_found_one_by_one_and_holes_with_them() {
        let mut clean = Clean::new(Seed(1), 0);
        let mut held = vec![true; 32];
        held[5] = false;
        clean.put_blocks(9, 100, &held, filled(32));
        clean.put_block(9, 102, Some(&[77; BLOCK_BYTES]), true);
        assert_eq!(clean.block(9, 131), Some(Some(&[31; BLOCK_BYTES])));
        assert_eq!(clean.block(9, 102), Some(Some(&[77; BLOCK_BYTES])));
        assert_eq!((clean.block(9, 105), clean.block(9, 132)), (Some(None), None));
        assert!(!clean.sweep_blocks(0, 100, |_, block| block >= 101));
        assert_eq!(clean.block(9, 101), None);
        assert_eq!((clean.block_bytes, clean.chunks[0].live), (32 * BLOCK_BYTES, 1));
        clean.forget_block(9, 100);
        assert_eq!(clean.block_bytes, 0);
    }

    #[test]
    fn memory_for_blocks_is_bounded_even_if_one_block_of_each_chunk_is_hot() {
        let mut clean = Clean::new(Seed(1), 0);
        for file in 0..1000 {
            clean.put_blocks(file, 0, &[true; 257], filled(257));
            (0..file).for_each(|file| _ = clean.block(file, 0));
            assert!(clean.block_bytes <= BLOCK_BYTES_MIN);
        }
        assert!(clean.chunks.len() < 10);
        assert!(clean.block(999, 256).is_some());
    }

    #[test]
    fn names_short_and_long_are_told_apart() {
        let mut clean = Clean::new(Seed(1), 0);
        let long = [b'x'; 255];
        for (cookie, len) in [(3, 1), (4, 30), (5, 31), (6, 255)] {
            let kind = crate::request::FileType::Regular;
            let entry = Entry { ino: cookie, cookie, kind };
            clean.put_entry(0, 1, &long[..len], Some(entry), true);
        }
        for (cookie, len) in [(3, 1), (4, 30), (5, 31), (6, 255)] {
            let entry = clean.entry(0, 1, &long[..len]).unwrap().unwrap();
            assert_eq!(entry.cookie, cookie);
        }
        assert!(clean.entry(0, 1, &long[..29]).is_none() && clean.entry(0, 2, b"x").is_none());
    }
}
