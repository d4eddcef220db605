//! The simulator: whole groups of real nodes in a world made from one seed.
//! Owns: virtual time, networks, disks, clocks, clients, faults, and the properties that must hold.
//! Never: reads a wall clock, opens a socket or a file, starts a thread in a world.
//! Invariant: one seed, one world: the same wish always gives the same run.
//! Source: the project's testing design; docs/testing.md tells how to use it.

pub mod client;
pub mod clock;
pub mod connections;
pub mod copies;
pub mod disk;
pub mod glue;
pub mod hash;
pub mod host;
pub mod intent;
pub mod model;
pub mod names;
pub mod nemesis;
pub mod network;
pub mod observer;
pub mod power;
pub mod profile;
pub mod properties;
pub mod queue;
pub mod rng;
pub mod run;
pub mod script;
pub mod turns;
pub mod world;

pub use profile::Wish;
pub use properties::Violation;
pub use run::{Report, run};
