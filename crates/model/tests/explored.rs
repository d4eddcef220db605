//! Small groups, explored to the end.
//! Owns: the bounds that fit into a test run. The program goes further: docs/testing.md.

use harp_model::{Answers, Bounds, Durability, Leases, Limits, Search, Writes, explore};

/// Explores all of `bounds`; `missed` names what cannot come to pass within them.
fn holds(bounds: Bounds, missed: &[&str]) {
    let limits = Limits { threads: 1, time: None, transitions: None };
    let outcome = explore(bounds, Search::Depth, limits);
    if let Some((property, trace)) = outcome.violation {
        panic!("{property}, within {bounds:?}:\n{}", trace.join("\n"));
    }
    assert_eq!(outcome.missed, missed, "within {bounds:?}, {} states", outcome.states);
    println!("{bounds:?}: {} states, {} transitions", outcome.states, outcome.transitions);
}

const TWO_VIEWS: &str = "ops are committed in two views";

fn both(bounds: impl Fn(Bounds) -> Bounds, missed: &[&str]) {
    for durability in [Durability::Disk, Durability::Ups] {
        let ignored = Bounds { leases: Leases::Ignored, ..Bounds::none(1, durability) };
        holds(bounds(ignored), missed);
    }
}

#[test]
fn two_ops_and_two_view_changes() {
    both(|none| Bounds { ops: 2, views: 2, ..none }, &[]);
}

#[test]
fn a_view_change_and_a_crash_at_any_write() {
    both(|none| Bounds { ops: 1, views: 1, crashes: 1, ..none }, &[TWO_VIEWS]);
}

#[test]
fn a_view_change_and_a_lost_disk() {
    // The record that admits the new disk is another op.
    both(|none| Bounds { ops: 1, views: 1, media_losses: 1, ..none }, &[]);
}

#[test]
fn two_ops_and_a_view_change_while_leases_run_out() {
    both(|none| Bounds { ops: 2, views: 1, leases: Leases::End, ..none }, &[]);
}

#[test]
fn a_view_change_a_crash_and_a_checkpoint() {
    both(|none| Bounds { ops: 1, views: 1, crashes: 1, checkpoints: 1, ..none }, &[TWO_VIEWS]);
}

#[test]
fn a_view_change_and_a_crash_between_writes_and_mail() {
    let late = |none| Bounds { writes: Writes::Apart, answers: Answers::Late, ..none };
    both(|none| Bounds { ops: 1, views: 1, ..late(none) }, &[TWO_VIEWS]);
    both(|none| Bounds { views: 1, crashes: 1, ..late(none) }, &["an op is committed", TWO_VIEWS]);
}
