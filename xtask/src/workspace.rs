//! Workspace: where the repository lies, its crates, and where cargo puts what it builds.
//! Owns: the parsed answer of `cargo metadata`.
//! Never: builds anything by itself; `cargo()` only prepares a command.
//! Invariant: every path is absolute.
//! Source: `cargo metadata --no-deps`, format version 1.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::process::{ProcessError, capture};

/// Why the workspace could not be described.
#[derive(Debug)]
pub enum WorkspaceError {
    /// cargo itself failed.
    Cargo(ProcessError),
    /// cargo's answer was not of the known form.
    Answer(serde_json::Error),
}

impl fmt::Display for WorkspaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkspaceError::Cargo(error) => error.fmt(f),
            WorkspaceError::Answer(error) => write!(f, "cargo metadata: {error}"),
        }
    }
}

impl std::error::Error for WorkspaceError {}

/// The repository as cargo sees it.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    /// The directory of the root Cargo.toml.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    /// Where cargo builds.
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
    /// The crates of the workspace.
    pub packages: Vec<Package>,
}

/// One crate of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name in Cargo.toml.
    pub name: String,
    /// What it depends on, for tests and build scripts too.
    pub dependencies: Vec<Dependency>,
}

/// One dependency of a crate.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The name of the crate depended on.
    pub name: String,
    /// Set when it is a crate of this workspace.
    pub path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo about the workspace of the current directory.
    pub fn load() -> Result<Workspace, WorkspaceError> {
        let mut command = cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let answer =
            capture(&mut command, Duration::from_secs(300)).map_err(WorkspaceError::Cargo)?;
        serde_json::from_str(&answer).map_err(WorkspaceError::Answer)
    }

    /// The path of a program built in release mode.
    pub fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }
}

/// The cargo that runs us, or the one on the path.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
