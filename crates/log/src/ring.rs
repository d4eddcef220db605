//! The record ring: the log's newest bytes, in one block of memory that several threads read.
//! Owns: the memory, and the mapping from endless positions to it.
//! Never: holds a pointer inside its bytes; everything in it is an offset, so that the memory may
//! outlive the process that wrote it.
//! Invariant: bytes at a position are written once, before any other thread is told of them, and
//! stay until the position is at least one ring length behind the log's end.

use std::cell::UnsafeCell;
use std::sync::Arc;

use crate::memory::{MEMORY_HEAD_BYTES, MemoryHead, MemoryTie};

/// A byte position in the endless log: segment `pos / segment_bytes`, ring offset `pos % ring bytes`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogPos(pub u64);

impl LogPos {
    /// This position `bytes` further on.
    pub fn plus(self, bytes: u64) -> LogPos {
        LogPos(self.0 + bytes)
    }
}

/// Memory that a [`Ring`] lies in: a heap block, or a shared mapping that the program made.
///
/// # Safety
/// `base()` must stay valid for reads and writes of `bytes()` bytes until the value is dropped, and
/// nothing else may write there meanwhile.
pub unsafe trait RingMemory: Send + Sync {
    /// First byte.
    fn base(&self) -> *mut u8;
    /// Length in bytes.
    fn bytes(&self) -> usize;
}

/// Blocks of eight bytes, for the alignment of a memory's head.
struct HeapMemory(Box<[UnsafeCell<u64>]>);

// SAFETY: access is governed by the ring's invariant, as for every RingMemory.
unsafe impl Send for HeapMemory {}
// SAFETY: as above.
unsafe impl Sync for HeapMemory {}

// SAFETY: the box owns its bytes until it is dropped and hands them to nobody else.
unsafe impl RingMemory for HeapMemory {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr() as *mut u8
    }

    fn bytes(&self) -> usize {
        8 * self.0.len()
    }
}

impl HeapMemory {
    fn new(bytes: usize) -> HeapMemory {
        assert!(bytes.is_multiple_of(8), "whole words");
        HeapMemory((0..bytes / 8).map(|_| UnsafeCell::new(0)).collect())
    }
}

/// The ring. Clones share the memory: one writer (the server's loop), any number of readers.
#[derive(Clone)]
pub struct Ring {
    memory: Arc<dyn RingMemory>,
    base: usize,
    len: u64,
    /// Whether the memory begins with a head, since it outlives the process.
    outlives: bool,
}

impl Ring {
    /// A ring in memory that the caller brings; its length must be a power of two.
    pub fn new(memory: Arc<dyn RingMemory>) -> Ring {
        let len = memory.bytes() as u64;
        assert!(len.is_power_of_two(), "a ring's length is a power of two, not {len}");
        let base = memory.base() as usize;
        Ring { memory, base, len, outlives: false }
    }

    /// A ring behind the head of memory that outlives the process. The head was formatted.
    pub fn outliving(memory: Arc<dyn RingMemory>) -> Ring {
        let len = memory.bytes() as u64 - MEMORY_HEAD_BYTES as u64;
        assert!(len.is_power_of_two(), "a ring's length is a power of two, not {len}");
        let base = memory.base() as usize + MEMORY_HEAD_BYTES;
        Ring { memory, base, len, outlives: true }
    }

    /// A ring on the heap, for the simulator and for tests.
    pub fn on_heap(bytes: usize) -> Ring {
        Ring::new(Arc::new(HeapMemory::new(bytes)))
    }

    /// A ring on the heap that passes for memory that outlives the process: whoever keeps it decides.
    pub fn outliving_on_heap(bytes: usize, id: u64, tie: &MemoryTie) -> Ring {
        let ring = Ring::outliving(Arc::new(HeapMemory::new(MEMORY_HEAD_BYTES + bytes)));
        ring.memory_head().expect("just made so").format(id, tie, bytes as u64);
        ring
    }

    /// The head of the memory, if it outlives the process.
    pub fn memory_head(&self) -> Option<MemoryHead<'_>> {
        // SAFETY: the memory begins with a head that nothing else touches, and lives as long as the ring.
        self.outlives.then(|| unsafe { MemoryHead::at((self.base - MEMORY_HEAD_BYTES) as *mut u8) })
    }

    /// Whether records in it outlive the process.
    pub fn outlives(&self) -> bool {
        self.outlives
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a ring has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn pointer(&self, at: LogPos, len: u64) -> *mut u8 {
        let offset = at.0 & (self.len - 1);
        assert!(offset + len <= self.len, "a log range never straddles the ring's end");
        debug_assert_eq!(
            self.memory.base() as usize + usize::from(self.outlives) * MEMORY_HEAD_BYTES,
            self.base
        );
        (self.base + offset as usize) as *mut u8
    }

    /// The bytes `[at, at + len)`; they must have been written and still be within the ring.
    pub fn bytes(&self, at: LogPos, len: u32) -> &[u8] {
        let pointer = self.pointer(at, len as u64);
        // SAFETY: in bounds by `pointer`; by the ring's invariant nobody writes these bytes now.
        unsafe { std::slice::from_raw_parts(pointer, len as usize) }
    }

    /// The bytes `[at, at + len)`, to be written.
    ///
    /// # Safety
    /// Only the one writer calls this, only for positions at or above the log's end, and no reader
    /// may still use what lay there one ring length ago.
    #[allow(clippy::mut_from_ref)] // shared memory: the contract above is what keeps it exclusive
    pub unsafe fn bytes_mut(&self, at: LogPos, len: u32) -> &mut [u8] {
        let pointer = self.pointer(at, len as u64);
        // SAFETY: in bounds by `pointer`; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(pointer, len as usize) }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} bytes)", self.len)
    }
}
