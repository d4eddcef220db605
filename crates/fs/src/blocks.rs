//! Blocks.
/// Where the log's bytes are: the record ring, as the caller keeps it.
pub trait LogBytes {
    /// The `len` bytes at ring position `pos`. They were given to `apply` and are still needed.
    fn bytes(&self, pos: u64, len: u32) -> &[u8];
}
