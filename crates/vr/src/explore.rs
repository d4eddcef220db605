//! A replica as an explorer of all its behaviours drives it: time passes where the explorer says so.
//! Owns: which times only delay something, and which decide what is safe (leases, rule 7).
//! Never: used by a server; changes anything that a message, a disk or a client could have told.
//! Invariant: replicas that do the same from here on, whatever comes, are made equal where that is cheap.
//! Source: docs/notes/model.md.

use crate::action::Action;
use crate::coordinator::Attempt;
use crate::message::Install;
use crate::planted::Planted;
use crate::replica::{Peer, Replica, Stage};
use crate::types::{Nanos, Op, SERVERS_MAX, ServerId, ServerSet, View};

/// For how long a server has waited, for everything that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waited {
    /// Not at all.
    Nothing,
    /// Longer than it is patient or waits for a heartbeat, shorter than its failure timeout.
    Soon,
    /// Longer than any timeout.
    Long,
}

impl Replica {
    /// Makes all that this server waits for, or has waited for, as old as `waited` says. It heard the servers in
    /// `silent` that long ago and the others just now. Leases stay as they are.
    pub fn set_waits(&mut self, now: Nanos, waited: Waited, silent: ServerSet) {
        let timeout = self.settings.failure_timeout;
        let ago = match waited {
            Waited::Nothing => 0,
            Waited::Soon => timeout / 2,
            Waited::Long => 1_000 * timeout,
        };
        assert!(ago > 2 * self.settings.heartbeat || ago == 0, "a heartbeat is short");
        let at = Nanos(now.0 - ago);
        // Only a server that waited long starts a view change.
        self.retry_at = if waited == Waited::Soon { now.plus(1) } else { Nanos(0) };
        for server in self.settings.shape.servers() {
            let peer = &mut self.peers[server.index()];
            peer.heard = if silent.contains(server) { at } else { now };
            (peer.acked, peer.progressed) = (at, at);
        }
        match &mut self.stage {
            Stage::Outside { since } | Stage::Promised { since, .. } => *since = at,
            Stage::Installing { since, asked, .. } => (*since, *asked) = (at, at),
            Stage::Member { since, heard, .. } => (*since, *heard) = (at, at),
            Stage::Primary(state) => state.since = at,
        }
        if let Some(attempt) = &mut self.attempt {
            (attempt.since, attempt.sent) = (at, at);
        }
        if let Some(running) = &mut self.running {
            running.heard = at;
        }
        if let Some(loading) = &mut self.loading {
            loading.asked = at;
        }
        self.catch_up_at = Nanos(0);
        self.presence_at = now;
    }

    /// Every lease and every promise of one runs out.
    pub fn end_leases(&mut self) {
        self.end_lease_promises();
        self.ack_echo = Nanos(0);
        for peer in &mut self.peers {
            (peer.echo, peer.prepared) = (Nanos(0), Nanos(0));
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.promises.iter_mut().flatten().for_each(|p| p.received = Nanos(0));
            if let Some((_, decided)) = &mut attempt.install {
                *decided = Nanos(0);
            }
        }
    }

    /// No promise of a lease keeps anybody waiting.
    pub fn end_lease_promises(&mut self) {
        self.promise_until = Nanos(0);
        if let Stage::Primary(state) = &mut self.stage {
            state.quiet_until = Nanos(0);
        }
    }

    /// A heartbeat is due to every member.
    pub fn owe_heartbeats(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.prepared = Nanos(0));
    }

    /// Takes out what makes no difference: how long things took, how often they were tried, what was heard of
    /// others in a role that this server has no more. Returns by how much view-file writes are renumbered.
    pub fn normalise(&mut self, now: Nanos) -> u64 {
        self.normalise_leases(now);
        (self.retries, self.stalled, self.refusing) = (0, 0, None);
        self.excluded_until = [Nanos(0); SERVERS_MAX];
        let (primary, serving, cp) = (self.is_primary(), self.serving, self.cp);
        for (peer, admitted) in self.peers.iter_mut().zip(self.configuration.disks) {
            let unknown = peer.incarnation.disk != 0 && peer.incarnation.disk != admitted;
            peer.presence = peer.presence.filter(|_| serving && unknown);
            // Members hear at once what is news, and that the view serves; else when leases ended.
            let told = serving && peer.told_cp >= cp && peer.prepared != Nanos(0);
            peer.prepared = if told { now } else { Nanos(0) };
            if !primary {
                let Peer { incarnation, heard, lb, stands, let_go, .. } = *peer;
                let forgotten = Peer { incarnation, heard, lb, stands, let_go, ..Peer::default() };
                *peer = forgotten;
            }
        }
        self.ack_due &= matches!(self.stage, Stage::Member { .. });
        let promised = self.durable.promised;
        self.attempt = self.attempt.take().filter(|a| a.view >= promised);
        if let Some(Attempt { promises, install: Some((install, _)), .. }) = &mut self.attempt {
            // They were judged. Whose they are still counts for those who are to have phase 2.
            for (server, promise) in (0..).map(ServerId).zip(promises) {
                *promise = promise.filter(|_| install.members.contains(server));
            }
        }
        self.set_waits(now, Waited::Nothing, ServerSet::EMPTY);
        let renumbered = self.persist_done;
        (self.persist_done, self.persist_issued) = (0, self.persist_issued - renumbered);
        renumbered
    }

    /// A lease lives or not; for how long makes no difference between two of [`Replica::end_leases`].
    fn normalise_leases(&mut self, now: Nanos) {
        let full = now.plus(self.settings.lease);
        let until = |at: Nanos| if at > now { full } else { Nanos(0) };
        let sent = |at: Nanos| if at == now { now } else { Nanos(0) };
        self.promise_until = until(self.promise_until);
        self.ack_echo = sent(self.ack_echo);
        if let Stage::Primary(state) = &mut self.stage {
            state.quiet_until = until(state.quiet_until);
        }
        self.peers.iter_mut().for_each(|peer| peer.echo = sent(peer.echo));
    }

    /// What this server says of itself, at once.
    pub fn tell_presence(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.presence_at = Nanos(0);
        self.send_presence(now, out);
    }

    /// Breaks a rule from here on.
    pub fn plant(&mut self, planted: Option<Planted>) {
        self.settings.planted = planted;
    }

    /// Which server this is.
    pub fn me(&self) -> ServerId {
        self.settings.me
    }

    /// Whether it asks for records when it has waited a little.
    pub fn lacks(&self) -> bool {
        match self.stage {
            Stage::Outside { .. } => self.running.is_some(),
            Stage::Installing { .. } => self.tagging.is_none(),
            _ => false,
        }
    }

    /// The view that this server tries to form.
    pub fn coordinates(&self) -> Option<View> {
        self.attempt.as_ref().map(|attempt| attempt.view)
    }

    /// The phase 2 that it decided on, and the end of the longest log of the adopted view that its members promised.
    pub fn judged(&self) -> Option<(Install, Op)> {
        let attempt = self.attempt.as_ref()?;
        let (install, _) = attempt.install?;
        let reports = attempt.promises.iter().flatten().map(|promise| promise.report);
        let of_view = reports.filter(|report| report.formed == install.adopted);
        let longest = of_view.filter_map(|report| report.log).map(|(_, end)| end).max();
        Some((install, longest.unwrap_or_default()))
    }

    /// The view that it tries to form, as long as promises decide whether it may.
    pub fn judges(&self) -> Option<View> {
        self.attempt
            .as_ref()
            .filter(|attempt| attempt.install.is_none())
            .map(|attempt| attempt.view)
    }
}
