//! Record marking: where one RPC message ends in a byte stream.
//! Owns: the splitter over a receive buffer and the joining of fragments in place.
//! Never: copies the common record, which is one fragment that is wholly there.
//! Invariant: no record and no number of fragments above its bound is ever waited for.
//! Source: RFC 5531, section 11.

use std::fmt;
use std::ops::Range;

/// Bytes of a fragment's header.
pub const MARK_BYTES: usize = 4;

/// The bit that says that a fragment is its record's last.
pub const LAST_FRAGMENT: u32 = 1 << 31;

/// What a server accepts as one record: the largest write, 1 MiB, and everything around it.
pub const RECORD_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// The most fragments a record may come in. Real clients use one, a few use two or three; the
/// bound keeps a stranger from making the splitter look at endless empty ones.
pub const FRAGMENTS_MAX: usize = 1024;

/// What lies at the start of a receive buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// Not a whole record yet.
    NeedMore {
        /// The buffer must hold at least this many bytes before it is worth another look.
        bytes_at_least: usize,
    },
    /// A record of one fragment; the next record starts at `record.end`.
    Complete {
        /// Where the record's bytes lie, without the mark.
        record: Range<usize>,
    },
    /// A record of several fragments: call [`join`] on the first `consumed` bytes.
    Fragmented {
        /// Bytes of the buffer that the record takes, marks included.
        consumed: usize,
    },
}

/// Why a byte stream cannot be understood any further; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The record is longer than allowed.
    TooLong {
        /// Its length as far as known, in bytes.
        bytes: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// The record comes in more than [`FRAGMENTS_MAX`] fragments.
    TooManyFragments,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::TooLong { bytes, max } => {
                write!(f, "a record of {bytes} bytes or more exceeds {max}")
            }
            RecordError::TooManyFragments => {
                write!(f, "a record in more than {FRAGMENTS_MAX} fragments")
            }
        }
    }
}

impl std::error::Error for RecordError {}

/// The length and the last-fragment bit of the fragment at the start of `buf`, if its mark is
/// there.
#[inline]
fn mark(buf: &[u8]) -> Option<(usize, bool)> {
    let word = u32::from_be_bytes(*buf.first_chunk()?);
    Some(((word & !LAST_FRAGMENT) as usize, word & LAST_FRAGMENT != 0))
}

/// Looks for a record of at most `record_bytes_max` bytes at the start of `buf`.
///
/// Errors mean that the stream is beyond repair. The bound holds before the bytes have arrived,
/// so a buffer of the bound and `4 * FRAGMENTS_MAX` bytes is always large enough.
#[inline]
pub fn split(buf: &[u8], record_bytes_max: usize) -> Result<Split, RecordError> {
    let Some((len, last)) = mark(buf) else {
        return Ok(Split::NeedMore { bytes_at_least: MARK_BYTES });
    };
    if len > record_bytes_max {
        return Err(RecordError::TooLong { bytes: len, max: record_bytes_max });
    }
    let end = MARK_BYTES + len;
    if !last {
        return split_fragments(buf, record_bytes_max);
    }
    if buf.len() < end {
        return Ok(Split::NeedMore { bytes_at_least: end });
    }
    Ok(Split::Complete { record: MARK_BYTES..end })
}

#[cold]
fn split_fragments(buf: &[u8], record_bytes_max: usize) -> Result<Split, RecordError> {
    let (mut at, mut bytes) = (0, 0);
    for _ in 0..FRAGMENTS_MAX {
        let Some((len, last)) = mark(&buf[at..]) else {
            return Ok(Split::NeedMore { bytes_at_least: at + MARK_BYTES });
        };
        bytes += len;
        if bytes > record_bytes_max {
            return Err(RecordError::TooLong { bytes, max: record_bytes_max });
        }
        at += MARK_BYTES + len;
        if buf.len() < at {
            return Ok(Split::NeedMore { bytes_at_least: at });
        }
        if last {
            return Ok(Split::Fragmented { consumed: at });
        }
    }
    Err(RecordError::TooManyFragments)
}

/// Moves the fragments of the record that fills `raw` together and returns where the record
/// then lies in it.
///
/// Panics unless `raw` is exactly what [`split`] called `Fragmented`.
pub fn join(raw: &mut [u8]) -> Range<usize> {
    let (mut from, mut to) = (0, MARK_BYTES);
    loop {
        let (len, last) = mark(&raw[from..]).expect("split found every mark");
        from += MARK_BYTES;
        raw.copy_within(from..from + len, to);
        from += len;
        to += len;
        if last {
            assert_eq!(from, raw.len(), "more than the one record was handed to join");
            return MARK_BYTES..to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(last: bool, bytes: &[u8]) -> Vec<u8> {
        let bit = if last { LAST_FRAGMENT } else { 0 };
        [&(bytes.len() as u32 | bit).to_be_bytes(), bytes].concat()
    }

    #[test]
    fn one_fragment_is_found_in_place_and_every_prefix_needs_more() {
        let mut buf = fragment(true, b"hello");
        for cut in 0..buf.len() {
            let want = if cut < 4 { 4 } else { buf.len() };
            assert_eq!(split(&buf[..cut], 64), Ok(Split::NeedMore { bytes_at_least: want }));
        }
        buf.extend_from_slice(b"next");
        assert_eq!(split(&buf, 64), Ok(Split::Complete { record: 4..9 }));
    }

    #[test]
    fn fragments_are_joined_in_place() {
        let mut buf =
            [fragment(false, b"he"), fragment(false, b""), fragment(true, b"llo")].concat();
        let len = buf.len();
        for cut in 4..len {
            let Ok(Split::NeedMore { bytes_at_least }) = split(&buf[..cut], 64) else {
                panic!("a prefix of {cut} bytes is no record");
            };
            assert!(bytes_at_least > cut);
        }
        buf.extend_from_slice(b"next");
        assert_eq!(split(&buf, 64), Ok(Split::Fragmented { consumed: len }));
        let at = join(&mut buf[..len]);
        assert_eq!(&buf[at], b"hello");
        assert_eq!(&buf[len..], b"next");
    }

    #[test]
    fn bounds_hold_before_the_bytes_arrive() {
        let too_long = fragment(true, &[0; 65]);
        let error = Err(RecordError::TooLong { bytes: 65, max: 64 });
        assert_eq!(split(&too_long[..4], 64), error);
        let parts = [fragment(false, &[0; 60]), fragment(true, &[0; 5])].concat();
        assert_eq!(split(&parts[..68], 64), error);
        let empty = fragment(false, b"").repeat(FRAGMENTS_MAX + 1);
        assert_eq!(split(&empty, 64), Err(RecordError::TooManyFragments));
        assert!(split(&[0xff; 64], RECORD_BYTES_MAX).is_err());
    }
}
