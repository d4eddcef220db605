//! Journal: what a recording asked for and what was acknowledged, in a local text file.
//! Owns: the file's lines and their meaning after the fact.
//! Never: talks to a server.
//! Invariant: an operation is in the file before it is sent, and its acknowledgement is in the
//! file before the lane goes on. So a lane's last operation alone can be in doubt.
//! Source: lines `> LANE SEQUENCE OPERATION`, `< LANE SEQUENCE HANDLE`, `! LANE SEQUENCE WHY`.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use harp_wire::request::HandleBytes;

use crate::expected::{Expected, ObjectId};
use crate::operation::{LaneId, Operation};

const HEAD: &str = "harp-recording 1";
/// The most lanes a journal may name.
pub const LANES_MAX: u32 = 10_000;

/// A journal being written.
#[derive(Debug)]
pub struct Journal {
    file: File,
    buffer: Vec<u8>,
}

impl Journal {
    /// Begins a new file; fails if there is one, since it may be the only proof of another run.
    pub fn create(path: &Path, run: u64, lanes: u32) -> io::Result<Journal> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let buffer = format!("{HEAD} {run:016x} {lanes}\n").into_bytes();
        Ok(Journal { file, buffer })
    }

    /// Notes that the lane is about to do `operation`.
    pub fn intend(&mut self, lane: u32, sequence: u64, operation: &Operation) {
        self.line(format_args!("> {lane} {sequence} {operation}"));
    }

    /// Notes that the operation had the expected outcome, with the handle of what it made.
    pub fn acknowledge(&mut self, lane: u32, sequence: u64, handle: Option<HandleBytes>) {
        match handle {
            Some(handle) => self.line(format_args!("< {lane} {sequence} {handle:?}")),
            None => self.line(format_args!("< {lane} {sequence}")),
        }
    }

    /// Notes that the lane saw what must not be, and stopped.
    pub fn violate(&mut self, lane: u32, sequence: u64, why: &dyn fmt::Display) {
        self.line(format_args!("! {lane} {sequence} {why}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.buffer, "{line}").expect("a vector takes all");
    }

    /// Hands everything noted to the system, so that it outlives this process.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Why a file is no journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// The first line is not a journal's.
    Head,
    /// A line cannot be read, or does not follow from those before it.
    Line {
        /// Counted from 1.
        number: usize,
    },
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Head => write!(f, "not a recording's journal"),
            JournalError::Line { number } => write!(f, "journal line {number} makes no sense"),
        }
    }
}

impl std::error::Error for JournalError {}

/// One lane after the fact.
#[derive(Debug)]
pub struct RecordedLane {
    /// The state after all acknowledged operations.
    pub expected: Expected,
    /// The operation that may or may not have taken effect.
    pub in_flight: Option<(u64, Operation)>,
    /// What the lane saw that must not be.
    pub violation: Option<String>,
    /// Number of acknowledged operations.
    pub acknowledged: u64,
    handles: HashMap<ObjectId, HandleBytes>,
}

impl RecordedLane {
    /// The handle that an object was made with.
    pub fn handle_of(&self, id: ObjectId) -> Option<HandleBytes> {
        self.handles.get(&id).copied()
    }
}

/// A whole recording after the fact.
#[derive(Debug)]
pub struct Recording {
    /// Its random number.
    pub run: u64,
    /// Its lanes.
    pub lanes: Vec<RecordedLane>,
}

impl Recording {
    /// Understands a journal. A last line without its end was being written when the recorder
    /// died: nothing after it was sent, so it is passed over.
    pub fn parse(text: &str) -> Result<Recording, JournalError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut lines = whole.lines().enumerate();
        let head = lines.next().and_then(|(_, line)| line.strip_prefix(HEAD));
        let (run, count) = head.and_then(parse_head).ok_or(JournalError::Head)?;
        let lane = |lane| RecordedLane {
            expected: Expected::new(LaneId { run, lane }),
            in_flight: None,
            violation: None,
            acknowledged: 0,
            handles: HashMap::new(),
        };
        let mut recording = Recording { run, lanes: (0..count).map(lane).collect() };
        for (at, line) in lines {
            recording.take(line).ok_or(JournalError::Line { number: at + 1 })?;
        }
        Ok(recording)
    }

    /// Lets one line count; `None` when it makes no sense.
    fn take(&mut self, line: &str) -> Option<()> {
        let mut words = line.splitn(4, ' ');
        let kind = words.next()?;
        let lane = self.lanes.get_mut(words.next()?.parse::<usize>().ok()?)?;
        let sequence: u64 = words.next()?.parse().ok()?;
        let rest = words.next();
        match kind {
            ">" if lane.in_flight.is_none() => {
                lane.in_flight = Some((sequence, rest?.parse().ok()?));
            }
            "<" => {
                let (intended, operation) = lane.in_flight.take()?;
                if intended != sequence {
                    return None;
                }
                lane.expected.apply(sequence, &operation);
                lane.acknowledged += 1;
                if let Some(hex) = rest {
                    lane.handles.insert(sequence, parse_handle(hex)?);
                }
            }
            "!" => lane.violation = Some(rest.unwrap_or_default().to_string()),
            _ => return None,
        }
        Some(())
    }
}

fn parse_head(rest: &str) -> Option<(u64, u32)> {
    let (run, lanes) = rest.trim_start().split_once(' ')?;
    let lanes = lanes.parse().ok().filter(|lanes| *lanes <= LANES_MAX)?;
    Some((u64::from_str_radix(run, 16).ok()?, lanes))
}

fn parse_handle(hex: &str) -> Option<HandleBytes> {
    if !hex.len().is_multiple_of(2) || hex.len() > 128 || !hex.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    bytes.map(|bytes| HandleBytes::new(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "harp-recording 1 00000000000000ff 2\n\
        > 0 1 create f\n\
        > 1 1 mkdir d\n\
        < 1 1 0a0b\n\
        < 0 1 c0ffee\n\
        > 0 2 write f 0 1\n\
        > 1 2 rmdir d\n\
        < 1 2\n\
        ! 1 3 something bad\n";

    #[test]
    fn lines_become_states_and_the_last_operation_stays_in_doubt() {
        let recording = Recording::parse(TEXT).unwrap();
        assert_eq!(recording.run, 255);
        let [first, second] = &recording.lanes[..] else { panic!("two lanes") };
        assert_eq!(first.expected.contents("f").unwrap().len_units(), 0);
        let write = Operation::Write { path: "f".into(), at: 0, units: 1 };
        assert_eq!(first.in_flight, Some((2, write)));
        assert_eq!(first.handle_of(1), Some(HandleBytes::new(&[0xc0, 0xff, 0xee])));
        assert_eq!(second.expected.names().count(), 0);
        assert_eq!(second.acknowledged, 2);
        assert_eq!(second.violation.as_deref(), Some("something bad"));
    }

    #[test]
    fn a_torn_last_line_does_not_count() {
        for cut in TEXT.find('\n').unwrap() + 1..TEXT.len() {
            assert!(Recording::parse(&TEXT[..cut]).is_ok(), "{}", &TEXT[..cut]);
        }
        let torn = format!("{TEXT}< 0 2");
        assert!(Recording::parse(&torn).unwrap().lanes[0].in_flight.is_some());
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        assert_eq!(Recording::parse("").unwrap_err(), JournalError::Head);
        assert_eq!(Recording::parse("harp-recording 2 0 1\n").unwrap_err(), JournalError::Head);
        for bad in ["> 2 1 create f", "> 0 3 create g", "< 1 3", "< 0 1", "? 0 1", "> 0", "< 0 2 x"]
        {
            let text = format!("{TEXT}{bad}\n");
            assert_eq!(Recording::parse(&text).unwrap_err(), JournalError::Line { number: 10 });
        }
    }
}
