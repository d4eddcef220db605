//! Servers: a group over several machines, each a process in a namespace of its own, on a disk of its own.
//! Owns: the configuration, the processes, their disks and what they print.
//! Never: starts a server again by itself; signals a process that it did not start.
//! Invariant: a server that ends without having been killed is an error.
//! Source: docs/operations.md.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::super::group::{GroupStatus, Status};
use super::super::small_disk::SmallDisk;
use super::super::{E2eError, doing};
use super::network::{Place, server_name, words_at};
use crate::process::{Running, capture};

/// Size of each server's file system.
const DISK_BYTES: u64 = 1 << 30;
/// Settings other than those that `harp init` writes. The smaller sizes make for frequent checkpoints and trimming
/// and for reads from the image; the timeouts leave room for a machine whose few processors are all busy.
const SETTINGS: &[(&str, &str)] = &[
    ("ring_bytes = 268435456", "ring_bytes = 8388608"),
    ("segment_bytes = 67108864", "segment_bytes = 2097152"),
    ("segments_max = 128", "segments_max = 64"),
    ("checkpoint_bytes = 67108864", "checkpoint_bytes = 8388608"),
    ("cache_bytes = 268435456", "cache_bytes = 8388608"),
    ("failure_timeout_ms = 180", "failure_timeout_ms = 700"),
    ("lease_ms = 140", "lease_ms = 500"),
    ("squash = \"root\"", "squash = \"none\""),
];
const CAPACITY: &str = "512M";
const ALLOW: &str = "10.77.0.0/24";
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// How long one `harp verify` may take: it waits up to 60 s for the copies itself.
const VERIFY_PATIENCE: Duration = Duration::from_secs(120);
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// A healed group that is not whole after this is slow.
const SLOW: Duration = Duration::from_secs(3);

/// A running server.
#[derive(Debug)]
struct Server {
    process: Running,
    stopped: bool,
}

/// The group.
#[derive(Debug)]
pub struct Servers {
    // First, so that they end before their disks go.
    running: Vec<Option<Server>>,
    disks: Vec<SmallDisk>,
    harp: PathBuf,
    work: PathBuf,
}

impl Servers {
    /// Makes, formats and starts a group whose files are below `work`.
    pub fn start(harp: PathBuf, work: &Path, copies: usize) -> Result<Servers, E2eError> {
        let count = 2 * copies - 1;
        let disks_dir = work.join("disks");
        doing(disks_dir.display(), std::fs::create_dir(&disks_dir))?;
        let disk = |index| SmallDisk::mount(&disks_dir, &server_name(index), DISK_BYTES);
        let disks = (0..count).map(disk).collect::<Result<Vec<_>, _>>()?;
        let running = (0..count).map(|_| None).collect();
        let mut servers = Servers { running, disks, harp, work: work.into() };
        let mut init = Command::new(&servers.harp);
        init.arg("init").arg("--dir").arg(work).args(["--copies", &copies.to_string()]);
        init.args(["--allow", ALLOW, "--capacity", CAPACITY, "--data"]).arg(&disks_dir);
        for index in 0..count {
            let address = Place::Server(index).address();
            init.arg("--server").arg(format!("{}={address}", server_name(index)));
        }
        capture(&mut init, COMMAND_PATIENCE)?;
        servers.adjust()?;
        for index in 0..count {
            servers.format(index, "--format")?;
        }
        for index in 0..count {
            servers.start_one(index)?;
        }
        Ok(servers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.disks.len()
    }

    fn config(&self) -> PathBuf {
        self.work.join("harp.toml")
    }

    fn adjust(&self) -> Result<(), E2eError> {
        let path = self.config();
        let mut text = doing(path.display(), std::fs::read_to_string(&path))?;
        let dirs = self.disks.iter().enumerate().map(|(index, disk)| {
            let line = |dir: &Path| format!("dir = \"{}\"", dir.display());
            (line(&disk.at), line(&self.dir(index)))
        });
        let settings = SETTINGS.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
        for (from, to) in settings.chain(dirs) {
            let line = format!("\n{from}\n");
            if text.matches(&line).count() != 1 {
                let path = path.display();
                return Err(E2eError::Wrong(format!("{path} has not one line {from:?}")));
            }
            text = text.replace(&line, &format!("\n{to}\n"));
        }
        doing(path.display(), std::fs::write(&path, text))
    }

    /// A server's own directory: not its disk's root, which holds more.
    fn dir(&self, index: usize) -> PathBuf {
        self.disks[index].at.join("harp")
    }

    /// Words that run a program of ours where a server is.
    fn serve(&self, index: usize) -> Vec<String> {
        let (harp, config) = (self.harp.display().to_string(), self.config().display().to_string());
        let serve =
            ["serve", "--config", &config, "--node", &server_name(index)].map(str::to_owned);
        words_at(index).into_iter().chain([harp]).chain(serve).collect()
    }

    fn format(&self, index: usize, how: &str) -> Result<(), E2eError> {
        let words = self.serve(index);
        capture(Command::new(&words[0]).args(&words[1..]).arg(how), COMMAND_PATIENCE)?;
        Ok(())
    }

    /// Where a server's output goes.
    fn output(&self, index: usize) -> PathBuf {
        self.work.join(format!("{}.log", server_name(index)))
    }

    /// Starts a server; its output goes on in the same file.
    pub fn start_one(&mut self, index: usize) -> Result<(), E2eError> {
        assert!(self.running[index].is_none(), "one process for each server");
        let output = self.output(index);
        let mut shell = Command::new("sh");
        // The shell and what follows become the server: the process started is the server's own.
        shell.args(["-c", "exec >>\"$0\" 2>&1 && exec \"$@\""]).arg(output);
        let process = Running::start(shell.args(self.serve(index)))?;
        self.running[index] = Some(Server { process, stopped: false });
        Ok(())
    }

    /// Whether a server has a process.
    pub fn runs(&self, index: usize) -> bool {
        self.running[index].is_some()
    }

    /// kill -9. Returns false if it did not run.
    pub fn kill(&mut self, index: usize) -> Result<bool, E2eError> {
        let Some(mut server) = self.running[index].take() else { return Ok(false) };
        if let Some(status) = server.process.ended()? {
            return Err(self.ended_by_itself(index, status));
        }
        server.process.kill();
        Ok(true)
    }

    /// SIGSTOP; the process, unless it does not run or is stopped already.
    pub fn pause(&mut self, index: usize) -> Option<Pid> {
        let server = self.running[index].as_mut().filter(|server| !server.stopped)?;
        server.process.signal(Signal::STOP);
        server.stopped = true;
        Some(server.process.pid())
    }

    /// SIGCONT for the process that was stopped, if it is still there.
    pub fn resume(&mut self, index: usize, stopped: Pid) {
        let server = self.running[index].as_mut();
        if let Some(server) = server.filter(|server| server.process.pid() == stopped) {
            server.process.signal(Signal::CONT);
            server.stopped = false;
        }
    }

    /// The file system of a server.
    pub fn disk(&self, index: usize) -> &SmallDisk {
        &self.disks[index]
    }

    /// Deletes the log of a server that does not run. Returns how many files that were.
    pub fn lose_log(&self, index: usize) -> Result<usize, E2eError> {
        assert!(!self.runs(index), "files are lost only under a server that does not run");
        let log = self.dir(index).join("log");
        let mut deleted = 0;
        for entry in doing(log.display(), std::fs::read_dir(&log))? {
            let path = doing(log.display(), entry)?.path();
            doing(path.display(), std::fs::remove_file(&path))?;
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Empties the disk of a server that does not run, and formats it as a replacement.
    pub fn lose_disk(&self, index: usize) -> Result<(), E2eError> {
        assert!(!self.runs(index), "files are lost only under a server that does not run");
        let dir = self.dir(index);
        doing(dir.display(), std::fs::remove_dir_all(&dir))?;
        self.format(index, "--replace")
    }

    /// An error if a server ended that nobody killed.
    pub fn expect_alive(&mut self) -> Result<(), E2eError> {
        for index in 0..self.running.len() {
            let Some(server) = &mut self.running[index] else { continue };
            if let Some(status) = server.process.ended()? {
                return Err(self.ended_by_itself(index, status));
            }
        }
        Ok(())
    }

    fn ended_by_itself(&self, index: usize, status: std::process::ExitStatus) -> E2eError {
        let text = std::fs::read_to_string(self.output(index)).unwrap_or_default();
        let last = crate::process::indented(&text);
        E2eError::Wrong(format!("server {} ended by itself, {status}{last}", server_name(index)))
    }

    /// What `harp status --json` prints.
    pub fn status_text(&self) -> Result<String, E2eError> {
        let mut command = Command::new(&self.harp);
        command.args(["status", "--json", "--config"]).arg(self.config());
        Ok(capture(&mut command, COMMAND_PATIENCE)?)
    }

    /// Waits until every server is in its designated role with nothing to recover. What the servers say meanwhile, if
    /// it takes long, goes to a file.
    pub fn wait_whole(
        &mut self,
        patience: Duration,
        go_on: &dyn Fn() -> Result<(), E2eError>,
    ) -> Result<GroupStatus, E2eError> {
        let begun = Instant::now();
        let mut told_after = SLOW;
        loop {
            go_on()?;
            self.expect_alive()?;
            let text = self.status_text()?;
            let status = Status::group_in(&text)?;
            let waited = begun.elapsed();
            if status.settled() {
                return Ok(status);
            }
            if waited >= patience {
                let what = "the healed group is whole".into();
                return Err(E2eError::NotReached { what, patience, seen: status.line() });
            }
            if waited >= told_after {
                told_after += SLOW;
                let path = self.work.join("slow.txt");
                let file = File::options().create(true).append(true).open(&path);
                let told = file.and_then(|mut file| writeln!(file, "after {waited:.1?}\n{text}"));
                doing(path.display(), told)?;
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }

    /// Compares the copies with `harp verify`. Returns what it says.
    pub fn verify(&self) -> Result<String, E2eError> {
        let mut command = Command::new(&self.harp);
        command.arg("verify").arg("--config").arg(self.config());
        Ok(capture(&mut command, VERIFY_PATIENCE)?)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Killed and reaped, so that the disks can be unmounted.
        self.running.clear();
    }
}
