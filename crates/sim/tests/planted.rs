//! The checkers see: each rule broken on purpose is found within a bounded number of seeds, in worlds that
//! are sound without it. A planted bug may show as a violation or as an assert in the node.

use std::panic::catch_unwind;

use harp_node::vr::Planted;
use harp_sim::{Wish, run};

/// Worlds tried for each planted bug.
const SEEDS: u64 = 150;
const OPS: u64 = 1500;

fn fails(wish: Wish) -> bool {
    catch_unwind(|| run(wish, false)).map_or(true, |outcome| outcome.is_err())
}

fn found(planted: Planted) -> bool {
    (0..SEEDS).any(|seed| {
        let sound = Wish::new(seed, 1, OPS);
        fails(Wish { planted: Some(planted), ..sound }) && !fails(sound)
    })
}

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<&str> =
        Planted::ALL.iter().filter(|(bug, _)| !found(*bug)).map(|(_, name)| *name).collect();
    assert!(missed.is_empty(), "not found in {SEEDS} seeds: {missed:?}");
}
