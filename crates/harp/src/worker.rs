//! A thread that does what the loop must not wait for: the log's disk, the store.
//! Owns: the two queues between the loop and one thread, and the wake-ups.
//! Never: drops a job; does two jobs of one worker at once.
//! Invariant: jobs are done in the order given, each once; the loop is woken once for a batch of
//! results, through one eventfd that all workers share.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use harp_node::vr::Nanos;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use crate::clock;
use crate::error::HarpError;

/// Whether somebody waits for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A client or a peer does.
    Prompt,
    /// Nobody: it leaves the processors to those that somebody waits for.
    Background,
}

/// How nice a background thread is to others.
const BACKGROUND_NICE: i32 = 10;

impl Pace {
    /// The calling thread runs at this pace from now on.
    pub fn take(self) {
        if self == Pace::Background {
            // Refused: slower under load, nothing worse.
            let _ = setpriority_process(Some(gettid()), BACKGROUND_NICE);
        }
    }
}

/// A long job works this long (nanoseconds) before it lets others go first.
const PIECE: u64 = 50_000;

/// How a long job leaves the processor to those that somebody waits for. A scheduler that lets a thread finish
/// its slice, whatever its nice value, makes a loop on the same processor wait for milliseconds.
#[derive(Debug, Default)]
pub struct Courtesy {
    /// It may work until then.
    until: Cell<Nanos>,
}

impl Courtesy {
    /// Called between small pieces of work. What it waited for is made up for in part, so that a long job gets
    /// on even where others never rest.
    pub fn pause(&self) {
        let began = clock::steady();
        if began < self.until.get() {
            return;
        }
        std::thread::yield_now();
        let now = clock::steady();
        self.until.set(now.plus(PIECE.max(now.since(began) / 4)));
    }
}

/// Jobs waiting for one worker at most; the node hands out far fewer.
pub const JOBS_MAX: usize = 1 << 16;

/// The bell that a worker rings when results wait.
#[derive(Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A silent bell.
    pub fn new() -> Result<Bell, HarpError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Bell(Arc::new(fd.map_err(|error| HarpError::io("create an eventfd", error))?)))
    }

    /// Rings.
    pub fn ring(&self) {
        match rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            // Nobody reads the count, and it takes an age to fill.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("an eventfd takes its count: {error}"),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Queues<J, D> {
    jobs: VecDeque<J>,
    done: Vec<D>,
    stop: bool,
}

struct Shared<J, D> {
    queues: Mutex<Queues<J, D>>,
    more: Condvar,
}

impl<J, D> Shared<J, D> {
    fn lock(&self) -> MutexGuard<'_, Queues<J, D>> {
        self.queues.lock().expect("no thread panics with the queues in hand")
    }
}

/// One thread and its queues. Dropping it waits for the job in hand, unless [`Worker::unawaited`], and forgets the
/// others.
pub struct Worker<J, D> {
    shared: Arc<Shared<J, D>>,
    thread: Option<JoinHandle<()>>,
}

impl<J: Send + 'static, D: Send + 'static> Worker<J, D> {
    /// Starts a thread that does jobs by calling `work`.
    pub fn start(
        name: &str,
        bell: Bell,
        pace: Pace,
        mut work: impl FnMut(J) -> D + Send + 'static,
    ) -> Result<Worker<J, D>, HarpError> {
        let queues = Queues { jobs: VecDeque::new(), done: Vec::new(), stop: false };
        let shared = Arc::new(Shared { queues: Mutex::new(queues), more: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            pace.take();
            while let Some(job) = next(&theirs) {
                let done = work(job);
                let mut queues = theirs.lock();
                queues.done.push(done);
                let first = queues.done.len() == 1;
                drop(queues);
                if first {
                    bell.ring();
                }
            }
        });
        let thread = thread.map_err(|error| HarpError::io("start a thread", error))?;
        Ok(Worker { shared, thread: Some(thread) })
    }

    /// The same thread, which dropping the worker does not wait for: what it has in hand may never end, and leaves
    /// nothing behind.
    pub fn unawaited(mut self) -> Worker<J, D> {
        self.thread = None;
        self
    }

    /// Hands over all of `jobs`, in order.
    pub fn give(&self, jobs: impl Iterator<Item = J>) {
        let mut queues = self.shared.lock();
        let before = queues.jobs.len();
        queues.jobs.extend(jobs);
        assert!(queues.jobs.len() <= JOBS_MAX, "the node handed out more jobs than it may");
        let wake = before == 0 && !queues.jobs.is_empty();
        drop(queues);
        if wake {
            self.shared.more.notify_one();
        }
    }

    /// Swaps what is done into `done`, which must be empty; both keep their memory.
    pub fn take_done(&self, done: &mut Vec<D>) {
        assert!(done.is_empty(), "results are taken once the last ones are dealt with");
        std::mem::swap(&mut self.shared.lock().done, done);
    }
}

fn next<J, D>(shared: &Shared<J, D>) -> Option<J> {
    let mut queues = shared.lock();
    loop {
        if queues.stop {
            return None;
        }
        if let Some(job) = queues.jobs.pop_front() {
            return Some(job);
        }
        queues = shared.more.wait(queues).expect("no thread panics with the queues in hand");
    }
}

impl<J, D> Drop for Worker<J, D> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::steady;
    use crate::poller::Poller;

    #[test]
    fn jobs_are_done_in_order_and_the_bell_rings() {
        let bell = Bell::new().expect("a bell");
        let worker =
            Worker::start("test", bell.clone(), Pace::Prompt, |job: u32| job * 2).expect("starts");
        worker.give(0..100);
        worker.give(100..200);
        let mut poller = Poller::new().expect("a poller");
        poller.add_bell(&bell).expect("watches");
        let (mut seen, mut done) = (Vec::new(), Vec::new());
        while seen.len() < 200 {
            assert_eq!(poller.wait(steady(), None).expect("waits"), 1);
            worker.take_done(&mut done);
            seen.append(&mut done);
        }
        assert!(seen.iter().copied().eq((0..200).map(|job| job * 2)));
    }

    #[test]
    fn a_job_that_hangs_does_not_keep_an_unawaited_worker() {
        let bell = Bell::new().expect("a bell");
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let work = move |_: u32| hangs.recv().is_ok();
        let worker = Worker::start("test", bell, Pace::Prompt, work).expect("starts").unawaited();
        worker.give(0..2);
        drop(worker);
        drop(release); // not before: the drop above returned while the job hung
    }

    #[test]
    fn dropping_a_worker_ends_its_thread() {
        let bell = Bell::new().expect("a bell");
        let alive = Arc::new(());
        let theirs = alive.clone();
        let work = move |_: u32| drop(theirs.clone());
        drop(Worker::start("test", bell, Pace::Background, work).expect("starts"));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
