//! Servers and mail under numbers, and what became of each pair of them: everything is worked out once.
//! Owns: the numbers, what the properties need to know of a server, the memory of all turns.
//! Never: forgets; two servers or mails have one number exactly if they are equal.
//! Invariant: a turn depends on nothing but its server, its event or mail, and whether writes end at once.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use harp_vr::{Incarnation, Message, ServerId, ServerSet, View};
use rustc_hash::FxHashMap;

use crate::bounds::{Bounds, NOW};
use crate::disk::{Log, Record};
use crate::properties::Broken;
use crate::server::{Event, Mail, Server, Turn, aged};

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
    pub lost: bool,
    pub writes: bool,
    pub unwritten: bool,
    pub adopting: bool,
}

impl Facts {
    fn of(server: &Server) -> Facts {
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
    /// A receiver that promised a higher view has no more use for it.
    promise: View,
    /// Nor has one that formed a higher view.
    formed: View,
}

impl Address {
    fn of(mail: &Mail) -> Address {
        let highest = View(u64::MAX);
        let (any_life, promise, formed) = match mail.envelope.message {
            Message::Presence(presence) => (true, highest, presence.formed),
            Message::Invite { view } => (true, view, highest),
            Message::Decline { view, .. } => (true, view, highest),
            Message::Promise { view, .. }
            | Message::Want { view, .. }
            | Message::Grant { view, .. }
            | Message::Installed { view, .. }
            | Message::CatchUp { view, .. } => (false, view, highest),
            Message::Install(install) => (false, install.view, highest),
            Message::Prepare(prepare) => (false, prepare.view, highest),
            Message::PrepareOk(ok) => (false, ok.view, highest),
            Message::Past(past) => (false, highest, past.view),
            Message::ImageWant { .. } | Message::ImagePart { .. } => (false, highest, highest),
        };
        let life = (!any_life).then_some(mail.envelope.to_incarnation);
        Address { to: mail.to, life, promise, formed }
    }

    /// Whether `receiver` cannot ever take it again, if it does not now.
    pub fn is_past(&self, receiver: &Facts) -> bool {
        self.life.is_some_and(|life| life != receiver.incarnation)
            || self.promise < receiver.promised
            || self.formed < receiver.formed
    }
}

/// What came of a turn.
#[derive(Debug)]
pub struct Outcome {
    /// The server after it.
    pub server: u32,
    /// What it sent, in ascending order.
    pub sent: Box<[u32]>,
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
    aged: Vec<Option<u32>>,
    pub outcomes: Vec<Outcome>,
    deliveries: FxHashMap<(u32, u32, bool), u32>,
    events: FxHashMap<(u32, Event, bool), u32>,
    /// Committed histories, each record with the view that it was committed in.
    pub histories: Vec<Vec<(Record, View)>>,
    history_numbers: FxHashMap<Vec<(Record, View)>, u32>,
    /// The words of the assertion that failed last.
    pub words: Option<String>,
}

impl Tables {
    pub fn new(bounds: Bounds) -> Tables {
        let nothing = Outcome { server: u32::MAX, sent: Box::default(), broken: None };
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
        let number = self.servers.len() as u32;
        self.facts.push(Facts::of(&server));
        let server = Arc::new(server);
        self.servers.push(server.clone());
        self.server_numbers.insert(server, number);
        number
    }

    fn mail_number(&mut self, mail: Mail) -> u32 {
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

    /// The mail when leases ran out.
    pub fn aged(&mut self, mail: u32) -> u32 {
        if let Some(number) = self.aged[mail as usize] {
            return number;
        }
        let number = self.mail_number(aged(&self.mails[mail as usize]));
        self.aged[mail as usize] = Some(number);
        number
    }

    /// What comes of `mail` at `server`.
    pub fn delivery(&mut self, me: ServerId, server: u32, mail: u32, writes_at_once: bool) -> u32 {
        let key = (server, mail, writes_at_once);
        if let Some(outcome) = self.deliveries.get(&key) {
            return *outcome;
        }
        let arrived = self.mails[mail as usize].clone();
        let outcome = self.turn(me, server, writes_at_once, |turn| turn.receive(&arrived));
        self.deliveries.insert(key, outcome);
        outcome
    }

    /// What comes of `event` at `server`.
    pub fn event(&mut self, me: ServerId, server: u32, event: Event, writes_at_once: bool) -> u32 {
        let key = (server, event, writes_at_once);
        if let Some(outcome) = self.events.get(&key) {
            return *outcome;
        }
        let outcome = self.turn(me, server, writes_at_once, |turn| turn.happen(event));
        self.events.insert(key, outcome);
        outcome
    }

    /// Whether `mail` can do nothing any more at `server`, whatever comes.
    pub fn is_dead(&mut self, server: u32, mail: u32, writes_at_once: bool) -> bool {
        let address = self.addresses[mail as usize];
        address.is_past(&self.facts[server as usize])
            && self.delivery(address.to, server, mail, writes_at_once) == NOTHING
    }

    fn turn(
        &mut self,
        me: ServerId,
        number: u32,
        writes_at_once: bool,
        happen: impl FnOnce(&mut Turn<'_>),
    ) -> u32 {
        let before = self.servers[number as usize].clone();
        let bounds = self.bounds;
        let attempt = quietly(|| {
            let server = Server::clone(&before);
            let mut turn = Turn { bounds: &bounds, writes_at_once, me, server, sent: Vec::new() };
            happen(&mut turn);
            (turn.server, turn.sent)
        });
        let (server, sent) = match attempt {
            Ok(done) => done,
            Err(words) => {
                self.words = Some(words);
                let broken = Some(Broken::Assertion);
                self.outcomes.push(Outcome { server: number, sent: Box::default(), broken });
                return self.outcomes.len() as u32 - 1;
            }
        };
        let broken = Broken::in_turn(&before, &server, &sent);
        let mut sent: Vec<u32> = sent.into_iter().map(|mail| self.mail_number(mail)).collect();
        sent.sort_unstable();
        sent.dedup();
        let server = self.server_number(server);
        if server == number && sent.is_empty() && broken.is_none() {
            return NOTHING;
        }
        self.outcomes.push(Outcome { server, sent: sent.into(), broken });
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
