//! Clients: the threads that keep the group busy, and what they found.
//! Owns: the lanes' threads, the recording clients and their journals.
//! Never: waits for a client longer than it is told to.
//! Invariant: every thread that does not end is told as a violation.
//! Source: `harp_bench::recorder`; `lanes`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harp_bench::BenchError;
use harp_bench::checker::{CheckOptions, check};
use harp_bench::client::Options;
use harp_bench::recorder::{RecordOptions, RecordReport, record};

use super::lanes::{Lanes, PATIENCE, STEADY_RETRANSMIT};
use super::network::{nfs, server_name};
use crate::random::Random;

/// Lanes of each recording client.
const RECORDER_LANES: usize = 2;
const PAUSE: Duration = Duration::from_millis(20);

/// All clients of a run.
#[derive(Debug)]
pub struct Clients {
    /// The lanes' common state.
    pub lanes: Arc<Lanes>,
    working: Vec<JoinHandle<Result<(), String>>>,
    recording: Vec<JoinHandle<Result<RecordReport, BenchError>>>,
    stop: Arc<AtomicBool>,
}

/// What they came to.
#[derive(Debug, Default)]
pub struct Found {
    /// Operations that the recording clients had acknowledged.
    pub recorded: u64,
    /// The longest time that a recording client went without any answer.
    pub longest: Duration,
    /// What must not be.
    pub violations: Vec<String>,
}

fn journal(work: &Path, server: usize) -> PathBuf {
    work.join(format!("journal-{}", server_name(server)))
}

/// A client that keeps to one server and bears what a kernel's would.
fn steady(server: usize) -> Options {
    Options { patience: PATIENCE, retransmit: STEADY_RETRANSMIT, ..Options::new(nfs(server)) }
}

impl Clients {
    /// Starts them; journals are below `work`.
    pub fn start(
        work: &Path,
        servers: usize,
        seed: u64,
        began: Instant,
    ) -> Result<Clients, String> {
        let lanes = Arc::new(Lanes::new(seed, servers, began)?);
        let stop = Arc::new(AtomicBool::new(false));
        let work_on = |who| {
            let lanes = Arc::clone(&lanes);
            std::thread::spawn(move || lanes.run(who, servers))
        };
        let working = Lanes::clients(servers).map(work_on).collect();
        let record_at = |server| {
            let mut options = RecordOptions::new(steady(server), journal(work, server));
            options.server.connections = 1;
            (options.depth, options.may_run_out) = (RECORDER_LANES, true);
            options.seed = Random(seed ^ server as u64).next();
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || record(&options, &stop))
        };
        let recording = (0..servers).map(record_at).collect();
        Ok(Clients { lanes, working, recording, stop })
    }

    /// Whether one ended, which none does before it is asked to.
    pub fn one_ended(&self) -> bool {
        self.working.iter().any(JoinHandle::is_finished)
            || self.recording.iter().any(JoinHandle::is_finished)
    }

    /// Asks all of them to end and waits up to `patience` for it.
    pub fn finish(self, patience: Duration) -> Found {
        self.lanes.stop();
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        let mut found = Found::default();
        for thread in self.working {
            match join(thread, deadline) {
                Some(Ok(())) => {}
                Some(Err(why)) => found.violations.push(why),
                None => {
                    found.violations.push("a client of the lanes did not end, or panicked".into())
                }
            }
        }
        for thread in self.recording {
            match join(thread, deadline) {
                Some(Ok(report)) => found.add(&report),
                Some(Err(error)) => found.violations.push(error.to_string()),
                None => found.violations.push("a recording client did not end, or panicked".into()),
            }
        }
        found
    }
}

/// The result of a thread; `None` if it still runs at the deadline, or panicked.
fn join<T>(thread: JoinHandle<T>, deadline: Instant) -> Option<T> {
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
    thread.join().ok()
}

impl Found {
    fn add(&mut self, report: &RecordReport) {
        self.recorded += report.acknowledged;
        self.longest = self.longest.max(Duration::from_secs_f64(report.stall_max_ms / 1e3));
        let told = |what: &String| format!("recording client: {what}");
        self.violations.extend(report.violations.iter().map(told));
        self.violations.extend(report.gave_up.iter().map(told));
    }
}

/// Reads back everything that the recording clients left, each through another server than it used. Returns what is
/// wrong.
pub fn check_journals(work: &Path, servers: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    for server in 0..servers {
        let (through, export) = (steady((server + 1) % servers), "/".to_owned());
        let options = CheckOptions { server: through, export, journal: journal(work, server) };
        match check(&options) {
            Ok(report) if report.violations == 0 => {}
            Ok(report) => wrong.push(report.to_string()),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    wrong
}
