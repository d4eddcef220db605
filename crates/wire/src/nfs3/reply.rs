//! Results of the 22 procedures, decoded: the client's side.
//! Owns: the reading of reply bodies into [`Response`].
//! Never: runs in a server.
//! Invariant: a body from a foreign server gives a response or an error, never a panic.
//! Source: RFC 1813, section 3.3.

use harp_fs::request::{FsInfo, FsStat, ListedEntry, Listing, PathConf, Response, Status};

use super::attributes::{
    get_attributes, get_handle, get_post_op, get_post_op_handle, get_time, get_wcc,
};
use super::{NAME_BYTES_MAX, TARGET_BYTES_MAX, proc, status_from_number};
use crate::xdr::{Reader, XdrError};

type Result<T> = std::result::Result<T, XdrError>;

/// Decoded results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The results.
    pub response: Response,
    /// READ's data; empty for all other procedures.
    pub data: &'a [u8],
}

/// Decodes the results of `procedure`. A status that Harp does not know is an error
/// ([`XdrError::BadValue`] with its number), a procedure that does not exist likewise.
pub fn decode_body(procedure: u32, body: &[u8]) -> Result<Decoded<'_>> {
    let r = &mut Reader::new(body);
    if procedure == proc::NULL {
        return Ok(Decoded { response: Response::Null, data: &[] });
    }
    let number = r.u32()?;
    let status = status_from_number(number).ok_or(XdrError::BadValue(number))?;
    let ok = status == Status::Ok;
    let mut data: &[u8] = &[];
    let response = match procedure {
        proc::GETATTR => Response::GetAttr { status, ok: when(ok, r, get_attributes)? },
        proc::SETATTR | proc::REMOVE | proc::RMDIR => Response::Wcc { status, wcc: get_wcc(r)? },
        proc::LOOKUP => Response::Lookup {
            status,
            ok: when(ok, r, get_handle)?,
            attr: if ok { get_post_op(r)? } else { None },
            dir: get_post_op(r)?,
        },
        proc::ACCESS => Response::Access {
            status,
            attr: get_post_op(r)?,
            granted: if ok { r.u32()? } else { 0 },
        },
        proc::READLINK => Response::ReadLink {
            status,
            attr: get_post_op(r)?,
            target: if ok { r.opaque(TARGET_BYTES_MAX)?.to_vec() } else { Vec::new() },
        },
        proc::READ => {
            let attr = get_post_op(r)?;
            let (mut count, mut eof) = (0, false);
            if ok {
                (count, eof) = (r.u32()?, r.bool()?);
                data = r.opaque(r.rest().len())?;
                if data.len() != count as usize {
                    return Err(XdrError::BadValue(count));
                }
            }
            Response::Read { status, attr, count, eof }
        }
        proc::WRITE => write(status, r)?,
        proc::CREATE | proc::MKDIR | proc::SYMLINK | proc::MKNOD => Response::Create {
            status,
            ok: if ok { get_post_op_handle(r)? } else { None },
            attr: if ok { get_post_op(r)? } else { None },
            dir: get_wcc(r)?,
        },
        proc::RENAME => Response::Rename { status, from: get_wcc(r)?, to: get_wcc(r)? },
        proc::LINK => Response::Link { status, attr: get_post_op(r)?, dir: get_wcc(r)? },
        _ => decode_facts(procedure, status, r)?,
    };
    Ok(Decoded { response, data })
}

/// Listings and facts about the file system.
fn decode_facts(procedure: u32, status: Status, r: &mut Reader<'_>) -> Result<Response> {
    let ok = status == Status::Ok;
    Ok(match procedure {
        proc::READDIR => Response::ReadDir {
            status,
            dir: get_post_op(r)?,
            listing: if ok { listing(r, false)? } else { Listing::default() },
        },
        proc::READDIRPLUS => Response::ReadDirPlus {
            status,
            dir: get_post_op(r)?,
            listing: if ok { listing(r, true)? } else { Listing::default() },
        },
        proc::FSSTAT => {
            Response::FsStat { status, attr: get_post_op(r)?, ok: when(ok, r, fs_stat)? }
        }
        proc::FSINFO => {
            Response::FsInfo { status, attr: get_post_op(r)?, ok: when(ok, r, fs_info)? }
        }
        proc::PATHCONF => {
            Response::PathConf { status, attr: get_post_op(r)?, ok: when(ok, r, path_conf)? }
        }
        proc::COMMIT => Response::Commit {
            status,
            wcc: get_wcc(r)?,
            verifier: if ok { *r.fixed()? } else { [0; 8] },
        },
        other => return Err(XdrError::BadValue(other)),
    })
}

fn when<'a, T>(
    ok: bool,
    r: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if ok { get(r).map(Some) } else { Ok(None) }
}

fn write(status: Status, r: &mut Reader<'_>) -> Result<Response> {
    let wcc = get_wcc(r)?;
    let (mut count, mut verifier) = (0, [0; 8]);
    if status == Status::Ok {
        count = r.u32()?;
        let committed = r.u32()?;
        if committed > 2 {
            return Err(XdrError::BadValue(committed));
        }
        verifier = *r.fixed()?;
    }
    Ok(Response::Write { status, wcc, count, verifier })
}

fn listing(r: &mut Reader<'_>, plus: bool) -> Result<Listing> {
    let mut listing = Listing { verifier: *r.fixed()?, ..Listing::default() };
    while r.bool()? {
        let fileid = r.u64()?;
        let bytes = r.opaque(NAME_BYTES_MAX)?;
        let from = listing.names.len();
        listing.names.extend_from_slice(bytes);
        let mut entry =
            ListedEntry { fileid, name: from..listing.names.len(), cookie: r.u64()?, plus: None };
        if plus {
            let attr = get_post_op(r)?;
            entry.plus = attr.zip(get_post_op_handle(r)?);
        }
        listing.entries.push(entry);
    }
    listing.end = r.bool()?;
    Ok(listing)
}

fn fs_stat(r: &mut Reader<'_>) -> Result<FsStat> {
    Ok(FsStat {
        total_bytes: r.u64()?,
        free_bytes: r.u64()?,
        available_bytes: r.u64()?,
        total_files: r.u64()?,
        free_files: r.u64()?,
        available_files: r.u64()?,
        invar_seconds: r.u32()?,
    })
}

fn fs_info(r: &mut Reader<'_>) -> Result<FsInfo> {
    Ok(FsInfo {
        read_max: r.u32()?,
        read_preferred: r.u32()?,
        read_multiple: r.u32()?,
        write_max: r.u32()?,
        write_preferred: r.u32()?,
        write_multiple: r.u32()?,
        dir_preferred: r.u32()?,
        file_size_max: r.u64()?,
        time_delta: get_time(r)?,
        properties: r.u32()?,
    })
}

fn path_conf(r: &mut Reader<'_>) -> Result<PathConf> {
    Ok(PathConf {
        link_max: r.u32()?,
        name_max: r.u32()?,
        no_trunc: r.bool()?,
        chown_restricted: r.bool()?,
        case_insensitive: r.bool()?,
        case_preserving: r.bool()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs3::encode_body;
    use crate::samples;
    use crate::xdr::pad;

    fn encoded(response: &Response) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = Vec::new();
        encode_body(response, &mut bytes);
        let mut data = Vec::new();
        if let Response::Read { status: Status::Ok, count, .. } = response {
            data = (0..*count).map(|i| i as u8).collect();
            bytes.extend_from_slice(&data);
            bytes.extend_from_slice(pad(data.len()));
        }
        (bytes, data)
    }

    #[test]
    fn every_response_comes_back_as_it_went() {
        let mut seen = [false; 22];
        for (procedure, response) in samples::responses() {
            seen[procedure as usize] = true;
            let (bytes, data) = encoded(&response);
            let want = Decoded { response, data: &data };
            assert_eq!(decode_body(procedure, &bytes), Ok(want));
        }
        assert_eq!(seen, [true; 22], "a procedure has no sample");
    }

    #[test]
    fn every_truncation_is_an_error() {
        for (procedure, response) in samples::responses() {
            let (bytes, _) = encoded(&response);
            for cut in 0..bytes.len() {
                let got = decode_body(procedure, &bytes[..cut]);
                assert!(got.is_err(), "{response:?} at {cut}: {got:?}");
            }
        }
    }
}
