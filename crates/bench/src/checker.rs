//! Checker: reads back everything a recording left and compares.
//! Owns: the walk over a recording's directories and the verdict.
//! Never: modifies anything.
//! Invariant: an operation in flight at the recording's end may have happened or not; the lane
//! must equal one of the two states in everything.
//! Source: what is promised: no acknowledged operation lost, none done twice, none by half.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use harp_wire::request::{
    Attributes, DirName, FileType, HandleBytes, Listing, Request, Response, Status,
};
use serde::Serialize;

use crate::BenchError;
use crate::client::{Client, Options};
use crate::expected::{Difference, Found};
use crate::journal::{RecordedLane, Recording};
use crate::operation::{FILE_UNITS_MAX, UNIT_BYTES};

/// How many violations are kept; the rest is only counted.
const VIOLATIONS_TOLD_MAX: usize = 100;
const LIST_BYTES: u32 = 64 << 10;
/// How often a listing is continued at most; a lane has a few dozen names.
const LIST_CALLS_MAX: usize = 1000;

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The server.
    pub server: Options,
    /// The export's path.
    pub export: String,
    /// The journal of the recording.
    pub journal: PathBuf,
}

/// The verdict.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Lanes compared.
    pub lanes: u64,
    /// Acknowledged operations that the recording had.
    pub acknowledged: u64,
    /// Names found.
    pub names: u64,
    /// Bytes read back.
    pub bytes: u64,
    /// Operations in flight at the recording's end that took effect.
    pub in_flight_done: u64,
    /// Those that did not.
    pub in_flight_not_done: u64,
    /// Number of violations.
    pub violations: u64,
    /// The first of them.
    pub told: Vec<String>,
}

impl CheckReport {
    fn violation(&mut self, lane: usize, what: &dyn fmt::Display) {
        self.violations += 1;
        if self.told.len() < VIOLATIONS_TOLD_MAX {
            self.told.push(format!("lane {lane}: {what}"));
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "checked {} lanes with {} acknowledged operations: {} names, {} bytes",
            self.lanes, self.acknowledged, self.names, self.bytes
        )?;
        write!(
            f,
            "in flight: {} done, {} not done; {} violations",
            self.in_flight_done, self.in_flight_not_done, self.violations
        )?;
        self.told.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Checks a whole recording. Violations are part of the report; errors are what kept it from
/// being made.
pub fn check(options: &CheckOptions) -> Result<CheckReport, BenchError> {
    let text = std::fs::read_to_string(&options.journal)
        .map_err(|error| BenchError::Io { doing: "reading the journal", error })?;
    let recording = Recording::parse(&text).map_err(BenchError::Journal)?;
    let mut client = Client::connect(options.server.clone())?;
    let root = client.mount(&options.export)?;
    let mut report = CheckReport::default();
    let mut walk = Walk { client: &mut client, bytes: 0 };
    for (index, lane) in recording.lanes.iter().enumerate() {
        report.lanes += 1;
        report.acknowledged += lane.acknowledged;
        if let Some(violation) = &lane.violation {
            // What it should contain is not known, but it was wrong already.
            report.violation(index, &format_args!("while recording: {violation}"));
            continue;
        }
        let id = lane.expected.id();
        let found = walk
            .look_up(root, &id.run_dir())
            .and_then(|run_dir| walk.look_up(run_dir, &id.lane_dir()))
            .and_then(|lane_dir| walk.tree(lane_dir));
        match found {
            Ok(found) => judge(index, lane, &found, &mut report),
            Err(WalkError::Wrong(what)) => report.violation(index, &what),
            Err(WalkError::Failed(error)) => return Err(error),
        }
    }
    report.bytes = walk.bytes;
    Ok(report)
}

/// Compares one lane with the states it may be in.
fn judge(
    index: usize,
    lane: &RecordedLane,
    found: &BTreeMap<String, Found>,
    report: &mut CheckReport,
) {
    report.names += found.len() as u64;
    let not_done = lane.expected.differences(found, |id| lane.handle_of(id));
    let Some((sequence, operation)) = &lane.in_flight else {
        not_done.iter().for_each(|difference| report.violation(index, difference));
        return;
    };
    if not_done.is_empty() {
        report.in_flight_not_done += 1;
        return;
    }
    let mut after = lane.expected.clone();
    after.apply(*sequence, operation);
    let done = after.differences(found, |id| lane.handle_of(id));
    if done.is_empty() {
        report.in_flight_done += 1;
        return;
    }
    let nearer: &[Difference] = if done.len() < not_done.len() { &done } else { &not_done };
    for difference in nearer {
        let what = format!("{difference} (operation {sequence}, {operation}, was in flight)");
        report.violation(index, &what);
    }
}

/// Why a lane could not be read back.
enum WalkError {
    /// The server shows what must not be.
    Wrong(String),
    /// No verdict is possible.
    Failed(BenchError),
}

impl From<crate::client::ClientError> for WalkError {
    fn from(error: crate::client::ClientError) -> WalkError {
        WalkError::Failed(BenchError::Client(error))
    }
}

struct Walk<'c> {
    client: &'c mut Client,
    bytes: u64,
}

/// One entry of a directory.
struct Entry {
    name: String,
    handle: HandleBytes,
    attr: Attributes,
}

impl Walk<'_> {
    fn look_up(&mut self, dir: HandleBytes, name: &str) -> Result<HandleBytes, WalkError> {
        Ok(self.entry(dir, name)?.handle)
    }

    fn entry(&mut self, dir: HandleBytes, name: &str) -> Result<Entry, WalkError> {
        let what = DirName { dir: dir.as_slice(), name: name.as_bytes() };
        match self.client.call(&Request::Lookup { what })?.0 {
            Response::Lookup { status: Status::Ok, ok: Some(handle), attr, .. } => {
                let attr = match attr {
                    Some(attr) => attr,
                    None => self.attributes(handle)?,
                };
                Ok(Entry { name: name.into(), handle, attr })
            }
            other => Err(WalkError::Wrong(format!("looking {name} up: {other:?}"))),
        }
    }

    fn attributes(&mut self, handle: HandleBytes) -> Result<Attributes, WalkError> {
        match self.client.call(&Request::GetAttr { handle: handle.as_slice() })?.0 {
            Response::GetAttr { ok: Some(attr), .. } => Ok(attr),
            other => Err(WalkError::Wrong(format!("attributes of {handle:?}: {other:?}"))),
        }
    }

    /// Everything in a lane's directory and the directories in it, by path.
    fn tree(&mut self, lane_dir: HandleBytes) -> Result<BTreeMap<String, Found>, WalkError> {
        let mut found = BTreeMap::new();
        for entry in self.list(lane_dir)? {
            let object = self.object(&entry)?;
            if let Found::Directory { handle } = object {
                for child in self.list(handle)? {
                    let object = self.object(&child)?;
                    found.insert(format!("{}/{}", entry.name, child.name), object);
                }
            }
            found.insert(entry.name, object);
        }
        Ok(found)
    }

    fn object(&mut self, entry: &Entry) -> Result<Found, WalkError> {
        let handle = entry.handle;
        Ok(match entry.attr.kind {
            FileType::Directory => Found::Directory { handle },
            FileType::Regular => {
                let bytes = self.read(handle, entry.attr.size)?;
                Found::File { handle, nlink: entry.attr.nlink, bytes }
            }
            FileType::Symlink => {
                match self.client.call(&Request::ReadLink { handle: handle.as_slice() })?.0 {
                    Response::ReadLink { status: Status::Ok, target, .. } => {
                        Found::Symlink { handle, target }
                    }
                    other => {
                        let what = format!("reading the link {}: {other:?}", entry.name);
                        return Err(WalkError::Wrong(what));
                    }
                }
            }
            _ => Found::Other,
        })
    }

    /// A directory's entries but "." and "..", each name looked up as well.
    fn list(&mut self, dir: HandleBytes) -> Result<Vec<Entry>, WalkError> {
        let mut names: Vec<String> = Vec::new();
        let (mut cookie, mut verifier) = (0, [0; 8]);
        for _ in 0..LIST_CALLS_MAX {
            let handle = dir.as_slice();
            let (dir_count, max_count) = (LIST_BYTES / 4, LIST_BYTES);
            let list = Request::ReadDirPlus { handle, cookie, verifier, dir_count, max_count };
            let listing = match self.client.call(&list)?.0 {
                Response::ReadDirPlus { status: Status::Ok, listing, .. } => listing,
                other => return Err(WalkError::Wrong(format!("listing: {other:?}"))),
            };
            names.extend(names_in(&listing));
            verifier = listing.verifier;
            match listing.entries.last() {
                Some(last) => cookie = last.cookie,
                None if listing.end => {}
                None => return Err(WalkError::Wrong("a listing that does not go on".into())),
            }
            if listing.end {
                return self.look_up_all(dir, names);
            }
        }
        Err(WalkError::Wrong("a listing without end".into()))
    }

    fn look_up_all(
        &mut self,
        dir: HandleBytes,
        mut names: Vec<String>,
    ) -> Result<Vec<Entry>, WalkError> {
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(WalkError::Wrong(format!("{} is listed twice", twice[0])));
        }
        names.iter().map(|name| self.entry(dir, name)).collect()
    }

    /// A file's bytes, as many as it has; more than any recording writes are not read.
    fn read(&mut self, handle: HandleBytes, size: u64) -> Result<Vec<u8>, WalkError> {
        const FILE_BYTES_MAX: u64 = FILE_UNITS_MAX as u64 * UNIT_BYTES as u64;
        if size > FILE_BYTES_MAX {
            return Err(WalkError::Wrong(format!("a file of {size} bytes")));
        }
        let mut bytes = Vec::new();
        loop {
            let (offset, count) = (bytes.len() as u64, 64 << 10);
            let read = Request::Read { handle: handle.as_slice(), offset, count };
            let (response, data) = self.client.call(&read)?;
            let Response::Read { status: Status::Ok, eof, .. } = response else {
                return Err(WalkError::Wrong(format!("reading {handle:?}: {response:?}")));
            };
            bytes.extend_from_slice(&data);
            if eof {
                self.bytes += bytes.len() as u64;
                return Ok(bytes);
            }
            if data.is_empty() || bytes.len() as u64 > FILE_BYTES_MAX {
                return Err(WalkError::Wrong(format!("reading {handle:?} finds no end")));
            }
        }
    }
}

fn names_in(listing: &Listing) -> impl Iterator<Item = String> {
    let name = |range: &std::ops::Range<usize>| {
        String::from_utf8_lossy(&listing.names[range.clone()]).into_owned()
    };
    listing.entries.iter().map(move |entry| name(&entry.name)).filter(|n| n != "." && n != "..")
}
