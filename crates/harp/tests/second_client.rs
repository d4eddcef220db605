//! Another hand's client (`nfs3_client`) uses every procedure, and its handles outlive the primary.
//!
//! Story: the ports come from the portmapper, the handle of `/` from MOUNT; each of the 22 procedures of NFSv3
//! does what RFC 1813 says of it, in success and in its most usual failure; the primary is killed; through new
//! connections the same handles show the same files.

#[path = "common/blocking.rs"]
mod blocking;
mod common;

use std::io::{ErrorKind, Result as IoResult};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use blocking::{Blocking, done};
use common::{Group, PATIENCE};
use nfs3_client::net::Connector;
use nfs3_client::nfs3_types::nfs3::*;
use nfs3_client::nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use nfs3_client::{ConnectError, Nfs3ConnectionBuilder};
use rustix::process::{Signal, kill_process};

struct Connect;

impl Connector for Connect {
    type Connection = Blocking;

    async fn connect(&self, address: SocketAddr) -> IoResult<Blocking> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Blocking(stream))
    }

    async fn connect_with_port(&self, _: SocketAddr, _: u16) -> IoResult<Blocking> {
        Err(ErrorKind::Unsupported.into())
    }
}

type Connection = nfs3_client::Nfs3Connection<Blocking>;

fn mount(group: &Group) -> Result<Connection, ConnectError> {
    let root = auth_unix { machinename: Opaque::borrowed(b"second"), ..auth_unix::default() };
    let builder = Nfs3ConnectionBuilder::new(Connect, group.nfs.ip().to_string(), "/")
        .portmapper_port(group.nfs.port())
        .connect_from_privileged_port(false)
        .credential(opaque_auth::auth_unix(&root));
    done(builder.mount())
}

/// Makes a call that must be answered with success.
macro_rules! ok {
    ($client:ident . $procedure:ident ( $($argument:tt)* )) => {
        match done($client.$procedure(&$($argument)*)).expect("an answer") {
            Nfs3Result::Ok(ok) => ok,
            Nfs3Result::Err((status, _)) => panic!("{}: {status:?}", stringify!($procedure)),
        }
    };
}

/// Makes a call that must be answered with an error, which is the result.
macro_rules! refused {
    ($client:ident . $procedure:ident ( $($argument:tt)* )) => {
        match done($client.$procedure(&$($argument)*)).expect("an answer") {
            Nfs3Result::Ok(_) => panic!("{} went well", stringify!($procedure)),
            Nfs3Result::Err((status, _)) => status,
        }
    };
}

fn at<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: filename3(Opaque::borrowed(name.as_bytes())) }
}

fn mode(mode: u32) -> sattr3 {
    sattr3 { mode: Nfs3Option::Some(mode), ..sattr3::default() }
}

fn attributes(client: &mut Connection, object: &nfs_fh3) -> fattr3 {
    ok!(client.getattr(GETATTR3args { object: object.clone() })).obj_attributes
}

fn find(client: &mut Connection, dir: &nfs_fh3, name: &str) -> nfs_fh3 {
    ok!(client.lookup(LOOKUP3args { what: at(dir, name) })).object
}

/// Numbers of the file system: FSINFO, FSSTAT, PATHCONF, and NULL.
fn asks_for_limits(client: &mut Connection, root: &nfs_fh3) {
    done(client.null()).expect("an answer");
    let info = ok!(client.fsinfo(FSINFO3args { fsroot: root.clone() }));
    assert!(info.rtmax >= 65_536 && info.wtmax >= 65_536, "{info:?}");
    let wanted = FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME;
    assert_eq!(info.properties & wanted, wanted);
    let stat = ok!(client.fsstat(FSSTAT3args { fsroot: root.clone() }));
    assert!(stat.fbytes <= stat.tbytes && stat.abytes <= stat.fbytes && stat.tbytes > 0);
    assert!(stat.ffiles <= stat.tfiles && stat.tfiles > 0);
    let limits = ok!(client.pathconf(PATHCONF3args { object: root.clone() }));
    assert!(limits.name_max == 255 && limits.no_trunc && limits.case_preserving);
    assert!(!limits.case_insensitive && limits.linkmax > 1);
}

/// The three modes of CREATE, SETATTR with its guard, ACCESS.
fn makes_a_file(client: &mut Connection, dir: &nfs_fh3) -> nfs_fh3 {
    let create = |name, how| CREATE3args { where_: at(dir, name), how };
    ok!(client.create(create("file", createhow3::GUARDED(mode(0o640)))));
    let again = refused!(client.create(create("file", createhow3::GUARDED(mode(0o600)))));
    assert_eq!(again, nfsstat3::NFS3ERR_EXIST);
    ok!(client.create(create("file", createhow3::UNCHECKED(sattr3::default()))));
    let file = find(client, dir, "file");
    assert_eq!(attributes(client, &file).mode & 0o7777, 0o640);

    let once = || createhow3::EXCLUSIVE(createverf3(*b"one verf"));
    ok!(client.create(create("exclusive", once())));
    ok!(client.create(create("exclusive", once())));
    let other = createhow3::EXCLUSIVE(createverf3(*b"another "));
    assert_eq!(refused!(client.create(create("exclusive", other))), nfsstat3::NFS3ERR_EXIST);

    let before = attributes(client, &file);
    let set = |guard| SETATTR3args {
        object: file.clone(),
        new_attributes: sattr3 { size: Nfs3Option::Some(10), ..mode(0o600) },
        guard,
    };
    let stale = nfstime3 { seconds: before.ctime.seconds - 1, nseconds: 0 };
    let status = refused!(client.setattr(set(Nfs3Option::Some(stale))));
    assert_eq!(status, nfsstat3::NFS3ERR_NOT_SYNC);
    ok!(client.setattr(set(Nfs3Option::Some(before.ctime))));
    let after = attributes(client, &file);
    assert_eq!((after.size, after.mode & 0o7777, after.fileid), (10, 0o600, before.fileid));

    let all = ACCESS3_READ | ACCESS3_MODIFY | ACCESS3_EXTEND;
    let access = ok!(client.access(ACCESS3args { object: file.clone(), access: all }));
    assert_eq!(access.access, all, "root may");
    file
}

/// WRITE, READ and COMMIT.
fn writes_and_reads(client: &mut Connection, file: &nfs_fh3) {
    let data: Vec<u8> = (0..70_000u32).map(|byte| (byte % 251) as u8).collect();
    let mut verifiers = Vec::new();
    for (offset, part) in [(5, &data[..40_000]), (40_005, &data[40_000..])] {
        let args = WRITE3args {
            file: file.clone(),
            offset,
            count: part.len() as u32,
            stable: stable_how::UNSTABLE,
            data: Opaque::borrowed(part),
        };
        let written = ok!(client.write(args));
        assert_eq!(written.count as usize, part.len());
        assert_eq!(written.committed, stable_how::FILE_SYNC, "whatever was asked for");
        verifiers.push(written.verf.0);
    }
    let commit = ok!(client.commit(COMMIT3args { file: file.clone(), offset: 0, count: 0 }));
    assert!(verifiers.iter().all(|verifier| *verifier == commit.verf.0));

    let mut read = Vec::new();
    loop {
        let offset = read.len() as u64;
        let part = ok!(client.read(READ3args { file: file.clone(), offset, count: 32_768 }));
        assert_eq!(part.count as usize, part.data.len());
        read.extend_from_slice(&part.data);
        if part.eof {
            break;
        }
        assert!(part.count > 0, "it goes on");
    }
    assert_eq!((&read[..5], &read[5..]), (&[0; 5][..], &data[..]));
    wait_for_access_time(client, file);
    let beyond = ok!(client.read(READ3args { file: file.clone(), offset: 1 << 40, count: 9 }));
    assert!(beyond.eof && beyond.count == 0);
}

/// Access times are recorded a moment after the first read since a change, and only then.
fn wait_for_access_time(client: &mut Connection, file: &nfs_fh3) {
    let time = |t: &nfstime3| (t.seconds, t.nseconds);
    for _ in 0..400 {
        let seen = attributes(client, file);
        if time(&seen.atime) > time(&seen.mtime) {
            assert!(time(&seen.atime) > time(&seen.ctime), "reading is no change: {seen:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a file was read, and its access time stays: {:?}", attributes(client, file));
}

/// SYMLINK, READLINK, MKNOD, LINK, RENAME.
fn makes_other_names(client: &mut Connection, dir: &nfs_fh3, file: &nfs_fh3) {
    let target = || nfspath3(Opaque::borrowed(b"../to/somewhere"));
    let symlink = symlinkdata3 { symlink_attributes: sattr3::default(), symlink_data: target() };
    ok!(client.symlink(SYMLINK3args { where_: at(dir, "symlink"), symlink }));
    let symlink = find(client, dir, "symlink");
    assert_eq!(ok!(client.readlink(READLINK3args { symlink: symlink.clone() })).data.0, target().0);
    assert_eq!(attributes(client, &symlink).type_, ftype3::NF3LNK);
    let status = refused!(client.readlink(READLINK3args { symlink: file.clone() }));
    assert_eq!(status, nfsstat3::NFS3ERR_INVAL);

    let device = || {
        let spec = specdata3 { specdata1: 5, specdata2: 1 };
        devicedata3 { dev_attributes: mode(0o600), spec }
    };
    let nodes = [
        ("fifo", mknoddata3::NF3FIFO(mode(0o600)), ftype3::NF3FIFO),
        ("socket", mknoddata3::NF3SOCK(mode(0o600)), ftype3::NF3SOCK),
        ("character", mknoddata3::NF3CHR(device()), ftype3::NF3CHR),
        ("block", mknoddata3::NF3BLK(device()), ftype3::NF3BLK),
    ];
    for (name, what, kind) in nodes {
        let numbered = matches!(kind, ftype3::NF3CHR | ftype3::NF3BLK);
        ok!(client.mknod(MKNOD3args { where_: at(dir, name), what }));
        let node = find(client, dir, name);
        let found = attributes(client, &node);
        assert_eq!(found.type_, kind, "{name}");
        if numbered {
            assert_eq!((found.rdev.specdata1, found.rdev.specdata2), (5, 1), "{name}");
        }
    }

    ok!(client.link(LINK3args { file: file.clone(), link: at(dir, "link") }));
    assert_eq!(attributes(client, file).nlink, 2);
    assert_eq!(find(client, dir, "link"), *file);
    ok!(client.rename(RENAME3args { from: at(dir, "link"), to: at(dir, "renamed") }));
    let gone = refused!(client.lookup(LOOKUP3args { what: at(dir, "link") }));
    assert_eq!(gone, nfsstat3::NFS3ERR_NOENT);
    assert_eq!(find(client, dir, "renamed"), *file);
}

/// READDIR and READDIRPLUS, in small pieces; both show the same.
fn lists(client: &mut Connection, dir: &nfs_fh3) -> Vec<String> {
    let text = |name: &filename3<'_>| String::from_utf8(name.0.to_vec()).expect("our names");
    let (mut plain, mut cookie, mut cookieverf) = (Vec::new(), 0, cookieverf3::default());
    loop {
        let args = READDIR3args { dir: dir.clone(), cookie, cookieverf, count: 300 };
        let page = ok!(client.readdir(args));
        let entries = &page.reply.entries.0;
        plain.extend(entries.iter().map(|entry| (text(&entry.name), entry.fileid)));
        cookieverf = page.cookieverf;
        cookie = entries.last().map_or(cookie, |entry| entry.cookie);
        if page.reply.eof {
            break;
        }
        assert!(!entries.is_empty(), "it goes on");
    }
    let (mut plus, mut cookie, mut cookieverf) = (Vec::new(), 0, cookieverf3::default());
    loop {
        let dir = dir.clone();
        let args = READDIRPLUS3args { dir, cookie, cookieverf, dircount: 200, maxcount: 1_200 };
        let page = ok!(client.readdirplus(args));
        for entry in &page.reply.entries.0 {
            plus.push((text(&entry.name), entry.fileid));
            if let (Nfs3Option::Some(found), Nfs3Option::Some(handle)) =
                (&entry.name_attributes, &entry.name_handle)
            {
                assert_eq!(found.fileid, entry.fileid);
                assert_eq!(attributes(client, handle).fileid, entry.fileid);
            }
        }
        cookieverf = page.cookieverf;
        cookie = page.reply.entries.0.last().map_or(cookie, |entry| entry.cookie);
        if page.reply.eof {
            break;
        }
        assert!(!page.reply.entries.0.is_empty(), "it goes on");
    }
    assert_eq!(plain, plus);
    let mut names: Vec<String> = plain.into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// REMOVE and RMDIR, and what a handle is worth afterwards.
fn removes(client: &mut Connection, root: &nfs_fh3, dir: &nfs_fh3, names: &[String]) {
    let status = refused!(client.rmdir(RMDIR3args { object: at(root, "dir") }));
    assert_eq!(status, nfsstat3::NFS3ERR_NOTEMPTY);
    let file = find(client, dir, "file");
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        ok!(client.remove(REMOVE3args { object: at(dir, name) }));
    }
    let status = refused!(client.getattr(GETATTR3args { object: file }));
    assert_eq!(status, nfsstat3::NFS3ERR_STALE);
    ok!(client.rmdir(RMDIR3args { object: at(root, "dir") }));
    let gone = refused!(client.lookup(LOOKUP3args { what: at(root, "dir") }));
    assert_eq!(gone, nfsstat3::NFS3ERR_NOENT);
}

#[test]
fn a_second_client_uses_all_procedures_and_outlives_the_primary() {
    let group = Group::new("second-client");
    let place = group.dir.clone();
    let mut client = mount(&group).expect("mounts");
    let root = client.root_nfs_fh3();
    asks_for_limits(&mut client, &root);
    ok!(client.mkdir(MKDIR3args { where_: at(&root, "dir"), attributes: mode(0o755) }));
    let dir = find(&mut client, &root, "dir");
    let file = makes_a_file(&mut client, &dir);
    writes_and_reads(&mut client, &file);
    makes_other_names(&mut client, &dir, &file);
    let names = lists(&mut client, &dir);
    let made = ["block", "character", "exclusive", "fifo", "file", "renamed", "socket", "symlink"];
    assert_eq!(names, [&[".", ".."], &made[..]].concat());
    removes(&mut client, &root, &dir, &names);

    let kept = makes_a_file(&mut client, &root);
    writes_and_reads(&mut client, &kept);
    let before = format!("{:?}", attributes(&mut client, &kept));
    kill_process(group.pid("a"), Signal::KILL).expect("it runs");
    done(client.null()).expect_err("reset");
    // The next view may take over while we look, when the killed server is back.
    let again = (0..100).find_map(|_| {
        let again = look_again(&group, &kept);
        if again.is_none() {
            std::thread::sleep(Duration::from_millis(100));
        }
        again
    });
    assert_eq!(again, Some((root, before)));
    group.stop();
    std::fs::remove_dir_all(&place).expect("removes");
}

/// The root's handle and a file's attributes, over new connections; `None` if one broke.
fn look_again(group: &Group, file: &nfs_fh3) -> Option<(nfs_fh3, String)> {
    let mut client = mount(group).ok()?;
    let root = client.root_nfs_fh3();
    let found = done(client.getattr(&GETATTR3args { object: file.clone() })).ok()?;
    done(client.unmount()).ok()?;
    Some((root, format!("{:?}", found.unwrap().obj_attributes)))
}
