//! Access: who may do what to an object.
//! Owns: the permission bits, the owner's override, sticky directories, set-id rules.
//! Never: looks anything up; everything is decided from the inode and the credential given.
//! Invariant: uid 0 passes everywhere, except that executing a file needs some execute bit.
//! Source: RFC 1813 sections 3.3.4 and 4.4; POSIX file access permissions.

use crate::inode::Inode;
use crate::request::{Credential, FileType};

/// Permission to read a file or list a directory.
pub const READ: u32 = 4;
/// Permission to write a file or change a directory's entries.
pub const WRITE: u32 = 2;
/// Permission to execute a file or look names up in a directory.
pub const EXECUTE: u32 = 1;

/// Mode bit: run as the owner.
pub const SET_UID: u32 = 0o4000;
/// Mode bit: run as the group; on a directory, new entries take its group.
pub const SET_GID: u32 = 0o2000;
/// Mode bit: on a directory, only an entry's or the directory's owner may remove the entry.
pub const STICKY: u32 = 0o1000;
/// The nine bits that say who may do what.
pub const PERMISSIONS: u32 = 0o777;
/// Mode bit: members of the group may execute.
const GROUP_EXECUTE: u32 = 0o010;
/// All bits that a mode may have.
pub const MODE_BITS: u32 = 0o7777;

/// ACCESS's bits (RFC 1813 section 3.3.4).
pub mod ask {
    #![allow(missing_docs)] // the names are RFC 1813's, `ACCESS3_` left off
    pub const READ: u32 = 0x01;
    pub const LOOKUP: u32 = 0x02;
    pub const MODIFY: u32 = 0x04;
    pub const EXTEND: u32 = 0x08;
    pub const DELETE: u32 = 0x10;
    pub const EXECUTE: u32 = 0x20;
}

/// Whether all permissions in `want` ([`READ`] | [`WRITE`] | [`EXECUTE`]) are granted by the mode.
pub fn allows(inode: &Inode, who: &Credential<'_>, want: u32) -> bool {
    if who.uid == 0 {
        return want & EXECUTE == 0 || inode.kind == FileType::Directory || inode.mode & 0o111 != 0;
    }
    let class = if who.uid == inode.uid {
        inode.mode >> 6
    } else if who.in_group(inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    class & want == want
}

/// Whether `who` owns the object, or is root.
pub fn owns(inode: &Inode, who: &Credential<'_>) -> bool {
    who.uid == 0 || who.uid == inode.uid
}

/// Whether READ is allowed. A server cannot tell an open file from a new use of it, so the owner
/// always may, and who may execute a file may fetch its text.
pub fn may_read(inode: &Inode, who: &Credential<'_>) -> bool {
    owns(inode, who) || allows(inode, who, READ) || allows(inode, who, EXECUTE)
}

/// Whether WRITE and changing the size are allowed: by the mode, or to the owner of an open file.
pub fn may_write(inode: &Inode, who: &Credential<'_>) -> bool {
    owns(inode, who) || allows(inode, who, WRITE)
}

/// Whether `who` may remove the entry of `victim` from `dir` as far as the sticky bit goes.
pub fn sticky_allows(dir: &Inode, victim: &Inode, who: &Credential<'_>) -> bool {
    dir.mode & STICKY == 0 || owns(dir, who) || owns(victim, who)
}

/// ACCESS's answer: the bits of `want` that are granted. Exact: no override of any kind.
pub fn granted(inode: &Inode, who: &Credential<'_>, want: u32) -> u32 {
    let directory = inode.kind == FileType::Directory;
    let rules = [
        (ask::READ, READ, true),
        (ask::LOOKUP, EXECUTE, directory),
        (ask::MODIFY, if directory { WRITE | EXECUTE } else { WRITE }, true),
        (ask::EXTEND, if directory { WRITE | EXECUTE } else { WRITE }, true),
        (ask::DELETE, WRITE | EXECUTE, directory),
        (ask::EXECUTE, EXECUTE, !directory),
    ];
    rules
        .iter()
        .filter(|(bit, needed, applies)| want & bit != 0 && *applies && allows(inode, who, *needed))
        .fold(0, |sum, (bit, ..)| sum | bit)
}

/// Whether `who` is a member of the group, or root.
pub fn in_group(gid: u32, who: &Credential<'_>) -> bool {
    who.uid == 0 || who.in_group(gid)
}

/// The mode after the data or the owner changed: set-uid goes; set-gid goes where it means
/// execution (with the group's execute bit), and elsewhere if a stranger to the group made the
/// change.
pub fn without_set_id(mode: u32, by_member: bool) -> u32 {
    let mode = mode & !SET_UID;
    if mode & GROUP_EXECUTE != 0 || !by_member { mode & !SET_GID } else { mode }
}

/// The mode after `who` wrote to a regular file or changed its length.
pub fn mode_after_write(inode: &Inode, who: &Credential<'_>) -> u32 {
    if who.uid == 0 || inode.mode & (SET_UID | SET_GID) == 0 {
        inode.mode
    } else {
        without_set_id(inode.mode, in_group(inode.gid, who))
    }
}

/// `mode` as `who` may set it on an object of group `gid`: set-gid only for members of the group.
pub fn mode_settable(mode: u32, gid: u32, who: &Credential<'_>) -> u32 {
    let mode = mode & MODE_BITS;
    if in_group(gid, who) { mode } else { mode & !SET_GID }
}

/// `mode` as `who` may give it to a new object of group `gid`: as [`mode_settable`], but set-gid
/// without the group's execute bit is nothing that could be misused.
pub fn mode_of_new(mode: u32, gid: u32, who: &Credential<'_>) -> u32 {
    if mode & GROUP_EXECUTE == 0 { mode & MODE_BITS } else { mode_settable(mode, gid, who) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Time;

    fn inode(kind: FileType, mode: u32) -> Inode {
        Inode {
            kind,
            mode,
            nlink: 1,
            uid: 10,
            gid: 20,
            size: 0,
            used_blocks: 0,
            device: (0, 0),
            generation: 1,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            verifier: [0; 8],
            parent: 0,
            next_cookie: 0,
            entry_count: 0,
        }
    }

    fn who(uid: u32, gid: u32, groups_be: &[u8]) -> Credential<'_> {
        Credential { uid, gid, groups_be }
    }

    #[test]
    fn the_first_class_that_fits_decides_even_when_a_later_one_grants_more() {
        let file = inode(FileType::Regular, 0o077);
        assert!(!allows(&file, &who(10, 20, &[]), READ));
        let file = inode(FileType::Regular, 0o707);
        assert!(!allows(&file, &who(11, 20, &[]), READ));
        assert!(!allows(&file, &who(11, 1, &20u32.to_be_bytes()), READ));
        assert!(allows(&file, &who(11, 1, &[]), READ | WRITE | EXECUTE));
    }

    #[test]
    fn root_passes_but_executes_only_what_somebody_may() {
        let root = who(0, 0, &[]);
        let file = inode(FileType::Regular, 0o000);
        assert!(allows(&file, &root, READ | WRITE) && !allows(&file, &root, EXECUTE));
        assert!(allows(&inode(FileType::Directory, 0), &root, EXECUTE));
        assert!(allows(&inode(FileType::Regular, 0o001), &root, EXECUTE));
    }

    #[test]
    fn access_answers_only_what_fits_the_kind() {
        let owner = who(10, 1, &[]);
        let file = granted(&inode(FileType::Regular, 0o700), &owner, 0x3f);
        assert_eq!(file, ask::READ | ask::MODIFY | ask::EXTEND | ask::EXECUTE);
        let dir = granted(&inode(FileType::Directory, 0o700), &owner, 0x3f);
        assert_eq!(dir, ask::READ | ask::LOOKUP | ask::MODIFY | ask::EXTEND | ask::DELETE);
        let closed = granted(&inode(FileType::Directory, 0o600), &owner, 0x3f);
        assert_eq!(closed, ask::READ, "entries change only where names may be searched");
        assert_eq!(granted(&inode(FileType::Regular, 0o700), &owner, ask::READ), ask::READ);
    }

    #[test]
    fn set_id_bits_go_where_they_mean_execution() {
        assert_eq!(without_set_id(0o6755, true), 0o755);
        assert_eq!(
            without_set_id(0o6745, true),
            0o2745,
            "without group execution it is no set-gid"
        );
        assert_eq!(without_set_id(0o6745, false), 0o745, "strangers take it away all the same");
        assert_eq!(mode_of_new(0o2745, 99, &who(10, 20, &[])), 0o2745);
        assert_eq!(mode_of_new(0o2755, 99, &who(10, 20, &[])), 0o755);
        assert_eq!(mode_settable(0o12755, 20, &who(10, 20, &[])), 0o2755);
        assert_eq!(mode_settable(0o2755, 99, &who(10, 20, &[])), 0o755);
    }
}
