//! Our bytes against those of an independent codec, `nfs3_types`.
//! Owns: two comparisons: layout, for every sample, and the meaning of each field.
//! Never: trusts our own decoder.
//! Invariant: the oracle reads what we write to the last byte and writes the same again.
//! Source: the crate `nfs3_types`.

use harp_fs::request::*;
use nfs3_types::nfs3::{self as theirs, Nfs3Option, Nfs3Result};
use nfs3_types::xdr_codec::{List, Opaque, Pack, Unpack, Void};

use crate::nfs3::{decode_args, decode_body, encode_args, encode_body, proc, procedure_of};
use crate::samples::*;
use crate::xdr::pad;

/// Lets the oracle read `bytes` as a `T` and write them again.
fn same_layout<T: Pack + Unpack>(bytes: &[u8]) {
    let (value, used) = T::unpack(&mut &bytes[..]).expect("the oracle reads our bytes");
    assert_eq!(used, bytes.len(), "the oracle leaves bytes over");
    assert_eq!(packed(&value), bytes);
}

fn packed(value: &impl Pack) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.pack(&mut bytes).expect("the oracle writes");
    bytes
}

#[test]
fn arguments_have_the_layout_of_the_oracle() {
    for request in requests() {
        let mut bytes = Vec::new();
        encode_args(&request, &mut bytes);
        let b = &bytes[..];
        match procedure_of(&request) {
            proc::NULL => same_layout::<Void>(b),
            proc::GETATTR => same_layout::<theirs::GETATTR3args>(b),
            proc::SETATTR => same_layout::<theirs::SETATTR3args>(b),
            proc::LOOKUP => same_layout::<theirs::LOOKUP3args<'_>>(b),
            proc::ACCESS => same_layout::<theirs::ACCESS3args>(b),
            proc::READLINK => same_layout::<theirs::READLINK3args>(b),
            proc::READ => same_layout::<theirs::READ3args>(b),
            proc::WRITE => same_layout::<theirs::WRITE3args<'_>>(b),
            proc::CREATE => same_layout::<theirs::CREATE3args<'_>>(b),
            proc::MKDIR => same_layout::<theirs::MKDIR3args<'_>>(b),
            proc::SYMLINK => same_layout::<theirs::SYMLINK3args<'_>>(b),
            // The oracle knows only the kinds that MKNOD can make.
            proc::MKNOD if b.len() < 60 => {}
            proc::MKNOD => same_layout::<theirs::MKNOD3args<'_>>(b),
            proc::REMOVE => same_layout::<theirs::REMOVE3args<'_>>(b),
            proc::RMDIR => same_layout::<theirs::RMDIR3args<'_>>(b),
            proc::RENAME => same_layout::<theirs::RENAME3args<'_, '_>>(b),
            proc::LINK => same_layout::<theirs::LINK3args<'_>>(b),
            proc::READDIR => same_layout::<theirs::READDIR3args>(b),
            proc::READDIRPLUS => same_layout::<theirs::READDIRPLUS3args>(b),
            proc::FSSTAT => same_layout::<theirs::FSSTAT3args>(b),
            proc::FSINFO => same_layout::<theirs::FSINFO3args>(b),
            proc::PATHCONF => same_layout::<theirs::PATHCONF3args>(b),
            proc::COMMIT => same_layout::<theirs::COMMIT3args>(b),
            other => panic!("procedure {other}"),
        }
    }
}

#[test]
fn results_have_the_layout_of_the_oracle() {
    for (procedure, response) in responses() {
        let mut bytes = Vec::new();
        encode_body(&response, &mut bytes);
        if let Response::Read { status: Status::Ok, count, .. } = response {
            bytes.extend(vec![7; count as usize]);
            bytes.extend_from_slice(pad(count as usize));
        }
        let b = &bytes[..];
        match procedure {
            proc::NULL => same_layout::<Void>(b),
            proc::GETATTR => same_layout::<theirs::GETATTR3res>(b),
            proc::SETATTR => same_layout::<theirs::SETATTR3res>(b),
            proc::LOOKUP => same_layout::<theirs::LOOKUP3res>(b),
            proc::ACCESS => same_layout::<theirs::ACCESS3res>(b),
            proc::READLINK => same_layout::<theirs::READLINK3res<'_>>(b),
            proc::READ => same_layout::<theirs::READ3res<'_>>(b),
            proc::WRITE => same_layout::<theirs::WRITE3res>(b),
            proc::CREATE => same_layout::<theirs::CREATE3res>(b),
            proc::MKDIR => same_layout::<theirs::MKDIR3res>(b),
            proc::SYMLINK => same_layout::<theirs::SYMLINK3res>(b),
            proc::MKNOD => same_layout::<theirs::MKNOD3res>(b),
            proc::REMOVE => same_layout::<theirs::REMOVE3res>(b),
            proc::RMDIR => same_layout::<theirs::RMDIR3res>(b),
            proc::RENAME => same_layout::<theirs::RENAME3res>(b),
            proc::LINK => same_layout::<theirs::LINK3res>(b),
            proc::READDIR => same_layout::<theirs::READDIR3res<'_>>(b),
            proc::READDIRPLUS => same_layout::<theirs::READDIRPLUS3res<'_>>(b),
            proc::FSSTAT => same_layout::<theirs::FSSTAT3res>(b),
            proc::FSINFO => same_layout::<theirs::FSINFO3res>(b),
            proc::PATHCONF => same_layout::<theirs::PATHCONF3res>(b),
            proc::COMMIT => same_layout::<theirs::COMMIT3res>(b),
            other => panic!("procedure {other}"),
        }
    }
}

fn handle(bytes: &[u8]) -> theirs::nfs_fh3 {
    theirs::nfs_fh3 { data: Opaque::owned(bytes.to_vec()) }
}

fn dir_name(what: DirName<'static>) -> theirs::diropargs3<'static> {
    theirs::diropargs3 { dir: handle(what.dir), name: what.name.into() }
}

fn time(time: Time) -> theirs::nfstime3 {
    theirs::nfstime3 { seconds: time.seconds, nseconds: time.nanos }
}

fn set() -> theirs::sattr3 {
    let SetTime::ToClient(mtime) = SET.mtime else { panic!("the sample sets mtime") };
    theirs::sattr3 {
        mode: Nfs3Option::Some(SET.mode.unwrap()),
        uid: Nfs3Option::Some(SET.uid.unwrap()),
        gid: Nfs3Option::Some(SET.gid.unwrap()),
        size: Nfs3Option::Some(SET.size.unwrap()),
        atime: theirs::set_atime::SET_TO_SERVER_TIME,
        mtime: theirs::set_mtime::SET_TO_CLIENT_TIME(time(mtime)),
    }
}

#[test]
fn arguments_mean_to_us_what_they_mean_to_the_oracle() {
    let expect = |procedure, bytes: Vec<u8>, want: Request<'_>| {
        assert_eq!(decode_args(procedure, &bytes), Ok(want));
    };
    let create =
        theirs::CREATE3args { where_: dir_name(FROM), how: theirs::createhow3::GUARDED(set()) };
    let how = CreateHow::Guarded(SET);
    expect(proc::CREATE, packed(&create), Request::Create { what: FROM, how });
    let write = theirs::WRITE3args {
        file: handle(HANDLE),
        offset: 77,
        count: 5,
        stable: theirs::stable_how::DATA_SYNC,
        data: Opaque::borrowed(b"hello"),
    };
    let want = Request::Write { handle: HANDLE, offset: 77, count: 5, stable: 1, data: b"hello" };
    expect(proc::WRITE, packed(&write), want);
    let guard = Time { seconds: 8, nanos: 9 };
    let set_attr = theirs::SETATTR3args {
        object: handle(HANDLE),
        new_attributes: set(),
        guard: Nfs3Option::Some(time(guard)),
    };
    let want = Request::SetAttr { handle: HANDLE, set: SET, guard: Some(guard) };
    expect(proc::SETATTR, packed(&set_attr), want);
    let rename = theirs::RENAME3args { from: dir_name(FROM), to: dir_name(TO) };
    expect(proc::RENAME, packed(&rename), Request::Rename { from: FROM, to: TO });
    let lookup = theirs::LOOKUP3args { what: dir_name(TO) };
    expect(proc::LOOKUP, packed(&lookup), Request::Lookup { what: TO });
    let list = theirs::READDIRPLUS3args {
        dir: handle(HANDLE),
        cookie: 1,
        cookieverf: theirs::cookieverf3(*b"constant"),
        dircount: 2,
        maxcount: 3,
    };
    let (cookie, verifier) = (1, *b"constant");
    let want =
        Request::ReadDirPlus { handle: HANDLE, cookie, verifier, dir_count: 2, max_count: 3 };
    expect(proc::READDIRPLUS, packed(&list), want);
}

fn attributes() -> theirs::fattr3 {
    theirs::fattr3 {
        type_: theirs::ftype3::NF3REG,
        mode: ATTR.mode,
        nlink: ATTR.nlink,
        uid: ATTR.uid,
        gid: ATTR.gid,
        size: ATTR.size,
        used: ATTR.used,
        rdev: theirs::specdata3 { specdata1: ATTR.device.0, specdata2: ATTR.device.1 },
        fsid: ATTR.fsid,
        fileid: ATTR.fileid,
        atime: time(ATTR.atime),
        mtime: time(ATTR.mtime),
        ctime: time(ATTR.ctime),
    }
}

fn wcc() -> theirs::wcc_data {
    let before = theirs::wcc_attr {
        size: BEFORE.size,
        mtime: time(BEFORE.mtime),
        ctime: time(BEFORE.ctime),
    };
    theirs::wcc_data { before: Nfs3Option::Some(before), after: Nfs3Option::Some(attributes()) }
}

#[test]
fn results_mean_to_us_what_they_mean_to_the_oracle() {
    let expect = |procedure, response: Response, want: Vec<u8>| {
        let mut bytes = Vec::new();
        encode_body(&response, &mut bytes);
        assert_eq!(bytes, want, "{response:?}");
        assert_eq!(decode_body(procedure, &want).map(|decoded| decoded.response), Ok(response));
    };
    let (status, ours) = (Status::Ok, Wcc { before: Some(BEFORE), after: Some(ATTR) });
    let created = theirs::CREATE3resok {
        obj: Nfs3Option::Some(handle(HANDLE)),
        obj_attributes: Nfs3Option::Some(attributes()),
        dir_wcc: wcc(),
    };
    let ok = Some(HandleBytes::new(HANDLE));
    let response = Response::Create { status, ok, attr: Some(ATTR), dir: ours };
    expect(proc::CREATE, response, packed(&theirs::CREATE3res::Ok(created)));
    let failed: theirs::CREATE3res = Nfs3Result::Err((
        theirs::nfsstat3::NFS3ERR_EXIST,
        theirs::CREATE3resfail { dir_wcc: wcc() },
    ));
    let response = Response::Create { status: Status::Exist, ok: None, attr: None, dir: ours };
    expect(proc::CREATE, response, packed(&failed));
    let written = theirs::WRITE3resok {
        file_wcc: wcc(),
        count: 4096,
        committed: theirs::stable_how::FILE_SYNC,
        verf: theirs::writeverf3(*b"verifier"),
    };
    let response = Response::Write { status, wcc: ours, count: 4096, verifier: *b"verifier" };
    expect(proc::WRITE, response, packed(&theirs::WRITE3res::Ok(written)));
    let renamed = theirs::RENAME3resok { fromdir_wcc: wcc(), todir_wcc: Default::default() };
    let response = Response::Rename { status, from: ours, to: Wcc::default() };
    expect(proc::RENAME, response, packed(&theirs::RENAME3res::Ok(renamed)));
    let found = theirs::LOOKUP3resok {
        object: handle(HANDLE),
        obj_attributes: Nfs3Option::Some(attributes()),
        dir_attributes: Nfs3Option::None,
    };
    let response = Response::Lookup { status, ok, attr: Some(ATTR), dir: None };
    expect(proc::LOOKUP, response, packed(&theirs::LOOKUP3res::Ok(found)));
}

#[test]
fn listings_mean_to_us_what_they_mean_to_the_oracle() {
    let listing = listing(true);
    let entries = listing.entries.iter().map(|entry| theirs::entryplus3 {
        fileid: entry.fileid,
        name: listing.names[entry.name.clone()].into(),
        cookie: entry.cookie,
        name_attributes: match entry.plus {
            Some(_) => Nfs3Option::Some(attributes()),
            None => Nfs3Option::None,
        },
        name_handle: match entry.plus {
            Some((_, handle_bytes)) => Nfs3Option::Some(handle(handle_bytes.as_slice())),
            None => Nfs3Option::None,
        },
    });
    let listed = theirs::READDIRPLUS3resok {
        dir_attributes: Nfs3Option::Some(attributes()),
        cookieverf: theirs::cookieverf3(listing.verifier),
        reply: theirs::dirlistplus3 { entries: List(entries.collect()), eof: listing.end },
    };
    let want = packed(&theirs::READDIRPLUS3res::Ok(listed));
    let dir = Some(ATTR);
    let mut bytes = Vec::new();
    let response = Response::ReadDirPlus { status: Status::Ok, dir, listing: listing.clone() };
    encode_body(&response, &mut bytes);
    assert_eq!(bytes, want);
}
