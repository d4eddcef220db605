//! Listing: a directory's entries in the order of cookies, merged over layers and pages.
//! Owns: the merge.
//! Never: shows an entry that a newer layer unlinked, or one twice.
//! Invariant: an entry of a layer is hidden exactly if a newer layer knows its name.
//! Source: RFC 1813, section 3.3.16; cookies are stable, so a listing goes on under change.

use crate::generation::Generation;
use crate::hash::Seed;
use crate::inode::{Entry, Known};
use crate::names::{Cursor, DirSlot};
use crate::need::{LISTING_ENTRIES_MAX, Need, Page};
use crate::pages::Pages;
use crate::shadow::Shadow;

/// Entries fetched at least for a listing.
const PAGE_ENTRIES_MIN: u32 = 512;

/// A layer's place in the directory, and the entry there.
struct Head<'a> {
    layer: &'a Generation,
    dir: &'a DirSlot,
    cursor: Cursor,
    next: Option<(Entry, &'a [u8])>,
}

/// The image's place in the directory.
enum BaseHead<'a> {
    /// At this entry of a page.
    At(&'a Page, usize),
    /// Nothing is left, or nothing of the directory is in the image.
    End,
    /// The page with entries above this cookie is not in memory.
    Missing(u64),
}

/// A merge under way; layers are in order, newest first.
struct Merge<'a> {
    seed: Seed,
    dir: u64,
    heads: Vec<Head<'a>>,
    base: BaseHead<'a>,
    /// The cookie of the last entry of the image that was passed over as hidden.
    passed: u64,
    pages: &'a Pages,
}

impl<'a> Merge<'a> {
    /// Whether one of the `newer` newest layers knows the name.
    fn hidden(&self, newer: usize, hash: u64, name: &[u8]) -> bool {
        self.heads[..newer].iter().any(|head| head.layer.names.find(hash, self.dir, name).is_some())
    }

    /// Finds the next entry of a layer that is not hidden.
    fn settle(&mut self, number: usize) {
        loop {
            let head = &mut self.heads[number];
            let names = &head.layer.names;
            let Some(slot) = names.peek(head.dir, &mut head.cursor) else {
                head.next = None;
                return;
            };
            let name = names.name(slot);
            head.next = Some((slot.entry, name));
            if !self.hidden(number, slot.hash, name) {
                return;
            }
            self.pass(number);
        }
    }

    fn pass(&mut self, number: usize) {
        let head = &mut self.heads[number];
        head.layer.names.advance(&mut head.cursor);
    }

    /// Finds the next entry of the image that is not hidden.
    fn settle_base(&mut self) {
        while let BaseHead::At(page, at) = self.base {
            if at == page.entries.len() {
                if page.end {
                    self.base = BaseHead::End;
                    return;
                }
                let last = page.entries.last().map_or(u64::MAX, |(entry, _)| entry.cookie);
                self.base = self.base_after(last);
                continue;
            }
            let name = page.name(at);
            if self.heads.is_empty()
                || !self.hidden(self.heads.len(), self.seed.name(self.dir, name), name)
            {
                return;
            }
            self.passed = page.entries[at].0.cookie;
            self.base = BaseHead::At(page, at + 1);
        }
    }

    fn base_after(&self, cookie: u64) -> BaseHead<'a> {
        match self.pages.find(self.dir, cookie) {
            Some((page, at)) => BaseHead::At(page, at),
            None => BaseHead::Missing(cookie),
        }
    }

    /// The next entry of all, taken off its layer; `Ok(None)` at the end; `Err` with the cookie
    /// above which a page is missing.
    fn next(&mut self) -> Result<Option<(Entry, &'a [u8])>, u64> {
        let mut best: Option<(usize, (Entry, &'a [u8]))> = None;
        for (number, head) in self.heads.iter().enumerate() {
            if let Some(next) = head.next
                && best.is_none_or(|(_, (entry, _))| next.0.cookie < entry.cookie)
            {
                best = Some((number, next));
            }
        }
        match self.base {
            BaseHead::Missing(cookie) => return Err(cookie),
            BaseHead::At(page, at) => {
                let entry = page.entries[at].0;
                if best.is_none_or(|(_, (other, _))| entry.cookie < other.cookie) {
                    self.base = BaseHead::At(page, at + 1);
                    self.settle_base();
                    return Ok(Some((entry, page.name(at))));
                }
            }
            BaseHead::End => {}
        }
        if let Some((number, _)) = best {
            self.pass(number);
            self.settle(number);
        }
        Ok(best.map(|(_, next)| next))
    }
}

/// What came of a merge.
struct Merged {
    /// Whether the directory's end was reached, or the cookie above which a page is missing.
    result: Result<bool, u64>,
    /// The highest op that it depends on.
    op: u64,
    /// Between the beginning and this cookie the image has nothing to show.
    passed: u64,
}

impl Shadow {
    /// Shows entries of `dir` with cookies above `after`, ascending, at most `limit`, until `show`
    /// returns false (that entry counts as shown). The result says whether the directory's end
    /// was reached; it may be false early, after at least one entry, where a page is missing.
    /// `Unknown`: nothing was shown and a page must be fetched, [`Shadow::listing_need`] says
    /// which.
    pub fn list(
        &mut self,
        dir: u64,
        after: u64,
        limit: usize,
        show: &mut dyn FnMut(&Entry, &[u8]) -> bool,
    ) -> Known<bool> {
        assert!(limit > 0, "a listing of no entries");
        let Merged { result, op, passed } = self.merge(dir, after, limit, show);
        self.clean.pages.note_gone(dir, after, passed);
        self.listing_need = None;
        match result {
            Ok(end) => Known::Is(end, op),
            Err(lacking) => {
                let limit = u32::try_from(limit).unwrap_or(LISTING_ENTRIES_MAX);
                let limit = limit.clamp(PAGE_ENTRIES_MIN, LISTING_ENTRIES_MAX);
                // Past a page of which nothing was shown: the next may be like it.
                let limit = if lacking == after { limit } else { LISTING_ENTRIES_MAX };
                self.listing_need = Some(Need::Listing { dir, after: lacking, limit });
                Known::Unknown
            }
        }
    }

    /// The page that the last [`Shadow::list`] lacked.
    pub fn listing_need(&self) -> Option<Need> {
        self.listing_need.clone()
    }

    fn merge(
        &self,
        dir: u64,
        after: u64,
        limit: usize,
        show: &mut dyn FnMut(&Entry, &[u8]) -> bool,
    ) -> Merged {
        let mut op = 0;
        let mut born = false;
        let mut heads = Vec::with_capacity(3);
        for layer in self.layers().into_iter().flatten() {
            if let Some(slot) = layer.names.dir(self.seed, dir) {
                op = op.max(slot.op);
                born |= slot.born;
                let cursor = layer.names.seek(slot, after);
                heads.push(Head { layer, dir: slot, cursor, next: None });
            }
        }
        let (seed, pages) = (self.seed, &self.clean.pages);
        let begin = pages.past_gone(dir, after);
        let mut merge = Merge { seed, dir, heads, base: BaseHead::End, passed: begin, pages };
        (0..merge.heads.len()).for_each(|number| merge.settle(number));
        if !born {
            merge.base = merge.base_after(begin);
            merge.settle_base();
        }
        let passed = merge.passed;
        let merged = |result| Merged { result, op, passed };
        for shown in 0.. {
            let (entry, name) = match merge.next() {
                Ok(None) => return merged(Ok(true)),
                Ok(Some(next)) if shown < limit => next,
                Err(after) if shown == 0 => return merged(Err(after)),
                Ok(Some(_)) | Err(_) => return merged(Ok(false)),
            };
            if !show(&entry, name) {
                return merged(Ok(false));
            }
        }
        unreachable!("the loop ends by returning")
    }
}
