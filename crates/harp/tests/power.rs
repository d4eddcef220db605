//! A group of processes whose records count in memory (`ups`), and what becomes of them when processes die, when the
//! power goes, and when memory goes without a word. A recording client says what was acknowledged.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Where the servers' memory lies.
const MEMORY_DIR: &str = "/dev/shm";

fn harp() -> Command {
    Command::new(env!("CARGO_BIN_EXE_harp"))
}

/// A group and its directory; its memory goes with it.
struct Group {
    dir: PathBuf,
    nfs: SocketAddr,
    up: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

fn spawn(dir: &Path, nfs: SocketAddr) -> Child {
    harp()
        .args(["up", "--durability", "ups", "--admin", "127.0.0.1:0", "--nfs"])
        .arg(nfs.to_string())
        .arg("--dir")
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("harp up starts")
}

impl Group {
    fn new(test: &str) -> Group {
        let dir = std::env::temp_dir().join(format!("harp-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let nfs = free.local_addr().expect("its address");
        drop(free);
        let mut group = Group::over(dir, nfs);
        group.await_event("ready");
        group
    }

    fn over(dir: PathBuf, nfs: SocketAddr) -> Group {
        let mut up = spawn(&dir, nfs);
        let lines = BufReader::new(up.stdout.take().expect("piped")).lines();
        Group { dir, nfs, up, lines }
    }

    /// Starts it again once its `harp up` ended.
    fn again(&mut self) {
        self.up = spawn(&self.dir, self.nfs);
        self.lines = BufReader::new(self.up.stdout.take().expect("piped")).lines();
    }

    /// Reads events until one has this in it; returns it.
    fn await_event(&mut self, part: &str) -> String {
        loop {
            let line = self.lines.next().expect("harp up goes on").expect("text");
            if line.contains(part) {
                return line;
            }
        }
    }

    fn status(&self) -> Value {
        let output = harp().args(["status", "--json", "--dir"]).arg(&self.dir).output();
        let output = output.expect("harp status runs");
        assert!(output.status.success(), "{output:?}");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        document["groups"][0].clone()
    }

    fn pids(&self) -> Vec<Pid> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("a list");
        let pids = nodes.iter().filter_map(|node| node["pid"].as_i64());
        pids.map(|pid| Pid::from_raw(pid as i32).expect("a pid")).collect()
    }

    /// Where the servers' memory lies now.
    fn memory(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string(self.dir.join("harp.toml")).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("id = "));
        let Some(id) = id.map(|id| id.trim_matches('"').to_owned()) else { return Vec::new() };
        let entries = std::fs::read_dir(MEMORY_DIR).expect("there is one");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let mut found: Vec<_> = paths.filter(|path| path.to_string_lossy().contains(&id)).collect();
        found.sort();
        found
    }

    /// Kills all servers and their supervisor at once, as a crash of the machine would but for the memory.
    fn kill(&mut self) {
        self.up.kill().expect("it runs");
        self.up.wait().expect("it ends");
        // The servers end with it; the next start waits for the lock of each.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Says that the battery is low. Returns what is wrong, if anything is.
    fn power_low(&self) -> Result<(), String> {
        let low = harp().args(["power", "low", "--dir"]).arg(&self.dir).output();
        let low = low.expect("harp power runs");
        let said = String::from_utf8(low.stderr).expect("text");
        if low.status.success() { Ok(()) } else { Err(said) }
    }

    /// The same; all logs are written out when it returns.
    fn write_out(&self) {
        assert_eq!(self.power_low(), Ok(()));
        assert_eq!(self.memory(), Vec::<PathBuf>::new());
    }

    fn bench(&self, what: &str, more: &[&str]) -> Child {
        harp()
            .args(["bench", what, "--nfs", &self.nfs.to_string(), "--journal"])
            .arg(self.dir.join("journal"))
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("harp bench starts")
    }

    /// Everything that was acknowledged is there, once.
    fn check(&self) {
        assert!(self.bench("check", &[]).wait().expect("it ends").success());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.up.kill();
        let _ = self.up.wait();
        std::thread::sleep(Duration::from_millis(300));
        self.memory().iter().for_each(|path| drop(std::fs::remove_file(path)));
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// All servers are killed at once under load: their memory outlives them, and nothing acknowledged is lost. Then the
/// battery is low: the logs are written out, the memory is given back, and the group goes on from the disks.
#[test]
fn records_in_memory_outlive_processes_and_a_power_failure() {
    let mut group = Group::new("power");
    assert_eq!(group.status()["durability"], "ups");
    assert_eq!(group.memory().len(), 3);
    let mut load = group.bench("record", &["--seconds", "6"]);
    std::thread::sleep(Duration::from_secs(2));
    for pid in group.pids() {
        kill_process(pid, Signal::KILL).expect("it runs");
    }
    group.await_event("serving");
    assert!(load.wait().expect("it ends").success());
    group.check();

    std::fs::remove_file(group.dir.join("journal")).expect("removes");
    let mut load = group.bench("record", &["--seconds", "6"]);
    std::thread::sleep(Duration::from_secs(2));
    group.write_out();
    assert_eq!(group.up.wait().expect("it ends").code(), Some(72));
    group.again();
    group.await_event("ready");
    assert!(load.wait().expect("it ends").success());
    group.check();
    // A clean stop is no less.
    kill_process(Pid::from_child(&group.up), Signal::TERM).expect("it runs");
    assert!(group.up.wait().expect("it ends").success());
    assert_eq!(group.memory(), Vec::<PathBuf>::new());
    group.again();
    group.await_event("ready");
    group.check();
}

/// When the battery is low, one server has just died and one is stopped. Their logs are written out as well, and whoever
/// asks hears so.
#[test]
fn records_of_a_dead_and_a_stopped_server_are_written_out_too() {
    let mut group = Group::new("power-dead");
    assert!(group.bench("record", &["--seconds", "1"]).wait().expect("it ends").success());
    let pids = group.pids();
    kill_process(pids[1], Signal::KILL).expect("it runs");
    kill_process(pids[2], Signal::STOP).expect("it runs");
    group.await_event("server b died");
    kill_process(Pid::from_child(&group.up), Signal::POWER).expect("it runs");
    group.write_out();
    assert_eq!(group.up.wait().expect("it ends").code(), Some(72));
    // Servers may be done before they are asked.
    group.write_out();
    group.again();
    let mut events = Vec::new();
    while events.last() != Some(&"ready".to_owned()) {
        events.push(group.await_event(""));
    }
    assert!(!events.iter().any(|event| event.contains("not intact")), "{events:?}");
    group.check();
}

/// Memory that goes without a word takes its server's log along: one server comes back through the others; when all
/// have lost theirs the group refuses, and says so.
#[test]
fn records_in_memory_that_is_gone_are_missed() {
    let mut group = Group::new("amnesia");
    assert!(group.bench("record", &["--seconds", "2"]).wait().expect("it ends").success());
    group.kill();
    let memory = group.memory();
    assert_eq!(memory.len(), 3);
    let said = group.power_low().expect_err("their logs are in memory alone");
    for server in ["server a does not answer", "server b does", "server c does"] {
        assert!(said.contains(server), "{said}");
    }
    std::fs::remove_file(&memory[1]).expect("removes");
    group.again();
    // The others may be ready before it says so.
    let (mut ready, mut missed) = (false, false);
    while !(ready && missed) {
        let event = group.await_event("");
        ready |= event == "ready";
        if event.contains("not intact") {
            assert!(event.contains("server b"), "{event}");
            missed = true;
        }
    }
    group.check();

    group.kill();
    group.memory().iter().for_each(|path| std::fs::remove_file(path).expect("removes"));
    let said = group.power_low().expect_err("their logs were never written out");
    assert!(said.contains("server a does not answer"), "{said}");
    group.again();
    group.await_event("none of the servers at hand has its log");
    let status = group.status();
    assert!(status.to_string().contains("refusing"), "{status}");
}
