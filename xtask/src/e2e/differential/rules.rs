//! Rules: where an NFS server is meant to differ from a local file system, and why.
//! Owns: every difference that the comparison lets pass, one function or constant each.
//! Never: lets a difference pass for which no reason stands here.
//! Invariant: each rule says what the server must do instead; none says that anything will do.
//! Source: RFC 1813; the Linux kernel's own NFS server where it had to decide the same.
//!
//! Besides these, never compared are: file-system and inode numbers (handles and file ids must map
//! one to one to the host's inodes), the length of directories, the space used, and a mode that is set
//! for a symbolic link (Linux keeps none).

use harp_bench::request::Status;
use rustix::fs::{Mode, Stat};

use super::user::User;

/// Longest file either side can have.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Longest name either side can have.
const NAME_BYTES_MAX: usize = 255;

/// Which answer a name gets that no entry can have, or that always exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    Lookup,
    Make,
    Remove,
    RemoveDirectory,
    Rename,
}

/// What RFC 1813 answers where a system call has another answer, or where the name cannot be said
/// in one: an empty name, a slash, a zero byte; and "." and "..", of which each system call has an
/// opinion of its own (EBUSY, EISDIR, ENOTEMPTY, EEXIST). The directory must be one, and one that
/// the user may search, before its name matters. RENAME judges both names before it looks for
/// either, also as to their lengths: the host finds the second too long when it has found the
/// first.
pub fn name_status(naming: Naming, name: &[u8]) -> Option<Status> {
    match (name, naming) {
        (b"", _) => Some(Status::Access),
        (b"." | b"..", Naming::Lookup) => None,
        (b"." | b"..", Naming::Make) => Some(Status::Exist),
        (b"..", Naming::RemoveDirectory) => Some(Status::Exist),
        (b"." | b"..", _) => Some(Status::Inval),
        (_, Naming::Rename) if name.len() > NAME_BYTES_MAX => Some(Status::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, 0 | b'/')) => Some(Status::Inval),
        _ => None,
    }
}

/// A server cannot tell a file that is open from one opened anew: the owner always may.
pub fn owner_may_anyway(file: &Stat, user: &User) -> bool {
    file.st_uid == user.uid
}

/// The mode of what gets a mode and another owner or group with one SETATTR. To the host these are
/// two operations, and whichever comes first is undone in part by the other. As the Linux server
/// does: the change of owner takes its toll of the new mode.
pub fn mode_given_away(mode: Mode) -> Mode {
    let set_gid_executes = mode.contains(Mode::SGID | Mode::XGRP);
    let taken = if set_gid_executes { Mode::SUID | Mode::SGID } else { Mode::SUID };
    mode - taken
}

/// The status where the host says EPERM to a new name for a directory: the Linux server's.
pub const LINK_OF_DIRECTORY: Status = Status::IsDir;

/// MKNOD makes no files, directories and symbolic links.
pub const NO_NODE: Status = Status::BadType;

/// The target of a symbolic link is judged when its name has been found free. RFC 1813 has no
/// status for an empty one (the host: ENOENT).
pub fn target_status(target: &[u8]) -> Option<Status> {
    match target.len() {
        0 => Some(Status::Inval),
        1..=4095 => target.contains(&0).then_some(Status::Inval),
        _ => Some(Status::NameTooLong),
    }
}
