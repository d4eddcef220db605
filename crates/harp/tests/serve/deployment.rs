//! A group over several machines, all of them this one: a loopback address each.
//! Owns: its directory, the servers' processes, free ports.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// The program, to be run with these words.
pub fn harp(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harp"));
    command.args(words);
    command
}

/// Runs the program to its end.
pub fn run(words: &[&str]) -> Output {
    harp(words).output().expect("harp runs")
}

/// Runs the program, which must fail with one line; returns that line.
pub fn fails(words: &[&str]) -> String {
    let output = run(words);
    assert!(!output.status.success(), "{words:?}: {output:?}");
    let line = String::from_utf8(output.stderr).expect("text");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Runs the program, which must succeed; returns what it says.
pub fn succeeds(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

pub fn host(index: usize) -> IpAddr {
    [127, 0, 0, 1 + index as u8].into()
}

/// A port that is free at all addresses, below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (std::process::id() % 600) as u16 * 20;
    loop {
        let port = 20_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let free = |index| TcpListener::bind((host(index), port)).is_ok();
        if (0..NAMES.len()).all(free) {
            return port;
        }
    }
}

pub struct Deployment {
    pub dir: PathBuf,
    pub config: String,
    port: u16,
    servers: [Option<Child>; 3],
}

impl Deployment {
    /// `harp init` with these words besides the servers; small settings; not formatted.
    pub fn init(test: &str, words: &[&str]) -> Deployment {
        let dir = std::env::temp_dir().join(format!("harp-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (port, peer_port) = (free_port(), free_port());
        let mut command = harp(&["init", "--data", ".", "--dir"]);
        command.arg(&dir).args(["--nfs-port", &port.to_string()]);
        for (index, name) in NAMES.iter().enumerate() {
            command.arg("--server").arg(format!("{name}={}:{peer_port}", host(index)));
        }
        let output = command.args(words).output().expect("harp init runs");
        assert!(output.status.success(), "{output:?}");
        let config = dir.join("harp.toml").to_str().expect("a plain path").to_string();
        let group = Deployment { dir, config, port, servers: [None, None, None] };
        group.edit("ring_bytes = 268435456", "ring_bytes = 16777216");
        group.edit("segment_bytes = 67108864", "segment_bytes = 4194304");
        // A machine that runs other tests too may keep a server waiting: that is no failure here.
        group.edit("failure_timeout_ms = 180", "failure_timeout_ms = 1000");
        group.edit("heartbeat_ms = 20", "heartbeat_ms = 50");
        group.edit("lease_ms = 140", "lease_ms = 700");
        group
    }

    /// Formatted and started; server a is primary.
    pub fn start(test: &str, words: &[&str]) -> Deployment {
        let mut group = Deployment::init(test, words);
        for (index, name) in NAMES.iter().enumerate() {
            group.format(name);
            group.start_server(index);
        }
        group.await_roles(&["primary", "backup", "witness"]);
        group
    }

    /// Changes one place of the configuration.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).expect("reads");
        assert_eq!(text.matches(from).count(), 1, "{from}");
        std::fs::write(&self.config, text.replace(from, to)).expect("writes");
    }

    pub fn format(&self, name: &str) {
        succeeds(&["serve", "--config", &self.config, "--node", name, "--format"]);
    }

    /// The words that serve `name`, and one more.
    pub fn serve_fails(&self, name: &str, more: &[&str]) -> String {
        let words = ["serve", "--config", &self.config, "--node", name];
        fails(&[&words[..], more].concat())
    }

    pub fn start_server(&mut self, index: usize) {
        let log = self.dir.join(format!("{}.log", NAMES[index]));
        let log = std::fs::File::options().append(true).create(true).open(log).expect("opens");
        let child = harp(&["serve", "--config", &self.config, "--node", NAMES[index]])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("harp serve starts");
        self.servers[index] = Some(child);
    }

    pub fn pid(&self, index: usize) -> Pid {
        Pid::from_child(self.servers[index].as_ref().expect("it runs"))
    }

    pub fn signal(&self, index: usize, signal: Signal) {
        kill_process(self.pid(index), signal).expect("it runs");
    }

    /// Ends a server; returns its exit code, if a signal did not end it.
    pub fn end(&mut self, index: usize, signal: Signal) -> Option<i32> {
        self.signal(index, signal);
        let mut child = self.servers[index].take().expect("it runs");
        child.wait().expect("it ends").code()
    }

    pub fn nfs(&self, index: usize) -> SocketAddr {
        SocketAddr::new(host(index), self.port)
    }

    pub fn status(&self) -> Value {
        let document = succeeds(&["status", "--json", "--config", &self.config]);
        let document: Value = serde_json::from_str(&document).expect("JSON");
        document["groups"][0].clone()
    }

    pub fn roles(&self) -> Vec<String> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("a list").clone();
        nodes.iter().flat_map(|node| node["role"].as_str()).map(str::to_owned).collect()
    }

    /// Waits until the servers have these roles, and the primary serves.
    pub fn await_roles(&self, roles: &[&str]) {
        self.await_what("the roles", |group| {
            let nodes = group.status()["nodes"].as_array().expect("a list").clone();
            let is = |(node, role): (&Value, &&str)| {
                node["role"] == **role && (*role != "primary" || node["serving"] == true)
            };
            nodes.iter().zip(roles).all(is)
        });
    }

    /// Waits until `reached`; shows the logs if that takes too long.
    pub fn await_what(&self, what: &str, reached: impl Fn(&Deployment) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !reached(self) {
            assert!(Instant::now() < until, "never: {what}; {}\n{}", self.status(), self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn logs(&self) -> String {
        let log = |name: &&str| {
            let text = std::fs::read_to_string(self.dir.join(format!("{name}.log")));
            format!("{name}:\n{}", text.unwrap_or_default())
        };
        NAMES.iter().map(log).collect()
    }

    pub fn verify(&self) {
        let said = succeeds(&["verify", "--config", &self.config]);
        assert!(said.starts_with("equal at op"), "{said}");
    }

    /// Memory of a server's own, in KiB.
    pub fn memory_kib(&self, index: usize) -> u64 {
        let path = format!("/proc/{}/status", self.pid(index).as_raw_nonzero());
        let text = std::fs::read_to_string(path).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn server_dir(&self, index: usize) -> PathBuf {
        Path::new(&self.dir).join(NAMES[index])
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for server in self.servers.iter_mut().flatten() {
            let _ = server.kill();
            let _ = server.wait();
        }
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
