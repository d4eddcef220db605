//! Scenarios of copies that lost their image and load another one while the group serves: one story each.
//! Servers: A the designated primary; n = 1: B the backup, C the witness; n = 2: B and C backups, D and E
//! witnesses.

use harp_node::fs::request::Status;
use harp_node::vr::ServerId;
use harp_sim::profile::MILLI;
use harp_sim::script::{A, B, C, Kind, Stage, lookup};
use harp_sim::world::World;

/// Files that the clients' load knows nothing of.
const FILES: std::ops::Range<u8> = 24..32;

fn create_all(stage: &mut Stage) {
    for number in FILES {
        stage.create(number);
    }
}

/// All of them are there.
fn all_there(stage: &mut Stage) {
    for number in FILES {
        assert_eq!(stage.call(1, lookup(number)).0, Status::Ok, "file {number}");
    }
}

/// The clients make so many requests of all kinds, beside what else happens.
fn load(stage: &mut Stage, requests: u64) {
    stage.world.requests_left = requests;
    stage.world.look_everywhere();
}

fn lose_disk(stage: &mut Stage, server: ServerId) {
    stage.power_off(server);
    stage.world.empty(server);
}

/// Whether the configuration that the primary knows says that `server` needs an image.
fn needs_image(world: &World, server: ServerId) -> bool {
    let primary = world.serving().and_then(|s| world.hosts[s.index()].process.as_ref());
    primary.is_some_and(|p| p.node.replica().configuration().needs_image.contains(server))
}

/// The others go on without `server` until the log is at its bound.
fn until_given_up(stage: &mut Stage, server: ServerId) {
    for _ in 0..20 {
        load(stage, 1_000);
        stage.until("it is asked", |world| world.requests_left == 0);
        if needs_image(&stage.world, server) {
            return;
        }
    }
    panic!("the log is bounded");
}

/// How many parts of an image `from` sent to `to`, counted from now on.
fn count_parts(
    stage: &mut Stage,
    from: ServerId,
    to: ServerId,
) -> std::rc::Rc<std::cell::Cell<u32>> {
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let counted = count.clone();
    stage.rule(move |message, envelope| {
        let ours = message.from == from && message.to == to;
        if ours && harp_sim::script::kind(&envelope.message) == Kind::ImagePart {
            counted.set(counted.get() + 1);
        }
        None
    });
    count
}

/// L13. The designated primary returns with an empty disk. Under a new incarnation it loads a backup's image
/// while that one serves, and leads again; it has everything, what was written meanwhile included.
#[test]
fn rebuild_emptied_primary_loads_an_image_while_the_group_serves_and_leads_again() {
    let mut stage = Stage::new(2);
    load(&mut stage, 1_500);
    create_all(&mut stage);
    stage.until("half is asked", |world| world.requests_left < 700);
    lose_disk(&mut stage, A);
    stage.until("the others serve", |world| world.serving().is_some_and(|s| s != A));
    let before = stage.pulse(B).cp;
    stage.restart(A);
    stage.until("A leads", |world| world.serving() == Some(A));
    assert!(stage.pulse(A).cp > before, "records were committed while it loaded");
    assert!(!needs_image(&stage.world, A));
    stage.crash(B);
    stage.crash(C);
    all_there(&mut stage);
    stage.restart(B);
    stage.restart(C);
    stage.reckon();
}

/// The copy that hands its image over dies in the middle. Another one hands over the rest, and no state older
/// than what the log was redone over.
#[test]
fn rebuild_source_dies_in_the_middle_and_another_copy_goes_on() {
    let mut stage = Stage::new(2);
    load(&mut stage, 1_200);
    stage.until("half is asked", |world| world.requests_left < 600);
    lose_disk(&mut stage, C);
    stage.until("the others serve", |world| world.serving().is_some());
    let parts = count_parts(&mut stage, B, C);
    stage.restart(C);
    let enough = parts.clone();
    stage.until("B handed over some of its image", move |_| enough.get() >= 6);
    stage.power_off(B);
    stage.until("the others serve", |world| world.serving().is_some_and(|s| s != B));
    load(&mut stage, 300);
    stage.until("C is a member", |world| {
        world.pulse(C).is_some_and(|c| c.normal) && !needs_image(world, C)
    });
    stage.restart(B);
    stage.reckon();
}

/// A copy dies while it loads its image. It begins anew; half an image counts for nothing.
#[test]
fn rebuild_learner_dies_in_the_middle_and_begins_anew() {
    let mut stage = Stage::new(1);
    load(&mut stage, 800);
    stage.until("it is asked", |world| world.requests_left == 0);
    lose_disk(&mut stage, B);
    stage.until("the others serve", |world| world.serving().is_some());
    let parts = count_parts(&mut stage, A, B);
    stage.restart(B);
    for some in [4, 12] {
        let enough = parts.clone();
        stage.until("A handed over some of its image", move |_| enough.get() >= some);
        assert!(needs_image(&stage.world, B));
        stage.crash(B);
        stage.pass(MILLI);
        stage.restart(B);
    }
    stage.reckon();
}

/// L27, the end of it. A copy is absent until the log is at its bound and is given up. When it returns, its
/// image is of no use: it loads another one.
#[test]
fn rebuild_copy_given_up_at_the_logs_bound_loads_a_new_image() {
    let mut stage = Stage::new(1);
    create_all(&mut stage);
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    until_given_up(&mut stage, B);
    let parts = count_parts(&mut stage, A, B);
    stage.restart(B);
    stage.until("B is a member", |world| world.pulse(B).is_some_and(|b| b.normal));
    assert!(parts.get() > 3 && !needs_image(&stage.world, B));
    stage.crash(A);
    stage.until_serves(&[B, C]);
    all_there(&mut stage);
    stage.reckon();
}

/// A copy that was cut off hears how far GLB is, and trims its log beyond its own image; before that image is given
/// up, it dies. What it starts with then cannot be brought forward, and it loads another image.
#[test]
fn rebuild_copy_that_dies_with_a_log_above_its_image_loads_a_new_image() {
    let mut stage = Stage::new(1);
    create_all(&mut stage);
    // A long log, of which B's image has little.
    load(&mut stage, 1_500);
    stage.until("it is asked", |world| world.requests_left == 0);
    stage.part(&[B], &[A, C], true);
    until_given_up(&mut stage, B);
    stage.part(&[B], &[A, C], false);
    stage
        .until("B trimmed its log", |world| world.pulse(B).is_some_and(|b| b.log_begin > b.lb + 1));
    stage.crash(B);
    stage.restart(B);
    stage.until("B is a member", |world| world.pulse(B).is_some_and(|b| b.normal));
    stage.reckon();
}

/// A copy is given up while it is cut off, and the others form another view without it. When the witness dies too and the
/// copy is heard again, no view forms of it: GLB has passed its image, and what the log has
/// trimmed it could never redo.
#[test]
fn rebuild_copy_that_was_given_up_is_no_member_of_a_later_view_before_its_image_is_whole() {
    let mut stage = Stage::new(1);
    create_all(&mut stage);
    stage.part(&[B], &[A, C], true);
    until_given_up(&mut stage, B);
    let given_up = stage.pulse(A).formed;
    let all_trimmed =
        |world: &World| world.pulse(A).is_some_and(|a| a.glb == a.fp && a.log_begin > a.glb);
    stage.until("A's image has all, and the log is empty", all_trimmed);
    stage.crash(C);
    stage.restart(C);
    stage.until("another view forms", |world| world.pulse(A).is_some_and(|a| a.formed > given_up));
    stage.until_serves(&[A, C]);
    stage.crash(C);
    stage.pass(500 * MILLI);
    stage.lose(A, B, Kind::Presence); // else B begins to load an image at once
    stage.part(&[B], &[A, C], false);
    stage.pass(1_000 * MILLI);
    assert!(!stage.pulse(B).normal && !stage.pulse(A).serving);
    stage.no_rules();
    stage.restart(C);
    stage.until("B is a member", |world| world.pulse(B).is_some_and(|b| b.normal));
    stage.crash(A);
    stage.until_serves(&[B, C]);
    all_there(&mut stage);
    stage.reckon();
}
