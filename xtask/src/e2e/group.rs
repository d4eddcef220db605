//! Group: one `harp up` with its servers, as an operator handles it.
//! Owns: the supervisor's process, its directory and its two ports.
//! Never: signals a server that is not a child of its own supervisor.
//! Invariant: when it is dropped, the supervisor and every server have ended.
//! Source: the command line described in README.md.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::groups::UserDatabase;
use super::{Context, E2eError, doing};
use crate::process::{Running, capture};

/// How long a group may take to serve after its start.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// How long servers may take to be back in their designated roles: the supervisor waits up to
/// 8 s before it restarts a server that dies often.
pub const SETTLE_PATIENCE: Duration = Duration::from_secs(90);
/// How long a clean stop may take.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long one `harp verify` may take: it waits up to 60 s for the copies itself.
const VERIFY_PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks at the status while waiting.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// What `harp status --json` prints.
#[derive(Debug, Deserialize)]
pub struct Status {
    groups: Vec<GroupStatus>,
}

impl Status {
    /// The group in what `harp status --json` printed.
    pub fn group_in(json: &str) -> Result<GroupStatus, E2eError> {
        let status: Status = serde_json::from_str(json).map_err(E2eError::Status)?;
        let group = status.groups.into_iter().next();
        group.ok_or_else(|| E2eError::Wrong("the status has no group".into()))
    }
}

/// One group's line of the status.
#[derive(Debug, Deserialize)]
pub struct GroupStatus {
    /// The highest formed view.
    pub view: Option<String>,
    /// The name of the server that serves, if one does.
    pub primary: Option<String>,
    /// The servers.
    pub nodes: Vec<NodeStatus>,
}

/// One server's line of the status.
#[derive(Debug, Deserialize)]
pub struct NodeStatus {
    /// a, b, c and so on.
    pub name: String,
    /// Its process, while it has one.
    pub pid: Option<i32>,
    /// Its role by configuration.
    pub designated: String,
    /// Its role now.
    pub role: String,
    /// `normal`, or what it is busy with.
    pub state: String,
}

impl GroupStatus {
    /// The server of this name.
    pub fn node(&self, name: &str) -> Result<&NodeStatus, E2eError> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| E2eError::Wrong(format!("the status has no server {name}")))
    }

    /// Whether every server is in its designated role and has nothing to recover.
    pub fn settled(&self) -> bool {
        let at_home = |node: &NodeStatus| node.role == node.designated && node.state == "normal";
        self.primary.is_some() && self.nodes.iter().all(at_home)
    }

    /// One line: each server's name, role and state.
    pub fn line(&self) -> String {
        let servers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{} {} {}", node.name, node.role, node.state))
            .collect();
        servers.join(", ")
    }
}

/// A running local group.
#[derive(Debug)]
pub struct Group<'a> {
    context: &'a Context<'a>,
    /// Its processes see this user database instead of the machine's.
    users: Option<&'a UserDatabase>,
    supervisor: Running,
    copies: u32,
    dir: PathBuf,
    /// Where it serves NFS.
    pub nfs: SocketAddr,
    admin: SocketAddr,
}

/// Two different free ports of 127.0.0.1.
pub fn free_ports() -> Result<[SocketAddr; 2], E2eError> {
    let listen = || doing("a free port", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let (one, other) = (listen()?, listen()?);
    let address = |listener: &TcpListener| doing("a free port", listener.local_addr());
    Ok([address(&one)?, address(&other)?])
}

impl<'a> Group<'a> {
    /// Starts a group of two copies in a fresh directory and waits until it serves.
    pub fn start(context: &'a Context<'a>) -> Result<Group<'a>, E2eError> {
        Group::start_with(context, 2)
    }

    /// Starts a group of so many copies in a fresh directory and waits until it serves.
    pub fn start_with(context: &'a Context<'a>, copies: u32) -> Result<Group<'a>, E2eError> {
        Group::start_in(context, copies, context.work.join("group"))
    }

    /// The same in a directory of the caller's choice, which does not exist yet.
    pub fn start_in(
        context: &'a Context<'a>,
        copies: u32,
        dir: PathBuf,
    ) -> Result<Group<'a>, E2eError> {
        Group::launch(context, copies, dir, None)
    }

    /// Starts a group of two copies in a fresh directory, whose processes see this user database.
    pub fn start_among(
        context: &'a Context<'a>,
        users: &'a UserDatabase,
    ) -> Result<Group<'a>, E2eError> {
        Group::launch(context, 2, context.work.join("group"), Some(users))
    }

    fn launch(
        context: &'a Context<'a>,
        copies: u32,
        dir: PathBuf,
        users: Option<&'a UserDatabase>,
    ) -> Result<Group<'a>, E2eError> {
        let [nfs, admin] = free_ports()?;
        let supervisor = launch(context, users, &dir, copies, nfs, admin)?;
        let group = Group { context, users, supervisor, copies, dir, nfs, admin };
        group.await_line("ready", READY_PATIENCE, |line| line == "ready")?;
        Ok(group)
    }

    /// Waits until `harp up` prints such a line; `what` says in words which.
    pub fn await_line(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), E2eError> {
        let printed = self.supervisor.stdout.wait_for(patience, wanted);
        if printed.is_some() {
            return Ok(());
        }
        Err(E2eError::NotReached {
            what: format!("harp up prints {what}"),
            patience,
            seen: self.supervisor.transcript(),
        })
    }

    /// Kills the supervisor, with which every server ends.
    pub fn kill_supervisor(&mut self) -> Result<(), E2eError> {
        let servers = self.servers()?;
        self.supervisor.kill();
        for (name, pid) in servers {
            self.wait_gone(&name, pid)?;
        }
        Ok(())
    }

    /// The directory that one server owns.
    pub fn dir_of(&self, server: &str) -> PathBuf {
        self.dir.join(server)
    }

    /// Stops the group cleanly; an error unless `harp up` ends with status 0.
    pub fn stop(&mut self) -> Result<(), E2eError> {
        self.supervisor.signal(Signal::TERM);
        let status = self.supervisor.wait(STOP_PATIENCE)?;
        if status.success() {
            return Ok(());
        }
        Err(E2eError::Wrong(format!("harp up ended with {status} after SIGTERM")))
    }

    /// Starts a group that was stopped or killed again on its directory.
    pub fn resume(&mut self) -> Result<(), E2eError> {
        let Group { context, users, copies, nfs, admin, .. } = *self;
        self.supervisor = launch(context, users, &self.dir, copies, nfs, admin)?;
        self.await_line("ready", READY_PATIENCE, |line| line == "ready")
    }

    /// Stops the group, changes a line of its settings, and starts it again.
    pub fn set(&mut self, line: &str, to: &str) -> Result<(), E2eError> {
        self.stop()?;
        let file = self.dir.join("harp.toml");
        let settings = doing(file.display(), std::fs::read_to_string(&file))?;
        let changed = settings.replace(&format!("\n{line}\n"), &format!("\n{to}\n"));
        if changed == settings {
            return Err(E2eError::Wrong(format!("{} has no line {line:?}", file.display())));
        }
        doing(file.display(), std::fs::write(&file, changed))?;
        self.resume()
    }

    /// The address of a file in the root for the libnfs tools, "" for the root itself.
    ///
    /// They cut off the file's name at the last slash and refuse to mount what is left if that is
    /// empty, so a file's path begins with two slashes. They call as root, who owns the root.
    pub fn url(&self, path: &str) -> String {
        let (ip, port) = (self.nfs.ip(), self.nfs.port());
        let slash = if path.is_empty() { "" } else { "/" };
        format!("nfs://{ip}/{slash}{path}?nfsport={port}&mountport={port}&uid=0&gid=0")
    }

    /// What the servers report now.
    pub fn status(&self) -> Result<GroupStatus, E2eError> {
        let mut command = self.command("status");
        let json = capture(command.arg("--json"), Duration::from_secs(30))?;
        Status::group_in(&json)
    }

    /// Waits until the status satisfies `wanted`; `what` says in words what that is.
    pub fn wait_until(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&GroupStatus) -> bool,
    ) -> Result<GroupStatus, E2eError> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let (what, seen) = (what.to_owned(), status.line());
                return Err(E2eError::NotReached { what, patience, seen });
            }
            std::thread::sleep(POLL_PAUSE);
        }
    }

    /// Waits until every server is back in its designated role.
    pub fn wait_settled(&self) -> Result<GroupStatus, E2eError> {
        let what = "every server in its designated role";
        self.wait_until(what, SETTLE_PATIENCE, GroupStatus::settled)
    }

    /// Compares the copies with `harp verify`.
    pub fn verify(&self) -> Result<(), E2eError> {
        capture(&mut self.command("verify"), VERIFY_PATIENCE)?;
        Ok(())
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.context.harp());
        command.arg(verb).arg("--dir").arg(&self.dir);
        command
    }

    /// Every server that has a process, with its id.
    pub fn servers(&self) -> Result<Vec<(String, Pid)>, E2eError> {
        let status = self.status()?;
        let with_pid = |node: NodeStatus| Some((node.name, Pid::from_raw(node.pid?)?));
        Ok(status.nodes.into_iter().filter_map(with_pid).collect())
    }

    /// The process of one server.
    pub fn server(&self, name: &str) -> Result<Pid, E2eError> {
        let found = self.servers()?.into_iter().find(|(server, _)| server == name);
        let (_, pid) = found.ok_or_else(|| E2eError::Wrong(format!("{name} has no process")))?;
        Ok(pid)
    }

    /// Sends a signal to a server, after a look that it is a child of our supervisor.
    pub fn signal(&self, server: Pid, signal: Signal) -> Result<(), E2eError> {
        let parent = parent_of(server);
        if parent != Some(self.supervisor.pid()) {
            let id = server.as_raw_nonzero();
            return Err(E2eError::Wrong(format!("process {id} is no server of this group")));
        }
        doing("signal a server", kill_process(server, signal).map_err(Into::into))
    }

    /// Waits until a process is gone.
    pub fn wait_gone(&self, name: &str, server: Pid) -> Result<(), E2eError> {
        let deadline = Instant::now() + STOP_PATIENCE;
        while parent_of(server).is_some() {
            if Instant::now() >= deadline {
                return Err(E2eError::NotReached {
                    what: format!("the end of server {name}"),
                    patience: STOP_PATIENCE,
                    seen: format!("process {} still there", server.as_raw_nonzero()),
                });
            }
            std::thread::sleep(POLL_PAUSE);
        }
        Ok(())
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        // A clean stop first, so that servers end before their directory goes; `Running` kills
        // whatever is left, and the servers end with their supervisor.
        let servers = self.servers().unwrap_or_default();
        self.supervisor.signal(Signal::TERM);
        if let Err(error) = self.supervisor.wait(STOP_PATIENCE) {
            eprintln!("    {error}");
        }
        for (name, pid) in servers {
            if let Err(error) = self.wait_gone(&name, pid) {
                eprintln!("    {error}");
            }
        }
    }
}

/// Starts `harp up`.
fn launch(
    context: &Context<'_>,
    users: Option<&UserDatabase>,
    dir: &Path,
    copies: u32,
    nfs: SocketAddr,
    admin: SocketAddr,
) -> Result<Running, E2eError> {
    let mut command = match users {
        Some(users) => users.command(context.harp()),
        None => Command::new(context.harp()),
    };
    command.arg("up").arg("--dir").arg(dir).args(["--copies", &copies.to_string()]);
    command.args(["--nfs", &nfs.to_string(), "--admin", &admin.to_string()]);
    let supervisor = Running::start(&mut command)?;
    context.watch("harp up, standard output", &supervisor.stdout);
    context.watch("harp up, standard error", &supervisor.stderr);
    Ok(supervisor)
}

/// The parent of a process that still runs; None when it is gone, or dead and not yet reaped.
fn parent_of(process: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    Pid::from_raw(fields.next()?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::{Status, parent_of};
    use rustix::process::{getpid, getppid};

    #[test]
    fn a_group_is_settled_when_everybody_is_in_place() {
        let json = r#"{"groups":[{"name":"g","view":"0.1.7.a","primary":"a","nodes":[
            {"name":"a","pid":7,"designated":"primary","role":"primary","state":"normal"},
            {"name":"b","pid":null,"designated":"backup","role":"ROLE","state":"normal"}
        ]}]}"#;
        let parse = |role: &str| Status::group_in(&json.replace("ROLE", role)).unwrap();
        assert!(parse("backup").settled());
        assert!(!parse("down").settled());
    }

    #[test]
    fn the_parent_of_a_process_is_found() {
        assert_eq!(parent_of(getpid()), getppid());
    }
}
