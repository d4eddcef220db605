//! Testing: an image and a log in memory, and a world of objects that needs neither.
//! Owns: the independent model that the shadow's tests compare with.
//! Never: leaves the tests; shares code with the layers it judges, the row formats apart.
//! Invariant: the model is changed before the effects that say so are written.
//! Source: docs/testing.md.

use std::collections::BTreeMap;

use crate::blocks::LogBytes;
use crate::effect::EffectWriter;
use crate::generation::Generation;
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, Block, Entry, Inode, ROOT, Super, blocks_of};
use crate::key;
use crate::need::{ImageError, ImageReader};
use crate::objects::blank;
use crate::request::{FileType, Time};

/// Numbers that look random and are the same every time.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.roll(from.len() as u64) as usize])
    }
}

/// A log that never forgets.
#[derive(Default)]
pub struct MemLog(pub Vec<u8>);

impl LogBytes for MemLog {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..pos as usize + len as usize]
    }
}

/// An image.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct MemImage {
    pub op: u64,
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    pub blocks: BTreeMap<(u64, u64), Box<Block>>,
}

impl MemImage {
    pub fn formatted() -> MemImage {
        MemImage {
            rows: key::format_rows(Time::default()).into_iter().collect(),
            ..MemImage::default()
        }
    }

    /// Does what the store does with a checkpoint, its order of keys checked.
    pub fn checkpoint(&mut self, generation: &Generation, log: &MemLog) {
        let merged = generation.blocks(log, self).expect("blocks that can be merged");
        let blocks: Vec<_> = merged
            .iter()
            .map(|out| {
                assert_eq!(out.crc, crc32c::crc32c(out.data));
                ((out.ino, out.block), Box::new(*out.data))
            })
            .collect();
        assert!(blocks.is_sorted_by(|a, b| a.0 < b.0));
        let mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        generation
            .metadata(self, &mut |key, value| {
                rows.push((key.to_vec(), value.map(<[u8]>::to_vec)));
                Ok(())
            })
            .expect("rows that can be made");
        assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
        let cuts = generation.cuts();
        assert!(cuts.is_sorted_by(|a, b| a.0 < b.0));
        for (ino, first) in cuts {
            self.blocks.retain(|(file, block), _| *file != ino || *block < first);
        }
        self.blocks.extend(blocks);
        for (key, value) in rows {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        self.op = generation.end();
    }
}

impl ImageReader for MemImage {
    fn op(&self) -> u64 {
        self.op
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        let rows = self.rows.range(from.to_vec()..).take(limit);
        rows.into_iter().all(|(key, value)| show(key, value));
        Ok(())
    }

    fn read_blocks(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        out.fill(0);
        let blocks = out.as_chunks_mut::<BLOCK_BYTES>().0;
        for (at, out) in blocks.iter_mut().enumerate().take(count as usize) {
            if let Some(data) = self.blocks.get(&(file, first + at as u64)) {
                *out = **data;
                held(first + at as u64, 1);
            }
        }
        Ok(())
    }
}

/// The model: every object, plainly.
#[derive(Clone)]
pub struct World {
    pub inodes: BTreeMap<u64, Inode>,
    pub targets: BTreeMap<u64, Vec<u8>>,
    /// (directory, cookie) -> entry and name.
    pub entries: BTreeMap<(u64, u64), (Entry, Vec<u8>)>,
    pub blocks: BTreeMap<(u64, u64), Box<Block>>,
    pub counters: Super,
    pub op: u64,
}

impl World {
    pub fn new() -> World {
        let rows = key::format_rows(Time::default());
        let counters = key::parse_super(&rows[0].1).unwrap();
        let root = key::parse_inode(&rows[1].1).unwrap();
        World {
            inodes: [(ROOT, root)].into(),
            targets: BTreeMap::new(),
            entries: BTreeMap::new(),
            blocks: BTreeMap::new(),
            counters,
            op: 0,
        }
    }

    pub fn of_kind(&self, kind: FileType) -> Vec<u64> {
        let all = self.inodes.iter().filter(|(_, inode)| inode.kind == kind);
        all.map(|(ino, _)| *ino).collect()
    }

    pub fn find(&self, dir: u64, name: &[u8]) -> Option<Entry> {
        let mut all = self.entries.range((dir, 0)..=(dir, u64::MAX));
        all.find(|(_, (_, other))| other == name).map(|(_, (entry, _))| *entry)
    }

    pub fn block(&self, ino: u64, block: u64) -> Block {
        self.blocks.get(&(ino, block)).map_or([0; BLOCK_BYTES], |data| **data)
    }

    /// The image that holds exactly this world.
    pub fn image(&self) -> MemImage {
        let mut rows = BTreeMap::new();
        rows.insert(key::super_key().to_vec(), self.counters.encode().to_vec());
        for (ino, inode) in &self.inodes {
            rows.insert(key::inode_key(*ino).to_vec(), key::inode_value(inode).to_vec());
        }
        for (ino, target) in &self.targets {
            rows.insert(key::target_key(*ino).to_vec(), target.clone());
        }
        for ((dir, cookie), (entry, name)) in &self.entries {
            rows.insert(key::name_key(*dir, name).to_vec(), key::name_value(entry).to_vec());
            let value = key::cookie_value(entry, name).to_vec();
            rows.insert(key::cookie_key(*dir, *cookie).to_vec(), value);
        }
        MemImage { op: self.op, rows, blocks: self.blocks.clone() }
    }

    fn now(&self) -> Time {
        Time { seconds: self.op as u32, nanos: 1 }
    }

    /// Writes down a directory's new attributes.
    fn touch_dir(&mut self, dir: u64, out: &mut EffectWriter<'_>) {
        let count = self.entries.range((dir, 0)..=(dir, u64::MAX)).count() as u64;
        let now = self.now();
        let inode = self.inodes.get_mut(&dir).unwrap();
        (inode.mtime, inode.ctime, inode.entry_count) = (now, now, count);
        out.touch_dir(dir, now, now, inode.nlink, inode.next_cookie, count);
    }

    fn link(&mut self, dir: u64, name: &[u8], ino: u64, out: &mut EffectWriter<'_>) {
        let kind = self.inodes[&ino].kind;
        let parent = self.inodes.get_mut(&dir).unwrap();
        let entry = Entry { ino, cookie: parent.next_cookie, kind };
        parent.next_cookie += 1;
        self.entries.insert((dir, entry.cookie), (entry, name.to_vec()));
        out.link(dir, &entry, name);
        self.touch_dir(dir, out);
    }

    fn unlink(&mut self, dir: u64, cookie: u64, out: &mut EffectWriter<'_>) {
        let (_, name) = self.entries.remove(&(dir, cookie)).unwrap();
        out.unlink(dir, cookie, &name);
        self.touch_dir(dir, out);
    }

    /// One random record.
    pub fn step(&mut self, dice: &mut Dice, out: &mut EffectWriter<'_>) {
        self.op += 1;
        let before = self.counters;
        let dirs = self.of_kind(FileType::Directory);
        let dir = dice.pick(&dirs).unwrap();
        let name = format!("n{}", dice.roll(12)).into_bytes();
        let found = self.find(dir, &name);
        let file = dice.pick(&self.of_kind(FileType::Regular));
        match (dice.roll(10), found, file) {
            (0..=2, None, _) => self.create(dice, dir, &name, out),
            (0..=2, Some(entry), _) => self.remove(dir, entry, out),
            (3, Some(entry), _) => self.rename(dice, dir, entry, out),
            (4, _, Some(file)) => self.truncate(dice, file, out),
            (5, _, Some(file)) => {
                let now = self.now();
                let inode = self.inodes.get_mut(&file).unwrap();
                (inode.uid, inode.ctime) = (dice.roll(99) as u32, now);
                out.set_inode(file, inode);
            }
            (6..=7, _, Some(file)) => self.write_blocks(dice, file, out),
            (8..=9, _, Some(file)) => self.write_range(dice, file, out),
            _ => {}
        }
        if self.counters != before {
            out.set_super(&self.counters);
        }
    }

    fn create(&mut self, dice: &mut Dice, dir: u64, name: &[u8], out: &mut EffectWriter<'_>) {
        use FileType::*;
        let kind = [Regular, Regular, Regular, Directory, Symlink, Fifo][dice.roll(6) as usize];
        let ino = self.counters.next_ino;
        self.counters.next_ino += 1;
        let now = self.now();
        let mut inode = Inode { nlink: 1, mtime: now, ctime: now, atime: now, ..blank(kind) };
        if kind == Directory {
            (inode.parent, inode.next_cookie) = (dir, 3);
        }
        out.new_inode(ino, &inode);
        if kind == Symlink {
            self.targets.insert(ino, name.to_vec());
            out.set_target(ino, name);
        }
        self.inodes.insert(ino, inode);
        self.link(dir, name, ino, out);
    }

    fn remove(&mut self, dir: u64, entry: Entry, out: &mut EffectWriter<'_>) {
        if self.inodes[&entry.ino].entry_count > 0 {
            return;
        }
        self.unlink(dir, entry.cookie, out);
        out.drop_inode(entry.ino);
        self.inodes.remove(&entry.ino);
        self.targets.remove(&entry.ino);
        self.blocks.retain(|(ino, _), _| *ino != entry.ino);
    }

    /// To another name, which may be taken by something that can go.
    fn rename(&mut self, dice: &mut Dice, dir: u64, entry: Entry, out: &mut EffectWriter<'_>) {
        let others = self.of_kind(FileType::Directory);
        let to = dice.pick(&others).unwrap();
        let name = format!("n{}", dice.roll(12)).into_bytes();
        let target = self.find(to, &name);
        let taken = target.is_some_and(|target| self.inodes[&target.ino].entry_count > 0);
        if entry.kind == FileType::Directory || taken || target == Some(entry) {
            return;
        }
        if let Some(target) = target {
            self.remove(to, target, out);
            if target.ino == dir {
                // The directory that the entry is in was empty: it cannot have been.
                unreachable!("a directory with an entry was removed");
            }
        }
        self.unlink(dir, entry.cookie, out);
        self.link(to, &name, entry.ino, out);
    }

    fn touch_file(&mut self, ino: u64, size: u64, out: &mut EffectWriter<'_>) {
        let used = self.blocks.range((ino, 0)..=(ino, u64::MAX)).count() as u64;
        let now = self.now();
        let inode = self.inodes.get_mut(&ino).unwrap();
        (inode.size, inode.used_blocks, inode.mtime, inode.ctime) = (size, used, now, now);
        out.touch_file(ino, size, used, now, now, inode.mode);
    }

    fn write_blocks(&mut self, dice: &mut Dice, ino: u64, out: &mut EffectWriter<'_>) {
        let count = if dice.roll(8) == 0 { 16 } else { 1 + dice.roll(3) };
        let first = dice.roll(6);
        let mut data = Vec::new();
        let mut crcs = Vec::new();
        for block in first..first + count {
            let bytes = [dice.roll(256) as u8; BLOCK_BYTES];
            crcs.push(crc32c::crc32c(&bytes));
            data.extend_from_slice(&bytes);
            self.blocks.insert((ino, block), Box::new(bytes));
        }
        let size = self.inodes[&ino].size.max((first + count) * BLOCK_BYTES_U64);
        let touch_first = dice.roll(2) == 0;
        if touch_first {
            self.touch_file(ino, size, out);
        }
        out.blocks(ino, first, &crcs, &data);
        if !touch_first {
            self.touch_file(ino, size, out);
        }
    }

    fn write_range(&mut self, dice: &mut Dice, ino: u64, out: &mut EffectWriter<'_>) {
        let (block, start) = (dice.roll(8), dice.roll(4000) as usize);
        let len = 1 + dice.roll((BLOCK_BYTES - start).min(300) as u64) as usize;
        let data = vec![dice.roll(256) as u8; len];
        let mut content = self.block(ino, block);
        content[start..start + len].copy_from_slice(&data);
        self.blocks.insert((ino, block), Box::new(content));
        let end = block * BLOCK_BYTES_U64 + (start + len) as u64;
        let size = self.inodes[&ino].size.max(end);
        let touch_first = dice.roll(2) == 0;
        if touch_first {
            self.touch_file(ino, size, out);
        }
        out.range(ino, block, start, crc32c::crc32c(&content), &data);
        if !touch_first {
            self.touch_file(ino, size, out);
        }
    }

    fn truncate(&mut self, dice: &mut Dice, ino: u64, out: &mut EffectWriter<'_>) {
        let old = self.inodes[&ino].size;
        let size = dice.roll(8 * BLOCK_BYTES_U64);
        if size < old {
            let first = blocks_of(size);
            out.cut(ino, first);
            self.blocks.retain(|(file, block), _| *file != ino || *block < first);
            let (block, start) = (size / BLOCK_BYTES_U64, (size % BLOCK_BYTES_U64) as usize);
            if start > 0 && self.blocks.contains_key(&(ino, block)) {
                let mut content = self.block(ino, block);
                content[start..].fill(0);
                out.range(
                    ino,
                    block,
                    start,
                    crc32c::crc32c(&content),
                    &vec![0; BLOCK_BYTES - start],
                );
                self.blocks.insert((ino, block), Box::new(content));
            }
        }
        self.touch_file(ino, size, out);
    }
}
