//! Worlds by seed, as many as a normal test run bears; the long runs use the binary.
//! A failure names the seed: `harp-sim --seed S --ops N --n 1|2 --trace` shows the same world.

use harp_sim::{Report, Wish, run};

fn world(seed: u64, n: u8, ops: u64) -> Report {
    run(Wish::new(seed, n, ops), false).unwrap_or_else(|violation| {
        panic!("{violation}\nreplay: cargo run --release -p harp-sim -- --seed {seed} --ops {ops} --n {n} --trace")
    })
}

fn worlds(seeds: std::ops::Range<u64>, n: u8, ops: u64) {
    let (mut committed, mut faults) = (0, 0);
    for seed in seeds {
        let report = world(seed, n, ops);
        committed += report.committed;
        faults += report.faults;
    }
    assert!(committed > 0 && faults > 0, "worlds in which something happens");
}

#[test]
fn two_copies_and_a_witness_keep_all_properties_early_seeds() {
    worlds(0..30, 1, 2000);
}

#[test]
fn two_copies_and_a_witness_keep_all_properties_late_seeds() {
    worlds(1_000_000..1_000_030, 1, 2000);
}

#[test]
fn three_copies_and_two_witnesses_keep_all_properties_early_seeds() {
    worlds(0..20, 2, 2000);
}

#[test]
fn three_copies_and_two_witnesses_keep_all_properties_late_seeds() {
    worlds(1_000_000..1_000_020, 2, 2000);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for (seed, n) in [(3, 1), (4, 1), (5, 2)] {
        let (once, again) = (world(seed, n, 1500), world(seed, n, 1500));
        assert_eq!(once, again, "seed {seed}");
    }
    assert_ne!(world(3, 1, 1500).trace, world(4, 1, 1500).trace);
}
