//! Lanes: clients that work on the same few arenas at once and record what they asked and were answered.
//! Owns: the arenas' histories, the clients' threads, the calls and what their replies mean.
//! Never: knows which answer is right; that is judged from the whole history of an arena.
//! Invariant: every call is in the history of its arena, with the one clock of this process.
//! Source: harp_bench's client, which reconnects and repeats what is unanswered as a kernel's does.
//!
//! Most clients keep to one server, as a mount does. One roams: when its server is silent for a second it goes on at
//! the next. A server that was cut off or stopped may still hold a call that the roaming client repeated elsewhere; if
//! that call failed there, nothing remembers it, and the copy is a new call when the server comes back. The history
//! allows for that, for the calls of the roaming client that failed and were sent again, and for no others.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harp_bench::client::{Client, Options};
use harp_bench::pipe::{Completion, Pipe};
use harp_bench::request::{CreateHow, DirName, HandleBytes, Request, Response, SetAttr, Status};

use super::arena::{self, Action, Entry, FileNo, How, NAMES, Outcome, Tag, UNITS};
use super::linearizable::NEVER;
use super::network;
use crate::random::Random;

/// Arenas that are worked on at one time.
const ARENAS_AT_ONCE: usize = 3;
/// Operations after which an arena is left to be judged.
const ARENA_OPERATIONS: u64 = 3000;
/// Lanes of each connection.
const LANES_PER_CONNECTION: usize = 2;
/// How many of a hundred operations on a file are on one of the newest, which may have lost its name.
const ANY_FILE_PERCENT: u64 = 10;
const FILES_KNOWN: u64 = 6;
/// Bound on the pause of a lane between two operations.
const PAUSE_MS_MAX: u64 = 8;
/// Pause before a call is made again that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(2);
/// How long a client goes without any answer before the run has failed. Faults end long before.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long a kernel-like client waits before it makes its connection anew; longer than any fault.
pub const STEADY_RETRANSMIT: Duration = Duration::from_secs(20);
/// How long the roaming client waits before it goes on elsewhere.
const ROAMING_RETRANSMIT: Duration = Duration::from_secs(1);
/// How long a server may hold a copy of a call: as long as it may be cut off or stopped, and then some.
const COPY_HELD: Duration = Duration::from_secs(20);
/// The number under which the last look is in the histories.
const LOOKER: usize = 99;
const FILE_SYNC: u32 = 2;

/// One arena.
#[derive(Debug)]
struct Arena {
    dir: HandleBytes,
    files: Vec<HandleBytes>,
    numbers: HashMap<Vec<u8>, FileNo>,
    /// The file that each name was last seen to have, or 0. It may have another by now.
    seen: [FileNo; NAMES],
    writes: Tag,
    begun: u64,
    history: Vec<Entry>,
    /// Calls under way, and when they were made; by lane.
    open: BTreeMap<usize, (Action, u64)>,
    judged: bool,
}

impl Arena {
    /// The history, with what was never answered.
    fn all(&self) -> Vec<Entry> {
        let unanswered = self.open.iter().map(|(lane, (action, begin))| {
            let (action, begin, lane) = (*action, *begin, *lane);
            Entry { action, outcome: Outcome::Unknown, begin, end: NEVER, copy_until: None, lane }
        });
        self.history.iter().cloned().chain(unanswered).collect()
    }
}

/// What the lanes share.
#[derive(Debug, Default)]
struct Board {
    /// By number.
    arenas: Vec<Option<Arena>>,
    /// The arenas at work; `None` while one is being made.
    current: [Option<u32>; ARENAS_AT_ONCE],
    /// Places where a lane makes a new arena.
    making: [bool; ARENAS_AT_ONCE],
    violations: Vec<String>,
    longest: Wait,
}

/// The longest time that an operation took, and whose it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// From making the call to its answer.
    pub lasted: Duration,
    /// The lane.
    pub lane: usize,
}

/// The lanes' common state.
#[derive(Debug)]
pub struct Lanes {
    began: Instant,
    root: HandleBytes,
    board: Mutex<Board>,
    answered: AtomicU64,
    stop: AtomicBool,
    seed: u64,
}

/// A client of the lanes.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// Keeps to a server.
    Steady(usize),
    /// Goes from one to the next.
    Roaming,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1?} (lane {})", self.lasted, self.lane)
    }
}

/// What a lane waits for.
#[derive(Debug)]
enum Doing {
    Resting { until: Instant },
    Making { arena: u32 },
    Asking { arena: u32, action: Action, begin: u64 },
}

#[derive(Debug)]
struct Lane {
    number: usize,
    roams: bool,
    random: Random,
    doing: Doing,
}

impl Lane {
    fn place(&self) -> usize {
        self.number % ARENAS_AT_ONCE
    }
}

/// The options of a client of so many servers.
fn options(who: Who, servers: usize) -> Options {
    match who {
        Who::Steady(server) => Options {
            patience: PATIENCE,
            retransmit: STEADY_RETRANSMIT,
            ..Options::new(network::nfs(server))
        },
        Who::Roaming => Options {
            elsewhere: (1..servers).map(network::nfs).collect(),
            connections: servers,
            patience: PATIENCE,
            retransmit: ROAMING_RETRANSMIT,
            ..Options::new(network::nfs(0))
        },
    }
}

impl Lanes {
    /// Prepares; nothing runs yet. `began` is the time from which all times count.
    pub fn new(seed: u64, servers: usize, began: Instant) -> Result<Lanes, String> {
        let mut client = connect(Who::Roaming, servers)?;
        let root = client.mount("/").map_err(|error| error.to_string())?;
        let (board, answered, stop) = Default::default();
        Ok(Lanes { began, root, board, answered, stop, seed })
    }

    /// Every client that takes part.
    pub fn clients(servers: usize) -> impl Iterator<Item = Who> {
        (0..servers).map(Who::Steady).chain([Who::Roaming])
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_nanos() as u64
    }

    /// Lets the lanes finish what they do.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Operations answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The longest wait for an answer since this was last asked.
    pub fn take_longest(&self) -> Wait {
        std::mem::take(&mut self.board().longest)
    }

    /// Runs one client's lanes until they are stopped.
    pub fn run(&self, who: Who, servers: usize) -> Result<(), String> {
        let mut client = connect(who, servers)?;
        let (first, connections) = match who {
            Who::Steady(server) => (server, 1),
            Who::Roaming => (servers, servers),
        };
        let first = first * LANES_PER_CONNECTION;
        let lane = |number: usize| {
            let random = Random(Random(self.seed ^ (number as u64) << 32).next());
            let doing = Doing::Resting { until: self.began };
            Lane { number, roams: matches!(who, Who::Roaming), random, doing }
        };
        let count = connections * LANES_PER_CONNECTION;
        let mut lanes: Vec<Lane> = (first..first + count).map(lane).collect();
        let mut payload = Vec::new();
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            if stopping && client.outstanding() == 0 {
                return Ok(());
            }
            for (index, lane) in lanes.iter_mut().enumerate().filter(|_| !stopping) {
                if matches!(lane.doing, Doing::Resting { until } if until <= Instant::now()) {
                    self.begin(lane, index as u64, client.pipe(index % connections), &mut payload);
                }
            }
            let turned = client.turn(TICK, |_, completion| {
                self.on_reply(&mut lanes[completion.token as usize], &completion);
            });
            turned.map_err(|error| format!("the client {who:?} gave up: {error}"))?;
        }
    }

    /// Lets a lane make its next call.
    fn begin(&self, lane: &mut Lane, token: u64, pipe: &mut Pipe, payload: &mut Vec<u8>) {
        let mut board = self.board();
        let place = lane.place();
        let Some(number) = board.current[place] else {
            if board.making[place] {
                lane.doing = Doing::Resting { until: Instant::now() + REFUSED_PAUSE };
                return;
            }
            board.making[place] = true;
            let arena = board.arenas.len() as u32;
            board.arenas.push(None);
            drop(board);
            lane.doing = Doing::Making { arena };
            let name = format!("arena-{arena}");
            let what = DirName { dir: self.root.as_slice(), name: name.as_bytes() };
            let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
            pipe.submit(token, &Request::MkDir { what, set });
            return;
        };
        let arena = board.arenas[number as usize].as_mut().expect("what is at work was made");
        let action = arena.choose(&mut lane.random);
        arena.begun += 1;
        if arena.begun >= ARENA_OPERATIONS {
            board.current[place] = None;
        }
        let arena = board.arenas[number as usize].as_mut().expect("it was there before");
        // The clock first: the call takes effect after it.
        let begin = self.nanos(Instant::now());
        arena.open.insert(lane.number, (action, begin));
        lane.doing = Doing::Asking { arena: number, action, begin };
        let verifier = lane.random.next().to_be_bytes();
        arena.submit(number, action, verifier, payload, |request| pipe.submit(token, request));
    }

    fn on_reply(&self, lane: &mut Lane, completion: &Completion<'_>) {
        let end = self.nanos(Instant::now());
        let mut board = self.board();
        let wait = Wait { lasted: completion.latency, lane: lane.number };
        board.longest = board.longest.max(wait);
        let pause = Duration::from_millis(lane.random.below(PAUSE_MS_MAX));
        let rest = Doing::Resting { until: Instant::now() + pause };
        match std::mem::replace(&mut lane.doing, rest) {
            Doing::Resting { .. } => unreachable!("a reply to a lane that rests"),
            Doing::Making { arena } => {
                let place = lane.place();
                match made_directory(completion) {
                    Ok(Some(dir)) => {
                        board.arenas[arena as usize] = Some(Arena::new(dir));
                        board.current[place] = Some(arena);
                    }
                    // The next one has another number.
                    Ok(None) => {
                        lane.doing = Doing::Resting { until: Instant::now() + REFUSED_PAUSE }
                    }
                    Err(why) => board.violations.push(format!("arena {arena} was not made: {why}")),
                }
                board.making[place] = false;
            }
            Doing::Asking { arena: number, action, begin } => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                let arena = board.arenas[number as usize].as_mut().expect("it was asked");
                arena.open.remove(&lane.number);
                let outcome = arena.outcome(number, action, completion);
                arena.notice(action, &outcome);
                let copied = lane.roams && completion.resent && arena::failed(&outcome);
                let copy_until = copied.then(|| end + COPY_HELD.as_nanos() as u64);
                if outcome == Outcome::Refused {
                    lane.doing = Doing::Resting { until: Instant::now() + REFUSED_PAUSE };
                }
                let lane = lane.number;
                arena.history.push(Entry { action, outcome, begin, end, copy_until, lane });
            }
        }
    }

    /// Looks at everything once more, so that what was lost late is missed as well. The lanes have stopped.
    pub fn look_again(&self, servers: usize) -> Result<(), String> {
        let mut client = connect(Who::Roaming, servers)?;
        let mut board = self.board();
        for (number, arena) in (0..).zip(board.arenas.iter_mut()) {
            let Some(arena) = arena else { continue };
            let names = (0..NAMES).map(|name| Action::LookUp { name });
            let files = 1..=arena.files.len() as FileNo;
            let files = files.flat_map(|file| {
                [Action::Measure { file }, Action::Read { file, at: 0, units: UNITS }]
            });
            for action in names.chain(files).collect::<Vec<_>>() {
                self.look(&mut client, number, arena, action)?;
            }
        }
        Ok(())
    }

    /// Makes one call that changes nothing, and notes it.
    fn look(
        &self,
        client: &mut Client,
        number: u32,
        arena: &mut Arena,
        action: Action,
    ) -> Result<(), String> {
        let begin = self.nanos(Instant::now());
        let pipe = client.pipe(0);
        arena.submit(number, action, [0; 8], &mut Vec::new(), |request| pipe.submit(0, request));
        let mut outcome = None;
        while outcome.is_none() {
            let turned = client.turn(TICK, |_, completion| {
                outcome = Some(arena.outcome(number, action, &completion));
            });
            turned.map_err(|error| format!("looking again: {error}"))?;
        }
        let (outcome, end) = (outcome.expect("the loop ends with one"), self.nanos(Instant::now()));
        let entry = Entry { action, outcome, begin, end, copy_until: None, lane: LOOKER };
        arena.history.push(entry);
        Ok(())
    }

    /// Judges the arenas that nobody works on any more and that were not judged yet.
    pub fn judge_left(&self) -> Vec<String> {
        let mut board = self.board();
        let mut wrong = std::mem::take(&mut board.violations);
        let mut left = Vec::new();
        for (number, arena) in board.arenas.iter_mut().enumerate() {
            if let Some(arena) = arena
                && arena.begun >= ARENA_OPERATIONS
                && arena.open.is_empty()
                && !arena.judged
            {
                arena.judged = true;
                left.push((number, arena.history.clone()));
            }
        }
        // The lanes go on meanwhile.
        drop(board);
        let told = |(number, history): (usize, Vec<Entry>)| {
            Some(format!("arena {number}: {}", arena::judge(&history).err()?))
        };
        wrong.extend(left.into_iter().filter_map(told));
        wrong
    }

    /// Judges everything. Returns how many arenas there were, how many operations, and what is wrong.
    pub fn judge_all(&self) -> (usize, usize, Vec<String>) {
        let mut board = self.board();
        let mut wrong = std::mem::take(&mut board.violations);
        let arenas = (0..).zip(&board.arenas).filter_map(|(n, arena)| Some((n, arena.as_ref()?)));
        let arenas: Vec<(u32, &Arena)> = arenas.collect();
        for (number, arena) in &arenas {
            if let Err(why) = arena::judge(&arena.all()) {
                wrong.push(format!("arena {number}: {why}"));
            }
        }
        let operations = arenas.iter().map(|(_, arena)| arena.history.len()).sum();
        (arenas.len(), operations, wrong)
    }

    /// All histories as text.
    pub fn histories(&self) -> String {
        let board = self.board();
        let mut text = String::from("times in microseconds from the run's begin\n");
        for (number, arena) in board.arenas.iter().enumerate() {
            let Some(arena) = arena else { continue };
            text.push_str(&format!("arena {number}\n"));
            let mut history = arena.all();
            history.sort_by_key(|entry| entry.begin);
            for entry in &history {
                text.push_str(&arena::line(entry));
                text.push('\n');
            }
        }
        text
    }
}

fn connect(who: Who, servers: usize) -> Result<Client, String> {
    let client = Client::connect(options(who, servers));
    client.map_err(|error| format!("the client {who:?} does not connect: {error}"))
}

/// The handle of a directory that was made; `None` if the server refused for now.
fn made_directory(completion: &Completion<'_>) -> Result<Option<HandleBytes>, String> {
    match completion.decode().map_err(|error| error.to_string())?.response {
        Response::Create { status: Status::Ok, ok: Some(dir), .. } => Ok(Some(dir)),
        Response::Create { status: Status::NoSpc | Status::JukeBox, .. } => Ok(None),
        other => Err(format!("{other:?}")),
    }
}

impl Arena {
    fn new(dir: HandleBytes) -> Arena {
        let (files, numbers, seen, history, open) = Default::default();
        Arena { dir, files, numbers, seen, writes: 0, begun: 0, history, open, judged: false }
    }

    /// What a lane does next.
    fn choose(&mut self, random: &mut Random) -> Action {
        let name = random.below(NAMES as u64) as usize;
        let dice = random.below(100);
        let file = if random.percent(ANY_FILE_PERCENT) {
            let newest = self.files.len() as FileNo;
            newest - random.below(u64::from(newest).clamp(1, FILES_KNOWN)) as FileNo
        } else {
            *random.of(&self.seen)
        };
        if file == 0 || dice < 28 {
            return match dice % 28 {
                0..12 => Action::LookUp { name },
                12..22 => {
                    let how = *random.of(&[How::Unchecked, How::Guarded, How::Exclusive]);
                    Action::Create { name, how }
                }
                22..25 => Action::Remove { name },
                _ => Action::Rename { from: name, to: random.below(NAMES as u64) as usize },
            };
        }
        let at = random.below(UNITS as u64) as usize;
        let units = 1 + random.below((UNITS - at) as u64) as usize;
        match dice {
            28..60 => {
                self.writes += 1;
                Action::Write { file, at, units, tag: self.writes }
            }
            60..66 => Action::Truncate { file, units: at },
            66..72 => Action::Measure { file },
            72..86 => Action::Read { file, at: 0, units: UNITS },
            _ => Action::Read { file, at, units },
        }
    }

    /// Hands the call to `submit`.
    fn submit(
        &self,
        number: u32,
        action: Action,
        verifier: [u8; 8],
        payload: &mut Vec<u8>,
        submit: impl FnOnce(&Request<'_>),
    ) {
        const LETTERS: [&[u8]; NAMES] = [b"w", b"x", b"y", b"z"];
        let what = |name: usize| DirName { dir: self.dir.as_slice(), name: LETTERS[name] };
        let bytes = |units: usize| (units * arena::unit_bytes(number)) as u64;
        let handle = |file: FileNo| self.files[file as usize - 1].as_slice();
        match action {
            Action::Create { name, how } => {
                let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
                let how = match how {
                    How::Unchecked => CreateHow::Unchecked(set),
                    How::Guarded => CreateHow::Guarded(set),
                    How::Exclusive => CreateHow::Exclusive(verifier),
                };
                submit(&Request::Create { what: what(name), how });
            }
            Action::LookUp { name } => submit(&Request::Lookup { what: what(name) }),
            Action::Remove { name } => submit(&Request::Remove { what: what(name) }),
            Action::Rename { from, to } => {
                submit(&Request::Rename { from: what(from), to: what(to) });
            }
            Action::Write { file, at, units, tag } => {
                *payload = arena::contents(number, tag, at, units);
                let (handle, data) = (handle(file), payload.as_slice());
                let (offset, count, stable) = (bytes(at), data.len() as u32, FILE_SYNC);
                submit(&Request::Write { handle, offset, count, stable, data });
            }
            Action::Read { file, at, units } => {
                let (offset, count) = (bytes(at), bytes(units) as u32);
                submit(&Request::Read { handle: handle(file), offset, count });
            }
            Action::Truncate { file, units } => {
                let set = SetAttr { size: Some(bytes(units)), ..SetAttr::default() };
                submit(&Request::SetAttr { handle: handle(file), set, guard: None });
            }
            Action::Measure { file } => submit(&Request::GetAttr { handle: handle(file) }),
        }
    }

    /// What a reply says.
    fn outcome(&mut self, number: u32, action: Action, completion: &Completion<'_>) -> Outcome {
        let decoded = match completion.decode() {
            Ok(decoded) => decoded,
            Err(error) => return Outcome::Wrong(error.to_string()),
        };
        let refusable = matches!(
            action,
            Action::Create { .. } | Action::Write { .. } | Action::Truncate { .. }
        );
        let unit_bytes = arena::unit_bytes(number) as u64;
        match (action, decoded.response) {
            (
                Action::Create { .. },
                Response::Create { status: Status::Ok, ok: Some(handle), .. },
            )
            | (
                Action::LookUp { .. },
                Response::Lookup { status: Status::Ok, ok: Some(handle), .. },
            ) => Outcome::File(self.number_of(handle)),
            (Action::Remove { .. } | Action::Truncate { .. }, Response::Wcc { status, .. })
            | (Action::Rename { .. }, Response::Rename { status, .. })
                if status == Status::Ok =>
            {
                Outcome::Done
            }
            (Action::Write { units, .. }, Response::Write { status: Status::Ok, count, .. }) => {
                if u64::from(count) == units as u64 * unit_bytes {
                    Outcome::Done
                } else {
                    Outcome::Wrong(format!("{count} bytes written of {units} units"))
                }
            }
            (Action::Read { at, .. }, Response::Read { status: Status::Ok, eof, .. }) => {
                match arena::tags(number, at, decoded.data) {
                    Ok(tags) => Outcome::Data { tags, end: eof },
                    Err(why) => Outcome::Wrong(why),
                }
            }
            (Action::Measure { .. }, Response::GetAttr { status: Status::Ok, ok: Some(attr) })
                if attr.size.is_multiple_of(unit_bytes) =>
            {
                Outcome::Length((attr.size / unit_bytes) as usize)
            }
            (_, response) => match status_of(&response) {
                Some(Status::NoEnt) => Outcome::NoEntry,
                Some(Status::Exist) => Outcome::Exists,
                Some(Status::Stale) => Outcome::Stale,
                Some(Status::JukeBox) => Outcome::Refused,
                Some(Status::NoSpc) if refusable => Outcome::Refused,
                _ => Outcome::Wrong(format!("{response:?}")),
            },
        }
    }

    /// Remembers what a name leads to.
    fn notice(&mut self, action: Action, outcome: &Outcome) {
        match (action, outcome) {
            (Action::LookUp { name } | Action::Create { name, .. }, Outcome::File(file)) => {
                self.seen[name] = *file;
            }
            (Action::LookUp { name } | Action::Remove { name }, Outcome::NoEntry)
            | (Action::Remove { name }, Outcome::Done) => self.seen[name] = 0,
            (Action::Rename { from, to }, Outcome::Done) if from != to => {
                self.seen[to] = std::mem::take(&mut self.seen[from]);
            }
            _ => {}
        }
    }

    fn number_of(&mut self, handle: HandleBytes) -> FileNo {
        let next = self.files.len() as FileNo + 1;
        let number = *self.numbers.entry(handle.as_slice().to_vec()).or_insert(next);
        if number == next {
            self.files.push(handle);
        }
        number
    }
}

fn status_of(response: &Response) -> Option<Status> {
    match response {
        Response::Create { status, .. }
        | Response::Lookup { status, .. }
        | Response::Wcc { status, .. }
        | Response::Rename { status, .. }
        | Response::Write { status, .. }
        | Response::Read { status, .. }
        | Response::GetAttr { status, .. } => Some(*status),
        _ => None,
    }
}
