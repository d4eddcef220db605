//! Expected: what a lane's directory must contain, given the operations that took effect.
//! Owns: a small model of a directory tree, and its comparison with what was found.
//! Never: does I/O.
//! Invariant: exactly one outcome is right for each operation, since a lane has one operation
//! under way and nobody else touches its directory.
//! Source: RFC 1813.

use std::collections::BTreeMap;
use std::fmt;

use harp_wire::request::{HandleBytes, Status};

use crate::operation::{LaneId, Operation, UNIT_BYTES, symlink_target};

/// An object's identity in the model: the sequence number of the operation that made it.
pub type ObjectId = u64;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File(ObjectId),
    /// A directory.
    Directory(ObjectId),
    /// A symbolic link.
    Symlink(ObjectId),
}

impl Node {
    /// The object.
    pub fn id(self) -> ObjectId {
        match self {
            Node::File(id) | Node::Directory(id) | Node::Symlink(id) => id,
        }
    }
}

/// A file's contents: for each unit the operation that wrote it last, 0 for zeros never written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    units: Vec<u64>,
    exclusive: bool,
}

impl Contents {
    /// Length in units.
    pub fn len_units(&self) -> u32 {
        self.units.len() as u32
    }

    /// The bytes of unit `at`.
    pub fn unit(&self, id: LaneId, at: u32) -> [u8; UNIT_BYTES] {
        match self.units[at as usize] {
            0 => [0; UNIT_BYTES],
            sequence => id.unit(sequence, at),
        }
    }
}

/// The state of one lane's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    id: LaneId,
    names: BTreeMap<String, Node>,
    files: BTreeMap<ObjectId, Contents>,
}

/// An object as it was found on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say it
pub enum Found {
    File {
        handle: HandleBytes,
        nlink: u32,
        bytes: Vec<u8>,
    },
    Directory {
        handle: HandleBytes,
    },
    Symlink {
        handle: HandleBytes,
        target: Vec<u8>,
    },
    /// Anything that no recording makes.
    Other,
}

/// One way in which what was found differs from what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Difference {
    Missing {
        path: String,
    },
    Unexpected {
        path: String,
    },
    Kind {
        path: String,
    },
    Length {
        path: String,
        want_bytes: usize,
        found_bytes: usize,
    },
    /// The unit holds another operation's bytes (`found_sequence`), or nobody's.
    Unit {
        path: String,
        unit: u32,
        want_sequence: u64,
        found_sequence: Option<u64>,
    },
    Links {
        path: String,
        want: u32,
        found: u32,
    },
    Target {
        path: String,
    },
    /// The object's handle is not the one it was made with.
    Handle {
        path: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Missing { path } => write!(f, "{path} is missing"),
            Difference::Unexpected { path } => write!(f, "{path} should not exist"),
            Difference::Kind { path } => write!(f, "{path} is of another kind"),
            Difference::Length { path, want_bytes, found_bytes } => {
                write!(f, "{path} has {found_bytes} bytes instead of {want_bytes}")
            }
            Difference::Unit { path, unit, want_sequence, found_sequence } => {
                write!(f, "{path} unit {unit}: want operation {want_sequence}'s bytes, found ")?;
                match found_sequence {
                    Some(sequence) => write!(f, "operation {sequence}'s"),
                    None => write!(f, "nobody's"),
                }
            }
            Difference::Links { path, want, found } => {
                write!(f, "{path} has {found} links instead of {want}")
            }
            Difference::Target { path } => write!(f, "{path} points elsewhere"),
            Difference::Handle { path } => {
                write!(f, "{path} has another handle than it began with")
            }
        }
    }
}

/// The directory that contains `path`, "" for the lane's own.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The last part of `path`.
pub fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

impl Expected {
    /// An empty directory.
    pub fn new(id: LaneId) -> Expected {
        Expected { id, names: BTreeMap::new(), files: BTreeMap::new() }
    }

    /// Which lane it is.
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// What `path` stands for.
    pub fn node(&self, path: &str) -> Option<Node> {
        self.names.get(path).copied()
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = (&str, Node)> {
        self.names.iter().map(|(path, node)| (path.as_str(), *node))
    }

    /// The contents of the file at `path`, if it is one.
    pub fn contents(&self, path: &str) -> Option<&Contents> {
        match self.node(path)? {
            Node::File(id) => self.files.get(&id),
            _ => None,
        }
    }

    fn has_children(&self, path: &str) -> bool {
        self.names.keys().any(|name| parent(name) == path)
    }

    /// The one right status for `operation` now.
    pub fn outcome(&self, operation: &Operation) -> Status {
        use Operation::*;
        let status = |ok: bool, failure| if ok { Status::Ok } else { failure };
        match operation {
            CreateUnchecked { path } => {
                status(!matches!(self.node(path), Some(Node::Directory(_))), Status::Exist)
            }
            CreateExclusive { path, verifier } => match self.node(path) {
                None => Status::Ok,
                Some(Node::File(id)) => {
                    status(id == *verifier && self.files[&id].exclusive, Status::Exist)
                }
                Some(_) => Status::Exist,
            },
            CreateGuarded { path } | MkDir { path } | SymLink { path } => {
                status(self.node(path).is_none(), Status::Exist)
            }
            Write { path, .. } | Truncate { path, .. } => {
                status(self.contents(path).is_some(), Status::Stale)
            }
            Remove { path } => match self.node(path) {
                None => Status::NoEnt,
                Some(node) => status(!matches!(node, Node::Directory(_)), Status::IsDir),
            },
            RmDir { path } => match self.node(path) {
                None => Status::NoEnt,
                Some(Node::Directory(_)) => status(!self.has_children(path), Status::NotEmpty),
                Some(_) => Status::NotDir,
            },
            Link { from, to } => match (self.node(from), self.node(to)) {
                (None, _) => Status::Stale,
                (Some(_), to) => status(to.is_none(), Status::Exist),
            },
            Rename { from, to } => match (self.node(from), self.node(to)) {
                (None, _) => Status::NoEnt,
                (Some(_), None) => Status::Ok,
                (Some(Node::Directory(_)), Some(_)) | (Some(_), Some(Node::Directory(_))) => {
                    Status::Exist
                }
                (Some(_), Some(_)) => Status::Ok,
            },
        }
    }

    /// Lets `operation`, the lane's number `sequence`, take effect; nothing if its outcome is a
    /// failure.
    pub fn apply(&mut self, sequence: u64, operation: &Operation) {
        use Operation::*;
        if self.outcome(operation) != Status::Ok {
            return;
        }
        match operation {
            CreateUnchecked { path } | CreateGuarded { path } | CreateExclusive { path, .. } => {
                if self.node(path).is_none() {
                    let exclusive = matches!(operation, CreateExclusive { .. });
                    self.names.insert(path.clone(), Node::File(sequence));
                    let contents = Contents { units: Vec::new(), exclusive };
                    self.files.insert(sequence, contents);
                }
            }
            Write { path, at, units } => {
                let (at, end) = (*at as usize, (*at + *units) as usize);
                let contents = self.contents_mut(path);
                if contents.units.len() < end {
                    contents.units.resize(end, 0);
                }
                contents.units[at..end].fill(sequence);
            }
            Truncate { path, units } => self.contents_mut(path).units.resize(*units as usize, 0),
            Remove { path } => {
                let node = self.names.remove(path).expect("a removed name exists");
                self.forget_if_unnamed(node);
            }
            RmDir { path } => {
                self.names.remove(path);
            }
            MkDir { path } => {
                self.names.insert(path.clone(), Node::Directory(sequence));
            }
            SymLink { path } => {
                self.names.insert(path.clone(), Node::Symlink(sequence));
            }
            Link { from, to } => {
                let node = self.names[from];
                self.names.insert(to.clone(), node);
            }
            Rename { from, to } => self.rename(from, to),
        }
    }

    fn contents_mut(&mut self, path: &str) -> &mut Contents {
        let id = self.names[path].id();
        self.files.get_mut(&id).expect("a named file has contents")
    }

    fn rename(&mut self, from: &str, to: &str) {
        let node = self.names[from];
        if self.names.get(to) == Some(&node) {
            return; // two names of one object: RFC 1813 has nothing done
        }
        self.names.remove(from);
        if let Some(replaced) = self.names.insert(to.into(), node) {
            self.forget_if_unnamed(replaced);
        }
        if let Node::Directory(_) = node {
            let children: Vec<String> =
                self.names.keys().filter(|name| parent(name) == from).cloned().collect();
            for child in children {
                let moved = self.names.remove(&child).expect("a child exists");
                self.names.insert(format!("{to}/{}", base_name(&child)), moved);
            }
        }
    }

    fn forget_if_unnamed(&mut self, node: Node) {
        if self.links(node) == 0 {
            self.files.remove(&node.id());
        }
    }

    fn links(&self, node: Node) -> u32 {
        self.names.values().filter(|other| **other == node).count() as u32
    }

    /// Every way in which `found` differs from this. `handle_of` tells the handle that an object
    /// was made with, if the recording knows it.
    pub fn differences(
        &self,
        found: &BTreeMap<String, Found>,
        handle_of: impl Fn(ObjectId) -> Option<HandleBytes>,
    ) -> Vec<Difference> {
        let mut all = Vec::new();
        for path in found.keys().filter(|path| !self.names.contains_key(*path)) {
            all.push(Difference::Unexpected { path: path.clone() });
        }
        for (path, node) in &self.names {
            let path = path.clone();
            match found.get(&path) {
                None => all.push(Difference::Missing { path }),
                Some(object) => {
                    self.compare(&path, *node, object, handle_of(node.id()), &mut all);
                }
            }
        }
        all
    }

    fn compare(
        &self,
        path: &str,
        node: Node,
        found: &Found,
        made_with: Option<HandleBytes>,
        all: &mut Vec<Difference>,
    ) {
        let path = || path.to_string();
        let handle = match (node, found) {
            (Node::File(id), Found::File { handle, nlink, bytes }) => {
                let (want, found) = (self.links(node), *nlink);
                if want != found {
                    all.push(Difference::Links { path: path(), want, found });
                }
                self.compare_bytes(&path(), &self.files[&id], bytes, all);
                handle
            }
            (Node::Symlink(id), Found::Symlink { handle, target }) => {
                if *target != symlink_target(id).into_bytes() {
                    all.push(Difference::Target { path: path() });
                }
                handle
            }
            (Node::Directory(_), Found::Directory { handle }) => handle,
            _ => {
                all.push(Difference::Kind { path: path() });
                return;
            }
        };
        if made_with.is_some_and(|made_with| made_with != *handle) {
            all.push(Difference::Handle { path: path() });
        }
    }

    fn compare_bytes(
        &self,
        path: &str,
        contents: &Contents,
        bytes: &[u8],
        all: &mut Vec<Difference>,
    ) {
        let want_bytes = contents.units.len() * UNIT_BYTES;
        if bytes.len() != want_bytes {
            let (path, found_bytes) = (path.to_string(), bytes.len());
            all.push(Difference::Length { path, want_bytes, found_bytes });
            return;
        }
        for (unit, bytes) in bytes.chunks_exact(UNIT_BYTES).enumerate() {
            let want_sequence = contents.units[unit];
            let unit = unit as u32;
            if contents.unit(self.id, unit) != bytes {
                let (path, found_sequence) = (path.to_string(), self.id.sequence_in(bytes));
                all.push(Difference::Unit { path, unit, want_sequence, found_sequence });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LaneId = LaneId { run: 1, lane: 2 };

    fn state(operations: &[&str]) -> Expected {
        let mut expected = Expected::new(ID);
        for (i, text) in operations.iter().enumerate() {
            expected.apply(i as u64 + 1, &text.parse().unwrap());
        }
        expected
    }

    fn outcome(expected: &Expected, text: &str) -> Status {
        expected.outcome(&text.parse().unwrap())
    }

    fn handle(id: ObjectId) -> HandleBytes {
        HandleBytes::new(&id.to_be_bytes())
    }

    /// What a faithful server shows of `expected`.
    fn faithful(expected: &Expected) -> BTreeMap<String, Found> {
        let found = |path: &str, node: Node| match node {
            Node::File(id) => {
                let contents = expected.contents(path).unwrap();
                let bytes = (0..contents.len_units()).flat_map(|at| contents.unit(ID, at));
                let nlink = expected.links(node);
                Found::File { handle: handle(id), nlink, bytes: bytes.collect() }
            }
            Node::Directory(id) => Found::Directory { handle: handle(id) },
            Node::Symlink(id) => {
                Found::Symlink { handle: handle(id), target: symlink_target(id).into_bytes() }
            }
        };
        expected.names().map(|(path, node)| (path.to_string(), found(path, node))).collect()
    }

    fn differences(expected: &Expected, found: &BTreeMap<String, Found>) -> Vec<String> {
        let all = expected.differences(found, |id| Some(handle(id)));
        all.iter().map(Difference::to_string).collect()
    }

    #[test]
    fn outcomes_follow_the_names() {
        let lane = state(&["create f", "mkdir d", "create-exclusive d/x 3", "symlink s"]);
        for (text, status) in [
            ("create f", Status::Ok),
            ("create-guarded f", Status::Exist),
            ("create-guarded g", Status::Ok),
            ("create-exclusive d/x 3", Status::Ok),
            ("create-exclusive d/x 4", Status::Exist),
            ("create-exclusive f 1", Status::Exist),
            ("remove f", Status::Ok),
            ("remove g", Status::NoEnt),
            ("rmdir d", Status::NotEmpty),
            ("rmdir e", Status::NoEnt),
            ("mkdir d", Status::Exist),
            ("rename f d/x", Status::Ok),
            ("rename g h", Status::NoEnt),
            ("link f s", Status::Exist),
            ("link f d/y", Status::Ok),
        ] {
            assert_eq!(outcome(&lane, text), status, "{text}");
        }
    }

    #[test]
    fn a_faithful_server_shows_no_difference() {
        let lane = state(&[
            "create f",
            "write f 2 3",
            "link f g",
            "mkdir d",
            "rename g d/g",
            "write d/g 3 1",
            "truncate f 9",
            "rename d e",
            "symlink s",
            "rename f e/g",
        ]);
        assert_eq!(lane.names().map(|(path, _)| path).collect::<Vec<_>>(), ["e", "e/g", "f", "s"]);
        let contents = lane.contents("e/g").unwrap();
        assert_eq!(contents.units, [0, 0, 2, 6, 2, 0, 0, 0, 0]);
        assert_eq!(differences(&lane, &faithful(&lane)), [""; 0]);
    }

    #[test]
    fn every_kind_of_damage_is_told() {
        let lane = state(&["create f", "write f 0 2", "write f 1 1", "mkdir d", "symlink s"]);
        let lost = state(&["create f", "write f 0 2", "create g", "mkdir d", "symlink s"]);
        assert_eq!(
            differences(&lane, &faithful(&lost)),
            ["g should not exist", "f unit 1: want operation 3's bytes, found operation 2's"]
        );
        let mut found = faithful(&lane);
        found.remove("d");
        found.insert("s".into(), Found::Other);
        assert_eq!(differences(&lane, &found), ["d is missing", "s is of another kind"]);
        let mut found = faithful(&lane);
        let Some(Found::File { handle: other, nlink, bytes }) = found.get_mut("f") else {
            panic!("f is a file")
        };
        (*other, *nlink) = (handle(99), 2);
        bytes.truncate(UNIT_BYTES);
        assert_eq!(
            differences(&lane, &found),
            [
                "f has 2 links instead of 1",
                "f has 512 bytes instead of 1024",
                "f has another handle than it began with"
            ]
        );
    }
}
