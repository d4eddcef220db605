//! Inode: the values that make up a file system, one per object.
//! Owns: inodes, directory entries, the counters of the whole, and their bytes.
//! Never: knows where a value is kept or who may see it.
//! Invariant: equal values have equal bytes, so that images of equal op are equal byte for byte.
//! Source: RFC 1813, section 2.6 (`fattr3`); the byte layout is Harp's own.

use crate::request::{FileType, Time};

/// The root directory's inode number.
pub const ROOT: u64 = 1;
/// Bytes of a block: the unit of space, of checksums and of what the image stores.
pub const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] for arithmetic on file offsets.
pub const BLOCK_BYTES_U64: u64 = BLOCK_BYTES as u64;
/// The longest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const TARGET_BYTES_MAX: usize = 4095;
/// The first cookie of an entry; 1 and 2 are "." and "..".
pub const FIRST_COOKIE: u64 = 3;
/// The most bytes an encoded inode takes.
pub const INODE_BYTES_MAX: usize = 28 + 16 + 7 * 8;

/// The bytes of one block.
pub type Block = [u8; BLOCK_BYTES];

/// How many blocks the first `size` bytes of a file span.
pub fn blocks_of(size: u64) -> u64 {
    size.div_ceil(BLOCK_BYTES_U64)
}

/// The value of one object. A symbolic link's target is kept apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Kind; never changes.
    pub kind: FileType,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Number of names; a directory's counts "." and its children's "..".
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of [`BLOCK_BYTES`] that it holds; holes hold none.
    pub used_blocks: u64,
    /// Major and minor number of a device, else zeros.
    pub device: (u32, u32),
    /// Part of every handle to it; never changes.
    pub generation: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// The verifier of the exclusive create that made it, else zeros.
    pub verifier: [u8; 8],
    /// A directory's parent (the root's is the root), else 0.
    pub parent: u64,
    /// A directory's next free cookie, from [`FIRST_COOKIE`] up, else 0.
    pub next_cookie: u64,
    /// A directory's entries, "." and ".." not counted, else 0.
    pub entry_count: u64,
}

/// The counters of the whole file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Super {
    /// The inode number of the next object made; numbers are never reused.
    pub next_ino: u64,
    /// Blocks held by all files.
    pub used_blocks: u64,
    /// Objects that exist.
    pub used_inodes: u64,
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The object's inode number.
    pub ino: u64,
    /// The entry's place in its directory's listing; never reused in that directory.
    pub cookie: u64,
    /// The object's kind.
    pub kind: FileType,
}

/// What memory knows of something. `op` is the op that last changed it, 0 when it came from the
/// image (which holds only committed state).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known<T> {
    /// Its value.
    Is(T, u64),
    /// That there is no such thing.
    Absent(u64),
    /// Nothing: it must be fetched.
    Unknown,
}

impl<T> Known<T> {
    /// The same knowledge of what `f` makes of the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Known::Is(value, op) => Known::Is(f(value), op),
            Known::Absent(op) => Known::Absent(op),
            Known::Unknown => Known::Unknown,
        }
    }
}

/// Bits of an encoded inode's second byte: which fields follow because they are not zero.
mod has {
    pub const SIZE: u8 = 1;
    pub const USED: u8 = 2;
    pub const DEVICE: u8 = 4;
    pub const VERIFIER: u8 = 8;
    pub const PARENT: u8 = 16;
    pub const NEXT_COOKIE: u8 = 32;
    pub const ENTRIES: u8 = 64;
    /// The three times differ and all follow; else one does.
    pub const TIMES: u8 = 128;
}

/// Appends little-endian bytes to a fixed buffer that is known to be long enough.
struct Put<'a>(&'a mut [u8], usize);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }

    fn time(&mut self, time: Time) {
        self.bytes(&time.seconds.to_le_bytes());
        self.bytes(&time.nanos.to_le_bytes());
    }

    fn optional(&mut self, flags: &mut u8, bit: u8, value: u64) {
        if value != 0 {
            *flags |= bit;
            self.bytes(&value.to_le_bytes());
        }
    }
}

/// Takes little-endian values off the front of untrusted bytes.
pub(crate) struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn time(&mut self) -> Option<Time> {
        let time = Time { seconds: self.u32()?, nanos: self.u32()? };
        (time.nanos < 1_000_000_000).then_some(time)
    }

    pub fn kind(&mut self) -> Option<FileType> {
        FileType::from_number(self.u8()?.into())
    }
}

impl Inode {
    /// Writes the inode to the front of `out`, at least [`INODE_BYTES_MAX`] long; returns the
    /// bytes used. An empty file takes 28.
    ///
    /// Panics if the mode has bits above 0o7777: modes are masked before they get here.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.mode <= 0o7777, "a mode of {:o}", self.mode);
        let mut put = Put(out, 2);
        let mut flags = 0;
        put.bytes(&(self.mode as u16).to_le_bytes());
        for field in [self.nlink, self.uid, self.gid, self.generation] {
            put.bytes(&field.to_le_bytes());
        }
        put.time(self.ctime);
        if self.atime != self.ctime || self.mtime != self.ctime {
            flags |= has::TIMES;
            put.time(self.mtime);
            put.time(self.atime);
        }
        put.optional(&mut flags, has::SIZE, self.size);
        put.optional(&mut flags, has::USED, self.used_blocks);
        let device = u64::from(self.device.0) | u64::from(self.device.1) << 32;
        put.optional(&mut flags, has::DEVICE, device);
        put.optional(&mut flags, has::VERIFIER, u64::from_le_bytes(self.verifier));
        put.optional(&mut flags, has::PARENT, self.parent);
        put.optional(&mut flags, has::NEXT_COOKIE, self.next_cookie);
        put.optional(&mut flags, has::ENTRIES, self.entry_count);
        let len = put.1;
        out[0] = self.kind as u8;
        out[1] = flags;
        len
    }

    /// Reads an inode off the front of `bytes`; returns it and its length. `None`: no inode.
    pub fn decode(bytes: &[u8]) -> Option<(Inode, usize)> {
        let mut take = Take(bytes);
        let inode = Inode::take(&mut take)?;
        Some((inode, bytes.len() - take.0.len()))
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Option<Inode> {
        let kind = take.kind()?;
        let flags = take.u8()?;
        let mode = u32::from(take.u16()?);
        let (nlink, uid, gid) = (take.u32()?, take.u32()?, take.u32()?);
        let generation = take.u32()?;
        let ctime = take.time()?;
        let (mut mtime, mut atime) = (ctime, ctime);
        if flags & has::TIMES != 0 {
            mtime = take.time()?;
            atime = take.time()?;
            if mtime == ctime && atime == ctime {
                return None;
            }
        }
        // A field that is there is not zero: one value, one encoding.
        let mut field = |bit: u8| match flags & bit {
            0 => Some(0),
            _ => take.u64().filter(|value| *value != 0),
        };
        let (size, used_blocks) = (field(has::SIZE)?, field(has::USED)?);
        let device = field(has::DEVICE)?;
        let verifier = field(has::VERIFIER)?.to_le_bytes();
        let parent = field(has::PARENT)?;
        let (next_cookie, entry_count) = (field(has::NEXT_COOKIE)?, field(has::ENTRIES)?);
        let device = (device as u32, (device >> 32) as u32);
        let inode = Inode {
            kind,
            mode,
            nlink,
            uid,
            gid,
            size,
            used_blocks,
            device,
            generation,
            atime,
            mtime,
            ctime,
            verifier,
            parent,
            next_cookie,
            entry_count,
        };
        (mode <= 0o7777).then_some(inode)
    }
}

impl Super {
    /// Bytes of an encoded value.
    pub const BYTES: usize = 24;

    /// The value's bytes.
    pub fn encode(&self) -> [u8; Super::BYTES] {
        let mut out = [0; Super::BYTES];
        let mut put = Put(&mut out, 0);
        for field in [self.next_ino, self.used_blocks, self.used_inodes] {
            put.bytes(&field.to_le_bytes());
        }
        out
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Option<Super> {
        Some(Super { next_ino: take.u64()?, used_blocks: take.u64()?, used_inodes: take.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Inode {
        let time = Time { seconds: 7, nanos: 8 };
        Inode {
            kind: FileType::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 1000,
            gid: 100,
            size: 0,
            used_blocks: 0,
            device: (0, 0),
            generation: 1,
            atime: time,
            mtime: time,
            ctime: time,
            verifier: [0; 8],
            parent: 0,
            next_cookie: 0,
            entry_count: 0,
        }
    }

    fn round_trip(inode: Inode) -> usize {
        let mut bytes = [0; INODE_BYTES_MAX];
        let len = inode.encode(&mut bytes);
        assert_eq!(Inode::decode(&bytes[..len]), Some((inode, len)));
        for short in 0..len {
            assert_eq!(Inode::decode(&bytes[..short]), None, "cut to {short} bytes");
        }
        len
    }

    #[test]
    fn inodes_come_back_from_their_bytes_and_short_bytes_do_not() {
        assert_eq!(round_trip(plain()), 28);
        let later = Time { seconds: 9, nanos: 999_999_999 };
        let full = Inode {
            kind: FileType::Directory,
            size: u64::MAX,
            used_blocks: 5,
            device: (1, 2),
            atime: later,
            verifier: [9; 8],
            parent: 1,
            next_cookie: 3,
            entry_count: 77,
            ..plain()
        };
        assert!(round_trip(full) <= INODE_BYTES_MAX);
    }

    #[test]
    fn bytes_that_no_inode_has_are_refused() {
        let mut bytes = [0; INODE_BYTES_MAX];
        let len = plain().encode(&mut bytes);
        for (at, value) in [(0, 0), (0, 8), (3, 0x10), (27, 0x80), (1, has::SIZE)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(Inode::decode(&bad[..len.max(40)]), None, "byte {at} = {value}");
        }
    }
}
