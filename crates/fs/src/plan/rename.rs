//! RENAME: one name instead of another, in one record.
//! Owns: what may replace what, and that no directory becomes its own ancestor.
//! Never: leaves a moment with both names or with neither.
//! Invariant: a moved directory's parent is the directory that holds its entry.
//! Source: RFC 1813 section 3.3.14; POSIX rename.

use super::{LINK_MAX, Object, Planned, Planner, Step, check, fail};
use crate::access;
use crate::inode::{Entry, ROOT, Super};
use crate::request::{DirName, Response, Status, Wcc};

/// Deepest path that the search for an ancestor follows; deeper ones are not moved.
const DEPTH_MAX: u32 = 65_536;

/// The dots are no names to move from or to.
const DOTS: (Status, Status) = (Status::Inval, Status::Inval);

/// Everything a RENAME is about.
struct Move {
    from: Object,
    to: Object,
    source_entry: Entry,
    source: Object,
    /// What bears the new name now.
    replaced: Option<(Entry, Object)>,
    counts: Super,
}

pub(super) fn rename(p: &mut Planner<'_, '_>, from: &DirName<'_>, to: &DirName<'_>) -> Planned {
    let (mut from_seen, mut to_seen) = (None, None);
    let step = open(p, from, to, &mut from_seen, &mut to_seen)
        .and_then(|parts| carry_out(p, parts, from.name, to.name));
    p.settle(step, |p, status| Response::Rename {
        status,
        from: p.unchanged(&from_seen),
        to: p.unchanged(&to_seen),
    })
}

fn open(
    p: &mut Planner<'_, '_>,
    from: &DirName<'_>,
    to: &DirName<'_>,
    from_seen: &mut Option<Object>,
    to_seen: &mut Option<Object>,
) -> Step<Move> {
    let counts = p.super_block();
    let source = p.open_dir(from, DOTS, from_seen);
    let target = p.open_dir(to, DOTS, to_seen);
    let ((from, entry), (to, target)) = (source?, target?);
    let (Some(source_entry), target) = (entry?, target?) else { return fail(Status::NoEnt) };
    let source = p.named(source_entry.ino);
    let replaced = target.map(|entry| p.named(entry.ino).map(|object| (entry, object)));
    let (source, replaced) = (source?, replaced.transpose()?);
    Ok(Move { from, to, source_entry, source, replaced, counts: counts? })
}

fn carry_out(
    p: &mut Planner<'_, '_>,
    parts: Move,
    from_name: &[u8],
    to_name: &[u8],
) -> Step<Response> {
    let Move { from, to, ref source, .. } = parts;
    if parts.replaced.is_some_and(|(entry, _)| entry.ino == source.ino) {
        // Two names of one object: POSIX has nothing change.
        let (from, to) = (p.wcc(&from, &from), p.wcc(&to, &to));
        return Ok(Response::Rename { status: Status::Ok, from, to });
    }
    judge(p, &parts)?;
    let (from_wcc, to_wcc) = write(p, parts, from_name, to_name)?;
    Ok(Response::Rename { status: Status::Ok, from: from_wcc, to: to_wcc })
}

/// Whether the move is allowed and makes sense.
fn judge(p: &mut Planner<'_, '_>, parts: &Move) -> Step<()> {
    let Move { from, to, source, .. } = parts;
    let who = p.context.credential;
    let moves_dir = source.is_dir() && from.ino != to.ino;
    if moves_dir {
        not_below(p, to, source.ino, Status::Inval)?;
    }
    if let Some((_, replaced)) = &parts.replaced
        && replaced.is_dir()
        && from.ino != to.ino
    {
        not_below(p, from, replaced.ino, Status::NotEmpty)?;
    }
    p.check_writable(from)?;
    check(access::sticky_allows(&from.inode, &source.inode, &who), Status::Perm)?;
    p.check_writable(to)?;
    if let Some((_, replaced)) = &parts.replaced {
        check(access::sticky_allows(&to.inode, &replaced.inode, &who), Status::Perm)?;
        match (source.is_dir(), replaced.is_dir()) {
            (true, false) => return fail(Status::NotDir),
            (false, true) => return fail(Status::IsDir),
            _ => {}
        }
    }
    if moves_dir {
        // Its ".." changes.
        p.check_writable(source)?;
        check(parts.replaced.is_some() || to.inode.nlink < LINK_MAX, Status::MLink)?;
    }
    let full = |(_, replaced): &(_, Object)| replaced.inode.entry_count > 0;
    check(!parts.replaced.as_ref().is_some_and(full), Status::NotEmpty)
}

/// Fails with `status` if `dir` is `ancestor` or lies below it.
fn not_below(p: &mut Planner<'_, '_>, dir: &Object, ancestor: u64, status: Status) -> Step<()> {
    let mut at = *dir;
    for _ in 0..DEPTH_MAX {
        check(at.ino != ancestor, status)?;
        if at.ino == ROOT {
            return Ok(());
        }
        at = p.named(at.inode.parent)?;
    }
    fail(status)
}

/// Writes the effects; gives the two directories' `wcc_data`.
fn write(
    p: &mut Planner<'_, '_>,
    parts: Move,
    from_name: &[u8],
    to_name: &[u8],
) -> Step<(Wcc, Wcc)> {
    let Move { from: from_before, to: to_before, source_entry, mut source, replaced, .. } = parts;
    let mut counts = parts.counts;
    let within = from_before.ino == to_before.ino;
    let (mut from, mut to) = (from_before, to_before);
    p.take_entry(&mut from, &source_entry, from_name);
    if within {
        to = from;
    }
    if let Some((entry, object)) = &replaced {
        p.take_entry(&mut to, entry, to_name);
        p.drop_name(object, &mut counts);
        if object.is_dir() {
            to.inode.nlink = to.inode.nlink.saturating_sub(1);
        }
    }
    p.add_entry(&mut to, source.ino, source.inode.kind, to_name);
    if source.is_dir() && !within {
        from.inode.nlink = from.inode.nlink.saturating_sub(1);
        to.inode.nlink += 1;
        source.inode.parent = to.ino;
    }
    source.inode.ctime = p.context.now;
    p.out().set_inode(source.ino, &source.inode);
    p.touch_dir(&mut to);
    if within {
        from = to;
    } else {
        p.touch_dir(&mut from);
    }
    if counts.used_inodes != parts.counts.used_inodes {
        p.out().set_super(&counts);
    }
    Ok((p.wcc(&from_before, &from), p.wcc(&to_before, &to)))
}
