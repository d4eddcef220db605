//! What the supervisor and a server tell each other, over a socket pair of sequenced packets.
//! Owns: the messages, their encoding, and the descriptor that goes with a client.
//! Never: blocks; a message is sent whole or not at all.
//! Invariant: one packet is one message of at most [`PACKET_BYTES_MAX`] bytes.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use harp_node::vr::{ServerId, ServerSet, View};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::HarpError;

/// Bytes of one message at most.
pub const PACKET_BYTES_MAX: usize = 8192;
/// Bytes of a text within a message at most.
const TEXT_BYTES_MAX: usize = 1024;

/// From the supervisor to a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// A client connected; its socket goes with the message.
    Client {
        /// The supervisor's number for it.
        handle: u64,
        /// The client's address.
        address: IpAddr,
        /// The client's port.
        port: u16,
    },
}

/// From a server to the supervisor. Views are packed numbers, servers indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are those of the node's notices
pub enum ToSupervisor {
    /// It booted and takes part.
    Started,
    /// It is primary and serves: clients may come.
    Serving { view: u64 },
    /// It no longer is.
    Stopped { view: u64 },
    /// A view formed at this server.
    Formed { view: u64, members: u8, primary: u8 },
    /// It has a client, and is about to read from it.
    Taken { handle: u64 },
    /// It is done with a client.
    Closed { handle: u64 },
    /// No view can form.
    Refusing { why: String },
    /// A line for the operator.
    Remark { text: String },
    /// The battery is low, and its log is written out: it ends, and is not to start again.
    PowerLow,
    /// It must stop.
    Fatal { why: String },
}

impl fmt::Display for ToSupervisor {
    /// As a line of the log of a server that has no supervisor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToSupervisor::Started => write!(f, "takes part"),
            ToSupervisor::Serving { view } => write!(f, "serves clients in view {}", View(*view)),
            ToSupervisor::Stopped { view } => {
                write!(f, "serves clients of view {} no more", View(*view))
            }
            ToSupervisor::Formed { view, members, primary } => {
                let members: Vec<String> =
                    ServerSet(*members).iter().map(|member| member.to_string()).collect();
                let (view, members, primary) =
                    (View(*view), members.join(", "), ServerId(*primary));
                write!(f, "view {view} formed: members {members}, primary {primary}")
            }
            ToSupervisor::Taken { .. } => write!(f, "a client is here"),
            ToSupervisor::Closed { .. } => write!(f, "a client is gone"),
            ToSupervisor::Refusing { why } => write!(f, "forms no view: {why}"),
            ToSupervisor::Remark { text } => write!(f, "{text}"),
            ToSupervisor::PowerLow => write!(f, "ends, since the battery is low"),
            ToSupervisor::Fatal { why } => write!(f, "must stop: {why}"),
        }
    }
}

impl ToSupervisor {
    /// The message with its text cut to what a packet holds.
    pub fn bounded(mut self) -> ToSupervisor {
        if let ToSupervisor::Refusing { why: text }
        | ToSupervisor::Remark { text }
        | ToSupervisor::Fatal { why: text } = &mut self
            && text.len() > TEXT_BYTES_MAX
        {
            let cut = (0..=TEXT_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i));
            text.truncate(cut.expect("0 is a boundary"));
        }
        self
    }
}

/// A new pair: the supervisor's end, which does not block, and the server's.
pub fn pair() -> Result<(OwnedFd, OwnedFd), HarpError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|error| HarpError::io("create a control socket", error))
}

/// Sends one message, with a descriptor if there is one. `AGAIN`: not now.
pub fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    with: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).expect("a message can always be encoded");
    assert!(bytes.len() <= PACKET_BYTES_MAX, "a control message of {} bytes", bytes.len());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = with.map(|fd| [fd]);
    if let Some(fds) = &fds {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "room for one");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What [`receive`] found.
#[derive(Debug)]
pub enum Packet<M> {
    /// A message, and the descriptor that came with it.
    Message(M, Option<OwnedFd>),
    /// A packet that is no message.
    Garbled,
    /// Nothing now.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// Receives one message.
pub fn receive<M: DeserializeOwned>(socket: BorrowedFd<'_>) -> Packet<M> {
    let mut bytes = [0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let count = match recvmsg(socket.as_fd(), &mut slices, &mut ancillary, flags) {
        Ok(message) if message.bytes == 0 => return Packet::Closed,
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Packet::Nothing,
        Err(_) => return Packet::Closed,
    };
    let mut with = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            with = fds.into_iter().next_back();
        }
    }
    match decode(&bytes[..count]) {
        Some(message) => Packet::Message(message, with),
        None => Packet::Garbled,
    }
}

/// The message in a packet, if it is one.
pub fn decode<M: DeserializeOwned>(packet: &[u8]) -> Option<M> {
    serde_json::from_slice(packet).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let (ours, theirs) = pair().expect("a pair");
        let (mut kept, given) = UnixStream::pair().expect("a pair");
        let message = ToServer::Client { handle: 7, address: [127, 0, 0, 1].into(), port: 9 };
        send(ours.as_fd(), &message, Some(given.as_fd())).expect("sends");
        drop(given);
        let Packet::Message(seen, Some(fd)) = receive::<ToServer>(theirs.as_fd()) else {
            panic!("a message with a descriptor");
        };
        assert_eq!(seen, message);
        rustix::io::write(&fd, b"x").expect("the descriptor works");
        drop(fd);
        let mut seen = Vec::new();
        kept.read_to_end(&mut seen).expect("reads");
        assert_eq!(seen, b"x");
        assert!(matches!(receive::<ToServer>(theirs.as_fd()), Packet::Nothing));
        rustix::io::write(&ours, b"nonsense").expect("sends");
        assert!(matches!(receive::<ToServer>(theirs.as_fd()), Packet::Garbled));
        drop(ours);
        assert!(matches!(receive::<ToServer>(theirs.as_fd()), Packet::Closed));
    }

    #[test]
    fn a_long_text_is_cut_to_fit() {
        let (ours, _theirs) = pair().expect("a pair");
        let text = "\u{7f}é".repeat(5000);
        let message = ToSupervisor::Remark { text }.bounded();
        send(ours.as_fd(), &message, None).expect("fits");
    }
}
