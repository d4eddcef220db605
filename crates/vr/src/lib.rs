//! Harp's replication protocol: a pure state machine.
//! Owns: views, promises, the commit point, leases, catching up and trimming (rules 1 to 12).
//! Never: does I/O, reads a clock, draws a random number, starts a thread, looks into a payload.

pub mod types;

pub use types::*;
