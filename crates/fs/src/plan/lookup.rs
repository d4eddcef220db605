//! LOOKUP and ACCESS: from a name to its object, and what may be done with an object.
//! Owns: the meaning of "." and "..".
//! Never: modifies.
//! Invariant: a name is looked at only after permission to search its directory.
//! Source: RFC 1813 sections 3.3.3 and 3.3.4.

use super::{Object, Planned, Planner, Step, check};
use crate::access;
use crate::request::{DirName, Response, Status};

pub(super) fn lookup(p: &mut Planner<'_, '_>, what: &DirName<'_>) -> Planned {
    let mut dir = None;
    let step = find(p, what, &mut dir);
    let dir = dir.map(|d| p.attributes(&d));
    let step = step.map(|found| Response::Lookup {
        status: Status::Ok,
        ok: Some(p.context.volume.handles.make(found.ino, found.inode.generation)),
        attr: Some(p.attributes(&found)),
        dir,
    });
    p.settle_read(step, |status| Response::Lookup { status, ok: None, attr: None, dir })
}

fn find(p: &mut Planner<'_, '_>, what: &DirName<'_>, seen: &mut Option<Object>) -> Step<Object> {
    if what.name != b"." && what.name != b".." {
        // The answers to the two dots are never used here.
        let dots = (Status::NoEnt, Status::NoEnt);
        let (_, entry) = p.open_dir(what, dots, seen)?;
        return match entry? {
            Some(entry) => p.named(entry.ino),
            None => super::fail(Status::NoEnt),
        };
    }
    let dir = p.resolve(what.dir)?;
    *seen = Some(dir);
    check(dir.is_dir(), Status::NotDir)?;
    let searchable = access::allows(&dir.inode, &p.context.credential, access::EXECUTE);
    check(searchable, Status::Access)?;
    if what.name == b"." { Ok(dir) } else { p.named(dir.inode.parent) }
}

pub(super) fn access(p: &mut Planner<'_, '_>, handle: &[u8], want: u32) -> Planned {
    let step = p.resolve(handle).map(|object| Response::Access {
        status: Status::Ok,
        attr: Some(p.attributes(&object)),
        granted: access::granted(&object.inode, &p.context.credential, want),
    });
    p.settle_read(step, |status| Response::Access { status, attr: None, granted: 0 })
}
