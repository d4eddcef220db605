//! The two clocks that a server reads.
//! Owns: which clocks those are.
//! Never: sleeps.
//! Invariant: the steady clock counts on while the machine is suspended, as leases demand (rule 7).

use harp_node::Now;
use harp_node::vr::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds in a millisecond.
pub const NANOS_PER_MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const NANOS_PER_S: u64 = 1_000_000_000;

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// The steady clock: runs during suspend, never goes back.
pub fn steady() -> Nanos {
    Nanos(nanos(ClockId::Boottime))
}

/// Both clocks, as a node wants them.
pub fn now() -> Now {
    Now { steady: steady(), wall: nanos(ClockId::Realtime) }
}
