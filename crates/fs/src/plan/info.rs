//! FSSTAT, FSINFO, PATHCONF and COMMIT: facts about the volume.
//! Owns: the numbers that clients size their requests by.
//! Never: modifies; a write was stable when it was answered, so COMMIT has nothing to do.
//! Invariant: the facts are the same on every server of the group.
//! Source: RFC 1813 sections 3.3.18 to 3.3.21.

use super::{FILE_SIZE_MAX, LINK_MAX, Planned, Planner, TRANSFER_MAX};
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, NAME_BYTES_MAX};
use crate::request::{FsInfo, FsStat, PathConf, Response, Status, Time};

/// FSINFO properties: hard links, symbolic links, one set of facts for all files, times settable.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;

pub(super) fn fs_stat(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let object = p.resolve(handle);
    let counts = p.super_block();
    let volume = p.context.volume;
    let mut attr = None;
    let step = object.and_then(|object| {
        attr = Some(p.attributes(&object));
        let counts = counts?;
        let free_bytes = volume
            .capacity_blocks
            .saturating_sub(counts.used_blocks)
            .min(p.context.room.free_blocks)
            .saturating_mul(BLOCK_BYTES_U64);
        let free_files = volume.capacity_inodes.saturating_sub(counts.used_inodes);
        let ok = Some(FsStat {
            total_bytes: volume.capacity_blocks.saturating_mul(BLOCK_BYTES_U64),
            free_bytes,
            available_bytes: free_bytes,
            total_files: volume.capacity_inodes,
            free_files,
            available_files: free_files,
            invar_seconds: 0,
        });
        Ok(Response::FsStat { status: Status::Ok, attr, ok })
    });
    p.settle_read(step, |status| Response::FsStat { status, attr, ok: None })
}

pub(super) fn fs_info(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let step = p.resolve(handle).map(|object| {
        let ok = Some(FsInfo {
            read_max: TRANSFER_MAX,
            read_preferred: TRANSFER_MAX,
            read_multiple: BLOCK_BYTES as u32,
            write_max: TRANSFER_MAX,
            write_preferred: TRANSFER_MAX,
            write_multiple: BLOCK_BYTES as u32,
            dir_preferred: super::list::REPLY_PREFERRED,
            file_size_max: FILE_SIZE_MAX,
            time_delta: Time { seconds: 0, nanos: 1 },
            properties: PROPERTIES,
        });
        Response::FsInfo { status: Status::Ok, attr: Some(p.attributes(&object)), ok }
    });
    p.settle_read(step, |status| Response::FsInfo { status, attr: None, ok: None })
}

pub(super) fn path_conf(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let step = p.resolve(handle).map(|object| {
        let ok = Some(PathConf {
            link_max: LINK_MAX,
            name_max: NAME_BYTES_MAX as u32,
            no_trunc: true,
            chown_restricted: true,
            case_insensitive: false,
            case_preserving: true,
        });
        Response::PathConf { status: Status::Ok, attr: Some(p.attributes(&object)), ok }
    });
    p.settle_read(step, |status| Response::PathConf { status, attr: None, ok: None })
}

pub(super) fn commit(p: &mut Planner<'_, '_>, handle: &[u8]) -> Planned {
    let verifier = p.context.volume.write_verifier;
    let step = p.resolve(handle).map(|object| Response::Commit {
        status: Status::Ok,
        wcc: p.wcc(&object, &object),
        verifier,
    });
    let none = super::Wcc::default();
    p.settle_read(step, |status| Response::Commit { status, wcc: none, verifier })
}
