//! Objects: the inodes and symbolic-link targets that one generation changed.
//! Owns: one slot per object, whole, partly known, or gone.
//! Never: looks below its own generation.
//! Invariant: a slot that is only touched has the touched fields right and no others.
//! Source: ARCHITECTURE.md.

use crate::effect::{DirTouch, FileTouch};
use crate::hash::{Index, Seed};
use crate::inode::Inode;
use crate::request::FileType;

/// How much of an inode a slot knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// The fields of [`DirTouch`].
    DirTouch,
    /// The fields of [`FileTouch`].
    FileTouch,
    /// That the object is gone; the value is its last one, if `kind_known`.
    Gone {
        /// Whether the value's kind is the object's.
        kind_known: bool,
    },
}

/// One object that changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObjectSlot {
    pub ino: u64,
    pub op: u64,
    pub value: Inode,
    pub extent: Extent,
    target_at: u32,
    target_len: u16,
    has_target: bool,
}

/// The inodes that one generation changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    slots: Vec<ObjectSlot>,
    index: Index,
    targets: Vec<u8>,
}

pub(crate) fn touch_dir(value: &mut Inode, touch: &DirTouch) {
    value.mtime = touch.mtime;
    value.ctime = touch.ctime;
    value.nlink = touch.nlink;
    value.next_cookie = touch.next_cookie;
    value.entry_count = touch.entry_count;
}

pub(crate) fn touch_file(value: &mut Inode, touch: &FileTouch) {
    value.size = touch.size;
    value.used_blocks = touch.used_blocks;
    value.mtime = touch.mtime;
    value.ctime = touch.ctime;
    value.mode = touch.mode;
}

/// A value of which nothing is known yet but the kind.
pub(crate) fn blank(kind: FileType) -> Inode {
    let time = crate::request::Time::default();
    Inode {
        kind,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        size: 0,
        used_blocks: 0,
        device: (0, 0),
        generation: 0,
        atime: time,
        mtime: time,
        ctime: time,
        verifier: [0; 8],
        parent: 0,
        next_cookie: 0,
        entry_count: 0,
    }
}

impl ObjectSlot {
    /// The whole value, given the one below where the slot is only touched.
    pub fn over(&self, below: &Inode) -> Inode {
        let mut value = *below;
        match self.extent {
            Extent::Whole => return self.value,
            Extent::DirTouch => {
                value.mtime = self.value.mtime;
                value.ctime = self.value.ctime;
                value.nlink = self.value.nlink;
                value.next_cookie = self.value.next_cookie;
                value.entry_count = self.value.entry_count;
            }
            Extent::FileTouch => {
                value.size = self.value.size;
                value.used_blocks = self.value.used_blocks;
                value.mtime = self.value.mtime;
                value.ctime = self.value.ctime;
                value.mode = self.value.mode;
            }
            Extent::Gone { .. } => unreachable!("an object that is gone has no value"),
        }
        value
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.extent, Extent::Gone { .. })
    }

    /// Whether the object's kind is surely not `kind`.
    pub fn surely_not(&self, kind: FileType) -> bool {
        match self.extent {
            Extent::Gone { kind_known: false } => false,
            _ => self.value.kind != kind,
        }
    }
}

impl Objects {
    pub fn clear(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.targets.clear();
    }

    pub fn bytes_used(&self) -> usize {
        self.slots.len() * (size_of::<ObjectSlot>() + 8) + self.targets.len()
    }

    pub fn slots(&self) -> &[ObjectSlot] {
        &self.slots
    }

    #[inline]
    fn position(&self, hash: u64, ino: u64) -> Option<usize> {
        self.index.find(hash, |slot| self.slots[slot].ino == ino)
    }

    /// The object, if it changed here. `hash` is [`Seed::one`] of it.
    #[inline]
    pub fn find(&self, hash: u64, ino: u64) -> Option<&ObjectSlot> {
        self.position(hash, ino).map(|slot| &self.slots[slot])
    }

    #[inline]
    pub fn find_mut(&mut self, hash: u64, ino: u64) -> Option<&mut ObjectSlot> {
        self.position(hash, ino).map(|slot| &mut self.slots[slot])
    }

    /// Adds an object that has no slot here.
    pub fn add(&mut self, seed: Seed, ino: u64, op: u64, value: Inode, extent: Extent) {
        let slot = self.slots.len();
        self.slots.push(ObjectSlot {
            ino,
            op,
            value,
            extent,
            target_at: 0,
            target_len: 0,
            has_target: false,
        });
        let Objects { index, slots, .. } = self;
        index.insert(seed.one(ino), slot, |slot| seed.one(slots[slot].ino));
    }

    /// Sets the target of an object that has a slot here. False if it has none.
    #[must_use]
    pub fn set_target(&mut self, hash: u64, ino: u64, target: &[u8]) -> bool {
        let Some(slot) = self.position(hash, ino) else { return false };
        let at = u32::try_from(self.targets.len()).expect("targets of a generation fit 4 GiB");
        self.targets.extend_from_slice(target);
        let slot = &mut self.slots[slot];
        slot.target_at = at;
        slot.target_len = target.len() as u16;
        slot.has_target = true;
        true
    }

    /// The target that was set here.
    pub fn target(&self, slot: &ObjectSlot) -> Option<&[u8]> {
        let at = slot.target_at as usize;
        slot.has_target.then(|| &self.targets[at..at + usize::from(slot.target_len)])
    }
}
