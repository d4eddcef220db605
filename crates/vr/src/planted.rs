//! Rules broken on purpose, chosen at run time, to see that the checkers find each.
//! Owns: the list. The code asks [`crate::Replica::planted`] at the one place that each variant breaks.
//! Never: set in production; `harp` has no way to name one.

/// One rule of docs/protocol.md, "Rules", broken in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    /// Rule 1: a promise leaves before the view file is durable.
    PromiseNotDurable,
    /// Rule 1: a member goes on acknowledging the lower view after its promise.
    AckAfterPromise,
    /// Rule 2: a copy that coordinated a view leads it, whomever the others take for its primary.
    CoordinatorLeads,
    /// Rule 2: the primary commits when it alone has formed the view.
    CommitBeforeAllFormed,
    /// Rule 2: any complete log is voted, whatever view it is tagged with.
    VoteUntagged,
    /// Rule 2: the coordinator takes the shortest of the eligible logs.
    ShortestLogWins,
    /// Rule 2: a coordinator wants one promise more than it takes.
    RefuseWithoutCause,
    /// Rule 3: a log found damaged or missing is voted as an empty one.
    AmnesiaVotes,
    /// Rule 3: a member acknowledges what its disk has not confirmed.
    AckBeforeDurable,
    /// Rule 3: the mark of a log that was written out goes on counting when its server has started again.
    CleanMarkNotVoided,
    /// Rule 3: a log that was in memory, which is gone, is voted as far as it was written to the disk.
    TornWriteOutIsIntact,
    /// Rule 3: a server goes on while it writes its log out.
    AckWhileWritingOut,
    /// Rule 4: an emptied disk is formatted as on the first start and counts at once.
    MissingIsFirstStart,
    /// Rule 6: a phase 2 at or below the formed view is carried out again.
    InstallTwice,
    /// Rule 7: the primary answers reads without a lease.
    ReadWithoutLease,
    /// Rule 7: a new primary does not wait for promises made to the old one.
    NoLeaseWait,
    /// Rule 8: a failed sync counts as done.
    SyncFailureIgnored,
    /// Rule 9: the log is redone over an image beyond the parts that are still to come.
    RedoBeyondParts,
    /// Rule 10: GLB leaves absent copies out without a `needs image` mark.
    TrimIgnoresAbsent,
    /// Rule 10: a demoted witness drops its log though a copy that counts lacks records in it.
    WitnessDropsLog,
    /// An override leaves the disks of the servers that it names admitted, and their images good. It takes an
    /// operator to show: the scenarios of overrides hunt it.
    OldEpochVotes,
    /// Rule 14: what ended a process is redone without care.
    RedoWithoutCare,
    /// Section 3: a backup applies all that is committed, however far its primary is.
    ApplyAtCommit,
    /// Section 3: a reply leaves before CP covers its record.
    ReplyBeforeCommit,
    /// Section 3: a read shows records above CP.
    ReadAboveCommit,
    /// Section 3: the client table is not consulted for repeats.
    NoClientTable,
    /// Repair: a block that fails its checksum is shown as it is.
    DamageServed,
    /// Repair: a block written over a damaged one gets the checksum of what comes of it.
    DamageSealed,
}

impl Planted {
    /// All that random worlds show, with the names the command line takes.
    pub const ALL: [(Planted, &'static str); 27] = [
        (Planted::PromiseNotDurable, "promise-not-durable"),
        (Planted::AckAfterPromise, "ack-after-promise"),
        (Planted::CoordinatorLeads, "coordinator-leads"),
        (Planted::CommitBeforeAllFormed, "commit-before-all-formed"),
        (Planted::VoteUntagged, "vote-untagged"),
        (Planted::ShortestLogWins, "shortest-log-wins"),
        (Planted::RefuseWithoutCause, "refuse-without-cause"),
        (Planted::AmnesiaVotes, "amnesia-votes"),
        (Planted::AckBeforeDurable, "ack-before-durable"),
        (Planted::CleanMarkNotVoided, "clean-mark-not-voided"),
        (Planted::TornWriteOutIsIntact, "torn-write-out-is-intact"),
        (Planted::AckWhileWritingOut, "ack-while-writing-out"),
        (Planted::MissingIsFirstStart, "missing-is-first-start"),
        (Planted::InstallTwice, "install-twice"),
        (Planted::ReadWithoutLease, "read-without-lease"),
        (Planted::NoLeaseWait, "no-lease-wait"),
        (Planted::SyncFailureIgnored, "sync-failure-ignored"),
        (Planted::RedoBeyondParts, "redo-beyond-parts"),
        (Planted::TrimIgnoresAbsent, "trim-ignores-absent"),
        (Planted::WitnessDropsLog, "witness-drops-log"),
        (Planted::RedoWithoutCare, "redo-without-care"),
        (Planted::ApplyAtCommit, "apply-at-commit"),
        (Planted::ReplyBeforeCommit, "reply-before-commit"),
        (Planted::ReadAboveCommit, "read-above-commit"),
        (Planted::NoClientTable, "no-client-table"),
        (Planted::DamageServed, "damage-served"),
        (Planted::DamageSealed, "damage-sealed"),
    ];

    /// The variant with this name.
    pub fn named(name: &str) -> Option<Planted> {
        Planted::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p)
    }
}
