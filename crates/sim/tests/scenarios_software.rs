//! Scenarios of a faulty program: a record that ends whoever applies it (L14). One story each.
//! Servers: A the designated primary, B a backup; with n = 2, C too, and D and E are witnesses.

use harp_node::fs::request::Status;
use harp_node::vr::ServerId;
use harp_sim::power::LogLoss;
use harp_sim::profile::{MILLI, SECOND};
use harp_sim::script::{A, B, C, D, E, Stage, create, lookup};
use harp_sim::world::World;

fn halted(world: &World, server: ServerId) -> bool {
    world.hosts[server.index()].process.as_ref().is_some_and(|p| p.node.replica().is_halted())
}

fn state(world: &World, server: ServerId) -> String {
    let host = &world.hosts[server.index()];
    let process = host.process.as_ref().expect("it is up");
    process.node.status(host.clock.read(world.now)).state
}

/// A lethal record is made as file `number`: the primary, who planned it, lives; every other copy halts.
fn strike(stage: &mut Stage, copies: &[ServerId], number: u8) {
    let lethal = stage.world.observer.requests.len() as u32;
    stage.make_lethal(lethal);
    stage.until_serves(copies);
    let asked = stage.ask(0, create(number));
    assert_eq!(asked, lethal, "the request that is meant");
    assert_eq!(stage.answer(asked).0, Status::Ok);
    stage.until("the other copies halt", |world| {
        copies[1..].iter().all(|copy| halted(world, *copy))
    });
}

/// L14. A record kills every copy that applies it. Each dies of it a few times and then halts before it, with its
/// log whole, and says so; the primary goes on with the witnesses. It restarts, and halts too: nobody serves.
/// With a version that can apply it, nothing is lost.
#[test]
fn software_a_record_that_kills_halts_the_copies_and_nothing_is_lost() {
    for (n, copies, others) in [(1, &[A, B][..], &[A, C][..]), (2, &[A, B, C][..], &[A, D, E][..])]
    {
        let mut stage = Stage::new(n);
        (0..3).for_each(|number| _ = stage.create(number));
        strike(&mut stage, copies, 3);
        stage.until_serves(others);
        assert!(
            state(&stage.world, B).contains("cannot be applied here: it ended this server 2 times")
        );
        (4..7).for_each(|number| _ = stage.create(number));
        let life = stage.world.hosts[B.index()].life;
        stage.settle();
        assert_eq!(stage.world.hosts[B.index()].life, life, "it dies of it no more");

        stage.crash(A);
        stage.restart(A);
        stage.until("the last copy halts", |world| halted(world, A));
        stage.settle();
        assert_eq!(stage.world.serving(), None);
        for copy in copies {
            assert!(
                state(&stage.world, *copy).starts_with("refusing: op "),
                "{}",
                stage.world.states()
            );
        }
        stage.world.mend_software();
        stage.until_serves(copies);
        (0..7).for_each(|number| assert_eq!(stage.call(1, lookup(number)).0, Status::Ok));
        stage.reckon();
    }
}

/// L14, without logs. All copies of the first view died of the record and lost their logs at once: no view may
/// form, with whatever version. Had witnesses been promoted in between, their logs count.
#[test]
fn software_copies_that_halted_and_lost_their_logs_need_a_witness_that_was_promoted() {
    for promoted in [false, true] {
        let mut stage = Stage::new(2);
        (0..3).for_each(|number| _ = stage.create(number));
        if promoted {
            strike(&mut stage, &[A, B, C], 3);
            stage.until_serves(&[A, D, E]);
            stage.create(4);
        }
        for copy in [A, B, C] {
            stage.power_off(copy);
            stage.world.lose_log(copy, LogLoss::SegmentsGone);
        }
        stage.world.mend_software();
        [A, B, C].iter().for_each(|copy| stage.restart(*copy));
        if promoted {
            stage.until_serves(&[A, B, C]);
            [0, 1, 2, 3, 4]
                .iter()
                .for_each(|n| assert_eq!(stage.call(1, lookup(*n)).0, Status::Ok));
            stage.reckon();
        } else {
            stage.settle();
            assert_eq!(stage.world.serving(), None, "{}", stage.world.states());
            let why = state(&stage.world, A);
            assert!(why.contains("none of the servers at hand has its log"), "{why}");
        }
    }
}

/// The disk of a copy that halted is replaced: it loads another copy's image, which is beyond the record, and takes
/// part again without ever applying it. An image that is not yet beyond it halts it once more, and no more than that.
#[test]
fn software_a_halted_copy_takes_part_again_over_an_image_beyond_the_record() {
    let mut stage = Stage::new(1);
    strike(&mut stage, &[A, B], 3);
    stage.until_serves(&[A, C]);
    replace(&mut stage, B);
    stage.until("B halts before the same record", |world| halted(world, B));
    stage.world.verify(A, 1);
    stage.until("A's image has the record", |world| world.pulse(A).is_some_and(|a| a.lb > 1));
    replace(&mut stage, B);
    stage.until_serves(&[A, B]);
    assert!(!halted(&stage.world, B));
    assert_eq!(stage.call(1, lookup(3)).0, Status::Ok);
    stage.reckon();
}

/// A copy that hears the primary alone can start no view, and gathers records that are in no log of its own, long after
/// its image has all that was there when it started. One of them kills it: it halts after a few tries, for it goes on
/// redoing with care.
#[test]
fn software_a_learner_that_gathers_a_record_that_kills_halts_before_it() {
    let mut stage = Stage::new(2);
    (0..3).for_each(|number| _ = stage.create(number));
    let lethal = stage.world.observer.requests.len() as u32 + 3;
    stage.make_lethal(lethal);
    stage.until_serves(&[A, B, C]);
    stage.part(&[B], &[C, D, E], true);
    stage.power_off(B);
    stage.world.lose_log(B, LogLoss::SegmentsGone);
    stage.until_serves(&[A, C, D]);
    stage.restart(B);
    (3..6).for_each(|number| _ = stage.create(number));
    let fp = stage.pulse(A).fp;
    stage.until("B's image has all", |world| world.pulse(B).is_some_and(|b| b.lb >= fp));
    assert!(!stage.pulse(B).normal);
    let life = stage.world.hosts[B.index()].life;
    let asked = stage.ask(0, create(6));
    assert_eq!(asked, lethal, "the request that is meant");
    assert_eq!(stage.answer(asked).0, Status::Ok);
    stage.until("B halts", |world| halted(world, B));
    // Each time it was about to redo that record alone; a life is a start and an end.
    assert_eq!(stage.world.hosts[B.index()].life - life, 2 * 2, "it died of it twice");
    stage.part(&[B], &[C, D, E], false);
    stage.world.mend_software();
    stage.until_serves(&[A, B, C]);
    stage.reckon();
}

/// A sound copy waits at a barrier until its image is exact there, with more to redo behind it. It is killed meanwhile, and
/// again: none of that is held against what it was not about to redo, and it halts nowhere.
#[test]
fn software_a_sound_copy_that_is_killed_while_it_waits_at_a_barrier_does_not_halt() {
    let mut stage = Stage::new(1);
    stage.create(0);
    stage.crash(B);
    stage.until_serves(&[A, C]);
    stage.world.verify(A, 1);
    stage.until("there is a barrier", |world| world.barrier.is_some());
    let barrier = stage.world.barrier.and_then(|(_, op)| op).expect("A serves");
    stage.until("A's image is there", |world| world.pulse(A).is_some_and(|a| a.lb == barrier));
    (1..4).for_each(|number| _ = stage.create(number));
    stage.world.profile.disk.checkpoint_mean = 60 * SECOND;
    stage.restart(B);
    for _ in 0..3 {
        stage.until("B redoes what is before the barrier", |world| {
            world.pulse(B).is_some_and(|b| b.ap == barrier)
        });
        stage.pass(5 * MILLI);
        let b = stage.pulse(B);
        assert!(b.ap == barrier && b.lb < barrier && b.fp > barrier, "it waits: {b:?}");
        stage.world.crash_in_job(B, 0);
        stage.restart(B);
    }
    stage.crash(B);
    stage.world.profile.disk.checkpoint_mean = MILLI;
    stage.restart(B);
    stage.until_serves(&[A, B]);
    stage.until("B redoes all", |world| world.pulse(B).is_some_and(|b| b.ap > barrier));
    stage.reckon();
}

fn replace(stage: &mut Stage, server: ServerId) {
    stage.crash(server);
    stage.world.empty(server);
    stage.restart(server);
}
