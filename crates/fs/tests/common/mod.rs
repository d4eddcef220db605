//! Common: one primary and one backup over images in memory, driven by requests.
//! Owns: the log, fetching, checkpoints, forgetting; what a node does around this crate.
//! Never: judges an outcome; the tests do.
//! Invariant: both copies apply the same bytes of the same log.
//! Source: ARCHITECTURE.md.

#![allow(dead_code)] // each test program uses a part of it

pub mod image;
pub mod model;
pub mod rng;

use std::sync::Arc;

use harp_fs::blocks::LogBytes;
use harp_fs::generation::Generation;
use harp_fs::handle::Volume;
use harp_fs::inode::ROOT;
use harp_fs::need::Need;
use harp_fs::plan::{Context, Planned, Room, plan};
use harp_fs::request::{
    Attributes, CreateHow, Credential, DirName, FileType, Request, Response, SetAttr, Status, Time,
};
use harp_fs::shadow::{Shadow, ShadowSettings};
use image::Image;

pub const CAPACITY_BLOCKS: u64 = 1 << 20;
const RING_BYTES: usize = 96 << 20;
/// Fetches that one plan may take before the test calls it stuck.
const ROUNDS_MAX: usize = 200;

/// The log's bytes; it never wraps in tests.
pub struct Ring<'a>(pub &'a [u8]);

impl LogBytes for Ring<'_> {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..pos as usize + len as usize]
    }
}

/// One server's copy.
pub struct Copy {
    pub shadow: Shadow,
    pub image: Image,
    /// The image before the last checkpoint, to fetch stale values from.
    pub image_before: Image,
    pub frozen: Option<Arc<Generation>>,
}

impl Copy {
    fn new(settings: ShadowSettings, now: Time) -> Copy {
        let image = Image::formatted(now);
        Copy { shadow: Shadow::new(settings, 0), image_before: image.clone(), image, frozen: None }
    }

    /// Starts a checkpoint, unless one is under way or nothing changed.
    pub fn freeze(&mut self) {
        if self.frozen.is_none() && self.shadow.op() > self.shadow.lb() {
            let op = self.shadow.op();
            self.frozen = Some(self.shadow.freeze(op));
        }
    }

    /// Ends the checkpoint under way: the image is exact there.
    pub fn checkpoint(&mut self, log: &dyn LogBytes) {
        if let Some(generation) = self.frozen.take() {
            self.image_before = self.image.clone();
            self.image.checkpoint(&generation, log);
            let op = generation.end();
            drop(generation);
            self.shadow.checkpointed(op);
        }
    }
}

/// A reply, and the bytes of a READ.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub response: Response,
    pub data: Vec<u8>,
    /// Whether it made a record.
    pub recorded: bool,
    pub failed_modification: bool,
    pub shows: u64,
}

/// A file system with its log.
pub struct World {
    pub volume: Volume,
    pub primary: Copy,
    pub backup: Copy,
    ring: Vec<u8>,
    pos: usize,
    /// Where each record's effects lie; op 1 is the first.
    pub records: Vec<(usize, usize)>,
    pub now: Time,
    /// How often a plan needed a fetch.
    pub fetches: u64,
    /// Whether some fetches are read from the image before the last checkpoint.
    pub stale_fetches: bool,
    /// What the group has room for.
    pub room: Room,
}

pub const SETTINGS: ShadowSettings = ShadowSettings {
    cache_bytes: 4 << 20,
    filter_bytes: 1 << 20,
    seed: 7,
    access_times: harp_fs::atime::AccessTimes::Relative,
};

impl World {
    pub fn new() -> World {
        World::with(SETTINGS, CAPACITY_BLOCKS)
    }

    pub fn with(settings: ShadowSettings, capacity_blocks: u64) -> World {
        let now = Time { seconds: 1_000, nanos: 0 };
        World {
            volume: Volume::new(
                b"a group of three",
                1,
                b"key of the group",
                0,
                capacity_blocks,
                1 << 20,
            ),
            primary: Copy::new(settings, now),
            backup: Copy::new(settings, now),
            ring: vec![0; RING_BYTES],
            pos: 0,
            records: Vec::new(),
            now,
            fetches: 0,
            stale_fetches: false,
            room: Room::ENDLESS,
        }
    }

    pub fn fp(&self) -> u64 {
        self.records.len() as u64
    }

    fn tick(&mut self) {
        self.now.nanos += 1;
        assert!(self.now.nanos < 1_000_000_000);
    }

    /// Runs one request at the primary; a record is applied at both copies.
    pub fn call(&mut self, who: &model::Who, request: &Request<'_>) -> Reply {
        self.tick();
        let groups: Vec<u8> = who.groups.iter().flat_map(|g| g.to_be_bytes()).collect();
        let credential = Credential { uid: who.uid, gid: who.gid, groups_be: &groups };
        for round in 0..ROUNDS_MAX {
            let (mut data, mut needs) = (vec![0xee], Vec::new());
            let (past, room) = self.ring.split_at_mut(self.pos);
            let ring = Ring(past);
            let context = Context {
                credential,
                now: self.now,
                volume: &self.volume,
                log: &ring,
                room: self.room,
            };
            let shadow = &mut self.primary.shadow;
            match plan(shadow, request, &context, room, &mut data, &mut needs) {
                Planned::Need => self.fetch(&needs, round),
                Planned::Answer { response, shows, failed_modification } => {
                    assert!(needs.is_empty() && data.remove(0) == 0xee);
                    assert!(shows <= self.fp(), "an answer shows what happened");
                    return Reply { response, data, recorded: false, failed_modification, shows };
                }
                Planned::Record { response, effects_len } => {
                    assert!(needs.is_empty() && data.len() == 1);
                    let bound = harp_fs::effect::effects_len_max(request);
                    assert!(effects_len <= bound, "{effects_len} > {bound}: {request:?}");
                    self.plan_again(credential, request, effects_len, &response);
                    self.append(effects_len);
                    let shows = self.fp();
                    let failed_modification = false;
                    data.clear();
                    return Reply { response, data, recorded: true, failed_modification, shows };
                }
            }
        }
        panic!("after {ROUNDS_MAX} rounds still lacking something for {request:?}");
    }

    /// Planning changes nothing: done again, it gives the same.
    fn plan_again(
        &mut self,
        credential: Credential<'_>,
        request: &Request<'_>,
        len: usize,
        response: &Response,
    ) {
        let (past, room) = self.ring.split_at_mut(self.pos);
        let ring = Ring(past);
        let context = Context {
            credential,
            now: self.now,
            volume: &self.volume,
            log: &ring,
            room: self.room,
        };
        let (first, room) = room.split_at_mut(len);
        let shadow = &mut self.primary.shadow;
        match plan(shadow, request, &context, room, &mut Vec::new(), &mut Vec::new()) {
            Planned::Record { response: again, effects_len } => {
                assert_eq!((&again, effects_len), (response, len));
                assert!(room[..len] == *first, "the same effects");
            }
            planned => panic!("{planned:?} the second time"),
        }
    }

    fn append(&mut self, len: usize) {
        self.records.push((self.pos, len));
        self.pos += len;
        let op = self.fp();
        self.apply_at_primary(op);
        self.apply_at_backup(op);
    }

    fn fetch(&mut self, needs: &[Need], round: usize) {
        assert!(!needs.is_empty(), "a plan that lacks something says what");
        self.fetches += 1;
        let copy = &mut self.primary;
        // A stale answer may be ignored, then the plan asks again.
        let turn = round.is_multiple_of(2) && self.fetches.is_multiple_of(3);
        let stale = self.stale_fetches && turn;
        let image = if stale { &copy.image_before } else { &copy.image };
        for need in needs {
            let fetched = need.fetch(image).expect("the image is sound");
            copy.shadow.fetched(fetched);
        }
    }

    pub fn apply_at_primary(&mut self, op: u64) {
        let (pos, len) = self.records[op as usize - 1];
        let effects = &self.ring[pos..pos + len];
        let log = Ring(&self.ring);
        self.primary.shadow.apply(op, effects, pos as u64, &log).expect("own effects apply");
    }

    pub fn apply_at_backup(&mut self, op: u64) {
        let (pos, len) = self.records[op as usize - 1];
        let effects = &self.ring[pos..pos + len];
        let log = Ring(&self.ring);
        self.backup.shadow.apply(op, effects, pos as u64, &log).expect("own effects apply");
    }

    /// Ends the checkpoints under way.
    pub fn checkpoint_primary(&mut self) {
        self.primary.checkpoint(&Ring(&self.ring));
    }

    pub fn checkpoint_backup(&mut self) {
        self.backup.checkpoint(&Ring(&self.ring));
    }

    /// Fetches what the primary's filters want, if anything.
    pub fn serve_filters(&mut self) {
        if let Some(need) = self.primary.shadow.wanted() {
            self.fetch(&[need], 1);
        }
    }

    /// Moves some of what was checkpointed into the cache.
    pub fn drain(&mut self, objects: usize) {
        self.primary.shadow.drain(objects, &Ring(&self.ring));
    }

    /// The primary forgets everything and applies the log above its image again, from `from` on,
    /// which is at or below the image's op + 1.
    pub fn replay_primary_from(&mut self, from: u64) {
        assert!(from <= self.primary.image.op + 1);
        self.primary.frozen = None;
        self.primary.shadow.reset(from - 1);
        (from..=self.fp()).for_each(|op| self.apply_at_primary(op));
    }

    /// Both copies bring their images to the end of the log; gives the primary's.
    pub fn settle(&mut self) -> &Image {
        for _ in 0..2 {
            self.primary.freeze();
            self.backup.freeze();
            self.checkpoint_primary();
            self.checkpoint_backup();
        }
        assert_eq!(self.primary.image.op, self.fp());
        assert!(self.primary.image == self.backup.image, "copies differ at op {}", self.fp());
        &self.primary.image
    }

    pub fn root(&self) -> Vec<u8> {
        self.volume.handles.make(ROOT, 1).as_slice().to_vec()
    }
}

/// Requests that tests make often.
impl World {
    pub fn create(&mut self, who: &model::Who, dir: &[u8], name: &[u8], mode: u32) -> Vec<u8> {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        let what = DirName { dir, name };
        made(self.call(who, &Request::Create { what, how: CreateHow::Guarded(set) }))
    }

    pub fn mkdir(&mut self, who: &model::Who, dir: &[u8], name: &[u8], mode: u32) -> Vec<u8> {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        made(self.call(who, &Request::MkDir { what: DirName { dir, name }, set }))
    }

    pub fn remove(&mut self, who: &model::Who, dir: &[u8], name: &[u8]) -> Status {
        status(&self.call(who, &Request::Remove { what: DirName { dir, name } }).response)
    }

    pub fn write(&mut self, who: &model::Who, handle: &[u8], offset: u64, data: &[u8]) -> Status {
        let count = data.len() as u32;
        status(&self.call(who, &Request::Write { handle, offset, count, stable: 2, data }).response)
    }

    pub fn read(&mut self, who: &model::Who, handle: &[u8], offset: u64, count: u32) -> Vec<u8> {
        self.call(who, &Request::Read { handle, offset, count }).data
    }

    pub fn lookup(&mut self, who: &model::Who, dir: &[u8], name: &[u8]) -> Result<Vec<u8>, Status> {
        match self.call(who, &Request::Lookup { what: DirName { dir, name } }).response {
            Response::Lookup { ok: Some(handle), .. } => Ok(handle.as_slice().to_vec()),
            response => Err(status(&response)),
        }
    }

    pub fn attributes(&mut self, handle: &[u8]) -> Result<Attributes, Status> {
        match self.call(&root(), &Request::GetAttr { handle }).response {
            Response::GetAttr { ok: Some(attributes), .. } => Ok(attributes),
            response => Err(status(&response)),
        }
    }

    /// The names of a directory in listing order, "." and ".." left out, with their cookies.
    pub fn names(&mut self, dir: &[u8], count: u32) -> Vec<(Vec<u8>, u64, u64)> {
        let (mut cookie, mut all) = (0, Vec::new());
        loop {
            let request = Request::ReadDir { handle: dir, cookie, verifier: [0; 8], count };
            let Response::ReadDir { status: Status::Ok, listing, .. } =
                self.call(&root(), &request).response
            else {
                panic!("a directory lists");
            };
            for entry in &listing.entries {
                assert!(entry.cookie > cookie, "cookies ascend");
                cookie = entry.cookie;
                if cookie > 2 {
                    all.push((listing.names[entry.name.clone()].to_vec(), cookie, entry.fileid));
                }
            }
            if listing.end {
                return all;
            }
            assert!(!listing.entries.is_empty(), "a listing gets ahead");
        }
    }
}

/// The superuser.
pub fn root() -> model::Who {
    model::Who { uid: 0, gid: 0, groups: Vec::new() }
}

/// An ordinary user with a group of the same number.
pub fn user(uid: u32) -> model::Who {
    model::Who { uid, gid: uid, groups: Vec::new() }
}

/// The new object's handle.
pub fn made(reply: Reply) -> Vec<u8> {
    match reply.response {
        Response::Create { status: Status::Ok, ok: Some(handle), .. } => handle.as_slice().to_vec(),
        response => panic!("not created: {response:?}"),
    }
}

/// The status of any response.
pub fn status(response: &Response) -> Status {
    match response {
        Response::Null => Status::Ok,
        Response::GetAttr { status, .. }
        | Response::Wcc { status, .. }
        | Response::Lookup { status, .. }
        | Response::Access { status, .. }
        | Response::ReadLink { status, .. }
        | Response::Read { status, .. }
        | Response::Write { status, .. }
        | Response::Create { status, .. }
        | Response::Rename { status, .. }
        | Response::Link { status, .. }
        | Response::ReadDir { status, .. }
        | Response::ReadDirPlus { status, .. }
        | Response::FsStat { status, .. }
        | Response::FsInfo { status, .. }
        | Response::PathConf { status, .. }
        | Response::Commit { status, .. } => *status,
    }
}

/// Sets nothing but the mode.
pub fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

/// The kinds MKNOD makes.
pub const SPECIAL: [FileType; 4] =
    [FileType::Block, FileType::Character, FileType::Socket, FileType::Fifo];
