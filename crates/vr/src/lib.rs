//! Harp's replication protocol: a pure state machine.
//! Owns: views, promises, the commit point, leases, catching up and trimming (rules 1 to 12).
//! Never: does I/O, reads a clock, draws a random number, starts a thread, looks into a payload.

mod action;
pub mod codec;
mod coordinator;
mod durable;
mod explore;
mod halt;
mod member;
mod message;
mod outside;
mod overriding;
mod planted;
mod primary;
mod rebuild;
mod repair;
mod replica;
mod room;
pub mod types;

pub use action::{Action, ConfigurationChange, Records};
pub use codec::CodecError;
pub use coordinator::Refusal;
pub use durable::Durable;
pub use explore::Waited;
pub use message::*;
pub use overriding::{Consent, OPERATOR_BYTES, Order, Override, OverrideAnswer, Plan};
pub use planted::Planted;
pub use rebuild::PART_TIMEOUTS;
pub use replica::{LogFacts, Replica, Settings, Start};
pub use room::Room;
pub use types::*;
