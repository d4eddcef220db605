//! Served: the operations as NFSv3 calls to a running group.
//! Owns: the requests, and reading from each reply everything that can be compared.
//! Never: looks at the host.
//! Invariant: an operation is answered once; what was put off (JUKEBOX) is asked for again.
//! Source: RFC 1813, section 3.3.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use harp_bench::client::Client;
use harp_bench::request::{
    Attributes, BeforeAttr, DirName, HandleBytes, Listing, Request, Response, Status, Time, Wcc,
};

use super::E2eError;
use super::object::Object;
use super::operation::{At, Guard, Operation};
use super::outcome::{Outcome, Shows};
use super::user::User;

/// FILE_SYNC.
const STABLE: u32 = 2;
/// Most calls that one listing may take: the directories here are small.
const CALLS_PER_LISTING_MAX: usize = 1000;

/// How often a call is made that the server puts off, and the time between.
const ATTEMPTS_MAX: u32 = 1000;
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What came back.
#[derive(Debug)]
pub struct Answered {
    pub outcome: Outcome,
    /// A new object.
    pub made: Option<(HandleBytes, Attributes)>,
    /// Attributes that the reply shows, with the objects' places.
    pub after: Vec<(usize, Attributes)>,
    /// What the reply says was before.
    pub before: Vec<(usize, BeforeAttr)>,
}

/// One operation at the server.
pub struct Served<'a> {
    pub client: &'a mut Client,
    pub objects: &'a [Object],
    pub user: &'a User,
}

impl Served<'_> {
    /// Performs the operation.
    pub fn perform(&mut self, operation: &Operation) -> Result<Answered, E2eError> {
        if let Operation::List { object, bytes, plus } = operation {
            return self.list(*object, *bytes, *plus);
        }
        let objects = self.objects;
        let (response, data) = self.call(&request(operation, objects))?;
        let mut answered = Answered::of(Ok(Shows::Done));
        self.read(operation, response, data, &mut answered);
        Ok(answered)
    }

    /// The attributes of one object.
    pub fn look(&mut self, object: usize) -> Result<Result<Attributes, Status>, E2eError> {
        let handle = self.objects[object].handle;
        match self.call(&Request::GetAttr { handle: handle.as_slice() })?.0 {
            Response::GetAttr { ok: Some(attributes), .. } => Ok(Ok(attributes)),
            Response::GetAttr { status, .. } => Ok(Err(status)),
            other => unreachable!("decoded as GETATTR: {other:?}"),
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Result<(Response, Vec<u8>), E2eError> {
        for _ in 0..ATTEMPTS_MAX {
            let called = self.user.calling(|who| self.client.call_as(who, request));
            let (response, data) = called.map_err(|error| E2eError::Wrong(error.to_string()))?;
            if !put_off(&response) {
                return Ok((response, data));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        Err(E2eError::Wrong(format!("put off {ATTEMPTS_MAX} times: {request:?}")))
    }

    fn place(&self, handle: &HandleBytes) -> Option<usize> {
        self.objects.iter().position(|object| object.handle == *handle)
    }

    fn read(&self, operation: &Operation, response: Response, data: Vec<u8>, to: &mut Answered) {
        let objects = operation.objects();
        let shows = |status: Status, shows: Shows| match status {
            Status::Ok => Ok(shows),
            status => Err(status),
        };
        match response {
            Response::GetAttr { status, ok } => {
                to.outcome = shows(status, Shows::Done);
                to.after.extend(ok.map(|attributes| (objects[0], attributes)));
            }
            Response::Wcc { status, wcc } | Response::Write { status, wcc, .. } => {
                to.outcome = shows(status, Shows::Done);
                to.note(objects[0], &wcc);
            }
            Response::Lookup { status, ok, attr, dir } => {
                let place = ok.and_then(|handle| self.place(&handle));
                to.outcome = shows(status, Shows::Object(place));
                to.after.extend(place.zip(attr));
                to.after.extend(dir.map(|attributes| (objects[0], attributes)));
            }
            Response::Access { status, attr, granted } => {
                to.outcome = shows(status, Shows::Bits(granted));
                to.after.extend(attr.map(|attributes| (objects[0], attributes)));
            }
            Response::ReadLink { status, attr, target } => {
                to.outcome = shows(status, Shows::Target(target));
                to.after.extend(attr.map(|attributes| (objects[0], attributes)));
            }
            Response::Read { status, attr, eof, .. } => {
                to.outcome = shows(status, Shows::Data(data, eof));
                to.after.extend(attr.map(|attributes| (objects[0], attributes)));
            }
            Response::Create { status, ok, attr, dir } => {
                let place = ok.and_then(|handle| self.place(&handle));
                let shown = if place.is_some() { Shows::Object(place) } else { Shows::New };
                to.outcome = shows(status, shown);
                match place {
                    Some(place) => to.after.extend(attr.map(|attributes| (place, attributes))),
                    None => to.made = ok.zip(attr),
                }
                to.note(objects[0], &dir);
            }
            Response::Rename { status, from, to: into } => {
                to.outcome = shows(status, Shows::Done);
                to.note(objects[0], &from);
                to.note(objects[1], &into);
            }
            Response::Link { status, attr, dir } => {
                to.outcome = shows(status, Shows::Done);
                to.after.extend(attr.map(|attributes| (objects[0], attributes)));
                to.note(objects[1], &dir);
            }
            other => unreachable!("no reply to {operation:?}: {other:?}"),
        }
    }

    fn list(&mut self, object: usize, bytes: u32, plus: bool) -> Result<Answered, E2eError> {
        let handle = self.objects[object].handle;
        let handle = handle.as_slice();
        let mut names = BTreeMap::new();
        let mut after = Vec::new();
        let (mut cookie, mut verifier) = (0, [0; 8]);
        for _ in 0..CALLS_PER_LISTING_MAX {
            let request = match plus {
                true => Request::ReadDirPlus {
                    handle,
                    cookie,
                    verifier,
                    dir_count: bytes,
                    max_count: bytes,
                },
                false => Request::ReadDir { handle, cookie, verifier, count: bytes },
            };
            let (status, dir, listing) = match self.call(&request)?.0 {
                Response::ReadDir { status, dir, listing }
                | Response::ReadDirPlus { status, dir, listing } => (status, dir, listing),
                other => unreachable!("decoded as a listing: {other:?}"),
            };
            after.extend(dir.map(|attributes| (object, attributes)));
            if status != Status::Ok {
                return Ok(Answered { after, ..Answered::of(Err(status)) });
            }
            let Listing { entries, names: bytes, end, verifier: theirs } = listing;
            verifier = theirs;
            for entry in entries {
                let name = bytes[Range::clone(&entry.name)].to_vec();
                let mut place =
                    self.objects.iter().position(|object| object.fileid == entry.fileid);
                if let Some((attributes, handle)) = entry.plus {
                    place = place.filter(|place| Some(*place) == self.place(&handle));
                    after.extend(place.map(|place| (place, attributes)));
                }
                cookie = entry.cookie;
                if names.insert(name, place).is_some() {
                    return Err(E2eError::Wrong("a listing shows a name twice".into()));
                }
            }
            if end {
                return Ok(Answered { after, ..Answered::of(Ok(Shows::Names(names))) });
            }
        }
        Err(E2eError::Wrong(format!("a listing takes over {CALLS_PER_LISTING_MAX} calls")))
    }
}

impl Answered {
    fn of(outcome: Outcome) -> Answered {
        Answered { outcome, made: None, after: Vec::new(), before: Vec::new() }
    }

    fn note(&mut self, object: usize, wcc: &Wcc) {
        self.before.extend(wcc.before.map(|before| (object, before)));
        self.after.extend(wcc.after.map(|after| (object, after)));
    }
}

/// Whether nothing was done and the call is to be made again later, as a view forms.
fn put_off(response: &Response) -> bool {
    use Response::*;
    match response {
        GetAttr { status, .. }
        | Wcc { status, .. }
        | Lookup { status, .. }
        | Access { status, .. }
        | ReadLink { status, .. }
        | Read { status, .. }
        | Write { status, .. }
        | Create { status, .. }
        | Rename { status, .. }
        | Link { status, .. }
        | ReadDir { status, .. }
        | ReadDirPlus { status, .. } => *status == Status::JukeBox,
        _ => false,
    }
}

/// The call that performs the operation.
fn request<'a>(operation: &'a Operation, objects: &'a [Object]) -> Request<'a> {
    let handle = |object: usize| objects[object].handle.as_slice();
    let named = |at: &'a At| DirName { dir: handle(at.dir), name: &at.name };
    match operation {
        Operation::GetAttr { object } => Request::GetAttr { handle: handle(*object) },
        Operation::SetAttr { object, set, guard } => {
            let ctime = objects[*object].served_ctime();
            let guard = match guard {
                Guard::None => None,
                Guard::Right => Some(ctime),
                Guard::Wrong => Some(Time { seconds: ctime.seconds ^ 1, ..ctime }),
            };
            Request::SetAttr { handle: handle(*object), set: *set, guard }
        }
        Operation::Lookup { at } => Request::Lookup { what: named(at) },
        Operation::Access { object, want } => {
            Request::Access { handle: handle(*object), want: *want }
        }
        Operation::ReadLink { object } => Request::ReadLink { handle: handle(*object) },
        Operation::Read { object, offset, count } => {
            Request::Read { handle: handle(*object), offset: *offset, count: *count }
        }
        Operation::Write { object, offset, data } => Request::Write {
            handle: handle(*object),
            offset: *offset,
            count: data.len() as u32,
            stable: STABLE,
            data,
        },
        Operation::Create { at, how } => Request::Create { what: named(at), how: *how },
        Operation::MkDir { at, set } => Request::MkDir { what: named(at), set: *set },
        Operation::SymLink { at, set, target } => {
            Request::SymLink { what: named(at), set: *set, target }
        }
        Operation::MkNod { at, kind, set, device } => {
            Request::MkNod { what: named(at), kind: *kind, set: *set, device: *device }
        }
        Operation::Remove { at } => Request::Remove { what: named(at) },
        Operation::RmDir { at } => Request::RmDir { what: named(at) },
        Operation::Rename { from, to } => Request::Rename { from: named(from), to: named(to) },
        Operation::Link { object, to } => Request::Link { handle: handle(*object), to: named(to) },
        Operation::List { .. } => unreachable!("a listing takes several calls"),
    }
}
