//! Serving clients: from a call to its reply.
//! Owns: connections, calls that wait for the store, a look-up or room, replies that wait for CP or the lease.
//! Never: answers unless this server is primary of a view that all formed; answers above CP.
//! Invariant: one request is planned at most once, however often it is repeated.
//! Source: ARCHITECTURE.md; RFC 1813.

use std::net::IpAddr;

use harp_fs::effect::effects_len_max;
use harp_fs::inode::{BLOCK_BYTES, ROOT};
use harp_fs::need::Fetched;
use harp_fs::plan::{self, Context, Planned};
use harp_fs::request::{Request, Time};
use harp_log::Room;
use harp_vr::{Op, Planted};
use harp_wire::incoming::{self, Body};
use harp_wire::rpc::{self, AuthStat, Call, CallError, GROUPS_MAX, Refusal};
use harp_wire::xdr::SliceSink;
use harp_wire::{mount, nfs3, portmap};

use crate::api::{ConnId, Notice, Now, Output, Reply};
use crate::node::{FILTER_FETCH, Node};
use crate::record::{RequestKey, STAMP_BYTES, Stamp, kind};
use crate::space::Answer;
use crate::users::LookedUp;

/// Calls of one connection that are being worked on at most, before it is no longer read. Together with the
/// replies that wait in its socket (`harp::clients`) they are no more than the client table keeps.
const CALLS_PER_CONN: u32 = 128;
/// Bytes of a connection's calls and replies that wait here at most, before it is no longer read.
const KEPT_BYTES_PER_CONN: usize = 4 << 20;
/// The same for all connections together.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// The longest encoded result of a modifying procedure.
const REPLY_BYTES_MAX: usize = 1_024;

/// A client connection.
#[derive(Debug)]
pub(crate) struct Conn {
    address: [u8; 16],
    port: u16,
    /// The export lets it in.
    allowed: bool,
    /// Its name in the client table, once it has a record.
    table: u64,
    /// Calls not answered yet.
    open: u32,
    /// Bytes of its calls and replies that wait.
    kept: usize,
    on_hold: bool,
}

/// A modification in the log, to be answered when CP covers it.
#[derive(Debug)]
pub(crate) struct Awaiting {
    op: u64,
    conn: ConnId,
    xid: u32,
}

/// A finished reply without a record of its own: a read, a failure, a repeat.
#[derive(Debug)]
pub(crate) struct Held {
    /// Leaves when CP covers this op and the lease is live.
    shows: u64,
    conn: ConnId,
    bytes: Vec<u8>,
}

/// A call to be planned again: it lacked objects, its user's groups, room, or a shadow at FP.
#[derive(Debug)]
pub(crate) struct Waiting {
    conn: ConnId,
    call: Vec<u8>,
    lacks: Lack,
}

/// What a call waits for before it is planned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// What a later turn may bring: room, or a shadow at FP.
    Turn,
    /// The objects of this fetch.
    Fetch(u64),
    /// The groups of this user.
    Groups(u32),
    /// A damaged block that is to come from another copy.
    Mending,
}

/// What became of a call.
enum Served {
    /// It was answered, or its answer waits for CP or the lease.
    Done,
    /// It must be planned again, when what it lacks is there.
    Again(Lack),
}

/// The root directory is made at format and never again.
pub(crate) const ROOT_GENERATION: u32 = 1;

/// Nanoseconds since 1970 as a file's time.
fn time_of(nanos: u64) -> Time {
    Time { seconds: (nanos / 1_000_000_000) as u32, nanos: (nanos % 1_000_000_000) as u32 }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Node {
    pub(crate) fn on_conn_opened(&mut self, conn: ConnId, address: IpAddr, port: u16) {
        let allowed = self.settings.export.allows(address);
        let address = mapped(address);
        let state = Conn { address, port, allowed, table: 0, open: 0, kept: 0, on_hold: false };
        self.conns.insert(conn, state);
    }

    pub(crate) fn on_call(&mut self, now: Now, conn: ConnId, call: &[u8], out: &mut Output) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.open += 1;
        if state.open >= CALLS_PER_CONN && !state.on_hold {
            state.on_hold = true;
            out.hold.push((conn, true));
        }
        if let Served::Again(lacks) = self.serve(now, conn, call, out) {
            self.keep(conn, call.len(), out);
            self.waiting.push(Waiting { conn, call: call.to_vec(), lacks });
        }
    }

    /// What waited for a connection that is gone goes too.
    pub(crate) fn on_conn_closed(&mut self, conn: ConnId) {
        let Some(state) = self.conns.remove(&conn) else { return };
        if state.kept > 0 {
            self.kept_bytes -= state.kept;
            self.held.retain(|held| held.conn != conn);
            self.waiting.retain(|waiting| waiting.conn != conn);
        }
    }

    /// `bytes` of a call or a reply wait from now on. A connection that has too many is not read.
    fn keep(&mut self, conn: ConnId, bytes: usize, out: &mut Output) {
        let state = self.conns.get_mut(&conn).expect("only open connections wait");
        state.kept += bytes;
        self.kept_bytes += bytes;
        let many = state.kept >= KEPT_BYTES_PER_CONN || self.kept_bytes >= KEPT_BYTES_MAX;
        if many && !state.on_hold {
            state.on_hold = true;
            out.hold.push((conn, true));
        }
    }

    fn unkeep(&mut self, conn: ConnId, bytes: usize) {
        let state = self.conns.get_mut(&conn).expect("only open connections wait");
        state.kept -= bytes;
        self.kept_bytes -= bytes;
    }

    fn hold_reply(&mut self, held: Held, out: &mut Output) {
        self.keep(held.conn, held.bytes.len(), out);
        self.held.push(held);
    }

    /// Plans again what waited, when what it waited for is there.
    pub(crate) fn answer_waiting(&mut self, now: Now, out: &mut Output) {
        if self.waiting.is_empty() || !self.may_plan() {
            return;
        }
        let mut again = Vec::new();
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.lacks != Lack::Turn {
                again.push(waiting);
                continue;
            }
            self.unkeep(waiting.conn, waiting.call.len());
            if let Served::Again(lacks) = self.serve(now, waiting.conn, &waiting.call, out) {
                self.keep(waiting.conn, waiting.call.len(), out);
                waiting.lacks = lacks;
                again.push(waiting);
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
    }

    pub(crate) fn on_fetched(&mut self, id: u64, fetched: Vec<Fetched>) {
        let Some(copy) = &mut self.copy else { return };
        if id == FILTER_FETCH {
            copy.filling = false;
        }
        // What is not in an image that is being loaded is not absent.
        if copy.load.is_none() {
            fetched.into_iter().for_each(|f| copy.shadow.fetched(f));
        }
        self.wake(|lacks| lacks == Lack::Fetch(id));
    }

    /// Calls that lack this are planned again.
    fn wake(&mut self, is_there: impl Fn(Lack) -> bool) {
        let woken = self.waiting.iter_mut().filter(|waiting| is_there(waiting.lacks));
        woken.for_each(|waiting| waiting.lacks = Lack::Turn);
    }

    /// Damaged blocks were mended, or are lost: calls that need one are planned again.
    pub(crate) fn wake_mended(&mut self) {
        self.wake(|lacks| lacks == Lack::Mending);
    }

    pub(crate) fn on_groups(&mut self, now: Now, uid: u32, answer: LookedUp, out: &mut Output) {
        let told = self.users.on_looked_up(now.steady, uid, answer, &self.settings.export);
        out.notices.extend(told.map(|text| Notice::Remark { text }));
        self.wake(|lacks| lacks == Lack::Groups(uid));
    }

    /// What waited long enough for a look-up goes on without it.
    pub(crate) fn expire_look_ups(&mut self, now: Now, out: &mut Output) {
        let (late, told) = self.users.expire(now.steady);
        if !late {
            return;
        }
        out.notices.extend(told.map(|text| Notice::Remark { text }));
        for waiting in &mut self.waiting {
            if let Lack::Groups(uid) = waiting.lacks
                && !self.users.is_awaited(uid)
            {
                waiting.lacks = Lack::Turn;
            }
        }
    }

    /// No longer primary: nobody is answered any more. Their connections are reset by the world.
    pub(crate) fn forget_clients(&mut self) {
        self.awaiting.clear();
        self.held.clear();
        self.waiting.clear();
        self.needs.clear();
        self.conns.clear();
        self.kept_bytes = 0;
    }

    fn serve(&mut self, now: Now, conn: ConnId, bytes: &[u8], out: &mut Output) -> Served {
        let (call, body) = match incoming::decode(bytes) {
            Ok(decoded) => decoded,
            Err(CallError::NotACall) => {
                out.close.push(conn);
                return Served::Done;
            }
            Err(CallError::Refused { xid, refusal }) => {
                self.refuse(conn, xid, refusal, out);
                return Served::Done;
            }
        };
        match body {
            Body::Nfs(Request::Null) => self.answer_plain(conn, call.xid, out, |_| {}),
            Body::Nfs(_) if !self.is_allowed(conn) => {
                self.refuse(conn, call.xid, Refusal::Auth(AuthStat::TooWeak), out);
            }
            Body::Nfs(request) => return self.serve_nfs(now, conn, bytes, &call, &request, out),
            Body::Mount(request) => self.serve_mount(conn, call.xid, &request, out),
            Body::Portmap(request) => {
                let port = self.settings.nfs_port;
                self.answer_plain(conn, call.xid, out, |b| {
                    portmap::encode_answer(&request, port, b)
                });
            }
        }
        Served::Done
    }

    /// Whether the export lets this connection's client in.
    fn is_allowed(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|state| state.allowed)
    }

    fn refuse(&mut self, conn: ConnId, xid: u32, refusal: Refusal, out: &mut Output) {
        let from = out.bytes.len();
        rpc::encode_refusal(xid, refusal, &mut out.bytes);
        self.push_reply(conn, from, out);
    }

    /// Answers at once with what needs no state.
    fn answer_plain(
        &mut self,
        conn: ConnId,
        xid: u32,
        out: &mut Output,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        let from = out.bytes.len();
        let mark = rpc::begin_reply(xid, &mut out.bytes);
        body(&mut out.bytes);
        rpc::finish(mark, &mut out.bytes);
        self.push_reply(conn, from, out);
    }

    fn serve_mount(
        &mut self,
        conn: ConnId,
        xid: u32,
        request: &mount::Request<'_>,
        out: &mut Output,
    ) {
        let root = self.volume.handles.make(ROOT, ROOT_GENERATION);
        let flavors = [mount::FLAVOR_SYS, mount::FLAVOR_NONE];
        let path: &[u8] = b"/";
        let networks: Vec<String> =
            self.settings.export.allow.iter().map(ToString::to_string).collect();
        let groups: Vec<&[u8]> = networks.iter().map(String::as_bytes).collect();
        let exports = [mount::Export { path, groups: &groups }];
        let reply = match request {
            mount::Request::Mnt { .. } if !self.is_allowed(conn) => {
                mount::Reply::Failed(mount::Status::Access)
            }
            mount::Request::Mnt { path: b"/" | b"" } => {
                mount::Reply::Mounted { handle: root, flavors: &flavors }
            }
            mount::Request::Mnt { .. } => mount::Reply::Failed(mount::Status::NoEnt),
            mount::Request::Export => mount::Reply::Exports(&exports),
            mount::Request::Dump => mount::Reply::Mounts(&[]),
            _ => mount::Reply::Void,
        };
        self.answer_plain(conn, xid, out, |b| mount::encode_body(&reply, b));
    }

    fn serve_nfs(
        &mut self,
        now: Now,
        conn: ConnId,
        bytes: &[u8],
        call: &Call<'_>,
        request: &Request<'_>,
        out: &mut Output,
    ) -> Served {
        if !self.may_plan() {
            return Served::Again(Lack::Turn);
        }
        let Some(state) = self.conns.get(&conn) else { return Served::Done };
        let modifying = nfs3::is_modifying(call.procedure);
        let checksum = if modifying { crc32c::crc32c(bytes) } else { 0 };
        let key = RequestKey {
            address: state.address,
            xid: call.xid,
            procedure: call.procedure as u16,
            checksum: (bytes.len() as u64) << 32 | checksum as u64,
        };
        if modifying && self.repeat(conn, &key, out) {
            return Served::Done;
        }
        self.plan(now, conn, key, call, request, out)
    }

    /// A request seen before: its stored reply, or a place among those that wait for its record.
    fn repeat(&mut self, conn: ConnId, key: &RequestKey, out: &mut Output) -> bool {
        if self.settings.planted == Some(Planted::NoClientTable) {
            return false;
        }
        let copy = self.copy.as_ref().expect("a primary is a copy");
        let Some((op, reply)) = copy.clients.find(key) else { return false };
        if op > self.replica.cp().0 {
            // The reply goes to the newest connection only.
            let at = self.awaiting.partition_point(|a| a.op < op);
            let waits = Awaiting { op, conn, xid: key.xid };
            match self.awaiting.get_mut(at) {
                Some(found) if found.op == op => *found = waits,
                _ => self.awaiting.insert(at, waits),
            }
        } else {
            let mut bytes = rpc::reply_header(key.xid, reply.len()).to_vec();
            bytes.extend_from_slice(reply);
            self.hold_reply(Held { shows: op, conn, bytes }, out);
        }
        true
    }

    fn plan(
        &mut self,
        now: Now,
        conn: ConnId,
        key: RequestKey,
        call: &Call<'_>,
        request: &Request<'_>,
        out: &mut Output,
    ) -> Served {
        let user = self.settings.export.looks_up(&call.auth);
        if let Some(uid) = user
            && !self.users.is_ready(now.steady, uid, &mut out.users)
        {
            return Served::Again(Lack::Groups(uid));
        }
        let modifying = nfs3::is_modifying(call.procedure);
        let effects_max = if modifying { effects_len_max(request) } else { 0 };
        let body_max = STAMP_BYTES + effects_max + REPLY_BYTES_MAX;
        if modifying && (self.log.room(2 * body_max as u64) != Room::Ok || self.is_far_behind()) {
            return Served::Again(Lack::Turn); // checkpoints make room, and writes
        }
        let touched = match request {
            // At both ends it may touch a block more.
            Request::Write { count, .. } => u64::from(*count) / BLOCK_BYTES as u64 + 2,
            _ => 0,
        };
        let asks = modifying || matches!(request, Request::FsStat { .. });
        let room = if asks { self.room_for(touched) } else { Answer::Known(plan::Room::ENDLESS) };
        let Answer::Known(room) = room else {
            return Served::Again(Lack::Turn); // checkpoints and growth make room
        };
        let time = self.next_time(now);
        let view = self.replica.formed().0;
        let mut groups = [0; 4 * GROUPS_MAX];
        let looked_up = user.and_then(|uid| self.users.groups(uid));
        let end = self.log.current().end();
        let copy = self.copy.as_mut().expect("a primary is a copy");
        let context = Context {
            credential: self.settings.export.credential(&call.auth, looked_up, &mut groups),
            now: time_of(time),
            volume: &self.volume,
            log: &self.bytes,
            room,
        };
        self.scratch.clear();
        let needs_before = self.needs.len();
        let body: &mut [u8] = if modifying {
            match self.log.begin_record(body_max) {
                Ok(body) => body,
                Err(_) => return Served::Again(Lack::Turn),
            }
        } else {
            &mut []
        };
        let effects =
            if modifying { &mut body[STAMP_BYTES..STAMP_BYTES + effects_max] } else { &mut [][..] };
        let planned = plan::plan(
            &mut copy.shadow,
            request,
            &context,
            effects,
            &mut self.scratch,
            &mut self.needs,
        );
        match planned {
            Planned::Need => {
                assert!(self.needs.len() > needs_before, "a plan that lacks something names it");
                if copy.repair.concerns(&self.needs[needs_before..]) {
                    self.needs.truncate(needs_before);
                    return Served::Again(Lack::Mending);
                }
                Served::Again(Lack::Fetch(self.next_fetch))
            }
            Planned::Answer { response, shows, failed_modification } => {
                // What failed was judged at FP.
                let shows = if failed_modification { end } else { shows };
                let data = &self.scratch;
                let ready = shows <= self.replica.cp().0 && self.replica.may_answer(now.steady);
                let above = self.settings.planted == Some(Planted::ReadAboveCommit);
                if ready || above && self.replica.may_answer(now.steady) {
                    let from = out.bytes.len();
                    encode(call.xid, &response, data, &mut out.bytes);
                    let index = out.replies.len();
                    self.push_reply(conn, from, out);
                    if out.replies.len() > index {
                        self.early.push((index, shows));
                    }
                } else {
                    let mut bytes = Vec::with_capacity(256 + data.len());
                    encode(call.xid, &response, data, &mut bytes);
                    self.hold_reply(Held { shows, conn, bytes }, out);
                }
                Served::Done
            }
            Planned::Record { response, effects_len } => {
                let (stamp_and_effects, rest) = body.split_at_mut(STAMP_BYTES + effects_len);
                let mut sink = SliceSink::new(rest);
                nfs3::encode_body(&response, &mut sink);
                let reply_len = sink.written().expect("replies of modifications are short");
                let state = self.conns.get_mut(&conn).expect("looked up by the caller");
                let op = end + 1;
                if !copy.clients.knows(state.table) {
                    state.table = op;
                }
                let stamp = Stamp {
                    key,
                    port: state.port,
                    connection: state.table,
                    effects_len: effects_len as u32,
                    reply_len: reply_len as u32,
                };
                stamp.write(stamp_and_effects);
                let body_len = STAMP_BYTES + effects_len + reply_len;
                let logged = self.log.finish_record(kind::OPERATION, view, time, body_len);
                assert_eq!(logged, op, "a record took another op than it was planned at");
                self.newest_time = time;
                self.unsealed_bytes += body_len as u64;
                self.unsealed += 1;
                self.replica.on_appended(now.steady, false, Op(op), &mut self.actions);
                self.apply_planned(op);
                self.awaiting.push_back(Awaiting { op, conn, xid: key.xid });
                Served::Done
            }
        }
    }

    /// The primary applies its own record to the shadow as every other copy will.
    fn apply_planned(&mut self, op: u64) {
        let limit = self.apply_limit();
        assert_eq!(limit, op, "the shadow is at FP");
        // It has not left this server yet: better no record than one that nobody can apply.
        self.apply_next(op).unwrap_or_else(|why| panic!("op {op} was planned wrongly: {why}"));
    }

    // ----- replies -----

    fn push_reply(&mut self, conn: ConnId, from: usize, out: &mut Output) {
        let Some(state) = self.conns.get_mut(&conn) else {
            out.bytes.truncate(from);
            return;
        };
        state.open -= 1;
        let few = state.open <= CALLS_PER_CONN / 2 && state.kept <= KEPT_BYTES_PER_CONN / 2;
        if state.on_hold && few {
            state.on_hold = false;
            out.hold.push((conn, false));
        }
        out.replies.push(Reply { conn, bytes: from..out.bytes.len() });
    }

    /// Rule 7: the lease is looked at once more after reads were computed. If it has run out meanwhile, what was
    /// answered in this turn waits.
    pub(crate) fn recheck_lease(&mut self, now: Now, out: &mut Output) {
        if self.early.is_empty() {
            return;
        }
        let mut early = std::mem::take(&mut self.early);
        if !self.replica.may_answer(now.steady) {
            for (index, shows) in early.iter().rev() {
                let Reply { conn, bytes } = out.replies.remove(*index);
                let Some(state) = self.conns.get_mut(&conn) else { continue };
                state.open += 1;
                let bytes = out.bytes[bytes].to_vec();
                self.hold_reply(Held { shows: *shows, conn, bytes }, out);
            }
        }
        early.clear();
        self.early = early; // keeps its memory
    }

    /// Lets go of the replies that CP and the lease allow.
    pub(crate) fn release(&mut self, now: Now, out: &mut Output) {
        if !self.replica.is_primary() {
            return;
        }
        let early = self.settings.planted == Some(Planted::ReplyBeforeCommit);
        let cp = if early { self.log.current().end() } else { self.replica.cp().0 };
        while let Some(awaiting) = self.awaiting.front()
            && awaiting.op <= cp
        {
            let Awaiting { op, conn, xid } = self.awaiting.pop_front().expect("just seen");
            let from = out.bytes.len();
            let record = self.log.current().record(op).expect("unanswered records stay in memory");
            let operation = crate::record::operation(record.body).expect("applied before");
            out.bytes.extend_from_slice(&rpc::reply_header(xid, operation.reply.len()));
            out.bytes.extend_from_slice(operation.reply);
            self.push_reply(conn, from, out);
        }
        if self.held.is_empty() || !self.replica.may_answer(now.steady) {
            return;
        }
        let cp = self.replica.cp().0;
        let mut held = std::mem::take(&mut self.held);
        held.retain(|h| {
            if h.shows > cp {
                return true;
            }
            let from = out.bytes.len();
            out.bytes.extend_from_slice(&h.bytes);
            self.unkeep(h.conn, h.bytes.len());
            self.push_reply(h.conn, from, out);
            false
        });
        self.held = held;
    }
}

fn encode(xid: u32, response: &harp_fs::request::Response, data: &[u8], out: &mut Vec<u8>) {
    let mark = rpc::begin_reply(xid, out);
    nfs3::encode_body(response, out);
    if !data.is_empty() {
        out.extend_from_slice(data);
        out.extend_from_slice(harp_wire::xdr::pad(data.len()));
    }
    rpc::finish(mark, out);
}
