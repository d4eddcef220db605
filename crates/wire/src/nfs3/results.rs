//! Results of the 22 procedures, encoded.
//! Owns: the body of a reply, after the RPC header.
//! Never: writes a record mark or an RPC header, so that the log can store a body alone.
//! Invariant: what is written depends on the response alone, byte for byte.
//! Source: RFC 1813, section 3.3.

use harp_fs::request::{
    Attributes, FsInfo, FsStat, ListedEntry, Listing, PathConf, Response, Status,
};

use super::attributes::{put_post_op, put_post_op_handle, put_wcc};
use crate::xdr::{CountSink, Sink, SliceSink};

/// Encodes the results of `response`, without record mark and RPC header.
///
/// Of a successful READ everything is encoded up to and with the length of its data; the caller
/// appends `count` bytes of data and then [`crate::xdr::pad`]`(count)`.
///
/// Panics when the response is successful but lacks what its success must contain.
#[inline]
pub fn encode_body(response: &Response, out: &mut impl Sink) {
    match response {
        Response::Null => {}
        Response::Wcc { status, wcc } => {
            out.u32(*status as u32);
            put_wcc(out, wcc);
        }
        Response::Write { status, wcc, count, verifier } => {
            out.u32(*status as u32);
            put_wcc(out, wcc);
            if *status == Status::Ok {
                let stable = 2; // FILE_SYNC: what is answered is replicated
                out.group::<16>(|g| g.u32(*count).u32(stable).raw(verifier));
            }
        }
        Response::Create { status, ok, attr, dir } => {
            out.u32(*status as u32);
            if *status == Status::Ok {
                put_post_op_handle(out, ok);
                put_post_op(out, attr);
            }
            put_wcc(out, dir);
        }
        Response::Rename { status, from, to } => {
            out.u32(*status as u32);
            put_wcc(out, from);
            put_wcc(out, to);
        }
        Response::Link { status, attr, dir } => {
            out.u32(*status as u32);
            put_post_op(out, attr);
            put_wcc(out, dir);
        }
        other => encode_reading(other, out),
    }
}

/// The results of the procedures that leave no record.
#[inline]
fn encode_reading(response: &Response, out: &mut impl Sink) {
    match response {
        Response::GetAttr { status, ok } => match ok {
            Some(attr) if *status == Status::Ok => {
                out.group::<88>(|g| g.u32(0).attributes(attr));
            }
            _ => failed(*status, out),
        },
        Response::Lookup { status, ok, attr, dir } => {
            match ok {
                Some(handle) if *status == Status::Ok => {
                    out.u32(0);
                    out.opaque(handle.as_slice());
                    put_post_op(out, attr);
                }
                _ => failed(*status, out),
            }
            put_post_op(out, dir);
        }
        Response::Access { status, attr, granted } => {
            if succeeded(*status, attr, out) {
                out.u32(*granted);
            }
        }
        Response::ReadLink { status, attr, target } => {
            if succeeded(*status, attr, out) {
                out.opaque(target);
            }
        }
        Response::Read { status, attr, count, eof } => {
            if succeeded(*status, attr, out) {
                out.group::<12>(|g| g.u32(*count).u32(*eof as u32).u32(*count));
            }
        }
        Response::ReadDir { status, dir, listing } => {
            if succeeded(*status, dir, out) {
                put_listing(out, listing, false);
            }
        }
        Response::ReadDirPlus { status, dir, listing } => {
            if succeeded(*status, dir, out) {
                put_listing(out, listing, true);
            }
        }
        Response::FsStat { status, attr, ok } => put_facts(*status, attr, ok, put_fs_stat, out),
        Response::FsInfo { status, attr, ok } => put_facts(*status, attr, ok, put_fs_info, out),
        Response::PathConf { status, attr, ok } => {
            put_facts(*status, attr, ok, put_path_conf, out);
        }
        Response::Commit { status, wcc, verifier } => {
            out.u32(*status as u32);
            put_wcc(out, wcc);
            if *status == Status::Ok {
                out.bytes(verifier);
            }
        }
        other => unreachable!("{other:?} is encoded by encode_body"),
    }
}

/// Encodes as [`encode_body`] does, into `buf`; returns the number of bytes, or `None` when they
/// do not fit. [`super::MODIFYING_BODY_BYTES_MAX`] bytes fit every modifying procedure's results.
#[inline]
pub fn encode_body_to(response: &Response, buf: &mut [u8]) -> Option<usize> {
    let mut sink = SliceSink::new(buf);
    encode_body(response, &mut sink);
    sink.written()
}

/// The number of bytes that [`encode_body`] writes.
pub fn body_bytes(response: &Response) -> usize {
    let mut sink = CountSink::default();
    encode_body(response, &mut sink);
    sink.0
}

/// Encodes a failure's status. Panics on Ok: a success was made without its contents.
fn failed(status: Status, out: &mut impl Sink) {
    assert!(status != Status::Ok, "a success without what it found");
    out.u32(status as u32);
}

/// Encodes a status and the attributes that follow it in either case; whether it is a success.
#[inline]
fn succeeded(status: Status, attr: &Option<Attributes>, out: &mut impl Sink) -> bool {
    out.u32(status as u32);
    put_post_op(out, attr);
    status == Status::Ok
}

fn put_facts<T, S: Sink>(
    status: Status,
    attr: &Option<Attributes>,
    ok: &Option<T>,
    put: fn(&mut S, &T),
    out: &mut S,
) {
    if succeeded(status, attr, out) {
        put(out, ok.as_ref().expect("a success contains its facts"));
    }
}

fn put_fs_stat<S: Sink>(out: &mut S, s: &FsStat) {
    out.group::<52>(|g| {
        let bytes = g.u64(s.total_bytes).u64(s.free_bytes).u64(s.available_bytes);
        let files = bytes.u64(s.total_files).u64(s.free_files).u64(s.available_files);
        files.u32(s.invar_seconds)
    });
}

fn put_fs_info<S: Sink>(out: &mut S, i: &FsInfo) {
    out.group::<48>(|g| {
        let read = g.u32(i.read_max).u32(i.read_preferred).u32(i.read_multiple);
        let write = read.u32(i.write_max).u32(i.write_preferred).u32(i.write_multiple);
        let rest = write.u32(i.dir_preferred).u64(i.file_size_max).time(i.time_delta);
        rest.u32(i.properties)
    });
}

fn put_path_conf<S: Sink>(out: &mut S, p: &PathConf) {
    out.group::<24>(|g| {
        let sizes = g.u32(p.link_max).u32(p.name_max);
        let names = sizes.u32(p.no_trunc as u32).u32(p.chown_restricted as u32);
        names.u32(p.case_insensitive as u32).u32(p.case_preserving as u32)
    });
}

fn put_listing(out: &mut impl Sink, listing: &Listing, plus: bool) {
    out.bytes(&listing.verifier);
    for entry in &listing.entries {
        let name = &listing.names[entry.name.clone()];
        let name_len = name.len() as u32;
        out.group::<16>(|g| g.u32(1).u64(entry.fileid).u32(name_len));
        out.bytes(name);
        out.bytes(crate::xdr::pad(name.len()));
        if plus {
            put_plus(out, entry);
        } else {
            out.bytes(&entry.cookie.to_be_bytes());
        }
    }
    out.group::<8>(|g| g.u32(0).u32(listing.end as u32));
}

fn put_plus(out: &mut impl Sink, entry: &ListedEntry) {
    match &entry.plus {
        Some((attr, handle)) => {
            let handle = handle.as_slice();
            out.group::<104>(|g| {
                let attributes = g.u64(entry.cookie).u32(1).attributes(attr);
                attributes.u32(1).u32(handle.len() as u32)
            });
            out.bytes(handle);
            out.bytes(crate::xdr::pad(handle.len()));
        }
        None => out.group::<16>(|g| g.u64(entry.cookie).u64(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs3::{MODIFYING_BODY_BYTES_MAX, is_modifying};
    use crate::samples;

    #[test]
    fn all_sinks_agree() {
        let mut buf = vec![0xee; 1 << 16];
        for (procedure, response) in samples::responses() {
            let mut bytes = Vec::new();
            encode_body(&response, &mut bytes);
            assert_eq!(body_bytes(&response), bytes.len());
            assert_eq!(encode_body_to(&response, &mut buf), Some(bytes.len()));
            assert_eq!(buf[..bytes.len()], bytes);
            if !bytes.is_empty() {
                assert_eq!(encode_body_to(&response, &mut buf[..bytes.len() - 1]), None);
            }
            assert_eq!(bytes.len() % 4, 0);
            assert!(!is_modifying(procedure) || bytes.len() <= MODIFYING_BODY_BYTES_MAX);
        }
    }
}
