//! User: one of those who call, over the wire and on the host alike.
//! Owns: the list of users, and becoming one of them for the length of a deed.
//! Never: changes another thread's credentials; the system calls below are per thread.
//! Invariant: outside of a deed the thread is root, with no further groups.
//! Source: credentials(7); RFC 5531, appendix A, for the groups of a call.

use std::fmt;

use harp_bench::request::Credential;
use rustix::io;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// A user with his groups.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    name: &'static str,
    pub uid: u32,
    pub gid: u32,
    groups: &'static [u32],
}

/// Two kinds of root, owners that share a group or do not, one with as many groups as a call can
/// carry, and nobody.
pub const USERS: &[User] = &[
    User { name: "root", uid: 0, gid: 0, groups: &[] },
    User { name: "root of 1000", uid: 0, gid: 1000, groups: &[] },
    User { name: "ann", uid: 1000, gid: 1000, groups: &[] },
    User { name: "bob", uid: 1001, gid: 1000, groups: &[1001, 2000] },
    User { name: "eve", uid: 1002, gid: 1002, groups: &[2000] },
    User { name: "max", uid: 1003, gid: 1003, groups: &MANY_GROUPS },
    User { name: "nobody", uid: 65534, gid: 65534, groups: &[] },
];

/// Sixteen groups, the last of them shared with others.
const MANY_GROUPS: [u32; 16] = [
    3001, 3002, 3003, 3004, 3005, 3006, 3007, 3008, 3009, 3010, 3011, 3012, 3013, 3014, 3015, 1000,
];

impl User {
    /// The superuser.
    pub const ROOT: &User = &USERS[0];

    /// Whether this user is the superuser, whatever the group.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Calls as this user.
    pub fn calling<T>(&self, call: impl FnOnce(&Credential<'_>) -> T) -> T {
        let groups_be: Vec<u8> = self.groups.iter().flat_map(|group| group.to_be_bytes()).collect();
        call(&Credential { uid: self.uid, gid: self.gid, groups_be: &groups_be })
    }

    /// Does something on the host as this user.
    pub fn acting<T>(&self, deed: impl FnOnce() -> T) -> T {
        self.acting_with(CapabilitySet::empty(), deed)
    }

    /// Does something on the host as this user with some of root's powers left.
    pub fn acting_with<T>(&self, powers: CapabilitySet, deed: impl FnOnce() -> T) -> T {
        self.become_one(powers).expect("root may become anybody");
        let outcome = deed();
        restore().expect("who was root may be root again");
        outcome
    }

    fn become_one(&self, powers: CapabilitySet) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
        // From here on the permitted capabilities wait and the effective ones are gone.
        set_thread_res_uid(None, Uid::from_raw(self.uid), None)?;
        if !powers.is_empty() && !self.is_root() {
            let mut sets = capabilities(None)?;
            sets.effective |= powers;
            set_capabilities(None, sets)?;
        }
        Ok(())
    }
}

fn restore() -> io::Result<()> {
    set_thread_res_uid(None, Uid::ROOT, None)?;
    set_thread_res_gid(None, Gid::ROOT, None)?;
    set_thread_groups(&[])
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
