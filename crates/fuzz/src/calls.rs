//! Calls: one record from a client, decoded all the way: RPC, NFSv3, MOUNTv3, portmap, file handles.
//! Owns: the comparison of what a call means to us with what it means to `nfs3_types`.
//! Source: RFC 5531, RFC 1813, RFC 1833.
//!
//! Input: the record.

use harp_node::fs::handle::HandleMaker;
use harp_node::fs::request::{Credential, Request};
use harp_node::wire::incoming::{Body, decode};
use harp_node::wire::nfs3::{self, ArgsError, decode_args, encode_args, procedure_of};
use harp_node::wire::rpc::{
    self, Auth, Call, CallError, Refusal, begin_call, decode_call, decode_reply, encode_refusal,
};
use harp_node::wire::xdr::XdrError;
use harp_node::wire::{mount, portmap, samples};
use nfs3_types::xdr_codec::Unpack;
use nfs3_types::{mount as their_mount, portmap as their_portmap, rpc as their_rpc};

use crate::memory::within;
use crate::oracle;

/// One input.
pub fn run(record: &[u8]) {
    // Nothing is copied out of a call, so nothing is allocated for it.
    match within(0, || decode(record)) {
        Ok((call, body)) => {
            header_means_the_same(&call, record);
            match body {
                Body::Nfs(request) => on_nfs(&call, &request),
                Body::Mount(request) => on_mount(&call, &request),
                Body::Portmap(request) => on_portmap(&call, &request),
            }
        }
        Err(CallError::NotACall) => {}
        Err(CallError::Refused { xid, refusal }) => on_refusal(record, xid, refusal),
    }
}

/// The oracle must read the same header, to the same byte.
fn header_means_the_same(call: &Call<'_>, record: &[u8]) {
    let front = &record[..record.len() - call.args.len()];
    let Ok((theirs, used)) = their_rpc::rpc_msg::unpack(&mut &front[..]) else {
        // The oracle knows four flavors of a verifier; to us it means nothing.
        let word = |at: usize| u32::from_be_bytes(*front[at..].first_chunk().expect("a header"));
        let verifier = 32 + word(28).next_multiple_of(4) as usize;
        assert!(word(verifier) > 3, "the oracle cannot read the header");
        return;
    };
    assert_eq!(used, front.len(), "the headers end at different places");
    let their_rpc::msg_body::CALL(body) = theirs.body else { panic!("not a call to the oracle") };
    assert_eq!(
        (theirs.xid, body.prog, body.vers, body.proc),
        (call.xid, call.program, call.version, call.procedure)
    );
    let Auth::Sys(credential) = call.auth else { return };
    let mut bytes = &body.cred.body[..];
    let (sys, _) = their_rpc::auth_unix::unpack(&mut bytes).expect("the oracle reads AUTH_SYS");
    assert_eq!((sys.uid, sys.gid), (credential.uid, credential.gid));
    let groups: Vec<u8> = sys.gids.iter().flat_map(|gid| gid.to_be_bytes()).collect();
    assert_eq!(groups, credential.groups_be);
}

fn on_nfs(call: &Call<'_>, request: &Request<'_>) {
    let mut ours = Vec::new();
    encode_args(request, &mut ours);
    assert_eq!(procedure_of(request), call.procedure);
    assert_eq!(decode_args(call.procedure, &ours), Ok(*request), "it does not come back");
    match (oracle::args(call.procedure, call.args), request) {
        (Some(theirs), _) => assert_eq!(theirs, ours, "the oracle reads another {request:?}"),
        // The oracle knows only the kinds that MKNOD can make.
        (None, Request::MkNod { kind, .. }) if *kind as u32 <= 2 || *kind as u32 == 5 => {}
        (None, _) => panic!("the oracle cannot read {request:?}"),
    }
    handles_of(request).into_iter().flatten().for_each(on_handle);
}

fn handles_of<'a>(request: &Request<'a>) -> [Option<&'a [u8]>; 2] {
    match *request {
        Request::Null => [None, None],
        Request::GetAttr { handle }
        | Request::SetAttr { handle, .. }
        | Request::Access { handle, .. }
        | Request::ReadLink { handle }
        | Request::Read { handle, .. }
        | Request::Write { handle, .. }
        | Request::ReadDir { handle, .. }
        | Request::ReadDirPlus { handle, .. }
        | Request::FsStat { handle }
        | Request::FsInfo { handle }
        | Request::PathConf { handle }
        | Request::Commit { handle, .. } => [Some(handle), None],
        Request::Lookup { what }
        | Request::Create { what, .. }
        | Request::MkDir { what, .. }
        | Request::SymLink { what, .. }
        | Request::MkNod { what, .. }
        | Request::Remove { what }
        | Request::RmDir { what } => [Some(what.dir), None],
        Request::Rename { from, to } => [Some(from.dir), Some(to.dir)],
        Request::Link { handle, to } => [Some(handle), Some(to.dir)],
    }
}

fn handles() -> HandleMaker {
    HandleMaker::new(b"a group of three", 1, b"key of the group")
}

/// A handle that is taken is one that was made; whatever it names, the one made for it is taken.
fn on_handle(handle: &[u8]) {
    let maker = handles();
    if let Ok(target) = within(0, || maker.read(handle)) {
        assert_eq!(maker.make(target.ino, target.generation).as_slice(), handle);
    }
    if let Some(number) = handle.first_chunk() {
        let made = maker.make(u64::from_be_bytes(*number), handle.len() as u32);
        let target = maker.read(made.as_slice()).expect("it was made here");
        assert_eq!(target.ino, u64::from_be_bytes(*number));
    }
}

fn on_mount(call: &Call<'_>, request: &mount::Request<'_>) {
    let mut ours = Vec::new();
    assert_eq!(mount::encode_args(request, &mut ours), call.procedure);
    assert_eq!(mount::decode_args(call.procedure, &ours), Ok(*request));
    if let mount::Request::Mnt { path } | mount::Request::Umnt { path } = request {
        let theirs = their_mount::dirpath::unpack(&mut &call.args[..]).expect("the oracle reads");
        assert_eq!(&theirs.0.0[..], *path);
    }
}

fn on_portmap(call: &Call<'_>, request: &portmap::Request) {
    let mut ours = Vec::new();
    assert_eq!(portmap::encode_args(request, &mut ours), call.procedure);
    assert_eq!(portmap::decode_args(call.procedure, &ours), Ok(*request));
    let mut answer = Vec::new();
    portmap::encode_answer(request, 2049, &mut answer);
    if let portmap::Request::GetPort { program, version, protocol } = *request {
        let (theirs, _) =
            their_portmap::mapping::unpack(&mut &call.args[..]).expect("the oracle reads");
        assert_eq!((theirs.prog, theirs.vers, theirs.prot), (program, version, protocol));
        assert_eq!(answer.len(), 4);
    }
}

/// A refusal reaches the client as it was meant; and it is not one for a call that the oracle reads, unless
/// a bound of ours is passed.
fn on_refusal(record: &[u8], xid: u32, refusal: Refusal) {
    let mut answer = Vec::new();
    encode_refusal(xid, refusal, &mut answer);
    let reply = decode_reply(&answer[4..]).expect("our own refusal");
    assert_eq!((reply.xid, reply.outcome), (xid, Err(refusal)));
    let Ok(call) = decode_call(record) else { return };
    if (call.program, call.version) != (nfs3::PROGRAM, nfs3::VERSION) {
        return;
    }
    match decode_args(call.procedure, call.args) {
        Err(ArgsError::NoProcedure) => assert!(call.procedure > 21),
        Err(ArgsError::Garbage(error)) => {
            let bounded = match error {
                XdrError::TooLong { .. } => true,
                XdrError::BadValue(value) => value >= 1_000_000_000,
                // A write whose data is shorter than it counts.
                XdrError::Truncated => call.procedure == nfs3::proc::WRITE,
            };
            let theirs = oracle::args(call.procedure, call.args);
            assert!(bounded || theirs.is_none(), "{error}, but the oracle reads {theirs:02x?}");
        }
        Ok(request) => panic!("{request:?} was refused: {refusal}"),
    }
}

/// A call of every request that there is a sample of, and others.
pub fn seeds() -> Vec<Vec<u8>> {
    let groups_be: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 2];
    let sys = Auth::Sys(Credential { uid: 1000, gid: 100, groups_be });
    let call = |program, version, procedure, auth: &Auth<'_>, args: &[u8]| {
        let mut bytes = Vec::new();
        let mark = begin_call(7, program, version, procedure, auth, &mut bytes);
        bytes.extend_from_slice(args);
        rpc::finish(mark, &mut bytes);
        bytes.split_off(4)
    };
    let mut seeds = Vec::new();
    let made = handles().make(77, 3);
    let root = Request::GetAttr { handle: made.as_slice() };
    for (index, request) in samples::requests().into_iter().chain([root]).enumerate() {
        let mut args = Vec::new();
        encode_args(&request, &mut args);
        let auth = if index % 3 == 0 { &Auth::None } else { &sys };
        seeds.push(call(nfs3::PROGRAM, nfs3::VERSION, procedure_of(&request), auth, &args));
    }
    let path: &[u8] = b"/export";
    let mounts = [
        mount::Request::Null,
        mount::Request::Mnt { path },
        mount::Request::Dump,
        mount::Request::Umnt { path },
        mount::Request::UmntAll,
        mount::Request::Export,
    ];
    for request in mounts {
        let mut args = Vec::new();
        let procedure = mount::encode_args(&request, &mut args);
        seeds.push(call(mount::PROGRAM, mount::VERSION, procedure, &sys, &args));
    }
    let port = portmap::Request::GetPort { program: nfs3::PROGRAM, version: 3, protocol: 6 };
    for request in [portmap::Request::Null, port, portmap::Request::Dump] {
        let mut args = Vec::new();
        let procedure = portmap::encode_args(&request, &mut args);
        seeds.push(call(portmap::PROGRAM, portmap::VERSION, procedure, &Auth::None, &args));
    }
    seeds.push(call(nfs3::PROGRAM, 4, 1, &sys, b""));
    seeds.push(call(100_227, 3, 0, &sys, b""));
    seeds.push(call(nfs3::PROGRAM, nfs3::VERSION, 22, &sys, b""));
    seeds
}
