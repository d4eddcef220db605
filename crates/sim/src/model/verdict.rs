//! Whether a reply is right for one state of the model.
//! Owns: the comparison of every field that RFC 1813 and the design determine.
//! Never: changes a value; it completes what only the server knows (handles, file numbers, times).
//! Invariant: what was learned once never changes again.

use harp_node::fs::request::{
    Attributes, BeforeAttr, FileType, HandleBytes, Listing, Response, Status, Wcc,
};

use super::tree::{Ino, Kind, Model, ROOT};
use crate::hash::hash;
use crate::intent::{How, Intent};
use crate::names::Name;

/// Why a reply does not fit a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch(pub &'static str);

/// A reply to compare.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// MNT's.
    Mount(&'a HandleBytes),
    /// An NFS procedure's, READ's data apart.
    Nfs(&'a Response, &'a [u8]),
}

/// What the client takes from a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status; `None` while there is no answer.
    pub status: Option<Status>,
    /// The object that the reply shows or made.
    pub ino: Option<Ino>,
}

type Fits<T> = Result<T, Mismatch>;

fn need(holds: bool, what: &'static str) -> Fits<()> {
    if holds { Ok(()) } else { Err(Mismatch(what)) }
}

/// The status that a response carries.
pub fn status_of(response: &Response) -> Status {
    match response {
        Response::Null => Status::Ok,
        Response::GetAttr { status, .. }
        | Response::Wcc { status, .. }
        | Response::Lookup { status, .. }
        | Response::Access { status, .. }
        | Response::ReadLink { status, .. }
        | Response::Read { status, .. }
        | Response::Write { status, .. }
        | Response::Create { status, .. }
        | Response::Rename { status, .. }
        | Response::Link { status, .. }
        | Response::ReadDir { status, .. }
        | Response::ReadDirPlus { status, .. }
        | Response::FsStat { status, .. }
        | Response::FsInfo { status, .. }
        | Response::PathConf { status, .. }
        | Response::Commit { status, .. } => *status,
    }
}

/// Where a reply stands: what it saw before and what holds after it. Equal for all that changes nothing.
#[derive(Clone, Copy, Debug)]
struct Moment {
    before: u64,
    after: u64,
}

impl Model {
    /// Judges the reply to a request that was carried out as `op`, where it made or changed `touched`.
    pub fn check_change(
        &mut self,
        op: u64,
        intent: &Intent,
        touched: Option<Ino>,
        content: Content<'_>,
    ) -> Fits<Answer> {
        let Content::Nfs(response, _) = content else {
            return Err(Mismatch("a mount reply to a modifying request"));
        };
        need(status_of(response) == Status::Ok, "a failure, yet the change is in the log")?;
        let moment = Moment { before: op - 1, after: op };
        self.learning = Some((op, op));
        self.check_modified(intent, response, touched, moment)?;
        Ok(Answer { status: Some(Status::Ok), ino: touched })
    }

    /// Judges a reply that changed nothing, against the state right after `at`: one of the states from
    /// `span.0` to `span.1` that it may show.
    pub fn check_view(
        &mut self,
        at: u64,
        span: (u64, u64),
        intent: &Intent,
        content: Content<'_>,
    ) -> Fits<Answer> {
        // A reply that fits in part only, or fits several states, must leave no trace: first it is
        // compared, then taken in.
        self.learning = None;
        let answer = self.compare_view(at, intent, content);
        let named = match *intent {
            Intent::Lookup { dir, name } | Intent::Create { dir, name, .. } => Some((dir, name)),
            _ => None,
        };
        let same =
            named.is_none_or(|(dir, name)| self.inode(dir).entries[name.index()].is_same(span));
        if answer.is_ok() && same {
            self.learning = Some(span);
            self.compare_view(at, intent, content)?;
        }
        answer
    }

    fn compare_view(&mut self, at: u64, intent: &Intent, content: Content<'_>) -> Fits<Answer> {
        match content {
            Content::Mount(handle) => {
                self.learn_handle(ROOT, handle)?;
                Ok(Answer { status: Some(Status::Ok), ino: Some(ROOT) })
            }
            Content::Nfs(response, _) if intent.modifies() => {
                self.check_unmodified(at, intent, response)
            }
            Content::Nfs(response, data) => self.check_read(at, intent, response, data),
        }
    }

    fn check_unmodified(&mut self, at: u64, intent: &Intent, response: &Response) -> Fits<Answer> {
        let plan = self.plan(intent, at);
        let status = status_of(response);
        let answer = Answer { status: Some(status), ino: None };
        if plan.status != Status::Ok {
            let fits = status == plan.status || Some(status) == plan.or;
            need(fits, "another status than the state demands")?;
            return Ok(answer);
        }
        // How much room there is, the model does not know.
        if self.may_run_out && status == Status::NoSpc && matches!(intent, Intent::Write { .. }) {
            return Ok(answer);
        }
        let takes_content = match intent {
            Intent::Write { .. } | Intent::Truncate { .. } => true,
            Intent::Create { how, .. } => matches!(how, How::Unchecked(Some(_))),
            _ => false,
        };
        if self.may_lose_blocks && status == Status::Io && takes_content {
            return Ok(answer);
        }
        need(status == Status::Ok, "a failure where the request would succeed")?;
        Err(Mismatch("a success that is in no log"))
    }

    /// Compares the body of a modifying request's success.
    fn check_modified(
        &mut self,
        intent: &Intent,
        response: &Response,
        touched: Option<Ino>,
        moment: Moment,
    ) -> Fits<()> {
        match (intent, response) {
            (
                Intent::Write { ino, count, .. },
                Response::Write { wcc, count: wrote, verifier, .. },
            ) => {
                need(count == wrote, "another count than was written")?;
                let (former, upto) = &self.former_verifiers;
                if moment.after > *upto || !former.contains(verifier) {
                    need(!former.contains(verifier), "a write verifier of an older epoch")?;
                    let verifier_known = *self.write_verifier.get_or_insert(*verifier);
                    need(verifier_known == *verifier, "the write verifier changed")?;
                }
                self.check_wcc(*ino, wcc, moment)
            }
            (
                Intent::Truncate { ino, .. } | Intent::Chmod { ino, .. },
                Response::Wcc { wcc, .. },
            ) => self.check_wcc(*ino, wcc, moment),
            (Intent::Remove { dir, .. } | Intent::RmDir { dir, .. }, Response::Wcc { wcc, .. }) => {
                self.check_wcc(*dir, wcc, moment)
            }
            (
                Intent::Create { dir, .. } | Intent::MkDir { dir, .. },
                Response::Create { ok, attr, dir: wcc, .. },
            ) => {
                let made = touched.ok_or(Mismatch("a success that made nothing"))?;
                if let Some(handle) = ok {
                    self.learn_handle(made, handle)?;
                }
                if let Some(attr) = attr {
                    self.check_attr(made, attr, moment.after)?;
                }
                self.check_wcc(*dir, wcc, moment)
            }
            (Intent::Rename { from, to }, Response::Rename { from: from_wcc, to: to_wcc, .. }) => {
                self.check_wcc(from.0, from_wcc, moment)?;
                self.check_wcc(to.0, to_wcc, moment)
            }
            _ => Err(Mismatch("a reply of another procedure")),
        }
    }

    fn check_read(
        &mut self,
        at: u64,
        intent: &Intent,
        response: &Response,
        data: &[u8],
    ) -> Fits<Answer> {
        let status = status_of(response);
        let subject = match *intent {
            Intent::GetAttr { ino } | Intent::Read { ino, .. } => ino,
            Intent::Lookup { dir, .. } | Intent::ReadDir { dir } => dir,
            _ => return Err(Mismatch("a reply of another procedure")),
        };
        let answer = Answer { status: Some(status), ino: None };
        if self.attr_at(subject, at).is_none() {
            need(status == Status::Stale, "an answer about an object that is gone")?;
            return Ok(answer);
        }
        if let (Intent::Lookup { dir, name }, Response::Lookup { dir: dir_attr, .. }) =
            (intent, response)
            && self.entry_at(*dir, *name, at).is_none()
        {
            need(status == Status::NoEnt, "a name that is not there")?;
            if let Some(attr) = dir_attr {
                self.check_attr(*dir, attr, at)?;
            }
            return Ok(answer);
        }
        // While the copy that has a damaged block's content is away.
        if self.may_lose_blocks && status == Status::Io && matches!(intent, Intent::Read { .. }) {
            return Ok(answer);
        }
        need(status == Status::Ok, "a failure of a read that would succeed")?;
        let ino = self.check_shown(at, intent, response, data)?;
        Ok(Answer { ino: Some(ino), ..answer })
    }

    /// Compares what a successful read shows; returns the object it shows.
    fn check_shown(
        &mut self,
        at: u64,
        intent: &Intent,
        response: &Response,
        data: &[u8],
    ) -> Fits<Ino> {
        match (intent, response) {
            (Intent::GetAttr { ino }, Response::GetAttr { ok: Some(attr), .. }) => {
                self.check_attr(*ino, attr, at)?;
                Ok(*ino)
            }
            (
                Intent::Lookup { dir, name },
                Response::Lookup { ok: Some(handle), attr, dir: d, .. },
            ) => {
                let ino = self.entry_at(*dir, *name, at).ok_or(Mismatch("no such name"))?;
                self.learn_handle(ino, handle)?;
                if let Some(attr) = attr {
                    self.check_attr(ino, attr, at)?;
                }
                if let Some(attr) = d {
                    self.check_attr(*dir, attr, at)?;
                }
                Ok(ino)
            }
            (Intent::Read { ino, offset, count }, Response::Read { attr, count: got, eof, .. }) => {
                let size = self.attr_at(*ino, at).ok_or(Mismatch("no such file"))?.size;
                let wanted = size.saturating_sub(*offset).min(*count as u64);
                need(*got as u64 == wanted && data.len() as u64 == wanted, "another length")?;
                need(*eof == (offset + wanted >= size), "another end of file")?;
                need(self.bytes_equal(*ino, *offset, data, at), "other bytes than were written")?;
                if let Some(attr) = attr {
                    self.check_attr(*ino, attr, at)?;
                }
                Ok(*ino)
            }
            (Intent::ReadDir { dir }, Response::ReadDir { dir: attr, listing, .. }) => {
                self.check_listing(*dir, listing, at)?;
                if let Some(attr) = attr {
                    self.check_attr(*dir, attr, at)?;
                }
                Ok(*dir)
            }
            _ => Err(Mismatch("a reply of another procedure")),
        }
    }

    fn check_listing(&self, dir: Ino, listing: &Listing, at: u64) -> Fits<()> {
        need(listing.end, "a listing that does not reach its end")?;
        let ascending = listing.entries.windows(2).all(|pair| pair[0].cookie < pair[1].cookie);
        need(ascending, "cookies out of order")?;
        let fits =
            |ino: Ino, fileid: u64| self.inode(ino).fileid.is_none_or(|known| known == fileid);
        let mut named = 0;
        for entry in &listing.entries {
            let parent = self.attr_at(dir, at).ok_or(Mismatch("no such directory"))?.parent;
            let ino = match &listing.names[entry.name.clone()] {
                b"." => dir,
                b".." => parent,
                name => {
                    named += 1;
                    let name = Name::named(name).ok_or(Mismatch("a name that nobody gave"))?;
                    self.entry_at(dir, name, at).ok_or(Mismatch("a name that is not there"))?
                }
            };
            need(fits(ino, entry.fileid), "another file number")?;
        }
        let names = (0..Name::COUNT).filter(|n| self.entry_at(dir, Name::at(*n), at).is_some());
        need(names.count() == named, "a name is missing")
    }

    /// Compares attributes right after `at`, and learns times and the file number on success.
    fn check_attr(&mut self, ino: Ino, shown: &Attributes, at: u64) -> Fits<()> {
        let (fileids, learning) = (&mut self.fileids, self.learning);
        let inode = &mut self.inodes[ino.0 as usize];
        let same = learning.is_some_and(|span| inode.attr.is_same(span));
        let attr = inode.attr.at_mut(at).ok_or(Mismatch("an object that is not there yet"))?;
        let kind = match inode.kind {
            Kind::File => FileType::Regular,
            Kind::Directory => FileType::Directory,
        };
        need(shown.kind == kind, "another kind")?;
        need(shown.nlink == attr.nlink, "another number of names")?;
        need(attr.mode.is_none_or(|mode| mode == shown.mode), "another mode")?;
        need(kind == FileType::Directory || shown.size == attr.size, "another size")?;
        need((shown.uid, shown.gid) == (self.owner, 0), "another owner")?;
        let times = (shown.mtime, shown.ctime);
        match attr.times {
            Some(known) => need(known == times, "other times")?,
            None => {
                let forward = attr.after.is_none_or(|after| times.1 >= after);
                need(forward, "the change time went back")?;
            }
        }
        need(inode.fileid.is_none_or(|known| known == shown.fileid), "another file number")?;
        if learning.is_none() {
            return Ok(());
        }
        if inode.fileid.is_none() {
            need(fileids.insert(shown.fileid), "the file number of another object")?;
            inode.fileid = Some(shown.fileid);
        }
        if same {
            attr.times = Some(times);
        }
        Ok(())
    }

    fn check_wcc(&mut self, ino: Ino, wcc: &Wcc, moment: Moment) -> Fits<()> {
        if let Some(before) = &wcc.before {
            self.check_before(ino, before, moment.before)?;
        }
        match &wcc.after {
            Some(after) => self.check_attr(ino, after, moment.after),
            None => Ok(()),
        }
    }

    fn check_before(&mut self, ino: Ino, before: &BeforeAttr, at: u64) -> Fits<()> {
        let inode = self.inode(ino);
        let Some(attr) = inode.attr.at(at) else { return Ok(()) };
        need(inode.kind == Kind::Directory || before.size == attr.size, "another size before")?;
        let times = (before.mtime, before.ctime);
        need(attr.times.is_none_or(|known| known == times), "other times before")
    }

    fn learn_handle(&mut self, ino: Ino, handle: &HandleBytes) -> Fits<()> {
        let known = self.inode(ino).handle;
        if let Some(known) = known {
            return need(known == *handle, "another handle");
        }
        need(!self.handles.contains(&hash(handle.as_slice())), "the handle of another object")?;
        if self.learning.is_some() {
            self.handles.insert(hash(handle.as_slice()));
            self.inode_mut(ino).handle = Some(*handle);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::How;

    fn attributes(mode: u32, fileid: u64, time: u32) -> Attributes {
        let time = harp_node::fs::request::Time { seconds: time, nanos: 0 };
        Attributes {
            kind: FileType::Regular,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            device: (0, 0),
            fsid: 1,
            fileid,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    fn created(handle: u8, attr: Attributes) -> Response {
        let ok = Some(HandleBytes::new(&[handle; 32]));
        Response::Create { status: Status::Ok, ok, attr: Some(attr), dir: Wcc::default() }
    }

    #[test]
    fn a_reply_is_held_to_what_earlier_ones_told() {
        let mut model = Model::default();
        let create =
            |n| Intent::Create { dir: ROOT, name: Name::file(n), how: How::Guarded, mode: 0o600 };
        let made = model.apply(1, &create(0)).1;
        let reply = created(5, attributes(0o600, 77, 9));
        let answer = model.check_change(1, &create(0), made, Content::Nfs(&reply, &[])).unwrap();
        assert_eq!(answer.ino, made);

        let second = model.apply(2, &create(1)).1;
        let reply = created(5, attributes(0o600, 78, 9));
        let error = model.check_change(2, &create(1), second, Content::Nfs(&reply, &[]));
        assert_eq!(error, Err(Mismatch("the handle of another object")));

        let get = Intent::GetAttr { ino: made.unwrap() };
        let mut see = |attr| {
            let reply = Response::GetAttr { status: Status::Ok, ok: Some(attr) };
            model.check_view(2, (2, 2), &get, Content::Nfs(&reply, &[]))
        };
        assert!(see(attributes(0o600, 77, 9)).is_ok());
        assert_eq!(see(attributes(0o600, 77, 8)), Err(Mismatch("other times")));
        assert_eq!(see(attributes(0o601, 77, 9)), Err(Mismatch("another mode")));
    }

    #[test]
    fn a_stale_view_fits_only_the_state_it_was_true_in() {
        let mut model = Model::default();
        let name = Name::file(0);
        model.apply(1, &Intent::Create { dir: ROOT, name, how: How::Guarded, mode: 0 });
        let lookup = Intent::Lookup { dir: ROOT, name };
        let reply = Response::Lookup { status: Status::NoEnt, ok: None, attr: None, dir: None };
        assert!(model.check_view(0, (0, 1), &lookup, Content::Nfs(&reply, &[])).is_ok());
        assert!(model.check_view(1, (0, 1), &lookup, Content::Nfs(&reply, &[])).is_err());
    }
}
