//! Host: the operations as system calls on the host's own file system.
//! Owns: which calls make up the counterpart of each procedure, and under whose credentials.
//! Never: decides by itself what is allowed, save where [`super::rules`] gives the reason.
//! Invariant: a failed operation leaves the file system as it was.
//! Source: POSIX; the manual pages of section 2.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use harp_bench::request::{CreateHow, FileType, SetAttr, Status};
use rustix::fs::{
    Access, AtFlags, Mode, OFlags, accessat, linkat, makedev, mkdirat, mknodat, open, openat,
    readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::{Errno, pread};
use rustix::thread::CapabilitySet;

use super::object::{Object, kind_of};
use super::operation::{At, Operation};
use super::outcome::{Outcome, Shows};
use super::rules::{self, Naming};
use super::user::User;

/// Opens an object to refer to it, not to use it.
const REFER: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One operation on the host.
pub struct Host<'a> {
    pub objects: &'a [Object],
    pub user: &'a User,
    /// A new object's descriptor.
    pub made: Option<OwnedFd>,
    /// Whether undoing a failed operation left a change time that means nothing.
    pub disturbed: Cell<bool>,
}

type Step<T> = Result<T, Status>;

/// The status that stands for a system call's error.
pub fn status_of(error: Errno) -> Status {
    match error {
        Errno::PERM => Status::Perm,
        Errno::NOENT => Status::NoEnt,
        Errno::ACCESS => Status::Access,
        Errno::EXIST => Status::Exist,
        Errno::NOTDIR => Status::NotDir,
        Errno::ISDIR => Status::IsDir,
        Errno::INVAL => Status::Inval,
        Errno::FBIG => Status::FBig,
        Errno::NOSPC => Status::NoSpc,
        Errno::MLINK => Status::MLink,
        Errno::NAMETOOLONG => Status::NameTooLong,
        Errno::NOTEMPTY => Status::NotEmpty,
        other => {
            eprintln!("    the host said {other}, for which there is no status here");
            Status::ServerFault
        }
    }
}

fn said<T>(result: Result<T, Errno>) -> Step<T> {
    result.map_err(status_of)
}

impl<'a> Host<'a> {
    pub fn new(objects: &'a [Object], user: &'a User) -> Host<'a> {
        Host { objects, user, made: None, disturbed: Cell::new(false) }
    }

    /// Performs the operation.
    pub fn perform(&mut self, operation: &Operation) -> Outcome {
        use Operation::*;
        match operation {
            GetAttr { object } => self.alive(*object).map(|_| Shows::Done),
            SetAttr { object, set, .. } => self.set_attributes(*object, set),
            Lookup { at } => self.lookup(at),
            Access { object, want } => self.access(*object, *want),
            ReadLink { object } => self.read_link(*object),
            Read { object, offset, count } => self.read(*object, *offset, *count),
            Write { object, offset, data } => self.write(*object, *offset, data),
            Create { at, how } => self.create(at, how),
            MkDir { at, set } => self
                .make(at, FileType::Directory, set, |dir, name| mkdirat(dir, name, mode_of(set))),
            SymLink { at, set, target } => self.symlink(at, set, target),
            MkNod { at, kind, set, device } => self.node(at, *kind, set, *device),
            Remove { at } => self.remove(at, Naming::Remove, AtFlags::empty()),
            RmDir { at } => self.remove(at, Naming::RemoveDirectory, AtFlags::REMOVEDIR),
            Rename { from, to } => self.rename(from, to),
            Link { object, to } => self.link(*object, to),
            List { object, .. } => self.list(*object),
        }
    }

    /// The object, if any name leads to it: a handle of one without is stale.
    pub(super) fn alive(&self, object: usize) -> Step<&'a Object> {
        let object = &self.objects[object];
        if object.stat().st_nlink == 0 { Err(Status::Stale) } else { Ok(object) }
    }

    /// The directory of a name, if it is one that the user may search, and the name one that an
    /// entry can have.
    fn enter(&self, at: &At, naming: Naming) -> Step<&'a OwnedFd> {
        let dir = self.search(at)?;
        rules::name_status(naming, &at.name).map_or(Ok(dir), Err)
    }

    fn search(&self, at: &At) -> Step<&'a OwnedFd> {
        let dir = &self.alive(at.dir)?.fd;
        said(self.user.acting(|| openat(dir, ".", REFER, Mode::empty())))?;
        Ok(dir)
    }

    fn place(&self, fd: &OwnedFd) -> Option<usize> {
        let ino = rustix::fs::fstat(fd).expect("an open descriptor").st_ino;
        self.objects.iter().position(|object| object.host_ino == ino)
    }

    fn lookup(&self, at: &At) -> Outcome {
        let dir = self.enter(at, Naming::Lookup)?;
        let found = said(self.user.acting(|| openat(dir, &at.name[..], REFER, Mode::empty())))?;
        Ok(Shows::Object(self.place(&found)))
    }

    fn may(&self, object: &Object, access: Access) -> bool {
        let path = object.path();
        let allowed =
            self.user.acting(|| accessat(rustix::fs::CWD, path, access, AtFlags::EACCESS));
        allowed.is_ok()
    }

    fn access(&self, object: usize, want: u32) -> Outcome {
        let object = self.alive(object)?;
        let directory = object.kind == FileType::Directory;
        let [read, write, execute] = [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK]
            .map(|access| self.may(object, access));
        // RFC 1813, section 3.3.4: READ, LOOKUP, MODIFY, EXTEND, DELETE, EXECUTE.
        let change = write && (execute || !directory);
        let bits = [
            (0x01, read),
            (0x02, directory && execute),
            (0x04, change),
            (0x08, change),
            (0x10, directory && change),
            (0x20, !directory && execute),
        ];
        let granted = bits.iter().filter(|(bit, granted)| *granted && want & bit != 0);
        Ok(Shows::Bits(granted.map(|(bit, _)| bit).sum()))
    }

    fn read_link(&self, object: usize) -> Outcome {
        let object = self.alive(object)?;
        if object.kind != FileType::Symlink {
            return Err(Status::Inval);
        }
        let target = said(self.user.acting(|| readlinkat(&object.fd, "", Vec::new())))?;
        Ok(Shows::Target(target.into_bytes()))
    }

    fn read(&self, object: usize, offset: u64, count: u32) -> Outcome {
        let object = self.regular(object)?;
        let open_it = || open(object.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = match self.user.acting(open_it) {
            Err(Errno::ACCESS)
                if rules::owner_may_anyway(&object.stat(), self.user)
                    // Who may execute a file must be able to fetch its text.
                    || self.may(object, Access::EXEC_OK) =>
            {
                said(open_it())?
            }
            opened => said(opened)?,
        };
        // No system call asks beyond the longest file; there is nothing to get there.
        let count = u64::from(count).min(rules::FILE_SIZE_MAX.saturating_sub(offset));
        let mut data = vec![0; count as usize];
        let mut filled = 0;
        while filled < data.len() {
            match said(pread(&file, &mut data[filled..], offset + filled as u64))? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        data.truncate(filled);
        let end = offset.saturating_add(filled as u64) >= object.stat().st_size as u64;
        Ok(Shows::Data(data, end))
    }

    fn write(&self, object: usize, offset: u64, data: &[u8]) -> Outcome {
        let object = self.regular(object)?;
        let file = self.open_to_write(object)?;
        let mut written = 0;
        while written < data.len() {
            let (rest, at) = (&data[written..], offset + written as u64);
            written += said(self.user.acting(|| rustix::io::pwrite(&file, rest, at)))?;
        }
        Ok(Shows::Done)
    }

    /// The object, if it has data.
    pub(super) fn regular(&self, object: usize) -> Step<&'a Object> {
        let object = self.alive(object)?;
        match object.kind {
            FileType::Regular => Ok(object),
            FileType::Directory => Err(Status::IsDir),
            _ => Err(Status::Inval),
        }
    }

    pub(super) fn open_to_write(&self, file: &Object) -> Step<OwnedFd> {
        let open_it = || open(file.path(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        match self.user.acting(open_it) {
            Err(Errno::ACCESS) if rules::owner_may_anyway(&file.stat(), self.user) => {
                said(open_it())
            }
            opened => said(opened),
        }
    }

    fn create(&mut self, at: &At, how: &CreateHow) -> Outcome {
        let set = match how {
            CreateHow::Unchecked(set) | CreateHow::Guarded(set) => *set,
            CreateHow::Exclusive(_) => SetAttr::default(),
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let made = self.make(at, FileType::Regular, &set, |dir, name| {
            openat(dir, name, flags, mode_of(&set)).map(drop)
        });
        // A name that always exists leads to no file.
        if made != Err(Status::Exist) || rules::name_status(Naming::Make, &at.name).is_some() {
            return made;
        }
        let dir = &self.objects[at.dir].fd;
        let found = said(openat(dir, &at.name[..], REFER, Mode::empty()))?;
        let Some(place) = self.place(&found) else { return Ok(Shows::Object(None)) };
        let there = &self.objects[place];
        match how {
            CreateHow::Guarded(_) => Err(Status::Exist),
            CreateHow::Exclusive(verifier) if there.verifier == Some(*verifier) => {
                Ok(Shows::Object(Some(place)))
            }
            CreateHow::Exclusive(_) => Err(Status::Exist),
            CreateHow::Unchecked(_) if there.kind != FileType::Regular => Err(Status::Exist),
            CreateHow::Unchecked(set) => {
                // Of an existing file only the length is set.
                let size = SetAttr { size: set.size, ..SetAttr::default() };
                self.set_attributes(place, &size)?;
                Ok(Shows::Object(Some(place)))
            }
        }
    }

    /// Makes an object with `call`, then gives it the attributes that the call does not.
    fn make(
        &mut self,
        at: &At,
        kind: FileType,
        set: &SetAttr,
        call: impl FnOnce(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Outcome {
        let dir = self.enter(at, Naming::Make)?;
        said(self.user.acting(|| call(dir, &at.name)))?;
        let made = said(openat(dir, &at.name[..], REFER, Mode::empty()))?;
        said(self.dress(&made, kind, set))?;
        self.made = Some(made);
        Ok(Shows::New)
    }

    fn symlink(&mut self, at: &At, set: &SetAttr, target: &[u8]) -> Outcome {
        let Some(status) = rules::target_status(target) else {
            return self.make(at, FileType::Symlink, set, |dir, name| symlinkat(target, dir, name));
        };
        self.expect_free(at)?;
        Err(status)
    }

    fn node(&mut self, at: &At, kind: FileType, set: &SetAttr, device: (u32, u32)) -> Outcome {
        let host_kind = match kind {
            FileType::Fifo => rustix::fs::FileType::Fifo,
            FileType::Socket => rustix::fs::FileType::Socket,
            FileType::Block => rustix::fs::FileType::BlockDevice,
            FileType::Character => rustix::fs::FileType::CharacterDevice,
            _ => {
                self.expect_free(at)?;
                return Err(rules::NO_NODE);
            }
        };
        let device = makedev(device.0, device.1);
        self.make(at, kind, set, |dir, name| mknodat(dir, name, host_kind, mode_of(set), device))
    }

    /// Fails unless the name could be given to something, permission to write aside.
    fn expect_free(&self, at: &At) -> Step<()> {
        let dir = self.enter(at, Naming::Make)?;
        match statat(dir, &at.name[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Status::Exist),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(status_of(error)),
        }
    }

    fn remove(&self, at: &At, naming: Naming, flags: AtFlags) -> Outcome {
        let dir = self.enter(at, naming)?;
        said(self.user.acting(|| unlinkat(dir, &at.name[..], flags)))?;
        Ok(Shows::Done)
    }

    fn rename(&self, from: &At, to: &At) -> Outcome {
        let (from_dir, to_dir) = (self.search(from)?, self.search(to)?);
        for at in [from, to] {
            rules::name_status(Naming::Rename, &at.name).map_or(Ok(()), Err)?;
        }
        let call = || renameat(from_dir, &from.name[..], to_dir, &to.name[..]);
        said(self.user.acting(call))?;
        Ok(Shows::Done)
    }

    fn link(&self, object: usize, to: &At) -> Outcome {
        let object = self.alive(object)?;
        let dir = self.enter(to, Naming::Make)?;
        // Some hosts refuse links to other people's files (fs.protected_hardlinks), as a measure
        // against tricks with local programs; with this power they do not.
        let call = || {
            let flags = AtFlags::SYMLINK_FOLLOW;
            linkat(rustix::fs::CWD, object.path(), dir, &to.name[..], flags)
        };
        match self.user.acting_with(CapabilitySet::FOWNER, call) {
            Err(Errno::PERM) if object.kind == FileType::Directory => Err(rules::LINK_OF_DIRECTORY),
            outcome => said(outcome).map(|()| Shows::Done),
        }
    }

    /// The names in a directory with the kinds of what they lead to; none of what is no directory.
    pub fn children(&self, dir: usize) -> BTreeMap<Vec<u8>, FileType> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(self.objects[dir].path(), flags, Mode::empty());
        let Ok(opened) = opened else { return BTreeMap::new() };
        let entries = rustix::fs::Dir::read_from(&opened).expect("a directory is open");
        let mut names = BTreeMap::new();
        for entry in entries {
            let entry = entry.expect("a directory in memory can be read");
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                let stat = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW);
                names.insert(name.to_vec(), kind_of(&stat.expect("it was just listed")));
            }
        }
        names
    }

    fn list(&self, object: usize) -> Outcome {
        let dir = self.alive(object)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = said(self.user.acting(|| open(dir.path(), flags, Mode::empty())))?;
        let mut names = BTreeMap::new();
        for entry in said(rustix::fs::Dir::read_from(&dir))? {
            let name = said(entry)?.file_name().to_bytes().to_vec();
            // The number in an entry is not the object's where something is mounted.
            let place = match &name[..] {
                b"." => Some(object),
                _ => self.place(&said(openat(&dir, &name[..], REFER, Mode::empty()))?),
            };
            names.insert(name, place);
        }
        Ok(Shows::Names(names))
    }
}

/// The mode to make an object with.
pub fn mode_of(set: &SetAttr) -> Mode {
    Mode::from_raw_mode(set.mode.unwrap_or(0))
}
