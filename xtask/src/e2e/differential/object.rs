//! Object: one file, directory or other thing, as it is known on both sides.
//! Owns: its handle at the server, its descriptor on the host, and how both looked last.
//! Never: performs an operation.
//! Invariant: whenever both sides are looked at together, they look alike: type, mode, link count,
//! owner, group, length, device, and which of the three times have changed since.
//! Source: RFC 1813, `fattr3`; stat(2).

use std::os::fd::{AsRawFd, OwnedFd};

use harp_bench::request::{Attributes, BeforeAttr, FileType, HandleBytes, Time};
use rustix::fs::{Stat, fstat, major, minor};
use rustix::time::{ClockId, clock_gettime};

/// Clients set times before the first and after the second of these (seconds since 1970), so that
/// times that were set are told from times at which something happened.
pub const SET_BEFORE: u32 = 1_500_000_000;
pub const SET_AFTER: u32 = 4_000_000_000;

/// One object on both sides.
#[derive(Debug)]
pub struct Object {
    /// Its name in reports, never used again.
    pub label: u32,
    pub handle: HandleBytes,
    pub fileid: u64,
    /// Opened with `O_PATH`: leads to the object whatever becomes of its names.
    pub fd: OwnedFd,
    /// The verifier of the exclusive creation that made it: the host has no such thing.
    pub verifier: Option<[u8; 8]>,
    /// Its last name is gone.
    pub dead: bool,
    pub kind: FileType,
    pub host_ino: u64,
    last: Option<Sight>,
}

/// How an object looked on both sides at one moment.
#[derive(Debug)]
struct Sight {
    host: Stat,
    served: Attributes,
    /// The clock that the host stamps with, read after that: a later change bears this or more.
    host_clock: Time,
    /// The host's change time says nothing: it had to be disturbed.
    disturbed: bool,
}

impl Object {
    /// A new acquaintance.
    pub fn new(label: u32, handle: HandleBytes, served: &Attributes, fd: OwnedFd) -> Object {
        let host = fstat(&fd).expect("an open descriptor");
        Object {
            label,
            handle,
            fileid: served.fileid,
            fd,
            verifier: None,
            dead: false,
            kind: kind_of(&host),
            host_ino: host.st_ino,
            last: None,
        }
    }

    /// How it is on the host.
    pub fn stat(&self) -> Stat {
        fstat(&self.fd).expect("an open descriptor")
    }

    /// A path that leads to the object itself, even if it is a symbolic link.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// The change time that the server showed last.
    pub fn served_ctime(&self) -> Time {
        self.last.as_ref().map_or(Time::default(), |sight| sight.served.ctime)
    }

    /// The length on the server when it was looked at last.
    pub fn served_size(&self) -> u64 {
        self.last.as_ref().map_or(0, |sight| sight.served.size)
    }

    /// Compares what the server says was before an operation with what it showed last.
    pub fn expect_before(&self, before: &BeforeAttr) -> Result<(), String> {
        let Some(Sight { served, .. }) = &self.last else { return Ok(()) };
        let known = BeforeAttr { size: served.size, mtime: served.mtime, ctime: served.ctime };
        if *before == known {
            return Ok(());
        }
        Err(format!("#{}: the reply's wcc says {before:?} before, it was {known:?}", self.label))
    }

    /// The host's times moved without an operation: the next look compares no change of them.
    pub fn disturb(&mut self) {
        if let Some(last) = &mut self.last {
            last.disturbed = true;
        }
    }

    /// Compares both sides, and each with how it was.
    pub fn observe(&mut self, served: &Attributes) -> Result<(), String> {
        let host = self.stat();
        let differences = [self.different(&host, served), self.moved(&host, served)].concat();
        let clock = clock_gettime(ClockId::RealtimeCoarse);
        let host_clock = Time { seconds: clock.tv_sec as u32, nanos: clock.tv_nsec as u32 };
        self.last = Some(Sight { host, served: *served, host_clock, disturbed: false });
        if differences.is_empty() {
            return Ok(());
        }
        let times = |[a, m, c]: [Time; 3]| format!("atime {} mtime {} ctime {}", t(a), t(m), t(c));
        Err(format!(
            "#{}: {}; host: {}; harp: {}",
            self.label,
            differences.join(", "),
            times(times_of(&host)),
            times([served.atime, served.mtime, served.ctime])
        ))
    }

    fn different(&self, host: &Stat, served: &Attributes) -> Vec<String> {
        let device = matches!(self.kind, FileType::Block | FileType::Character);
        let number = if device { (major(host.st_rdev), minor(host.st_rdev)) } else { (0, 0) };
        let same_number = number == served.device;
        let fields = [
            ("type", self.kind as u64, served.kind as u64),
            ("mode", u64::from(host.st_mode & 0o7777), served.mode.into()),
            ("nlink", u64::from(host.st_nlink as u32), served.nlink.into()),
            ("uid", host.st_uid.into(), served.uid.into()),
            ("gid", host.st_gid.into(), served.gid.into()),
            ("size", host.st_size as u64, served.size),
            ("file id", self.fileid, served.fileid),
            ("device, which is the same,", 1, same_number.into()),
        ];
        // A directory's length is each file system's own affair.
        let skipped = |name: &str| self.kind == FileType::Directory && name == "size";
        let differ = fields.iter().filter(|(name, host, harp)| host != harp && !skipped(name));
        let say = |(name, host, harp): &(&str, u64, u64)| match *name {
            "mode" => format!("mode: host {host:04o}, harp {harp:04o}"),
            _ => format!("{name}: host {host}, harp {harp}"),
        };
        differ.map(say).collect()
    }

    /// Compares which times changed.
    fn moved(&self, host: &Stat, served: &Attributes) -> Vec<String> {
        let mut told = Vec::new();
        let now = [served.atime, served.mtime, served.ctime];
        let before = self.last.as_ref().map(|last| {
            let served = [last.served.atime, last.served.mtime, last.served.ctime];
            (times_of(&last.host), served, last.host_clock, last.disturbed)
        });
        for (at, name) in ["atime", "mtime", "ctime"].into_iter().enumerate() {
            let (host_now, served_now) = (times_of(host)[at], now[at]);
            if is_set(host_now) || is_set(served_now) {
                if host_now != served_now {
                    told.push(format!("{name} was set to one time and is two"));
                }
                continue;
            }
            let Some((host_then, served_then, clock, disturbed)) = before else { continue };
            let host_changed = host_now != host_then[at];
            // In the same tick of the host's clock a change may not show.
            let unsure = !host_changed && host_then[at] >= clock;
            let served_changed = served_now != served_then[at];
            if host_changed != served_changed && !unsure && !disturbed {
                let word = |changed| if changed { "changed" } else { "stayed" };
                let (on_host, at_harp) = (word(host_changed), word(served_changed));
                told.push(format!("{name}: host {on_host}, harp {at_harp}"));
            }
        }
        told
    }
}

/// A time for a report.
fn t(time: Time) -> String {
    format!("{}.{:09}", time.seconds, time.nanos)
}

fn is_set(time: Time) -> bool {
    time.seconds < SET_BEFORE || time.seconds > SET_AFTER
}

/// Access, modification and change time on the host.
pub fn times_of(host: &Stat) -> [Time; 3] {
    [
        Time { seconds: host.st_atime as u32, nanos: host.st_atime_nsec as u32 },
        Time { seconds: host.st_mtime as u32, nanos: host.st_mtime_nsec as u32 },
        Time { seconds: host.st_ctime as u32, nanos: host.st_ctime_nsec as u32 },
    ]
}

/// The kind of what is on the host.
pub fn kind_of(host: &Stat) -> FileType {
    match rustix::fs::FileType::from_raw_mode(host.st_mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::BlockDevice => FileType::Block,
        rustix::fs::FileType::CharacterDevice => FileType::Character,
        _ => FileType::Regular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    /// What a server that agrees says of the object.
    fn agreeing(host: &Stat) -> Attributes {
        let [atime, mtime, ctime] = times_of(host);
        Attributes {
            kind: kind_of(host),
            mode: host.st_mode & 0o7777,
            nlink: host.st_nlink as u32,
            uid: host.st_uid,
            gid: host.st_gid,
            size: host.st_size as u64,
            used: 0,
            device: (0, 0),
            fsid: 1,
            fileid: 7,
            atime,
            mtime,
            ctime,
        }
    }

    #[test]
    fn every_attribute_that_differs_is_seen() {
        let path = std::env::temp_dir().join(format!("xtask-object-{}", std::process::id()));
        std::fs::write(&path, b"content").unwrap();
        let fd = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let seen = agreeing(&rustix::fs::fstat(&fd).unwrap());
        let mut object = Object::new(1, HandleBytes::new(b"h"), &seen, fd);
        object.observe(&seen).unwrap();
        object.observe(&seen).unwrap();
        let later = Time { seconds: seen.ctime.seconds + 1, nanos: 0 };
        let different = [
            Attributes { kind: FileType::Fifo, ..seen },
            Attributes { mode: seen.mode ^ 0o2000, ..seen },
            Attributes { nlink: seen.nlink + 1, ..seen },
            Attributes { uid: seen.uid + 1, ..seen },
            Attributes { gid: seen.gid + 1, ..seen },
            Attributes { size: 0, ..seen },
            Attributes { fileid: 8, ..seen },
            Attributes { mtime: Time { seconds: 1, nanos: 0 }, ..seen },
        ];
        for attributes in different {
            assert!(object.observe(&attributes).is_err(), "{attributes:?}");
        }
        // A change may hide in one tick of the host's clock, so make the last look a later one.
        object.observe(&seen).unwrap();
        object.last.as_mut().unwrap().host_clock = later;
        assert!(object.observe(&Attributes { ctime: later, ..seen }).is_err());
        let before = BeforeAttr { size: seen.size, mtime: seen.mtime, ctime: later };
        object.expect_before(&before).unwrap();
        assert!(object.expect_before(&BeforeAttr { size: 1, ..before }).is_err());
    }
}
