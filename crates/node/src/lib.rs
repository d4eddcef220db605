//! One server's logic, without I/O: protocol, log, shadow, client table, serving.
//! Owns: the path of an operation from a call's bytes to its reply's.
//! Never: opens a file or socket, reads a clock, starts a thread; the program and the simulator do.

mod api;
mod apply;
mod boot;
pub mod clients;
mod export;
mod gather;
mod halt;
mod jobs;
mod node;
mod offline;
pub mod part;
mod peers;
mod rebuild;
pub mod record;
mod repair;
mod serve;
mod space;
mod users;
mod write_out;

pub use api::*;
pub use boot::{BootError, first_view};
pub use export::{Export, GroupSource, Network, NetworkError, Squash};
pub use halt::{Suspect, Suspects};
pub use jobs::{ImageState, StoreDone, StoreJob, format_image, image_state};
pub use node::Node;
pub use offline::{Offline, RedoError};
pub use record::change_in;
pub use repair::BlockName;
pub use space::{blocks_ahead, image_room};
pub use users::LookedUp;

// The types that a world needs, so that it depends on this crate alone.
pub use {harp_fs as fs, harp_log as log, harp_store as store, harp_vr as vr, harp_wire as wire};
