//! What the tests of the protocol share.

use harp_vr::{ServerId, Settings, Shape};

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// Settings of a server that waits in tens of milliseconds.
pub fn settings(shape: Shape, me: ServerId) -> Settings {
    Settings {
        shape,
        me,
        heartbeat: 10 * MS,
        failure_timeout: 100 * MS,
        lease: 60 * MS,
        clock_drift_ppm: 200,
        ack_received: false,
        planted: None,
    }
}
