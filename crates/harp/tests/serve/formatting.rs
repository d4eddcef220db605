//! Formatting is an explicit act, and never taken for a first start.

use rustix::process::Signal;

use crate::client::Client;
use crate::deployment::{Deployment, NAMES, succeeds};

/// A server that was not formatted does not start; formatted, it is formatted no more; its directory gone, it
/// says media loss, whatever is tried but a replacement; which then counts.
#[test]
fn formatting_a_lost_server_needs_another_word() {
    let mut group = Deployment::init("serve-formatting", &[]);
    let unformatted = group.serve_fails("a", &[]);
    assert!(unformatted.contains("--format once"), "{unformatted}");
    for (index, name) in NAMES.iter().enumerate() {
        group.format(name);
        group.start_server(index);
    }
    group.await_roles(&["primary", "backup", "witness"]);

    assert_eq!(group.end(2, Signal::TERM), Some(0), "asked to end");
    let again = group.serve_fails("c", &["--format"]);
    assert!(again.contains("holds a server's files"), "{again}");
    std::fs::remove_dir_all(group.server_dir(2)).expect("removes");
    let lost = group.serve_fails("c", &[]);
    assert!(lost.contains("media loss") && lost.contains("is its disk mounted"), "{lost}");
    let marked = group.serve_fails("c", &["--format"]);
    assert!(marked.contains("formatted before") && marked.contains("--replace"), "{marked}");
    // Even with its mark gone: the others know better.
    std::fs::remove_file(group.dir.join("c.formatted")).expect("removes");
    let served = group.serve_fails("c", &["--format"]);
    assert!(served.contains("served already") && served.contains("--replace"), "{served}");

    succeeds(&["serve", "--config", &group.config, "--node", "c", "--replace"]);
    group.start_server(2);
    group.await_roles(&["primary", "backup", "witness"]);
    // A record of the others' view admits its new disk.
    group.await_what("admission", |group| group.status()["nodes"][0]["cp"].as_u64() >= Some(1));
    // A copy is given its files by the other.
    let from = [127, 0, 0, 1].into();
    let mut client = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    let root = client.root.clone();
    let file = client.make(&root, "file").expect("made");
    client.write(&file, 0, &[5; 300_000]).expect("written");
    group.end(1, Signal::TERM);
    std::fs::remove_dir_all(group.server_dir(1)).expect("removes");
    succeeds(&["serve", "--config", &group.config, "--node", "b", "--replace"]);
    group.start_server(1);
    group.await_roles(&["primary", "backup", "witness"]);
    group.verify();
    // It counts: with it, and without the primary, the group goes on.
    group.end(0, Signal::KILL);
    group.await_roles(&["down", "primary", "promoted"]);
}
