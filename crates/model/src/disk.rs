//! What a server keeps: its log, its view file, its image, and which of it is durable yet.
//! Owns: records, a log's tag, a staged log, writes under way.
//! Never: decides anything; the replica does.

use harp_vr::{Configuration, ConfigurationChange, Durable, LogFacts, Op, ServerSet, View};

/// An entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A client's operation: the how-manieth that any primary logged.
    Client(u8),
    /// A change of the configuration.
    Change(ConfigurationChange),
}

/// Records from `begin` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    /// Op of the first record.
    pub begin: u64,
    /// The records.
    pub records: Vec<Record>,
}

impl Log {
    /// An empty log whose next op is `begin`.
    pub fn empty(begin: u64) -> Log {
        Log { begin, records: Vec::new() }
    }

    /// Its last op; `begin - 1` if it is empty.
    pub fn end(&self) -> u64 {
        self.begin + self.records.len() as u64 - 1
    }

    /// The record at `op`.
    pub fn get(&self, op: u64) -> Option<Record> {
        self.records.get(op.checked_sub(self.begin)? as usize).copied()
    }

    /// The records `from..=to`, as far as it has them.
    pub fn range(&self, from: u64, to: u64) -> Box<[Record]> {
        (from..=to).map_while(|op| self.get(op)).collect()
    }

    /// Takes out what lies below `begin`.
    pub fn trim(&mut self, begin: u64) {
        let gone = begin.saturating_sub(self.begin).min(self.records.len() as u64);
        self.records.drain(..gone as usize);
        self.begin += gone;
    }
}

/// A complete log's tag, in its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The view it belongs to.
    pub view: View,
    /// The view's members.
    pub members: ServerSet,
    /// Who counts at the log's end.
    pub configuration: Configuration,
}

/// A tag under way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adopting {
    /// The tag.
    pub tag: Tag,
    /// Whether the staged log becomes the current one with it.
    pub staged: bool,
}

/// One server's disk, and what is on its way there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    /// The current log.
    pub log: Log,
    /// How far it is durable.
    pub durable: u64,
    /// Its tag.
    pub tag: Option<Tag>,
    /// The log that is gathered beside it.
    pub staged: Option<Log>,
    /// What the view file says.
    pub view_file: Durable,
    /// Writes of the view file under way, oldest first, with their numbers.
    pub writes: Vec<(u64, Durable)>,
    /// The tag under way.
    pub adopting: Option<Adopting>,
    /// A copy's image: the records in it, from op 1 on.
    pub image: Option<Vec<Record>>,
    /// Whether the image is whole.
    pub whole: bool,
    /// Whether this server ever lost its log or its disk.
    pub lost: bool,
}

impl Disk {
    /// The log that grows: the staged one while there is one.
    pub fn growing(&mut self) -> &mut Log {
        self.staged.as_mut().unwrap_or(&mut self.log)
    }

    /// The current log by its ends.
    pub fn facts(&self) -> LogFacts {
        LogFacts { begin: Op(self.log.begin), end: Op(self.log.end()), durable: Op(self.durable) }
    }

    /// LB.
    pub fn lb(&self) -> u64 {
        self.image.as_ref().map_or(0, |records| records.len() as u64)
    }

    /// The record at `op`, in the image or in `log`.
    pub fn record(&self, op: u64, log: &Log) -> Option<Record> {
        let image = self.image.as_ref().and_then(|records| records.get(op as usize - 1).copied());
        image.or_else(|| log.get(op))
    }

    /// The tag is on disk; the log under it is durable.
    pub fn carry_out(&mut self, adopting: Adopting) {
        if adopting.staged {
            self.log = self.staged.take().expect("a staged log is adopted");
        }
        self.tag = Some(adopting.tag);
        self.durable = self.log.end();
    }
}
