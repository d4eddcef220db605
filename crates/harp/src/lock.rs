//! A lock on a file: one process at a time has what it guards.
//! Owns: the open file that the lock is on.
//! Never: waits for a lock.
//! Invariant: held until the value is dropped or the process ends, however it ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::HarpError;

/// A lock on a file, held until the value is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _held_open: File,
}

impl Lock {
    /// Takes the lock `path`, creating the file if need be.
    pub fn take(path: &Path) -> Result<Lock, HarpError> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| HarpError::file("open", path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _held_open: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(HarpError::Locked { what: path.into() }),
            Err(error) => Err(HarpError::file("lock", path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn a_lock_is_held_once() {
        let dir = TestDir::new("lock");
        let path = dir.path().join("harp.lock");
        let held = Lock::take(&path).expect("free");
        assert!(matches!(Lock::take(&path), Err(HarpError::Locked { .. })));
        drop(held);
        Lock::take(&path).expect("free again");
    }
}
