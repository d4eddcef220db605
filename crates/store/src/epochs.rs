//! Epochs: who may still read the blocks that commits freed.
//! Owns: the count of readers per epoch, and freed blocks until their readers have ended.
//! Never: frees a block itself.
//! Invariant: a block freed by the commit that began epoch e is handed back only when no reader
//! of an epoch before e is left.
//! Source: epoch-based reclamation; docs/disk-format.md.

use crate::Extent;
use std::collections::{BTreeMap, VecDeque};

/// Counts commits within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Epoch(u64);

/// Readers and what waits for them.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    now: Epoch,
    readers: BTreeMap<Epoch, u64>,
    /// Freed by the commit that began the epoch; ascending.
    waiting: VecDeque<(Epoch, Vec<Extent>)>,
}

impl Epochs {
    /// A reader begins; its snapshot is taken after this.
    pub fn enter(&mut self) -> Epoch {
        *self.readers.entry(self.now).or_default() += 1;
        self.now
    }

    /// A reader ended.
    pub fn leave(&mut self, epoch: Epoch) {
        let readers = self.readers.get_mut(&epoch).expect("a reader leaves once");
        *readers -= 1;
        if *readers == 0 {
            self.readers.remove(&epoch);
        }
    }

    /// A commit is durable that freed these extents: a new epoch begins.
    pub fn committed(&mut self, freed: Vec<Extent>) {
        self.now.0 += 1;
        if !freed.is_empty() {
            self.waiting.push_back((self.now, freed));
        }
    }

    /// Extents nobody can read any more, a commit's worth at a time.
    pub fn take_unread(&mut self) -> Option<Vec<Extent>> {
        let oldest = self.readers.keys().next().copied().unwrap_or(self.now);
        let (epoch, _) = self.waiting.front()?;
        if *epoch > oldest {
            return None;
        }
        let (_, freed) = self.waiting.pop_front()?;
        Some(freed)
    }

    /// Readers alive.
    pub fn readers(&self) -> u64 {
        self.readers.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_blocks_wait_for_older_readers_only() {
        let mut epochs = Epochs::default();
        let old = epochs.enter();
        let extent = Extent { position: 1, count: 2 };
        epochs.committed(vec![extent]);
        let new = epochs.enter();
        assert_eq!(epochs.take_unread(), None);
        epochs.leave(old);
        assert_eq!(epochs.take_unread(), Some(vec![extent]));
        assert_eq!(epochs.take_unread(), None);
        epochs.leave(new);
        assert_eq!(epochs.readers(), 0);
        epochs.committed(vec![extent]);
        assert_eq!(epochs.take_unread(), Some(vec![extent]));
    }
}
