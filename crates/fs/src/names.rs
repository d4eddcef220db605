//! Names: the directory entries that one generation changed.
//! Owns: links and unlinks, findable by name and, per directory, in the order of cookies.
//! Never: knows entries of other generations or of the image.
//! Invariant: a name has one current slot; a directory's links ascend by cookie.
//! Source: docs/disk-format.md.

use crate::hash::{Index, NONE, Seed};
use crate::inode::Entry;

/// What became of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It is there.
    Linked,
    /// It is gone, and nothing has its name.
    Unlinked,
    /// It is gone, and a later slot has its name.
    Replaced,
}

/// One entry that was linked or unlinked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameSlot {
    pub dir: u64,
    /// For an entry that is gone only its cookie means something.
    pub entry: Entry,
    pub op: u64,
    /// [`Seed::name`] of directory and name.
    pub hash: u64,
    name_at: u32,
    name_len: u8,
    pub fate: Fate,
}

/// A directory whose entries changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirSlot {
    pub dir: u64,
    /// It was made in this generation: nothing below knows an entry of it.
    pub born: bool,
    /// The last op that changed an entry.
    pub op: u64,
    /// The highest cookie linked; 0 if none.
    last_cookie: u64,
    first: u32,
    last: u32,
    used: u32,
}

/// Slots of a directory's first run of links; each further run is twice as long, up to the last.
const RUN_FIRST: u32 = 8;
const RUN_LAST: u32 = 1 << 16;
/// Words before a run's slots: the next run, and the capacity of this one.
const RUN_HEAD: usize = 2;

/// A place in a directory's links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    run: u32,
    at: u32,
}

/// The entry changes of one generation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    slots: Vec<NameSlot>,
    by_name: Index,
    bytes: Vec<u8>,
    dirs: Vec<DirSlot>,
    by_dir: Index,
    /// Runs of slot numbers, linked per directory.
    runs: Vec<u32>,
}

impl Names {
    pub fn clear(&mut self) {
        self.slots.clear();
        self.by_name.clear();
        self.bytes.clear();
        self.dirs.clear();
        self.by_dir.clear();
        self.runs.clear();
    }

    /// Bytes of memory in use.
    pub fn bytes_used(&self) -> usize {
        self.slots.len() * (size_of::<NameSlot>() + 8)
            + self.dirs.len() * (size_of::<DirSlot>() + 8)
            + self.bytes.len()
            + self.runs.len() * 4
    }

    pub fn slots(&self) -> &[NameSlot] {
        &self.slots
    }

    pub fn dirs(&self) -> &[DirSlot] {
        &self.dirs
    }

    pub fn name(&self, slot: &NameSlot) -> &[u8] {
        let at = slot.name_at as usize;
        &self.bytes[at..at + usize::from(slot.name_len)]
    }

    #[inline]
    fn find_slot(&self, hash: u64, dir: u64, name: &[u8]) -> Option<usize> {
        self.by_name.find(hash, |slot| {
            let slot = &self.slots[slot];
            slot.hash == hash && slot.dir == dir && self.name(slot) == name
        })
    }

    /// What became of a name here; `hash` is [`Seed::name`] of both.
    #[inline]
    pub fn find(&self, hash: u64, dir: u64, name: &[u8]) -> Option<&NameSlot> {
        self.find_slot(hash, dir, name).map(|slot| &self.slots[slot])
    }

    /// The directory, if an entry of it changed here or it was made here.
    #[inline]
    pub fn dir(&self, seed: Seed, dir: u64) -> Option<&DirSlot> {
        let slot = self.by_dir.find(seed.one(dir), |slot| self.dirs[slot].dir == dir)?;
        Some(&self.dirs[slot])
    }

    fn dir_slot(&mut self, seed: Seed, op: u64, dir: u64) -> usize {
        let hash = seed.one(dir);
        if let Some(slot) = self.by_dir.find(hash, |slot| self.dirs[slot].dir == dir) {
            self.dirs[slot].op = op;
            return slot;
        }
        let slot = self.dirs.len();
        self.dirs.push(DirSlot {
            dir,
            born: false,
            op,
            last_cookie: 0,
            first: NONE,
            last: NONE,
            used: 0,
        });
        self.by_dir.insert(hash, slot, |slot| seed.one(self.dirs[slot].dir));
        slot
    }

    /// Notes that a directory was made here.
    pub fn bear(&mut self, seed: Seed, op: u64, dir: u64) {
        let slot = self.dir_slot(seed, op, dir);
        self.dirs[slot].born = true;
    }

    /// Stores a name's bytes. Generations stay far below 4 GiB; the caller checkpoints them.
    fn keep(&mut self, name: &[u8]) -> u32 {
        let at = u32::try_from(self.bytes.len()).expect("names of a generation fit 4 GiB");
        self.bytes.extend_from_slice(name);
        at
    }

    /// Makes a new slot the current one of its name. `old` is the one that was.
    #[inline]
    fn push(&mut self, old: Option<usize>, mut slot: NameSlot, name: &[u8]) -> usize {
        let at = self.slots.len();
        match old {
            Some(old) => {
                slot.name_at = self.slots[old].name_at;
                self.slots[old].fate = Fate::Replaced;
                self.slots.push(slot);
                self.by_name.replace(slot.hash, old, at);
            }
            None => {
                slot.name_at = self.keep(name);
                self.slots.push(slot);
                let Names { by_name, slots, .. } = self;
                by_name.insert(slot.hash, at, |slot| slots[slot].hash);
            }
        }
        at
    }

    /// Takes in a link. False: the cookie is not above the directory's earlier ones.
    #[must_use]
    pub fn link(
        &mut self,
        seed: Seed,
        hash: u64,
        op: u64,
        dir: u64,
        entry: &Entry,
        name: &[u8],
    ) -> bool {
        let dir_slot = self.dir_slot(seed, op, dir);
        if entry.cookie <= self.dirs[dir_slot].last_cookie {
            return false;
        }
        let old = self.find_slot(hash, dir, name);
        let slot = NameSlot {
            dir,
            entry: *entry,
            op,
            hash,
            name_at: 0,
            name_len: name.len() as u8,
            fate: Fate::Linked,
        };
        let slot = self.push(old, slot, name);
        self.append(dir_slot, slot as u32);
        self.dirs[dir_slot].last_cookie = entry.cookie;
        true
    }

    /// Takes in an unlink.
    pub fn unlink(&mut self, seed: Seed, hash: u64, op: u64, dir: u64, cookie: u64, name: &[u8]) {
        self.dir_slot(seed, op, dir);
        let old = self.find_slot(hash, dir, name);
        if let Some(old) = old {
            let slot = &mut self.slots[old];
            if slot.entry.cookie == cookie {
                slot.fate = Fate::Unlinked;
                slot.op = op;
                return;
            }
        }
        let entry = Entry { ino: 0, cookie, kind: crate::request::FileType::Regular };
        let name_len = name.len() as u8;
        let fate = Fate::Unlinked;
        let slot = NameSlot { dir, entry, op, hash, name_at: 0, name_len, fate };
        self.push(old, slot, name);
    }

    /// Adds a slot to its directory's links.
    fn append(&mut self, dir: usize, slot: u32) {
        let mut state = self.dirs[dir];
        let capacity = if state.last == NONE { 0 } else { self.runs[state.last as usize + 1] };
        if state.used == capacity {
            let capacity = (capacity * 2).clamp(RUN_FIRST, RUN_LAST);
            let run = u32::try_from(self.runs.len()).ok().filter(|run| *run < NONE - RUN_LAST - 8);
            let run = run.expect("links of a generation fit 2^32");
            self.runs.extend([NONE, capacity]);
            self.runs.resize(self.runs.len() + capacity as usize, NONE);
            match state.last {
                NONE => state.first = run,
                last => self.runs[last as usize] = run,
            }
            state.last = run;
            state.used = 0;
        }
        self.runs[state.last as usize + RUN_HEAD + state.used as usize] = slot;
        state.used += 1;
        self.dirs[dir] = state;
    }

    /// The slot numbers of one run, and the next run.
    fn run(&self, dir: &DirSlot, run: u32) -> (&[u32], u32) {
        let at = run as usize;
        let len = if run == dir.last { dir.used } else { self.runs[at + 1] };
        (&self.runs[at + RUN_HEAD..at + RUN_HEAD + len as usize], self.runs[at])
    }

    /// A cursor before the first link of `dir` whose cookie is above `after`.
    pub fn seek(&self, dir: &DirSlot, after: u64) -> Cursor {
        let mut run = dir.first;
        while run != NONE {
            let (slots, next) = self.run(dir, run);
            let cookie = |slot: &u32| self.slots[*slot as usize].entry.cookie;
            if slots.last().is_some_and(|last| cookie(last) > after) {
                let at = slots.partition_point(|slot| cookie(slot) <= after) as u32;
                return Cursor { run, at };
            }
            run = next;
        }
        Cursor { run: NONE, at: 0 }
    }

    /// The next entry that is still linked. Moves the cursor onto it: call [`Names::advance`]
    /// to pass it.
    pub fn peek(&self, dir: &DirSlot, cursor: &mut Cursor) -> Option<&NameSlot> {
        while cursor.run != NONE {
            let (slots, next) = self.run(dir, cursor.run);
            for slot in &slots[cursor.at as usize..] {
                let slot = &self.slots[*slot as usize];
                if slot.fate == Fate::Linked {
                    return Some(slot);
                }
                cursor.at += 1;
            }
            *cursor = Cursor { run: next, at: 0 };
        }
        None
    }

    /// Passes the entry that [`Names::peek`] showed.
    pub fn advance(&self, cursor: &mut Cursor) {
        cursor.at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FileType;

    const SEED: Seed = Seed(3);

    fn entry(cookie: u64) -> Entry {
        Entry { ino: cookie + 100, cookie, kind: FileType::Regular }
    }

    fn link(names: &mut Names, dir: u64, cookie: u64, name: &[u8]) -> bool {
        let hash = SEED.name(dir, name);
        names.link(SEED, hash, cookie, dir, &entry(cookie), name)
    }

    fn unlink(names: &mut Names, dir: u64, cookie: u64, name: &[u8]) {
        names.unlink(SEED, SEED.name(dir, name), cookie, dir, cookie, name);
    }

    fn listed(names: &Names, dir: u64, after: u64) -> Vec<u64> {
        let dir = *names.dir(SEED, dir).unwrap();
        let mut cursor = names.seek(&dir, after);
        let mut cookies = Vec::new();
        while let Some(slot) = names.peek(&dir, &mut cursor) {
            cookies.push(slot.entry.cookie);
            names.advance(&mut cursor);
        }
        cookies
    }

    #[test]
    fn links_of_many_directories_keep_their_order_over_many_runs() {
        let mut names = Names::default();
        for cookie in 3..3003 {
            for dir in [7, 8] {
                assert!(link(&mut names, dir, cookie, format!("f{cookie}").as_bytes()));
            }
        }
        for cookie in (3..3003).filter(|cookie| cookie % 3 == 0) {
            unlink(&mut names, 7, cookie, format!("f{cookie}").as_bytes());
        }
        let all: Vec<u64> = (3..3003).collect();
        for after in [0, 2, 3, 10, 11, 500, 2999, 3001, 3002, 9999] {
            let left: Vec<u64> = all.iter().copied().filter(|cookie| *cookie > after).collect();
            assert_eq!(listed(&names, 8, after), left);
            let left: Vec<u64> = left.into_iter().filter(|cookie| cookie % 3 != 0).collect();
            assert_eq!(listed(&names, 7, after), left);
        }
    }

    #[test]
    fn a_name_linked_again_has_one_current_slot_and_leaves_the_old_cookie_behind() {
        let mut names = Names::default();
        unlink(&mut names, 1, 5, b"a");
        assert!(link(&mut names, 1, 9, b"a"));
        unlink(&mut names, 1, 9, b"a");
        assert!(link(&mut names, 1, 10, b"a"));
        let fates: Vec<_> =
            names.slots().iter().map(|slot| (slot.entry.cookie, slot.fate)).collect();
        assert_eq!(fates, [(5, Fate::Replaced), (9, Fate::Replaced), (10, Fate::Linked)]);
        assert_eq!(names.find(SEED.name(1, b"a"), 1, b"a").unwrap().entry.cookie, 10);
        assert_eq!(listed(&names, 1, 0), [10]);
        assert_eq!(names.bytes, b"a");
    }

    #[test]
    fn a_cookie_that_goes_back_is_refused() {
        let mut names = Names::default();
        assert!(link(&mut names, 1, 5, b"a"));
        assert!(!link(&mut names, 1, 5, b"b"));
        assert!(!link(&mut names, 1, 4, b"c"));
        assert!(link(&mut names, 2, 4, b"c"));
    }
}
