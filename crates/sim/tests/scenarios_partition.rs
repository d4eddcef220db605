//! Scenarios of primaries that are cut off, and of leases: one story each, n = 1.
//! Servers: A the designated primary, B the designated backup, C the witness. Client 0 stays with A.

use std::cell::Cell;
use std::rc::Rc;

use harp_node::fs::request::Status;
use harp_node::vr::Message;
use harp_sim::host::Incoming;
use harp_sim::intent::Intent;
use harp_sim::profile::MILLI;
use harp_sim::script::{A, B, C, Kind, Stage, create, lookup, remove};
use harp_sim::world::World;

/// A is cut off with client 0; B and C serve client 1.
fn cut_off(stage: &mut Stage) {
    stage.until_serves(&[A, B]);
    stage.create(0);
    stage.pin(0, true);
    stage.part(&[A], &[B, C], true);
}

/// B and C go on, and client 1 is with B: what it asks from now on A hears nothing of.
fn others_serve(stage: &mut Stage) {
    stage.until_serves(&[B, C]);
    stage.pass(MILLI);
}

/// L16. A cut-off primary receives reads.
/// They are answered until the lease ends, then held; the new primary commits only after that.
#[test]
fn lease_cut_off_primary_answers_reads_until_its_lease_ends_and_never_again() {
    let mut stage = Stage::new(1);
    cut_off(&mut stage);
    let early = stage.ask(0, lookup(0));
    stage.pass(MILLI);
    assert!(stage.is_answered(early), "the lease still runs");
    others_serve(&mut stage);
    assert_eq!(stage.call(1, remove(0)).0, Status::Ok);
    let late = stage.ask(0, lookup(0));
    stage.settle();
    assert!(!stage.is_answered(late), "nothing grants A a lease now");
    stage.part(&[A], &[B, C], false);
    stage.pin(0, false);
    assert_eq!(stage.answer(late).0, Status::NoEnt);
    stage.reckon();
}

/// L35. A cut-off primary holds a name that a new view has removed, and is asked to create it.
/// Without a lease it does not say EXIST.
#[test]
fn lease_cut_off_primary_does_not_answer_failures() {
    let mut stage = Stage::new(1);
    cut_off(&mut stage);
    others_serve(&mut stage);
    assert_eq!(stage.call(1, remove(0)).0, Status::Ok);
    let late = stage.ask(0, create(0));
    stage.settle();
    assert!(!stage.is_answered(late), "EXIST would be wrong");
    stage.part(&[A], &[B, C], false);
    stage.pin(0, false);
    assert_eq!(stage.answer(late).0, Status::Ok);
    stage.reckon();
}

/// L22. In a view of B and C, C promises a higher one; B streams one more record.
/// C does not acknowledge it; it is in the next view or was never answered.
#[test]
fn promise_member_acknowledges_nothing_below_its_promise() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.create(0);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    stage.create(1);
    let lower = stage.pulse(B).formed;
    // A comes back and starts a view change of which B hears nothing, and C not the end.
    stage.lose(A, B, Kind::Invite);
    stage.lose(A, C, Kind::Install);
    let promised = Rc::new(Cell::new(false));
    let broken = Rc::new(Cell::new(false));
    let (sees, breaks) = (Rc::clone(&promised), Rc::clone(&broken));
    stage.rule(move |message, envelope| {
        match &envelope.message {
            Message::Promise { .. } if message.from == C => sees.set(true),
            Message::PrepareOk(ok) if message.from == C && sees.get() && ok.view == lower => {
                breaks.set(true);
            }
            _ => {}
        }
        None
    });
    stage.restart(A);
    let seen = Rc::clone(&promised);
    stage.until("C promises a higher view", |_| seen.get());
    let number = stage.ask(1, create(2));
    stage.settle();
    assert!(!broken.get(), "C acknowledged below its promise");
    stage.no_rules();
    assert_eq!(stage.answer(number).0, Status::Ok);
    stage.reckon();
}

/// L26. A create is not committed yet when another client creates the same name.
/// The second one's EXIST waits until the first one is committed.
#[test]
fn reply_failure_waits_for_the_record_it_shows() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.hold(B, A, Kind::PrepareOk);
    let first = stage.ask(0, create(0));
    stage.pass(MILLI);
    let second = stage.ask(1, create(0));
    stage.pass(2 * MILLI);
    assert!(!stage.is_answered(first) && !stage.is_answered(second));
    stage.no_rules();
    stage.release();
    assert_eq!(stage.answer(first).0, Status::Ok);
    assert_eq!(stage.answer(second).0, Status::Exist);
    stage.reckon();
}

/// L17. A primary is paused after it computed a read, before its last look at the lease; meanwhile the others go
/// on. The reply is not sent: whoever asked hears it from the next primary.
#[test]
fn lease_read_computed_before_a_pause_is_not_answered_after_it() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.create(0);
    stage.pin(0, true);
    let late = stage.ask(0, lookup(0));
    let asks = |world: &World| {
        let inbox = world.hosts[A.index()].process.as_ref().map(|process| &process.inbox);
        inbox.is_some_and(|inbox| inbox.iter().any(|i| matches!(i, Incoming::Calls(..))))
    };
    stage.until("the read waits for A's next turn", asks);
    let process = stage.world.hosts[A.index()].process.as_mut().expect("it is up");
    process.stalls_next_turn = 100 * MILLI;
    others_serve(&mut stage);
    assert_eq!(stage.call(1, remove(0)).0, Status::Ok);
    stage.pass(100 * MILLI);
    let left = stage.world.observer.requests[late as usize].answer.status;
    assert_eq!(left, None, "A's lease ran out in the middle of its turn");
    stage.pin(0, false);
    assert_eq!(stage.answer(late).0, Status::NoEnt);
    stage.reckon();
}

/// L25. A new primary adopts a record that is not committed, while the old one is cut off with a live lease and
/// does not show it. Nobody reads it before that lease has run out.
#[test]
fn lease_adopted_record_is_not_shown_under_the_old_primarys_lease() {
    let mut stage = Stage::new(1);
    stage.until_serves(&[A, B]);
    stage.crash(A);
    stage.until_serves(&[B, C]);
    let ino = stage.create(0);
    stage.pin(0, true);
    stage.lose(A, B, Kind::Invite);
    stage.hold(A, C, Kind::Invite);
    stage.restart(A);
    stage.until("A wants to lead again", |world| !world.held_messages().is_empty());
    stage.lose(C, B, Kind::PrepareOk);
    let unseen = stage.ask(0, create(1));
    let read = stage.ask(0, Intent::GetAttr { ino });
    stage.pass(MILLI / 2);
    assert!(stage.is_answered(read), "B holds a lease");
    assert!(!stage.is_answered(unseen));
    stage.part(&[B], &[A, C], true);
    stage.no_rules();
    stage.release();
    stage.until("A forms a view with C", |world| {
        world.pulse(A).is_some_and(|pulse| pulse.primary && pulse.serving)
    });
    let old = stage.pulse(B);
    assert!(old.lease_until > stage.world.now, "B holds a lease: {old:?}");
    let end = stage.pulse(A).fp;
    assert!(end > stage.pulse(A).cp, "A adopted a record that nobody knows to be committed");
    let number = stage.ask(1, lookup(1));
    stage.answer(number);
    assert!(stage.world.now >= old.lease_until, "answered under B's lease");
    stage.part(&[B], &[A, C], false);
    stage.pin(0, false);
    assert_eq!(stage.answer(unseen).0, Status::Ok, "it was adopted, and is done once");
    stage.reckon();
}

/// Beyond what is promised: A's clock runs at a third of the others' speed. Cut off, A believes in its lease while B
/// and C go on, and shows a file that is gone. The checker reports that read.
#[test]
fn lease_clock_beyond_its_bound_shows_a_stale_read_and_the_checker_sees_it() {
    let mut stage = Stage::with_wild_clocks(1);
    stage.until_serves(&[A, B]);
    let now = stage.world.now;
    stage.world.hosts[A.index()].clock.set_rate(now, -700_000);
    cut_off(&mut stage);
    others_serve(&mut stage);
    assert_eq!(stage.call(1, remove(0)).0, Status::Ok);
    let lease = stage.pulse(A);
    assert!(lease.lease_until > lease.at, "A still believes in its lease");
    stage.world.tell(0, lookup(0));
    let limit = stage.world.now + 20 * MILLI;
    let violation = stage.world.run_until(limit, |_| false).expect_err("a stale read is seen");
    assert!(violation.property.contains("replies are linearizable"), "{violation}");
}
