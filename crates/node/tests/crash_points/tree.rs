//! Tree: everything that a client can see of a file system.
//! Owns: the walk, and the comparison with the model.
//! Never: looks into a server.
//! Invariant: equal trees have the same names at the same cookies, handles, attributes, times and bytes.
//! Source: RFC 1813.

use std::collections::BTreeSet;

use harp_fs::request::{Attributes, FileType, HandleBytes, Listing, Request, Response, Status};

use crate::group::Group;
use crate::model::{Model, Node, TOP};

/// No file in these tests is longer.
const FILE_BYTES_MAX: u32 = 64 << 10;

/// One entry of a directory, with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub path: String,
    pub cookie: u64,
    pub handle: HandleBytes,
    pub attributes: Attributes,
    /// A file's bytes, or a symbolic link's target.
    pub content: Vec<u8>,
}

/// All entries, "." and ".." included, directory by directory in the order of cookies.
pub type Tree = Vec<Shown>;

/// Walks through everything.
pub fn walk(group: &mut Group) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut ahead = vec![(String::new(), group.mount()?)];
    while let Some((above, dir)) = ahead.pop() {
        let listing = list(group, &dir)?;
        let mut last = 0;
        for entry in &listing.entries {
            let name = String::from_utf8_lossy(&listing.names[entry.name.clone()]).into_owned();
            let path = format!("{above}/{name}");
            if entry.cookie <= last {
                return Err(format!("{path} has a cookie out of order"));
            }
            last = entry.cookie;
            let plus = entry.plus.ok_or_else(|| format!("{path} is listed without a handle"))?;
            let (attributes, handle) = plus;
            if attributes.fileid != entry.fileid {
                return Err(format!("{path} has two file numbers"));
            }
            let content = content(group, &attributes, &handle)?;
            if attributes.kind == FileType::Directory && name != "." && name != ".." {
                ahead.push((path.clone(), handle));
            }
            tree.push(Shown { path, cookie: entry.cookie, handle, attributes, content });
        }
    }
    Ok(tree)
}

fn list(group: &mut Group, dir: &HandleBytes) -> Result<Listing, String> {
    let (handle, verifier) = (dir.as_slice(), [0; 8]);
    let (dir_count, max_count) = (FILE_BYTES_MAX, FILE_BYTES_MAX);
    let request = Request::ReadDirPlus { handle, cookie: 0, verifier, dir_count, max_count };
    match group.ask(&request)?.0 {
        Response::ReadDirPlus { status: Status::Ok, listing, .. } if listing.end => Ok(listing),
        other => Err(format!("a directory is listed as {other:?}")),
    }
}

fn content(
    group: &mut Group,
    attributes: &Attributes,
    handle: &HandleBytes,
) -> Result<Vec<u8>, String> {
    let handle = handle.as_slice();
    match attributes.kind {
        FileType::Regular => {
            let read = Request::Read { handle, offset: 0, count: FILE_BYTES_MAX };
            match group.ask(&read)? {
                (Response::Read { status: Status::Ok, eof: true, .. }, data) => Ok(data),
                (other, _) => Err(format!("a file reads as {other:?}")),
            }
        }
        FileType::Symlink => match group.ask(&Request::ReadLink { handle })?.0 {
            Response::ReadLink { status: Status::Ok, target, .. } => Ok(target),
            other => Err(format!("a symbolic link reads as {other:?}")),
        },
        _ => Ok(Vec::new()),
    }
}

/// The first difference between two trees, in words.
pub fn compare(found: &Tree, expected: &Tree) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let short = |shown: Option<&Shown>| {
        shown.map(|shown| {
            let Shown { path, cookie, attributes, content, .. } = shown;
            format!("{path} at {cookie}: {attributes:?}, bytes {:08x}", crc32c::crc32c(content))
        })
    };
    let pairs = 0..found.len().max(expected.len());
    let differ = pairs.into_iter().find(|at| found.get(*at) != expected.get(*at));
    let at = differ.expect("unequal lists differ somewhere");
    let (found, expected) = (short(found.get(at)), short(expected.get(at)));
    Err(format!("the tree differs: found {found:?}, expected {expected:?}"))
}

/// Whether the tree is the model's.
pub fn check(tree: &Tree, model: &Model) -> Result<(), String> {
    let mut named = BTreeSet::new();
    for shown in tree {
        let mut id = TOP;
        for part in shown.path.split('/').filter(|part| !part.is_empty()) {
            let node = model.node(id).expect("a walk stays among the living");
            id = match part {
                "." => id,
                ".." => node.parent,
                name => *node
                    .children
                    .get(name.as_bytes())
                    .ok_or_else(|| format!("{} is there, not in the model", shown.path))?,
            };
        }
        named.insert(shown.path.clone());
        let node = model.node(id).expect("names of the living");
        check_one(shown, node, model.nlink(id))
            .map_err(|what| format!("{}: {what}", shown.path))?;
    }
    let names = model.nodes.iter().flatten().map(|node| node.children.len());
    let directories = model.nodes.iter().flatten().filter(|n| n.kind == FileType::Directory);
    let expected = names.sum::<usize>() + 2 * directories.count();
    match named.len() == expected && tree.len() == expected {
        true => Ok(()),
        false => Err(format!("{} names, the model has {expected}", tree.len())),
    }
}

fn check_one(shown: &Shown, node: &Node, nlink: u32) -> Result<(), String> {
    let Attributes { kind, mode, uid, gid, size, atime, mtime, ctime, .. } = shown.attributes;
    let (content, length) = match node.kind {
        FileType::Regular => (&node.data, node.data.len() as u64),
        FileType::Symlink => (&node.target, node.target.len() as u64),
        // How long a directory or device is, is the server's affair.
        _ => (&node.target, size),
    };
    let found = (kind, mode, shown.attributes.nlink, uid, gid, size, atime, mtime, ctime);
    let expected = (
        node.kind, node.mode, nlink, node.uid, node.gid, length, node.atime, node.mtime, node.ctime,
    );
    if found != expected {
        return Err(format!("{found:?}, in the model {expected:?}"));
    }
    if shown.content != *content {
        return Err("other bytes than in the model".into());
    }
    Ok(())
}
