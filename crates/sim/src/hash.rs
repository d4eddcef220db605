//! Digests of bytes that only have to differ when the bytes do.
//! Owns: a fast 64-bit hash, the same on every machine.
//! Never: stands where an adversary could choose the bytes.

use crate::rng::mix;

/// A hash of `bytes`.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut running = Running(bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        running.add(u64::from_le_bytes(word.try_into().expect("eight bytes")));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    running.add(u64::from_le_bytes(last));
    mix(running.0)
}

/// A hash that grows with what happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running(pub u64);

impl Running {
    /// Takes in `word`.
    #[inline]
    pub fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_tell_order_and_length() {
        let all = [hash(b""), hash(b"\0"), hash(b"ab"), hash(b"ba"), hash(&[0; 8]), hash(&[0; 9])];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
