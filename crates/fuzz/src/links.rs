//! Links: the handshake of two servers, and the frames behind it.
//! Owns: an honest pair of handshakes, and what may happen to the bytes between them.
//! Source: `crates/harp/src/handshake.rs`; docs/protocol.md.
//!
//! Input: how many bytes arrive at a time, less one; how many changes there are to an honest handshake, each a
//! place (1 byte) and a mask; then bytes that are tried as a stranger's handshake, and as a stream of frames.

use harp::handshake::{Handshake, HandshakeError, Identity, PROTOCOL_VERSION, Progress, Purpose};
use harp::links::{FRAME_BYTES_MAX, split_frames};
use harp_node::vr::ServerId;

use crate::memory::within;

/// A handshake answers with less than this, and keeps nothing else.
const ANSWER_BYTES_MAX: usize = 512;

/// One input.
pub fn run(input: &[u8]) {
    let [pace, changes, rest @ ..] = input else { return };
    let pace = usize::from(*pace) + 1;
    let changes = usize::from(changes % 8) * 2;
    let Some((changes, bytes)) = rest.split_at_checked(changes) else { return };
    honest_but_for(changes, pace);
    from_a_stranger(bytes, pace);
    frames(bytes, pace);
}

fn identity(me: u8) -> Identity {
    Identity {
        group: [7; 16],
        key: [9; 32],
        me: ServerId(me),
        servers: 3,
        version: PROTOCOL_VERSION,
    }
}

/// One side, what arrived and was not taken yet, and how it ended.
struct Side {
    handshake: Handshake,
    received: Vec<u8>,
    end: Option<Result<ServerId, HandshakeError>>,
}

impl Side {
    fn new(handshake: Handshake) -> Side {
        Side { handshake, received: Vec::new(), end: None }
    }

    /// Takes bytes in as they arrive; answers go to `send`.
    fn take(&mut self, bytes: &[u8], pace: usize, send: &mut Vec<u8>) {
        for arrived in bytes.chunks(pace) {
            self.received.extend_from_slice(arrived);
            while self.end.is_none() {
                let (handshake, received) = (&mut self.handshake, &self.received);
                match within(ANSWER_BYTES_MAX, || handshake.feed(received, send)) {
                    Ok((used, progress)) => {
                        self.received.drain(..used);
                        match progress {
                            Progress::Done { peer, .. } => self.end = Some(Ok(peer)),
                            Progress::More if used == 0 => break,
                            Progress::More => {}
                        }
                    }
                    Err(error) => self.end = Some(Err(error)),
                }
            }
        }
    }
}

/// Two servers of one group; each change hits a byte on its way. Whoever got other bytes than were sent does
/// not take the other side for what it says it is.
fn honest_but_for(changes: &[u8], pace: usize) {
    let mut calls = Vec::new();
    let connect = Handshake::connect(identity(0), Purpose::Link, ServerId(2), [1; 32], &mut calls);
    let mut caller = Side::new(connect);
    let mut callee = Side::new(Handshake::accept(identity(2), [2; 32]));
    // Of all bytes in both directions, in the order in which they are sent.
    let mut sent = 0;
    let mut on_the_way = |bytes: &mut [u8]| {
        for change in changes.as_chunks::<2>().0 {
            if let Some(byte) = usize::from(change[0]).checked_sub(sent)
                && let Some(byte) = bytes.get_mut(byte)
            {
                *byte ^= change[1];
            }
        }
        sent += bytes.len();
    };
    for _ in 0..3 {
        let mut answers = Vec::new();
        on_the_way(&mut calls);
        callee.take(&calls, pace, &mut answers);
        calls.clear();
        on_the_way(&mut answers);
        caller.take(&answers, pace, &mut calls);
    }
    // Changes may undo each other.
    let changed = net_change(changes);
    if changed.is_empty() {
        assert_eq!((caller.end, callee.end), (Some(Ok(ServerId(2))), Some(Ok(ServerId(0)))));
    }
    if changed.iter().any(|place| *place < SENT_BYTES) {
        assert!(!matches!(callee.end, Some(Ok(_))), "another hello or answer was proven");
    }
    if changed.iter().any(|place| *place < SENT_BYTES - PROOF_BYTES) {
        assert!(!matches!(caller.end, Some(Ok(_))), "an answer to another hello was taken");
    }
}

/// Bytes of a proof, and of a whole handshake: two hellos, a status, two proofs.
const PROOF_BYTES: usize = 32;
const SENT_BYTES: usize = 2 * 56 + 1 + 2 * PROOF_BYTES;

/// The places whose bytes are not what was sent.
fn net_change(changes: &[u8]) -> Vec<usize> {
    let mut masks = [0; 256];
    for [place, mask] in changes.as_chunks::<2>().0 {
        masks[usize::from(*place)] ^= mask;
    }
    (0..masks.len()).filter(|place| masks[*place] != 0).collect()
}

/// Nobody without the key is taken for a server, on either side; nor is who repeats what others said.
fn from_a_stranger(bytes: &[u8], pace: usize) {
    let mut send = Vec::new();
    let mut callee = Side::new(Handshake::accept(identity(2), [4; 32]));
    callee.take(bytes, pace, &mut send);
    assert!(!matches!(callee.end, Some(Ok(_))), "a stranger was let in");
    let mut calls = Vec::new();
    let connect = Handshake::connect(identity(0), Purpose::Link, ServerId(2), [3; 32], &mut calls);
    let mut caller = Side::new(connect);
    caller.take(bytes, pace, &mut calls);
    assert!(!matches!(caller.end, Some(Ok(_))), "a stranger was taken for a server");
    for side in [callee, caller] {
        if let Some(Err(error)) = side.end {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Frames come out whole, in order, and only those that are all there.
fn frames(stream: &[u8], pace: usize) {
    let (mut expected, mut rest) = (Vec::new(), stream);
    let mut sound = true;
    while let Some((len, behind)) = rest.split_first_chunk() {
        let len = u32::from_be_bytes(*len) as usize;
        sound = len <= FRAME_BYTES_MAX;
        let Some((frame, behind)) = behind.split_at_checked(len).filter(|_| sound) else { break };
        expected.push(frame);
        rest = behind;
    }
    let (mut received, mut found) = (Vec::new(), Vec::new());
    for arrived in stream.chunks(pace) {
        received.extend_from_slice(arrived);
        let deliver = |from: ServerId, frame: &[u8]| {
            assert_eq!(from, ServerId(1));
            found.push(frame.to_vec());
        };
        if !split_frames(&mut received, ServerId(1), deliver) {
            assert!(!sound, "a sound stream was refused");
            break;
        }
    }
    assert_eq!(found, expected);
}

/// Honest handshakes, a few that are disturbed, and frames.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut hello = Vec::new();
    let _ = Handshake::connect(identity(0), Purpose::Link, ServerId(2), [1; 32], &mut hello);
    let mut answer = Vec::new();
    let mut callee = Handshake::accept(identity(2), [2; 32]);
    callee.feed(&hello, &mut answer).expect("an honest hello");
    let frames = [&[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0], &[0, 0, 1, 0], b"half"].concat();
    let with = |pace: u8, changes: &[u8], bytes: &[u8]| {
        [&[pace, changes.len() as u8 / 2], changes, bytes].concat()
    };
    vec![
        with(255, &[], &[&hello[..], &[0; 32]].concat()),
        with(0, &[], &answer),
        with(9, &[4, 1], &frames),
        with(99, &[60, 1], b""),
        with(30, &[100, 128, 160, 1], &[0xff; 8]),
        with(255, &[22, 1], b"GET / HTTP/1.1\r\n"),
    ]
}
