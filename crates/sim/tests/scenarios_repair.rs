//! Scenarios of blocks that go bad on a copy's disk: one story each.
//! Servers: A the designated primary, B the backup, C the witness.

use harp_node::RepairStatus;
use harp_node::fs::request::Status;
use harp_node::vr::ServerId;
use harp_sim::intent::Intent;
use harp_sim::model::Ino;
use harp_sim::nemesis::FaultSet;
use harp_sim::script::{A, B, C, Stage};
use harp_sim::world::World;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 6;

/// A group with one file, which is in both images, and in which blocks may be damaged.
fn with_file() -> (Stage, Ino) {
    let mut stage = Stage::new(1);
    stage.world.profile.faults = FaultSet::named("BlockDamage").expect("there is such a class");
    let ino = stage.create(0);
    for block in 0..BLOCKS {
        assert_eq!(stage.call(0, write(ino, block, 0, BLOCK)).0, Status::Ok);
    }
    into_images(&mut stage);
    (stage, ino)
}

fn write(ino: Ino, block: u64, at: u64, count: u64) -> Intent {
    Intent::Write { ino, offset: block * BLOCK + at, count: count as u32, tag: block + at + 1 }
}

fn read(ino: Ino, block: u64) -> Intent {
    Intent::Read { ino, offset: block * BLOCK, count: BLOCK as u32 }
}

/// All that was done so far is in the images of both copies.
fn into_images(stage: &mut Stage) {
    let primary = stage.world.serving().expect("somebody serves");
    let fp = stage.pulse(primary).fp;
    stage.world.verify(primary, fp);
    stage.until("it is in the images", |world| {
        [A, B].iter().all(|copy| world.pulse(*copy).is_some_and(|pulse| pulse.lb > fp))
    });
}

/// A bit of one block of a copy's image flips.
fn damage(stage: &mut Stage, copy: ServerId, block: u64) {
    let store = stage.world.hosts[copy.index()].store.as_ref().expect("a copy has a store");
    store.flip(store.used_blocks()[block as usize], 77);
    assert_eq!(store.damage(), Some(1));
}

fn repair(world: &World, copy: ServerId) -> RepairStatus {
    let host = &world.hosts[copy.index()];
    let process = host.process.as_ref().expect("it is up");
    process.node.status(host.clock.read(world.now)).repair
}

/// A, without anything in memory, serves with `other`.
fn restart_primary(stage: &mut Stage, other: ServerId) {
    stage.crash(A);
    stage.restart(A);
    stage.until_serves(&[A, other]);
}

/// The primary's image has a damaged block. A client that reads it waits a moment and gets what was written; from
/// then on the block is whole on the primary's disk.
#[test]
fn repair_read_of_a_damaged_block_waits_and_shows_what_was_written() {
    let (mut stage, ino) = with_file();
    damage(&mut stage, A, 2);
    restart_primary(&mut stage, B);
    for block in 0..BLOCKS {
        assert_eq!(stage.call(1, read(ino, block)).0, Status::Ok);
    }
    let RepairStatus { damaged, lost, mended, .. } = repair(&stage.world, A);
    assert_eq!((damaged, lost, mended), (0, 0, 1));
    assert_eq!(stage.world.hosts[A.index()].store.as_ref().expect("a store").damage(), Some(0));
    stage.reckon();
}

/// The primary dies with the other copy's bytes in hand, at any step of writing them: the block is as damaged as
/// before, or whole, and read right in the end.
#[test]
fn repair_primary_that_dies_while_it_mends_begins_again() {
    for steps in 0..8 {
        let (mut stage, ino) = with_file();
        damage(&mut stage, A, 1);
        restart_primary(&mut stage, B);
        let asked = stage.ask(1, read(ino, 1));
        stage.until("the block is being written", |world| {
            !world.hosts[A.index()].process.as_ref().expect("it is up").lanes[1].is_empty()
        });
        stage.world.crash_in_job(A, steps);
        let damage = stage.world.hosts[A.index()].store.as_ref().expect("a store").damage();
        assert!(damage <= Some(1), "{damage:?}");
        stage.restart(A);
        assert_eq!(stage.answer(asked).0, Status::Ok);
        stage.reckon();
    }
}

/// The only other copy is away. The read fails after a while, and nothing else does; the block can be written over. A
/// second block comes back with the other copy.
#[test]
fn repair_block_that_nobody_has_fails_its_reads_alone_until_its_copy_returns() {
    let (mut stage, ino) = with_file();
    stage.world.observer.model.may_lose_blocks = true;
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until_serves(&[A, C]);
    damage(&mut stage, A, 3);
    restart_primary(&mut stage, C);
    let asked = stage.ask(1, read(ino, 3));
    assert_eq!(stage.call(0, read(ino, 2)).0, Status::Ok, "others do not wait");
    assert_eq!(stage.answer(asked).0, Status::Io);
    assert_eq!(stage.call(1, write(ino, 3, 5, 10)).0, Status::Io, "it needs the rest of the block");
    assert_eq!(stage.call(1, Intent::GetAttr { ino }).0, Status::Ok);
    assert_eq!(repair(&stage.world, A).lost, 1);
    stage.restart(B);
    stage.until("it is mended", |world| repair(world, A).mended == 1);
    assert_eq!(stage.call(1, read(ino, 3)).0, Status::Ok);
    stage.reckon();
}

/// Both disks have lost a block, but the backup has it in memory still: that will do.
#[test]
fn repair_block_that_both_disks_lost_comes_from_memory() {
    let (mut stage, ino) = with_file();
    damage(&mut stage, A, 0);
    damage(&mut stage, B, 0);
    restart_primary(&mut stage, B);
    assert_eq!(stage.call(1, read(ino, 0)).0, Status::Ok);
    stage.reckon();
}

/// Nobody has the block, and its file is written over: what was lost is not missed.
#[test]
fn repair_lost_block_that_is_written_over_is_read_again() {
    let (mut stage, ino) = with_file();
    stage.world.observer.model.may_lose_blocks = true;
    damage(&mut stage, A, 0);
    damage(&mut stage, B, 0);
    stage.crash(B);
    stage.restart(B);
    restart_primary(&mut stage, B);
    assert_eq!(stage.call(1, read(ino, 0)).0, Status::Io);
    assert_eq!(stage.call(1, write(ino, 0, 0, BLOCK)).0, Status::Ok);
    assert_eq!(stage.call(1, read(ino, 0)).0, Status::Ok);
    stage.reckon();
}

/// The backup's image has a damaged block, of which the client overwrites a part. The backup has to put the part into
/// what it does not have: its checkpoints go on, and the block is whole again before it is primary.
#[test]
fn repair_part_written_over_a_damaged_block_of_the_backup_holds_nothing_up() {
    let (mut stage, ino) = with_file();
    damage(&mut stage, B, 4);
    let life = stage.world.hosts[B.index()].life;
    assert_eq!(stage.call(1, write(ino, 4, 100, 50)).0, Status::Ok);
    let fp = stage.pulse(A).fp;
    stage.world.verify(A, fp);
    stage.until("B checkpoints and mends", |world| {
        world.pulse(B).is_some_and(|b| b.lb > fp) && repair(world, B).mended == 1
    });
    assert_eq!(stage.world.hosts[B.index()].life, life, "it did not die");
    stage.crash(A);
    stage.until_serves(&[B, C]);
    assert_eq!(stage.call(1, read(ino, 4)).0, Status::Ok);
    stage.restart(A);
    stage.reckon();
}

/// The other copy lost its disk while this one has a damaged block. The new image gets everything but that block,
/// and the group rides out failures again; once the block is written over, all is well.
#[test]
fn repair_lost_block_keeps_no_learner_out() {
    let (mut stage, ino) = with_file();
    stage.world.observer.model.may_lose_blocks = true;
    damage(&mut stage, A, 5);
    stage.power_off(B);
    stage.world.empty(B);
    stage.until_serves(&[A, C]);
    stage.restart(B);
    stage.until_serves(&[A, B]);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    assert_eq!(stage.call(1, read(ino, 4)).0, Status::Ok);
    assert_eq!(stage.call(1, read(ino, 5)).0, Status::Io);
    assert_eq!(stage.call(1, write(ino, 5, 0, BLOCK)).0, Status::Ok);
    stage.restart(A);
    stage.reckon();
}

/// The same with damage in every part of the image: nobody else can have those blocks, so none of them is waited for.
/// With a third copy, each is asked of it first, once.
#[test]
fn repair_lost_blocks_in_every_part_delay_no_learner() {
    const FILES: u8 = 3;
    const EACH: u64 = 16;
    const MANY: u64 = FILES as u64 * EACH;
    for (n, away, longest) in [(1, C, 2), (2, C, 12)] {
        let mut stage = Stage::new(n);
        stage.world.profile.faults = FaultSet::named("BlockDamage").expect("there is such a class");
        stage.world.observer.model.may_lose_blocks = true;
        for file in 0..FILES {
            let ino = stage.create(file);
            for block in 0..EACH {
                assert_eq!(stage.call(0, write(ino, block, 0, BLOCK)).0, Status::Ok);
            }
        }
        into_images(&mut stage);
        let store = stage.world.hosts[A.index()].store.as_ref().expect("a copy has a store");
        let used = store.used_blocks();
        assert!(used.len() >= MANY as usize);
        used.iter().for_each(|block| store.flip(*block, 77));
        assert_eq!(store.damage(), Some(used.len()));
        if n == 2 {
            stage.crash(away);
        }
        stage.power_off(B);
        stage.world.empty(B);
        stage.until("B is out", |world| world.serving() == Some(A));
        stage.restart(B);
        let since = stage.world.now;
        stage.until("B is whole", |world| world.pulse(B).is_some_and(|pulse| pulse.lb >= MANY));
        let seconds = (stage.world.now - since) / 1_000_000_000;
        assert!(seconds < longest, "n = {n}: {seconds} s");
        stage.reckon();
    }
}
