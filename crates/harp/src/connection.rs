//! A connection between two servers, before and after its handshake.
//! Owns: the socket, its options, and the bytes that are under way in each direction.
//! Never: knows what the connection is for.
//! Invariant: nothing blocks; it is watched for room to write exactly while bytes wait.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::handshake::{Handshake, NONCE_BYTES, Progress};
use crate::netbuf::{Received, SendBuf, receive_behind};
use crate::poller::{Interest, Poller, Source};

/// A connection.
pub struct Connection {
    /// Does not block.
    pub socket: OwnedFd,
    /// What arrived and was not dealt with.
    pub received: Vec<u8>,
    /// What the socket did not take yet.
    pub waiting: SendBuf,
    /// It is watched for room to write.
    pub watches_write: bool,
}

impl Connection {
    /// With nothing under way.
    pub fn new(socket: OwnedFd, watches_write: bool) -> Connection {
        let (received, waiting) = (Vec::new(), SendBuf::default());
        Connection { socket, received, waiting, watches_write }
    }

    /// Watches for room to write exactly while bytes wait.
    pub fn watch(&mut self, poller: &Poller, source: Source) {
        let write = self.waiting.pending() > 0;
        if write != self.watches_write {
            self.watches_write = write;
            poller.change(&self.socket, source, Interest { read: true, write });
        }
    }

    /// Feeds what arrived to a handshake and sends its answers.
    pub fn shake(&mut self, handshake: &mut Handshake) -> Result<Progress, String> {
        self.received.reserve(4096);
        match receive_behind(&self.socket, &mut self.received) {
            Received::Bytes(_) => {}
            Received::Nothing => return Ok(Progress::More),
            Received::Closed => return Err("it closed the connection".into()),
        }
        loop {
            let fed = handshake.feed(&self.received, self.waiting.tail());
            self.waiting.flush(&self.socket).map_err(|error| error.to_string())?;
            let (used, progress) = fed.map_err(|error| error.to_string())?;
            self.received.drain(..used);
            if used == 0 || progress != Progress::More {
                return Ok(progress);
            }
        }
    }
}

/// Random bytes that are used once.
pub fn nonce() -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    let got = getrandom(&mut nonce, GetRandomFlags::empty());
    assert_eq!(got, Ok(NONCE_BYTES), "the kernel gives 32 random bytes at once");
    nonce
}

/// Asks for what makes a connection quick and its failures visible: sent bytes stay unacknowledged for `stuck_ms` at
/// most, and the kernel keeps about `bytes` in each direction. Refusals do no harm.
pub fn tune(socket: &OwnedFd, stuck_ms: u32, bytes: usize) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_tcp_user_timeout(socket, stuck_ms);
    // Not BBR, should the system prefer it: it spreads a batch over time, and drains the link every ten
    // seconds to measure it.
    let _ = sockopt::set_tcp_congestion(socket, "cubic");
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, Duration::from_secs(1));
    let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1));
    let _ = sockopt::set_tcp_keepcnt(socket, 3);
    let _ = sockopt::set_socket_send_buffer_size(socket, bytes);
    let _ = sockopt::set_socket_recv_buffer_size(socket, bytes);
}

/// Begins to connect; the socket becomes writable when that is done, or failed.
pub fn begin(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
