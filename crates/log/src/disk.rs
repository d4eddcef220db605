//! What the log asks of a disk: positioned writes, a sync, two small double-slot files.
//! Owns: the commands, and how each is carried out over a [`LogDisk`].
//! Never: opens a file; the program and the simulator bring the disk.
//! Invariant: commands of one server are carried out one after the other, in the order given.

use crate::ring::{LogPos, Ring};

/// Bytes of a slot of the head file and of the view file.
pub const SLOT_BYTES: usize = 4096;

/// A small file of two slots, written in turn so that a torn write leaves the other slot whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotFile {
    /// The log's head: where it begins, its generation and its tag.
    LogHead,
    /// The view file: promised and formed view, disk id and incarnation.
    View,
}

/// Why a disk did not do as told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// What was tried, with the file's name where there is one.
    pub what: String,
    /// The operating system's error number, if it gave one.
    pub os_code: Option<i32>,
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.os_code {
            Some(code) => write!(f, "{}: {}", self.what, std::io::Error::from_raw_os_error(code)),
            None => write!(f, "{}", self.what),
        }
    }
}

impl std::error::Error for DiskError {}

/// The disk below one server's log. Positions are endless. Position `at` lies in segment
/// `at / segment_bytes`; one that no head on the disk covers any more may be used again for another. A segment
/// holds zeros or an earlier segment's bytes before it is written.
pub trait LogDisk {
    /// Reads `into.len()` bytes at `at`. Never-written bytes read as zeros.
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError>;
    /// Makes sure that the segment of `at` can be written. A failure means no harm: nothing was written.
    fn prepare(&mut self, at: LogPos) -> Result<(), DiskError>;
    /// Writes `bytes` at `at`, which was prepared; they lie within one segment and are aligned to 4,096 bytes.
    fn write(&mut self, at: LogPos, bytes: &[u8]) -> Result<(), DiskError>;
    /// Makes all earlier [`LogDisk::write`]s durable.
    fn sync(&mut self) -> Result<(), DiskError>;
    /// Names a segment of the log that begins at `begin` that was in use and is gone, if there is one. It reads
    /// as zeros like one that was never written, so only the disk can tell. The loss counts until a new head
    /// is in both slots.
    fn lost_segment(&mut self, begin: LogPos) -> Result<Option<String>, DiskError>;
    /// Reads one slot; a file that does not exist is `None` (it is never an empty one).
    fn read_slot(&mut self, file: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError>;
    /// Writes one slot and makes it durable before it returns.
    fn write_slot(&mut self, file: SlotFile, slot: usize, bytes: &[u8]) -> Result<(), DiskError>;
}

/// One thing for the log thread to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCommand {
    /// Write the ring's bytes `[at, at + bytes)`, then sync if told.
    Write {
        /// Where, in the ring and on disk alike.
        at: LogPos,
        /// How many bytes; a multiple of 4,096, within one segment.
        bytes: u32,
        /// Whether a sync follows.
        sync: bool,
    },
    /// Write one slot of a small file durably.
    Slot {
        /// Which file.
        file: SlotFile,
        /// Number of the write, counting up; the slot is `sequence % 2`.
        sequence: u64,
        /// The slot's bytes, at most [`SLOT_BYTES`].
        bytes: Vec<u8>,
    },
    /// Read bytes that memory no longer holds.
    Read {
        /// Comes back with the answer.
        token: u64,
        /// Where from.
        at: LogPos,
        /// How many bytes.
        bytes: u32,
    },
}

/// What became of a [`DiskCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskDone {
    /// A `Write` whose bytes end at `upto`; durable if it was synced.
    Written {
        /// End of the write.
        upto: LogPos,
        /// Whether everything up to there is durable now.
        synced: bool,
    },
    /// A `Slot` is durable.
    Slot {
        /// Which file.
        file: SlotFile,
        /// The command's sequence number.
        sequence: u64,
    },
    /// The bytes of a `Read`.
    Read {
        /// The command's token.
        token: u64,
        /// Where they were read from.
        at: LogPos,
        /// What was read.
        bytes: Vec<u8>,
    },
    /// There is no room for a `Write`. It was not begun, and no later command of the log will be.
    Unprepared {
        /// The disk's words.
        error: DiskError,
    },
    /// The command failed. For `Write` and `Slot` this is a crash (rule 8): it is never retried.
    Failed {
        /// `None`: the log; else the small file.
        file: Option<SlotFile>,
        /// Whether it was only a read.
        read: bool,
        /// The disk's words.
        error: DiskError,
    },
}

impl DiskCommand {
    /// Carries the command out. Called on the log thread, or by the simulated disk.
    pub fn run(self, disk: &mut dyn LogDisk, ring: &Ring) -> DiskDone {
        match self {
            DiskCommand::Write { at, bytes, sync } => {
                if let Err(error) = disk.prepare(at) {
                    return DiskDone::Unprepared { error };
                }
                let wrote = disk.write(at, ring.bytes(at, bytes));
                match wrote.and_then(|()| if sync { disk.sync() } else { Ok(()) }) {
                    Ok(()) => DiskDone::Written { upto: at.plus(bytes as u64), synced: sync },
                    Err(error) => DiskDone::Failed { file: None, read: false, error },
                }
            }
            DiskCommand::Slot { file, sequence, bytes } => {
                match disk.write_slot(file, (sequence % 2) as usize, &bytes) {
                    Ok(()) => DiskDone::Slot { file, sequence },
                    Err(error) => DiskDone::Failed { file: Some(file), read: false, error },
                }
            }
            DiskCommand::Read { token, at, bytes } => {
                let mut into = vec![0; bytes as usize];
                match disk.read(at, &mut into) {
                    Ok(()) => DiskDone::Read { token, at, bytes: into },
                    Err(error) => DiskDone::Failed { file: None, read: true, error },
                }
            }
        }
    }
}

/// Why no command of the log is carried out any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// A write or sync failed.
    Failed,
    /// There was no room for a write.
    NoRoom,
}

/// Carries out one server's commands, and none for the log after one of them was not done: what was ordered
/// behind it relies on it (rule 8). The view file is still written, to say so.
#[derive(Debug, Default)]
pub struct DiskRunner {
    ended: Option<Ended>,
}

impl DiskRunner {
    /// Whether `command` would not even be tried.
    pub fn refuses(&self, command: &DiskCommand) -> bool {
        let of_log = match command {
            DiskCommand::Write { .. } => true,
            DiskCommand::Slot { file, .. } => *file == SlotFile::LogHead,
            DiskCommand::Read { .. } => false,
        };
        of_log && self.ended.is_some()
    }

    /// Carries `command` out, or refuses it.
    pub fn run(&mut self, command: DiskCommand, disk: &mut dyn LogDisk, ring: &Ring) -> DiskDone {
        if self.refuses(&command) {
            let what = "not tried, since an earlier command of the log was not done".into();
            let error = DiskError { what, os_code: None };
            return match self.ended {
                Some(Ended::NoRoom) => DiskDone::Unprepared { error },
                _ => DiskDone::Failed { file: None, read: false, error },
            };
        }
        let done = command.run(disk, ring);
        self.ended = match &done {
            DiskDone::Unprepared { .. } => Some(Ended::NoRoom),
            DiskDone::Failed { file: Some(SlotFile::View), .. } => self.ended,
            DiskDone::Failed { read: false, .. } => Some(Ended::Failed),
            _ => self.ended,
        };
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails its first sync and works from then on, as disks do.
    #[derive(Default)]
    struct FailsOnce {
        syncs: u32,
        heads: u32,
        views: u32,
    }

    impl LogDisk for FailsOnce {
        fn read(&mut self, _: LogPos, _: &mut [u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
            Ok(())
        }
        fn write(&mut self, _: LogPos, _: &[u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn sync(&mut self) -> Result<(), DiskError> {
            self.syncs += 1;
            let failed = DiskError { what: "sync".into(), os_code: Some(5) };
            if self.syncs == 1 { Err(failed) } else { Ok(()) }
        }
        fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
            Ok(None)
        }
        fn read_slot(&mut self, _: SlotFile, _: usize) -> Result<Option<Vec<u8>>, DiskError> {
            Ok(None)
        }
        fn write_slot(&mut self, file: SlotFile, _: usize, _: &[u8]) -> Result<(), DiskError> {
            match file {
                SlotFile::LogHead => self.heads += 1,
                SlotFile::View => self.views += 1,
            }
            Ok(())
        }
    }

    #[test]
    fn nothing_of_the_log_is_written_behind_a_failed_sync() {
        let (mut disk, ring) = (FailsOnce::default(), Ring::on_heap(8192));
        let mut runner = DiskRunner::default();
        let write = DiskCommand::Write { at: LogPos(0), bytes: 4096, sync: true };
        let slot = |file| DiskCommand::Slot { file, sequence: 1, bytes: vec![1] };
        let failed = |done: DiskDone| matches!(done, DiskDone::Failed { .. });
        assert!(failed(runner.run(write.clone(), &mut disk, &ring)));
        assert!(failed(runner.run(write, &mut disk, &ring)));
        assert!(failed(runner.run(slot(SlotFile::LogHead), &mut disk, &ring)));
        assert!(!failed(runner.run(slot(SlotFile::View), &mut disk, &ring)));
        assert_eq!((disk.syncs, disk.heads, disk.views), (1, 0, 1));
    }

    /// Has no room.
    struct Full;

    impl LogDisk for Full {
        fn read(&mut self, _: LogPos, _: &mut [u8]) -> Result<(), DiskError> {
            Ok(())
        }
        fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
            Err(DiskError { what: "make room".into(), os_code: Some(28) })
        }
        fn write(&mut self, _: LogPos, _: &[u8]) -> Result<(), DiskError> {
            panic!("a write without room")
        }
        fn sync(&mut self) -> Result<(), DiskError> {
            panic!("a sync of nothing")
        }
        fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
            Ok(None)
        }
        fn read_slot(&mut self, _: SlotFile, _: usize) -> Result<Option<Vec<u8>>, DiskError> {
            Ok(None)
        }
        fn write_slot(&mut self, file: SlotFile, _: usize, _: &[u8]) -> Result<(), DiskError> {
            assert_eq!(file, SlotFile::View, "a head may say what was not written");
            Ok(())
        }
    }

    #[test]
    fn nothing_of_the_log_is_written_once_there_was_no_room_and_nothing_has_failed() {
        let (mut disk, ring) = (Full, Ring::on_heap(8192));
        let mut runner = DiskRunner::default();
        let write = DiskCommand::Write { at: LogPos(0), bytes: 4096, sync: true };
        let slot = |file| DiskCommand::Slot { file, sequence: 1, bytes: vec![1] };
        let unprepared = |done: DiskDone| matches!(done, DiskDone::Unprepared { .. });
        assert!(unprepared(runner.run(write.clone(), &mut disk, &ring)));
        assert!(unprepared(runner.run(slot(SlotFile::LogHead), &mut disk, &ring)));
        assert!(unprepared(runner.run(write, &mut disk, &ring)));
        let done = runner.run(slot(SlotFile::View), &mut disk, &ring);
        assert!(matches!(done, DiskDone::Slot { .. }));
    }
}
