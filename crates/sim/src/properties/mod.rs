//! What must hold in every world, one property a file.
//! Owns: the checks and what each remembers.
//! Never: changes the world, or trusts a server's word where the world can see for itself.
//! Invariant: a property that fails names itself and says what happened, once.

pub mod acknowledged_kept;
pub mod apply_bound;
pub mod durable_views;
pub mod ending_is_silent;
pub mod equal_images;
pub mod executed_once;
pub mod failed_disk_stops;
pub mod glb_bound;
pub mod healed_group_serves;
pub mod held_by_members;
pub mod linearizable;
pub mod log_survives;
pub mod longest_log;
pub mod no_loop;
pub mod one_history;
pub mod one_lease;
pub mod one_primary;
pub mod override_keeps;
pub mod pointer_order;
pub mod refusals;
pub mod view_complete;
pub mod votes;
pub mod witness_keeps_log;

use std::sync::OnceLock;

use harp_node::vr::Planted;

/// All that random worlds look at, in words, each with a planted bug that it sees even when no other is looked at.
pub const ALL: [(&str, Planted); 22] = [
    (acknowledged_kept::NAME, Planted::AckAfterPromise),
    (apply_bound::NAME, Planted::ApplyAtCommit),
    (durable_views::NAME, Planted::PromiseNotDurable),
    (ending_is_silent::NAME, Planted::AckWhileWritingOut),
    (equal_images::NAME, Planted::RedoBeyondParts),
    (executed_once::NAME, Planted::NoClientTable),
    (failed_disk_stops::NAME, Planted::SyncFailureIgnored),
    (glb_bound::NAME, Planted::TrimIgnoresAbsent),
    (healed_group_serves::NAME, Planted::RefuseWithoutCause),
    (held_by_members::NAME, Planted::CommitBeforeAllFormed),
    (linearizable::NAME, Planted::ReplyBeforeCommit),
    (log_survives::NAME, Planted::AckBeforeDurable),
    (longest_log::NAME, Planted::ShortestLogWins),
    (no_loop::NAME, Planted::RedoWithoutCare),
    (one_history::NAME, Planted::VoteUntagged),
    (one_lease::NAME, Planted::NoLeaseWait),
    (one_primary::NAME, Planted::CoordinatorLeads),
    (pointer_order::NAME, Planted::InstallTwice),
    (refusals::NAME, Planted::RefuseWithoutCause),
    (view_complete::NAME, Planted::AckAfterPromise),
    (votes::NAME, Planted::AmnesiaVotes),
    (witness_keeps_log::NAME, Planted::WitnessDropsLog),
];

/// The property with this name.
pub fn named(name: &str) -> Option<&'static str> {
    ALL.iter().map(|(known, _)| *known).find(|known| *known == name)
}

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub property: &'static str,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}

impl std::error::Error for Violation {}

/// What a check finds.
pub type Verdict = Result<(), Violation>;

/// The one property that is looked at, if only one is.
static ONLY: OnceLock<&'static str> = OnceLock::new();

/// From now on this process heeds no other property than this one of [`ALL`]: a bug that several see is then seen
/// by that one, or not at all. (What judges replies and healing still ends a world; that is no finding then.) Said
/// once, before the first world.
pub fn look_only_for(name: &'static str) {
    ONLY.set(name).expect("said once");
}

/// Fails with `what` unless `holds`; `what` is built only then.
pub(crate) fn require(
    property: &'static str,
    holds: bool,
    what: impl FnOnce() -> String,
) -> Verdict {
    let heeded = || ONLY.get().is_none_or(|only| *only == property);
    if !holds && heeded() { Err(Violation { property, what: what() }) } else { Ok(()) }
}

/// What the world sees of a server after each of its turns.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    /// Whose.
    pub server: harp_node::vr::ServerId,
    /// Which of its processes.
    pub life: u32,
    /// True time.
    pub at: u64,
    /// Whether it is a designated copy.
    pub copy: bool,
    /// Whether it takes part in `formed` as its primary.
    pub primary: bool,
    /// Whether it takes part in `formed` as a member.
    pub normal: bool,
    /// Whether it is a copy that is catching up.
    pub learner: bool,
    /// Whether it answers clients.
    pub serving: bool,
    /// Highest promised view.
    pub promised: harp_node::vr::View,
    /// Highest formed view.
    pub formed: harp_node::vr::View,
    /// Its members.
    pub members: harp_node::vr::ServerSet,
    /// End of the log that grows: its own, or one that is to replace it.
    pub fp: u64,
    /// First op of its own log.
    pub log_begin: u64,
    /// End of its own log.
    pub log_end: u64,
    /// Whether its own log holds nothing.
    pub log_empty: bool,
    /// Whether its own log is the complete one of `formed`.
    pub complete: bool,
    /// Known commit point.
    pub cp: u64,
    /// Applied up to here.
    pub ap: u64,
    /// Durable in the image up to here.
    pub lb: u64,
    /// Known GLB.
    pub glb: u64,
    /// The copies that need an image, by what it knows to be settled.
    pub marked: harp_node::vr::ServerSet,
    /// The newest override of the history it follows.
    pub overridden: harp_node::vr::Override,
    /// True time at which its lease ends, by its own clock; 0 without one.
    pub lease_until: u64,
}
