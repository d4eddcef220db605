//! Memory as direct writes want it.
//! Owns: a piece of zeroed memory whose start is aligned.
//! Never: moves once it is made.

/// Alignment of positions, lengths and memory of a direct write.
pub const DIRECT_ALIGN: usize = 4096;

/// Zeroed memory whose start is aligned for direct writes.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    /// `bytes` zeros.
    pub fn zeroed(bytes: usize) -> Aligned {
        let memory = vec![0; bytes + DIRECT_ALIGN];
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN);
        assert!(start < DIRECT_ALIGN, "bytes can be aligned");
        Aligned { memory, start, bytes }
    }

    /// The memory.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }

    /// The memory, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}
