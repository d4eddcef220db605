//! Scenarios of stores that run out of space: one story each.
//! Servers: A the designated primary, B the backup, C the witness.

use harp_node::fs::request::Status;
use harp_sim::intent::Intent;
use harp_sim::model::Ino;
use harp_sim::script::{A, B, C, Stage, remove};

/// Blocks of a store. A checkpoint's worth of them, 64 in a calm world, is no write's.
const STORE_BLOCKS: u64 = 100;
const WRITABLE_BLOCKS: u64 = STORE_BLOCKS - 64;
/// Blocks of one file.
const FILE_BLOCKS: u64 = 8;
const BLOCK: u64 = 4096;

fn write(ino: Ino, block: u64) -> Intent {
    Intent::Write { ino, offset: block * BLOCK, count: BLOCK as u32, tag: block + 1 }
}

/// Writes block after block of new files until one is refused. Returns how many fitted.
fn fill(stage: &mut Stage, mut file: u8) -> (u64, Ino) {
    let mut ino = stage.create(file);
    for block in 0..2 * STORE_BLOCKS {
        if block > 0 && block % FILE_BLOCKS == 0 {
            file += 1;
            ino = stage.create(file);
        }
        match stage.call(0, write(ino, block % FILE_BLOCKS)).0 {
            Status::Ok => {}
            Status::NoSpc => return (block, ino),
            other => panic!("block {block}: {other:?}"),
        }
    }
    panic!("more blocks fit than there are");
}

/// Writes go on to the last block that is theirs and no further; then what takes nothing goes on, and removing
/// makes room for as much again.
#[test]
fn room_full_store_refuses_writes_until_something_is_removed() {
    let mut stage = Stage::with_store(1, STORE_BLOCKS);
    let (fitted, last) = fill(&mut stage, 0);
    // What a request may touch is counted before it is planned: a block more at each end.
    assert!((WRITABLE_BLOCKS - 2..=WRITABLE_BLOCKS).contains(&fitted), "{fitted} blocks");
    assert_eq!(stage.call(1, write(last, 0)).0, Status::NoSpc, "it would need a new place");
    assert_eq!(stage.call(1, Intent::Truncate { ino: last, size: 100 }).0, Status::Ok);
    for file in 0..4 {
        assert_eq!(stage.call(1, remove(file)).0, Status::Ok);
    }
    stage.settle();
    let (again, _) = fill(&mut stage, 8);
    assert!(again >= 4 * FILE_BLOCKS - 2, "{again} blocks");
    stage.until_serves(&[A, B]);
    stage.reckon();
}

/// Overwriting takes a new place each time and gives the old one back with the next checkpoint: it goes on for
/// ever in a store that is nearly full.
#[test]
fn room_overwriting_in_a_nearly_full_store_waits_for_checkpoints_and_goes_on() {
    let mut stage = Stage::with_store(1, STORE_BLOCKS);
    let ino = stage.create(0);
    for round in 0..4 * STORE_BLOCKS {
        let (status, _) = stage.call(0, write(ino, round % FILE_BLOCKS));
        assert_eq!(status, Status::Ok, "round {round}");
    }
    stage.reckon();
}

/// The new primary knows what the old one's records take.
#[test]
fn room_is_kept_over_a_change_of_the_primary() {
    let mut stage = Stage::with_store(1, STORE_BLOCKS);
    let (fitted, _) = fill(&mut stage, 0);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    let (more, ino) = fill(&mut stage, 8);
    assert!(fitted + more <= WRITABLE_BLOCKS, "{fitted} and {more} blocks");
    stage.restart(A);
    stage.settle();
    assert_eq!(stage.call(1, write(ino, 0)).0, Status::NoSpc);
    stage.reckon();
}

/// The primary was away while most of what it has was written anew. It takes the log in by steps, though it serves
/// already: in one go there would be no room for old and new content at once.
#[test]
fn room_primary_that_was_away_takes_in_what_was_overwritten_by_steps() {
    let (blocks, checkpoint_blocks) = (72, 16);
    let mut stage = Stage::with_small_checkpoints(1, blocks, checkpoint_blocks * BLOCK);
    let files: Vec<Ino> = (0..6).map(|file| stage.create(file)).collect();
    let write_all = |stage: &mut Stage| {
        for (ino, block) in files.iter().flat_map(|ino| (0..FILE_BLOCKS).map(move |b| (*ino, b))) {
            assert_eq!(stage.call(0, write(ino, block)).0, Status::Ok);
        }
    };
    write_all(&mut stage);
    stage.settle();
    stage.crash(A);
    stage.until_serves(&[B, C]);
    write_all(&mut stage);
    stage.restart(A);
    stage.until_serves(&[A, B]);
    stage.reckon();
}
