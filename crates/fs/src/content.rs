//! Content: what the shadow knows of file data.
//! Owns: the search for a block from the newest layer down, and the merging of ranges.
//! Never: copies a block that can be shown where it lies.
//! Invariant: a block at or beyond a file's end, or of a file that holds none, reads as zeros.
//! Source: ARCHITECTURE.md.

use crate::blocks::{Base, LogBytes};
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, Block, Known, blocks_of};
use crate::need::{NEED_BLOCKS_MAX, Need};
use crate::shadow::Shadow;

/// Where a block's content is.
enum Piece<'a> {
    /// Here, whole.
    Whole(&'a Block),
    /// There is none.
    Hole,
    /// In several layers: to be merged.
    Merge,
    /// Not in memory.
    Missing,
}

/// What merging a block came to.
pub(crate) enum Filled {
    /// The content is there; the op that last changed it.
    Done(u64),
    /// The part below all layers is not in memory.
    Lacking,
}

static ZEROS: Block = [0; BLOCK_BYTES];

impl Shadow {
    /// Where the newest content of a block is, and the op that made it so.
    #[inline]
    fn piece<'a>(&'a self, ino: u64, block: u64, log: &'a dyn LogBytes) -> (Piece<'a>, u64) {
        for layer in self.layers().into_iter().flatten() {
            if let Some(slot) = layer.blocks.find(self.seed, ino, block) {
                if slot.base == Base::Cut {
                    return (Piece::Hole, slot.op);
                }
                let whole = layer.blocks.whole(slot, log);
                return (whole.map_or(Piece::Merge, Piece::Whole), slot.op);
            }
            if let Some(file) = layer.blocks.file(self.seed, ino)
                && file.absent <= block
            {
                return (Piece::Hole, file.cut_op);
            }
        }
        match self.clean.block(ino, block) {
            Some(Some(data)) => (Piece::Whole(data), 0),
            Some(None) => (Piece::Hole, 0),
            None if self.is_beyond(ino, block) => (Piece::Hole, 0),
            None => (Piece::Missing, 0),
        }
    }

    /// Whether the inode shows that no block is there. Only for a block that no layer has.
    fn is_beyond(&self, ino: u64, block: u64) -> bool {
        match self.look_inode(ino) {
            Known::Is(inode, _) => inode.used_blocks == 0 || block >= blocks_of(inode.size),
            Known::Absent(_) => true,
            Known::Unknown => false,
        }
    }

    /// Puts the content of a block, as layer `from` and those below know it, into `out`.
    pub(crate) fn fill(
        &self,
        from: usize,
        (ino, block): (u64, u64),
        log: &dyn LogBytes,
        out: &mut Block,
    ) -> Filled {
        for (number, layer) in self.layers().into_iter().enumerate().skip(from) {
            let Some(layer) = layer else { continue };
            let absent =
                || layer.blocks.file(self.seed, ino).is_some_and(|file| file.absent <= block);
            let Some(slot) = layer.blocks.find(self.seed, ino, block) else {
                if absent() {
                    *out = ZEROS;
                    return Filled::Done(0);
                }
                continue;
            };
            match layer.blocks.base(slot, log) {
                Some(base) => *out = *base,
                None if slot.base == Base::Cut || absent() => *out = ZEROS,
                None => {
                    if let Filled::Lacking = self.fill(number + 1, (ino, block), log, out) {
                        return Filled::Lacking;
                    }
                }
            }
            layer.blocks.put_ranges(slot, log, out);
            return Filled::Done(slot.op);
        }
        match self.clean.block(ino, block) {
            Some(data) => *out = *data.unwrap_or(&ZEROS),
            None => return Filled::Lacking,
        }
        Filled::Done(0)
    }

    /// The content of one block (holes are zeros) into `out`, [`BLOCK_BYTES`] long.
    pub fn read_block(
        &mut self,
        ino: u64,
        block: u64,
        log: &dyn LogBytes,
        out: &mut [u8],
    ) -> Known<()> {
        let out: &mut Block = out.try_into().expect("room for one block");
        match self.piece(ino, block, log) {
            (Piece::Whole(data), op) => {
                *out = *data;
                Known::Is((), op)
            }
            (Piece::Hole, op) => {
                *out = ZEROS;
                Known::Is((), op)
            }
            (Piece::Merge, _) => match self.fill(0, (ino, block), log, out) {
                Filled::Done(op) => Known::Is((), op),
                Filled::Lacking => Known::Unknown,
            },
            (Piece::Missing, _) => Known::Unknown,
        }
    }

    /// Appends `len` bytes of a file from `offset` on to `out`; holes, and what lies beyond the
    /// end, are zeros. The op is the newest that changed one of the blocks.
    ///
    /// On `Unknown`, what is lacking is pushed to `needs` and `out` is as it was.
    pub fn read_range(
        &mut self,
        ino: u64,
        offset: u64,
        len: usize,
        log: &dyn LogBytes,
        out: &mut Vec<u8>,
        needs: &mut Vec<Need>,
    ) -> Known<()> {
        let (begin, needs_before) = (out.len(), needs.len());
        let end = offset.checked_add(len as u64).expect("a range of a file ends below 2^64");
        let mut newest = 0;
        let mut at = offset;
        let mut merged: Block;
        while at < end {
            let block = at / BLOCK_BYTES_U64;
            let start = (at % BLOCK_BYTES_U64) as usize;
            let stop = BLOCK_BYTES.min(start + (end - at) as usize);
            let (piece, mut op) = self.piece(ino, block, log);
            let content = match piece {
                Piece::Whole(data) => Some(data),
                Piece::Hole => Some(&ZEROS),
                Piece::Missing => None,
                Piece::Merge => {
                    merged = ZEROS;
                    match self.fill(0, (ino, block), log, &mut merged) {
                        Filled::Done(filled) => {
                            op = filled;
                            Some(&merged)
                        }
                        Filled::Lacking => None,
                    }
                }
            };
            match content {
                Some(content) => out.extend_from_slice(&content[start..stop]),
                None => lack(needs, needs_before, ino, block),
            }
            newest = newest.max(op);
            at += (stop - start) as u64;
        }
        if needs.len() > needs_before {
            out.truncate(begin);
            return Known::Unknown;
        }
        Known::Is((), newest)
    }

    /// Whether the file holds a block there, or a hole.
    pub fn block_exists(&mut self, ino: u64, block: u64) -> Known<bool> {
        for layer in self.layers().into_iter().flatten() {
            if let Some(slot) = layer.blocks.find(self.seed, ino, block) {
                return Known::Is(slot.base != Base::Cut, slot.op);
            }
            if let Some(file) = layer.blocks.file(self.seed, ino)
                && file.absent <= block
            {
                return Known::Is(false, file.cut_op);
            }
        }
        if let Some(data) = self.clean.block(ino, block) {
            return Known::Is(data.is_some(), 0);
        }
        if self.is_lost(ino, block) {
            return Known::Is(true, 0); // what is there is another question
        }
        match self.look_inode(ino) {
            Known::Is(inode, op) => {
                let end = blocks_of(inode.size);
                if inode.used_blocks == 0 || block >= end {
                    Known::Is(false, op)
                } else if inode.used_blocks == end {
                    Known::Is(true, op)
                } else {
                    Known::Unknown
                }
            }
            Known::Absent(op) => Known::Is(false, op),
            Known::Unknown => Known::Unknown,
        }
    }
}

/// Adds a block to what is lacking, to the last need if it goes on from it.
fn lack(needs: &mut Vec<Need>, from: usize, ino: u64, block: u64) {
    if let Some(Need::Blocks { first, count, .. }) = needs[from..].last_mut()
        && *first + u64::from(*count) == block
        && *count < NEED_BLOCKS_MAX
    {
        *count += 1;
        return;
    }
    needs.push(Need::Blocks { ino, first: block, count: 1 });
}
