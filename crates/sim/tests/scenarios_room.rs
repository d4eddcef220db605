//! Scenarios of stores that run out of space: one story each.
//! Servers: A the designated primary, B the backup, C the witness.

use harp_node::fs::request::Status;
use harp_sim::intent::Intent;
use harp_sim::model::Ino;
use harp_sim::profile::{MILLI, SECOND};
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

/// A copy is away, and the log is kept for it until it is given up, by a record that has to be committed like any other.
/// However much comes before that is, there is room on the disk for the log that takes this one's place.
#[test]
fn room_log_that_is_kept_for_an_absent_copy_never_takes_more_than_half_of_its_disk() {
    let log_bytes = |stage: &Stage| {
        let host = &stage.world.hosts[A.index()];
        let process = host.process.as_ref().expect("it is up");
        process.node.status(host.clock.read(stage.world.now)).log_bytes
    };
    let half = |stage: &Stage| {
        let profile = &stage.world.profile;
        profile.segments_max * profile.segment_bytes / 2
    };
    let mut longest = 0;
    let mut given_up = false;
    // Nobody tells from outside when it is about to be given up: the witness falls silent at one length of the log after
    // the other.
    for silent_at in (0..24).map(|part| part * (32 << 10)) {
        let mut stage = Stage::with_small_log(1);
        let files: Vec<_> = (0..8).map(|number| stage.create(number)).collect();
        stage.crash(B);
        stage.until_serves(&[A, C]);
        let write = |part: u64| {
            let (ino, offset) = (files[(part / 4 % 8) as usize], part % 4 * 12_288);
            Intent::Write { ino, offset, count: 12_288, tag: part + 1 }
        };
        let mut part = 0;
        while log_bytes(&stage) < silent_at && !given_up {
            assert_eq!(stage.call(0, write(part)).0, Status::Ok);
            given_up = stage.pulse(A).marked.contains(B);
            part += 1;
        }
        if given_up {
            break;
        }
        stage.pass(6 * SECOND); // all is in the image: nothing is in memory for its sake
        stage.lose_records(C, 0);
        for more in 0..12 {
            stage.world.tell(0, write(part + more));
            stage.pass(5 * MILLI);
            longest = longest.max(log_bytes(&stage));
        }
        assert!(longest <= half(&stage), "{longest} bytes, silent at {silent_at}");
    }
    assert!(given_up && longest > 300 << 10, "{longest} bytes at most");
}
