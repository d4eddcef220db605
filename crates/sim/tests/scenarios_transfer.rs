//! Scenarios of primary and backup, and of the state that passes between them: one story each, n = 1.
//! Servers: A the designated primary, B the designated backup, C the witness.

use std::cell::Cell;
use std::rc::Rc;

use harp_node::fs::request::Status;
use harp_node::vr::Message;
use harp_sim::intent::Intent;
use harp_sim::profile::{MICRO, MILLI, SECOND};
use harp_sim::script::{A, B, C, Kind, Stage, create, kind, lookup, remove};
use harp_sim::world::World;

fn committed(world: &World) -> u64 {
    world.observer.history.committed()
}

fn lose_disk(stage: &mut Stage, server: harp_node::vr::ServerId) {
    stage.power_off(server);
    stage.world.empty(server);
}

/// How far a request got before somebody crashed.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// Nobody but the primary knows of it.
    BeforeContact,
    /// The backup has it, and the primary does not know.
    BackupHasIt,
    /// It is committed, and nobody was told.
    Committed,
}

/// Primary or backup crashes before the primary contacts the backup, after the backup has the record, after both
/// have it. It recovers; the file was made once, and the copies are equal, block by block.
#[test]
fn transfer_crash_at_each_point_of_a_write_leaves_equal_copies_and_one_execution() {
    for who in [A, B] {
        for power in [false, true] {
            for point in [Point::BeforeContact, Point::BackupHasIt, Point::Committed] {
                let mut stage = Stage::new(1);
                stage.until_serves(&[A, B]);
                stage.create(0);
                let (end, before) = (stage.pulse(B).log_end, committed(&stage.world));
                match point {
                    Point::BeforeContact => stage.lose(A, B, Kind::Prepare),
                    Point::BackupHasIt => stage.lose(B, A, Kind::PrepareOk),
                    Point::Committed => {}
                }
                let number = stage.ask(0, create(1));
                match point {
                    Point::BeforeContact => stage.pass(300 * MICRO),
                    Point::BackupHasIt => stage.until("B has the record", |world| {
                        world.pulse(B).is_some_and(|b| b.log_end > end)
                    }),
                    Point::Committed => {
                        stage.until("it commits", |world| committed(world) > before);
                    }
                }
                assert!(!stage.is_answered(number), "{who} at {point:?}");
                if power {
                    stage.power_off(who)
                } else {
                    stage.crash(who)
                }
                stage.no_rules();
                assert_eq!(stage.answer(number).0, Status::Ok, "{who} at {point:?}");
                assert_eq!(stage.call(1, create(1)).0, Status::Exist);
                stage.restart(who);
                stage.until_serves(&[A, B]);
                stage.reckon();
            }
        }
    }
}

/// The primary waits for the backup before it answers.
#[test]
fn transfer_primary_answers_only_what_the_backup_has() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.hold(B, A, Kind::PrepareOk);
    let number = stage.ask(0, create(0));
    // Shorter than anybody needs to hold the other for dead.
    stage.pass(10 * MILLI);
    assert!(!stage.is_answered(number));
    stage.no_rules();
    stage.release();
    assert_eq!(stage.answer(number).0, Status::Ok);
    stage.reckon();
}

/// A backup takes records only in the view that it is in: one sent in the view before comes late.
#[test]
fn transfer_backup_ignores_records_of_a_view_that_is_over() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.create(0);
    stage.hold(A, B, Kind::Prepare);
    let lost = stage.ask(0, create(1));
    stage.pass(MILLI);
    assert!(stage.held() > 0);
    stage.crash(A);
    let view = stage.until_serves(&[B, C]);
    let end = stage.pulse(B).log_end;
    stage.pin(0, true);
    stage.no_rules();
    stage.release();
    stage.pass(MILLI);
    let b = stage.pulse(B);
    assert_eq!(
        (b.formed, b.log_end, b.serving),
        (view, end, true),
        "the late record changed something"
    );
    stage.pin(0, false);
    assert_eq!(stage.answer(lost).0, Status::Ok);
    stage.reckon();
}

/// A backup that has not heard yet that its view formed takes no records in it, and acknowledges none.
#[test]
fn transfer_member_that_has_not_formed_the_view_acknowledges_nothing_in_it() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.create(0);
    let first = stage.pulse(A).formed;
    stage.hold(B, C, Kind::Install);
    stage.lose(A, B, Kind::Prepare);
    let number = stage.ask(0, create(1));
    let early = Rc::new(Cell::new(false));
    let sees = Rc::clone(&early);
    stage.rule(move |message, envelope| {
        let acknowledges = match &envelope.message {
            Message::PrepareOk(ok) => ok.view > first,
            Message::Installed { .. } => true,
            _ => false,
        };
        sees.set(sees.get() || message.from == C && acknowledges);
        None
    });
    stage.crash(A);
    stage.until("B installs", |world| !world.held_messages().is_empty());
    stage.pass(10 * MILLI);
    assert!(!stage.is_answered(number), "B answers alone");
    assert!(!early.get(), "C acknowledges in a view it has not formed");
    stage.no_rules();
    stage.release();
    assert_eq!(stage.answer(number).0, Status::Ok);
    stage.reckon();
}

/// A copy without an image never becomes primary, however long the only other copy is away.
#[test]
fn transfer_copy_without_files_never_serves() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    (0..4).for_each(|number| _ = stage.create(number));
    lose_disk(&mut stage, B);
    stage.until_serves(&[A, C]);
    stage.create(4);
    // B's image is on its way when A dies.
    stage.lose(A, B, Kind::ImagePart);
    stage.restart(B);
    stage.pass(20 * MILLI);
    stage.crash(A);
    stage.settle();
    assert_eq!(stage.world.serving(), None, "{}", stage.world.states());
    stage.no_rules();
    stage.restart(A);
    stage.until_serves(&[A, B]);
    (0..5).for_each(|number| assert_eq!(stage.call(1, lookup(number)).0, Status::Ok));
    stage.reckon();
}

/// A primary that dies in the middle of giving its files to another copy loses nothing.
#[test]
fn transfer_primary_dies_in_the_middle_of_a_transfer_and_nothing_is_lost() {
    for parts in 1..4 {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        (0..24).for_each(|number| _ = stage.create(number));
        lose_disk(&mut stage, B);
        let sent = Rc::new(Cell::new(0));
        let counts = Rc::clone(&sent);
        stage.rule(move |_, envelope| {
            counts.set(counts.get() + u32::from(kind(&envelope.message) == Kind::ImagePart));
            None
        });
        stage.restart(B);
        stage.until("parts are under way", |_| sent.get() >= parts);
        stage.power_off(A);
        stage.settle();
        stage.restart(A);
        stage.until_serves(&[A, B]);
        (0..24).for_each(|number| assert_eq!(stage.call(1, lookup(number)).0, Status::Ok));
        stage.reckon();
    }
}

/// The transfer carries past replies: a copy that got its files from another one knows what was answered before,
/// and a request repeated there is not carried out again.
#[test]
fn transfer_brings_the_replies_along() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    (0..3).for_each(|number| _ = stage.create(number));
    let before = committed(&stage.world);
    // The reply to a REMOVE is lost. B, which takes A's place then, got its files from A after it.
    lose_disk(&mut stage, B);
    stage.until_serves(&[A, C]);
    stage.world.deafen(0, true);
    let number = stage.ask(0, remove(1));
    stage.until("the remove commits", |world| committed(world) > before);
    stage.restart(B);
    stage.until_serves(&[A, B]);
    assert!(!stage.is_answered(number));
    stage.crash(A);
    stage.world.deafen(0, false);
    stage.until_serves(&[B, C]);
    assert_eq!(stage.answer(number).0, Status::Ok, "not NOENT: it was done once");
    stage.restart(A);
    stage.until_serves(&[A, B]);
    stage.reckon();
}

fn create_and_remove(stage: &mut Stage) {
    stage.create(6);
    assert_eq!(stage.call(0, remove(6)).0, Status::Ok);
}

/// A copy gathers a long log in phase 2 and brings its image forward from it meanwhile. Before both are done the
/// coordinator dies, and the log is given up. Nothing is written where it lies in memory until the image has what came
/// of it: the copy's own log is closed there with a mark, which would go over records a ring further on.
#[test]
fn transfer_log_that_is_given_up_stays_in_memory_until_the_image_has_what_came_of_it() {
    // Wherever in a segment the copy's own log ends.
    (0..4).for_each(give_up_what_was_gathered);
}

fn give_up_what_was_gathered(own_pairs: u32) {
    let mut stage = Stage::with_small_log(1);
    let files: Vec<_> = (0..6).map(|number| stage.create(number)).collect();
    // B has a record that it does not know to be committed.
    (0..own_pairs).for_each(|_| create_and_remove(&mut stage));
    stage.lose(A, B, Kind::Prepare);
    stage.crash(B);
    stage.no_rules();
    stage.until_serves(&[A, C]);
    let write = |part: u64| {
        let (ino, offset) = (files[part as usize / 4], part % 4 * 12_288);
        Intent::Write { ino, offset, count: 12_288, tag: part + 1 }
    };
    // The last of what is committed, and small, lies where the ring begins anew.
    (0..14).for_each(|part| assert_eq!(stage.call(0, write(part)).0, Status::Ok));
    (0..16).for_each(|_| create_and_remove(&mut stage));
    let written = stage.pulse(A).cp;
    stage.pass(6 * SECOND);
    assert_eq!(stage.pulse(A).lb, written, "A's memory has room again");
    // More that is not committed, and more than B's memory has room for.
    stage.lose_records(C, written);
    (14..22).for_each(|part| _ = stage.ask(0, write(part)));
    stage.until("A has them", |world| world.pulse(A).is_some_and(|a| a.fp >= written + 8));
    stage.pass(20 * MILLI); // until they are on its disk
    stage.crash(A);
    stage.crash(C);
    stage.no_rules();
    stage.world.profile.disk.checkpoint_mean = 300 * MILLI;
    stage.restart(A);
    stage.restart(B);
    stage.until("the image has some of it", |world| world.pulse(B).is_some_and(|b| b.lb > 0));
    stage.until("B applies all that is committed", |world| {
        world.pulse(B).is_some_and(|b| b.ap >= written)
    });
    stage.pass(5 * MILLI);
    let b = stage.pulse(B);
    assert!(!b.normal && b.lb < written && b.fp > written, "{b:?}");
    let process = stage.world.hosts[B.index()].process.as_ref().expect("it is up");
    assert_eq!(process.lanes[1].len(), 1, "a checkpoint is under way");
    stage.crash(A);
    stage.restart(C);
    stage.until_serves(&[B, C]);
    stage.restart(A);
    stage.world.profile.disk.checkpoint_mean = MILLI;
    stage.reckon();
}
