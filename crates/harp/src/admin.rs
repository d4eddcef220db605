//! Operators of one server: one line of JSON asks, one line answers. They come by its admin socket, or by its peer
//! address with the group's key (see `operator`).
//! Owns: the requests and answers, the serving side within the loop.
//! Never: changes anything but by asking the node for a barrier or an override, or telling it of the power supply.
//! Invariant: at most [`ADMINS_MAX`] operators at once, each with one request of at most
//! [`LINE_BYTES_MAX`] bytes under way.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use harp_node::NodeStatus;
use harp_node::vr::{Override, View};
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use crate::config::to_hex;
use crate::error::HarpError;
use crate::netbuf::{Received, SendBuf, receive_into};
use crate::overriding::{Answered, Wanted};
use crate::poller::{Interest, Poller, Ready, Source};

/// Operators at once.
pub const ADMINS_MAX: usize = 16;
/// Bytes of a request.
pub const LINE_BYTES_MAX: usize = 4096;
/// Bytes of an answer that the asking side accepts.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What an operator asks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How it is.
    Status,
    /// To log a barrier at which all copies checkpoint and digest; only the primary can.
    Verify,
    /// This copy's digest at that op.
    Digest(u64),
    /// What the machine runs on from now on. Told that power is low, a server whose log is in memory answers when it
    /// is written out, and ends.
    Power(PowerState),
    /// What an override would do, or to do it.
    Override(Wanted),
}

/// What an operator, or a program that watches the power supply, says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// The mains are there.
    Mains,
    /// They are not; the battery lasts for a while.
    OnBattery,
    /// The battery is about to be empty.
    Low,
}

impl PowerState {
    /// The state of that name.
    pub fn named(name: &str) -> Option<PowerState> {
        match name {
            "mains" => Some(PowerState::Mains),
            "on-battery" => Some(PowerState::OnBattery),
            "low" => Some(PowerState::Low),
            _ => None,
        }
    }
}

/// The answer to [`Request::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub struct ServerStatus {
    pub pid: u32,
    pub role: String,
    pub state: String,
    pub promised: String,
    pub formed: String,
    /// The formed view as a number, which orders it among others; 0: none.
    pub formed_number: u64,
    /// Members of the formed view, one bit each.
    pub members: u8,
    /// Primary of the formed view, by index.
    pub primary: Option<u8>,
    pub fp: u64,
    pub cp: u64,
    pub ap: u64,
    pub lb: u64,
    pub glb: u64,
    pub lease_left_ms: u64,
    pub serving: bool,
    pub log_bytes: u64,
    /// Bytes of the log that count and are in memory alone.
    #[serde(default)]
    pub unwritten_bytes: u64,
    pub durability: String,
    /// Damaged blocks being fetched from another copy; those that none has; those mended since the start.
    pub damaged: u64,
    pub lost: u64,
    pub mended: u64,
    /// The last one mended, in words.
    pub last_mended: Option<String>,
    pub log_begin: u64,
    pub log_end: u64,
    /// Whether the log may be voted.
    pub votes: bool,
    /// Whether a copy's image is whole.
    pub whole: bool,
    /// The newest operator override.
    pub overridden: Option<Overridden>,
}

/// The record that an operator's override left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overridden {
    /// The epoch that it began.
    pub epoch: u8,
    /// The epoch's first view.
    pub view: String,
    /// When, in seconds since 1970.
    pub at_seconds: u64,
    /// The servers that were named absent.
    pub absent: Vec<String>,
    /// The history before it went on up to this op.
    pub cut: u64,
    /// The view whose log went on; null: files alone.
    pub adopted: Option<String>,
    /// Who asked for it.
    pub by: String,
}

impl Overridden {
    fn new(record: &Override) -> Option<Overridden> {
        let name = |view: View| (view != View::NONE).then(|| view.to_string());
        Some(Overridden {
            epoch: record.view.epoch(),
            view: name(record.view)?,
            at_seconds: record.at_seconds,
            absent: record.absent.iter().map(|server| server.to_string()).collect(),
            cut: record.cut.0,
            adopted: name(record.adopted),
            by: record.operator(),
        })
    }
}

impl ServerStatus {
    /// What a node says of itself, with what its process adds.
    pub fn new(status: &NodeStatus, durability: &str) -> ServerStatus {
        ServerStatus {
            pid: std::process::id(),
            role: status.role.to_string(),
            state: status.state.clone(),
            promised: status.promised.to_string(),
            formed: status.formed.to_string(),
            formed_number: status.formed.0,
            members: status.members.0,
            primary: status.primary.map(|server| server.0),
            fp: status.fp,
            cp: status.cp,
            ap: status.ap,
            lb: status.lb,
            glb: status.glb,
            lease_left_ms: status.lease_left / crate::clock::NANOS_PER_MS,
            serving: status.serving,
            log_bytes: status.log_bytes,
            unwritten_bytes: status.unwritten_bytes,
            log_begin: status.log_begin,
            log_end: status.log_end,
            votes: status.votes,
            whole: status.whole,
            overridden: Overridden::new(&status.overridden),
            durability: durability.to_string(),
            damaged: status.repair.damaged,
            lost: status.repair.lost,
            mended: status.repair.mended,
            last_mended: status.repair.last_mended.clone(),
        }
    }
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To `status`.
    Status(Box<ServerStatus>),
    /// To `verify`: the barrier's op, or null if this server is not the primary.
    Barrier(Option<u64>),
    /// To `digest`: not there yet, or no longer.
    Pending,
    /// To `digest`: hexadecimal digits, or what is damaged.
    Digest(Result<String, String>),
    /// To `power`: so it is.
    Done,
    /// To `override`.
    Override(Answered),
    /// The request made no sense.
    Error(String),
}

/// The answer to [`Request::Digest`] that a node's status holds.
pub fn digest_answer(op: u64, status: &NodeStatus) -> Answer {
    match &status.digest {
        Some((at, result)) if *at == op => {
            Answer::Digest(result.as_ref().map(|d| to_hex(d)).map_err(Clone::clone))
        }
        _ => Answer::Pending,
    }
}

/// What stands at the front of what an operator sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole request.
    Request(Request),
    /// A line that is none, and why.
    Nonsense(String),
    /// Not a whole line yet.
    Unfinished,
    /// More than any line may have.
    TooLong,
}

/// Takes the line at the front off `received`.
pub fn take_request(received: &mut Vec<u8>) -> Line {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
        return if received.len() > LINE_BYTES_MAX { Line::TooLong } else { Line::Unfinished };
    };
    let request = serde_json::from_slice(&received[..end]);
    received.drain(..=end);
    request.map_or_else(|error: serde_json::Error| Line::Nonsense(error.to_string()), Line::Request)
}

/// Reads a server's answer, a line.
pub fn decode_answer(line: &[u8]) -> serde_json::Result<Answer> {
    serde_json::from_slice(line)
}

struct Admin {
    socket: OwnedFd,
    line: Vec<u8>,
    send: SendBuf,
    /// The barrier or override that its answer waits for.
    token: Option<u64>,
}

/// The serving side: the listening socket and its connections.
pub struct Admins {
    listener: UnixListener,
    slots: Vec<Option<Admin>>,
    tokens: u64,
}

/// A request that arrived, and whom to answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The connection's slot.
    pub slot: usize,
    /// The request.
    pub request: Request,
}

impl Admins {
    /// Listens at `path`, taking the place of a socket that an earlier process left.
    pub fn listen(path: &Path, poller: &Poller) -> Result<Admins, HarpError> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| HarpError::file("listen at", path, error))?;
        poller.add(&listener, Source::AdminListener, Interest::READ)?;
        let slots = (0..ADMINS_MAX).map(|_| None).collect();
        Ok(Admins { listener, slots, tokens: 0 })
    }

    /// Takes operators in; those beyond [`ADMINS_MAX`] are turned away.
    pub fn on_listener(&mut self, poller: &Poller) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            let Some(free) = self.slots.iter().position(Option::is_none) else { continue };
            if poller.add(&socket, Source::Admin(free as u64), Interest::READ).is_ok() {
                let (line, send) = (Vec::new(), SendBuf::default());
                self.slots[free] = Some(Admin { socket, line, send, token: None });
            }
        }
    }

    /// Takes in an operator who proved himself, and what arrived from him already.
    pub fn take_in(
        &mut self,
        socket: OwnedFd,
        received: Vec<u8>,
        poller: &Poller,
    ) -> Option<Asked> {
        let free = self.slots.iter().position(Option::is_none)?;
        poller.add(&socket, Source::Admin(free as u64), Interest::READ).ok()?;
        let send = SendBuf::default();
        self.slots[free] = Some(Admin { socket, line: received, send, token: None });
        self.take_line(free, poller)
    }

    /// Deals with an event of [`Source::Admin`]; returns the request if one is whole.
    pub fn on_ready(&mut self, ready: Ready, slot: usize, poller: &Poller) -> Option<Asked> {
        let admin = self.slots[slot].as_mut()?;
        if ready.write {
            self.push(slot, &[], poller);
            return None;
        }
        let mut bytes = [0; LINE_BYTES_MAX];
        let count = match receive_into(&admin.socket, &mut bytes) {
            Received::Bytes(count) => count,
            Received::Nothing => return None,
            Received::Closed => {
                self.slots[slot] = None;
                return None;
            }
        };
        admin.line.extend_from_slice(&bytes[..count]);
        self.take_line(slot, poller)
    }

    /// The request that a connection's first whole line is.
    fn take_line(&mut self, slot: usize, poller: &Poller) -> Option<Asked> {
        let admin = self.slots[slot].as_mut()?;
        match take_request(&mut admin.line) {
            Line::Request(request) => Some(Asked { slot, request }),
            Line::Unfinished => None,
            Line::TooLong => {
                self.slots[slot] = None;
                None
            }
            Line::Nonsense(why) => {
                self.answer(slot, &Answer::Error(why), poller);
                None
            }
        }
    }

    /// Remembers that a connection waits for a barrier or an override; returns its token.
    pub fn await_token(&mut self, slot: usize) -> u64 {
        self.tokens += 1;
        if let Some(admin) = &mut self.slots[slot] {
            admin.token = Some(self.tokens);
        }
        self.tokens
    }

    /// Answers whoever waits for that barrier.
    pub fn on_barrier(&mut self, token: u64, op: Option<u64>, poller: &Poller) {
        let waits = |admin: &Option<Admin>| admin.as_ref().is_some_and(|a| a.token == Some(token));
        if let Some(slot) = self.slots.iter().position(waits) {
            self.answer(slot, &Answer::Barrier(op), poller);
        }
    }

    /// Answers whoever gave that order.
    pub fn on_overridden(&mut self, token: u64, answer: Answered, poller: &Poller) {
        let waits = |admin: &Option<Admin>| admin.as_ref().is_some_and(|a| a.token == Some(token));
        if let Some(slot) = self.slots.iter().position(waits) {
            self.answer(slot, &Answer::Override(answer), poller);
        }
    }

    /// Answers one connection.
    pub fn answer(&mut self, slot: usize, answer: &Answer, poller: &Poller) {
        let mut line = serde_json::to_vec(answer).expect("an answer can always be encoded");
        line.push(b'\n');
        self.push(slot, &line, poller);
    }

    fn push(&mut self, slot: usize, bytes: &[u8], poller: &Poller) {
        let Some(admin) = &mut self.slots[slot] else { return };
        admin.send.push(bytes);
        if admin.send.flush(&admin.socket).is_err() {
            self.slots[slot] = None;
            return;
        }
        let waits = admin.send.pending() > 0;
        // No further request before the answer is taken.
        let interest = if waits { Interest::WRITE } else { Interest::READ };
        poller.change(&admin.socket, Source::Admin(slot as u64), interest);
    }
}

/// The asking side, on a connection: sends one request and reads its answer.
pub fn converse(mut stream: impl Read + Write, request: Request) -> std::io::Result<Answer> {
    let mut line = serde_json::to_vec(&request).expect("a request can always be encoded");
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut answer)?;
    decode_answer(&answer).map_err(std::io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::clock::steady;
    use crate::operator::ask_socket;
    use crate::testdir::TestDir;

    #[test]
    fn requests_are_short_words() {
        let text = |request| serde_json::to_string(&request).expect("encodes");
        assert_eq!(text(Request::Status), "\"status\"");
        assert_eq!(text(Request::Digest(7)), "{\"digest\":7}");
    }

    #[test]
    fn an_operator_is_answered_and_nonsense_is_refused() {
        let dir = TestDir::new("admin");
        let path = dir.path().join("admin.sock");
        let mut poller = Poller::new().expect("a poller");
        let mut admins = Admins::listen(&path, &poller).expect("listens");
        drop(admins);
        admins = Admins::listen(&path, &poller).expect("takes the old socket's place");
        let asking = std::thread::spawn(move || {
            let patience = Duration::from_secs(20);
            let barrier = ask_socket(&path, Request::Verify, patience).expect("an answer");
            let mut stream = UnixStream::connect(&path).expect("connects");
            stream.write_all(b"nonsense\n").expect("writes");
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).expect("an answer");
            (barrier, line)
        });
        while !asking.is_finished() {
            let soon = steady().plus(20 * crate::clock::NANOS_PER_MS);
            for index in 0..poller.wait(steady(), Some(soon)).expect("waits") {
                let ready = poller.event(index);
                match ready.source {
                    Source::AdminListener => admins.on_listener(&poller),
                    Source::Admin(slot) => {
                        if let Some(asked) = admins.on_ready(ready, slot as usize, &poller) {
                            assert_eq!(asked.request, Request::Verify);
                            let token = admins.await_token(asked.slot);
                            admins.on_barrier(token + 1, Some(1), &poller);
                            admins.on_barrier(token, Some(42), &poller);
                        }
                    }
                    other => panic!("nothing else is watched: {other:?}"),
                }
            }
        }
        let (barrier, line) = asking.join().expect("no panic");
        assert_eq!(barrier, Answer::Barrier(Some(42)));
        assert!(line.starts_with("{\"error\""), "{line}");
    }
}
