//! One server's part in the protocol: its state, and the events that reach it.
//! Owns: promised and formed view, the stage it is in, the pointers, what it knows of its peers.
//! Never: holds records; it knows the log by its ends only, and is told when they move.
//! Invariant: promised >= formed; copies GLB <= LB <= AP <= CP <= FP (docs/protocol.md, "Glossary").
//! Source: the Harp paper, section 4; docs/protocol.md, "Rules".

use crate::action::{Action, ConfigurationChange, Records};
use crate::coordinator::{Attempt, Refusal};
use crate::durable::Durable;
use crate::message::{Configuration, Envelope, Install, Message, Presence, Report};
use crate::overriding::Ordered;
use crate::planted::Planted;
use crate::rebuild::Loading;
use crate::room::Room;
use crate::types::{Incarnation, Nanos, Op, SERVERS_MAX, ServerId, ServerSet, Shape, View};

/// The protocol's settings. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The group's shape.
    pub shape: Shape,
    /// Which server this is.
    pub me: ServerId,
    /// No link stays silent longer than this.
    pub heartbeat: u64,
    /// Silence after which a server counts as failed.
    pub failure_timeout: u64,
    /// How long a member promises not to help another primary.
    pub lease: u64,
    /// By how much two clocks may differ in rate, in parts per million.
    pub clock_drift_ppm: u64,
    /// Whether a record counts when it is received (`ups`) or when it is on disk.
    pub ack_received: bool,
    /// A rule broken on purpose; `None` in production.
    pub planted: Option<Planted>,
}

/// What is known of a log by its ends. `end < begin` when it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogFacts {
    /// First op held.
    pub begin: Op,
    /// Last op held.
    pub end: Op,
    /// Last op held durably.
    pub durable: Op,
}

/// Where a server stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// In no running view: starting, catching up, or an idle witness.
    Outside { since: Nanos },
    /// Promised a view above the formed one; waiting for phase 2.
    Promised { coordinator: ServerId, since: Nanos },
    /// Bringing the log of a view together (phase 2).
    Installing { install: Install, coordinator: ServerId, since: Nanos, asked: Nanos, staged: bool },
    /// Member of the formed view, not its primary.
    Member { primary: ServerId, since: Nanos, heard: Nanos, primary_ap: Op, all_formed: bool },
    /// Primary of the formed view.
    Primary(PrimaryState),
}

/// What only a primary keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrimaryState {
    /// Members that formed the view.
    pub installed: ServerSet,
    /// Before this, promises made to an earlier primary may still run (rule 7).
    pub quiet_until: Nanos,
    /// End of the log that the view began with.
    pub adopted_end: Op,
    /// When the view was formed here.
    pub since: Nanos,
}

/// What is known of another server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub incarnation: Incarnation,
    /// When it was last heard; zero: never.
    pub heard: Nanos,
    pub presence: Option<Presence>,
    /// Next op to send it (primary).
    pub next: Op,
    pub received: Op,
    pub durable: Op,
    /// Its LB as last heard.
    pub lb: Op,
    /// Where the image that it loads stands, or has loaded and is still marked: trimming waits for it.
    pub stands: Option<Op>,
    /// The log was at its bound when that image stood here: trimming does not wait for it any more.
    pub let_go: Option<Op>,
    /// Newest of our sending times it acknowledged: its promise counts from there.
    pub echo: Nanos,
    /// When it last acknowledged anything in this view, or made progress on the oldest record.
    pub acked: Nanos,
    pub progressed: Nanos,
    /// When something was last sent to it as primary.
    pub prepared: Nanos,
    pub told_cp: Op,
}

/// The running view as a server outside of it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Running {
    pub view: View,
    pub members: ServerSet,
    pub primary: ServerId,
    pub cp: Op,
    pub heard: Nanos,
}

/// A committed prefix being gathered outside of the current log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Staged {
    pub begin: Op,
    pub end: Op,
    /// Records above this came in a phase 2 and may be uncommitted.
    pub committed: Op,
}

/// One server's protocol state machine. Every method takes the time from the caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Replica {
    pub(crate) settings: Settings,
    pub(crate) durable: Durable,
    pub(crate) persist_issued: u64,
    pub(crate) persist_done: u64,
    pub(crate) log: LogFacts,
    /// The view the current log is tagged with, if it may be voted.
    pub(crate) tag: Option<View>,
    pub(crate) staged: Option<Staged>,
    /// LB of the image, or where one that is being loaded stands; `None` at a witness.
    pub(crate) image: Option<Op>,
    /// The image is not whole.
    pub(crate) loading: Option<Loading>,
    pub(crate) ap: Op,
    /// Ops up to here are known to be committed, whatever this server holds.
    pub(crate) cp: Op,
    /// The current log is known to agree with committed history up to here.
    pub(crate) agreed: Op,
    pub(crate) glb: Op,
    /// The override that what is known of CP, GLB and the staged log comes after. That of the image is in the view
    /// file, that of the current log in its configuration.
    pub(crate) branch: View,
    /// An operator's override under way.
    pub(crate) order: Option<Ordered>,
    /// At the end of the current log.
    pub(crate) configuration: Configuration,
    /// Changes in the current log that the view file does not know yet.
    pub(crate) changes: Vec<(Op, ConfigurationChange)>,
    /// At a copy: changes in the current log that its image does not have, and what each of them changed.
    pub(crate) before: Vec<(Op, Configuration)>,
    pub(crate) peers: [Peer; SERVERS_MAX],
    pub(crate) stage: Stage,
    pub(crate) attempt: Option<Attempt>,
    /// An adoption under way on disk: its install, and whether a swap.
    pub(crate) tagging: Option<Install>,
    pub(crate) running: Option<Running>,
    /// Until when this server promised some primary not to help another (rule 7).
    pub(crate) promise_until: Nanos,
    pub(crate) ack_due: bool,
    pub(crate) ack_echo: Nanos,
    pub(crate) ack_gap: bool,
    pub(crate) presence_at: Nanos,
    pub(crate) catch_up_at: Nanos,
    pub(crate) retry_at: Nanos,
    pub(crate) retries: u32,
    pub(crate) serving: bool,
    pub(crate) admitting: ServerSet,
    pub(crate) refusing: Option<Refusal>,
    /// Why this copy applies nothing any more.
    pub(crate) halted: Option<String>,
    /// How long the own log's oldest record has waited for the disk, told by the caller.
    pub(crate) stalled: u64,
    /// What this server could still take in.
    pub(crate) room: Room,
    /// Until when a slow server is left out of new views.
    pub(crate) excluded_until: [Nanos; SERVERS_MAX],
}

/// What a server finds when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The view file's content, its incarnation already raised for this start.
    pub durable: Durable,
    /// Sequence number of the last durable view-file write.
    pub persist_sequence: u64,
    /// The log on disk.
    pub log: LogFacts,
    /// The tag of the log, if it is intact and complete.
    pub tag: Option<View>,
    /// The members in the log's tag.
    pub tag_members: ServerSet,
    /// The configuration kept with the log's tag.
    pub tag_configuration: Configuration,
    /// Ops up to here are known to be committed.
    pub cp: Op,
    /// LB of the image; `None` at a witness.
    pub image: Option<Op>,
    /// Whether it is whole; one whose loading was interrupted is not.
    pub image_whole: bool,
}

impl Replica {
    /// A server that starts at `now`. It is outside of every view until a view change takes it in (rule 6).
    pub fn new(settings: Settings, start: Start, now: Nanos) -> Replica {
        let mut durable = start.durable;
        if let Some(tag) = start.tag.filter(|tag| *tag > durable.formed) {
            // Rule 2: the swap happened, the view file was not yet written.
            durable.formed = tag;
            durable.members = start.tag_members;
            durable.configuration = start.tag_configuration;
            durable.settled = start.log.end;
            durable.promised = durable.promised.max(tag);
            durable.branch = start.tag_configuration.overridden.view;
        }
        let amnesia_votes = settings.planted == Some(Planted::AmnesiaVotes);
        let tag = if amnesia_votes { Some(durable.formed) } else { start.tag };
        let glb = Op(start.log.begin.0.saturating_sub(1));
        let unloaded = start.image.is_some() && !start.image_whole;
        let image = if unloaded { Some(Op::ZERO) } else { start.image };
        // What the log knows to be committed, and how far it was trimmed, may be of a history that was overridden since.
        let same = durable.branch == durable.configuration.overridden.view;
        let known = if same { start.cp } else { Op::ZERO };
        let cp = known.max(image.unwrap_or_default());
        let mut replica = Replica {
            settings,
            durable,
            persist_issued: start.persist_sequence,
            persist_done: start.persist_sequence,
            log: start.log,
            tag,
            staged: None,
            image,
            loading: unloaded.then(Loading::new),
            ap: image.unwrap_or_default(),
            cp,
            agreed: known.min(start.log.end),
            glb: if same && start.tag.is_some() { glb.min(image.unwrap_or(glb)) } else { Op::ZERO },
            branch: durable.branch,
            order: None,
            configuration: durable.configuration,
            changes: Vec::new(),
            before: Vec::new(),
            peers: [Peer::default(); SERVERS_MAX],
            stage: Stage::Outside { since: now },
            attempt: None,
            tagging: None,
            running: None,
            promise_until: now.plus(settings.lease),
            ack_due: false,
            ack_echo: Nanos(0),
            ack_gap: false,
            presence_at: Nanos(0),
            catch_up_at: Nanos(0),
            retry_at: now.plus(settings.failure_timeout + settings.patience()),
            retries: 0,
            serving: false,
            admitting: ServerSet::EMPTY,
            refusing: None,
            halted: None,
            stalled: 0,
            room: Room::ENDLESS,
            excluded_until: [Nanos(0); SERVERS_MAX],
        };
        if replica.settings.planted != Some(Planted::VoteUntagged)
            && replica.tag != Some(durable.formed)
        {
            replica.tag = None;
        }
        replica
    }

    // ----- facts the caller reads -----

    /// Highest promised view.
    pub fn promised(&self) -> View {
        self.durable.promised
    }

    /// Highest formed view.
    pub fn formed(&self) -> View {
        self.durable.formed
    }

    /// The members of the formed view.
    pub fn members(&self) -> ServerSet {
        self.durable.members
    }

    /// Number of the newest view-file write that was asked for.
    pub fn persisting(&self) -> u64 {
        self.persist_issued
    }

    /// The view file's content as it stands (perhaps not yet durable).
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// The commit point as far as this server holds the records: in the staged log while it gathers one,
    /// else in the current log. What is known beyond is not counted: the current log may differ there.
    pub fn cp(&self) -> Op {
        let held = match &self.staged {
            Some(staged) => staged.committed.min(staged.end),
            None => self.agreed,
        };
        held.max(self.image.unwrap_or_default())
    }

    /// Records up to here are applied.
    pub fn ap(&self) -> Op {
        self.ap
    }

    /// Lowest LB among the copies that count.
    pub fn glb(&self) -> Op {
        self.glb
    }

    /// End of the current log.
    pub fn fp(&self) -> Op {
        self.log.end
    }

    /// The configuration right after `op`, which the image does not lie above.
    pub fn configuration_at(&self, op: Op) -> &Configuration {
        let later = self.before.iter().find(|(change, _)| *change > op);
        later.map_or(&self.configuration, |(_, before)| before)
    }

    /// The replicated configuration.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether this server is the primary of its formed view (it may append records).
    pub fn is_primary(&self) -> bool {
        matches!(self.stage, Stage::Primary(_))
    }

    /// Whether this server takes part in its formed view.
    pub fn is_normal(&self) -> bool {
        matches!(self.stage, Stage::Primary(_) | Stage::Member { .. })
    }

    /// Whether clients may be served: primary, and all members formed the view.
    pub fn is_serving(&self) -> bool {
        self.serving
    }

    /// Whether this server's log may be voted.
    pub fn votes(&self) -> bool {
        self.tag.is_some() && !self.durable.log_void
    }

    /// Whether the server gathers records into the staged log.
    pub fn is_staging(&self) -> bool {
        self.staged.is_some()
    }

    /// Who serves clients, and in which view, as far as this server has heard lately.
    pub fn serving(&self, now: Nanos) -> Option<(View, ServerId)> {
        if self.serving {
            return Some((self.durable.formed, self.settings.me));
        }
        let heard = self.others().filter_map(|server| {
            let presence = self.peers[server.index()].presence?;
            let counts = presence.serving && presence.formed >= self.durable.formed;
            (counts && !self.is_silent(now, server)).then_some((presence.formed, server))
        });
        heard.max()
    }

    /// The primary of the view that this server is in or has heard of running.
    pub fn primary(&self) -> Option<ServerId> {
        match &self.stage {
            Stage::Primary(_) => Some(self.settings.me),
            Stage::Member { primary, .. } => Some(*primary),
            _ => self.running.map(|r| r.primary),
        }
    }

    /// Up to where this server may apply: CP; at a backup not beyond its primary's AP; over an image that is
    /// being loaded not beyond what is still to come.
    pub fn may_apply(&self) -> Op {
        match (&self.stage, self.redo_limit()) {
            (Stage::Member { .. }, _) if self.planted(Planted::ApplyAtCommit) => self.cp(),
            (Stage::Member { primary_ap, .. }, _) => self.cp().min(*primary_ap),
            (_, Some(limit)) => self.cp().min(limit),
            (_, None) => self.cp(),
        }
    }

    /// Why no view can form, if this server tried to form one and could not.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusing.as_ref()
    }

    /// A word on what the server is doing, for `harp status`.
    pub fn state(&self) -> String {
        if let Some(why) = &self.halted {
            return format!("refusing: {why}");
        }
        if let Some(refusal) = &self.refusing {
            return format!("refusing: {refusal}");
        }
        match &self.stage {
            Stage::Primary(_) | Stage::Member { .. } => "normal".into(),
            Stage::Promised { .. } | Stage::Installing { .. } => "view-change".into(),
            Stage::Outside { .. } if self.settings.shape.is_copy(self.settings.me) => {
                "recovering".into()
            }
            Stage::Outside { .. } if self.running.is_some() => "normal".into(),
            Stage::Outside { .. } => "recovering".into(),
        }
    }

    /// Whether a rule is broken on purpose here.
    pub fn planted(&self, bug: Planted) -> bool {
        self.settings.planted == Some(bug)
    }

    /// `message` addressed to `to`, with the incarnations that rule 6 demands.
    pub fn envelope(&self, to: ServerId, message: Message) -> Envelope {
        Envelope {
            from: self.settings.me,
            from_incarnation: self.durable.incarnation,
            to_incarnation: self.peers[to.index()].incarnation,
            message,
        }
    }

    // ----- events -----

    /// A message arrived. Returns what to do with attached records.
    pub fn on_message(
        &mut self,
        now: Nanos,
        envelope: &Envelope,
        out: &mut Vec<Action>,
    ) -> Records {
        let from = envelope.from;
        if from == self.settings.me || !self.settings.shape.servers().any(|s| s == from) {
            return Records::Ignore;
        }
        let known = self.peers[from.index()].incarnation;
        let theirs = envelope.from_incarnation;
        if theirs.disk == known.disk && theirs.start < known.start {
            return Records::Ignore; // an earlier life of the sender
        }
        if theirs != known {
            self.on_new_incarnation(from, theirs);
        }
        let to_me = envelope.to_incarnation == self.durable.incarnation;
        self.peers[from.index()].heard = now;
        match envelope.message {
            Message::Presence(presence) => self.on_presence(now, from, presence, out),
            Message::Invite { view } => self.on_invite(now, from, view, out),
            Message::Promise { view, report } if to_me => {
                self.on_promise(now, from, theirs, view, report, out)
            }
            Message::Decline { promised, .. } => self.on_decline(now, from, promised),
            Message::Install(install) if to_me || self.planted(Planted::InstallTwice) => {
                self.on_install(now, from, install, out)
            }
            _ if !to_me => {}
            Message::Want { view, from: first, to } => self.on_want(from, view, first, to, out),
            Message::Grant { view, first, last } => return self.on_grant(view, first, last),
            Message::Installed { view, end } => self.on_installed(now, from, view, end, out),
            Message::Prepare(prepare) => return self.on_prepare(now, from, prepare, out),
            Message::PrepareOk(ok) => self.on_prepare_ok(now, from, ok),
            Message::CatchUp { view, from: first } => self.on_catch_up(from, view, first, out),
            Message::Past(past) => return self.on_past(now, past, out),
            Message::ImageWant { view, part, at_least } => {
                return self.on_image_want(view, part, at_least);
            }
            Message::ImagePart { view, part, op } => return self.on_image_part(view, part, op),
            Message::BlockWant { lb } => return self.on_block_want(from, lb),
            Message::BlockGrant { lb } => return self.on_block_grant(from, lb),
            Message::Promise { .. } | Message::Install(_) => {}
        }
        Records::Ignore
    }

    /// The sender restarted, or lost its disk: nothing it acknowledged before counts for this life.
    fn on_new_incarnation(&mut self, from: ServerId, incarnation: Incarnation) {
        let peer = &mut self.peers[from.index()];
        let same_disk = peer.incarnation.disk == incarnation.disk;
        let lb = if same_disk { peer.lb } else { Op::ZERO };
        *peer = Peer { incarnation, lb, ..Peer::default() };
        match &mut self.stage {
            // Its promises and acknowledgements died with it; only a view change brings it back.
            Stage::Primary(state) => state.installed.remove(from),
            Stage::Member { primary, heard, .. } if *primary == from => *heard = Nanos(0),
            _ => {}
        }
    }

    /// The view-file write `sequence` is durable.
    pub fn on_persisted(&mut self, now: Nanos, sequence: u64, out: &mut Vec<Action>) {
        assert!(sequence <= self.persist_issued, "a view-file write nobody asked for");
        self.persist_done = self.persist_done.max(sequence);
        self.after_persist(now, out);
    }

    /// Records were appended to the current log (`staged` false) or to the staged one; `end` is its end.
    pub fn on_appended(&mut self, now: Nanos, staged: bool, end: Op, out: &mut Vec<Action>) {
        if staged {
            let s = self.staged.as_mut().expect("records for a staged log that is not there");
            assert!(end >= s.end, "a staged log only grows");
            s.end = end;
            s.committed = s.committed.max(end.min(self.cp));
        } else {
            assert!(end >= self.log.end, "the log only grows");
            self.log.end = end;
        }
        match self.stage {
            Stage::Installing { .. } => self.progress_install(now, out),
            // There may be more: whoever catches up under load cannot wait for the next heartbeat.
            Stage::Outside { .. } => self.catch_up(now, out),
            _ => {}
        }
    }

    /// The current log is durable up to `durable`.
    pub fn on_durable(&mut self, now: Nanos, durable: Op) {
        assert!(durable <= self.log.end, "durable beyond the log's end");
        if durable > self.log.durable {
            self.log.durable = durable;
            self.ack_due = true;
        }
        self.advance_cp(now);
    }

    /// The image is exact at `lb`, durably.
    pub fn on_checkpoint(&mut self, lb: Op) {
        let image = self.image.as_mut().expect("only copies checkpoint");
        assert!(lb >= *image && lb <= self.ap, "LB {lb} must lie in {image}..={}", self.ap);
        *image = lb;
        self.before.retain(|(op, _)| *op > lb);
        self.advance_glb();
    }

    /// Records up to `ap` are applied.
    pub fn on_applied(&mut self, ap: Op) {
        assert!(ap <= self.cp(), "AP {ap} beyond CP {}", self.cp());
        self.ap = self.ap.max(ap);
    }

    /// The records above LB were forgotten, to be applied again from another log.
    pub fn on_reapply(&mut self) {
        self.ap = self.image.expect("only copies apply");
    }

    /// The caller's log holds nothing below `begin` any more.
    pub fn on_trimmed(&mut self, begin: Op) {
        // Where it stood was right when it came there: GLB may be another history's since (an override).
        let moves = begin > self.log.begin;
        let votes = moves && self.tag.is_some() && self.settings.planted.is_none();
        assert!(!votes || begin.0 <= self.glb.0 + 1, "trimmed to {begin} beyond GLB {}", self.glb);
        self.log.begin = self.log.begin.max(begin);
    }

    /// The staged log's begin moved up (a standby's bounded tail, or trimming).
    pub fn on_staged_trimmed(&mut self, begin: Op) {
        if let Some(staged) = &mut self.staged {
            staged.begin = staged.begin.max(begin);
        }
    }

    /// A record at `op` that changes the configuration was appended to the current log, or is replayed
    /// from it at start.
    pub fn on_configuration(&mut self, op: Op, change: ConfigurationChange) {
        if op > self.durable.settled {
            if self.image.is_some() {
                self.before.push((op, self.configuration));
            }
            self.configuration.change(self.settings.shape, change);
            self.changes.push((op, change));
        }
        self.no_longer_logging(change);
        self.advance_glb();
    }

    fn no_longer_logging(&mut self, change: ConfigurationChange) {
        match change {
            ConfigurationChange::Admit { server, .. }
            | ConfigurationChange::HasImage { server } => self.admitting.remove(server),
            ConfigurationChange::NeedsImage { .. } | ConfigurationChange::Overridden { .. } => {}
        }
    }

    /// Committed changes go to the view file, before their records can be trimmed.
    pub(crate) fn settle_configuration(&mut self, out: &mut Vec<Action>) {
        let settled = self.changes.iter().take_while(|(op, _)| *op <= self.agreed).count();
        if settled == 0 {
            return;
        }
        for (op, change) in self.changes.drain(..settled) {
            self.durable.configuration.change(self.settings.shape, change);
            self.durable.settled = op;
        }
        // A mark acts from here on, before anybody asks whether it may be taken back.
        self.advance_glb();
        self.persist(out);
    }

    /// The change that [`Action::LogConfiguration`] asked for could not be logged; it is asked for again.
    pub fn on_configuration_refused(&mut self, change: ConfigurationChange) {
        self.no_longer_logging(change);
    }

    /// The staged log is gone with the log that was dropped.
    pub fn on_staged_dropped(&mut self) {
        self.staged = None;
    }

    /// The caller's view of its own disk: nanoseconds the oldest record has waited.
    pub fn on_stall(&mut self, nanos: u64) {
        self.stalled = nanos;
    }

    /// A write to the log failed (rule 8): the view file is to say so before the process ends.
    pub fn void_log(&mut self, out: &mut Vec<Action>) {
        self.durable.log_void = true;
        self.persist(out);
    }

    // ----- shared by the stages -----

    pub(crate) fn persist(&mut self, out: &mut Vec<Action>) {
        assert!(self.durable.promised >= self.durable.formed, "promised below formed");
        self.persist_issued += 1;
        out.push(Action::Persist { sequence: self.persist_issued, durable: self.durable });
    }

    /// What this server says of itself to a coordinator.
    pub fn report(&self, now: Nanos) -> Report {
        let votable = self.votes();
        assert!(
            !votable || self.tag == Some(self.durable.formed) || self.settings.planted.is_some(),
            "a votable log is tagged with the formed view"
        );
        let whole = self.has_image() && !self.is_halted() && !self.image_is_void();
        let files = self.image.filter(|_| whole);
        Report {
            formed: self.durable.formed,
            members: self.durable.members,
            log: votable.then_some((self.log.begin, self.log.end)),
            cp: self.cp,
            image: files.filter(|_| self.is_admitted()),
            glb: self.glb,
            level: self.staged.map_or(Op::ZERO, |s| s.committed.min(s.end)),
            lease_left: self.promise_until.since(now),
            configuration: self.configuration,
            settled: self.durable.configuration,
            branch: self.branch,
            reached: self.durable.formed.max(self.durable.learned),
            files,
            applied: self.ap,
        }
    }

    /// GLB as the primary knows it: the lowest LB of the copies that count.
    pub(crate) fn advance_glb(&mut self) {
        let Stage::Primary(state) = &self.stage else { return };
        // A member that has not formed the view yet may ask for all of the log that the view began with.
        // The marks that the view began with count once its beginning is committed.
        let formed_by_all = self.durable.members.iter().all(|m| state.installed.contains(m));
        if !formed_by_all || self.cp < state.adopted_end {
            return;
        }
        let trims_absent = self.planted(Planted::TrimIgnoresAbsent);
        let members = self.durable.members;
        let me = self.settings.me;
        // A mark counts once it is committed, and no longer when a record takes it away, though another mark follow
        // that one: if the log ends between them, the copy has an image.
        let given_up = |c: &ServerId| {
            let taken_back = ConfigurationChange::HasImage { server: *c };
            self.durable.configuration.needs_image.contains(*c)
                && !self.changes.iter().any(|(_, change)| *change == taken_back)
        };
        let counted = self
            .settings
            .shape
            .copies()
            .filter(|c| members.contains(*c) || !trims_absent && !given_up(c));
        let lb = |c: ServerId| {
            if c == me { self.image.unwrap_or_default() } else { self.peers[c.index()].lb }
        };
        let held_back = if trims_absent { None } else { self.held_back() };
        if let Some(glb) = counted.map(lb).chain(held_back).min() {
            self.glb = self.glb.max(glb);
        }
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = ServerId> + use<> {
        let me = self.settings.me;
        self.settings.shape.servers().filter(move |s| *s != me)
    }

    pub(crate) fn is_silent(&self, now: Nanos, server: ServerId) -> bool {
        let heard = self.peers[server.index()].heard;
        heard == Nanos(0) || now.since(heard) > self.settings.failure_timeout
    }

    /// How many servers, this one included, were heard lately.
    pub(crate) fn reachable(&self, now: Nanos) -> usize {
        1 + self.others().filter(|s| !self.is_silent(now, *s)).count()
    }

    pub(crate) fn me_index(&self) -> usize {
        self.settings.me.index()
    }
}

impl Settings {
    /// How long this server lets designated copies before it go first.
    pub(crate) fn patience(&self) -> u64 {
        self.me.0 as u64 * self.failure_timeout / 2
    }

    /// `lease` as the primary counts it: shortened by what clocks may differ.
    pub(crate) fn lease_trusted(&self) -> u64 {
        self.lease - 2 * self.lease * self.clock_drift_ppm / 1_000_000
    }

    /// `nanos` of another clock, lengthened by what clocks may differ.
    pub(crate) fn lengthened(&self, nanos: u64) -> u64 {
        nanos + 2 * nanos * self.clock_drift_ppm / 1_000_000 + u64::from(nanos > 0)
    }
}
