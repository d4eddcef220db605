//! Scenarios of groups with three copies and two witnesses: one story each, n = 2.
//! Servers: A the designated primary, B and C backups, D and E witnesses. First view: A, B, C.

use harp_node::fs::request::Status;
use harp_node::vr::ServerId;
use harp_sim::power::LogLoss;
use harp_sim::profile::MILLI;
use harp_sim::script::{A, B, C, D, E, Kind, Stage, create, lookup};

/// The first view serves, and these files are made.
fn begin(files: u8) -> Stage {
    let mut stage = Stage::new(2);
    stage.until_serves(&[A, B, C]);
    create_all(&mut stage, 0..files);
    stage
}

fn create_all(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    numbers.for_each(|number| {
        stage.create(number);
    });
}

fn all_there(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    for number in numbers {
        assert_eq!(stage.call(1, lookup(number)).0, Status::Ok, "file {number}");
    }
}

/// None of these serves, however long one waits.
fn none_serves(stage: &mut Stage, servers: &[ServerId]) {
    stage.settle();
    for server in servers {
        let pulse = stage.world.pulse(*server);
        let serves = pulse.is_some_and(|pulse| pulse.serving && pulse.lease_until > pulse.at);
        assert!(!serves, "{server} serves; {}", stage.world.states());
    }
}

/// L1. The primary crashes. B leads, D is promoted and has the log above GLB.
#[test]
fn five_primary_crashes_two_backups_and_a_promoted_witness_go_on() {
    let mut stage = begin(5);
    stage.crash(A);
    stage.until("a view without A serves", |world| {
        world.serving() == Some(B) && world.pulse(B).is_some_and(|p| p.members.contains(C))
    });
    create_all(&mut stage, 5..8);
    all_there(&mut stage, 0..8);
    stage.restart(A);
    stage.until_serves(&[A, B, C]);
    stage.reckon();
}

/// L2. A record reached one backup only, then the primary crashes.
/// It was not committed; it is in all of the next view's logs, or in none.
#[test]
fn five_record_on_one_backup_only_is_never_half_adopted() {
    let mut stage = begin(3);
    for other in [C, D, E] {
        stage.lose(A, other, Kind::Prepare);
    }
    let number = stage.ask(0, create(3));
    stage.pass(MILLI);
    assert!(!stage.is_answered(number));
    stage.crash(A);
    stage.no_rules();
    assert_eq!(stage.answer(number).0, Status::Ok);
    stage.reckon();
}

/// L5 and L6. The backups are cut off: A, D and E go on, B and C refuse. Then D moves to them: A and E
/// commit nothing, and D's log is copied to both.
#[test]
fn five_partition_follows_the_majority_and_the_witness_carries_the_log_over() {
    let mut stage = begin(3);
    stage.part(&[B, C], &[A, D, E], true);
    stage.until_serves(&[A, D, E]);
    create_all(&mut stage, 3..6);
    none_serves(&mut stage, &[B, C]);
    stage.part(&[B, C], &[A, D, E], false);
    stage.part(&[A, E], &[B, C, D], true);
    stage.until_serves(&[B, C, D]);
    none_serves(&mut stage, &[A, E]);
    all_there(&mut stage, 0..6);
    stage.part(&[A, E], &[B, C, D], false);
    stage.reckon();
}

/// L7. The same partition, but D crashes with amnesia before the view forms, and comes back with B and C.
/// What its disk says of views is enough: the view may form.
#[test]
fn five_amnesiac_witness_of_no_later_view_counts_for_a_quorum() {
    let mut stage = begin(3);
    stage.part(&[B, C], &[A, D, E], true);
    stage.power_off(D);
    stage.world.lose_log(D, LogLoss::SegmentsGone);
    stage.part(&[B, C], &[A, D, E], false);
    stage.part(&[A, E], &[B, C, D], true);
    stage.restart(D);
    stage.until_serves(&[B, C, D]);
    all_there(&mut stage, 0..3);
    stage.part(&[A, E], &[B, C, D], false);
    stage.reckon();
}

/// L8. As L7, but the view of A, D and E had formed: D's disk says so, and D's log is lost.
/// B, C and D refuse until A or E appears.
#[test]
fn five_amnesiac_witness_of_a_later_view_makes_the_group_wait_for_its_log() {
    let mut stage = begin(3);
    stage.part(&[B, C], &[A, D, E], true);
    stage.until_serves(&[A, D, E]);
    create_all(&mut stage, 3..6);
    stage.power_off(D);
    stage.world.lose_log(D, LogLoss::SegmentsGone);
    stage.part(&[B, C], &[A, D, E], false);
    stage.part(&[A, E], &[B, C, D], true);
    stage.restart(D);
    none_serves(&mut stage, &[A, B, C, D, E]);
    stage.part(&[A, E], &[B, C, D], false);
    all_there(&mut stage, 0..6);
    stage.reckon();
}

/// L10. All lose power; D's disk is gone; A and E do not return.
/// B, C and D must not form a view: D might have been in a later one.
#[test]
fn five_emptied_witness_does_not_count_for_a_quorum() {
    let mut stage = begin(4);
    for server in [A, B, C, D, E] {
        stage.power_off(server);
    }
    stage.world.empty(D);
    for server in [B, C, D] {
        stage.restart(server);
    }
    none_serves(&mut stage, &[B, C, D]);
    stage.restart(A);
    all_there(&mut stage, 0..4);
    stage.reckon();
}

/// L12. All lose power; C's log is damaged below what it acknowledged.
/// C has amnesia and keeps its views; the view forms through A and B.
#[test]
fn five_backup_with_a_damaged_log_lets_the_others_bring_the_records() {
    let mut stage = begin(8);
    for server in [A, B, C, D, E] {
        stage.power_off(server);
    }
    assert!(stage.world.lose_log(C, LogLoss::BitFlipped));
    for server in [A, B, C, D, E] {
        stage.restart(server);
    }
    stage.until_serves(&[A, B, C]);
    all_there(&mut stage, 0..8);
    stage.reckon();
}

/// L21. Two coordinators at once: one view forms, or they try again; numbers are unique.
#[test]
fn five_two_coordinators_at_once_end_in_one_view() {
    let mut stage = begin(3);
    for from in [B, C] {
        for to in [B, C, D, E] {
            stage.hold(from, to, Kind::Invite);
        }
    }
    stage.crash(A);
    stage.until("both have begun", |world| {
        let held = world.held_messages();
        [B, C].iter().all(|from| held.iter().any(|message| message.from == *from))
    });
    stage.no_rules();
    stage.release();
    all_there(&mut stage, 0..3);
    create_all(&mut stage, 3..5);
    stage.reckon();
}

/// L27. A is down for long; B and C checkpoint far; D, promoted in A's place, dies, and E is promoted. Then A and D
/// return, and B and C are gone: E's log still has what A's image lacks, without a gap.
#[test]
fn five_long_absent_primary_and_the_witnesses_hold_no_gap() {
    let mut stage = begin(2);
    stage.crash(A);
    stage.until_serves(&[B, C, D]);
    create_all(&mut stage, 2..6);
    stage.world.verify(B, 1);
    stage.until("both images are ahead of A's", |world| {
        [B, C].iter().all(|copy| world.pulse(*copy).is_some_and(|pulse| pulse.lb >= 6))
    });
    stage.crash(D);
    stage.until_serves(&[B, C, E]);
    create_all(&mut stage, 6..9);
    stage.world.verify(B, 2);
    stage.until("they move on", |world| {
        [B, C].iter().all(|copy| world.pulse(*copy).is_some_and(|pulse| pulse.lb >= 9))
    });
    stage.power_off(B);
    stage.power_off(C);
    for server in [B, C] {
        stage.world.hosts[server.index()].stays_down = true;
    }
    stage.restart(A);
    stage.restart(D);
    stage.until_serves(&[A, D, E]);
    all_there(&mut stage, 0..9);
    stage.reckon();
}

/// L30. B crashes, then A. C, D and E have every op that A acknowledged.
#[test]
fn five_backup_then_primary_crash_the_rest_has_everything() {
    let mut stage = begin(3);
    stage.crash(B);
    stage.until("a view without B serves", |world| {
        world.serving() == Some(A) && world.pulse(A).is_some_and(|p| !p.members.contains(B))
    });
    create_all(&mut stage, 3..7);
    stage.crash(A);
    stage.until_serves(&[C, D, E]);
    all_there(&mut stage, 0..7);
    create_all(&mut stage, 7..9);
    stage.restart(B);
    stage.restart(A);
    stage.until_serves(&[A, B, C]);
    stage.reckon();
}

/// L34. E promises a high view to C, loses its disk, and is admitted again in a lower view, which commits a file.
/// The old promise reaches C, who has D's and its own: it does not count, and the file is there.
#[test]
fn five_promise_of_a_lost_disk_does_not_count() {
    let mut stage = begin(1);
    stage.part(&[C, E], &[A, B], true);
    stage.hold(C, D, Kind::Invite);
    stage.hold(E, C, Kind::Promise);
    // C tries again and again, each time higher.
    stage.until("E has promised C a view above what A will need", |world| {
        world.durable(E).is_some_and(|e| {
            e.promised.counter() >= world.durable(A).map_or(0, |a| a.promised.counter()) + 4
        })
    });
    let high = stage.world.durable(E).expect("a view file").promised;
    stage.until("the promise is under way", |world| {
        world
            .held_messages()
            .iter()
            .any(|m| m.report.as_ref().is_some_and(|(view, _)| *view == high))
    });
    let paused = stage.world.hosts[C.index()].process.as_mut().expect("it is up");
    paused.busy_until = stage.world.now + 400 * MILLI;

    // E's disk is replaced; a view without it admits the new one, and then one with it commits a file.
    stage.until_serves(&[A, B, D]);
    stage.power_off(E);
    stage.world.empty(E);
    stage.part(&[E], &[A, B], false);
    stage.lose(E, C, Kind::Presence);
    stage.restart(E);
    stage.until("E's new disk counts", |world| {
        let new = world.durable(E).map(|e| e.incarnation.disk);
        let process = world.hosts[D.index()].process.as_ref().expect("it is up");
        Some(process.node.replica().durable().configuration.disks[E.index()]) == new
    });
    stage.part(&[D], &[A, B, E], true);
    let lower = stage.until_serves(&[A, B, E]);
    assert!(lower < high, "{lower} is below {high}");
    stage.create(1);

    // C wakes up, with D, and hears of the old promise.
    stage.part(&[A, B, E], &[C, D], true);
    stage.release();
    stage.until("C has D's promise as well", |world| {
        world.durable(D).is_some_and(|d| d.promised >= high)
    });
    none_serves(&mut stage, &[C, D]);
    stage.part(&[A, B, E], &[C, D], false);
    all_there(&mut stage, 0..2);
    stage.reckon();
}
