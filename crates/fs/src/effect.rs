//! Effects: what a record does to the file system, as values and never as operations.
//! Owns: their bytes, written in place by the primary and read by every copy.
//! Never: refers to what was there before; every value is absolute.
//! Invariant: applying effects again, or any later part of a log again, changes nothing.
//! Source: ARCHITECTURE.md.

use crate::inode::{
    BLOCK_BYTES, Entry, INODE_BYTES_MAX, Inode, NAME_BYTES_MAX, Super, TARGET_BYTES_MAX, Take,
};
use crate::plan::TRANSFER_MAX;
use crate::request::{Request, Time};

/// Blocks that one [`Effect::Blocks`] holds at most: more than the largest WRITE spans.
pub const EFFECT_BLOCKS_MAX: usize = 512;

/// The attributes that a change of a directory's entries sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the fields are those of `Inode`
pub struct DirTouch {
    pub mtime: Time,
    pub ctime: Time,
    pub nlink: u32,
    pub next_cookie: u64,
    pub entry_count: u64,
}

/// The attributes that a change of a file's data sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the fields are those of `Inode`
pub struct FileTouch {
    pub size: u64,
    pub used_blocks: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub mode: u32,
}

/// One decoded effect. Bytes are borrowed from the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // fields are explained where their types are
pub enum Effect<'a> {
    /// The object's whole value; `born`: it did not exist before, nor any block or entry of it.
    Inode { ino: u64, inode: Inode, born: bool },
    /// The target of a symbolic link whose inode the same record sets.
    Target { ino: u64, target: &'a [u8] },
    /// A directory's attributes after a change of its entries.
    TouchDir { dir: u64, touch: DirTouch },
    /// A file's attributes after a change of its data.
    TouchFile { ino: u64, touch: FileTouch },
    /// A new entry; its cookie is above all earlier ones of the directory.
    Link { dir: u64, entry: Entry, name: &'a [u8] },
    /// An entry that is gone.
    Unlink { dir: u64, cookie: u64, name: &'a [u8] },
    /// An object that is gone, its blocks and target with it.
    Drop { ino: u64 },
    /// Whole blocks: one checksum (CRC32C, little-endian) and [`BLOCK_BYTES`] bytes of data each.
    /// `data_at`: where `data` lies in the effects.
    Blocks { ino: u64, first: u64, crcs: &'a [u8], data: &'a [u8], data_at: usize },
    /// Part of one block, and the checksum of the whole block after it.
    Range { ino: u64, block: u64, start: u16, crc: u32, data: &'a [u8], data_at: usize },
    /// No block at or above `first` is left.
    Cut { ino: u64, first: u64 },
    /// The counters of the whole.
    Super(Super),
}

/// Tags of effects. Never reuse one: records outlive the program that wrote them.
mod tag {
    pub const SET_INODE: u8 = 1;
    pub const NEW_INODE: u8 = 2;
    pub const TARGET: u8 = 3;
    pub const TOUCH_DIR: u8 = 4;
    pub const TOUCH_FILE: u8 = 5;
    pub const LINK: u8 = 6;
    pub const UNLINK: u8 = 7;
    pub const DROP: u8 = 8;
    pub const BLOCKS: u8 = 9;
    pub const RANGE: u8 = 10;
    pub const CUT: u8 = 11;
    pub const SUPER: u8 = 12;
}

/// Bytes that the effects of one request take at most, the room for metadata included.
///
/// The most metadata is RENAME's: four inodes in full, three directories touched, two names gone,
/// one made, the counters.
pub fn effects_len_max(request: &Request<'_>) -> usize {
    let names = 3 * (32 + NAME_BYTES_MAX);
    let metadata = 8 * (16 + INODE_BYTES_MAX) + names + 64;
    metadata
        + match request {
            // Each block that the data touches carries a checksum, and at both ends a header.
            Request::Write { count, data, .. } => {
                let bytes = data.len().min((*count).min(TRANSFER_MAX) as usize);
                bytes + (bytes / BLOCK_BYTES + 2) * 4 + 3 * 32
            }
            // The bytes beyond a new end are written as zeros.
            Request::SetAttr { .. } | Request::Create { .. } => BLOCK_BYTES + 64,
            Request::SymLink { .. } => TARGET_BYTES_MAX + 16,
            _ => 0,
        }
}

/// The buffer given to an [`EffectWriter`] is too short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EffectsTooLong {
    /// Bytes of the buffer.
    pub room: usize,
}

impl std::fmt::Display for EffectsTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "effects need more than the {} bytes set aside", self.room)
    }
}

impl std::error::Error for EffectsTooLong {}

/// Writes effects into a caller's buffer, usually the log ring itself.
///
/// Running out of room is noticed once, by [`EffectWriter::finish`]; nothing is written beyond it.
#[derive(Debug)]
pub struct EffectWriter<'a> {
    out: &'a mut [u8],
    /// Bytes written, or wanted where that is more than `out` has.
    len: usize,
}

impl<'a> EffectWriter<'a> {
    /// Starts at the front of `out`; [`effects_len_max`] says how long it must be.
    pub fn new(out: &'a mut [u8]) -> EffectWriter<'a> {
        EffectWriter { out, len: 0 }
    }

    /// The bytes used.
    pub fn finish(self) -> Result<usize, EffectsTooLong> {
        if self.len > self.out.len() {
            return Err(EffectsTooLong { room: self.out.len() });
        }
        Ok(self.len)
    }

    /// The next `count` bytes of the buffer, or none (and the writer is out of room for good).
    fn room(&mut self, count: usize) -> Option<&mut [u8]> {
        let at = self.len;
        self.len = self.len.saturating_add(count);
        self.out.get_mut(at..self.len)
    }

    /// Writes one effect made of these pieces.
    #[inline]
    fn put<const N: usize>(&mut self, tag: u8, pieces: [&[u8]; N]) {
        let count = 1 + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let Some(room) = self.room(count) else { return };
        room[0] = tag;
        let mut at = 1;
        for piece in pieces {
            room[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
    }

    fn inode(&mut self, tag: u8, ino: u64, inode: &Inode) {
        let mut bytes = [0; INODE_BYTES_MAX];
        let len = inode.encode(&mut bytes);
        self.put(tag, [&ino.to_le_bytes(), &bytes[..len]]);
    }

    /// The object's whole value. For an object that this record makes, [`EffectWriter::new_inode`]
    /// says more.
    pub fn set_inode(&mut self, ino: u64, inode: &Inode) {
        self.inode(tag::SET_INODE, ino, inode);
    }

    /// The whole value of an object that did not exist before. Copies then know without looking
    /// that it has no blocks, or no entries, but those that follow.
    pub fn new_inode(&mut self, ino: u64, inode: &Inode) {
        self.inode(tag::NEW_INODE, ino, inode);
    }

    /// A symbolic link's target; after [`EffectWriter::new_inode`] of the same object.
    pub fn set_target(&mut self, ino: u64, target: &[u8]) {
        assert!(target.len() <= TARGET_BYTES_MAX, "a target of {} bytes", target.len());
        let len = (target.len() as u16).to_le_bytes();
        self.put(tag::TARGET, [&ino.to_le_bytes(), &len, target]);
    }

    /// A directory's attributes after a change of its entries.
    pub fn touch_dir(
        &mut self,
        dir: u64,
        mtime: Time,
        ctime: Time,
        nlink: u32,
        next_cookie: u64,
        entry_count: u64,
    ) {
        let pieces: [&[u8]; 6] = [
            &dir.to_le_bytes(),
            &time_bytes(mtime),
            &time_bytes(ctime),
            &nlink.to_le_bytes(),
            &next_cookie.to_le_bytes(),
            &entry_count.to_le_bytes(),
        ];
        self.put(tag::TOUCH_DIR, pieces);
    }

    /// A file's attributes after a change of its data.
    pub fn touch_file(
        &mut self,
        ino: u64,
        size: u64,
        used_blocks: u64,
        mtime: Time,
        ctime: Time,
        mode: u32,
    ) {
        assert!(mode <= 0o7777, "a mode of {mode:o}");
        let pieces: [&[u8]; 6] = [
            &ino.to_le_bytes(),
            &size.to_le_bytes(),
            &used_blocks.to_le_bytes(),
            &time_bytes(mtime),
            &time_bytes(ctime),
            &(mode as u16).to_le_bytes(),
        ];
        self.put(tag::TOUCH_FILE, pieces);
    }

    /// A new entry. Its cookie must be the directory's next one.
    pub fn link(&mut self, dir: u64, entry: &Entry, name: &[u8]) {
        let pieces: [&[u8]; 6] = [
            &dir.to_le_bytes(),
            &entry.cookie.to_le_bytes(),
            &entry.ino.to_le_bytes(),
            &[entry.kind as u8],
            &[name_len(name)],
            name,
        ];
        self.put(tag::LINK, pieces);
    }

    /// An entry that is gone: the name, and the cookie it had.
    pub fn unlink(&mut self, dir: u64, cookie: u64, name: &[u8]) {
        let len = [name_len(name)];
        self.put(tag::UNLINK, [&dir.to_le_bytes(), &cookie.to_le_bytes(), &len, name]);
    }

    /// An object that is gone, with its blocks and its target: no cut is needed beside it.
    pub fn drop_inode(&mut self, ino: u64) {
        self.put(tag::DROP, [&ino.to_le_bytes()]);
    }

    /// Whole blocks from `first_block` on, with the CRC32C of each. At most
    /// [`EFFECT_BLOCKS_MAX`], at least one.
    pub fn blocks(&mut self, ino: u64, first_block: u64, crcs: &[u32], data: &[u8]) {
        assert!(data.len() == crcs.len() * BLOCK_BYTES, "a checksum for each block");
        assert!((1..=EFFECT_BLOCKS_MAX).contains(&crcs.len()), "{} blocks", crcs.len());
        let count = (crcs.len() as u32).to_le_bytes();
        self.put(tag::BLOCKS, [&ino.to_le_bytes(), &first_block.to_le_bytes(), &count]);
        for crc in crcs {
            if let Some(room) = self.room(4) {
                room.copy_from_slice(&crc.to_le_bytes());
            }
        }
        if let Some(room) = self.room(data.len()) {
            room.copy_from_slice(data);
        }
    }

    /// Part of a block: `data` from byte `start` of it on, and the CRC32C of the whole block
    /// once it is there. Not for whole blocks.
    pub fn range(&mut self, ino: u64, block: u64, start: usize, crc_of_result: u32, data: &[u8]) {
        assert!(!data.is_empty() && data.len() < BLOCK_BYTES && start + data.len() <= BLOCK_BYTES);
        let pieces: [&[u8]; 6] = [
            &ino.to_le_bytes(),
            &block.to_le_bytes(),
            &(start as u16).to_le_bytes(),
            &(data.len() as u16).to_le_bytes(),
            &crc_of_result.to_le_bytes(),
            data,
        ];
        self.put(tag::RANGE, pieces);
    }

    /// Nothing of the file at or above `first_block` is left.
    pub fn cut(&mut self, ino: u64, first_block: u64) {
        self.put(tag::CUT, [&ino.to_le_bytes(), &first_block.to_le_bytes()]);
    }

    /// The counters of the whole.
    pub fn set_super(&mut self, value: &Super) {
        self.put(tag::SUPER, [&value.encode()]);
    }
}

fn time_bytes(time: Time) -> [u8; 8] {
    (u64::from(time.seconds) | u64::from(time.nanos) << 32).to_le_bytes()
}

fn name_len(name: &[u8]) -> u8 {
    assert!((1..=NAME_BYTES_MAX).contains(&name.len()), "a name of {} bytes", name.len());
    name.len() as u8
}

/// Bytes that are no effects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEffects {
    /// Where the effect begins that is none.
    pub at: usize,
    /// Its tag.
    pub tag: u8,
}

impl std::fmt::Display for BadEffects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {} begins no effect (tag {})", self.at, self.tag)
    }
}

impl std::error::Error for BadEffects {}

/// Reads effects in order. After an error it ends.
#[derive(Clone, Debug)]
pub struct Effects<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Effects<'a> {
    /// Reads these bytes, from a record that may be damaged.
    pub fn new(bytes: &'a [u8]) -> Effects<'a> {
        Effects { all: bytes, at: 0 }
    }

    fn decode(&self, tag: u8, take: &mut Take<'a>) -> Option<Effect<'a>> {
        Some(match tag {
            tag::SET_INODE | tag::NEW_INODE => Effect::Inode {
                ino: take.u64()?,
                inode: Inode::take(take)?,
                born: tag == tag::NEW_INODE,
            },
            tag::TARGET => {
                let (ino, len) = (take.u64()?, usize::from(take.u16()?));
                let target = take.bytes(len)?;
                (len <= TARGET_BYTES_MAX).then_some(Effect::Target { ino, target })?
            }
            tag::TOUCH_DIR => Effect::TouchDir { dir: take.u64()?, touch: dir_touch(take)? },
            tag::TOUCH_FILE => Effect::TouchFile { ino: take.u64()?, touch: file_touch(take)? },
            tag::LINK => {
                let (dir, cookie, ino, kind) =
                    (take.u64()?, take.u64()?, take.u64()?, take.kind()?);
                Effect::Link { dir, entry: Entry { ino, cookie, kind }, name: take_name(take)? }
            }
            tag::UNLINK => {
                Effect::Unlink { dir: take.u64()?, cookie: take.u64()?, name: take_name(take)? }
            }
            tag::DROP => Effect::Drop { ino: take.u64()? },
            tag::BLOCKS => self.blocks(take)?,
            tag::RANGE => self.range(take)?,
            tag::CUT => Effect::Cut { ino: take.u64()?, first: take.u64()? },
            tag::SUPER => Effect::Super(Super::take(take)?),
            _ => return None,
        })
    }

    fn blocks(&self, take: &mut Take<'a>) -> Option<Effect<'a>> {
        let (ino, first, count) = (take.u64()?, take.u64()?, take.u32()? as usize);
        if !(1..=EFFECT_BLOCKS_MAX).contains(&count) {
            return None;
        }
        first.checked_add(count as u64)?;
        let crcs = take.bytes(4 * count)?;
        let data_at = self.all.len() - take.0.len();
        let data = take.bytes(count * BLOCK_BYTES)?;
        Some(Effect::Blocks { ino, first, crcs, data, data_at })
    }

    fn range(&self, take: &mut Take<'a>) -> Option<Effect<'a>> {
        let (ino, block) = (take.u64()?, take.u64()?);
        let (start, len) = (take.u16()?, usize::from(take.u16()?));
        let crc = take.u32()?;
        let data_at = self.all.len() - take.0.len();
        let data = take.bytes(len)?;
        let fits = (1..BLOCK_BYTES).contains(&len) && usize::from(start) + len <= BLOCK_BYTES;
        fits.then_some(Effect::Range { ino, block, start, crc, data, data_at })
    }
}

fn take_name<'a>(take: &mut Take<'a>) -> Option<&'a [u8]> {
    let len = take.u8()?;
    take.bytes(len.into()).filter(|name| !name.is_empty())
}

fn dir_touch(take: &mut Take<'_>) -> Option<DirTouch> {
    Some(DirTouch {
        mtime: take.time()?,
        ctime: take.time()?,
        nlink: take.u32()?,
        next_cookie: take.u64()?,
        entry_count: take.u64()?,
    })
}

fn file_touch(take: &mut Take<'_>) -> Option<FileTouch> {
    let (size, used_blocks) = (take.u64()?, take.u64()?);
    let (mtime, ctime) = (take.time()?, take.time()?);
    let mode = u32::from(take.u16()?);
    (mode <= 0o7777).then_some(FileTouch { size, used_blocks, mtime, ctime, mode })
}

impl<'a> Iterator for Effects<'a> {
    type Item = Result<Effect<'a>, BadEffects>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let mut take = Take(&self.all[at..]);
        let tag = take.u8()?;
        let effect = self.decode(tag, &mut take);
        self.at = match effect {
            Some(_) => self.all.len() - take.0.len(),
            None => self.all.len(),
        };
        Some(effect.ok_or(BadEffects { at, tag }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FileType;

    fn every_effect(out: &mut [u8]) -> Result<usize, EffectsTooLong> {
        let time = Time { seconds: 5, nanos: 6 };
        let inode = Inode {
            kind: FileType::Symlink,
            mode: 0o777,
            nlink: 1,
            uid: 1,
            gid: 2,
            size: 3,
            used_blocks: 0,
            device: (0, 0),
            generation: 4,
            atime: time,
            mtime: time,
            ctime: time,
            verifier: [0; 8],
            parent: 0,
            next_cookie: 0,
            entry_count: 0,
        };
        let mut writer = EffectWriter::new(out);
        writer.new_inode(9, &inode);
        writer.set_target(9, b"abc");
        writer.set_inode(9, &inode);
        writer.touch_dir(1, time, time, 2, 4, 1);
        writer.touch_file(8, 5000, 2, time, time, 0o644);
        writer.link(1, &Entry { ino: 9, cookie: 3, kind: FileType::Symlink }, b"name");
        writer.unlink(1, 3, b"name");
        writer.drop_inode(9);
        writer.blocks(8, 7, &[1, 2], &[7; 2 * BLOCK_BYTES]);
        writer.range(8, 9, 4000, 77, &[1; 96]);
        writer.cut(8, 10);
        writer.set_super(&Super { next_ino: 10, used_blocks: 3, used_inodes: 4 });
        writer.finish()
    }

    #[test]
    fn effects_come_back_in_order_and_know_where_their_data_lies() {
        let mut out = vec![0; 16 << 10];
        let len = every_effect(&mut out).unwrap();
        let effects: Vec<_> = Effects::new(&out[..len]).map(Result::unwrap).collect();
        assert_eq!(effects.len(), 12);
        assert!(matches!(effects[0], Effect::Inode { ino: 9, born: true, .. }));
        assert_eq!(effects[1], Effect::Target { ino: 9, target: b"abc" });
        assert!(matches!(effects[2], Effect::Inode { ino: 9, born: false, .. }));
        let Effect::Blocks { ino: 8, first: 7, crcs, data, data_at } = effects[8] else { panic!() };
        assert_eq!(
            (crcs, &out[data_at..data_at + data.len()]),
            (&[1, 0, 0, 0, 2, 0, 0, 0][..], data)
        );
        let Effect::Range { start, crc, data, data_at, .. } = effects[9] else { panic!() };
        assert_eq!((start, crc, &out[data_at..data_at + 96]), (4000, 77, data));
    }

    #[test]
    fn a_buffer_that_is_too_short_is_reported_and_never_overrun() {
        let len = every_effect(&mut vec![0; 16 << 10]).unwrap();
        for room in (0..len).step_by(7) {
            assert_eq!(every_effect(&mut vec![0; room]), Err(EffectsTooLong { room }));
        }
        assert_eq!(every_effect(&mut vec![0; len]), Ok(len));
    }

    #[test]
    fn damaged_bytes_give_an_error_or_other_effects_but_never_a_panic() {
        let mut out = vec![0; 16 << 10];
        let len = every_effect(&mut out).unwrap();
        let whole = out[..len].to_vec();
        for cut in 0..len {
            let all: Result<Vec<_>, _> = Effects::new(&whole[..cut]).collect();
            assert!(all.is_err() || all.unwrap().len() < 12);
        }
        for at in 0..len {
            for value in [0, 1, 9, 0x7f, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                Effects::new(&bad).take(100).for_each(drop);
            }
        }
    }
}
