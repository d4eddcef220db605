//! What servers say to each other.
//! Owns: the messages of the protocol and what each carries; docs/protocol.md has the table.
//! Never: carries records itself; those that do name an op range and the caller attaches the bytes.
//! Invariant: every message travels in an [`Envelope`] with its sender's and receiver's incarnation (rule 6).

use crate::action::ConfigurationChange;
use crate::overriding::Override;
use crate::room::Room;
use crate::types::{Incarnation, Nanos, Op, SERVERS_MAX, ServerId, ServerSet, Shape, View};

/// The replicated configuration: who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// The admitted disk of each server; a server under another disk counts for nothing (rule 3).
    pub disks: [u64; SERVERS_MAX],
    /// Copies whose image cannot be brought up to date from the log alone (rule 10).
    pub needs_image: ServerSet,
    /// The newest operator override, with which this history began.
    pub overridden: Override,
}

/// A message with what rule 6 demands of every message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Sender.
    pub from: ServerId,
    /// The sender's incarnation.
    pub from_incarnation: Incarnation,
    /// The receiver's, as the sender last heard it; zero if it never did.
    pub to_incarnation: Incarnation,
    /// What is said.
    pub message: Message,
}

/// What a server tells of itself when it promises (rule 2: the material of the three predicates).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// Highest formed view.
    pub formed: View,
    /// Its members.
    pub members: ServerSet,
    /// First and last op of the log, if it may be voted: intact, complete, tagged `formed`.
    pub log: Option<(Op, Op)>,
    /// Highest op heard to be committed.
    pub cp: Op,
    /// LB of the image, if there is one that the log can bring up to date.
    pub image: Option<Op>,
    /// Highest known GLB.
    pub glb: Op,
    /// End of the committed prefix held so far while catching up; with it, records above are enough.
    pub level: Op,
    /// Nanoseconds for which an earlier primary may still count on this server's promise.
    pub lease_left: u64,
    /// The configuration at the log's end.
    pub configuration: Configuration,
    /// The configuration as far as it is committed: it says whose promises count.
    pub settled: Configuration,
    /// The override that `cp`, `image`, `files`, `glb` and `level` come after; that of `log` is in `settled`.
    pub branch: View,
    /// No record of a view above this one is in the image.
    pub reached: View,
    /// LB of a whole image, whether or not its disk counts: for an override.
    pub files: Option<Op>,
    /// AP: where the image will stand if nothing more comes.
    pub applied: Op,
}

impl Report {
    /// Up to here, by all that this says, operations are committed: what is in an image was, and what lies below GLB.
    pub(crate) fn committed(&self) -> Op {
        self.cp.max(self.glb).max(self.files.unwrap_or_default())
    }
}

/// Heartbeat between any two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Presence {
    /// Highest promised view.
    pub promised: View,
    /// Highest formed view.
    pub formed: View,
    /// Its members.
    pub members: ServerSet,
    /// Whether the sender is primary of `formed` and all members formed it.
    pub serving: bool,
    /// Whether the sender takes part in `formed` as a member right now.
    pub normal: bool,
    /// Known commit point.
    pub cp: Op,
    /// LB of the sender's image (0 without a whole one).
    pub lb: Op,
    /// How far the log is redone over an image that is being loaded; `None` without such a one. What lies above
    /// is needed.
    pub loading: Option<Op>,
    /// Known GLB.
    pub glb: Op,
    /// The override that `lb` and `loading` come after.
    pub branch: View,
    /// The configuration the sender knows; authoritative when `serving`.
    pub configuration: Configuration,
    /// What the sender could still take in.
    pub room: Room,
}

/// Phase 2: what the new view is and where its log is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Install {
    /// The view being formed.
    pub view: View,
    /// Its members.
    pub members: ServerSet,
    /// The formed view whose log is adopted.
    pub adopted: View,
    /// Who holds that log whole.
    pub holder: ServerId,
    /// The new log holds every op from here (at the latest) ...
    pub begin: Op,
    /// ... to here.
    pub end: Op,
    /// Known to be committed.
    pub cp: Op,
    /// Known GLB.
    pub glb: Op,
    /// Nanoseconds for which an earlier primary may still hold a lease.
    pub lease_left: u64,
    /// The configuration at `end`.
    pub configuration: Configuration,
}

/// The primary's word to a member: records, or none as a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prepare {
    /// The view.
    pub view: View,
    /// First op attached, or the op after the last sent when `last < first`.
    pub first: Op,
    /// Last op attached.
    pub last: Op,
    /// The primary's commit point.
    pub cp: Op,
    /// Its AP: members do not apply beyond it.
    pub ap: Op,
    /// GLB.
    pub glb: Op,
    /// Whether all members formed the view.
    pub all_formed: bool,
    /// The primary's clock when it sent this; echoed for the lease.
    pub sent: Nanos,
    /// Nanoseconds for which the primary's own oldest record has waited for its disk.
    pub stalled: u64,
}

/// A member's answer to [`Prepare`], cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrepareOk {
    /// The view.
    pub view: View,
    /// End of the member's log.
    pub received: Op,
    /// What it holds as durably as the group's setting asks.
    pub durable: Op,
    /// Its LB (0 at a witness).
    pub lb: Op,
    /// `sent` of the newest Prepare it heard; zero grants no lease.
    pub echo: Nanos,
    /// Whether records arrived beyond `received + 1`: the primary shall resend.
    pub gap: bool,
}

/// Everything servers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant)] // built, sent and dropped at once; the hot ones are the small ones
pub enum Message {
    /// Heartbeat; never dropped for its view.
    Presence(Presence),
    /// Phase 1: will you join `view`?
    Invite {
        /// The view to promise.
        view: View,
    },
    /// Phase 1: yes.
    Promise {
        /// The promised view.
        view: View,
        /// What the promising server holds.
        report: Report,
    },
    /// No: a higher view is promised, or the promise of this one was given up.
    Decline {
        /// The view that was asked for.
        view: View,
        /// The promise that forbids it.
        promised: View,
    },
    /// Phase 2.
    Install(Install),
    /// A member asks the holder for records of the adopted log from `from` on.
    Want {
        /// The view being formed.
        view: View,
        /// First op wanted.
        from: Op,
        /// Last op wanted: the adopted end.
        to: Op,
    },
    /// Records of the adopted log (attached).
    Grant {
        /// The view being formed.
        view: View,
        /// First op attached.
        first: Op,
        /// Last op attached.
        last: Op,
    },
    /// Phase 2: done, durably. Goes to the view's primary.
    Installed {
        /// The view.
        view: View,
        /// End of the installed log.
        end: Op,
    },
    /// Records or a heartbeat from the primary (records attached).
    Prepare(Prepare),
    /// The answer.
    PrepareOk(PrepareOk),
    /// A server that is not a member asks for committed records from `from` on.
    CatchUp {
        /// The formed view it heard of.
        view: View,
        /// First op wanted.
        from: Op,
    },
    /// Committed records (attached); never a vote.
    Past(Past),
    /// A copy without a whole image asks for a part of another's; where the part before ended is attached.
    ImageWant {
        /// The formed view it heard of.
        view: View,
        /// Number of the part; the first is 0.
        part: u64,
        /// The image may not be older.
        at_least: Op,
    },
    /// A part of the sender's image (attached), which is exact at `op`.
    ImagePart {
        /// The formed view of the sender.
        view: View,
        /// Number of the part.
        part: u64,
        /// Its op.
        op: Op,
    },
    /// A copy asks for a block of its image that is damaged; which one, and the checksum that it should have, is
    /// attached. It names no view: the checksum names the content.
    BlockWant {
        /// The op that its image is exact at.
        lb: Op,
    },
    /// The block (attached behind what was asked), if the sender has it.
    BlockGrant {
        /// The op that the sender's image is exact at.
        lb: Op,
    },
}

/// Committed records for a server that catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Past {
    /// The formed view of the sender.
    pub view: View,
    /// First op attached, or the op asked for when `last < first`: nothing newer yet.
    pub first: Op,
    /// Last op attached.
    pub last: Op,
    /// The sender's commit point.
    pub cp: Op,
    /// First op the sender still holds.
    pub begin: Op,
}

impl Configuration {
    /// Carries out a change that a record brought.
    pub fn change(&mut self, shape: Shape, change: ConfigurationChange) {
        match change {
            ConfigurationChange::Admit { server, disk } => {
                self.disks[server.index()] = disk;
                if shape.is_copy(server) {
                    self.needs_image.insert(server);
                }
            }
            ConfigurationChange::NeedsImage { server } => self.needs_image.insert(server),
            ConfigurationChange::HasImage { server } => self.needs_image.remove(server),
            ConfigurationChange::Overridden { .. } => {} // known since the view's log began
        }
    }
}
