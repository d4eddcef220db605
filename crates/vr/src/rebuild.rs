//! Rebuild: a copy without a whole image loads one from another copy, part by part, while the group serves.
//! Owns: whether a new image is needed, whom to ask for it, how far the log may be redone over it.
//! Never: looks into a part; counts for anything before the image is whole and a record says so.
//! Invariant: the image under way stands at or below the op of every part that is still to come.
//! Source: docs/notes/rebuild.md; docs/protocol.md, rules 3, 9, 10.

use crate::action::{Action, ConfigurationChange, Records};
use crate::message::Presence;
use crate::planted::Planted;
use crate::replica::{Peer, Replica, Running, Stage};
use crate::types::{Nanos, Op, ServerId, View};

/// A part that was asked for and did not come within so many failure timeouts is asked for again.
pub const PART_TIMEOUTS: u64 = 10;
/// A learner that was silent for so many failure timeouts holds trimming back no longer.
const HOLD_TIMEOUTS: u64 = 20;

/// An image that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Loading {
    /// The view whose copies are asked; with another view others are.
    view: View,
    state: State,
    /// Number of the part that is wanted next, from 0.
    part: u64,
    /// Op of the newest part at hand. The next must not be older.
    op: Op,
    /// What is loaded is at or above this op, and so is what will be: so far the log may be redone.
    loaded: Op,
    pub(crate) asked: Nanos,
    /// The caller has no room for more parts until one is loaded.
    paused: bool,
    /// The last part is at hand.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// What was there before is still to be thrown away.
    Full,
    /// That is under way.
    Emptying,
    /// Empty but for what no log is redone over.
    Empty,
    /// The log is being redone; parts are missing.
    Partial,
    /// Every part is loaded.
    Loaded,
}

impl Loading {
    /// Nothing is here yet, nor is anything of an earlier image gone.
    pub fn new() -> Loading {
        Loading {
            view: View::NONE,
            state: State::Full,
            part: 0,
            op: Op::ZERO,
            loaded: Op::ZERO,
            asked: Nanos(0),
            paused: false,
            ended: false,
        }
    }
}

impl Replica {
    // ----- the copy that loads -----

    /// Whether this copy's image is whole: exact at its LB.
    pub fn has_image(&self) -> bool {
        self.image.is_some() && self.loading.is_none()
    }

    /// Whether this server's whole image still counts for nothing: the sooner it has all that the view began with, the
    /// sooner that ends.
    pub fn is_marked(&self) -> bool {
        self.has_image() && self.configuration.needs_image.contains(self.settings.me)
    }

    /// Up to where the log may be redone over an image under way; `None` for a whole one.
    pub(crate) fn redo_limit(&self) -> Option<Op> {
        let loading = self.loading.as_ref()?;
        match loading.state {
            State::Loaded => None,
            State::Partial if self.planted(Planted::RedoBeyondParts) => None,
            State::Partial => Some(loading.loaded),
            State::Full | State::Emptying | State::Empty => Some(Op::ZERO),
        }
    }

    /// Whether records above the image's op may be gathered for it.
    pub(crate) fn image_can_follow(&self) -> bool {
        let begun = |l: &Loading| matches!(l.state, State::Partial | State::Loaded);
        self.image.is_none_or(|lb| self.loading.as_ref().is_none_or(begun) && lb >= self.glb)
    }

    /// Outside of the running view: sees to it that this copy gets a whole image if it has none that the log
    /// reaches.
    pub(crate) fn rebuild(&mut self, now: Nanos, running: &Running, out: &mut Vec<Action>) {
        let me = self.settings.me;
        if !self.settings.shape.is_copy(me) || !self.is_admitted() {
            return;
        }
        // Below GLB the log may be gone, at every server.
        let void = self.image_is_void();
        let reached = self.image.is_some_and(|lb| lb >= self.glb) && !void;
        let loading = match &mut self.loading {
            None if reached => return,
            None => self.loading.insert(Loading::new()),
            Some(loading) => loading,
        };
        let begun = matches!(loading.state, State::Partial | State::Loaded)
            || void && loading.state == State::Empty;
        if !reached && begun {
            *loading = Loading::new();
        }
        match loading.state {
            State::Full => {
                loading.state = State::Emptying;
                if self.staged.take().is_some() {
                    out.push(Action::DropStaged);
                }
                out.push(Action::DiscardImage);
            }
            State::Empty | State::Partial => {
                let again = loading.asked.plus(PART_TIMEOUTS * self.settings.failure_timeout);
                let elsewhere = loading.view != running.view;
                let wants = !loading.paused && !loading.ended;
                if wants && (elsewhere || now >= again || loading.asked == Nanos(0)) {
                    self.want_image(now, out);
                }
            }
            State::Emptying | State::Loaded => {}
        }
    }

    fn want_image(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(running) = self.running else { return };
        let to = self.image_source(now, &running);
        let loading = self.loading.as_mut().expect("an image is being loaded");
        loading.view = running.view;
        loading.asked = now;
        let (part, at_least) = (loading.part, loading.op);
        out.push(Action::WantImage { to, view: running.view, part, at_least });
    }

    /// Preferably not the primary, which has other things to do.
    fn image_source(&self, now: Nanos, running: &Running) -> ServerId {
        let backup = self.settings.shape.copies().find(|c| {
            let presence = self.peers[c.index()].presence;
            *c != running.primary
                && running.members.contains(*c)
                && !self.is_silent(now, *c)
                && presence.is_some_and(|p| p.normal && p.formed == running.view)
        });
        backup.unwrap_or(running.primary)
    }

    /// The image is empty now, as [`Action::DiscardImage`] asked.
    pub fn on_image_discarded(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let loading = self.loading.as_mut().expect("nobody asked to discard a whole image");
        assert_eq!(loading.state, State::Emptying, "nobody asked to discard the image");
        *loading = Loading { state: State::Empty, ..Loading::new() };
        self.image = Some(Op::ZERO);
        self.halted = None;
        self.on_reapply();
        if self.image_is_void() {
            // What is loaded from now on is of the history that is followed now.
            self.durable.branch = self.branch;
            return self.persist(out);
        }
        if let (Stage::Outside { .. }, Some(running)) = (&self.stage, self.running) {
            self.rebuild(now, &running, out);
        }
    }

    pub(crate) fn on_image_part(&mut self, view: View, part: u64, op: Op) -> Records {
        let outside = matches!(self.stage, Stage::Outside { .. });
        let running = self.running.is_some_and(|r| r.view == view);
        let Some(loading) = &self.loading else { return Records::Ignore };
        let wanted = matches!(loading.state, State::Empty | State::Partial)
            && part == loading.part
            && !loading.ended
            && op >= loading.op;
        if !(outside && running && wanted) {
            return Records::Ignore;
        }
        assert!(view <= self.durable.promised, "an image of {view}, above the promise");
        Records::ImagePart { part, op }
    }

    /// The caller took in part `part`, exact at `op`. `room`: it can take another one before this is loaded.
    pub fn on_image_taken(
        &mut self,
        now: Nanos,
        (part, op): (u64, Op),
        last: bool,
        room: bool,
        out: &mut Vec<Action>,
    ) {
        let loading = self.loading.as_mut().expect("a part of an image nobody wants");
        assert!(part == loading.part && op >= loading.op, "part {part} at {op} is out of order");
        loading.part += 1;
        loading.op = op;
        loading.paused = !room;
        loading.ended = last;
        if room && !last {
            self.want_image(now, out);
        }
    }

    /// Parts are in the image, durably, the newest of them exact at `op`. `begun`: now the image has all that
    /// the log is not redone over, and stands at `op`.
    pub fn on_image_loaded(
        &mut self,
        now: Nanos,
        (op, begun, last): (Op, bool, bool),
        out: &mut Vec<Action>,
    ) {
        let loading = self.loading.as_mut().expect("a whole image was loaded over");
        assert!(op >= loading.loaded, "an older part follows");
        loading.loaded = op;
        if begun {
            assert_eq!(loading.state, State::Empty, "an image begins twice");
            loading.state = State::Partial;
        }
        if last {
            assert_eq!(loading.state, State::Partial, "an image ends before it began");
            loading.state = State::Loaded;
        }
        let ask = std::mem::take(&mut loading.paused) && !loading.ended;
        if begun {
            self.image = Some(op);
            self.on_reapply();
        }
        if ask {
            self.want_image(now, out);
        }
    }

    /// The image is whole, durably: every part is loaded and the log redone up to the newest of them.
    pub fn on_image_whole(&mut self) {
        let loading = self.loading.take().expect("a whole image became whole");
        assert_eq!(loading.state, State::Loaded, "an image became whole that lacks parts");
        assert!(self.image.is_some_and(|lb| lb >= loading.op), "the log is not redone far enough");
    }

    /// Parts do not fit together: begin anew.
    pub fn rebuild_anew(&mut self) {
        let loading = self.loading.as_mut().expect("parts of an image nobody wants");
        assert!(matches!(loading.state, State::Empty | State::Partial), "no parts are wanted");
        *loading = Loading::new();
    }

    /// The image that is being loaded has no room for what came since its parts were read: a newer one has less to
    /// take in. Nothing changes where it is about to be thrown away.
    pub fn on_image_without_room(&mut self) {
        let loading = self.loading.as_mut().expect("an image is being loaded");
        if matches!(loading.state, State::Partial | State::Loaded) {
            *loading = Loading::new();
        }
    }

    // ----- the copy that is asked -----

    pub(crate) fn on_image_want(&self, view: View, part: u64, at_least: Op) -> Records {
        let able = self.is_normal() && view == self.durable.formed && self.has_image();
        if able { Records::ImageWant { part, at_least } } else { Records::Ignore }
    }

    // ----- the primary -----

    /// Rule 10: the log above a learner's image stays while it loads, and from then on until its mark is gone.
    pub(crate) fn hear_loading(&mut self, from: ServerId, presence: &Presence) {
        let glb = self.glb;
        let marked = self.configuration.needs_image.contains(from);
        let peer = &mut self.peers[from.index()];
        let whole = Some(presence.lb).filter(|lb| marked && *lb >= glb);
        let stands = presence.loading.or(whole);
        // One that was let go counts again once it began anew.
        if peer.let_go.is_some_and(|at| stands.is_none_or(|op| op < at || op >= glb)) {
            peer.let_go = None;
        }
        peer.stands = stands.filter(|_| peer.let_go.is_none());
    }

    /// The lowest op at which a learner's image stands.
    pub(crate) fn held_back(&self) -> Option<Op> {
        self.learners().filter_map(|s| self.peers[s.index()].stands).min()
    }

    fn learners(&self) -> impl Iterator<Item = ServerId> {
        self.others().filter(|server| self.admits(*server))
    }

    /// The log is at its bound: learners that hold it back do so no longer. Returns whether any did.
    pub(crate) fn let_learners_go(&mut self) -> bool {
        let glb = self.glb;
        let holds = |peer: &Peer| peer.stands.filter(|op| *op <= glb);
        let held: Vec<ServerId> =
            self.learners().filter(|s| holds(&self.peers[s.index()]).is_some()).collect();
        for server in &held {
            let peer = &mut self.peers[server.index()];
            peer.let_go = peer.stands.take();
        }
        !held.is_empty()
    }

    /// Learners that fell silent hold nothing back; copies that have a whole image again count again.
    pub(crate) fn tend_learners(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let patience = HOLD_TIMEOUTS * self.settings.failure_timeout;
        for peer in &mut self.peers {
            if peer.stands.is_some() && now.since(peer.heard) > patience {
                peer.stands = None;
            }
        }
        if now >= self.lease_until() {
            return; // perhaps primary no more
        }
        let Stage::Primary(state) = &self.stage else { return };
        // An earlier view's primary may have trimmed further under the mark than this one knows, but not beyond what was
        // committed there.
        let enough = self.glb.max(state.adopted_end);
        // A mark acts first: else a copy that is in the way of trimming would be marked again at once.
        for server in self.durable.configuration.needs_image.iter() {
            if !self.configuration.needs_image.contains(server) {
                continue;
            }
            let peer = &self.peers[server.index()];
            let (disk, whole) = if server == self.settings.me {
                (self.durable.incarnation.disk, self.has_image() && self.image >= Some(enough))
            } else {
                let branch = self.configuration.overridden.view;
                let same =
                    |p: &Presence| p.branch == branch || self.planted(Planted::OldEpochVotes);
                let whole = |p: Presence| p.loading.is_none() && p.lb >= enough && same(&p);
                (peer.incarnation.disk, peer.presence.is_some_and(whole))
            };
            let admitted = disk == self.configuration.disks[server.index()];
            let here = server == self.settings.me || !self.is_silent(now, server);
            if here && admitted && whole && !self.admitting.contains(server) {
                self.admitting.insert(server);
                out.push(Action::LogConfiguration(ConfigurationChange::HasImage { server }));
            }
        }
    }

    /// What this server says of its image in [`Presence`]: its LB, or how far the one under way is.
    pub(crate) fn image_presence(&self) -> (Op, Option<Op>) {
        let lb = self.image.unwrap_or_default();
        if self.loading.is_some() { (Op::ZERO, Some(lb)) } else { (lb, None) }
    }

    /// Whether the disk that another server speaks from counts (rule 3).
    pub(crate) fn admits(&self, server: ServerId) -> bool {
        let disk = self.peers[server.index()].incarnation.disk;
        self.configuration.disks[server.index()] == disk
    }

    /// Whether this server's disk counts (rule 3).
    pub fn is_admitted(&self) -> bool {
        self.configuration.disks[self.me_index()] == self.durable.incarnation.disk
    }
}
