//! Arguments of the 22 procedures.
//! Owns: their decoding in place (server) and encoding (client).
//! Never: copies a name, a handle or data while decoding.
//! Invariant: every length is compared with its bound before it is used.
//! Source: RFC 1813, section 3.3. Bytes after the arguments are ignored, as servers do.

use std::fmt;

use harp_fs::request::{CreateHow, DirName, FileType, Request, SetAttr};

use super::attributes::{get_file_type, get_guard, get_set_attr, put_set_attr};
use super::{HANDLE_BYTES_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX, proc};
use crate::xdr::{Reader, Sink, XdrError};

const UNCHECKED: u32 = 0;
const GUARDED: u32 = 1;
const EXCLUSIVE: u32 = 2;
const FILE_SYNC: u32 = 2;

/// Why there is no request in a call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgsError {
    /// NFSv3 has no procedure of that number.
    NoProcedure,
    /// The arguments are malformed or beyond a bound.
    Garbage(XdrError),
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgsError::NoProcedure => write!(f, "no such procedure"),
            ArgsError::Garbage(error) => write!(f, "malformed arguments: {error}"),
        }
    }
}

impl std::error::Error for ArgsError {}

impl From<XdrError> for ArgsError {
    fn from(error: XdrError) -> ArgsError {
        ArgsError::Garbage(error)
    }
}

/// Decodes the arguments of `procedure`, in place.
#[inline]
pub fn decode_args(procedure: u32, args: &[u8]) -> Result<Request<'_>, ArgsError> {
    let r = &mut Reader::new(args);
    Ok(match procedure {
        proc::NULL => Request::Null,
        proc::GETATTR => Request::GetAttr { handle: handle(r)? },
        proc::SETATTR => {
            Request::SetAttr { handle: handle(r)?, set: get_set_attr(r)?, guard: get_guard(r)? }
        }
        proc::LOOKUP => Request::Lookup { what: dir_name(r)? },
        proc::ACCESS => Request::Access { handle: handle(r)?, want: r.u32()? },
        proc::READLINK => Request::ReadLink { handle: handle(r)? },
        proc::READ => Request::Read { handle: handle(r)?, offset: r.u64()?, count: r.u32()? },
        proc::WRITE => write(r)?,
        proc::CREATE => Request::Create { what: dir_name(r)?, how: create_how(r)? },
        proc::MKDIR => Request::MkDir { what: dir_name(r)?, set: get_set_attr(r)? },
        proc::SYMLINK => Request::SymLink {
            what: dir_name(r)?,
            set: get_set_attr(r)?,
            target: r.opaque(TARGET_BYTES_MAX)?,
        },
        proc::MKNOD => mknod(r)?,
        proc::REMOVE => Request::Remove { what: dir_name(r)? },
        proc::RMDIR => Request::RmDir { what: dir_name(r)? },
        proc::RENAME => Request::Rename { from: dir_name(r)?, to: dir_name(r)? },
        proc::LINK => Request::Link { handle: handle(r)?, to: dir_name(r)? },
        proc::READDIR => Request::ReadDir {
            handle: handle(r)?,
            cookie: r.u64()?,
            verifier: *r.fixed()?,
            count: r.u32()?,
        },
        proc::READDIRPLUS => Request::ReadDirPlus {
            handle: handle(r)?,
            cookie: r.u64()?,
            verifier: *r.fixed()?,
            dir_count: r.u32()?,
            max_count: r.u32()?,
        },
        proc::FSSTAT => Request::FsStat { handle: handle(r)? },
        proc::FSINFO => Request::FsInfo { handle: handle(r)? },
        proc::PATHCONF => Request::PathConf { handle: handle(r)? },
        proc::COMMIT => Request::Commit { handle: handle(r)?, offset: r.u64()?, count: r.u32()? },
        _ => return Err(ArgsError::NoProcedure),
    })
}

#[inline(always)]
fn handle<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], XdrError> {
    r.opaque(HANDLE_BYTES_MAX)
}

#[inline(always)]
fn dir_name<'a>(r: &mut Reader<'a>) -> Result<DirName<'a>, XdrError> {
    Ok(DirName { dir: handle(r)?, name: r.opaque(NAME_BYTES_MAX)? })
}

/// The data is bounded by the record it lies in. Fewer bytes than `count` are garbage; more are
/// allowed, and `count` says how many of them count.
#[inline(always)]
fn write<'a>(r: &mut Reader<'a>) -> Result<Request<'a>, XdrError> {
    let handle = handle(r)?;
    let (offset, count, stable) = (r.u64()?, r.u32()?, r.u32()?);
    if stable > FILE_SYNC {
        return Err(XdrError::BadValue(stable));
    }
    let data = r.opaque(r.rest().len())?;
    if data.len() < count as usize {
        return Err(XdrError::Truncated);
    }
    Ok(Request::Write { handle, offset, count, stable, data })
}

#[inline(always)]
fn create_how(r: &mut Reader<'_>) -> Result<CreateHow, XdrError> {
    match r.u32()? {
        UNCHECKED => get_set_attr(r).map(CreateHow::Unchecked),
        GUARDED => get_set_attr(r).map(CreateHow::Guarded),
        EXCLUSIVE => Ok(CreateHow::Exclusive(*r.fixed()?)),
        other => Err(XdrError::BadValue(other)),
    }
}

/// Kinds that MKNOD cannot make carry nothing further; `plan` answers BADTYPE.
fn mknod<'a>(r: &mut Reader<'a>) -> Result<Request<'a>, XdrError> {
    let what = dir_name(r)?;
    let kind = get_file_type(r)?;
    let (mut set, mut device) = (SetAttr::default(), (0, 0));
    match kind {
        FileType::Block | FileType::Character => {
            set = get_set_attr(r)?;
            device = (r.u32()?, r.u32()?);
        }
        FileType::Socket | FileType::Fifo => set = get_set_attr(r)?,
        FileType::Regular | FileType::Directory | FileType::Symlink => {}
    }
    Ok(Request::MkNod { what, kind, set, device })
}

/// Encodes the arguments of `request`, for the procedure [`super::procedure_of`] names.
pub fn encode_args(request: &Request<'_>, out: &mut impl Sink) {
    match *request {
        Request::Null => {}
        Request::GetAttr { handle }
        | Request::ReadLink { handle }
        | Request::FsStat { handle }
        | Request::FsInfo { handle }
        | Request::PathConf { handle } => out.opaque(handle),
        Request::SetAttr { handle, set, guard } => {
            out.opaque(handle);
            put_set_attr(out, &set);
            match guard {
                Some(time) => out.group::<12>(|g| g.u32(1).time(time)),
                None => out.u32(0),
            }
        }
        Request::Lookup { what } | Request::Remove { what } | Request::RmDir { what } => {
            put_dir_name(out, &what);
        }
        Request::Access { handle, want } => {
            out.opaque(handle);
            out.u32(want);
        }
        Request::Read { handle, offset, count } | Request::Commit { handle, offset, count } => {
            out.opaque(handle);
            out.group::<12>(|g| g.u64(offset).u32(count));
        }
        Request::Write { handle, offset, count, stable, data } => {
            out.opaque(handle);
            out.group::<16>(|g| g.u64(offset).u32(count).u32(stable));
            out.opaque(data);
        }
        Request::Rename { from, to } => {
            put_dir_name(out, &from);
            put_dir_name(out, &to);
        }
        Request::Link { handle, to } => {
            out.opaque(handle);
            put_dir_name(out, &to);
        }
        Request::ReadDir { handle, cookie, verifier, count } => {
            out.opaque(handle);
            out.group::<20>(|g| g.u64(cookie).raw(&verifier).u32(count));
        }
        Request::ReadDirPlus { handle, cookie, verifier, dir_count, max_count } => {
            out.opaque(handle);
            out.group::<24>(|g| g.u64(cookie).raw(&verifier).u32(dir_count).u32(max_count));
        }
        Request::Create { .. }
        | Request::MkDir { .. }
        | Request::SymLink { .. }
        | Request::MkNod { .. } => encode_making(request, out),
    }
}

/// The arguments of the procedures that make an object with attributes.
fn encode_making(request: &Request<'_>, out: &mut impl Sink) {
    match request {
        Request::Create { what, how } => {
            put_dir_name(out, what);
            let (mode, set) = match how {
                CreateHow::Unchecked(set) => (UNCHECKED, set),
                CreateHow::Guarded(set) => (GUARDED, set),
                CreateHow::Exclusive(verifier) => {
                    out.group::<12>(|g| g.u32(EXCLUSIVE).raw(verifier));
                    return;
                }
            };
            out.u32(mode);
            put_set_attr(out, set);
        }
        Request::MkDir { what, set } => {
            put_dir_name(out, what);
            put_set_attr(out, set);
        }
        Request::SymLink { what, set, target } => {
            put_dir_name(out, what);
            put_set_attr(out, set);
            out.opaque(target);
        }
        Request::MkNod { what, kind, set, device } => {
            put_dir_name(out, what);
            out.u32(*kind as u32);
            if matches!(
                kind,
                FileType::Block | FileType::Character | FileType::Socket | FileType::Fifo
            ) {
                put_set_attr(out, set);
            }
            if matches!(kind, FileType::Block | FileType::Character) {
                out.group::<8>(|g| g.u32(device.0).u32(device.1));
            }
        }
        other => unreachable!("{other:?} makes nothing"),
    }
}

fn put_dir_name(out: &mut impl Sink, what: &DirName<'_>) {
    out.opaque(what.dir);
    out.opaque(what.name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs3::procedure_of;
    use crate::samples;

    #[test]
    fn every_request_comes_back_as_it_went() {
        let mut seen = [false; 22];
        for request in samples::requests() {
            let mut bytes = Vec::new();
            encode_args(&request, &mut bytes);
            let procedure = procedure_of(&request);
            seen[procedure as usize] = true;
            assert_eq!(decode_args(procedure, &bytes), Ok(request), "{request:?}");
        }
        assert_eq!(seen, [true; 22], "a procedure has no sample");
        assert_eq!(decode_args(22, &[]), Err(ArgsError::NoProcedure));
    }

    #[test]
    fn every_truncation_is_garbage() {
        for request in samples::requests() {
            let mut bytes = Vec::new();
            encode_args(&request, &mut bytes);
            for cut in 0..bytes.len() {
                let got = decode_args(procedure_of(&request), &bytes[..cut]);
                assert!(matches!(got, Err(ArgsError::Garbage(_))), "{request:?} at {cut}: {got:?}");
            }
        }
    }

    #[test]
    fn long_names_get_through_and_endless_ones_do_not() {
        let (long, endless) = (vec![b'n'; NAME_BYTES_MAX], vec![b'n'; NAME_BYTES_MAX + 1]);
        let lookup = |name| {
            let mut bytes = Vec::new();
            let what = DirName { dir: &[1; 64], name };
            encode_args(&Request::Lookup { what }, &mut bytes);
            bytes
        };
        assert!(decode_args(proc::LOOKUP, &lookup(&long)).is_ok());
        assert!(decode_args(proc::LOOKUP, &lookup(&endless)).is_err());
        let mut bytes = Vec::new();
        encode_args(&Request::GetAttr { handle: &[1; 65] }, &mut bytes);
        assert!(decode_args(proc::GETATTR, &bytes).is_err());
    }

    #[test]
    fn a_write_may_carry_more_than_it_counts_but_not_less() {
        let encode = |count| {
            let mut bytes = Vec::new();
            let write =
                Request::Write { handle: &[1; 32], offset: 3, count, stable: 2, data: &[5; 10] };
            encode_args(&write, &mut bytes);
            bytes
        };
        assert!(decode_args(proc::WRITE, &encode(9)).is_ok());
        assert!(decode_args(proc::WRITE, &encode(11)).is_err());
    }
}
