//! Bytes on their way to and from nonblocking sockets.
//! Owns: what a socket did not take yet, and what arrived but is not a whole piece yet.
//! Never: blocks; holds more than its owner allows (owners check [`SendBuf::pending`]).
//! Invariant: bytes leave and arrive in order; nothing overtakes what waits.

use std::io::IoSlice;
use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, writev};
use rustix::net::{RecvFlags, recv};

/// Pieces handed to the kernel in one call.
const PIECES_PER_CALL: usize = 128;
/// A send buffer keeps at most this much memory when it is empty.
const KEPT_BYTES: usize = 1 << 20;

/// Bytes that a socket did not take yet.
#[derive(Default)]
pub struct SendBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl SendBuf {
    /// How many bytes wait.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Adds bytes behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where to append bytes that wait.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<(), Errno> {
        while self.pending() > 0 {
            match rustix::io::write(&socket, &self.bytes[self.start..]) {
                Ok(sent) => self.start += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.compact();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.start = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Moves what waits to the front once more than half of the memory is spent bytes.
    fn compact(&mut self) {
        if self.start > self.bytes.len() / 2 {
            self.bytes.copy_within(self.start.., 0);
            self.bytes.truncate(self.bytes.len() - self.start);
            self.start = 0;
        }
    }
}

/// Sends pieces straight from where they lie, few calls for many pieces. Behind waiting bytes, and from
/// the point where the socket takes no more, they are copied to `waiting`.
pub fn send_pieces<'a>(
    socket: impl AsFd,
    mut pieces: impl Iterator<Item = &'a [u8]>,
    waiting: &mut SendBuf,
) -> Result<(), Errno> {
    if waiting.pending() > 0 {
        pieces.for_each(|piece| waiting.push(piece));
        return Ok(());
    }
    loop {
        let mut slices = [IoSlice::new(&[]); PIECES_PER_CALL];
        let mut count = 0;
        for piece in pieces.by_ref().take(PIECES_PER_CALL) {
            slices[count] = IoSlice::new(piece);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let mut unsent = &mut slices[..count];
        while !unsent.is_empty() {
            match writev(&socket, unsent) {
                Ok(sent) => IoSlice::advance_slices(&mut unsent, sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    unsent.iter().for_each(|piece| waiting.push(piece));
                    pieces.for_each(|piece| waiting.push(piece));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a read from a socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// That many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The other side sends no more, or the connection broke.
    Closed,
}

fn outcome(result: Result<usize, Errno>) -> Received {
    match result {
        Ok(0) => Received::Closed,
        Ok(count) => Received::Bytes(count),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::Closed,
    }
}

/// Reads into memory that the caller brings.
pub fn receive_into(socket: impl AsFd, into: &mut [u8]) -> Received {
    outcome(recv(socket, into, RecvFlags::empty()).map(|(count, _)| count))
}

/// Reads at most what fits behind the vector's end; the caller reserved it.
pub fn receive_behind(socket: impl AsFd, into: &mut Vec<u8>) -> Received {
    assert!(into.len() < into.capacity(), "no room to receive into");
    outcome(recv(socket, spare_capacity(into), RecvFlags::empty()).map(|(count, _)| count))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_full_socket_does_not_take_follows_in_order() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let pieces: Vec<Vec<u8>> = (0..400u32).map(|i| vec![i as u8; 3000]).collect();
        let mut waiting = SendBuf::default();
        let all = || pieces.iter().map(Vec::as_slice);
        send_pieces(&ours, all(), &mut waiting).expect("sends");
        assert!(waiting.pending() > 0, "the socket took more than a megabyte at once");
        send_pieces(&ours, all(), &mut waiting).expect("waits");
        let reader = std::thread::spawn(move || {
            let mut seen = vec![0; 2 * 400 * 3000];
            theirs.read_exact(&mut seen).map(|()| seen)
        });
        ours.set_nonblocking(false).expect("blocking");
        waiting.flush(&ours).expect("sends the rest");
        assert_eq!(waiting.pending(), 0);
        let seen = reader.join().expect("no panic").expect("all arrives");
        let expected: Vec<u8> = pieces.iter().chain(&pieces).flatten().copied().collect();
        assert!(seen == expected);
    }
}
