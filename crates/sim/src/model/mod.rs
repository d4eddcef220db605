//! An independent model of the file system: what every reply must say, at every op.
//! Owns: the objects, each with its past values, and the judgement of replies.
//! Never: knows the log, records, checkpoints or the server's code; it learns only handles, file
//! numbers and times, and then holds the server to them.
//! Invariant: values change only by [`Model::apply`], in op order.

mod tree;
mod verdict;
mod versions;

pub use tree::{Attr, Effect, Ino, Kind, Model, Plan, ROOT, STALE};
pub use verdict::{Answer, Content, Mismatch, status_of};
pub use versions::Versions;
