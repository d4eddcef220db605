//! Record marks in a stream of RPC messages that is passed on as it is.
//! Owns: where in the stream's current fragment it stands.
//! Never: keeps a byte of a record, or judges one; whoever decodes it does.
//! Invariant: a record counts when its last byte has passed.
//! Source: RFC 5531, section 11.

const MARK_BYTES: usize = 4;
const LAST_FRAGMENT: u32 = 1 << 31;

/// A place in a stream of records.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    mark: [u8; MARK_BYTES],
    mark_bytes: usize,
    /// Bytes of the fragment that are still to come.
    left: usize,
    /// Bytes of the record that have passed, marks included.
    record: usize,
}

impl Marks {
    /// Goes over `bytes` until `most` more records have ended; returns how many bytes that took and how many
    /// records ended. `ended` hears each record's length.
    pub fn take(
        &mut self,
        bytes: &[u8],
        most: usize,
        mut ended: impl FnMut(usize),
    ) -> (usize, usize) {
        let (mut at, mut count) = (0, 0);
        while at < bytes.len() && count < most {
            if self.mark_bytes < MARK_BYTES {
                self.mark[self.mark_bytes] = bytes[at];
                self.mark_bytes += 1;
                self.record += 1;
                at += 1;
                if self.mark_bytes < MARK_BYTES {
                    continue;
                }
                self.left = (u32::from_be_bytes(self.mark) & !LAST_FRAGMENT) as usize;
            }
            let step = self.left.min(bytes.len() - at);
            at += step;
            self.left -= step;
            self.record += step;
            if self.left > 0 {
                break;
            }
            self.mark_bytes = 0;
            if u32::from_be_bytes(self.mark) & LAST_FRAGMENT != 0 {
                ended(std::mem::take(&mut self.record));
                count += 1;
            }
        }
        (at, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of these fragments.
    fn record(fragments: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            let last = if index + 1 == fragments.len() { LAST_FRAGMENT } else { 0 };
            bytes.extend_from_slice(&(*fragment as u32 | last).to_be_bytes());
            bytes.resize(bytes.len() + fragment, 0xff);
        }
        bytes
    }

    #[test]
    fn records_end_where_they_end_however_the_stream_is_cut() {
        let records = [vec![40], vec![0], vec![3, 0, 5], vec![7, 1], vec![1]];
        let stream: Vec<u8> = records.iter().flat_map(|fragments| record(fragments)).collect();
        let lengths: Vec<usize> = records.iter().map(|f| record(f).len()).collect();
        for cut in 1..=stream.len() {
            let (mut marks, mut seen) = (Marks::default(), Vec::new());
            for piece in stream.chunks(cut) {
                let (at, _) = marks.take(piece, usize::MAX, |bytes| seen.push(bytes));
                assert_eq!(at, piece.len());
            }
            assert_eq!(seen, lengths, "in pieces of {cut}");
        }
    }

    #[test]
    fn no_more_is_taken_than_was_asked_for() {
        let stream = [record(&[8]), record(&[2, 2]), record(&[8])].concat();
        let mut marks = Marks::default();
        assert_eq!(marks.take(&stream, 2, |_| ()), (12 + 12, 2));
        assert_eq!(marks.take(&stream[24..30], 0, |_| ()), (0, 0));
        assert_eq!(marks.take(&stream[24..30], 1, |_| ()), (6, 0), "the third one's front");
        assert_eq!(marks.take(&stream[30..], 1, |_| ()), (6, 1));
    }
}
