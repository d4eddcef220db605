//! Clock: a bounded table that forgets what was not used since its hand last came by.
//! Owns: values by hash, in a fixed number of places.
//! Never: allocates once it is full.
//! Invariant: the index leads to exactly the places that are taken.
//! Source: Corbato's CLOCK: one bit a place, no lists to move on every hit.

use std::cell::Cell;

use crate::hash::Index;

#[derive(Clone, Debug)]
struct Place<V> {
    hash: u64,
    value: Option<V>,
    /// Used since the hand came by.
    seen: Cell<bool>,
}

/// A bounded table of values, findable by a hash and a test.
#[derive(Clone, Debug)]
pub(crate) struct Clock<V> {
    places: Vec<Place<V>>,
    index: Index,
    free: Vec<u32>,
    hand: usize,
    limit: usize,
}

impl<V> Clock<V> {
    /// A table of at most `limit` values, at least 1.
    pub fn new(limit: usize) -> Clock<V> {
        assert!((1..1 << 31).contains(&limit), "a cache of {limit} places");
        Clock { places: Vec::new(), index: Index::default(), free: Vec::new(), hand: 0, limit }
    }

    pub fn clear(&mut self) {
        self.places.clear();
        self.index.clear();
        self.free.clear();
        self.hand = 0;
    }

    #[inline]
    fn position(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<usize> {
        self.index.find(hash, |place| {
            let place = &self.places[place];
            place.hash == hash && place.value.as_ref().is_some_and(&is)
        })
    }

    /// The value, which counts as used.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(&V) -> bool) -> Option<&V> {
        let place = &self.places[self.position(hash, is)?];
        place.seen.set(true);
        place.value.as_ref()
    }

    /// The value to be changed, which does not count as used by that.
    #[inline]
    pub fn find_mut(&mut self, hash: u64, is: impl Fn(&V) -> bool) -> Option<&mut V> {
        let place = self.position(hash, is)?;
        self.places[place].value.as_mut()
    }

    /// Puts a value in, `seen` as if it had been used; returns the one it replaces, of the same
    /// key or one forgotten for it.
    pub fn insert(
        &mut self,
        hash: u64,
        value: V,
        seen: bool,
        is: impl Fn(&V) -> bool,
    ) -> Option<V> {
        if let Some(place) = self.position(hash, is) {
            let place = &mut self.places[place];
            place.seen.set(seen || place.seen.get());
            return place.value.replace(value);
        }
        let (at, old) = self.make_place();
        let place = Place { hash, value: Some(value), seen: Cell::new(seen) };
        if at == self.places.len() {
            self.places.push(place);
        } else {
            self.places[at] = place;
        }
        let Clock { index, places, .. } = self;
        index.insert(hash, at, |place| places[place].hash);
        old
    }

    /// A place that is not taken, and the value that had it.
    fn make_place(&mut self) -> (usize, Option<V>) {
        if let Some(place) = self.free.pop() {
            return (place as usize, None);
        }
        if self.places.len() < self.limit {
            return (self.places.len(), None);
        }
        let (place, value) = self.evict().expect("a full table has something to forget");
        (place, Some(value))
    }

    /// Takes out the value that the hand finds unused. The place is the caller's.
    fn evict(&mut self) -> Option<(usize, V)> {
        // Every place is passed at most twice: once to clear its bit.
        for _ in 0..2 * self.places.len() {
            let at = self.hand;
            self.hand = if at + 1 == self.places.len() { 0 } else { at + 1 };
            let place = &mut self.places[at];
            if place.value.is_none() || place.seen.replace(false) {
                continue;
            }
            let value = place.value.take().expect("tested above");
            self.index.remove(self.places[at].hash, at);
            return Some((at, value));
        }
        None
    }

    /// Forgets one value that was not used lately; `None` if there is none at all.
    pub fn forget_one(&mut self) -> Option<V> {
        let (place, value) = self.evict()?;
        self.free.push(place as u32);
        Some(value)
    }

    /// Takes a value out.
    pub fn remove(&mut self, hash: u64, is: impl Fn(&V) -> bool) -> Option<V> {
        let place = self.position(hash, is)?;
        self.remove_at(place)
    }

    fn remove_at(&mut self, place: usize) -> Option<V> {
        let value = self.places[place].value.take()?;
        self.index.remove(self.places[place].hash, place);
        self.free.push(place as u32);
        Some(value)
    }

    /// Moves the values in places [`from`, `from` + `count`) for which `gone` holds to `taken`.
    /// Returns whether there are places beyond.
    pub fn sweep(
        &mut self,
        from: usize,
        count: usize,
        gone: impl Fn(&V) -> bool,
        taken: &mut Vec<V>,
    ) -> bool {
        let end = self.places.len().min(from.saturating_add(count));
        for place in from..end {
            if self.places[place].value.as_ref().is_some_and(&gone) {
                taken.extend(self.remove_at(place));
            }
        }
        end < self.places.len()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.places.iter().filter(|place| place.value.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(clock: &mut Clock<(u64, u64)>, key: u64, value: u64) -> Option<(u64, u64)> {
        clock.insert(key % 5, (key, value), false, |(other, _)| *other == key)
    }

    fn get(clock: &Clock<(u64, u64)>, key: u64) -> Option<u64> {
        clock.find(key % 5, |(other, _)| *other == key).map(|(_, value)| *value)
    }

    #[test]
    fn a_full_table_forgets_what_was_not_used() {
        let mut clock = Clock::new(8);
        for key in 0..8 {
            assert_eq!(put(&mut clock, key, key), None);
        }
        assert_eq!(get(&clock, 0), Some(0));
        assert_eq!(put(&mut clock, 8, 8), Some((1, 1)));
        assert_eq!((get(&clock, 0), get(&clock, 1), get(&clock, 8)), (Some(0), None, Some(8)));
        assert_eq!(clock.len(), 8);
    }

    #[test]
    fn a_place_given_up_is_taken_again_before_anything_is_forgotten() {
        let mut clock = Clock::new(4);
        for key in 0..4 {
            put(&mut clock, key, 0);
        }
        assert_eq!(clock.remove(2, |(key, _)| *key == 2), Some((2, 0)));
        assert!(clock.forget_one().is_some());
        assert_eq!(put(&mut clock, 10, 0), None);
        assert_eq!(put(&mut clock, 11, 0), None);
        assert!(put(&mut clock, 12, 0).is_some());
        assert_eq!(clock.len(), 4);
    }

    #[test]
    fn a_key_put_in_again_replaces_its_value() {
        let mut clock = Clock::new(4);
        put(&mut clock, 1, 1);
        assert_eq!(put(&mut clock, 1, 2), Some((1, 1)));
        assert_eq!((get(&clock, 1), clock.len()), (Some(2), 1));
    }

    #[test]
    fn a_sweep_takes_out_what_is_gone() {
        let mut clock = Clock::new(100);
        for key in 0..50 {
            put(&mut clock, key, key % 2);
        }
        let mut taken = Vec::new();
        assert!(clock.sweep(0, 20, |(_, odd)| *odd == 1, &mut taken));
        assert!(!clock.sweep(20, 30, |(_, odd)| *odd == 1, &mut taken));
        assert_eq!((clock.len(), taken.len()), (25, 25));
    }
}
