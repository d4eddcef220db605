//! Record marks: a client's byte stream, cut into records as its bytes arrive.
//! Owns: a second splitter, as plain as can be, that the real one is compared with.
//! Source: RFC 5531, section 11.
//!
//! Input: how many bytes arrive at a time, less one; which bound a record has; then the stream.

use harp_node::wire::record::{
    FRAGMENTS_MAX, LAST_FRAGMENT, MARK_BYTES, RECORD_BYTES_MAX, Split, join, split,
};

use crate::calls;
use crate::memory::within;

const BOUNDS: [usize; 4] = [16, 300, 4096, RECORD_BYTES_MAX];

/// One input.
pub fn run(input: &[u8]) {
    let [pace, bound, stream @ ..] = input else { return };
    let bound = BOUNDS[*bound as usize % BOUNDS.len()];
    let (expected, sound) = records_of(stream, bound);
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut buffer: Vec<u8> = Vec::new();
    let mut wanted = 0;
    for arrived in stream.chunks(*pace as usize + 1) {
        buffer.extend_from_slice(arrived);
        let mut at = 0;
        loop {
            let (before, rest) = (found.len(), buffer.len() - at);
            match within(0, || split(&buffer[at..], bound)) {
                Ok(Split::Complete { record }) => {
                    found.push(buffer[at..][record.clone()].to_vec());
                    at += record.end;
                }
                Ok(Split::Fragmented { consumed }) => {
                    let raw = &mut buffer[at..at + consumed];
                    let record = within(0, || join(raw));
                    found.push(raw[record].to_vec());
                    at += consumed;
                }
                Ok(Split::NeedMore { bytes_at_least }) => {
                    assert!(bytes_at_least > rest && bytes_at_least <= bound + 4 * FRAGMENTS_MAX);
                    wanted = bytes_at_least;
                    break;
                }
                Err(_) => {
                    assert!(!sound, "a sound stream was refused");
                    assert_eq!(found, expected);
                    return;
                }
            }
            assert!(rest >= wanted && found.len() == before + 1, "a record came too early");
            wanted = 0;
        }
        buffer.drain(..at);
    }
    assert!(sound, "a stream beyond its bounds was not refused");
    assert_eq!(found, expected);
}

/// The whole records of a stream up to where it breaks the bounds, and whether it does not.
fn records_of(mut stream: &[u8], bound: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut records, mut record, mut fragments) = (Vec::new(), Vec::new(), 0);
    while let Some((mark, rest)) = stream.split_first_chunk::<MARK_BYTES>() {
        let mark = u32::from_be_bytes(*mark);
        let len = (mark & !LAST_FRAGMENT) as usize;
        if record.len() + len > bound {
            return (records, false);
        }
        let Some((fragment, rest)) = rest.split_at_checked(len) else { break };
        record.extend_from_slice(fragment);
        fragments += 1;
        stream = rest;
        if mark & LAST_FRAGMENT != 0 && fragments <= FRAGMENTS_MAX {
            records.push(std::mem::take(&mut record));
            fragments = 0;
        } else if fragments >= FRAGMENTS_MAX {
            return (records, false);
        }
    }
    (records, true)
}

/// Streams of one and of several fragments, whole and cut.
pub fn seeds() -> Vec<Vec<u8>> {
    let fragment = |last: bool, bytes: &[u8]| {
        let bit = if last { LAST_FRAGMENT } else { 0 };
        [&(bytes.len() as u32 | bit).to_be_bytes(), bytes].concat()
    };
    let calls = calls::seeds();
    let one = [fragment(true, &calls[1]), fragment(true, &calls[2])].concat();
    let (front, back) = calls[3].split_at(20);
    let parts = [fragment(false, front), fragment(false, b""), fragment(true, back), one.clone()];
    let parts = parts.concat();
    let endless = fragment(false, b"").repeat(FRAGMENTS_MAX + 1);
    let last_possible =
        [fragment(false, b"").repeat(FRAGMENTS_MAX - 1), fragment(true, b"x")].concat();
    let with = |pace: u8, bound: u8, stream: &[u8]| [&[pace, bound], stream].concat();
    vec![
        with(255, 3, &one),
        with(0, 2, &one),
        with(6, 1, &parts),
        with(40, 3, &parts[..parts.len() - 3]),
        with(99, 0, &parts),
        with(255, 0, &endless),
        with(255, 0, &last_possible),
    ]
}
