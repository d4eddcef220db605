//! Raw calls: NFS requests built and read byte by byte, so that the very same bytes can be sent
//! again on another connection.
//! Owns: one connection at a time and the next transaction id.
//! Never: shares code with the server's codec; it is a second opinion on it.
//! Invariant: every read is bounded, in time by the socket's timeout and in size by a constant.
//! Source: RFC 5531 (calls, record marks), RFC 1813 (procedures and arguments).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{E2eError, doing};

const MOUNT: u32 = 100_005;
const NFS: u32 = 100_003;
/// A reply larger than this is none that these calls can get.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// How long one reply may take, a failover included.
pub const REPLY_PATIENCE: Duration = Duration::from_secs(40);
/// Time between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Set in a record mark on the last fragment of a message.
const LAST_FRAGMENT: u32 = 1 << 31;
/// FILE_SYNC: a WRITE is answered when its data are safe.
const STABLE: u32 = 2;
/// Words of an object's attributes.
const ATTRIBUTES_WORDS: usize = 21;
/// Offset of the status in a reply that was accepted, with an empty verifier, after the mark.
const STATUS_AT: usize = 24;

/// An NFS file handle.
pub type Handle = Vec<u8>;

/// XDR: words of four bytes, big-endian; opaque data padded to whole words.
#[derive(Debug, Default)]
struct Xdr(Vec<u8>);

impl Xdr {
    fn word(mut self, word: u32) -> Xdr {
        self.0.extend_from_slice(&word.to_be_bytes());
        self
    }

    fn wide(mut self, wide: u64) -> Xdr {
        self.0.extend_from_slice(&wide.to_be_bytes());
        self
    }

    fn fixed(mut self, bytes: &[u8]) -> Xdr {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn opaque(self, bytes: &[u8]) -> Xdr {
        self.word(bytes.len() as u32).fixed(bytes)
    }

    /// Attributes to set: the mode alone.
    fn mode(self, mode: u32) -> Xdr {
        self.word(1).word(mode).word(0).word(0).word(0).word(0).word(0)
    }
}

/// What a request does; names are in the export's root.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Makes a file that must not be there.
    CreateGuarded(&'a str),
    /// Makes a file once, told apart by the verifier.
    CreateExclusive(&'a str, u64),
    /// Makes a directory.
    MakeDirectory(&'a str),
    /// Makes a second name (the first) for a file (the handle).
    Link(&'a str, &'a [u8]),
    /// Renames.
    Rename(&'a str, &'a str),
    /// Removes a file.
    Remove(&'a str),
    /// Removes a directory.
    RemoveDirectory(&'a str),
    /// Looks a name up.
    LookUp(&'a str),
    /// Makes a symbolic link (the first) that leads to the second.
    SymbolicLink(&'a str, &'a str),
    /// Writes bytes into a file at an offset.
    Write(&'a [u8], u64, &'a [u8]),
    /// Sets a file's length.
    SetLength(&'a [u8], u64),
    /// Asks for the space of the whole file system.
    Space,
}

impl Action<'_> {
    /// The procedure's number and its arguments.
    fn encode(self, root: &[u8]) -> (u32, Xdr) {
        let at = |name: &str| Xdr::default().opaque(root).opaque(name.as_bytes());
        match self {
            Action::LookUp(name) => (3, at(name)),
            Action::SymbolicLink(name, target) => {
                (10, at(name).mode(0o777).opaque(target.as_bytes()))
            }
            Action::Write(file, offset, data) => {
                let at = Xdr::default().opaque(file).wide(offset);
                (7, at.word(data.len() as u32).word(STABLE).opaque(data))
            }
            Action::SetLength(file, length) => {
                // No mode, owner or group; a length; no times; no guard.
                let none = Xdr::default().opaque(file).word(0).word(0).word(0);
                (2, none.word(1).wide(length).word(0).word(0).word(0))
            }
            Action::Space => (18, Xdr::default().opaque(root)),
            Action::CreateGuarded(name) => (8, at(name).word(1).mode(0o644)),
            Action::CreateExclusive(name, verifier) => (8, at(name).word(2).wide(verifier)),
            Action::MakeDirectory(name) => (9, at(name).mode(0o755)),
            Action::Remove(name) => (12, at(name)),
            Action::RemoveDirectory(name) => (13, at(name)),
            Action::Rename(from, to) => (14, at(from).opaque(root).opaque(to.as_bytes())),
            Action::Link(name, file) => {
                (15, Xdr::default().opaque(file).opaque(root).opaque(name.as_bytes()))
            }
        }
    }
}

/// One call as it goes over the wire, record mark included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call(Vec<u8>);

/// One reply without its record mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// The NFS or MOUNT status: 0 is success.
    pub fn status(&self) -> Result<u32, E2eError> {
        let (words, _) = self.0.as_chunks::<4>();
        let word = |at: usize| words.get(at).map(|word| u32::from_be_bytes(*word));
        // A reply (1), accepted (0), with an empty verifier (0, 0), executed (0), then its status.
        match (word(1), word(2), word(3), word(4), word(5), word(STATUS_AT / 4)) {
            (Some(1), Some(0), Some(0), Some(0), Some(0), Some(status)) => Ok(status),
            _ => Err(E2eError::Wrong(format!("not an accepted reply: {:02x?}", self.0))),
        }
    }

    /// Of [`Action::Space`]: bytes in all, and bytes free.
    pub fn space(&self) -> Result<(u64, u64), E2eError> {
        let at = STATUS_AT + 4 * (2 + ATTRIBUTES_WORDS);
        let wide = |at: usize| {
            let bytes = self.0.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_be_bytes)
        };
        let short = || E2eError::Wrong(format!("short reply: {:02x?}", self.0));
        Ok((wide(at).ok_or_else(short)?, wide(at + 8).ok_or_else(short)?))
    }

    /// The opaque that starts `words` words after the status.
    fn opaque(&self, words: usize) -> Result<Vec<u8>, E2eError> {
        let at = STATUS_AT + 4 + 4 * words;
        let length =
            self.0.get(at..at + 4).map(|word| word.iter().fold(0, |n, b| n << 8 | usize::from(*b)));
        let bytes = length.and_then(|length| self.0.get(at + 4..)?.get(..length));
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| E2eError::Wrong(format!("short reply: {:02x?}", self.0)))
    }
}

/// A client that keeps every call so that it can repeat it.
#[derive(Debug)]
pub struct RawClient {
    address: SocketAddr,
    stream: TcpStream,
    next_xid: u32,
    root: Handle,
}

impl RawClient {
    /// Connects and asks for the export's root.
    pub fn connect(address: SocketAddr) -> Result<RawClient, E2eError> {
        let stream = open(address)?;
        let mut client = RawClient { address, stream, next_xid: 0x4861_7270, root: Vec::new() };
        let call = client.call(MOUNT, 1, Xdr::default().opaque(b"/"));
        let reply = client.insist(&call, Instant::now() + REPLY_PATIENCE)?;
        if reply.status()? != 0 {
            return Err(E2eError::Wrong("the export / is refused".into()));
        }
        client.root = reply.opaque(0)?;
        Ok(client)
    }

    /// Closes the connection and opens another one.
    pub fn reconnect(&mut self) -> Result<(), E2eError> {
        self.stream = open(self.address)?;
        Ok(())
    }

    /// A new call with an xid of its own.
    pub fn prepare(&mut self, action: Action<'_>) -> Call {
        let (procedure, arguments) = action.encode(&self.root);
        self.call(NFS, procedure, arguments)
    }

    /// Performs a new call, repeated on a new connection if one is lost.
    pub fn perform(&mut self, action: Action<'_>) -> Result<Reply, E2eError> {
        let call = self.prepare(action);
        self.insist(&call, Instant::now() + REPLY_PATIENCE)
    }

    /// Looks a name up and returns the file's handle.
    pub fn handle_of(&mut self, name: &str) -> Result<Handle, E2eError> {
        let reply = self.perform(Action::LookUp(name))?;
        match reply.status()? {
            0 => reply.opaque(0),
            status => Err(E2eError::Wrong(format!("looking up {name}: status {status}"))),
        }
    }

    /// Sends a call's bytes on one connection after the other until it is answered.
    pub fn insist(&mut self, call: &Call, deadline: Instant) -> Result<Reply, E2eError> {
        loop {
            match self.send(call) {
                Err(E2eError::Io { .. }) if Instant::now() < deadline => {}
                done => return done,
            }
            // At once after a reset, as a kernel does; with pauses while nobody listens.
            while let Err(error) = self.reconnect() {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }

    /// Sends a call's bytes and reads the reply to it.
    pub fn send(&mut self, call: &Call) -> Result<Reply, E2eError> {
        doing("send a call", self.stream.write_all(&call.0))?;
        let mut message = Vec::new();
        loop {
            let mut mark = [0; 4];
            doing("read a reply", self.stream.read_exact(&mut mark))?;
            let mark = u32::from_be_bytes(mark);
            let length = (mark & !LAST_FRAGMENT) as usize;
            let start = message.len();
            if start + length > REPLY_BYTES_MAX {
                return Err(E2eError::Wrong(format!("a reply of {length} bytes")));
            }
            message.resize(start + length, 0);
            doing("read a reply", self.stream.read_exact(&mut message[start..]))?;
            if mark & LAST_FRAGMENT != 0 {
                break;
            }
        }
        if message.get(..4) != call.0.get(4..8) {
            return Err(E2eError::Wrong("a reply to another call".into()));
        }
        Ok(Reply(message))
    }

    fn call(&mut self, program: u32, procedure: u32, arguments: Xdr) -> Call {
        let xid = self.next_xid;
        self.next_xid = xid.wrapping_add(1);
        // AUTH_SYS: stamp, machine name, uid and gid 0, no further groups.
        let credential = Xdr::default().word(0).opaque(b"test").word(0).word(0).word(0);
        let body = Xdr::default()
            .word(xid)
            .word(0)
            .word(2)
            .word(program)
            .word(3)
            .word(procedure)
            .word(1)
            .opaque(&credential.0)
            .word(0)
            .word(0)
            .fixed(&arguments.0);
        Call(Xdr::default().word(LAST_FRAGMENT | body.0.len() as u32).fixed(&body.0).0)
    }
}

fn open(address: SocketAddr) -> Result<TcpStream, E2eError> {
    let stream = doing("connect", TcpStream::connect_timeout(&address, REPLY_PATIENCE))?;
    doing("connect", stream.set_read_timeout(Some(REPLY_PATIENCE)))?;
    doing("connect", stream.set_nodelay(true))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::{Reply, Xdr};

    #[test]
    fn opaque_data_is_counted_and_padded() {
        assert_eq!(Xdr::default().opaque(b"abcde").0, b"\0\0\0\x05abcde\0\0\0");
    }

    #[test]
    fn a_status_is_read_only_from_an_accepted_reply() {
        let reply = |words: &[u32]| Reply(words.iter().flat_map(|w| w.to_be_bytes()).collect());
        assert_eq!(reply(&[7, 1, 0, 0, 0, 0, 17]).status().unwrap(), 17);
        assert!(reply(&[7, 1, 0, 0, 0, 1]).status().is_err());
        assert!(reply(&[7, 1, 0]).status().is_err());
        let handle = reply(&[7, 1, 0, 0, 0, 0, 0, 4, 0x0102_0304]).opaque(0).unwrap();
        assert_eq!(handle, [1, 2, 3, 4]);
        assert!(reply(&[7, 1, 0, 0, 0, 0, 0, 5, 1]).opaque(0).is_err());
    }
}
