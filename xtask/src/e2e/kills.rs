//! Kills: servers die or stop under load; nothing acknowledged is lost, no request fails.
//! Owns: the faults, and the stalls that the clients saw.
//! Never: fails for a long stall alone; it prints it. Time is judged by benchmarks.
//! Invariant: after each fault the copies are equal and every server is back in its role.
//! Source: docs/testing.md.

use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::group::{Group, GroupStatus, SETTLE_PATIENCE};
use super::load::Load;
use super::{Context, E2eError};

/// Operations that must be acknowledged before a fault, and again after it.
const PROGRESS: u64 = 1_000;
/// How long a stopped server stays stopped: longer than any lease.
const PAUSE: Duration = Duration::from_secs(10);
/// How long clients may take to get on after a fault.
const PROGRESS_PATIENCE: Duration = Duration::from_secs(60);

/// Between faults the group works undisturbed: a server that lived so long is started again after a second, one
/// that dies over and over rests longer each time.
pub const SPACING: Duration = Duration::from_secs(5);

/// kill -9 of the designated primary, again and again.
pub fn primary_killed_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    under_load(context, context.times(5, 10), |group| kill(group, "a"))
}

/// kill -9 of the designated backup, again and again.
pub fn backup_killed_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    under_load(context, context.times(3, 10), |group| kill(group, "b"))
}

/// SIGSTOP of the primary: it must neither hold its clients nor answer anything late.
pub fn primary_stopped_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    under_load(context, context.times(1, 10), |group| {
        let stopped = group.server("a")?;
        group.signal(stopped, Signal::STOP)?;
        Ok(Fault { server: stopped, name: "a", stopped: true })
    })
}

/// All servers die at once, then the supervisor too; the same directory serves again.
pub fn all_killed_at_once_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    let mut group = Group::start(context)?;
    group.wait_settled()?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    for round in 1..=context.times(2, 10) {
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        load.take_stall();
        for (_, pid) in group.servers()? {
            group.signal(pid, Signal::KILL)?;
        }
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        group.wait_settled()?;
        context.say(format!("{round}: longest wait {:?}", load.take_stall()));
        group.verify()?;
        std::thread::sleep(SPACING);
    }
    group.kill_supervisor()?;
    group.resume()?;
    load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
    load.stop()?.check(group.nfs)?;
    group.wait_settled()?;
    group.verify()
}

/// Five servers, three copies: primary and a backup die at the same moment, again and again.
pub fn two_of_five_killed_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    let group = Group::start_with(context, 3)?;
    group.wait_settled()?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    for round in 1..=context.times(3, 10) {
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        group.wait_settled()?;
        load.take_stall();
        let victims = [group.server("a")?, group.server("b")?];
        for server in victims {
            group.signal(server, Signal::KILL)?;
        }
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        let stall = load.take_stall();
        for (server, name) in victims.into_iter().zip(["a", "b"]) {
            wait_home_again(&group, &Fault { server, name, stopped: false })?;
        }
        context.say(format!(
            "{round}: longest wait {stall:?} at the fault, {:?} until all were back",
            load.take_stall()
        ));
        group.verify()?;
        std::thread::sleep(SPACING);
    }
    load.stop()?.check(group.nfs)?;
    group.verify()
}

/// A server that was killed or stopped.
pub struct Fault {
    server: Pid,
    name: &'static str,
    stopped: bool,
}

/// kill -9 of one server.
pub fn kill(group: &Group<'_>, name: &'static str) -> Result<Fault, E2eError> {
    let server = group.server(name)?;
    group.signal(server, Signal::KILL)?;
    Ok(Fault { server, name, stopped: false })
}

/// Runs load, injects the fault `times` times, and demands after each one that the group heals, and
/// at the end that nothing acknowledged is missing.
fn under_load(
    context: &Context<'_>,
    times: u32,
    inject: impl Fn(&Group<'_>) -> Result<Fault, E2eError>,
) -> Result<(), E2eError> {
    let group = Group::start(context)?;
    group.wait_settled()?;
    let load = Load::start(context, group.nfs, PROGRESS_PATIENCE)?;
    let mut stalls = Vec::new();
    for round in 1..=times {
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        group.wait_settled()?;
        load.take_stall();
        let fault = inject(&group)?;
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        let stall = load.take_stall();
        if fault.stopped {
            // The fault itself: the server does not run for this long.
            std::thread::sleep(PAUSE);
            group.signal(fault.server, Signal::CONT)?;
        }
        wait_home_again(&group, &fault)?;
        context.say(format!(
            "{round}: longest wait {stall:?} at the fault, {:?} until all were back",
            load.take_stall()
        ));
        stalls.push(stall);
        group.verify()?;
        std::thread::sleep(SPACING);
    }
    let recorded = load.stop()?;
    recorded.check(group.nfs)?;
    group.verify()?;
    stalls.sort();
    if let (Some(median), Some(worst)) = (stalls.get(stalls.len() / 2), stalls.last()) {
        context.say(format!("client-visible stalls: median {median:?}, worst {worst:?}"));
    }
    Ok(())
}

/// Waits until the group is settled again: with a new process if the old one was killed.
pub fn wait_home_again(group: &Group<'_>, fault: &Fault) -> Result<(), E2eError> {
    let old = fault.server.as_raw_nonzero().get();
    let home = |status: &GroupStatus| {
        let renewed = |pid: Option<i32>| fault.stopped || pid != Some(old);
        status.settled() && status.node(fault.name).is_ok_and(|node| renewed(node.pid))
    };
    let what = format!("{} is back and every server in its designated role", fault.name);
    group.wait_until(&what, SETTLE_PATIENCE, home)?;
    Ok(())
}
