//! The handshake of two servers on a fresh connection: each proves that it knows the group's key.
//! Owns: the bytes of hellos and proofs, and what is checked of them.
//! Never: reads or writes a socket; sends the key or anything that lets it be guessed offline
//! without the key's 32 random bytes.
//! Invariant: a peer is named only after its proof, over both sides' nonces, was right.
//!
//! Others than links prove themselves in the same way: a server that relays clients, and an operator's command,
//! which has the key from the configuration file. The hello's magic says which of them it is.
//!
//! The connecting side speaks first: `hello`. The accepting side answers with a status byte and,
//! if that is 0, its own `hello` and its proof; the connecting side answers with its proof.
//! A hello is: magic (4), version (2, big-endian), group (16), from (1), to (1), nonce (32).
//! A proof is HMAC-SHA256 over a label for the side and both hellos, the connecting side's first.

use std::fmt;

use harp_node::vr::ServerId;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Version of the frames that follow the handshake; both sides must speak the same.
pub const PROTOCOL_VERSION: u16 = 3;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// What an operator's command calls itself: no server's number.
pub const OPERATOR: ServerId = ServerId(0xff);

const MAGIC_BYTES: usize = 4;
const HELLO_BYTES: usize = 56;
const PROOF_BYTES: usize = 32;
const ANSWER_BYTES: usize = 1 + HELLO_BYTES + PROOF_BYTES;

/// What a connection between two of the group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The one link of two servers; the lower-numbered connects.
    Link,
    /// One client's connection, relayed to the primary.
    Relay,
    /// An operator's request.
    Operator,
}

impl Purpose {
    const ALL: [Purpose; 3] = [Purpose::Link, Purpose::Relay, Purpose::Operator];

    fn magic(self) -> &'static [u8; MAGIC_BYTES] {
        match self {
            Purpose::Link => b"hrpP",
            Purpose::Relay => b"hrpR",
            Purpose::Operator => b"hrpO",
        }
    }

    /// Whose magic begins so; `None`: nobody's.
    fn of(bytes: &[u8]) -> Option<Purpose> {
        let known = bytes.len().min(MAGIC_BYTES);
        Purpose::ALL.into_iter().find(|purpose| purpose.magic()[..known] == bytes[..known])
    }
}

/// Who a server is and what it must know to take part.
#[derive(Clone)]
pub struct Identity {
    /// The group.
    pub group: [u8; 16],
    /// The group's peer key.
    pub key: [u8; 32],
    /// This server.
    pub me: ServerId,
    /// How many servers the group has.
    pub servers: u8,
    /// The version spoken.
    pub version: u16,
}

/// Why a handshake ended without a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// The other side does not speak this protocol at all.
    NotHarp,
    /// It speaks another version.
    Version {
        /// Its version.
        theirs: u16,
    },
    /// It belongs to another group.
    Group,
    /// It takes itself or us for a server that this is not.
    Name {
        /// Who it says it is.
        from: u8,
        /// Whom it wants.
        to: u8,
    },
    /// It does not know the group's key.
    Key,
    /// It refused us, for the reason of that status byte.
    Refused {
        /// The status byte.
        status: u8,
    },
}

impl HandshakeError {
    /// The status byte that tells the connecting side.
    fn status(self) -> u8 {
        match self {
            HandshakeError::NotHarp => 1,
            HandshakeError::Version { .. } => 2,
            HandshakeError::Group => 3,
            HandshakeError::Name { .. } => 4,
            HandshakeError::Key => 5,
            HandshakeError::Refused { .. } => 6,
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::NotHarp => write!(f, "it does not speak harp's peer protocol"),
            HandshakeError::Version { theirs } => {
                write!(f, "it speaks version {theirs}, not {PROTOCOL_VERSION}")
            }
            HandshakeError::Group => write!(f, "it belongs to another group"),
            HandshakeError::Name { from, to } => {
                write!(f, "it is server number {from} and wants number {to}")
            }
            HandshakeError::Key => write!(f, "it does not know the group's peer key"),
            HandshakeError::Refused { status } => {
                let why = match status {
                    2 => "our version",
                    3 => "our group",
                    4 => "our name",
                    _ => "us",
                };
                write!(f, "it refused {why}")
            }
        }
    }
}

impl std::error::Error for HandshakeError {}

type Hello = [u8; HELLO_BYTES];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Connecting,
    Accepting,
}

/// One side of one handshake.
pub struct Handshake {
    identity: Identity,
    side: Side,
    /// The accepting side learns it from the hello.
    purpose: Purpose,
    nonce: [u8; NONCE_BYTES],
    /// The connecting side: whom it wants. The accepting side: who said it is calling.
    peer: Option<ServerId>,
    hellos: Option<(Hello, Hello)>,
}

/// What a fed handshake wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes from the other side.
    More,
    /// Nothing: the other side is who it says, and all bytes were consumed up to here.
    Done {
        /// The other side.
        peer: ServerId,
        /// What the connecting side wants.
        purpose: Purpose,
    },
}

impl Handshake {
    /// The connecting side's handshake with `to`; its first bytes go to `send`.
    pub fn connect(
        identity: Identity,
        purpose: Purpose,
        to: ServerId,
        nonce: [u8; NONCE_BYTES],
        send: &mut Vec<u8>,
    ) -> Handshake {
        let (side, peer) = (Side::Connecting, Some(to));
        let handshake = Handshake { identity, side, purpose, nonce, peer, hellos: None };
        send.extend_from_slice(&handshake.hello(to));
        handshake
    }

    /// The accepting side's handshake with whoever called.
    pub fn accept(identity: Identity, nonce: [u8; NONCE_BYTES]) -> Handshake {
        let (side, purpose) = (Side::Accepting, Purpose::Link);
        Handshake { identity, side, purpose, nonce, peer: None, hellos: None }
    }

    /// Takes what it can from the front of `bytes` and says how much; answers go to `send`, which is to
    /// be sent even when an error follows.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        send: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        match (self.side, self.hellos) {
            (Side::Connecting, _) => self.on_answer(bytes, send),
            (Side::Accepting, None) => {
                let answer = self.on_hello(bytes, send);
                if let Err(refusal) = answer {
                    send.push(refusal.status());
                }
                answer
            }
            (Side::Accepting, Some(hellos)) => self.on_proof(bytes, hellos),
        }
    }

    fn hello(&self, to: ServerId) -> Hello {
        let mut hello = [0; HELLO_BYTES];
        hello[..MAGIC_BYTES].copy_from_slice(self.purpose.magic());
        hello[4..6].copy_from_slice(&self.identity.version.to_be_bytes());
        hello[6..22].copy_from_slice(&self.identity.group);
        hello[22] = self.identity.me.0;
        hello[23] = to.0;
        hello[24..].copy_from_slice(&self.nonce);
        hello
    }

    /// Checks a hello and returns who sent it, and what for.
    fn check_hello(&self, hello: &Hello) -> Result<(ServerId, Purpose), HandshakeError> {
        let (version, from, to) = (u16::from_be_bytes([hello[4], hello[5]]), hello[22], hello[23]);
        let purpose = Purpose::of(hello).ok_or(HandshakeError::NotHarp)?;
        if version != self.identity.version {
            return Err(HandshakeError::Version { theirs: version });
        }
        if hello[6..22] != self.identity.group {
            return Err(HandshakeError::Group);
        }
        let Identity { me: ServerId(me), servers, .. } = self.identity;
        let expected = match (self.side, purpose) {
            (Side::Connecting, _) => self.peer == Some(ServerId(from)) && self.purpose == purpose,
            // So that two servers never call each other at once.
            (Side::Accepting, Purpose::Link) => from < me,
            (Side::Accepting, Purpose::Relay) => from < servers && from != me,
            (Side::Accepting, Purpose::Operator) => ServerId(from) == OPERATOR,
        };
        if to != me || !expected {
            return Err(HandshakeError::Name { from, to });
        }
        Ok((ServerId(from), purpose))
    }

    fn mac(&self, side: Side, (connecting, accepting): &(Hello, Hello)) -> Hmac<Sha256> {
        let label: &[u8] = match side {
            Side::Connecting => b"harp peer connecting\0",
            Side::Accepting => b"harp peer accepting\0\0",
        };
        let mac = Hmac::<Sha256>::new_from_slice(&self.identity.key);
        mac.expect("any length of key will do")
            .chain_update(label)
            .chain_update(connecting)
            .chain_update(accepting)
    }

    fn on_hello(
        &mut self,
        bytes: &[u8],
        send: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        let Some(theirs) = bytes.first_chunk::<HELLO_BYTES>() else {
            Purpose::of(bytes).ok_or(HandshakeError::NotHarp)?;
            return Ok((0, Progress::More));
        };
        let (peer, purpose) = self.check_hello(theirs)?;
        self.purpose = purpose;
        let hellos = (*theirs, self.hello(peer));
        send.push(0);
        send.extend_from_slice(&hellos.1);
        send.extend_from_slice(&self.mac(Side::Accepting, &hellos).finalize().into_bytes());
        self.peer = Some(peer);
        self.hellos = Some(hellos);
        Ok((HELLO_BYTES, Progress::More))
    }

    fn on_answer(
        &mut self,
        bytes: &[u8],
        send: &mut Vec<u8>,
    ) -> Result<(usize, Progress), HandshakeError> {
        if let Some(status @ 1..) = bytes.first().copied() {
            return Err(HandshakeError::Refused { status });
        }
        let Some(answer) = bytes.first_chunk::<ANSWER_BYTES>() else {
            return Ok((0, Progress::More));
        };
        let (theirs, proof) = answer[1..].split_first_chunk().expect("an answer is long enough");
        let (peer, purpose) = self.check_hello(theirs)?;
        let hellos = (self.hello(peer), *theirs);
        let expected = self.mac(Side::Accepting, &hellos);
        expected.verify_slice(proof).map_err(|_| HandshakeError::Key)?;
        send.extend_from_slice(&self.mac(Side::Connecting, &hellos).finalize().into_bytes());
        Ok((ANSWER_BYTES, Progress::Done { peer, purpose }))
    }

    fn on_proof(
        &mut self,
        bytes: &[u8],
        hellos: (Hello, Hello),
    ) -> Result<(usize, Progress), HandshakeError> {
        let Some(proof) = bytes.first_chunk::<PROOF_BYTES>() else {
            return Ok((0, Progress::More));
        };
        let expected = self.mac(Side::Connecting, &hellos);
        expected.verify_slice(proof).map_err(|_| HandshakeError::Key)?;
        let peer = self.peer.expect("the hello named it");
        Ok((PROOF_BYTES, Progress::Done { peer, purpose: self.purpose }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(me: u8) -> Identity {
        let version = PROTOCOL_VERSION;
        Identity { group: [7; 16], key: [9; 32], me: ServerId(me), servers: 3, version }
    }

    /// Runs a handshake, one byte at a time; returns how each side ended.
    fn run(
        connecting: Identity,
        accepting: Identity,
    ) -> [Option<Result<ServerId, HandshakeError>>; 2] {
        let to = accepting.me;
        let (mut calls, mut answers) = (Vec::new(), Vec::new());
        let mut caller = Handshake::connect(connecting, Purpose::Link, to, [1; 32], &mut calls);
        let mut callee = Handshake::accept(accepting, [2; 32]);
        let mut ends = [None, None];
        for _ in 0..4 {
            drive(&mut callee, &mut calls, &mut answers, &mut ends[1]);
            drive(&mut caller, &mut answers, &mut calls, &mut ends[0]);
        }
        ends
    }

    fn drive(
        side: &mut Handshake,
        from: &mut Vec<u8>,
        to: &mut Vec<u8>,
        end: &mut Option<Result<ServerId, HandshakeError>>,
    ) {
        let arrived = std::mem::take(from);
        let (mut buffer, mut bytes) = (Vec::new(), arrived.iter());
        while end.is_none() {
            let Some(byte) = bytes.next() else { break };
            buffer.push(*byte);
            match side.feed(&buffer, to) {
                Ok((used, progress)) => {
                    buffer.drain(..used);
                    if let Progress::Done { peer, .. } = progress {
                        assert!(buffer.is_empty());
                        *end = Some(Ok(peer));
                    }
                }
                Err(error) => *end = Some(Err(error)),
            }
        }
    }

    #[test]
    fn two_servers_of_one_group_name_each_other() {
        let ends = run(identity(0), identity(2));
        assert_eq!(ends, [Some(Ok(ServerId(2))), Some(Ok(ServerId(0)))]);
    }

    #[test]
    fn the_wrong_key_is_noticed_by_the_side_that_hears_the_first_proof() {
        let ends = run(Identity { key: [8; 32], ..identity(0) }, identity(1));
        assert_eq!(ends, [Some(Err(HandshakeError::Key)), None]);
    }

    #[test]
    fn a_caller_that_ignores_the_wrong_proof_is_refused() {
        let (mut calls, mut answers) = (Vec::new(), Vec::new());
        let wrong = Identity { key: [8; 32], ..identity(0) };
        let (purpose, to) = (Purpose::Link, ServerId(1));
        let mut caller = Handshake::connect(wrong.clone(), purpose, to, [1; 32], &mut calls);
        let mut callee = Handshake::accept(identity(1), [2; 32]);
        let (used, progress) = callee.feed(&calls, &mut answers).expect("a fair hello");
        assert_eq!((used, progress), (HELLO_BYTES, Progress::More));
        caller.feed(&answers, &mut Vec::new()).expect_err("the wrong key");
        let theirs = answers[1..].first_chunk().expect("a hello");
        let hellos = (*calls.first_chunk().expect("a hello"), *theirs);
        let forged = caller.mac(Side::Connecting, &hellos).finalize().into_bytes();
        assert_eq!(callee.feed(&forged, &mut Vec::new()), Err(HandshakeError::Key));
        // The accepting side's own proof, sent back, is no proof of the connecting side.
        let reflected = &answers[1 + HELLO_BYTES..];
        assert_eq!(callee.feed(reflected, &mut Vec::new()), Err(HandshakeError::Key));
    }

    #[test]
    fn each_purpose_has_its_callers() {
        let call = |purpose: Purpose, from: u8| {
            let (mut calls, mut answers) = (Vec::new(), Vec::new());
            let mut caller =
                Handshake::connect(identity(from), purpose, ServerId(1), [1; 32], &mut calls);
            let mut callee = Handshake::accept(identity(1), [2; 32]);
            callee.feed(&calls, &mut answers)?;
            calls.clear();
            caller.feed(&answers, &mut calls)?;
            callee.feed(&calls, &mut answers).map(|(_, progress)| progress)
        };
        let done = |from: u8, purpose| Ok(Progress::Done { peer: ServerId(from), purpose });
        assert_eq!(call(Purpose::Link, 0), done(0, Purpose::Link));
        for from in [0, 2] {
            assert_eq!(call(Purpose::Relay, from), done(from, Purpose::Relay));
        }
        assert_eq!(call(Purpose::Operator, OPERATOR.0), done(OPERATOR.0, Purpose::Operator));
        for (purpose, from) in [
            (Purpose::Link, 2),
            (Purpose::Link, OPERATOR.0),
            (Purpose::Relay, 1),
            (Purpose::Relay, 3),
            (Purpose::Operator, 0),
        ] {
            assert_eq!(
                call(purpose, from),
                Err(HandshakeError::Name { from, to: 1 }),
                "{purpose:?}"
            );
        }
    }

    #[test]
    fn strangers_are_told_why() {
        let refused = |connecting: Identity, accepting: Identity| {
            let [caller, callee] = run(connecting, accepting);
            let Some(Err(HandshakeError::Refused { status })) = caller else {
                panic!("{caller:?}");
            };
            let Some(Err(error)) = callee else { panic!("{callee:?}") };
            assert_eq!(status, error.status());
            error
        };
        let other_group = Identity { group: [0; 16], ..identity(0) };
        assert_eq!(refused(other_group, identity(1)), HandshakeError::Group);
        let other_version = Identity { version: 9, ..identity(0) };
        let version = refused(other_version, identity(1));
        assert_eq!(version, HandshakeError::Version { theirs: 9 });
        // The higher-numbered server never connects.
        let name = refused(identity(2), identity(1));
        assert_eq!(name, HandshakeError::Name { from: 2, to: 1 });
        let mut accepting = Handshake::accept(identity(1), [0; 32]);
        let mut send = Vec::new();
        let error = accepting.feed(b"GET / HTTP/1.1", &mut send).expect_err("no hello");
        assert_eq!((error, send.as_slice()), (HandshakeError::NotHarp, &[1][..]));
    }
}
