//! What the tests of the protocol share.

use harp_vr::{Configuration, Durable, Incarnation, Op, ServerId, Settings, Shape, View};

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

/// The view file of a server that took part in `formed`, whose members were the copies.
pub fn durable(
    shape: Shape,
    incarnation: Incarnation,
    formed: View,
    configuration: Configuration,
) -> Durable {
    Durable {
        group: [1; 16],
        incarnation,
        promised: formed,
        formed,
        members: shape.copies().collect(),
        log_void: false,
        configuration,
        settled: Op::ZERO,
        memory: 0,
        branch: View::NONE,
        learned: View::NONE,
    }
}
