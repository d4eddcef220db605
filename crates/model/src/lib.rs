//! Every behaviour of a small group: the replicas of `harp-vr` under a model checker.
//! Owns: a disk, a log, a network and a passing of time for each replica, small enough to be explored to the end;
//! the properties that must hold in every state.
//! Never: a second statement of the protocol: what servers do is what [`harp_vr::Replica`] does.
//! Source: docs/notes/model.md; docs/protocol.md, "Rules".

mod bounds;
mod chooser;
mod disk;
mod properties;
mod report;
mod restart;
mod server;
mod tables;
mod world;

pub use bounds::{Answers, Bounds, Durability, Leases, Writes};
pub use properties::Broken;
pub use report::{Limits, Outcome, Search, explore};
pub use world::{Group, State, Step};
