//! Fuse: stops simulated disks after a counted number of steps.
//! Owns: the count of durable-relevant steps and the step at which all of them stop.
//! Never: decides what a crash leaves behind; `MemDisk::crash` does.
//! Invariant: once blown, every step fails until it is reset.
//! Source: crash-at-every-step testing of storage engines.

use crate::StoreError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared countdown: `MemDisk` and `MemEngine` ask it before and after each durable step.
#[derive(Debug, Clone, Default)]
pub struct Fuse(Arc<Steps>);

#[derive(Debug)]
struct Steps {
    taken: AtomicU64,
    limit: AtomicU64,
}

impl Default for Steps {
    fn default() -> Steps {
        Steps { taken: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

impl Fuse {
    /// A fuse that never blows until told to.
    pub fn new() -> Fuse {
        Fuse::default()
    }

    /// Counts from zero again and lets `steps` steps pass before all fail.
    pub fn arm(&self, steps: u64) {
        self.0.taken.store(0, Ordering::SeqCst);
        self.0.limit.store(steps, Ordering::SeqCst);
    }

    /// Counts from zero again and never blows.
    pub fn reset(&self) {
        self.arm(u64::MAX);
    }

    /// Steps asked for since the last `arm` or `reset`.
    pub fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::SeqCst)
    }

    /// Takes one step, or fails because the fuse has blown.
    pub(crate) fn step(&self, what: &'static str) -> Result<(), StoreError> {
        let taken = self.0.taken.fetch_add(1, Ordering::SeqCst);
        if taken < self.0.limit.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(StoreError::io(what, io::Error::other("stopped by the fuse")))
        }
    }
}
