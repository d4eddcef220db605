//! One record from a client, decoded all the way.
//! Owns: which programs and versions share the port, and the refusals for all others.
//! Never: answers.
//! Invariant: every call that is not served ends in the refusal RFC 5531 has for it.
//! Source: RFC 5531, section 9, for the refusals; clients also probe for NFSv4 and NFSACL.

use harp_fs::request as fs;

use crate::nfs3::ArgsError;
use crate::rpc::{Call, CallError, Refusal, decode_call};
use crate::{mount, nfs3, portmap};

/// A call's arguments, by program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Program 100003, version 3.
    Nfs(fs::Request<'a>),
    /// Program 100005, version 3.
    Mount(mount::Request<'a>),
    /// Program 100000, version 2.
    Portmap(portmap::Request),
}

/// Decodes the call in `record`, in place: its header and its arguments.
#[inline]
pub fn decode(record: &[u8]) -> Result<(Call<'_>, Body<'_>), CallError> {
    let call = decode_call(record)?;
    match decode_body(&call) {
        Ok(body) => Ok((call, body)),
        Err(refusal) => Err(CallError::Refused { xid: call.xid, refusal }),
    }
}

#[inline]
fn decode_body<'a>(call: &Call<'a>) -> Result<Body<'a>, Refusal> {
    let (procedure, args) = (call.procedure, call.args);
    let body = match (call.program, call.version) {
        (nfs3::PROGRAM, nfs3::VERSION) => nfs3::decode_args(procedure, args).map(Body::Nfs),
        (mount::PROGRAM, mount::VERSION) => mount::decode_args(procedure, args).map(Body::Mount),
        (portmap::PROGRAM, portmap::VERSION) => {
            portmap::decode_args(procedure, args).map(Body::Portmap)
        }
        (nfs3::PROGRAM, _) => return Err(only_version(nfs3::VERSION)),
        (mount::PROGRAM, _) => return Err(only_version(mount::VERSION)),
        (portmap::PROGRAM, _) => return Err(only_version(portmap::VERSION)),
        _ => return Err(Refusal::ProgramUnavailable),
    };
    body.map_err(|error| match error {
        ArgsError::NoProcedure => Refusal::ProcedureUnavailable,
        ArgsError::Garbage(_) => Refusal::GarbageArgs,
    })
}

fn only_version(version: u32) -> Refusal {
    Refusal::ProgramMismatch { low: version, high: version }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{Auth, begin_call, finish};

    fn refusal(program: u32, version: u32, procedure: u32) -> Refusal {
        let mut out = Vec::new();
        let mark = begin_call(5, program, version, procedure, &Auth::None, &mut out);
        finish(mark, &mut out);
        match decode(&out[4..]) {
            Err(CallError::Refused { xid: 5, refusal }) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_clients_probe_for_is_refused_by_the_book() {
        assert_eq!(refusal(100_003, 4, 0), Refusal::ProgramMismatch { low: 3, high: 3 });
        assert_eq!(refusal(100_003, 2, 0), Refusal::ProgramMismatch { low: 3, high: 3 });
        assert_eq!(refusal(100_005, 1, 0), Refusal::ProgramMismatch { low: 3, high: 3 });
        assert_eq!(refusal(100_000, 4, 3), Refusal::ProgramMismatch { low: 2, high: 2 });
        assert_eq!(refusal(100_227, 3, 0), Refusal::ProgramUnavailable);
        assert_eq!(refusal(100_003, 3, 22), Refusal::ProcedureUnavailable);
        assert_eq!(refusal(100_003, 3, 1), Refusal::GarbageArgs);
    }
}
