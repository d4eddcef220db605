//! WRITE: bytes into a file.
//! Owns: how bytes become whole blocks and ranges, and what space they take.
//! Never: copies the payload more than once, into the effects.
//! Invariant: `used_blocks` is never below the blocks a file holds and never above those its length
//! spans. It is exact, but for a file with holes that was cut in its middle: counting what the cut
//! left would mean walking the block map, so a bound is kept. Equal to the span, it lets writes
//! take the file for one without holes.
//! Source: RFC 1813 section 3.3.7.

use super::{FILE_SIZE_MAX, Object, Planned, Planner, Step, TRANSFER_MAX, check, fail};
use crate::access;
use crate::effect::EffectWriter;
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, Block, Known, blocks_of};
use crate::need::Need;
use crate::request::{FileType, Response, Status};

/// Whole blocks that one WRITE holds at most.
const WHOLE_MAX: usize = TRANSFER_MAX as usize / BLOCK_BYTES;

pub(super) fn write(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    offset: u64,
    count: u32,
    data: &[u8],
) -> Planned {
    let mut seen = None;
    let step = put(p, handle, offset, count, data, &mut seen);
    let verifier = p.context.volume.write_verifier;
    p.settle(step, |p, status| Response::Write {
        status,
        wcc: p.unchanged(&seen),
        count: 0,
        verifier,
    })
}

fn put(
    p: &mut Planner<'_, '_>,
    handle: &[u8],
    offset: u64,
    count: u32,
    data: &[u8],
    seen: &mut Option<Object>,
) -> Step<Response> {
    let before = p.resolve(handle)?;
    *seen = Some(before);
    match before.inode.kind {
        FileType::Regular => {}
        FileType::Directory => return fail(Status::IsDir),
        _ => return fail(Status::Inval),
    }
    let who = p.context.credential;
    check(access::may_write(&before.inode, &who), Status::Access)?;
    check(data.len() >= count as usize, Status::Inval)?;
    let data = &data[..count.min(TRANSFER_MAX) as usize];
    if data.is_empty() {
        return Ok(written(p, &before, &before, 0));
    }
    let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX);
    let Some(end) = end else { return fail(Status::FBig) };

    let mut counts = p.super_block()?;
    let cut = Pieces::of(offset, data);
    let fresh = fresh_blocks(p, &before, offset / BLOCK_BYTES_U64, blocks_of(end));
    // Both may lack blocks; ask for all at once.
    let head = merged(p, &before, &cut.head);
    let tail = merged(p, &before, &cut.tail);
    let (fresh, head, tail) = (fresh?, head?, tail?);
    let free = p.context.volume.capacity_blocks.saturating_sub(counts.used_blocks);
    check(fresh <= free, Status::NoSpc)?;
    let room = p.context.room;
    let touched = blocks_of(end) - offset / BLOCK_BYTES_U64;
    check(room.grows && touched <= room.blocks, Status::NoSpc)?;

    let mut after = before;
    after.inode.size = before.inode.size.max(end);
    after.inode.used_blocks += fresh;
    after.inode.mode = access::mode_after_write(&before.inode, &who);
    after.inode.mtime = p.context.now;
    after.inode.ctime = p.context.now;
    emit(p.out(), &after, &cut, head, tail);
    if fresh > 0 {
        counts.used_blocks += fresh;
        p.out().set_super(&counts);
    }
    Ok(written(p, &before, &after, data.len() as u32))
}

/// Bytes that fall into one block without filling it.
struct Part<'a> {
    block: u64,
    start: usize,
    data: &'a [u8],
}

/// A write cut at the boundaries of blocks.
struct Pieces<'a> {
    /// The part of a block in front (the only one, if the write stays inside one block).
    head: Part<'a>,
    /// Index of the first of the whole blocks.
    whole_first: u64,
    whole: &'a [u8],
    /// The part of a block at the end.
    tail: Part<'a>,
}

impl<'a> Pieces<'a> {
    fn of(offset: u64, data: &'a [u8]) -> Pieces<'a> {
        let (block, start) = (offset / BLOCK_BYTES_U64, (offset % BLOCK_BYTES_U64) as usize);
        let head_len = if start == 0 { 0 } else { data.len().min(BLOCK_BYTES - start) };
        let (head, rest) = data.split_at(head_len);
        let (whole, tail) = rest.split_at(rest.len() / BLOCK_BYTES * BLOCK_BYTES);
        let whole_first = block + u64::from(start != 0);
        let tail_block = whole_first + (whole.len() / BLOCK_BYTES) as u64;
        Pieces {
            head: Part { block, start, data: head },
            whole_first,
            whole,
            tail: Part { block: tail_block, start: 0, data: tail },
        }
    }
}

/// How many of the blocks `first..end` the file does not hold yet.
fn fresh_blocks(p: &mut Planner<'_, '_>, file: &Object, first: u64, end: u64) -> Step<u64> {
    let spanned = blocks_of(file.inode.size);
    let beyond = end - first.max(spanned).min(end);
    if first >= spanned || file.inode.used_blocks >= spanned {
        return Ok(beyond);
    }
    let inside = first..end.min(spanned);
    if file.inode.used_blocks == 0 {
        return Ok(beyond + (inside.end - inside.start));
    }
    let mut fresh = beyond;
    for block in inside {
        match p.shadow.block_exists(file.ino, block) {
            Known::Is(exists, op) => {
                p.shows = p.shows.max(op);
                fresh += u64::from(!exists);
            }
            Known::Absent(_) => fresh += 1,
            Known::Unknown => {
                let count = (end.min(spanned) - block) as u32;
                return p.lack(Need::Blocks { ino: file.ino, first: block, count });
            }
        }
    }
    // The bound in the header: more than the span is not counted.
    Ok(fresh.min(spanned.max(end) - file.inode.used_blocks))
}

/// The checksum of the block that results from putting `part` into what the file holds.
fn merged(p: &mut Planner<'_, '_>, file: &Object, part: &Part<'_>) -> Step<u32> {
    if part.data.is_empty() {
        return Ok(0);
    }
    let mut content: Block = [0; BLOCK_BYTES];
    let end = part.start + part.data.len();
    // Bytes of the file in this block; what lies beyond is zeros.
    let begin = part.block.saturating_mul(BLOCK_BYTES_U64);
    let held = file.inode.size.saturating_sub(begin);
    let covered = part.start == 0 && end as u64 >= held;
    if !covered && held > 0 && file.inode.used_blocks > 0 {
        match p.shadow.read_block(file.ino, part.block, p.context.log, &mut content) {
            Known::Is((), op) | Known::Absent(op) => p.shows = p.shows.max(op),
            Known::Unknown => return p.lack_block(file.ino, part.block),
        }
    }
    content[part.start..end].copy_from_slice(part.data);
    Ok(crc32c::crc32c(&content))
}

/// Writes the effects on the file: its attributes and the pieces.
fn emit(out: &mut EffectWriter<'_>, file: &Object, cut: &Pieces<'_>, head: u32, tail: u32) {
    let inode = &file.inode;
    out.touch_file(file.ino, inode.size, inode.used_blocks, inode.mtime, inode.ctime, inode.mode);
    for (part, crc) in [(&cut.head, head), (&cut.tail, tail)] {
        if !part.data.is_empty() {
            out.range(file.ino, part.block, part.start, crc, part.data);
        }
    }
    if !cut.whole.is_empty() {
        let mut crcs = [0; WHOLE_MAX];
        let count = cut.whole.len() / BLOCK_BYTES;
        for (crc, block) in crcs.iter_mut().zip(cut.whole.chunks_exact(BLOCK_BYTES)) {
            *crc = crc32c::crc32c(block);
        }
        out.blocks(file.ino, cut.whole_first, &crcs[..count], cut.whole);
    }
}

fn written(p: &Planner<'_, '_>, before: &Object, after: &Object, count: u32) -> Response {
    Response::Write {
        status: Status::Ok,
        wcc: p.wcc(before, after),
        count,
        verifier: p.context.volume.write_verifier,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(offset: u64, len: usize) -> (u64, usize, usize, u64, usize, u64, usize) {
        let data = vec![1; len];
        let cut = Pieces::of(offset, &data);
        let (h, t) = (&cut.head, &cut.tail);
        let whole = cut.whole.len() / BLOCK_BYTES;
        (h.block, h.start, h.data.len(), cut.whole_first, whole, t.block, t.data.len())
    }

    #[test]
    fn a_write_is_cut_at_the_boundaries_of_blocks() {
        assert_eq!(shape(0, 4096), (0, 0, 0, 0, 1, 1, 0));
        assert_eq!(shape(0, 10), (0, 0, 0, 0, 0, 0, 10));
        assert_eq!(shape(100, 10), (0, 100, 10, 1, 0, 1, 0));
        assert_eq!(shape(100, 3996), (0, 100, 3996, 1, 0, 1, 0));
        assert_eq!(shape(4097, 3 * 4096), (1, 1, 4095, 2, 2, 4, 1));
        assert_eq!(shape(8192, 5000), (2, 0, 0, 2, 1, 3, 904));
    }
}
