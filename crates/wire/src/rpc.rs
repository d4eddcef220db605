//! RPC messages: call headers read in place, reply headers written, and the client's side of both.
//! Owns: program and version checks' vocabulary, credentials, refusals, the record mark of what
//! we send.
//! Never: looks into a procedure's arguments or results.
//! Invariant: a header that cannot be understood ends in a typed refusal, never in a panic.
//! Source: RFC 5531; AUTH_SYS is its appendix A.

use std::fmt;

use harp_fs::request::Credential;

use crate::record::{LAST_FRAGMENT, MARK_BYTES};
use crate::xdr::{Reader, Sink, XdrError};

const VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const ACCEPTED: u32 = 0;
const DENIED: u32 = 1;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;

/// The most bytes of a credential or verifier.
pub const AUTH_BODY_BYTES_MAX: usize = 400;
/// The most supplementary groups of an AUTH_SYS credential.
pub const GROUPS_MAX: usize = 16;
/// The longest machine name in an AUTH_SYS credential.
const MACHINE_NAME_BYTES_MAX: usize = 255;
/// User and group of a caller that names none, unless an export says otherwise.
pub const NOBODY: u32 = 65534;

/// Bytes of an accepted reply's record mark and header.
pub const REPLY_HEADER_BYTES: usize = MARK_BYTES + 24;

/// Who calls, as far as the call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth<'a> {
    /// AUTH_NONE.
    None,
    /// AUTH_SYS.
    Sys(Credential<'a>),
}

/// A call, its arguments still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Chosen by the client; the reply carries it, a repeat of the call too.
    pub xid: u32,
    /// Program number.
    pub program: u32,
    /// Version of the program.
    pub version: u32,
    /// Procedure of that version.
    pub procedure: u32,
    /// Who calls.
    pub auth: Auth<'a>,
    /// The arguments, to the record's end.
    pub args: &'a [u8],
}

/// `auth_stat`: what is wrong with a credential or verifier. The discriminants are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AuthStat {
    /// The credential is malformed or of a kind we do not know.
    BadCredential = 1,
    /// The client must begin a new session.
    RejectedCredential = 2,
    /// The verifier is malformed.
    BadVerifier = 3,
    /// The verifier has expired.
    RejectedVerifier = 4,
    /// Rejected for reasons of security.
    TooWeak = 5,
    /// Anything else (on decoding, also numbers that we do not know).
    Failed = 7,
}

/// A reply without results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not RPC version 2.
    RpcMismatch,
    /// The credential or verifier does not do.
    Auth(AuthStat),
    /// No such program here.
    ProgramUnavailable,
    /// The program has no such version here.
    ProgramMismatch {
        /// Lowest version served.
        low: u32,
        /// Highest version served.
        high: u32,
    },
    /// The version has no such procedure.
    ProcedureUnavailable,
    /// The arguments could not be decoded.
    GarbageArgs,
    /// The server failed, whatever the arguments.
    SystemError,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::RpcMismatch => write!(f, "only RPC version 2 is served"),
            Refusal::Auth(stat) => write!(f, "credential refused: {stat:?}"),
            Refusal::ProgramUnavailable => write!(f, "no such program"),
            Refusal::ProgramMismatch { low, high } => {
                write!(f, "only versions {low} to {high} of the program are served")
            }
            Refusal::ProcedureUnavailable => write!(f, "no such procedure"),
            Refusal::GarbageArgs => write!(f, "the arguments cannot be decoded"),
            Refusal::SystemError => write!(f, "the server failed"),
        }
    }
}

/// Why a record is no call that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Not a call at all: there is nothing to answer, the stream has lost its sense.
    NotACall,
    /// To be answered with [`encode_refusal`].
    Refused {
        /// The call's identity.
        xid: u32,
        /// The answer.
        refusal: Refusal,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotACall => write!(f, "a record that is no call"),
            CallError::Refused { refusal, .. } => refusal.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

/// Decodes the header of the call in `record`, in place.
#[inline]
pub fn decode_call(record: &[u8]) -> Result<Call<'_>, CallError> {
    let mut reader = Reader::new(record);
    let (Ok(xid), Ok(CALL)) = (reader.u32(), reader.u32()) else {
        return Err(CallError::NotACall);
    };
    decode_call_body(xid, reader).map_err(|refusal| CallError::Refused { xid, refusal })
}

#[inline(always)]
fn decode_call_body(xid: u32, mut reader: Reader<'_>) -> Result<Call<'_>, Refusal> {
    let garbage = |_| Refusal::GarbageArgs;
    if reader.u32().map_err(garbage)? != VERSION {
        return Err(Refusal::RpcMismatch);
    }
    let program = reader.u32().map_err(garbage)?;
    let version = reader.u32().map_err(garbage)?;
    let procedure = reader.u32().map_err(garbage)?;
    let flavor = reader.u32().map_err(garbage)?;
    let body = reader.opaque(AUTH_BODY_BYTES_MAX).map_err(bad(AuthStat::BadCredential))?;
    let auth = match flavor {
        AUTH_NONE => Auth::None,
        AUTH_SYS => match decode_auth_sys(body) {
            Ok(credential) => Auth::Sys(credential),
            Err(_) => return Err(Refusal::Auth(AuthStat::BadCredential)),
        },
        _ => return Err(Refusal::Auth(AuthStat::BadCredential)),
    };
    reader.u32().map_err(garbage)?; // the verifier's flavor means nothing to us
    reader.opaque(AUTH_BODY_BYTES_MAX).map_err(bad(AuthStat::BadVerifier))?;
    Ok(Call { xid, program, version, procedure, auth, args: reader.rest() })
}

/// A credential or verifier that ends too early is garbage like anything else; one that exceeds
/// its bound is wrong in itself.
fn bad(stat: AuthStat) -> impl Fn(XdrError) -> Refusal {
    move |error| match error {
        XdrError::Truncated => Refusal::GarbageArgs,
        _ => Refusal::Auth(stat),
    }
}

#[inline(always)]
fn decode_auth_sys(body: &[u8]) -> Result<Credential<'_>, XdrError> {
    let mut reader = Reader::new(body);
    reader.u32()?; // the stamp means nothing to us
    reader.opaque(MACHINE_NAME_BYTES_MAX)?;
    let (uid, gid, groups) = (reader.u32()?, reader.u32()?, reader.u32()?);
    if groups > GROUPS_MAX as u32 {
        return Err(XdrError::TooLong { length: groups, max: GROUPS_MAX as u32 });
    }
    Ok(Credential { uid, gid, groups_be: reader.take(groups as usize * 4)? })
}

/// Where a message begun in a buffer started.
#[derive(Debug)]
#[must_use = "a message begun must be finished, or its record mark is wrong"]
pub struct Mark {
    at: usize,
}

/// Mark and header of an accepted reply whose results are `body_bytes` long: what goes before a
/// body that already exists, such as one from the log.
///
/// Panics when the record would exceed 2 GiB.
#[inline]
pub fn reply_header(xid: u32, body_bytes: usize) -> [u8; REPLY_HEADER_BYTES] {
    let word = mark_word(REPLY_HEADER_BYTES - MARK_BYTES + body_bytes);
    // After the reply type: MSG_ACCEPTED, an AUTH_NONE verifier of no bytes, SUCCESS.
    let mut header = [0; REPLY_HEADER_BYTES];
    header[..4].copy_from_slice(&word.to_be_bytes());
    header[4..8].copy_from_slice(&xid.to_be_bytes());
    header[8..12].copy_from_slice(&REPLY.to_be_bytes());
    header
}

/// Begins an accepted reply in `out`; append the results, then call [`finish`].
#[inline]
pub fn begin_reply(xid: u32, out: &mut Vec<u8>) -> Mark {
    let at = out.len();
    out.bytes(&reply_header(xid, 0));
    Mark { at }
}

/// Completes the message begun at `mark`: everything in `out` since then is one record.
#[inline]
pub fn finish(mark: Mark, out: &mut [u8]) {
    finish_with(mark, out, 0);
}

/// As [`finish`], for a record that goes on for `apart_bytes` bytes that are sent from elsewhere,
/// padding included.
#[inline]
pub fn finish_with(mark: Mark, out: &mut [u8], apart_bytes: usize) {
    let word = mark_word(out.len() - mark.at - MARK_BYTES + apart_bytes);
    out[mark.at..mark.at + MARK_BYTES].copy_from_slice(&word.to_be_bytes());
}

#[inline]
fn mark_word(record_bytes: usize) -> u32 {
    assert!(record_bytes < LAST_FRAGMENT as usize, "a record of {record_bytes} bytes");
    record_bytes as u32 | LAST_FRAGMENT
}

/// Appends the whole reply, record mark included, that refuses the call `xid`.
pub fn encode_refusal(xid: u32, refusal: Refusal, out: &mut Vec<u8>) {
    let mark = Mark { at: out.len() };
    out.group::<12>(|g| g.u32(0).u32(xid).u32(REPLY));
    let denied = |out: &mut Vec<u8>| out.u32(DENIED);
    let accepted = |stat: u32, out: &mut Vec<u8>| {
        out.group::<16>(|g| g.u32(ACCEPTED).u64(0).u32(stat));
    };
    match refusal {
        Refusal::RpcMismatch => {
            denied(out);
            out.group::<12>(|g| g.u32(0).u32(VERSION).u32(VERSION));
        }
        Refusal::Auth(stat) => {
            denied(out);
            out.group::<8>(|g| g.u32(1).u32(stat as u32));
        }
        Refusal::ProgramUnavailable => accepted(1, out),
        Refusal::ProgramMismatch { low, high } => {
            accepted(2, out);
            out.group::<8>(|g| g.u32(low).u32(high));
        }
        Refusal::ProcedureUnavailable => accepted(3, out),
        Refusal::GarbageArgs => accepted(4, out),
        Refusal::SystemError => accepted(5, out),
    }
    finish(mark, out);
}

/// Begins a call in `out`; append the arguments, then call [`finish`].
///
/// Panics when the credential has more than [`GROUPS_MAX`] groups: the caller is ours.
pub fn begin_call(
    xid: u32,
    program: u32,
    version: u32,
    procedure: u32,
    auth: &Auth<'_>,
    out: &mut Vec<u8>,
) -> Mark {
    let mark = Mark { at: out.len() };
    out.group::<28>(|g| {
        let head = g.u32(0).u32(xid).u32(CALL).u32(VERSION);
        head.u32(program).u32(version).u32(procedure)
    });
    match auth {
        Auth::None => out.bytes(&[0; 8]),
        Auth::Sys(credential) => {
            let groups = credential.groups_be.len() / 4;
            assert!(groups <= GROUPS_MAX && credential.groups_be.len() % 4 == 0);
            out.group::<28>(|g| {
                let sys = g.u32(AUTH_SYS).u32(20 + groups as u32 * 4).u64(0);
                sys.u32(credential.uid).u32(credential.gid).u32(groups as u32)
            });
            out.bytes(credential.groups_be);
        }
    }
    out.bytes(&[0; 8]); // an AUTH_NONE verifier
    mark
}

/// A reply, its results still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The call it answers.
    pub xid: u32,
    /// The encoded results, or why there are none.
    pub outcome: Result<&'a [u8], Refusal>,
}

/// Decodes the header of the reply in `record`, in place.
pub fn decode_reply(record: &[u8]) -> Result<Reply<'_>, XdrError> {
    let mut reader = Reader::new(record);
    let xid = reader.u32()?;
    match reader.u32()? {
        REPLY => {}
        other => return Err(XdrError::BadValue(other)),
    }
    let outcome = match reader.u32()? {
        ACCEPTED => {
            reader.u32()?;
            reader.opaque(AUTH_BODY_BYTES_MAX)?;
            decode_accepted(&mut reader)?
        }
        DENIED => Err(decode_denied(&mut reader)?),
        other => return Err(XdrError::BadValue(other)),
    };
    Ok(Reply { xid, outcome })
}

fn decode_accepted<'a>(reader: &mut Reader<'a>) -> Result<Result<&'a [u8], Refusal>, XdrError> {
    Ok(Err(match reader.u32()? {
        0 => return Ok(Ok(reader.rest())),
        1 => Refusal::ProgramUnavailable,
        2 => Refusal::ProgramMismatch { low: reader.u32()?, high: reader.u32()? },
        3 => Refusal::ProcedureUnavailable,
        4 => Refusal::GarbageArgs,
        5 => Refusal::SystemError,
        other => return Err(XdrError::BadValue(other)),
    }))
}

fn decode_denied(reader: &mut Reader<'_>) -> Result<Refusal, XdrError> {
    match reader.u32()? {
        0 => {
            reader.u64()?; // the lowest and highest version
            Ok(Refusal::RpcMismatch)
        }
        1 => Ok(Refusal::Auth(match reader.u32()? {
            1 => AuthStat::BadCredential,
            2 => AuthStat::RejectedCredential,
            3 => AuthStat::BadVerifier,
            4 => AuthStat::RejectedVerifier,
            5 => AuthStat::TooWeak,
            _ => AuthStat::Failed,
        })),
        other => Err(XdrError::BadValue(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{RECORD_BYTES_MAX, Split, split};

    const SYS: Auth<'static> =
        Auth::Sys(Credential { uid: 1000, gid: 100, groups_be: &[0, 0, 0, 4, 0, 0, 0, 27] });

    fn call(auth: &Auth<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let mark = begin_call(7, 100003, 3, 8, auth, &mut out);
        out.bytes(b"argument");
        finish(mark, &mut out);
        assert_eq!(split(&out, RECORD_BYTES_MAX), Ok(Split::Complete { record: 4..out.len() }));
        out.split_off(4)
    }

    fn refused(record: &[u8]) -> Refusal {
        match decode_call(record) {
            Err(CallError::Refused { xid: 7, refusal }) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn calls_come_back_as_they_went() {
        for auth in [Auth::None, SYS] {
            let record = call(&auth);
            let want =
                Call { xid: 7, program: 100003, version: 3, procedure: 8, auth, args: b"argument" };
            assert_eq!(decode_call(&record), Ok(want));
            for cut in 0..record.len() - 8 {
                let error = decode_call(&record[..cut]);
                assert!(error.is_err(), "{cut} bytes made {error:?}");
            }
        }
        let Auth::Sys(credential) = SYS else { unreachable!("it is made so") };
        assert!(credential.in_group(27));
    }

    #[test]
    fn bad_headers_are_refused_by_name() {
        let good = call(&SYS);
        let with = |at: usize, value: u32| {
            let mut record = good.clone();
            record[at..at + 4].copy_from_slice(&value.to_be_bytes());
            record
        };
        assert_eq!(decode_call(&with(4, REPLY)), Err(CallError::NotACall));
        assert_eq!(refused(&with(8, 3)), Refusal::RpcMismatch);
        assert_eq!(refused(&with(24, 6)), Refusal::Auth(AuthStat::BadCredential));
        assert_eq!(refused(&with(28, 401)), Refusal::Auth(AuthStat::BadCredential));
        assert_eq!(refused(&with(36, 256)), Refusal::Auth(AuthStat::BadCredential));
        assert_eq!(refused(&with(48, 17)), Refusal::Auth(AuthStat::BadCredential));
        assert_eq!(refused(&with(64, 401)), Refusal::Auth(AuthStat::BadVerifier));
    }

    #[test]
    fn replies_and_refusals_come_back_as_they_went() {
        let mut out = b"earlier".to_vec();
        let mark = begin_reply(9, &mut out);
        out.bytes(b"body");
        finish(mark, &mut out);
        assert_eq!(out[7..], [&reply_header(9, 4)[..], b"body"].concat());
        assert_eq!(decode_reply(&out[11..]), Ok(Reply { xid: 9, outcome: Ok(b"body") }));
        let refusals = [
            Refusal::RpcMismatch,
            Refusal::Auth(AuthStat::BadVerifier),
            Refusal::Auth(AuthStat::TooWeak),
            Refusal::ProgramUnavailable,
            Refusal::ProgramMismatch { low: 3, high: 3 },
            Refusal::ProcedureUnavailable,
            Refusal::GarbageArgs,
            Refusal::SystemError,
        ];
        for refusal in refusals {
            let mut out = Vec::new();
            encode_refusal(9, refusal, &mut out);
            assert_eq!(split(&out, 64), Ok(Split::Complete { record: 4..out.len() }));
            assert_eq!(decode_reply(&out[4..]), Ok(Reply { xid: 9, outcome: Err(refusal) }));
            for cut in 4..out.len() {
                assert!(decode_reply(&out[4..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_record_may_end_elsewhere() {
        let mut out = Vec::new();
        let mark = begin_reply(9, &mut out);
        finish_with(mark, &mut out, 4096);
        assert_eq!(out[..4], (LAST_FRAGMENT | 4120).to_be_bytes());
    }
}
