//! Scenarios of crashes and of servers that come back: one story each, n = 1.
//! Servers: A the designated primary, B the designated backup, C the witness.

use harp_node::fs::request::Status;
use harp_sim::intent::{How, Intent};
use harp_sim::model::ROOT;
use harp_sim::names::Name;
use harp_sim::power::LogLoss;
use harp_sim::profile::{MICRO, MILLI};
use harp_sim::script::{A, B, C, Kind, Stage, create, lookup, remove};
use harp_sim::world::World;

/// Creates the files with these numbers, one after the other.
fn create_all(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    numbers.for_each(|number| {
        stage.create(number);
    });
}

/// All these files are there.
fn all_there(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    for number in numbers {
        assert_eq!(stage.call(1, lookup(number)).0, Status::Ok, "file {number}");
    }
}

fn committed(world: &World) -> u64 {
    world.observer.history.committed()
}

/// L1. The primary crashes while its last record is on no other server.
/// The backup and the promoted witness hold everything committed; the client's call is carried out there.
#[test]
fn failover_primary_crashes_backup_and_witness_hold_every_committed_op() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..5);
    stage.lose(A, B, Kind::Prepare);
    stage.lose(A, C, Kind::Prepare);
    let number = stage.ask(0, create(5));
    stage.pass(MILLI);
    assert!(!stage.is_answered(number));
    stage.crash(A);
    stage.no_rules();
    stage.until_serves(&[B, C]);
    assert!(stage.pulse(B).primary);
    assert_eq!(stage.answer(number).0, Status::Ok);
    all_there(&mut stage, 0..6);
    stage.reckon();
}

/// L3. The primary dies after the commit and before the reply.
/// The client asks the next primary and gets the stored reply; the file was made once.
#[test]
fn failover_primary_dies_between_commit_and_reply_client_gets_the_stored_reply() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.create(0);
    let before = committed(&stage.world);
    let number = stage.ask(0, create(1));
    stage.until("the create commits", |world| committed(world) > before);
    assert!(!stage.is_answered(number));
    stage.crash(A);
    stage.until_serves(&[B, C]);
    assert_eq!(stage.answer(number).0, Status::Ok, "not EXIST: it was made once");
    stage.reckon();
}

/// A network kept a copy of each call that succeeded with nothing to change, and delivers it when the names are free:
/// it finds its reply at whoever serves, and makes nothing. A chaos run of real servers met it first.
#[test]
fn failover_late_copies_of_calls_that_changed_nothing_make_nothing() {
    let how = |how| Intent::Create { dir: ROOT, name: Name::file(0), how, mode: 0o644 };
    for how in [how(How::Unchecked(None)), how(How::Exclusive(7))] {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        let first = stage.ask(0, how);
        let (status, made) = stage.answer(first);
        assert_eq!(status, Status::Ok);
        let again = stage.ask(1, how);
        assert_eq!(stage.answer(again), (Status::Ok, made), "it is there");
        stage.crash(A);
        stage.until_serves(&[B, C]);
        assert_eq!(stage.call(0, remove(0)).0, Status::Ok);
        stage.send_copy(again);
        assert_eq!(stage.call(0, lookup(0)).0, Status::NoEnt);
        stage.reckon();
    }
}

/// L4. The primary comes back with its files and without its log.
/// It goes by its image and the witness's log, and is primary again; the witness is demoted.
#[test]
fn failover_primary_returns_without_its_log_takes_the_witnesses_and_leads_again() {
    for how in [LogLoss::HeadGone, LogLoss::HeadDamaged, LogLoss::SegmentsGone] {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..8);
        stage.crash(A);
        assert!(stage.world.lose_log(A, how));
        stage.until_serves(&[B, C]);
        create_all(&mut stage, 8..12);
        stage.restart(A);
        stage.until_serves(&[A, B]);
        assert!(stage.pulse(A).primary);
        all_there(&mut stage, 0..12);
        stage.reckon();
    }
}

/// L9. The witness promised a view, crashed before its phase 2, and the phase 2 comes late.
/// The promise on its disk forces a higher view; the late message is refused.
#[test]
fn failover_witness_crashes_between_promise_and_phase_two_a_higher_view_forms() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..3);
    stage.hold(A, C, Kind::Install);
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until("phase 2 is on its way", |world| !world.held_messages().is_empty());
    let promised = stage.world.durable(C).expect("a view file").promised;
    stage.crash(C);
    stage.pass(MILLI);
    stage.restart(C);
    stage.pass(MILLI);
    stage.no_rules();
    stage.release();
    let view = stage.until_serves(&[A, C]);
    assert!(view > promised, "{view} is above the promised {promised}");
    all_there(&mut stage, 0..3);
    stage.reckon();
}

/// L11 and L29. The whole group loses power, idle or in the middle of writes.
/// Every acknowledged operation is there when it resumes.
#[test]
fn failover_whole_group_loses_power_every_acknowledged_op_is_there() {
    for after in [0, 50, 120, 200, 300, 450, 700, 1500] {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..4);
        let numbers: Vec<u32> = (4..12).map(|number| stage.ask(0, create(number))).collect();
        stage.pass(after * MICRO);
        for server in [A, B, C] {
            stage.power_off(server);
        }
        stage.pass(MILLI);
        for server in [C, B, A] {
            stage.restart(server);
        }
        for number in numbers {
            assert_eq!(stage.answer(number).0, Status::Ok, "made once, power cut after {after} us");
        }
        all_there(&mut stage, 0..12);
        stage.reckon();
    }
}

/// L15. The primary is down, backup and witness run on; the backup loses everything; the primary returns.
/// The primary's old image and the witness's log form the view.
#[test]
fn failover_backup_loses_its_disk_the_returning_primary_and_the_witness_have_it_all() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..6);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    create_all(&mut stage, 6..12);
    stage.power_off(B);
    stage.world.empty(B);
    stage.pass(MILLI);
    stage.restart(A);
    stage.until_serves(&[A, C]);
    all_there(&mut stage, 0..12);
    stage.restart(B);
    stage.reckon();
}

/// L31. The coordinator dies in the middle of phase 2, before and after the other member carried it out.
/// The next one finds either view complete; nothing is lost, nothing is blocked.
#[test]
fn failover_coordinator_dies_in_phase_two_the_next_view_forms() {
    for (from, to, held) in [(B, C, Kind::Install), (C, B, Kind::Installed)] {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..4);
        stage.hold(from, to, held);
        stage.crash(A);
        stage.until("phase 2 is on its way", |world| !world.held_messages().is_empty());
        stage.crash(B);
        stage.pass(MILLI);
        stage.restart(B);
        stage.no_rules();
        stage.until_serves(&[B, C]);
        stage.release();
        all_there(&mut stage, 0..4);
        assert_eq!(stage.call(0, remove(0)).0, Status::Ok);
        stage.reckon();
    }
}

/// L32. Primary and witness serve op 1; a duplicate of their view's phase 2 reaches the witness; then
/// backup and witness form a view. The duplicate is dropped; op 1 is there.
#[test]
fn failover_duplicate_of_phase_two_does_not_cut_acknowledged_records() {
    let mut stage = Stage::unformed(1);
    stage.world.hosts[B.index()].stays_down = true;
    stage.copy(A, C, Kind::Install);
    stage.until_serves(&[A, C]);
    stage.until("the clients mount", |world| world.clients.iter().all(|c| c.is_mounted()));
    create_all(&mut stage, 0..3);
    assert!(stage.held() > 0);
    stage.release();
    stage.pass(MILLI);
    create_all(&mut stage, 3..4);
    stage.release();
    stage.pass(MILLI);
    stage.crash(A);
    stage.world.hosts[A.index()].stays_down = true;
    stage.restart(B);
    stage.until_serves(&[B, C]);
    all_there(&mut stage, 0..4);
    stage.reckon();
}

/// L23. A member dies at any moment of a view change, in the middle of installing or right after.
/// Its restart raises the formed view or keeps the old one; a partial log is not voted.
#[test]
fn failover_member_dies_at_any_moment_of_a_view_change() {
    for (after, power) in (0..30).flat_map(|step| [(step, false), (step, true)]) {
        let mut stage = Stage::new(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..4);
        stage.copy(B, C, Kind::Install);
        stage.crash(A);
        stage.until("phase 2 begins", |world| !world.held_messages().is_empty());
        stage.no_rules();
        stage.pass(after * 40 * MICRO);
        stage.world.kill(C, power);
        stage.pass(MILLI);
        stage.restart(C);
        stage.until_serves(&[B, C]);
        all_there(&mut stage, 0..4);
        stage.reckon();
    }
}

/// L28. The primary returns while clients go on, and is nearly level when the view changes.
/// The view forms, and no order of pointers breaks.
#[test]
fn failover_primary_returns_under_load_and_leads_again() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..3);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    stage.world.requests_left = 3000;
    stage.world.look_everywhere();
    stage.pass(40 * MILLI);
    stage.restart(A);
    stage.until_serves(&[A, B]);
    stage.reckon();
}

/// L33. Primary and witness serve, the backup is absent at LB 0; the primary checkpoints, and the view
/// forms anew; then the primary loses its disk. The witness's log still begins where the backup ends.
#[test]
fn failover_checkpoints_do_not_trim_what_the_absent_backup_lacks() {
    let mut stage = Stage::unformed(1);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until_serves(&[A, C]);
    stage.until("the clients mount", |world| world.clients.iter().all(|c| c.is_mounted()));
    for _ in 0..2 {
        stage.world.requests_left = 400;
        stage.world.look_everywhere();
        stage.until("the clients have asked", |world| world.requests_left == 0);
        stage.crash(C);
        stage.pass(MILLI);
        stage.restart(C);
        stage.until_serves(&[A, C]);
    }
    stage.create(31);
    assert!(stage.pulse(A).lb > 0, "it has checkpointed");
    stage.power_off(A);
    stage.world.empty(A);
    stage.world.hosts[A.index()].stays_down = true;
    stage.restart(B);
    stage.until_serves(&[B, C]);
    all_there(&mut stage, 31..32);
    stage.reckon();
}

/// L36. The primary alone formed a view and then lost its log, before the other member installed it.
/// Backup and witness suffice: one server's amnesia does not block the group.
#[test]
fn failover_amnesia_of_the_only_server_that_formed_a_view_does_not_block() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..3);
    let view = stage.pulse(A).formed;
    stage.lose(A, C, Kind::Install);
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until("A forms a view alone", |world| {
        world.durable(A).is_some_and(|durable| durable.formed > view)
    });
    stage.crash(A);
    assert!(stage.world.lose_log(A, LogLoss::SegmentsGone));
    stage.world.hosts[A.index()].stays_down = true;
    stage.no_rules();
    stage.restart(B);
    stage.until_serves(&[B, C]);
    all_there(&mut stage, 0..3);
    stage.reckon();
}
