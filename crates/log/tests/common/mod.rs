//! A disk that loses and tears what was not synced, and a server around one log.
//! Owns: the model of what the log must hold after a crash.
//! Never: real I/O, real time; every choice comes from one seed.
#![allow(dead_code)] // each test file uses its part

use std::collections::{HashMap, VecDeque};

use harp_log::{
    DiskCommand, DiskDone, DiskError, Evidence, HEAD_EXTRA_BYTES, Log, LogDisk, LogPos,
    LogSettings, MemoryTie, Recovered, Ring, SlotFile, Verdict, parse_extent, recover_by,
};

pub const SECTOR: usize = 512;

/// A small deterministic generator (splitmix).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// Sectors by index; absent ones are zeros.
#[derive(Clone, Default)]
pub struct SimDisk {
    capacity: u64,
    synced: HashMap<u64, [u8; SECTOR]>,
    unsynced: Vec<(u64, [u8; SECTOR])>,
    seen: HashMap<u64, [u8; SECTOR]>,
    slots: [Option<Vec<u8>>; 2],
    pub writes: u64,
    pub fail_reads: bool,
}

impl SimDisk {
    pub fn new(settings: &LogSettings) -> SimDisk {
        let capacity = settings.segment_bytes * settings.segments_max;
        SimDisk { capacity, ..SimDisk::default() }
    }

    /// Power goes: each sector not synced is there or is not.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        let keep = rng.below(3);
        for (sector, bytes) in std::mem::take(&mut self.unsynced) {
            if keep == 2 || keep == 1 && rng.one_in(2) {
                self.synced.insert(sector, bytes);
            }
        }
        self.seen = self.synced.clone();
    }

    /// A slot write that was under way when power went: a part of it arrived.
    pub fn tear_slot(&mut self, slot: usize, bytes: &[u8], rng: &mut Rng) {
        let mut torn = self.slots[slot].clone().unwrap_or_default();
        torn.resize(torn.len().max(bytes.len()), 0);
        let upto = rng.below(bytes.len() as u64 + 1) as usize;
        torn[..upto].copy_from_slice(&bytes[..upto]);
        self.slots[slot] = Some(torn);
    }

    pub fn slots(&mut self) -> &mut [Option<Vec<u8>>; 2] {
        &mut self.slots
    }

    /// Changes bytes on the medium.
    pub fn damage(&mut self, at: u64, mut change: impl FnMut(&mut [u8; SECTOR])) {
        let sector = at % self.capacity / SECTOR as u64;
        let mut bytes = self.seen.get(&sector).copied().unwrap_or([0; SECTOR]);
        change(&mut bytes);
        self.synced.insert(sector, bytes);
        self.seen.insert(sector, bytes);
    }

    /// The bytes as a reader sees them.
    pub fn bytes(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(LogPos(at), &mut bytes).unwrap();
        bytes
    }

    pub fn zero(&mut self, range: std::ops::Range<u64>) {
        range.step_by(SECTOR).for_each(|at| self.damage(at, |sector| sector.fill(0)));
    }

    pub fn flip(&mut self, at: u64) {
        self.damage(at, |sector| sector[at as usize % SECTOR] ^= 0x40);
    }
}

impl LogDisk for SimDisk {
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError> {
        if self.fail_reads {
            return Err(DiskError { what: "planned".into(), os_code: None });
        }
        assert!(at.0.is_multiple_of(512) && into.len().is_multiple_of(SECTOR), "reads are aligned");
        for (index, sector) in into.chunks_mut(SECTOR).enumerate() {
            let place = at.0 % self.capacity / SECTOR as u64 + index as u64;
            match self.seen.get(&place) {
                Some(bytes) => sector.copy_from_slice(bytes),
                None => sector.fill(0),
            }
        }
        Ok(())
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        Ok(())
    }

    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError> {
        assert!(
            at.0.is_multiple_of(4096) && bytes.len().is_multiple_of(4096),
            "writes are aligned"
        );
        self.writes += 1;
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            let place = at.0 % self.capacity / SECTOR as u64 + index as u64;
            let bytes: [u8; SECTOR] = sector.try_into().unwrap();
            self.unsynced.push((place, bytes));
            self.seen.insert(place, bytes);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.synced.extend(self.unsynced.drain(..));
        Ok(())
    }

    fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
        Ok(None)
    }

    fn read_slot(&mut self, _: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.slots[slot].clone())
    }

    fn write_slot(&mut self, _: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError> {
        self.slots[slot] = Some(bytes.to_vec());
        Ok(())
    }
}

/// What a record should be: kind, view, time, body.
pub type Expected = (u8, u64, u64, Vec<u8>);

fn written_by(command: &DiskCommand, log: &Log) -> Vec<u8> {
    match command {
        DiskCommand::Write { at, bytes, .. } => log.ring().bytes(*at, *bytes).to_vec(),
        _ => Vec::new(),
    }
}

/// One log with its disk, and what it should hold.
pub struct Server {
    pub settings: LogSettings,
    pub ring_bytes: usize,
    pub disk: SimDisk,
    pub log: Log,
    /// Commands under way, and of writes the ring's bytes when they were handed out.
    pub queue: VecDeque<(DiskCommand, Vec<u8>)>,
    pub out: Vec<DiskCommand>,
    /// Records by generation and op.
    pub model: HashMap<u64, HashMap<u64, Expected>>,
    /// The current log's generation as acknowledged, and its durable op.
    pub generation: u64,
    pub durable: u64,
    /// Its tag as acknowledged.
    pub tag: Option<u64>,
    /// Swaps under way: sequence, generation, end, view.
    pub swaps: Vec<(u64, u64, u64, u64)>,
    /// Tags under way.
    pub tags: Vec<(u64, u64)>,
    pub trimmed: u64,
    pub pin: u64,
    pub cuts: u64,
}

pub fn settings(segment_bytes: u64, segments_max: u64) -> LogSettings {
    LogSettings { segment_bytes, segments_max, start: 1, keeps_clean_mark: false }
}

/// The disk of every server here.
pub const DISK: u64 = 77;

/// Memory that outlives a process, as good as new.
pub fn memory(ring_bytes: usize, id: u64) -> Ring {
    let tie = MemoryTie { boot: [1; 16], group: [2; 16], server: 0, disk: DISK };
    Ring::outliving_on_heap(ring_bytes, id, &tie)
}

impl Server {
    pub fn new(settings: LogSettings, ring_bytes: usize) -> Server {
        Server::over(Ring::on_heap(ring_bytes), settings)
    }

    /// A server whose records count as soon as they are in `ring`, if that outlives it.
    pub fn over(ring: Ring, settings: LogSettings) -> Server {
        let mut out = Vec::new();
        let ring_bytes = ring.len() as usize;
        let log = Log::format(ring, settings, 1, &mut out);
        let generation = log.current().generation();
        let mut server = Server {
            settings,
            ring_bytes,
            disk: SimDisk::new(&settings),
            log,
            queue: VecDeque::new(),
            out,
            model: HashMap::new(),
            generation,
            durable: 0,
            tag: None,
            swaps: Vec::new(),
            tags: Vec::new(),
            trimmed: 0,
            pin: 0,
            cuts: 0,
        };
        server.run_all();
        server
    }

    /// Appends a record; `None` if the log is full.
    pub fn append(&mut self, view: u64, body: &[u8]) -> Option<u64> {
        let space = self.log.begin_record(body.len() + 16).ok()?;
        space[..body.len()].copy_from_slice(body);
        let (kind, time) = (body.len() as u8, view * 1000 + body.len() as u64);
        let op = self.log.finish_record(kind, view, time, body.len());
        let generation = self.log.growing().generation();
        let record = (kind, view, time, body.to_vec());
        self.model.entry(generation).or_default().insert(op, record);
        Some(op)
    }

    /// Appends records of `bodies` bytes each, each batch on its own, and makes them durable.
    pub fn append_batches(&mut self, bodies: &[usize]) {
        for len in bodies {
            let fill = self.log.growing().end() as u8;
            let op = self.append(1, &vec![fill; *len]).expect("room");
            self.settle();
            self.pin(op);
        }
    }

    /// Where the growing log's batches end.
    pub fn end_pos(&mut self) -> u64 {
        assert!(!self.seal() && self.queue.is_empty(), "settled");
        self.log.used_disk_bytes()
    }

    pub fn held(&self) -> bool {
        self.log.ring().outlives()
    }

    pub fn seal(&mut self) -> bool {
        let sealed = match self.held() {
            true => self.log.write_behind(self.durable, 1, &mut self.out),
            false => self.log.seal(self.durable, &mut self.out),
        };
        self.take_commands();
        sealed
    }

    pub fn seal_mark(&mut self) -> bool {
        let sealed = self.log.seal_mark(self.durable, &mut self.out);
        self.take_commands();
        sealed
    }

    /// Asks for a swap; false if a staged log in memory cannot be put on the disk.
    pub fn swap(&mut self, view: u64) -> bool {
        let staged = self.log.staged().expect("staged");
        let (generation, end) = (staged.generation(), staged.end());
        let swapped = self.log.swap(view, 3, [7; HEAD_EXTRA_BYTES], 0, &mut self.out);
        if let Ok(sequence) = swapped {
            let begin = self.log.staged().expect("until it is durable").begin();
            self.model.entry(generation).or_default().retain(|op, _| *op >= begin);
            self.swaps.push((sequence, generation, end, view));
        }
        self.take_commands();
        swapped.is_ok()
    }

    pub fn persist(&mut self) -> bool {
        let persisted = self.log.persist(0, &mut self.out).is_ok();
        self.take_commands();
        persisted
    }

    /// Begins a staged log that pins all its records.
    pub fn stage(&mut self, begin_op: u64, on_disk: bool) -> bool {
        let staged = self.log.stage(begin_op, None, on_disk, 1);
        if staged {
            self.pin = begin_op - 1;
        }
        staged
    }

    pub fn drop_staged(&mut self) {
        if self.log.staged().is_some() && self.log.drop_staged() {
            self.pin(self.log.current().end());
        }
    }

    pub fn tag(&mut self, view: u64) {
        let sequence = self.log.tag(view, 5, [9; HEAD_EXTRA_BYTES], 0, &mut self.out);
        self.tags.push((sequence, view));
        self.take_commands();
    }

    fn take_commands(&mut self) {
        for command in self.out.drain(..) {
            let bytes = written_by(&command, &self.log);
            self.queue.push_back((command, bytes));
        }
    }

    pub fn pin(&mut self, op: u64) {
        self.log.pin(op);
        self.pin = op;
    }

    /// What is pinned lies in memory.
    pub fn check_pin(&self) {
        let log = self.log.growing();
        assert!(log.memory_begin() <= self.pin + 1 || log.memory_begin() > log.end());
        assert!(self.pin >= log.end() || log.record(self.pin + 1).is_some());
    }

    /// Carries out one command and tells the log. False if there was none.
    pub fn run_one(&mut self) -> bool {
        let Some((command, bytes)) = self.queue.pop_front() else { return false };
        assert_eq!(written_by(&command, &self.log), bytes, "unwritten bytes stay as they are");
        let done = command.run(&mut self.disk, self.log.ring());
        self.deliver(&done);
        true
    }

    pub fn deliver(&mut self, done: &DiskDone) {
        let progress = self.log.on_disk(done);
        if let Some(sequence) = progress.head {
            if let Some(index) = self.swaps.iter().position(|swap| swap.0 == sequence) {
                let (_, generation, _, view) = self.swaps.remove(index);
                assert_eq!(self.log.current().generation(), generation);
                (self.generation, self.tag) = (generation, Some(view));
            }
            if let Some(index) = self.tags.iter().position(|tag| tag.0 == sequence) {
                self.tag = Some(self.tags.remove(index).1);
            }
            assert_eq!(self.log.current().tag(), self.tag);
        }
        if self.log.current().generation() == self.generation {
            self.durable = self.log.current().durable();
        }
    }

    pub fn run_all(&mut self) {
        self.take_commands();
        while self.run_one() {}
    }

    pub fn settle(&mut self) {
        self.run_all();
        while self.seal() {
            self.run_all();
        }
    }

    /// Power goes, perhaps in the middle of a command; then the log is recovered.
    pub fn power_cut(&mut self, rng: &mut Rng) -> Recovered {
        match self.queue.pop_front().map(|queued| queued.0) {
            Some(DiskCommand::Write { at, bytes, .. }) if rng.one_in(2) => {
                let bytes = self.log.ring().bytes(at, bytes).to_vec();
                self.disk.write(at, &bytes).unwrap();
            }
            Some(DiskCommand::Slot { sequence, bytes, .. }) if rng.one_in(2) => {
                self.disk.tear_slot((sequence % 2) as usize, &bytes, rng);
            }
            _ => {}
        }
        self.disk.power_cut(rng);
        self.restart()
    }

    pub fn restart(&mut self) -> Recovered {
        let (ring, evidence) = match self.held() {
            true => (self.log.ring().clone(), Evidence::Memory),
            false => (Ring::on_heap(self.ring_bytes), Evidence::Marks),
        };
        self.restart_by(ring, evidence)
    }

    pub fn restart_by(&mut self, ring: Ring, evidence: Evidence) -> Recovered {
        self.queue.clear();
        self.settings.start += 1;
        recover_by(&mut self.disk, ring, self.settings, evidence).expect("no I/O error")
    }

    /// Goes on with a recovered log that must be intact, and checks all of it.
    pub fn go_on(&mut self, recovered: Recovered) {
        assert_eq!(recovered.verdict, Verdict::Intact);
        self.log = recovered.log;
        let log = self.log.current();
        let generation = log.generation();
        if generation == self.generation {
            assert!(log.end() >= self.durable, "{} < {}", log.end(), self.durable);
        }
        let mut tags: Vec<_> = self.tags.iter().map(|tag| Some(tag.1)).collect();
        tags.push(self.tag);
        match self.swaps.iter().find(|swap| swap.1 == generation) {
            Some(&(_, _, end, view)) => {
                assert!(log.end() >= end, "a swapped log is whole");
                tags.push(Some(view));
            }
            None => assert_eq!(generation, self.generation, "an acknowledged swap stays"),
        }
        assert!(tags.contains(&log.tag()), "{:?} not in {tags:?}", log.tag());
        let known = self.model.get(&generation).and_then(|model| model.keys().max());
        match log.durable() == log.end() {
            false => assert!(self.held(), "what is found on the disk is durable"),
            true => assert!(!self.held() || known.is_none_or(|known| *known == log.end())),
        }
        (self.generation, self.durable, self.tag) = (generation, log.durable(), log.tag());
        let end = log.end();
        self.swaps.clear();
        self.tags.clear();
        let model = self.model.entry(generation).or_default();
        self.cuts += (model.len() > model.keys().filter(|op| **op <= end).count()) as u64;
        model.retain(|op, _| *op <= end);
        self.pin = self.log.current().memory_begin() - 1;
        let body = self.log.current();
        let reach = self.log.used_disk_bytes() <= self.ring_bytes as u64;
        assert!(!reach || body.memory_begin() <= body.begin(), "what fits the ring is in it");
        self.check_body(false);
        self.check_body(true);
    }

    /// Every record of the current log is what it should be, read from memory and from the disk.
    pub fn check_body(&mut self, from_disk: bool) {
        let log = self.log.current();
        let model = self.model.entry(log.generation()).or_default();
        let first = model.keys().min().copied().unwrap_or(log.begin());
        assert!(log.begin() <= first.max(self.trimmed + 1), "only what was trimmed is gone");
        if !from_disk {
            for op in log.memory_begin()..=log.end() {
                let record = log.record(op).expect("in memory");
                let (kind, view, time, body) = &model[&op];
                let header = record.header;
                assert_eq!((header.kind, header.view, header.time), (*kind, *view, *time));
                assert_eq!(record.body, body);
            }
            return;
        }
        let mut op = log.begin();
        while let Some((at, bytes)) = log.disk_extent(op, 20_000) {
            let command = DiskCommand::Read { token: 1, at, bytes };
            let DiskDone::Read { bytes, .. } = command.run(&mut self.disk, self.log.ring()) else {
                panic!("a read gives bytes");
            };
            let before = op;
            for record in parse_extent(&bytes, at, op) {
                let record = record.expect("whole");
                assert_eq!(record.op(), op);
                assert_eq!(record.body(), model[&op].3);
                op += 1;
            }
            assert!(op > before, "an extent holds the op asked for");
        }
    }
}
