//! Generator: the next operation, at random, from a seed.
//! Owns: the random numbers, the small set of names, and the weights.
//! Never: knows whether an operation will succeed; about half of them do.
//! Invariant: the same seed and the same objects give the same operation.
//! Source: none; collisions are what it is after.

use std::collections::BTreeMap;

use harp_bench::request::{CreateHow, FileType, SetAttr, SetTime, Time};

use super::object::{Object, SET_AFTER, SET_BEFORE};
use super::operation::{At, Guard, Operation};
use super::rules::FILE_SIZE_MAX;
use super::user::{USERS, User};
use crate::random::Random;

/// The lane's own directory among its objects; before it comes the root that all lanes share.
pub const HOME: usize = 1;
/// Above so many living objects more are removed than made.
const OBJECTS_MANY: usize = 40;
/// How many directories are tried when it is to be a name that is there.
const DIRECTORIES_TRIED: usize = 4;
/// Names that entries can have.
const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d", b"e", b"f\xff\xfe", b"with a space"];
/// Where files are written: in front, and far out, so that files have holes.
pub const WINDOWS: [u64; 4] = [0, 1 << 20, (1 << 32) - 8192, 1 << 40];
/// How far a window goes.
pub const WINDOW_BYTES: u64 = 160 << 10;
/// Longest WRITE.
const WRITE_BYTES_MAX: u64 = 64 << 10;

/// Chooses operations on the objects as they are.
pub struct Generator<'a> {
    pub random: &'a mut Random,
    pub objects: &'a [Object],
    /// The names in a directory, and what kind of object each leads to.
    pub names: &'a dyn Fn(usize) -> BTreeMap<Vec<u8>, FileType>,
}

impl Generator<'_> {
    /// The next operation, and who performs it.
    pub fn next(&mut self) -> (&'static User, Operation) {
        let living = self.objects.iter().filter(|object| !object.dead).count();
        // Root keeps the tree from filling and closing up.
        if living > OBJECTS_MANY && self.random.percent(30) {
            let directory = self.random.percent(60);
            let at = self.name_of(100, |kind| directory == (kind == FileType::Directory));
            let purge = if directory { Operation::RmDir { at } } else { Operation::Remove { at } };
            return (User::ROOT, purge);
        }
        let user = if self.random.percent(15) { User::ROOT } else { self.random.of(USERS) };
        (user, self.operation())
    }

    fn operation(&mut self) -> Operation {
        match self.random.below(100) {
            0..6 => Operation::GetAttr { object: self.anything() },
            6..20 => self.set_attributes(),
            20..25 => Operation::Lookup { at: self.any_name(60) },
            25..30 => {
                let want = if self.random.percent(70) { 0x3f } else { self.random.below(64) };
                Operation::Access { object: self.anything(), want: want as u32 }
            }
            30..32 => Operation::ReadLink { object: self.one_of(FileType::Symlink) },
            32..40 => self.read(),
            40..51 => self.write(),
            51..54 => self.list(),
            54..59 => self.link(),
            59..69 => self.rename(),
            69..75 => self.remove(),
            75..78 => self.remove_directory(),
            78..88 => self.create(),
            88..94 => Operation::MkDir { at: self.any_name(15), set: self.settings_of_new(false) },
            94..97 => self.symlink(),
            _ => self.node(),
        }
    }

    fn one_of(&mut self, kind: FileType) -> usize {
        let fitting = |object: &&usize| {
            let object = &self.objects[**object];
            object.kind == kind && !object.dead
        };
        let places: Vec<usize> = (HOME..self.objects.len()).collect();
        let fitting: Vec<usize> = places.iter().filter(fitting).copied().collect();
        if fitting.is_empty() || self.random.percent(6) {
            self.anything()
        } else {
            *self.random.of(&fitting)
        }
    }

    /// Any object, now and then one that is gone.
    fn anything(&mut self) -> usize {
        let places: Vec<usize> = (HOME..self.objects.len()).collect();
        loop {
            let place = *self.random.of(&places);
            if !self.objects[place].dead || self.random.percent(10) {
                return place;
            }
        }
    }

    fn directory(&mut self) -> usize {
        self.one_of(FileType::Directory)
    }

    /// A name; in so many of a hundred cases one that is there.
    fn any_name(&mut self, there: u64) -> At {
        self.name_of(there, |_| true)
    }

    fn name_of(&mut self, there: u64, kind: impl Fn(FileType) -> bool) -> At {
        let tries = if self.random.percent(there) { DIRECTORIES_TRIED } else { 0 };
        for _ in 0..tries {
            let dir = self.directory();
            let names = (self.names)(dir);
            let fitting: Vec<&Vec<u8>> =
                names.iter().filter(|(_, k)| kind(**k)).map(|(name, _)| name).collect();
            if !fitting.is_empty() {
                return At { dir, name: self.random.of(&fitting).to_vec() };
            }
        }
        At { dir: self.directory(), name: self.name() }
    }

    fn name(&mut self) -> Vec<u8> {
        if !self.random.percent(4) {
            return self.random.of(NAMES).to_vec();
        }
        match self.random.below(7) {
            0 => b".".to_vec(),
            1 => b"..".to_vec(),
            2 => Vec::new(),
            3 => b"a/b".to_vec(),
            4 => b"a\0b".to_vec(),
            5 => vec![b'x'; 255],
            _ => vec![b'y'; 256],
        }
    }

    fn mode(&mut self) -> u32 {
        let common = [0o644, 0o664, 0o600, 0o755, 0o777, 0o775, 0o750, 0o666, 0o711, 0o444, 0o077];
        let mut mode = match self.random.below(10) {
            0 => self.random.below(0o1000) as u32,
            _ => *self.random.of(&common),
        };
        if self.random.percent(20) {
            mode |= *self.random.of(&[0o1000, 0o2000, 0o4000, 0o6000, 0o7000]);
        }
        mode
    }

    fn directory_mode(&mut self) -> u32 {
        let common =
            [0o777, 0o775, 0o755, 0o1777, 0o2777, 0o2775, 0o750, 0o700, 0o555, 0o733, 0o3770];
        if self.random.percent(5) { self.mode() } else { *self.random.of(&common) }
    }

    fn time(&mut self) -> SetTime {
        match self.random.below(3) {
            0 => SetTime::Keep,
            1 => SetTime::ToServer,
            _ => SetTime::ToClient(self.given_time()),
        }
    }

    fn given_time(&mut self) -> Time {
        let nanos = self.random.below(1_000_000_000) as u32;
        match self.random.below(20) {
            0 => Time { seconds: 0, nanos: 0 },
            1 => Time { seconds: u32::MAX, nanos: 999_999_999 },
            2 => Time { seconds: SET_AFTER + 1, nanos },
            _ => Time { seconds: self.random.below(SET_BEFORE.into()) as u32, nanos },
        }
    }

    fn group(&mut self) -> u32 {
        *self.random.of(&[0, 1000, 1001, 1002, 2000, 3001, 3015, 65534])
    }

    fn owner(&mut self) -> u32 {
        self.random.of(USERS).uid
    }

    fn size(&mut self, now: u64) -> u64 {
        match self.random.below(12) {
            0 => 0,
            1 => now,
            2 => now.saturating_sub(1),
            3 => now / 2,
            4 => (now / 4096) * 4096,
            5 => 4096 * (1 + self.random.below(8)),
            6 => self.random.of(&WINDOWS) + self.random.below(WINDOW_BYTES),
            7 => self.random.below(1 << 41),
            _ => self.random.below(20_000),
        }
    }

    /// SETATTR: mostly what system calls of a client come as, now and then anything at once.
    fn set_attributes(&mut self) -> Operation {
        let object =
            if self.random.percent(50) { self.one_of(FileType::Regular) } else { self.anything() };
        let now = self.objects[object].served_size();
        let directory = self.objects[object].kind == FileType::Directory;
        let mut set = SetAttr::default();
        match self.random.below(20) {
            0..5 if directory => set.mode = Some(self.directory_mode()),
            0..5 => set.mode = Some(self.mode()),
            5..7 => set.gid = Some(self.group()),
            7 => set.uid = Some(self.owner()),
            8 => (set.uid, set.gid) = (Some(self.owner()), Some(self.group())),
            9..14 => set.size = Some(self.size(now)),
            14..16 => {
                // As `open` with O_TRUNC comes.
                set.size = Some(0);
                set.mtime = SetTime::ToServer;
            }
            16..19 => (set.atime, set.mtime) = (self.time(), self.time()),
            _ => self.set_anything(&mut set, now),
        }
        if directory && object == HOME && set.mode.is_some() {
            // A lane whose home is closed to most would be a dull one.
            set.mode = Some(*self.random.of(&[0o777, 0o1777, 0o2777]));
        }
        if self.objects[object].kind == FileType::Symlink {
            // Linux keeps none, and says so; Harp does, for clients that set one.
            set.mode = None;
        }
        let guard = match self.random.below(12) {
            0 => Guard::Right,
            1 => Guard::Wrong,
            _ => Guard::None,
        };
        Operation::SetAttr { object, set, guard }
    }

    fn set_anything(&mut self, set: &mut SetAttr, now: u64) {
        if self.random.percent(30) {
            set.mode = Some(self.mode());
        }
        if self.random.percent(30) {
            set.uid = Some(self.owner());
        }
        if self.random.percent(30) {
            set.gid = Some(self.group());
        }
        if self.random.percent(50) {
            set.size = Some(self.size(now));
        }
        (set.atime, set.mtime) = (self.time(), self.time());
        match self.random.below(10) {
            0 => set.size = Some(FILE_SIZE_MAX),
            1 => set.size = Some(FILE_SIZE_MAX + 1),
            _ => {}
        }
    }

    fn settings_of_new(&mut self, file: bool) -> SetAttr {
        let mut set = SetAttr { mode: Some(0), ..SetAttr::default() };
        set.mode = Some(if file { self.mode() } else { self.directory_mode() });
        if self.random.percent(10) {
            (set.uid, set.gid) = (Some(self.owner()), Some(self.group()));
        }
        if self.random.percent(10) {
            (set.atime, set.mtime) = (self.time(), self.time());
        }
        set
    }

    fn create(&mut self) -> Operation {
        let at = self.any_name(40);
        let mut set = self.settings_of_new(true);
        if self.random.percent(25) {
            set.size = Some(self.size(0));
        }
        let how = match self.random.below(5) {
            0 | 1 => CreateHow::Unchecked(set),
            2 | 3 => CreateHow::Guarded(set),
            // Few verifiers, so that some meet again.
            _ => CreateHow::Exclusive([1 + self.random.below(3) as u8; 8]),
        };
        Operation::Create { at, how }
    }

    fn symlink(&mut self) -> Operation {
        let at = self.any_name(15);
        let length = match self.random.below(20) {
            0 => 0,
            1 => 4095,
            2 => 4096,
            _ => 1 + self.random.below(40) as usize,
        };
        let target = (0..length).map(|_| *self.random.of(b"abc/.\xff")).collect();
        let mut set = self.settings_of_new(true);
        if self.random.percent(70) {
            set = SetAttr::default();
        }
        Operation::SymLink { at, set, target }
    }

    fn node(&mut self) -> Operation {
        use FileType::*;
        let at = self.any_name(15);
        let kind = *self.random.of(&[Fifo, Fifo, Socket, Socket, Block, Character, Regular]);
        // Never 0:0: Linux lets anybody make that character device, as what overlayfs takes for the
        // absence of a file; elsewhere devices are root's.
        let device = (1 + self.random.below(255) as u32, self.random.below(256) as u32);
        Operation::MkNod { at, kind, set: self.settings_of_new(true), device }
    }

    fn offset(&mut self, now: u64) -> u64 {
        let window = match self.random.below(10) {
            0..7 => WINDOWS[0],
            _ => *self.random.of(&WINDOWS),
        };
        let inside = window + self.random.below(WINDOW_BYTES - WRITE_BYTES_MAX);
        match self.random.below(4) {
            // At the end, as when appending, as long as that is where files are written.
            0 if now < WINDOW_BYTES - WRITE_BYTES_MAX => now,
            1 => inside / 4096 * 4096,
            2 => window + self.random.below(4096),
            _ => inside,
        }
    }

    fn read(&mut self) -> Operation {
        let object = self.one_of(FileType::Regular);
        let now = self.objects[object].served_size();
        let offset = if self.random.percent(10) { now } else { self.offset(now) };
        let count = match self.random.below(6) {
            0 => 0,
            1 => 4096,
            2 => 128 << 10,
            _ => self.random.below(20_000) as u32,
        };
        Operation::Read { object, offset, count }
    }

    fn write(&mut self) -> Operation {
        let object = self.one_of(FileType::Regular);
        let offset = self.offset(self.objects[object].served_size());
        let length = match self.random.below(12) {
            0 => 0,
            1 => 4096,
            2 => 8192,
            3 => self.random.below(WRITE_BYTES_MAX),
            4 => WRITE_BYTES_MAX,
            5..8 => self.random.below(10_000),
            _ => 1 + self.random.below(300),
        };
        let mut bytes = Random(self.random.next());
        let data = (0..length.div_ceil(8)).flat_map(|_| bytes.next().to_be_bytes());
        Operation::Write { object, offset, data: data.take(length as usize).collect() }
    }

    fn list(&mut self) -> Operation {
        let plus = self.random.percent(50);
        // The least that always holds an entry with the longest name, or more.
        let bytes = if plus { 640 } else { 400 } + self.random.below(3000) as u32;
        Operation::List { object: self.directory(), bytes, plus }
    }

    fn link(&mut self) -> Operation {
        let object =
            if self.random.percent(50) { self.one_of(FileType::Regular) } else { self.anything() };
        Operation::Link { object, to: self.any_name(20) }
    }

    fn rename(&mut self) -> Operation {
        let from = self.any_name(85);
        let mut to = self.any_name(50);
        if self.random.percent(30) {
            to.dir = from.dir;
        }
        Operation::Rename { from, to }
    }

    fn remove(&mut self) -> Operation {
        let at = self.name_of(85, |kind| kind != FileType::Directory);
        Operation::Remove { at }
    }

    fn remove_directory(&mut self) -> Operation {
        let at = self.name_of(85, |kind| kind == FileType::Directory);
        Operation::RmDir { at }
    }
}
