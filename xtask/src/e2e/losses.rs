//! Losses: a server's log or its whole disk is gone when the group starts again.
//! Owns: what is deleted, always while no server runs.
//! Never: deletes anything outside the scenario's own directory.
//! Invariant: a server that lost something never votes as if it had not.
//! Source: docs/protocol.md, on amnesia and media loss.

use std::time::Duration;

use super::group::{Group, SETTLE_PATIENCE};
use super::load::Load;
use super::{Context, E2eError, doing};

const PROGRESS: u64 = 1_000;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(60);

/// For each server in turn: all die, its log's segments are deleted, the group starts again.
///
/// A lost log is amnesia: the server counts for little until the others brought it back.
pub fn log_of_one_server_lost_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    let mut group = Group::start(context)?;
    group.wait_settled()?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    for server in ["b", "c", "a"] {
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        group.kill_supervisor()?;
        delete_segments(&group, server)?;
        group.resume()?;
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        group.wait_settled()?;
        group.verify()?;
        context.say(format!("{server} is back without its old log"));
    }
    load.stop()?.check(group.nfs)?;
    group.verify()
}

fn delete_segments(group: &Group<'_>, server: &str) -> Result<(), E2eError> {
    let log = group.dir_of(server).join("log");
    let mut deleted = 0;
    for entry in doing(log.display(), std::fs::read_dir(&log))? {
        let path = doing(log.display(), entry)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("seg-") {
            doing(path.display(), std::fs::remove_file(&path))?;
            deleted += 1;
        }
    }
    if deleted == 0 {
        return Err(E2eError::Wrong(format!("no log segments in {}", log.display())));
    }
    Ok(())
}

/// All die and the backup's directory is emptied: media loss. Primary and witness serve on, the
/// backup is not counted as one.
pub fn disk_of_the_backup_lost_service_goes_on(context: &Context<'_>) -> Result<(), E2eError> {
    let mut group = Group::start(context)?;
    group.wait_settled()?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
    group.kill_supervisor()?;
    let dir = group.dir_of("b");
    doing(dir.display(), std::fs::remove_dir_all(&dir))?;
    doing(dir.display(), std::fs::create_dir(&dir))?;
    group.resume()?;
    load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
    let what = "a is primary, c is promoted, b is not yet a backup";
    group.wait_until(what, SETTLE_PATIENCE, |status| {
        let role = |name: &str| status.node(name).map(|node| node.role.as_str()).unwrap_or("none");
        role("a") == "primary" && role("c") == "promoted" && role("b") == "learner"
    })?;
    load.stop()?.check(group.nfs)
}
