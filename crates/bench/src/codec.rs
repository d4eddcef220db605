//! Codec: what decoding a call and encoding its reply costs.
//! Owns: a table of nanoseconds per operation on this machine.
//! Never: touches a socket.
//! Invariant: what is measured is what a server does with a record, from its bytes to its reply's.
//! Source: the budget: well under 200 ns for a CREATE.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use harp_wire::incoming::decode;
use harp_wire::nfs3;
use harp_wire::record::{RECORD_BYTES_MAX, Split, split};
use harp_wire::request::*;
use harp_wire::rpc::{Auth, begin_call, begin_reply, finish};

/// Rounds to warm up, and as many to measure.
const ROUNDS: u32 = 200_000;
const GROUPS: &[u8] = &[0; 32];
const HANDLE: &[u8] = &[7; 48];

fn attributes() -> Attributes {
    let time = Time { seconds: 1_700_000_000, nanos: 123_456_789 };
    Attributes {
        kind: FileType::Regular,
        mode: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 1000,
        size: 4096,
        used: 4096,
        device: (0, 0),
        fsid: 1,
        fileid: 77,
        atime: time,
        mtime: time,
        ctime: time,
    }
}

fn cases() -> Vec<(&'static str, Request<'static>, Response)> {
    let what = DirName { dir: HANDLE, name: b"a-file-of-usual-length" };
    let attr = attributes();
    let before = BeforeAttr { size: 1, mtime: attr.mtime, ctime: attr.ctime };
    let wcc = Wcc { before: Some(before), after: Some(attr) };
    let (status, some) = (Status::Ok, Some(attr));
    let ok = Some(HandleBytes::new(HANDLE));
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    let write = |data: &'static [u8]| Request::Write {
        handle: HANDLE,
        offset: 0,
        count: data.len() as u32,
        stable: 2,
        data,
    };
    let written = Response::Write { status, wcc, count: 4096, verifier: [1; 8] };
    vec![
        (
            "create",
            Request::Create { what, how: CreateHow::Unchecked(set) },
            Response::Create { status, ok, attr: some, dir: wcc },
        ),
        ("write4k", write(&[5; 4096]), written.clone()),
        ("write128k", write(&[5; 131_072]), written),
        ("getattr", Request::GetAttr { handle: HANDLE }, Response::GetAttr { status, ok: some }),
        (
            "lookup",
            Request::Lookup { what },
            Response::Lookup { status, ok, attr: some, dir: some },
        ),
        (
            "rename",
            Request::Rename { from: what, to: what },
            Response::Rename { status, from: wcc, to: wcc },
        ),
        ("remove", Request::Remove { what }, Response::Wcc { status, wcc }),
    ]
}

/// Measures every case and writes one line for each to `out`.
pub fn run(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<10} {:>10} {:>10} {:>10}", "call", "decode ns", "encode ns", "client ns")?;
    for (name, request, response) in cases() {
        let auth = Auth::Sys(Credential { uid: 1000, gid: 1000, groups_be: GROUPS });
        let procedure = nfs3::procedure_of(&request);
        let mut call = Vec::new();
        let encode_call = |call: &mut Vec<u8>| {
            call.clear();
            let mark = begin_call(1, nfs3::PROGRAM, nfs3::VERSION, procedure, &auth, call);
            nfs3::encode_args(black_box(&request), call);
            finish(mark, call);
        };
        encode_call(&mut call);
        let decode_ns = per_round(|| {
            let Ok(Split::Complete { record }) = split(black_box(&call), RECORD_BYTES_MAX) else {
                unreachable!("one whole record")
            };
            black_box(decode(&call[record]).is_ok());
        });
        let mut reply = Vec::with_capacity(512);
        let encode_ns = per_round(|| {
            reply.clear();
            let mark = begin_reply(black_box(1), &mut reply);
            nfs3::encode_body(black_box(&response), &mut reply);
            finish(mark, &mut reply);
            black_box(&reply);
        });
        let mut buffer = Vec::new();
        let client_ns = per_round(|| encode_call(black_box(&mut buffer)));
        writeln!(out, "{name:<10} {decode_ns:>10.1} {encode_ns:>10.1} {client_ns:>10.1}")?;
    }
    Ok(())
}

/// Nanoseconds that one call of `work` takes, over many.
fn per_round(mut work: impl FnMut()) -> f64 {
    (0..ROUNDS).for_each(|_| work());
    let begin = Instant::now();
    (0..ROUNDS).for_each(|_| work());
    begin.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}
