//! A client may use any server: those that are not primary relay.

use std::io::{Read, Write};
use std::process::Child;
use std::time::Duration;

use nfs3_client::nfs3_types::nfs3::{Nfs3Option, nfsstat3, sattr3};
use rustix::process::Signal;

use crate::client::{Client, connect_from};
use crate::deployment::{Deployment, NAMES, harp, succeeds};

/// Recorders that work through every server's own address.
fn record(group: &Deployment, seconds: u32) -> Vec<Child> {
    let seconds = seconds.to_string();
    let start = |server: usize| {
        let (nfs, seed) = (group.nfs(server).to_string(), server.to_string());
        let mut command = harp(&["bench", "record", "--nfs", &nfs, "--seed", &seed]);
        command.args(["--seconds", &seconds, "--connections", "2", "--journal"]);
        command.arg(group.dir.join(format!("journal-{server}")));
        command.stdout(std::process::Stdio::null()).spawn().expect("harp bench starts")
    };
    (0..NAMES.len()).map(start).collect()
}

/// Every recorder ended well, and what it was acknowledged is there whichever server is asked.
fn check(group: &Deployment, recorders: Vec<Child>) {
    for mut recorder in recorders {
        assert!(recorder.wait().expect("it ends").success());
    }
    for journal in 0..NAMES.len() {
        for server in 0..NAMES.len() {
            let nfs = group.nfs(server).to_string();
            let path = group.dir.join(format!("journal-{journal}"));
            let journal = path.to_str().expect("a plain path");
            succeeds(&["bench", "check", "--nfs", &nfs, "--journal", journal]);
        }
    }
}

/// The primary is killed while clients work through each server's address; nothing acknowledged is lost and
/// nothing done twice, and the copies are equal in the end.
#[test]
fn clients_of_every_server_outlive_the_primary() {
    let mut group = Deployment::start("serve-kill", &[]);
    let recorders = record(&group, 9);
    std::thread::sleep(Duration::from_secs(2));
    group.end(0, Signal::KILL);
    group.await_roles(&["down", "primary", "promoted"]);
    std::thread::sleep(Duration::from_secs(1));
    group.start_server(0);
    group.await_roles(&["primary", "backup", "witness"]);
    // That of a found its server again.
    check(&group, recorders);
    group.verify();
}

/// A stopped primary holds its sockets open and says nothing; those that relay to it learn that another serves.
#[test]
fn clients_of_other_servers_outlive_a_stopped_primary() {
    let group = Deployment::start("serve-stop", &[]);
    let from = [127, 0, 0, 1].into();
    let mut client = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    let root = client.root.clone();
    client.make(&root, "before").expect("made");
    group.signal(0, Signal::STOP);
    group.await_what("another primary", |group| group.roles()[1] == "primary");
    // The old connection is reset, not left to hang.
    let again = client.answers(&root);
    assert!(!again, "the primary that it was relayed to is stopped");
    let mut client = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    client.find(&root, "before").expect("there");
    client.make(&root, "after").expect("made");
    group.signal(0, Signal::CONT);
    group.await_roles(&["primary", "backup", "witness"]);
    let mut client = Client::mount(from, group.nfs(1), Some((0, 0))).expect("relayed");
    client.find(&root, "after").expect("there");
}

/// What came to a server while it was stopped may be of clients that went on elsewhere, long ago. It passes nothing of
/// that on: those who wait for an answer send it again. So do those who connected meanwhile.
#[test]
fn calls_that_lay_at_a_stopped_relay_are_not_passed_on() {
    let group = Deployment::start("serve-stopped-relay", &[]);
    let from = [127, 0, 0, 1].into();
    let mut before = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    let root = before.root.clone();
    before.make(&root, "before").expect("made");
    group.signal(2, Signal::STOP);
    let mut meanwhile = Client::with_root(from, group.nfs(2), Some((0, 0)), root.clone());
    let asked = [
        std::thread::spawn({
            let root = root.clone();
            move || before.make_is_answered(&root, "old connection")
        }),
        std::thread::spawn({
            let root = root.clone();
            move || meanwhile.make_is_answered(&root, "new connection")
        }),
    ];
    // More than a link may be stuck.
    std::thread::sleep(Duration::from_millis(1500));
    group.signal(2, Signal::CONT);
    for asked in asked {
        assert!(!asked.join().expect("no panic"), "its connection is reset");
    }
    let mut client = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    client.find(&root, "before").expect("there");
    for name in ["old connection", "new connection"] {
        assert_eq!(client.find(&root, name).err(), Some(nfsstat3::NFS3ERR_NOENT), "{name}");
    }
}

/// A client that asks for much and takes nothing makes neither its server nor the primary grow; when it reads at
/// last, every answer is there, in order.
#[test]
fn a_client_that_does_not_read_costs_little_memory() {
    const CALLS: u32 = 20_000;
    const READ: u32 = 64 << 10;
    let group = Deployment::start("serve-slow", &[]);
    let from = [127, 0, 0, 1].into();
    let mut client = Client::mount(from, group.nfs(2), Some((0, 0))).expect("relayed");
    let root = client.root.clone();
    let file = client.make(&root, "large").expect("made");
    client.write(&file, 0, &vec![7; READ as usize]).expect("written");
    let mode = sattr3 { mode: Nfs3Option::Some(0o644), ..sattr3::default() };
    client.set(&file, mode).expect("set");

    let handle = &file.data;
    let words = |xid: u32| {
        let mut call: Vec<u8> = Vec::new();
        let mut put = |word: u32| call.extend_from_slice(&word.to_be_bytes());
        let padded = handle.len().next_multiple_of(4);
        let bytes = 40 + 4 + padded + 12;
        [1 << 31 | bytes as u32, xid, 0, 2, 100_003, 3, 6, 0, 0, 0, 0]
            .into_iter()
            .for_each(&mut put);
        put(handle.len() as u32);
        call.extend_from_slice(handle);
        call.resize(44 + 4 + padded, 0);
        call.extend([0, 0, READ].into_iter().flat_map(u32::to_be_bytes));
        call
    };
    let before = [group.memory_kib(0), group.memory_kib(2)];
    let mut slow = connect_from(from, group.nfs(2)).expect("connects");
    let mut writer = slow.try_clone().expect("clones");
    let calls: Vec<u8> = (0..CALLS).flat_map(words).collect();
    // Stays stuck until the replies are read.
    let writing = std::thread::spawn(move || writer.write_all(&calls));
    std::thread::sleep(Duration::from_secs(2));
    let after = [group.memory_kib(0), group.memory_kib(2)];
    for (before, after) in before.iter().zip(after) {
        assert!(after < before + (32 << 10), "{before} KiB became {after}");
    }
    // Others are served meanwhile.
    client.make(&root, "meanwhile").expect("made");
    let mut reply = vec![0; READ as usize + 256];
    for xid in 0..CALLS {
        let mut mark = [0; 4];
        slow.read_exact(&mut mark).expect("an answer");
        let bytes = (u32::from_be_bytes(mark) & !(1 << 31)) as usize;
        slow.read_exact(&mut reply[..bytes]).expect("all of it");
        assert_eq!(reply[..4], xid.to_be_bytes(), "in order");
        assert!(bytes > READ as usize, "{bytes} bytes");
    }
    writing.join().expect("no panic").expect("written");
}
