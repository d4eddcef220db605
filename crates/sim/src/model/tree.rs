//! The model's objects and what requests do to them.
//! Owns: inodes, entries, blocks; the outcome and effect of every modifying request.
//! Never: compares a reply; see the verdict.
//! Invariant: an object's number is never used again.
//! Source: RFC 1813, for a caller whom no permission stops.

use std::collections::HashSet;
use std::rc::Rc;

use harp_node::fs::request::{HandleBytes, Status, Time};

use super::versions::Versions;
use crate::intent::{How, Intent, fill};
use crate::names::Name;

/// An object, by number in order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u32);

/// The root directory.
pub const ROOT: Ino = Ino(0);

/// What requests on a removed object get.
pub const STALE: Status = Status::Stale;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// Blocks a file may have in the model; clients write no further.
pub const BLOCKS_MAX: u64 = 16;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// An object's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Permission bits; `None` where RFC 1813 leaves them to the server.
    pub mode: Option<u32>,
    /// Length of a file.
    pub size: u64,
    /// Number of names; 0 once removed.
    pub nlink: u32,
    /// The directory that holds a directory.
    pub parent: Ino,
    /// Times of modification and change, once a reply told them.
    pub times: Option<(Time, Time)>,
    /// The change time must not lie below this one.
    pub after: Option<Time>,
}

type BlockBytes = Option<Rc<[u8; BLOCK]>>;

/// An object with its past.
#[derive(Debug)]
pub(super) struct Inode {
    pub kind: Kind,
    pub attr: Versions<Attr>,
    /// A directory's entries, by name.
    pub entries: Vec<Versions<Option<Ino>>>,
    /// A file's blocks.
    pub blocks: Vec<Versions<BlockBytes>>,
    /// What an exclusive CREATE named it by.
    pub verifier: Option<u64>,
    /// Learned.
    pub handle: Option<HandleBytes>,
    /// Learned.
    pub fileid: Option<u64>,
}

/// What a request does to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Carries the request out; the object is the one it names or finds.
    Change(Ino),
}

/// A request's outcome against one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The status it gets. Where RFC 1813 allows several, the one with `or` is as good.
    pub status: Status,
    /// Another status that is as good.
    pub or: Option<Status>,
    /// What it does when the status is `Ok`.
    pub effect: Effect,
}

impl Plan {
    fn fails(status: Status) -> Plan {
        Plan { status, or: None, effect: Effect::Nothing }
    }

    fn changes(ino: Ino) -> Plan {
        Plan { status: Status::Ok, or: None, effect: Effect::Change(ino) }
    }

    fn nothing() -> Plan {
        Plan { status: Status::Ok, or: None, effect: Effect::Nothing }
    }
}

/// The model.
#[derive(Debug)]
pub struct Model {
    pub(super) inodes: Vec<Inode>,
    /// Newest op applied.
    pub op: u64,
    /// Nobody asks for a state below this op.
    pub floor: u64,
    /// The write verifier, once a reply told it.
    pub(super) write_verifier: Option<[u8; 8]>,
    /// Those before overrides, and the op up to which replies may still show them.
    pub(super) former_verifiers: (HashSet<[u8; 8]>, u64),
    /// Hashes of all handles, numbers of all objects: no two objects share one. Never iterated.
    pub(super) handles: HashSet<u64>,
    pub(super) fileids: HashSet<u64>,
    /// Whether what a fitting reply shows is taken in, and which states it may show.
    pub(super) learning: Option<(u64, u64)>,
    /// Whether a write may be refused for lack of space.
    pub may_run_out: bool,
    /// Whose everything is.
    pub owner: u32,
    /// Whether what needs a file's content may fail: blocks are damaged, and who has them may be away.
    pub may_lose_blocks: bool,
}

impl Default for Model {
    fn default() -> Model {
        let mut model = Model {
            inodes: Vec::new(),
            op: 0,
            floor: 0,
            write_verifier: None,
            former_verifiers: (HashSet::new(), 0),
            handles: HashSet::new(),
            fileids: HashSet::new(),
            learning: None,
            may_run_out: false,
            owner: 0,
            may_lose_blocks: false,
        };
        model.add(0, Kind::Directory, None, ROOT, None);
        model
    }
}

impl Model {
    fn add(
        &mut self,
        op: u64,
        kind: Kind,
        mode: Option<u32>,
        parent: Ino,
        verifier: Option<u64>,
    ) -> Ino {
        let directory = kind == Kind::Directory;
        let nlink = if directory { 2 } else { 1 };
        let attr = Attr { mode, size: 0, nlink, parent, times: None, after: None };
        let entries = if directory { vec![Versions::since(0, None); Name::COUNT] } else { vec![] };
        let attr = Versions::since(op, attr);
        let blocks = Vec::new();
        let (handle, fileid) = (None, None);
        self.inodes.push(Inode { kind, attr, entries, blocks, verifier, handle, fileid });
        Ino(self.inodes.len() as u32 - 1)
    }

    /// An operator's override kept what happened up to `op`: what came after it never did, and the write verifier
    /// changes for all that was not in the log up to `cut`.
    pub fn overridden(&mut self, op: u64, cut: u64) {
        self.op = self.op.min(op);
        self.floor = self.floor.min(op);
        self.former_verifiers.0.extend(self.write_verifier.take());
        self.former_verifiers.1 = cut;
        for inode in &mut self.inodes {
            for entry in &mut inode.entries {
                entry.cut(op);
            }
            for block in &mut inode.blocks {
                block.cut(op);
            }
            if !inode.attr.cut(op) {
                // It was made after that: its number is given out again, its handle is stale for ever.
                let gone = Attr { nlink: 0, ..*inode.attr.latest() };
                inode.attr = Versions::since(0, gone);
                inode.fileid.take().map(|fileid| self.fileids.remove(&fileid));
            }
        }
    }

    pub(super) fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino.0 as usize]
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        &mut self.inodes[ino.0 as usize]
    }

    /// What the object is.
    pub fn kind(&self, ino: Ino) -> Kind {
        self.inode(ino).kind
    }

    /// Its handle, once a reply told it.
    pub fn handle(&self, ino: Ino) -> Option<&[u8]> {
        self.inode(ino).handle.as_ref().map(|handle| handle.as_slice())
    }

    /// Its attributes right after `op`; `None` if it was not there or is gone.
    pub fn attr_at(&self, ino: Ino, op: u64) -> Option<&Attr> {
        self.inode(ino).attr.at(op).filter(|attr| attr.nlink > 0)
    }

    /// What `name` in `dir` stands for right after `op`.
    pub fn entry_at(&self, dir: Ino, name: Name, op: u64) -> Option<Ino> {
        *self.inode(dir).entries[name.index()].at(op)?
    }

    /// Numbers of all objects that exist now.
    pub fn live(&self) -> impl Iterator<Item = Ino> + '_ {
        let all = (0..self.inodes.len() as u32).map(Ino);
        all.filter(|ino| self.inode(*ino).attr.latest().nlink > 0)
    }

    /// The outcome of a modifying request against the state right after `at`.
    pub fn plan(&self, intent: &Intent, at: u64) -> Plan {
        let gone = |ino: Ino| self.attr_at(ino, at).is_none();
        match *intent {
            Intent::Write { ino, .. }
            | Intent::Truncate { ino, .. }
            | Intent::Chmod { ino, .. } => {
                if gone(ino) {
                    Plan::fails(STALE)
                } else {
                    Plan::changes(ino)
                }
            }
            Intent::Create { dir, .. } | Intent::MkDir { dir, .. } if gone(dir) => {
                Plan::fails(STALE)
            }
            Intent::Create { dir, name, how, .. } => self.plan_create(dir, name, how, at),
            Intent::MkDir { dir, name, .. } => match self.entry_at(dir, name, at) {
                Some(_) => Plan::fails(Status::Exist),
                None => Plan::changes(dir),
            },
            Intent::Remove { dir, name } | Intent::RmDir { dir, name } => {
                if gone(dir) {
                    return Plan::fails(STALE);
                }
                match self.entry_at(dir, name, at) {
                    None => Plan::fails(Status::NoEnt),
                    Some(ino) if self.has_entries(ino, at) => Plan::fails(Status::NotEmpty),
                    Some(ino) => Plan::changes(ino),
                }
            }
            Intent::Rename { from, to } => self.plan_rename(from, to, at),
            _ => Plan::nothing(),
        }
    }

    fn plan_create(&self, dir: Ino, name: Name, how: How, at: u64) -> Plan {
        let Some(there) = self.entry_at(dir, name, at) else { return Plan::changes(dir) };
        match how {
            How::Unchecked(Some(_)) => Plan::changes(there),
            How::Unchecked(None) => Plan::nothing(),
            How::Exclusive(verifier) if self.inode(there).verifier == Some(verifier) => {
                Plan::nothing()
            }
            How::Guarded | How::Exclusive(_) => Plan::fails(Status::Exist),
        }
    }

    fn plan_rename(&self, from: (Ino, Name), to: (Ino, Name), at: u64) -> Plan {
        if self.attr_at(from.0, at).is_none() || self.attr_at(to.0, at).is_none() {
            return Plan::fails(STALE);
        }
        let Some(moved) = self.entry_at(from.0, from.1, at) else {
            return Plan::fails(Status::NoEnt);
        };
        let target = self.entry_at(to.0, to.1, at);
        if target == Some(moved) {
            return Plan::nothing();
        }
        let full = target.is_some_and(|target| self.has_entries(target, at));
        let into_itself = self.kind(moved) == Kind::Directory && self.is_below(to.0, moved, at);
        match (into_itself, full) {
            (true, full) => {
                let or = full.then_some(Status::NotEmpty);
                Plan { or, ..Plan::fails(Status::Inval) }
            }
            (false, true) => Plan::fails(Status::NotEmpty),
            (false, false) => Plan::changes(moved),
        }
    }

    /// Whether `dir` is `top` or lies below it.
    fn is_below(&self, dir: Ino, top: Ino, at: u64) -> bool {
        let mut dir = dir;
        loop {
            if dir == top {
                return true;
            }
            if dir == ROOT {
                return false;
            }
            let Some(attr) = self.attr_at(dir, at) else { return false };
            dir = attr.parent;
        }
    }

    fn has_entries(&self, ino: Ino, at: u64) -> bool {
        self.inode(ino).entries.iter().any(|entry| matches!(entry.at(at), Some(Some(_))))
    }

    /// Carries `intent` out as `op`. Returns its outcome and the object it made, changed or found.
    pub fn apply(&mut self, op: u64, intent: &Intent) -> (Plan, Option<Ino>) {
        assert!(op > self.op, "the model goes forward");
        let plan = self.plan(intent, self.op);
        self.op = op;
        let Effect::Change(ino) = plan.effect else {
            let found = match *intent {
                Intent::Create { dir, name, .. } => self.entry_at(dir, name, op),
                _ => None,
            };
            return (plan, found);
        };
        let touched = match *intent {
            Intent::Write { offset, count, tag, .. } => {
                self.write(op, ino, offset, count, tag);
                ino
            }
            Intent::Truncate { size, .. } => {
                self.resize(op, ino, size);
                ino
            }
            Intent::Chmod { mode, .. } => {
                self.change(op, ino, |attr| attr.mode = Some(mode));
                ino
            }
            Intent::Create { dir, name, how, mode } => self.create(op, dir, name, how, mode),
            Intent::MkDir { dir, name, mode } => {
                let made = self.add(op, Kind::Directory, Some(mode), dir, None);
                self.bind(op, dir, name, Some(made));
                made
            }
            Intent::Remove { dir, name } | Intent::RmDir { dir, name } => {
                self.bind(op, dir, name, None);
                self.change(op, ino, |attr| attr.nlink = 0);
                ino
            }
            Intent::Rename { from, to } => self.rename(op, ino, from, to),
            _ => unreachable!("only modifying requests have effects"),
        };
        (plan, Some(touched))
    }

    fn create(&mut self, op: u64, dir: Ino, name: Name, how: How, mode: u32) -> Ino {
        let there = *self.inode(dir).entries[name.index()].latest();
        if let (Some(there), How::Unchecked(Some(size))) = (there, how) {
            self.resize(op, there, size);
            return there;
        }
        let (mode, verifier) = match how {
            How::Exclusive(verifier) => (None, Some(verifier)),
            _ => (Some(mode), None),
        };
        let made = self.add(op, Kind::File, mode, dir, verifier);
        self.bind(op, dir, name, Some(made));
        if let How::Unchecked(Some(size)) = how {
            self.resize(op, made, size);
        }
        made
    }

    fn rename(&mut self, op: u64, moved: Ino, from: (Ino, Name), to: (Ino, Name)) -> Ino {
        if let Some(target) = *self.inode(to.0).entries[to.1.index()].latest() {
            self.bind(op, to.0, to.1, None);
            self.change(op, target, |attr| attr.nlink = 0);
        }
        self.bind(op, from.0, from.1, None);
        self.change(op, moved, |attr| attr.parent = to.0);
        self.bind(op, to.0, to.1, Some(moved));
        moved
    }

    /// `name` in `dir` stands for `child` from `op` on, or for nothing. The child's kind is known.
    fn bind(&mut self, op: u64, dir: Ino, name: Name, child: Option<Ino>) {
        let floor = self.floor;
        let old = *self.inode(dir).entries[name.index()].latest();
        self.inode_mut(dir).entries[name.index()].set(op, child, floor);
        let directories = |ino: Option<Ino>| {
            ino.is_some_and(|ino| self.inode(ino).kind == Kind::Directory) as u32
        };
        let (less, more) = (directories(old), directories(child));
        self.change(op, dir, |attr| attr.nlink = attr.nlink + more - less);
    }

    /// Changes attributes at `op`; the new times are learned from replies.
    fn change(&mut self, op: u64, ino: Ino, how: impl FnOnce(&mut Attr)) {
        let floor = self.floor;
        let versions = &mut self.inode_mut(ino).attr;
        let mut attr = *versions.latest();
        attr.after = attr.times.map(|(_, changed)| changed).or(attr.after);
        attr.times = None;
        how(&mut attr);
        versions.set(op, attr, floor);
    }

    fn write(&mut self, op: u64, ino: Ino, offset: u64, count: u32, tag: u64) {
        let (end, block_bytes) = (offset + count as u64, BLOCK as u64);
        assert!(end <= BLOCKS_MAX * block_bytes, "clients write no further");
        let mut at = offset;
        while at < end {
            let block = at / block_bytes;
            let start = (at % block_bytes) as usize;
            let len = (end - at).min(block_bytes - start as u64) as usize;
            let mut bytes = self.block_to_change(ino, block);
            fill(tag, at, &mut bytes[start..start + len]);
            self.set_block(op, ino, block, Some(Rc::new(bytes)));
            at += len as u64;
        }
        self.change(op, ino, |attr| attr.size = attr.size.max(end));
    }

    fn resize(&mut self, op: u64, ino: Ino, size: u64) {
        let block_bytes = BLOCK as u64;
        assert!(size <= BLOCKS_MAX * block_bytes, "clients grow no further");
        let old = self.inode(ino).attr.latest().size;
        if size < old {
            let kept = size.div_ceil(block_bytes);
            for block in kept..self.inode(ino).blocks.len() as u64 {
                self.set_block(op, ino, block, None);
            }
            let cut = (size % block_bytes) as usize;
            let last = size / block_bytes;
            if cut > 0 && self.inode(ino).blocks.len() as u64 > last {
                let mut bytes = self.block_to_change(ino, last);
                bytes[cut..].fill(0);
                self.set_block(op, ino, last, Some(Rc::new(bytes)));
            }
        }
        self.change(op, ino, |attr| attr.size = size);
    }

    fn block_to_change(&self, ino: Ino, block: u64) -> [u8; BLOCK] {
        match self.inode(ino).blocks.get(block as usize).map(|versions| versions.latest()) {
            Some(Some(bytes)) => **bytes,
            _ => [0; BLOCK],
        }
    }

    fn set_block(&mut self, op: u64, ino: Ino, block: u64, bytes: BlockBytes) {
        let floor = self.floor;
        let blocks = &mut self.inode_mut(ino).blocks;
        while blocks.len() as u64 <= block {
            blocks.push(Versions::since(0, None));
        }
        blocks[block as usize].set(op, bytes, floor);
    }

    /// Whether the file's bytes from `offset` on, right after `op`, are exactly `bytes`.
    pub(super) fn bytes_equal(&self, ino: Ino, offset: u64, bytes: &[u8], op: u64) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = (at % BLOCK as u64) as usize;
            let len = (bytes.len() - done).min(BLOCK - start);
            let part = &bytes[done..done + len];
            let block = self.inode(ino).blocks.get((at / BLOCK as u64) as usize);
            let equal = match block.and_then(|versions| versions.at(op)) {
                Some(Some(block)) => block[start..start + len] == *part,
                _ => part.iter().all(|byte| *byte == 0),
            };
            if !equal {
                return false;
            }
            done += len;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: u8 = 0;

    fn create(how: How) -> Intent {
        Intent::Create { dir: ROOT, name: Name::file(F), how, mode: 0o644 }
    }

    #[test]
    fn creates_and_removes_follow_the_three_modes() {
        let mut model = Model::default();
        let (plan, made) = model.apply(1, &create(How::Exclusive(7)));
        assert_eq!(plan.status, Status::Ok);
        let made = made.unwrap();
        assert_eq!(model.plan(&create(How::Guarded), 1).status, Status::Exist);
        assert_eq!(model.plan(&create(How::Guarded), 0).status, Status::Ok);
        assert_eq!(model.plan(&create(How::Exclusive(7)), 1), Plan::nothing());
        assert_eq!(model.plan(&create(How::Exclusive(8)), 1).status, Status::Exist);
        model.apply(2, &Intent::Remove { dir: ROOT, name: Name::file(F) });
        assert_eq!(model.plan(&Intent::Chmod { ino: made, mode: 0 }, 2).status, STALE);
        assert_eq!(model.live().count(), 1);
    }

    #[test]
    fn a_file_cut_and_grown_again_shows_zeros_where_it_was_cut() {
        let mut model = Model::default();
        let ino = model.apply(1, &create(How::Guarded)).1.unwrap();
        model.apply(2, &Intent::Write { ino, offset: 0, count: 5000, tag: 3 });
        model.apply(3, &Intent::Truncate { ino, size: 10 });
        model.apply(4, &Intent::Truncate { ino, size: 5000 });
        let mut written = [0; 5000];
        fill(3, 0, &mut written);
        assert!(model.bytes_equal(ino, 0, &written, 2));
        assert!(model.bytes_equal(ino, 10, &[0; 4990], 4));
        assert!(model.bytes_equal(ino, 0, &written[..10], 4));
        assert_eq!(model.attr_at(ino, 3).unwrap().size, 10);
    }

    #[test]
    fn a_directory_is_not_moved_into_itself_nor_removed_with_entries() {
        let mut model = Model::default();
        let (d0, d1) = (Name::directory(0), Name::directory(1));
        let outer = model.apply(1, &Intent::MkDir { dir: ROOT, name: d0, mode: 0 }).1.unwrap();
        model.apply(2, &Intent::MkDir { dir: outer, name: d1, mode: 0 });
        let inner = model.entry_at(outer, d1, 2).unwrap();
        let rename = |from, to| Intent::Rename { from, to };
        assert_eq!(model.plan(&rename((ROOT, d0), (inner, d0)), 2).status, Status::Inval);
        assert_eq!(model.plan(&Intent::RmDir { dir: ROOT, name: d0 }, 2).status, Status::NotEmpty);
        assert_eq!(model.attr_at(ROOT, 2).unwrap().nlink, 3);
        model.apply(3, &rename((outer, d1), (ROOT, d1)));
        assert_eq!(model.attr_at(ROOT, 3).unwrap().nlink, 4);
        assert_eq!(model.attr_at(outer, 3).unwrap().nlink, 2);
        assert_eq!(model.attr_at(inner, 3).unwrap().parent, ROOT);
    }
}
