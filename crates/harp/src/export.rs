//! `harp export`: copies the files out of one server's directory, offline.
//! Owns: the copy's directories, files, links, devices, and what goes with them: owner, mode, times, holes.
//! Never: writes into a directory that holds anything; gives up at the first file that cannot be read.
//! Invariant: an export that succeeds holds everything that the directory held at one op.
//! Source: docs/operations.md, "Getting files out of a directory".

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use harp_node::fs::request::{Attributes, FileType, HandleBytes, Request, Response, Status, Time};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens,
    linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};

use crate::error::HarpError;
use crate::offline::{self, OfflineServer};
use crate::segments::sync_dir;
use crate::server::raise_descriptor_limit;

/// Bytes read and written at once.
const PIECE_BYTES: u32 = 1 << 20;
/// Pieces of this size that hold nothing but zeros become holes.
const HOLE_BYTES: usize = 4096;
/// Room for the entries of a directory in one answer.
const LISTING_BYTES: u32 = 1 << 20;
/// Faults that are told one by one; the rest is counted.
const FAULTS_TOLD: usize = 20;

/// What an export did.
#[derive(Debug, Default)]
pub struct Exported {
    /// The op that all of it is exact at.
    pub op: u64,
    /// The op that the image alone stood at.
    pub lb: u64,
    /// Why the log added nothing to the image, if it did not.
    pub log_fault: Option<String>,
    /// The log's last op; those above `op` are not known to be committed and left out.
    pub log_end: u64,
    /// Files, directories and everything else, the root not counted.
    pub objects: u64,
    /// Bytes of files, holes not counted.
    pub bytes: u64,
    /// What is missing or is not as it was, as `path: why`, the first few.
    pub faults: Vec<String>,
    /// How many those are in all.
    pub fault_count: u64,
}

/// Whether owners are copied, which only root can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As they were.
    Keep,
    /// All is the caller's; devices are left out.
    Drop,
}

/// A directory under way.
struct Level {
    dir: OwnedFd,
    path: PathBuf,
    /// Entries that are still to be copied, the next one last.
    entries: Vec<(OsString, HandleBytes)>,
    attributes: Attributes,
}

struct Exporter {
    server: OfflineServer,
    owners: Owners,
    dest: OwnedFd,
    /// Where objects with several names lie below the destination.
    linked: HashMap<u64, PathBuf>,
    done: Exported,
    data: Vec<u8>,
}

/// What went wrong with one object.
type Fault = String;

fn said(what: &str) -> impl Fn(rustix::io::Errno) -> Fault {
    move |error| format!("{what}: {}", std::io::Error::from(error))
}

/// Copies the files of the server's directory `dir` into the new or empty directory `dest`.
pub fn export(dir: &Path, dest: &Path, owners: Owners) -> Result<Exported, HarpError> {
    raise_descriptor_limit();
    if owners == Owners::Keep && !rustix::process::geteuid().is_root() {
        let why = "only root can keep owners and devices: run it as root, or with --drop-owners";
        return Err(HarpError::Refused { why: why.into() });
    }
    let server = offline::open(dir)?;
    prepare(dest)?;
    let dest_fd = openat(rustix::fs::CWD, dest, directory_flags(), Mode::empty())
        .map_err(|error| HarpError::file("open", dest, error))?;
    let done = Exported {
        op: server.files.op(),
        lb: server.files.lb(),
        log_fault: server.log_fault.clone(),
        log_end: server.log_end,
        ..Exported::default()
    };
    let (linked, data) = (HashMap::new(), Vec::new());
    let mut exporter = Exporter { server, owners, dest: dest_fd, linked, done, data };
    exporter.run().map_err(|why| HarpError::Fatal { why: format!("{}: {why}", dir.display()) })?;
    rustix::fs::syncfs(&exporter.dest).map_err(|error| HarpError::file("sync", dest, error))?;
    Ok(exporter.done)
}

/// Makes `dest`, or sees that it is empty.
fn prepare(dest: &Path) -> Result<(), HarpError> {
    match std::fs::create_dir(dest) {
        Ok(()) => {
            let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty());
            return sync_dir(parent.unwrap_or(Path::new(".")))
                .map_err(|error| HarpError::file("create", dest, error));
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(HarpError::file("create", dest, error)),
    }
    let mut entries =
        std::fs::read_dir(dest).map_err(|error| HarpError::file("look into", dest, error))?;
    if entries.next().is_some() {
        let why = format!("{} is not empty: name a new directory", dest.display());
        return Err(HarpError::Refused { why });
    }
    Ok(())
}

fn directory_flags() -> OFlags {
    OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn timestamps(attributes: &Attributes) -> Timestamps {
    let spec = |time: Time| Timespec { tv_sec: time.seconds.into(), tv_nsec: time.nanos.into() };
    Timestamps { last_access: spec(attributes.atime), last_modification: spec(attributes.mtime) }
}

fn mode(attributes: &Attributes) -> Mode {
    Mode::from_raw_mode(attributes.mode & 0o7777)
}

impl Exporter {
    /// Copies everything. Errors: the root itself cannot be read or written.
    fn run(&mut self) -> Result<(), Fault> {
        let root = self.server.files.root();
        let attributes = self.attributes(&root)?;
        let dir = self.dest.try_clone().map_err(|error| error.to_string())?;
        let entries = self.entries(&root)?;
        let mut levels = vec![Level { dir, path: PathBuf::new(), entries, attributes }];
        // A directory's own attributes come last: what is made in it changes its times.
        while let Some(level) = levels.last_mut() {
            let Some((name, handle)) = level.entries.pop() else {
                let level = levels.pop().expect("just seen");
                if let Err(why) = self.finish(level.dir.as_fd(), &level.attributes) {
                    self.fault(&level.path, why);
                }
                continue;
            };
            let path = level.path.join(&name);
            let copied = self.copy(level.dir.as_fd(), &name, &path, &handle);
            match copied {
                Ok(deeper) => {
                    self.done.objects += 1;
                    levels.extend(deeper);
                }
                Err(why) => self.fault(&path, why),
            }
        }
        Ok(())
    }

    fn fault(&mut self, path: &Path, why: Fault) {
        self.done.fault_count += 1;
        if self.done.faults.len() < FAULTS_TOLD {
            self.done.faults.push(format!("{}: {why}", path.display()));
        }
    }

    /// Copies one object; a directory is made, and comes back to be filled.
    fn copy(
        &mut self,
        into: impl AsFd,
        name: &OsStr,
        path: &Path,
        handle: &HandleBytes,
    ) -> Result<Option<Level>, Fault> {
        let attributes = self.attributes(handle)?;
        if attributes.kind == FileType::Directory {
            mkdirat(&into, name, Mode::RWXU).map_err(said("make the directory"))?;
            let dir = openat(&into, name, directory_flags(), Mode::empty());
            let dir = dir.map_err(said("open the directory"))?;
            let entries = self.entries(handle)?;
            return Ok(Some(Level { dir, path: path.to_path_buf(), entries, attributes }));
        }
        if let Some(first) = self.linked.get(&attributes.fileid) {
            linkat(&self.dest, first, &into, name, AtFlags::empty()).map_err(said("link"))?;
            return Ok(None);
        }
        match attributes.kind {
            FileType::Regular => self.copy_file(&into, name, handle, &attributes)?,
            FileType::Symlink => {
                let target = self.target(handle)?;
                symlinkat(OsStr::from_bytes(&target), &into, name).map_err(said("link"))?;
                self.dress(&into, name, &attributes)?;
            }
            kind => self.copy_special(&into, name, kind, &attributes)?,
        }
        if attributes.nlink > 1 {
            self.linked.insert(attributes.fileid, path.to_path_buf());
        }
        Ok(None)
    }

    fn copy_file(
        &mut self,
        into: impl AsFd,
        name: &OsStr,
        handle: &HandleBytes,
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = openat(into, name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(made.map_err(said("make the file"))?);
        file.set_len(attributes.size).map_err(|error| format!("give it its length: {error}"))?;
        let copied = match attributes.used {
            0 => Ok(()),
            _ => self.copy_data(&file, handle, attributes.size),
        };
        // A file that is damaged somewhere keeps what could be read, and everything else.
        self.finish(file.as_fd(), attributes)?;
        copied
    }

    fn copy_data(&mut self, file: &File, handle: &HandleBytes, size: u64) -> Result<(), Fault> {
        let mut damage = None;
        let mut offset = 0;
        while offset < size {
            let count = (size - offset).min(PIECE_BYTES.into()) as u32;
            self.data.clear();
            let request = Request::Read { handle: handle.as_slice(), offset, count };
            match self.server.files.ask(&request, &mut self.data) {
                Ok(Response::Read { status: Status::Ok, count, .. }) if count > 0 => {}
                Ok(other) => return Err(format!("read at {offset}: {other:?}")),
                Err(error) => {
                    damage.get_or_insert_with(|| format!("read at {offset}: {error}"));
                    offset += u64::from(count);
                    continue;
                }
            }
            for (index, piece) in self.data.chunks(HOLE_BYTES).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    let at = offset + (index * HOLE_BYTES) as u64;
                    file.write_all_at(piece, at).map_err(|error| format!("write it: {error}"))?;
                    self.done.bytes += piece.len() as u64;
                }
            }
            offset += self.data.len() as u64;
        }
        damage.map_or(Ok(()), Err)
    }

    fn copy_special(
        &mut self,
        into: impl AsFd,
        name: &OsStr,
        kind: FileType,
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        use rustix::fs::FileType as Kind;
        let (kind, device) = match kind {
            FileType::Fifo => (Kind::Fifo, 0),
            FileType::Socket => (Kind::Socket, 0),
            FileType::Block | FileType::Character if self.owners == Owners::Drop => {
                return Err("a device is left out".into());
            }
            FileType::Block => {
                (Kind::BlockDevice, makedev(attributes.device.0, attributes.device.1))
            }
            FileType::Character => {
                (Kind::CharacterDevice, makedev(attributes.device.0, attributes.device.1))
            }
            FileType::Regular | FileType::Directory | FileType::Symlink => {
                unreachable!("copied elsewhere")
            }
        };
        mknodat(&into, name, kind, Mode::RUSR | Mode::WUSR, device).map_err(said("make it"))?;
        self.dress(&into, name, attributes)?;
        let flags = AtFlags::empty();
        rustix::fs::chmodat(&into, name, mode(attributes), flags).map_err(said("set its mode"))?;
        // A change of mode changes no time that is kept here.
        Ok(())
    }

    /// Owner and times of an object that is not opened.
    fn dress(&self, into: impl AsFd, name: &OsStr, attributes: &Attributes) -> Result<(), Fault> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if self.owners == Owners::Keep {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            chownat(&into, name, Some(uid), Some(gid), flags).map_err(said("set its owner"))?;
        }
        utimensat(into, name, &timestamps(attributes), flags).map_err(said("set its times"))
    }

    /// Owner, mode and times of an open object, in this order: a change of owner takes bits of the mode away.
    fn finish(&self, object: impl AsFd, attributes: &Attributes) -> Result<(), Fault> {
        if self.owners == Owners::Keep {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            fchown(&object, Some(uid), Some(gid)).map_err(said("set its owner"))?;
        }
        fchmod(&object, mode(attributes)).map_err(said("set its mode"))?;
        futimens(object, &timestamps(attributes)).map_err(said("set its times"))
    }

    // ----- reading -----

    fn ask(&mut self, request: &Request<'_>) -> Result<Response, Fault> {
        self.data.clear();
        let answer = self.server.files.ask(request, &mut self.data);
        answer.map_err(|error| format!("cannot be read: {error}"))
    }

    fn attributes(&mut self, handle: &HandleBytes) -> Result<Attributes, Fault> {
        match self.ask(&Request::GetAttr { handle: handle.as_slice() })? {
            Response::GetAttr { ok: Some(attributes), .. } => Ok(attributes),
            other => Err(format!("has no attributes: {other:?}")),
        }
    }

    fn target(&mut self, handle: &HandleBytes) -> Result<Vec<u8>, Fault> {
        match self.ask(&Request::ReadLink { handle: handle.as_slice() })? {
            Response::ReadLink { status: Status::Ok, target, .. } => Ok(target),
            other => Err(format!("leads nowhere: {other:?}")),
        }
    }

    /// Names and handles of a directory, the last one first.
    fn entries(&mut self, handle: &HandleBytes) -> Result<Vec<(OsString, HandleBytes)>, Fault> {
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let answer = self.ask(&Request::ReadDirPlus {
                handle: handle.as_slice(),
                cookie,
                verifier: [0; 8],
                dir_count: LISTING_BYTES,
                max_count: LISTING_BYTES,
            })?;
            let Response::ReadDirPlus { status: Status::Ok, listing, .. } = answer else {
                return Err(format!("cannot be listed: {answer:?}"));
            };
            let got_ahead = !listing.entries.is_empty();
            for entry in listing.entries {
                cookie = entry.cookie;
                let name = &listing.names[entry.name];
                if name == b"." || name == b".." {
                    continue;
                }
                let name = OsStr::from_bytes(name).to_os_string();
                let known = entry.plus.map(|(_, handle)| handle);
                let found = known.map_or_else(|| self.find(handle, &name), Ok)?;
                all.push((name, found));
            }
            if listing.end {
                all.reverse();
                return Ok(all);
            }
            if !got_ahead {
                return Err("cannot be listed to its end".into());
            }
        }
    }

    fn find(&mut self, dir: &HandleBytes, name: &OsStr) -> Result<HandleBytes, Fault> {
        let what = harp_node::fs::request::DirName { dir: dir.as_slice(), name: name.as_bytes() };
        match self.ask(&Request::Lookup { what })? {
            Response::Lookup { ok: Some(handle), .. } => Ok(handle),
            other => Err(format!("{} cannot be found: {other:?}", name.display())),
        }
    }
}
