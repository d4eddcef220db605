//! Scenarios of an operator's override: one story each.
//! Servers of n = 1: A the designated primary, B the backup, C the witness. Of n = 2: A, B, C copies, D, E witnesses.

use harp_node::fs::request::Status;
use harp_node::vr::{Consent, Op, OverrideAnswer, ServerId, View};
use harp_sim::power::LogLoss;
use harp_sim::profile::SECOND;
use harp_sim::script::{A, B, C, D, E, Kind, Stage, lookup};

/// The first view serves, and these files are made.
fn begin(n: u8, files: u8) -> Stage {
    let mut stage = Stage::new(n);
    stage.world.observer.keeps_past = true;
    if n == 1 {
        stage.until_serves(&[A, B]);
    } else {
        stage.until_serves(&[A, B, C]);
    }
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

fn none_there(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    for number in numbers {
        assert_eq!(stage.call(1, lookup(number)).0, Status::NoEnt, "file {number}");
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

/// Waits until the images of these copies have everything they applied.
fn checkpointed(stage: &mut Stage, copies: &[ServerId]) {
    let copies = copies.to_vec();
    stage.pass(6 * SECOND);
    stage.until("the images are level", |world| {
        copies.iter().all(|copy| world.pulse(*copy).is_some_and(|p| p.lb == p.ap && p.lb > 0))
    });
}

fn power_off_all(stage: &mut Stage, servers: &[ServerId]) {
    servers.iter().for_each(|server| stage.power_off(*server));
}

/// All five lose power; A and E stay away, D comes back emptied. That is too little without an override.
fn two_copies_left(stage: &mut Stage) {
    power_off_all(stage, &[A, B, C, D, E]);
    stage.world.empty(D);
    for server in [B, C, D] {
        stage.restart(server);
    }
    none_serves(stage, &[B, C, D]);
}

fn refused(answer: OverrideAnswer) -> String {
    match answer {
        OverrideAnswer::Refused { why } => why,
        other => panic!("it must be refused, not {other:?}"),
    }
}

fn not_needed(answer: OverrideAnswer) -> String {
    match answer {
        OverrideAnswer::NotNeeded { why } => why,
        other => panic!("it must not be needed, not {other:?}"),
    }
}

/// L10, then an override. All lose power; D's disk is gone, A and E do not return. B, C and D go on with everything:
/// B and C wrote it all out. A and E come back later, and count when they are rebuilt.
#[test]
fn override_five_with_an_emptied_witness_keeps_everything_that_the_rest_has() {
    let mut stage = begin(2, 4);
    two_copies_left(&mut stage);
    let plan = stage.override_by(B, &[A, E]);
    assert_eq!(plan.fresh.len(), 1);
    assert_ne!(plan.kept.adopted, View::NONE);
    let view = stage.until_serves(&[B, C, D]);
    assert_eq!(view.epoch(), 1);
    all_there(&mut stage, 0..4);
    create_all(&mut stage, 4..6);
    let told = stage.pulse(B).overridden;
    assert_eq!((told.view, told.absent.len()), (view, 2));
    assert_eq!(told.operator(), "the operator");
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
    all_there(&mut stage, 0..6);
    assert_eq!(stage.pulse(A).overridden, told);
}

/// L8, then an override. D says that it formed a view with A and E, and its log is lost. B and C have the log of the
/// view before: that goes on, and what A, D and E committed after it is given up.
#[test]
fn override_five_without_the_newest_view_s_log_goes_on_with_the_one_before() {
    let mut stage = begin(2, 3);
    stage.part(&[B, C], &[A, D, E], true);
    stage.until_serves(&[A, D, E]);
    create_all(&mut stage, 3..6);
    power_off_all(&mut stage, &[A, D, E]);
    stage.world.lose_log(D, LogLoss::SegmentsGone);
    stage.part(&[B, C], &[A, D, E], false);
    stage.restart(D);
    none_serves(&mut stage, &[B, C, D]);
    let plan = stage.override_by(B, &[A, E]);
    assert!(plan.formed > plan.kept.adopted, "D knows of a later view");
    stage.until_serves(&[B, C, D]);
    all_there(&mut stage, 0..3);
    none_there(&mut stage, 3..6);
    create_all(&mut stage, 6..8);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
    none_there(&mut stage, 3..6);
    all_there(&mut stage, 6..8);
}

/// n = 1: both copies lose their logs, the witness its disk. The images are level: the two copies go on with them.
#[test]
fn override_three_with_images_only_goes_on_at_their_op() {
    let mut stage = begin(1, 4);
    checkpointed(&mut stage, &[A, B]);
    power_off_all(&mut stage, &[A, B, C]);
    stage.world.lose_log(A, LogLoss::SegmentsGone);
    stage.world.lose_log(B, LogLoss::HeadGone);
    stage.restart(A);
    stage.restart(B);
    none_serves(&mut stage, &[A, B]);
    let plan = stage.override_by(A, &[C]);
    assert_eq!(plan.kept.adopted, View::NONE);
    stage.until_serves(&[A, B]);
    all_there(&mut stage, 0..4);
    create_all(&mut stage, 4..6);
    stage.world.empty(C);
    stage.restart(C);
    stage.settle();
    stage.reckon();
}

/// The same with files that are in no image: they are given up. An empty witness takes the place of the old one, and
/// the other copy loads its files anew, for its image is older.
#[test]
fn override_three_with_one_image_and_an_empty_witness_gives_up_what_came_later() {
    let mut stage = begin(1, 3);
    checkpointed(&mut stage, &[A, B]);
    create_all(&mut stage, 3..5);
    power_off_all(&mut stage, &[A, B, C]);
    stage.world.lose_log(B, LogLoss::SegmentsGone);
    stage.world.empty(C);
    stage.restart(B);
    stage.restart(C);
    none_serves(&mut stage, &[B, C]);
    let plan = stage.override_by(B, &[A]);
    assert_eq!(plan.kept.adopted, View::NONE);
    stage.until_serves(&[B, C]);
    all_there(&mut stage, 0..3);
    none_there(&mut stage, 3..5);
    create_all(&mut stage, 6..7);
    stage.restart(A);
    stage.reckon();
    none_there(&mut stage, 3..5);
}

/// One survivor and two new machines, the usual case after the loss of two of three: B goes on with the empty witness,
/// and the empty A loads its files.
#[test]
fn override_three_with_one_survivor_admits_two_empty_servers() {
    let mut stage = begin(1, 4);
    power_off_all(&mut stage, &[A, B, C]);
    stage.world.empty(A);
    stage.world.empty(C);
    for server in [A, B, C] {
        stage.restart(server);
    }
    none_serves(&mut stage, &[A, B, C]);
    let plan = stage.override_by(B, &[]);
    assert_eq!((plan.fresh.len(), plan.rebuilt.len()), (2, 1));
    stage.until("they serve", |world| world.serving().is_some());
    all_there(&mut stage, 0..4);
    stage.reckon();
}

/// The old primary returns with a newer log and a newer image. It does not count: what it had alone is gone, and its
/// files are loaded anew.
fn old_primary_returns(stage: &mut Stage) {
    stage.part(&[B], &[A, C], true);
    stage.until_serves(&[A, C]);
    create_all(stage, 3..9);
    checkpointed(stage, &[A]);
    power_off_all(stage, &[A, C]);
    stage.world.empty(C);
    stage.part(&[B], &[A, C], false);
    stage.restart(C);
    none_serves(stage, &[B, C]);
    stage.override_by(B, &[A]);
    stage.until_serves(&[B, C]);
    none_there(stage, 3..9);
    create_all(stage, 10..12);
    stage.restart(A);
    stage.reckon();
    none_there(stage, 3..9);
    all_there(stage, 0..3);
    all_there(stage, 10..12);
}

#[test]
fn override_three_old_primary_with_a_newer_log_is_rebuilt_and_its_extra_ops_are_gone() {
    old_primary_returns(&mut begin(1, 3));
}

/// The same, and the override leaves the old primary's disk and image good: the checkers see it.
#[test]
fn override_that_lets_an_older_epoch_count_is_noticed() {
    let story = || {
        let mut stage = Stage::planted(1, harp_node::vr::Planted::OldEpochVotes);
        stage.world.observer.keeps_past = true;
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..3);
        old_primary_returns(&mut stage);
    };
    assert!(std::panic::catch_unwind(story).is_err(), "nobody noticed");
}

/// While a view serves, and when one can form by itself, an override is not needed, and is not done.
#[test]
fn override_of_a_group_that_can_go_on_is_refused_as_not_needed() {
    let mut stage = begin(1, 2);
    stage.power_off(B);
    stage.until_serves(&[A, C]);
    let why = not_needed(stage.order(A, &[B], None));
    assert!(why.contains("serves"), "{why}");
    stage.power_off(C);
    stage.settle();
    stage.restart(C);
    let answer = stage.order(A, &[B], Some(Consent { adopted: View::NONE, end: Op(1) }));
    match answer {
        OverrideAnswer::NotNeeded { .. } => {}
        OverrideAnswer::Refused { why } => assert!(why.contains("does not answer"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.until_serves(&[A, C]).epoch(), 0);
    stage.restart(B);
    stage.reckon();
    assert_eq!(stage.pulse(A).overridden.view, View::NONE);
}

/// Every server that is not named must answer, and none that is named may.
#[test]
fn override_names_exactly_the_servers_that_are_gone() {
    let mut stage = begin(2, 3);
    two_copies_left(&mut stage);
    let why = refused(stage.order(B, &[A], None));
    assert!(why.contains("e does not answer"), "{why}");
    let why = refused(stage.order(B, &[A, C, E], None));
    assert!(why.contains("c is named absent"), "{why}");
    let why = refused(stage.order(D, &[A, E], None));
    assert!(why.contains("d has no whole image"), "{why}");
    let agreed = Some(Consent { adopted: View::NONE, end: Op(1) });
    let why = refused(stage.order(B, &[A, E], agreed));
    assert!(why.contains("changed"), "{why}");
    stage.override_by(B, &[A, E]);
    stage.until_serves(&[B, C, D]);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
}

/// n = 1: a copy and nobody else: there are not enough members, whatever the operator says.
#[test]
fn override_three_of_a_lone_copy_asks_for_an_empty_witness() {
    let mut stage = begin(1, 2);
    power_off_all(&mut stage, &[A, C]);
    none_serves(&mut stage, &[B]);
    let why = refused(stage.order(B, &[A, C], None));
    assert!(why.contains("empty witness"), "{why}");
    // The witness's log is enough.
    stage.restart(C);
    stage.until_serves(&[B, C]);
    stage.restart(A);
    stage.reckon();
}

/// The coordinator dies before it has begun: everything is as it was, and the order can be given again.
#[test]
fn override_five_coordinator_that_dies_before_its_own_log_has_the_tag_leaves_the_refusal() {
    let mut stage = begin(2, 3);
    two_copies_left(&mut stage);
    let OverrideAnswer::Would(plan) = stage.order(B, &[A, E], None) else { panic!("it would") };
    stage.lose(C, B, Kind::Promise);
    stage.world.order(B, [A, E].into_iter().collect(), Some(plan.kept));
    stage.settle();
    stage.crash(B);
    stage.no_rules();
    stage.restart(B);
    none_serves(&mut stage, &[B, C, D]);
    stage.override_by(C, &[A, E]);
    stage.until_serves(&[B, C, D]);
    all_there(&mut stage, 0..3);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
}

/// The coordinator dies after it has begun, before anybody heard of it: when it is back, the new epoch's view forms by
/// itself, with what the override kept.
#[test]
fn override_five_coordinator_that_dies_in_the_middle_is_followed_when_it_is_back() {
    let mut stage = begin(2, 3);
    two_copies_left(&mut stage);
    for to in [C, D] {
        stage.lose(B, to, Kind::Install);
    }
    stage.override_by(B, &[A, E]);
    stage.crash(B);
    stage.no_rules();
    none_serves(&mut stage, &[C, D]);
    stage.restart(B);
    assert_eq!(stage.until_serves(&[B, C, D]).epoch(), 1);
    all_there(&mut stage, 0..3);
    assert_eq!(stage.pulse(C).overridden.absent.len(), 2);
    create_all(&mut stage, 3..5);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
}

/// Twice the coordinator dies after it formed a view that nobody else heard of: first the override's own, then one above
/// it. The images that the override chose still count, and the third view forms.
#[test]
fn override_five_whose_coordinator_dies_twice_in_the_middle_is_followed_when_it_is_back() {
    let mut stage = begin(2, 3);
    two_copies_left(&mut stage);
    for to in [C, D] {
        stage.lose(B, to, Kind::Install);
    }
    stage.override_by(B, &[A, E]);
    let first = stage.world.durable(B).expect("a view file").formed;
    stage.crash(B);
    for from in [C, D] {
        stage.lose(from, B, Kind::Invite);
    }
    stage.restart(B);
    stage.until("its coordinator forms another view alone", |world| {
        world.durable(B).expect("a view file").formed > first
    });
    stage.crash(B);
    stage.no_rules();
    stage.restart(B);
    assert_eq!(stage.until_serves(&[B, C, D]).epoch(), 1);
    all_there(&mut stage, 0..3);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
}

/// The history that is kept is another server's, and its records are on their way when the operator asks again instead
/// of waiting. The order is answered as refused, and then it is: nothing comes of it when the records arrive.
#[test]
fn override_five_that_was_refused_while_it_took_records_in_is_not_carried_out() {
    let mut stage = begin(2, 3);
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until("two copies and a witness", |world| {
        world.serving().is_some_and(|server| {
            world.pulse(server).is_some_and(|pulse| !pulse.members.contains(B))
        })
    });
    create_all(&mut stage, 3..6);
    two_copies_left(&mut stage);
    let OverrideAnswer::Would(plan) = stage.order(B, &[A, E], None) else { panic!("it would") };
    assert_eq!(plan.holder, C);
    stage.hold(C, B, Kind::Grant);
    let absent = [A, E].into_iter().collect();
    let order = stage.world.order(B, absent, Some(plan.kept));
    stage.until("records are on their way", |world| !world.held_messages().is_empty());
    assert!(!stage.world.answers.contains_key(&order));
    stage.world.order(B, absent, None);
    stage.until("it is answered", |world| world.answers.contains_key(&order));
    let why = refused(stage.world.answers[&order].clone());
    assert!(why.contains("another order"), "{why}");
    stage.no_rules();
    stage.release();
    none_serves(&mut stage, &[B, C, D]);
    assert_eq!(stage.pulse(B).overridden.view, View::NONE);
    stage.override_by(B, &[A, E]);
    stage.until_serves(&[B, C, D]);
    all_there(&mut stage, 0..6);
    stage.restart(A);
    stage.restart(E);
    stage.reckon();
}

/// The coordinator dies after it has begun and stays away; the servers that were named come back instead. The old
/// epoch's servers are enough for a view of their own: the override has come to nothing, and its coordinator is the one
/// to be rebuilt.
#[test]
fn override_five_that_only_its_coordinator_began_gives_way_to_a_quorum_without_it() {
    let mut stage = begin(2, 3);
    two_copies_left(&mut stage);
    for to in [C, D] {
        stage.lose(B, to, Kind::Install);
    }
    stage.override_by(B, &[A, E]);
    stage.crash(B);
    stage.no_rules();
    stage.restart(A);
    stage.restart(E);
    stage.until("the others serve", |world| world.serving() == Some(A));
    all_there(&mut stage, 0..3);
    create_all(&mut stage, 3..5);
    stage.restart(B);
    stage.reckon();
    all_there(&mut stage, 0..5);
    assert_eq!(stage.pulse(B).overridden.view, View::NONE);
}

/// An override after an override: a server that missed the first, and is named absent by nobody any more, brings the
/// old epoch's history to the second. It counts for nothing.
#[test]
fn override_again_does_not_go_back_to_what_the_first_one_gave_up() {
    let mut stage = begin(1, 3);
    stage.part(&[B], &[A, C], true);
    stage.until_serves(&[A, C]);
    create_all(&mut stage, 3..9);
    checkpointed(&mut stage, &[A]);
    power_off_all(&mut stage, &[A, C]);
    stage.world.empty(C);
    stage.part(&[B], &[A, C], false);
    stage.restart(C);
    none_serves(&mut stage, &[B, C]);
    stage.override_by(B, &[A]);
    stage.until_serves(&[B, C]);
    create_all(&mut stage, 10..12);
    power_off_all(&mut stage, &[B, C]);
    stage.world.empty(C);
    for server in [A, B, C] {
        stage.restart(server);
    }
    none_serves(&mut stage, &[A, B, C]);
    let why = refused(stage.order(A, &[], None));
    assert!(why.contains("b is to be asked"), "{why}");
    let plan = stage.override_by(B, &[]);
    assert_eq!(plan.kept.adopted.epoch(), 1);
    stage.until("they serve", |world| world.serving().is_some());
    none_there(&mut stage, 3..9);
    all_there(&mut stage, 10..12);
    stage.reckon();
    assert_eq!(stage.pulse(A).overridden.view.epoch(), 2);
}
