//! READ: bytes of a file.
//! Owns: how much of what is asked for exists.
//! Never: changes the access time; that is gathered and recorded later.
//! Invariant: the bytes returned are exactly `count`, and none lies beyond the file's end.
//! Source: RFC 1813 section 3.3.6.

use super::{Halt, Planned, Planner, Step, TRANSFER_MAX, check, fail};
use crate::access;
use crate::inode::Known;
use crate::request::{Attributes, FileType, Response, Status};

pub(super) fn read(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    offset: u64,
    count: u32,
    data: &mut Vec<u8>,
) -> Planned {
    let mut attr = None;
    let step = bytes(p, handle, offset, count, data, &mut attr)
        .map(|(count, eof)| Response::Read { status: Status::Ok, attr, count, eof });
    p.settle_read(step, |status| Response::Read { status, attr, count: 0, eof: false })
}

/// Appends the bytes; gives their number and whether the file ends there.
fn bytes(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    offset: u64,
    count: u32,
    data: &mut Vec<u8>,
    attr: &mut Option<Attributes>,
) -> Step<(u32, bool)> {
    let file = p.resolve(handle)?;
    *attr = Some(p.attributes(&file));
    match file.inode.kind {
        FileType::Regular => {}
        FileType::Directory => return fail(Status::IsDir),
        _ => return fail(Status::Inval),
    }
    check(access::may_read(&file.inode, &p.context.credential), Status::Access)?;
    let left = file.inode.size.saturating_sub(offset);
    let len = left.min(u64::from(count.min(TRANSFER_MAX)));
    if len > 0 {
        let log = p.context.log;
        let before = p.needs.len();
        match p.shadow.read_range(file.ino, offset, len as usize, log, data, p.needs) {
            Known::Is((), op) | Known::Absent(op) => p.shows = p.shows.max(op),
            Known::Unknown => {
                check(!p.shadow.any_lost(&p.needs[before..]), Status::Io)?;
                return Err(Halt::Need);
            }
        }
    }
    p.note_access(&file);
    Ok((len as u32, len == left))
}
