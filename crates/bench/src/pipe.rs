//! Pipe: the calls of one connection, from being made to being answered.
//! Owns: transaction ids, the encoded bytes of every unanswered call, what is still to be sent.
//! Never: touches a socket except to write to the one it is given; interprets results.
//! Invariant: an unanswered call's bytes, its xid included, never change, so that it can be sent
//! again on a new connection as a real NFS client does.
//! Source: the Linux client's behaviour over TCP.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::time::{Duration, Instant};

use harp_wire::nfs3;
use harp_wire::request::{Credential, Request};
use harp_wire::rpc::{Auth, Refusal, begin_call, finish};
use harp_wire::xdr::XdrError;

/// How many calls go out with one system call at most.
const CALLS_PER_WRITE_MAX: usize = 64;

/// A call's reply, as it is handed to whoever made the call.
#[derive(Debug)]
pub struct Completion<'a> {
    /// What the maker gave to [`Pipe::submit`].
    pub token: u64,
    /// The procedure called.
    pub procedure: u32,
    /// From making the call to reading its reply.
    pub latency: Duration,
    /// Whether it went out more than once.
    pub resent: bool,
    /// The encoded results.
    pub body: Result<&'a [u8], Refusal>,
}

impl<'a> Completion<'a> {
    /// Decodes the results of an NFS procedure.
    pub fn decode(&self) -> Result<nfs3::Decoded<'a>, ReplyError> {
        let body = self.body.map_err(ReplyError::Refused)?;
        nfs3::decode_body(self.procedure, body).map_err(ReplyError::Malformed)
    }

    /// The number of the status of an NFS procedure, without decoding the rest.
    pub fn status_number(&self) -> Result<u32, ReplyError> {
        let body = self.body.map_err(ReplyError::Refused)?;
        let word = body.first_chunk().ok_or(ReplyError::Malformed(XdrError::Truncated))?;
        Ok(u32::from_be_bytes(*word))
    }
}

/// A reply without results that could be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The server refused the call.
    Refused(Refusal),
    /// The results cannot be decoded.
    Malformed(XdrError),
}

impl std::fmt::Display for ReplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplyError::Refused(refusal) => write!(f, "the call was refused: {refusal}"),
            ReplyError::Malformed(error) => write!(f, "malformed results: {error}"),
        }
    }
}

impl std::error::Error for ReplyError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Queued,
    Sent,
}

#[derive(Debug)]
struct Slot {
    state: State,
    call: Vec<u8>,
    token: u64,
    procedure: u32,
    issued: Instant,
    /// When it was queued last: now and then it is queued again.
    queued: Instant,
    /// Counts the calls of this pipe: the order to send them in again.
    order: u64,
    resent: bool,
}

/// What [`Pipe::answered`] gives back of a call.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) token: u64,
    pub(crate) procedure: u32,
    pub(crate) issued: Instant,
    pub(crate) resent: bool,
}

/// The unanswered calls of one connection.
#[derive(Debug)]
pub struct Pipe {
    slots: Vec<Slot>,
    /// The xid of each slot, apart, so that looking one up touches little memory.
    xids: Vec<u32>,
    free: Vec<usize>,
    /// Slots to be sent, in order.
    queue: VecDeque<usize>,
    /// Bytes of the queue's front that are sent already.
    front_sent_bytes: usize,
    next_xid: u32,
    xid_step: u32,
    calls: u64,
    uid: u32,
    gid: u32,
    now: Instant,
}

impl Pipe {
    /// A pipe whose xids start at `first_xid` and go on in steps of `xid_step`, calling as user
    /// `uid` and group `gid`.
    pub fn new(first_xid: u32, xid_step: u32, uid: u32, gid: u32) -> Pipe {
        Pipe {
            slots: Vec::new(),
            xids: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            front_sent_bytes: 0,
            next_xid: first_xid,
            xid_step,
            calls: 0,
            uid,
            gid,
            now: Instant::now(),
        }
    }

    /// When the turn under way began: calls made in it count from here.
    pub fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Number of calls that wait for their reply.
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Makes the NFS call `request`; its [`Completion`] will carry `token`.
    pub fn submit(&mut self, token: u64, request: &Request<'_>) {
        self.submit_as(token, &self.own_credential(), request);
    }

    /// Makes the NFS call `request` as somebody else than this pipe's user.
    pub fn submit_as(&mut self, token: u64, who: &Credential<'_>, request: &Request<'_>) {
        let procedure = nfs3::procedure_of(request);
        self.enqueue(nfs3::PROGRAM, nfs3::VERSION, procedure, who, token, |call| {
            nfs3::encode_args(request, call);
        });
    }

    /// Makes a call of any program; `encode` appends the arguments.
    pub fn submit_raw(
        &mut self,
        program: u32,
        version: u32,
        procedure: u32,
        token: u64,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        self.enqueue(program, version, procedure, &self.own_credential(), token, encode);
    }

    fn own_credential(&self) -> Credential<'static> {
        Credential { uid: self.uid, gid: self.gid, groups_be: &[] }
    }

    fn enqueue(
        &mut self,
        program: u32,
        version: u32,
        procedure: u32,
        who: &Credential<'_>,
        token: u64,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let at = self.free.pop().unwrap_or_else(|| self.add_slot());
        let xid = self.next_xid;
        self.next_xid = xid.wrapping_add(self.xid_step);
        self.xids[at] = xid;
        let auth = Auth::Sys(*who);
        let slot = &mut self.slots[at];
        slot.call.clear();
        let mark = begin_call(xid, program, version, procedure, &auth, &mut slot.call);
        encode(&mut slot.call);
        finish(mark, &mut slot.call);
        (slot.token, slot.procedure) = (token, procedure);
        (slot.issued, slot.queued) = (self.now, self.now);
        (slot.state, slot.order, slot.resent) = (State::Queued, self.calls, false);
        self.calls += 1;
        self.queue.push_back(at);
    }

    fn add_slot(&mut self) -> usize {
        self.xids.push(0);
        self.slots.push(Slot {
            state: State::Free,
            call: Vec::new(),
            token: 0,
            procedure: 0,
            issued: self.now,
            queued: self.now,
            order: 0,
            resent: false,
        });
        self.slots.len() - 1
    }

    /// Whether there is anything to send.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends as much as `stream` takes without waiting.
    pub(crate) fn send(&mut self, mut stream: impl Write) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); CALLS_PER_WRITE_MAX];
            let mut count = 0;
            for (slice, &at) in slices.iter_mut().zip(&self.queue) {
                let skip = if count == 0 { self.front_sent_bytes } else { 0 };
                *slice = IoSlice::new(&self.slots[at].call[skip..]);
                count += 1;
            }
            match stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.count_sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count_sent(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let at = *self.queue.front().expect("no more was sent than was queued");
            let left = self.slots[at].call.len() - self.front_sent_bytes;
            if bytes < left {
                self.front_sent_bytes += bytes;
                return;
            }
            bytes -= left;
            self.slots[at].state = State::Sent;
            self.queue.pop_front();
            self.front_sent_bytes = 0;
        }
    }

    /// Takes the call `xid` out, if it has been sent and not been answered.
    pub(crate) fn answered(&mut self, xid: u32) -> Option<Answered> {
        let at = (0..self.xids.len())
            .find(|&at| self.xids[at] == xid && self.slots[at].state == State::Sent)?;
        let slot = &mut self.slots[at];
        slot.state = State::Free;
        self.free.push(at);
        let Slot { token, procedure, issued, resent, .. } = *slot;
        Some(Answered { token, procedure, issued, resent })
    }

    /// When the call that has waited longest for its reply was queued last.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        let waiting = self.slots.iter().filter(|slot| slot.state != State::Free);
        waiting.map(|slot| slot.queued).min()
    }

    /// Queues every unanswered call once more, in the order they were made, for a new connection.
    /// Returns how many had been sent, at least in part, before.
    pub(crate) fn send_all_again(&mut self, now: Instant) -> usize {
        let mut again = 0;
        let partly_sent = self.queue.front().copied().filter(|_| self.front_sent_bytes > 0);
        self.queue.clear();
        self.front_sent_bytes = 0;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.state == State::Free {
                continue;
            }
            if slot.state == State::Sent || partly_sent == Some(at) {
                slot.resent = true;
                again += 1;
            }
            (slot.state, slot.queued) = (State::Queued, now);
            self.queue.push_back(at);
        }
        self.queue.make_contiguous().sort_unstable_by_key(|&at| self.slots[at].order);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes and then would block.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let len = bytes.len().min(self.room);
            self.taken.extend_from_slice(&bytes[..len]);
            self.room -= len;
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn send(pipe: &mut Pipe, room: usize) -> Vec<u8> {
        let mut narrow = Narrow { taken: Vec::new(), room };
        pipe.send(&mut narrow).unwrap();
        narrow.taken
    }

    #[test]
    fn a_new_connection_gets_every_unanswered_call_with_its_old_bytes() {
        let mut pipe = Pipe::new(100, 4, 0, 0);
        for token in 0..3 {
            pipe.submit(token, &Request::GetAttr { handle: &[token as u8; 8] });
        }
        let call_bytes = pipe.slots[0].call.len();
        let first = send(&mut pipe, call_bytes * 2 + 5);
        assert_eq!(pipe.answered(104).map(|answered| answered.token), Some(1));
        assert!(pipe.answered(104).is_none(), "a reply counts once");
        assert!(pipe.answered(108).is_none(), "a call that is not sent has no reply");
        let later = pipe.now() + Duration::from_secs(9);
        assert!(pipe.waiting_since() < Some(later));
        assert_eq!(pipe.send_all_again(later), 2);
        assert_eq!(pipe.waiting_since(), Some(later));
        let second = send(&mut pipe, usize::MAX);
        assert_eq!(second[..call_bytes], first[..call_bytes]);
        assert_eq!(second[call_bytes..][..5], first[call_bytes * 2..]);
        assert_eq!(second.len(), call_bytes * 2);
        let answered = pipe.answered(100).unwrap();
        assert!(answered.resent && answered.token == 0);
        assert_eq!(pipe.outstanding(), 1);
    }

    #[test]
    fn slots_are_used_again() {
        let mut pipe = Pipe::new(u32::MAX, 1, 0, 0);
        for round in 0..10u32 {
            pipe.submit(round.into(), &Request::Null);
            send(&mut pipe, usize::MAX);
            assert!(pipe.answered(u32::MAX.wrapping_add(round)).is_some());
        }
        assert_eq!(pipe.slots.len(), 1);
    }
}
