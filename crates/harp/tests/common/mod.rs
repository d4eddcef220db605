//! A whole group as processes.
//! Owns: starting `harp up` on free ports, asking it for its status, ending it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Group {
    pub dir: PathBuf,
    up: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    pub nfs: SocketAddr,
}

fn harp() -> Command {
    Command::new(env!("CARGO_BIN_EXE_harp"))
}

impl Group {
    /// A new group, in a directory named after the test; server a is its primary. Its servers bear with each
    /// other for longer than usual, though less than a dead one rests: tests that run beside this one leave them little
    /// time, and a client here does not connect again when a view changes though nobody was killed.
    pub fn new(test: &str) -> Group {
        let dir = std::env::temp_dir().join(format!("harp-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Group::start(&dir).stop();
        let file = dir.join("harp.toml");
        let settings = std::fs::read_to_string(&file).expect("its settings");
        let patient = settings
            .replace("\nfailure_timeout_ms = 180\n", "\nfailure_timeout_ms = 700\n")
            .replace("\nlease_ms = 140\n", "\nlease_ms = 500\n");
        assert_eq!(
            patient.matches("_ms = 700\n").count() + patient.matches("_ms = 500\n").count(),
            2,
            "both settings are there"
        );
        std::fs::write(&file, patient).expect("writes its settings");
        let mut group = Group::start(&dir);
        while group.status()["primary"] != "a" {
            group.await_event("is primary");
        }
        group
    }

    /// Starts the group in `dir`, a new one if there is none.
    pub fn start(dir: &Path) -> Group {
        let mut up = harp()
            .args(["up", "--nfs", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("harp up starts");
        let stdout = up.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        let mut port = None;
        loop {
            let line = lines.next().expect("harp up goes on").expect("text");
            if let Some((_, rest)) = line.split_once("nfsport=") {
                port = rest.split('&').next().and_then(|port| port.parse().ok());
            }
            if line == "ready" {
                break;
            }
        }
        let port: u16 = port.expect("the URL names the port");
        Group { dir: dir.to_path_buf(), up, lines, nfs: ([127, 0, 0, 1], port).into() }
    }

    pub fn status(&self) -> Value {
        let output = harp().args(["status", "--json", "--dir"]).arg(&self.dir).output();
        let output = output.expect("harp status runs");
        assert!(output.status.success(), "{output:?}");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        document["groups"][0].clone()
    }

    pub fn pid(&self, name: &str) -> Pid {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("a list");
        let node = nodes.iter().find(|node| node["name"] == name).expect("a server");
        Pid::from_raw(node["pid"].as_i64().expect("it runs") as i32).expect("a pid")
    }

    /// Reads events until one ends so.
    pub fn await_event(&mut self, end: &str) {
        loop {
            let line = self.lines.next().expect("harp up goes on").expect("text");
            if line.contains(end) {
                return;
            }
        }
    }

    pub fn stop(mut self) {
        let pid = Pid::from_child(&self.up);
        kill_process(pid, Signal::TERM).expect("it runs");
        assert!(self.up.wait().expect("it ends").success());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its servers end with it.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}
