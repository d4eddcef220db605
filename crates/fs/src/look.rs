//! Look: what the shadow knows of inodes, names, targets and the counters.
//! Owns: the search from the newest layer down.
//! Never: changes state; a value put together from two layers may be kept for the next look.
//! Invariant: the first layer that knows an object wins; a touched one is completed from below.
//! Source: ARCHITECTURE.md.

use crate::generation::Generation;
use crate::inode::{Entry, Inode, Known, Super};
use crate::objects::Extent;
use crate::shadow::Shadow;

impl Shadow {
    /// The layers over the clean cache, newest first.
    #[inline]
    pub(crate) fn layers(&self) -> [Option<&Generation>; 3] {
        [Some(&self.active), self.frozen.as_deref(), self.retired.as_deref()]
    }

    /// An object's inode.
    pub fn inode(&mut self, ino: u64) -> Known<Inode> {
        let hash = self.seed.one(ino);
        let touched = match self.active.objects.find(hash, ino) {
            Some(slot) if slot.extent == Extent::Whole => return Known::Is(slot.value, slot.op),
            touched => touched.is_some(),
        };
        let known = self.look_inode(ino);
        if touched
            && let Known::Is(value, _) = known
            && let Some(slot) = self.active.objects.find_mut(hash, ino)
        {
            slot.value = value;
            slot.extent = Extent::Whole;
        }
        known
    }

    #[inline]
    pub(crate) fn look_inode(&self, ino: u64) -> Known<Inode> {
        let hash = self.seed.one(ino);
        let mut touched = None;
        for layer in self.layers().into_iter().flatten() {
            let Some(slot) = layer.objects.find(hash, ino) else { continue };
            match (slot.extent, touched) {
                (Extent::Whole, None) => return Known::Is(slot.value, slot.op),
                (Extent::Gone { .. }, _) => return Known::Absent(slot.op),
                (Extent::Whole, Some(_)) => return complete(touched, &slot.value, slot.op),
                (_, None) => touched = Some(slot),
                // Touches of one object set the same fields: the newest hides the older ones.
                (_, Some(_)) => {}
            }
        }
        match self.clean.inode(ino) {
            Some(Some(inode)) => complete(touched, inode, 0),
            Some(None) if touched.is_none() => Known::Absent(0),
            _ => Known::Unknown,
        }
    }

    /// What a name leads to; not for "." and "..".
    pub fn entry(&mut self, dir: u64, name: &[u8]) -> Known<Entry> {
        let hash = self.seed.name(dir, name);
        for layer in self.layers().into_iter().flatten() {
            if let Some(slot) = layer.names.find(hash, dir, name) {
                return match slot.fate {
                    crate::names::Fate::Linked => Known::Is(slot.entry, slot.op),
                    _ => Known::Absent(slot.op),
                };
            }
        }
        match self.clean.entry(hash, dir, name) {
            Some(Some(entry)) => return Known::Is(*entry, 0),
            Some(None) => return Known::Absent(0),
            None => {}
        }
        if self.filters.surely_absent(dir, hash) || self.is_born(dir) {
            return Known::Absent(0);
        }
        match self.look_inode(dir) {
            Known::Is(inode, op) if inode.entry_count == 0 => Known::Absent(op),
            Known::Absent(op) => Known::Absent(op),
            _ => Known::Unknown,
        }
    }

    /// Whether the directory was made in a generation that is still in memory.
    fn is_born(&self, dir: u64) -> bool {
        let born = |layer: &Generation| layer.names.dir(self.seed, dir).is_some_and(|dir| dir.born);
        self.layers().into_iter().flatten().any(born)
    }

    /// The counters of the whole.
    pub fn super_block(&self) -> Known<Super> {
        match self.counters {
            Some((counters, op)) => Known::Is(counters, op),
            None => Known::Unknown,
        }
    }

    /// A symbolic link's target.
    pub fn target(&mut self, ino: u64) -> Known<Vec<u8>> {
        let hash = self.seed.one(ino);
        for layer in self.layers().into_iter().flatten() {
            if let Some(slot) = layer.objects.find(hash, ino) {
                if slot.is_gone() {
                    return Known::Absent(slot.op);
                }
                if let Some(target) = layer.objects.target(slot) {
                    return Known::Is(target.to_vec(), slot.op);
                }
            }
        }
        match self.clean.target(ino) {
            Some(Some(target)) => Known::Is(target.to_vec(), 0),
            Some(None) => Known::Absent(0),
            None => Known::Unknown,
        }
    }
}

/// The value below with the newest touch, if there was one.
fn complete(touched: Option<&crate::objects::ObjectSlot>, below: &Inode, op: u64) -> Known<Inode> {
    match touched {
        Some(slot) => Known::Is(slot.over(below), slot.op),
        None => Known::Is(*below, op),
    }
}
