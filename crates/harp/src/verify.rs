//! `harp verify`: all copies compared at the same op.
//! Owns: the waiting, the asking, the comparison; and asking again once damaged blocks are mended.
//! Never: calls copies equal that were not all asked.
//! Invariant: equal means that every designated copy gave the same digest at one barrier's op.
//! Source: README.md, "Commands".

use std::time::{Duration, Instant};

use harp_node::vr::ServerId;

use crate::admin::{Answer, Request};
use crate::config::Config;
use crate::error::HarpError;
use crate::operator::ask;
use crate::status::{GroupStatus, NodeLine, PATIENCE, gather};

/// How long all copies may take to be members of the view.
const PRESENCE: Duration = Duration::from_secs(60);
/// How long a barrier may take to commit before another one is tried.
const BARRIER: Duration = Duration::from_secs(10);
/// How long the copies may take to checkpoint and digest: they read all that they hold.
const DIGESTS: Duration = Duration::from_secs(600);
/// How long a view may have lost the barrier before it is asked for again.
const ATTEMPTS: usize = 5;
/// How long the copies may take to mend what one comparison found.
const MENDING: Duration = Duration::from_secs(60);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// What was compared, and found equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The barrier's op.
    pub op: u64,
    /// Every copy's digest there, in hexadecimal digits.
    pub digest: String,
    /// Blocks that were damaged and are mended now, by copy.
    pub mended: Vec<(ServerId, u64)>,
}

fn refused(why: impl Into<String>) -> HarpError {
    HarpError::Refused { why: why.into() }
}

/// Why not all copies are present; `Ok`: they are, and this server is the primary.
fn primary_of_all_copies(group: &GroupStatus) -> Result<ServerId, String> {
    let copies = || group.nodes.iter().filter(|node| node.designated != "witness");
    // One that just restarted has its role still, until the others notice.
    let present =
        |node: &&NodeLine| matches!(node.role, "primary" | "backup") && node.state == "normal";
    if let Some(absent) = copies().find(|node| !present(node)) {
        return Err(format!("copy {} is {} ({})", absent.name, absent.role, absent.state));
    }
    match copies().position(|node| node.role == "primary" && node.serving) {
        Some(index) => Ok(ServerId(index as u8)),
        None => Err("no primary serves".into()),
    }
}

/// Waits for all copies, up to a minute; returns the primary, and what they said.
fn await_copies(config: &Config) -> Result<(ServerId, GroupStatus), HarpError> {
    let until = Instant::now() + PRESENCE;
    loop {
        let group = gather(config).groups.remove(0);
        match primary_of_all_copies(&group) {
            Ok(primary) => return Ok((primary, group)),
            Err(why) if Instant::now() >= until => {
                return Err(refused(format!("not all copies can be compared: {why}")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// What became of one copy's digest.
enum Seen {
    Digest(String),
    /// Something is damaged there.
    Damaged(String),
    /// The copy left or the barrier was lost: another one is needed.
    Lost(String),
}

/// Why a copy will take no digest at `op` any more: it started anew, or its image is beyond.
fn passed_by(config: &Config, copy: ServerId, op: u64, pid: Option<u32>) -> Option<String> {
    let Ok(Answer::Status(status)) = ask(config, copy, Request::Status, PATIENCE) else {
        return None;
    };
    if pid.is_some_and(|pid| pid != status.pid) {
        return Some(format!("copy {copy} started anew"));
    }
    (status.lb > op).then(|| format!("copy {copy} passed op {op} without a digest"))
}

fn await_digest(
    config: &Config,
    copy: ServerId,
    (op, pid): (u64, Option<u32>),
    until: Instant,
) -> Result<Seen, HarpError> {
    let mut silent = 0;
    loop {
        match ask(config, copy, Request::Digest(op), PATIENCE) {
            Ok(Answer::Digest(Ok(digest))) => return Ok(Seen::Digest(digest)),
            Ok(Answer::Digest(Err(why))) => {
                return Ok(Seen::Damaged(format!("copy {copy} is damaged at op {op}: {why}")));
            }
            Ok(Answer::Pending) => {
                silent = 0;
                if let Some(why) = passed_by(config, copy, op, pid) {
                    return Ok(Seen::Lost(why));
                }
            }
            Ok(other) => return Err(refused(format!("copy {copy} answered {other:?}"))),
            Err(error) if silent >= 10 => return Ok(Seen::Lost(format!("copy {copy}: {error}"))),
            Err(_) => silent += 1,
        }
        if Instant::now() >= until {
            return Ok(Seen::Lost(format!("copy {copy} gave no digest at op {op}")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What one barrier led to.
enum Compared {
    Equal(String),
    /// These copies have damaged blocks, for all they say of it.
    Damaged(Vec<(ServerId, String)>),
    /// Nothing came of it.
    Lost(String),
}

/// Compares all copies. Blocks found damaged are mended, and all copies compared again. Errors: fewer copies, no
/// view, damage that cannot be mended, a difference.
pub fn verify(config: &Config) -> Result<Verified, HarpError> {
    let until = Instant::now() + DIGESTS;
    let mut lost = String::from("no barrier was logged");
    let mut before: Option<GroupStatus> = None;
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        attempts += 1;
        let (primary, group) = await_copies(config)?;
        let op = match ask(config, primary, Request::Verify, BARRIER) {
            Ok(Answer::Barrier(Some(op))) => op,
            Ok(_) => continue,
            Err(error) => {
                lost = format!("server {primary} logged no barrier: {error}");
                continue;
            }
        };
        let first = before.get_or_insert_with(|| group.clone());
        match compare(config, &group, op, until)? {
            Compared::Equal(digest) => {
                let mended = mended_since(config, first);
                return Ok(Verified { op, digest, mended });
            }
            Compared::Damaged(copies) => {
                for (copy, why) in copies {
                    await_mended(config, copy, &group.nodes[copy.index()], why)?;
                }
                attempts = 0; // something was mended: that comes to an end
            }
            Compared::Lost(why) => lost = why,
        }
    }
    Err(refused(format!("the copies could not be compared: {lost}")))
}

/// Waits until a copy mended what a digest found. Errors: it did not, or nobody can.
fn await_mended(
    config: &Config,
    copy: ServerId,
    before: &NodeLine,
    why: String,
) -> Result<(), HarpError> {
    let until = Instant::now() + MENDING;
    loop {
        if let Ok(Answer::Status(status)) = ask(config, copy, Request::Status, PATIENCE) {
            if status.lost > 0 {
                let lost = status.lost;
                return Err(refused(format!("{why}; {lost} damaged blocks cannot be mended now")));
            }
            let same = before.pid == Some(status.pid);
            if status.damaged == 0 {
                let mended = !same || before.mended.is_none_or(|mended| status.mended > mended);
                // A copy that mended nothing has other damage than that of blocks.
                return if mended { Ok(()) } else { Err(refused(why)) };
            }
        }
        if Instant::now() >= until {
            return Err(refused(format!("{why}; it is not mended after a minute")));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Blocks that the copies mended since they looked like `before`.
fn mended_since(config: &Config, before: &GroupStatus) -> Vec<(ServerId, u64)> {
    let now = gather(config).groups.remove(0);
    let mended = config.shape().copies().map(|copy| {
        let (before, now) = (&before.nodes[copy.index()], &now.nodes[copy.index()]);
        let base = before.mended.filter(|_| before.pid == now.pid).unwrap_or(0);
        (copy, now.mended.unwrap_or(0).saturating_sub(base))
    });
    mended.filter(|(_, mended)| *mended > 0).collect()
}

/// Compares all copies at `op`. Errors: they differ.
fn compare(
    config: &Config,
    group: &GroupStatus,
    op: u64,
    until: Instant,
) -> Result<Compared, HarpError> {
    let mut first: Option<(ServerId, String)> = None;
    let mut damaged = Vec::new();
    for copy in config.shape().copies() {
        let pid = group.nodes[copy.index()].pid;
        let digest = match await_digest(config, copy, (op, pid), until)? {
            Seen::Digest(digest) => digest,
            Seen::Damaged(why) => {
                damaged.push((copy, why));
                continue;
            }
            Seen::Lost(why) => return Ok(Compared::Lost(why)),
        };
        match &first {
            None => first = Some((copy, digest)),
            Some((_, other)) if *other == digest => {}
            Some((other, theirs)) => {
                return Err(refused(format!(
                    "copies {other} and {copy} differ at op {op}: {theirs} and {digest}"
                )));
            }
        }
    }
    if !damaged.is_empty() {
        return Ok(Compared::Damaged(damaged));
    }
    let (_, digest) = first.expect("a group has copies");
    Ok(Compared::Equal(digest))
}

#[cfg(test)]
mod tests {
    use harp_node::vr::Shape;

    use super::*;
    use crate::status::merge;

    #[test]
    fn without_answers_no_copy_is_present() {
        let group = merge("g", Shape { n: 1 }, "disk", &[None, None, None]);
        let why = primary_of_all_copies(&group).expect_err("nobody is there");
        assert_eq!(why, "copy a is down (down)");
        let mut group = group;
        group.nodes[0].role = "backup";
        group.nodes[0].state = "recovering".into();
        group.nodes[1].role = "primary";
        let why = primary_of_all_copies(&group).expect_err("it restarted");
        assert_eq!(why, "copy a is backup (recovering)");
        group.nodes[0].state = "normal".into();
        group.nodes[1].state = "normal".into();
        assert_eq!(primary_of_all_copies(&group), Err("no primary serves".into()));
        group.nodes[1].serving = true;
        assert_eq!(primary_of_all_copies(&group), Ok(ServerId(1)));
    }
}
