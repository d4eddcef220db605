//! Blocks: the file data that one generation changed.
//! Owns: for each block where its bytes are, mostly in the log; for each file what was cut off.
//! Never: copies a payload before somebody needs it merged.
//! Invariant: a block's content is its base with its ranges put in, oldest first; the base is in
//! the log, in memory, zeros, or the content below.
//! Source: ARCHITECTURE.md.

use crate::hash::{Index, NONE, Seed};
use crate::inode::{BLOCK_BYTES, Block};

/// Where the log's bytes are: the record ring, as the caller keeps it.
pub trait LogBytes {
    /// The `len` bytes at ring position `pos`. They were given to `apply` and are still needed.
    fn bytes(&self, pos: u64, len: u32) -> &[u8];
}

/// Ranges after which a block is merged in memory, if its base is known.
pub(crate) const RANGES_MAX: u32 = 8;

/// What a block's ranges are put into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Base {
    /// What lies below this generation, or zeros where the file says that nothing does.
    Below,
    /// A whole block at this position of the log.
    Log(u64),
    /// A block of [`Blocks::owned`].
    Owned(u32),
    /// The block was cut off: there is none.
    Cut,
}

/// One block that changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSlot {
    pub ino: u64,
    pub block: u64,
    pub op: u64,
    pub base: Base,
    /// The checksum of the content.
    pub crc: u32,
    first_range: u32,
    last_range: u32,
    ranges: u32,
    next_in_file: u32,
    /// It came with many others: of little use in a cache of single blocks.
    pub bulk: bool,
}

impl BlockSlot {
    pub fn has_ranges(&self) -> bool {
        self.first_range != NONE
    }

    /// Forgets the ranges; 1 if there were any.
    fn drop_ranges(&mut self) -> usize {
        let had = usize::from(self.has_ranges());
        (self.first_range, self.last_range, self.ranges) = (NONE, NONE, 0);
        had
    }
}

/// Part of a block, in the log.
#[derive(Clone, Copy, Debug)]
struct Range {
    pos: u64,
    start: u16,
    len: u16,
    next: u32,
}

/// A file whose blocks changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSlot {
    pub ino: u64,
    /// The lowest block from which on all was cut off; `u64::MAX` if nothing was.
    pub cut: u64,
    /// Nothing exists below this generation from this block on; at most `cut`.
    pub absent: u64,
    /// The op of the last cut.
    pub cut_op: u64,
    head: u32,
}

/// The data that one generation changed.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    slots: Vec<BlockSlot>,
    index: Index,
    files: Vec<FileSlot>,
    by_ino: Index,
    ranges: Vec<Range>,
    owned: Vec<Box<Block>>,
    /// Blocks with ranges, at most: a checkpoint needs memory for each.
    ranged: usize,
    /// Boxes of an earlier generation, to be used again.
    spare: Vec<Box<Block>>,
}

impl Blocks {
    pub fn clear(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.files.clear();
        self.by_ino.clear();
        self.ranges.clear();
        self.ranged = 0;
        self.spare.append(&mut self.owned);
    }

    pub fn bytes_used(&self) -> usize {
        self.slots.len() * (size_of::<BlockSlot>() + 8)
            + self.files.len() * (size_of::<FileSlot>() + 8)
            + self.ranges.len() * size_of::<Range>()
            + (self.owned.len() + self.ranged) * BLOCK_BYTES
    }

    pub fn slots(&self) -> &[BlockSlot] {
        &self.slots
    }

    /// Blocks that a checkpoint may write.
    pub fn count(&self) -> u64 {
        self.slots.len() as u64
    }

    pub fn files(&self) -> &[FileSlot] {
        &self.files
    }

    #[inline]
    fn position(&self, seed: Seed, ino: u64, block: u64) -> Option<usize> {
        let is = |slot: usize| self.slots[slot].block == block && self.slots[slot].ino == ino;
        self.index.find(seed.two(ino, block), is)
    }

    /// The block, if it changed here.
    #[inline]
    pub fn find(&self, seed: Seed, ino: u64, block: u64) -> Option<&BlockSlot> {
        self.position(seed, ino, block).map(|slot| &self.slots[slot])
    }

    /// The file, if blocks of it changed or were cut off here.
    #[inline]
    pub fn file(&self, seed: Seed, ino: u64) -> Option<&FileSlot> {
        let slot = self.by_ino.find(seed.one(ino), |slot| self.files[slot].ino == ino)?;
        Some(&self.files[slot])
    }

    fn file_slot(&mut self, seed: Seed, ino: u64) -> usize {
        let hash = seed.one(ino);
        if let Some(slot) = self.by_ino.find(hash, |slot| self.files[slot].ino == ino) {
            return slot;
        }
        let slot = self.files.len();
        let none = u64::MAX;
        self.files.push(FileSlot { ino, cut: none, absent: none, cut_op: 0, head: NONE });
        let Blocks { by_ino, files, .. } = self;
        by_ino.insert(hash, slot, |slot| seed.one(files[slot].ino));
        slot
    }

    /// Notes that nothing of the file exists below from block `first` on.
    pub fn note_absent(&mut self, seed: Seed, ino: u64, first: u64) {
        let slot = self.file_slot(seed, ino);
        let file = &mut self.files[slot];
        file.absent = file.absent.min(first);
    }

    /// The slot of a block; a new one stands for a block of which nothing is changed yet.
    #[inline]
    fn slot(&mut self, seed: Seed, ino: u64, block: u64) -> usize {
        if let Some(slot) = self.position(seed, ino, block) {
            return slot;
        }
        let file = self.file_slot(seed, ino);
        let slot = self.slots.len();
        self.slots.push(BlockSlot {
            ino,
            block,
            op: 0,
            base: Base::Below,
            crc: 0,
            first_range: NONE,
            last_range: NONE,
            ranges: 0,
            next_in_file: self.files[file].head,
            bulk: false,
        });
        self.files[file].head = slot as u32;
        let Blocks { index, slots, .. } = self;
        index.insert(seed.two(ino, block), slot, |slot| {
            seed.two(slots[slot].ino, slots[slot].block)
        });
        slot
    }

    /// Takes in a whole block that lies at `pos` of the log.
    pub fn write(
        &mut self,
        seed: Seed,
        op: u64,
        (ino, block): (u64, u64),
        (pos, crc): (u64, u32),
        bulk: bool,
    ) {
        let slot = self.slot(seed, ino, block);
        let slot = &mut self.slots[slot];
        slot.op = op;
        slot.crc = crc;
        slot.bulk = bulk;
        self.ranged -= slot.drop_ranges();
        // A merged block that this replaces keeps its box until the generation goes.
        slot.base = Base::Log(pos);
    }

    /// Takes in part of a block that lies at `pos` of the log. Returns the slot if the block is
    /// due to be merged.
    pub fn write_range(
        &mut self,
        seed: Seed,
        op: u64,
        (ino, block): (u64, u64),
        (start, crc): (u16, u32),
        (pos, data): (u64, &[u8]),
    ) -> Option<usize> {
        let at = self.slot(seed, ino, block);
        let slot = &mut self.slots[at];
        slot.op = op;
        slot.crc = crc;
        if slot.base == Base::Cut {
            slot.base = Base::Below;
        }
        if let (Base::Owned(owned), NONE) = (slot.base, slot.first_range) {
            let start = usize::from(start);
            self.owned[owned as usize][start..start + data.len()].copy_from_slice(data);
            return None;
        }
        let range = self.ranges.len() as u32;
        self.ranges.push(Range { pos, start, len: data.len() as u16, next: NONE });
        match slot.last_range {
            NONE => {
                slot.first_range = range;
                self.ranged += 1;
            }
            last => self.ranges[last as usize].next = range,
        }
        slot.last_range = range;
        slot.ranges += 1;
        (slot.ranges >= RANGES_MAX).then_some(at)
    }

    /// Puts a block's merged content in the place of its ranges.
    pub fn merged(&mut self, slot: usize, content: &Block) {
        let slot = &mut self.slots[slot];
        self.ranged -= slot.drop_ranges();
        if let Base::Owned(owned) = slot.base {
            *self.owned[owned as usize] = *content;
            return;
        }
        slot.base = Base::Owned(self.owned.len() as u32);
        match self.spare.pop() {
            Some(mut spare) => {
                *spare = *content;
                self.owned.push(spare);
            }
            None => self.owned.push(Box::new(*content)),
        }
    }

    /// Takes in a cut.
    pub fn cut(&mut self, seed: Seed, op: u64, ino: u64, first: u64) {
        let at = self.file_slot(seed, ino);
        let file = &mut self.files[at];
        file.cut = file.cut.min(first);
        file.absent = file.absent.min(first);
        file.cut_op = op;
        let mut next = file.head;
        while next != NONE {
            let slot = &mut self.slots[next as usize];
            if slot.block >= first {
                slot.base = Base::Cut;
                slot.op = op;
                self.ranged -= slot.drop_ranges();
            }
            next = slot.next_in_file;
        }
    }

    /// The whole content, if the slot holds it by itself without ranges.
    #[inline]
    pub fn whole<'a>(&'a self, slot: &BlockSlot, log: &'a dyn LogBytes) -> Option<&'a Block> {
        match slot.base {
            _ if slot.has_ranges() => None,
            Base::Log(pos) => Some(block_at(log, pos)),
            Base::Owned(owned) => Some(&self.owned[owned as usize]),
            Base::Below | Base::Cut => None,
        }
    }

    /// The slot's base, unless that lies below.
    pub fn base<'a>(&'a self, slot: &BlockSlot, log: &'a dyn LogBytes) -> Option<&'a Block> {
        match slot.base {
            Base::Log(pos) => Some(block_at(log, pos)),
            Base::Owned(owned) => Some(&self.owned[owned as usize]),
            Base::Below | Base::Cut => None,
        }
    }

    /// Puts the slot's ranges into `out`, which holds its base.
    pub fn put_ranges(&self, slot: &BlockSlot, log: &dyn LogBytes, out: &mut Block) {
        let mut next = slot.first_range;
        while next != NONE {
            let range = &self.ranges[next as usize];
            let start = usize::from(range.start);
            out[start..start + usize::from(range.len)]
                .copy_from_slice(log.bytes(range.pos, range.len.into()));
            next = range.next;
        }
    }

    /// The slot that [`Blocks::write_range`] returned.
    pub fn slot_at(&self, slot: usize) -> &BlockSlot {
        &self.slots[slot]
    }
}

/// The whole block at a position of the log.
fn block_at(log: &dyn LogBytes, pos: u64) -> &Block {
    log.bytes(pos, BLOCK_BYTES as u32).try_into().expect("the log gave as many bytes as asked")
}
