//! Scenarios of groups that servers look up: one story each, n = 1.
//! Servers: A the designated primary, B the designated backup, C the witness. Client 0 is root, who is not looked
//! up; at client 1 works user 7.

use harp_node::fs::request::Status;
use harp_sim::profile::{MILLI, SECOND};
use harp_sim::script::{A, B, C, Stage, lookup};

const USER: u32 = 7;

fn stage() -> Stage {
    let mut stage = Stage::with_looked_up_groups(1);
    stage.create(0);
    stage.world.clients[1].user = USER;
    stage
}

/// A user is new to the primary: his first call waits for the look-up, the next does not.
#[test]
fn groups_first_call_of_a_user_waits_for_the_look_up_and_later_ones_do_not() {
    let mut stage = stage();
    stage.world.profile.look_up_mean = 50 * MILLI;
    let begun = stage.world.now;
    assert_eq!(stage.call(1, lookup(0)).0, Status::Ok);
    let (first, begun) = (stage.world.now - begun, stage.world.now);
    stage.world.silent_users.push(USER);
    assert_eq!(stage.call(1, lookup(0)).0, Status::Ok, "it is not looked up again");
    assert!(stage.world.now - begun < first, "{first} ns, then {}", stage.world.now - begun);
    stage.reckon();
}

/// The look-up of a user hangs. Others are served; after three seconds his calls go by the client's list.
#[test]
fn groups_look_up_that_hangs_holds_only_its_own_users_calls_and_not_for_long() {
    let mut stage = stage();
    stage.world.silent_users.push(USER);
    let number = stage.ask(1, lookup(0));
    for file in 1..10 {
        stage.create(file);
    }
    stage.pass(2 * SECOND);
    assert!(!stage.is_answered(number));
    assert_eq!(stage.call(0, lookup(5)).0, Status::Ok);
    stage.pass(SECOND);
    assert!(stage.is_answered(number));
    assert_eq!(stage.answer(number).0, Status::Ok);
    let begun = stage.world.now;
    assert_eq!(stage.call(1, lookup(5)).0, Status::Ok);
    assert!(stage.world.now - begun < SECOND, "nobody waits for it a second time");
    stage.reckon();
}

/// The primary dies while a call waits for its look-up there. The next one looks the user up itself.
#[test]
fn groups_primary_dies_while_a_call_waits_the_next_one_looks_up_itself() {
    let mut stage = stage();
    stage.world.silent_users.push(USER);
    let number = stage.ask(1, lookup(0));
    stage.pass(MILLI);
    stage.crash(A);
    stage.world.silent_users.clear();
    stage.until_serves(&[B, C]);
    assert!(!stage.is_answered(number));
    assert_eq!(stage.answer(number).0, Status::Ok);
    stage.reckon();
}
