//! The group as a model for stateright: servers, the mail between them, what was committed.
//! Owns: a state and its steps.
//! Never: takes mail away that could still do something. What was sent arrives never, once or often, whenever.
//! Invariant: mail is sorted by number, and so is what a step does the same whatever order things came in.
//! Source: docs/notes/model.md.

use std::sync::{Mutex, MutexGuard};

use harp_vr::{ServerId, ServerSet, View};
use stateright::{Model, Property};

use crate::bounds::{Answers, Bounds, Leases, Writes};
use crate::disk::Record;
use crate::properties::{self, Broken};
use crate::restart::{self, Crash};
use crate::server::{Committed, Done, Event, Mail, Server};
use crate::tables::{Address, Answer, Facts, NOTHING, Outcome, Tables};

/// Servers of the largest group that is explored.
const SERVERS: usize = 5;
/// No turn asks for as many writes, one after the other.
const CUTS: u8 = 8;
/// Turns after the first in which a server may die: a promise is taken, records are asked for, granted, taken.
const TURNS: u8 = 3;
/// Writes that such a turn asks for: the log, its tag, the view file.
const CUTS_LATER: u8 = 3;

/// What of the bounds is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Used {
    pub ops: u8,
    pub views: u8,
    pub crashes: u8,
    pub media_losses: u8,
    pub checkpoints: u8,
}

/// A state of the group: numbers in the group's tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Its servers.
    pub servers: [u32; SERVERS],
    /// All mail that can still do something, in ascending order.
    pub mail: Box<[u32]>,
    /// What was committed.
    pub history: u32,
    /// What happened so far.
    pub used: Used,
    /// What broke on the way here.
    pub broken: Option<Broken>,
}

/// What a step begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Mail arrives.
    Mail(u32),
    /// Something happens to a server.
    Event(ServerId, Event),
}

/// Where a server dies in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In the how-manieth turn; after the first come those of answers that are given at once.
    turn: u8,
    /// When so many of the writes that it asks for are done.
    writes: u8,
}

/// The turns of one step.
#[derive(Clone, Copy, Debug)]
struct Turns {
    /// Whether the server that begins asks for what it lacks of a running view.
    asks: bool,
    /// How many there were after the first.
    count: u8,
    /// The death that is still to come.
    cut: Option<Cut>,
}

/// One step of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mail arrives. It may again.
    Deliver(u32),
    /// Something happens to a server.
    Happen(ServerId, Event),
    /// The same, and a server dies.
    Cut(Cause, Cut),
    /// The presence of one server reaches another.
    Hear(u32),
    /// All leases run out.
    LeasesEnd,
}

/// A group with all that was worked out about it.
pub struct Group {
    bounds: Bounds,
    tables: Mutex<Tables>,
    initial: State,
    /// Only steps that change something are offered. A search tries all anyway; a walk that is to be gone again
    /// needs this.
    exact: bool,
}

impl Group {
    /// A group that serves in its first view, with nothing in its log. Up to there no rule is broken.
    pub fn new(bounds: Bounds) -> Group {
        let sound = Bounds { views: 1, planted: None, ..bounds };
        let mut tables = Tables::new(sound);
        let mut servers = [u32::MAX; SERVERS];
        for me in bounds.shape().servers() {
            let disk = restart::formatted(&sound, me, true, 0);
            servers[me.index()] = tables.server_number(restart::start(disk, true, &sound, me));
        }
        let (mail, used) = (Box::default(), Used::default());
        let initial = State { servers, mail, history: 0, used, broken: None };
        let group = Group { bounds: sound, tables: Mutex::new(tables), initial, exact: false };
        let serving = group.serving_in_first_view();
        group.with_bounds(bounds, &serving)
    }

    /// A group with other bounds, in `state` of this one.
    fn with_bounds(&self, bounds: Bounds, state: &State) -> Group {
        let (old, mut tables) = (self.tables(), Tables::new(bounds));
        let mut servers = [u32::MAX; SERVERS];
        for me in self.servers() {
            let mut server = Server::clone(old.server(state.servers[me.index()]));
            server.replica.plant(bounds.planted);
            servers[me.index()] = tables.server_number(server);
        }
        let mail = state.mail.iter().map(|mail| tables.mail_number(Mail::clone(old.mail(*mail))));
        let mut mail: Vec<u32> = mail.collect();
        mail.sort_unstable();
        let initial = State { servers, mail: mail.into(), used: Used::default(), ..*state };
        Group { bounds, tables: Mutex::new(tables), initial, exact: false }
    }

    /// The same group, for walks.
    pub fn for_walks(self) -> Group {
        Group { exact: true, ..self }
    }

    /// What is explored.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("turns panic under a guard of their own")
    }

    /// Looks at all servers and at what was committed.
    pub(crate) fn look<T>(
        &self,
        state: &State,
        see: impl FnOnce(&[&Facts], &[(Record, View)]) -> T,
    ) -> T {
        let tables = self.tables();
        let count = 2 * self.bounds.n as usize + 1;
        let mut facts = [&tables.facts[0]; SERVERS];
        for (fact, server) in facts.iter_mut().zip(&state.servers[..count]) {
            *fact = &tables.facts[*server as usize];
        }
        see(&facts[..count], &tables.histories[state.history as usize])
    }

    /// Lets everything arrive and every write end until nothing more comes of it, after `a` coordinated.
    fn serving_in_first_view(&self) -> State {
        let first = Event::Wait { long: true, silent: ServerSet::EMPTY, promised: View::NONE };
        let begin = self.step(&self.initial, Step::Happen(ServerId(0), first));
        let mut state = begin.expect("a copy that waited coordinates");
        'settle: loop {
            let mut steps = Vec::new();
            self.steps(&state, &mut steps);
            for step in steps {
                let settles = match step {
                    Step::Deliver(_) => true,
                    Step::Happen(_, Event::Wait { long, .. }) => !long,
                    Step::Happen(_, event) => {
                        matches!(event, Event::ViewWritten | Event::LogWritten | Event::Tagged)
                    }
                    _ => false,
                };
                if settles && let Some(next) = self.step(&state, step) {
                    state = next;
                    continue 'settle;
                }
            }
            break;
        }
        let state = self.step(&state, Step::LeasesEnd).unwrap_or(state);
        assert!(self.look(&state, |facts, _| facts[0].serving), "the group serves");
        state
    }

    fn servers(&self) -> impl Iterator<Item = ServerId> + use<> {
        self.bounds.shape().servers()
    }

    /// Every step that may do something.
    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        let mut tables = self.tables();
        let done = self.writes_done(state);
        let cuts = if self.may_be_cut(state) { CUTS } else { 0 };
        for mail in &state.mail {
            let to = tables.addresses[*mail as usize].to;
            let server = state.servers[to.index()];
            let outcome = tables.delivery(to, server, *mail, done);
            if outcome == NOTHING {
                continue;
            }
            steps.push(Step::Deliver(*mail));
            for writes in 0..cuts {
                if tables.delivery(to, server, *mail, Done::Cut(writes)) == NOTHING {
                    break;
                }
                steps.push(Step::Cut(Cause::Mail(*mail), Cut { turn: 0, writes }));
            }
            if cuts > 0 && tables.is_answered(outcome) {
                cut_later(Cause::Mail(*mail), steps);
            }
        }
        for me in self.servers() {
            for other in self.servers() {
                let facts = &tables.facts[state.servers[other.index()] as usize];
                let mut heard = facts.presence.iter().copied();
                let heard = heard.find(|mail| tables.addresses[*mail as usize].to == me);
                if let Some(mail) = heard
                    && tables.delivery(me, state.servers[me.index()], mail, done) != NOTHING
                {
                    steps.push(Step::Hear(mail));
                }
            }
        }
        let promised =
            self.servers().map(|s| tables.facts[state.servers[s.index()] as usize].promised);
        let promised = promised.max().expect("a group has servers");
        for me in self.servers() {
            let server = state.servers[me.index()];
            let mut events = Vec::new();
            self.events(&tables, state, me, promised, &mut events);
            for event in events {
                let outcome = tables.event(me, server, event, done);
                if outcome == NOTHING {
                    continue;
                }
                steps.push(Step::Happen(me, event));
                let cuts = if matches!(event, Event::Crash(_)) { 0 } else { cuts };
                for writes in 0..cuts {
                    if tables.event(me, server, event, Done::Cut(writes)) == NOTHING {
                        break;
                    }
                    steps.push(Step::Cut(Cause::Event(me, event), Cut { turn: 0, writes }));
                }
                if cuts > 0 && tables.is_answered(outcome) {
                    cut_later(Cause::Event(me, event), steps);
                }
            }
        }
        if self.bounds.leases == Leases::End {
            steps.push(Step::LeasesEnd);
        }
    }

    fn events(
        &self,
        tables: &Tables,
        state: &State,
        me: ServerId,
        highest: View,
        events: &mut Vec<Event>,
    ) {
        let (bounds, used) = (&self.bounds, &state.used);
        let number = state.servers[me.index()];
        let facts = &tables.facts[number as usize];
        let none = ServerSet::EMPTY;
        if facts.judges.is_some() || facts.lacks && bounds.answers == Answers::AtOnce {
            events.push(Event::Wait { long: false, silent: none, promised: View::NONE });
        }
        let others: ServerSet = self.servers().filter(|s| *s != me).collect();
        let mut silences = vec![none];
        for other in others.iter() {
            silences.push(ServerSet::from_iter([other]));
            if others.len() > 2 {
                silences.push(others.iter().filter(|s| *s != other).collect());
            }
        }
        for silent in silences {
            events.push(Event::Wait { long: true, silent, promised: View::NONE });
            if highest > facts.promised {
                events.push(Event::Wait { long: true, silent, promised: highest });
            }
        }
        events.extend(facts.writes.then_some(Event::ViewWritten));
        events.extend(facts.unwritten.then_some(Event::LogWritten));
        events.extend(facts.adopting.then_some(Event::Tagged));
        if facts.serving && used.ops < bounds.ops {
            events.push(Event::Append(used.ops + 1));
        }
        if facts.may_checkpoint && used.checkpoints < bounds.checkpoints {
            events.push(Event::Checkpoint);
        }
        if used.crashes < bounds.crashes {
            let crashes = restart::crashes(&tables.server(number).disk, bounds);
            events.extend(crashes.into_iter().map(Event::Crash));
        }
        if used.media_losses < bounds.media_losses {
            events.push(Event::Crash(Crash::MediaLoss));
        }
    }

    /// When nobody can crash any more nothing can come between a write and its end but what may come after it.
    fn writes_done(&self, state: &State) -> Done {
        let no_crash = state.used.crashes == self.bounds.crashes;
        if self.bounds.writes == Writes::AtOnce || no_crash { Done::All } else { Done::None }
    }

    fn may_be_cut(&self, state: &State) -> bool {
        self.bounds.writes == Writes::AtOnce && state.used.crashes < self.bounds.crashes
    }

    fn step(&self, state: &State, step: Step) -> Option<State> {
        let mut tables = self.tables();
        let mut next = state.clone();
        let done = self.writes_done(state);
        let server = |me: ServerId| state.servers[me.index()];
        let mut turns = Turns { asks: false, count: 0, cut: None };
        let (cause, cut) = match step {
            Step::Deliver(mail) | Step::Hear(mail) => (Some(Cause::Mail(mail)), None),
            Step::Happen(me, event) => (Some(Cause::Event(me, event)), None),
            Step::Cut(cause, cut) => (Some(cause), Some(cut)),
            Step::LeasesEnd => (None, None),
        };
        next.used.crashes += u8::from(cut.is_some());
        turns.cut = cut.filter(|cut| cut.turn > 0);
        let first = match cut {
            Some(Cut { turn: 0, writes }) => Done::Cut(writes),
            _ => done,
        };
        match cause {
            Some(Cause::Mail(mail)) => {
                let to = tables.addresses[mail as usize].to;
                let outcome = tables.delivery(to, server(to), mail, first);
                self.come_of(&mut tables, &mut next, to, outcome, &mut turns);
            }
            Some(Cause::Event(me, event)) => {
                // Whether a view change was tried shows in the turn that was not cut.
                let outcome = tables.event(me, server(me), event, done);
                self.count(&tables, &mut next, me, event, outcome)?;
                turns.asks = matches!(event, Event::Wait { long: false, .. });
                let outcome = tables.event(me, server(me), event, first);
                self.come_of(&mut tables, &mut next, me, outcome, &mut turns);
            }
            None => {
                let mut aged = Vec::with_capacity(state.mail.len());
                aged.extend(state.mail.iter().filter_map(|mail| tables.aged(*mail)));
                aged.sort_unstable();
                aged.dedup();
                next.mail = aged.into();
                for me in self.servers() {
                    let server = state.servers[me.index()];
                    let outcome = tables.event(me, server, Event::LeasesEnd, done);
                    self.come_of(&mut tables, &mut next, me, outcome, &mut turns);
                }
            }
        }
        (turns.cut.is_none() && next != *state).then_some(next)
    }

    /// Counts what happens against the bounds; `None` beyond them.
    fn count(
        &self,
        tables: &Tables,
        next: &mut State,
        me: ServerId,
        event: Event,
        outcome: u32,
    ) -> Option<()> {
        let (used, bounds) = (&mut next.used, &self.bounds);
        match event {
            Event::Append(number) => used.ops = number,
            Event::Checkpoint => used.checkpoints += 1,
            Event::Crash(Crash::MediaLoss) => used.media_losses += 1,
            Event::Crash(_) => used.crashes += 1,
            Event::Wait { long: true, .. } if outcome != NOTHING => {
                let after = tables.outcomes[outcome as usize].server;
                let before = &tables.facts[next.servers[me.index()] as usize];
                let after = &tables.facts[after as usize];
                let started = after.coordinates.is_some() && after.promised > before.promised;
                used.views += u8::from(started);
            }
            _ => {}
        }
        (used.views <= bounds.views).then_some(())
    }

    /// Puts what came of a turn of `me` into `next`, answers that come at once included.
    fn come_of(
        &self,
        tables: &mut Tables,
        next: &mut State,
        me: ServerId,
        outcome: u32,
        turns: &mut Turns,
    ) {
        if outcome == NOTHING {
            return;
        }
        let Outcome { server, sent, broken, .. } = &tables.outcomes[outcome as usize];
        let (server, sent, broken) = (*server, sent.clone(), *broken);
        let at_once = self.bounds.answers == Answers::AtOnce;
        let part = |mail: &u32| match at_once {
            true => tables.addresses[*mail as usize].answer,
            false => Answer::None,
        };
        let (sent, exchanged): (Vec<u32>, Vec<u32>) =
            sent.iter().partition(|mail| part(mail) == Answer::None);
        let before = std::mem::replace(&mut next.servers[me.index()], server);
        next.broken = next.broken.or(broken);
        let done = self.writes_done(next);
        let all = merged(&next.mail, &sent);
        let mut mail = Vec::with_capacity(all.len());
        for number in &all {
            let to = tables.addresses[*number as usize].to;
            let fresh = to == me && before != server || sent.binary_search(number).is_ok();
            let dead = fresh && tables.is_dead(next.servers[to.index()], *number, done, &all);
            if !dead {
                mail.push(*number);
            }
        }
        next.mail = mail.into();
        let before_it_died = tables.outcomes[outcome as usize].committed.clone();
        let known = tables.histories[next.history as usize].len();
        let facts = &tables.facts[server as usize];
        let more = facts.serving && facts.committed.len() > known;
        let now = || more.then(|| tables.server(server).committed()).flatten();
        if let Some(committed) = before_it_died.or_else(now) {
            self.commit(tables, next, me, committed);
        }
        for mail in exchanged {
            let Address { to, answer, .. } = tables.addresses[mail as usize];
            if answer == Answer::Ask && !std::mem::take(&mut turns.asks) {
                continue;
            }
            turns.count += 1;
            let cut = turns.cut.take_if(|cut| cut.turn == turns.count);
            let done = cut.map_or(self.writes_done(next), |cut| Done::Cut(cut.writes));
            let before = next.servers[to.index()];
            let outcome = tables.delivery(to, before, mail, done);
            if outcome == NOTHING {
                turns.cut = turns.cut.or(cut); // nobody dies there
                continue;
            }
            // Whoever learned something asks for more.
            let learned = tables.outcomes[outcome as usize].server != before;
            turns.asks |= answer == Answer::Past && learned;
            self.come_of(tables, next, to, outcome, turns);
        }
    }

    /// What the primary `me` committed becomes history.
    fn commit(&self, tables: &mut Tables, next: &mut State, me: ServerId, committed: Committed) {
        let known = tables.histories[next.history as usize].len();
        let Committed { view, members, records } = committed;
        if records.len() <= known {
            return;
        }
        let mut history = tables.histories[next.history as usize].clone();
        for (op, record) in (1..).zip(records).skip(known) {
            let record = record.expect("a primary holds what it commits");
            let others = self.servers().filter(|s| members.contains(*s) && *s != me);
            let mut others = others.map(|s| &tables.facts[next.servers[s.index()] as usize]);
            if !others.all(|member| member.lost || member.holds(op) == Some(record)) {
                next.broken = next.broken.or(Some(Broken::NotHeldByAll));
            }
            history.push((record, view));
        }
        next.history = tables.history(history);
    }

    /// What happens in a step, in words.
    pub fn words(&self, step: Step) -> String {
        match step {
            Step::Deliver(mail) | Step::Hear(mail) => {
                let tables = self.tables();
                let mail = tables.mail(mail);
                let records = match mail.records.len() {
                    0 => String::new(),
                    _ => format!(" with {:?}", mail.records),
                };
                let (from, to) = (mail.envelope.from, mail.to);
                format!("{from} -> {to}: {:?}{records}", mail.envelope.message)
            }
            Step::Happen(me, event) => format!("{me}: {event:?}"),
            Step::LeasesEnd => "all leases end".into(),
            Step::Cut(cause, Cut { turn, writes }) => {
                let cause = match cause {
                    Cause::Mail(mail) => self.words(Step::Deliver(mail)),
                    Cause::Event(me, event) => self.words(Step::Happen(me, event)),
                };
                let later = ["", " of an answer"][usize::from(turn > 0)];
                format!("{cause}; who takes it{later} dies after {writes} writes")
            }
        }
    }

    /// Where every server stands, in words.
    pub fn stand(&self, state: &State) -> String {
        self.look(state, |facts, history| {
            let mut lines = format!("  committed {history:?}");
            for (me, f) in self.servers().zip(facts) {
                lines += &format!(
                    "\n  {me}: promised {} formed {} {:?} log {:?} cp {} {}{}{}",
                    f.promised,
                    f.formed,
                    f.members,
                    f.votable.as_ref().map(|(view, log)| (view, log.begin, &log.records)),
                    f.committed.len(),
                    if f.primary_of.is_some() { "primary " } else { "" },
                    if f.serving { "serving " } else { "" },
                    if f.may_answer { "leased" } else { "" },
                );
            }
            lines
        })
    }
}

/// Deaths in the turns in which answers are given and taken.
fn cut_later(cause: Cause, steps: &mut Vec<Step>) {
    let cuts = (1..=TURNS).flat_map(|turn| (0..CUTS_LATER).map(move |writes| Cut { turn, writes }));
    steps.extend(cuts.map(|cut| Step::Cut(cause, cut)));
}

/// Two ascending lists as one, without doubles.
fn merged(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Model for Group {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial.clone()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_none() {
            self.steps(state, steps);
        }
        if self.exact {
            steps.retain(|step| self.step(state, *step).is_some());
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.step(state, step)
    }

    fn properties(&self) -> Vec<Property<Group>> {
        properties::all()
    }

    fn format_action(&self, step: &Step) -> String {
        self.words(*step)
    }
}
