//! Tools: what the tests in a guest work with and Debian does not package, fetched by cargo.
//! Owns: two test programs and the sources of a C project, at fixed versions.
//! Never: links any of it into something of ours.
//! Invariant: made once and kept, until a version below changes.
//! Source: crates.io.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{ProcessError, capture};
use crate::workspace::cargo;

/// The programs: fsx exercises one file with random operations, pjdfstest checks what POSIX says
/// about the calls on files.
const PROGRAMS: &[&str] = &["fsx@0.3.2", "pjdfstest@0.2.2"];
/// A crate that carries the C sources of five versions of Lua: some 280 files that need no
/// configuring.
const SOURCES: (&str, &str) = ("lua-src", "551.1.0");
/// How long building the programs may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The tools, ready to use.
#[derive(Debug)]
pub struct Tools {
    /// The directory of the programs.
    pub programs: PathBuf,
    /// The directory of the C sources, one subdirectory for each version.
    pub sources: PathBuf,
}

/// Why there are no tools.
#[derive(Debug)]
pub enum ToolsError {
    /// cargo failed.
    Cargo(ProcessError),
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for ToolsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolsError::Cargo(error) => error.fmt(f),
            ToolsError::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for ToolsError {}

/// Attaches the path to an error of the system.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, ToolsError> {
    result.map_err(|source| ToolsError::Io { path: path.to_owned(), source })
}

impl Tools {
    /// Uses what `cache` keeps from an earlier run, or fetches and builds it.
    pub fn prepare(cache: &Path) -> Result<Tools, ToolsError> {
        let (name, version) = SOURCES;
        let vendored = cache.join("vendor");
        let tools = Tools { programs: cache.join("bin"), sources: vendored.join(name) };
        let stamp = cache.join("recipe");
        let recipe = format!("{} {name}@{version}", PROGRAMS.join(" "));
        if std::fs::read_to_string(&stamp).is_ok_and(|kept| kept == recipe) {
            return Ok(tools);
        }
        // Left from another recipe or an interrupted run, or not there.
        let _ = std::fs::remove_dir_all(cache);
        at(cache, std::fs::create_dir_all(cache))?;
        let build = cache.join("build");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--root"]).arg(cache).args(PROGRAMS);
        run(install.env("CARGO_TARGET_DIR", &build))?;
        at(&build, std::fs::remove_dir_all(&build))?;
        // cargo fetches a crate's files only for a crate that depends on it.
        let manifest = cache.join("Cargo.toml");
        let text = format!(
            "[package]\nname = \"sources\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n\
             [workspace]\n[dependencies]\n{name} = \"={version}\"\n"
        );
        at(&manifest, std::fs::write(&manifest, text))?;
        let library = cache.join("lib.rs");
        at(&library, std::fs::write(&library, ""))?;
        let mut vendor = cargo();
        vendor.args(["vendor", "--quiet", "--manifest-path"]).arg(&manifest).arg(&vendored);
        run(&mut vendor)?;
        at(&stamp, std::fs::write(&stamp, recipe))?;
        Ok(tools)
    }
}

fn run(command: &mut Command) -> Result<(), ToolsError> {
    capture(command, PATIENCE).map(drop).map_err(ToolsError::Cargo)
}
