//! Model: a file system in plain maps, to compare the real one with.
//! Owns: what each operation does to files, written without a look at the planner.
//! Never: knows of logs, images, caches, cookies or handles; objects have the model's own numbers.
//! Invariant: a node lives as long as some directory names it.
//! Source: RFC 1813 section 3.3, POSIX.

use std::collections::BTreeMap;

use harp_fs::request::{FileType, SetAttr, SetTime, Status, Time};

/// Number of the root directory.
pub const TOP: usize = 0;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Who {
    fn member(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// One object.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub names: u32,
    pub data: Vec<u8>,
    pub target: Vec<u8>,
    pub children: BTreeMap<Vec<u8>, usize>,
    pub parent: usize,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub verifier: Option<[u8; 8]>,
}

/// All of it. A dead node is `None`; numbers are not used again.
pub struct Model {
    pub nodes: Vec<Option<Node>>,
}

type Out<T> = Result<T, Status>;

fn need(condition: bool, status: Status) -> Out<()> {
    if condition { Ok(()) } else { Err(status) }
}

impl Model {
    pub fn new(now: Time) -> Model {
        let root = Node {
            kind: FileType::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            names: 1,
            data: Vec::new(),
            target: Vec::new(),
            children: BTreeMap::new(),
            parent: TOP,
            atime: now,
            mtime: now,
            ctime: now,
            verifier: None,
        };
        Model { nodes: vec![Some(root)] }
    }

    pub fn node(&self, id: usize) -> Out<&Node> {
        self.nodes[id].as_ref().ok_or(Status::Stale)
    }

    fn edit(&mut self, id: usize) -> &mut Node {
        self.nodes[id].as_mut().expect("edited nodes were looked at")
    }

    /// The link count that clients see.
    pub fn nlink(&self, id: usize) -> u32 {
        let node = self.node(id).expect("alive");
        if node.kind != FileType::Directory {
            return node.names;
        }
        let sub =
            |id: &&usize| self.nodes[**id].as_ref().is_some_and(|n| n.kind == FileType::Directory);
        2 + node.children.values().filter(sub).count() as u32
    }

    fn permits(&self, node: &Node, who: &Who, bit: u32) -> bool {
        if who.uid == 0 {
            return bit != 1 || node.kind == FileType::Directory || node.mode & 0o111 != 0;
        }
        let shift = match () {
            _ if node.uid == who.uid => 6,
            _ if who.member(node.gid) => 3,
            _ => 0,
        };
        node.mode >> shift & bit == bit
    }

    /// A directory that may be searched.
    fn dir(&self, id: usize, who: &Who) -> Out<&Node> {
        let node = self.node(id)?;
        need(node.kind == FileType::Directory, Status::NotDir)?;
        need(self.permits(node, who, 1), Status::Access)?;
        Ok(node)
    }

    /// Whether entries of `dir` may be changed.
    fn writable(&self, dir: &Node, who: &Who) -> Out<()> {
        need(self.permits(dir, who, 2), Status::Access)
    }

    fn sticky_ok(&self, dir: &Node, node: &Node, who: &Who) -> bool {
        dir.mode & 0o1000 == 0 || who.uid == 0 || who.uid == dir.uid || who.uid == node.uid
    }

    pub fn lookup(&self, dir: usize, name: &[u8], who: &Who) -> Out<usize> {
        let node = self.dir(dir, who)?;
        match name {
            b"." => Ok(dir),
            b".." => Ok(node.parent),
            _ => node.children.get(name).copied().ok_or(Status::NoEnt),
        }
    }

    pub fn access(&self, id: usize, who: &Who) -> Out<u32> {
        let node = self.node(id)?;
        let (r, w, x) =
            (self.permits(node, who, 4), self.permits(node, who, 2), self.permits(node, who, 1));
        let mut bits = if r { 1 } else { 0 };
        if node.kind == FileType::Directory {
            bits |= if x { 2 } else { 0 };
            bits |= if w && x { 4 | 8 | 16 } else { 0 };
        } else {
            bits |= if w { 4 | 8 } else { 0 };
            bits |= if x { 32 } else { 0 };
        }
        Ok(bits)
    }

    pub fn read(&self, id: usize, who: &Who, offset: usize, count: usize) -> Out<(&[u8], bool)> {
        let node = self.regular(id)?;
        let owner = who.uid == node.uid;
        let may = owner || self.permits(node, who, 4) || self.permits(node, who, 1);
        need(may, Status::Access)?;
        let begin = offset.min(node.data.len());
        let end = (begin + count).min(node.data.len());
        Ok((&node.data[begin..end], end == node.data.len()))
    }

    fn regular(&self, id: usize) -> Out<&Node> {
        let node = self.node(id)?;
        match node.kind {
            FileType::Regular => Ok(node),
            FileType::Directory => Err(Status::IsDir),
            _ => Err(Status::Inval),
        }
    }

    fn may_write(&self, node: &Node, who: &Who) -> bool {
        who.uid == node.uid || self.permits(node, who, 2)
    }

    pub fn write(
        &mut self,
        id: usize,
        who: &Who,
        offset: usize,
        data: &[u8],
        now: Time,
    ) -> Out<()> {
        let node = self.regular(id)?;
        need(self.may_write(node, who), Status::Access)?;
        if data.is_empty() {
            return Ok(());
        }
        let node = self.edit(id);
        let end = offset + data.len();
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[offset..end].copy_from_slice(data);
        written(node, who, now);
        Ok(())
    }

    pub fn set(&mut self, id: usize, who: &Who, set: &SetAttr, now: Time) -> Out<()> {
        let node = self.node(id)?;
        if *set == SetAttr::default() {
            return Ok(());
        }
        let owns = who.uid == 0 || who.uid == node.uid;
        if set.size.is_some() {
            self.regular(id)?;
            need(self.may_write(node, who), Status::Access)?;
        }
        let client = |t: SetTime| matches!(t, SetTime::ToClient(_));
        need(!(client(set.atime) || client(set.mtime)) || owns, Status::Perm)?;
        need(set.mode.is_none() || owns, Status::Perm)?;
        if let Some(uid) = set.uid {
            need(who.uid == 0 || (owns && uid == node.uid), Status::Perm)?;
        }
        if let Some(gid) = set.gid {
            let known = gid == node.gid || who.member(gid);
            need(who.uid == 0 || (owns && known), Status::Perm)?;
        }
        if set.atime == SetTime::ToServer || set.mtime == SetTime::ToServer {
            need(owns || self.permits(node, who, 2), Status::Access)?;
        }
        let stranger = set.mode.is_none() && who.uid != 0 && !who.member(node.gid);
        let node = self.edit(id);
        if let Some(size) = set.size {
            node.data.resize(size as usize, 0);
            written(node, who, now);
        }
        node.uid = set.uid.unwrap_or(node.uid);
        node.gid = set.gid.unwrap_or(node.gid);
        if let Some(mode) = set.mode {
            let foreign = who.uid != 0 && !who.member(node.gid);
            node.mode = mode & if foreign { 0o5777 } else { 0o7777 };
        }
        if (set.uid.is_some() || set.gid.is_some()) && node.kind != FileType::Directory {
            node.mode = unprivileged(node.mode, stranger);
        }
        for (set, time) in [(set.atime, &mut node.atime), (set.mtime, &mut node.mtime)] {
            match set {
                SetTime::Keep => {}
                SetTime::ToServer => *time = now,
                SetTime::ToClient(given) => *time = given,
            }
        }
        node.ctime = now;
        Ok(())
    }

    /// A new object; CREATE's other ways are [`Model::create_file`]'s.
    pub fn make(
        &mut self,
        at: (usize, &[u8]),
        who: &Who,
        kind: FileType,
        set: &SetAttr,
        target: &[u8],
        now: Time,
    ) -> Out<usize> {
        let dir = self.dir(at.0, who)?;
        need(!dir.children.contains_key(at.1), Status::Exist)?;
        self.writable(dir, who)?;
        let device = matches!(kind, FileType::Block | FileType::Character);
        need(!device || who.uid == 0, Status::Perm)?;
        let inherits = dir.mode & 0o2000 != 0;
        let mut gid = if inherits { dir.gid } else { who.gid };
        let mut uid = who.uid;
        if who.uid == 0 {
            uid = set.uid.unwrap_or(uid);
            gid = set.gid.unwrap_or(gid);
        }
        let mut mode = set.mode.unwrap_or(0) & 0o7777;
        if who.uid != 0 && !who.member(gid) && mode & 0o10 != 0 {
            mode &= 0o5777;
        }
        if kind == FileType::Directory {
            mode = mode & 0o1777 | if inherits { 0o2000 } else { 0 };
        }
        if kind == FileType::Symlink {
            mode = 0o777;
        }
        let size = if kind == FileType::Regular { set.size.unwrap_or(0) } else { 0 };
        let id = self.nodes.len();
        let pick = |set: SetTime| if let SetTime::ToClient(time) = set { time } else { now };
        self.nodes.push(Some(Node {
            kind,
            mode,
            uid,
            gid,
            names: 1,
            data: vec![0; size as usize],
            target: target.to_vec(),
            children: BTreeMap::new(),
            parent: at.0,
            atime: pick(set.atime),
            mtime: pick(set.mtime),
            ctime: now,
            verifier: None,
        }));
        self.edit(at.0).children.insert(at.1.to_vec(), id);
        self.changed(at.0, now);
        Ok(id)
    }

    /// UNCHECKED (`guard` is `None`) or exclusive creation of a file.
    pub fn create_file(
        &mut self,
        at: (usize, &[u8]),
        who: &Who,
        set: &SetAttr,
        verifier: Option<[u8; 8]>,
        now: Time,
    ) -> Out<usize> {
        let dir = self.dir(at.0, who)?;
        let Some(id) = dir.children.get(at.1).copied() else {
            let id = self.make(at, who, FileType::Regular, set, b"", now)?;
            self.edit(id).verifier = verifier;
            return Ok(id);
        };
        let node = self.node(id)?;
        if verifier.is_some() {
            need(node.verifier == verifier, Status::Exist)?;
            return Ok(id);
        }
        need(node.kind == FileType::Regular, Status::Exist)?;
        if let Some(size) = set.size {
            need(self.may_write(node, who), Status::Access)?;
            let node = self.edit(id);
            node.data.resize(size as usize, 0);
            written(node, who, now);
        }
        Ok(id)
    }

    pub fn link(&mut self, id: usize, to: (usize, &[u8]), who: &Who, now: Time) -> Out<()> {
        let node = self.node(id)?;
        let dir = self.dir(to.0, who)?;
        need(!dir.children.contains_key(to.1), Status::Exist)?;
        self.writable(dir, who)?;
        need(node.kind != FileType::Directory, Status::IsDir)?;
        let node = self.edit(id);
        node.names += 1;
        node.ctime = now;
        self.edit(to.0).children.insert(to.1.to_vec(), id);
        self.changed(to.0, now);
        Ok(())
    }

    pub fn remove(&mut self, at: (usize, &[u8]), who: &Who, dir: bool, now: Time) -> Out<()> {
        let holder = self.dir(at.0, who)?;
        let id = *holder.children.get(at.1).ok_or(Status::NoEnt)?;
        self.writable(holder, who)?;
        let node = self.node(id)?;
        need(self.sticky_ok(holder, node, who), Status::Perm)?;
        if dir {
            need(node.kind == FileType::Directory, Status::NotDir)?;
            need(node.children.is_empty(), Status::NotEmpty)?;
        } else {
            need(node.kind != FileType::Directory, Status::IsDir)?;
        }
        self.edit(at.0).children.remove(at.1);
        self.changed(at.0, now);
        self.unname(id, now);
        Ok(())
    }

    pub fn rename(
        &mut self,
        from: (usize, &[u8]),
        to: (usize, &[u8]),
        who: &Who,
        now: Time,
    ) -> Out<()> {
        let from_dir = self.dir(from.0, who)?;
        let to_dir = self.dir(to.0, who)?;
        let id = *from_dir.children.get(from.1).ok_or(Status::NoEnt)?;
        let node = self.node(id)?;
        let old = to_dir.children.get(to.1).copied();
        if old == Some(id) {
            return Ok(());
        }
        let is_dir = node.kind == FileType::Directory;
        need(!is_dir || from.0 == to.0 || !self.below(to.0, id), Status::Inval)?;
        if let Some(old) = old {
            need(from.0 == to.0 || !self.below(from.0, old), Status::NotEmpty)?;
        }
        self.writable(from_dir, who)?;
        need(self.sticky_ok(from_dir, node, who), Status::Perm)?;
        self.writable(to_dir, who)?;
        if let Some(old) = old {
            let old = self.node(old)?;
            need(self.sticky_ok(to_dir, old, who), Status::Perm)?;
            let old_dir = old.kind == FileType::Directory;
            need(!is_dir || old_dir, Status::NotDir)?;
            need(is_dir || !old_dir, Status::IsDir)?;
        }
        if is_dir && from.0 != to.0 {
            self.writable(node, who)?;
        }
        if let Some(old) = old {
            need(self.node(old)?.children.is_empty(), Status::NotEmpty)?;
        }
        self.edit(from.0).children.remove(from.1);
        self.edit(to.0).children.insert(to.1.to_vec(), id);
        if let Some(old) = old {
            self.unname(old, now);
        }
        let node = self.edit(id);
        node.parent = to.0;
        node.ctime = now;
        self.changed(from.0, now);
        self.changed(to.0, now);
        Ok(())
    }

    fn below(&self, mut id: usize, ancestor: usize) -> bool {
        while id != ancestor {
            if id == TOP {
                return false;
            }
            id = self.node(id).expect("parents live").parent;
        }
        true
    }

    fn changed(&mut self, dir: usize, now: Time) {
        let node = self.edit(dir);
        (node.mtime, node.ctime) = (now, now);
    }

    fn unname(&mut self, id: usize, now: Time) {
        let node = self.edit(id);
        node.names -= 1;
        node.ctime = now;
        if node.names == 0 {
            self.nodes[id] = None;
        }
    }
}

fn written(node: &mut Node, who: &Who, now: Time) {
    if who.uid != 0 {
        let stranger = !who.member(node.gid);
        node.mode = unprivileged(node.mode, stranger);
    }
    (node.mtime, node.ctime) = (now, now);
}

/// The mode after a change of data or owner, by a stranger to the group or not.
fn unprivileged(mode: u32, stranger: bool) -> u32 {
    let mode = mode & !0o4000;
    if mode & 0o10 == 0 && !stranger { mode } else { mode & !0o2000 }
}
