//! Walks at random through a group of five servers.
//! Owns: the seeds and lengths that fit into a test run.

use harp_model::{Answers, Bounds, Durability, Limits, Search, Writes, explore};

/// All that the group of three is explored for, and checkpoints; nothing waits for anything else.
fn walks(durability: Durability, seed: u64) {
    let none = Bounds::none(2, durability);
    let faults = Bounds { crashes: 2, media_losses: 1, checkpoints: 2, ..none };
    let bounds =
        Bounds { ops: 2, views: 3, writes: Writes::Apart, answers: Answers::Late, ..faults };
    let limits = Limits { threads: 1, time: None, transitions: None };
    let outcome = explore(bounds, Search::Walks { seed, steps: 40_000 }, limits);
    if let Some((property, trace)) = outcome.violation {
        panic!("{property}, seed {seed}, within {bounds:?}:\n{}", trace.join("\n"));
    }
    assert_eq!(outcome.missed, [] as [&str; 0], "the walks were too short to show anything");
}

#[test]
fn five_servers_in_disk_durability() {
    walks(Durability::Disk, 1);
}

#[test]
fn five_servers_in_ups_durability() {
    walks(Durability::Ups, 2);
}
