//! What a client wants done: one NFS request in the words of the model.
//! Owns: the requests' shapes, their bytes on the wire, and the unique bytes of every write.
//! Never: keeps a handle; the model's numbers stand for objects until the call is encoded.
//! Invariant: no two writes carry the same eight bytes at the same place of a file.

use harp_node::fs::request::{CreateHow, Credential, DirName, Request, SetAttr, SetTime};
use harp_node::wire::{mount, nfs3, rpc};

use crate::model::Ino;
use crate::names::Name;

/// How a CREATE treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Takes it, and cuts it to this size if told.
    Unchecked(Option<u64>),
    /// Refuses.
    Guarded,
    /// Refuses unless it was made with this number.
    Exclusive(u64),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub enum Intent {
    /// MNT of the root; it changes nothing.
    Mount,
    GetAttr {
        ino: Ino,
    },
    Lookup {
        dir: Ino,
        name: Name,
    },
    Read {
        ino: Ino,
        offset: u64,
        count: u32,
    },
    ReadDir {
        dir: Ino,
    },
    Write {
        ino: Ino,
        offset: u64,
        count: u32,
        tag: u64,
    },
    Truncate {
        ino: Ino,
        size: u64,
    },
    Chmod {
        ino: Ino,
        mode: u32,
    },
    Create {
        dir: Ino,
        name: Name,
        how: How,
        mode: u32,
    },
    MkDir {
        dir: Ino,
        name: Name,
        mode: u32,
    },
    Remove {
        dir: Ino,
        name: Name,
    },
    RmDir {
        dir: Ino,
        name: Name,
    },
    Rename {
        from: (Ino, Name),
        to: (Ino, Name),
    },
}

/// Bytes that one READDIR may return: enough for every name there is.
const READDIR_BYTES: u32 = 16 << 10;

/// The eight bytes that the write `tag` puts at `word` (offset / 8) of a file.
fn word(tag: u64, word: u64) -> [u8; 8] {
    (tag << 24 | (word & 0xff_ffff)).to_le_bytes()
}

/// Fills `out` with what the write `tag` puts at `offset` of a file.
pub fn fill(tag: u64, offset: u64, out: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let (mut at, mut done) = (offset / 8, 0);
    if skip > 0 {
        let first = &word(tag, at)[skip..];
        done = first.len().min(out.len());
        out[..done].copy_from_slice(&first[..done]);
        at += 1;
    }
    let mut chunks = out[done..].chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word(tag, at));
        at += 1;
    }
    let rest = chunks.into_remainder();
    let count = rest.len();
    rest.copy_from_slice(&word(tag, at)[..count]);
}

fn with_mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

impl Intent {
    /// Whether it may change something.
    pub fn modifies(&self) -> bool {
        use Intent::*;
        !matches!(self, Mount | GetAttr { .. } | Lookup { .. } | Read { .. } | ReadDir { .. })
    }

    /// Its NFS procedure; `None` for MNT.
    pub fn procedure(&self) -> Option<u32> {
        use nfs3::proc;
        Some(match self {
            Intent::Mount => return None,
            Intent::GetAttr { .. } => proc::GETATTR,
            Intent::Lookup { .. } => proc::LOOKUP,
            Intent::Read { .. } => proc::READ,
            Intent::ReadDir { .. } => proc::READDIR,
            Intent::Write { .. } => proc::WRITE,
            Intent::Truncate { .. } | Intent::Chmod { .. } => proc::SETATTR,
            Intent::Create { .. } => proc::CREATE,
            Intent::MkDir { .. } => proc::MKDIR,
            Intent::Remove { .. } => proc::REMOVE,
            Intent::RmDir { .. } => proc::RMDIR,
            Intent::Rename { .. } => proc::RENAME,
        })
    }

    /// Appends the whole call of the user `uid`, record mark included. `handle` gives the handle of every object
    /// that the request names.
    pub fn encode<'h>(
        &self,
        xid: u32,
        uid: u32,
        handle: impl Fn(Ino) -> &'h [u8],
        out: &mut Vec<u8>,
    ) {
        let auth = rpc::Auth::Sys(Credential { uid, gid: 0, groups_be: &[] });
        let Some(procedure) = self.procedure() else {
            let program = (mount::PROGRAM, mount::VERSION);
            let mark = rpc::begin_call(xid, program.0, program.1, mount::proc::MNT, &auth, out);
            mount::encode_args(&mount::Request::Mnt { path: b"/" }, out);
            return rpc::finish(mark, out);
        };
        let mark = rpc::begin_call(xid, nfs3::PROGRAM, nfs3::VERSION, procedure, &auth, out);
        let name =
            |dir: Ino, name: Name| DirName { dir: handle(dir), name: name.text().as_bytes() };
        let mut data = Vec::new();
        let request = match *self {
            Intent::Mount => unreachable!("encoded above"),
            Intent::GetAttr { ino } => Request::GetAttr { handle: handle(ino) },
            Intent::Lookup { dir, name: n } => Request::Lookup { what: name(dir, n) },
            Intent::Read { ino, offset, count } => {
                Request::Read { handle: handle(ino), offset, count }
            }
            Intent::ReadDir { dir } => Request::ReadDir {
                handle: handle(dir),
                cookie: 0,
                verifier: [0; 8],
                count: READDIR_BYTES,
            },
            Intent::Write { ino, offset, count, tag } => {
                data.resize(count as usize, 0);
                fill(tag, offset, &mut data);
                Request::Write { handle: handle(ino), offset, count, stable: 2, data: &data }
            }
            Intent::Truncate { ino, size } => {
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                Request::SetAttr { handle: handle(ino), set, guard: None }
            }
            Intent::Chmod { ino, mode } => {
                let set = SetAttr { mtime: SetTime::Keep, ..with_mode(mode) };
                Request::SetAttr { handle: handle(ino), set, guard: None }
            }
            Intent::Create { dir, name: n, how, mode } => {
                let how = match how {
                    How::Unchecked(size) => {
                        CreateHow::Unchecked(SetAttr { size, ..with_mode(mode) })
                    }
                    How::Guarded => CreateHow::Guarded(with_mode(mode)),
                    How::Exclusive(verifier) => CreateHow::Exclusive(verifier.to_be_bytes()),
                };
                Request::Create { what: name(dir, n), how }
            }
            Intent::MkDir { dir, name: n, mode } => {
                Request::MkDir { what: name(dir, n), set: with_mode(mode) }
            }
            Intent::Remove { dir, name: n } => Request::Remove { what: name(dir, n) },
            Intent::RmDir { dir, name: n } => Request::RmDir { what: name(dir, n) },
            Intent::Rename { from, to } => {
                Request::Rename { from: name(from.0, from.1), to: name(to.0, to.1) }
            }
        };
        nfs3::encode_args(&request, out);
        rpc::finish(mark, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_write_are_the_same_bytes_wherever_they_begin() {
        let mut whole = [0; 100];
        fill(77, 4096, &mut whole);
        for (from, to) in [(0, 3), (3, 5), (5, 64), (9, 100), (99, 100)] {
            let mut part = vec![0; to - from];
            fill(77, 4096 + from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
        }
        let mut other = [0; 100];
        fill(78, 4096, &mut other);
        assert!(whole.chunks(8).zip(other.chunks(8)).all(|(a, b)| a != b));
    }
}
