//! Disks: what a group's two copies keep, noted down at every step that changes it.
//! Owns: log files, metadata engine and data disk of both servers; what a power cut leaves of them.
//! Never: takes a step of its own; the real log, store and node do.
//! Invariant: a moment holds exactly what was written and what was synced when it was noted.
//! Source: docs/disk-format.md; the manners of disks that lose power.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard};

use harp_log::{DiskError, LogDisk, LogPos, SLOT_BYTES, SlotFile};
use harp_store::{Disk, Engine, EngineSpace, Fill, MemDisk, MemEngine, MemSnapshot, StoreError};

use crate::rng::Rng;

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
/// Blocks that a data disk may have.
const DATA_BLOCKS_MAX: u64 = 1 << 16;

type Page = [u8; PAGE_BYTES];

/// The step that moves an image.
pub const COMMITTED: &str = "the image is committed";

/// What a disk does that it must not, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Syncing the log does nothing.
    LogSync,
    /// Syncing file data does nothing.
    DataSync,
    /// A commit of metadata becomes durable only with the next one.
    Commit,
}

/// One server's log and view file.
#[derive(Clone, Debug, Default)]
struct LogFiles {
    /// By place on the disk.
    pages: BTreeMap<u64, Arc<Page>>,
    /// What lay there durably, of the pages that were written since.
    unsynced: BTreeMap<u64, Option<Arc<Page>>>,
    slots: [Option<[Arc<Page>; 2]>; 2],
}

/// One server's disks.
#[derive(Debug)]
pub struct Disks {
    log: LogFiles,
    pub engine: MemEngine,
    pub data: MemDisk,
}

impl Disks {
    pub fn empty() -> Disks {
        let (engine, data) = (MemEngine::new(), MemDisk::new(DATA_BLOCKS_MAX));
        Disks { log: LogFiles::default(), engine, data }
    }

    /// Disks of their own with the same on them.
    pub fn fork(&self) -> Disks {
        let (engine, data) = (self.engine.fork(), self.data.fork());
        Disks { log: self.log.clone(), engine, data }
    }

    /// Whether a power cut may leave them in more than one way.
    fn is_torn_by_a_cut(&self) -> bool {
        !self.log.unsynced.is_empty() || self.data.unsynced_blocks() > 0
    }

    fn cut(&mut self, rest: &mut Rest) {
        for (place, old) in std::mem::take(&mut self.log.unsynced) {
            let page = Arc::make_mut(self.log.pages.entry(place).or_insert_with(blank));
            let old = old.unwrap_or_else(blank);
            for sector in 0..PAGE_BYTES / SECTOR_BYTES {
                if !rest.survives() {
                    let at = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    page[at.clone()].copy_from_slice(&old[at]);
                }
            }
        }
        self.data.crash(&mut |_, _| rest.survives());
    }
}

fn blank() -> Arc<Page> {
    Arc::new([0; PAGE_BYTES])
}

/// What a power cut leaves of what was not synced, sector by sector.
#[derive(Clone, Debug)]
pub enum Rest {
    Nothing,
    /// As this seed says.
    Some(u64),
}

impl Rest {
    fn survives(&mut self) -> bool {
        match self {
            Rest::Nothing => false,
            Rest::Some(state) => {
                let mut rng = Rng(*state);
                let survives = rng.one_in(2);
                *state = rng.0;
                survives
            }
        }
    }
}

/// Both servers' disks right after one step.
#[derive(Debug)]
pub struct Moment {
    /// The step, and the server that took it.
    pub what: &'static str,
    pub server: usize,
    /// The log's op up to which the client had its answers.
    pub answered: u64,
    pub disks: [Disks; 2],
}

impl Moment {
    /// What a power cut of both machines leaves: of unsynced bytes some. That nothing or everything of them is
    /// left is as one step before or later, where the disks do not lie.
    pub fn rest(&self, rng: &mut Rng) -> Rest {
        match self.disks.iter().any(Disks::is_torn_by_a_cut) {
            true => Rest::Some(rng.next()),
            false => Rest::Nothing,
        }
    }

    /// The disks as the power cut leaves them.
    pub fn cut(&self, mut rest: Rest) -> [Disks; 2] {
        let mut disks = [self.disks[0].fork(), self.disks[1].fork()];
        disks.iter_mut().for_each(|disks| disks.cut(&mut rest));
        disks
    }
}

/// What is noted down, and the disks themselves.
#[derive(Debug)]
struct Noted {
    disks: [Disks; 2],
    moments: Vec<Moment>,
    recording: bool,
    answered: u64,
    lie: Option<Lie>,
}

/// The disks of both servers, shared by their logs and stores.
#[derive(Clone, Debug)]
pub struct Machines(Arc<Mutex<Noted>>);

impl Machines {
    pub fn new(disks: [Disks; 2], lie: Option<Lie>) -> Machines {
        let (moments, recording, answered) = (Vec::new(), false, 0);
        Machines(Arc::new(Mutex::new(Noted { disks, moments, recording, answered, lie })))
    }

    pub fn empty() -> Machines {
        Machines::new([Disks::empty(), Disks::empty()], None)
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// From now on every step is noted, beginning with things as they are.
    pub fn record(&self, answered: u64) {
        let mut noted = self.noted();
        (noted.recording, noted.answered) = (true, answered);
        noted.note(0, "nothing happened yet");
    }

    /// The client has its answers up to this op.
    pub fn answered(&self, op: u64) {
        self.noted().answered = op;
    }

    /// How many moments were noted and not taken.
    pub fn noted_moments(&self) -> usize {
        self.noted().moments.len()
    }

    /// What was noted since the last time.
    pub fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.noted().moments)
    }

    /// One server's disks as they are.
    pub fn disks_of(&self, server: usize) -> Disks {
        self.noted().disks[server].fork()
    }

    pub fn log(&self, server: usize) -> LogOf {
        LogOf { machines: self.clone(), server }
    }

    pub fn engine(&self, server: usize) -> EngineOf {
        let engine = self.noted().disks[server].engine.clone();
        EngineOf { machines: self.clone(), server, engine }
    }

    pub fn data(&self, server: usize) -> DataOf {
        let data = self.noted().disks[server].data.clone();
        DataOf { machines: self.clone(), server, data }
    }
}

impl Noted {
    fn note(&mut self, server: usize, what: &'static str) {
        if self.recording {
            let disks = [self.disks[0].fork(), self.disks[1].fork()];
            self.moments.push(Moment { what, server, answered: self.answered, disks });
        }
    }
}

/// The log disk of one server.
pub struct LogOf {
    machines: Machines,
    server: usize,
}

/// Bytes of all segments of a log: positions wrap around there.
pub const LOG_DISK_BYTES: u64 = crate::group::SEGMENT_BYTES * crate::group::SEGMENTS_MAX;

impl LogDisk for LogOf {
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError> {
        let noted = self.machines.noted();
        for (index, out) in into.chunks_mut(PAGE_BYTES).enumerate() {
            let at = (at.0 + (index * PAGE_BYTES) as u64) % LOG_DISK_BYTES;
            assert!(at.is_multiple_of(PAGE_BYTES as u64), "reads begin at a page");
            match noted.disks[self.server].log.pages.get(&at) {
                Some(page) => out.copy_from_slice(&page[..out.len()]),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        Ok(())
    }

    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        let mut noted = self.machines.noted();
        let log = &mut noted.disks[self.server].log;
        for (index, bytes) in bytes.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
            let at = (at.0 + (index * PAGE_BYTES) as u64) % LOG_DISK_BYTES;
            let old = log.pages.insert(at, Arc::new(*bytes));
            log.unsynced.entry(at).or_insert(old);
        }
        noted.note(self.server, "the log is written");
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        let mut noted = self.machines.noted();
        if noted.lie != Some(Lie::LogSync) {
            noted.disks[self.server].log.unsynced.clear();
        }
        noted.note(self.server, "the log is synced");
        Ok(())
    }

    fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
        Ok(None)
    }

    fn read_slot(&mut self, file: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        let noted = self.machines.noted();
        let slots = &noted.disks[self.server].log.slots[file as usize];
        Ok(slots.as_ref().map(|slots| slots[slot].to_vec()))
    }

    fn write_slot(&mut self, file: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        let mut noted = self.machines.noted();
        let mut new = [0; SLOT_BYTES];
        new[..bytes.len()].copy_from_slice(bytes);
        let slots = noted.disks[self.server].log.slots[file as usize]
            .get_or_insert_with(|| [blank(), blank()]);
        // Power goes in the middle: every other sector is new.
        let page = Arc::make_mut(&mut slots[slot]);
        for sector in (0..PAGE_BYTES / SECTOR_BYTES).step_by(2) {
            let at = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            page[at.clone()].copy_from_slice(&new[at]);
        }
        noted.note(self.server, "a slot is torn");
        let slots = noted.disks[self.server].log.slots[file as usize].as_mut();
        slots.expect("it was just made")[slot] = Arc::new(new);
        noted.note(self.server, "a slot is written");
        Ok(())
    }
}

/// The metadata engine of one server.
#[derive(Debug)]
pub struct EngineOf {
    machines: Machines,
    server: usize,
    engine: MemEngine,
}

impl Engine for EngineOf {
    type Snapshot = MemSnapshot;

    fn snapshot(&self) -> Result<MemSnapshot, StoreError> {
        self.engine.snapshot()
    }

    fn commit(&self, fill: &mut Fill<'_>) -> Result<(), StoreError> {
        let before = self.engine.fork();
        self.engine.commit(fill)?;
        let mut noted = self.machines.noted();
        if noted.lie == Some(Lie::Commit) {
            noted.disks[self.server].engine = before;
        }
        noted.note(self.server, COMMITTED);
        Ok(())
    }

    fn space(&self) -> Result<EngineSpace, StoreError> {
        self.engine.space()
    }
}

/// The data disk of one server.
#[derive(Debug)]
pub struct DataOf {
    machines: Machines,
    server: usize,
    data: MemDisk,
}

impl Disk for DataOf {
    fn blocks(&self) -> u64 {
        self.data.blocks()
    }

    fn grow(&self, blocks: u64) -> Result<(), StoreError> {
        self.data.grow(blocks)?;
        self.machines.noted().note(self.server, "the data disk has grown");
        Ok(())
    }

    fn read(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.data.read(position, out)
    }

    fn write(&self, position: u64, slices: &[IoSlice<'_>]) -> Result<(), StoreError> {
        self.data.write(position, slices)?;
        self.machines.noted().note(self.server, "data is written");
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut noted = self.machines.noted();
        if noted.lie != Some(Lie::DataSync) {
            self.data.sync()?;
        }
        noted.note(self.server, "data is synced");
        Ok(())
    }
}
