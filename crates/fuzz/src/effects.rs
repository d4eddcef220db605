//! Effects: bodies of event records, taken apart, applied to a shadow, and put into an image.
//! Owns: an image in memory, as plain as can be.
//! Source: docs/disk-format.md, "Bodies of records"; `crates/fs/src/effect.rs`.
//!
//! Input: records, each its length (2 bytes, little-endian) and its effects. The whole is also tried as the
//! body of a record.

use std::collections::BTreeMap;

use harp_node::fs::atime::AccessTimes;
use harp_node::fs::blocks::LogBytes;
use harp_node::fs::effect::{Effect, EffectWriter, Effects};
use harp_node::fs::inode::{BLOCK_BYTES, Block, Entry, FIRST_COOKIE, Inode, Known, ROOT, Super};
use harp_node::fs::key;
use harp_node::fs::need::{ImageError, ImageReader};
use harp_node::fs::request::{FileType, Time};
use harp_node::fs::shadow::{Shadow, ShadowSettings};
use harp_node::record::{
    CONFIGURATION_BYTES, RequestKey, STAMP_BYTES, Stamp, configuration, operation,
    write_configuration,
};

use crate::memory::within;

/// What a shadow needs for its tables before anything is in them.
const TABLES_BYTES: usize = 2 << 20;
/// An effect takes 9 bytes at least; what it changes has a place in each of a few tables.
const APPLIED_BYTES_PER_BYTE: usize = 400;

/// One input.
pub fn run(input: &[u8]) {
    as_a_body(input);
    let records = records_of(input);
    records.iter().for_each(|at| decode(&input[at.clone()]));
    let log = Log(input);
    // No result depends on the seed, so two shadows do the same.
    let (mut one, mut other) = (shadow(1), shadow(0x9e37_79b9_7f4a_7c15));
    let mut image = Image::formatted();
    let halves = records.split_at(records.len() / 2);
    let mut op = 0;
    for half in [halves.0, halves.1] {
        for at in half {
            op += 1;
            let effects = &input[at.clone()];
            let bytes_max = TABLES_BYTES + APPLIED_BYTES_PER_BYTE * input.len();
            let applied = within(bytes_max, || one.apply(op, effects, at.start as u64, &log));
            assert_eq!(other.apply(op, effects, at.start as u64, &log), applied);
            if applied.is_err() {
                return;
            }
            assert_eq!(one.apply(op, effects, at.start as u64, &log), Ok(()), "taken in again");
            let seen = look(&mut one, effects, &image);
            assert_eq!(look(&mut other, effects, &image), seen);
        }
        if half.is_empty() {
            continue;
        }
        let (mut next, mut same) = (image.clone(), image.clone());
        let done = next.checkpoint(&mut one, op, &log);
        assert_eq!(same.checkpoint(&mut other, op, &log), done);
        if done.is_none() {
            return;
        }
        assert!(next == same, "two seeds, two images");
        image = next;
    }
}

fn shadow(seed: u64) -> Shadow {
    let (cache_bytes, filter_bytes, access_times) = (1 << 16, 1 << 16, AccessTimes::Off);
    Shadow::new(ShadowSettings { cache_bytes, filter_bytes, seed, access_times }, 0)
}

/// Where the records lie in the input.
fn records_of(input: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some(len) = input[at..].first_chunk() {
        let from = at + 2;
        at = input.len().min(from + usize::from(u16::from_le_bytes(*len)));
        records.push(from..at);
    }
    records
}

fn as_a_body(body: &[u8]) {
    if let Ok(operation) = within(0, || operation(body)) {
        let mut stamp = [0; STAMP_BYTES];
        operation.stamp.write(&mut stamp);
        assert_eq!([&stamp, operation.effects, operation.reply].concat(), body);
        decode(operation.effects);
    }
    if let Ok(change) = within(0, || configuration(body)) {
        let mut again = [0; CONFIGURATION_BYTES];
        write_configuration(change, &mut again);
        assert_eq!(configuration(&again), Ok(change));
    }
}

/// What decodes can be written again, and then is the same.
fn decode(bytes: &[u8]) {
    let mut room = vec![0; bytes.len()];
    let mut writer = EffectWriter::new(&mut room);
    let mut whole = true;
    let mut effects = Effects::new(bytes);
    let mut decoded = Vec::new();
    while let Some(effect) = within(0, || effects.next()) {
        match effect {
            Ok(effect) => {
                write(&mut writer, &effect);
                decoded.push(effect);
            }
            Err(bad) => {
                assert!(bad.at < bytes.len());
                whole = false;
            }
        }
    }
    let len = writer.finish().expect("no longer than they were");
    let again: Result<Vec<_>, _> = Effects::new(&room[..len]).collect();
    assert_eq!(again.expect("our own encoding"), decoded);
    assert!(!whole || len == bytes.len(), "effects have one encoding");
}

fn write(out: &mut EffectWriter<'_>, effect: &Effect<'_>) {
    match *effect {
        Effect::Inode { ino, ref inode, born: true } => out.new_inode(ino, inode),
        Effect::Inode { ino, ref inode, born: false } => out.set_inode(ino, inode),
        Effect::Target { ino, target } => out.set_target(ino, target),
        Effect::TouchDir { dir, touch: t } => {
            out.touch_dir(dir, t.mtime, t.ctime, t.nlink, t.next_cookie, t.entry_count);
        }
        Effect::TouchFile { ino, touch: t } => {
            out.touch_file(ino, t.size, t.used_blocks, t.mtime, t.ctime, t.mode);
        }
        Effect::Link { dir, ref entry, name } => out.link(dir, entry, name),
        Effect::Unlink { dir, cookie, name } => out.unlink(dir, cookie, name),
        Effect::Drop { ino } => out.drop_inode(ino),
        Effect::Blocks { ino, first, crcs, data, .. } => {
            let crcs = crcs.as_chunks().0.iter().map(|crc| u32::from_le_bytes(*crc));
            out.blocks(ino, first, &crcs.collect::<Vec<_>>(), data);
        }
        Effect::Range { ino, block, start, crc, data, .. } => {
            out.range(ino, block, start.into(), crc, data);
        }
        Effect::Cut { ino, first } => out.cut(ino, first),
        Effect::Super(ref counters) => out.set_super(counters),
    }
}

/// What a look-up gave.
#[derive(Debug, PartialEq)]
enum Seen {
    Inode(Known<Inode>),
    Target(Known<Vec<u8>>),
    Entry(Known<Entry>),
    Listing(Known<bool>, Vec<(Entry, Vec<u8>)>),
}

/// Looks everything up that a record spoke of; what memory lacks is fetched.
fn look(shadow: &mut Shadow, effects: &[u8], image: &Image) -> Vec<Seen> {
    let mut seen = Vec::new();
    for effect in Effects::new(effects).map(|effect| effect.expect("it was applied")).take(64) {
        for _ in 0..2 {
            match effect {
                Effect::Link { dir, name, .. } | Effect::Unlink { dir, name, .. } => {
                    seen.push(Seen::Entry(shadow.entry(dir, name)));
                    let mut shown = Vec::new();
                    let end = shadow.list(dir, 0, 8, &mut |entry, name| {
                        shown.push((*entry, name.to_vec()));
                        true
                    });
                    seen.push(Seen::Listing(end, shown));
                }
                Effect::Inode { ino, .. }
                | Effect::Target { ino, .. }
                | Effect::TouchDir { dir: ino, .. }
                | Effect::TouchFile { ino, .. }
                | Effect::Drop { ino }
                | Effect::Blocks { ino, .. }
                | Effect::Range { ino, .. }
                | Effect::Cut { ino, .. } => {
                    seen.push(Seen::Inode(shadow.inode(ino)));
                    seen.push(Seen::Target(shadow.target(ino)));
                }
                Effect::Super(_) => {}
            }
            let needs = [shadow.wanted(), shadow.listing_need()];
            for need in needs.into_iter().flatten() {
                if let Ok(fetched) = need.fetch(image) {
                    shadow.fetched(fetched);
                }
            }
        }
    }
    seen
}

struct Log<'a>(&'a [u8]);

impl LogBytes for Log<'_> {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..][..len as usize]
    }
}

/// An image.
#[derive(Clone, Default, PartialEq)]
struct Image {
    op: u64,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    blocks: BTreeMap<(u64, u64), Box<Block>>,
}

impl Image {
    fn formatted() -> Image {
        Image { rows: key::format_rows(Time::default()).into_iter().collect(), ..Image::default() }
    }

    /// Freezes what was applied and puts it in, with the checks of a store. `None`: the changes make no
    /// sense over this image.
    fn checkpoint(&mut self, shadow: &mut Shadow, op: u64, log: &Log<'_>) -> Option<()> {
        let generation = shadow.freeze(op);
        let mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let made = generation.metadata(self, &mut |key, value| {
            assert!(rows.last().is_none_or(|(last, _)| &last[..] < key), "rows out of order");
            rows.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok(())
        });
        made.ok()?;
        let cuts = generation.cuts();
        assert!(cuts.is_sorted_by(|a, b| a.0 < b.0), "cuts out of order");
        let merged = generation.blocks(log, self).ok()?;
        let blocks = merged.iter().map(|out| ((out.ino, out.block), Box::new(*out.data)));
        let blocks: Vec<_> = blocks.collect();
        assert!(blocks.is_sorted_by(|a, b| a.0 < b.0), "blocks out of order");
        drop(merged);
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
        self.op = op;
        drop(generation);
        shadow.checkpointed(op);
        while shadow.drain(64, log) {}
        Some(())
    }
}

impl ImageReader for Image {
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
        let mut rows = self.rows.range(from.to_vec()..).take(limit);
        rows.all(|(key, value)| show(key, value));
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
        assert_eq!(out.len(), count as usize * BLOCK_BYTES);
        for (block, out) in (first..).zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
            match self.blocks.get(&(file, block)) {
                Some(data) => {
                    *out = **data;
                    held(block, 1);
                }
                None => out.fill(0),
            }
        }
        Ok(())
    }
}

const TIME: Time = Time { seconds: 5, nanos: 6 };

fn inode(kind: FileType) -> Inode {
    let directory = kind == FileType::Directory;
    Inode {
        kind,
        mode: 0o755,
        nlink: 1 + u32::from(directory),
        uid: 1,
        gid: 2,
        size: 0,
        used_blocks: 0,
        device: (0, 0),
        generation: 4,
        atime: TIME,
        mtime: TIME,
        ctime: TIME,
        verifier: [0; 8],
        parent: if directory { ROOT } else { 0 },
        next_cookie: if directory { FIRST_COOKIE } else { 0 },
        entry_count: 0,
    }
}

/// Lays records out as an input.
pub(crate) fn records(parts: &[&dyn Fn(&mut EffectWriter<'_>)]) -> Vec<u8> {
    let mut input = Vec::new();
    for part in parts {
        let mut room = vec![0; 32 << 10];
        let mut writer = EffectWriter::new(&mut room);
        part(&mut writer);
        let len = writer.finish().expect("room enough");
        input.extend_from_slice(&(len as u16).to_le_bytes());
        input.extend_from_slice(&room[..len]);
    }
    input
}

/// Records as a primary writes them, and whole bodies.
pub fn seeds() -> Vec<Vec<u8>> {
    let make = |ino: u64, cookie: u64, kind: FileType, name: &'static [u8]| {
        move |out: &mut EffectWriter<'_>| {
            out.new_inode(ino, &inode(kind));
            if kind == FileType::Symlink {
                out.set_target(ino, b"../elsewhere");
            }
            out.link(ROOT, &Entry { ino, cookie, kind }, name);
            out.touch_dir(ROOT, TIME, TIME, 2, cookie + 1, cookie - 2);
            out.set_super(&Super { next_ino: ino + 1, used_blocks: 0, used_inodes: ino });
        }
    };
    let write = |out: &mut EffectWriter<'_>| {
        let data = [7; BLOCK_BYTES];
        out.blocks(2, 0, &[crc32c::crc32c(&data)], &data);
        out.touch_file(2, BLOCK_BYTES as u64, 1, TIME, TIME, 0o644);
    };
    let mut tail = [0; BLOCK_BYTES];
    tail[..9].fill(9);
    let range = |out: &mut EffectWriter<'_>| {
        out.touch_file(2, BLOCK_BYTES as u64 + 9, 2, TIME, TIME, 0o644);
        out.range(2, 1, 0, crc32c::crc32c(&tail), &tail[..9]);
    };
    let cut = |out: &mut EffectWriter<'_>| {
        out.cut(2, 1);
        out.touch_file(2, BLOCK_BYTES as u64, 1, TIME, TIME, 0o644);
    };
    let remove = |out: &mut EffectWriter<'_>| {
        out.unlink(ROOT, 3, b"file");
        out.drop_inode(2);
        out.touch_dir(ROOT, TIME, TIME, 2, 6, 2);
    };
    let same_cookie = |out: &mut EffectWriter<'_>| {
        out.unlink(ROOT, 7, b"one");
        out.unlink(ROOT, 7, b"other");
    };
    let rename = |out: &mut EffectWriter<'_>| {
        out.unlink(ROOT, 3, b"file");
        out.link(ROOT, &Entry { ino: 2, cookie: 6, kind: FileType::Regular }, b"renamed");
        out.set_inode(2, &inode(FileType::Regular));
    };
    let file = make(2, 3, FileType::Regular, b"file");
    let link = make(3, 4, FileType::Symlink, b"link");
    let dir = make(4, 5, FileType::Directory, b"dir");
    let key = RequestKey { address: [9; 16], xid: 7, procedure: 8, checksum: 1 << 40 };
    let effects = records(&[&file])[2..].to_vec();
    let effects_len = effects.len() as u32;
    let stamp = Stamp { key, port: 700, connection: 5, effects_len, reply_len: 5 };
    let mut head = [0; STAMP_BYTES];
    stamp.write(&mut head);
    let admit =
        harp_node::vr::ConfigurationChange::Admit { server: harp_node::vr::ServerId(2), disk: 77 };
    let mut body = [0; CONFIGURATION_BYTES];
    write_configuration(admit, &mut body);
    vec![
        records(&[&file, &link, &dir, &rename]),
        records(&[&file, &range, &link]),
        records(&[&file, &write, &range, &cut, &remove]),
        records(&[&file, &range, &cut, &range]),
        records(&[&file, &same_cookie]),
        [&head, &effects[..], b"reply"].concat(),
        body.to_vec(),
    ]
}
