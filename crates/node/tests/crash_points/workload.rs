//! Workloads: requests over a few names, as calls for a server and as changes of the model.
//! Owns: the operations, the trees they start from, and which workloads there are.
//! Never: judges a reply.
//! Invariant: a workload means the same at every run: its data follow from its place alone.
//! Source: ACE, the workload generator of CrashMonkey (Mohan et al., OSDI 2018).

use harp_fs::request::{CreateHow, DirName, FileType, Request, SetAttr, SetTime, Status, Time};

use crate::model::{Model, TOP, Who};

/// A name below the root, with slashes.
pub type Path = &'static str;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create(Path),
    /// Takes a file that is there, and cuts it to this size.
    CreateOver(Path, u64),
    CreateExclusive(Path),
    MkDir(Path),
    SymLink(Path),
    MkNod(Path, FileType),
    Link(Path, Path),
    Remove(Path),
    RmDir(Path),
    Rename(Path, Path),
    /// Offset and length.
    Write(Path, u64, u32),
    /// At the end, so many bytes.
    Append(Path, u32),
    Resize(Path, u64),
    SetMode(Path, u32),
    SetOwner(Path),
    SetTimes(Path, SetTime),
    /// All at once.
    SetAll(Path),
}

use Op::*;

/// Whatever one request may do to these names: collisions are many, and about half fail somewhere.
pub const OPS: [Op; 51] = [
    Create("a"),
    Create("d/a"),
    CreateOver("a", 5_000),
    CreateOver("b", 0),
    CreateExclusive("b"),
    CreateExclusive("d/b"),
    MkDir("d"),
    MkDir("e"),
    MkDir("d/e"),
    SymLink("b"),
    MkNod("b", FileType::Fifo),
    MkNod("d/b", FileType::Character),
    Link("a", "b"),
    Link("a", "d/a"),
    Link("d/a", "a"),
    Remove("a"),
    Remove("b"),
    Remove("d/a"),
    RmDir("d"),
    RmDir("d/e"),
    Rename("a", "b"),
    Rename("b", "a"),
    Rename("a", "d/a"),
    Rename("d/a", "a"),
    Rename("d", "e"),
    Rename("e", "d"),
    Rename("d/e", "e"),
    Rename("d", "d/e"),
    Rename("a", "a"),
    Write("a", 0, 4_096),
    Write("a", 0, 100),
    Write("a", 3_900, 300),
    Write("a", 8_192, 8_192),
    Write("a", 20_000, 100),
    Write("a", 5_000, 9_000),
    Write("b", 4_096, 4_096),
    Write("d/a", 10, 5),
    Append("a", 700),
    Append("d/a", 4_096),
    Resize("a", 0),
    Resize("a", 100),
    Resize("a", 5_000),
    Resize("a", 30_000),
    Resize("d/a", 4_096),
    SetMode("a", 0o6755),
    SetMode("d", 0o2770),
    SetOwner("a"),
    SetTimes("a", SetTime::ToClient(Time { seconds: 77, nanos: 5 })),
    SetTimes("d", SetTime::ToServer),
    SetAll("a"),
    SetAll("d/a"),
];

/// The trees that workloads start from: by name, with what makes each.
pub const TREES: [(&str, &[Op]); 3] = [
    ("empty", &[]),
    (
        "a few files",
        &[Create("a"), Write("a", 0, 10_000), MkDir("d"), Create("d/a"), Write("d/a", 0, 60)],
    ),
    (
        "links and holes",
        &[
            Create("x"),
            Create("a"),
            Remove("x"),
            Write("a", 100, 50),
            Write("a", 12_288, 4_096),
            Link("a", "b"),
            MkDir("d"),
            MkDir("e"),
            MkDir("d/e"),
            SymLink("d/b"),
            Create("d/a"),
            Append("d/a", 5_000),
        ],
    ),
];

/// The superuser.
pub fn root() -> Who {
    Who { uid: 0, gid: 0, groups: Vec::new() }
}

/// Deterministic bytes: no two workloads' places write the same at the same offset of a file.
fn bytes(place: u64, offset: u64, len: u32) -> Vec<u8> {
    let byte = |at: u64| (place * 37 + at / 5 + at * 11) as u8;
    (offset..offset + u64::from(len)).map(byte).collect()
}

/// An operation against one state: the objects it names, by the model's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    op: Op,
    place: u64,
    /// The directory and name of the first path.
    first: (usize, &'static str),
    second: Option<(usize, &'static str)>,
    /// What the first path stands for, if it must be there.
    object: usize,
    offset: u64,
}

fn split(model: &Model, path: Path) -> Option<(usize, &'static str)> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut dir = TOP;
    for part in above.split('/').filter(|part| !part.is_empty()) {
        dir = *model.node(dir).ok()?.children.get(part.as_bytes())?;
    }
    Some((dir, name))
}

impl Op {
    /// Whether its success changes anything.
    pub fn changes(self) -> bool {
        !matches!(self, Rename(from, to) if from == to)
    }

    /// The operation as it is asked for in this state, at this place of the workload. `None`: a client could
    /// not even ask, for it has no handle.
    pub fn bind(self, model: &Model, place: u64) -> Option<Bound> {
        let (path, second) = match self {
            Create(path) | CreateOver(path, _) | CreateExclusive(path) => (path, None),
            MkDir(path) | SymLink(path) | MkNod(path, _) => (path, None),
            Remove(path) | RmDir(path) => (path, None),
            Write(path, ..) | Append(path, _) | Resize(path, _) => (path, None),
            SetMode(path, _) | SetOwner(path) | SetTimes(path, _) | SetAll(path) => (path, None),
            Link(path, to) | Rename(path, to) => (path, Some(to)),
        };
        let first = split(model, path)?;
        let second = match second {
            Some(path) => Some(split(model, path)?),
            None => None,
        };
        let by_handle = matches!(
            self,
            Link(..)
                | Write(..)
                | Append(..)
                | Resize(..)
                | SetMode(..)
                | SetOwner(_)
                | SetTimes(..)
                | SetAll(_)
        );
        let there = model.node(first.0).ok()?.children.get(first.1.as_bytes()).copied();
        let object = if by_handle { there? } else { there.unwrap_or(TOP) };
        let offset = match self {
            Write(_, offset, _) => offset,
            Append(..) => model.node(object).ok()?.data.len() as u64,
            _ => 0,
        };
        Some(Bound { op: self, place, first, second, object, offset })
    }
}

fn with_mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

const TARGET: &[u8] = b"../elsewhere";
const DEVICE: (u32, u32) = (3, 4);
const VERIFIER: [u8; 8] = *b"verifier";

impl Bound {
    fn set(&self) -> SetAttr {
        match self.op {
            CreateOver(_, size) => SetAttr { size: Some(size), ..with_mode(0o600) },
            Resize(_, size) => SetAttr { size: Some(size), ..SetAttr::default() },
            SetMode(_, mode) => with_mode(mode),
            SetOwner(_) => SetAttr { uid: Some(12), gid: Some(34), ..SetAttr::default() },
            SetTimes(_, time) => SetAttr { atime: time, mtime: time, ..SetAttr::default() },
            SetAll(_) => SetAttr {
                mode: Some(0o4711),
                uid: Some(56),
                gid: Some(78),
                size: Some(6_000),
                atime: SetTime::ToClient(Time { seconds: 9, nanos: 8 }),
                mtime: SetTime::ToServer,
            },
            CreateExclusive(_) => SetAttr::default(),
            SymLink(_) => SetAttr::default(),
            _ => with_mode(0o755),
        }
    }

    fn data(&self) -> Vec<u8> {
        match self.op {
            Write(_, _, len) | Append(_, len) => bytes(self.place, self.offset, len),
            _ => Vec::new(),
        }
    }

    /// Shows the request; `handles` has the handle of every object by the model's number.
    pub fn request<R>(&self, handles: &[Vec<u8>], show: impl FnOnce(&Request<'_>) -> R) -> R {
        let name = |(dir, name): (usize, &'static str)| DirName {
            dir: &handles[dir],
            name: name.as_bytes(),
        };
        let (what, handle, set, data) =
            (name(self.first), &handles[self.object][..], self.set(), self.data());
        let to = self.second.map(name);
        let request = match self.op {
            Create(_) => Request::Create { what, how: CreateHow::Guarded(set) },
            CreateOver(..) => Request::Create { what, how: CreateHow::Unchecked(set) },
            CreateExclusive(_) => Request::Create { what, how: CreateHow::Exclusive(VERIFIER) },
            MkDir(_) => Request::MkDir { what, set },
            SymLink(_) => Request::SymLink { what, set, target: TARGET },
            MkNod(_, kind) => {
                let device = if kind == FileType::Character { DEVICE } else { (0, 0) };
                Request::MkNod { what, kind, set, device }
            }
            Link(..) => Request::Link { handle, to: to.expect("bound with a second path") },
            Remove(_) => Request::Remove { what },
            RmDir(_) => Request::RmDir { what },
            Rename(..) => Request::Rename { from: what, to: to.expect("bound with a second path") },
            Write(..) | Append(..) => Request::Write {
                handle,
                offset: self.offset,
                count: data.len() as u32,
                stable: 2,
                data: &data,
            },
            Resize(..) | SetMode(..) | SetOwner(_) | SetTimes(..) | SetAll(_) => {
                Request::SetAttr { handle, set, guard: None }
            }
        };
        show(&request)
    }

    /// Carries it out in the model at `now`. Returns the object that it made or found, if it makes one.
    pub fn apply(&self, model: &mut Model, now: Time) -> Result<Option<usize>, Status> {
        let (at, set) = ((self.first.0, self.first.1.as_bytes()), self.set());
        let to = self.second.map(|(dir, name)| (dir, name.as_bytes()));
        let who = &root();
        let kind = match self.op {
            Create(_) => FileType::Regular,
            MkDir(_) => FileType::Directory,
            SymLink(_) => FileType::Symlink,
            MkNod(_, kind) => kind,
            CreateOver(..) => return model.create_file(at, who, &set, None, now).map(Some),
            CreateExclusive(_) => {
                return model.create_file(at, who, &set, Some(VERIFIER), now).map(Some);
            }
            Link(..) => {
                let to = to.expect("bound with a second path");
                return model.link(self.object, to, who, now).map(|()| None);
            }
            Remove(_) => return model.remove(at, who, false, now).map(|()| None),
            RmDir(_) => return model.remove(at, who, true, now).map(|()| None),
            Rename(..) => {
                let to = to.expect("bound with a second path");
                return model.rename(at, to, who, now).map(|()| None);
            }
            Write(..) | Append(..) => {
                let written =
                    model.write(self.object, who, self.offset as usize, &self.data(), now);
                return written.map(|()| None);
            }
            Resize(..) | SetMode(..) | SetOwner(_) | SetTimes(..) | SetAll(_) => {
                return model.set(self.object, who, &set, now).map(|()| None);
            }
        };
        let target = if kind == FileType::Symlink { TARGET } else { b"" };
        model.make(at, who, kind, &set, target, now).map(Some)
    }
}
