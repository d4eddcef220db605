//! Setting attributes on the host: SETATTR as one operation out of several system calls.
//! Owns: the order of those calls, and undoing them when a later one fails.
//! Never: truncates a file before everything else is known to be allowed.
//! Invariant: all of the attributes are set, or none.
//! Source: chmod(2), chown(2), utimensat(2), truncate(2).

use std::os::fd::{AsRawFd, OwnedFd};

use harp_bench::request::{FileType, SetAttr, SetTime, Status};
use rustix::fs::{
    AtFlags, Mode, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chmod, chownat, ftruncate,
    utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::host::{Host, mode_of, status_of};
use super::object::{Object, times_of};
use super::outcome::{Outcome, Shows};
use super::rules;

const ITSELF: AtFlags = AtFlags::EMPTY_PATH;

impl Host<'_> {
    pub(super) fn set_attributes(&self, object: usize, set: &SetAttr) -> Outcome {
        let file = self.alive(object)?;
        let before = file.stat();
        let to_cut = match set.size {
            Some(size) => {
                let opened = self.open_to_write(self.regular(object)?)?;
                if size > rules::FILE_SIZE_MAX {
                    return Err(Status::FBig);
                }
                Some((opened, size))
            }
            None => None,
        };
        if let Err(error) = self.set_all_but_size(file, &before, set) {
            self.undo(file, &before);
            return Err(status_of(error));
        }
        if let Some((opened, size)) = to_cut {
            if let Err(error) = self.user.acting(|| ftruncate(&opened, size)) {
                self.undo(file, &before);
                return Err(status_of(error));
            }
            if size == before.st_size as u64 {
                // truncate(2) leaves the times alone then. A server cannot: this is also what
                // opening with O_TRUNC comes as, which changes them.
                let now = Timestamps { last_access: omit(), last_modification: now() };
                utimensat(&file.fd, "", &now, ITSELF).map_err(status_of)?;
            }
            // Once more: cutting takes set-uid away and sets the modification time.
            self.set_all_but_size(file, &before, set).map_err(status_of)?;
        }
        Ok(Shows::Done)
    }

    fn set_all_but_size(&self, file: &Object, before: &Stat, set: &SetAttr) -> Result<(), Errno> {
        let gives_away = set.uid.is_some() || set.gid.is_some();
        if gives_away {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            self.user.acting(|| chownat(&file.fd, "", uid, gid, ITSELF))?;
        }
        if set.mode.is_some() {
            let mut mode = mode_of(set);
            if gives_away && file.kind != FileType::Directory {
                mode = rules::mode_given_away(mode);
            }
            self.user.acting(|| chmod(file.path(), mode))?;
        }
        self.set_times(file, before, set)
    }

    fn set_times(&self, file: &Object, before: &Stat, set: &SetAttr) -> Result<(), Errno> {
        let times = match (set.atime, set.mtime) {
            (SetTime::Keep, SetTime::Keep) => return Ok(()),
            // One of the two set to now, the other left: POSIX has no word for that that writers
            // may use, but clients say it for whoever truncates a file. Both are set by the rule for
            // both, then one is set back.
            (SetTime::ToServer, SetTime::Keep) | (SetTime::Keep, SetTime::ToServer) => {
                let both = Timestamps { last_access: now(), last_modification: now() };
                self.user.acting(|| utimensat(&file.fd, "", &both, ITSELF))?;
                let (atime, mtime) = before_times(before);
                let back = match set.atime {
                    SetTime::Keep => Timestamps { last_access: atime, last_modification: omit() },
                    _ if set.size.is_some() => {
                        Timestamps { last_access: omit(), last_modification: now() }
                    }
                    _ => Timestamps { last_access: omit(), last_modification: mtime },
                };
                return utimensat(&file.fd, "", &back, ITSELF);
            }
            (atime, mtime) => {
                Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) }
            }
        };
        self.user.acting(|| utimensat(&file.fd, "", &times, ITSELF))
    }

    fn undo(&self, file: &Object, before: &Stat) {
        let shape = |s: &Stat| (s.st_mode, s.st_uid, s.st_gid, times_of(s));
        if shape(&file.stat()) == shape(before) {
            return;
        }
        self.disturbed.set(true);
        let (uid, gid) = (Uid::from_raw(before.st_uid), Gid::from_raw(before.st_gid));
        let (last_access, last_modification) = before_times(before);
        let times = Timestamps { last_access, last_modification };
        let undone = chownat(&file.fd, "", Some(uid), Some(gid), ITSELF)
            .and_then(|()| match file.kind {
                FileType::Symlink => Ok(()),
                _ => chmod(file.path(), Mode::from_raw_mode(before.st_mode & 0o7777)),
            })
            .and_then(|()| utimensat(&file.fd, "", &times, ITSELF));
        undone.expect("root may set everything back");
    }

    /// Gives a new object what the call that made it did not give.
    pub(super) fn dress(&self, made: &OwnedFd, kind: FileType, set: &SetAttr) -> Result<(), Errno> {
        let path = format!("/proc/self/fd/{}", made.as_raw_fd());
        // Only root may give away; what others ask for in this respect is passed over.
        if self.user.is_root() && (set.uid.is_some() || set.gid.is_some()) {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            chownat(made, "", uid, gid, ITSELF)?;
            if !matches!(kind, FileType::Directory | FileType::Symlink) {
                // chown(2) took set-id bits away that were asked for.
                chmod(&path, mode_of(set))?;
            }
        }
        if let Some(size) = set.size.filter(|_| kind == FileType::Regular) {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            // As root: the file is born with this length, its mode means what it says.
            ftruncate(rustix::fs::open(&path, flags, Mode::empty())?, size)?;
        }
        let (last_access, last_modification) = (timespec(set.atime), timespec(set.mtime));
        let times = Timestamps { last_access, last_modification };
        utimensat(made, "", &times, ITSELF)
    }
}

fn now() -> Timespec {
    Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }
}

fn omit() -> Timespec {
    Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }
}

fn timespec(set: SetTime) -> Timespec {
    match set {
        SetTime::Keep => omit(),
        SetTime::ToServer => now(),
        SetTime::ToClient(time) => {
            Timespec { tv_sec: time.seconds.into(), tv_nsec: time.nanos.into() }
        }
    }
}

fn before_times(before: &Stat) -> (Timespec, Timespec) {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    (
        time(before.st_atime, before.st_atime_nsec as i64),
        time(before.st_mtime, before.st_mtime_nsec as i64),
    )
}
