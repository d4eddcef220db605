//! Replies that were sent and that their client's system has not acknowledged.
//! Owns: where each such reply ends in the connection's stream of bytes.
//! Never: waits; it looks when it is asked.
//! Invariant: a reply counts until all of it was acknowledged, so that none of those that a client may still ask
//! for again leaves the client table.
//! Source: ARCHITECTURE.md, "The client table".

use std::collections::VecDeque;
use std::ffi::c_int;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ`: bytes written to a socket that the other side has not acknowledged.
const SIOCOUTQ: Opcode = 0x5411;

/// The replies of one connection that are under way.
#[derive(Debug, Default)]
pub struct Untaken {
    sent: u64,
    ends: VecDeque<u64>,
}

impl Untaken {
    /// A reply of `bytes` bytes was handed to the connection.
    pub fn push(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.ends.push_back(self.sent);
    }

    /// How many replies count.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// All but the last `left` bytes were acknowledged.
    pub fn all_but(&mut self, left: usize) {
        let taken = self.sent.saturating_sub(left as u64);
        let gone = self.ends.partition_point(|end| *end <= taken);
        self.ends.drain(..gone);
    }
}

/// Bytes in the socket that the other side has not acknowledged.
pub fn unacknowledged(socket: impl AsFd) -> usize {
    // SAFETY: SIOCOUTQ writes one int through the pointer that it is given, and that is what a getter of a
    // `c_int` brings.
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) };
    // No socket that counts: then nothing waits in it.
    bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn replies_count_until_their_last_byte_is_taken() {
        let mut untaken = Untaken::default();
        (0..4).for_each(|_| untaken.push(100));
        untaken.all_but(250);
        assert_eq!(untaken.count(), 3, "of the second reply half is there");
        untaken.all_but(0);
        assert_eq!(untaken.count(), 0);
    }

    #[test]
    fn what_a_client_does_not_read_is_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let mut client =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (mut server, _) = listener.accept().expect("accepts");
        server.set_nonblocking(true).expect("sets");
        let mut written = 0;
        while let Ok(bytes) = server.write(&[7; 65536]) {
            written += bytes;
        }
        assert!(unacknowledged(&server) > 0, "{written} bytes fill both buffers");
        let mut read = vec![0; written];
        client.read_exact(&mut read).expect("reads");
        while unacknowledged(&server) > 0 {
            std::thread::yield_now(); // the last acknowledgement is on its way
        }
    }
}
