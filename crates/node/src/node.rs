//! One server's logic: everything between the bytes that come in and the bytes that go out.
//! Owns: the replica, the log, the shadow, the client table, and the order of a turn.
//! Never: does I/O, reads a clock, waits.
//! Invariant: what a reply shows is at or below CP when it leaves.
//! Source: ARCHITECTURE.md.

use std::collections::VecDeque;

use harp_fs::handle::Volume;
use harp_fs::need::{Fetched, Need};
use harp_fs::shadow::Shadow;
use harp_log::{DiskCommand, DiskDone, Log, Ring, SlotFile};
use harp_vr::{Action, LogFacts, Nanos, Op, Planted, Replica, ServerSet, View};
use rustc_hash::FxHashMap;

use crate::api::{ConnId, Event, NodeStatus, Notice, Now, Output, RepairStatus, Settings};
use crate::clients::ClientTable;
use crate::gather::Gather;
use crate::halt::Redo;
use crate::jobs::{Done, Frozen, ImageState, RingBytes, StoreJob, Work};
use crate::peers::PendingRead;
use crate::rebuild::{Lent, Load};
use crate::repair::Repair;
use crate::serve::{Awaiting, Conn, Held, Waiting};
use crate::space::Debits;
use crate::users::Users;
use crate::write_out::WriteOut;

/// An idle log confirms its durable end within this time (rule 3).
const MARK_NANOS: u64 = 10_000_000;
/// Objects moved from the last checkpoint into the cache in a turn in which nothing else happened; a block counts
/// for several.
const DRAIN_IDLE: usize = 512;
/// And in others, whose end somebody waits for.
const DRAIN_BUSY: usize = 128;
/// Segments of a log's half of the disk that are not whole: at its ends, and where batches end.
const SPARE_SEGMENTS: u64 = 2;
/// On a full disk a log does not grow beyond so many segments for an absent copy's sake.
const CRAMPED_SEGMENTS: u64 = 8;
/// The id of fetches that no call waits for.
pub(crate) const FILTER_FETCH: u64 = 0;

/// What is to become of the staged log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Staging {
    /// One begins at that op, in place of one there may be.
    Begin { begin: Op, on_disk: bool },
    /// It goes.
    Drop,
}

/// What only a copy has.
#[derive(Debug)]
pub(crate) struct Copy {
    pub shadow: Shadow,
    /// The image is exact here; one that is being loaded stands here.
    pub lb: u64,
    /// The shadow holds every record up to here: FP at the primary, AP elsewhere.
    pub shadow_op: u64,
    pub clients: ClientTable,
    /// The checkpoint that is frozen or under way.
    pub checkpoint: Option<RunningCheckpoint>,
    /// Log bytes appended since the last freeze, for pacing.
    pub log_bytes: u64,
    pub last_checkpoint: Nanos,
    /// Image is being read again because planned records were dropped; nothing is applied meanwhile.
    pub reloading: bool,
    /// A barrier that was applied: checkpoint exactly there, then digest.
    pub barrier: Option<u64>,
    /// The image stands at this barrier and no checkpoint may move it until its digest is taken.
    pub digesting: Option<u64>,
    pub digest: Option<(u64, Result<[u8; 32], String>)>,
    /// The last checkpoint's objects are not all in the cache yet.
    pub draining: bool,
    /// A page of names for a filter is being fetched.
    pub filling: bool,
    /// What the images of the members have yet to take in.
    pub debits: Debits,
    /// The last checkpoint found no room.
    pub no_room: bool,
    /// Nothing more is applied, nor frozen (rule 14).
    pub halted: bool,
    /// The image is not whole, or is not to stay.
    pub load: Option<Load>,
    /// Learners for whom a part of the image is being read.
    pub reading_parts: ServerSet,
    pub lent: Vec<Lent>,
    pub repair: Repair,
}

impl Copy {
    /// A barrier that was frozen and waits for its commitment may never commit: its digest is given up. What is
    /// frozen is dropped with the shadow.
    pub fn drop_unhanded_barrier(&mut self) {
        if let Some(RunningCheckpoint { op, frozen: Some(_), .. }) = &self.checkpoint
            && self.digesting == Some(*op)
        {
            self.digesting = None;
        }
    }

    /// Memory forgets everything; the image is what `image` says.
    pub fn stand_at(&mut self, image: ImageState) {
        self.reloading = false;
        self.shadow.reset(image.lb);
        self.debits = Debits::starting(image.lb);
        self.shadow_op = image.lb;
        self.lb = image.lb;
        self.clients = image.clients;
        self.log_bytes = 0;
    }
}

/// A frozen generation on its way into the image.
#[derive(Debug)]
pub(crate) struct RunningCheckpoint {
    pub op: u64,
    /// What the job will need, until CP covers `op` and it is handed out.
    pub frozen: Option<Frozen>,
    /// It found no room; it is handed out again then.
    pub retry_at: Option<Nanos>,
}

/// One server.
#[derive(Debug)]
pub struct Node {
    pub(crate) settings: Settings,
    pub(crate) replica: Replica,
    pub(crate) log: Log,
    pub(crate) bytes: RingBytes,
    pub(crate) volume: Volume,
    pub(crate) copy: Option<Copy>,
    pub(crate) actions: Vec<Action>,
    // Clients.
    pub(crate) conns: FxHashMap<ConnId, Conn>,
    pub(crate) awaiting: VecDeque<Awaiting>,
    pub(crate) held: Vec<Held>,
    /// Replies of this turn that a lease allowed: their places in the output, and the ops they show.
    pub(crate) early: Vec<(usize, u64)>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) users: Users,
    pub(crate) needs: Vec<Need>,
    pub(crate) next_fetch: u64,
    pub(crate) scratch: Vec<u8>,
    // The log and its disk.
    pub(crate) newest_time: u64,
    /// Bytes of this primary's records that wait for the write before them to end.
    pub(crate) unsealed_bytes: u64,
    /// How many they are.
    pub(crate) unsealed: u64,
    /// Bytes of calls and replies that wait, of all connections.
    pub(crate) kept_bytes: usize,
    pub(crate) gather: Gather,
    /// Until when the open batch waits for more records.
    pub(crate) gather_until: Option<Nanos>,
    pub(crate) write_since: Option<Nanos>,
    pub(crate) mark_since: Option<Nanos>,
    // Where records count in memory.
    pub(crate) on_battery: bool,
    /// Since when something is in memory alone.
    pub(crate) behind_since: Option<Nanos>,
    /// The log is being written out; nothing else happens any more.
    pub(crate) write_out: Option<WriteOut>,
    pub(crate) adopting: Option<Adopting>,
    pub(crate) stage_wanted: Option<Staging>,
    pub(crate) last_write_end: harp_log::LogPos,
    pub(crate) failing: bool,
    /// The operator was told that the log nears its bound.
    pub(crate) bound_warned: bool,
    pub(crate) reads: FxHashMap<u64, PendingRead>,
    pub(crate) next_read: u64,
    pub(crate) verify: Option<u64>,
    pub(crate) next_tick: Nanos,
    /// When access times were last recorded.
    pub(crate) accesses_at: Nanos,
    /// Something happened in this turn.
    pub(crate) fed: bool,
    /// What the log held at the start is being redone.
    pub(crate) redo: Option<Redo>,
    /// A lethal record was applied: nothing of this turn leaves.
    pub(crate) killed: bool,
    /// What the start has to say.
    pub(crate) remark: Option<String>,
}

/// A log on its way to a tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adopting {
    pub view: View,
    pub members: ServerSet,
    pub staged: bool,
    pub configuration: harp_vr::Configuration,
    /// The head write to wait for, once it is handed out.
    pub sequence: Option<u64>,
}

impl Node {
    /// Feeds one event. Call [`Node::finish`] after the last event of a turn.
    pub fn step(&mut self, now: Now, event: Event<'_>, out: &mut Output) {
        if (self.failing || self.is_silent()) && !matches!(event, Event::Disk(_)) {
            return; // it only waits for its disk
        }
        self.fed |= !matches!(event, Event::Tick | Event::Space { .. });
        match event {
            Event::Tick => {}
            Event::ConnOpened { conn, address, port } => self.on_conn_opened(conn, address, port),
            Event::ConnClosed { conn } => self.on_conn_closed(conn),
            Event::Call { conn, call } => self.on_call(now, conn, call, out),
            Event::Peer { from, frame } => self.on_frame(now, from, frame, out),
            Event::Disk(done) => self.on_disk(now, done, out),
            Event::Store(done) => self.on_store(now, done.0, out),
            Event::Groups { uid, answer } => self.on_groups(now, uid, answer, out),
            Event::Space { room } => self.on_space(room, out),
            Event::Power(power) => self.on_power(power, out),
            Event::Override(order) => {
                self.replica.on_override(now.steady, order, &mut self.actions);
            }
            Event::Verify { token } => {
                if self.replica.is_serving() {
                    self.verify = Some(token);
                } else {
                    out.notices.push(Notice::Barrier { token, op: None });
                }
            }
        }
        self.carry_out(now, out);
    }

    /// Ends a turn: applies, answers, seals the batch of records, speaks to the members.
    pub fn finish(&mut self, now: Now, out: &mut Output) {
        let remark = self.remark.take();
        out.notices.extend(remark.map(|text| Notice::Remark { text }));
        self.go_on_writing_out(out);
        if self.failing || self.is_silent() {
            out.wake_at = now.steady.plus(self.settings.heartbeat);
            return;
        }
        if now.steady >= self.next_tick {
            self.next_tick = now.steady.plus(self.settings.heartbeat / 2);
            let stalled = self.write_since.map_or(0, |since| now.steady.since(since));
            self.replica.on_stall(if self.waits_for_disk() { stalled } else { 0 });
            self.replica.tick(now.steady, &mut self.actions);
            self.tend_lent(now);
            self.expire_look_ups(now, out);
            self.carry_out(now, out);
        }
        self.try_discard(out);
        self.try_stage(out);
        self.try_adopt(out);
        self.apply_committed(now, out);
        if self.killed {
            out.clear();
            return out.notices.push(Notice::Fatal { why: "a record was lethal".into() });
        }
        self.answer_waiting(now, out);
        self.log_barrier(now, out);
        self.log_accesses(now, out);
        self.seal(now, out);
        self.send_prepares(now, out);
        self.recheck_lease(now, out);
        self.release(now, out);
        self.bound_log(now, out);
        self.pace_checkpoint(now, out);
        self.complete_image(out);
        self.tend_shadow(out);
        self.tend_repair(now, out);
        self.ask_store(out);
        self.replica.finish(&mut self.actions);
        self.carry_out(now, out);
        self.trim();
        out.wake_at = self.wake_at(now);
    }

    fn wake_at(&self, now: Now) -> Nanos {
        let mut at = self.next_tick;
        if let Some(since) = self.mark_since {
            at = at.min(since.plus(MARK_NANOS));
        }
        if let Some(until) = self.gather_until {
            at = at.min(until);
        }
        let behind = self.copy.as_ref().is_some_and(|copy| {
            copy.shadow_op < self.apply_limit()
                && !self.must_not_apply()
                && !self.waits_for_checkpoint()
        });
        let draining = self.copy.as_ref().is_some_and(|c| c.draining);
        if behind || draining { now.steady } else { at }
    }

    /// Carries out what the protocol asked for.
    pub(crate) fn carry_out(&mut self, now: Now, out: &mut Output) {
        while !self.actions.is_empty() {
            let mut actions = std::mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.carry_out_one(now, action, out);
            }
            if self.actions.is_empty() {
                self.actions = actions; // keeps its memory
            }
        }
    }

    fn carry_out_one(&mut self, now: Now, action: Action, out: &mut Output) {
        match action {
            Action::Send { to, message } => self.send(to, message, &[], out),
            Action::Grant { to_server, view, from, to } => {
                self.send_grant(to_server, view, from, to, out)
            }
            Action::Past { to_server, from } => self.send_past(to_server, from, out),
            Action::Persist { sequence, durable } => {
                let bytes = durable.encode(sequence);
                out.disk.push(DiskCommand::Slot { file: SlotFile::View, sequence, bytes });
            }
            Action::Stage { begin, on_disk } => {
                self.stage_wanted = Some(Staging::Begin { begin, on_disk });
                self.try_stage(out);
            }
            Action::DropStaged => {
                self.stage_wanted = self.log_is_staged().then_some(Staging::Drop);
                self.try_stage(out);
            }
            Action::Adopt { view, members, staged, configuration } => {
                let sequence = None;
                self.adopting = Some(Adopting { view, members, staged, configuration, sequence });
                self.try_adopt(out);
            }
            Action::DiscardImage => self.discard_image(now, out),
            Action::WantImage { to, view, part, at_least } => {
                self.want_part(to, (view, part, at_least), out)
            }
            Action::DropLog => {
                let begin = self.log.current().end() + 1;
                self.log.reset(begin, &mut out.disk);
                // The staged log went with it; the replica stages anew when it next hears of the view.
                self.replica.on_staged_dropped();
                self.stage_wanted = None;
            }
            Action::LogConfiguration(change) => self.log_configuration(now, change, out),
            Action::Formed { view, members, primary } => {
                out.notices.push(Notice::Formed { view, members, primary })
            }
            Action::CrossedOver => {
                self.log.forget_commits(self.replica.cp().0);
                self.forget_suspects(out);
            }
            Action::Overridden { token, answer } => {
                out.notices.push(Notice::Overridden { token, answer })
            }
            Action::Serving { view } => {
                // Clients send again what they are not sure of, after an override.
                let overridden = self.replica.configuration().overridden.view;
                self.volume.set_epoch(&self.settings.group, overridden.0);
                out.notices.push(Notice::Serving { view })
            }
            Action::Stopped { view } => {
                self.forget_clients();
                out.notices.push(Notice::Stopped { view });
            }
            Action::Refusing { why } => out.notices.push(Notice::Refusing { why }),
        }
    }

    // ----- the log's disk -----

    fn on_disk(&mut self, now: Now, done: DiskDone, out: &mut Output) {
        let done = match done {
            DiskDone::Failed { read: true, error, .. } => {
                let text = format!("reading the log failed: {error}");
                out.notices.push(Notice::Remark { text });
                return;
            }
            DiskDone::Failed { file, error, .. } => {
                match self.survive_failure(file, error.to_string(), out) {
                    Some(done) => done,
                    None => return,
                }
            }
            DiskDone::Unprepared { error } => {
                // Nothing was written: the log is whole, and still is when there is room again. It must not be
                // marked void by what comes after.
                self.fall_silent(out);
                let why = format!("there is no room for the log: {error}");
                return out.notices.push(Notice::Fatal { why });
            }
            DiskDone::Read { .. } if self.is_silent() => return,
            DiskDone::Read { token, at, bytes } => return self.on_read(token, at, bytes, out),
            DiskDone::Slot { file: SlotFile::View, sequence } if self.failing => {
                if sequence == self.replica.persisting() && self.replica.durable().log_void {
                    let why = "a write to the log failed; it is marked not intact".into();
                    out.notices.push(Notice::Fatal { why });
                }
                return;
            }
            _ if self.failing => return,
            DiskDone::Slot { file: SlotFile::View, .. } if self.is_silent() => return,
            DiskDone::Slot { file: SlotFile::View, sequence } => {
                return self.replica.on_persisted(now.steady, sequence, &mut self.actions);
            }
            done => done,
        };
        if matches!(done, DiskDone::Written { .. })
            && let Some(since) = self.write_since.take()
        {
            self.gather.on_written(now.steady, since);
        }
        let progress = self.log.on_disk(&done);
        if self.write_out.is_some() && self.on_written_out(progress, out) {
            return;
        }
        if progress.durable && !self.log_is_staged() && !self.log.ring().outlives() {
            let durable = Op(self.log.current().durable());
            self.replica.on_durable(now.steady, durable);
        }
        if let Some(adopting) = self.adopting
            && progress.head.is_some()
            && progress.head == adopting.sequence
        {
            self.adopting = None;
            let body = self.log.current();
            let (begin, end, durable) = (Op(body.begin()), Op(body.end()), Op(self.log.held()));
            let facts = LogFacts { begin, end, durable };
            self.replica.on_tagged(adopting.view, facts, &mut self.actions);
        }
    }

    /// Rule 8: a failed write or sync is a crash. The view file says so first, then the process ends.
    fn survive_failure(
        &mut self,
        file: Option<SlotFile>,
        error: String,
        out: &mut Output,
    ) -> Option<DiskDone> {
        if self.settings.planted == Some(Planted::SyncFailureIgnored) && file.is_none() {
            return Some(DiskDone::Written { upto: self.last_write_end, synced: true });
        }
        match file {
            Some(SlotFile::View) => {
                let why = format!("writing the view file failed: {error}");
                out.notices.push(Notice::Fatal { why });
            }
            Some(SlotFile::LogHead) | None => {
                let text = format!("writing the log failed: {error}");
                out.notices.push(Notice::Remark { text });
                if !self.failing {
                    self.fall_silent(out);
                    self.replica.void_log(&mut self.actions);
                }
            }
        }
        None
    }

    /// Rule 8: nothing leaves any more, nor what this turn had to say before it heard of the failure.
    fn fall_silent(&mut self, out: &mut Output) {
        self.failing = true;
        self.forget_what_leaves(out);
    }

    pub(crate) fn forget_what_leaves(&mut self, out: &mut Output) {
        self.actions.clear();
        out.frames.clear();
        out.replies.clear();
        self.early.clear();
    }

    /// A staged log that was dropped may have taken the place in memory of records that are not in the image yet.
    /// They are on the disk, where the next start reads them.
    fn start_over_if_forgotten(&mut self, out: &mut Output) {
        let Some(copy) = &self.copy else { return };
        let body = self.log.current();
        let next = copy.shadow_op.max(body.begin().saturating_sub(1)) + 1;
        if next <= body.end() && body.record(next).is_none() {
            self.fall_silent(out);
            let why = format!(
                "a log that was to replace this one took the memory of op {next}: it is to be read again"
            );
            out.notices.push(Notice::Fatal { why });
        }
    }

    pub(crate) fn log_is_staged(&self) -> bool {
        self.log.staged().is_some()
    }

    fn seal(&mut self, now: Now, out: &mut Output) {
        if self.log.ring().outlives() {
            return self.write_behind(now, out);
        }
        let before = out.disk.len();
        let cp = self.replica.cp().0;
        self.gather_until = None;
        if self.replica.is_primary() && self.write_since.is_none() && self.unsealed > 0 {
            let open = self.awaiting.len() as u64;
            let (count, bytes) = (self.unsealed, self.unsealed_bytes);
            self.gather_until = self.gather.wait_until(now.steady, open, count, bytes);
            if self.gather_until.is_some() {
                self.mark_since = None; // not due while a batch is open: nothing wakes for it
                return;
            }
        }
        let mut wrote = self.log.seal(cp, &mut out.disk);
        if wrote || !self.log.mark_due(cp) {
            self.mark_since = None;
        } else if now.steady.since(*self.mark_since.get_or_insert(now.steady)) >= MARK_NANOS {
            wrote = self.log.seal_mark(cp, &mut out.disk);
            self.mark_since = None;
        }
        if wrote {
            self.unsealed_bytes = 0;
            self.unsealed = 0;
            self.write_since.get_or_insert(now.steady);
        }
        for command in &out.disk[before..] {
            if let DiskCommand::Write { at, bytes, .. } = command {
                self.last_write_end = at.plus(*bytes as u64);
            }
        }
    }

    /// A staged log begins, or is dropped, only when nothing in memory refers to records in the place that is then free:
    /// the shadow of a copy goes back to its image, which is brought forward from the log that grows then.
    pub(crate) fn try_stage(&mut self, out: &mut Output) {
        let Some(wanted) = self.stage_wanted else { return };
        if let Some(copy) = &mut self.copy {
            let fresh = copy.shadow_op == copy.lb && copy.checkpoint.is_none();
            copy.drop_unhanded_barrier();
            if copy.reloading || copy.digesting.is_some() {
                return;
            }
            if !fresh {
                if copy.checkpoint.as_ref().is_some_and(|c| c.frozen.is_none()) {
                    return; // under way: its end tells where the image stands
                }
                copy.checkpoint = None;
                copy.barrier = None;
                copy.reloading = true;
                out.jobs.push(StoreJob(Work::Reload));
                return;
            }
            // The records that it would be drained from lose their place in memory.
            copy.shadow.discard_retired();
        }
        self.stage_wanted = None;
        match wanted {
            Staging::Begin { begin, on_disk } => {
                let view = self.replica.promised().0;
                let staged = self.log.stage(begin.0, None, on_disk, view);
                assert!(staged, "a log is staged while another is being swapped in");
            }
            Staging::Drop => {
                let dropped = self.log.drop_staged();
                assert!(dropped, "a staged log is dropped while it is being swapped in");
                self.start_over_if_forgotten(out);
            }
        }
    }

    fn try_adopt(&mut self, out: &mut Output) {
        let Some(adopting) = self.adopting.filter(|a| a.sequence.is_none()) else { return };
        if self.stage_wanted.is_some() {
            return; // the staged log does not exist yet, or still does
        }
        let (view, members) = (adopting.view.0, adopting.members.0);
        let cp = self.replica.cp().0;
        let extra = crate::boot::head_extra(&adopting.configuration);
        let sequence = if adopting.staged {
            // A full ring empties with time; the swap is tried again each turn.
            self.log.swap(view, members, extra, cp, &mut out.disk).ok()
        } else {
            Some(self.log.tag(view, members, extra, cp, &mut out.disk))
        };
        if let Some(adopting) = &mut self.adopting {
            adopting.sequence = sequence;
        }
    }

    /// Frees what nobody needs: on disk below GLB, in memory below what is in the image and at the members.
    pub(crate) fn trim(&mut self) {
        let glb = self.replica.glb().0;
        self.log.trim(glb);
        let staged = self.log_is_staged();
        let body = self.log.growing();
        let begin = Op(body.begin());
        let durable = body.durable();
        if staged {
            self.replica.on_staged_trimmed(begin);
        } else {
            self.replica.on_trimmed(begin);
        }
        let mut pin = match &self.copy {
            Some(copy) => copy.shadow.needs_log_above().min(copy.lb),
            // A standby's tail makes room for the newest; a member's log is on disk.
            None if staged => body.end(),
            None => durable,
        };
        if self.replica.is_primary() {
            let me = self.settings.me;
            let members = self.replica.members();
            let received =
                members.iter().filter(|m| *m != me).map(|m| self.replica.received_by(m).0);
            pin = received.fold(pin, u64::min);
        }
        self.log.pin(pin);
    }

    /// Rule 10: a log that an absent copy keeps from being trimmed has a bound. Half of the disk, for the
    /// other half is for a log that replaces this one.
    fn bound_log(&mut self, now: Now, out: &mut Output) {
        if !self.replica.is_serving() || self.log_is_staged() {
            return;
        }
        // Until an absent copy is given up, by a record that is committed, as much comes as the ring takes.
        let spare = SPARE_SEGMENTS * self.settings.segment_bytes + self.bytes.0.len();
        let mut bound = (self.log.disk_bytes() / 2).saturating_sub(spare);
        if self.replica.member_rooms().any(|room| !room.grows) {
            bound = bound.min(CRAMPED_SEGMENTS * self.settings.segment_bytes);
        }
        let used = self.log.used_disk_bytes();
        if used <= bound / 5 * 4 {
            self.bound_warned = false;
            return;
        }
        if !self.bound_warned {
            self.bound_warned = true;
            let text = format!("the log holds {used} of {bound} bytes, waiting for an absent copy");
            out.notices.push(Notice::Remark { text });
        }
        if used > bound {
            let before = self.replica.configuration().needs_image;
            self.replica.give_up_absent(now.steady, &mut self.actions);
            self.carry_out(now, out);
            let after = self.replica.configuration().needs_image;
            if before != after {
                let text =
                    format!("the log is at its bound: copies {after:?} need a new image now");
                out.notices.push(Notice::Remark { text });
            }
        }
    }

    // ----- the store -----

    fn on_store(&mut self, now: Now, done: Done, out: &mut Output) {
        match done {
            Done::Fetched { id, fetched } => match fetched {
                Ok((mut fetched, mut damaged)) => {
                    if self.settings.planted == Some(Planted::DamageServed) {
                        damaged.clear();
                        fetched.iter_mut().for_each(Fetched::take_as_sound);
                    }
                    self.note_damage(now, &damaged, out);
                    self.on_fetched(id, fetched);
                }
                Err(error) => self.store_failed(error.to_string(), out),
            },
            Done::NoRoom(frozen) => self.on_no_room(now, frozen, out),
            Done::Checkpointed { op, result: Ok(damaged) } => {
                self.on_checkpointed(op, out);
                self.repair_moved(damaged);
            }
            Done::Checkpointed { result: Err(error), .. } => {
                self.store_failed(error.to_string(), out)
            }
            Done::Digested { op, result, damaged } => {
                self.note_scrub(now, &damaged, out);
                let copy = self.copy.as_mut().expect("only copies digest");
                assert_eq!(copy.digesting.take(), Some(op), "a digest nobody asked for");
                let digest = result.map_err(|e| e.to_string());
                copy.digest = Some((op, digest.clone()));
                out.notices.push(Notice::Digest { op, digest });
            }
            Done::Reloaded(Ok(image)) => {
                let copy = self.copy.as_mut().expect("only copies reload");
                assert!(copy.reloading, "a reload nobody asked for");
                self.newest_time = self.newest_time.max(image.clients.log_time());
                copy.stand_at(image);
                self.replica.on_reapply();
                self.try_stage(out);
            }
            Done::PartRead(read) => self.on_part_read(now, read, out),
            Done::BlockRead(read) => self.on_block_read(now, read, out),
            Done::Examined { blocks, damaged: Ok(damaged) } => {
                self.on_examined(now, &blocks, &damaged, out);
            }
            Done::Mended { remedies, result } => self.on_mended(now, &remedies, result, out),
            Done::Discarded(Ok(())) => self.on_discarded(now),
            Done::Loaded(Ok(loaded)) => self.on_loaded(now, loaded, out),
            Done::ImageCompleted(Ok(())) => self.on_image_completed(now, out),
            Done::Reloaded(Err(error))
            | Done::Discarded(Err(error))
            | Done::Loaded(Err(error))
            | Done::ImageCompleted(Err(error))
            | Done::Examined { damaged: Err(error), .. } => {
                self.store_failed(error.to_string(), out)
            }
        }
    }

    /// The image cannot be read or written: this copy is of no use until it is looked after.
    pub(crate) fn store_failed(&mut self, error: String, out: &mut Output) {
        out.notices.push(Notice::Fatal { why: format!("the store failed: {error}") });
    }

    /// What was checkpointed moves into the cache bit by bit; filters are completed when there is time.
    fn tend_shadow(&mut self, out: &mut Output) {
        let Some(copy) = &mut self.copy else { return };
        if copy.reloading {
            return;
        }
        let effort = if std::mem::take(&mut self.fed) { DRAIN_BUSY } else { DRAIN_IDLE };
        // What is not moved when the next checkpoint ends is forgotten.
        let hurry = if copy.shadow.is_freezing() { 4 } else { 1 };
        copy.draining = copy.shadow.drain(hurry * effort, &self.bytes);
        // What is not in an image that is being loaded is not absent.
        if !copy.filling
            && copy.load.is_none()
            && let Some(need) = copy.shadow.wanted()
        {
            copy.filling = true;
            out.jobs.push(StoreJob(Work::Fetch { id: FILTER_FETCH, needs: vec![need] }));
        }
    }

    fn ask_store(&mut self, out: &mut Output) {
        if self.needs.is_empty() {
            return;
        }
        let needs = std::mem::take(&mut self.needs);
        out.jobs.push(StoreJob(Work::Fetch { id: self.next_fetch, needs }));
        self.next_fetch += 1;
    }

    /// What `harp status` shows.
    pub fn status(&self, now: Now) -> NodeStatus {
        let replica = &self.replica;
        let me = self.settings.me;
        let copy = self.settings.shape.is_copy(me);
        let role = match (replica.is_normal(), replica.is_primary(), copy) {
            (true, true, _) => "primary",
            (true, false, true) => "backup",
            (true, false, false) => "promoted",
            (false, _, true) => "learner",
            (false, _, false) => "witness",
        };
        let glb = replica.glb().0;
        NodeStatus {
            me,
            role,
            state: if self.write_out.is_some() { "writing out".into() } else { replica.state() },
            promised: replica.promised(),
            formed: replica.formed(),
            members: replica.members(),
            primary: replica.primary(),
            fp: self.log.growing().end(),
            cp: replica.cp().0,
            ap: self.copy.as_ref().map_or(0, |_| replica.ap().0),
            lb: self.copy.as_ref().filter(|c| c.load.is_none()).map_or(0, |c| c.lb),
            glb,
            lease_left: replica.lease_until().since(now.steady),
            serving: replica.is_serving(),
            log_bytes: self.log.used_disk_bytes(),
            unwritten_bytes: match self.log.ring().outlives() {
                true => self.log.unwritten_bytes(),
                false => 0,
            },
            log_begin: self.log.current().begin(),
            log_end: self.log.current().end(),
            votes: replica.votes(),
            whole: self.copy.as_ref().is_some_and(|c| c.load.is_none()),
            admitted: replica.is_admitted(),
            overridden: replica.configuration().overridden,
            digest: self.copy.as_ref().and_then(|c| c.digest.clone()),
            repair: self.copy.as_ref().map_or_else(RepairStatus::default, |c| c.repair.status()),
        }
    }

    /// The ring, for the threads that read it.
    pub fn ring(&self) -> &Ring {
        &self.bytes.0
    }

    /// The replica, for observers.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The log, for observers.
    pub fn log(&self) -> &Log {
        &self.log
    }
}
