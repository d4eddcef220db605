//! Random streams: one per subsystem, all from the world's one seed.
//! Owns: the generator (xoshiro256++, seeded through splitmix64) and the draws made from it.
//! Never: reads anything but its own state.
//! Invariant: what one subsystem draws never shifts what another one gets.
//! Source: Blackman and Vigna, "Scrambled linear pseudorandom number generators".

/// One step of splitmix64: a cheap, well-mixed function of a counter.
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream `stream` of the world `seed`.
    pub fn new(seed: u64, stream: Stream) -> Rng {
        let mut counter = mix(seed) ^ mix(0x5eed_0000 + stream as u64);
        let mut state = [0; 4];
        for word in &mut state {
            counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mix(counter);
        }
        Rng { state }
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        let [s0, s1, s2, s3] = self.state;
        let result = s0.wrapping_add(s3).rotate_left(23).wrapping_add(s0);
        let (s2, s3) = (s2 ^ s0, s3 ^ s1);
        self.state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17), s3.rotate_left(45)];
        result
    }

    /// A number below `end`, which is above zero.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "a draw from nothing");
        ((self.draw() as u128 * end as u128) >> 64) as u64
    }

    /// A number in `[low, high]`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1,000 draws.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1000) < per_mille as u64
    }

    /// A waiting time with this mean: mostly short, now and then long, at most eight times the mean.
    pub fn wait(&mut self, mean: u64) -> u64 {
        let mut left = mean;
        let mut waited = self.below(mean.max(1) * 2);
        while waited < mean * 7 && self.below(8) == 0 {
            left += mean;
            waited += self.below(left.max(1));
        }
        waited.min(mean * 8)
    }

    /// One of `items`, which is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// The subsystems that draw, each from its own stream.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Stream {
    /// The world's parameters.
    Profile,
    /// Delays, losses and duplicates.
    Network,
    /// Times and damages of disks.
    Disk,
    /// What fails when.
    Nemesis,
    /// What clients ask.
    Workload,
    /// Client connections: delays and resets.
    Connections,
    /// Clock rates and offsets.
    Clocks,
    /// Identities of disks.
    Identity,
    /// How long a server's turn takes.
    Turns,
    /// What user databases say, and when.
    Users,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            [rng.draw(), rng.draw(), rng.draw()]
        };
        assert_eq!(draw(1, Stream::Disk), draw(1, Stream::Disk));
        assert_ne!(draw(1, Stream::Disk), draw(1, Stream::Network));
        assert_ne!(draw(1, Stream::Disk), draw(2, Stream::Disk));
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let mut rng = Rng::new(7, Stream::Profile);
        let mut seen = [0u32; 5];
        for _ in 0..1000 {
            seen[(rng.between(3, 7) - 3) as usize] += 1;
            assert!(rng.wait(100) <= 800);
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
        assert!(!rng.chance(0) && rng.chance(1000));
    }
}
