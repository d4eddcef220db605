//! Pages: stretches of directories as the image has them, in the order of cookies.
//! Owns: a bounded number of pages, each complete between its first and last cookie; a few stretches
//! that nothing is left of.
//! Never: knows what changed since; the shadow merges.
//! Invariant: a directory's pages go when a checkpoint that changed it leaves memory.
//! Source: ARCHITECTURE.md.

use std::collections::{BTreeMap, VecDeque};

use crate::inode::Entry;
use crate::need::Page;

/// Stretches remembered that nothing is left of.
const GONE_MAX: usize = 16;
/// A stretch of fewer cookies is not worth remembering.
const GONE_COOKIES_MIN: u64 = 512;

/// A stretch of the image that newer layers hide as a whole. It stays so: cookies are never used
/// again, and those of the image are below those of every entry that is not in it yet.
#[derive(Clone, Debug)]
struct Gone {
    dir: u64,
    /// Above this cookie,
    after: u64,
    /// up to this one.
    until: u64,
}

/// The pages of all directories.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// (directory, the cookie above which the page begins) -> page.
    pages: BTreeMap<(u64, u64), Page>,
    /// The pages in the order in which they came; some may be gone or there twice.
    order: VecDeque<(u64, u64)>,
    bytes: usize,
    bytes_max: usize,
    /// The oldest first.
    gone: VecDeque<Gone>,
}

fn bytes_of(page: &Page) -> usize {
    128 + page.names.capacity() + page.entries.capacity() * size_of::<(Entry, u32)>()
}

impl Pages {
    pub fn new(bytes_max: usize) -> Pages {
        // A page of the longest names must fit, and its successor.
        let bytes_max = bytes_max.max(4 << 20);
        let (pages, order, gone) = Default::default();
        Pages { pages, order, bytes: 0, bytes_max, gone }
    }

    pub fn clear(&mut self) {
        self.pages.clear();
        self.order.clear();
        self.bytes = 0;
        self.gone.clear();
    }

    /// Takes note that newer layers hide all that the image has above `after` up to `until`. A
    /// listing that must fetch page after page to get past a removed front begins each time where
    /// it was, however few pages there is room for.
    pub fn note_gone(&mut self, dir: u64, after: u64, until: u64) {
        let same = |gone: &Gone| gone.dir == dir && (gone.after..=gone.until).contains(&after);
        if let Some(gone) = self.gone.iter_mut().find(|gone| same(gone)) {
            gone.until = gone.until.max(until);
        } else if until.saturating_sub(after) >= GONE_COOKIES_MIN {
            if self.gone.len() == GONE_MAX {
                self.gone.pop_front();
            }
            self.gone.push_back(Gone { dir, after, until });
        }
    }

    /// The cookie from which to go on instead of `after`: nothing is to be shown between.
    pub fn past_gone(&self, dir: u64, after: u64) -> u64 {
        let around = |gone: &&Gone| gone.dir == dir && (gone.after..gone.until).contains(&after);
        self.gone.iter().find(around).map_or(after, |gone| gone.until)
    }

    pub fn insert(&mut self, dir: u64, after: u64, page: Page) {
        self.bytes += bytes_of(&page);
        match self.pages.insert((dir, after), page) {
            Some(old) => self.bytes -= bytes_of(&old),
            None => self.order.push_back((dir, after)),
        }
        if self.order.len() > 2 * self.pages.len() + 64 {
            self.order = self.pages.keys().copied().collect();
        }
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            let Some(key) = self.order.pop_front() else { break };
            self.remove(key);
        }
    }

    fn remove(&mut self, key: (u64, u64)) {
        if let Some(page) = self.pages.remove(&key) {
            self.bytes -= bytes_of(&page);
        }
    }

    /// The page that has the entry after cookie `after`, or knows that there is none; and the
    /// index of that entry.
    pub fn find(&self, dir: u64, after: u64) -> Option<(&Page, usize)> {
        let ((found, _), page) = self.pages.range(..=(dir, after)).next_back()?;
        if *found != dir {
            return None;
        }
        let at = page.entries.partition_point(|(entry, _)| entry.cookie <= after);
        (at < page.entries.len() || page.end).then_some((page, at))
    }

    /// Forgets a directory's pages.
    pub fn remove_dir(&mut self, dir: u64) {
        self.gone.retain(|gone| gone.dir != dir);
        while let Some((key, _)) = self.pages.range((dir, 0)..=(dir, u64::MAX)).next() {
            let key = *key;
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FileType;

    fn page(cookies: std::ops::Range<u64>, end: bool) -> Page {
        let mut page = Page { end, ..Page::default() };
        for cookie in cookies {
            page.names.extend_from_slice(b"name");
            let entry = Entry { ino: cookie, cookie, kind: FileType::Regular };
            page.entries.push((entry, page.names.len() as u32));
        }
        page
    }

    #[test]
    fn a_place_in_the_middle_of_a_page_is_found_and_one_beyond_it_is_not() {
        let mut pages = Pages::new(0);
        pages.insert(1, 0, page(3..10, false));
        pages.insert(1, 9, page(10..20, true));
        pages.insert(2, 5, page(6..8, false));
        let place = |dir, after| pages.find(dir, after).map(|(page, at)| page.entries.get(at));
        assert_eq!(place(1, 0).unwrap().unwrap().0.cookie, 3);
        assert_eq!(place(1, 5).unwrap().unwrap().0.cookie, 6);
        assert_eq!(place(1, 9).unwrap().unwrap().0.cookie, 10);
        assert_eq!(place(1, 25).unwrap(), None);
        assert!(place(2, 0).is_none() && place(2, 7).is_none() && place(3, 0).is_none());
    }

    #[test]
    fn stretches_of_which_nothing_is_left_are_passed_over_and_grow() {
        let mut pages = Pages::new(0);
        pages.note_gone(1, 2, 5);
        assert_eq!(pages.past_gone(1, 2), 2, "a few entries are soon passed");
        pages.note_gone(1, 100, 5000);
        pages.note_gone(1, 5000, 5001);
        let places = [(1, 99, 99), (1, 100, 5001), (1, 5000, 5001), (1, 5001, 5001), (2, 100, 100)];
        for (dir, after, on) in places {
            assert_eq!(pages.past_gone(dir, after), on, "directory {dir} after {after}");
        }
        for dir in 2..=GONE_MAX as u64 {
            pages.note_gone(dir, 0, 1000);
        }
        assert_eq!(pages.past_gone(1, 100), 5001);
        pages.note_gone(77, 0, 1000);
        assert_eq!(pages.past_gone(1, 100), 100, "the oldest makes room");
        pages.remove_dir(77);
        assert_eq!(pages.past_gone(77, 0), 0);
    }

    #[test]
    fn pages_are_bounded_and_go_with_their_directory() {
        let mut pages = Pages::new(0);
        for dir in 0..4000 {
            pages.insert(dir, 0, page(3..100, true));
        }
        assert!(pages.bytes <= pages.bytes_max && pages.find(3999, 0).is_some());
        assert!(pages.find(0, 0).is_none());
        (0..4000).for_each(|dir| pages.remove_dir(dir));
        assert_eq!((pages.bytes, pages.pages.len()), (0, 0));
        pages.insert(1, 0, page(3..4, true));
        assert!(pages.order.len() < 70);
    }
}
