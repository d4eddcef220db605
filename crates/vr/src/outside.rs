//! A server outside of the running view: it listens, catches up, and asks to be taken in.
//! Owns: presence, the staged log's progress (learner and standby witness), the watch over the primary.
//! Never: counts for anything with what it gathers here; only committed records are gathered.
//! Invariant: the staged log is a prefix of committed history up to `committed`.
//! Source: docs/protocol.md, rules 9, 10, 12; the Harp paper, section 4.3 ("warm" witness).

use crate::action::{Action, Records};
use crate::message::{Message, Past, Presence};
use crate::planted::Planted;
use crate::replica::{LogFacts, Replica, Running, Stage};
use crate::types::{Nanos, Op, ServerId, View};

/// A learner that lacks no more than this starts the view change that takes it in.
const LEVEL_OPS: u64 = 16_384;

/// Phase 2 may carry a whole log: it is given up after this many failure timeouts.
pub(crate) const PHASE_TWO_TIMEOUTS: u64 = 50;

impl Replica {
    // ----- presence -----

    pub(crate) fn on_presence(
        &mut self,
        now: Nanos,
        from: ServerId,
        presence: Presence,
        out: &mut Vec<Action>,
    ) {
        let admitted = self.admits(from);
        // What a newer view counts on says nothing of the disks that an old primary counts on.
        let newer = self.is_primary() && presence.formed > self.durable.formed;
        let presence = self.presence_counted(presence);
        let peer = &mut self.peers[from.index()];
        peer.presence = Some(presence);
        if admitted && !newer {
            peer.lb = peer.lb.max(presence.lb);
        }
        self.hear_loading(from, &presence);
        self.advance_glb();
        if presence.serving && presence.formed >= self.durable.formed {
            self.hear_running(now, from, presence, out);
        }
    }

    /// An image of another epoch is as good as none. (Whoever hears this may be primary before it hears it again.)
    fn presence_counted(&self, presence: Presence) -> Presence {
        let old = presence.branch != self.configuration.overridden.view;
        if old && !self.planted(Planted::OldEpochVotes) {
            Presence { lb: Op::ZERO, loading: Some(Op::ZERO), ..presence }
        } else {
            presence
        }
    }

    fn hear_running(
        &mut self,
        now: Nanos,
        from: ServerId,
        presence: Presence,
        out: &mut Vec<Action>,
    ) {
        if self.running.is_some_and(|r| r.view > presence.formed) {
            return;
        }
        if self.is_normal() {
            if presence.formed == self.durable.formed {
                return;
            }
            // The group went on without us while we were cut off or asleep.
            self.leave_view(out);
            self.stage = Stage::Outside { since: now };
        }
        if matches!(self.stage, Stage::Outside { .. }) && !self.stands_by(presence.formed, out) {
            return;
        }
        self.running = Some(Running {
            view: presence.formed,
            members: presence.members,
            primary: from,
            cp: presence.cp,
            heard: now,
        });
        self.refusing = None;
        if matches!(self.stage, Stage::Outside { .. }) {
            self.cross_over(presence.configuration.overridden.view, out);
            self.configuration = presence.configuration;
            self.glb = self.glb.max(presence.glb);
            self.drop_passed_log(presence, out);
        }
    }

    /// Whether what `view` committed may be taken in. That a view formed rules out every lower one, and what
    /// is learned of it must not reach the judge of a lower one, whose history may differ there: this server
    /// first promises, durably, to take part in none.
    fn stands_by(&mut self, view: View, out: &mut Vec<Action>) -> bool {
        if view > self.durable.promised || view > self.durable.learned {
            if view > self.durable.promised {
                self.attempt = None;
                self.durable.promised = view;
            }
            self.durable.learned = self.durable.learned.max(view);
            self.persist(out);
        }
        self.persist_done == self.persist_issued
    }

    /// Rule 10: a demoted witness keeps its log until all formed the next view and GLB passed its end.
    fn drop_passed_log(&mut self, presence: Presence, out: &mut Vec<Action>) {
        let witness = !self.settings.shape.is_copy(self.settings.me);
        let careless = self.planted(Planted::WitnessDropsLog);
        let passed =
            presence.formed > self.durable.formed && (presence.glb >= self.log.end || careless);
        if witness && passed && self.tag.is_some() {
            self.tag = None;
            let end = self.log.end;
            self.log = LogFacts { begin: end.next(), end, durable: end };
            self.agreed = end;
            out.push(Action::DropLog);
        }
    }

    pub(crate) fn send_presence(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if now.since(self.presence_at) < self.settings.heartbeat && self.presence_at != Nanos(0) {
            return;
        }
        self.presence_at = now;
        let (lb, loading) = self.image_presence();
        let presence = Presence {
            promised: self.durable.promised,
            formed: self.durable.formed,
            members: self.durable.members,
            serving: self.serving,
            normal: self.is_normal(),
            cp: self.cp(),
            lb,
            loading,
            glb: self.glb,
            branch: if self.image.is_some() { self.durable.branch } else { self.branch },
            configuration: self.configuration,
            room: self.room,
        };
        for to in self.others() {
            out.push(Action::Send { to, message: Message::Presence(presence) });
        }
    }

    // ----- serving those who catch up -----

    pub(crate) fn on_catch_up(
        &mut self,
        from: ServerId,
        view: View,
        first: Op,
        out: &mut Vec<Action>,
    ) {
        if self.is_normal() && view == self.durable.formed {
            out.push(Action::Past { to_server: from, from: first });
        }
    }

    // ----- catching up -----

    pub(crate) fn on_past(&mut self, now: Nanos, past: Past, out: &mut Vec<Action>) -> Records {
        let Past { view, first, last, cp, begin } = past;
        let outside = matches!(self.stage, Stage::Outside { .. });
        let (Some(running), Some(staged), true) = (self.running, self.staged, outside) else {
            return Records::Ignore;
        };
        if view != running.view {
            return Records::Ignore;
        }
        let wanted = staged.end.next();
        if wanted < begin {
            // The sender trimmed beyond us (GLB moved on): begin anew above GLB, if the image allows.
            self.glb = self.glb.max(Op(begin.0 - 1));
            if self.can_follow() {
                self.restage(out);
            } else {
                self.staged = None;
                out.push(Action::DropStaged);
            }
            return Records::Ignore;
        }
        if first > wanted || last < wanted {
            return Records::Ignore; // nothing new: ask again in a while
        }
        assert!(view <= self.durable.promised, "committed records of {view}, above the promise");
        self.cp = self.cp.max(last);
        let more = cp > last;
        self.catch_up_at = if more { now } else { now.plus(self.settings.heartbeat / 2) };
        Records::Staged { above: staged.end }
    }

    fn restage(&mut self, out: &mut Vec<Action>) {
        let begin = self.glb.next();
        let on_disk = self.settings.shape.is_copy(self.settings.me);
        self.stage_from(begin, on_disk, out);
    }

    /// The disk is full, and much of it is what was trimmed of the staged log: it begins anew.
    pub fn on_staged_full(&mut self, out: &mut Vec<Action>) {
        match &self.stage {
            Stage::Installing { install, staged: true, .. } if self.tagging.is_none() => {
                self.stage_from(install.begin, true, out);
            }
            Stage::Outside { .. } if self.can_follow() => self.restage(out),
            _ => {}
        }
    }

    /// Whether the log above GLB is enough for this server: a witness needs no more, a copy an image on a disk
    /// that counts, which reaches GLB.
    fn can_follow(&self) -> bool {
        self.image.is_none()
            || self.is_admitted() && self.image_can_follow() && !self.image_is_void()
    }

    pub(crate) fn catch_up(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(running) = self.running else { return };
        self.rebuild(now, &running, out);
        if self.holds_log_of(&running) || self.is_halted() {
            return;
        }
        if self.staged.is_none() {
            if !self.can_follow() {
                return;
            }
            self.restage(out);
        }
        if now < self.catch_up_at {
            return;
        }
        self.catch_up_at = now.plus(2 * self.settings.heartbeat);
        let from = self.staged.expect("staged above").end.next();
        let to = self.catch_up_source(now, &running);
        out.push(Action::Send { to, message: Message::CatchUp { view: running.view, from } });
    }

    /// Preferably not the primary: the promoted witness, then a backup.
    fn catch_up_source(&self, now: Nanos, running: &Running) -> ServerId {
        let shape = self.settings.shape;
        let willing = running.members.iter().filter(|m| {
            *m != running.primary
                && *m != self.settings.me
                && !self.is_silent(now, *m)
                && self.peers[m.index()]
                    .presence
                    .is_some_and(|p| p.normal && p.formed == running.view)
        });
        willing.max_by_key(|m| !shape.is_copy(*m)).unwrap_or(running.primary)
    }

    fn is_level(&self) -> bool {
        let Some(running) = self.running else { return false };
        let marked = self.configuration.needs_image.contains(self.settings.me);
        if marked || self.loading.is_some() || self.image_is_void() {
            return false;
        }
        self.holds_log_of(&running)
            || self.staged.is_some_and(|staged| {
                staged.begin <= self.glb.next() && staged.end.0 + LEVEL_OPS >= running.cp.0
            })
    }

    /// A member that restarted with its log: nothing committed in its absence.
    fn holds_log_of(&self, running: &Running) -> bool {
        self.tag == Some(running.view)
    }

    // ----- time -----

    /// Time passed: heartbeats, watches, retries. Called at least every half heartbeat.
    pub fn tick(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.send_presence(now, out);
        if self.persist_done < self.persist_issued {
            return;
        }
        self.advance_cp(now);
        self.settle_configuration(out);
        self.leave_if_halted(now, out);
        self.tick_order(now, out);
        self.tick_attempt(now, out);
        match &self.stage {
            Stage::Primary(_) => self.watch_as_primary(now, out),
            Stage::Member { .. } => self.watch_as_member(now, out),
            Stage::Outside { .. } => self.watch_outside(now, out),
            Stage::Promised { .. } | Stage::Installing { .. } => self.watch_change(now, out),
        }
        if self.is_normal() && self.attempt.is_none() && now > self.retry_at {
            self.retries = 0;
        }
    }

    /// Ends a turn: the acknowledgement that is due.
    pub fn finish(&mut self, out: &mut Vec<Action>) {
        self.acknowledge(out);
    }

    fn watch_as_member(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Stage::Member { primary, heard, all_formed, since, .. } = self.stage else { return };
        let timeout = self.settings.failure_timeout;
        let mut heard = heard;
        if !all_formed {
            // The others may still be bringing their logs together: a sign of life is enough.
            self.tell_installed(out);
            if now.since(since) < PHASE_TWO_TIMEOUTS * timeout {
                heard = heard.max(self.peers[primary.index()].heard);
            }
        }
        let slow = now < self.excluded_until[primary.index()];
        // The first of the backups need not wait for anybody: the primary is what is missing.
        let patience = (self.settings.me.0 as u64).saturating_sub(1) * timeout / 4;
        if now.since(heard) > timeout + patience || slow {
            self.start_attempt(now, out);
        } else {
            self.refusing = None;
        }
    }

    fn watch_outside(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Stage::Outside { since } = self.stage else { return };
        let fresh =
            self.running.filter(|r| now.since(r.heard) <= 2 * self.settings.failure_timeout);
        let copy = self.settings.shape.is_copy(self.settings.me);
        if fresh.is_some() {
            self.catch_up(now, out);
            if copy && self.is_level() && now >= self.excluded_until[self.me_index()] {
                self.start_attempt(now, out);
            }
            return;
        }
        self.running = None;
        let patience = self.settings.failure_timeout + self.settings.patience();
        if copy && now.since(since) > patience {
            self.start_attempt(now, out);
        }
    }

    /// Promised or installing: if nothing comes of it, listen again, and (a copy) try anew.
    fn watch_change(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let (coordinator, since, installing) = match &self.stage {
            Stage::Promised { coordinator, since } => (*coordinator, *since, false),
            Stage::Installing { coordinator, since, .. } => (*coordinator, *since, true),
            _ => return,
        };
        if installing && self.tagging.is_none() {
            let Stage::Installing { asked, .. } = &self.stage else { return };
            if now.since(*asked) > 2 * self.settings.heartbeat {
                self.progress_install(now, out);
            }
        }
        // The view formed without us, or the coordinator is gone.
        let passed_by = self.running.is_some_and(|r| r.view >= self.durable.promised);
        let own = coordinator == self.settings.me && self.attempt.is_some();
        if self.tagging.is_some() || own && !passed_by {
            return;
        }
        let waited = now.since(since);
        let limit = if installing { PHASE_TWO_TIMEOUTS } else { 3 } * self.settings.failure_timeout;
        let gone = self.is_silent(now, coordinator) && waited > self.settings.failure_timeout;
        if passed_by || gone || waited > limit {
            let running = self.running.filter(|r| r.view <= self.durable.promised);
            self.leave_view(out);
            self.attempt = None;
            self.stage = Stage::Outside { since: now };
            self.running = running;
            if gone && self.settings.shape.is_copy(self.settings.me) {
                self.start_attempt(now, out);
            }
        }
    }
}
