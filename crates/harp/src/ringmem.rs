//! The record ring's memory: one shared mapping of a memory file, or of a file on a tmpfs.
//! Owns: the mapping, and the unsafe code around it.
//! Never: looks at the bytes.
//! Invariant: page-aligned, never moved or unmapped while the value lives.

use std::ffi::c_void;
use std::os::fd::OwnedFd;

use harp_node::log::RingMemory;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::error::HarpError;

/// Pages are provided this many bytes at a time, so that nobody waits long for the address space.
const WARM_BYTES: usize = 2 << 20;

/// A block of zeroed memory that other processes could map too, given [`RingMapping::file`].
pub struct RingMapping {
    base: *mut c_void,
    bytes: usize,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to no thread; who may touch which bytes is the ring's invariant.
unsafe impl Send for RingMapping {}
// SAFETY: as above.
unsafe impl Sync for RingMapping {}

impl RingMapping {
    /// Maps `bytes` of new shared memory; a power of two, at least a page.
    pub fn new(bytes: usize) -> Result<RingMapping, HarpError> {
        assert!(bytes.is_power_of_two() && bytes >= 4096, "a ring of {bytes} bytes");
        let what = || format!("map {bytes} bytes of memory for the log");
        let file = memfd_create("harp-ring", MemfdFlags::CLOEXEC)
            .map_err(|error| HarpError::io(what(), error))?;
        ftruncate(&file, bytes as u64).map_err(|error| HarpError::io(what(), error))?;
        RingMapping::of(file, bytes)
    }

    /// Maps the first `bytes` of a file that lies in memory and has as many.
    pub fn of(file: OwnedFd, bytes: usize) -> Result<RingMapping, HarpError> {
        let what = || format!("map {bytes} bytes of memory for the log");
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs no other memory.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0) }
            .map_err(|error| HarpError::io(what(), error))?;
        Ok(RingMapping { base, bytes, file })
    }

    /// Has the kernel provide all pages, a piece at a time. Meant for a thread of its own at start: pages
    /// first touched by the loop would be cleared there, record by record. A kernel that cannot (before
    /// Linux 5.14) leaves it at that.
    pub fn warm(&self) {
        for offset in (0..self.bytes).step_by(WARM_BYTES) {
            let len = WARM_BYTES.min(self.bytes - offset);
            // SAFETY: within the mapping, which `self` keeps; populating changes no content.
            let done =
                unsafe { madvise(self.base.byte_add(offset), len, Advice::LinuxPopulateWrite) };
            if done.is_err() {
                return;
            }
        }
    }

    /// The memory file behind the mapping.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what mmap gave; nobody holds a reference any more.
        unsafe { munmap(self.base, self.bytes) }.expect("a mapping can be unmapped");
    }
}

// SAFETY: the mapping is valid for `bytes` until drop, and the memory file is not shared further.
unsafe impl RingMemory for RingMapping {
    fn base(&self) -> *mut u8 {
        self.base.cast()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use harp_node::log::{LogPos, Ring};

    use super::*;

    #[test]
    fn a_ring_over_the_mapping_keeps_what_is_written() {
        let mapping = RingMapping::new(1 << 16).expect("memory");
        assert_eq!(mapping.base().addr() % 4096, 0);
        mapping.warm();
        let ring = Ring::new(Arc::new(mapping));
        // SAFETY: no reader exists yet.
        unsafe { ring.bytes_mut(LogPos(4096), 5) }.copy_from_slice(b"hello");
        let reader = ring.clone();
        let seen = std::thread::spawn(move || reader.bytes(LogPos(4096), 5).to_vec());
        assert_eq!(seen.join().expect("the reader ends"), b"hello");
        assert_eq!(ring.bytes(LogPos((1 << 16) + 4096), 5), b"hello");
    }
}
