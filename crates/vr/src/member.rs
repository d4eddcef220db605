//! A server asked to join a view: the promise, phase 2, and life as a backup or promoted witness.
//! Owns: what is answered to a coordinator and to a primary.
//! Never: promises anything that is not on disk; acknowledges a record in a view below its promise.
//! Invariant: phase 2 is carried out once per view: it equals the promised view and lies above the formed one.
//! Source: docs/protocol.md, rules 1, 2, 5, 6; the Harp paper, section 4.3.

use crate::action::{Action, Records};
use crate::message::{Install, Message, Prepare, PrepareOk};
use crate::planted::Planted;
use crate::replica::{PrimaryState, Replica, Stage};
use crate::types::{Nanos, Op, ServerId, ServerSet, View};

impl Replica {
    // ----- phase 1 -----

    pub(crate) fn on_invite(
        &mut self,
        now: Nanos,
        from: ServerId,
        view: View,
        out: &mut Vec<Action>,
    ) {
        let promised = self.durable.promised;
        if view < promised || view == promised && self.gave_up(view) {
            out.push(Action::Send { to: from, message: Message::Decline { view, promised } });
        } else if view > promised {
            self.promise(now, view, from, out);
        } else if self.promised_to(from) {
            self.send_promise(now, out); // a duplicate, or our answer was lost
        }
    }

    /// Whether this server promised `view` and will not form it any more: it stopped waiting, or restarted.
    fn gave_up(&self, view: View) -> bool {
        let outside = matches!(self.stage, Stage::Outside { .. });
        let settled = self.persist_done == self.persist_issued && self.tagging.is_none();
        outside && settled && view == self.durable.promised && view > self.durable.formed
    }

    fn promised_to(&self, coordinator: ServerId) -> bool {
        matches!(&self.stage, Stage::Promised { coordinator: c, .. } if *c == coordinator)
    }

    /// Rule 1: from here on nothing happens in a lower view; the answer waits for the disk.
    pub(crate) fn promise(
        &mut self,
        now: Nanos,
        view: View,
        coordinator: ServerId,
        out: &mut Vec<Action>,
    ) {
        assert!(view > self.durable.promised, "a promise only grows");
        self.leave_view(out);
        self.durable.promised = view;
        if self.attempt.as_ref().is_some_and(|a| a.view < view) {
            self.attempt = None;
        }
        self.stage = Stage::Promised { coordinator, since: now };
        self.persist(out);
        if self.planted(Planted::PromiseNotDurable) {
            self.persist_done = self.persist_issued;
            self.send_promise(now, out);
        }
    }

    /// Stops whatever this server did in its view.
    pub(crate) fn leave_view(&mut self, out: &mut Vec<Action>) {
        if self.serving {
            self.serving = false;
            out.push(Action::Stopped { view: self.durable.formed });
        }
        if let Stage::Installing { staged: true, .. } = self.stage
            && self.tagging.is_none()
        {
            self.drop_uncommitted_staged(out);
        }
        self.ack_due = false;
        self.ack_echo = Nanos(0);
        self.running = None;
    }

    /// A phase 2 that will not be finished may have brought uncommitted records into the staged log.
    fn drop_uncommitted_staged(&mut self, out: &mut Vec<Action>) {
        if self.staged.is_some_and(|s| s.end > s.committed) {
            self.staged = None;
            out.push(Action::DropStaged);
        }
    }

    /// Sends what waited for the view file.
    pub(crate) fn after_persist(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.persist_done < self.persist_issued {
            return;
        }
        match &self.stage {
            Stage::Promised { .. } => self.send_promise(now, out),
            Stage::Installing { install, .. } if self.durable.formed == install.view => {
                let install = *install;
                self.enter_view(now, install, out);
            }
            _ => {}
        }
    }

    fn send_promise(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Stage::Promised { coordinator, .. } = self.stage else { return };
        // An adoption under way ends first: its tag decides which log this server votes.
        if self.persist_done < self.persist_issued || self.tagging.is_some() {
            return;
        }
        let (view, report) = (self.durable.promised, self.report(now));
        if coordinator == self.settings.me {
            let incarnation = self.durable.incarnation;
            self.on_promise(now, coordinator, incarnation, view, report, out);
        } else {
            out.push(Action::Send { to: coordinator, message: Message::Promise { view, report } });
        }
    }

    // ----- phase 2 -----

    pub(crate) fn on_install(
        &mut self,
        now: Nanos,
        from: ServerId,
        install: Install,
        out: &mut Vec<Action>,
    ) {
        if self.ignore_install(&install) {
            let view = install.view;
            if self.gave_up(view) {
                let decline = Message::Decline { view, promised: view };
                out.push(Action::Send { to: from, message: decline });
            }
            return;
        }
        assert!(install.members.contains(self.settings.me), "phase 2 goes to members only");
        self.prepare_to_cross(&install, out);
        let staged = self.choose_base(&install, out);
        self.cp = self.cp.max(install.cp);
        if !staged {
            self.agreed = self.agreed.max(install.cp.min(self.log.end));
        }
        let promise_left = self.settings.lengthened(install.lease_left);
        self.promise_until = self.promise_until.max(now.plus(promise_left));
        self.stage =
            Stage::Installing { install, coordinator: from, since: now, asked: Nanos(0), staged };
        self.progress_install(now, out);
    }

    fn ignore_install(&self, install: &Install) -> bool {
        if self.planted(Planted::InstallTwice) {
            return install.view < self.durable.formed
                || !install.members.contains(self.settings.me);
        }
        install.view != self.durable.promised
            || install.view <= self.durable.formed
            || self.persist_done < self.persist_issued
            || !matches!(self.stage, Stage::Promised { .. })
            || self.tagging.is_some()
            || !install.members.contains(self.settings.me)
            || self.image_moves(install)
    }

    /// Which log becomes the view's: the current one, if it is a prefix of the adopted; else the staged.
    fn choose_base(&mut self, install: &Install, out: &mut Vec<Action>) -> bool {
        let current_fits = self.tag == Some(install.adopted)
            && self.log.begin <= install.begin
            && self.log.end <= install.end;
        if self.planted(Planted::InstallTwice) && install.view == self.durable.formed {
            self.stage_from(install.begin, true, out);
            return true;
        }
        if current_fits {
            if self.staged.take().is_some() {
                out.push(Action::DropStaged);
            }
            return false;
        }
        let staged_fits = !install.overrides()
            && self.staged.is_some_and(|s| {
                s.begin <= install.begin && s.end.next() >= install.begin && s.end <= install.end
            });
        if !staged_fits {
            self.stage_from(install.begin, true, out);
        }
        true
    }

    pub(crate) fn stage_from(&mut self, begin: Op, on_disk: bool, out: &mut Vec<Action>) {
        let end = Op(begin.0 - 1);
        self.staged = Some(crate::replica::Staged { begin, end, committed: end });
        out.push(Action::Stage { begin, on_disk });
    }

    fn base_end(&self, staged: bool) -> Op {
        if staged { self.staged.expect("installing into a staged log").end } else { self.log.end }
    }

    /// Asks for what is missing; when nothing is, makes the log durable under the new view's tag.
    pub(crate) fn progress_install(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Stage::Installing { install, staged, .. } = &self.stage else { return };
        let (install, staged) = (*install, *staged);
        if self.tagging.is_some() || self.durable.formed >= install.view {
            return;
        }
        if staged && self.staged.is_some_and(|s| s.begin > install.begin) {
            // A tail kept in memory lost its oldest records meanwhile: the whole log is needed after all.
            self.stage_from(install.begin, true, out);
        }
        let end = self.base_end(staged);
        assert!(end <= install.end, "a log longer than the longest: {end} > {}", install.end);
        if end == install.end {
            self.tagging = Some(install);
            let Install { view, members, configuration, .. } = install;
            out.push(Action::Adopt { view, members, staged, configuration });
            return;
        }
        assert!(install.holder != self.settings.me, "the holder lacks records of its own log");
        let message = Message::Want { view: install.view, from: end.next(), to: install.end };
        out.push(Action::Send { to: install.holder, message });
        if let Stage::Installing { asked: at, .. } = &mut self.stage {
            *at = now;
        }
    }

    pub(crate) fn on_grant(&mut self, view: View, first: Op, last: Op) -> Records {
        let Stage::Installing { install, staged, .. } = &self.stage else { return Records::Ignore };
        if self.tagging.is_some() || self.durable.formed >= view || view != install.view {
            return Records::Ignore; // complete already, or of another attempt
        }
        let end = self.base_end(*staged);
        let fits = last <= install.end && first <= end.next() && last > end;
        match (fits, *staged) {
            (false, _) => Records::Ignore,
            (true, true) => Records::Staged { above: end },
            (true, false) => Records::Current { above: end },
        }
    }

    /// A server asks for records of the log this server holds whole.
    pub(crate) fn on_want(
        &mut self,
        from: ServerId,
        view: View,
        first: Op,
        to: Op,
        out: &mut Vec<Action>,
    ) {
        let frozen = view == self.durable.promised && self.tag.is_some();
        if frozen && first >= self.log.begin && first <= self.log.end {
            let to = to.min(self.log.end);
            out.push(Action::Grant { to_server: from, view, from: first, to });
        }
    }

    /// The log is durable under the tag `view`, and (if it was staged) has replaced the old one.
    pub fn on_tagged(&mut self, view: View, log: crate::LogFacts, out: &mut Vec<Action>) {
        let install = self.tagging.take().expect("a tag nobody asked for");
        assert_eq!(view, install.view, "the tag of another view");
        assert_eq!(
            (log.end, log.durable),
            (install.end, install.end),
            "an incomplete log was tagged"
        );
        assert!(
            log.begin <= install.begin,
            "the log begins at {}, above {}",
            log.begin,
            install.begin
        );
        self.log = log;
        self.tag = Some(view);
        if self.branch != install.configuration.overridden.view {
            self.glb = install.glb;
            self.follow(install.configuration.overridden.view, out);
        }
        if self.has_image() && !self.image_is_void() {
            // What is in an image was committed, also if those who promised had not heard of it.
            self.cp = self.cp.max(self.image.unwrap_or_default().min(log.end));
        }
        self.agreed = self.cp.min(log.end);
        self.durable.formed = view;
        self.durable.members = install.members;
        self.durable.configuration = install.configuration;
        self.durable.settled = install.end;
        self.durable.log_void = false;
        self.durable.branch = install.configuration.overridden.view;
        self.configuration = install.configuration;
        self.changes.clear();
        if self.staged.is_some() || install.overrides() {
            self.before.clear(); // another log: what its records changed is not known one by one
        }
        self.staged = None;
        self.persist(out);
    }

    /// The formed view is durable: this server is part of it.
    fn enter_view(&mut self, now: Nanos, install: Install, out: &mut Vec<Action>) {
        let (view, members) = (install.view, install.members);
        let me = self.settings.me;
        let primary = if self.planted(Planted::CoordinatorLeads) && view.coordinator() == me {
            me
        } else {
            self.settings.shape.primary_of(members).expect("a view without a copy")
        };
        self.attempt = self.attempt.take().filter(|a| a.view >= view);
        self.running = None;
        self.refusing = None;
        out.push(Action::Formed { view, members, primary });
        if primary == self.settings.me {
            self.enter_as_primary(now, install, out);
        } else {
            self.stage = Stage::Member {
                primary,
                since: now,
                heard: now,
                primary_ap: Op::ZERO,
                all_formed: false,
            };
            self.tell_installed(out);
        }
    }

    fn enter_as_primary(&mut self, now: Nanos, install: Install, out: &mut Vec<Action>) {
        // GLB may have passed the image of a copy that is marked, or whose disk does not count.
        let marked = self.configuration.needs_image;
        for server in self.others() {
            let counts = self.admits(server) && !marked.contains(server);
            let peer = &mut self.peers[server.index()];
            peer.next = install.end.next();
            peer.received = install.end;
            peer.durable = Op::ZERO;
            peer.echo = Nanos(0);
            peer.acked = now;
            peer.progressed = now;
            peer.prepared = Nanos(0);
            peer.told_cp = Op::ZERO;
            if counts {
                peer.lb = peer.lb.max(self.glb);
            }
        }
        let no_wait = self.planted(Planted::NoLeaseWait);
        self.stage = Stage::Primary(PrimaryState {
            installed: ServerSet::from_iter([self.settings.me]),
            quiet_until: if no_wait { now } else { self.promise_until },
            adopted_end: install.end,
            since: now,
        });
        self.admitting = ServerSet::EMPTY;
        self.advance_glb();
        self.check_all_formed(now, out);
    }

    pub(crate) fn tell_installed(&mut self, out: &mut Vec<Action>) {
        let Stage::Member { primary, .. } = self.stage else { return };
        let message = Message::Installed { view: self.durable.formed, end: self.log.end };
        out.push(Action::Send { to: primary, message });
    }

    // ----- normal case, as a member -----

    pub(crate) fn on_prepare(
        &mut self,
        now: Nanos,
        from: ServerId,
        prepare: Prepare,
        out: &mut Vec<Action>,
    ) -> Records {
        let acks_late = self.planted(Planted::AckAfterPromise)
            && prepare.view == self.durable.formed
            && matches!(self.stage, Stage::Promised { .. });
        if acks_late {
            return self.append_after_promise(from, prepare, out);
        }
        let Stage::Member { primary, heard, primary_ap, all_formed, .. } = &mut self.stage else {
            return Records::Ignore;
        };
        if prepare.view != self.durable.formed
            || prepare.view != self.durable.promised
            || from != *primary
        {
            return Records::Ignore;
        }
        *heard = now;
        *all_formed |= prepare.all_formed;
        if prepare.all_formed {
            // Only now can CP have moved in this view; what is told before is not news.
            *primary_ap = (*primary_ap).max(prepare.ap);
            self.cp = self.cp.max(prepare.cp);
            self.agreed = self.agreed.max(prepare.cp.min(self.log.end));
            self.glb = self.glb.max(prepare.glb);
            self.promise_until = self.promise_until.max(now.plus(self.settings.lease));
            self.ack_echo = self.ack_echo.max(prepare.sent);
        }
        self.ack_due = true;
        if prepare.stalled > 4 * self.settings.failure_timeout {
            self.excluded_until[from.index()] = now.plus(20 * self.settings.failure_timeout);
        }
        if prepare.first > self.log.end.next() {
            self.ack_gap = true;
            return Records::Ignore;
        }
        if prepare.last <= self.log.end {
            return Records::Ignore;
        }
        Records::Current { above: self.log.end }
    }

    /// The planted bug [`Planted::AckAfterPromise`]: acknowledged as if no promise forbade it.
    fn append_after_promise(
        &mut self,
        from: ServerId,
        prepare: Prepare,
        out: &mut Vec<Action>,
    ) -> Records {
        let fits = prepare.first <= self.log.end.next() && prepare.last > self.log.end;
        let durable = if fits { prepare.last } else { self.log.durable };
        let ok = PrepareOk {
            view: prepare.view,
            received: durable,
            durable,
            lb: self.image.unwrap_or_default(),
            echo: prepare.sent,
            gap: false,
        };
        out.push(Action::Send { to: from, message: Message::PrepareOk(ok) });
        Records::Ignore
    }

    /// The acknowledgement that is due, if any. Called at the end of a turn, so that one answers many.
    pub(crate) fn acknowledge(&mut self, out: &mut Vec<Action>) {
        let Stage::Member { primary, .. } = self.stage else { return };
        if !self.ack_due || self.persist_done < self.persist_issued {
            return;
        }
        let early = self.settings.ack_received || self.planted(Planted::AckBeforeDurable);
        let ok = PrepareOk {
            view: self.durable.formed,
            received: self.log.end,
            durable: if early { self.log.end } else { self.log.durable },
            lb: self.image.unwrap_or_default(),
            echo: self.ack_echo,
            gap: self.ack_gap,
        };
        self.ack_due = false;
        self.ack_gap = false;
        out.push(Action::Send { to: primary, message: Message::PrepareOk(ok) });
    }
}
