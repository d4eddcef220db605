//! An operator's override, with real processes.

use std::net::IpAddr;

use nfs3_client::nfs3_types::nfs3::nfsstat3;
use rustix::process::Signal;

use crate::client::Client;
use crate::deployment::{Deployment, fails, succeeds};

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Server b is away while a and c go on; then a is off and c's disk is gone. The two that are left refuse. The operator
/// names a: b and the empty c go on with what b has, and a's old directory comes back as a learner.
#[test]
fn override_goes_on_with_what_is_left_and_rebuilds_who_returns() {
    let mut group = Deployment::start("serve-override", &["--squash", "none"]);
    let mut client = Client::mount(FROM, group.nfs(0), Some((0, 0))).expect("mounts");
    let root = client.root.clone();
    let kept = client.make(&root, "kept").expect("made");
    client.write(&kept, 0, b"everybody has this").expect("written");
    let verifier = client.write_verifier(&kept).expect("committed");

    assert_eq!(group.end(1, Signal::TERM), Some(0));
    group.await_roles(&["primary", "down", "promoted"]);
    let config = group.config.clone();
    let needless = fails(&["override", "--absent", "b", "--config", &config, "--yes-lose-data"]);
    assert!(needless.contains("not needed"), "{needless}");
    // A view's end resets its connections.
    let anew = |group: &Deployment, server| {
        Client::with_root(FROM, group.nfs(server), Some((0, 0)), root.clone())
    };
    let mut client = anew(&group, 0);
    let lost = client.make(&root, "lost").expect("made");
    client.write(&lost, 0, b"only a and c have this").expect("written");
    group.end(0, Signal::KILL);
    group.end(2, Signal::KILL);
    std::fs::remove_dir_all(group.server_dir(2)).expect("removes");
    succeeds(&["serve", "--config", &config, "--node", "c", "--replace"]);
    group.start_server(1);
    group.start_server(2);
    group.await_what("a refusal", |group| {
        let state = group.status()["nodes"][1]["state"].as_str().unwrap_or_default().to_string();
        state.starts_with("refusing") && group.roles()[2] != "down"
    });

    let unnamed = fails(&["override", "--config", &config, "--yes-lose-data"]);
    assert!(unnamed.contains("server a does not answer"), "{unnamed}");
    let present = fails(&["override", "--absent", "a,b", "--config", &config, "--yes-lose-data"]);
    assert!(present.contains("b is named absent and answers"), "{present}");
    let unknown = fails(&["override", "--absent", "z", "--config", &config]);
    assert!(unknown.contains("no server \"z\""), "{unknown}");
    // Nobody sits at this test's terminal.
    let unasked = fails(&["override", "--absent", "a", "--config", &config]);
    assert!(unasked.contains("--yes-lose-data"), "{unasked}");
    assert!(group.status()["override"].is_null());

    let said = succeeds(&["override", "--absent", "a", "--config", &config, "--yes-lose-data"]);
    assert!(said.contains("a  named absent") && said.contains("c  a new, empty disk"), "{said}");
    assert!(said.contains("began a new epoch"), "{said}");
    group.await_roles(&["down", "primary", "promoted"]);
    let record = group.status()["override"].clone();
    assert_eq!((&record["epoch"], &record["absent"]), (&1.into(), &serde_json::json!(["a"])));

    // Handles are as they were, the verifier is not.
    let mut client = anew(&group, 1);
    assert_eq!(client.read_whole(&kept), Ok(b"everybody has this".to_vec()));
    assert_ne!(client.write_verifier(&kept).expect("committed"), verifier);
    assert_eq!(client.find(&root, "lost"), Err(nfsstat3::NFS3ERR_NOENT));
    assert_eq!(client.attributes(&lost).map(|_| ()), Err(nfsstat3::NFS3ERR_STALE));
    let newer = client.make(&root, "newer").expect("made");
    client.write(&newer, 0, b"of the new epoch").expect("written");

    group.start_server(0);
    group.await_roles(&["primary", "backup", "witness"]);
    group.verify();
    let mut client = anew(&group, 0);
    assert_eq!(client.read_whole(&kept), Ok(b"everybody has this".to_vec()));
    assert_eq!(client.read_whole(&newer), Ok(b"of the new epoch".to_vec()));
    assert_eq!(client.find(&root, "lost"), Err(nfsstat3::NFS3ERR_NOENT));

    // The record is for ever.
    for index in 0..3 {
        group.end(index, Signal::TERM);
    }
    for index in 0..3 {
        group.start_server(index);
    }
    group.await_roles(&["primary", "backup", "witness"]);
    assert_eq!(group.status()["override"], record);
    let table = succeeds(&["status", "--config", &config]);
    assert!(table.contains("epoch 1 since 20"), "{table}");
}
