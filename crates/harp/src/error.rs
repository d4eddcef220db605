//! Faults of the program: what went wrong outside, told in one line.
//! Owns: the crate's error type and the exit code that each kind means.
//! Never: describes an outcome of a file operation; those travel in replies.
//! Invariant: `Display` is one line, fit for an operator's eyes.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use harp_node::log::DiskError;

/// Exit code of a server that had to stop because its disk failed it.
pub const EXIT_FATAL: u8 = 70;
/// Exit code of a server whose disk lost what it promised.
pub const EXIT_MEDIA_LOSS: u8 = 71;
/// Exit code of a server, or of a local group, that wrote its log out and ended since the battery is low. It should
/// not start again before the mains are back.
pub const EXIT_POWER_LOW: u8 = 72;
/// Exit code for everything else that goes wrong.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code for a command line that makes no sense.
pub const EXIT_USAGE: u8 = 2;

/// Why a command or a server could not go on.
#[derive(Debug)]
pub enum HarpError {
    /// The command line is wrong.
    Usage {
        /// What is wrong with it.
        why: String,
    },
    /// Asked for something that this version does not do.
    NotBuilt {
        /// What was asked for.
        what: &'static str,
        /// Why it is refused rather than ignored, or what to do instead.
        why: &'static str,
    },
    /// The operating system refused something.
    Io {
        /// What was tried, with the file's or address's name.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// The configuration file is wrong.
    Config {
        /// Which file.
        file: PathBuf,
        /// The line, from 1; 0 if the fault is in no one line.
        line: usize,
        /// The key, as `section.key`.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else holds the lock.
    Locked {
        /// What is locked.
        what: PathBuf,
    },
    /// A server's directory lost what it promised (rule 4).
    MediaLoss {
        /// The directory.
        dir: PathBuf,
        /// What is missing or damaged.
        why: String,
    },
    /// The group cannot do as asked.
    Refused {
        /// Why.
        why: String,
    },
    /// The battery is low, and the log is written out.
    PowerLow,
    /// The disk failed (rule 8).
    Fatal {
        /// What failed.
        why: String,
    },
}

impl HarpError {
    /// An [`HarpError::Io`] saying what was tried.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> HarpError {
        HarpError::Io { what: what.into(), source: source.into() }
    }

    /// An [`HarpError::Io`] about a file.
    pub fn file(what: &str, path: &Path, source: impl Into<std::io::Error>) -> HarpError {
        HarpError::io(format!("{what} {}", path.display()), source)
    }

    /// Why an address cannot be listened on, and what to do; `key` is where it was set.
    pub fn listen(whom: &str, address: SocketAddr, key: &str, source: std::io::Error) -> HarpError {
        let port = address.port();
        let what = match source.kind() {
            ErrorKind::AddrInUse => format!(
                "listen for {whom} on {address}: another program has that port (ss -ltnp 'sport = :{port}' names \
                 it): stop it, or set {key} to another one"
            ),
            ErrorKind::AddrNotAvailable => format!(
                "listen for {whom} on {address}: this machine has no such address: give it that one, or set {key} \
                 to one it has"
            ),
            ErrorKind::PermissionDenied => format!(
                "listen for {whom} on {address}: ports below 1024 are root's: run as root, or set {key} to another"
            ),
            _ => format!("listen for {whom} on {address}, as {key} says"),
        };
        HarpError::Io { what, source }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            HarpError::Usage { .. } => EXIT_USAGE,
            HarpError::Fatal { .. } => EXIT_FATAL,
            HarpError::MediaLoss { .. } => EXIT_MEDIA_LOSS,
            HarpError::PowerLow => EXIT_POWER_LOW,
            HarpError::NotBuilt { .. }
            | HarpError::Io { .. }
            | HarpError::Config { .. }
            | HarpError::Locked { .. }
            | HarpError::Refused { .. } => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for HarpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HarpError::Usage { why } | HarpError::Refused { why } => write!(f, "{why}"),
            HarpError::NotBuilt { what, why } => write!(f, "{what}: not built yet; {why}"),
            HarpError::Io { what, source } => write!(f, "{what}: {source}"),
            HarpError::Config { file, line: 0, key, why } => {
                write!(f, "{}: {key}: {why}", file.display())
            }
            HarpError::Config { file, line, key, why } => {
                write!(f, "{}:{line}: {key}: {why}", file.display())
            }
            HarpError::Locked { what } => {
                write!(f, "{} is in use by another process", what.display())
            }
            HarpError::MediaLoss { dir, why } => write!(
                f,
                "media loss in {}: {why}; move the directory away, and the server starts anew under another disk \
                 id: by itself under harp up, else once called by harp serve --replace (a witness takes part at \
                 once, a copy when the others have given it their files)",
                dir.display()
            ),
            HarpError::PowerLow => {
                write!(f, "ended, since the battery is low; the log is written out")
            }
            HarpError::Fatal { why } => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for HarpError {}

impl From<DiskError> for HarpError {
    fn from(error: DiskError) -> HarpError {
        HarpError::Fatal { why: error.to_string() }
    }
}
