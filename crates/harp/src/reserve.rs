//! Reserve: disk space that a server keeps so that what must go on can, when the file system is full.
//! Owns: the files `reserve/part-NN` of one server's directory, allocated and never written.
//! Never: takes the last of a file system's space; gives up a part while there is room without it.
//! Invariant: a part that is counted is allocated whole.
//! Source: docs/notes/room.md; rule 13.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use harp_engine::MakeRoom;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::segments::sync_dir;

/// The directory below a server's own.
pub const RESERVE_DIR: &str = "reserve";
const PREFIX: &str = "part-";
/// Parts are made only where as much as so many of them stays free.
const CLEARANCE_PARTS: u64 = 4;
/// How long a log that found no room waits before it looks again.
const WAIT: Duration = Duration::from_millis(100);

/// The reserve of one server.
#[derive(Debug)]
pub struct Reserve {
    dir: PathBuf,
    part_bytes: u64,
    parts: u64,
    held: Mutex<BTreeSet<u64>>,
    stopping: AtomicBool,
}

impl Reserve {
    /// The reserve below `dir`: at most `parts` parts of `part_bytes`. Those that are there count; [`Reserve::fill`]
    /// makes more.
    pub fn open(dir: &Path, part_bytes: u64, parts: u64) -> io::Result<Reserve> {
        let dir = dir.join(RESERVE_DIR);
        std::fs::create_dir_all(&dir)?;
        let mut held = BTreeSet::new();
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let number = number.and_then(|number| number.parse::<u64>().ok());
            match number {
                // One that was being made when the process ended has no length yet.
                Some(number) if number < parts && entry.metadata()?.len() == part_bytes => {
                    held.insert(number);
                }
                _ => std::fs::remove_file(entry.path())?,
            }
        }
        let (held, stopping) = (Mutex::new(held), AtomicBool::new(false));
        Ok(Reserve { dir, part_bytes, parts, held, stopping })
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.held.lock().expect("no holder of this lock panics")
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{number:02}"))
    }

    /// Bytes that are there to be given up.
    pub fn held_bytes(&self) -> u64 {
        self.held().len() as u64 * self.part_bytes
    }

    /// Bytes of a whole reserve.
    pub fn whole_bytes(&self) -> u64 {
        self.parts * self.part_bytes
    }

    /// Makes the parts that are missing, as far as there is clearly more room than they take. `left_bytes` tells
    /// what the file system has left.
    pub fn fill(&self, left_bytes: impl Fn() -> io::Result<u64>) -> io::Result<()> {
        let mut held = self.held();
        for number in 0..self.parts {
            if held.contains(&number) {
                continue;
            }
            if left_bytes()? < (1 + CLEARANCE_PARTS) * self.part_bytes {
                break;
            }
            let path = self.path(number);
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            match fallocate(&file, FallocateFlags::empty(), 0, self.part_bytes) {
                Ok(()) => {
                    held.insert(number);
                }
                Err(error) => {
                    std::fs::remove_file(&path)?;
                    if matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::OPNOTSUPP) {
                        break;
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Gives one part up, if more than `kept` are there. False: there are not, or it cannot be removed.
    fn give_up(&self, kept: u64) -> bool {
        let mut held = self.held();
        if held.len() as u64 <= kept {
            return false;
        }
        let Some(number) = held.pop_last() else { return false };
        // A file system may keep the space until the removal is durable.
        std::fs::remove_file(self.path(number)).and_then(|()| sync_dir(&self.dir)).is_ok()
    }

    /// Nobody waits for room any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Parts that are the log's, which has `own` bytes of free segments: half of the reserve, or what those leave of it.
    fn log_parts(&self, own: u64) -> u64 {
        (self.parts / 2).saturating_sub(own / self.part_bytes)
    }

    /// The same in bytes.
    pub fn log_bytes(&self, own: u64) -> u64 {
        self.log_parts(own) * self.part_bytes
    }

    /// For the store: gives up parts that are not the log's, which has `own` bytes free: what the store took it
    /// does not give back even when its files are removed.
    pub fn for_store(self: &Arc<Reserve>, own: Arc<AtomicU64>) -> MakeRoom {
        let reserve = self.clone();
        Arc::new(move || reserve.give_up(reserve.log_parts(own.load(Ordering::Relaxed))))
    }

    /// For the log: gives up parts while there are any, then waits. Until there is room again the log is a slow
    /// disk; ending would help nobody.
    pub fn for_log(self: &Arc<Reserve>) -> MakeRoom {
        let reserve = self.clone();
        Arc::new(move || {
            if reserve.give_up(0) {
                return true;
            }
            std::thread::sleep(WAIT);
            !reserve.stopping.load(Ordering::Acquire)
        })
    }
}

/// What the file system of `dir` has left for this process.
pub fn left_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Whether space is what was lacking.
pub fn is_full(os_code: Option<i32>) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
    os_code.is_some_and(|code| full.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    const PART: u64 = 64 << 10;

    fn files(dir: &TestDir) -> usize {
        std::fs::read_dir(dir.path().join(RESERVE_DIR)).expect("lists").count()
    }

    #[test]
    fn parts_are_made_with_clearance_given_up_one_by_one_and_made_again() {
        let dir = TestDir::new("reserve");
        let reserve = Arc::new(Reserve::open(dir.path(), PART, 3).expect("opens"));
        assert!(!reserve.give_up(0), "nothing is there yet");
        reserve.fill(|| Ok(5 * PART - 1)).expect("looks");
        assert_eq!(reserve.held_bytes(), 0, "too little room");
        reserve.fill(|| Ok(5 * PART)).expect("makes");
        assert_eq!((reserve.held_bytes(), files(&dir)), (3 * PART, 3));
        let own = Arc::new(AtomicU64::new(0));
        let give = reserve.for_store(own.clone());
        assert_eq!([give(), give(), give()], [true, true, false], "half is the log's");
        own.store(PART, Ordering::Relaxed);
        assert!(give(), "but what the log has besides does as well");
        assert_eq!(files(&dir), 0);
        reserve.fill(|| Ok(u64::MAX)).expect("makes");
        assert_eq!(reserve.held_bytes(), reserve.whole_bytes());
        assert!(reserve.for_log()());
        assert_eq!(files(&dir), 2);
    }

    #[test]
    fn whole_parts_count_after_a_restart_and_others_go() {
        let dir = TestDir::new("reserve-restart");
        let reserve = Reserve::open(dir.path(), PART, 2).expect("opens");
        reserve.fill(|| Ok(u64::MAX)).expect("makes");
        let torn = OpenOptions::new().write(true).open(reserve.path(1)).expect("opens");
        torn.set_len(0).expect("cuts");
        let again = Reserve::open(dir.path(), PART, 2).expect("opens");
        assert_eq!((again.held_bytes(), files(&dir)), (PART, 1));
        let other = Reserve::open(dir.path(), 2 * PART, 2).expect("opens");
        assert_eq!((other.held_bytes(), files(&dir)), (0, 0), "another size");
    }

    #[test]
    fn a_log_without_a_reserve_waits_until_it_is_told_to_stop() {
        let dir = TestDir::new("reserve-log");
        let reserve = Arc::new(Reserve::open(dir.path(), PART, 1).expect("opens"));
        let wait = reserve.for_log();
        assert!(wait(), "it is to look again");
        reserve.stop();
        assert!(!wait());
    }
}
