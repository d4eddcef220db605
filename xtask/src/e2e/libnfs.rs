//! The libnfs tools: an NFS client that shares no code with us or with Linux.
//! Owns: the files it stores and compares.
//! Never: mounts anything.
//! Invariant: what nfs-cp stored is what nfs-cat and nfs-cp read, byte for byte.
//! Source: libnfs's URL format, `nfs://SERVER/PATH?nfsport=P&mountport=P`.

use std::process::Command;
use std::time::Duration;

use super::group::Group;
use super::{Context, E2eError, doing};
use crate::process::capture;

const PATIENCE: Duration = Duration::from_secs(60);
/// Not a multiple of any block or transfer size.
const LARGE_BYTES: usize = 3 * 1024 * 1024 + 4097;

/// Copies files in, lists them, reads them back, and again after a clean restart.
pub fn tools_copy_there_and_back(context: &Context<'_>) -> Result<(), E2eError> {
    let mut group = Group::start(context)?;
    group.wait_settled()?;
    let small = b"Harp keeps this.\n".to_vec();
    let large: Vec<u8> =
        (0..LARGE_BYTES as u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
    let files = [("small", small), ("large", large), ("empty", Vec::new())];
    for (name, content) in &files {
        let local = context.work.join(name);
        doing(local.display(), std::fs::write(&local, content))?;
        tool("nfs-cp", &[&local.to_string_lossy(), &group.url(name)])?;
    }
    read_back(context, &group, &files)?;
    group.verify()?;
    group.stop()?;
    group.resume()?;
    // The tools do not try again when a view change resets their connection.
    group.wait_settled()?;
    read_back(context, &group, &files)?;
    group.verify()
}

/// Lists and reads every file and compares.
fn read_back(
    context: &Context<'_>,
    group: &Group<'_>,
    files: &[(&str, Vec<u8>)],
) -> Result<(), E2eError> {
    let listing = tool("nfs-ls", &[&group.url("")])?;
    for (name, content) in files {
        let size = content.len().to_string();
        let listed = listing.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.last() == Some(name) && words.contains(&size.as_str())
        });
        if !listed {
            return Err(E2eError::Wrong(format!("{name}, {size} bytes, is not in:\n{listing}")));
        }
        let back = context.work.join(format!("{name}.back"));
        // Left from the reading before the restart, or not there.
        let _ = std::fs::remove_file(&back);
        tool("nfs-cp", &[&group.url(name), &back.to_string_lossy()])?;
        let read = doing(back.display(), std::fs::read(&back))?;
        if read != *content {
            return Err(E2eError::Wrong(format!("{name} came back different through nfs-cp")));
        }
    }
    let text = tool("nfs-cat", &[&group.url("small")])?;
    if text != "Harp keeps this." {
        return Err(E2eError::Wrong(format!("nfs-cat shows {text:?}")));
    }
    Ok(())
}

fn tool(name: &str, arguments: &[&str]) -> Result<String, E2eError> {
    Ok(capture(Command::new(name).args(arguments), PATIENCE)?)
}
