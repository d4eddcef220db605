//! The supervisor's servers as processes: started, watched, started again.
//! Owns: each server's process, the supervisor's end of its control socket, and its pauses.
//! Never: decides who serves clients.
//! Invariant: at most one process per server; a server that died rests before it starts again, for as long as
//! [`Pauses`] says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};

use harp_node::vr::{Nanos, ServerId};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::clock::NANOS_PER_MS;
use crate::control;
use crate::error::HarpError;
use crate::poller::{Interest, Poller, Source};

/// How long a server rests before it starts again, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// After the first death.
    pub first: u64,
    /// After many.
    pub longest: u64,
    /// After so long alive, a death counts as the first again.
    pub forgiven: u64,
}

impl Default for Pauses {
    fn default() -> Pauses {
        let second = 1000 * NANOS_PER_MS;
        Pauses { first: second, longest: 30 * second, forgiven: 5 * second }
    }
}

impl Pauses {
    /// The pause after a life of `lived`, if the one before that life was `last`.
    pub fn after(&self, lived: u64, last: Option<u64>) -> u64 {
        match last {
            Some(last) if lived < self.forgiven => (2 * last).min(self.longest),
            _ => self.first,
        }
    }
}

struct Running {
    child: Child,
    pidfd: OwnedFd,
    control: OwnedFd,
    since: Nanos,
}

enum State {
    Running(Running),
    Resting { until: Nanos },
}

struct Server {
    state: State,
    last_pause: Option<u64>,
}

/// A process that ended.
#[derive(Debug)]
pub struct Death {
    /// Whose it was.
    pub server: ServerId,
    /// How it ended.
    pub status: ExitStatus,
    /// How long its server rests now, in nanoseconds.
    pub pause: u64,
}

/// All servers of a local group.
pub struct Children {
    servers: Vec<Server>,
    pauses: Pauses,
    command: Box<dyn Fn(ServerId) -> Command>,
}

impl Children {
    /// `count` servers that are to start at once. `command` makes a server's command line; its standard
    /// input becomes the control socket.
    pub fn new(
        count: usize,
        pauses: Pauses,
        now: Nanos,
        command: impl Fn(ServerId) -> Command + 'static,
    ) -> Children {
        let resting = || Server { state: State::Resting { until: now }, last_pause: None };
        let servers = (0..count).map(|_| resting()).collect();
        Children { servers, pauses, command: Box::new(command) }
    }

    /// When [`Children::start_due`] has something to do next.
    pub fn deadline(&self) -> Option<Nanos> {
        let resting = self.servers.iter().filter_map(|server| match server.state {
            State::Resting { until } => Some(until),
            State::Running(_) => None,
        });
        resting.min()
    }

    /// Nobody rests any longer.
    pub fn wake(&mut self, now: Nanos) {
        for server in &mut self.servers {
            if let State::Resting { until } = &mut server.state {
                *until = now;
            }
        }
    }

    /// Starts every server whose rest is over, and says how that went. One that could not be started
    /// rests again.
    pub fn start_due(
        &mut self,
        now: Nanos,
        poller: &Poller,
    ) -> Vec<(ServerId, Result<u32, HarpError>)> {
        let mut started = Vec::new();
        for index in 0..self.servers.len() {
            let due = matches!(self.servers[index].state, State::Resting { until } if until <= now);
            if !due {
                continue;
            }
            let server = ServerId(index as u8);
            let outcome = self.start(server, now, poller);
            let slot = &mut self.servers[index];
            started.push((
                server,
                outcome.map(|running| {
                    let pid = running.child.id();
                    slot.state = State::Running(running);
                    pid
                }),
            ));
            if let State::Resting { until } = &mut slot.state {
                let pause = self.pauses.after(0, slot.last_pause);
                slot.last_pause = Some(pause);
                *until = now.plus(pause);
            }
        }
        started
    }

    fn start(&self, server: ServerId, now: Nanos, poller: &Poller) -> Result<Running, HarpError> {
        let failed = |error| HarpError::io(format!("start server {server}"), error);
        let (control, theirs) = control::pair()?;
        let child = (self.command)(server).stdin(theirs).spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let which = server.0 as u64;
        poller.add(&pidfd, Source::Child(which), Interest::READ)?;
        poller.add(&control, Source::Control(which), Interest::READ)?;
        Ok(Running { child, pidfd, control, since: now })
    }

    fn running(&self, server: ServerId) -> Option<&Running> {
        match &self.servers[server.index()].state {
            State::Running(running) => Some(running),
            State::Resting { .. } => None,
        }
    }

    /// The supervisor's end of a running server's control socket.
    pub fn control(&self, server: ServerId) -> Option<BorrowedFd<'_>> {
        self.running(server).map(|running| running.control.as_fd())
    }

    /// A running server's process.
    pub fn pid(&self, server: ServerId) -> Option<u32> {
        self.running(server).map(|running| running.child.id())
    }

    /// Whether any server runs.
    pub fn any_running(&self) -> bool {
        self.servers.iter().any(|server| matches!(server.state, State::Running(_)))
    }

    /// Takes note of a process that ended; `None`: it has not.
    pub fn reap(&mut self, server: ServerId, now: Nanos) -> Option<Death> {
        let slot = &mut self.servers[server.index()];
        let State::Running(running) = &mut slot.state else { return None };
        let status = running.child.try_wait().expect("a child can be waited for")?;
        let pause = self.pauses.after(now.since(running.since), slot.last_pause);
        slot.last_pause = Some(pause);
        slot.state = State::Resting { until: now.plus(pause) };
        Some(Death { server, status, pause })
    }

    /// No longer watches a server's control socket, whose other end is closed.
    pub fn ignore_control(&self, server: ServerId, poller: &Poller) {
        if let Some(running) = self.running(server) {
            poller.change(&running.control, Source::Control(server.0 as u64), Interest::default());
        }
    }

    /// Sends a signal to a server, if it runs.
    pub fn signal(&self, server: ServerId, signal: Signal) {
        if let Some(running) = self.running(server) {
            // It may have ended a moment ago.
            let _ = pidfd_send_signal(&running.pidfd, signal);
        }
    }

    /// Sends a signal to every running server.
    pub fn signal_all(&self, signal: Signal) {
        (0..self.servers.len()).for_each(|index| self.signal(ServerId(index as u8), signal));
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.signal_all(Signal::KILL);
        for server in &mut self.servers {
            if let State::Running(running) = &mut server.state {
                let _ = running.child.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::clock::steady;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_forgiven() {
        let pauses = Pauses::default();
        let second = 1000 * NANOS_PER_MS;
        let (mut last, mut seen) = (None, Vec::new());
        for _ in 0..7 {
            last = Some(pauses.after(second, last));
            seen.extend(last.map(|pause| pause / second));
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses.after(5 * second, last), second);
    }

    #[test]
    fn a_server_that_dies_is_started_again() {
        let mut poller = Poller::new().expect("a poller");
        let pauses = Pauses { first: 1, longest: 2, forgiven: u64::MAX };
        let mut children = Children::new(1, pauses, steady(), |_| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "exit 3"]).stdout(Stdio::null());
            command
        });
        let (mut starts, mut deaths) = (0, 0);
        while deaths < 3 {
            starts += children.start_due(steady(), &poller).len();
            let until = children.deadline();
            for index in 0..poller.wait(steady(), until).expect("waits") {
                if let Source::Child(which) = poller.event(index).source
                    && let Some(death) = children.reap(ServerId(which as u8), steady())
                {
                    assert_eq!(death.status.code(), Some(3));
                    deaths += 1;
                } else {
                    children.ignore_control(ServerId(0), &poller);
                }
            }
        }
        assert_eq!(starts, 3);
    }
}
