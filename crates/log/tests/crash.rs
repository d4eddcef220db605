//! Crashes at random points: what was durable is found again, and nothing else appears.

mod common;

use common::{Rng, Server, settings};

/// One random life of a log on small segments, with trimming, swaps and power cuts.
fn world(seed: u64, steps: u32) -> (u64, u64) {
    let mut rng = Rng(seed);
    let segments = 6 + rng.below(6);
    let mut server = Server::new(settings(32 << 10, segments), 128 << 10);
    let (mut restarts, mut view, mut full) = (0, 1, 0);
    for _ in 0..steps {
        match rng.below(100) {
            0..45 => {
                let long = if rng.one_in(20) { 20_000 } else { 700 };
                let body = vec![rng.next() as u8; rng.below(long) as usize];
                full += server.append(view, &body).is_none() as u64;
            }
            45..60 => drop(server.seal()),
            60..80 => drop(server.run_one()),
            80..85 => drop(server.seal_mark()),
            85..90 => {
                let log = server.log.growing();
                let op = log.begin() + rng.below(log.end() + 2 - log.begin());
                server.log.pin(op.min(server.log.growing().end()));
            }
            90..93 => {
                let log = server.log.current();
                server.trimmed = server.trimmed.max(log.begin().max(log.durable()) - 1);
                server.log.trim(server.trimmed);
            }
            93 => {
                let begin = server.log.current().end() + 1;
                server.log.stage(begin, None, rng.one_in(2), view);
            }
            94 => drop(server.log.drop_staged()),
            95 => {
                let roomy = server.log.staged().is_some_and(|staged| staged.on_disk());
                if roomy && !server.log.swapping() {
                    view += 1;
                    server.swap(view);
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
    }
    server.settle();
    server.check_body(false);
    server.check_body(true);
    assert!(full < steps as u64);
    (restarts, server.cuts)
}

#[test]
fn log_power_cut_anywhere_keeps_what_was_durable() {
    let (mut restarts, mut cuts) = (0, 0);
    for seed in 0..400 {
        let (more_restarts, more_cuts) = std::panic::catch_unwind(|| world(seed, 1500))
            .unwrap_or_else(|_| panic!("replay: world({seed}, 1500)"));
        restarts += more_restarts;
        cuts += more_cuts;
    }
    assert!(restarts > 1000 && cuts > 100, "{restarts} restarts, {cuts} torn tails");
}
