//! A whole group as processes: one client sees a failover, an operator sees the roles change.
//!
//! Story: `harp up` on an empty directory; a call is answered; the primary is killed; the client's connection
//! is reset and a new one is answered by the other copy; the killed server comes back as primary;
//! SIGTERM ends everything with exit 0; a second `up` goes on with the same group.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Group, PATIENCE};
use rustix::process::{Signal, kill_process};

/// Sends NFS's NULL call and reads its reply; `None`: the connection broke.
fn null_call(stream: &mut TcpStream, xid: u32) -> Option<()> {
    let words = [1 << 31 | 40, xid, 0, 2, 100003, 3, 0, 0, 0, 0, 0];
    let call: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    stream.write_all(&call).ok()?;
    let mut reply = [0; 28];
    stream.read_exact(&mut reply).ok()?;
    assert_eq!(reply[4..8], xid.to_be_bytes());
    assert_eq!(reply[8..], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Some(())
}

/// Calls on new connections until one is answered: a view change may reset some.
fn answered(group: &Group, xid: u32) -> TcpStream {
    loop {
        let mut client = connect(group);
        if null_call(&mut client, xid).is_some() {
            return client;
        }
    }
}

fn connect(group: &Group) -> TcpStream {
    let stream = TcpStream::connect(group.nfs).expect("a client is never refused");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    stream
}

fn roles(group: &Group) -> Vec<String> {
    let status = group.status();
    let nodes = status["nodes"].as_array().expect("a list").clone();
    nodes.iter().flat_map(|n| n["role"].as_str()).map(str::to_owned).collect()
}

#[test]
fn a_group_of_processes_outlives_its_primary() {
    let mut group = Group::new("up");
    let dir = group.dir.clone();
    let mut client = answered(&group, 1);

    kill_process(group.pid("a"), Signal::KILL).expect("it runs");
    assert_eq!(null_call(&mut client, 2), None, "reset");
    // Waits in the queue until the other copy serves.
    answered(&group, 3);
    group.await_event("serving: server b is primary");

    // The designated primary comes back and takes over.
    group.await_event("serving: server a is primary");
    answered(&group, 4);
    // A busy machine may take the backup in by a second view change.
    for _ in 0..300 {
        if roles(&group) == ["primary", "backup", "witness"] {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(roles(&group), ["primary", "backup", "witness"]);
    group.stop();

    let group = Group::start(&dir);
    answered(&group, 5);
    group.stop();
    std::fs::remove_dir_all(&dir).expect("removes");
}
