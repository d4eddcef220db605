//! Load: two clients that keep a group busy while faults happen, and prove what they were told.
//! Owns: the recording client's thread and journal, and a probe's thread.
//! Never: tolerates a failed request; a lost connection is no failure, a wrong status is.
//! Invariant: each operation the recorder saw acknowledged is in its journal.
//! Source: `harp_bench::recorder` for the recording.
//!
//! The probe makes one request at a time, so that the longest of them is what a single user of a
//! mounted file system would have waited.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harp_bench::BenchError;
use harp_bench::checker::{CheckOptions, check};
use harp_bench::client::Options;
use harp_bench::recorder::{RecordOptions, RecordReport, record};

use super::raw::{Action, RawClient};
use super::{Context, E2eError, doing};

const CONNECTIONS: usize = 4;
const LANES_PER_CONNECTION: usize = 4;
/// Requests of the probe that must have been answered before progress counts.
const PROBES: u64 = 2;
/// Time between two looks at the journal, and before a call that was put off is made again.
const PAUSE: Duration = Duration::from_millis(20);

/// NFS3ERR_JUKEBOX: nothing was done; a client asks again with a new call.
const TRY_LATER: u32 = 10_008;

/// What the probe's thread tells.
#[derive(Debug, Default)]
struct Probe {
    stop: AtomicBool,
    answered: AtomicU64,
    longest_ns: AtomicU64,
}

/// A group under load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    recorder: Option<JoinHandle<Result<RecordReport, BenchError>>>,
    probe: Arc<Probe>,
    prober: Option<JoinHandle<Result<(), E2eError>>>,
    journal: PathBuf,
    acknowledged: RefCell<Acknowledged>,
}

/// What a finished load recorded.
#[derive(Debug)]
pub struct Recorded {
    journal: PathBuf,
}

impl Load {
    /// Starts both clients; they bear up to `patience` without any reply.
    pub fn start(
        context: &Context<'_>,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Load, E2eError> {
        let journal = context.work.join("journal");
        let server = Options { patience, ..Options::new(address) };
        let mut options = RecordOptions::new(server, journal.clone());
        options.server.connections = CONNECTIONS;
        options.depth = LANES_PER_CONNECTION;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let recorder = std::thread::spawn(move || record(&options, &stopped));
        let probe = Arc::new(Probe::default());
        let client = RawClient::connect(address)?;
        let shared = probe.clone();
        let prober = std::thread::spawn(move || shared.run(client, patience));
        let acknowledged = RefCell::new(Acknowledged::default());
        let (recorder, prober) = (Some(recorder), Some(prober));
        Ok(Load { stop, recorder, probe, prober, journal, acknowledged })
    }

    /// Waits until `operations` more were acknowledged and the probe got through as well.
    pub fn wait_progress(&self, operations: u64, patience: Duration) -> Result<(), E2eError> {
        let deadline = Instant::now() + patience;
        let wanted = self.acknowledged()? + operations;
        let probes = self.probe.answered.load(Ordering::Relaxed) + PROBES;
        loop {
            let seen = self.acknowledged()?;
            let probed = self.probe.answered.load(Ordering::Relaxed);
            if seen >= wanted && probed >= probes {
                return Ok(());
            }
            let ended = |client: Option<bool>| client.unwrap_or(true);
            if ended(self.recorder.as_ref().map(JoinHandle::is_finished))
                || ended(self.prober.as_ref().map(JoinHandle::is_finished))
            {
                return Err(E2eError::Wrong("a client ended under load".into()));
            }
            if Instant::now() >= deadline {
                return Err(E2eError::NotReached {
                    what: format!("{operations} more operations acknowledged"),
                    patience,
                    seen: format!("{seen} of {wanted}, the probe's {probed} of {probes}"),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The longest time one request of the probe took since this was last asked.
    pub fn take_stall(&self) -> Duration {
        Duration::from_nanos(self.probe.longest_ns.swap(0, Ordering::Relaxed))
    }

    /// Ends both clients when their last requests are answered; no request may have failed.
    pub fn stop(mut self) -> Result<Recorded, E2eError> {
        let report = self.end()?;
        if let Some(why) = &report.gave_up {
            return Err(E2eError::Wrong(format!("the recording client gave up: {why}")));
        }
        if !report.violations.is_empty() {
            return Err(E2eError::Wrong(report.to_string()));
        }
        for line in report.to_string().lines() {
            println!("    {line}");
        }
        Ok(Recorded { journal: self.journal.clone() })
    }

    /// Ends both clients and returns the recorder's report.
    fn end(&mut self) -> Result<RecordReport, E2eError> {
        self.stop.store(true, Ordering::Relaxed);
        self.probe.stop.store(true, Ordering::Relaxed);
        let bug = |_| E2eError::Wrong("a client of the test panicked".into());
        if let Some(prober) = self.prober.take() {
            prober.join().map_err(bug)??;
        }
        let Some(recorder) = self.recorder.take() else {
            unreachable!("taken once, by the call that ends the load");
        };
        recorder.join().map_err(bug)?.map_err(|error| E2eError::Wrong(error.to_string()))
    }

    /// Operations acknowledged a second since `begun`, when there were `before`.
    pub fn rate_since(&self, begun: Instant, before: u64) -> Result<f64, E2eError> {
        Ok((self.acknowledged()? - before) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Operations acknowledged so far; an error as soon as one had a wrong outcome.
    pub fn acknowledged(&self) -> Result<u64, E2eError> {
        self.acknowledged.borrow_mut().count(&self.journal)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // After a failure nobody waits for them; both end within their patience.
        self.stop.store(true, Ordering::Relaxed);
        self.probe.stop.store(true, Ordering::Relaxed);
    }
}

impl Recorded {
    /// Reads everything back and compares it with what was acknowledged.
    pub fn check(self, address: SocketAddr) -> Result<(), E2eError> {
        let (server, export) = (Options::new(address), "/".to_owned());
        let options = CheckOptions { server, export, journal: self.journal };
        let report = check(&options).map_err(|error| E2eError::Wrong(error.to_string()))?;
        if report.violations > 0 {
            return Err(E2eError::Wrong(report.to_string()));
        }
        for line in report.to_string().lines() {
            println!("    {line}");
        }
        Ok(())
    }
}

/// Counts the acknowledgements in a journal that grows.
#[derive(Debug, Default)]
struct Acknowledged {
    reader: Option<BufReader<File>>,
    /// The line being read; the writer may not have finished it.
    line: Vec<u8>,
    count: u64,
}

impl Acknowledged {
    fn count(&mut self, journal: &Path) -> Result<u64, E2eError> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => match File::open(journal) {
                Ok(file) => self.reader.insert(BufReader::new(file)),
                // The recorder has not begun yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                Err(error) => return doing(journal.display(), Err(error)),
            },
        };
        loop {
            let read = doing(journal.display(), reader.read_until(b'\n', &mut self.line))?;
            if read == 0 || self.line.last() != Some(&b'\n') {
                return Ok(self.count);
            }
            match self.line.first() {
                Some(b'<') => self.count += 1,
                Some(b'!') => {
                    let line = String::from_utf8_lossy(&self.line).into_owned();
                    return Err(E2eError::Wrong(format!("a wrong outcome: {line}")));
                }
                _ => {}
            }
            self.line.clear();
        }
    }
}

impl Probe {
    /// Makes and removes one file again and again, each request until it is answered.
    fn run(&self, mut client: RawClient, patience: Duration) -> Result<(), E2eError> {
        while !self.stop.load(Ordering::Relaxed) {
            for action in [Action::CreateGuarded("probe"), Action::Remove("probe")] {
                let begun = Instant::now();
                let status = complete(&mut client, action, begun + patience)?;
                let waited = begun.elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
                self.longest_ns.fetch_max(waited, Ordering::Relaxed);
                self.answered.fetch_add(1, Ordering::Relaxed);
                if status != 0 {
                    return Err(E2eError::Wrong(format!(
                        "the probe's {action:?}: status {status}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Performs an action until its outcome is known, and returns its status.
fn complete(
    client: &mut RawClient,
    action: Action<'_>,
    deadline: Instant,
) -> Result<u32, E2eError> {
    loop {
        let call = client.prepare(action);
        let status = client.insist(&call, deadline)?.status()?;
        if status != TRY_LATER || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::Acknowledged;
    use std::io::Write;

    #[test]
    fn acknowledgements_are_counted_as_the_journal_grows() {
        let path = std::env::temp_dir().join(format!("xtask-journal-{}", std::process::id()));
        let mut counter = Acknowledged::default();
        assert_eq!(counter.count(&path).unwrap(), 0);
        let mut journal = std::fs::File::create(&path).unwrap();
        journal.write_all(b"head\n> 0 1 create\n< 0 1\n< 1 ").unwrap();
        assert_eq!(counter.count(&path).unwrap(), 1);
        journal.write_all(b"1\n").unwrap();
        assert_eq!(counter.count(&path).unwrap(), 2);
        journal.write_all(b"! 0 2 why\n").unwrap();
        assert!(counter.count(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
