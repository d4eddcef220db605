//! NFSv3: the 22 procedures, their numbers, arguments and results as bytes.
//! Owns: procedure and status numbers, and which procedures modify.
//! Never: judges a request; a name too long for a file system still gets through to `plan`.
//! Invariant: `decode(encode(x)) == x` for arguments and results alike.
//! Source: RFC 1813.

mod args;
mod attributes;
mod reply;
mod results;

pub use args::{ArgsError, decode_args, encode_args};
pub use reply::{Decoded, decode_body};
pub use results::{body_bytes, encode_body, encode_body_to};

use harp_fs::request::{Request, Status};

/// The NFS program.
pub const PROGRAM: u32 = 100_003;
/// The one version served.
pub const VERSION: u32 = 3;
/// The longest handle, in bytes.
pub const HANDLE_BYTES_MAX: usize = 64;
/// The longest name that is taken off the wire, in bytes; longer ones are garbage. Names between
/// the file system's limit and this one are answered with NAMETOOLONG by `plan`.
pub const NAME_BYTES_MAX: usize = 4096;
/// The longest symbolic link's target that is taken off the wire, in bytes; likewise.
pub const TARGET_BYTES_MAX: usize = 64 << 10;
/// The longest encoded results of any modifying procedure, in bytes: those of CREATE.
pub const MODIFYING_BODY_BYTES_MAX: usize = 4 + 8 + HANDLE_BYTES_MAX + 88 + 116;

/// Procedure numbers.
#[allow(missing_docs)] // the names are RFC 1813's
pub mod proc {
    pub const NULL: u32 = 0;
    pub const GETATTR: u32 = 1;
    pub const SETATTR: u32 = 2;
    pub const LOOKUP: u32 = 3;
    pub const ACCESS: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 6;
    pub const WRITE: u32 = 7;
    pub const CREATE: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const SYMLINK: u32 = 10;
    pub const MKNOD: u32 = 11;
    pub const REMOVE: u32 = 12;
    pub const RMDIR: u32 = 13;
    pub const RENAME: u32 = 14;
    pub const LINK: u32 = 15;
    pub const READDIR: u32 = 16;
    pub const READDIRPLUS: u32 = 17;
    pub const FSSTAT: u32 = 18;
    pub const FSINFO: u32 = 19;
    pub const PATHCONF: u32 = 20;
    pub const COMMIT: u32 = 21;

    /// The procedure's name, for people.
    pub const fn name(procedure: u32) -> &'static str {
        const NAMES: [&str; 22] = [
            "null",
            "getattr",
            "setattr",
            "lookup",
            "access",
            "readlink",
            "read",
            "write",
            "create",
            "mkdir",
            "symlink",
            "mknod",
            "remove",
            "rmdir",
            "rename",
            "link",
            "readdir",
            "readdirplus",
            "fsstat",
            "fsinfo",
            "pathconf",
            "commit",
        ];
        if procedure < 22 { NAMES[procedure as usize] } else { "unknown" }
    }
}

/// Whether a procedure can change the file system, so that it is executed at most once, logged,
/// and its reply remembered. COMMIT changes nothing: every write is stable when it is answered.
#[inline]
pub const fn is_modifying(procedure: u32) -> bool {
    const MODIFYING: u32 = 1 << proc::SETATTR
        | 1 << proc::WRITE
        | 1 << proc::CREATE
        | 1 << proc::MKDIR
        | 1 << proc::SYMLINK
        | 1 << proc::MKNOD
        | 1 << proc::REMOVE
        | 1 << proc::RMDIR
        | 1 << proc::RENAME
        | 1 << proc::LINK;
    procedure < 32 && MODIFYING & 1 << procedure != 0
}

/// The number of a request's procedure.
pub const fn procedure_of(request: &Request<'_>) -> u32 {
    match request {
        Request::Null => proc::NULL,
        Request::GetAttr { .. } => proc::GETATTR,
        Request::SetAttr { .. } => proc::SETATTR,
        Request::Lookup { .. } => proc::LOOKUP,
        Request::Access { .. } => proc::ACCESS,
        Request::ReadLink { .. } => proc::READLINK,
        Request::Read { .. } => proc::READ,
        Request::Write { .. } => proc::WRITE,
        Request::Create { .. } => proc::CREATE,
        Request::MkDir { .. } => proc::MKDIR,
        Request::SymLink { .. } => proc::SYMLINK,
        Request::MkNod { .. } => proc::MKNOD,
        Request::Remove { .. } => proc::REMOVE,
        Request::RmDir { .. } => proc::RMDIR,
        Request::Rename { .. } => proc::RENAME,
        Request::Link { .. } => proc::LINK,
        Request::ReadDir { .. } => proc::READDIR,
        Request::ReadDirPlus { .. } => proc::READDIRPLUS,
        Request::FsStat { .. } => proc::FSSTAT,
        Request::FsInfo { .. } => proc::FSINFO,
        Request::PathConf { .. } => proc::PATHCONF,
        Request::Commit { .. } => proc::COMMIT,
    }
}

/// The status with this number, if it is one that Harp answers.
pub fn status_from_number(number: u32) -> Option<Status> {
    use Status::*;
    const ALL: [Status; 26] = [
        Ok,
        Perm,
        NoEnt,
        Io,
        Access,
        Exist,
        XDev,
        NotDir,
        IsDir,
        Inval,
        FBig,
        NoSpc,
        ReadOnly,
        MLink,
        NameTooLong,
        NotEmpty,
        DQuot,
        Stale,
        BadHandle,
        NotSync,
        BadCookie,
        NotSupp,
        TooSmall,
        ServerFault,
        BadType,
        JukeBox,
    ];
    ALL.into_iter().find(|status| *status as u32 == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifying_procedures_are_the_ten() {
        let modifying: Vec<&str> = (0..100).filter(|&p| is_modifying(p)).map(proc::name).collect();
        assert_eq!(
            modifying,
            [
                "setattr", "write", "create", "mkdir", "symlink", "mknod", "remove", "rmdir",
                "rename", "link"
            ]
        );
    }
}
