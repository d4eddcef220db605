//! Scripts: worlds without chance, led step by step through one scenario.
//! Owns: the words that scenarios are written in.
//! Never: reaches into a server; it cuts wires, pulls plugs and asks as a client.
//! Invariant: a step that does not get where it should fails the scenario, with the servers' states.

use std::cell::RefCell;
use std::rc::Rc;

use harp_node::GroupSource;
use harp_node::fs::request::Status;
use harp_node::vr::{
    Consent, Envelope, Message as Said, OverrideAnswer, Plan, Planted, ServerId, ServerSet, View,
};

use crate::intent::{How, Intent};
use crate::model::{Ino, ROOT};
use crate::names::Name;
use crate::network::Message;
use crate::observer::{Request, xid_of};
use crate::profile::{MILLI, Profile, SECOND, SMALL_SEGMENTS, Wish};
use crate::properties::Pulse;
use crate::world::{Fate, World};

/// The designated primary.
pub const A: ServerId = ServerId(0);
/// The first designated backup.
pub const B: ServerId = ServerId(1);
/// The third server: the witness where n is 1.
pub const C: ServerId = ServerId(2);
/// The fourth server, a witness where n is 2.
pub const D: ServerId = ServerId(3);
/// The fifth server, a witness where n is 2.
pub const E: ServerId = ServerId(4);

/// No step takes longer, in virtual time.
const STEP_MAX: u64 = 5 * SECOND;

type Rule = Box<dyn FnMut(&Message, &Envelope) -> Option<Fate>>;

/// A stage: a world and the rules for its messages.
pub struct Stage {
    /// The world.
    pub world: World,
    rules: Rc<RefCell<Vec<Rule>>>,
}

/// The kinds of messages, for rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the protocol's
pub enum Kind {
    Presence,
    Invite,
    Promise,
    Decline,
    Install,
    Want,
    Grant,
    Installed,
    Prepare,
    PrepareOk,
    CatchUp,
    Past,
    ImageWant,
    ImagePart,
    BlockWant,
    BlockGrant,
}

/// What kind a message is.
pub fn kind(said: &Said) -> Kind {
    match said {
        Said::Presence(_) => Kind::Presence,
        Said::Invite { .. } => Kind::Invite,
        Said::Promise { .. } => Kind::Promise,
        Said::Decline { .. } => Kind::Decline,
        Said::Install(_) => Kind::Install,
        Said::Want { .. } => Kind::Want,
        Said::Grant { .. } => Kind::Grant,
        Said::Installed { .. } => Kind::Installed,
        Said::Prepare(_) => Kind::Prepare,
        Said::PrepareOk(_) => Kind::PrepareOk,
        Said::CatchUp { .. } => Kind::CatchUp,
        Said::Past { .. } => Kind::Past,
        Said::ImageWant { .. } => Kind::ImageWant,
        Said::ImagePart { .. } => Kind::ImagePart,
        Said::BlockWant { .. } => Kind::BlockWant,
        Said::BlockGrant { .. } => Kind::BlockGrant,
    }
}

impl Stage {
    /// A freshly formatted group, with its first view formed and a client mounted.
    pub fn new(n: u8) -> Stage {
        Stage::unformed(n).formed()
    }

    /// The same with records that count in memory.
    pub fn with_ups(n: u8) -> Stage {
        let mut profile = Profile::calm(Wish::new(1, n, 0));
        profile.durability = harp_node::Durability::Ups;
        Stage::of(profile).formed()
    }

    /// The same with stores that can grow to so many blocks.
    pub fn with_store(n: u8, blocks: u64) -> Stage {
        let mut profile = Profile::calm(Wish::new(1, n, 0));
        profile.store_blocks = blocks;
        Stage::of(profile).formed()
    }

    /// The same with small checkpoints, which keep little of the store for what only frees, and take long.
    pub fn with_small_checkpoints(n: u8, blocks: u64, checkpoint_bytes: u64) -> Stage {
        let mut profile = Profile::calm(Wish::new(1, n, 0));
        (profile.store_blocks, profile.checkpoint_bytes) = (blocks, checkpoint_bytes);
        profile.disk.checkpoint_mean = 50 * MILLI;
        Stage::of(profile).formed()
    }

    /// The same with a small ring and small segments.
    pub fn with_small_log(n: u8) -> Stage {
        let mut profile = Profile::calm(Wish::new(1, n, 0));
        profile.with_small_log(SMALL_SEGMENTS.1);
        Stage::of(profile).formed()
    }

    /// The same in a world whose clocks keep no bound.
    pub fn with_wild_clocks(n: u8) -> Stage {
        Stage::of(Profile::calm(Wish { wild_clocks: true, ..Wish::new(1, n, 0) })).formed()
    }

    /// The same with users' groups looked up; at the clients works root, who is not.
    pub fn with_looked_up_groups(n: u8) -> Stage {
        let mut profile = Profile::calm(Wish::new(1, n, 0));
        profile.groups = GroupSource::Server;
        Stage::of(profile).formed()
    }

    /// A freshly formatted group that breaks a rule.
    pub fn planted(n: u8, bug: Planted) -> Stage {
        let wish = Wish { planted: Some(bug), ..Wish::new(1, n, 0) };
        Stage::of(Profile::calm(wish)).formed()
    }

    fn formed(mut self) -> Stage {
        let stage = &mut self;
        stage.until("the first view serves", |world| world.serving().is_some());
        stage.until("the clients mount", |world| {
            world.clients.iter().all(|client| client.is_mounted())
        });
        self
    }

    /// A freshly formatted group at its very start.
    pub fn unformed(n: u8) -> Stage {
        Stage::of(Profile::calm(Wish::new(1, n, 0)))
    }

    fn of(mut profile: Profile) -> Stage {
        profile.clients.clients = 2;
        let mut world = World::new(profile);
        let rules: Rc<RefCell<Vec<Rule>>> = Rc::default();
        let seen = Rc::clone(&rules);
        world.filter = Some(Box::new(move |message, envelope| {
            let mut rules = seen.borrow_mut();
            rules.iter_mut().find_map(|rule| rule(message, envelope)).unwrap_or(Fate::Pass)
        }));
        Stage { world, rules }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{what}; {}", self.world.states());
    }

    /// Goes on until `done`; fails the scenario if that takes too long.
    #[track_caller]
    pub fn until(&mut self, what: &str, done: impl FnMut(&World) -> bool) {
        let limit = self.world.now + STEP_MAX;
        match self.world.run_until(limit, done) {
            Ok(true) => {}
            Ok(false) => self.fail(&format!("it does not happen that {what}")),
            Err(violation) => self.fail(&format!("{violation}, before {what}")),
        }
    }

    /// Goes on for `nanos`.
    #[track_caller]
    pub fn pass(&mut self, nanos: u64) {
        let limit = self.world.now + nanos;
        if let Err(violation) = self.world.run_until(limit, |_| false) {
            self.fail(&violation.to_string());
        }
    }

    /// Long enough for any failure to be noticed and any view to form.
    #[track_caller]
    pub fn settle(&mut self) {
        self.pass(300 * MILLI);
    }

    /// Adds a rule; the first one that says something about a message counts, older ones first.
    pub fn rule(&mut self, rule: impl FnMut(&Message, &Envelope) -> Option<Fate> + 'static) {
        self.rules.borrow_mut().push(Box::new(rule));
    }

    /// From now on, messages of this kind from `from` to `to` are held.
    pub fn hold(&mut self, from: ServerId, to: ServerId, what: Kind) {
        self.rule(move |message, envelope| {
            let hit = message.from == from && message.to == to && kind(&envelope.message) == what;
            hit.then_some(Fate::Hold)
        });
    }

    /// From now on, messages of this kind from `from` to `to` are lost.
    pub fn lose(&mut self, from: ServerId, to: ServerId, what: Kind) {
        self.rule(move |message, envelope| {
            let hit = message.from == from && message.to == to && kind(&envelope.message) == what;
            hit.then_some(Fate::Drop)
        });
    }

    /// From now on, records above `above` do not reach `to` from its primary, whose heartbeats do.
    pub fn lose_records(&mut self, to: ServerId, above: u64) {
        self.rule(move |message, envelope| match &envelope.message {
            Said::Prepare(records) if message.to == to && records.last.0 > above => {
                (records.first <= records.last).then_some(Fate::Drop)
            }
            _ => None,
        });
    }

    /// From now on, messages of this kind from `from` to `to` pass, and a copy of each is held.
    pub fn copy(&mut self, from: ServerId, to: ServerId, what: Kind) {
        self.rule(move |message, envelope| {
            let hit = message.from == from && message.to == to && kind(&envelope.message) == what;
            hit.then_some(Fate::Copy)
        });
    }

    /// The supervisor moves this client to another server, or does not.
    pub fn pin(&mut self, client: u32, pinned: bool) {
        self.world.pin(client, pinned);
    }

    /// All rules are forgotten; what is held stays held.
    pub fn no_rules(&mut self) {
        self.rules.borrow_mut().clear();
    }

    /// Lets everything go that is held.
    pub fn release(&mut self) {
        self.world.release(|_| true);
    }

    /// How many messages are held.
    pub fn held(&self) -> usize {
        self.world.held.len()
    }

    /// Cuts (or mends) all wires between the two sides.
    pub fn part(&mut self, one: &[ServerId], other: &[ServerId], cut: bool) {
        let set = |servers: &[ServerId]| servers.iter().copied().collect::<ServerSet>();
        self.world.network.part(set(one), set(other), cut);
    }

    /// Soft crash.
    pub fn crash(&mut self, server: ServerId) {
        self.world.kill(server, false);
    }

    /// Power failure of one machine.
    pub fn power_off(&mut self, server: ServerId) {
        self.world.kill(server, true);
    }

    /// The software has a fault: the record of request `number` ends every process that applies it and did not
    /// plan it.
    pub fn make_lethal(&mut self, number: u32) {
        self.world.profile.lethal_request = Some(number);
        for server in self.world.profile.shape.servers().collect::<Vec<_>>() {
            self.crash(server);
            self.restart(server);
        }
    }

    /// A server that is down starts.
    pub fn restart(&mut self, server: ServerId) {
        self.world.restart(server);
    }

    /// What the world sees of a server that is up.
    #[track_caller]
    pub fn pulse(&self, server: ServerId) -> Pulse {
        match self.world.pulse(server) {
            Some(pulse) => pulse,
            None => self.fail(&format!("{server} is down")),
        }
    }

    /// Whether a view of exactly these members serves, all of them having formed it.
    pub fn serves(world: &World, members: &[ServerId]) -> bool {
        let wanted: ServerSet = members.iter().copied().collect();
        let Some(serving) = world.serving().and_then(|server| world.pulse(server)) else {
            return false;
        };
        serving.members == wanted
            && members.iter().all(|member| {
                world.pulse(*member).is_some_and(|pulse| pulse.formed == serving.formed)
            })
    }

    /// Goes on until a view of exactly these members serves. Returns it.
    #[track_caller]
    pub fn until_serves(&mut self, members: &[ServerId]) -> View {
        let what = format!("a view of {members:?} serves");
        self.until(&what, |world| Stage::serves(world, members));
        let serving = self.world.serving().expect("it serves");
        self.pulse(serving).formed
    }

    /// A client starts to ask; returns the request's number.
    #[track_caller]
    pub fn ask(&mut self, client: u32, intent: Intent) -> u32 {
        let number = self.world.observer.requests.len() as u32;
        self.world.tell(client, intent);
        self.until("the client asks", |world| {
            let mut asked = world.observer.requests.iter().skip(number as usize);
            asked.any(|request| request.client == client && request.intent == intent)
        });
        let mut asked = self.world.observer.requests.iter().skip(number as usize);
        let at = asked.position(|request| request.client == client && request.intent == intent);
        number + at.expect("just asked") as u32
    }

    /// Whether a request is answered.
    pub fn is_answered(&self, number: u32) -> bool {
        self.world.observer.requests[number as usize].answered
    }

    /// Goes on until a request is answered. Returns its status and the object it shows.
    #[track_caller]
    pub fn answer(&mut self, number: u32) -> (Status, Option<Ino>) {
        self.until(&format!("request {number} is answered"), |world| {
            world.observer.requests[number as usize].answered
        });
        let answer = self.world.observer.requests[number as usize].answer;
        (answer.status.expect("answered"), answer.ino)
    }

    /// Asks and waits for the answer.
    #[track_caller]
    pub fn call(&mut self, client: u32, intent: Intent) -> (Status, Option<Ino>) {
        let number = self.ask(client, intent);
        self.answer(number)
    }

    /// A copy of a request that was answered reaches whoever serves.
    pub fn send_copy(&mut self, number: u32) {
        let world = &mut self.world;
        let Request { client, intent, .. } = world.observer.requests[number as usize];
        let mut bytes = Vec::new();
        let model = &world.observer.model;
        let handle = |ino| model.handle(ino).expect("it was asked for before");
        intent.encode(xid_of(number), world.clients[client as usize].user, handle, &mut bytes);
        world.send_copy(number, bytes);
        self.settle();
    }

    /// Asks for a new file in the root, and waits until it is there.
    #[track_caller]
    pub fn create(&mut self, number: u8) -> Ino {
        let (status, ino) = self.call(0, create(number));
        assert_eq!(status, Status::Ok);
        ino.expect("a created file")
    }

    /// The operator asks `server` what an override without `absent` would do (`consent`: nothing), or orders it.
    #[track_caller]
    pub fn order(
        &mut self,
        server: ServerId,
        absent: &[ServerId],
        consent: Option<Consent>,
    ) -> OverrideAnswer {
        let number = self.world.order(server, absent.iter().copied().collect(), consent);
        self.until("the order is answered", |world| world.answers.contains_key(&number));
        self.world.answers[&number].clone()
    }

    /// The operator looks at what an override would do, agrees, and orders it.
    #[track_caller]
    pub fn override_by(&mut self, server: ServerId, absent: &[ServerId]) -> Plan {
        let plan = match self.order(server, absent, None) {
            OverrideAnswer::Would(plan) => plan,
            other => self.fail(&format!("an override would do something: {other:?}")),
        };
        match self.order(server, absent, Some(plan.kept)) {
            OverrideAnswer::Done { plan: done, .. } => assert_eq!(done, plan),
            other => self.fail(&format!("an override is done: {other:?}")),
        }
        plan
    }

    /// Waits until all copies are members, compares their images, reads everything back.
    #[track_caller]
    pub fn reckon(&mut self) {
        self.no_rules();
        (0..self.world.clients.len()).for_each(|client| self.world.pin(client as u32, false));
        if let Err(violation) = crate::run::peace(&mut self.world) {
            self.fail(&violation.to_string());
        }
    }
}

/// A guarded CREATE of a file in the root.
pub fn create(number: u8) -> Intent {
    Intent::Create { dir: ROOT, name: Name::file(number), how: How::Guarded, mode: 0o644 }
}

/// A REMOVE of a file from the root.
pub fn remove(number: u8) -> Intent {
    Intent::Remove { dir: ROOT, name: Name::file(number) }
}

/// A LOOKUP of a file in the root.
pub fn lookup(number: u8) -> Intent {
    Intent::Lookup { dir: ROOT, name: Name::file(number) }
}
