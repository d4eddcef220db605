//! Cache: clean objects, as the image has them.
//! Owns: bounded tables of inodes, entries, targets, blocks and pages of directories.
//! Never: holds anything that is not in the image, or in its last checkpoint.
//! Invariant: every value is the image's at the last checkpoint that left memory, or newer and
//! then hidden by a layer above or equal to it.
//! Source: the design, section 3 ("Memory").

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
    /// `None`: a hole.
    data: Option<Box<Block>>,
}

/// The clean objects.
#[derive(Debug)]
pub(crate) struct Clean {
    seed: Seed,
    inodes: Clock<(u64, Option<Inode>)>,
    entries: Clock<CleanEntry>,
    targets: Clock<(u64, Option<Box<[u8]>>)>,
    blocks: Clock<CleanBlock>,
    pub pages: Pages,
    /// Boxes of blocks forgotten, to be used again.
    spare: Vec<Box<Block>>,
}

/// Boxes kept for use again.
const SPARE_MAX: usize = 512;

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
            blocks: Clock::new(share(50, BLOCK_BYTES + 64, 1024)),
            pages: Pages::new(share(8, 1, 1)),
            spare: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.inodes.clear();
        self.entries.clear();
        self.targets.clear();
        self.blocks.clear();
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
        self.blocks.find(self.seed.two(ino, block), is).map(|clean| clean.data.as_deref())
    }

    pub fn put_block(&mut self, ino: u64, block: u64, data: Option<&Block>, seen: bool) {
        let data = data.map(|data| match self.spare.pop() {
            Some(mut spare) => {
                *spare = *data;
                spare
            }
            None => Box::new(*data),
        });
        let is = |clean: &CleanBlock| clean.block == block && clean.ino == ino;
        let clean = CleanBlock { ino, block, data };
        let old = self.blocks.insert(self.seed.two(ino, block), clean, seen, is);
        self.keep(old);
    }

    pub fn forget_block(&mut self, ino: u64, block: u64) {
        let is = |clean: &CleanBlock| clean.block == block && clean.ino == ino;
        let old = self.blocks.remove(self.seed.two(ino, block), is);
        self.keep(old);
    }

    fn keep(&mut self, old: Option<CleanBlock>) {
        if let Some(data) = old.and_then(|old| old.data)
            && self.spare.len() < SPARE_MAX
        {
            self.spare.push(data);
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
        self.blocks.sweep(from, count, |clean| gone(clean.ino, clean.block))
    }
}
