//! Clients: what they ask, and what they remember of the answers.
//! Owns: each client's outstanding requests and the objects it knows; the mix of requests.
//! Never: gives up on a request, or changes one that was sent.
//! Invariant: a request is outstanding until its first reply arrives.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use harp_node::fs::request::Status;

use crate::intent::{How, Intent};
use crate::model::{Answer, Ino, Kind, Model, ROOT};
use crate::names::Name;
use crate::profile::ClientProfile;
use crate::rng::Rng;

/// Objects of a kind that a client remembers.
const KNOWN_MAX: usize = 12;
const BLOCK: u64 = 4096;
/// Blocks that clients write to, from a file's start.
const BLOCKS: u64 = 8;

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// The user who calls.
    pub user: u32,
    /// Its connection, if it has one.
    pub conn: Option<u32>,
    /// Numbers of its outstanding requests, oldest first.
    pub open: Vec<u32>,
    /// When it heard something last, or sent a request when nothing was outstanding.
    pub heard_at: u64,
    /// When its next look is due.
    pub look_at: u64,
    /// When it wants to ask for more.
    pub burst_at: u64,
    /// What it has been told to ask, before anything of its own.
    pub told: VecDeque<Intent>,
    /// The supervisor does not move it to another server.
    pub pinned: bool,
    /// Replies to it are lost.
    pub deaf: bool,
    /// Modifications that it was told succeeded.
    pub successes: u64,
    files: Vec<Ino>,
    directories: Vec<Ino>,
    mounted: bool,
    mounting: bool,
}

impl Client {
    /// The client with this number, at which this user works.
    pub fn new(number: u32, user: u32) -> Client {
        Client {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1 + number as u8)),
            user,
            conn: None,
            open: Vec::new(),
            heard_at: 0,
            look_at: u64::MAX,
            burst_at: 0,
            told: VecDeque::new(),
            pinned: false,
            deaf: false,
            successes: 0,
            files: Vec::new(),
            directories: Vec::new(),
            mounted: false,
            mounting: false,
        }
    }

    /// What it asks next; `None` while it waits for its mount.
    pub fn next(&mut self, profile: &ClientProfile, tag: u64, rng: &mut Rng) -> Option<Intent> {
        if !self.mounted {
            let first = !std::mem::replace(&mut self.mounting, true);
            return first.then_some(Intent::Mount);
        }
        if let Some(intent) = self.told.pop_front() {
            return Some(intent);
        }
        Some(self.draw(profile, tag, rng))
    }

    /// Whether it has the root's handle.
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    fn directory(&self, rng: &mut Rng) -> Ino {
        match self.directories.len() as u64 {
            0 => ROOT,
            _ if rng.chance(500) => ROOT,
            count => self.directories[rng.below(count) as usize],
        }
    }

    fn file(&self, rng: &mut Rng) -> Option<Ino> {
        let count = self.files.len() as u64;
        (count > 0).then(|| self.files[rng.below(count) as usize])
    }

    fn draw(&self, profile: &ClientProfile, tag: u64, rng: &mut Rng) -> Intent {
        let name = |rng: &mut Rng| Name::file(rng.below(profile.files as u64) as u8);
        let sub = |rng: &mut Rng| Name::directory(rng.below(profile.directories as u64) as u8);
        let dir = self.directory(rng);
        let mode = [0o600, 0o644, 0o755, 0o777][rng.below(4) as usize];
        let by_handle = self.file(rng).filter(|_| rng.chance(550));
        if let Some(ino) = by_handle {
            return self.draw_by_handle(ino, mode, tag, rng);
        }
        match rng.below(100) {
            0..=29 => {
                let how = match rng.below(6) {
                    0 | 1 => How::Unchecked(None),
                    2 => How::Unchecked(Some(rng.below(3) * 3000)),
                    3 | 4 => How::Guarded,
                    _ => How::Exclusive(tag),
                };
                Intent::Create { dir, name: name(rng), how, mode }
            }
            30..=44 => Intent::Remove { dir, name: name(rng) },
            45..=56 => {
                Intent::Rename { from: (dir, name(rng)), to: (self.directory(rng), name(rng)) }
            }
            57..=60 => {
                Intent::Rename { from: (dir, sub(rng)), to: (self.directory(rng), sub(rng)) }
            }
            61..=66 => Intent::MkDir { dir, name: sub(rng), mode: mode | 0o700 },
            67..=70 => Intent::RmDir { dir, name: sub(rng) },
            71..=86 => Intent::Lookup { dir, name: name(rng) },
            87..=90 => Intent::Lookup { dir, name: sub(rng) },
            91..=94 => Intent::ReadDir { dir },
            _ => Intent::GetAttr { ino: dir },
        }
    }

    fn draw_by_handle(&self, ino: Ino, mode: u32, tag: u64, rng: &mut Rng) -> Intent {
        let block = rng.below(BLOCKS);
        match rng.below(100) {
            0..=29 => Intent::Write { ino, offset: block * BLOCK, count: BLOCK as u32, tag },
            30..=44 => {
                let offset = rng.below(BLOCKS * BLOCK - 300);
                Intent::Write { ino, offset, count: rng.between(1, 300) as u32, tag }
            }
            45..=49 => {
                let (offset, count) = (rng.below(4) * BLOCK, rng.between(1, 4) * BLOCK);
                Intent::Write { ino, offset, count: count as u32, tag }
            }
            50..=74 => {
                let offset = rng.below(BLOCKS) * BLOCK + rng.below(2) * 100;
                Intent::Read { ino, offset, count: rng.between(1, 2 * BLOCK) as u32 }
            }
            75..=89 => Intent::GetAttr { ino },
            90..=95 => Intent::Truncate { ino, size: rng.below(BLOCKS * BLOCK) },
            _ => Intent::Chmod { ino, mode },
        }
    }

    /// Takes in an answer.
    pub fn learn(&mut self, intent: &Intent, answer: Answer, model: &Model, rng: &mut Rng) {
        if answer.status == Some(Status::Stale) {
            let gone = match *intent {
                Intent::GetAttr { ino } | Intent::Read { ino, .. } | Intent::Write { ino, .. } => {
                    ino
                }
                Intent::Truncate { ino, .. } | Intent::Chmod { ino, .. } => ino,
                Intent::ReadDir { dir } | Intent::Lookup { dir, .. } => dir,
                Intent::Create { dir, .. } | Intent::MkDir { dir, .. } => dir,
                Intent::Remove { dir, .. } | Intent::RmDir { dir, .. } => dir,
                Intent::Rename { from, .. } => from.0,
                Intent::Mount => return,
            };
            // Now and then it goes on with a handle that is of no use.
            if rng.chance(800) {
                self.files.retain(|ino| *ino != gone);
                self.directories.retain(|ino| *ino != gone);
            }
        }
        match *intent {
            Intent::Mount => self.mounted |= answer.status == Some(Status::Ok),
            Intent::Create { .. } | Intent::Lookup { .. } | Intent::MkDir { .. } => {
                if let Some(ino) = answer.ino {
                    self.remember(ino, model, rng);
                }
            }
            _ => {}
        }
    }

    fn remember(&mut self, ino: Ino, model: &Model, rng: &mut Rng) {
        if model.handle(ino).is_none() || ino == ROOT {
            return;
        }
        let known = match model.kind(ino) {
            Kind::File => &mut self.files,
            Kind::Directory => &mut self.directories,
        };
        if known.contains(&ino) {
            return;
        }
        if known.len() >= KNOWN_MAX {
            let at = rng.below(known.len() as u64) as usize;
            known.swap_remove(at);
        }
        known.push(ino);
    }
}
