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
use std::time::Instant;

use harp_bench::client::Options;
use rustix::fs::Mode;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use rustix::process::{Resource, geteuid, getrlimit, setrlimit, umask};

use self::lane::{Lane, Tally};
use super::group::Group;
use super::{Context, E2eError, doing};

/// The scenario's name.
pub const NAME: &str = "random_operations_do_what_they_do_on_a_local_file_system";

/// Lanes at work at the same time, each with a connection of its own.
const LANES: u64 = 16;
/// Operations of all lanes, in a short and in a full run.
const OPERATIONS: (u32, u32) = (30_000, 1_000_000);
/// Descriptors that the lanes' objects may take.
const DESCRIPTORS: u64 = 8192;
/// More than the lanes' files can ever hold.
const HOST_SIZE: &str = "2g";

/// Runs all lanes; a difference in any is an error.
pub fn random_operations(context: &Context<'_>) -> Result<(), E2eError> {
    let host = host_file_system()?;
    allow_descriptors();
    let group = Group::start(context)?;
    group.wait_settled()?;
    let first = context.seed.unwrap_or(1);
    let operations = u64::from(context.times(OPERATIONS.0, OPERATIONS.1)) / LANES;
    context
        .say(format_args!("seeds {first} to {}, {operations} operations each", first + LANES - 1));
    let begun = Instant::now();
    // The modes that are asked for are the modes that are made.
    let old_umask = umask(Mode::empty());
    let results: Vec<Result<Tally, E2eError>> = std::thread::scope(|scope| {
        let start = |seed| {
            let (host, server) = (&host, Options::new(group.nfs));
            scope.spawn(move || {
                let mut lane = Lane::start(seed, server, host)?;
                lane.run(operations)?;
                Ok(lane.tally)
            })
        };
        let lanes: Vec<_> = (first..first + LANES).map(start).collect();
        let bug = |_| Err(E2eError::Wrong("a lane panicked".into()));
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(bug)).collect()
    });
    umask(old_umask);
    let seconds = begun.elapsed().as_secs_f64();
    let mut sum = Tally::new();
    let mut errors = Vec::new();
    for result in results {
        match result {
            Err(error) => errors.push(error.to_string()),
            Ok(tally) => {
                for (procedure, (successes, failures)) in tally {
                    let (all_successes, all_failures) = sum.entry(procedure).or_default();
                    *all_successes += successes;
                    *all_failures += failures;
                }
            }
        }
    }
    if !errors.is_empty() {
        let first = format!("{} of {LANES} lanes found a difference\n  ", errors.len());
        return Err(E2eError::Wrong(first + &errors.join("\n  ")));
    }
    tell(context, &sum, seconds);
    group.verify()
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
