//! Load generators, the recording client, and their reports.
//! Owns: `harp bench`: an NFSv3 client that survives failovers, and what it measures and proves.
//! Never: looks into a server; all it knows came over the wire.
//! Invariant: a call is answered once or reported as unanswered, whatever the connection suffers.
//! Source: RFC 1813 and the behaviour of the Linux client.

use std::fmt;
use std::io;

use harp_wire::request::Status;

pub mod checker;
pub mod client;
pub mod codec;
mod command;
pub mod expected;
pub mod journal;
pub mod latency;
pub mod load;
pub mod operation;
pub mod pipe;
pub mod recorder;
pub mod script;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod toy;

pub use command::{USAGE, run};
/// What calls and replies are made of, for those who use the client.
pub use harp_wire::request;

/// Why a benchmark did not come to its end, or ended badly.
#[derive(Debug)]
pub enum BenchError {
    /// The command line makes no sense; the text says why.
    Usage(String),
    /// The client gave up.
    Client(client::ClientError),
    /// The server refused what the benchmark needs.
    Status {
        /// What was being done.
        doing: &'static str,
        /// The server's answer.
        status: Status,
    },
    /// A local file or the output failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// The journal cannot be understood.
    Journal(journal::JournalError),
    /// The recording ended early: the client gave up.
    GaveUp(String),
    /// Calls of a load failed; they have been counted phase by phase.
    LoadErrors(u64),
    /// What must not be was seen; it has been reported.
    Violations(u64),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Usage(text) => write!(f, "{text}"),
            BenchError::Client(error) => error.fmt(f),
            BenchError::Status { doing, status } => write!(f, "{doing}: {status:?}"),
            BenchError::Io { doing, error } => write!(f, "{doing}: {error}"),
            BenchError::Journal(error) => error.fmt(f),
            BenchError::GaveUp(why) => write!(f, "the recording ended early: {why}"),
            BenchError::LoadErrors(count) => write!(f, "{count} calls failed"),
            BenchError::Violations(count) => write!(f, "{count} violations"),
        }
    }
}

impl std::error::Error for BenchError {}

impl From<client::ClientError> for BenchError {
    fn from(error: client::ClientError) -> BenchError {
        BenchError::Client(error)
    }
}
