//! Operation: one file operation, said of objects that exist on both sides.
//! Owns: the vocabulary, and how an operation reads in a report.
//! Never: knows what an operation leads to.
//! Invariant: each operation is one NFSv3 procedure (LIST: as many calls of one as the directory
//! takes) and has one counterpart on the host.
//! Source: RFC 1813, section 3.3.

use std::fmt;

use harp_bench::request::{CreateHow, FileType, SetAttr, SetTime};

/// A name in a directory, which is given by its place among the lane's objects.
#[derive(Clone, Debug)]
pub struct At {
    pub dir: usize,
    pub name: Vec<u8>,
}

/// What SETATTR is told about the change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    None,
    /// The time that the object has.
    Right,
    /// Another time.
    Wrong,
}

/// One operation. `usize` is an object's place among the lane's objects.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub enum Operation {
    GetAttr { object: usize },
    SetAttr { object: usize, set: SetAttr, guard: Guard },
    Lookup { at: At },
    Access { object: usize, want: u32 },
    ReadLink { object: usize },
    Read { object: usize, offset: u64, count: u32 },
    Write { object: usize, offset: u64, data: Vec<u8> },
    Create { at: At, how: CreateHow },
    MkDir { at: At, set: SetAttr },
    SymLink { at: At, set: SetAttr, target: Vec<u8> },
    MkNod { at: At, kind: FileType, set: SetAttr, device: (u32, u32) },
    Remove { at: At },
    RmDir { at: At },
    Rename { from: At, to: At },
    Link { object: usize, to: At },
    List { object: usize, bytes: u32, plus: bool },
}

impl Operation {
    /// The objects that it is said of.
    pub fn objects(&self) -> Vec<usize> {
        use Operation::*;
        match self {
            GetAttr { object }
            | SetAttr { object, .. }
            | Access { object, .. }
            | ReadLink { object }
            | Read { object, .. }
            | Write { object, .. }
            | List { object, .. } => vec![*object],
            Lookup { at }
            | Create { at, .. }
            | MkDir { at, .. }
            | SymLink { at, .. }
            | MkNod { at, .. }
            | Remove { at }
            | RmDir { at } => vec![at.dir],
            Rename { from, to } => vec![from.dir, to.dir],
            Link { object, to } => vec![*object, to.dir],
        }
    }

    /// The names that it says.
    pub fn names(&self) -> Vec<&At> {
        use Operation::*;
        match self {
            Lookup { at }
            | Create { at, .. }
            | MkDir { at, .. }
            | SymLink { at, .. }
            | MkNod { at, .. }
            | Remove { at }
            | RmDir { at } => vec![at],
            Rename { from, to } => vec![from, to],
            Link { to, .. } => vec![to],
            _ => Vec::new(),
        }
    }

    /// The operation as text; `label` names an object for good, since places are used again.
    pub fn text(&self, label: impl Fn(usize) -> String) -> String {
        use Operation::*;
        let at = |at: &At| format!("{}/{}", label(at.dir), Shown(&at.name));
        match self {
            GetAttr { object } => format!("GETATTR {}", label(*object)),
            SetAttr { object, set, guard } => {
                format!("SETATTR {} {} guard {guard:?}", label(*object), Settings(set))
            }
            Lookup { at: a } => format!("LOOKUP {}", at(a)),
            Access { object, want } => format!("ACCESS {} {want:#x}", label(*object)),
            ReadLink { object } => format!("READLINK {}", label(*object)),
            Read { object, offset, count } => {
                format!("READ {} {count} bytes at {offset}", label(*object))
            }
            Write { object, offset, data } => {
                format!("WRITE {} {} bytes at {offset}", label(*object), data.len())
            }
            Create { at: a, how } => match how {
                CreateHow::Unchecked(set) => {
                    format!("CREATE {} unchecked {}", at(a), Settings(set))
                }
                CreateHow::Guarded(set) => format!("CREATE {} guarded {}", at(a), Settings(set)),
                CreateHow::Exclusive(verifier) => {
                    format!("CREATE {} exclusive {verifier:?}", at(a))
                }
            },
            MkDir { at: a, set } => format!("MKDIR {} {}", at(a), Settings(set)),
            SymLink { at: a, set, target } => {
                let (shown, len) = (Shown(&target[..target.len().min(20)]), target.len());
                format!("SYMLINK {} to {shown} ({len} bytes) {}", at(a), Settings(set))
            }
            MkNod { at: a, kind, set, device } => {
                format!("MKNOD {} {kind:?} {device:?} {}", at(a), Settings(set))
            }
            Remove { at: a } => format!("REMOVE {}", at(a)),
            RmDir { at: a } => format!("RMDIR {}", at(a)),
            Rename { from, to } => format!("RENAME {} to {}", at(from), at(to)),
            Link { object, to } => format!("LINK {} as {}", label(*object), at(to)),
            List { object, bytes, plus } => {
                let procedure = if *plus { "READDIRPLUS" } else { "READDIR" };
                format!("{procedure} {} in replies of {bytes} bytes", label(*object))
            }
        }
    }
}

/// A name as text, long ones cut.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0..=40 => write!(f, "\"{}\"", self.0.escape_ascii()),
            len => write!(f, "\"{}...\" ({len} bytes)", self.0[..20].escape_ascii()),
        }
    }
}

/// The attributes that are set, those alone.
struct Settings<'a>(&'a SetAttr);

impl fmt::Display for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SetAttr { mode, uid, gid, size, atime, mtime } = self.0;
        f.write_str("{")?;
        if let Some(mode) = mode {
            write!(f, " mode {mode:04o}")?;
        }
        for (name, value) in [("uid", uid), ("gid", gid)] {
            if let Some(value) = value {
                write!(f, " {name} {value}")?;
            }
        }
        if let Some(size) = size {
            write!(f, " size {size}")?;
        }
        for (name, time) in [("atime", atime), ("mtime", mtime)] {
            match time {
                SetTime::Keep => {}
                SetTime::ToServer => write!(f, " {name} now")?,
                SetTime::ToClient(t) => write!(f, " {name} {}.{:09}", t.seconds, t.nanos)?,
            }
        }
        f.write_str(" }")
    }
}
