//! The observer: sees every turn, message, slot, commit and reply, and checks all properties.
//! Owns: the requests ever made, the model, and what each property remembers.
//! Never: is seen by a server; nothing flows back into the world but a violation.
//! Invariant: a commit is observed before any reply that shows it is judged.

use harp_node::fs::request::Status;
use harp_node::vr::{
    ConfigurationChange, Durable, Envelope, Incarnation, Message as Said, SERVERS_MAX, ServerId,
    ServerSet, Shape, View,
};
use harp_node::wire::{mount, nfs3, rpc};

use crate::hash::hash;
use crate::intent::Intent;
use crate::model::{Answer, Content, Ino, Model};
use crate::network::Message;
use crate::properties::linearizable::{self, Window};
use crate::properties::{
    Pulse, Verdict, Violation, acknowledged_kept::AcknowledgedKept, apply_bound::ApplyBound,
    durable_views::DurableViews, ending_is_silent::EndingIsSilent, equal_images::EqualImages,
    executed_once::ExecutedOnce, failed_disk_stops::FailedDiskStops, glb_bound::GlbBound,
    held_by_members::HeldByMembers, log_survives::LogSurvives, longest_log::LongestLog,
    no_loop::NoLoop, one_history::OneHistory, one_lease::OneLease, one_primary::OnePrimary,
    override_keeps, pointer_order, refusals::Refusals, view_complete::ViewComplete, votes::Votes,
    witness_keeps_log::WitnessKeepsLog,
};

const REAL_TIME: &str = "15, operations follow real time";
/// Transaction ids are request numbers above this.
const XID_BASE: u32 = 0x5100_0000;

/// The transaction id of a request.
pub(crate) fn xid_of(number: u32) -> u32 {
    XID_BASE + number
}

/// A request that some client made.
#[derive(Debug)]
pub struct Request {
    /// Which client.
    pub client: u32,
    /// What it wants.
    pub intent: Intent,
    /// The whole call; emptied once answered.
    pub bytes: Vec<u8>,
    /// What it takes from the newest reply that left a server.
    pub answer: Answer,
    /// Whether a reply reached the client.
    pub answered: bool,
    /// What any client knew when it was made.
    from: u64,
    /// The op that the newest reply shows.
    shows: u64,
    /// The object it made or changed when it was carried out.
    touched: Option<Ino>,
}

/// A committed record, as a server holds it.
#[derive(Clone, Copy, Debug)]
pub struct CommittedRecord {
    /// Its op.
    pub op: u64,
    /// Its checksum.
    pub crc: u32,
    /// The view in which it was appended.
    pub view: View,
    /// The transaction id of the request that it answers, if it answers one.
    pub xid: Option<u32>,
    /// How it changes the configuration, if it does.
    pub change: Option<ConfigurationChange>,
}

/// What was counted on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests made.
    pub issued: u64,
    /// Requests answered.
    pub answered: u64,
    /// Replies that left servers, repeats included.
    pub replies: u64,
    /// Replies that asked to try again later.
    pub put_off: u64,
    /// Views that a primary formed.
    pub views: u64,
}

/// The observer.
#[derive(Debug)]
pub struct Observer {
    shape: Shape,
    /// All requests, by number.
    pub requests: Vec<Request>,
    oldest_open: u32,
    /// The model, after every committed op.
    pub model: Model,
    /// Counted on the way.
    pub counts: Counts,
    /// Property 1.
    pub acknowledged: AcknowledgedKept,
    /// Property 2.
    pub history: OneHistory,
    /// Property 16.
    pub images: EqualImages,
    /// Property 17.
    pub failed_disk: FailedDiskStops,
    /// Rule 3, of a log that is written out.
    pub ending: EndingIsSilent,
    /// Rule 2 (c).
    pub longest_log: LongestLog,
    /// Property 9.
    pub votes: Votes,
    /// Rule 14.
    pub no_loop: NoLoop,
    /// Property 18.
    pub refusals: Refusals,
    witness_log: WitnessKeepsLog,
    apply_bound: ApplyBound,
    one_primary: OnePrimary,
    durable_views: DurableViews,
    held: HeldByMembers,
    survives: LogSurvives,
    one_lease: OneLease,
    clocks_keep_bound: bool,
    view_complete: ViewComplete,
    executed: ExecutedOnce,
    glb_bound: GlbBound,
    /// The newest override that a primary served under.
    pub branch: View,
    /// How far the history before each override was kept.
    pub overrides: Vec<u64>,
    /// Nothing of the past is forgotten: somebody may go back to it.
    pub keeps_past: bool,
    /// Each server's newest pulse.
    pulses: [Option<Pulse>; SERVERS_MAX],
    /// Whether each server's log held nothing at its last turn.
    empty_logs: [bool; SERVERS_MAX],
    needs_image: ServerSet,
    fresh: Vec<CommittedRecord>,
}

impl Observer {
    /// An observer of a group of this shape. Leases are compared only if clocks keep their bound.
    pub fn new(shape: Shape, clocks_keep_bound: bool) -> Observer {
        Observer {
            clocks_keep_bound,
            shape,
            requests: Vec::new(),
            oldest_open: 0,
            model: Model::default(),
            counts: Counts::default(),
            acknowledged: AcknowledgedKept::default(),
            history: OneHistory::default(),
            images: EqualImages::default(),
            failed_disk: FailedDiskStops::default(),
            ending: EndingIsSilent::default(),
            longest_log: LongestLog::default(),
            votes: Votes::default(),
            no_loop: NoLoop::default(),
            refusals: Refusals::default(),
            witness_log: WitnessKeepsLog::default(),
            apply_bound: ApplyBound::default(),
            one_primary: OnePrimary::default(),
            durable_views: DurableViews::default(),
            held: HeldByMembers::default(),
            survives: LogSurvives::default(),
            one_lease: OneLease::default(),
            view_complete: ViewComplete::default(),
            executed: ExecutedOnce::default(),
            glb_bound: GlbBound::default(),
            branch: View::NONE,
            overrides: Vec::new(),
            keeps_past: false,
            pulses: [None; SERVERS_MAX],
            empty_logs: [true; SERVERS_MAX],
            needs_image: ServerSet::EMPTY,
            fresh: Vec::new(),
        }
    }

    /// A client makes a request as the user `uid`. Returns its number; its bytes are ready.
    pub fn invoke(&mut self, client: u32, uid: u32, intent: Intent, mut bytes: Vec<u8>) -> u32 {
        let number = self.requests.len() as u32;
        let model = &self.model;
        let handle = |ino| model.handle(ino).expect("clients ask for what replies showed");
        bytes.clear();
        intent.encode(xid_of(number), uid, handle, &mut bytes);
        let from = self.acknowledged.acknowledged();
        let answer = Answer::default();
        let (answered, shows, touched) = (false, 0, None);
        self.requests.push(Request {
            client,
            intent,
            bytes,
            answer,
            answered,
            from,
            shows,
            touched,
        });
        self.counts.issued += 1;
        number
    }

    /// The number of the request with this transaction id.
    pub(crate) fn number_of(&self, xid: u32) -> Option<u32> {
        let number = xid.checked_sub(XID_BASE)?;
        ((number as usize) < self.requests.len()).then_some(number)
    }

    /// A reply reached its client for the first time. Returns the call's buffer, to be used again.
    pub fn answered(&mut self, number: u32) -> Vec<u8> {
        let request = &mut self.requests[number as usize];
        assert!(!request.answered, "answered once");
        request.answered = true;
        let bytes = std::mem::take(&mut request.bytes);
        let put_off = request.answer.status == Some(Status::JukeBox);
        let shows = request.shows;
        self.counts.answered += 1;
        self.counts.put_off += put_off as u64;
        self.acknowledged.told(shows);
        while self.requests.get(self.oldest_open as usize).is_some_and(|request| request.answered) {
            self.oldest_open += 1;
        }
        let oldest = self.requests.get(self.oldest_open as usize);
        let acknowledged = self.acknowledged.acknowledged();
        let floor = oldest.map_or(acknowledged, |oldest| oldest.from);
        self.model.floor = if self.keeps_past { 0 } else { floor };
        bytes
    }

    /// A message arrived at `at`, whose life is `own`.
    pub fn message_arrived(&mut self, at: ServerId, own: Incarnation, message: &Message, now: u64) {
        let (life, to) = message.lives;
        let newest = self.refusals.heard(at, message.from, life, now);
        if let Some((view, report)) = &message.report {
            self.longest_log.arrived(at, *view, report);
            if newest && to == own {
                self.refusals.promised(at, message.from, *view, (life.disk, *report));
            }
        }
    }

    /// A server has just started: it had this view file, and this state.
    pub fn booted(&mut self, pulse: &Pulse) -> Verdict {
        if self.follows(pulse) {
            self.glb_bound.check(pulse, self.needs_image.contains(pulse.server))?;
            self.witness_log.check(self.shape, pulse, self.needs_image)?;
        }
        self.survives.check(pulse)
    }

    /// Whether a server is of the newest epoch; another's pointers mean nothing to this one.
    fn follows(&self, pulse: &Pulse) -> bool {
        pulse.overridden.view == self.branch
    }

    /// Whether the primary of this pulse is the first to serve after an operator's override.
    pub fn is_overridden(&self, pulse: &Pulse) -> bool {
        pulse.serving && pulse.overridden.view > self.branch
    }

    /// An operator's override is done: the primary of this pulse serves with a log of these records. What the
    /// override gave up never happened.
    pub fn overridden(
        &mut self,
        pulse: &Pulse,
        needs_image: ServerSet,
        records: impl Iterator<Item = CommittedRecord>,
    ) -> Verdict {
        let overridden = pulse.overridden;
        let (cut, committed) = (overridden.cut.0, self.history.committed());
        let mut differing = records.filter(|r| !self.history.agrees(r.op, r.crc, r.view));
        let kept = differing.next().map_or(cut, |record| record.op - 1).min(cut).min(committed);
        let adopted = self.view_complete.committed_upto(overridden.adopted);
        override_keeps::check(&overridden, kept, committed, adopted)?;
        self.branch = overridden.view;
        self.overrides.push(kept);
        self.history.overridden(kept);
        self.acknowledged.overridden(kept);
        self.images.overridden();
        self.executed.overridden(kept);
        self.view_complete.overridden(kept);
        self.glb_bound.overridden(pulse.server, pulse.glb);
        self.witness_log.overridden();
        self.model.overridden(kept, cut);
        self.needs_image = needs_image;
        for request in &mut self.requests {
            request.from = request.from.min(kept);
            if request.shows > kept && !request.answered {
                request.answer = Answer::default();
            }
            request.shows = request.shows.min(kept);
        }
        Ok(())
    }

    /// A server's process ended.
    pub fn ended(&mut self, server: ServerId) {
        self.pulses[server.index()] = None;
        self.refusals.ended(server);
        self.glb_bound.ended(server);
        self.one_lease.ended(server);
    }

    /// The world damaged the log of `server`, which had formed `view`. An empty log has nothing to lose.
    pub fn log_damaged(&mut self, server: ServerId, view: View) {
        self.votes.doubtful(server, view);
        if !self.empty_logs[server.index()] {
            self.votes.damaged(server, view);
        }
        self.survives.damaged(server);
        self.witness_log.damaged(server);
        self.view_complete.damaged(server);
    }

    /// The world did something to the log of `server`, which had formed `view`, that it may or may not
    /// suffer from.
    pub fn log_doubtful(&mut self, server: ServerId, view: View) {
        self.votes.doubtful(server, view);
        self.survives.damaged(server);
        self.witness_log.damaged(server);
        self.view_complete.damaged(server);
    }

    /// A process, whose server may have formed `view`, is told that a write or sync of its log failed: the log is
    /// void until it is rewritten.
    pub fn disk_failed(&mut self, server: ServerId, life: u32, view: View) {
        self.votes.doubtful(server, view);
        self.failed_disk.told(server, life);
        self.survives.damaged(server);
        self.witness_log.damaged(server);
        self.view_complete.damaged(server);
    }

    /// The disk of `server` is gone.
    pub fn wiped(&mut self, server: ServerId, view: View) {
        self.log_damaged(server, view);
        self.durable_views.wiped(server);
        self.glb_bound.wiped(server);
    }

    /// `server` has this view file, durably.
    pub fn view_written(&mut self, server: ServerId, durable: &Durable) -> Verdict {
        self.durable_views.written(server, durable)
    }

    /// `server` sends a message.
    pub fn sent(&mut self, server: ServerId, envelope: &Envelope) -> Verdict {
        self.durable_views.sent(server, envelope)?;
        self.held.sent(server, envelope);
        self.survives.sent(server, envelope);
        let one_primary = &self.one_primary;
        self.votes.check_sender(server, envelope, |view| one_primary.members(view))?;
        match &envelope.message {
            Said::Promise { report, .. } => {
                let committed = self.view_complete.committed_upto(report.formed);
                let same = report.settled.overridden.view == self.branch;
                self.votes.check_report(server, report, if same { committed } else { 0 })
            }
            Said::Prepare(_) | Said::PrepareOk(_) => Ok(()),
            Said::Install(install) => self.longest_log.sent(server, install),
            _ => Ok(()),
        }
    }

    /// A server counts this record as committed; see [`Observer::turn_ended`]. Returns whether it is the
    /// first to do so.
    pub fn counts_committed(
        &mut self,
        server: ServerId,
        record: CommittedRecord,
    ) -> Result<bool, Violation> {
        let first = self.history.observe(server, record.op, record.crc, record.view)?;
        if first {
            self.change_configuration(record.change);
            self.fresh.push(record);
        }
        Ok(first)
    }

    /// Whether a committed change says that this copy has no image.
    pub fn needs_image(&self, copy: ServerId) -> bool {
        self.needs_image.contains(copy)
    }

    /// Committed changes say which copies GLB does not count.
    fn change_configuration(&mut self, change: Option<ConfigurationChange>) {
        match change {
            Some(ConfigurationChange::Admit { server, .. }) if !self.shape.is_copy(server) => {}
            Some(
                ConfigurationChange::Admit { server, .. }
                | ConfigurationChange::NeedsImage { server },
            ) => self.needs_image.insert(server),
            Some(ConfigurationChange::HasImage { server }) => self.needs_image.remove(server),
            Some(ConfigurationChange::Overridden { .. }) | None => {}
        }
    }

    /// Whether the server led the view that it had formed, at the end of its turn before.
    pub fn led(&self, pulse: &Pulse) -> bool {
        let before = self.pulses[pulse.server.index()];
        before.is_some_and(|before| before.primary && before.formed == pulse.formed)
    }

    /// A server's turn ended. What it newly counts as committed was shown before.
    pub fn turn_ended(&mut self, pulse: &Pulse) -> Verdict {
        self.turn_pointers(pulse)?;
        let before = self.pulses[pulse.server.index()].replace(*pulse);
        self.empty_logs[pulse.server.index()] = pulse.log_empty;
        self.votes.seen(pulse);
        self.one_lease.seen(pulse);
        let cp_before = before.filter(|p| p.formed == pulse.formed).map_or(0, |p| p.cp);
        let leads = pulse.primary || before.is_some_and(|p| p.primary && p.formed == pulse.formed);
        if leads && pulse.cp > cp_before && !self.fresh.is_empty() {
            self.turn_committed(pulse)?;
        }
        self.failed_disk.turn_ended(pulse.server);
        self.ending.turn_ended(pulse.server);
        let fresh = std::mem::take(&mut self.fresh);
        let outcome = fresh.iter().try_for_each(|record| self.execute(record));
        self.fresh = fresh;
        self.fresh.clear();
        outcome
    }

    fn turn_pointers(&mut self, pulse: &Pulse) -> Verdict {
        let needs_image = self.needs_image.contains(pulse.server);
        let follows = self.follows(pulse);
        pointer_order::check(pulse, !needs_image && follows)?;
        if follows {
            self.glb_bound.check(pulse, needs_image)?;
        }
        self.one_primary.check(self.shape, pulse)?;
        self.apply_bound.check(pulse)?;
        if follows {
            self.witness_log.check(self.shape, pulse, self.needs_image)?;
            self.view_complete.check(pulse)?;
        }
        // A primary with a lease that only its own clock believes in is what wild clocks make.
        if self.clocks_keep_bound { self.acknowledged.check(pulse) } else { Ok(()) }
    }

    fn turn_committed(&mut self, pulse: &Pulse) -> Verdict {
        let Pulse { server, formed, members, cp, at, .. } = *pulse;
        self.failed_disk.committed(server, pulse.life)?;
        self.held.check(server, formed, members, cp)?;
        if self.clocks_keep_bound {
            self.one_lease.check(server, formed, at)?;
        }
        self.view_complete.committed(formed, cp)
    }

    /// Carries a newly committed record out in the model.
    fn execute(&mut self, record: &CommittedRecord) -> Verdict {
        let Some(number) = record.xid.and_then(|xid| self.number_of(xid)) else { return Ok(()) };
        self.executed.committed(number, record.op)?;
        let request = &mut self.requests[number as usize];
        if !request.intent.modifies() {
            return Ok(()); // access times, where they are logged
        }
        if record.op <= request.from {
            let (op, from, intent) = (record.op, request.from, request.intent);
            let what =
                format!("{intent:?} is op {op}, although op {from} was known before it began");
            return Err(Violation { property: REAL_TIME, what });
        }
        if request.answered {
            let Request { intent, answer, .. } = *request;
            let (op, status) = (record.op, answer.status);
            let what = format!("{intent:?} is op {op}, although {status:?} was its answer before");
            return Err(Violation { property: REAL_TIME, what });
        }
        let (plan, touched) = self.model.apply(record.op, &request.intent);
        if plan.status != Status::Ok {
            let (op, status, intent) = (record.op, plan.status, request.intent);
            let what = format!("op {op} is {intent:?}, which must fail with {status:?} there");
            return Err(Violation { property: linearizable::NAME, what });
        }
        request.touched = touched;
        Ok(())
    }

    /// A reply leaves a server whose commit point is `cp`. Returns the number of the request it answers.
    pub fn replied(&mut self, cp: u64, record: &[u8]) -> Result<u32, Violation> {
        let reply = rpc::decode_reply(record).map_err(|e| unreadable(format!("{e:?}")))?;
        let number = self
            .number_of(reply.xid)
            .ok_or_else(|| unreadable(format!("nobody asked with xid {:#x}", reply.xid)))?;
        let body = reply.outcome.map_err(|refusal| {
            let intent = self.requests[number as usize].intent;
            unreadable(format!("{intent:?} was refused: {refusal:?}"))
        })?;
        self.counts.replies += 1;
        match self.requests[number as usize].intent.procedure() {
            None => {
                let mounted = mount::decode_mounted(body);
                let handle = mounted.map_err(|e| unreadable(format!("{e:?}")))?;
                let handle = handle.map_err(|e| unreadable(format!("mount status {e}")))?;
                self.judge(number, cp, record, Content::Mount(&handle))?;
            }
            Some(procedure) => {
                if let Some(op) = self.executed.op(number)
                    && self.requests[number as usize].answer.status.is_some()
                {
                    return self.repeated(number, op, cp, record);
                }
                let decoded = nfs3::decode_body(procedure, body);
                let decoded = decoded.map_err(|e| unreadable(format!("{e:?}")))?;
                let content = Content::Nfs(&decoded.response, decoded.data);
                self.judge(number, cp, record, content)?;
            }
        }
        Ok(number)
    }

    /// The answer to a committed request leaves once more.
    fn repeated(&mut self, number: u32, op: u64, cp: u64, record: &[u8]) -> Result<u32, Violation> {
        if op > cp {
            return Err(linearizable::above_cp(&self.requests[number as usize].intent, op, cp));
        }
        self.executed.replied(number, hash(record))?;
        Ok(number)
    }

    fn judge(&mut self, number: u32, cp: u64, record: &[u8], content: Content<'_>) -> Verdict {
        let request = &mut self.requests[number as usize];
        let op = self.executed.op(number).filter(|_| request.intent.modifies());
        if let Content::Nfs(response, _) = content
            && op.is_none()
            && crate::model::status_of(response) == Status::JukeBox
        {
            request.answer = Answer { status: Some(Status::JukeBox), ino: None };
            request.shows = 0;
            return Ok(());
        }
        if let Some(op) = op {
            if op > cp {
                return Err(linearizable::above_cp(&request.intent, op, cp));
            }
            let touched = request.touched;
            request.answer =
                linearizable::check_change(&mut self.model, &request.intent, content, op, touched)?;
            request.shows = op;
            return self.executed.replied(number, hash(record));
        }
        if request.answered && request.from < self.model.floor {
            return Ok(()); // the states it may show are forgotten, and nobody waits for it
        }
        let window = Window { from: request.from, to: cp };
        let (answer, shows) =
            linearizable::check_view(&mut self.model, &request.intent, content, window)?;
        request.answer = answer;
        request.shows = shows;
        Ok(())
    }
}

fn unreadable(what: String) -> Violation {
    Violation { property: "replies follow RFC 1813", what }
}
