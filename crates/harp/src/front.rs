//! The supervisor's side of the clients' address: accepts, hands over, resets.
//! Owns: the listening socket and a duplicate of every connection that a server holds.
//! Never: reads or writes a client's bytes; refuses or quickly resets a connection that comes in.
//! Invariant: a connection is held by the one server that served when it was handed over, and is
//! reset before any other server's connections are accepted.
//! Source: README.md, "Commands". `connect(AF_UNSPEC)` sends a reset even if the holder is stopped.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use harp_node::vr::{Nanos, ServerId, View};
use rustix::io::Errno;
use rustix::net::connect_unspec;

use crate::clock::NANOS_PER_MS;
use crate::control::{self, ToServer};
use crate::error::HarpError;
use crate::gate;
use crate::poller::{Interest, Poller, Source};

/// Connections at once; more wait in the kernel's queue.
pub const HANDED_MAX: usize = crate::clients::CLIENTS_MAX;
/// When to try again what failed for want of descriptors or of room in a control socket.
const RETRY_MS: u64 = 20;

/// A connection that waits to be handed over.
struct Accepted {
    socket: OwnedFd,
    from: SocketAddr,
}

struct Handed {
    socket: OwnedFd,
    from: SocketAddr,
    to: ServerId,
    /// Whether the server said that it has it, which it does before it reads anything.
    taken: bool,
}

/// The clients' address.
pub struct Front {
    listener: TcpListener,
    address: SocketAddr,
    serving: Option<(ServerId, View)>,
    newest: View,
    handed: HashMap<u64, Handed>,
    handles: u64,
    /// To be handed over first: there was no room, or a server died before it took them.
    accepted: VecDeque<Accepted>,
    listening: bool,
    retry_at: Option<Nanos>,
}

impl Front {
    /// Listens at `address`; a client that connects waits until a server serves.
    pub fn listen(address: SocketAddr) -> Result<Front, HarpError> {
        let listener = gate::listen(address, "--nfs")?;
        let address = listener
            .local_addr()
            .map_err(|error| HarpError::listen("clients", address, "--nfs", error))?;
        Ok(Front {
            listener,
            address,
            serving: None,
            newest: View::NONE,
            handed: HashMap::new(),
            handles: 0,
            accepted: VecDeque::new(),
            listening: false,
            retry_at: None,
        })
    }

    /// The address, its port settled.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who serves, in which view.
    pub fn serving(&self) -> Option<(ServerId, View)> {
        self.serving
    }

    /// How many connections are in servers' hands.
    pub fn connections(&self) -> usize {
        self.handed.len()
    }

    /// Starts watching the address. Until a server serves nothing is accepted.
    pub fn watch(&self, poller: &Poller) -> Result<(), HarpError> {
        poller.add(&self.listener, Source::ClientListener, Interest::default())
    }

    /// When [`Front::accept`] is to be called though nothing happened.
    pub fn deadline(&self) -> Option<Nanos> {
        self.retry_at
    }

    /// A server says that it serves in `view`: call [`Front::accept`] next. Connections of others, and its
    /// own of older views, are reset. Returns whether this is news; a view older than one heard of is not.
    pub fn on_serving(&mut self, server: ServerId, view: View, poller: &Poller) -> bool {
        if view < self.newest || self.serving == Some((server, view)) {
            return false;
        }
        self.newest = view;
        self.reset_where(|_| true);
        self.serving = Some((server, view));
        // Another control socket: what did not fit into the last one may fit now.
        self.retry_at = None;
        self.settle(poller);
        true
    }

    /// A server says that it no longer serves in `view`. Returns whether clients are without a server now.
    pub fn on_stopped(&mut self, server: ServerId, view: View, poller: &Poller) -> bool {
        match self.serving {
            Some((by, since)) if by == server && since <= view => self.on_gone(server, poller),
            _ => false,
        }
    }

    /// A server serves no more. Returns whether clients are without a server now.
    pub fn on_gone(&mut self, server: ServerId, poller: &Poller) -> bool {
        self.reset_where(|handed| handed.to == server);
        self.on_serves_no_more(server, poller)
    }

    /// A server's process ended: what it never took is for the next one. (A process takes a while to end, and
    /// who connects meanwhile would be reset, which costs a client more than to wait.) Returns whether clients
    /// are without a server now.
    pub fn on_dead(&mut self, server: ServerId, poller: &Poller) -> bool {
        let untaken = |_: &u64, handed: &mut Handed| handed.to == server && !handed.taken;
        let mut untaken: Vec<(u64, Handed)> = self.handed.extract_if(untaken).collect();
        untaken.sort_by_key(|(handle, _)| *handle);
        let back =
            untaken.into_iter().map(|(_, Handed { socket, from, .. })| Accepted { socket, from });
        self.accepted.extend(back);
        self.on_gone(server, poller)
    }

    fn on_serves_no_more(&mut self, server: ServerId, poller: &Poller) -> bool {
        let served = self.serving.is_some_and(|(by, _)| by == server);
        if served {
            self.serving = None;
            self.settle(poller);
        }
        served
    }

    /// A server has a connection, and is about to read from it.
    pub fn on_taken(&mut self, server: ServerId, handle: u64) {
        if let Some(handed) = self.handed.get_mut(&handle).filter(|handed| handed.to == server) {
            handed.taken = true;
        }
    }

    /// A server is done with a connection.
    pub fn on_closed(&mut self, server: ServerId, handle: u64, poller: &Poller) {
        if self.handed.get(&handle).is_some_and(|handed| handed.to == server) {
            self.handed.remove(&handle);
            self.settle(poller);
        }
    }

    fn reset_where(&mut self, which: impl Fn(&Handed) -> bool) {
        self.handed.retain(|_, handed| {
            let reset = which(handed);
            if reset {
                // Already reset by the client: as good.
                let _ = connect_unspec(&handed.socket);
            }
            !reset
        });
    }

    /// Watches the address exactly while connections can be handed over.
    fn settle(&mut self, poller: &Poller) {
        let listening = self.serving.is_some()
            && self.retry_at.is_none()
            && self.accepted.is_empty()
            && self.handed.len() < HANDED_MAX;
        if listening != self.listening {
            self.listening = listening;
            let interest = Interest { read: listening, write: false };
            poller.change(&self.listener, Source::ClientListener, interest);
        }
    }

    /// Accepts what waits and hands it to the server that serves, whose control socket is `control`.
    pub fn accept(&mut self, control: Option<BorrowedFd<'_>>, now: Nanos, poller: &Poller) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if let (Some((server, _)), Some(control), None) = (self.serving, control, self.retry_at) {
            while self.handed.len() < HANDED_MAX {
                let next = self.accepted.pop_front().map_or_else(|| self.accept_one(), Ok);
                let wait = match next.map(|accepted| self.hand_over(accepted, server, control)) {
                    Ok(Ok(())) => continue,
                    Ok(Err(accepted)) => {
                        self.accepted.push_front(accepted);
                        true
                    }
                    Err(Errno::AGAIN) => false,
                    Err(Errno::INTR | Errno::CONNABORTED) => continue,
                    // No descriptors, no memory: it waits in the kernel's queue.
                    Err(_) => true,
                };
                if wait {
                    self.retry_at = Some(now.plus(RETRY_MS * NANOS_PER_MS));
                }
                break;
            }
        }
        self.settle(poller);
    }

    fn accept_one(&self) -> Result<Accepted, Errno> {
        let (socket, from) = gate::accept(&self.listener)?;
        Ok(Accepted { socket, from })
    }

    /// Gives a connection to a server and keeps a duplicate; gives it back if there is no room.
    fn hand_over(
        &mut self,
        accepted: Accepted,
        to: ServerId,
        control: BorrowedFd<'_>,
    ) -> Result<(), Accepted> {
        self.handles += 1;
        let Accepted { from, .. } = accepted;
        let (address, port) = (from.ip(), from.port());
        let message = ToServer::Client { handle: self.handles, address, port };
        match control::send(control, &message, Some(accepted.socket.as_fd())) {
            Ok(()) => {
                let handed = Handed { socket: accepted.socket, from, to, taken: false };
                self.handed.insert(self.handles, handed);
                Ok(())
            }
            // A full socket, or a server that just died: the connection waits for the next one.
            Err(_) => Err(accepted),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::clock::steady;
    use crate::control::Packet;

    const A: ServerId = ServerId(0);
    const B: ServerId = ServerId(1);

    fn view(counter: u32) -> View {
        View::new(0, 0, counter, A)
    }

    struct World {
        front: Front,
        poller: Poller,
        controls: [(OwnedFd, OwnedFd); 2],
    }

    fn world() -> World {
        let front = Front::listen(([127, 0, 0, 1], 0).into()).expect("listens");
        let poller = Poller::new().expect("a poller");
        front.watch(&poller).expect("watches");
        World { front, poller, controls: [(); 2].map(|()| control::pair().expect("a pair")) }
    }

    impl World {
        fn connect(&self) -> TcpStream {
            TcpStream::connect(self.front.address()).expect("never refused")
        }

        fn accept(&mut self) {
            let control = self.front.serving().map(|(server, _)| server.index());
            let control = control.map(|index| self.controls[index].0.as_fd());
            self.front.accept(control, steady(), &self.poller);
        }

        /// Accepts once the address is reported ready, as the supervisor does.
        fn wait_and_accept(&mut self) {
            assert_eq!(self.poller.wait(steady(), None).expect("waits"), 1);
            assert_eq!(self.poller.event(0).source, Source::ClientListener);
            self.accept();
        }

        fn taken(&self, server: ServerId) -> Option<(u64, OwnedFd)> {
            match control::receive(self.controls[server.index()].1.as_fd()) {
                Packet::Message(ToServer::Client { handle, .. }, Some(fd)) => Some((handle, fd)),
                Packet::Nothing => None,
                other => panic!("{other:?}"),
            }
        }
    }

    fn is_reset(client: &mut TcpStream) -> bool {
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
        matches!(client.read(&mut [0]), Err(error) if error.kind() == ErrorKind::ConnectionReset)
    }

    #[test]
    fn a_client_waits_until_a_server_serves_and_is_reset_when_another_takes_over() {
        let mut world = world();
        let mut client = world.connect();
        world.accept();
        assert_eq!(world.front.connections(), 0, "nobody serves yet");
        assert!(world.front.on_serving(A, view(1), &world.poller));
        world.wait_and_accept();
        let (_, held) = world.taken(A).expect("handed over");
        client.write_all(b"call").expect("writes");
        // A holds the connection and does nothing, as a stopped process does; B takes over.
        assert!(world.front.on_serving(B, view(2), &world.poller));
        assert!(is_reset(&mut client));
        assert_eq!(world.front.connections(), 0);
        drop(held);
        // What A said before it was stopped comes late and changes nothing.
        assert!(!world.front.on_serving(A, view(1), &world.poller));
        assert!(!world.front.on_stopped(A, view(1), &world.poller));
        assert_eq!(world.front.serving(), Some((B, view(2))));
        let _client = world.connect();
        world.wait_and_accept();
        assert!(world.taken(A).is_none() && world.taken(B).is_some());
    }

    #[test]
    fn a_dead_servers_clients_are_reset_and_new_ones_wait() {
        let mut world = world();
        world.front.on_serving(A, view(1), &world.poller);
        let mut client = world.connect();
        world.wait_and_accept();
        assert!(world.front.on_gone(A, &world.poller));
        assert!(is_reset(&mut client));
        let mut waiting = world.connect();
        world.accept();
        assert_eq!(world.front.connections(), 0);
        world.front.on_serving(B, view(2), &world.poller);
        world.wait_and_accept();
        let (_, held) = world.taken(B).expect("handed over");
        rustix::io::write(&held, b"hello").expect("writes");
        let mut seen = [0; 5];
        waiting.read_exact(&mut seen).expect("the connection lives");
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn a_connection_that_a_dead_server_never_took_is_for_the_next_one() {
        let mut world = world();
        world.front.on_serving(A, view(1), &world.poller);
        let mut taken = world.connect();
        world.wait_and_accept();
        let (handle, _held) = world.taken(A).expect("handed over");
        world.front.on_taken(A, handle);
        let mut waiting = world.connect();
        waiting.write_all(b"call").expect("writes");
        world.wait_and_accept();
        assert!(world.front.on_dead(A, &world.poller));
        assert!(is_reset(&mut taken));
        drop(world.taken(A));
        world.front.on_serving(B, view(2), &world.poller);
        world.accept();
        let (_, held) = world.taken(B).expect("handed over again");
        let mut seen = [0; 4];
        rustix::io::read(&held, &mut seen).expect("nobody read it before");
        assert_eq!(&seen, b"call");
    }

    #[test]
    fn a_connection_ends_once_its_holder_says_so() {
        let mut world = world();
        world.front.on_serving(A, view(1), &world.poller);
        let mut client = world.connect();
        world.wait_and_accept();
        let (handle, held) = world.taken(A).expect("handed over");
        drop(held);
        world.front.on_closed(B, handle, &world.poller);
        assert_eq!(world.front.connections(), 1, "only its holder may say so");
        world.front.on_closed(A, handle, &world.poller);
        assert_eq!(client.read(&mut [0]).expect("an orderly end"), 0);
    }

    #[test]
    fn a_server_that_takes_no_more_holds_up_connections_and_loses_none() {
        let mut world = world();
        world.front.on_serving(A, view(1), &world.poller);
        let mut clients = Vec::new();
        while world.front.deadline().is_none() {
            clients.push(world.connect());
            world.wait_and_accept();
            assert!(clients.len() < 4000, "a control socket without end");
        }
        world.front.on_serving(B, view(2), &world.poller);
        world.front.accept(Some(world.controls[1].0.as_fd()), steady(), &world.poller);
        assert!(world.taken(B).is_some(), "the one that waited went to the next server");
        assert_eq!(world.front.connections(), 1);
    }
}
