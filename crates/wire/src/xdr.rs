//! XDR: big-endian words, read in place and written in fixed-size groups.
//! Owns: the reader, the sinks one encodes into, padding, and the error of malformed bytes.
//! Never: allocates while reading; trusts a length before it has compared it with its bound.
//! Invariant: a reader only moves forward, and only past bytes that are there.
//! Source: RFC 4506.

use std::fmt;

/// Why bytes could not be taken as what they should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdrError {
    /// The bytes end before the value does.
    Truncated,
    /// A length exceeds what its field may have, both in bytes (or elements, for an array).
    TooLong {
        /// The length found.
        length: u32,
        /// The field's bound.
        max: u32,
    },
    /// A number that its enumeration or range does not contain.
    BadValue(u32),
}

impl fmt::Display for XdrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            XdrError::Truncated => write!(f, "the bytes end too early"),
            XdrError::TooLong { length, max } => write!(f, "length {length} exceeds {max}"),
            XdrError::BadValue(value) => write!(f, "value {value} is not allowed here"),
        }
    }
}

impl std::error::Error for XdrError {}

/// Number of zero bytes after an opaque of `len` bytes: 0 to 3.
#[inline]
pub const fn pad_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// The zero bytes that follow an opaque of `len` bytes, ready to be appended.
#[inline]
pub fn pad(len: usize) -> &'static [u8] {
    &[0; 3][..pad_len(len)]
}

/// A cursor over received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    #[inline(always)]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// What has not been read yet.
    #[inline(always)]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The next `N` bytes, as they are.
    #[inline(always)]
    pub fn fixed<const N: usize>(&mut self) -> Result<&'a [u8; N], XdrError> {
        let end = self.at.wrapping_add(N);
        let Some(head) = self.bytes.get(self.at..end) else {
            return Err(XdrError::Truncated);
        };
        self.at = end;
        Ok(head.first_chunk().expect("just so long"))
    }

    /// The next `len` bytes, as they are. The caller has bounded `len`.
    #[inline(always)]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], XdrError> {
        let end = self.at.wrapping_add(len);
        let Some(head) = self.bytes.get(self.at..end) else {
            return Err(XdrError::Truncated);
        };
        self.at = end;
        Ok(head)
    }

    /// An unsigned integer.
    #[inline(always)]
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        Ok(u32::from_be_bytes(*self.fixed()?))
    }

    /// An unsigned hyper integer.
    #[inline(always)]
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        Ok(u64::from_be_bytes(*self.fixed()?))
    }

    /// A boolean; only 0 and 1 are.
    #[inline(always)]
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(XdrError::BadValue(other)),
        }
    }

    /// A variable-length opaque of at most `max` bytes, with its padding. What the padding
    /// contains does not matter; that it is there does.
    #[inline(always)]
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8], XdrError> {
        let length = self.u32()?;
        let len = length as usize;
        if len > max {
            return Err(XdrError::TooLong { length, max: max as u32 });
        }
        let all = self.take(len + pad_len(len))?;
        Ok(&all[..len])
    }
}

/// Where encoded bytes go. Encoders hand over whole groups, so that each group costs one check,
/// and fill them where they will stay: a copy right after would wait for its many small stores.
pub trait Sink {
    /// Appends `bytes`.
    fn bytes(&mut self, bytes: &[u8]);

    /// Appends a group of `N` bytes that `fill` fills.
    ///
    /// Panics when `fill` does not fill it: its size was miscounted where it was written.
    fn group<const N: usize>(&mut self, fill: impl FnOnce(Group<'_, N>) -> Group<'_, N>);

    /// Appends one unsigned integer.
    #[inline(always)]
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends a variable-length opaque: length, bytes, padding.
    #[inline]
    fn opaque(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes(bytes);
        self.bytes(pad(bytes.len()));
    }
}

impl Sink for Vec<u8> {
    #[inline(always)]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline(always)]
    fn group<const N: usize>(&mut self, fill: impl FnOnce(Group<'_, N>) -> Group<'_, N>) {
        let at = self.len();
        self.extend_from_slice(&[0; N]);
        let bytes = self[at..].first_chunk_mut().expect("just appended");
        fill(Group { bytes, used: 0 }).check();
    }
}

/// Encodes into a slice, such as a piece of the log's ring.
#[derive(Debug)]
pub struct SliceSink<'a> {
    buf: &'a mut [u8],
    used: usize,
    overflowed: bool,
}

impl<'a> SliceSink<'a> {
    /// Writes from the start of `buf`.
    pub fn new(buf: &'a mut [u8]) -> SliceSink<'a> {
        SliceSink { buf, used: 0, overflowed: false }
    }

    /// The number of bytes written, or `None` when they did not all fit; the slice then holds
    /// nothing of use.
    pub fn written(&self) -> Option<usize> {
        (!self.overflowed).then_some(self.used)
    }
}

impl Sink for SliceSink<'_> {
    #[inline(always)]
    fn bytes(&mut self, bytes: &[u8]) {
        match self.buf[self.used..].get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.used += bytes.len();
            }
            None => self.overflowed = true,
        }
    }

    #[inline(always)]
    fn group<const N: usize>(&mut self, fill: impl FnOnce(Group<'_, N>) -> Group<'_, N>) {
        match self.buf[self.used..].first_chunk_mut() {
            Some(bytes) => {
                fill(Group { bytes, used: 0 }).check();
                self.used += N;
            }
            None => self.overflowed = true,
        }
    }
}

/// Counts what would be written.
#[derive(Debug, Default)]
pub struct CountSink(pub usize);

impl Sink for CountSink {
    #[inline(always)]
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    #[inline(always)]
    fn group<const N: usize>(&mut self, _fill: impl FnOnce(Group<'_, N>) -> Group<'_, N>) {
        self.0 += N;
    }
}

/// A group of `N` bytes, filled in order with big-endian words. With constant sizes the compiler
/// folds the positions, so that filling becomes plain stores.
#[derive(Debug)]
pub struct Group<'a, const N: usize> {
    bytes: &'a mut [u8; N],
    used: usize,
}

impl<const N: usize> Group<'_, N> {
    /// Puts `bytes` next.
    #[inline(always)]
    pub fn raw<const M: usize>(mut self, bytes: &[u8; M]) -> Self {
        self.bytes[self.used..self.used + M].copy_from_slice(bytes);
        self.used += M;
        self
    }

    /// Puts an unsigned integer next.
    #[inline(always)]
    pub fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Puts an unsigned hyper integer next.
    #[inline(always)]
    pub fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    #[inline(always)]
    fn check(self) {
        assert!(self.used == N, "a group of {N} bytes got {}", self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_is_padded_and_bounded() {
        for len in 0..9usize {
            let data = vec![7u8; len];
            let mut out = Vec::new();
            out.opaque(&data);
            assert_eq!(out.len() % 4, 0);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.opaque(len), Ok(&data[..]));
            assert!(reader.rest().is_empty());
            for cut in 0..out.len() {
                assert_eq!(Reader::new(&out[..cut]).opaque(64), Err(XdrError::Truncated));
            }
            if len > 0 {
                let bound = XdrError::TooLong { length: len as u32, max: len as u32 - 1 };
                assert_eq!(Reader::new(&out).opaque(len - 1), Err(bound));
            }
        }
        assert!(Reader::new(&[0xff; 8]).opaque(usize::MAX >> 1).is_err());
    }

    #[test]
    fn slice_sink_reports_overflow_and_never_writes_past_the_end() {
        let mut buf = [9u8; 8];
        let mut sink = SliceSink::new(&mut buf[..6]);
        sink.group::<4>(|g| g.u32(1));
        assert_eq!(sink.written(), Some(4));
        sink.u32(2);
        assert_eq!(sink.written(), None);
        sink.bytes(&[3; 3]);
        sink.group::<4>(|g| g.u32(4));
        assert_eq!(sink.written(), None);
        assert_eq!(buf[6..], [9, 9]);
    }

    #[test]
    fn group_lays_words_out_in_order() {
        let mut out = vec![9];
        out.group::<14>(|g| g.u32(1).u64(2).raw(&[3, 4]));
        assert_eq!(out, [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4]);
    }

    #[test]
    fn bool_takes_only_zero_and_one() {
        assert_eq!(Reader::new(&[0, 0, 0, 1]).bool(), Ok(true));
        assert_eq!(Reader::new(&[0, 0, 0, 2]).bool(), Err(XdrError::BadValue(2)));
    }
}
