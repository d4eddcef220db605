//! REMOVE and RMDIR: names taken away, and objects with their last name.
//! Owns: who may take an entry out of a directory.
//! Never: keeps a removed file for those who have it open; NFS clients rename it aside instead.
//! Invariant: removing frees space and needs none, so it works on a full volume.
//! Source: RFC 1813 sections 3.3.12 and 3.3.13; POSIX unlink and rmdir.

use super::{Object, Planned, Planner, Step, check, fail};
use crate::access;
use crate::inode::{Entry, Super};
use crate::request::{DirName, Response, Status};

pub(super) fn remove(p: &mut Planner<'_, '_>, what: &DirName<'_>) -> Planned {
    let mut dir = None;
    let dots = (Status::Inval, Status::Inval);
    let step = open(p, what, dots, &mut dir).and_then(|(dir, entry, victim, counts)| {
        check(!victim.is_dir(), Status::IsDir)?;
        take(p, dir, &entry, &victim, counts, what.name)
    });
    p.settle(step, |p, status| Response::Wcc { status, wcc: p.unchanged(&dir) })
}

pub(super) fn rmdir(p: &mut Planner<'_, '_>, what: &DirName<'_>) -> Planned {
    let mut dir = None;
    let dots = (Status::Inval, Status::Exist);
    let step = open(p, what, dots, &mut dir).and_then(|(dir, entry, victim, counts)| {
        check(victim.is_dir(), Status::NotDir)?;
        check(victim.inode.entry_count == 0, Status::NotEmpty)?;
        take(p, dir, &entry, &victim, counts, what.name)
    });
    p.settle(step, |p, status| Response::Wcc { status, wcc: p.unchanged(&dir) })
}

/// The directory, the entry, what it names and the counters; `who` may remove it.
fn open(
    p: &mut Planner<'_, '_>,
    what: &DirName<'_>,
    dots: (Status, Status),
    seen: &mut Option<Object>,
) -> Step<(Object, Entry, Object, Super)> {
    let counts = p.super_block();
    let (dir, entry) = p.open_dir(what, dots, seen)?;
    let Some(entry) = entry? else { return fail(Status::NoEnt) };
    p.check_writable(&dir)?;
    let victim = p.named(entry.ino)?;
    let sticky = access::sticky_allows(&dir.inode, &victim.inode, &p.context.credential);
    check(sticky, Status::Perm)?;
    Ok((dir, entry, victim, counts?))
}

fn take(
    p: &mut Planner<'_, '_>,
    before: Object,
    entry: &Entry,
    victim: &Object,
    mut counts: Super,
    name: &[u8],
) -> Step<Response> {
    let mut dir = before;
    let old = counts;
    p.take_entry(&mut dir, entry, name);
    if victim.is_dir() {
        dir.inode.nlink = dir.inode.nlink.saturating_sub(1);
    }
    p.drop_name(victim, &mut counts);
    p.touch_dir(&mut dir);
    if counts.used_inodes != old.used_inodes {
        p.out().set_super(&counts);
    }
    Ok(Response::Wcc { status: Status::Ok, wcc: p.wcc(&before, &dir) })
}
