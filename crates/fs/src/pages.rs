//! Pages: stretches of directories as the image has them, in the order of cookies.
//! Owns: a bounded number of pages, each complete between its first and last cookie.
//! Never: knows what changed since; the shadow merges.
//! Invariant: a directory's pages go when a checkpoint that changed it leaves memory.
//! Source: ARCHITECTURE.md.

use std::collections::{BTreeMap, VecDeque};

use crate::inode::Entry;
use crate::need::Page;

/// The pages of all directories.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// (directory, the cookie above which the page begins) -> page.
    pages: BTreeMap<(u64, u64), Page>,
    /// The pages in the order in which they came; some may be gone or there twice.
    order: VecDeque<(u64, u64)>,
    bytes: usize,
    bytes_max: usize,
}

fn bytes_of(page: &Page) -> usize {
    128 + page.names.capacity() + page.entries.capacity() * size_of::<(Entry, u32)>()
}

impl Pages {
    pub fn new(bytes_max: usize) -> Pages {
        // A page of the longest names must fit, and its successor.
        let bytes_max = bytes_max.max(4 << 20);
        Pages { pages: BTreeMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub fn clear(&mut self) {
        self.pages.clear();
        self.order.clear();
        self.bytes = 0;
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
