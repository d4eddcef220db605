//! Memory: how much a decoder allocates for what it is given.
//! Owns: the allocator of every program that links this crate: the system's, with a count per thread.
//! Never: fails an allocation.
//! Invariant: the peak is that of the calling thread, since the measurement began.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Notes that this thread holds `bytes` more, or less.
fn note(bytes: isize) {
    // A thread that is ending is not measured.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came; the counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // While it is moved both are there.
        note(new_bytes as isize);
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, new_bytes) }
    }
}

/// What `decode` gives; panics if more than `bytes_max` bytes were allocated at once meanwhile.
pub fn within<T>(bytes_max: usize, decode: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let value = decode();
    let used = PEAK.get() - before;
    assert!(used <= bytes_max as isize, "{used} bytes were allocated where {bytes_max} must do");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_and_what_is_freed_is_not() {
        within(5000, || (0..10).map(|_| vec![0u8; 4096].len()).sum::<usize>());
        within(0, || 7);
        let too_much = std::panic::catch_unwind(|| within(8000, || vec![0u8; 8001]));
        assert!(too_much.is_err());
        let grown = std::panic::catch_unwind(|| within(8000, || vec![0u8; 4096].reserve(4096)));
        assert!(grown.is_err());
    }
}
