//! Samples of every request and every result: what the tests begin from, here and where decoders are fuzzed.
//! Owns: at least one value per variant and per branch of the wire format.
//! Never: used by a server.
//! Invariant: every procedure occurs, every result in success and in failure.
//! Source: RFC 1813.

use harp_fs::request::*;

use crate::nfs3::proc;

/// A handle of an odd length.
pub const HANDLE: &[u8] = &[0xa5; 33];
/// A handle of the greatest length.
pub const OTHER: &[u8] = &[0x5a; 64];
/// A name in a directory.
pub const FROM: DirName<'static> = DirName { dir: HANDLE, name: b"a name" };
/// Another, of bytes that are no text.
pub const TO: DirName<'static> = DirName { dir: OTHER, name: b"\xff\0/not utf-8" };

/// Attributes to be set, each in another way.
pub const SET: SetAttr = SetAttr {
    mode: Some(0o4755),
    uid: Some(1000),
    gid: Some(u32::MAX - 1),
    size: Some(1 << 40),
    atime: SetTime::ToServer,
    mtime: SetTime::ToClient(Time { seconds: u32::MAX, nanos: 999_999_999 }),
};

/// Requests of every procedure.
pub fn requests() -> Vec<Request<'static>> {
    use Request::*;
    let none = harp_fs::request::SetAttr::default();
    let (handle, what, guard) = (HANDLE, FROM, Some(Time { seconds: 5, nanos: 6 }));
    let mut all = vec![
        Null,
        GetAttr { handle },
        SetAttr { handle, set: SET, guard },
        SetAttr { handle: &[], set: none, guard: None },
        Lookup { what },
        Lookup { what: DirName { dir: OTHER, name: b"" } },
        Access { handle, want: 0x3f },
        ReadLink { handle },
        Read { handle, offset: u64::MAX, count: 131_072 },
        Write { handle, offset: 1 << 33, count: 5, stable: 0, data: b"hello" },
        Write { handle, offset: 0, count: 3, stable: 2, data: b"more than counted" },
        Write { handle, offset: 0, count: 0, stable: 1, data: b"" },
        Create { what, how: CreateHow::Unchecked(SET) },
        Create { what: TO, how: CreateHow::Guarded(none) },
        Create { what, how: CreateHow::Exclusive(*b"verifier") },
        MkDir { what, set: SET },
        SymLink { what, set: none, target: b"../elsewhere" },
        Remove { what },
        RmDir { what },
        Rename { from: FROM, to: TO },
        Link { handle, to: TO },
        ReadDir { handle, cookie: 9, verifier: *b"constant", count: 4096 },
        ReadDirPlus { handle, cookie: 9, verifier: [0; 8], dir_count: 512, max_count: 8192 },
        FsStat { handle },
        FsInfo { handle },
        PathConf { handle },
        Commit { handle, offset: 4096, count: 0 },
    ];
    for number in 1..=7 {
        let kind = FileType::from_number(number).unwrap();
        let (set, device) = match kind {
            FileType::Block | FileType::Character => (SET, (8, 17)),
            FileType::Socket | FileType::Fifo => (SET, (0, 0)),
            _ => (none, (0, 0)),
        };
        all.push(MkNod { what, kind, set, device });
    }
    all
}

/// Attributes of a file.
pub const ATTR: Attributes = Attributes {
    kind: FileType::Regular,
    mode: 0o644,
    nlink: 2,
    uid: 1000,
    gid: 100,
    size: 0x0102_0304_0506_0708,
    used: 8192,
    device: (8, 1),
    fsid: 0x1122_3344_5566_7788,
    fileid: 77,
    atime: Time { seconds: 1, nanos: 2 },
    mtime: Time { seconds: 3, nanos: 4 },
    ctime: Time { seconds: 5, nanos: 999_999_999 },
};

/// What a reply tells of the time before.
pub const BEFORE: BeforeAttr = BeforeAttr {
    size: 12,
    mtime: Time { seconds: 13, nanos: 14 },
    ctime: Time { seconds: 15, nanos: 16 },
};

/// A directory's listing, with attributes and handles if `plus`.
pub fn listing(plus: bool) -> Listing {
    let mut listing = Listing { verifier: *b"constant", end: true, ..Listing::default() };
    for (i, name) in [&b"."[..], b"four", b"a longer name"].into_iter().enumerate() {
        let from = listing.names.len();
        listing.names.extend_from_slice(name);
        listing.entries.push(ListedEntry {
            fileid: 100 + i as u64,
            name: from..listing.names.len(),
            cookie: 3 + i as u64,
            plus: (plus && i != 1).then(|| (ATTR, HandleBytes::new(HANDLE))),
        });
    }
    listing
}

fn modifying_responses(all: &mut Vec<(u32, Response)>) {
    let attr = Some(ATTR);
    let handle = Some(HandleBytes::new(OTHER));
    let wccs = [
        Wcc { before: Some(BEFORE), after: attr },
        Wcc { before: None, after: attr },
        Wcc { before: Some(BEFORE), after: None },
        Wcc::default(),
    ];
    for wcc in wccs {
        for status in [Status::Ok, Status::Stale, Status::JukeBox] {
            let ok = status == Status::Ok;
            for procedure in [proc::SETATTR, proc::REMOVE, proc::RMDIR] {
                all.push((procedure, Response::Wcc { status, wcc }));
            }
            let (count, verifier) = if ok { (4096, *b"verifier") } else { (0, [0; 8]) };
            all.push((proc::WRITE, Response::Write { status, wcc, count, verifier }));
            all.push((proc::COMMIT, Response::Commit { status, wcc, verifier }));
            for procedure in [proc::CREATE, proc::MKDIR, proc::SYMLINK, proc::MKNOD] {
                let (found, attr) = if ok { (handle, attr) } else { (None, None) };
                all.push((procedure, Response::Create { status, ok: found, attr, dir: wcc }));
                all.push((procedure, Response::Create { status, ok: None, attr: None, dir: wcc }));
            }
            all.push((proc::RENAME, Response::Rename { status, from: wcc, to: wccs[0] }));
            all.push((proc::LINK, Response::Link { status, attr, dir: wcc }));
        }
    }
}

/// Results of every procedure, with its number.
pub fn responses() -> Vec<(u32, Response)> {
    use Status::*;
    let mut all = vec![(proc::NULL, Response::Null)];
    modifying_responses(&mut all);
    let handle = Some(HandleBytes::new(HANDLE));
    for attr in [Some(ATTR), None] {
        let mut add = |procedure, response| all.push((procedure, response));
        add(proc::GETATTR, Response::GetAttr { status: Ok, ok: Some(ATTR) });
        add(proc::GETATTR, Response::GetAttr { status: BadHandle, ok: None });
        add(proc::LOOKUP, Response::Lookup { status: Ok, ok: handle, attr, dir: Some(ATTR) });
        add(proc::LOOKUP, Response::Lookup { status: NoEnt, ok: None, attr: None, dir: attr });
        add(proc::ACCESS, Response::Access { status: Ok, attr, granted: 31 });
        add(proc::ACCESS, Response::Access { status: Io, attr, granted: 0 });
        add(proc::READLINK, Response::ReadLink { status: Ok, attr, target: b"there".to_vec() });
        add(proc::READLINK, Response::ReadLink { status: Inval, attr, target: Vec::new() });
        add(proc::READ, Response::Read { status: Ok, attr, count: 7, eof: true });
        add(proc::READ, Response::Read { status: IsDir, attr, count: 0, eof: false });
        let none = Listing::default;
        add(proc::READDIR, Response::ReadDir { status: Ok, dir: attr, listing: listing(false) });
        add(proc::READDIR, Response::ReadDir { status: NotDir, dir: attr, listing: none() });
        let listing = listing(true);
        add(proc::READDIRPLUS, Response::ReadDirPlus { status: Ok, dir: attr, listing });
        let listing = none();
        add(proc::READDIRPLUS, Response::ReadDirPlus { status: BadCookie, dir: attr, listing });
        add(proc::FSSTAT, Response::FsStat { status: Ok, attr, ok: Some(FS_STAT) });
        add(proc::FSSTAT, Response::FsStat { status: Stale, attr, ok: None });
        add(proc::FSINFO, Response::FsInfo { status: Ok, attr, ok: Some(FS_INFO) });
        add(proc::FSINFO, Response::FsInfo { status: Stale, attr, ok: None });
        add(proc::PATHCONF, Response::PathConf { status: Ok, attr, ok: Some(PATH_CONF) });
        add(proc::PATHCONF, Response::PathConf { status: Stale, attr, ok: None });
    }
    all
}

/// An answer of FSSTAT.
pub const FS_STAT: FsStat = FsStat {
    total_bytes: 1 << 40,
    free_bytes: 2,
    available_bytes: 3,
    total_files: 4,
    free_files: 5,
    available_files: 6,
    invar_seconds: 7,
};

/// An answer of FSINFO.
pub const FS_INFO: FsInfo = FsInfo {
    read_max: 1,
    read_preferred: 2,
    read_multiple: 3,
    write_max: 4,
    write_preferred: 5,
    write_multiple: 6,
    dir_preferred: 7,
    file_size_max: 1 << 60,
    time_delta: Time { seconds: 0, nanos: 1 },
    properties: 0x1b,
};

/// An answer of PATHCONF.
pub const PATH_CONF: PathConf = PathConf {
    link_max: 32_000,
    name_max: 255,
    no_trunc: true,
    chown_restricted: false,
    case_insensitive: false,
    case_preserving: true,
};
