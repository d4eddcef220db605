//! MOUNTv3: how a client gets the handle of an export.
//! Owns: the six procedures as bytes.
//! Never: knows which exports there are, or remembers who mounted.
//! Invariant: a path is at most [`PATH_BYTES_MAX`] bytes.
//! Source: RFC 1813, appendix I.

use harp_fs::request::HandleBytes;

use crate::nfs3::{ArgsError, HANDLE_BYTES_MAX};
use crate::rpc::GROUPS_MAX;
use crate::xdr::{Reader, Sink, XdrError};

/// The MOUNT program.
pub const PROGRAM: u32 = 100_005;
/// The one version served.
pub const VERSION: u32 = 3;
/// The longest path, in bytes (`MNTPATHLEN`).
pub const PATH_BYTES_MAX: usize = 1024;

/// Authentication flavor AUTH_NONE, for [`Reply::Mounted`].
pub const FLAVOR_NONE: u32 = 0;
/// Authentication flavor AUTH_SYS, for [`Reply::Mounted`].
pub const FLAVOR_SYS: u32 = 1;

/// Procedure numbers.
#[allow(missing_docs)] // the names are RFC 1813's
pub mod proc {
    pub const NULL: u32 = 0;
    pub const MNT: u32 = 1;
    pub const DUMP: u32 = 2;
    pub const UMNT: u32 = 3;
    pub const UMNTALL: u32 = 4;
    pub const EXPORT: u32 = 5;
}

/// One MOUNT request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Nothing.
    Null,
    /// The handle of an export.
    Mnt {
        /// The export's path, any bytes.
        path: &'a [u8],
    },
    /// Who has mounted what.
    Dump,
    /// Forget that this client mounted the path.
    Umnt {
        /// The export's path, any bytes.
        path: &'a [u8],
    },
    /// Forget everything that this client mounted.
    UmntAll,
    /// The list of exports.
    Export,
}

/// `mountstat3`; the discriminants are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // the names are RFC 1813's
pub enum Status {
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    Access = 13,
    NotDir = 20,
    Inval = 22,
    NameTooLong = 63,
    NotSupp = 10004,
    ServerFault = 10006,
}

/// An export, for [`Reply::Exports`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// The names of those who may mount it; none means everybody.
    pub groups: &'a [&'a [u8]],
}

/// The results of one MOUNT request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// NULL, UMNT, UMNTALL: nothing.
    Void,
    /// MNT succeeded.
    Mounted {
        /// The export's root.
        handle: HandleBytes,
        /// The flavors that the export accepts, preferred first.
        flavors: &'a [u32],
    },
    /// MNT failed.
    Failed(Status),
    /// DUMP: (host, path) of each mount that is known.
    Mounts(&'a [(&'a [u8], &'a [u8])]),
    /// EXPORT.
    Exports(&'a [Export<'a>]),
}

/// Decodes the arguments of `procedure`, in place.
pub fn decode_args(procedure: u32, args: &[u8]) -> Result<Request<'_>, ArgsError> {
    let r = &mut Reader::new(args);
    Ok(match procedure {
        proc::NULL => Request::Null,
        proc::MNT => Request::Mnt { path: r.opaque(PATH_BYTES_MAX)? },
        proc::DUMP => Request::Dump,
        proc::UMNT => Request::Umnt { path: r.opaque(PATH_BYTES_MAX)? },
        proc::UMNTALL => Request::UmntAll,
        proc::EXPORT => Request::Export,
        _ => return Err(ArgsError::NoProcedure),
    })
}

/// Encodes the arguments of `request` and returns the procedure they are for.
pub fn encode_args(request: &Request<'_>, out: &mut impl Sink) -> u32 {
    match request {
        Request::Null => proc::NULL,
        Request::Mnt { path } => {
            out.opaque(path);
            proc::MNT
        }
        Request::Dump => proc::DUMP,
        Request::Umnt { path } => {
            out.opaque(path);
            proc::UMNT
        }
        Request::UmntAll => proc::UMNTALL,
        Request::Export => proc::EXPORT,
    }
}

/// Encodes the results, without record mark and RPC header.
pub fn encode_body(reply: &Reply<'_>, out: &mut impl Sink) {
    match reply {
        Reply::Void => {}
        Reply::Mounted { handle, flavors } => {
            out.u32(0);
            out.opaque(handle.as_slice());
            out.u32(flavors.len() as u32);
            flavors.iter().for_each(|flavor| out.u32(*flavor));
        }
        Reply::Failed(status) => out.u32(*status as u32),
        Reply::Mounts(mounts) => {
            for (host, path) in *mounts {
                out.u32(1);
                out.opaque(host);
                out.opaque(path);
            }
            out.u32(0);
        }
        Reply::Exports(exports) => {
            for export in *exports {
                out.u32(1);
                out.opaque(export.path);
                for group in export.groups {
                    out.u32(1);
                    out.opaque(group);
                }
                out.u32(0);
            }
            out.u32(0);
        }
    }
}

/// Decodes MNT's results: the root's handle, or the number of a `mountstat3`.
pub fn decode_mounted(body: &[u8]) -> Result<Result<HandleBytes, u32>, XdrError> {
    let mut r = Reader::new(body);
    let status = r.u32()?;
    if status != 0 {
        return Ok(Err(status));
    }
    let handle = HandleBytes::new(r.opaque(HANDLE_BYTES_MAX)?);
    let flavors = r.u32()?;
    if flavors > GROUPS_MAX as u32 {
        return Err(XdrError::TooLong { length: flavors, max: GROUPS_MAX as u32 });
    }
    r.take(flavors as usize * 4)?;
    Ok(Ok(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_went() {
        let path: &[u8] = b"/export";
        for request in [
            Request::Null,
            Request::Mnt { path },
            Request::Dump,
            Request::Umnt { path },
            Request::UmntAll,
            Request::Export,
        ] {
            let mut bytes = Vec::new();
            let procedure = encode_args(&request, &mut bytes);
            assert_eq!(decode_args(procedure, &bytes), Ok(request));
            for cut in 0..bytes.len() {
                assert!(decode_args(procedure, &bytes[..cut]).is_err());
            }
        }
        assert_eq!(decode_args(6, &[]), Err(ArgsError::NoProcedure));
        let mut bytes = Vec::new();
        bytes.opaque(&[b'a'; PATH_BYTES_MAX + 1]);
        assert!(decode_args(proc::MNT, &bytes).is_err());
    }

    #[test]
    fn a_mount_gives_its_handle_or_its_status() {
        let handle = HandleBytes::new(b"root handle");
        let reply = Reply::Mounted { handle, flavors: &[FLAVOR_SYS, FLAVOR_NONE] };
        let mut bytes = Vec::new();
        encode_body(&reply, &mut bytes);
        assert_eq!(decode_mounted(&bytes), Ok(Ok(handle)));
        for cut in 0..bytes.len() {
            assert!(decode_mounted(&bytes[..cut]).is_err());
        }
        let mut bytes = Vec::new();
        encode_body(&Reply::Failed(Status::Access), &mut bytes);
        assert_eq!(decode_mounted(&bytes), Ok(Err(13)));
    }
}
