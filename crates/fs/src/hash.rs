//! Hash: one fast keyed hash for every table of the shadow.
//! Owns: the mixing function and nothing else.
//! Never: decides an order that anyone can see; results depend on no hash.
//! Invariant: without the seed a client cannot choose names that collide.
//! Source: multiply two words and fold the halves of the product, as wyhash does.

use hashbrown::HashTable;

const ODD_A: u64 = 0x9e37_79b9_7f4a_7c15;
const ODD_B: u64 = 0xd6e8_feb8_6659_fd93;
const ODD_C: u64 = 0xa076_1d64_78bd_642f;

/// The product's halves folded together.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The secret that keys all hashes of one shadow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(pub u64);

impl Seed {
    /// Hash of one number.
    #[inline]
    pub fn one(self, number: u64) -> u64 {
        fold(fold(self.0 ^ ODD_B, number ^ ODD_A), ODD_C)
    }

    /// Hash of two numbers.
    #[inline]
    pub fn two(self, a: u64, b: u64) -> u64 {
        fold(fold(self.0 ^ ODD_B, a ^ ODD_A) ^ b, ODD_C)
    }

    /// Hash of a name in a directory.
    #[inline]
    pub fn name(self, dir: u64, name: &[u8]) -> u64 {
        let mut hash = fold(self.0 ^ ODD_B, dir ^ ODD_A);
        let (words, tail) = name.as_chunks::<8>();
        for word in words {
            hash = fold(hash ^ u64::from_le_bytes(*word), ODD_C);
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        // A tail has at most seven bytes: the eighth tells lengths apart.
        last[7] = name.len() as u8;
        fold(fold(hash ^ u64::from_le_bytes(last), ODD_A), ODD_C)
    }
}

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// An index from hashes to slots of a vector that keeps each slot's hash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index(HashTable<u32>);

impl Index {
    /// The slot with this hash for which `is` holds.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(usize) -> bool) -> Option<usize> {
        self.0.find(hash, |slot| is(*slot as usize)).map(|slot| *slot as usize)
    }

    /// Adds a slot that is not there; `hash_of` gives the hash of any slot already in it.
    #[inline]
    pub fn insert(&mut self, hash: u64, slot: usize, hash_of: impl Fn(usize) -> u64) {
        let slot = u32::try_from(slot).ok().filter(|slot| *slot != NONE).expect("fewer than 2^32");
        self.0.insert_unique(hash, slot, |slot| hash_of(*slot as usize));
    }

    /// Makes the entry for `old` lead to `new`.
    #[inline]
    pub fn replace(&mut self, hash: u64, old: usize, new: usize) {
        let entry = self.0.find_mut(hash, |slot| *slot as usize == old);
        *entry.expect("the old slot is indexed") = new as u32;
    }

    /// Removes a slot that is there.
    pub fn remove(&mut self, hash: u64, slot: usize) {
        let entry = self.0.find_entry(hash, |found| *found as usize == slot);
        entry.expect("the slot is indexed").remove();
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn similar_names_and_numbers_spread() {
        let seed = Seed(42);
        let mut low = HashSet::new();
        let mut high = HashSet::new();
        for number in 0..4096_u64 {
            let hash = seed.name(1, format!("f{number}").as_bytes());
            low.insert(hash & 0xffff);
            high.insert(seed.one(number) >> 48);
        }
        // Of 4096 in 65536 places, 3,970 are expected to stand alone.
        assert!(low.len() > 3900 && high.len() > 3900, "{} {}", low.len(), high.len());
    }

    #[test]
    fn zero_bytes_at_the_end_and_the_seed_count() {
        let seed = Seed(1);
        assert_ne!(seed.name(1, b"a"), seed.name(1, b"a\0"));
        assert_ne!(seed.name(1, b"12345678"), seed.name(1, b"12345678\0"));
        assert_ne!(seed.name(1, b"a"), Seed(2).name(1, b"a"));
        assert_ne!(seed.two(1, 2), seed.two(2, 1));
    }
}
