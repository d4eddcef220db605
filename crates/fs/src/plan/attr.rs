//! GETATTR and SETATTR.
//! Owns: who may set what, and what a change of length does to a file's blocks.
//! Never: reads a file's data, save the block that a new end falls into.
//! Invariant: a block's bytes beyond the end of its file are zeros, and no block lies beyond it.
//! Source: RFC 1813 sections 3.3.1 and 3.3.2; POSIX chmod, chown, truncate.

use super::{FILE_SIZE_MAX, Object, Planned, Planner, Step, check, fail};
use crate::access;
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, Inode, Known, Super, blocks_of};
use crate::request::{Credential, FileType, Response, SetAttr, SetTime, Status, Time};

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

pub(super) fn get(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let step = p
        .resolve(handle)
        .map(|object| Response::GetAttr { status: Status::Ok, ok: Some(p.attributes(&object)) });
    p.settle_read(step, |status| Response::GetAttr { status, ok: None })
}

pub(super) fn set(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    set: &SetAttr,
    guard: Option<Time>,
) -> Planned {
    let mut seen = None;
    let step = change(p, handle, set, guard, &mut seen);
    p.settle(step, |p, status| Response::Wcc { status, wcc: p.unchanged(&seen) })
}

fn change(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    set: &SetAttr,
    guard: Option<Time>,
    seen: &mut Option<Object>,
) -> Step<Response> {
    let object = p.resolve(handle)?;
    *seen = Some(object);
    if guard.is_some_and(|time| time != object.inode.ctime) {
        return fail(Status::NotSync);
    }
    if *set == SetAttr::default() {
        return Ok(Response::Wcc { status: Status::Ok, wcc: p.wcc(&object, &object) });
    }
    let who = p.context.credential;
    judge(&object.inode, set, &who)?;
    let mut after = object;
    if let Some(size) = set.size {
        let mut counts = p.super_block()?;
        resize(p, &mut after, size, &mut counts)?;
    }
    assign(&mut after.inode, set, &who, p.context.now);
    p.out().set_inode(after.ino, &after.inode);
    Ok(Response::Wcc { status: Status::Ok, wcc: p.wcc(&object, &after) })
}

/// Whether `who` may make all the changes of `set`, and whether they make sense for the object.
fn judge(inode: &Inode, set: &SetAttr, who: &Credential<'_>) -> Step<()> {
    let owns = access::owns(inode, who);
    judge_times(set)?;
    if let Some(size) = set.size {
        judge_size(inode, size, who)?;
    }
    if who.uid == 0 {
        return Ok(());
    }
    let times = [set.atime, set.mtime];
    let to_client = times.iter().any(|t| matches!(t, SetTime::ToClient(_)));
    check(owns || (set.mode.is_none() && !to_client), Status::Perm)?;
    // Giving a file away is root's; giving it to another of one's groups is the owner's.
    check(set.uid.is_none_or(|uid| owns && uid == inode.uid), Status::Perm)?;
    check(set.gid.is_none_or(|gid| owns && (gid == inode.gid || who.in_group(gid))), Status::Perm)?;
    let to_server = times.contains(&SetTime::ToServer);
    check(!to_server || access::may_write(inode, who), Status::Access)
}

/// Whether the times that a client gives are times.
pub(super) fn judge_times(set: &SetAttr) -> Step<()> {
    let sound = |time: SetTime| match time {
        SetTime::ToClient(time) => time.nanos < 1_000_000_000,
        SetTime::Keep | SetTime::ToServer => true,
    };
    check(sound(set.atime) && sound(set.mtime), Status::Inval)
}

/// Whether `who` may make the object `size` bytes long.
pub(super) fn judge_size(inode: &Inode, size: u64, who: &Credential<'_>) -> Step<()> {
    match inode.kind {
        FileType::Regular => {}
        FileType::Directory => return fail(Status::IsDir),
        _ => return fail(Status::Inval),
    }
    check(access::may_write(inode, who), Status::Access)?;
    check(size <= FILE_SIZE_MAX, Status::FBig)
}

/// Sets owner, mode and times; the length is [`resize`]'s.
fn assign(inode: &mut Inode, set: &SetAttr, who: &Credential<'_>, now: Time) {
    let in_old_group = access::in_group(inode.gid, who);
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    if let Some(mode) = set.mode {
        inode.mode = access::mode_settable(mode, inode.gid, who);
    }
    let given_away = set.uid.is_some() || set.gid.is_some();
    if given_away && inode.kind != FileType::Directory {
        let keeps_set_gid = set.mode.is_some() || in_old_group;
        inode.mode = access::without_set_id(inode.mode, keeps_set_gid);
    }
    inode.atime = resolve_time(set.atime, inode.atime, now);
    inode.mtime = resolve_time(set.mtime, inode.mtime, now);
    inode.ctime = now;
}

/// The time that `set` makes of `old`.
pub(super) fn resolve_time(set: SetTime, old: Time, now: Time) -> Time {
    match set {
        SetTime::Keep => old,
        SetTime::ToServer => now,
        SetTime::ToClient(time) => time,
    }
}

/// Makes `file` `size` bytes long: writes the effects on its blocks and on `counts`, and brings the
/// inode up to date; the caller writes the inode. Permission was checked.
pub(super) fn resize(
    p: &mut Planner<'_, '_>,
    file: &mut Object,
    size: u64,
    counts: &mut Super,
) -> Step<()> {
    let old = file.inode;
    check(size <= old.size || p.context.room.grows, Status::NoSpc)?;
    if size < old.size {
        let tail = kept_tail(p, file, size)?;
        let kept = blocks_of(size);
        if old.used_blocks > 0 {
            p.out().cut(file.ino, kept);
        }
        if let Some((start, len, crc)) = tail {
            p.out().range(file.ino, size / BLOCK_BYTES_U64, start, crc, &ZEROS[..len]);
        }
        // A file with holes keeps at most so many; see `write` for why a bound is enough.
        let used = old.used_blocks.min(kept);
        if used != old.used_blocks {
            counts.used_blocks = counts.used_blocks.saturating_sub(old.used_blocks - used);
            file.inode.used_blocks = used;
            p.out().set_super(counts);
        }
    }
    file.inode.size = size;
    file.inode.mode = access::mode_after_write(&old, &p.context.credential);
    file.inode.mtime = p.context.now;
    file.inode.ctime = p.context.now;
    Ok(())
}

/// What must be zeroed in the block that the new end `size` falls into: where it starts, how long
/// it is, and the checksum of the block that results. `None` if it is zeros already.
fn kept_tail(
    p: &mut Planner<'_, '_>,
    file: &Object,
    size: u64,
) -> Step<Option<(usize, usize, u32)>> {
    let start = (size % BLOCK_BYTES_U64) as usize;
    if start == 0 || file.inode.used_blocks == 0 {
        return Ok(None);
    }
    let block = size / BLOCK_BYTES_U64;
    let mut content = [0; BLOCK_BYTES];
    match p.shadow.read_block(file.ino, block, p.context.log, &mut content) {
        Known::Is((), op) | Known::Absent(op) => p.shows = p.shows.max(op),
        Known::Unknown => return p.lack_block(file.ino, block),
    }
    let end = (file.inode.size - block * BLOCK_BYTES_U64).min(BLOCK_BYTES_U64) as usize;
    if content[start..end].iter().all(|b| *b == 0) {
        return Ok(None);
    }
    content[start..].fill(0);
    Ok(Some((start, end - start, crc32c::crc32c(&content))))
}
