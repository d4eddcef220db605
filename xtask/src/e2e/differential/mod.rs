//! Differential: random file operations by several users, on a group and on the host alike.
//! Owns: the host's file system for the comparison, the lanes, the sum of what they did.
//! Never: mounts where anybody could see it: the host's side is a tmpfs without a place.
//! Invariant: lanes share nothing but the group, so a lane does the same alone as among others.
//! Source: RFC 1813; the host's kernel is the oracle, `rules.rs` says where it is not.

mod generator;
mod host;
mod host_attributes;
mod lane;
mod object;
mod operation;
mod outcome;
mod rules;
mod served;
mod user;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use harp_bench::client::Options;
use rustix::fs::Mode;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use rustix::process::{Resource, Signal, geteuid, getrlimit, setrlimit, umask};

use self::lane::{Lane, Tally};
use super::group::{Group, GroupStatus, SETTLE_PATIENCE};
use super::{Context, E2eError, doing};

/// The scenarios' names.
pub const NAME: &str = "random_operations_do_what_they_do_on_a_local_file_system";
pub const FAILOVER_NAME: &str = "random_operations_do_the_same_while_primaries_die";

/// Lanes at work at the same time, each with a connection of its own.
const LANES: u64 = 16;
/// Operations of all lanes, in a short and in a full run.
const OPERATIONS: (u32, u32) = (30_000, 1_000_000);
/// How often the primary is killed, in a short and in a full run.
const KILLS: (u32, u32) = (2, 20);
/// How long everybody is left in peace before a kill: a server that lived for so long is started
/// again without a long pause.
const BETWEEN_KILLS: Duration = Duration::from_secs(6);
/// Descriptors that the lanes' objects may take.
const DESCRIPTORS: u64 = 8192;
/// More than the lanes' files can ever hold.
const HOST_SIZE: &str = "2g";

/// A group that keeps no access times, as the host's file system that it is compared with: they are recorded when
/// the group sees fit.
fn start<'a>(context: &'a Context<'a>) -> Result<Group<'a>, E2eError> {
    let mut group = Group::start(context)?;
    group.set("access_times = \"relatime\"", "access_times = \"off\"")?;
    Ok(group)
}

/// Runs all lanes; a difference in any is an error.
pub fn random_operations(context: &Context<'_>) -> Result<(), E2eError> {
    let host = host_file_system()?;
    let group = start(context)?;
    group.wait_settled()?;
    let operations = u64::from(context.times(OPERATIONS.0, OPERATIONS.1)) / LANES;
    let goes_on = |made| made < operations;
    run_lanes(context, &group, &host, &goes_on, |_| Ok(()))?;
    group.verify()
}

/// Runs all lanes while the primary is killed again and again.
pub fn random_operations_under_failover(context: &Context<'_>) -> Result<(), E2eError> {
    let host = host_file_system()?;
    let group = start(context)?;
    group.wait_settled()?;
    let kills = context.times(KILLS.0, KILLS.1);
    let enough = AtomicBool::new(false);
    let goes_on = |_| !enough.load(Ordering::Relaxed);
    run_lanes(context, &group, &host, &goes_on, |broken| {
        let killed = kill_primaries(&group, kills, broken);
        enough.store(true, Ordering::Relaxed);
        killed
    })?;
    context.say(format_args!("the primary was killed {kills} times"));
    group.wait_settled()?;
    group.verify()
}

/// Kills the primary so often, each time when everything is as it should be, or until a lane ends.
fn kill_primaries(
    group: &Group<'_>,
    kills: u32,
    lane_ended: &dyn Fn() -> bool,
) -> Result<(), E2eError> {
    for _ in 0..kills {
        let primary = group.wait_settled()?.primary.unwrap_or_default();
        std::thread::sleep(BETWEEN_KILLS);
        if lane_ended() {
            break;
        }
        group.signal(group.server(&primary)?, Signal::KILL)?;
        let dead = |status: &GroupStatus| status.primary.as_ref().is_some_and(|p| *p != primary);
        group.wait_until("another primary", SETTLE_PATIENCE, dead)?;
    }
    Ok(())
}

/// Runs all lanes as long as `goes_on` says of the number of operations made, and `meanwhile`
/// beside them, which is told whether a lane has ended.
fn run_lanes(
    context: &Context<'_>,
    group: &Group<'_>,
    host: &OwnedFd,
    goes_on: &(dyn Fn(u64) -> bool + Sync),
    meanwhile: impl FnOnce(&dyn Fn() -> bool) -> Result<(), E2eError>,
) -> Result<(), E2eError> {
    allow_descriptors();
    let first = context.seed.unwrap_or(1);
    context.say(format_args!("seeds {first} to {}", first + LANES - 1));
    let begun = Instant::now();
    // The modes that are asked for are the modes that are made.
    let old_umask = umask(Mode::empty());
    let (results, beside) = std::thread::scope(|scope| {
        let start = |seed| {
            let server = Options::new(group.nfs);
            scope.spawn(move || {
                let mut lane = Lane::start(seed, server, host)?;
                lane.run(goes_on)?;
                Ok(lane.tally)
            })
        };
        let lanes: Vec<_> = (first..first + LANES).map(start).collect();
        let beside = meanwhile(&|| lanes.iter().any(|lane| lane.is_finished()));
        let bug = |_| Err(E2eError::Wrong("a lane panicked".into()));
        let join = |lane: ScopedJoinHandle<'_, _>| lane.join().unwrap_or_else(bug);
        (lanes.into_iter().map(join).collect::<Vec<_>>(), beside)
    });
    umask(old_umask);
    let seconds = begun.elapsed().as_secs_f64();
    let mut sum = Tally::new();
    let mut errors = Vec::new();
    for result in results {
        match result {
            Err(error) => errors.push(error.to_string()),
            Ok(tally) => add(&mut sum, tally),
        }
    }
    if !errors.is_empty() {
        let count = format!("{} of {LANES} lanes found a difference\n  ", errors.len());
        return Err(E2eError::Wrong(count + &errors.join("\n  ")));
    }
    tell(context, &sum, seconds);
    beside
}

fn add(sum: &mut Tally, tally: Tally) {
    for (procedure, (successes, failures)) in tally {
        let (all_successes, all_failures) = sum.entry(procedure).or_default();
        *all_successes += successes;
        *all_failures += failures;
    }
}

fn tell(context: &Context<'_>, sum: &Tally, seconds: f64) {
    let counts: Vec<String> = sum
        .iter()
        .map(|(procedure, (successes, failures))| format!("{procedure} {successes}+{failures}"))
        .collect();
    let (successes, failures) =
        sum.values().fold((0, 0), |(all, none), (one, other)| (all + one, none + other));
    let rate = (successes + failures) as f64 / seconds;
    context.say(format_args!(
        "{successes} operations succeeded and {failures} failed alike, {rate:.0} a second"
    ));
    context.say(format_args!("succeeded+failed: {}", counts.join(", ")));
}

/// An empty file system of the host's kernel that is mounted nowhere and goes with its descriptor.
fn host_file_system() -> Result<OwnedFd, E2eError> {
    if !geteuid().is_root() {
        return Err(E2eError::NotHere("not root, who alone may act as several users".into()));
    }
    let mounted = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "size", HOST_SIZE)?;
        fsconfig_set_string(&context, "mode", "0755")?;
        fsconfig_create(&context)?;
        // Harp gathers access times apart, so reading leaves them alone on both sides.
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    match mounted() {
        Err(rustix::io::Errno::PERM) => {
            Err(E2eError::NotHere("root here may not make a file system".into()))
        }
        mounted => doing("a tmpfs for the comparison", mounted.map_err(Into::into)),
    }
}

/// Raises this process's limit of descriptors as far as it may go.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if limit.current.is_some_and(|current| current < allowed) {
        limit.current = Some(allowed);
        // A failure shows soon enough, as a file that cannot be opened.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
