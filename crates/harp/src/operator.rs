//! The asking side of `harp status` and `harp verify`: one request to one server.
//! Owns: how a server is reached: by its admin socket on this machine, else by its peer address with the group's
//! key from the configuration.
//! Never: waits longer than it was told for any one step.
//! Invariant: an answer over the network is from a server that proved to know the group's key.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use harp_node::vr::ServerId;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::admin::{Answer, Request, converse};
use crate::config::{Config, Place};
use crate::connection::nonce;
use crate::handshake::{Handshake, Identity, OPERATOR, PROTOCOL_VERSION, Progress, Purpose};

/// Sends one request to a server and waits for its answer, each step at most `timeout`.
pub fn ask(
    config: &Config,
    server: ServerId,
    request: Request,
    timeout: Duration,
) -> std::io::Result<Answer> {
    match &config.place {
        Place::Here { .. } => ask_socket(&config.admin_socket(server), request, timeout),
        Place::Machines(_) => {
            let address = config.peers[server.index()];
            let identity = Identity {
                group: config.id,
                key: config.peer_key,
                me: OPERATOR,
                servers: config.peers.len() as u8,
                version: PROTOCOL_VERSION,
            };
            ask_address(address, identity, server, request, timeout)
        }
    }
}

/// Asks at an admin socket.
pub fn ask_socket(path: &Path, request: Request, timeout: Duration) -> std::io::Result<Answer> {
    // Connecting waits only if the server's backlog is full; a nonblocking attempt fails then.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    converse(stream, request)
}

fn ask_address(
    address: SocketAddr,
    identity: Identity,
    server: ServerId,
    request: Request,
    timeout: Duration,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let mut send = Vec::new();
    let mut handshake = Handshake::connect(identity, Purpose::Operator, server, nonce(), &mut send);
    let mut received = Vec::new();
    loop {
        stream.write_all(&send)?;
        send.clear();
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&bytes[..count]);
        let fed = handshake.feed(&received, &mut send);
        let (used, progress) = fed.map_err(Error::other)?;
        received.drain(..used);
        if let Progress::Done { .. } = progress {
            stream.write_all(&send)?;
            return converse(stream, request);
        }
    }
}
