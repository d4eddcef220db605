//! The coordinator: starts a view change, judges whether a view may form, hands out phase 2.
//! Owns: an attempt, the promises it gathered, the three predicates of rule 2.
//! Never: runs at a witness; forms a view from promises of a disk the adopted history does not name.
//! Invariant: an attempt's view is the one this server itself promised.
//! Source: docs/protocol.md, rules 2, 9, 12; the Harp paper, section 4.3.

use crate::action::Action;
use crate::message::{Install, Message, Report};
use crate::overriding::Override;
use crate::planted::Planted;
use crate::replica::{Replica, Stage};
use crate::types::{Incarnation, Nanos, Op, SERVERS_MAX, ServerId, ServerSet, View};

/// A copy that lacks no more than this may be taken in while a view forms.
const NEAR_OPS: u64 = 50_000;

/// One promise as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Promised {
    pub incarnation: Incarnation,
    pub report: Report,
    pub received: Nanos,
}

/// A view change that this server coordinates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub view: View,
    pub since: Nanos,
    pub sent: Nanos,
    pub promises: [Option<Promised>; SERVERS_MAX],
    pub install: Option<(Install, Nanos)>,
    /// A member that phase 2 waits for gave its promise up.
    pub forsaken: bool,
}

impl Attempt {
    /// Whether it was this life of `server` that promised. Another may have forgotten what it promised since, on
    /// a disk that counts for nothing, so that phase 2 is not for it (rules 3 and 6).
    fn is_promised_by(&self, server: ServerId, life: Incarnation) -> bool {
        self.promises[server.index()].is_some_and(|promise| promise.incarnation == life)
    }
}

/// Why a view cannot form from the promises at hand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// (a) Too few servers promised under an admitted disk.
    Promises {
        /// Who did.
        have: ServerSet,
        /// How many it takes.
        need: usize,
    },
    /// (c) Nobody holds a whole log of the highest formed view.
    Log {
        /// That view.
        formed: View,
        /// Its members: one of them, with its log, is to come back.
        members: ServerSet,
    },
    /// (c) No image reaches the beginning of the log.
    Image {
        /// First op of the log.
        begin: Op,
    },
    /// Enough promised, but too few can be members.
    Members {
        /// Who can.
        have: ServerSet,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Promises { have, need } => {
                write!(
                    f,
                    "only {have:?} can promise a view and it takes {need}: bring another server back"
                )
            }
            Refusal::Log { formed, members } => write!(
                f,
                "view {formed} was formed by {members:?} and none of the servers at hand has its log: \
                 bring one of them back"
            ),
            Refusal::Image { begin } => {
                write!(
                    f,
                    "no copy's files reach op {begin}, where the log begins: bring another copy back"
                )
            }
            Refusal::Members { have } => {
                write!(f, "only {have:?} can be members of a view: bring another server back")
            }
        }
    }
}

impl Replica {
    /// Starts a view change, or does nothing if too few servers can be heard.
    pub(crate) fn start_attempt(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let able = self.settings.shape.is_copy(self.settings.me)
            && (self.is_admitted() || self.has_order());
        if !able || self.is_halted() || now < self.retry_at {
            return;
        }
        let quorum = self.settings.shape.quorum();
        if self.reachable(now) < quorum {
            let have = self.heard_lately(now);
            self.refuse(Refusal::Promises { have, need: quorum }, out);
            return;
        }
        let seen = self.others().filter_map(|s| self.peers[s.index()].presence).map(|p| p.promised);
        let highest = seen.fold(self.durable.promised, View::max);
        let view = highest.next(self.settings.me);
        self.promise(now, view, self.settings.me, out);
        let promises = [None; SERVERS_MAX];
        self.attempt =
            Some(Attempt { view, since: now, sent: now, promises, install: None, forsaken: false });
        self.retries = (self.retries + 1).min(4);
        let wait = self.settings.failure_timeout << (self.retries - 1);
        self.retry_at = now.plus(wait + self.settings.patience());
        // The invitation itself is a message in the view: it leaves when our own promise is durable.
        if self.planted(Planted::PromiseNotDurable) {
            self.invite(now, out);
        }
    }

    fn heard_lately(&self, now: Nanos) -> ServerSet {
        let mut have: ServerSet = self.others().filter(|s| !self.is_silent(now, *s)).collect();
        have.insert(self.settings.me);
        have
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        if self.refusing.as_ref() != Some(&refusal) {
            out.push(Action::Refusing { why: refusal.to_string() });
            self.refusing = Some(refusal);
        }
    }

    fn invite(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let others: Vec<ServerId> = self.others().collect();
        let Some(attempt) = &mut self.attempt else { return };
        attempt.sent = now;
        let view = attempt.view;
        for to in others {
            if attempt.promises[to.index()].is_none() {
                out.push(Action::Send { to, message: Message::Invite { view } });
            }
        }
    }

    pub(crate) fn on_promise(
        &mut self,
        now: Nanos,
        from: ServerId,
        incarnation: Incarnation,
        view: View,
        report: Report,
        out: &mut Vec<Action>,
    ) {
        let mine = from == self.settings.me;
        let Some(attempt) = &mut self.attempt else { return };
        // Once phase 2 is decided, the promises it was decided on stay: another one is of another life.
        if attempt.view != view || view != self.durable.promised || attempt.install.is_some() {
            return;
        }
        attempt.promises[from.index()] = Some(Promised { incarnation, report, received: now });
        if mine {
            self.invite(now, out);
        }
        self.try_to_form(now, out);
    }

    pub(crate) fn on_decline(&mut self, now: Nanos, from: ServerId, promised: View) {
        let Some(attempt) = &mut self.attempt else { return };
        match attempt.install {
            // Somebody is ahead. Give it time, then try above it.
            None if promised > attempt.view => {
                self.retry_at = self.retry_at.max(now.plus(self.settings.patience()));
            }
            Some((install, _)) if promised == attempt.view && install.members.contains(from) => {
                attempt.forsaken = true;
            }
            _ => {}
        }
    }

    /// Judges the promises; when a view may form and nobody likely is missing, starts phase 2. Returns why none may.
    pub(crate) fn try_to_form(&mut self, now: Nanos, out: &mut Vec<Action>) -> Option<Refusal> {
        let attempt = self.attempt.as_ref()?;
        if attempt.install.is_some() || attempt.promises[self.me_index()].is_none() {
            return None;
        }
        if self.has_order() {
            self.try_order(now, out);
            return None;
        }
        let awaited =
            self.others().any(|s| attempt.promises[s.index()].is_none() && !self.is_silent(now, s));
        let patient = now.since(attempt.since) < self.settings.failure_timeout / 4;
        match self.judge(now) {
            Ok(_) if awaited && patient => {}
            Ok(install) => self.start_phase_two(now, install, out),
            Err(refusal) => return Some(refusal),
        }
        None
    }

    pub(crate) fn start_phase_two(&mut self, now: Nanos, install: Install, out: &mut Vec<Action>) {
        self.refusing = None;
        let attempt = self.attempt.as_mut().expect("an attempt was judged");
        attempt.install = Some((install, now));
        self.send_installs(now, out);
    }

    fn send_installs(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let me = self.settings.me;
        let Some(attempt) = &mut self.attempt else { return };
        let Some((install, decided)) = attempt.install else { return };
        attempt.sent = now;
        let waited = now.since(decided);
        let install = Install { lease_left: install.lease_left.saturating_sub(waited), ..install };
        // An override is begun by the one who ordered it, alone, or not at all.
        let told = if self.has_begun(&install) { install.members } else { ServerSet::EMPTY };
        let Some(attempt) = &self.attempt else { return };
        for to in told.iter().filter(|m| *m != me) {
            if attempt.is_promised_by(to, self.peers[to.index()].incarnation) {
                out.push(Action::Send { to, message: Message::Install(install) });
            }
        }
        if install.members.contains(me) {
            self.on_install(now, me, install, out);
        }
    }

    /// Rule 2: the three predicates over the promises at hand, and whom the view would consist of.
    pub(crate) fn judge(&self, now: Nanos) -> Result<Install, Refusal> {
        let attempt = self.attempt.as_ref().expect("only an attempt is judged");
        let need = self.settings.shape.quorum();
        // Its own image may have moved on, or become whole, since it promised.
        let mut promises = attempt.promises;
        if let Some(own) = &mut promises[self.me_index()] {
            let Report { image, files, applied, .. } = self.report(now);
            own.report = Report { image, files, applied, ..own.report };
        }
        let all: Vec<(ServerId, &Promised)> = self
            .settings
            .shape
            .servers()
            .filter_map(|s| promises[s.index()].as_ref().map(|p| (s, p)))
            .collect();
        // The adopted history names the admitted disks; it is the best log's configuration.
        let best = all.iter().filter(|(_, p)| p.report.log.is_some());
        let best = best.max_by_key(|(_, p)| (p.report.formed, p.report.log.map(|l| l.1)));
        let configuration = best.map_or(self.configuration, |(_, p)| p.report.configuration);
        // Whose disk counts is what was committed: a primary that was cut off may have admitted one for itself.
        let settled = best.map_or(self.durable.configuration, |(_, p)| p.report.settled);
        let counted: Vec<(ServerId, &Promised)> = all
            .into_iter()
            .filter(|(s, p)| settled.disks[s.index()] == p.incarnation.disk)
            .collect();
        // What a server knows of a history that was overridden says nothing about this one.
        let same = |p: &Promised| p.report.branch == settled.overridden.view;
        let have: ServerSet = counted.iter().map(|(s, _)| *s).collect();
        let need = need + usize::from(self.planted(Planted::RefuseWithoutCause));
        if have.len() < need {
            return Err(Refusal::Promises { have, need }); // (a)
        }
        let top = counted.iter().max_by_key(|(_, p)| p.report.formed).expect("n+1 promises");
        let formed = top.1.report.formed; // (b): every counted promise names its formed view
        let untagged = self.planted(Planted::VoteUntagged) || self.planted(Planted::AmnesiaVotes);
        let holders = counted
            .iter()
            .filter(|(_, p)| p.report.log.is_some() && (p.report.formed == formed || untagged));
        let me = self.settings.me;
        let length = |p: &Promised| p.report.log.map_or(Op::ZERO, |l| l.1);
        let holder = if self.planted(Planted::ShortestLogWins) {
            holders.min_by_key(|(s, p)| (length(p), *s != me))
        } else {
            holders.max_by_key(|(s, p)| (length(p), *s == me, std::cmp::Reverse(*s)))
        };
        let Some((holder, held)) = holder else {
            return Err(Refusal::Log { formed, members: top.1.report.members }); // (c), the log
        };
        let (begin, end) = held.report.log.expect("a holder has a log");
        let known = || counted.iter().filter(|(_, p)| same(p));
        let cp = known().map(|(_, p)| p.report.committed()).max().unwrap_or_default();
        if cp > end && self.settings.planted.is_none() {
            // More was committed than the best log holds: it is not the complete history (c).
            return Err(Refusal::Log { formed, members: top.1.report.members });
        }
        let glb = known().map(|(_, p)| p.report.glb).max().unwrap_or_default();
        let begin = glb.next().max(begin);
        let first = (formed, top.1.report.members, settled.overridden);
        let members = self.choose_members(now, &counted, first, (begin, end))?;
        let left = counted.iter().map(|(_, p)| {
            self.settings.lengthened(p.report.lease_left).saturating_sub(now.since(p.received))
        });
        Ok(Install {
            view: attempt.view,
            members,
            adopted: held.report.formed,
            holder: *holder,
            begin,
            end,
            cp: cp.min(end),
            glb,
            lease_left: left.max().unwrap_or(0),
            configuration,
        })
    }

    /// Where the image of a copy stands that was at `lb` when it promised: it may have moved on since, and GLB
    /// with it.
    fn newest_lb(&self, server: ServerId, lb: Op) -> u64 {
        lb.max(self.peers[server.index()].lb).0
    }

    /// n+1 members: copies that are level first, then witnesses (the best informed first), then copies that
    /// have far to go. A slow server only if there is no other.
    fn choose_members(
        &self,
        now: Nanos,
        counted: &[(ServerId, &Promised)],
        (formed, formed_by, overridden): (View, ServerSet, Override),
        (begin, end): (Op, Op),
    ) -> Result<ServerSet, Refusal> {
        let shape = self.settings.shape;
        let branch = overridden.view;
        let same = |r: &Report| r.branch == branch || self.planted(Planted::OldEpochVotes);
        let lacks = |r: &Report| {
            let tagged = r.log.filter(|_| r.formed == formed).map_or(Op::ZERO, |l| l.1);
            let level = if same(r) { r.level } else { Op::ZERO };
            end.0.saturating_sub(tagged.max(level).0)
        };
        let mut able: Vec<(u8, u64, ServerId)> = Vec::with_capacity(counted.len());
        let mut images = ServerSet::EMPTY;
        for (server, promise) in counted {
            let report = &promise.report;
            let lacking = lacks(report);
            if shape.is_copy(*server) {
                // An override chose its members' images; those that did not hear of it have them still. So does a
                // member of a later view that nobody completed: without it nothing was committed there.
                let unheard = formed_by.contains(*server) && report.reached < branch;
                let chosen = unheard && report.applied <= end.min(overridden.cut);
                let image = report.image.filter(|_| same(report) || chosen);
                let newest =
                    image.map(|lb| if same(report) { self.newest_lb(*server, lb) } else { lb.0 });
                let reaches = newest.is_some_and(|lb| lb >= begin.0 - 1);
                if !reaches {
                    continue;
                }
                images.insert(*server);
            }
            let slow = now < self.excluded_until[server.index()];
            let class = match (slow, shape.is_copy(*server), lacking <= NEAR_OPS) {
                (true, ..) => 3,
                (_, true, true) => 0,
                (_, false, _) => 1,
                (_, true, false) => 2,
            };
            able.push((class, if class == 0 { 0 } else { lacking }, *server));
        }
        if images.is_empty() {
            return Err(Refusal::Image { begin });
        }
        able.sort();
        let mut members: ServerSet = able.iter().take(shape.quorum()).map(|(_, _, s)| *s).collect();
        if members.len() < shape.quorum() {
            return Err(Refusal::Members { have: members });
        }
        if shape.primary_of(members).is_none() {
            // Witnesses alone hold no files: the best copy takes the last one's place.
            let copy =
                able.iter().find(|(_, _, s)| shape.is_copy(*s)).expect("an image is there").2;
            members.remove(able[shape.quorum() - 1].2);
            members.insert(copy);
        }
        Ok(members)
    }

    /// Time passes for an attempt: say again what may have been lost, give up what cannot be.
    pub(crate) fn tick_attempt(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(attempt) = &self.attempt else { return };
        let all_in = self.serving || matches!(self.stage, Stage::Member { all_formed: true, .. });
        if attempt.view < self.durable.promised || attempt.view == self.durable.formed && all_in {
            self.attempt = None;
            return;
        }
        let beat = now.since(attempt.sent) >= self.settings.heartbeat;
        let forsaken = attempt.forsaken;
        match attempt.install {
            None => {
                // Only now: behind a promise that is not enough another one may have waited, all through a pause.
                let since = attempt.since;
                if let Some(refusal) = self.try_to_form(now, out)
                    && now.since(since) > self.settings.failure_timeout
                {
                    self.refuse(refusal, out);
                }
                if beat
                    && self.attempt.as_ref().is_some_and(|a| a.promises[self.me_index()].is_some())
                {
                    self.invite(now, out);
                }
                if now >= self.retry_at {
                    self.start_attempt(now, out);
                }
            }
            Some((install, decided)) => {
                let me = self.settings.me;
                let gone = |m: ServerId| {
                    let life = self.peers[m.index()].incarnation;
                    self.is_silent(now, m) || !attempt.is_promised_by(m, life)
                };
                let dead = install.members.iter().any(|m| m != me && gone(m));
                if beat {
                    self.send_installs(now, out);
                }
                let long = now.since(decided) > 50 * self.settings.failure_timeout;
                let hopeless = dead || long || forsaken;
                if hopeless && now >= self.retry_at {
                    self.start_attempt(now, out);
                }
            }
        }
    }
}
