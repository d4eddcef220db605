//! Small workloads on two real servers, the power cut at every step, the log replayed.
//! Model: `harp-fs`'s file system in plain maps. Oracle: the tree, the images and the replies without a crash.
//! Knobs: `CRASH_WORKLOADS` (of three requests, 10,000 unless said), `CRASH_SEED` (which ones).
//! A failure prints the workload: `CRASH_ONLY=w cargo test -p harp-node --test crash_points one_workload`.
//!
//! Of every workload, both servers' disks are copied at each step that changes them: each write, sync and slot
//! of the logs, each write, sync and commit of the stores. From each copy, cut off from power, both servers
//! start again. What lies before a workload's last request is tried with the workload that ends there, if perhaps in
//! another manner.

mod case;
mod disks;
mod group;
#[path = "../../../fs/tests/common/model.rs"]
#[allow(dead_code)] // the model knows requests that these workloads do not make
mod model;
mod redo;
#[path = "../../../fs/tests/common/rng.rs"]
#[allow(dead_code)] // made for the tests of harp-fs, which draw in more ways
mod rng;
mod story;
mod tree;
mod workload;

use std::panic::{AssertUnwindSafe, catch_unwind};

use case::{Case, drawn, survey};
use disks::Lie;
use harp_vr::Planted;
use redo::Wrong;
use story::Base;
use workload::{OPS, TREES};

/// Workloads of three requests, unless told otherwise.
const DRAWN: u64 = 10_000;
/// They are drawn in so many tests, so that those run side by side.
const SHARES: u64 = 8;
/// Of workloads of two and three requests, one crash in so many is followed by crashes of the recovery.
const AGAIN: u64 = 24;

/// A number from the environment.
fn knob(name: &str, usual: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

fn bases() -> Vec<Base> {
    let made =
        TREES.iter().map(|(name, ops)| Base::new(ops).map_err(|why| format!("{name}: {why}")));
    made.collect::<Result<_, _>>().unwrap_or_else(|why| panic!("{why}"))
}

/// Every workload of one request, in every manner; each crash is followed by two of the recovery.
#[test]
fn one_request_crashed_at_every_step() {
    let every = (0..TREES.len()).flat_map(|tree| (0..OPS.len()).map(move |op| (tree, op)));
    let cases = every.flat_map(|(tree, op)| {
        Case::manners().map(move |variant| Case { tree, ops: vec![op], variant })
    });
    let counts = survey(&bases(), cases, 1);
    assert!(counts.crashes > 4_000, "{counts:?}");
}

/// Workloads of two requests on this tree, half of all: every other four have a checkpoint between the two.
fn two_requests(tree: usize, half: usize) {
    let firsts = (0..OPS.len()).filter(|one| one % 2 == half);
    let every = firsts.flat_map(|one| (0..OPS.len()).map(move |two| vec![one, two]));
    let cases = every.enumerate().map(|(at, ops)| {
        let manner = Case::manners().nth(at % 4).expect("there are four");
        Case { tree, ops, variant: manner | (at / 4 % 2) as u32 }
    });
    let counts = survey(&bases(), cases, AGAIN);
    assert!(counts.crashes > 0, "{counts:?}");
}

#[test]
fn two_requests_on_an_empty_tree_crashed_at_every_step_first_half() {
    two_requests(0, 0);
}

#[test]
fn two_requests_on_an_empty_tree_crashed_at_every_step_second_half() {
    two_requests(0, 1);
}

#[test]
fn two_requests_on_a_few_files_crashed_at_every_step_first_half() {
    two_requests(1, 0);
}

#[test]
fn two_requests_on_a_few_files_crashed_at_every_step_second_half() {
    two_requests(1, 1);
}

#[test]
fn two_requests_on_links_and_holes_crashed_at_every_step_first_half() {
    two_requests(2, 0);
}

#[test]
fn two_requests_on_links_and_holes_crashed_at_every_step_second_half() {
    two_requests(2, 1);
}

/// Workloads of three requests, each of which changes something.
fn three_requests(share: u64) {
    let (wanted, seed) = (knob("CRASH_WORKLOADS", DRAWN) / SHARES, knob("CRASH_SEED", 1));
    let bases = bases();
    let cases = drawn(&bases, seed * SHARES + share).take(wanted as usize);
    let counts = survey(&bases, cases, AGAIN);
    assert_eq!(counts.workloads, wanted);
}

#[test]
fn three_requests_crashed_at_every_step_share_1_of_8() {
    three_requests(0);
}

#[test]
fn three_requests_crashed_at_every_step_share_2_of_8() {
    three_requests(1);
}

#[test]
fn three_requests_crashed_at_every_step_share_3_of_8() {
    three_requests(2);
}

#[test]
fn three_requests_crashed_at_every_step_share_4_of_8() {
    three_requests(3);
}

#[test]
fn three_requests_crashed_at_every_step_share_5_of_8() {
    three_requests(4);
}

#[test]
fn three_requests_crashed_at_every_step_share_6_of_8() {
    three_requests(5);
}

#[test]
fn three_requests_crashed_at_every_step_share_7_of_8() {
    three_requests(6);
}

#[test]
fn three_requests_crashed_at_every_step_share_8_of_8() {
    three_requests(7);
}

/// The workload that a failure named, or one of its kind.
#[test]
fn one_workload() {
    let named = std::env::var("CRASH_ONLY").unwrap_or_else(|_| "2.34.37.23/5".into());
    let case = Case::named(&named).unwrap_or_else(|| panic!("CRASH_ONLY={named}: no workload"));
    survey(&bases(), std::iter::once(case), 1);
}

/// Each wrong redo shows in some workload of two requests.
#[test]
fn a_wrong_redo_is_noticed() {
    let bases = bases();
    for wrong in Wrong::ALL {
        let noticed = drawn(&bases, 5).take(300).any(|case| {
            let story = case.tell(&bases, None, None).expect("told").expect("drawn to be told");
            story.replay_everything(Some(wrong)).is_err()
        });
        assert!(noticed, "{wrong:?} is not noticed");
    }
}

/// Each disk that does not keep what it promised is noticed, and so are nodes that break a rule.
#[test]
fn a_lying_disk_and_a_broken_rule_are_noticed() {
    let bases = bases();
    let lies = [Lie::LogSync, Lie::DataSync, Lie::Commit].map(|lie| (Some(lie), None));
    let rules = [(None, Some(Planted::ReplyBeforeCommit)), (None, Some(Planted::NoClientTable))];
    for (lie, planted) in lies.into_iter().chain(rules) {
        let noticed = drawn(&bases, 6).take(100).any(|case| {
            let told = || {
                let story = case.tell(&bases, lie, planted)?.expect("drawn to be told");
                story.crash_everywhere(&mut case.rng(), AGAIN)
            };
            // The nodes notice some of it themselves, by an assert.
            catch_unwind(AssertUnwindSafe(told)).map_or(true, |outcome| outcome.is_err())
        });
        assert!(noticed, "{lie:?} {planted:?} is not noticed");
    }
}
