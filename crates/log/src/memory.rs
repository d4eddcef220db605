//! Memory that outlives its process: its first page, which says what a later process finds in the ring behind it.
//! Owns: the page's layout, and the order in which its words are stored.
//! Never: decides whether a log is intact; `recover` does.
//! Invariant: whenever the process dies, the ring holds each log whole from its `floor` to its `end`, and what is
//! below the floor is on the disk. (Stores of one thread survive the process in the order they were made: the
//! kernel keeps the pages.)
//! Source: docs/protocol.md, rule 3; docs/disk-format-log.md, "Memory that outlives the process".

use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::BLOCK_BYTES;

/// Bytes in front of a ring in memory that outlives the process.
pub const MEMORY_HEAD_BYTES: usize = 4096;

const WORDS: usize = MEMORY_HEAD_BYTES / 8;
const MAGIC: u64 = u64::from_le_bytes(*b"HpMem\0\0\x01");

/// Logs that the page tells of at once: the current and the staged one, and what heads under way still name.
const LOGS: usize = 4;

// Words of the page.
const AT_MAGIC: usize = 0;
const AT_ID: usize = 1;
/// Boot (2), group (2), server and disk.
const AT_TIE: usize = 2;
const AT_RING_BYTES: usize = 8;
const AT_LOGS: usize = 16;
const LOG_WORDS: usize = 4;

/// What memory belongs to: a server's disk, and this run of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryTie {
    /// The machine's run, as the kernel names it.
    pub boot: [u8; 16],
    /// The group.
    pub group: [u8; 16],
    /// The server, by number.
    pub server: u8,
    /// Its disk.
    pub disk: u64,
}

impl MemoryTie {
    fn words(&self) -> [u64; 6] {
        let half = |bytes: &[u8; 16], at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        };
        let (boot, group) = (&self.boot, &self.group);
        let [boot, group] = [boot, group].map(|bytes| [half(bytes, 0), half(bytes, 8)]);
        [boot[0], boot[1], group[0], group[1], u64::from(self.server), self.disk]
    }
}

/// A log as the page tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldLog {
    /// Its place on the page; not read when it is taken in.
    pub slot: usize,
    /// End of its last record; where it begins if it has none.
    pub end: u64,
    /// It is on the disk up to here, at least.
    pub written: u64,
    /// The ring holds its bytes from here on; below, another log or its own newer bytes lie there.
    pub floor: u64,
}

/// The page. Clones are the same page.
#[derive(Clone, Copy)]
pub struct MemoryHead<'a> {
    words: &'a [AtomicU64; WORDS],
}

impl<'a> MemoryHead<'a> {
    /// The page that lies at `base`.
    ///
    /// # Safety
    /// `base` is aligned to 8, and its [`MEMORY_HEAD_BYTES`] bytes stay valid for `'a` and are used in no other way.
    pub(crate) unsafe fn at(base: *mut u8) -> MemoryHead<'a> {
        assert!(base.addr().is_multiple_of(8), "a memory's head is aligned");
        // SAFETY: valid and shared through atomics alone, by this function's contract.
        MemoryHead { words: unsafe { &*base.cast::<[AtomicU64; WORDS]>() } }
    }

    fn load(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u64) {
        self.words[at].store(value, Ordering::Release);
    }

    /// Whether the page is one for a ring of so many bytes that belongs to `tie`.
    pub fn belongs(&self, tie: &MemoryTie, ring_bytes: u64) -> bool {
        let ties = (AT_TIE..).zip(tie.words());
        self.load(AT_MAGIC) == MAGIC
            && self.load(AT_RING_BYTES) == ring_bytes
            && ties.into_iter().all(|(at, word)| self.load(at) == word)
    }

    /// Makes the page one that knows no log. `id`: never used before on this disk, not 0.
    pub fn format(&self, id: u64, tie: &MemoryTie, ring_bytes: u64) {
        assert!(id != 0, "0 is no memory");
        self.store(AT_MAGIC, 0);
        self.forget();
        self.store(AT_ID, id);
        self.store(AT_RING_BYTES, ring_bytes);
        for (at, word) in (AT_TIE..).zip(tie.words()) {
            self.store(at, word);
        }
        self.store(AT_MAGIC, MAGIC);
    }

    /// Which memory it is; the view file names the one that counts.
    pub fn id(&self) -> u64 {
        self.load(AT_ID)
    }

    /// No log is found here any more.
    pub(crate) fn forget(&self) {
        (0..LOGS).for_each(|slot| self.store(AT_LOGS + slot * LOG_WORDS, 0));
    }

    /// Of all logs only the one in `slot` is found from now on.
    pub(crate) fn keep_only(&self, slot: usize) {
        let others = (0..LOGS).filter(|other| *other != slot);
        others.for_each(|other| self.store(AT_LOGS + other * LOG_WORDS, 0));
    }

    /// The ring holds more of the log in `slot` again. After the last byte of it.
    pub(crate) fn lower_floor(&self, slot: usize, floor: u64) {
        self.store(AT_LOGS + slot * LOG_WORDS + 3, floor);
    }

    /// The log in `growing` is about to overwrite what lies below `floor` in the ring. Before it does.
    pub(crate) fn raise_floors(&self, growing: usize, floor: u64) {
        for slot in 0..LOGS {
            let at = AT_LOGS + slot * LOG_WORDS;
            // Another log may go on from its own end later; what it appends then is in the ring.
            let most = if slot == growing {
                u64::MAX
            } else {
                self.load(at + 1).next_multiple_of(BLOCK_BYTES)
            };
            let floor = floor.min(most);
            if floor > self.load(at + 3) {
                self.store(at + 3, floor);
            }
        }
    }

    /// The log of this generation.
    pub(crate) fn find(&self, generation: u64) -> Option<HeldLog> {
        let slot = (0..LOGS).find(|slot| self.load(AT_LOGS + slot * LOG_WORDS) == generation)?;
        let at = AT_LOGS + slot * LOG_WORDS;
        let [end, written, floor] = [1, 2, 3].map(|word| self.load(at + word));
        Some(HeldLog { slot, end, written, floor })
    }

    /// Takes a log in, in the place of one whose generation is not among `kept`. Returns its slot.
    pub(crate) fn take_in(&self, generation: u64, log: HeldLog, kept: &[u64]) -> usize {
        assert!(generation != 0 && kept.len() < LOGS, "a slot is free");
        let free = |slot: &usize| match self.load(AT_LOGS + slot * LOG_WORDS) {
            0 => true,
            known => !kept.contains(&known),
        };
        let slot = (0..LOGS).find(free).expect("fewer are kept than there are");
        let at = AT_LOGS + slot * LOG_WORDS;
        self.store(at, 0);
        self.store(at + 1, log.end);
        self.store(at + 2, log.written);
        self.store(at + 3, log.floor);
        self.store(at, generation);
        slot
    }

    /// The records of the log in `slot` are whole up to `end`. After the last byte of them.
    pub(crate) fn set_end(&self, slot: usize, end: u64) {
        self.store(AT_LOGS + slot * LOG_WORDS + 1, end);
    }

    /// The log in `slot` is on the disk up to `written`.
    pub(crate) fn set_written(&self, slot: usize, written: u64) {
        self.store(AT_LOGS + slot * LOG_WORDS + 2, written);
    }
}
