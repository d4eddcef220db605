//! `nfs3_client` on a plain socket: its futures are done when they are first asked.
//! Owns: the transport.
//! Never: needs a runtime.

use std::io::{Error, ErrorKind, Read, Result as IoResult, Write};
use std::net::TcpStream;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use nfs3_client::io::{AsyncRead, AsyncWrite};

/// A socket whose futures are done when they are first asked.
pub struct Blocking(pub TcpStream);

impl AsyncRead for Blocking {
    async fn async_read(&mut self, into: &mut [u8]) -> IoResult<usize> {
        match self.0.read(into)? {
            0 => Err(Error::from(ErrorKind::UnexpectedEof)),
            bytes => Ok(bytes),
        }
    }
}

impl AsyncWrite for Blocking {
    async fn async_write(&mut self, from: &[u8]) -> IoResult<usize> {
        self.0.write(from)
    }
}

/// The result of a future that only waits in system calls.
pub fn done<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a blocking socket leaves nothing pending"),
    }
}
