//! Filter: which names a directory surely does not have.
//! Owns: per directory a growing Bloom filter of the names it ever had since it was made.
//! Never: says that a name is there; memory is bounded and a filter dropped only costs fetches.
//! Invariant: a complete filter has every name of the image and every name linked since.
//! Source: scalable Bloom filters (Almeida et al.), each name in one cache line per layer.

use std::collections::VecDeque;

use crate::clock::Clock;
use crate::hash::Seed;
use crate::need::Need;

/// A line: 512 bits, one cache line.
type Line = [u64; 8];
/// Names that a line takes; about 12 bits a name.
const NAMES_A_LINE: usize = 42;
/// Bytes a name takes at most, with the room of a layer just begun.
const BYTES_A_NAME: usize = 4;
/// Bits set for each name.
const BITS: u32 = 6;
/// Layers grow four times up to this many lines, then two times.
const STEEP_LINES: usize = 1536;
/// Directories waiting to have a filter built.
const WANTED_MAX: usize = 64;

/// The names of one directory.
#[derive(Clone, Debug)]
struct Filter {
    dir: u64,
    /// It has all names; else it is being filled from the image, up to `next`.
    complete: bool,
    /// The cookie above which names are still to be fetched.
    next: u64,
    /// Names in the newest layer.
    count: usize,
    first: Line,
    more: Vec<Box<[Line]>>,
}

/// Where a name's bits are, for every layer.
#[derive(Clone, Copy)]
struct Spot {
    place: u64,
    bits: Line,
}

impl Spot {
    #[inline]
    fn of(hash: u64) -> Spot {
        let mut rest = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        rest ^= rest >> 29;
        let mut bits = [0; 8];
        for _ in 0..BITS {
            bits[(rest >> 6 & 7) as usize] |= 1 << (rest & 63);
            rest >>= 9;
        }
        Spot { place: hash >> 32, bits }
    }

    fn line(&self, lines: usize) -> usize {
        (self.place as usize * lines) >> 32
    }

    fn is_in(&self, line: &Line) -> bool {
        line.iter().zip(&self.bits).all(|(line, bits)| line & bits == *bits)
    }

    fn put_in(&self, line: &mut Line) {
        line.iter_mut().zip(&self.bits).for_each(|(line, bits)| *line |= bits);
    }
}

impl Filter {
    fn new(dir: u64, complete: bool) -> Filter {
        Filter { dir, complete, next: 0, count: 0, first: [0; 8], more: Vec::new() }
    }

    fn may_have(&self, spot: &Spot) -> bool {
        spot.is_in(&self.first)
            || self.more.iter().any(|layer| spot.is_in(&layer[spot.line(layer.len())]))
    }

    /// Adds a name; returns the bytes by which it grew.
    fn add(&mut self, hash: u64) -> usize {
        let spot = Spot::of(hash);
        if self.may_have(&spot) {
            return 0;
        }
        let lines = self.more.last().map_or(1, |layer| layer.len());
        let mut grown = 0;
        if self.count == lines * NAMES_A_LINE {
            let lines = if lines < STEEP_LINES { lines * 4 } else { lines * 2 };
            self.more.push(vec![[0; 8]; lines].into_boxed_slice());
            self.count = 0;
            grown = lines * size_of::<Line>();
        }
        self.count += 1;
        match self.more.last_mut() {
            None => spot.put_in(&mut self.first),
            Some(layer) => {
                let line = spot.line(layer.len());
                spot.put_in(&mut layer[line]);
            }
        }
        grown
    }

    fn bytes(&self) -> usize {
        size_of::<Filter>()
            + 32
            + self.more.iter().map(|layer| size_of_val(&**layer)).sum::<usize>()
    }
}

/// The filters of all directories that have one.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    seed: Seed,
    filters: Clock<Filter>,
    bytes: usize,
    bytes_max: usize,
    /// Directories whose next page of names is to be fetched.
    wanted: VecDeque<u64>,
}

impl Filters {
    pub fn new(seed: Seed, bytes_max: usize) -> Filters {
        let bytes_max = bytes_max.max(64 << 10);
        let limit = bytes_max / size_of::<Filter>();
        Filters { seed, filters: Clock::new(limit), bytes: 0, bytes_max, wanted: VecDeque::new() }
    }

    pub fn clear(&mut self) {
        self.filters.clear();
        self.bytes = 0;
        self.wanted.clear();
    }

    fn find(&self, dir: u64) -> Option<&Filter> {
        self.filters.find(self.seed.one(dir), |filter| filter.dir == dir)
    }

    /// Whether the name with this hash ([`Seed::name`]) is surely not in the directory.
    #[inline]
    pub fn surely_absent(&self, dir: u64, hash: u64) -> bool {
        self.find(dir).is_some_and(|filter| filter.complete && !filter.may_have(&Spot::of(hash)))
    }

    /// Whether the directory has a filter, complete or being built.
    fn has(&self, dir: u64) -> bool {
        self.find(dir).is_some()
    }

    /// Adds a name that was linked.
    #[inline]
    pub fn add(&mut self, dir: u64, hash: u64) {
        let mine = |filter: &Filter| filter.dir == dir;
        let Some(filter) = self.filters.find_mut(self.seed.one(dir), mine) else { return };
        let grown = filter.add(hash);
        if grown > 0 {
            self.bytes += grown;
            self.shrink();
        }
    }

    fn put(&mut self, filter: Filter) {
        let dir = filter.dir;
        self.bytes += filter.bytes();
        let old = self.filters.insert(self.seed.one(dir), filter, true, |other| other.dir == dir);
        self.bytes -= old.map_or(0, |old| old.bytes());
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(old) = self.filters.forget_one() else { return };
            self.bytes -= old.bytes();
        }
    }

    /// The directory is empty: its filter is complete from here on.
    pub fn start_empty(&mut self, dir: u64) {
        self.put(Filter::new(dir, true));
    }

    /// Starts a filter that pages of names will complete. The caller adds the names of the layers
    /// above the image. Does nothing if there is one already, too many are being built, or so
    /// many names would take more than half of the memory.
    pub fn start_building(&mut self, dir: u64, names: u64) -> bool {
        let too_big = names > (self.bytes_max / 2 / BYTES_A_NAME) as u64;
        if too_big || self.wanted.len() >= WANTED_MAX || self.has(dir) {
            return false;
        }
        self.put(Filter::new(dir, false));
        self.wanted.push_back(dir);
        true
    }

    /// The next page of names to be fetched.
    pub fn next_wanted(&mut self) -> Option<Need> {
        while let Some(dir) = self.wanted.pop_front() {
            if let Some(filter) = self.find(dir).filter(|filter| !filter.complete) {
                return Some(Need::Names { dir, after: filter.next });
            }
        }
        None
    }

    /// Adds a page of names that begins above cookie `after`; `last` is its highest cookie, `None`
    /// if the directory ends with it.
    pub fn add_page(
        &mut self,
        dir: u64,
        after: u64,
        hashes: impl Iterator<Item = u64>,
        last: Option<u64>,
    ) {
        let mine = |filter: &Filter| filter.dir == dir;
        let Some(filter) = self.filters.find_mut(self.seed.one(dir), mine) else { return };
        if filter.complete || filter.next != after {
            return;
        }
        self.bytes += hashes.map(|hash| filter.add(hash)).sum::<usize>();
        match last {
            Some(last) => {
                filter.next = last;
                self.wanted.push_back(dir);
            }
            None => filter.complete = true,
        }
        self.shrink();
    }

    /// A page of names came from an image too old to be of use: it is wanted again.
    pub fn want_again(&mut self, dir: u64) {
        if self.find(dir).is_some_and(|filter| !filter.complete) {
            self.wanted.push_back(dir);
        }
    }

    /// The directory is gone.
    pub fn remove(&mut self, dir: u64) {
        let old = self.filters.remove(self.seed.one(dir), |filter| filter.dir == dir);
        self.bytes -= old.map_or(0, |old| old.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed(11);

    fn hash(dir: u64, number: u64) -> u64 {
        SEED.name(dir, format!("file-{number:08}").as_bytes())
    }

    #[test]
    fn a_filter_never_denies_a_name_it_has_and_rarely_allows_one_it_has_not() {
        let mut filters = Filters::new(SEED, 64 << 20);
        filters.start_empty(7);
        for number in 0..200_000 {
            filters.add(7, hash(7, number));
        }
        assert!((0..200_000).all(|number| !filters.surely_absent(7, hash(7, number))));
        let wrong = (200_000..300_000).filter(|n| !filters.surely_absent(7, hash(7, *n))).count();
        assert!(wrong < 5_000, "{wrong} of 100,000 strangers look like members");
        let bits = filters.bytes * 8 / 200_000;
        assert!(bits < 40, "{bits} bits a name");
    }

    #[test]
    fn a_filter_being_built_proves_nothing_until_its_last_page_is_in() {
        let mut filters = Filters::new(SEED, 1 << 20);
        assert!(filters.start_building(3, 2) && !filters.start_building(3, 2));
        assert_eq!(filters.next_wanted(), Some(Need::Names { dir: 3, after: 0 }));
        filters.add_page(3, 0, [hash(3, 1)].into_iter(), Some(3));
        assert!(!filters.surely_absent(3, hash(3, 9)));
        filters.add(3, hash(3, 5));
        assert_eq!(filters.next_wanted(), Some(Need::Names { dir: 3, after: 3 }));
        filters.want_again(3);
        assert_eq!(filters.next_wanted(), Some(Need::Names { dir: 3, after: 3 }));
        filters.add_page(3, 0, [].into_iter(), None);
        assert!(!filters.surely_absent(3, hash(3, 9)), "a page out of turn is ignored");
        filters.add_page(3, 3, [hash(3, 2)].into_iter(), None);
        assert!(filters.surely_absent(3, hash(3, 9)));
        for number in [1, 2, 5] {
            assert!(!filters.surely_absent(3, hash(3, number)));
        }
        assert_eq!(filters.next_wanted(), None);
    }

    #[test]
    fn memory_stays_bounded_and_is_given_back() {
        let mut filters = Filters::new(SEED, 100 << 10);
        for dir in 0..10_000 {
            filters.start_empty(dir);
            filters.add(dir, hash(dir, 1));
        }
        for number in 0..500_000 {
            filters.add(9_999, hash(9_999, number));
        }
        assert!(filters.bytes <= 100 << 10);
        (0..10_000).for_each(|dir| filters.remove(dir));
        assert_eq!(filters.bytes, 0);
    }
}
