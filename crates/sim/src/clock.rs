//! One server's clocks over the world's true time.
//! Owns: the steady clock's rate and offset, the wall clock's jumps.
//! Never: lets the steady clock go back, whatever its rate becomes.
//! Invariant: while rates stay within half the bound of true time, two servers' clocks differ in
//! rate by at most the bound.

use harp_node::Now;
use harp_node::vr::Nanos;

/// Where wall clocks start: some moment in 2025.
const WALL_START: u64 = 1_750_000_000_000_000_000;

/// A server's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    /// True time of the last change of rate.
    since: u64,
    /// What the steady clock showed then.
    steady: u64,
    /// Rate against true time, in parts per million.
    ppm: i64,
    /// What was added to the wall clock by jumps.
    wall_shift: i64,
}

impl Clock {
    /// A clock that shows `offset` at true time 0.
    pub fn new(offset: u64, ppm: i64) -> Clock {
        Clock { since: 0, steady: offset, ppm, wall_shift: 0 }
    }

    /// What both clocks show at true time `at`.
    pub fn read(&self, at: u64) -> Now {
        let wall = (WALL_START + at).saturating_add_signed(self.wall_shift);
        Now { steady: Nanos(self.steady_at(at)), wall }
    }

    fn steady_at(&self, at: u64) -> u64 {
        let passed = (at - self.since) as i128;
        (self.steady as i128 + passed + passed * self.ppm as i128 / 1_000_000) as u64
    }

    /// The first true time, at or after `from`, at which the steady clock shows at least `steady`.
    pub fn when(&self, steady: Nanos, from: u64) -> u64 {
        if steady.0 <= self.steady_at(from) {
            return from;
        }
        let left = (steady.0 - self.steady) as i128;
        let guess = left * 1_000_000 / (1_000_000 + self.ppm as i128);
        let mut at = self.since.saturating_add(u64::try_from(guess).unwrap_or(u64::MAX / 4));
        while self.steady_at(at) < steady.0 {
            at += 1;
        }
        at.max(from)
    }

    /// From true time `at` on, the steady clock runs at this rate.
    pub fn set_rate(&mut self, at: u64, ppm: i64) {
        self.steady = self.steady_at(at);
        self.since = at;
        self.ppm = ppm;
    }

    /// The wall clock jumps by `nanos`, forth or back.
    pub fn jump(&mut self, nanos: i64) {
        self.wall_shift += nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_is_never_early_and_never_a_nanosecond_late() {
        for ppm in [-40_000, -1, 0, 1, 333, 40_000] {
            let mut clock = Clock::new(5_000_000, ppm);
            clock.set_rate(1_000, ppm);
            for ahead in [0, 1, 17, 1_000, 999_999, 123_456_789] {
                let wanted = Nanos(clock.read(2_000).steady.0 + ahead);
                let at = clock.when(wanted, 2_000);
                assert!(clock.read(at).steady >= wanted);
                assert!(at == 2_000 || clock.read(at - 1).steady < wanted);
            }
        }
    }

    #[test]
    fn a_change_of_rate_does_not_move_the_clock() {
        let mut clock = Clock::new(10, 500);
        let before = clock.read(1_000_000);
        clock.set_rate(1_000_000, -500);
        assert_eq!(clock.read(1_000_000).steady, before.steady);
        clock.jump(-7);
        assert_eq!(clock.read(1_000_000).wall, before.wall - 7);
    }
}
