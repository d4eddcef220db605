//! Keys: under which bytes the image keeps each object's value.
//! Owns: the key spaces of the file system and the rows of an empty one.
//! Never: reads or writes an image.
//! Invariant: the order of keys is the order of (table, number, name or cookie): a directory's
//! entries lie together, in the order of their cookies in one table, of their names in another.
//! Source: docs/disk-format.md.

use crate::inode::{
    Entry, FIRST_COOKIE, INODE_BYTES_MAX, Inode, NAME_BYTES_MAX, ROOT, Super, Take,
};
use crate::request::{FileType, Time};

/// First byte of every key of the file system: 0x10 to 0x14; others are free for other owners.
pub mod table {
    /// The counters of the whole: a single row.
    pub const SUPER: u8 = 0x10;
    /// ino -> inode.
    pub const INODE: u8 = 0x11;
    /// ino -> target of the symbolic link.
    pub const TARGET: u8 = 0x12;
    /// (dir, name) -> entry.
    pub const NAME: u8 = 0x13;
    /// (dir, cookie) -> entry and name.
    pub const COOKIE: u8 = 0x14;
}

/// The longest key in bytes.
pub const KEY_BYTES_MAX: usize = 9 + NAME_BYTES_MAX;
/// The longest value in bytes, targets apart (they have up to `TARGET_BYTES_MAX`).
pub const VALUE_BYTES_MAX: usize = 9 + NAME_BYTES_MAX;

const _: () = assert!(INODE_BYTES_MAX <= VALUE_BYTES_MAX);

/// Bytes of a key or value, without heap.
#[derive(Clone, Copy)]
pub struct RowBytes {
    len: u16,
    bytes: [u8; KEY_BYTES_MAX],
}

impl RowBytes {
    fn new(pieces: &[&[u8]]) -> RowBytes {
        let mut row = RowBytes { len: 0, bytes: [0; KEY_BYTES_MAX] };
        for piece in pieces {
            let at = usize::from(row.len);
            row.bytes[at..at + piece.len()].copy_from_slice(piece);
            row.len += piece.len() as u16;
        }
        row
    }
}

impl std::ops::Deref for RowBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Key of the counters.
pub fn super_key() -> RowBytes {
    RowBytes::new(&[&[table::SUPER]])
}

/// Key of an inode.
pub fn inode_key(ino: u64) -> RowBytes {
    RowBytes::new(&[&[table::INODE], &ino.to_be_bytes()])
}

/// Key of a symbolic link's target; the value is the target itself.
pub fn target_key(ino: u64) -> RowBytes {
    RowBytes::new(&[&[table::TARGET], &ino.to_be_bytes()])
}

/// Key of an entry by its name, at most [`NAME_BYTES_MAX`] bytes.
pub fn name_key(dir: u64, name: &[u8]) -> RowBytes {
    RowBytes::new(&[&[table::NAME], &dir.to_be_bytes(), name])
}

/// Key of an entry by its cookie.
pub fn cookie_key(dir: u64, cookie: u64) -> RowBytes {
    RowBytes::new(&[&[table::COOKIE], &dir.to_be_bytes(), &cookie.to_be_bytes()])
}

/// Value under an [`inode_key`].
pub fn inode_value(inode: &Inode) -> RowBytes {
    let mut row = RowBytes::new(&[]);
    row.len = inode.encode(&mut row.bytes) as u16;
    row
}

/// Value under a [`name_key`].
pub fn name_value(entry: &Entry) -> RowBytes {
    RowBytes::new(&[&entry.ino.to_le_bytes(), &[entry.kind as u8], &entry.cookie.to_le_bytes()])
}

/// Value under a [`cookie_key`].
pub fn cookie_value(entry: &Entry, name: &[u8]) -> RowBytes {
    RowBytes::new(&[&entry.ino.to_le_bytes(), &[entry.kind as u8], name])
}

/// Reads the value under [`super_key`]. `None`: no such value.
pub fn parse_super(value: &[u8]) -> Option<Super> {
    let mut take = Take(value);
    let value = Super::take(&mut take)?;
    take.0.is_empty().then_some(value)
}

/// Reads a value under an [`inode_key`].
pub fn parse_inode(value: &[u8]) -> Option<Inode> {
    let (inode, len) = Inode::decode(value)?;
    (len == value.len()).then_some(inode)
}

/// Reads a value under a [`name_key`].
pub fn parse_name(value: &[u8]) -> Option<Entry> {
    let mut take = Take(value);
    let (ino, kind, cookie) = (take.u64()?, take.kind()?, take.u64()?);
    take.0.is_empty().then_some(Entry { ino, cookie, kind })
}

/// Reads a row under a [`cookie_key`]: its directory, entry and name. `None` if the row is of
/// another table or damaged.
pub fn parse_cookie_row<'a>(key: &[u8], value: &'a [u8]) -> Option<(u64, Entry, &'a [u8])> {
    let (table, key) = key.split_first()?;
    let dir = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
    let cookie = u64::from_be_bytes(key.get(8..)?.try_into().ok()?);
    let mut take = Take(value);
    let (ino, kind) = (take.u64()?, take.kind()?);
    let good = *table == table::COOKIE && (1..=NAME_BYTES_MAX).contains(&take.0.len());
    good.then_some((dir, Entry { ino, cookie, kind }, take.0))
}

/// Whose a new file system's root is, and who may do what in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootOwner {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (07777).
    pub mode: u32,
}

impl Default for RootOwner {
    fn default() -> RootOwner {
        RootOwner { uid: 0, gid: 0, mode: 0o755 }
    }
}

/// The rows of an empty file system made at `now`, in key order: the counters and the root.
pub fn format_rows(now: Time) -> Vec<(Vec<u8>, Vec<u8>)> {
    format_rows_for(RootOwner::default(), now)
}

/// As [`format_rows`], for a root that is somebody's.
pub fn format_rows_for(owner: RootOwner, now: Time) -> Vec<(Vec<u8>, Vec<u8>)> {
    let root = Inode {
        kind: FileType::Directory,
        mode: owner.mode,
        nlink: 2,
        uid: owner.uid,
        gid: owner.gid,
        size: 4096,
        used_blocks: 0,
        device: (0, 0),
        generation: 1,
        atime: now,
        mtime: now,
        ctime: now,
        verifier: [0; 8],
        parent: ROOT,
        next_cookie: FIRST_COOKIE,
        entry_count: 0,
    };
    let counters = Super { next_ino: ROOT + 1, used_blocks: 0, used_inodes: 1 };
    vec![
        (super_key().to_vec(), counters.encode().to_vec()),
        (inode_key(ROOT).to_vec(), inode_value(&root).to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_damaged_rows_are_refused() {
        let entry = Entry { ino: 5, cookie: 70_000, kind: FileType::Fifo };
        assert_eq!(parse_name(&name_value(&entry)), Some(entry));
        let key = cookie_key(3, entry.cookie);
        let value = cookie_value(&entry, b"pipe");
        assert_eq!(parse_cookie_row(&key, &value), Some((3, entry, &b"pipe"[..])));
        assert_eq!(parse_cookie_row(&key, &value[..9]), None);
        assert_eq!(parse_cookie_row(&key[..16], &value), None);
        assert_eq!(parse_cookie_row(&name_key(3, b"12345678"), &value), None);
        assert_eq!(parse_name(&value), None);
        assert_eq!(parse_inode(&[]), None);
        assert_eq!(parse_super(&[0; 23]), None);
    }

    #[test]
    fn keys_sort_by_directory_then_by_cookie_or_name() {
        assert!(*cookie_key(1, 255) < *cookie_key(1, 256));
        assert!(*cookie_key(1, u64::MAX) < *cookie_key(2, 0));
        assert!(*name_key(1, b"a") < *name_key(1, b"aa"));
        assert!(*name_key(1, &[0xff; 255]) < *name_key(2, b"a"));
    }

    #[test]
    fn an_empty_file_system_is_a_root_and_its_counters() {
        let rows = format_rows(Time::default());
        assert!(rows.is_sorted());
        assert_eq!(parse_super(&rows[0].1).map(|counters| counters.used_inodes), Some(1));
        assert_eq!(parse_inode(&rows[1].1).map(|root| root.parent), Some(ROOT));
    }
}
