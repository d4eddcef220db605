//! LINK and READLINK: more names for a file, and names that point to names.
//! Owns: what may have several names.
//! Never: follows a symbolic link; its target is bytes that only clients interpret.
//! Invariant: an object's link count is the number of its entries (plus its own and its
//! sub-directories' dots for a directory).
//! Source: RFC 1813 sections 3.3.5 and 3.3.15.

use super::{LINK_MAX, Object, Planned, Planner, Step, check};
use crate::inode::Known;
use crate::need::Need;
use crate::request::{DirName, FileType, Response, Status};

pub(super) fn read(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let mut attr = None;
    let step = p.resolve(handle).and_then(|object| {
        attr = Some(p.attributes(&object));
        check(object.inode.kind == FileType::Symlink, Status::Inval)?;
        match p.shadow.target(object.ino) {
            Known::Is(target, op) => {
                p.shows = p.shows.max(op);
                p.note_access(&object);
                Ok(Response::ReadLink { status: Status::Ok, attr, target })
            }
            // A link without a target is a damaged image.
            Known::Absent(_) => super::fail(Status::Io),
            Known::Unknown => p.lack(Need::Target(object.ino)),
        }
    });
    p.settle_read(step, |status| Response::ReadLink { status, attr, target: Vec::new() })
}

pub(super) fn link(p: &mut Planner<'_, '_>, handle: &[u8], to: &DirName<'_>) -> Planned {
    let (mut file, mut dir) = (None, None);
    let step = add(p, handle, to, &mut file, &mut dir);
    p.settle(step, |p, status| Response::Link {
        status,
        attr: file.as_ref().map(|f| p.attributes(f)),
        dir: p.unchanged(&dir),
    })
}

fn add(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    to: &DirName<'_>,
    seen_file: &mut Option<Object>,
    seen_dir: &mut Option<Object>,
) -> Step<Response> {
    let file = p.resolve(handle);
    let opened = p.open_dir(to, (Status::Exist, Status::Exist), seen_dir);
    let file = file?;
    *seen_file = Some(file);
    let (before, found) = opened?;
    check(found?.is_none(), Status::Exist)?;
    p.check_writable(&before)?;
    check(!file.is_dir(), Status::IsDir)?;
    check(file.inode.nlink < LINK_MAX, Status::MLink)?;
    check(p.context.room.grows, Status::NoSpc)?;
    let (mut dir, mut linked) = (before, file);
    linked.inode.nlink += 1;
    linked.inode.ctime = p.context.now;
    p.out().set_inode(linked.ino, &linked.inode);
    p.add_entry(&mut dir, linked.ino, linked.inode.kind, to.name);
    p.touch_dir(&mut dir);
    Ok(Response::Link {
        status: Status::Ok,
        attr: Some(p.attributes(&linked)),
        dir: p.wcc(&before, &dir),
    })
}
