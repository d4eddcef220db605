//! Portmap version 2: which port a program is at.
//! Owns: NULL, GETPORT and DUMP, answered for NFS, MOUNT and portmap at one port.
//! Never: registers anything; there is one port and it serves everything.
//! Invariant: an unknown program or another protocol than TCP gives port 0.
//! Source: RFC 1833, section 3.

use crate::nfs3::ArgsError;
use crate::xdr::{Reader, Sink};
use crate::{mount, nfs3};

/// The portmap program.
pub const PROGRAM: u32 = 100_000;
/// The one version served.
pub const VERSION: u32 = 2;
/// The protocol number of TCP.
pub const TCP: u32 = 6;

/// Procedure numbers.
#[allow(missing_docs)] // the names are RFC 1833's
pub mod proc {
    pub const NULL: u32 = 0;
    pub const GETPORT: u32 = 3;
    pub const DUMP: u32 = 4;
}

const SERVED: [(u32, u32); 3] =
    [(PROGRAM, VERSION), (nfs3::PROGRAM, nfs3::VERSION), (mount::PROGRAM, mount::VERSION)];

/// One portmap request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    Null,
    /// The port of a program.
    GetPort {
        /// Program number.
        program: u32,
        /// Version asked for.
        version: u32,
        /// Protocol number, [`TCP`] or another.
        protocol: u32,
    },
    /// All mappings.
    Dump,
}

/// Decodes the arguments of `procedure`.
pub fn decode_args(procedure: u32, args: &[u8]) -> Result<Request, ArgsError> {
    let r = &mut Reader::new(args);
    Ok(match procedure {
        proc::NULL => Request::Null,
        proc::GETPORT => {
            let (program, version, protocol) = (r.u32()?, r.u32()?, r.u32()?);
            r.u32()?; // the port, which means nothing here
            Request::GetPort { program, version, protocol }
        }
        proc::DUMP => Request::Dump,
        _ => return Err(ArgsError::NoProcedure),
    })
}

/// Encodes the arguments of `request` and returns the procedure they are for.
pub fn encode_args(request: &Request, out: &mut impl Sink) -> u32 {
    match request {
        Request::Null => proc::NULL,
        Request::GetPort { program, version, protocol } => {
            out.group::<16>(|g| g.u32(*program).u32(*version).u32(*protocol).u32(0));
            proc::GETPORT
        }
        Request::Dump => proc::DUMP,
    }
}

/// Encodes the results for a server that has everything at `port`, without record mark and RPC
/// header. A program's port is given whatever the version: asking the program itself then tells
/// which versions it has.
pub fn encode_answer(request: &Request, port: u16, out: &mut impl Sink) {
    match request {
        Request::Null => {}
        Request::GetPort { program, protocol, .. } => {
            let served = *protocol == TCP && SERVED.iter().any(|(p, _)| p == program);
            out.u32(if served { port.into() } else { 0 });
        }
        Request::Dump => {
            for (program, version) in SERVED {
                out.group::<20>(|g| g.u32(1).u32(program).u32(version).u32(TCP).u32(port.into()));
            }
            out.u32(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_of(program: u32, protocol: u32) -> u32 {
        let request = Request::GetPort { program, version: 3, protocol };
        let mut bytes = Vec::new();
        let procedure = encode_args(&request, &mut bytes);
        assert_eq!(decode_args(procedure, &bytes), Ok(request));
        for cut in 0..bytes.len() {
            assert!(decode_args(procedure, &bytes[..cut]).is_err());
        }
        let mut answer = Vec::new();
        encode_answer(&request, 2049, &mut answer);
        Reader::new(&answer).u32().unwrap()
    }

    #[test]
    fn nfs_and_mount_are_at_the_port_over_tcp_only() {
        assert_eq!(port_of(nfs3::PROGRAM, TCP), 2049);
        assert_eq!(port_of(mount::PROGRAM, TCP), 2049);
        assert_eq!(port_of(nfs3::PROGRAM, 17), 0);
        assert_eq!(port_of(100_021, TCP), 0);
        assert_eq!(decode_args(1, &[0; 16]), Err(ArgsError::NoProcedure));
    }

    #[test]
    fn dump_lists_all_programs() {
        let mut bytes = Vec::new();
        encode_answer(&Request::Dump, 111, &mut bytes);
        assert_eq!(bytes.len(), SERVED.len() * 20 + 4);
        assert_eq!(bytes[bytes.len() - 4..], [0; 4]);
    }
}
