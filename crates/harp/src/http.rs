//! The supervisor's admin address: `GET /status` over HTTP.
//! Owns: as much of HTTP as that takes.
//! Never: holds the supervisor up; each request has a thread of its own, a few at once.
//! Invariant: a request is read to its empty line, at most [`HEAD_BYTES_MAX`] bytes, within
//! [`PATIENCE`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::Config;
use crate::error::HarpError;
use crate::status;

/// Bytes of a request.
const HEAD_BYTES_MAX: usize = 8192;
/// Requests at once; more wait in the kernel's queue.
const REQUESTS_MAX: usize = 4;
/// For each read and write.
const PATIENCE: Duration = Duration::from_secs(2);

/// The admin address.
pub struct Http {
    listener: TcpListener,
    config: Arc<Config>,
    busy: Arc<AtomicUsize>,
}

impl Http {
    /// Listens at `address` already; asks the servers of `config`.
    pub fn new(listener: TcpListener, config: Config) -> Result<Http, HarpError> {
        listener
            .set_nonblocking(true)
            .map_err(|error| HarpError::io("set up the admin address", error))?;
        Ok(Http { listener, config: Arc::new(config), busy: Arc::default() })
    }

    /// The listening socket, to be watched.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Takes requests in; those beyond [`REQUESTS_MAX`] are closed.
    pub fn on_listener(&self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.busy.load(Ordering::Relaxed) >= REQUESTS_MAX {
                continue;
            }
            self.busy.fetch_add(1, Ordering::Relaxed);
            let (config, busy) = (self.config.clone(), self.busy.clone());
            let thread = std::thread::Builder::new().name("harp-http".into());
            let spawned = thread.spawn(move || {
                // A client that goes away early harms nobody.
                let _ = answer(stream, &config);
                busy.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                self.busy.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// What the bytes of a request's head are so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// More is to come.
    Unfinished,
    /// Longer than any head may be.
    TooLong,
    /// `GET /status`.
    Status,
    /// Something else.
    Other,
}

impl Head {
    /// Looks for the empty line that ends a head.
    pub fn of(bytes: &[u8]) -> Head {
        if bytes.len() > HEAD_BYTES_MAX {
            Head::TooLong
        } else if !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
            Head::Unfinished
        } else if bytes.starts_with(b"GET /status ") {
            Head::Status
        } else {
            Head::Other
        }
    }
}

fn answer(mut stream: TcpStream, config: &Config) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut received = Vec::new();
    let mut bytes = [0; 1024];
    let (status, body) = loop {
        let count = stream.read(&mut bytes)?;
        received.extend_from_slice(&bytes[..count]);
        match Head::of(&received) {
            Head::Unfinished if count > 0 => {}
            Head::Unfinished | Head::TooLong => return Ok(()),
            Head::Status => break ("200 OK", status::json(&status::gather(config)) + "\n"),
            Head::Other => {
                break ("404 Not Found", "{\"error\":\"only GET /status\"}\n".to_string());
            }
        }
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// Binds the admin address.
pub fn bind(address: SocketAddr) -> Result<TcpListener, HarpError> {
    TcpListener::bind(address)
        .map_err(|error| HarpError::listen("operators", address, "--admin", error))
}
