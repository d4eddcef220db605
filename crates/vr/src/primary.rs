//! The primary: streams records, commits, holds the lease.
//! Owns: each member's place in the log, CP, GLB, the lease.
//! Never: commits before all members formed the view, or while an earlier primary may hold a lease.
//! Invariant: CP <= the durable log of every member, the primary's own included.
//! Source: docs/protocol.md, rules 2, 7, 10, 12; the Harp paper, section 4.2.

use crate::action::{Action, ConfigurationChange};
use crate::message::{Message, Prepare, PrepareOk};
use crate::outside::PHASE_TWO_TIMEOUTS;
use crate::overriding::Override;
use crate::planted::Planted;
use crate::replica::{Replica, Stage};
use crate::types::{Nanos, Op, ServerId, View};

impl Replica {
    pub(crate) fn on_installed(
        &mut self,
        now: Nanos,
        from: ServerId,
        view: View,
        end: Op,
        out: &mut Vec<Action>,
    ) {
        let formed = view == self.durable.formed && self.durable.members.contains(from);
        let Stage::Primary(state) = &mut self.stage else { return };
        if !formed || state.installed.contains(from) {
            return;
        }
        // A member that restarted after it installed says so under a new incarnation, through a view change.
        if end != state.adopted_end {
            return;
        }
        state.installed.insert(from);
        let peer = &mut self.peers[from.index()];
        peer.next = end.next();
        peer.received = end;
        peer.durable = end;
        peer.acked = now;
        peer.progressed = now;
        self.check_all_formed(now, out);
    }

    pub(crate) fn check_all_formed(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let members = self.durable.members;
        let Stage::Primary(state) = &self.stage else { return };
        if state.installed == members && !self.serving {
            let Override { view, cut, .. } = self.configuration.overridden;
            if view != View::NONE && state.adopted_end == cut {
                let change = ConfigurationChange::Overridden { server: view.coordinator(), view };
                out.push(Action::LogConfiguration(change));
            }
            self.serving = true;
            out.push(Action::Serving { view: self.durable.formed });
        }
        self.advance_cp(now);
    }

    pub(crate) fn on_prepare_ok(&mut self, now: Nanos, from: ServerId, ok: PrepareOk) {
        let Stage::Primary(state) = &self.stage else { return };
        if ok.view != self.durable.formed || !state.installed.contains(from) {
            return;
        }
        let end = self.log.end;
        let peer = &mut self.peers[from.index()];
        peer.acked = now;
        if ok.durable > peer.durable || ok.durable.next() >= peer.next {
            peer.progressed = now;
        }
        peer.received = peer.received.max(ok.received.min(end));
        peer.durable = peer.durable.max(ok.durable.min(end));
        peer.echo = peer.echo.max(ok.echo);
        peer.lb = peer.lb.max(ok.lb);
        if ok.gap {
            peer.next = peer.received.next();
        }
        self.advance_glb();
        self.advance_cp(now);
    }

    /// CP is what every member holds durably, once the view is formed by all and the old lease is out.
    pub(crate) fn advance_cp(&mut self, now: Nanos) {
        let Stage::Primary(state) = &self.stage else { return };
        let early = self.planted(Planted::CommitBeforeAllFormed);
        let formed_by_all = state.installed == self.durable.members || early;
        if !formed_by_all || now < state.quiet_until {
            return;
        }
        let own = if self.settings.ack_received { self.log.end } else { self.log.durable };
        let me = self.settings.me;
        let held = self.durable.members.iter().filter(|m| *m != me).fold(own, |low, m| {
            let uncounted = early && !state.installed.contains(m);
            if uncounted { low } else { low.min(self.peers[m.index()].durable) }
        });
        if held > self.cp {
            assert!(held <= self.log.end, "CP beyond FP");
            self.cp = held;
            self.agreed = held;
        }
    }

    /// Until when reads may be answered: the least of the promises of all other members, each counted from
    /// the sending of the message it acknowledged (rule 7).
    pub fn lease_until(&self) -> Nanos {
        let Stage::Primary(_) = &self.stage else { return Nanos(0) };
        if !self.serving {
            return Nanos(0);
        }
        let me = self.settings.me;
        let echoes = self.durable.members.iter().filter(|m| *m != me);
        let oldest = echoes.map(|m| self.peers[m.index()].echo).min().unwrap_or_default();
        if oldest == Nanos(0) { Nanos(0) } else { oldest.plus(self.settings.lease_trusted()) }
    }

    /// Whether a reply without a record of its own may leave now: primary of a view that all formed, CP at
    /// the adopted end or above, lease live.
    pub fn may_answer(&self, now: Nanos) -> bool {
        let Stage::Primary(state) = &self.stage else { return false };
        let leased = now < self.lease_until() || self.planted(Planted::ReadWithoutLease);
        self.serving && self.cp >= state.adopted_end && now >= state.quiet_until && leased
    }

    /// The members that want a Prepare now, each with the first op to attach; `None` when it is not due.
    /// The caller asks for each member in turn, attaches what fits and calls [`Replica::prepare`].
    pub fn prepare_due(&self, now: Nanos, member: ServerId) -> Option<Op> {
        let Stage::Primary(state) = &self.stage else { return None };
        let me = self.settings.me;
        if member == me
            || !self.durable.members.contains(member)
            || !state.installed.contains(member)
        {
            return None;
        }
        let peer = &self.peers[member.index()];
        let news = peer.next <= self.log.end;
        let beat = now.since(peer.prepared) >= self.settings.heartbeat;
        (news || beat).then_some(peer.next)
    }

    /// Whether `member` must hear something now even if there are no records for it.
    pub fn heartbeat_due(&self, now: Nanos, member: ServerId) -> bool {
        now.since(self.peers[member.index()].prepared) >= self.settings.heartbeat
    }

    /// Position up to which `member` is known to have received the log, for flow control.
    pub fn received_by(&self, member: ServerId) -> Op {
        self.peers[member.index()].received
    }

    /// The Prepare for `member` with records `first..=last` (`last < first`: a heartbeat).
    pub fn prepare(&mut self, now: Nanos, member: ServerId, first: Op, last: Op) -> Message {
        let view = self.durable.formed;
        let all_formed = self.serving;
        let (cp, ap, glb, stalled) = (self.cp, self.ap, self.glb, self.stalled);
        let peer = &mut self.peers[member.index()];
        assert_eq!(first, peer.next, "records are streamed in op order");
        if last >= first {
            if peer.durable.next() == first {
                peer.progressed = now; // nothing was outstanding: the age counts from here
            }
            peer.next = last.next();
        }
        peer.prepared = now;
        peer.told_cp = cp;
        Message::Prepare(Prepare { view, first, last, cp, ap, glb, all_formed, sent: now, stalled })
    }

    /// What a primary watches: members silent or slow, servers to admit (rules 3 and 12).
    pub(crate) fn watch_as_primary(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Stage::Primary(state) = &self.stage else { return };
        let (installed, since) = (state.installed, state.since);
        let me = self.settings.me;
        let mut lost = false;
        for member in self.durable.members.iter().filter(|m| *m != me) {
            let peer = &self.peers[member.index()];
            let timeout = self.settings.failure_timeout;
            let quiet = if installed.contains(member) {
                now.since(peer.acked) > timeout
            } else {
                let patience = PHASE_TWO_TIMEOUTS * timeout;
                self.is_silent(now, member) && now.since(since) > timeout
                    || now.since(since) > patience
            };
            let owes = peer.durable < self.log.end && installed.contains(member);
            let slow = owes && now.since(peer.progressed) > 4 * timeout;
            if slow {
                self.excluded_until[member.index()] = now.plus(20 * timeout);
            }
            let gone = !installed.contains(member) && self.serving;
            lost |= quiet || slow || gone;
        }
        if lost {
            self.start_attempt(now, out);
            return;
        }
        // A silence during which too few were heard for another view is over, and this one goes on.
        self.refusing = None;
        if self.serving {
            self.admit_returned_disks(now, out);
            self.tend_learners(now, out);
        }
    }

    /// The log is at its bound (rule 10): a copy that loads its image holds GLB back no longer and begins anew; if
    /// there is none, the absent copy that holds it back is given up. A record says so; from then on it needs an
    /// image.
    pub fn give_up_absent(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !self.serving || now >= self.lease_until() {
            return; // perhaps primary no more
        }
        if self.let_learners_go() {
            self.advance_glb();
            return;
        }
        let members = self.durable.members;
        let absent = self
            .settings
            .shape
            .copies()
            .filter(|c| !members.contains(*c) && !self.configuration.needs_image.contains(*c));
        let lb = |c: &ServerId| self.peers[c.index()].lb;
        let Some(server) = absent.min_by_key(lb) else { return };
        let holds_back = self.durable.members.iter().filter(|m| self.settings.shape.is_copy(*m));
        let me = self.settings.me;
        let own = |m: ServerId| if m == me { self.image.unwrap_or_default() } else { lb(&m) };
        if holds_back.map(own).min().is_some_and(|least| lb(&server) < least) {
            let change = ConfigurationChange::NeedsImage { server };
            out.push(Action::LogConfiguration(change));
        }
    }

    /// A server outside of the view speaks from a disk that the configuration does not name.
    fn admit_returned_disks(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if now >= self.lease_until() {
            return; // perhaps primary no more
        }
        for server in self.others() {
            let peer = &self.peers[server.index()];
            let disk = peer.incarnation.disk;
            let unknown = disk != 0 && disk != self.configuration.disks[server.index()];
            let outside = !self.durable.members.contains(server);
            if unknown && outside && peer.presence.is_some() && !self.admitting.contains(server) {
                self.admitting.insert(server);
                let change = ConfigurationChange::Admit { server, disk };
                out.push(Action::LogConfiguration(change));
            }
        }
    }
}
