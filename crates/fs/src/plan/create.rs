//! CREATE, MKDIR, SYMLINK and MKNOD: new objects under new names.
//! Owns: what a new inode looks like, and the three ways to create a file.
//! Never: gives an inode number out twice.
//! Invariant: a new object, its entry, its directory and the counters change in one record.
//! Source: RFC 1813 sections 3.3.8 to 3.3.11; POSIX open and mkdir for group and set-gid.

use super::attr::{judge_size, judge_times, resize, resolve_time};
use super::{FILE_SIZE_MAX, LINK_MAX, Object, Planned, Planner, Step, check, fail};
use crate::access;
use crate::inode::{Entry, FIRST_COOKIE, Inode, Super, TARGET_BYTES_MAX};
use crate::request::{CreateHow, DirName, FileType, Response, SetAttr, Status, Time};

/// "." and ".." always exist.
const DOTS: (Status, Status) = (Status::Exist, Status::Exist);

/// What sort of object to make.
struct Sort<'a> {
    kind: FileType,
    device: (u32, u32),
    verifier: [u8; 8],
    /// A symbolic link's target, else empty.
    target: &'a [u8],
}

impl Sort<'_> {
    fn plain(kind: FileType) -> Sort<'static> {
        Sort { kind, device: (0, 0), verifier: [0; 8], target: b"" }
    }
}

pub(super) fn create(p: &mut Planner<'_, '_>, what: &DirName<'_>, how: &CreateHow) -> Planned {
    let mut dir = None;
    let step = create_file(p, what, how, &mut dir);
    settle(p, step, dir)
}

pub(super) fn mkdir(p: &mut Planner<'_, '_>, what: &DirName<'_>, set: &SetAttr) -> Planned {
    make(p, what, set, Sort::plain(FileType::Directory), Ok(()))
}

pub(super) fn symlink(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    set: &SetAttr,
    target: &[u8],
) -> Planned {
    let judged = match target.len() {
        0 => fail(Status::Inval),
        1..=TARGET_BYTES_MAX => check(!target.contains(&0), Status::Inval),
        _ => fail(Status::NameTooLong),
    };
    make(p, what, set, Sort { target, ..Sort::plain(FileType::Symlink) }, judged)
}

pub(super) fn mknod(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    kind: FileType,
    set: &SetAttr,
    device: (u32, u32),
) -> Planned {
    let (judged, device) = match kind {
        FileType::Block | FileType::Character => (Ok(()), device),
        FileType::Socket | FileType::Fifo => (Ok(()), (0, 0)),
        FileType::Regular | FileType::Directory | FileType::Symlink => {
            (fail(Status::BadType), (0, 0))
        }
    };
    make(p, what, set, Sort { device, ..Sort::plain(kind) }, judged)
}

/// Makes an object that must not exist. `judged` is what the arguments alone say.
fn make(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    set: &SetAttr,
    sort: Sort<'_>,
    judged: Step<()>,
) -> Planned {
    let mut dir = None;
    let step = open(p, what, &mut dir).and_then(|(dir, found, counts)| {
        check(found.is_none(), Status::Exist)?;
        judged?;
        add(p, dir, what.name, counts, set, &sort)
    });
    settle(p, step, dir)
}

fn settle(p: &mut Planner<'_, '_>, step: Step<Response>, dir: Option<Object>) -> Planned {
    p.settle(step, |p, status| Response::Create {
        status,
        ok: None,
        attr: None,
        dir: p.unchanged(&dir),
    })
}

/// The directory, the entry there may be, and the counters, asked for together.
fn open(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    seen: &mut Option<Object>,
) -> Step<(Object, Option<Entry>, Super)> {
    let counts = p.super_block();
    let (dir, found) = p.open_dir(what, DOTS, seen)?;
    Ok((dir, found?, counts?))
}

fn create_file(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    how: &CreateHow,
    seen: &mut Option<Object>,
) -> Step<Response> {
    let (dir, found, counts) = open(p, what, seen)?;
    let Some(entry) = found else {
        let mut sort = Sort::plain(FileType::Regular);
        let set = match how {
            CreateHow::Unchecked(set) | CreateHow::Guarded(set) => *set,
            CreateHow::Exclusive(verifier) => {
                sort.verifier = *verifier;
                SetAttr::default()
            }
        };
        return add(p, dir, what.name, counts, &set, &sort);
    };
    match how {
        CreateHow::Guarded(_) => fail(Status::Exist),
        CreateHow::Exclusive(verifier) => {
            let file = p.named(entry.ino)?;
            // A file that was not created so has zeros.
            check(file.inode.verifier == *verifier && *verifier != [0; 8], Status::Exist)?;
            Ok(created(p, &dir, &dir, &file))
        }
        CreateHow::Unchecked(set) => take_existing(p, &dir, &entry, set.size, counts),
    }
}

/// An unchecked CREATE of a file that is there: only its length may change.
fn take_existing(
    p: &mut Planner<'_, '_>,
    dir: &Object,
    entry: &Entry,
    size: Option<u64>,
    mut counts: Super,
) -> Step<Response> {
    check(entry.kind == FileType::Regular, Status::Exist)?;
    let mut file = p.named(entry.ino)?;
    let Some(size) = size else {
        return Ok(created(p, dir, dir, &file));
    };
    judge_size(&file.inode, size, &p.context.credential)?;
    resize(p, &mut file, size, &mut counts)?;
    p.out().set_inode(file.ino, &file.inode);
    Ok(created(p, dir, dir, &file))
}

/// Adds a new object to `dir`, if `dir` may be written and there is room.
fn add(
    p: &mut Planner<'_, '_>,
    before: Object,
    name: &[u8],
    mut counts: Super,
    set: &SetAttr,
    sort: &Sort<'_>,
) -> Step<Response> {
    let who = p.context.credential;
    let volume = p.context.volume;
    let mut dir = before;
    p.check_writable(&dir)?;
    let device = matches!(sort.kind, FileType::Block | FileType::Character);
    check(!device || who.uid == 0, Status::Perm)?;
    check(counts.used_inodes < volume.capacity_inodes, Status::NoSpc)?;
    check(p.context.room.grows, Status::NoSpc)?;
    check(set.size.is_none_or(|size| size <= FILE_SIZE_MAX), Status::FBig)?;
    judge_times(set)?;
    if sort.kind == FileType::Directory {
        check(dir.inode.nlink < LINK_MAX, Status::MLink)?;
        dir.inode.nlink += 1;
    }
    let ino = counts.next_ino;
    let new = Object { ino, inode: new_inode(p, &before, ino, set, sort) };
    counts.next_ino += 1;
    counts.used_inodes += 1;
    p.out().new_inode(ino, &new.inode);
    if sort.kind == FileType::Symlink {
        p.out().set_target(ino, sort.target);
    }
    p.add_entry(&mut dir, ino, sort.kind, name);
    p.touch_dir(&mut dir);
    p.out().set_super(&counts);
    Ok(created(p, &before, &dir, &new))
}

fn new_inode(p: &Planner<'_, '_>, dir: &Object, ino: u64, set: &SetAttr, sort: &Sort<'_>) -> Inode {
    let who = p.context.credential;
    let now = p.context.now;
    let inherits = dir.inode.mode & access::SET_GID != 0;
    let (mut uid, mut gid) = (who.uid, if inherits { dir.inode.gid } else { who.gid });
    // Others ask in vain, as they would on a local file system.
    if who.uid == 0 {
        uid = set.uid.unwrap_or(uid);
        gid = set.gid.unwrap_or(gid);
    }
    let directory = sort.kind == FileType::Directory;
    let asked = set.mode.unwrap_or(0);
    let mode = match sort.kind {
        FileType::Symlink => 0o777,
        FileType::Directory => asked & (access::PERMISSIONS | access::STICKY),
        _ => access::mode_of_new(asked, gid, &who),
    };
    let size = match sort.kind {
        FileType::Regular => set.size.unwrap_or(0),
        FileType::Symlink => sort.target.len() as u64,
        _ => 0,
    };
    Inode {
        kind: sort.kind,
        mode: if directory && inherits { mode | access::SET_GID } else { mode },
        nlink: if directory { 2 } else { 1 },
        uid,
        gid,
        size,
        used_blocks: 0,
        device: sort.device,
        generation: generation(now, ino, p.context.volume.write_verifier),
        atime: resolve_time(set.atime, now, now),
        mtime: resolve_time(set.mtime, now, now),
        ctime: now,
        verifier: sort.verifier,
        parent: if directory { dir.ino } else { 0 },
        next_cookie: if directory { FIRST_COOKIE } else { 0 },
        entry_count: 0,
    }
}

/// A new object's generation. Numbers are never given out twice, except when an operator's override
/// loses records. Handles of the lost objects are stale then: the write verifier is that override's. (The time alone
/// would not do: a clock that went back gives times again.)
fn generation(now: Time, ino: u64, epoch: [u8; 8]) -> u32 {
    let mixed = ((u64::from(now.seconds) << 32) | u64::from(now.nanos))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(ino)
        .wrapping_add(u64::from_be_bytes(epoch));
    ((mixed >> 32) as u32).max(1)
}

/// The reply of a creating procedure that went well.
fn created(p: &Planner<'_, '_>, before: &Object, dir: &Object, new: &Object) -> Response {
    Response::Create {
        status: Status::Ok,
        ok: Some(p.context.volume.handles.make(new.ino, new.inode.generation)),
        attr: Some(p.attributes(new)),
        dir: p.wcc(before, dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_out_again_in_another_epoch_has_another_generation() {
        let now = Time { seconds: 1_750_000_000, nanos: 7 };
        assert_ne!(generation(now, 35, [1; 8]), generation(now, 35, [2; 8]));
    }
}
