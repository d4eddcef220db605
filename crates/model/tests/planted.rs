//! Rules broken on purpose: that the properties see it shows that they look.
//! Owns: the bounds within which each bug of the protocol must be found.

use harp_model::{Bounds, Durability, Leases, Limits, Search, explore};
use harp_vr::Planted;

/// Transitions after which a bug counts as not found.
const TRANSITIONS_MAX: usize = 2_000_000;

/// Looks for `planted` among the behaviours of a group with one op and one view change, and what `more` adds.
fn found(planted: Planted, durability: Durability, more: impl Fn(Bounds) -> Bounds) {
    let none = Bounds { leases: Leases::Ignored, ..Bounds::none(1, durability) };
    let bounds = more(Bounds { planted: Some(planted), ops: 1, views: 1, ..none });
    let limits = Limits { threads: 1, time: None, transitions: Some(TRANSITIONS_MAX) };
    let outcome = explore(bounds, Search::Breadth, limits);
    let transitions = outcome.transitions;
    let Some((property, trace)) = outcome.violation else {
        panic!("{planted:?} was not found in {transitions} transitions of {bounds:?}");
    };
    println!(
        "{planted:?}, {durability:?}: {property}, {transitions} transitions, {} lines",
        trace.len()
    );
}

fn found_in_both(planted: Planted, more: impl Fn(Bounds) -> Bounds) {
    found(planted, Durability::Disk, &more);
    found(planted, Durability::Ups, &more);
}

fn with_a_crash(bounds: Bounds) -> Bounds {
    Bounds { crashes: 1, ..bounds }
}

#[test]
fn rule_1_a_promise_that_is_not_durable() {
    found_in_both(Planted::PromiseNotDurable, with_a_crash);
}

#[test]
fn rule_1_an_acknowledgement_after_the_promise() {
    found_in_both(Planted::AckAfterPromise, |bounds| bounds);
}

#[test]
fn rule_2_a_commit_before_all_formed() {
    found_in_both(Planted::CommitBeforeAllFormed, |bounds| bounds);
}

#[test]
fn rule_2_a_vote_for_a_log_of_another_view() {
    found_in_both(Planted::VoteUntagged, with_a_crash);
}

#[test]
fn rule_2_the_shortest_log() {
    found_in_both(Planted::ShortestLogWins, |bounds| bounds);
}

#[test]
fn rule_3_a_vote_for_a_lost_log() {
    found_in_both(Planted::AmnesiaVotes, with_a_crash);
}

/// In `ups` durability what is in memory is acknowledged, so that there is nothing to find.
#[test]
fn rule_3_an_acknowledgement_before_the_write() {
    found(Planted::AckBeforeDurable, Durability::Disk, with_a_crash);
}

#[test]
fn rule_4_an_empty_disk_taken_for_a_first_start() {
    found_in_both(Planted::MissingIsFirstStart, |bounds| Bounds { media_losses: 1, ..bounds });
}

#[test]
fn rule_6_phase_two_twice() {
    found_in_both(Planted::InstallTwice, |bounds| bounds);
}

#[test]
fn rule_7_a_read_without_a_lease() {
    found_in_both(Planted::ReadWithoutLease, |bounds| Bounds { leases: Leases::End, ..bounds });
}

#[test]
fn rule_7_no_wait_for_the_old_lease() {
    found_in_both(Planted::NoLeaseWait, |bounds| Bounds { leases: Leases::End, ..bounds });
}

#[test]
fn rule_10_an_absent_copy_ignored() {
    found_in_both(Planted::TrimIgnoresAbsent, |bounds| Bounds { checkpoints: 1, ..bounds });
}
