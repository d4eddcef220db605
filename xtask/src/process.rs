//! Process: running other programs with a bound on their time.
//! Owns: the children it starts, from spawn to reaped exit status.
//! Never: waits without a bound (building and unit tests apart, which bound themselves); never
//! signals a process that it was not asked to.
//! Invariant: no child outlives the value or the call that started it.
//! Source: pidfd_open(2), which lets a wait for a child have a deadline.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};

/// Lines of a program's output kept for a failure's message.
const TAIL_LINES: usize = 40;

/// Why another program did not do what was asked.
#[derive(Debug)]
pub enum ProcessError {
    /// It could not be started, waited for or read from.
    Io {
        /// The program's name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with a status other than 0.
    Status {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed, standard output and error, if that was taken.
        output: String,
    },
    /// It did not end in time and was killed.
    TimedOut {
        /// The program and its arguments.
        command: String,
        /// How long it had.
        patience: Duration,
        /// What it had printed.
        output: String,
    },
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessError::Io { program, source } => write!(f, "{program}: {source}"),
            ProcessError::Status { command, status, output } => {
                write!(f, "{command}: {status}{}", indented(output))
            }
            ProcessError::TimedOut { command, patience, output } => {
                write!(f, "{command}: not done after {patience:?}{}", indented(output))
            }
        }
    }
}

impl std::error::Error for ProcessError {}

/// The text's last lines, each indented below what stands before it.
pub fn indented(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("\n      | {line}")).collect()
}

/// The program and its arguments as one line.
fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn io_error(command: &Command, source: io::Error) -> ProcessError {
    ProcessError::Io { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// Runs a command to its end with the terminal as its output. It bounds itself.
pub fn run(command: &mut Command) -> Result<(), ProcessError> {
    let status = command.stdin(Stdio::null()).status().map_err(|e| io_error(command, e))?;
    if status.success() {
        return Ok(());
    }
    Err(ProcessError::Status { command: line_of(command), status, output: String::new() })
}

/// Runs a command to its end, passing its output on and each line to `on_line` as well.
///
/// Returns its exit status: a caller that counts tests looks at both. It bounds itself.
pub fn tee(
    command: &mut Command,
    on_line: impl FnMut(&str) + Send,
) -> Result<ExitStatus, ProcessError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| io_error(command, e))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both were asked for as pipes");
    };
    let on_line = Mutex::new(on_line);
    let pass_on = |line: &str| {
        println!("{line}");
        (on_line.lock().unwrap_or_else(PoisonError::into_inner))(line);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| each_line(stdout, pass_on));
        scope.spawn(|| each_line(stderr, pass_on));
    });
    child.wait().map_err(|e| io_error(command, e))
}

/// Calls `on_line` for each line until the end of the stream; bytes that are not UTF-8 are shown
/// as replacement characters.
fn each_line(stream: impl Read, mut on_line: impl FnMut(&str)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
        }
    }
}

/// Runs a command that must end with status 0 within `patience`; returns its standard output.
pub fn capture(command: &mut Command, patience: Duration) -> Result<String, ProcessError> {
    let mut running = Running::start(command)?;
    let status = running.wait(patience)?;
    if status.success() {
        return Ok(running.stdout.text());
    }
    let output = running.transcript();
    Err(ProcessError::Status { command: running.command.clone(), status, output })
}

/// What a program printed so far, with a way to wait for a line.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    shared: Arc<(Mutex<Printed>, Condvar)>,
}

#[derive(Debug, Default)]
struct Printed {
    lines: Vec<String>,
    ended: bool,
}

impl Transcript {
    /// Reads the stream to its end on a thread of its own.
    fn of(stream: impl Read + Send + 'static) -> Transcript {
        let transcript = Transcript::default();
        let shared = transcript.shared.clone();
        std::thread::spawn(move || {
            let (printed, changed) = &*shared;
            let lock = || printed.lock().unwrap_or_else(PoisonError::into_inner);
            each_line(stream, |line| {
                lock().lines.push(line.to_owned());
                changed.notify_all();
            });
            lock().ended = true;
            changed.notify_all();
        });
        transcript
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// Waits for a line that `wanted` accepts, looking from the first line on.
    ///
    /// None when the time is over or the program closed its output without printing one.
    pub fn wait_for(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let (printed, changed) = &*self.shared;
        let deadline = Instant::now() + patience;
        let mut looked_at = 0;
        let mut guard = printed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = guard.lines.iter().skip(looked_at).find(|line| wanted(line)) {
                return Some(line.clone());
            }
            looked_at = looked_at.max(guard.lines.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if guard.ended || left.is_zero() {
                return None;
            }
            guard = changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the stream, at most `patience`.
    fn wait_for_end(&self, patience: Duration) {
        let (printed, changed) = &*self.shared;
        let guard = printed.lock().unwrap_or_else(PoisonError::into_inner);
        // The verdict of a time-out is not needed: what was printed so far is what there is.
        let _ = changed.wait_timeout_while(guard, patience, |printed| !printed.ended);
    }
}

/// A program that runs beside us; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    /// Its standard output.
    pub stdout: Transcript,
    /// Its standard error.
    pub stderr: Transcript,
}

impl Running {
    /// Starts a command with both outputs taken line by line. It ends with the calling thread.
    pub fn start(command: &mut Command) -> Result<Running, ProcessError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let end_with_us = || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes one system call; it neither allocates
        // nor takes a lock.
        unsafe { command.pre_exec(end_with_us) };
        let mut child = command.spawn().map_err(|e| io_error(command, e))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both were asked for as pipes");
        };
        Ok(Running {
            child,
            command: line_of(command),
            stdout: Transcript::of(stdout),
            stderr: Transcript::of(stderr),
        })
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Both outputs so far, standard error last.
    pub fn transcript(&self) -> String {
        let errors = self.stderr.text();
        let separator = if errors.is_empty() { "" } else { "\n" };
        format!("{}{separator}{errors}", self.stdout.text())
    }

    /// Sends a signal; a process that is already gone is no error.
    pub fn signal(&self, signal: Signal) {
        // The child is not reaped before `wait`, so its id cannot name another process.
        let _ = kill_process(self.pid(), signal);
    }

    /// Waits for the end, at most `patience`; kills and reports when it takes longer.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, ProcessError> {
        let done = wait_child(&mut self.child, patience)
            .map_err(|source| ProcessError::Io { program: self.command.clone(), source })?;
        match done {
            Some(status) => {
                // The readers see the end of the pipes soon after; a grandchild may hold them open.
                self.stdout.wait_for_end(Duration::from_secs(1));
                self.stderr.wait_for_end(Duration::from_secs(1));
                Ok(status)
            }
            None => {
                self.kill();
                let (command, output) = (self.command.clone(), self.transcript());
                Err(ProcessError::TimedOut { command, patience, output })
            }
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        let ended = self.child.try_wait();
        ended.map_err(|source| ProcessError::Io { program: self.command.clone(), source })
    }

    /// Kills it at once and reaps it.
    pub fn kill(&mut self) {
        // Both fail only when the child was reaped before, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a child with a deadline; None when it still runs then.
fn wait_child(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a program of this name is on the search path.
pub fn on_path(program: &str) -> bool {
    find_program(program).is_some()
}

/// Where a program lies: on the search path, or where an ordinary user's path often does not look.
/// A name that begins with a slash names the file itself.
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::{ProcessError, Running, capture};
    use std::process::Command;
    use std::time::Duration;

    const PLENTY: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn capture_returns_the_output_or_the_status() {
        assert_eq!(capture(&mut shell("echo one; echo two"), PLENTY).unwrap(), "one\ntwo");
        let refused = capture(&mut shell("echo why >&2; exit 3"), PLENTY).unwrap_err();
        assert!(refused.to_string().contains("| why"), "{refused}");
        let slow = capture(&mut shell("exec sleep 1000"), Duration::from_millis(50));
        assert!(matches!(slow, Err(ProcessError::TimedOut { .. })), "{slow:?}");
    }

    #[test]
    fn a_line_is_waited_for_until_the_output_ends() {
        let mut running = Running::start(&mut shell("echo first; echo ready; read x")).unwrap();
        let ready = running.stdout.wait_for(PLENTY, |line| line == "ready");
        assert_eq!(ready.as_deref(), Some("ready"));
        running.wait(PLENTY).unwrap();
        assert_eq!(running.stdout.wait_for(PLENTY, |line| line == "never"), None);
    }
}
