//! Who may connect, and as whom: enforced wherever a client comes in.

use nfs3_client::nfs3_types::nfs3::{Nfs3Option, nfsstat3, sattr3};

use crate::client::Client;
use crate::deployment::Deployment;

/// A group that lets 127.0.0.0/29 in; the root is everybody's.
fn group(test: &str, squash: &str) -> Deployment {
    let group = Deployment::init(
        test,
        &["--squash", squash, "--root-uid", "7", "--root-gid", "8", "--root-mode", "1777"],
    );
    group.edit("[\"127.0.0.0/8\", \"::1/128\"]", "[\"127.0.0.0/29\"]");
    group.edit("anonymous_uid = 65534", "anonymous_uid = 1234");
    group.edit("anonymous_gid = 65534", "anonymous_gid = 4321");
    group
}

fn started(mut group: Deployment) -> Deployment {
    for (index, name) in crate::deployment::NAMES.iter().enumerate() {
        group.format(name);
        group.start_server(index);
    }
    group.await_roles(&["primary", "backup", "witness"]);
    group
}

/// A client from elsewhere is refused by MOUNT and, with a handle in hand, by NFS; through the primary and
/// through those that relay.
#[test]
fn clients_of_other_networks_get_nothing() {
    let group = started(group("serve-networks", "none"));
    let (near, far) = ([127, 0, 0, 6].into(), [127, 0, 0, 9].into());
    for server in 0..3 {
        let mut client = Client::mount(near, group.nfs(server), Some((0, 0))).expect("let in");
        let attributes = client.attributes(&client.root.clone()).expect("answered");
        assert_eq!((attributes.uid, attributes.gid, attributes.mode & 0o7777), (7, 8, 0o1777));
        let refused = Client::mount(far, group.nfs(server), Some((0, 0))).err().expect("refused");
        assert!(refused.contains("MNT3ERR_ACCES"), "{refused}");
        let root = client.root.clone();
        let mut stranger = Client::with_root(far, group.nfs(server), Some((0, 0)), root);
        let refused = stranger.root_refused();
        assert!(refused.contains("AUTH_TOOWEAK"), "{refused}");
    }
}

fn owner_of_new(group: &Deployment, server: usize, user: Option<(u32, u32)>) -> (u32, u32) {
    let mut client = Client::mount([127, 0, 0, 1].into(), group.nfs(server), user).expect("let in");
    let root = client.root.clone();
    let name = format!("{server}-{user:?}");
    let file = client.make(&root, &name).expect("everybody may");
    let attributes = client.attributes(&file).expect("answered");
    (attributes.uid, attributes.gid)
}

#[test]
fn root_is_squashed_and_users_are_not() {
    let group = started(group("serve-squash", "root"));
    for server in 0..3 {
        assert_eq!(owner_of_new(&group, server, Some((0, 0))), (1234, 4321));
        assert_eq!(owner_of_new(&group, server, Some((500, 0))), (500, 4321));
        assert_eq!(owner_of_new(&group, server, Some((500, 600))), (500, 600));
        assert_eq!(owner_of_new(&group, server, None), (1234, 4321));
    }
    // Root is nobody in particular: what is another's he may not touch.
    let mut root =
        Client::mount([127, 0, 0, 1].into(), group.nfs(1), Some((0, 0))).expect("let in");
    let mode = sattr3 { mode: Nfs3Option::Some(0o700), ..sattr3::default() };
    let refused = root.set(&root.root.clone(), mode).expect_err("not the owner");
    assert_eq!(refused, nfsstat3::NFS3ERR_PERM);
}

#[test]
fn all_are_squashed_or_nobody() {
    let all = started(group("serve-squash-all", "all"));
    assert_eq!(owner_of_new(&all, 0, Some((500, 600))), (1234, 4321));
    drop(all);
    let none = started(group("serve-squash-none", "none"));
    assert_eq!(owner_of_new(&none, 2, Some((0, 0))), (0, 0));
    assert_eq!(owner_of_new(&none, 0, None), (1234, 4321));
}
