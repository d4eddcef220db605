//! Losses: a server's log or its whole disk is gone when it starts again.
//! Owns: what is deleted, always while the server that it belongs to does not run.
//! Never: deletes anything outside the scenario's own directory.
//! Invariant: a server that lost something never votes as if it had not.
//! Source: docs/protocol.md, on amnesia and media loss.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harp_bench::client::Options;
use harp_bench::load::{LoadOptions, Phase};
use rustix::process::Signal;

use super::group::{Group, GroupStatus};
use super::load::Load;
use super::{Context, E2eError, doing};

const PROGRESS: u64 = 1_000;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(60);
/// How long a copy may take to load its files.
const REBUILD_PATIENCE: Duration = Duration::from_secs(300);
/// How long the load is looked at before a fault, to know what it does without.
const MEASURE: Duration = Duration::from_secs(3);

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

/// Under load, the backup dies and its directory is emptied, later the primary's. Each loads its files from the
/// other while that one serves, and takes its role back.
pub fn disk_of_a_copy_lost_it_is_rebuilt_under_load(context: &Context<'_>) -> Result<(), E2eError> {
    let group = Group::start(context)?;
    group.wait_settled()?;
    let files = context.times(10_000, 100_000);
    fill(context, group.nfs, files as usize)?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    for victim in ["b", "a"] {
        let (begun, before) = (Instant::now(), load.acknowledged()?);
        std::thread::sleep(MEASURE);
        let rate_before = load.rate_since(begun, before)?;
        load.take_stall();
        let server = group.server(victim)?;
        group.signal(server, Signal::KILL)?;
        group.wait_gone(victim, server)?;
        let (begun, before) = (Instant::now(), load.acknowledged()?);
        let dir = group.dir_of(victim);
        doing(dir.display(), std::fs::remove_dir_all(&dir))?;
        doing(dir.display(), std::fs::create_dir(&dir))?;
        let what = format!("{victim} is rebuilt and every server in its designated role");
        let renewed = |status: &GroupStatus| {
            let pid = status.node(victim).ok().and_then(|node| node.pid);
            status.settled() && pid != Some(server.as_raw_nonzero().get())
        };
        group.wait_until(&what, REBUILD_PATIENCE, renewed)?;
        context.say(format!(
            "{victim} with {files} files is whole again after {:.1?}; operations a second before {rate_before:.0}, \
             meanwhile {:.0}; longest wait {:?}",
            begun.elapsed(),
            load.rate_since(begun, before)?,
            load.take_stall()
        ));
        group.verify()?;
    }
    load.stop()?.check(group.nfs)?;
    group.verify()
}

/// Makes that many files of 4 KiB each.
fn fill(context: &Context<'_>, address: SocketAddr, files: usize) -> Result<(), E2eError> {
    let server = Options { patience: PROGRESS_PATIENCE, ..Options::new(address) };
    let phases = vec![Phase::Create, Phase::Write4k];
    let (seq_mib, prefix, keep) = (1, "fill".into(), true);
    let options = LoadOptions { files, phases, seq_mib, prefix, keep, ..LoadOptions::new(server) };
    let filled = harp_bench::load::run(&options, |phase| context.say(phase.to_string()));
    filled.map_err(|error| E2eError::Wrong(error.to_string()))?;
    Ok(())
}
