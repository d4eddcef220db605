//! Plan: what a request would do to the state at FP, worked out before anything is done.
//! Owns: the semantics of every NFSv3 procedure; one file per family.
//! Never: changes the shadow's state, reads a clock, or decides on missing knowledge.
//! Invariant: effects are written only after every check has passed, and hold results, never
//! operations.
//! Source: RFC 1813 section 3.3; POSIX where the RFC leaves room.

mod attr;
mod create;
mod info;
mod link;
mod list;
mod lookup;
mod read;
mod remove;
mod rename;
mod write;

use crate::access;
use crate::blocks::LogBytes;
use crate::effect::EffectWriter;
use crate::handle::{Target, Volume};
use crate::inode::{BLOCK_BYTES_U64, Entry, Inode, Known, NAME_BYTES_MAX, Super};
use crate::need::Need;
use crate::request::{
    Attributes, BeforeAttr, Credential, DirName, FileType, Request, Response, Status, Time, Wcc,
};
use crate::shadow::Shadow;

/// Most names of one object.
pub const LINK_MAX: u32 = i32::MAX as u32;
/// Largest length of a file, in bytes.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Most bytes one READ returns or one WRITE takes.
pub const TRANSFER_MAX: u32 = 1 << 20;

/// What a plan depends on besides the state and the request.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who asks.
    pub credential: Credential<'a>,
    /// The record's time: later than every time in the log; the caller sees to that.
    pub now: Time,
    /// The volume asked.
    pub volume: &'a Volume,
    /// The bytes of the log that the shadow refers to.
    pub log: &'a dyn LogBytes,
    /// What the group has room for.
    pub room: Room,
}

/// What a group has room for, whatever the volume may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Blocks that a WRITE may touch: each takes a new place, an overwritten one until the next checkpoint.
    pub blocks: u64,
    /// Blocks that are free or may still come to be.
    pub free_blocks: u64,
    /// Whether anything may be made: names, objects, data. What only removes, shortens or changes attributes
    /// has a reserve of its own.
    pub grows: bool,
}

impl Room {
    /// Where nothing ends.
    pub const ENDLESS: Room = Room { blocks: u64::MAX, free_blocks: u64::MAX, grows: true };
}

/// What came of planning.
#[derive(Debug)]
pub enum Planned {
    /// A modification, or one that succeeded with nothing to change: its effects are in the buffer, the reply waits
    /// until the record commits.
    Record {
        /// The reply.
        response: Response,
        /// Bytes written to the buffer of effects.
        effects_len: usize,
    },
    /// No modification comes of it.
    Answer {
        /// The reply.
        response: Response,
        /// The highest op whose effect the reply shows; it is held until CP covers that op.
        shows: u64,
        /// A request that would have modified and failed: the reply waits for CP to reach FP.
        failed_modification: bool,
    },
    /// Memory lacks what was pushed to `needs`; fetch it and plan again.
    Need,
}

/// Plans `request` against the state at FP.
///
/// `effects` receives the effects of a modification; it must have room for
/// [`crate::effect::effects_len_max`] bytes, or this panics where the effects do not fit. READ's bytes are appended to `data`. What
/// is missing is appended to `needs`; then nothing else was written. The shadow changes only in
/// what it remembers about the use of its cache.
pub fn plan(
    shadow: &mut Shadow,
    request: &Request<'_>,
    context: &Context<'_>,
    effects: &mut [u8],
    data: &mut Vec<u8>,
    needs: &mut Vec<Need>,
) -> Planned {
    let needs_before = needs.len();
    let mut p =
        Planner { shadow, context, out: EffectWriter::new(effects), needs, shows: 0, wrote: false };
    let planned = dispatch(&mut p, request, data);
    if !matches!(planned, Planned::Need) {
        needs.truncate(needs_before);
    }
    planned
}

fn dispatch(p: &mut Planner<'_, '_>, request: &Request<'_>, data: &mut Vec<u8>) -> Planned {
    match *request {
        Request::Null => p.answer(Response::Null),
        Request::GetAttr { handle } => attr::get(p, handle),
        Request::SetAttr { handle, set, guard } => attr::set(p, handle, &set, guard),
        Request::Lookup { what } => lookup::lookup(p, &what),
        Request::Access { handle, want } => lookup::access(p, handle, want),
        Request::ReadLink { handle } => link::read(p, handle),
        Request::Read { handle, offset, count } => read::read(p, handle, offset, count, data),
        Request::Write { handle, offset, count, data, .. } => {
            write::write(p, handle, offset, count, data)
        }
        Request::Create { what, how } => create::create(p, &what, &how),
        Request::MkDir { what, set } => create::mkdir(p, &what, &set),
        Request::SymLink { what, set, target } => create::symlink(p, &what, &set, target),
        Request::MkNod { what, kind, set, device } => create::mknod(p, &what, kind, &set, device),
        Request::Remove { what } => remove::remove(p, &what),
        Request::RmDir { what } => remove::rmdir(p, &what),
        Request::Rename { from, to } => rename::rename(p, &from, &to),
        Request::Link { handle, to } => link::link(p, handle, &to),
        Request::ReadDir { handle, cookie, count, .. } => list::read_dir(p, handle, cookie, count),
        Request::ReadDirPlus { handle, cookie, dir_count, max_count, .. } => {
            list::read_dir_plus(p, handle, cookie, dir_count, max_count)
        }
        Request::FsStat { handle } => info::fs_stat(p, handle),
        Request::FsInfo { handle } => info::fs_info(p, handle),
        Request::PathConf { handle } => info::path_conf(p, handle),
        Request::Commit { handle, .. } => info::commit(p, handle),
    }
}

/// Why a step of a plan goes no further.
enum Halt {
    /// The request fails so.
    Fail(Status),
    /// Knowledge is missing; the needs say which.
    Need,
}

type Step<T> = Result<T, Halt>;

/// The request fails with `status`.
fn fail<T>(status: Status) -> Step<T> {
    Err(Halt::Fail(status))
}

/// Fails with `status` unless `condition` holds.
fn check(condition: bool, status: Status) -> Step<()> {
    if condition { Ok(()) } else { Err(Halt::Fail(status)) }
}

/// An object and its number.
#[derive(Clone, Copy)]
struct Object {
    ino: u64,
    inode: Inode,
}

impl Object {
    /// What the client compares its cache with.
    fn before(&self) -> BeforeAttr {
        BeforeAttr {
            size: shown_size(&self.inode),
            mtime: self.inode.mtime,
            ctime: self.inode.ctime,
        }
    }

    fn is_dir(&self) -> bool {
        self.inode.kind == FileType::Directory
    }
}

/// A directory has no length of its own; clients want to see one.
fn shown_size(inode: &Inode) -> u64 {
    if inode.kind == FileType::Directory { BLOCK_BYTES_U64 } else { inode.size }
}

/// `fattr3` of the object `ino`.
pub fn attributes(volume: &Volume, ino: u64, inode: &Inode) -> Attributes {
    Attributes {
        kind: inode.kind,
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: shown_size(inode),
        used: inode.used_blocks.saturating_mul(BLOCK_BYTES_U64),
        device: inode.device,
        fsid: volume.fsid,
        fileid: ino,
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
    }
}

/// One request being planned.
struct Planner<'a, 'b> {
    shadow: &'a mut Shadow,
    context: &'a Context<'b>,
    out: EffectWriter<'a>,
    needs: &'a mut Vec<Need>,
    /// The highest op whose effect was looked at.
    shows: u64,
    /// Whether effects were written: from then on the plan may not fail.
    wrote: bool,
}

/// What the planner knows and what it lacks.
impl Planner<'_, '_> {
    fn lack<T>(&mut self, need: Need) -> Step<T> {
        self.needs.push(need);
        Err(Halt::Need)
    }

    /// Lacks one block's content: fails if nobody has it.
    fn lack_block<T>(&mut self, ino: u64, block: u64) -> Step<T> {
        check(!self.shadow.is_lost(ino, block), Status::Io)?;
        self.lack(Need::Blocks { ino, first: block, count: 1 })
    }

    /// The inode `ino`, or `None` if there is none.
    fn inode(&mut self, ino: u64) -> Step<Option<Inode>> {
        match self.shadow.inode(ino) {
            Known::Is(inode, op) => {
                self.shows = self.shows.max(op);
                Ok(Some(inode))
            }
            Known::Absent(op) => {
                self.shows = self.shows.max(op);
                Ok(None)
            }
            Known::Unknown => self.lack(Need::Inode(ino)),
        }
    }

    /// The object that `entry` names. An entry without an inode is a damaged image, not a request's
    /// fault.
    fn named(&mut self, ino: u64) -> Step<Object> {
        match self.inode(ino)? {
            Some(inode) => Ok(Object { ino, inode }),
            None => fail(Status::Io),
        }
    }

    /// `object` is read, which may be the time to set its access time.
    fn note_access(&mut self, object: &Object) {
        self.shadow.note_access(object.ino, &object.inode, self.context.now);
    }

    /// The object of a handle that came from a client.
    fn resolve(&mut self, handle: &[u8]) -> Step<Object> {
        let target = self.target(handle)?;
        self.living(target)
    }

    /// What a handle names, if it is one of ours.
    fn target(&self, handle: &[u8]) -> Step<Target> {
        self.context.volume.handles.read(handle).map_err(|error| Halt::Fail(error.status()))
    }

    /// The object that a handle names, if it still lives.
    fn living(&mut self, target: Target) -> Step<Object> {
        match self.inode(target.ino)? {
            Some(inode) if inode.generation == target.generation => {
                Ok(Object { ino: target.ino, inode })
            }
            _ => fail(Status::Stale),
        }
    }

    /// The entry `name` of `dir`, or `None` if there is none.
    fn entry(&mut self, dir: u64, name: &[u8]) -> Step<Option<Entry>> {
        match self.shadow.entry(dir, name) {
            Known::Is(entry, op) => {
                self.shows = self.shows.max(op);
                Ok(Some(entry))
            }
            Known::Absent(op) => {
                self.shows = self.shows.max(op);
                Ok(None)
            }
            Known::Unknown => self.lack(Need::Entry { dir, name: name.into() }),
        }
    }

    /// The counters of the whole file system.
    fn super_block(&mut self) -> Step<Super> {
        match self.shadow.super_block() {
            Known::Is(value, op) => {
                self.shows = self.shows.max(op);
                Ok(value)
            }
            // A formatted image has them.
            Known::Absent(_) => fail(Status::Io),
            Known::Unknown => self.lack(Need::Super),
        }
    }

    /// The directory of `what`, which may be searched, and the entry that `what` names there.
    /// `dots` are the answers to "." and "..". `seen` receives the directory as soon as it is
    /// known, for the reply of a failure.
    ///
    /// The entry is a step of its own: a system call with two paths finds both directories before
    /// it looks at either name.
    fn open_dir(
        &mut self,
        what: &DirName<'_>,
        dots: (Status, Status),
        seen: &mut Option<Object>,
    ) -> Step<(Object, Step<Option<Entry>>)> {
        let target = self.target(what.dir)?;
        let dir = match self.living(target) {
            Ok(dir) => dir,
            Err(halt) => {
                // Ask for the entry too, so that one fetch suffices.
                if matches!(halt, Halt::Need) && judge_name(what.name, dots).is_ok() {
                    let _ = self.entry(target.ino, what.name);
                }
                return Err(halt);
            }
        };
        *seen = Some(dir);
        check(dir.is_dir(), Status::NotDir)?;
        let searchable = access::allows(&dir.inode, &self.context.credential, access::EXECUTE);
        check(searchable, Status::Access)?;
        let entry = judge_name(what.name, dots).and_then(|()| self.entry(dir.ino, what.name));
        Ok((dir, entry))
    }

    /// Fails unless the entries of `dir` may be changed by who asks.
    fn check_writable(&self, dir: &Object) -> Step<()> {
        let writable = access::allows(&dir.inode, &self.context.credential, access::WRITE);
        check(writable, Status::Access)
    }
}

/// What the planner answers.
impl Planner<'_, '_> {
    fn attributes(&self, object: &Object) -> Attributes {
        attributes(self.context.volume, object.ino, &object.inode)
    }

    /// `wcc_data` of an object that was `before` and is `after` now.
    fn wcc(&self, before: &Object, after: &Object) -> Wcc {
        Wcc { before: Some(before.before()), after: Some(self.attributes(after)) }
    }

    /// `wcc_data` of an object that stays as it is, as far as it is known.
    fn unchanged(&self, object: &Option<Object>) -> Wcc {
        object.as_ref().map(|o| self.wcc(o, o)).unwrap_or_default()
    }

    /// The answer to a request that never modifies.
    fn answer(&self, response: Response) -> Planned {
        Planned::Answer { response, shows: self.shows, failed_modification: false }
    }

    /// The end of a request that never modifies.
    fn settle_read(
        &self,
        step: Step<Response>,
        failed: impl FnOnce(Status) -> Response,
    ) -> Planned {
        match step {
            Ok(response) => self.answer(response),
            Err(Halt::Fail(status)) => self.answer(failed(status)),
            Err(Halt::Need) => Planned::Need,
        }
    }

    /// The end of a request that may modify. What succeeds makes a record, even where nothing changed: a copy of it
    /// that comes late finds another state, and must find its reply instead.
    fn settle(
        &mut self,
        step: Step<Response>,
        failed: impl FnOnce(&Self, Status) -> Response,
    ) -> Planned {
        match step {
            Ok(response) => {
                let out = std::mem::replace(&mut self.out, EffectWriter::new(&mut []));
                let effects_len = out.finish().expect("the caller makes room for the effects");
                Planned::Record { response, effects_len }
            }
            Err(Halt::Fail(status)) => {
                assert!(!self.wrote, "a failure has no effects");
                let response = failed(self, status);
                Planned::Answer { response, shows: self.shows, failed_modification: true }
            }
            Err(Halt::Need) => {
                assert!(!self.wrote, "a plan writes only what it is sure of");
                Planned::Need
            }
        }
    }
}

/// What the planner writes: the effects that several families share.
impl<'a> Planner<'a, '_> {
    /// The writer of effects. From here on the plan may not fail.
    fn out(&mut self) -> &mut EffectWriter<'a> {
        self.wrote = true;
        &mut self.out
    }

    /// Enters `name` for the object `ino` into `dir`, under a cookie never used before.
    fn add_entry(&mut self, dir: &mut Object, ino: u64, kind: FileType, name: &[u8]) {
        let entry = Entry { ino, cookie: dir.inode.next_cookie, kind };
        dir.inode.next_cookie += 1;
        dir.inode.entry_count += 1;
        self.out().link(dir.ino, &entry, name);
    }

    /// Takes the entry `name` out of `dir`.
    fn take_entry(&mut self, dir: &mut Object, entry: &Entry, name: &[u8]) {
        dir.inode.entry_count = dir.inode.entry_count.saturating_sub(1);
        self.out().unlink(dir.ino, entry.cookie, name);
    }

    /// Records that the entries of `dir` changed now, with its counts as they stand in `dir`.
    fn touch_dir(&mut self, dir: &mut Object) {
        let now = self.context.now;
        dir.inode.mtime = now;
        dir.inode.ctime = now;
        let Inode { nlink, next_cookie, entry_count, .. } = dir.inode;
        self.out().touch_dir(dir.ino, now, now, nlink, next_cookie, entry_count);
    }

    /// Takes one name from an object: the last one takes the object and its blocks along, and
    /// `counts` is brought up to date. The caller writes `counts` if they changed.
    fn drop_name(&mut self, victim: &Object, counts: &mut Super) {
        if !victim.is_dir() && victim.inode.nlink > 1 {
            let mut inode = victim.inode;
            inode.nlink -= 1;
            inode.ctime = self.context.now;
            return self.out().set_inode(victim.ino, &inode);
        }
        self.out().drop_inode(victim.ino);
        counts.used_inodes = counts.used_inodes.saturating_sub(1);
        counts.used_blocks = counts.used_blocks.saturating_sub(victim.inode.used_blocks);
    }
}

/// Refuses names that no entry can have; `dots` are the answers to "." and "..".
fn judge_name(name: &[u8], dots: (Status, Status)) -> Step<()> {
    match name {
        b"" => fail(Status::Access),
        b"." => fail(dots.0),
        b".." => fail(dots.1),
        _ if name.len() > NAME_BYTES_MAX => fail(Status::NameTooLong),
        _ => check(!name.iter().any(|b| matches!(b, 0 | b'/')), Status::Inval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &[u8]) -> Option<Status> {
        match judge_name(name, (Status::Inval, Status::Exist)) {
            Err(Halt::Fail(status)) => Some(status),
            _ => None,
        }
    }

    #[test]
    fn names_are_judged_by_their_bytes() {
        assert_eq!(judged(b""), Some(Status::Access));
        assert_eq!(judged(b"."), Some(Status::Inval));
        assert_eq!(judged(b".."), Some(Status::Exist));
        assert_eq!(judged(b"..."), None);
        assert_eq!(judged(b"a/b"), Some(Status::Inval));
        assert_eq!(judged(b"a\0b"), Some(Status::Inval));
        assert_eq!(judged(&[0xff; NAME_BYTES_MAX]), None);
        assert_eq!(judged(&[0xff; NAME_BYTES_MAX + 1]), Some(Status::NameTooLong));
    }
}
