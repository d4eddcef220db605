//! A copy's image on a real disk: where it lies and how it is opened.
//! Owns: the directory `store/` of a copy.
//! Never: looks into the image; that is the store's business.
//! Invariant: an image carries the group's identity, so that a directory of another group is noticed.

use std::path::Path;

use harp_engine::{FileDisk, LmdbEngine, LmdbOptions, SEGMENT_BLOCKS};
use harp_node::fs::key::RootOwner;
use harp_node::store::{Limits, Opened, Store, StoreError};

use crate::error::HarpError;

/// A copy's image.
pub type Image = Store<LmdbEngine, FileDisk>;

fn failed(dir: &Path, error: StoreError) -> HarpError {
    HarpError::Fatal { why: format!("the image in {}: {error}", dir.display()) }
}

fn engine_and_disk(dir: &Path) -> Result<(LmdbEngine, FileDisk), StoreError> {
    let engine = LmdbEngine::open(&dir.join("meta"), LmdbOptions::default())?;
    let disk = FileDisk::open(&dir.join("data"), SEGMENT_BLOCKS)?;
    // The node has its own cache of what was written; a second one would cost a copy and fresh pages.
    disk.set_direct(true);
    Ok((engine, disk))
}

/// Makes the image in `dir`: of an empty file system if the whole group is being formatted (`first`),
/// else one to be loaded from another copy. `owner` is that of an empty file system's root.
pub fn format(
    dir: &Path,
    group: &[u8; 16],
    owner: RootOwner,
    first: bool,
) -> Result<(), HarpError> {
    for part in ["meta", "data"] {
        let part = dir.join(part);
        std::fs::create_dir_all(&part).map_err(|error| HarpError::file("create", &part, error))?;
    }
    engine_and_disk(dir)
        .and_then(|(engine, disk)| harp_node::format_image(&engine, &disk, group, owner, first))
        .map_err(|error| failed(dir, error))
}

fn open_limited(dir: &Path, limits: Limits) -> Result<Opened<LmdbEngine, FileDisk>, HarpError> {
    engine_and_disk(dir)
        .and_then(|(engine, disk)| Image::open(engine, disk, limits))
        .map_err(|error| failed(dir, error))
}

/// Opens the image in `dir`, of whatever group, to be read.
pub fn open_whatever(dir: &Path) -> Result<Opened<LmdbEngine, FileDisk>, HarpError> {
    open_limited(dir, Limits::default())
}

/// Opens the image in `dir`, which may grow to `capacity_blocks` and what metadata needs.
pub fn open(dir: &Path, group: &[u8; 16], capacity_blocks: u64) -> Result<Image, HarpError> {
    let limits = Limits { blocks_max: capacity_blocks, ..Limits::default() };
    let opened = open_limited(dir, limits)?;
    if opened.identity != group {
        let why = "its image belongs to another group".into();
        return Err(HarpError::MediaLoss { dir: dir.to_path_buf(), why });
    }
    Ok(opened.store)
}
