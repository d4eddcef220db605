//! Space: which blocks of the data segments are used, and where new data goes.
//! Owns: two bitmaps in memory, one as durable as the image, one of what must not be handed out.
//! Never: reads or writes; decides when a freed block's readers have ended.
//! Invariant: every block used in the image is busy; a busy block is never handed out.
//! Source: docs/disk-format.md.

use crate::seal::Fields;
use crate::{Damage, Extent, StoreError, Table};

/// Blocks covered by one page of the bitmap, which is one value in the engine.
pub(crate) const PAGE_BLOCKS: u64 = 8192;
/// Words in a page.
const PAGE_WORDS: usize = (PAGE_BLOCKS / 64) as usize;
/// Bytes of a page in the engine.
pub(crate) const PAGE_BYTES: usize = PAGE_WORDS * 8;
/// Free runs looked at for one that is long enough, before the longest of them is taken.
const SEARCH_RUNS_MAX: u32 = 256;

/// Numbers of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// The op that the image stands at.
    pub op: u64,
    /// Blocks the disk owns.
    pub total_blocks: u64,
    /// Blocks that hold data, are reserved, or were freed but may still have readers.
    pub used_blocks: u64,
    /// Blocks that can be handed out now.
    pub free_blocks: u64,
    /// Blocks handed out to the commit that is under way, which is to move the image beyond `op`.
    pub under_way_blocks: u64,
    /// Blocks to which the disk may still grow, if the file system lets it.
    pub limit_blocks: u64,
}

/// The bitmaps.
#[derive(Debug, Default)]
pub(crate) struct Bitmap {
    /// Blocks owned; both bitmaps end here, rounded up to a page.
    blocks: u64,
    /// Used in the image as last committed (or about to be).
    image: Vec<u64>,
    /// Not to be handed out: used in the image, reserved, or freed with readers left.
    busy: Vec<u64>,
    /// Free blocks in each page, by `busy`.
    page_free: Vec<u32>,
    free: u64,
    /// Where the search for free blocks goes on.
    cursor: u64,
}

fn mask(bit: u64) -> u64 {
    1 << (bit % 64)
}

impl Bitmap {
    /// All free.
    pub fn new(blocks: u64) -> Bitmap {
        let mut bitmap = Bitmap::default();
        bitmap.grow(blocks);
        bitmap
    }

    /// Takes in blocks that the disk has come to own. Does nothing if it owns no more.
    pub fn grow(&mut self, blocks: u64) {
        if blocks <= self.blocks {
            return;
        }
        let pages = blocks.div_ceil(PAGE_BLOCKS) as usize;
        self.image.resize(pages * PAGE_WORDS, 0);
        self.busy.resize(pages * PAGE_WORDS, 0);
        self.page_free.resize(pages, 0);
        let old_blocks = self.blocks;
        self.blocks = blocks;
        let mut at = old_blocks;
        while at < blocks {
            let end = blocks.min((at / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            self.page_free[(at / PAGE_BLOCKS) as usize] += (end - at) as u32;
            at = end;
        }
        self.free += blocks - old_blocks;
    }

    /// Takes in a page read from the engine.
    /// Errors: the page names blocks that the disk does not own.
    pub fn load_page(&mut self, page: u64, value: &[u8]) -> Result<(), StoreError> {
        let missing = || StoreError::from(Damage::Missing { what: "a data segment in use" });
        if page >= self.page_free.len() as u64 {
            return Err(missing());
        }
        let damaged = || StoreError::value(Table::Used, &page.to_be_bytes());
        if value.len() != PAGE_BYTES {
            return Err(damaged());
        }
        let mut fields = Fields(value);
        for index in 0..PAGE_WORDS {
            let word = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
            let first = page * PAGE_BLOCKS + index as u64 * 64;
            let beyond = (first + 64).saturating_sub(self.blocks.max(first));
            if beyond > 0 && u128::from(word) >> (64 - beyond) != 0 {
                return Err(missing());
            }
            let at = page as usize * PAGE_WORDS + index;
            assert!(self.busy[at] == 0 && self.image[at] == 0, "each page is loaded once");
            self.image[at] = word;
            self.busy[at] = word;
            self.page_free[page as usize] -= word.count_ones();
            self.free -= u64::from(word.count_ones());
        }
        Ok(())
    }

    /// The bytes of a page as the engine keeps them; `None` when no block in it is used.
    pub fn page(&self, page: u64, bytes: &mut [u8; PAGE_BYTES]) -> Option<()> {
        let words = &self.image[page as usize * PAGE_WORDS..][..PAGE_WORDS];
        for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        words.iter().any(|word| *word != 0).then_some(())
    }

    /// Blocks owned, free to hand out.
    pub fn counts(&self) -> (u64, u64) {
        (self.blocks, self.free)
    }

    /// Hands out up to `want` neighbouring blocks, as many as a short search finds together;
    /// `None` when nothing is free.
    pub fn allocate(&mut self, want: u64) -> Option<Extent> {
        assert!(want > 0);
        if self.free == 0 {
            return None;
        }
        let pages = self.page_free.len() as u64;
        let mut best = Extent { position: 0, count: 0 };
        let mut runs_left = SEARCH_RUNS_MAX;
        let start_page = self.cursor / PAGE_BLOCKS;
        // The first page is visited twice: behind the cursor only at the end.
        for step in 0..=pages {
            let page = (start_page + step) % pages;
            if self.page_free[page as usize] == 0 {
                continue;
            }
            let from = if step == 0 { self.cursor } else { page * PAGE_BLOCKS };
            let end = self.blocks.min((page + 1) * PAGE_BLOCKS);
            self.longest_run(from, end, want, &mut best, &mut runs_left);
            if best.count >= want || (best.count > 0 && runs_left == 0) {
                break;
            }
        }
        assert!(best.count > 0, "a free block was counted");
        self.claim(best);
        self.cursor = if best.end() < self.blocks { best.end() } else { 0 };
        Some(best)
    }

    /// Looks for the first free run of `want` blocks in [from, end), and keeps the longest seen.
    fn longest_run(&self, from: u64, end: u64, want: u64, best: &mut Extent, runs_left: &mut u32) {
        let mut at = self.next(from, end, false);
        while at < end && best.count < want && *runs_left > 0 {
            *runs_left -= 1;
            // Runs may reach into the next page.
            let run_end = self.next(at, self.blocks.min(at + want), true);
            if run_end - at > best.count {
                *best = Extent { position: at, count: run_end - at };
            }
            at = self.next(run_end, end, false);
        }
    }

    /// The first block in [from, end) that is busy (or free), or `end`.
    fn next(&self, from: u64, end: u64, busy: bool) -> u64 {
        let mut at = from;
        while at < end {
            let word = self.busy[(at / 64) as usize];
            let wanted = if busy { word } else { !word } >> (at % 64);
            if wanted != 0 {
                return end.min(at + u64::from(wanted.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }

    /// Whether all of it is owned and not busy.
    pub fn is_free(&self, extent: Extent) -> bool {
        extent
            .position
            .checked_add(extent.count)
            .is_some_and(|end| end <= self.blocks && self.next(extent.position, end, true) == end)
    }

    /// Whether all of it is busy but not used in the image.
    pub fn is_reserved(&self, extent: Extent) -> bool {
        extent.position.checked_add(extent.count).is_some_and(|end| {
            end <= self.blocks
                && self.next(extent.position, end, false) == end
                && (extent.position..end)
                    .all(|block| self.image[(block / 64) as usize] & mask(block) == 0)
        })
    }

    /// Makes free blocks busy.
    pub fn claim(&mut self, extent: Extent) {
        for block in extent.position..extent.end() {
            let word = &mut self.busy[(block / 64) as usize];
            assert!(*word & mask(block) == 0, "a busy block was claimed");
            *word |= mask(block);
            self.page_free[(block / PAGE_BLOCKS) as usize] -= 1;
        }
        self.free -= extent.count;
    }

    /// Makes busy blocks free that the image does not use.
    pub fn release(&mut self, extent: Extent) {
        for block in extent.position..extent.end() {
            let at = (block / 64) as usize;
            assert!(self.image[at] & mask(block) == 0, "a block of the image was released");
            assert!(self.busy[at] & mask(block) != 0, "a free block was released");
            self.busy[at] &= !mask(block);
            self.page_free[(block / PAGE_BLOCKS) as usize] += 1;
        }
        self.free += extent.count;
    }

    /// Says that the image comes to use blocks that are busy, or no longer uses them. They stay
    /// busy either way.
    pub fn set_image(&mut self, extent: Extent, used: bool) {
        for block in extent.position..extent.end() {
            let at = (block / 64) as usize;
            assert!(self.busy[at] & mask(block) != 0, "a free block in the image");
            assert!((self.image[at] & mask(block) == 0) == used, "block used or freed twice");
            self.image[at] ^= mask(block);
        }
    }

    /// Says that the image uses nothing any more; returns what it used, which stays busy.
    pub fn empty_image(&mut self) -> Vec<Extent> {
        let mut used: Vec<Extent> = Vec::new();
        for (index, word) in self.image.iter_mut().enumerate() {
            let mut left = std::mem::take(word);
            while left != 0 {
                let position = index as u64 * 64 + u64::from(left.trailing_zeros());
                match used.last_mut() {
                    Some(before) if before.end() == position => before.count += 1,
                    _ => used.push(Extent { position, count: 1 }),
                }
                left &= left - 1;
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_prefers_long_runs_and_uses_every_block() {
        let mut bitmap = Bitmap::new(PAGE_BLOCKS + 10);
        for block in (0..64).step_by(2) {
            bitmap.claim(Extent { position: block, count: 1 });
        }
        let found = bitmap.allocate(100).unwrap();
        assert_eq!(found, Extent { position: 63, count: 100 });
        let mut left = bitmap.counts().1;
        while let Some(found) = bitmap.allocate(1000) {
            assert!(found.end() <= PAGE_BLOCKS + 10);
            left -= found.count;
        }
        assert_eq!(left, 0);
        bitmap.release(Extent { position: 5, count: 1 });
        bitmap.release(Extent { position: 7, count: 2 });
        assert_eq!(bitmap.allocate(4).unwrap(), Extent { position: 7, count: 2 });
        assert_eq!(bitmap.allocate(4).unwrap(), Extent { position: 5, count: 1 });
        assert_eq!(bitmap.allocate(4), None);
    }

    #[test]
    fn search_is_short_where_free_space_is_in_crumbs() {
        let mut bitmap = Bitmap::new(4 * PAGE_BLOCKS);
        bitmap.claim(Extent { position: 0, count: 4 * PAGE_BLOCKS });
        (0..2 * PAGE_BLOCKS).for_each(|at| bitmap.release(Extent { position: at * 2, count: 1 }));
        let (_, mut left) = bitmap.counts();
        while let Some(found) = bitmap.allocate(256) {
            assert_eq!(found.count, 1);
            left -= 1;
        }
        assert_eq!(left, 0);
    }

    #[test]
    fn pages_round_trip_and_refuse_what_the_disk_lacks() {
        let mut bitmap = Bitmap::new(100);
        let extent = bitmap.allocate(70).unwrap();
        let mut bytes = [0; PAGE_BYTES];
        assert_eq!(bitmap.page(0, &mut bytes), None);
        bitmap.set_image(extent, true);
        assert_eq!(bitmap.page(0, &mut bytes), Some(()));
        let mut same = Bitmap::new(100);
        same.load_page(0, &bytes).unwrap();
        assert_eq!(same.counts(), (100, 30));
        assert!(Bitmap::new(69).load_page(0, &bytes).is_err());
        assert!(Bitmap::new(70).load_page(0, &bytes).is_ok());
        assert!(Bitmap::new(100).load_page(1, &bytes).is_err());
        assert!(same.is_free(Extent { position: 70, count: 30 }));
        assert!(!same.is_free(Extent { position: 70, count: 31 }));
        assert!(!same.is_free(Extent { position: 69, count: 2 }));
    }

    #[test]
    fn growth_keeps_what_is_used() {
        let mut bitmap = Bitmap::new(3);
        assert_eq!(bitmap.allocate(8).unwrap(), Extent { position: 0, count: 3 });
        assert_eq!(bitmap.allocate(8), None);
        bitmap.grow(PAGE_BLOCKS * 2 + 1);
        assert_eq!(bitmap.counts().1, PAGE_BLOCKS * 2 - 2);
        assert_eq!(bitmap.allocate(8).unwrap(), Extent { position: 3, count: 8 });
    }
}
