//! The machine's user database: which groups a user is in.
//! Owns: what its answers mean.
//! Never: keeps an answer; the node does. Called on the loop: a directory service may take its time.
//! Invariant: what is not there is told from what could not be asked, as far as the database tells.
//! Source: getpwuid_r(3), getgrouplist(3), nsswitch.conf(5).

use std::ffi::CString;

use harp_node::LookedUp;
use nix::errno::Errno;
use nix::unistd::{Uid, User, getgrouplist};

/// Looks a user's groups up. Blocks for as long as the database does.
pub fn look_up(uid: u32) -> LookedUp {
    match found(uid) {
        Ok(Some(groups)) => LookedUp::Groups(groups),
        // The manual's list of what databases say of a user who is not there.
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => {
            LookedUp::Unknown
        }
        Err(error) => LookedUp::Failed { why: error.desc().into() },
    }
}

fn found(uid: u32) -> Result<Option<Vec<u32>>, Errno> {
    let Some(user) = User::from_uid(Uid::from_raw(uid))? else { return Ok(None) };
    let name = CString::new(user.name).map_err(|_| Errno::EINVAL)?;
    let groups = getgrouplist(&name, user.gid)?;
    Ok(Some(groups.into_iter().map(|group| group.as_raw()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_his_group_and_a_stranger_is_unknown() {
        let LookedUp::Groups(groups) = look_up(0) else { panic!("every machine has a root") };
        assert!(groups.contains(&0), "{groups:?}");
        assert_eq!(look_up(3_999_999_999), LookedUp::Unknown);
    }
}
