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
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What has not been read yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `N` bytes, as they are.
    #[inline]
    pub fn fixed<const N: usize>(&mut self) -> Result<&'a [u8; N], XdrError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(XdrError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `len` bytes, as they are. The caller has bounded `len`.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], XdrError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(XdrError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// An unsigned integer.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        Ok(u32::from_be_bytes(*self.fixed()?))
    }

    /// An unsigned hyper integer.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        Ok(u64::from_be_bytes(*self.fixed()?))
    }

    /// A boolean; only 0 and 1 are.
    #[inline]
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(XdrError::BadValue(other)),
        }
    }

    /// A variable-length opaque of at most `max` bytes, with its padding. What the padding
    /// contains does not matter; that it is there does.
    #[inline]
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

/// Where encoded bytes go. Encoders hand over whole groups, so that each group costs one check.
pub trait Sink {
    /// Appends `bytes`.
    fn bytes(&mut self, bytes: &[u8]);

    /// Appends a group whose size is known when compiling.
    #[inline(always)]
    fn array<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.bytes(bytes);
    }

    /// Appends one unsigned integer.
    #[inline(always)]
    fn u32(&mut self, value: u32) {
        self.array(&value.to_be_bytes());
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
        let room = &mut self.buf[self.used..];
        if bytes.len() <= room.len() {
            room[..bytes.len()].copy_from_slice(bytes);
            self.used += bytes.len();
        } else {
            self.overflowed = true;
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
}

/// A fixed-size group of big-endian words, filled in order. With constant sizes the compiler
/// folds the positions, so a group becomes plain stores.
pub(crate) struct Group<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Group<N> {
    #[inline(always)]
    pub(crate) fn new() -> Group<N> {
        Group { bytes: [0; N], used: 0 }
    }

    #[inline(always)]
    pub(crate) fn raw<const M: usize>(mut self, bytes: &[u8; M]) -> Group<N> {
        self.bytes[self.used..self.used + M].copy_from_slice(bytes);
        self.used += M;
        self
    }

    #[inline(always)]
    pub(crate) fn u32(self, value: u32) -> Group<N> {
        self.raw(&value.to_be_bytes())
    }

    #[inline(always)]
    pub(crate) fn u64(self, value: u64) -> Group<N> {
        self.raw(&value.to_be_bytes())
    }

    /// The filled group. Panics when it is not full: its size was miscounted here.
    #[inline(always)]
    pub(crate) fn done(self) -> [u8; N] {
        assert!(self.used == N, "a group of {N} bytes got {}", self.used);
        self.bytes
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
        sink.u32(1);
        assert_eq!(sink.written(), Some(4));
        sink.u32(2);
        assert_eq!(sink.written(), None);
        sink.bytes(&[3]);
        assert_eq!(sink.written(), None);
        assert_eq!(buf[6..], [9, 9]);
    }

    #[test]
    fn group_lays_words_out_in_order() {
        assert_eq!(
            Group::<14>::new().u32(1).u64(2).raw(&[3, 4]).done(),
            [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4]
        );
    }

    #[test]
    fn bool_takes_only_zero_and_one() {
        assert_eq!(Reader::new(&[0, 0, 0, 1]).bool(), Ok(true));
        assert_eq!(Reader::new(&[0, 0, 0, 2]).bool(), Err(XdrError::BadValue(2)));
    }
}
