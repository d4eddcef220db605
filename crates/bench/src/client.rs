//! Client: NFSv3 over many TCP connections, pipelined, on one thread.
//! Owns: the connections, their re-establishment, and the measure of how long the server stalled.
//! Never: gives up a call before its patience ends, or sends it under another xid.
//! Invariant: a reply is delivered exactly once, whatever became of the connection in between.
//! Source: the Linux client: after a reset it connects again at once, from the same port if it
//! can, and sends every unanswered call again.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use harp_wire::mount;
use harp_wire::record::{self, RecordError, Split};
use harp_wire::request::{Credential, HandleBytes, Request, Response};
use harp_wire::rpc::decode_reply;
use harp_wire::xdr::XdrError;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::pipe::{Completion, Pipe, ReplyError};

const INPUT_BYTES: usize = 256 << 10;
/// The largest reply that is taken: READ's data and what surrounds it.
const REPLY_BYTES_MAX: usize = (4 << 20) + (64 << 10);
/// How long a turn waits at most before it looks at its timers.
const TICK: Duration = Duration::from_millis(100);

/// How to reach a server and how to behave towards it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where NFS is served.
    pub address: SocketAddr,
    /// Where MOUNT is served, if elsewhere.
    pub mount_address: Option<SocketAddr>,
    /// Where the same files are served as well. Connections begin at all of the addresses in turn, and one that is
    /// lost or does not come about goes on to the next.
    pub elsewhere: Vec<SocketAddr>,
    /// Number of connections.
    pub connections: usize,
    /// The user to call as.
    pub uid: u32,
    /// The group to call as.
    pub gid: u32,
    /// How long to go without any reply, or without a connection, before giving up.
    pub patience: Duration,
    /// How long a call waits for its reply before its connection is made anew and the call is sent
    /// again, like the retransmission timer of a real client. With `elsewhere`, an attempt to connect takes no
    /// longer either.
    pub retransmit: Duration,
    /// Pause before connecting again after a refusal. A reset is followed by an attempt at once.
    pub retry_pause: Duration,
}

impl Options {
    /// One connection to `address` as root; retransmits after 15 seconds, gives up after a minute.
    pub fn new(address: SocketAddr) -> Options {
        Options {
            address,
            mount_address: None,
            elsewhere: Vec::new(),
            connections: 1,
            uid: 0,
            gid: 0,
            patience: Duration::from_secs(60),
            retransmit: Duration::from_secs(15),
            retry_pause: Duration::from_millis(100),
        }
    }

    /// The address that a connection tries after `moves` others.
    fn address_after(&self, moves: usize) -> SocketAddr {
        match moves % (self.elsewhere.len() + 1) {
            0 => self.address,
            other => self.elsewhere[other - 1],
        }
    }
}

/// Why the client gave up.
#[derive(Debug)]
pub enum ClientError {
    /// The system refused something that has nothing to do with the server.
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// No connection came about within the patience.
    NoConnection {
        /// The last attempt's error, if it failed rather than waited.
        last: Option<io::Error>,
    },
    /// Calls waited without any reply for the patience.
    NoReply {
        /// How many.
        outstanding: usize,
    },
    /// The server's stream has lost its sense.
    Record(RecordError),
    /// A reply's header cannot be decoded.
    Header(XdrError),
    /// A reply to a call that was not made, or is answered.
    StrayReply {
        /// Its xid.
        xid: u32,
    },
    /// A reply without usable results, where one was needed.
    Reply(ReplyError),
    /// MOUNT refused the export.
    MountRefused {
        /// The number of the `mountstat3`.
        status: u32,
    },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::System { doing, error } => write!(f, "{doing}: {error}"),
            ClientError::NoConnection { last: Some(error) } => write!(f, "no connection: {error}"),
            ClientError::NoConnection { last: None } => write!(f, "no connection came about"),
            ClientError::NoReply { outstanding } => {
                write!(f, "{outstanding} calls without any reply: out of patience")
            }
            ClientError::Record(error) => write!(f, "reply stream: {error}"),
            ClientError::Header(error) => write!(f, "reply header: {error}"),
            ClientError::StrayReply { xid } => write!(f, "reply to no call of ours, xid {xid:#x}"),
            ClientError::Reply(error) => error.fmt(f),
            ClientError::MountRefused { status } => write!(f, "mount refused, status {status}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// What happened to the connections so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Connections lost and made again.
    pub reconnects: u64,
    /// Calls sent more than once.
    pub resent: u64,
    /// Connections given up because a reply did not come on them.
    pub timeouts: u64,
    /// The longest time without any reply while calls were waiting.
    pub stall_max: Duration,
}

#[derive(Debug)]
enum Link {
    Up(TcpStream),
    Connecting(TcpStream),
    Down { retry_at: Instant },
}

#[derive(Debug)]
struct Connection {
    link: Link,
    /// Since when it is not up.
    down_since: Instant,
    /// When it was last begun to be made.
    begun: Instant,
    /// Counts the addresses that it went through.
    moves: usize,
    local: Option<SocketAddr>,
    /// Received bytes lie in `input[from..to]`.
    input: Vec<u8>,
    from: usize,
    to: usize,
    pipe: Pipe,
}

/// Many connections to one server.
#[derive(Debug)]
pub struct Client {
    options: Options,
    connections: Vec<Connection>,
    trouble: Trouble,
    /// Since when calls wait without any reply.
    waiting_since: Option<Instant>,
    last_error: Option<io::Error>,
    /// When to look for overdue calls next.
    overdue_check_at: Instant,
}

impl Client {
    /// Connects all connections. Fails when that takes longer than the patience.
    pub fn connect(options: Options) -> Result<Client, ClientError> {
        let now = Instant::now();
        // Random, so that a server does not take this client for an earlier one.
        let first_xid = RandomState::new().build_hasher().finish() as u32;
        let connections = (0..options.connections)
            .map(|i| Connection {
                link: Link::Down { retry_at: now },
                down_since: now,
                begun: now,
                moves: i,
                local: None,
                input: vec![0; INPUT_BYTES],
                from: 0,
                to: 0,
                pipe: Pipe::new(
                    first_xid.wrapping_add(i as u32),
                    options.connections as u32,
                    options.uid,
                    options.gid,
                ),
            })
            .collect();
        let trouble = Trouble::default();
        let mut client = Client {
            options,
            connections,
            trouble,
            waiting_since: None,
            last_error: None,
            overdue_check_at: now,
        };
        while !client.connections.iter().all(|c| matches!(c.link, Link::Up(_))) {
            client.turn(TICK, |_, completion| unreachable!("no call made: {completion:?}"))?;
        }
        Ok(client)
    }

    /// The calls of connection `index`, to make new ones.
    pub fn pipe(&mut self, index: usize) -> &mut Pipe {
        let pipe = &mut self.connections[index].pipe;
        pipe.set_now(Instant::now());
        pipe
    }

    /// Number of calls that wait for their reply.
    pub fn outstanding(&self) -> usize {
        self.connections.iter().map(|c| c.pipe.outstanding()).sum()
    }

    /// What happened so far.
    pub fn trouble(&self) -> Trouble {
        self.trouble
    }

    /// Forgets what happened so far.
    pub fn clear_trouble(&mut self) {
        self.trouble = Trouble::default();
    }

    /// Resets connection `index` as if the network had cut it: replies under way are lost, and
    /// the unanswered calls go out again.
    pub fn break_connection(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Link::Up(stream) = &connection.link {
            // Closing with a linger of zero sends a reset; an error means that it is gone anyway.
            let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
            let now = Instant::now();
            lose(connection, now, now, &mut self.trouble);
        }
    }

    /// Sends what is to be sent, waits at most `wait` for something to happen, and hands every
    /// reply that has come to `on_reply`, which may make further calls on the same connection.
    ///
    /// Errors are final: patience has ended or the server talks nonsense.
    pub fn turn<F>(&mut self, wait: Duration, mut on_reply: F) -> Result<(), ClientError>
    where
        F: FnMut(&mut Pipe, Completion<'_>),
    {
        for connection in &mut self.connections {
            send(connection, &mut self.trouble);
        }
        let ready = self.poll(wait)?;
        let now = Instant::now();
        let mut replies = 0;
        for (connection, ready) in self.connections.iter_mut().zip(ready) {
            connection.pipe.set_now(now);
            match &connection.link {
                Link::Up(_) if ready => {
                    replies += receive(connection, now, &mut self.trouble, &mut on_reply)?;
                }
                Link::Connecting(_) if ready => {
                    finish_connecting(connection, now, &self.options, &mut self.last_error);
                }
                Link::Down { retry_at } if *retry_at <= now => {
                    begin_connecting(connection, now, &self.options, &mut self.last_error)?;
                }
                _ => {}
            }
        }
        self.watch(now, replies)
    }

    /// Makes one call on the first connection and waits for its results: the response and, for
    /// READ, the data. Panics when other calls are waiting.
    pub fn call(&mut self, request: &Request<'_>) -> Result<(Response, Vec<u8>), ClientError> {
        self.call_with(|pipe| pipe.submit(0, request), in_full)
    }

    /// As [`Client::call`], as `who` instead of this client's user.
    pub fn call_as(
        &mut self,
        who: &Credential<'_>,
        request: &Request<'_>,
    ) -> Result<(Response, Vec<u8>), ClientError> {
        self.call_with(|pipe| pipe.submit_as(0, who, request), in_full)
    }

    /// Mounts `path` and returns the handle of its root.
    pub fn mount(&mut self, path: &str) -> Result<HandleBytes, ClientError> {
        if let Some(address) = self.options.mount_address {
            let there = Options { mount_address: None, connections: 1, ..self.options.clone() };
            let there = Options { address, elsewhere: Vec::new(), ..there };
            return Client::connect(there)?.mount(path);
        }
        let mnt = mount::Request::Mnt { path: path.as_bytes() };
        let submit = |pipe: &mut Pipe| {
            pipe.submit_raw(mount::PROGRAM, mount::VERSION, mount::proc::MNT, 0, |call| {
                mount::encode_args(&mnt, call);
            });
        };
        let mounted = self.call_with(submit, |completion| {
            let body = completion.body.map_err(ReplyError::Refused)?;
            mount::decode_mounted(body).map_err(ReplyError::Malformed)
        })?;
        mounted.map_err(|status| ClientError::MountRefused { status })
    }

    fn call_with<T>(
        &mut self,
        submit: impl FnOnce(&mut Pipe),
        decode: impl Fn(Completion<'_>) -> Result<T, ReplyError>,
    ) -> Result<T, ClientError> {
        assert_eq!(self.outstanding(), 0, "a single call while others wait");
        submit(self.pipe(0));
        let mut result = None;
        while result.is_none() {
            self.turn(TICK, |_, completion| result = Some(decode(completion)))?;
        }
        result.expect("the loop ends with a result").map_err(ClientError::Reply)
    }

    /// Waits for the sockets; which of them have something.
    fn poll(&self, wait: Duration) -> Result<Vec<bool>, ClientError> {
        let now = Instant::now();
        let mut wait = wait.min(TICK);
        let mut polled = Vec::with_capacity(self.connections.len());
        let mut indices = Vec::with_capacity(self.connections.len());
        for (i, connection) in self.connections.iter().enumerate() {
            let (stream, flags) = match &connection.link {
                Link::Up(stream) if connection.pipe.wants_to_send() => {
                    (stream, PollFlags::IN | PollFlags::OUT)
                }
                Link::Up(stream) => (stream, PollFlags::IN),
                Link::Connecting(stream) => (stream, PollFlags::OUT),
                Link::Down { retry_at } => {
                    wait = wait.min(retry_at.saturating_duration_since(now));
                    continue;
                }
            };
            polled.push(PollFd::new(stream, flags));
            indices.push(i);
        }
        let timeout = Timespec::try_from(wait).expect("a wait of at most a tick");
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(ClientError::System { doing: "polling", error: error.into() });
            }
        }
        let mut ready = vec![false; self.connections.len()];
        for (i, polled) in indices.into_iter().zip(&polled) {
            ready[i] = !polled.revents().is_empty();
        }
        Ok(ready)
    }

    /// Makes connections anew on which a call waits for too long, and tries another address where a connection does
    /// not come about.
    fn drop_overdue(&mut self, now: Instant) {
        for connection in &mut self.connections {
            let overdue = |since| now.saturating_duration_since(since) > self.options.retransmit;
            match &connection.link {
                Link::Up(stream) if connection.pipe.waiting_since().is_some_and(overdue) => {
                    // A reset, so that nothing of it is delivered later; an error means that it is gone anyway.
                    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                    self.trouble.timeouts += 1;
                    lose(connection, now, now, &mut self.trouble);
                }
                Link::Connecting(_)
                    if !self.options.elsewhere.is_empty() && overdue(connection.begun) =>
                {
                    connection.moves += 1;
                    connection.link = Link::Down { retry_at: now };
                }
                _ => {}
            }
        }
    }

    /// Measures stalls and ends patience.
    fn watch(&mut self, now: Instant, replies: usize) -> Result<(), ClientError> {
        let outstanding = self.outstanding();
        if let Some(since) = self.waiting_since {
            let waited = now.duration_since(since);
            self.trouble.stall_max = self.trouble.stall_max.max(waited);
            if replies == 0 && outstanding > 0 && waited > self.options.patience {
                return Err(ClientError::NoReply { outstanding });
            }
        }
        if replies > 0 || self.waiting_since.is_none() || outstanding == 0 {
            self.waiting_since = (outstanding > 0).then_some(now);
        }
        if now >= self.overdue_check_at {
            self.overdue_check_at = now + TICK;
            self.drop_overdue(now);
        }
        for connection in &self.connections {
            let down = now.saturating_duration_since(connection.down_since);
            if !matches!(connection.link, Link::Up(_)) && down > self.options.patience {
                return Err(ClientError::NoConnection { last: self.last_error.take() });
            }
        }
        Ok(())
    }
}

/// The whole of a reply: the response and, for READ, the data.
fn in_full(completion: Completion<'_>) -> Result<(Response, Vec<u8>), ReplyError> {
    let decoded = completion.decode()?;
    Ok((decoded.response, decoded.data.to_vec()))
}

fn send(connection: &mut Connection, trouble: &mut Trouble) {
    if let Link::Up(stream) = &connection.link
        && connection.pipe.wants_to_send()
        && connection.pipe.send(stream).is_err()
    {
        let now = Instant::now();
        lose(connection, now, now, trouble);
    }
}

/// Reads what has come and delivers each whole reply; returns how many there were.
fn receive<F>(
    connection: &mut Connection,
    now: Instant,
    trouble: &mut Trouble,
    on_reply: &mut F,
) -> Result<usize, ClientError>
where
    F: FnMut(&mut Pipe, Completion<'_>),
{
    let Connection { link: Link::Up(stream), input, from, to, pipe, .. } = connection else {
        return Ok(0);
    };
    match (&mut &*stream).read(&mut input[*to..]) {
        Ok(0) => {
            lose(connection, now, now, trouble);
            return Ok(0);
        }
        Ok(bytes) => *to += bytes,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            return Ok(0);
        }
        Err(_) => {
            lose(connection, now, now, trouble);
            return Ok(0);
        }
    }
    let mut replies = 0;
    loop {
        let buf = &mut input[*from..*to];
        let (record, end) =
            match record::split(buf, REPLY_BYTES_MAX).map_err(ClientError::Record)? {
                Split::Complete { record } => (record.clone(), record.end),
                Split::Fragmented { consumed } => (record::join(&mut buf[..consumed]), consumed),
                Split::NeedMore { bytes_at_least } => {
                    make_room(input, from, to, bytes_at_least);
                    return Ok(replies);
                }
            };
        let reply = decode_reply(&buf[record]).map_err(ClientError::Header)?;
        let answered =
            pipe.answered(reply.xid).ok_or(ClientError::StrayReply { xid: reply.xid })?;
        let completion = Completion {
            token: answered.token,
            procedure: answered.procedure,
            latency: now.saturating_duration_since(answered.issued),
            resent: answered.resent,
            body: reply.outcome,
        };
        on_reply(pipe, completion);
        *from += end;
        replies += 1;
    }
}

/// Moves what is left of the input to its start and sees to it that `bytes_at_least` fit.
fn make_room(input: &mut Vec<u8>, from: &mut usize, to: &mut usize, bytes_at_least: usize) {
    input.copy_within(*from..*to, 0);
    (*from, *to) = (0, *to - *from);
    if bytes_at_least > input.len() {
        input.resize(bytes_at_least.next_multiple_of(INPUT_BYTES), 0);
    }
}

/// Takes a connection down and queues its calls again.
fn lose(connection: &mut Connection, now: Instant, retry_at: Instant, trouble: &mut Trouble) {
    trouble.reconnects += 1;
    trouble.resent += connection.pipe.send_all_again(now) as u64;
    (connection.from, connection.to) = (0, 0);
    connection.moves += 1;
    connection.link = Link::Down { retry_at };
    connection.down_since = now;
}

fn begin_connecting(
    connection: &mut Connection,
    now: Instant,
    options: &Options,
    last_error: &mut Option<io::Error>,
) -> Result<(), ClientError> {
    connection.begun = now;
    let address = options.address_after(connection.moves);
    let (stream, attempt) = match connection.local.take() {
        // From the old port if the system still lets us have it, else from any.
        Some(local) => match start(address, Some(local))? {
            (_, Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL)) => start(address, None)?,
            started => started,
        },
        None => start(address, None)?,
    };
    match attempt {
        Ok(()) | Err(Errno::INPROGRESS) => {
            connection.local = stream.local_addr().ok();
            connection.link = Link::Connecting(stream);
        }
        Err(error) => {
            *last_error = Some(error.into());
            connection.moves += 1;
            connection.link = Link::Down { retry_at: now + options.retry_pause };
        }
    }
    Ok(())
}

/// Makes a socket and starts to connect it, from `local` if that is given.
fn start(
    address: SocketAddr,
    local: Option<SocketAddr>,
) -> Result<(TcpStream, Result<(), Errno>), ClientError> {
    let system =
        |error: Errno| ClientError::System { doing: "making a socket", error: error.into() };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket: OwnedFd =
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(system)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(system)?;
    let mut attempt = Ok(());
    if let Some(local) = local {
        sockopt::set_socket_reuseaddr(&socket, true).map_err(system)?;
        attempt = rustix::net::bind(&socket, &local);
    }
    let attempt = attempt.and_then(|()| rustix::net::connect(&socket, &address));
    Ok((TcpStream::from(socket), attempt))
}

fn finish_connecting(
    connection: &mut Connection,
    now: Instant,
    options: &Options,
    last_error: &mut Option<io::Error>,
) {
    let Link::Connecting(stream) = &connection.link else { return };
    let error = match sockopt::socket_error(stream) {
        Ok(Ok(())) => None,
        Ok(Err(error)) | Err(error) => Some(error),
    };
    let down = Link::Down { retry_at: now + options.retry_pause };
    let link = std::mem::replace(&mut connection.link, down);
    match (link, error) {
        (Link::Connecting(stream), None) => connection.link = Link::Up(stream),
        (_, Some(error)) => {
            connection.moves += 1;
            *last_error = Some(error.into());
        }
        (_, None) => unreachable!("the link was connecting"),
    }
}
