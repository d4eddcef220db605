//! A copy's image on a real disk: where it lies and how it is opened.
//! Owns: the directory `store/` of a copy.
//! Never: looks into the image; that is the store's business.
//! Invariant: an image carries the group's identity, so that a directory of another group is noticed.

use std::path::Path;

use harp_engine::{
    FileDisk, LmdbEngine, LmdbOptions, MakeRoom, SEGMENT_BLOCKS, nothing_to_give_up,
};
use harp_node::blocks_ahead;
use harp_node::fs::key::RootOwner;
use harp_node::store::{Limits, Opened, Store, StoreError};

use crate::config::Tuning;
use crate::error::HarpError;

/// Disk space that metadata takes ahead of use, at least and at most.
const METADATA_STEP: std::ops::RangeInclusive<u64> = 64 << 20..=128 << 20;
/// Blocks that data segments grow by, at least and at most: 16 MiB and 1 GiB.
const GROW_BLOCKS: std::ops::RangeInclusive<u64> = 4 << 10..=256 << 10;

/// A copy's image.
pub type Image = Store<LmdbEngine, FileDisk>;

fn failed(dir: &Path, error: StoreError) -> HarpError {
    HarpError::Fatal { why: format!("the image in {}: {error}", dir.display()) }
}

/// Disk space that metadata takes ahead of use, in bytes: more than one checkpoint dirties.
pub fn metadata_step(tuning: &Tuning) -> u64 {
    (2 * tuning.checkpoint_bytes).clamp(*METADATA_STEP.start(), *METADATA_STEP.end())
}

fn engine_and_disk(
    dir: &Path,
    tuning: &Tuning,
    make_room: MakeRoom,
) -> Result<(LmdbEngine, FileDisk), StoreError> {
    let options = LmdbOptions { reserve_bytes: metadata_step(tuning), ..LmdbOptions::default() };
    let engine = LmdbEngine::open_with(&dir.join("meta"), options, make_room.clone())?;
    let disk = FileDisk::open(&dir.join("data"), SEGMENT_BLOCKS)?.with_room(make_room);
    // The node has its own cache of what was written; a second one would cost a copy and fresh pages.
    disk.set_direct(true);
    Ok((engine, disk))
}

/// Makes the image in `dir`: of an empty file system if the whole group is being formatted (`first`),
/// else one to be loaded from another copy. `owner` is that of an empty file system's root.
pub fn format(
    dir: &Path,
    tuning: &Tuning,
    group: &[u8; 16],
    owner: RootOwner,
    first: bool,
) -> Result<(), HarpError> {
    for part in ["meta", "data"] {
        let part = dir.join(part);
        std::fs::create_dir_all(&part).map_err(|error| HarpError::file("create", &part, error))?;
    }
    engine_and_disk(dir, tuning, nothing_to_give_up())
        .and_then(|(engine, disk)| harp_node::format_image(&engine, &disk, group, owner, first))
        .map_err(|error| failed(dir, error))
}

/// Opens the image in `dir`, of whatever group, to be read.
pub fn open_whatever(dir: &Path) -> Result<Opened<LmdbEngine, FileDisk>, HarpError> {
    engine_and_disk(dir, &Tuning::default(), nothing_to_give_up())
        .and_then(|(engine, disk)| Image::open(engine, disk, Limits::default()))
        .map_err(|error| failed(dir, error))
}

/// Opens the image in `dir`, which may grow to the capacity, what is kept ahead of use, and what metadata needs.
/// On a full disk it asks `make_room`.
pub fn open(
    dir: &Path,
    tuning: &Tuning,
    group: &[u8; 16],
    make_room: MakeRoom,
) -> Result<Image, HarpError> {
    let ahead = blocks_ahead(tuning.ring_bytes, tuning.checkpoint_bytes);
    let limits = Limits {
        grow_blocks: (ahead / 2).clamp(*GROW_BLOCKS.start(), *GROW_BLOCKS.end()),
        blocks_max: tuning.capacity_bytes / 4096 + ahead,
        ..Limits::default()
    };
    let opened = engine_and_disk(dir, tuning, make_room)
        .and_then(|(engine, disk)| Image::open(engine, disk, limits))
        .map_err(|error| failed(dir, error))?;
    if opened.identity != group {
        let why = "its image belongs to another group".into();
        return Err(HarpError::MediaLoss { dir: dir.to_path_buf(), why });
    }
    Ok(opened.store)
}
