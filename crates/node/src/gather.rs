//! Gather: when the open batch of records goes to the disk.
//! Owns: how long writes take lately, how many calls are usually open, the one deadline.
//! Never: lets a lone call wait: what cannot grow is sealed at once.
//! Invariant: a batch waits at most one and a half times what a write takes.
//!
//! Clients that wait for their replies send no new calls. If the next write starts the moment the last
//! one ended, it carries half of what is open; the other half's replies are just leaving. On a disk
//! whose writes take longer than clients need to come back, a short wait doubles what each write
//! carries.

use harp_vr::Nanos;

/// Writes faster than this (nanoseconds) are not worth waiting for.
const SLOW_WRITE: u64 = 300_000;

/// A batch of this size is worth a write of its own: its copies and checksums cost more than the write.
const LARGE_BATCH_BYTES: u64 = 16 << 10;

/// When to write.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// A running mean of how long a write takes.
    write_nanos: u64,
    /// Modifications open at once lately: rises at once, falls slowly.
    peak: u64,
    /// When the last write ended.
    idle_since: Nanos,
    /// When everything but the open batch was committed, its replies on their way.
    settled_since: Option<Nanos>,
}

impl Gather {
    /// A write that began at `since` ended.
    pub fn on_written(&mut self, now: Nanos, since: Nanos) {
        let took = now.since(since);
        self.write_nanos = (7 * self.write_nanos + took) / 8;
        self.idle_since = now;
        self.settled_since = None;
        self.peak -= self.peak / 16;
    }

    /// `open` modifications are not committed yet, `gathered` of them, of `bytes` bytes, are in the open batch,
    /// and no write is under way. Returns until when the batch should wait for more; `None`: seal it.
    pub fn wait_until(
        &mut self,
        now: Nanos,
        open: u64,
        gathered: u64,
        bytes: u64,
    ) -> Option<Nanos> {
        self.peak = self.peak.max(open);
        let until = if open > gathered {
            // The other members' disks are still at the last batch; its clients wait.
            self.idle_since.plus(self.write_nanos)
        } else {
            self.settled_since.get_or_insert(now).plus(self.write_nanos / 2)
        };
        let worth = self.write_nanos > SLOW_WRITE
            && 8 * gathered < 7 * self.peak
            && bytes < LARGE_BATCH_BYTES;
        (worth && now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow() -> Gather {
        let mut gather = Gather::default();
        (0..100).for_each(|k| {
            gather.on_written(Nanos(k * 2_000_000 + 1_000_000), Nanos(k * 2_000_000))
        });
        gather
    }

    #[test]
    fn a_lone_call_never_waits() {
        let mut gather = slow();
        assert_eq!(gather.wait_until(gather.idle_since, 1, 1, 200), None);
    }

    #[test]
    fn half_of_many_waits_for_the_other_half_but_not_for_long() {
        let mut gather = slow();
        let now = gather.idle_since;
        let until = gather.wait_until(now, 64, 30, 9_000).expect("waits for the other members");
        assert!(until.since(now) <= 1_000_000);
        let until = gather.wait_until(now, 30, 30, 9_000).expect("waits for the clients");
        assert!(until.since(now) <= 500_000);
        assert_eq!(gather.wait_until(now, 60, 60, 9_000), None);
        assert_eq!(gather.wait_until(until, 30, 30, 9_000), None);
        assert_eq!(gather.wait_until(now, 64, 30, 100_000), None, "a large one never waits");
    }

    #[test]
    fn fast_disks_are_not_waited_for() {
        let mut gather = Gather::default();
        (0..100).for_each(|k| gather.on_written(Nanos(k * 200_000 + 100_000), Nanos(k * 200_000)));
        assert_eq!(gather.wait_until(gather.idle_since, 64, 30, 9_000), None);
    }
}
