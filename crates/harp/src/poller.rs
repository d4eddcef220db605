//! Waiting for many descriptors at once.
//! Owns: the epoll descriptor and the meaning of its 64-bit tokens.
//! Never: acts on an event.
//! Invariant: level-triggered, but for bells; a source that is not dealt with is reported again.

use std::os::fd::{AsFd, OwnedFd};

use harp_node::vr::Nanos;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::clock::NANOS_PER_MS;
use crate::error::HarpError;

/// Events taken from the kernel in one call.
const EVENTS_PER_CALL: usize = 256;
/// Low bits of a token that say which of its kind; the rest say the kind.
const WHICH_BITS: u32 = 56;

/// A source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A worker's bell.
    Bell,
    /// A signal arrived.
    Signal,
    /// The control socket of that server, or of the supervisor.
    Control(u64),
    /// The process of that server ended.
    Child(u64),
    /// Somebody connects: a client.
    ClientListener,
    /// Somebody connects: a peer.
    PeerListener,
    /// Somebody connects: an operator.
    AdminListener,
    /// A link to that peer.
    Peer(u64),
    /// A caller whose handshake is not done.
    Greeting(u64),
    /// A client's connection.
    Client(u64),
    /// An operator's connection.
    Admin(u64),
    /// The connection of a client that is relayed.
    Relayed(u64),
    /// Its connection to the primary.
    Upstream(u64),
}

impl Source {
    fn token(self) -> u64 {
        let (kind, which) = match self {
            Source::Bell => (0, 0),
            Source::Signal => (1, 0),
            Source::Control(which) => (2, which),
            Source::Child(which) => (3, which),
            Source::ClientListener => (4, 0),
            Source::PeerListener => (5, 0),
            Source::AdminListener => (6, 0),
            Source::Peer(which) => (7, which),
            Source::Greeting(which) => (8, which),
            Source::Client(which) => (9, which),
            Source::Admin(which) => (10, which),
            Source::Relayed(which) => (11, which),
            Source::Upstream(which) => (12, which),
        };
        assert!(which < 1 << WHICH_BITS, "a token's number fits its bits");
        (kind << WHICH_BITS) | which
    }

    fn of(token: u64) -> Source {
        let which = token & ((1 << WHICH_BITS) - 1);
        match token >> WHICH_BITS {
            0 => Source::Bell,
            1 => Source::Signal,
            2 => Source::Control(which),
            3 => Source::Child(which),
            4 => Source::ClientListener,
            5 => Source::PeerListener,
            6 => Source::AdminListener,
            7 => Source::Peer(which),
            8 => Source::Greeting(which),
            9 => Source::Client(which),
            10 => Source::Admin(which),
            11 => Source::Relayed(which),
            12 => Source::Upstream(which),
            kind => panic!("a token of kind {kind}, which nobody made"),
        }
    }
}

/// What a source is watched for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

impl Interest {
    /// Only bytes to read.
    pub const READ: Interest = Interest { read: true, write: false };
    /// Only room to write.
    pub const WRITE: Interest = Interest { read: false, write: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// What happened at a source.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Where.
    pub source: Source,
    /// There is something to read, or the end of it.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// Broken, or closed in both directions.
    pub broken: bool,
}

/// Waits for events.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// A poller that watches nothing yet.
    pub fn new() -> Result<Poller, HarpError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|error| HarpError::io("create an epoll descriptor", error))?;
        Ok(Poller { epoll, events: Vec::with_capacity(EVENTS_PER_CALL) })
    }

    /// Watches a descriptor.
    pub fn add(&self, fd: impl AsFd, source: Source, interest: Interest) -> Result<(), HarpError> {
        epoll::add(&self.epoll, fd, EventData::new_u64(source.token()), interest.flags())
            .map_err(|error| HarpError::io("watch a descriptor", error))
    }

    /// Watches a bell: every ring is reported once, without anybody having to hush it.
    pub fn add_bell(&self, fd: impl AsFd) -> Result<(), HarpError> {
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, fd, EventData::new_u64(Source::Bell.token()), flags)
            .map_err(|error| HarpError::io("watch a bell", error))
    }

    /// Watches a watched descriptor for something else.
    pub fn change(&self, fd: impl AsFd, source: Source, interest: Interest) {
        epoll::modify(&self.epoll, fd, EventData::new_u64(source.token()), interest.flags())
            .expect("a watched descriptor can be watched for something else");
    }

    /// Stops watching a descriptor that somebody else may keep open.
    pub fn remove(&self, fd: impl AsFd) {
        epoll::delete(&self.epoll, fd).expect("a watched descriptor can be let go");
    }

    /// Waits until something happens or `until` is reached; returns at once if that has passed.
    /// The number of events, for [`Poller::event`].
    pub fn wait(&mut self, now: Nanos, until: Option<Nanos>) -> Result<usize, HarpError> {
        let timeout = until.map(|until| {
            let nanos = until.since(now).min(3_600_000 * NANOS_PER_MS);
            Timespec {
                tv_sec: (nanos / (1000 * NANOS_PER_MS)) as i64,
                tv_nsec: (nanos % (1000 * NANOS_PER_MS)) as i64,
            }
        });
        self.events.clear();
        let space = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(HarpError::io("wait for events", error)),
        }
    }

    /// The event of that index, from the last wait.
    pub fn event(&self, index: usize) -> Ready {
        let event = self.events[index];
        let flags = event.flags;
        Ready {
            source: Source::of(event.data.u64()),
            read: flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR),
            write: flags.contains(EventFlags::OUT),
            broken: flags.intersects(EventFlags::HUP | EventFlags::ERR),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::clock::steady;

    #[test]
    fn tokens_name_their_source() {
        let sources = [
            Source::Bell,
            Source::Signal,
            Source::Control(3),
            Source::Child(2),
            Source::ClientListener,
            Source::PeerListener,
            Source::AdminListener,
            Source::Peer(4),
            Source::Greeting(15),
            Source::Client((1 << 56) - 1),
            Source::Admin(9),
            Source::Relayed(6),
            Source::Upstream(7),
        ];
        sources.iter().for_each(|source| assert_eq!(Source::of(source.token()), *source));
    }

    #[test]
    fn a_source_is_reported_for_what_it_is_watched_for() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut poller = Poller::new().expect("a poller");
        poller.add(&ours, Source::Client(5), Interest::READ).expect("watches");
        assert_eq!(poller.wait(steady(), Some(steady())).expect("waits"), 0);
        poller.change(&ours, Source::Client(5), Interest::WRITE);
        assert_eq!(poller.wait(steady(), None).expect("waits"), 1);
        let ready = poller.event(0);
        assert_eq!((ready.source, ready.read, ready.write), (Source::Client(5), false, true));
        poller.change(&ours, Source::Client(5), Interest::default());
        drop(theirs);
        assert_eq!(poller.wait(steady(), None).expect("waits"), 1);
        assert!(poller.event(0).broken);
    }
}
