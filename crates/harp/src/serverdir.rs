//! One server's directory: formatting it, and telling what state it is in.
//! Owns: the layout of `x/`, and the marker of an unfinished format.
//! Never: formats a directory that holds anything a server made (rule 4).
//! Invariant: a directory without the marker was formatted whole, once.

use std::fs::File;
use std::path::Path;

use harp_node::Node;
use harp_node::vr::ServerId;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::Config;
use crate::error::HarpError;
use crate::image;
use crate::logdisk::FileLogDisk;
use crate::reserve::RESERVE_DIR;
use crate::segments::sync_dir;

/// Marks a directory whose format has not ended.
const UNFINISHED: &str = "formatting";
/// What may lie in an emptied directory: no server's memory.
const HARMLESS: [&str; 3] = ["lock", "admin.sock", RESERVE_DIR];

/// What a server's directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing that a server made.
    Empty,
    /// A format that did not end.
    Unfinished,
    /// A server's files.
    Formatted,
}

/// Looks what `dir` holds; a directory that does not exist is empty.
pub fn contents(dir: &Path) -> Result<Contents, HarpError> {
    let failed = |error| HarpError::file("look into", dir, error);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contents::Empty),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Contents::Empty;
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name == UNFINISHED {
            return Ok(Contents::Unfinished);
        }
        if !HARMLESS.iter().any(|harmless| name == *harmless) {
            found = Contents::Formatted;
        }
    }
    Ok(found)
}

/// A random number that names a disk for ever.
fn draw_disk_id() -> Result<u64, HarpError> {
    let mut bytes = [0; 8];
    let got = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| HarpError::io("draw a disk id", error))?;
    assert_eq!(got, bytes.len(), "the kernel gives few bytes at once");
    Ok(u64::from_le_bytes(bytes))
}

/// Formats the directory of `server`, which holds nothing or an unfinished format. `first`: the whole
/// group is being formatted; otherwise this server has lost its disk and says so.
pub fn format(config: &Config, server: ServerId, first: bool) -> Result<(), HarpError> {
    let dir = config.server_dir(server);
    let failed = |error| HarpError::file("format", &dir, error);
    match contents(&dir)? {
        Contents::Formatted => {
            let why = format!("{} already holds a server's files", dir.display());
            return Err(HarpError::Refused { why });
        }
        Contents::Unfinished => clear(&dir).map_err(failed)?,
        Contents::Empty => std::fs::create_dir_all(&dir).map_err(failed)?,
    }
    let marker = dir.join(UNFINISHED);
    File::create(&marker)
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_dir(&dir))
        .and_then(|()| dir.parent().map_or(Ok(()), sync_dir))
        .map_err(failed)?;
    let settings = config.settings(server);
    let tuning = &config.tuning;
    let mut disk =
        FileLogDisk::format(&dir, tuning.segment_bytes, tuning.segments_max).map_err(failed)?;
    if settings.shape.is_copy(server) {
        image::format(&dir.join("store"), tuning, &config.id, config.root, first)?;
        sync_dir(&dir.join("store")).map_err(failed)?;
    }
    Node::format(&settings, draw_disk_id()?, first, &mut disk)
        .map_err(|error| HarpError::Fatal { why: format!("format {}: {error}", dir.display()) })?;
    sync_dir(&dir).and_then(|()| std::fs::remove_file(&marker)).map_err(failed)?;
    sync_dir(&dir).map_err(failed)
}

/// Removes what an unfinished format left, the marker last.
fn clear(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == UNFINISHED || HARMLESS.iter().any(|harmless| name == *harmless) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn an_emptied_directory_is_told_from_an_unfinished_and_a_formatted_one() {
        let dir = TestDir::new("serverdir");
        let path = dir.path().join("a");
        assert_eq!(contents(&path).expect("looks"), Contents::Empty);
        std::fs::create_dir(&path).expect("creates");
        for harmless in HARMLESS {
            std::fs::write(path.join(harmless), b"").expect("writes");
        }
        assert_eq!(contents(&path).expect("looks"), Contents::Empty);
        std::fs::create_dir(path.join("log")).expect("creates");
        std::fs::write(path.join("log/seg-0000"), b"x").expect("writes");
        assert_eq!(contents(&path).expect("looks"), Contents::Formatted);
        std::fs::write(path.join(UNFINISHED), b"").expect("writes");
        assert_eq!(contents(&path).expect("looks"), Contents::Unfinished);
        clear(&path).expect("clears");
        assert_eq!(contents(&path).expect("looks"), Contents::Unfinished);
        std::fs::remove_file(path.join(UNFINISHED)).expect("removes");
        assert_eq!(contents(&path).expect("looks"), Contents::Empty);
    }
}
