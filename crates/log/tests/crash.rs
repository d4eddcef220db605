//! Crashes at random points: what was durable is found again, and nothing else appears.

mod common;

use common::{Rng, Server, settings};

/// One random life of a log on small segments, with trimming, swaps and power cuts.
fn world(seed: u64, steps: u32) -> [u64; 3] {
    let mut rng = Rng(seed);
    let segments = 6 + rng.below(6);
    let mut server = Server::new(settings(32 << 10, segments), (32 << 10) << rng.below(3));
    let (mut restarts, mut view, mut full, mut swaps) = (0, 1, 0, 0);
    for _ in 0..steps {
        match rng.below(100) {
            0..45 => {
                let long = if rng.one_in(20) { 30_000 } else { 700 };
                let body = vec![rng.next() as u8; rng.below(long) as usize];
                full += server.append(view, &body).is_none() as u64;
            }
            45..60 => drop(server.seal()),
            60..79 => drop(server.run_one()),
            79 => drop(server.persist()),
            80..85 => drop(server.seal_mark()),
            85..90 => {
                let log = server.log.growing();
                let op = log.begin() + rng.below(log.end() + 2 - log.begin());
                server.pin(op.min(log.end()).max(server.pin));
            }
            90..93 => {
                let log = server.log.current();
                server.trimmed = server.trimmed.max(log.begin().max(log.durable()) - 1);
                server.log.trim(server.trimmed);
            }
            93 => {
                let begin = server.log.current().end() + 1;
                server.stage(begin, rng.one_in(2));
            }
            94 => server.drop_staged(),
            95 => {
                if server.log.staged().is_some() && !server.log.swapping() {
                    view += 1;
                    swaps += server.swap(view) as u64;
                }
            }
            96 => {
                if !server.log.swapping() {
                    view += 1;
                    server.tag(view);
                }
            }
            97 => server.run_all(),
            98 => server.check_body(false),
            _ => {
                let recovered =
                    if rng.one_in(4) { server.restart() } else { server.power_cut(&mut rng) };
                server.go_on(recovered);
                restarts += 1;
            }
        }
        server.check_pin();
    }
    server.settle();
    server.check_body(false);
    server.check_body(true);
    assert!(full < steps as u64);
    [restarts, server.cuts, swaps]
}

#[test]
fn log_power_cut_anywhere_keeps_what_was_durable() {
    let mut counts = [0; 3];
    for seed in 0..300 {
        let more = std::panic::catch_unwind(|| world(seed, 4000))
            .unwrap_or_else(|_| panic!("replay: world({seed}, 4000)"));
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
    }
    let [restarts, cuts, swaps] = counts;
    assert!(
        restarts > 5000 && cuts > 1000 && swaps > 1000,
        "the worlds were too quiet: {counts:?}"
    );
}
