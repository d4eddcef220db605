//! Servers and mail under numbers, and what became of each pair of them: everything is worked out once.
//! Owns: the numbers, what the properties need to know of a server, the memory of all turns.
//! Never: forgets; two servers or mails have one number exactly if they are equal.
//! Invariant: a turn depends on nothing but its server, its event or mail, and whether writes end at once.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use harp_vr::{Configuration, Incarnation, Message, ServerId, ServerSet, View};
use rustc_hash::FxHashMap;

use crate::bounds::{Answers, Bounds, NOW};
use crate::disk::{Log, Record};
use crate::properties::Broken;
use crate::server::{Committed, Done, Event, Mail, Server, Turn, aged};

/// The outcome of a turn in which nothing happens.
pub const NOTHING: u32 = 0;

/// What the properties and the group need to know of a server.
#[derive(Debug)]
pub struct Facts {
    pub promised: View,
    pub formed: View,
    pub members: ServerSet,
    pub incarnation: Incarnation,
    pub coordinates: Option<View>,
    /// The view that it gathers promises for.
    pub judges: Option<View>,
    /// The view that it is primary of.
    pub primary_of: Option<View>,
    pub serving: bool,
    pub may_answer: bool,
    pub may_checkpoint: bool,
    /// CP as far as it holds the records, and those records; `None` where they are gone.
    pub committed: Vec<Option<Record>>,
    /// The view whose log it may vote, and that log.
    pub votable: Option<(View, Log)>,
    /// What it holds durably: the records of its image, and of its log.
    pub durable: (Vec<Record>, Log),
    /// LB of a whole image.
    pub lb: Option<u64>,
    pub configuration: Configuration,
    /// Its presence, to each other server that can learn from it.
    pub presence: Box<[u32]>,
    /// It is outside of a view that it knows to run, or lacks records of the view that it installs.
    pub lacks: bool,
    /// End of its log.
    pub end: u64,
    pub lost: bool,
    pub writes: bool,
    pub unwritten: bool,
    pub adopting: bool,
}

impl Facts {
    fn of(server: &Server, presence: Box<[u32]>) -> Facts {
        let Server { replica, disk } = server;
        let growing = disk.staged.as_ref().unwrap_or(&disk.log);
        let mut durable = disk.log.clone();
        durable.records.truncate((disk.durable + 1).saturating_sub(disk.log.begin) as usize);
        let tag = disk.tag.filter(|tag| tag.view >= disk.view_file.formed);
        Facts {
            promised: replica.promised(),
            formed: replica.formed(),
            members: replica.members(),
            incarnation: replica.durable().incarnation,
            coordinates: replica.coordinates(),
            judges: replica.judges(),
            primary_of: replica.is_primary().then(|| replica.formed()),
            serving: replica.is_serving(),
            may_answer: replica.may_answer(NOW),
            may_checkpoint: {
                let end = growing.end();
                let upto = replica.may_apply().0.min(end);
                disk.image.is_some() && disk.whole && upto > disk.lb()
            },
            committed: (1..=replica.cp().0).map(|op| disk.record(op, growing)).collect(),
            votable: tag.map(|tag| (tag.view, durable.clone())),
            durable: (disk.image.clone().unwrap_or_default(), durable),
            lb: disk.image.as_ref().filter(|_| disk.whole).map(|_| disk.lb()),
            configuration: *replica.configuration(),
            presence,
            lacks: replica.lacks(),
            end: disk.log.end(),
            lost: disk.lost,
            writes: !disk.writes.is_empty(),
            unwritten: disk.durable < disk.log.end(),
            adopting: disk.adopting.is_some(),
        }
    }

    /// The record that it holds durably at `op`.
    pub fn holds(&self, op: u64) -> Option<Record> {
        let (image, log) = &self.durable;
        image.get(op as usize - 1).copied().or_else(|| log.get(op))
    }
}

/// What decides whether mail can still matter.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub to: ServerId,
    /// The life of the receiver that it is for; `None` if for any.
    life: Option<Incarnation>,
    view: View,
    /// It brings records up to here.
    last: u64,
    kind: Kind,
    pub answer: Answer,
}

/// What a message is to an exchange that takes place at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No part of one.
    None,
    /// A promise; a question for records of an adopted log, or what answers it.
    Prompt,
    /// A question of a server outside of the running view.
    Ask,
    /// What answers it.
    Past,
}

/// When a message that does nothing now will never do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Once a higher view is promised.
    Promised,
    /// Once its view or a higher one is promised.
    Joined,
    /// Once its view or a higher one is formed, or a higher one promised.
    Formed,
    /// Once a higher view is formed.
    Running,
    /// Once its view is not the one that promises are gathered for.
    Judged,
    /// Once its view serves, or a higher one is promised.
    Serving,
    /// Only in another life.
    Always,
}

impl Address {
    fn of(mail: &Mail) -> Address {
        let (any_life, view, kind) = match mail.envelope.message {
            Message::Presence(presence) => (true, presence.formed, Kind::Running),
            Message::Invite { view } => (true, view, Kind::Joined),
            Message::Decline { view, .. } => (true, view, Kind::Promised),
            Message::Promise { view, .. } => (false, view, Kind::Judged),
            Message::Install(install) => (false, install.view, Kind::Joined),
            Message::Want { view, .. } => (false, view, Kind::Joined),
            Message::Grant { view, .. } => (false, view, Kind::Formed),
            Message::Installed { view, .. } => (false, view, Kind::Serving),
            Message::Prepare(prepare) => (false, prepare.view, Kind::Formed),
            Message::PrepareOk(ok) => (false, ok.view, Kind::Serving),
            Message::CatchUp { view, .. } => (false, view, Kind::Promised),
            Message::Past(past) => (false, past.view, Kind::Running),
            Message::ImageWant { .. }
            | Message::ImagePart { .. }
            | Message::BlockWant { .. }
            | Message::BlockGrant { .. } => (false, View::NONE, Kind::Always),
        };
        let life = (!any_life).then_some(mail.envelope.to_incarnation);
        let last = match mail.envelope.message {
            Message::Prepare(prepare) => prepare.last.0,
            _ => 0,
        };
        let answer = match mail.envelope.message {
            Message::Promise { .. } | Message::Want { .. } | Message::Grant { .. } => {
                Answer::Prompt
            }
            Message::CatchUp { .. } => Answer::Ask,
            Message::Past(_) => Answer::Past,
            _ => Answer::None,
        };
        Address { to: mail.to, life, view, last, kind, answer }
    }

    /// Whether `receiver` will never take it if it does not now.
    pub fn is_past(&self, receiver: &Facts) -> bool {
        let Facts { promised, formed, serving, judges, end, .. } = receiver;
        let busy = receiver.writes || receiver.adopting;
        self.life.is_some_and(|life| life != receiver.incarnation)
            || match self.kind {
                Kind::Promised => self.view < *promised,
                Kind::Joined => self.view <= *promised && !busy,
                Kind::Formed => {
                    self.view < *promised || self.view <= *formed && self.last <= *end && !busy
                }
                Kind::Running => self.view < *formed,
                Kind::Judged => self.view < *promised || *judges != Some(self.view) && !busy,
                Kind::Serving => self.view < *promised || self.view == *formed && *serving,
                Kind::Always => false,
            }
    }
}

/// What came of a turn.
#[derive(Debug)]
pub struct Outcome {
    /// The server after it.
    pub server: u32,
    /// What it sent, in ascending order.
    pub sent: Box<[u32]>,
    /// What it committed before it died in the turn.
    pub committed: Option<Committed>,
    pub broken: Option<Broken>,
}

pub struct Tables {
    bounds: Bounds,
    servers: Vec<Arc<Server>>,
    server_numbers: FxHashMap<Arc<Server>, u32>,
    pub facts: Vec<Facts>,
    mails: Vec<Arc<Mail>>,
    mail_numbers: FxHashMap<Arc<Mail>, u32>,
    pub addresses: Vec<Address>,
    /// What becomes of each mail when leases end, once that was asked.
    aged: Vec<Option<Option<u32>>>,
    pub outcomes: Vec<Outcome>,
    deliveries: FxHashMap<(u32, u32, Done), u32>,
    events: FxHashMap<(u32, Event, Done), u32>,
    /// Committed histories, each record with the view that it was committed in.
    pub histories: Vec<Vec<(Record, View)>>,
    history_numbers: FxHashMap<Vec<(Record, View)>, u32>,
    /// The words of the assertion that failed last.
    pub words: Option<String>,
}

impl Tables {
    pub fn new(bounds: Bounds) -> Tables {
        let nothing =
            Outcome { server: u32::MAX, sent: Box::default(), committed: None, broken: None };
        let mut tables = Tables {
            bounds,
            servers: Vec::new(),
            server_numbers: FxHashMap::default(),
            facts: Vec::new(),
            mails: Vec::new(),
            mail_numbers: FxHashMap::default(),
            addresses: Vec::new(),
            aged: Vec::new(),
            outcomes: vec![nothing],
            deliveries: FxHashMap::default(),
            events: FxHashMap::default(),
            histories: Vec::new(),
            history_numbers: FxHashMap::default(),
            words: None,
        };
        tables.history(Vec::new());
        tables
    }

    /// How many servers in how many states, how many mails, how many turns.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.servers.len(), self.mails.len(), self.deliveries.len() + self.events.len())
    }

    pub fn server(&self, number: u32) -> &Arc<Server> {
        &self.servers[number as usize]
    }

    pub fn mail(&self, number: u32) -> &Arc<Mail> {
        &self.mails[number as usize]
    }

    pub fn server_number(&mut self, server: Server) -> u32 {
        if let Some(number) = self.server_numbers.get(&server) {
            return *number;
        }
        let presence = self.presence_of(&server);
        let number = self.servers.len() as u32;
        self.facts.push(Facts::of(&server, presence));
        let server = Arc::new(server);
        self.servers.push(server.clone());
        self.server_numbers.insert(server, number);
        number
    }

    fn presence_of(&mut self, server: &Server) -> Box<[u32]> {
        if self.bounds.answers == Answers::Late {
            return Box::default(); // it comes by mail
        }
        let (bounds, server) = (self.bounds, server.clone());
        let me = server.replica.me();
        let sent = Vec::new();
        let (done, committed) = (Done::None, None);
        let turn = Turn { bounds: &bounds, done, cut: false, committed, me, server, sent };
        turn.presence().into_iter().map(|mail| self.mail_number(mail)).collect()
    }

    pub fn mail_number(&mut self, mail: Mail) -> u32 {
        if let Some(number) = self.mail_numbers.get(&mail) {
            return *number;
        }
        let number = self.mails.len() as u32;
        self.addresses.push(Address::of(&mail));
        self.aged.push(None);
        let mail = Arc::new(mail);
        self.mails.push(mail.clone());
        self.mail_numbers.insert(mail, number);
        number
    }

    pub fn history(&mut self, history: Vec<(Record, View)>) -> u32 {
        let next = self.histories.len() as u32;
        let number = *self.history_numbers.entry(history.clone()).or_insert(next);
        if number == next {
            self.histories.push(history);
        }
        number
    }

    /// The mail when leases ran out; `None` if it is of no use then.
    pub fn aged(&mut self, mail: u32) -> Option<u32> {
        if let Some(number) = self.aged[mail as usize] {
            return number;
        }
        let number = aged(&self.mails[mail as usize]).map(|mail| self.mail_number(mail));
        self.aged[mail as usize] = Some(number);
        number
    }

    /// What comes of `mail` at `server`.
    pub fn delivery(&mut self, me: ServerId, server: u32, mail: u32, done: Done) -> u32 {
        let key = (server, mail, done);
        if let Some(outcome) = self.deliveries.get(&key) {
            return *outcome;
        }
        let arrived = self.mails[mail as usize].clone();
        let outcome = self.turn(me, server, done, |turn| turn.receive(&arrived));
        self.deliveries.insert(key, outcome);
        outcome
    }

    /// What comes of `event` at `server`.
    pub fn event(&mut self, me: ServerId, server: u32, event: Event, done: Done) -> u32 {
        let key = (server, event, done);
        if let Some(outcome) = self.events.get(&key) {
            return *outcome;
        }
        let outcome = self.turn(me, server, done, |turn| turn.happen(event));
        self.events.insert(key, outcome);
        outcome
    }

    /// Whether `mail` can do nothing any more at `server`, whatever comes: it would change nothing there, and
    /// what would be answered is among `all` already.
    pub fn is_dead(&mut self, server: u32, mail: u32, done: Done, all: &[u32]) -> bool {
        let address = self.addresses[mail as usize];
        if !address.is_past(&self.facts[server as usize]) {
            return false;
        }
        let outcome = self.delivery(address.to, server, mail, done);
        let outcome = &self.outcomes[outcome as usize];
        let same = outcome.server == server && outcome.broken.is_none();
        let said = || outcome.sent.iter().all(|sent| all.binary_search(sent).is_ok());
        outcome.server == u32::MAX || same && said()
    }

    /// Whether something is sent in the turn that is answered at once.
    pub fn is_answered(&self, outcome: u32) -> bool {
        let sent = &self.outcomes[outcome as usize].sent;
        let at_once = self.bounds.answers == Answers::AtOnce;
        at_once && sent.iter().any(|mail| self.addresses[*mail as usize].answer != Answer::None)
    }

    fn turn(
        &mut self,
        me: ServerId,
        number: u32,
        done: Done,
        happen: impl FnOnce(&mut Turn<'_>),
    ) -> u32 {
        let before = self.servers[number as usize].clone();
        let bounds = self.bounds;
        let attempt = quietly(|| {
            let server = Server::clone(&before);
            let sent = Vec::new();
            let committed = None;
            let mut turn = Turn { bounds: &bounds, done, cut: false, committed, me, server, sent };
            happen(&mut turn);
            let came_to_pass = turn.cut || !matches!(done, Done::Cut(_));
            (turn.server, turn.sent, turn.committed, came_to_pass)
        });
        let (server, sent, committed, came_to_pass) = match attempt {
            Ok(done) => done,
            Err(words) => {
                self.words = Some(words);
                let broken = Some(Broken::Assertion);
                let sent = Box::default();
                self.outcomes.push(Outcome { server: number, sent, committed: None, broken });
                return self.outcomes.len() as u32 - 1;
            }
        };
        if !came_to_pass {
            return NOTHING; // there are not so many writes
        }
        let broken = Broken::in_turn(&before, &server, &sent);
        let mut sent: Vec<u32> = sent.into_iter().map(|mail| self.mail_number(mail)).collect();
        sent.sort_unstable();
        sent.dedup();
        let server = self.server_number(server);
        if server == number && sent.is_empty() && broken.is_none() {
            return NOTHING;
        }
        self.outcomes.push(Outcome { server, sent: sent.into(), committed, broken });
        self.outcomes.len() as u32 - 1
    }
}

thread_local! {
    /// What the panic in a turn said; `None` outside of turns.
    static WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `turn`; an assertion that fails in it is a finding, told by its words.
fn quietly<T>(turn: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let quiet = WORDS.with(|words| {
                let mut words = words.borrow_mut();
                words.as_mut().map(|words| *words = panic.to_string()).is_some()
            });
            if !quiet || cfg!(panic = "abort") {
                usual(panic);
            }
        }));
    });
    WORDS.set(Some(String::new()));
    let done = catch_unwind(AssertUnwindSafe(turn));
    let words = WORDS.take().expect("set above");
    done.map_err(|_| words)
}
