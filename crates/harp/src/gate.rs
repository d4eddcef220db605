//! A server's own NFS address, where it is called without a supervisor.
//! Owns: the listening socket.
//! Never: accepts while nobody serves: a client that connects waits in the kernel's queue and is not refused.
//! Invariant: what it accepts does not block.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, connect_unspec, sockopt};

use crate::error::HarpError;
use crate::poller::{Interest, Poller, Source};

/// Clients that may wait in the kernel's queue.
const BACKLOG: i32 = 4096;
/// After which silence the kernel asks a client whether it is still there.
const KEEPALIVE_SECONDS: u64 = 60;
/// Clients accepted in one turn.
const AT_ONCE: usize = 64;

/// Listens for clients at `address`; `key` is where the configuration says it.
pub fn listen(address: SocketAddr, key: &str) -> Result<TcpListener, HarpError> {
    let failed = |error| HarpError::listen("clients", address, key, error);
    let listener = TcpListener::bind(address).map_err(failed)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Accepts one client. `AGAIN`: nobody waits.
pub fn accept(listener: &TcpListener) -> Result<(OwnedFd, SocketAddr), Errno> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let stream = std::net::TcpStream::from(socket);
    // A connection already reset has no peer; nobody misses it.
    let from = stream.peer_addr().map_err(|_| Errno::CONNABORTED)?;
    let socket = OwnedFd::from(stream);
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    let _ = sockopt::set_tcp_keepidle(&socket, Duration::from_secs(KEEPALIVE_SECONDS));
    Ok((socket, from))
}

/// The address.
pub struct Gate {
    listener: TcpListener,
    open: bool,
}

impl Gate {
    /// A gate at a listening socket, shut.
    pub fn new(listener: TcpListener, poller: &Poller) -> Result<Gate, HarpError> {
        poller.add(&listener, Source::ClientListener, Interest::default())?;
        Ok(Gate { listener, open: false })
    }

    /// Opens or shuts it.
    pub fn set(&mut self, open: bool, poller: &Poller) {
        if open != self.open {
            self.open = open;
            let interest = Interest { read: open, write: false };
            poller.change(&self.listener, Source::ClientListener, interest);
        }
    }

    /// Resets all who wait.
    pub fn reset_waiting(&self) {
        for _ in 0..BACKLOG {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                // Already reset by the client: as good.
                Ok(socket) => drop(connect_unspec(&socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    /// Accepts some of those who wait, if it is open.
    pub fn accept(&self, mut take: impl FnMut(OwnedFd, SocketAddr)) {
        if !self.open {
            return;
        }
        for _ in 0..AT_ONCE {
            match accept(&self.listener) {
                Ok((socket, from)) => take(socket, from),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Nobody, or no descriptors: they wait in the kernel's queue.
                Err(_) => return,
            }
        }
    }
}
