//! Bytes to typed requests and back: record marking, RPC, NFSv3, MOUNTv3, portmap.
//! Owns: the byte layouts, and the bounds on everything a stranger may send.
//! Never: opens a socket, keeps state between calls, decides what a request does.
//! Invariant: decoding borrows from the record and never panics, whatever its bytes are.
//! Source: RFC 5531 (RPC), RFC 4506 (XDR), RFC 1813 (NFSv3, MOUNTv3), RFC 1833 (portmap v2).

pub mod incoming;
pub mod mount;
pub mod nfs3;
pub mod portmap;
pub mod record;
pub mod rpc;
pub mod samples;
pub mod xdr;

pub use harp_fs::request;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod oracle;
