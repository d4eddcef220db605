//! Overrides after random faults: the group loses more than it can bear, an operator orders what can be ordered, and
//! whoever was named comes back. What the override kept is there, what it gave up never happened, everything else
//! holds as ever.

use harp_node::vr::{Consent, OverrideAnswer, ServerId, ServerSet};
use harp_sim::Wish;
use harp_sim::power::LogLoss;
use harp_sim::profile::{MILLI, Profile, SECOND};
use harp_sim::properties::Violation;
use harp_sim::rng::{Rng, Stream};
use harp_sim::run::peace;
use harp_sim::world::World;

const OPS: u64 = 800;
/// An operator tries so often.
const TRIES: u32 = 6;

/// What became of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It went on by itself.
    NotNeeded,
    /// It went on after an override.
    Overridden,
    /// Nobody could help it.
    Dead,
}

struct Disaster {
    world: World,
    rng: Rng,
    absent: ServerSet,
}

impl Disaster {
    fn servers(&self) -> Vec<ServerId> {
        self.world.profile.shape.servers().collect()
    }

    fn pass(&mut self, nanos: u64) -> Result<(), Violation> {
        let limit = self.world.now + nanos;
        self.world.run_until(limit, |_| false).map(|_| ())
    }

    /// All lose power at once; some logs, some disks, and some servers for good.
    fn strike(&mut self) {
        let quorum = self.world.profile.shape.quorum();
        for server in self.servers() {
            self.world.kill(server, true);
            let fate = self.rng.below(10);
            let left = self.servers().len() - self.absent.len();
            match fate {
                0..=2 if left > quorum => {
                    self.absent.insert(server);
                    self.world.hosts[server.index()].stays_down = true;
                }
                3..=5 => {
                    self.world.lose_log(server, LogLoss::SegmentsGone);
                }
                6 => self.world.empty(server),
                _ => {}
            }
        }
        for server in self.servers() {
            if !self.absent.contains(server) {
                self.world.restart(server);
            }
        }
    }

    fn order(
        &mut self,
        server: ServerId,
        consent: Option<Consent>,
    ) -> Result<Option<OverrideAnswer>, Violation> {
        let order = self.world.order(server, self.absent, consent);
        if consent.is_some() && self.rng.chance(300) {
            // The operator asks once more, instead of waiting.
            let time = self.rng.below(5 * MILLI);
            self.pass(time)?;
            self.world.order(server, self.absent, None);
        }
        if consent.is_some() && self.rng.chance(300) {
            // The coordinator dies somewhere on the way.
            let time = self.rng.below(20 * MILLI);
            self.pass(time)?;
            self.world.kill(server, self.rng.chance(500));
            self.pass(MILLI)?;
            self.world.restart(server);
            return Ok(None);
        }
        let limit = self.world.now + 5 * SECOND;
        self.world.run_until(limit, |world| world.answers.contains_key(&order))?;
        Ok(self.world.answers.get(&order).cloned())
    }

    /// Asks every copy in turn, as the command does. Whether an order was carried out, or none is needed.
    fn override_once(&mut self) -> Result<bool, Violation> {
        let copies: Vec<ServerId> = self.world.profile.shape.copies().collect();
        let absent = self.absent;
        for copy in copies.into_iter().filter(|copy| !absent.contains(*copy)) {
            match self.order(copy, None)? {
                Some(OverrideAnswer::Would(plan)) => {
                    let answer = self.order(copy, Some(plan.kept))?;
                    return Ok(matches!(answer, Some(OverrideAnswer::Done { .. })));
                }
                Some(OverrideAnswer::NotNeeded { .. }) => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }

    fn serves(&self) -> bool {
        self.world.serving().is_some()
    }

    /// The operator's part. Whether the group serves in the end.
    fn rescue(&mut self) -> Result<bool, Violation> {
        for _ in 0..TRIES {
            let patience = 2 * SECOND;
            let limit = self.world.now + patience;
            if self.world.run_until(limit, |world| world.serving().is_some())? {
                return Ok(true);
            }
            self.override_once()?;
        }
        Ok(self.serves())
    }

    fn return_all(&mut self) {
        for server in self.absent.iter() {
            self.world.restart(server);
        }
        self.absent = ServerSet::EMPTY;
    }
}

fn live(seed: u64, n: u8) -> Result<End, Violation> {
    let mut world = World::new(Profile::draw(Wish::new(seed, n, OPS)));
    world.observer.keeps_past = true;
    world.tracing = std::env::var("HARP_OVERRIDE_TRACE").is_ok();
    world.run_until(20 * SECOND, |world| world.requests_left <= OPS / 2)?;
    world.calm_down();
    let rng = Rng::new(seed, Stream::Nemesis);
    let mut disaster = Disaster { world, rng, absent: ServerSet::EMPTY };
    let calm = disaster.rng.below(400 * MILLI);
    disaster.pass(calm)?;
    disaster.strike();
    let mut serves = disaster.rescue()?;
    disaster.return_all();
    if !serves {
        // Perhaps with those who were away.
        serves = disaster.rescue()?;
    }
    if !serves {
        return Ok(End::Dead);
    }
    peace(&mut disaster.world)?;
    let overrides = disaster.world.observer.overrides.len();
    Ok(if overrides > 0 { End::Overridden } else { End::NotNeeded })
}

fn all(n: u8, seeds: std::ops::Range<u64>, least: usize) {
    let count = seeds.end - seeds.start;
    let ends: Vec<End> = seeds
        .filter(|seed| only().is_none_or(|only| only == *seed))
        .map(|seed| match live(seed, n) {
            Ok(end) => end,
            Err(violation) => panic!("world {seed}, n = {n}: {violation}"),
        })
        .collect();
    let overridden = ends.iter().filter(|end| **end == End::Overridden).count();
    let dead = ends.iter().filter(|end| **end == End::Dead).count();
    assert!(
        overridden >= least,
        "only {overridden} of {count} worlds saw an override, {dead} died"
    );
}

/// Worlds 0..40 of three servers.
#[test]
fn worlds_of_three_servers_go_on_after_an_override() {
    all(1, 0..range(40), 5);
}

/// Worlds 0..30 of five servers.
#[test]
fn worlds_of_five_servers_go_on_after_an_override() {
    all(2, 0..range(30), 3);
}

/// `HARP_OVERRIDE_WORLD` asks for one only; with `HARP_OVERRIDE_TRACE` its events are printed.
fn only() -> Option<u64> {
    std::env::var("HARP_OVERRIDE_WORLD").ok().and_then(|text| text.parse().ok())
}

/// `HARP_OVERRIDE_WORLDS` asks for more.
fn range(seeds: u64) -> u64 {
    let wanted = std::env::var("HARP_OVERRIDE_WORLDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(seeds)
}
