//! Platter: the files of one directory as a disk has them, with what it may yet lose.
//! Owns: what is durable, what is only written, and what a power cut leaves.
//! Never: keeps what was not synced because it was written earlier than something that was.
//! Invariant: a sector holds what was durable there, or what one of the writes since put there.
//! Source: POSIX: only a sync makes data durable, only a sync of a directory its entries.

use crate::common::Random;
use crate::trace::Event;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Bytes that a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What a disk does not do although it was told to, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignores {
    /// Syncs of the metadata's file.
    MetadataSyncs,
    /// That a write of the metadata's head is to be durable when it returns.
    WriteThrough,
    /// Syncs of the data segments.
    DataSyncs,
    /// Syncs of the directory.
    DirectorySyncs,
}

impl Ignores {
    pub const ALL: [Ignores; 4] = [
        Ignores::MetadataSyncs,
        Ignores::WriteThrough,
        Ignores::DataSyncs,
        Ignores::DirectorySyncs,
    ];
}

#[derive(Clone, Debug)]
enum Pending {
    Written { at: u64, data: Vec<u8> },
    SetLength(u64),
}

#[derive(Clone, Debug, Default)]
struct File {
    /// Whether its name is durable.
    named: bool,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

/// The files.
#[derive(Debug, Default)]
pub struct Platter {
    files: BTreeMap<String, File>,
    /// What it does not do from now on.
    pub ignores: Option<Ignores>,
}

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing of it.
    Nothing,
    /// Sectors as this seed says: few, half, or most of them.
    Some(u64),
}

/// The file that LMDB keeps.
const METADATA: &str = "data.mdb";

impl Platter {
    /// Something was done. What makes it durable at once is left to [`Platter::returned`].
    pub fn begun(&mut self, event: &Event) {
        match event {
            Event::Made { file } => {
                self.files.entry(file.clone()).or_default();
            }
            Event::Written { file, at, data, .. } => {
                let written = Pending::Written { at: *at, data: data.clone() };
                self.file(file).pending.push(written);
            }
            Event::SetLength { file, length } => {
                self.file(file).pending.push(Pending::SetLength(*length));
            }
            Event::Synced { .. } | Event::DirectorySynced | Event::Said(_) => {}
        }
    }

    /// The call returned.
    pub fn returned(&mut self, event: &Event) -> Result<(), String> {
        let ignores = self.ignores;
        match event {
            Event::Synced { file } => {
                let ignored = match file == METADATA {
                    true => ignores == Some(Ignores::MetadataSyncs),
                    false => ignores == Some(Ignores::DataSyncs),
                };
                if !ignored {
                    self.file(file).sync();
                }
            }
            Event::Written { file, at, data, through: true }
                if ignores != Some(Ignores::WriteThrough) =>
            {
                self.file(file).write_through(*at, data.len() as u64, ignores.is_some())?;
            }
            Event::DirectorySynced if ignores != Some(Ignores::DirectorySyncs) => {
                self.files.values_mut().for_each(|file| file.named = true);
            }
            _ => {}
        }
        Ok(())
    }

    fn file(&mut self, file: &str) -> &mut File {
        self.files.get_mut(file).expect("a file is made before it is used")
    }

    /// Whether anything could be lost.
    pub fn is_settled(&self) -> bool {
        self.files.values().all(|file| file.named && file.pending.is_empty())
    }

    /// Writes the files into an empty directory as the power cut leaves them.
    pub fn cut(&self, rest: Rest, dir: &Path) -> io::Result<()> {
        let mut random = match rest {
            Rest::Nothing => None,
            Rest::Some(seed) => Some(Random::seeded(seed)),
        };
        let part = random.as_mut().map_or(0, |random| [1, 4, 7][random.below(3) as usize]);
        for (name, file) in &self.files {
            let mut survives = || random.as_mut().is_some_and(|random| random.below(8) < part);
            if file.named || survives() {
                std::fs::write(dir.join(name), file.left(&mut survives))?;
            }
        }
        Ok(())
    }
}

impl File {
    fn sync(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            put(&mut self.durable, &pending, &mut || true);
        }
    }

    /// The newest write became durable, and nothing before it.
    fn write_through(&mut self, at: u64, length: u64, may_overlap: bool) -> Result<(), String> {
        let through = self.pending.pop().expect("it was just begun");
        let crosses = |pending: &Pending| match pending {
            Pending::Written { at: other, data } => {
                at < other + data.len() as u64 && *other < at + length
            }
            Pending::SetLength(_) => true,
        };
        if !may_overlap && self.pending.iter().any(crosses) {
            return Err("a durable write over one that is not: which is left is not known".into());
        }
        put(&mut self.durable, &through, &mut || true);
        Ok(())
    }

    fn left(&self, survives: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let mut left = self.durable.clone();
        self.pending.iter().for_each(|pending| put(&mut left, pending, survives));
        left
    }
}

/// Puts those sectors of a write into `bytes` that survive.
fn put(bytes: &mut Vec<u8>, pending: &Pending, survives: &mut dyn FnMut() -> bool) {
    match pending {
        Pending::SetLength(length) => {
            if survives() {
                bytes.resize(*length as usize, 0);
            }
        }
        Pending::Written { at, data } => {
            let (mut from, end) = (*at, at + data.len() as u64);
            while from < end {
                let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
                if survives() {
                    if bytes.len() < to as usize {
                        bytes.resize(to as usize, 0);
                    }
                    let part = &data[(from - at) as usize..(to - at) as usize];
                    bytes[from as usize..to as usize].copy_from_slice(part);
                }
                from = to;
            }
        }
    }
}
