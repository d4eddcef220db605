//! READDIR and READDIRPLUS: a directory's entries in the order of their cookies.
//! Owns: how many entries fit the sizes that the client gave.
//! Never: answers BAD_COOKIE; a cookie is a place in the order, whether or not its entry lives.
//! Invariant: an entry that exists throughout a listing is listed exactly once.
//! Source: RFC 1813 sections 3.3.16 and 3.3.17.

use super::{Halt, Object, Planned, Planner, Step, check, fail};
use crate::access;
use crate::handle::HANDLE_LEN;
use crate::inode::{FIRST_COOKIE, Known};
use crate::need::Need;
use crate::request::{Attributes, ListedEntry, Listing, Response, Status};

/// Most bytes of one reply.
pub(super) const REPLY_MAX: u32 = 1 << 20;
/// Bytes of a reply that clients should ask for.
pub(super) const REPLY_PREFERRED: u32 = 128 << 10;
/// Most entries of one reply.
const ENTRIES_MAX: usize = 4096;
/// Most entries of one reply with attributes: each may have to be fetched.
const PLUS_ENTRIES_MAX: usize = 1024;

/// Bytes of a reply without entries: attributes, verifier, end of list, end of directory.
const FIXED_BYTES: usize = (4 + ATTRIBUTES_BYTES) + 8 + 4 + 4;
/// Bytes of an entry without its name: one follows, file id, length of the name, cookie.
const ENTRY_BYTES: usize = 4 + 8 + 4 + 8;
/// Bytes that READDIRPLUS adds: attributes and handle, each with a word that says it follows.
const PLUS_BYTES: usize = (4 + ATTRIBUTES_BYTES) + (4 + 4 + HANDLE_LEN.next_multiple_of(4));
/// Bytes of `fattr3`.
const ATTRIBUTES_BYTES: usize = 84;

pub(super) fn read_dir(p: &mut Planner<'_, '_>, handle: &[u8], cookie: u64, count: u32) -> Planned {
    let sizes = Sizes::new(count, count, 0, ENTRIES_MAX);
    let mut dir = None;
    let step = entries(p, handle, cookie, sizes, &mut dir).map(|listing| Response::ReadDir {
        status: Status::Ok,
        dir,
        listing,
    });
    let none = Listing::default;
    p.settle_read(step, |status| Response::ReadDir { status, dir, listing: none() })
}

pub(super) fn read_dir_plus(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    cookie: u64,
    dir_count: u32,
    max_count: u32,
) -> Planned {
    let sizes = Sizes::new(max_count, dir_count, PLUS_BYTES, PLUS_ENTRIES_MAX);
    let mut dir = None;
    let step = entries(p, handle, cookie, sizes, &mut dir)
        .and_then(|listing| add_attributes(p, listing))
        .map(|listing| Response::ReadDirPlus { status: Status::Ok, dir, listing });
    let none = Listing::default;
    p.settle_read(step, |status| Response::ReadDirPlus { status, dir, listing: none() })
}

/// How much one reply may hold.
struct Sizes {
    /// Bytes left for entries.
    bytes: usize,
    /// Bytes left for names, file ids and cookies alone.
    dir_bytes: usize,
    /// Bytes of each entry beyond those.
    plus_bytes: usize,
    /// Entries left.
    entries: usize,
}

impl Sizes {
    fn new(max_count: u32, dir_count: u32, plus_bytes: usize, entries: usize) -> Sizes {
        Sizes {
            bytes: (max_count.min(REPLY_MAX) as usize).saturating_sub(FIXED_BYTES),
            dir_bytes: dir_count as usize,
            plus_bytes,
            entries,
        }
    }
}

/// A listing being filled.
struct Filling {
    listing: Listing,
    left: Sizes,
    /// An entry did not fit.
    full: bool,
}

impl Filling {
    /// Takes an entry in, unless that would be too much; says whether it did.
    fn offer(&mut self, fileid: u64, cookie: u64, name: &[u8]) -> bool {
        let dir_bytes = ENTRY_BYTES + name.len().next_multiple_of(4);
        let bytes = dir_bytes + self.left.plus_bytes;
        // The first entry goes by the whole reply's size alone, so that a listing gets ahead.
        let too_much = dir_bytes > self.left.dir_bytes && !self.listing.entries.is_empty();
        if self.full || bytes > self.left.bytes || too_much || self.left.entries == 0 {
            self.full = true;
            return false;
        }
        self.left.bytes -= bytes;
        self.left.dir_bytes = self.left.dir_bytes.saturating_sub(dir_bytes);
        self.left.entries -= 1;
        let start = self.listing.names.len();
        self.listing.names.extend_from_slice(name);
        let name = start..self.listing.names.len();
        self.listing.entries.push(ListedEntry { fileid, name, cookie, plus: None });
        true
    }
}

fn entries(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    cookie: u64,
    left: Sizes,
    seen: &mut Option<Attributes>,
) -> Step<Listing> {
    let dir = p.resolve(handle)?;
    *seen = Some(p.attributes(&dir));
    check(dir.is_dir(), Status::NotDir)?;
    check(access::allows(&dir.inode, &p.context.credential, access::READ), Status::Access)?;
    let verifier = p.context.volume.list_verifier;
    let listing = Listing { verifier, ..Listing::default() };
    let mut filling = Filling { listing, left, full: false };
    let end = fill(p, &dir, cookie, &mut filling)?;
    filling.listing.end = end && !filling.full;
    check(!filling.listing.entries.is_empty() || filling.listing.end, Status::TooSmall)?;
    p.note_access(&dir);
    Ok(filling.listing)
}

/// Offers the entries after `cookie`; says whether the directory's end was reached.
fn fill(p: &mut Planner<'_, '_>, dir: &Object, cookie: u64, filling: &mut Filling) -> Step<bool> {
    if cookie == 0 {
        filling.offer(dir.ino, 1, b".");
    }
    if cookie <= 1 {
        filling.offer(dir.inode.parent, 2, b"..");
    }
    if filling.full {
        return Ok(false);
    }
    // One more than can fit, to notice the end.
    let fit = filling.left.bytes / (ENTRY_BYTES + 4 + filling.left.plus_bytes);
    let limit = fit.min(filling.left.entries) + 1;
    let after = cookie.max(FIRST_COOKIE - 1);
    let known = p.shadow.list(dir.ino, after, limit, &mut |entry, name| {
        filling.offer(entry.ino, entry.cookie, name)
    });
    match known {
        Known::Is(end, op) => {
            p.shows = p.shows.max(op);
            Ok(end)
        }
        Known::Absent(op) => {
            p.shows = p.shows.max(op);
            fail(Status::Stale)
        }
        Known::Unknown => {
            let need = p.shadow.listing_need().expect("a listing that is not known lacks a page");
            p.lack(need)
        }
    }
}

/// Adds each entry's attributes and handle.
fn add_attributes(p: &mut Planner<'_, '_>, mut listing: Listing) -> Step<Listing> {
    let mut lacking = false;
    for entry in &mut listing.entries {
        match p.shadow.inode(entry.fileid) {
            Known::Is(inode, op) => {
                p.shows = p.shows.max(op);
                let object = Object { ino: entry.fileid, inode };
                let handle = p.context.volume.handles.make(object.ino, inode.generation);
                entry.plus = Some((p.attributes(&object), handle));
            }
            Known::Absent(op) => p.shows = p.shows.max(op),
            Known::Unknown => {
                lacking = true;
                p.needs.push(Need::Inode(entry.fileid));
            }
        }
    }
    if lacking { Err(Halt::Need) } else { Ok(listing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling(max_count: u32, dir_count: u32, plus: usize) -> Filling {
        let left = Sizes::new(max_count, dir_count, plus, 3);
        Filling { listing: Listing::default(), left, full: false }
    }

    #[test]
    fn entries_stop_where_the_reply_is_full() {
        let mut f = filling(FIXED_BYTES as u32 + 60, 1000, 0);
        assert!(f.offer(1, 3, b"abcd") && f.offer(2, 4, b"abcde"));
        assert!(!f.offer(3, 5, b"a"));
        assert_eq!((f.listing.entries.len(), f.full), (2, true));
    }

    #[test]
    fn the_first_entry_passes_a_tiny_directory_count() {
        let mut f = filling(1000, 1, PLUS_BYTES);
        assert!(f.offer(1, 3, b"first") && !f.offer(2, 4, b"second"));
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let mut f = filling(REPLY_MAX, REPLY_MAX, 0);
        assert_eq!((3..9).filter(|c| f.offer(*c, *c, b"x")).count(), 3);
    }

    #[test]
    fn a_reply_too_small_for_anything_holds_nothing() {
        assert!(!filling(10, 10, 0).offer(1, 1, b"."));
    }
}
