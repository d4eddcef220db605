//! Telling the machine's rpcbind where NFS and MOUNT are, for clients that ask it instead of naming the port.
//! Owns: the registrations that this server made.
//! Never: takes the place of another program's registration; keeps a server from starting.
//! Invariant: what was registered here is taken back when the server ends in order.
//! Source: RFC 1833, section 3 (portmap version 2: SET, UNSET, GETPORT).

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use harp_node::wire::rpc::{Auth, begin_call, decode_reply, finish};
use harp_node::wire::xdr::{Reader, Sink};
use harp_node::wire::{mount, nfs3, portmap};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

/// Where rpcbind listens.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 111);
/// How long it may take for one answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// It believes only callers from ports that are root's.
const OWN_PORTS: std::ops::Range<u16> = 600..1024;
/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: usize = 400;

const SET: u32 = 1;
const UNSET: u32 = 2;
const GETPORT: u32 = 3;

const SERVED: [(&str, u32, u32); 2] =
    [("NFS", nfs3::PROGRAM, nfs3::VERSION), ("MOUNT", mount::PROGRAM, mount::VERSION)];

/// What this server registered; dropping it takes that back.
pub struct Registration {
    rpcbind: SocketAddr,
    made: Vec<(u32, u32)>,
}

impl Registration {
    /// Registers NFS and MOUNT over TCP at `port`. What could not be registered is said, one line each.
    pub fn make(rpcbind: SocketAddr, port: u16) -> (Registration, Vec<String>) {
        let (mut made, mut faults) = (Vec::new(), Vec::new());
        for (name, program, version) in SERVED {
            match register(rpcbind, program, version, port) {
                Ok(()) => made.push((program, version)),
                Err(why) => faults.push(format!(
                    "{name} is not registered with rpcbind at {rpcbind}: {why}; clients must name the port {port}"
                )),
            }
        }
        (Registration { rpcbind, made }, faults)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for (program, version) in &self.made {
            // It is gone itself: then so is the registration.
            let _ = call(self.rpcbind, UNSET, *program, *version, 0);
        }
    }
}

fn register(rpcbind: SocketAddr, program: u32, version: u32, port: u16) -> Result<(), String> {
    let ask = |procedure, port| {
        call(rpcbind, procedure, program, version, port).map_err(|error| error.to_string())
    };
    if ask(SET, port)? != 0 {
        return Ok(());
    }
    match ask(GETPORT, 0)? {
        0 => Err("it refused (it believes root only, on this machine)".into()),
        other if other == u32::from(port) => Ok(()),
        other => Err(format!(
            "another program is registered at port {other} (rpcinfo -d {program} {version} takes that away)"
        )),
    }
}

/// One call on a connection of its own; the answer is one number.
fn call(
    rpcbind: SocketAddr,
    procedure: u32,
    program: u32,
    version: u32,
    port: u16,
) -> Result<u32, Error> {
    let mut stream = connect_as_root(rpcbind)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    let (xid, vers) = (0x6861_7270, portmap::VERSION);
    let mark = begin_call(xid, portmap::PROGRAM, vers, procedure, &Auth::None, &mut bytes);
    [program, version, portmap::TCP, port.into()].into_iter().for_each(|word| bytes.u32(word));
    finish(mark, &mut bytes);
    stream.write_all(&bytes)?;
    let mut mark = [0; 4];
    stream.read_exact(&mut mark)?;
    let length = (u32::from_be_bytes(mark) & !(1 << 31)) as usize;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let answer = answer.get_mut(..length).ok_or(ErrorKind::InvalidData)?;
    stream.read_exact(answer)?;
    let reply = decode_reply(answer).map_err(Error::other)?;
    let body = reply.outcome.map_err(|refusal| Error::other(refusal.to_string()))?;
    Reader::new(body).u32().map_err(Error::other)
}

/// Connects from a port that only root gets, if this process gets one.
fn connect_as_root(to: SocketAddr) -> Result<TcpStream, Error> {
    for port in OWN_PORTS.rev() {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        match bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(()) => {}
            Err(Errno::ADDRINUSE) => continue,
            Err(Errno::ACCESS) => break,
            Err(error) => return Err(error.into()),
        }
        match connect(&socket, &to) {
            Ok(()) => return Ok(TcpStream::from(socket)),
            // The port's last connection to it is not forgotten yet.
            Err(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    TcpStream::connect_timeout(&to, PATIENCE)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers calls as rpcbind would whose registrations are `taken`; returns what was asked, as procedure,
    /// program and port.
    fn rpcbind(
        calls: usize,
        taken: Option<u16>,
    ) -> (SocketAddr, std::thread::JoinHandle<Vec<[u32; 3]>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        let thread = std::thread::spawn(move || {
            (0..calls)
                .map(|_| {
                    let (mut stream, _) = listener.accept().expect("a caller");
                    let mut bytes = [0; 60];
                    stream.read_exact(&mut bytes).expect("a call");
                    let word = |at: usize| {
                        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
                    };
                    // Mark, xid, CALL, RPC 2, portmap 2, then procedure, two empty AUTH_NONE, the mapping.
                    assert_eq!(
                        [word(0), word(8), word(12), word(16), word(20)],
                        [1 << 31 | 56, 0, 2, 100_000, 2]
                    );
                    assert_eq!([word(48), word(52)], [3, 6], "version 3 over TCP");
                    let result = match (word(24), taken) {
                        (GETPORT, Some(port)) => u32::from(port),
                        (_, taken) => taken.is_none().into(),
                    };
                    let answer = [1 << 31 | 28, word(4), 1, 0, 0, 0, 0, result];
                    let answer: Vec<u8> = answer.into_iter().flat_map(u32::to_be_bytes).collect();
                    stream.write_all(&answer).expect("writes");
                    [word(24), word(44), word(56)]
                })
                .collect()
        });
        (address, thread)
    }

    #[test]
    fn what_is_registered_is_taken_back() {
        let (address, thread) = rpcbind(4, None);
        let (registration, faults) = Registration::make(address, 2049);
        assert!(faults.is_empty(), "{faults:?}");
        drop(registration);
        let nfs = nfs3::PROGRAM;
        let mount = mount::PROGRAM;
        assert_eq!(
            thread.join().expect("no panic"),
            [[SET, nfs, 2049], [SET, mount, 2049], [UNSET, nfs, 0], [UNSET, mount, 0]]
        );
    }

    #[test]
    fn another_programs_registration_stays_and_is_named() {
        let (address, thread) = rpcbind(4, Some(999));
        let (registration, faults) = Registration::make(address, 2049);
        assert!(faults.len() == 2 && faults[0].contains("port 999"), "{faults:?}");
        drop(registration);
        assert!(thread.join().expect("no panic").iter().all(|[what, ..]| *what != UNSET));
    }

    #[test]
    fn without_rpcbind_the_server_says_so_and_goes_on() {
        let nobody = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = nobody.local_addr().expect("bound");
        drop(nobody);
        let (registration, faults) = Registration::make(address, 2049);
        assert!(registration.made.is_empty() && faults.len() == 2, "{faults:?}");
    }
}
