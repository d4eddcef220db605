//! Recorder: many lanes of operations, each acknowledgement noted, each outcome judged at once.
//! Owns: the lanes, the calls they make, the judgement of what comes back.
//! Never: has two operations of one lane under way, or lets an unnoted operation out.
//! Invariant: whatever a lane's call returns, exactly one status is right; a second execution of
//! a repeated call shows as another one.
//! Source: what is promised: no acknowledged operation lost, none done twice, none by half.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harp_wire::request::{CreateHow, DirName, HandleBytes, Request, Response, SetAttr, Status};
use serde::Serialize;

use crate::BenchError;
use crate::client::{Client, ClientError, Options};
use crate::expected::{Expected, ObjectId, base_name, parent};
use crate::journal::{Journal, LANES_MAX};
use crate::operation::{LaneId, Operation, UNIT_BYTES, mixed, symlink_target};
use crate::pipe::{Completion, Pipe};
use crate::script::{Script, Step};

/// The object id of a lane's own directory; operations count from 1.
const LANE_DIRECTORY: ObjectId = 0;
const FILE_SYNC: u32 = 2;
/// How long to wait after JUKEBOX, as a client does, only shorter.
const JUKEBOX_PAUSE: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(50);

/// What to record.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// The server; lanes are spread over its `connections`.
    pub server: Options,
    /// The export's path.
    pub export: String,
    /// Lanes on each connection.
    pub depth: usize,
    /// The journal to begin.
    pub journal: PathBuf,
    /// Ends the recording after this time.
    pub seconds: Option<u64>,
    /// Ends the recording after this many acknowledged operations.
    pub operations: Option<u64>,
    /// Resets one of the connections after every so many replies; 0 never does.
    pub break_every: u64,
    /// What the lanes do follows from it.
    pub seed: u64,
    /// The server may run out of space: a refusal for that is like one that asks to try later. Otherwise it is wrong.
    pub may_run_out: bool,
}

impl RecordOptions {
    /// A recording of 4 connections with 8 lanes each into `journal`, without an end.
    pub fn new(server: Options, journal: PathBuf) -> RecordOptions {
        RecordOptions {
            server: Options { connections: 4, ..server },
            export: "/".into(),
            depth: 8,
            journal,
            seconds: None,
            operations: None,
            break_every: 0,
            seed: 1,
            may_run_out: false,
        }
    }
}

/// What a recording came to.
#[derive(Clone, Debug, Serialize)]
pub struct RecordReport {
    /// Acknowledged modifications.
    pub acknowledged: u64,
    /// Reads whose contents were compared.
    pub reads: u64,
    /// Operations whose reply never came.
    pub in_flight: u64,
    /// How long it ran.
    pub seconds: f64,
    /// The longest time without any reply, in milliseconds.
    pub stall_max_ms: f64,
    /// Connections lost and made again.
    pub reconnects: u64,
    /// Calls sent more than once.
    pub resent: u64,
    /// Connections given up because a reply did not come on them.
    pub timeouts: u64,
    /// What must not be, lane by lane.
    pub violations: Vec<String>,
    /// Why the client gave up before the end, if it did.
    pub gave_up: Option<String>,
}

impl fmt::Display for RecordReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "recorded {} operations and {} reads in {:.3} s, {} in flight at the end",
            self.acknowledged, self.reads, self.seconds, self.in_flight
        )?;
        write!(
            f,
            "longest stall {:.1} ms, {} reconnects ({} after a timeout), {} calls sent again, \
             {} violations",
            self.stall_max_ms,
            self.reconnects,
            self.timeouts,
            self.resent,
            self.violations.len()
        )?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        if let Some(why) = &self.gave_up {
            write!(f, "\ngave up: {why}")?;
        }
        Ok(())
    }
}

/// What a lane waits for.
#[derive(Debug)]
enum Doing {
    Nothing,
    Modifying(Operation),
    Reading { path: String, at: u32, units: u32 },
}

struct Lane {
    expected: Expected,
    script: Script,
    sequence: u64,
    doing: Doing,
    handles: HashMap<ObjectId, HandleBytes>,
    stopped: bool,
}

/// How a lane's reply is to be taken.
enum Judged {
    /// As it must be, with the handle of what was made.
    Right(Option<HandleBytes>),
    /// The server asks to try later.
    Later,
    /// As it must not be.
    Wrong(String),
}

struct Recorder<'o> {
    options: &'o RecordOptions,
    journal: Journal,
    lanes: Vec<Lane>,
    acknowledged: u64,
    reads: u64,
    replies: u64,
    violations: Vec<String>,
    /// Lanes to try again, and when.
    later: Vec<(Instant, usize)>,
    payload: Vec<u8>,
    ending: bool,
}

/// Records until the options' end, or until `stop` is set. What is in flight then is waited for.
///
/// Violations and a client that gave up are part of the report; errors are what kept the
/// recording from beginning, or from being noted.
pub fn record(options: &RecordOptions, stop: &AtomicBool) -> Result<RecordReport, BenchError> {
    let count = options.server.connections * options.depth;
    if count == 0 || count > LANES_MAX as usize {
        return Err(BenchError::Usage(format!("1 to {LANES_MAX} lanes, not {count}")));
    }
    let mut client = Client::connect(options.server.clone())?;
    let run = RandomState::new().build_hasher().finish();
    let lanes = make_lanes(&mut client, options, run)?;
    let journal = Journal::create(&options.journal, run, count as u32).map_err(journal_error)?;
    let mut recorder = Recorder {
        options,
        journal,
        lanes,
        acknowledged: 0,
        reads: 0,
        replies: 0,
        violations: Vec::new(),
        later: Vec::new(),
        payload: Vec::new(),
        ending: false,
    };
    client.clear_trouble();
    let begin = Instant::now();
    let gave_up = recorder.run(&mut client, stop, begin)?;
    recorder.journal.flush().map_err(journal_error)?;
    let trouble = client.trouble();
    let in_flight = |lane: &&Lane| !lane.stopped && matches!(lane.doing, Doing::Modifying(_));
    Ok(RecordReport {
        acknowledged: recorder.acknowledged,
        reads: recorder.reads,
        in_flight: recorder.lanes.iter().filter(in_flight).count() as u64,
        seconds: begin.elapsed().as_secs_f64(),
        stall_max_ms: trouble.stall_max.as_secs_f64() * 1e3,
        reconnects: trouble.reconnects,
        resent: trouble.resent,
        timeouts: trouble.timeouts,
        violations: recorder.violations,
        gave_up: gave_up.map(|error| error.to_string()),
    })
}

fn journal_error(error: std::io::Error) -> BenchError {
    BenchError::Io { doing: "writing the journal", error }
}

/// Makes the recording's directory and one in it for each lane.
fn make_lanes(
    client: &mut Client,
    options: &RecordOptions,
    run: u64,
) -> Result<Vec<Lane>, BenchError> {
    let root = client.mount(&options.export)?;
    let id = |lane| LaneId { run, lane };
    let run_dir = make_directory(client, root, &id(0).run_dir())?;
    let count = options.server.connections * options.depth;
    let lane = |lane: u32| {
        let handle = make_directory(client, run_dir, &id(lane).lane_dir())?;
        Ok(Lane {
            expected: Expected::new(id(lane)),
            script: Script::new(mixed(options.seed) ^ mixed(u64::from(lane))),
            sequence: 0,
            doing: Doing::Nothing,
            handles: HashMap::from([(LANE_DIRECTORY, handle)]),
            stopped: false,
        })
    };
    (0..count as u32).map(lane).collect()
}

fn make_directory(
    client: &mut Client,
    parent: HandleBytes,
    name: &str,
) -> Result<HandleBytes, BenchError> {
    let what = DirName { dir: parent.as_slice(), name: name.as_bytes() };
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    match client.call(&Request::MkDir { what, set })?.0 {
        Response::Create { status: Status::Ok, ok: Some(handle), .. } => Ok(handle),
        Response::Create { status, .. } => {
            Err(BenchError::Status { doing: "making a directory", status })
        }
        other => unreachable!("decoded as a creation: {other:?}"),
    }
}

impl Recorder<'_> {
    /// The loop; why the client gave up, if it did.
    fn run(
        &mut self,
        client: &mut Client,
        stop: &AtomicBool,
        begin: Instant,
    ) -> Result<Option<ClientError>, BenchError> {
        let deadline = self.options.seconds.map(|seconds| begin + Duration::from_secs(seconds));
        let mut last_ack = (0, begin);
        for index in 0..self.lanes.len() {
            self.begin_step(index, client.pipe(index % self.options.server.connections));
        }
        let mut break_at = self.options.break_every;
        loop {
            self.journal.flush().map_err(journal_error)?;
            if client.outstanding() == 0 && self.later.is_empty() {
                return Ok(None);
            }
            let turned = client.turn(TICK, |pipe, completion| self.on_reply(pipe, &completion));
            if let Err(error) = turned {
                return Ok(Some(error));
            }
            let now = Instant::now();
            self.ending |= stop.load(Ordering::Relaxed)
                || deadline.is_some_and(|deadline| now >= deadline)
                || self.options.operations.is_some_and(|all| self.acknowledged >= all);
            if self.options.break_every > 0 && self.replies >= break_at {
                let victim = break_at / self.options.break_every;
                client.break_connection(victim as usize % self.options.server.connections);
                break_at = self.replies + self.options.break_every;
            }
            // Answers that only put us off do not wear the client's patience; here they do.
            if last_ack.0 != self.acknowledged + self.reads {
                last_ack = (self.acknowledged + self.reads, now);
            } else if now.duration_since(last_ack.1) > self.options.server.patience {
                return Ok(Some(ClientError::NoReply { outstanding: self.later.len() }));
            }
            self.try_later_ones(client, now);
        }
    }

    fn try_later_ones(&mut self, client: &mut Client, now: Instant) {
        let mut at = 0;
        while at < self.later.len() {
            if self.later[at].0 > now {
                at += 1;
                continue;
            }
            let (_, index) = self.later.swap_remove(at);
            let pipe = client.pipe(index % self.options.server.connections);
            self.make_call(index, pipe);
        }
    }

    /// Lets a lane take its next step, unless all is ending.
    fn begin_step(&mut self, index: usize, pipe: &mut Pipe) {
        if self.ending {
            return;
        }
        let lane = &mut self.lanes[index];
        lane.doing = match lane.script.next(&lane.expected, lane.sequence + 1) {
            Step::Modify(operation) => {
                lane.sequence += 1;
                self.journal.intend(index as u32, lane.sequence, &operation);
                Doing::Modifying(operation)
            }
            Step::Read { path, at, units } => Doing::Reading { path, at, units },
        };
        self.make_call(index, pipe);
    }

    fn make_call(&mut self, index: usize, pipe: &mut Pipe) {
        let lane = &self.lanes[index];
        let token = index as u64;
        match &lane.doing {
            Doing::Nothing => unreachable!("a lane that does nothing makes no call"),
            Doing::Modifying(operation) => {
                lane.submit(operation, &mut self.payload, |request| pipe.submit(token, request));
            }
            Doing::Reading { path, at, units } => {
                let handle = lane.handle(path);
                let (offset, count) = (bytes(*at), bytes(*units) as u32);
                pipe.submit(token, &Request::Read { handle: handle.as_slice(), offset, count });
            }
        }
    }

    fn on_reply(&mut self, pipe: &mut Pipe, completion: &Completion<'_>) {
        self.replies += 1;
        let index = completion.token as usize;
        let lane = &mut self.lanes[index];
        let judged = match std::mem::replace(&mut lane.doing, Doing::Nothing) {
            Doing::Nothing => unreachable!("a reply to a lane that does nothing"),
            Doing::Modifying(operation) => {
                let judged = lane.judge(&operation, completion, self.options.may_run_out);
                match &judged {
                    Judged::Right(handle) => {
                        self.acknowledged += 1;
                        self.journal.acknowledge(index as u32, lane.sequence, *handle);
                        lane.expected.apply(lane.sequence, &operation);
                        lane.handles.extend(handle.map(|handle| (lane.sequence, handle)));
                    }
                    _ => lane.doing = Doing::Modifying(operation),
                }
                judged
            }
            Doing::Reading { path, at, units } => {
                let judged = lane.judge_read(&path, at, units, completion);
                match &judged {
                    Judged::Right(_) => self.reads += 1,
                    _ => lane.doing = Doing::Reading { path, at, units },
                }
                judged
            }
        };
        match judged {
            Judged::Right(_) => self.begin_step(index, pipe),
            Judged::Later => self.later.push((pipe.now() + JUKEBOX_PAUSE, index)),
            Judged::Wrong(why) => {
                let again = if completion.resent { ", call sent again" } else { "" };
                let why = format!("lane {index} at {:?}: {why}{again}", lane.doing);
                lane.stopped = true;
                self.journal.violate(index as u32, lane.sequence, &why);
                self.violations.push(why);
            }
        }
    }
}

fn bytes(units: u32) -> u64 {
    u64::from(units) * UNIT_BYTES as u64
}

impl Lane {
    /// The handle of the object at `path`, "" for the lane's directory.
    fn handle(&self, path: &str) -> HandleBytes {
        let id = match self.expected.node(path) {
            Some(node) => node.id(),
            None => {
                assert!(path.is_empty(), "{path} is not in the model");
                LANE_DIRECTORY
            }
        };
        self.handles[&id]
    }

    /// Hands the call that does `operation` to `submit`.
    fn submit(
        &self,
        operation: &Operation,
        payload: &mut Vec<u8>,
        submit: impl FnOnce(&Request<'_>),
    ) {
        use Operation::*;
        let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
        match operation {
            CreateUnchecked { path } => self.on_name(path, |what| {
                submit(&Request::Create { what, how: CreateHow::Unchecked(mode(0o644)) });
            }),
            CreateGuarded { path } => self.on_name(path, |what| {
                submit(&Request::Create { what, how: CreateHow::Guarded(mode(0o644)) });
            }),
            CreateExclusive { path, verifier } => self.on_name(path, |what| {
                let how = CreateHow::Exclusive(mixed(*verifier).to_be_bytes());
                submit(&Request::Create { what, how });
            }),
            Remove { path } => self.on_name(path, |what| submit(&Request::Remove { what })),
            RmDir { path } => self.on_name(path, |what| submit(&Request::RmDir { what })),
            MkDir { path } => {
                self.on_name(path, |what| submit(&Request::MkDir { what, set: mode(0o755) }));
            }
            SymLink { path } => self.on_name(path, |what| {
                let target = symlink_target(self.sequence);
                let target = target.as_bytes();
                submit(&Request::SymLink { what, set: mode(0o777), target });
            }),
            Rename { from, to } => self.on_name(from, |from| {
                self.on_name(to, |to| submit(&Request::Rename { from, to }));
            }),
            Link { from, to } => {
                let handle = self.handle(from);
                self.on_name(to, |to| submit(&Request::Link { handle: handle.as_slice(), to }));
            }
            Truncate { path, units } => {
                let set = SetAttr { size: Some(bytes(*units)), ..SetAttr::default() };
                let handle = self.handle(path);
                submit(&Request::SetAttr { handle: handle.as_slice(), set, guard: None });
            }
            Write { path, at, units } => {
                payload.clear();
                for unit in *at..*at + *units {
                    payload.extend_from_slice(&self.expected.id().unit(self.sequence, unit));
                }
                let handle = self.handle(path);
                submit(&Request::Write {
                    handle: handle.as_slice(),
                    offset: bytes(*at),
                    count: payload.len() as u32,
                    stable: FILE_SYNC,
                    data: payload,
                });
            }
        }
    }

    fn on_name(&self, path: &str, call: impl FnOnce(DirName<'_>)) {
        let dir = self.handle(parent(path));
        call(DirName { dir: dir.as_slice(), name: base_name(path).as_bytes() });
    }

    /// Judges the reply to a modification.
    fn judge(
        &self,
        operation: &Operation,
        completion: &Completion<'_>,
        may_run_out: bool,
    ) -> Judged {
        let response = match completion.decode() {
            Ok(decoded) => decoded.response,
            Err(error) => return Judged::Wrong(error.to_string()),
        };
        let (status, handle) = match &response {
            Response::Wcc { status, .. }
            | Response::Rename { status, .. }
            | Response::Link { status, .. } => (*status, None),
            Response::Create { status, ok, .. } => (*status, *ok),
            Response::Write { status, count, .. } => {
                if let Operation::Write { units, .. } = operation
                    && *status == Status::Ok
                    && u64::from(*count) != bytes(*units)
                {
                    return Judged::Wrong(format!("only {count} bytes were written"));
                }
                (*status, None)
            }
            other => unreachable!("no lane calls for {other:?}"),
        };
        if status == Status::JukeBox || (status == Status::NoSpc && may_run_out) {
            return Judged::Later;
        }
        let want = self.expected.outcome(operation);
        if status != want {
            return Judged::Wrong(format!("{status:?} where only {want:?} is right"));
        }
        if status != Status::Ok || !matches!(response, Response::Create { .. }) {
            return Judged::Right(None);
        }
        let Some(handle) = handle else {
            return Judged::Wrong("a creation without a handle".into());
        };
        match self.existing(operation) {
            Some(known) if known != handle => {
                Judged::Wrong(format!("handle {handle:?} instead of {known:?}"))
            }
            Some(_) => Judged::Right(None),
            None => Judged::Right(Some(handle)),
        }
    }

    /// The handle of the file that a creation finds in place.
    fn existing(&self, operation: &Operation) -> Option<HandleBytes> {
        match operation {
            Operation::CreateUnchecked { path } | Operation::CreateExclusive { path, .. } => {
                self.expected.node(path).map(|node| self.handles[&node.id()])
            }
            _ => None,
        }
    }

    /// Judges the reply to a read: a lane sees all that it wrote.
    fn judge_read(&self, path: &str, at: u32, units: u32, completion: &Completion<'_>) -> Judged {
        let decoded = match completion.decode() {
            Ok(decoded) => decoded,
            Err(error) => return Judged::Wrong(error.to_string()),
        };
        match decoded.response {
            Response::Read { status: Status::JukeBox, .. } => return Judged::Later,
            Response::Read { status: Status::Ok, .. } => {}
            other => return Judged::Wrong(format!("{other:?}")),
        }
        let contents = self.expected.contents(path).expect("only files are read");
        let end = contents.len_units().min(at.saturating_add(units));
        let want_bytes = bytes(end.saturating_sub(at)) as usize;
        if decoded.data.len() != want_bytes {
            let got = decoded.data.len();
            return Judged::Wrong(format!("read {got} bytes instead of {want_bytes}"));
        }
        for (unit, data) in (at..end).zip(decoded.data.chunks_exact(UNIT_BYTES)) {
            if contents.unit(self.expected.id(), unit) != data {
                let found = self.expected.id().sequence_in(data);
                return Judged::Wrong(format!("unit {unit} holds the bytes of {found:?}"));
            }
        }
        Judged::Right(None)
    }
}
