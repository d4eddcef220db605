//! Load: phases of one operation each, as fast as the server answers.
//! Owns: the phases, their order, what each needs, and the report.
//! Never: checks contents; that is the recorder's part.
//! Invariant: every phase works on the files that the phases before it left.
//! Source: the phases are those by which NFS servers are commonly compared.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use harp_wire::request::{CreateHow, DirName, HandleBytes, Request, Response, SetAttr, Status};
use serde::Serialize;

use crate::BenchError;
use crate::client::{Client, Options};
use crate::latency::Histogram;
use crate::pipe::{Completion, Pipe};

const SMALL_BYTES: u32 = 4 << 10;
const LARGE_BYTES: u32 = 128 << 10;
const FILE_SYNC: u32 = 2;
/// How many errors of a phase are told one by one.
const ERRORS_TOLD_MAX: u64 = 5;

/// One kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it
pub enum Phase {
    Create,
    Write4k,
    GetAttr,
    Lookup,
    Read4k,
    Rename,
    Remove,
    SeqWrite128k,
    SeqRead128k,
    RandWrite4k,
    RandRead4k,
}

impl Phase {
    /// All phases in the order they run in.
    pub const ALL: [Phase; 11] = [
        Phase::Create,
        Phase::Write4k,
        Phase::GetAttr,
        Phase::Lookup,
        Phase::Read4k,
        Phase::Rename,
        Phase::Remove,
        Phase::SeqWrite128k,
        Phase::SeqRead128k,
        Phase::RandWrite4k,
        Phase::RandRead4k,
    ];

    /// The name in the report and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Create => "create",
            Phase::Write4k => "write4k",
            Phase::GetAttr => "getattr",
            Phase::Lookup => "lookup",
            Phase::Read4k => "read4k",
            Phase::Rename => "rename",
            Phase::Remove => "remove",
            Phase::SeqWrite128k => "seqw128k",
            Phase::SeqRead128k => "seqr128k",
            Phase::RandWrite4k => "randw4k",
            Phase::RandRead4k => "randr4k",
        }
    }

    /// The phase with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// Bytes of data that one operation moves; 0 where none.
    const fn io_bytes(self) -> u32 {
        match self {
            Phase::Write4k | Phase::Read4k | Phase::RandWrite4k | Phase::RandRead4k => SMALL_BYTES,
            Phase::SeqWrite128k | Phase::SeqRead128k => LARGE_BYTES,
            _ => 0,
        }
    }

    /// The phases that must have run before, for this one alone.
    const fn needs(self) -> &'static [Phase] {
        match self {
            Phase::Create | Phase::SeqWrite128k => &[],
            Phase::Write4k | Phase::GetAttr | Phase::Lookup | Phase::Rename => &[Phase::Create],
            Phase::Read4k => &[Phase::Create, Phase::Write4k],
            Phase::Remove => &[Phase::Create, Phase::Rename],
            Phase::SeqRead128k | Phase::RandWrite4k | Phase::RandRead4k => &[Phase::SeqWrite128k],
        }
    }
}

/// What to load a server with.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The server; its `connections` are the load's.
    pub server: Options,
    /// The export's path.
    pub export: String,
    /// Calls outstanding on each connection.
    pub depth: usize,
    /// Number of files.
    pub files: usize,
    /// Length of the one large file, in MiB.
    pub seq_mib: usize,
    /// Only these phases, and silently what they need; empty for all.
    pub phases: Vec<Phase>,
    /// How long each phase lasts instead of going over the files once. Creates then go on to new
    /// names; REMOVE always goes over the files once.
    pub seconds: Option<u64>,
    /// Begins the names of everything the load makes.
    pub prefix: String,
    /// Whether the files stay when the load is over.
    pub keep: bool,
}

impl LoadOptions {
    /// The load by which servers are compared: 4 connections, 16 deep, 20,000 files, 256 MiB.
    pub fn new(server: Options) -> LoadOptions {
        LoadOptions {
            server: Options { connections: 4, ..server },
            export: "/".into(),
            depth: 16,
            files: 20_000,
            seq_mib: 256,
            phases: Vec::new(),
            seconds: None,
            prefix: "p".into(),
            keep: false,
        }
    }
}

/// The figures of one phase; latencies are in microseconds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // the names and the unit say it
pub struct PhaseReport {
    pub name: &'static str,
    pub ops: u64,
    pub seconds: f64,
    pub ops_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub errors: u64,
    /// Only where the figure of interest is one.
    pub mb_per_second: Option<f64>,
    /// The longest time without any reply.
    pub stall_max_us: f64,
    pub reconnects: u64,
}

impl fmt::Display for PhaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} ops {:8} sec {:7.3} ops/s {:9.0} p50 {:7.0} p99 {:8.0} max {:8.0} err {}",
            self.name,
            self.ops,
            self.seconds,
            self.ops_per_second,
            self.p50_us,
            self.p99_us,
            self.max_us,
            self.errors
        )?;
        if let Some(rate) = self.mb_per_second {
            write!(f, " MB/s {rate:.0}")?;
        }
        if self.reconnects > 0 {
            write!(f, " stall {:.0} reconnects {}", self.stall_max_us, self.reconnects)?;
        }
        Ok(())
    }
}

/// Runs the load. Each finished phase is handed to `on_phase`; all are returned.
pub fn run(
    options: &LoadOptions,
    mut on_phase: impl FnMut(&PhaseReport),
) -> Result<Vec<PhaseReport>, BenchError> {
    let mut load = Load::prepare(options)?;
    let mut reports = Vec::new();
    let wanted = |phase| options.phases.is_empty() || options.phases.contains(&phase);
    for phase in Phase::ALL {
        let needed = options.phases.iter().any(|wanted| wanted.needs().contains(&phase));
        if wanted(phase) {
            let seconds = options.seconds.filter(|_| phase != Phase::Remove);
            let report = load.run_phase(phase, seconds)?;
            on_phase(&report);
            reports.push(report);
        } else if needed {
            load.run_phase(phase, None)?;
        }
    }
    if !options.keep {
        load.clean_up()?;
    }
    Ok(reports)
}

/// A file's name, written without allocating.
struct Name {
    bytes: [u8; 96],
    len: usize,
}

impl Name {
    fn new(prefix: &str, kind: char, index: u64) -> Name {
        let mut name = Name { bytes: [0; 96], len: 0 };
        let mut room = &mut name.bytes[..];
        write!(room, "{prefix}-{kind}{index:07}").expect("the prefix is bounded");
        name.len = 96 - room.len();
        name
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct Load<'o> {
    options: &'o LoadOptions,
    client: Client,
    root: HandleBytes,
    dir: HandleBytes,
    dir_name: String,
    big: HandleBytes,
    files: Vec<HandleBytes>,
    /// How many creates there were: the names 0 to here are taken, or were.
    created: u64,
    payload: Vec<u8>,
}

impl<'o> Load<'o> {
    fn prepare(options: &'o LoadOptions) -> Result<Load<'o>, BenchError> {
        if options.prefix.len() > 64 || options.files == 0 || options.seq_mib == 0 {
            return Err(BenchError::Usage("a prefix of at most 64 bytes, files, MiB".into()));
        }
        let mut client = Client::connect(options.server.clone())?;
        let root = client.mount(&options.export)?;
        let dir_name = format!("{}-dir", options.prefix);
        let what = DirName { dir: root.as_slice(), name: dir_name.as_bytes() };
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        let (response, _) = client.call(&Request::MkDir { what, set })?;
        let dir = match made(response) {
            Ok(handle) => handle,
            Err(Some(Status::Exist) | None) => lookup(&mut client, what)?,
            Err(Some(status)) => {
                return Err(BenchError::Status { doing: "making the directory", status });
            }
        };
        let what = DirName { dir: dir.as_slice(), name: b"big" };
        let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
        let how = CreateHow::Unchecked(set);
        let (response, _) = client.call(&Request::Create { what, how })?;
        let big = match made(response) {
            Ok(handle) => handle,
            Err(None) => lookup(&mut client, what)?,
            Err(Some(status)) => return Err(BenchError::Status { doing: "making a file", status }),
        };
        let mut random = Random(0x5bd1_e995);
        let payload = (0..LARGE_BYTES).map(|_| random.next() as u8).collect();
        let files = vec![HandleBytes::new(&[]); options.files];
        Ok(Load { options, client, root, dir, dir_name, big, files, created: 0, payload })
    }

    fn run_phase(&mut self, phase: Phase, seconds: Option<u64>) -> Result<PhaseReport, BenchError> {
        self.client.clear_trouble();
        let begin = Instant::now();
        let deadline = seconds.map(|seconds| begin + Duration::from_secs(seconds));
        let blocks = self.options.seq_mib as u64 * 8;
        let total = match phase {
            _ if seconds.is_some() => u64::MAX,
            Phase::SeqWrite128k | Phase::SeqRead128k => blocks,
            Phase::RandWrite4k | Phase::RandRead4k => self.options.files as u64 * 2,
            _ => self.options.files as u64,
        };
        let mut work = Work {
            phase,
            prefix: &self.options.prefix,
            dir: self.dir,
            big: self.big,
            files: &mut self.files,
            payload: &self.payload,
            blocks,
            random: Random(0x9e37_79b9),
            issued: 0,
            total,
            errors: 0,
        };
        let (client, mut latencies, mut done) = (&mut self.client, Histogram::default(), 0u64);
        for index in 0..self.options.server.connections {
            let pipe = client.pipe(index);
            (0..self.options.depth).for_each(|_| work.issue(pipe));
        }
        while client.outstanding() > 0 {
            client.turn(Duration::MAX, |pipe, completion| {
                latencies.add(completion.latency);
                done += 1;
                work.check(&completion);
                if deadline.is_none_or(|deadline| pipe.now() < deadline) {
                    work.issue(pipe);
                }
            })?;
        }
        if phase == Phase::Create {
            self.created = work.issued;
        }
        let errors = work.errors;
        let elapsed = begin.elapsed().as_secs_f64();
        Ok(self.report(phase, done, errors, elapsed, &latencies))
    }

    fn report(
        &self,
        phase: Phase,
        ops: u64,
        errors: u64,
        seconds: f64,
        latencies: &Histogram,
    ) -> PhaseReport {
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let trouble = self.client.trouble();
        let bytes = ops as f64 * f64::from(phase.io_bytes());
        PhaseReport {
            name: phase.name(),
            ops,
            seconds,
            ops_per_second: ops as f64 / seconds,
            p50_us: micros(latencies.quantile(0.50)),
            p99_us: micros(latencies.quantile(0.99)),
            max_us: micros(latencies.max()),
            errors,
            mb_per_second: (phase.io_bytes() == LARGE_BYTES).then_some(bytes / 1e6 / seconds),
            stall_max_us: micros(trouble.stall_max),
            reconnects: trouble.reconnects,
        }
    }

    /// Removes what the phases left. What is not there, because a phase that did not run would
    /// have made it, is passed over.
    fn clean_up(&mut self) -> Result<(), BenchError> {
        let (dir, prefix) = (self.dir, &self.options.prefix);
        // Each created file is called one of two names.
        let (mut next, total) = (0u64, self.created * 2);
        let mut issue = |pipe: &mut Pipe| {
            if next < total {
                let name = Name::new(prefix, if next % 2 == 0 { 'f' } else { 'r' }, next / 2);
                let what = DirName { dir: dir.as_slice(), name: name.as_slice() };
                pipe.submit(0, &Request::Remove { what });
                next += 1;
            }
        };
        for index in 0..self.options.server.connections {
            let pipe = self.client.pipe(index);
            (0..self.options.depth).for_each(|_| issue(pipe));
        }
        while self.client.outstanding() > 0 {
            self.client.turn(Duration::MAX, |pipe, _| issue(pipe))?;
        }
        let what = DirName { dir: dir.as_slice(), name: b"big" };
        self.client.call(&Request::Remove { what })?;
        let what = DirName { dir: self.root.as_slice(), name: self.dir_name.as_bytes() };
        self.client.call(&Request::RmDir { what })?;
        Ok(())
    }
}

/// What a creating procedure made; without a handle in a success, `Err(None)`.
fn made(response: Response) -> Result<HandleBytes, Option<Status>> {
    match response {
        Response::Create { status: Status::Ok, ok, .. } => ok.ok_or(None),
        Response::Create { status, .. } => Err(Some(status)),
        other => unreachable!("decoded as a creation: {other:?}"),
    }
}

fn lookup(client: &mut Client, what: DirName<'_>) -> Result<HandleBytes, BenchError> {
    match client.call(&Request::Lookup { what })?.0 {
        Response::Lookup { ok: Some(handle), .. } => Ok(handle),
        Response::Lookup { status, .. } => {
            Err(BenchError::Status { doing: "looking a name up", status })
        }
        other => unreachable!("decoded as a look-up: {other:?}"),
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The calls of one phase.
struct Work<'w> {
    phase: Phase,
    prefix: &'w str,
    dir: HandleBytes,
    big: HandleBytes,
    files: &'w mut [HandleBytes],
    payload: &'w [u8],
    /// Length of the large file in blocks of 128 KiB.
    blocks: u64,
    random: Random,
    issued: u64,
    total: u64,
    errors: u64,
}

impl Work<'_> {
    /// Makes the next call, unless there is none.
    fn issue(&mut self, pipe: &mut Pipe) {
        if self.issued == self.total {
            return;
        }
        let number = self.issued;
        self.issued += 1;
        match self.phase {
            Phase::Create | Phase::Lookup | Phase::Rename | Phase::Remove => {
                self.issue_named(pipe, number);
            }
            _ => self.issue_by_handle(pipe, number),
        }
    }

    fn issue_named(&mut self, pipe: &mut Pipe, number: u64) {
        let files = self.files.len() as u64;
        let index = if self.phase == Phase::Create { number } else { number % files };
        let (dir, prefix) = (self.dir.as_slice(), self.prefix);
        let (plain, renamed) = (Name::new(prefix, 'f', index), Name::new(prefix, 'r', index));
        let what = DirName { dir, name: plain.as_slice() };
        let other = DirName { dir, name: renamed.as_slice() };
        let request = match self.phase {
            Phase::Create => {
                let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
                Request::Create { what, how: CreateHow::Unchecked(set) }
            }
            Phase::Lookup => Request::Lookup { what },
            // Every other round renames back.
            Phase::Rename if number / files % 2 == 1 => Request::Rename { from: other, to: what },
            Phase::Rename => Request::Rename { from: what, to: other },
            _ => Request::Remove { what: other },
        };
        pipe.submit(index, &request);
    }

    fn issue_by_handle(&mut self, pipe: &mut Pipe, number: u64) {
        let count = self.phase.io_bytes();
        let index = number % self.files.len() as u64;
        let small_blocks = self.blocks * u64::from(LARGE_BYTES / SMALL_BYTES);
        let (handle, block) = match self.phase {
            Phase::GetAttr | Phase::Write4k | Phase::Read4k => (&self.files[index as usize], 0),
            Phase::SeqWrite128k | Phase::SeqRead128k => (&self.big, number % self.blocks),
            _ => (&self.big, self.random.next() % small_blocks),
        };
        let (handle, offset) = (handle.as_slice(), block * u64::from(count));
        let request = match self.phase {
            Phase::GetAttr => Request::GetAttr { handle },
            Phase::Read4k | Phase::SeqRead128k | Phase::RandRead4k => {
                Request::Read { handle, offset, count }
            }
            _ => {
                let data = &self.payload[..count as usize];
                Request::Write { handle, offset, count, stable: FILE_SYNC, data }
            }
        };
        pipe.submit(index, &request);
    }

    /// Counts the reply's error, if it is one, and keeps a created file's handle.
    fn check(&mut self, completion: &Completion<'_>) {
        let problem = match self.phase {
            Phase::GetAttr | Phase::Lookup | Phase::Rename | Phase::Remove => {
                match completion.status_number() {
                    Ok(0) => return,
                    Ok(status) => format!("status {status}"),
                    Err(error) => error.to_string(),
                }
            }
            _ => match completion.decode().map(|decoded| decoded.response) {
                Ok(Response::Create { status: Status::Ok, ok, .. }) => {
                    let slot = self.files.get_mut(completion.token as usize);
                    if let (Some(slot), Some(handle)) = (slot, ok) {
                        *slot = handle;
                    }
                    return;
                }
                Ok(Response::Write { count, .. } | Response::Read { count, .. })
                    if count == self.phase.io_bytes() =>
                {
                    return;
                }
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string(),
            },
        };
        self.errors += 1;
        if self.errors <= ERRORS_TOLD_MAX {
            eprintln!("error in {}: {problem}", self.phase.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_unique_names_and_need_only_earlier_ones() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.name()), Some(phase));
            assert!(phase.needs().iter().all(|needed| *needed < phase));
            for needed in phase.needs() {
                assert!(needed.needs().iter().all(|deeper| phase.needs().contains(deeper)));
            }
        }
        assert_eq!(Phase::from_name("nothing"), None);
    }

    #[test]
    fn names_are_padded_so_that_they_sort() {
        assert_eq!(Name::new("p", 'f', 42).as_slice(), b"p-f0000042");
        assert_eq!(Name::new("p", 'r', 123_456_789).as_slice(), b"p-r123456789");
    }

    #[test]
    fn the_report_has_fixed_columns() {
        let report = PhaseReport {
            name: "seqw128k",
            ops: 2048,
            seconds: 1.5,
            ops_per_second: 1365.3,
            p50_us: 20.4,
            p99_us: 31.6,
            max_us: 1000.0,
            errors: 0,
            mb_per_second: Some(178.9),
            stall_max_us: 0.0,
            reconnects: 0,
        };
        assert_eq!(
            report.to_string(),
            "seqw128k   ops     2048 sec   1.500 ops/s      1365 p50      20 p99       32 \
             max     1000 err 0 MB/s 179"
        );
    }
}
