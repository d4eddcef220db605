//! Override: a view change in which the operator's word stands in for servers that are gone.
//! Owns: the order, the record that it leaves, the choice of the history that goes on.
//! Never: begins a new epoch while a view could form without one, or without every server that is not named.
//! Invariant: it happens in one step, when the coordinator's own log has the new view's tag; the others follow.
//! Source: docs/notes/override.md; docs/protocol.md, "Override".

use crate::action::Action;
use crate::coordinator::{Attempt, Promised, Refusal};
use crate::message::{Configuration, Install, Report};
use crate::planted::Planted;
use crate::replica::{Replica, Stage};
use crate::types::{Nanos, Op, SERVERS_MAX, ServerId, ServerSet, View};

/// An order that nothing came of is given up after so many failure timeouts.
const ORDER_TIMEOUTS: u64 = 60;
/// A present server that did not promise within so many failure timeouts is told to the operator.
const PROMISE_TIMEOUTS: u64 = 20;

/// Bytes of an operator's name.
pub const OPERATOR_BYTES: usize = 14;

/// The record of an override; part of the configuration, so that log, view file and image have it for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Override {
    /// The view that the operator ordered; [`View::NONE`] for a group that never was overridden.
    pub view: View,
    /// The view whose log went on; [`View::NONE`] if only an image did.
    pub adopted: View,
    /// The history up to this op went on.
    pub cut: Op,
    /// When, in seconds since 1970, by the clock of the server that carried it out.
    pub at_seconds: u64,
    /// The servers that were named absent.
    pub absent: ServerSet,
    /// Who asked for it, in UTF-8, zeros behind.
    pub by: [u8; OPERATOR_BYTES],
}

impl Override {
    /// There never was one.
    pub const NONE: Override = Override {
        view: View::NONE,
        adopted: View::NONE,
        cut: Op::ZERO,
        at_seconds: 0,
        absent: ServerSet::EMPTY,
        by: [0; OPERATOR_BYTES],
    };

    /// Who asked for it.
    pub fn operator(&self) -> String {
        let len = self.by.iter().position(|byte| *byte == 0).unwrap_or(OPERATOR_BYTES);
        String::from_utf8_lossy(&self.by[..len]).into_owned()
    }
}

/// What an operator orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// Comes back in the answer.
    pub token: u64,
    /// The servers that are gone, and fenced.
    pub absent: ServerSet,
    /// What the operator was shown and agreed to; `None` only asks what would be done.
    pub consent: Option<Consent>,
    /// When, in seconds since 1970.
    pub at_seconds: u64,
    /// Who.
    pub by: [u8; OPERATOR_BYTES],
}

/// The history that an operator agreed to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Consent {
    /// The view whose log it is; [`View::NONE`]: an image alone.
    pub adopted: View,
    /// Its end.
    pub end: Op,
}

/// What would be done, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The history that goes on.
    pub kept: Consent,
    /// Who has it.
    pub holder: ServerId,
    /// The first view's members.
    pub members: ServerSet,
    /// The highest view that a present server formed.
    pub formed: View,
    /// Its members.
    pub formed_by: ServerSet,
    /// Known to be committed by any of the present.
    pub committed: Op,
    /// Present servers that run on a new, empty disk.
    pub fresh: ServerSet,
    /// Present copies that load their files anew.
    pub rebuilt: ServerSet,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OverrideAnswer {
    /// This would be done.
    Would(Plan),
    /// It is done: this server formed `view`, and others follow.
    Done {
        /// The new epoch's first view.
        view: View,
        /// What was done.
        plan: Plan,
    },
    /// A view serves or can form by itself.
    NotNeeded {
        /// Which.
        why: String,
    },
    /// It cannot be done so.
    Refused {
        /// Why not.
        why: String,
    },
}

/// An order under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ordered {
    order: Order,
    since: Nanos,
    /// The view of the new epoch, once one is tried, and what it would do.
    trying: Option<(View, Plan)>,
}

impl Install {
    /// Whether this view begins a new epoch.
    pub fn overrides(&self) -> bool {
        self.configuration.overridden.view == self.view
    }
}

impl Report {
    /// The override that the log comes after.
    fn log_branch(&self) -> View {
        self.settled.overridden.view
    }
}

type Present<'a> = Vec<(ServerId, &'a Promised)>;

/// The log that goes on, or none: an image alone.
struct Kept {
    adopted: View,
    holder: ServerId,
    end: Op,
    /// The copies whose images the kept history reaches, with their LB.
    images: Vec<(ServerId, Op)>,
}

impl Replica {
    /// An operator orders an override, or asks what one would do. Every order gets one answer.
    pub fn on_override(&mut self, now: Nanos, order: Order, out: &mut Vec<Action>) {
        let token = order.token;
        let answer = |answer| Action::Overridden { token, answer };
        if self.order.is_some() && self.tagging.is_some() {
            let why = "an override is being begun: ask again".into();
            return out.push(answer(OverrideAnswer::Refused { why }));
        }
        self.end_order_that_is_done(now, out);
        if self.order.is_some() {
            let why = "another order took this one's place".into();
            self.end_order(now, OverrideAnswer::Refused { why }, out);
        }
        if let Some((view, primary)) = self.serving(now) {
            let why = format!("view {view} serves, {primary} is its primary");
            return out.push(answer(OverrideAnswer::NotNeeded { why }));
        }
        if let Err(why) = self.may_order(now, &order) {
            return out.push(answer(OverrideAnswer::Refused { why }));
        }
        self.order = Some(Ordered { order, since: now, trying: None });
        self.tick_order(now, out);
    }

    fn may_order(&self, now: Nanos, order: &Order) -> Result<(), String> {
        let me = self.settings.me;
        if !self.settings.shape.is_copy(me) || !self.has_image() || self.is_halted() {
            return Err(format!("{me} has no whole image: ask another copy"));
        }
        let present: ServerSet =
            self.settings.shape.servers().filter(|s| !order.absent.contains(*s)).collect();
        if !present.contains(me) {
            return Err(format!("{me} is named absent, and answers"));
        }
        self.all_speak(now, order)?;
        let need = self.settings.shape.quorum();
        if present.len() < need {
            let refusal = Refusal::Members { have: present };
            return Err(format!("{refusal}; it takes {need}, and an empty witness will do"));
        }
        Ok(())
    }

    /// Who is named must be silent, who is not must speak.
    fn all_speak(&self, now: Nanos, order: &Order) -> Result<(), String> {
        for server in self.others() {
            match (order.absent.contains(server), self.is_silent(now, server)) {
                (true, false) => {
                    return Err(format!(
                        "{server} is named absent, and {} hears it: stop it first",
                        self.settings.me
                    ));
                }
                (false, true) => {
                    return Err(format!(
                        "{server} does not answer {}: start it, or name it absent once it is fenced",
                        self.settings.me
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn has_order(&self) -> bool {
        self.order.is_some()
    }

    fn end_order(&mut self, now: Nanos, answer: OverrideAnswer, out: &mut Vec<Action>) {
        let ordered = self.order.take().expect("an order is ended once");
        if !matches!(answer, OverrideAnswer::Done { .. }) {
            self.give_up_override(now, out);
        }
        out.push(Action::Overridden { token: ordered.order.token, answer });
    }

    /// An order is done once the log has its view's tag, before this server has entered the view.
    fn end_order_that_is_done(&mut self, now: Nanos, out: &mut Vec<Action>) -> bool {
        let trying = self.order.and_then(|ordered| ordered.trying);
        let Some((view, plan)) = trying.filter(|(view, _)| *view == self.durable.formed) else {
            return false;
        };
        self.end_order(now, OverrideAnswer::Done { view, plan }, out);
        true
    }

    /// What was decided under an order and not begun is not carried out any more: a higher promise forbids it.
    fn give_up_override(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some((install, _)) = self.attempt.as_ref().and_then(|attempt| attempt.install) else {
            return;
        };
        if install.overrides() && !self.has_begun(&install) {
            assert!(self.tagging.is_none(), "an override that is being begun is waited for");
            assert_ne!(self.tag, Some(install.view), "an override that was begun is done");
            let me = self.settings.me;
            self.promise(now, self.durable.promised.next(me), me, out);
        }
    }

    /// Time passes for an order: begin an attempt if none is under way, give up what takes too long.
    pub(crate) fn tick_order(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(ordered) = self.order else { return };
        let waited = now.since(ordered.since);
        if self.end_order_that_is_done(now, out) {
            return;
        }
        if self.tagging.is_some() {
            return; // it is being begun, or another view is: the next tick knows
        }
        if let Some((view, _)) = self.serving(now) {
            let why = format!("view {view} serves");
            return self.end_order(now, OverrideAnswer::NotNeeded { why }, out);
        }
        let spoken = self.all_speak(now, &ordered.order);
        if let Err(why) = spoken {
            return self.end_order(now, OverrideAnswer::Refused { why }, out);
        }
        if waited > ORDER_TIMEOUTS * self.settings.failure_timeout {
            let why = "the servers did not come together in time: try again".into();
            return self.end_order(now, OverrideAnswer::Refused { why }, out);
        }
        if self.attempt.is_none() && self.tagging.is_none() {
            self.retry_at = now;
            self.start_attempt(now, out);
        }
    }

    /// An attempt gathers promises under an order: they are judged when every server that is not named has given
    /// one.
    pub(crate) fn try_order(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(ordered) = self.order else { return };
        let attempt = self.attempt.as_ref().expect("an attempt is judged");
        let missing: ServerSet = (self.settings.shape.servers())
            .filter(|s| !ordered.order.absent.contains(*s))
            .filter(|s| attempt.promises[s.index()].is_none())
            .collect();
        if !missing.is_empty() {
            if now.since(ordered.since) > PROMISE_TIMEOUTS * self.settings.failure_timeout {
                let why = format!("{missing:?} promised nothing: are they well?");
                self.end_order(now, OverrideAnswer::Refused { why }, out);
            }
            return;
        }
        let view = attempt.view;
        match ordered.trying {
            Some((trying, plan)) if trying == view => self.carry_out_order(now, plan, out),
            _ => self.judge_order(now, out),
        }
    }

    /// All that are present promised a view of the epoch so far, so that nothing moves: what would be done?
    fn judge_order(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let ordered = self.order.expect("an order is judged");
        if let Ok(install) = self.judge(now) {
            let why = format!("view {} forms without it", install.view);
            self.end_order(now, OverrideAnswer::NotNeeded { why }, out);
            return self.start_phase_two(now, install, out);
        }
        let plan = match self.judge_override(now, &ordered.order) {
            Ok((_, plan)) => plan,
            Err(why) => return self.end_order(now, OverrideAnswer::Refused { why }, out),
        };
        match ordered.order.consent {
            None => self.end_order(now, OverrideAnswer::Would(plan), out),
            Some(consent) if consent != plan.kept => {
                let why = "what would be kept changed meanwhile: look again".into();
                self.end_order(now, OverrideAnswer::Refused { why }, out);
            }
            Some(_) => self.begin_epoch(now, plan, out),
        }
    }

    /// A second attempt, above everything promised, in an epoch above every view that was formed.
    fn begin_epoch(&mut self, now: Nanos, plan: Plan, out: &mut Vec<Action>) {
        let me = self.settings.me;
        let attempt = self.attempt.as_ref().expect("an attempt was judged");
        let formed = attempt.promises.iter().flatten().map(|p| p.report.formed.epoch());
        let Some(epoch) = formed.max().unwrap_or(0).checked_add(1) else {
            let why = "there were as many overrides as can be counted".into();
            return self.end_order(now, OverrideAnswer::Refused { why }, out);
        };
        let next = self.durable.promised.next(me);
        let view = next.in_epoch(epoch.max(next.epoch()));
        self.promise(now, view, me, out);
        let promises = [None; SERVERS_MAX];
        self.attempt =
            Some(Attempt { view, since: now, sent: now, promises, install: None, forsaken: false });
        self.retry_at = now.plus(PROMISE_TIMEOUTS * self.settings.failure_timeout);
        let ordered = self.order.as_mut().expect("an order is carried out");
        ordered.trying = Some((view, plan));
    }

    fn carry_out_order(&mut self, now: Nanos, plan: Plan, out: &mut Vec<Action>) {
        let ordered = self.order.expect("an order is carried out");
        match self.judge_override(now, &ordered.order) {
            Ok((install, again)) if again.kept == plan.kept => {
                assert!(install.view.epoch() > plan.formed.epoch(), "an epoch begins above all");
                self.order = Some(Ordered { trying: Some((install.view, again)), ..ordered });
                self.start_phase_two(now, install, out);
            }
            Ok(_) => {
                let why = "what would be kept changed meanwhile: look again".into();
                self.end_order(now, OverrideAnswer::Refused { why }, out);
            }
            Err(why) => self.end_order(now, OverrideAnswer::Refused { why }, out),
        }
    }

    /// The best history at hand, and the view that goes on with it. Errors: why there is none.
    fn judge_override(&self, now: Nanos, order: &Order) -> Result<(Install, Plan), String> {
        let me = self.settings.me;
        let shape = self.settings.shape;
        let attempt = self.attempt.as_ref().expect("only an attempt is judged");
        let present: Present<'_> = shape
            .servers()
            .filter(|s| !order.absent.contains(*s))
            .filter_map(|s| attempt.promises[s.index()].as_ref().map(|p| (s, p)))
            .collect();
        // Who is still of an older epoch counts for nothing.
        let ages = present.iter().map(|(_, p)| (p.report.reached, p.report.branch));
        let branch = ages.max().expect("me").1;
        let kept = self.choose_history(&present, branch)?;
        let members = self.choose_first_members(&present, &kept)?;
        let lb_of = |s: &ServerId| kept.images.iter().find(|(i, _)| i == s).map(|(_, lb)| *lb);
        let glb = members.iter().filter_map(|s| lb_of(&s)).min().expect("a copy is a member");
        let cp = kept.images.iter().map(|(_, lb)| *lb).max().expect("an image");
        let left = present.iter().map(|(_, p)| {
            self.settings.lengthened(p.report.lease_left).saturating_sub(now.since(p.received))
        });
        // Of servers that are gone nobody knows what they promised.
        let lease_left = left.fold(self.settings.lengthened(self.settings.lease), u64::max);
        let view = attempt.view;
        let configuration = self.configuration_after(&present, (members, &kept), order, view);
        let top = present.iter().max_by_key(|(_, p)| p.report.formed).expect("me").1.report;
        let copies: ServerSet = shape.copies().collect();
        let holder = present.iter().find(|(s, _)| *s == kept.holder).expect("present").1;
        let known = holder.report.configuration.disks;
        let fresh = present.iter().filter(|(s, p)| known[s.index()] != p.incarnation.disk);
        let plan = Plan {
            kept: Consent { adopted: kept.adopted, end: kept.end },
            holder: kept.holder,
            members,
            formed: top.formed,
            formed_by: top.members,
            committed: present.iter().map(|(_, p)| p.report.committed()).max().expect("me"),
            fresh: fresh.map(|(s, _)| *s).collect(),
            rebuilt: (present.iter().map(|(s, _)| *s))
                .filter(|s| copies.contains(*s) && !members.contains(*s))
                .collect(),
        };
        let install = Install {
            view,
            members,
            adopted: kept.adopted,
            holder: kept.holder,
            begin: glb.next(),
            end: kept.end,
            cp,
            glb,
            lease_left,
            configuration,
        };
        assert!(members.contains(me), "the coordinator of an override is a member");
        Ok((install, plan))
    }

    /// The longest whole log of the highest view that anybody has one of, unless an image shows more of what was
    /// committed.
    fn choose_history(&self, present: &Present<'_>, branch: View) -> Result<Kept, String> {
        let me = self.settings.me;
        let images: Vec<(ServerId, Op, &Report)> = (present.iter())
            .filter(|(_, p)| p.report.branch == branch)
            .filter_map(|(s, p)| p.report.files.map(|lb| (*s, lb, &p.report)))
            .collect();
        let Some(best) = images.iter().max_by_key(|(s, lb, _)| (*lb, *s == me)) else {
            return Err(
                "no server at hand has a whole image: there is nothing to go on with".into()
            );
        };
        let logs = present.iter().filter(|(_, p)| p.report.log_branch() == branch);
        let logs = logs.filter_map(|(s, p)| p.report.log.map(|log| (*s, log, &p.report)));
        let longest = logs.max_by_key(|(s, log, r)| (r.formed, log.1, *s == me));
        if let Some((holder, (begin, end), report)) = longest {
            let formed = report.formed;
            // What came later than the log's view may contradict it.
            let fits = |lb: Op, r: &Report| r.reached <= formed && lb.next() >= begin && lb <= end;
            let fitting = images.iter().filter(|(_, lb, r)| fits(*lb, r));
            let images: Vec<(ServerId, Op)> = fitting.map(|(s, lb, _)| (*s, *lb)).collect();
            let heard = |r: &Report| r.branch == branch && r.reached <= formed;
            let known = present.iter().filter(|(_, p)| heard(&p.report));
            let known = known.map(|(_, p)| p.report.committed().min(end)).max().unwrap_or_default();
            let truer = best.2.reached > formed && best.1 > known;
            if !truer && !images.is_empty() {
                if !images.iter().any(|(s, _)| *s == me) {
                    return Err(format!(
                        "{} is to be asked, not {me}: its image fits",
                        images[0].0
                    ));
                }
                return Ok(Kept { adopted: formed, holder, end, images });
            }
        }
        let end = best.1;
        if best.0 != me {
            return Err(format!("{} is to be asked, not {me}: its image is the newest", best.0));
        }
        if self.ap != end {
            return Err(format!("{me} still moves its image forward: try again in a few seconds"));
        }
        let level = images.iter().filter(|(_, lb, r)| *lb == end && r.applied == end);
        let images = level.map(|(s, lb, _)| (*s, *lb)).collect();
        Ok(Kept { adopted: View::NONE, holder: me, end, images })
    }

    /// n+1 members: this server, copies that have the kept log, witnesses, other copies with a fitting image.
    fn choose_first_members(
        &self,
        present: &Present<'_>,
        kept: &Kept,
    ) -> Result<ServerSet, String> {
        let (shape, me) = (self.settings.shape, self.settings.me);
        let mut able: Vec<(u8, ServerId)> = Vec::new();
        for (server, promise) in present {
            let report = &promise.report;
            let has_log = report.log.is_some() && report.formed == kept.adopted;
            let has_image = kept.images.iter().any(|(s, _)| s == server);
            match (*server == me, shape.is_copy(*server)) {
                (true, _) => able.push((0, *server)),
                (_, true) if has_image && has_log => able.push((1, *server)),
                (_, true) if has_image => able.push((3, *server)),
                (_, true) => {}
                (_, false) => able.push((2, *server)),
            }
        }
        able.sort();
        let members: ServerSet = able.iter().take(shape.quorum()).map(|(_, s)| *s).collect();
        let need = shape.quorum();
        if members.len() < need {
            return Err(format!(
                "a view has {need} members and only {members:?} can be: put an empty witness in the place of one that is \
                 gone (harp serve --replace)"
            ));
        }
        Ok(members)
    }

    /// Whose disks count from now on: those of the present. Copies that are no members load their files anew.
    fn configuration_after(
        &self,
        present: &Present<'_>,
        (members, kept): (ServerSet, &Kept),
        order: &Order,
        view: View,
    ) -> Configuration {
        let holder = present.iter().find(|(s, _)| *s == kept.holder).expect("present").1;
        let before = holder.report.configuration;
        let mut disks = [0; SERVERS_MAX];
        for (server, promise) in present {
            disks[server.index()] = promise.incarnation.disk;
        }
        let mut needs_image: ServerSet =
            self.settings.shape.copies().filter(|c| !members.contains(*c)).collect();
        if self.planted(Planted::OldEpochVotes) {
            for server in order.absent.iter() {
                disks[server.index()] = before.disks[server.index()];
                needs_image.remove(server);
            }
        }
        let overridden = Override {
            view,
            adopted: kept.adopted,
            cut: kept.end,
            at_seconds: order.at_seconds,
            absent: order.absent,
            by: order.by,
        };
        Configuration { disks, needs_image, overridden }
    }

    // ----- servers of an older epoch -----

    /// The history that this server hears of comes after an override that it took no part in: what it knows
    /// beyond its disk is void.
    pub(crate) fn cross_over(&mut self, branch: View, out: &mut Vec<Action>) {
        if self.branch == branch {
            return;
        }
        if self.staged.take().is_some() {
            out.push(Action::DropStaged);
        }
        self.cp = Op::ZERO;
        self.agreed = Op::ZERO;
        self.glb = Op::ZERO;
        self.follow(branch, out);
        if self.image.is_none() {
            self.durable.branch = branch;
            self.persist(out);
        }
    }

    /// From here on what is learned is of the history after that override.
    pub(crate) fn follow(&mut self, branch: View, out: &mut Vec<Action>) {
        if self.branch == branch {
            return;
        }
        self.branch = branch;
        for peer in &mut self.peers {
            (peer.lb, peer.stands, peer.let_go) = (Op::ZERO, None, None);
        }
        out.push(Action::CrossedOver);
    }

    /// Phase 2 brings a history after an override that this server did not follow: what it knows of its own log
    /// stays known if that log goes on.
    pub(crate) fn prepare_to_cross(&mut self, install: &Install, out: &mut Vec<Action>) {
        if self.branch == install.configuration.overridden.view {
            self.glb = self.glb.max(install.glb);
            return;
        }
        if self.staged.take().is_some() {
            out.push(Action::DropStaged);
        }
        let goes_on = self.tag == Some(install.adopted);
        self.agreed = if goes_on { self.agreed } else { Op::ZERO };
        self.cp = self.agreed;
        // Copies that are gone count for GLB until the log has the tag.
        self.glb = self.glb.min(install.glb);
        out.push(Action::CrossedOver);
    }

    /// Whether the image is one of an older epoch: it is loaded anew.
    pub(crate) fn image_is_void(&self) -> bool {
        let counts = self.planted(Planted::OldEpochVotes);
        self.image.is_some() && self.durable.branch != self.branch && !counts
    }

    /// An image alone goes on only where it stands: nothing may be on its way into it.
    pub(crate) fn image_moves(&self, install: &Install) -> bool {
        let alone = install.overrides() && install.adopted == View::NONE;
        alone && self.image.is_some_and(|lb| lb != install.end || self.ap != install.end)
    }

    /// Whether this server may tell others of the view that its override forms: it has formed it itself.
    pub(crate) fn has_begun(&self, install: &Install) -> bool {
        let entered = matches!(self.stage, Stage::Primary(_) | Stage::Member { .. });
        !install.overrides() || entered && self.durable.formed == install.view
    }
}
