//! Formatting one server of a group over several machines: an explicit act, once.
//! Owns: the mark `x.formatted` beside the configuration, which outlives the server's own disk.
//! Never: takes a missing directory for a first start (rule 4); formats what holds a server's files.
//! Invariant: a server that may have promised anything is formatted as a replacement only: under a new disk id,
//! which counts for nothing until a view formed without it admits it.
//! Source: docs/operations.md, "Making a group" and "Replacing a disk".

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use harp_node::first_view;
use harp_node::vr::{ServerId, View};

use crate::admin::{Answer, Request};
use crate::config::{Config, to_hex};
use crate::error::HarpError;
use crate::lock::Lock;
use crate::operator::ask;
use crate::segments::sync_dir;
use crate::serverdir::{self, Contents};
use crate::status::PATIENCE;

/// Which server a format makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// One of a group that has not served yet.
    First,
    /// One that lost its disk, or was added to a group that serves.
    Replacement,
}

fn mark(config: &Config, server: ServerId) -> PathBuf {
    config.dir().join(format!("{server}.formatted"))
}

fn refused(why: String) -> HarpError {
    HarpError::Refused { why }
}

/// Formats the directory of `server`. Errors: it holds a server's files, or the act is the wrong one.
pub fn format(config: &Config, server: ServerId, act: Act) -> Result<(), HarpError> {
    let dir = config.server_dir(server);
    std::fs::create_dir_all(&dir).map_err(|error| HarpError::file("create", &dir, error))?;
    let _lock = Lock::take(&dir.join("lock"))?;
    if serverdir::contents(&dir)? == Contents::Formatted {
        let dir = dir.display();
        return Err(refused(format!(
            "{dir} holds a server's files already; start it, or move them away"
        )));
    }
    let mark = mark(config, server);
    if act == Act::First {
        demand_new(config, server, &mark)?;
    }
    let unfinished = mark.with_extension("new");
    write_mark(config, server, &unfinished)?;
    serverdir::format(config, server, act == Act::First)?;
    std::fs::rename(&unfinished, &mark)
        .and_then(|()| sync_dir(config.dir()))
        .map_err(|error| HarpError::file("write", &mark, error))
}

/// Errors if there is any sign that the server, or its group, has served before.
fn demand_new(config: &Config, server: ServerId, mark: &Path) -> Result<(), HarpError> {
    let instead = format!(
        "format it as a replacement: harp serve --config {} --node {server} --replace",
        config.file.display()
    );
    if mark.exists() {
        let mark = mark.display();
        return Err(refused(format!(
            "server {server} was formatted before, says {mark}, so its disk was lost: {instead}"
        )));
    }
    let others: Vec<ServerId> = config.shape().servers().filter(|other| *other != server).collect();
    for other in others {
        let Ok(Answer::Status(status)) = ask(config, other, Request::Status, PATIENCE) else {
            continue;
        };
        if View(status.formed_number) > first_view() {
            let view = status.formed;
            return Err(refused(format!(
                "the group has served already: server {other} is in view {view}; {instead}"
            )));
        }
    }
    Ok(())
}

fn write_mark(config: &Config, server: ServerId, path: &Path) -> Result<(), HarpError> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file: File| {
            let (group, dir) = (to_hex(&config.id), config.server_dir(server));
            writeln!(file, "server {server} of group {group} was formatted in {}", dir.display())?;
            file.sync_all()
        })
        .map_err(|error| HarpError::file("write", path, error))
}

/// Errors unless the server was formatted, and its files are there.
pub fn demand(config: &Config, server: ServerId) -> Result<(), HarpError> {
    let (dir, file) = (config.server_dir(server), config.file.display());
    let found = serverdir::contents(&dir)?;
    let mark = mark(config, server);
    match found {
        Contents::Formatted if mark.exists() => Ok(()),
        Contents::Formatted => {
            // The format ended a moment too early, or the configuration moved.
            write_mark(config, server, &mark)
        }
        Contents::Unfinished => Err(refused(format!(
            "{} was not formatted to the end: run the same harp serve --format or --replace again",
            dir.display()
        ))),
        Contents::Empty if mark.exists() => Err(HarpError::MediaLoss {
            dir,
            why: format!(
                "server {server} was formatted and its files are gone: is its disk mounted"
            ),
        }),
        Contents::Empty => Err(refused(format!(
            "{} holds no server: if the group is new, run harp serve --config {file} --node {server} --format \
             once; if this server has held files before, --replace instead",
            dir.display()
        ))),
    }
}
