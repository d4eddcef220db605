//! Arena: a directory with few names and small files, as all operations on it together must leave it.
//! Owns: what each operation does to it, and every byte that is written in it.
//! Never: knows how the operations came about; a history is judged by `linearizable`.
//! Invariant: no two writes of an arena write the same bytes.
//! Source: RFC 1813; of it only what a few names and the contents of their files show.

use std::collections::{BTreeMap, BTreeSet};

use super::linearizable::{self, Interval, Model, NEVER, Refusal};
use crate::random::Random;

/// Names in an arena.
pub const NAMES: usize = 4;
/// Units of the longest file.
pub const UNITS: usize = 8;
/// Arenas whose units are larger: their files are written and read in pieces that servers treat as large.
const LARGE_EVERY: u32 = 8;
const LARGE_UNIT_BYTES: usize = 16 << 10;
/// Not whole blocks, so that writes overlap blocks in part.
const SMALL_UNIT_BYTES: usize = 1536;
/// From here on numbers of files whose creation nobody saw; by operation.
const UNSEEN: FileNo = 1 << 31;

/// A file, numbered as its handle was first seen, from 1.
pub type FileNo = u32;
/// The write that a unit's bytes are of, numbered from 1; 0 is a hole.
pub type Tag = u32;

/// How a file is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One that is there is as good.
    Unchecked,
    /// Not if one is there.
    Guarded,
    /// Not if one is there, unless it was made with the same verifier; no two calls have the same.
    Exclusive,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// CREATE.
    Create { name: usize, how: How },
    /// LOOKUP.
    LookUp { name: usize },
    /// REMOVE.
    Remove { name: usize },
    /// RENAME.
    Rename { from: usize, to: usize },
    /// WRITE.
    Write { file: FileNo, at: usize, units: usize, tag: Tag },
    /// READ.
    Read { file: FileNo, at: usize, units: usize },
    /// SETATTR of the length.
    Truncate { file: FileNo, units: usize },
    /// GETATTR.
    Measure { file: FileNo },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, and nothing else to tell.
    Done,
    /// This file.
    File(FileNo),
    /// NFS3ERR_NOENT.
    NoEntry,
    /// NFS3ERR_EXIST.
    Exists,
    /// NFS3ERR_STALE.
    Stale,
    /// Contents by units, and whether the file ends there.
    Data { tags: Vec<Tag>, end: bool },
    /// A length in units.
    Length(usize),
    /// Refused before anything was done: no space, or the call is to be made later.
    Refused,
    /// What no server may answer.
    Wrong(String),
    /// No answer came.
    Unknown,
}

/// One entry of a history.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What was asked.
    pub action: Action,
    /// What was answered.
    pub outcome: Outcome,
    /// When the call was made, in nanoseconds.
    pub begin: u64,
    /// When the answer came, or [`NEVER`].
    pub end: u64,
    /// Up to when a copy of the call may still arrive at a server. A server keeps no reply of a call that failed
    /// (DESIGN: it leaves no record), so such a copy is a new call.
    pub copy_until: Option<u64>,
    /// Who asked.
    pub lane: usize,
}

/// Whether a call with this outcome changed nothing, though it might in another state.
pub fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NoEntry | Outcome::Exists | Outcome::Refused)
}

/// The bytes of one unit in this arena.
pub fn unit_bytes(arena: u32) -> usize {
    if arena % LARGE_EVERY == LARGE_EVERY - 1 { LARGE_UNIT_BYTES } else { SMALL_UNIT_BYTES }
}

/// What write `tag` writes at unit `unit` of a file.
fn fill(arena: u32, tag: Tag, unit: usize, bytes: &mut [u8]) {
    let mut random = Random(u64::from(arena) << 32 ^ u64::from(tag) << 8 ^ unit as u64);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_be_bytes());
    }
    bytes[..4].copy_from_slice(&arena.to_be_bytes());
    bytes[4..8].copy_from_slice(&tag.to_be_bytes());
    bytes[8..12].copy_from_slice(&(unit as u32).to_be_bytes());
}

/// What write `tag` writes from unit `at` on.
pub fn contents(arena: u32, tag: Tag, at: usize, units: usize) -> Vec<u8> {
    let mut bytes = vec![0; units * unit_bytes(arena)];
    for (unit, bytes) in (at..).zip(bytes.chunks_exact_mut(unit_bytes(arena))) {
        fill(arena, tag, unit, bytes);
    }
    bytes
}

/// Which writes the bytes from unit `at` on are of; an error if of none.
pub fn tags(arena: u32, at: usize, bytes: &[u8]) -> Result<Vec<Tag>, String> {
    let unit_bytes = unit_bytes(arena);
    if !bytes.len().is_multiple_of(unit_bytes) {
        return Err(format!("{} bytes are no whole units", bytes.len()));
    }
    let mut expected = vec![0; unit_bytes];
    let tag = |(unit, bytes): (usize, &[u8])| {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let tag = u32::from_be_bytes(*bytes[4..].first_chunk().expect("a unit is longer"));
        fill(arena, tag, unit, &mut expected);
        if expected == bytes && tag > 0 {
            return Ok(tag);
        }
        let wrong = expected.iter().zip(bytes).filter(|(want, is)| want != is).count();
        Err(format!(
            "unit {unit} begins {:02x?}, {wrong} bytes are not of write {tag}",
            &bytes[..12]
        ))
    };
    (at..).zip(bytes.chunks_exact(unit_bytes)).map(tag).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct File {
    units: usize,
    tags: [Tag; UNITS],
}

/// What an arena holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contents {
    /// The file of each name, or 0.
    names: [FileNo; NAMES],
    /// Every file that has a name.
    files: BTreeMap<FileNo, File>,
}

impl Contents {
    fn make(&mut self, name: usize, file: FileNo) -> bool {
        if self.names[name] != 0 || self.files.contains_key(&file) {
            return false;
        }
        self.names[name] = file;
        self.files.insert(file, File::default());
        true
    }

    /// A file whose creation nobody saw gets the number under which it was found.
    fn recognise(&mut self, name: usize, file: FileNo) {
        let known = self.names[name];
        if known >= UNSEEN && !self.files.contains_key(&file) {
            let unseen = self.files.remove(&known).expect("what has a name is there");
            self.files.insert(file, unseen);
            self.names[name] = file;
        }
    }

    fn remove(&mut self, name: usize) -> bool {
        let file = std::mem::take(&mut self.names[name]);
        self.files.remove(&file).is_some()
    }

    fn rename(&mut self, from: usize, to: usize) -> bool {
        if self.names[from] == 0 {
            return false;
        }
        if from != to {
            self.remove(to);
            self.names[to] = std::mem::take(&mut self.names[from]);
        }
        true
    }

    fn write(&mut self, file: FileNo, at: usize, units: usize, tag: Tag) -> bool {
        let Some(file) = self.files.get_mut(&file) else { return false };
        file.tags[at..at + units].fill(tag);
        file.units = file.units.max(at + units);
        true
    }

    fn truncate(&mut self, file: FileNo, units: usize) -> bool {
        let Some(file) = self.files.get_mut(&file) else { return false };
        file.units = units;
        file.tags[units..].fill(0);
        true
    }

    /// Does it as a call that succeeds; false if it cannot.
    fn perform(&mut self, action: Action, unseen: FileNo) -> bool {
        match action {
            Action::Create { name, .. } => self.make(name, unseen),
            Action::Remove { name } => self.remove(name),
            Action::Rename { from, to } => self.rename(from, to),
            Action::Write { file, at, units, tag } => self.write(file, at, units, tag),
            Action::Truncate { file, units } => self.truncate(file, units),
            Action::LookUp { .. } | Action::Read { .. } | Action::Measure { .. } => true,
        }
    }

    /// Whether the outcome is right here; if so, what it leaves.
    fn answer(&mut self, action: Action, outcome: &Outcome) -> bool {
        match (action, outcome) {
            (_, Outcome::Refused) => true,
            (Action::Create { name, how }, Outcome::File(file)) => {
                if how == How::Unchecked && self.names[name] != 0 {
                    self.recognise(name, *file);
                    return self.names[name] == *file;
                }
                self.make(name, *file)
            }
            (Action::Create { name, how }, Outcome::Exists) => {
                how != How::Unchecked && self.names[name] != 0
            }
            (Action::LookUp { name }, Outcome::File(file)) => {
                self.recognise(name, *file);
                self.names[name] == *file
            }
            (
                Action::LookUp { name }
                | Action::Remove { name }
                | Action::Rename { from: name, .. },
                Outcome::NoEntry,
            ) => self.names[name] == 0,
            (Action::Remove { .. } | Action::Rename { .. }, Outcome::Done)
            | (Action::Write { .. } | Action::Truncate { .. }, Outcome::Done) => {
                self.perform(action, 0)
            }
            (Action::Read { file, at, units }, Outcome::Data { tags, end }) => {
                let Some(file) = self.files.get(&file) else { return false };
                let until = file.units.min(at + units);
                file.tags[at.min(until)..until] == tags[..] && *end == (at + units >= file.units)
            }
            (Action::Measure { file }, Outcome::Length(units)) => {
                self.files.get(&file).is_some_and(|file| file.units == *units)
            }
            (
                Action::Write { file, .. }
                | Action::Read { file, .. }
                | Action::Truncate { file, .. }
                | Action::Measure { file },
                Outcome::Stale,
            ) => !self.files.contains_key(&file),
            _ => false,
        }
    }
}

/// An operation of a history as the search sees it.
#[derive(Clone, Debug)]
pub enum Happening {
    /// It was answered so.
    Answered(Action, Outcome),
    /// It may have been done, and nobody saw the answer; the number is for the file it may have made.
    Silent(Action, FileNo),
}

/// Arenas, for the search.
#[derive(Debug)]
pub struct Arenas;

impl Model for Arenas {
    type State = Contents;
    type Operation = Happening;

    fn step(state: &Contents, operation: &Happening) -> Option<Contents> {
        let mut state = state.clone();
        let possible = match operation {
            Happening::Answered(action, outcome) => state.answer(*action, outcome),
            Happening::Silent(action, unseen) => state.perform(*action, *unseen),
        };
        possible.then_some(state)
    }
}

/// Judges a whole history of an arena, from empty on. The error says what is wrong, with the entries around it.
pub fn judge(history: &[Entry]) -> Result<(), String> {
    if let Some(wrong) = history.iter().find(|entry| matches!(entry.outcome, Outcome::Wrong(_))) {
        return Err(told(history, wrong.end, "an answer that no server may give"));
    }
    let mut made = BTreeSet::new();
    for entry in history {
        if let (Action::Create { how: How::Guarded | How::Exclusive, .. }, Outcome::File(file)) =
            (entry.action, &entry.outcome)
            && !made.insert(*file)
        {
            return Err(told(history, entry.end, "one file was made twice"));
        }
    }
    let (mut intervals, mut ends) = (Vec::new(), Vec::new());
    for (index, entry) in history.iter().enumerate() {
        let unseen = UNSEEN + index as FileNo;
        let Entry { action, outcome, begin, end, copy_until, .. } = entry.clone();
        if outcome == Outcome::Unknown {
            let operation = Happening::Silent(action, unseen);
            intervals.push(Interval { operation, begin, end: NEVER, must: false, after: None });
            ends.push(end);
            continue;
        }
        let operation = Happening::Answered(action, outcome);
        let after = Some(intervals.len());
        intervals.push(Interval { operation, begin, end, must: true, after: None });
        ends.push(end);
        if let Some(until) = copy_until {
            let operation = Happening::Silent(action, unseen);
            intervals.push(Interval { operation, begin, end: until, must: false, after });
            ends.push(end);
        }
    }
    linearizable::check::<Arenas>(Contents::default(), &intervals).map_err(|refusal| {
        let (Refusal::Impossible(at) | Refusal::Undecided(at)) = refusal;
        told(history, ends[at], &refusal.to_string())
    })
}

/// Entries shown before the one at which it shows.
const TOLD_BEFORE: usize = 30;

/// The last entries up to the time `until`, and those under way then, below what is wrong.
fn told(history: &[Entry], until: u64, what: &str) -> String {
    let mut shown: Vec<&Entry> = history.iter().filter(|entry| entry.begin <= until).collect();
    shown.sort_by_key(|entry| entry.end);
    let from = shown.iter().position(|entry| entry.end >= until).unwrap_or(0);
    let lines = shown[from.saturating_sub(TOLD_BEFORE)..].iter().map(|entry| {
        let mark = if entry.end == until { "=>" } else { "  " };
        format!("\n      {mark} {}", line(entry))
    });
    format!("{what}{}", lines.collect::<String>())
}

/// One entry in one line; times in microseconds.
pub fn line(entry: &Entry) -> String {
    let Entry { action, outcome, begin, end, copy_until, lane } = entry;
    let copied = if copy_until.is_some() { ", sent again" } else { "" };
    let end = if *end == NEVER { "never".into() } else { (end / 1000).to_string() };
    format!("{:>12} to {end:>12} lane {lane}: {action:?} -> {outcome:?}{copied}", begin / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(begin: u64, end: u64, action: Action, outcome: Outcome) -> Entry {
        Entry { action, outcome, begin, end, copy_until: None, lane: 0 }
    }

    /// One after the other.
    fn sequence(entries: &[(Action, Outcome)]) -> Vec<Entry> {
        let entries = (0..).zip(entries);
        entries
            .map(|(at, (action, outcome))| entry(at * 10, at * 10 + 5, *action, outcome.clone()))
            .collect()
    }

    fn make(name: usize, file: FileNo) -> (Action, Outcome) {
        (Action::Create { name, how: How::Guarded }, Outcome::File(file))
    }

    fn write(at: usize, units: usize, tag: Tag) -> (Action, Outcome) {
        (Action::Write { file: 1, at, units, tag }, Outcome::Done)
    }

    fn read(tags: &[Tag], end: bool) -> (Action, Outcome) {
        (Action::Read { file: 1, at: 0, units: UNITS }, Outcome::Data { tags: tags.into(), end })
    }

    #[test]
    fn bytes_say_which_write_they_are_of() {
        for arena in [3, LARGE_EVERY - 1] {
            let mut bytes = contents(arena, 9, 2, 3);
            assert_eq!(tags(arena, 2, &bytes), Ok(vec![9; 3]));
            assert!(tags(arena, 1, &bytes).is_err());
            assert!(tags(arena + LARGE_EVERY, 2, &bytes).is_err());
            bytes[..unit_bytes(arena)].fill(0);
            assert_eq!(tags(arena, 2, &bytes), Ok(vec![0, 9, 9]));
            *bytes.last_mut().unwrap() ^= 1;
            assert!(tags(arena, 2, &bytes).is_err());
            assert!(tags(arena, 2, &bytes[1..]).is_err());
        }
    }

    #[test]
    fn what_a_file_system_does_is_accepted() {
        use Action::*;
        let rename = |from, to| (Rename { from, to }, Outcome::Done);
        judge(&sequence(&[
            (LookUp { name: 0 }, Outcome::NoEntry),
            make(0, 1),
            (Create { name: 0, how: How::Exclusive }, Outcome::Exists),
            (Create { name: 0, how: How::Unchecked }, Outcome::File(1)),
            write(2, 2, 1),
            read(&[0, 0, 1, 1], true),
            (Read { file: 1, at: 0, units: 3 }, Outcome::Data { tags: vec![0, 0, 1], end: false }),
            (Read { file: 1, at: 6, units: 1 }, Outcome::Data { tags: vec![], end: true }),
            write(3, 1, 2),
            (Truncate { file: 1, units: 3 }, Outcome::Done),
            (Truncate { file: 1, units: 5 }, Outcome::Done),
            read(&[0, 0, 1, 0, 0], true),
            (Measure { file: 1 }, Outcome::Length(5)),
            rename(0, 1),
            rename(1, 1),
            make(0, 2),
            rename(0, 1),
            (LookUp { name: 1 }, Outcome::File(2)),
            (Measure { file: 1 }, Outcome::Stale),
            (Remove { name: 1 }, Outcome::Done),
            (Remove { name: 1 }, Outcome::NoEntry),
            (Rename { from: 1, to: 0 }, Outcome::NoEntry),
            (Write { file: 2, at: 0, units: 1, tag: 9 }, Outcome::Refused),
        ]))
        .unwrap();
    }

    #[test]
    fn histories_that_lose_repeat_or_mix_are_rejected() {
        use Action::*;
        let look = |name, outcome| (LookUp { name }, outcome);
        let wrong: &[&[(Action, Outcome)]] = &[
            // An acknowledged file is gone; one that was removed is back; so is a handle.
            &[make(0, 1), look(0, Outcome::NoEntry)],
            &[make(0, 1), (Remove { name: 0 }, Outcome::Done), look(0, Outcome::File(1))],
            &[make(0, 1), (Remove { name: 0 }, Outcome::Done), make(0, 1)],
            &[
                make(0, 1),
                (Remove { name: 0 }, Outcome::Done),
                (Measure { file: 1 }, Outcome::Length(0)),
            ],
            &[make(0, 1), (Measure { file: 1 }, Outcome::Stale)],
            // Done twice.
            &[make(0, 1), (Remove { name: 0 }, Outcome::Done), (Remove { name: 0 }, Outcome::Done)],
            &[make(0, 1), (Remove { name: 0 }, Outcome::NoEntry)],
            &[make(0, 1), make(0, 2)],
            &[make(0, 1), (Create { name: 1, how: How::Guarded }, Outcome::Exists)],
            &[make(0, 1), (Create { name: 0, how: How::Unchecked }, Outcome::File(2))],
            // A lost write, an old one, half of one, one cut off at a wrong place.
            &[make(0, 1), write(0, 2, 1), read(&[], true)],
            &[make(0, 1), write(0, 2, 1), write(0, 2, 2), read(&[1, 1], true)],
            &[make(0, 1), write(0, 2, 1), write(0, 2, 2), read(&[2, 1], true)],
            &[make(0, 1), write(0, 2, 1), read(&[1, 1], false)],
            &[make(0, 1), write(0, 2, 1), (Measure { file: 1 }, Outcome::Length(1))],
            &[
                make(0, 1),
                write(0, 2, 1),
                (Truncate { file: 1, units: 1 }, Outcome::Done),
                read(&[1, 1], true),
            ],
            // A rename by half.
            &[make(0, 1), (Rename { from: 0, to: 1 }, Outcome::Done), look(0, Outcome::File(1))],
            &[make(0, 1), (Rename { from: 0, to: 1 }, Outcome::Done), look(1, Outcome::NoEntry)],
            &[make(0, 1), (Rename { from: 0, to: 1 }, Outcome::NoEntry)],
            &[make(0, 1), (Remove { name: 0 }, Outcome::Wrong("Io".into()))],
            &[make(0, 1), (Remove { name: 0 }, Outcome::Exists)],
        ];
        for entries in wrong {
            let why = judge(&sequence(entries)).expect_err(&format!("{entries:?}"));
            assert!(why.contains("=>"), "{why}");
        }
    }

    #[test]
    fn two_at_once_are_in_some_order_for_everybody() {
        let (create, remove) = (make(0, 1), (Action::Remove { name: 0 }, Outcome::Done));
        let look = |begin, outcome| entry(begin, begin + 1, Action::LookUp { name: 0 }, outcome);
        let base = [entry(0, 1, create.0, create.1), entry(10, 20, remove.0, remove.1)];
        let seen = |first: Outcome, second: Outcome| {
            judge(&[&base[..], &[look(12, first), look(14, second)]].concat())
        };
        seen(Outcome::File(1), Outcome::NoEntry).unwrap();
        seen(Outcome::NoEntry, Outcome::NoEntry).unwrap();
        seen(Outcome::NoEntry, Outcome::File(1)).unwrap_err();
    }

    #[test]
    fn a_copy_of_a_failed_call_may_come_late_and_one_of_a_done_call_may_not() {
        use Action::*;
        let gone = (Remove { name: 0 }, Outcome::NoEntry);
        let mut history = sequence(&[gone, make(0, 1), (LookUp { name: 0 }, Outcome::NoEntry)]);
        judge(&history).unwrap_err();
        history[0].copy_until = Some(25);
        judge(&history).unwrap();
        history[0].copy_until = Some(9);
        judge(&history).unwrap_err();
        // A file that such a copy made is known from when it was found.
        let there = (Create { name: 0, how: How::Guarded }, Outcome::Exists);
        let removed = (Remove { name: 0 }, Outcome::Done);
        let found = (LookUp { name: 0 }, Outcome::File(2));
        let measured = (Measure { file: 2 }, Outcome::Length(0));
        let mut history = sequence(&[make(0, 1), there, removed, found.clone(), measured, found]);
        judge(&history).unwrap_err();
        history[1].copy_until = Some(1000);
        judge(&history).unwrap();
        history[4].outcome = Outcome::Length(1);
        judge(&history).unwrap_err();
    }

    #[test]
    fn what_was_never_answered_may_have_been_done() {
        let (create, _) = make(0, 1);
        let found = entry(30, 31, Action::LookUp { name: 0 }, Outcome::File(7));
        let unknown = entry(0, NEVER, create, Outcome::Unknown);
        judge(&[unknown.clone(), found.clone()]).unwrap();
        let early = entry(1, 2, Action::LookUp { name: 0 }, Outcome::NoEntry);
        judge(&[unknown, early, found.clone()]).unwrap();
        judge(&[found]).unwrap_err();
    }

    /// What is wrong with a server.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Planted {
        Nothing,
        LosesWrites,
        TearsWrites,
        ReadsOld,
        RunsTwice,
        ForgetsRemoves,
    }

    /// A small file system of its own, which knows nothing of the model.
    #[derive(Clone, Default)]
    struct Toy {
        names: BTreeMap<usize, FileNo>,
        files: BTreeMap<FileNo, Vec<Tag>>,
        made: FileNo,
    }

    impl Toy {
        fn serve(&mut self, action: Action) -> Outcome {
            match action {
                Action::Create { name, how } => match self.names.get(&name) {
                    Some(file) if how == How::Unchecked => Outcome::File(*file),
                    Some(_) => Outcome::Exists,
                    None => {
                        self.made += 1;
                        self.names.insert(name, self.made);
                        self.files.insert(self.made, Vec::new());
                        Outcome::File(self.made)
                    }
                },
                Action::LookUp { name } => {
                    self.names.get(&name).map_or(Outcome::NoEntry, |file| Outcome::File(*file))
                }
                Action::Remove { name } => match self.names.remove(&name) {
                    Some(file) => {
                        self.files.remove(&file);
                        Outcome::Done
                    }
                    None => Outcome::NoEntry,
                },
                Action::Rename { from, to } => match self.names.get(&from).copied() {
                    None => Outcome::NoEntry,
                    Some(_) if from == to => Outcome::Done,
                    Some(file) => {
                        self.serve(Action::Remove { name: to });
                        self.names.remove(&from);
                        self.names.insert(to, file);
                        Outcome::Done
                    }
                },
                Action::Write { file, at, units, tag } => self.with(file, |data| {
                    data.resize(data.len().max(at + units), 0);
                    data[at..at + units].fill(tag);
                    Outcome::Done
                }),
                Action::Truncate { file, units } => self.with(file, |data| {
                    data.resize(units, 0);
                    Outcome::Done
                }),
                Action::Measure { file } => self.with(file, |data| Outcome::Length(data.len())),
                Action::Read { file, at, units } => self.with(file, |data| {
                    let until = data.len().min(at + units);
                    let tags = data.get(at..until).unwrap_or_default().to_vec();
                    Outcome::Data { tags, end: at + units >= data.len() }
                }),
            }
        }

        fn with(&mut self, file: FileNo, work: impl FnOnce(&mut Vec<Tag>) -> Outcome) -> Outcome {
            self.files.get_mut(&file).map_or(Outcome::Stale, work)
        }
    }

    fn any_action(random: &mut Random, made: FileNo, tag: Tag) -> Action {
        let name = random.below(NAMES as u64) as usize;
        let file = made.saturating_sub(random.below(3) as FileNo).max(1);
        let at = random.below(UNITS as u64) as usize;
        let units = 1 + random.below((UNITS - at) as u64) as usize;
        match random.below(10) {
            0 => Action::Create { name, how: *random.of(&[How::Unchecked, How::Guarded]) },
            1 | 2 => Action::LookUp { name },
            3 if random.percent(40) => Action::Remove { name },
            3 => Action::Rename { from: name, to: random.below(NAMES as u64) as usize },
            4..=6 => Action::Write { file, at, units, tag },
            7 => Action::Truncate { file, units: at },
            _ => Action::Read { file, at: 0, units: UNITS },
        }
    }

    /// What lanes see that work at once on a server, which serves one call at a time, at a moment between begin and
    /// end; unless something is wrong with it.
    fn play(seed: u64, planted: Planted) -> Vec<Entry> {
        const LANES: usize = 4;
        const OPERATIONS: u32 = 1500;
        let mut random = Random(seed);
        let (mut toy, mut old, mut again) = (Toy::default(), Toy::default(), None);
        let mut free_at = [0; LANES];
        let mut history = Vec::new();
        let mut moment = 0;
        for tag in 1..=OPERATIONS {
            let lane = random.below(LANES as u64) as usize;
            moment = free_at[lane].max(moment) + 1 + random.below(20);
            let begin = moment - random.below(moment - free_at[lane]);
            let end = moment + random.below(60);
            free_at[lane] = end + 1;
            let action = any_action(&mut random, toy.made, tag);
            let wrong = random.percent(3);
            let outcome = match (planted, action) {
                (Planted::LosesWrites, Action::Write { .. }) if wrong => toy.clone().serve(action),
                (Planted::TearsWrites, Action::Write { file, at, units, tag }) if wrong => {
                    toy.serve(Action::Write { file, at, units: units.div_ceil(2), tag })
                }
                (Planted::ReadsOld, Action::Read { .. }) if wrong => old.serve(action),
                (Planted::ForgetsRemoves, Action::Remove { .. }) => toy.clone().serve(action),
                _ => toy.serve(action),
            };
            if let Some(action) = again.take() {
                toy.serve(action);
            }
            let changes = matches!(action, Action::Remove { .. } | Action::Rename { .. });
            if planted == Planted::RunsTwice && changes && outcome == Outcome::Done {
                again = Some(action);
            }
            if tag % 40 == 0 {
                old = toy.clone();
            }
            history.push(Entry { action, outcome, begin, end, copy_until: None, lane });
        }
        history
    }

    #[test]
    fn a_faithful_server_passes_and_each_planted_fault_is_found() {
        const SEEDS: u64 = 20;
        let found = |planted| {
            let bad = (0..SEEDS).filter(|seed| judge(&play(*seed, planted)).is_err());
            bad.count() as u64
        };
        assert_eq!(found(Planted::Nothing), 0);
        for planted in [
            Planted::LosesWrites,
            Planted::TearsWrites,
            Planted::ReadsOld,
            Planted::RunsTwice,
            Planted::ForgetsRemoves,
        ] {
            // A lost write that nobody looked at in time is missed by nobody.
            let found = found(planted);
            assert!(found >= SEEDS * 3 / 4, "{planted:?}: in {found} of {SEEDS}");
        }
    }
}
