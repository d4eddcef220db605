//! Typed file requests and their results: the words between a front end and [`crate::plan`].
//! Owns: the shape of every NFSv3 operation, without its bytes.
//! Never: knows XDR, sockets, or which server it runs on.
//! Invariant: everything borrowed here points into the caller's receive buffer; nothing is copied.
//! Source: RFC 1813; the names are its names.

/// A point in time as NFS sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970, unsigned as in RFC 1813.
    pub seconds: u32,
    /// Nanoseconds below 1,000,000,000.
    pub nanos: u32,
}

/// Who asks: the AUTH_SYS credential after squashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups as on the wire, big-endian u32 each: at most 16 from there, more where a server looked
    /// them up.
    pub groups_be: &'a [u8],
}

impl Credential<'_> {
    /// Whether `gid` is the effective or one of the supplementary groups.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups_be.chunks_exact(4).any(|g| g == gid.to_be_bytes())
    }
}

/// Kind of a file-system object (RFC 1813 `ftype3`; the numbers are the wire's and the store's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Block device.
    Block = 3,
    /// Character device.
    Character = 4,
    /// Symbolic link.
    Symlink = 5,
    /// Socket.
    Socket = 6,
    /// FIFO.
    Fifo = 7,
}

impl FileType {
    /// The type with this number, if there is one.
    pub fn from_number(number: u32) -> Option<FileType> {
        use FileType::*;
        [Regular, Directory, Block, Character, Symlink, Socket, Fifo]
            .into_iter()
            .find(|t| *t as u32 == number)
    }
}

/// What a client wants a time to become (`set_atime`, `set_mtime`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// The server's time of this operation.
    ToServer,
    /// The client's.
    ToClient(Time),
}

/// `sattr3`: what SETATTR and the creating procedures may set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
}

/// A directory's handle and a name in it (`diropargs3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirName<'a> {
    /// The directory's handle, as received: any bytes, at most 64.
    pub dir: &'a [u8],
    /// The name, as received: any bytes; `plan` judges its length and content.
    pub name: &'a [u8],
}

/// CREATE's three modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// Take what is there; set only the size of an existing file.
    Unchecked(SetAttr),
    /// EXIST when there is one.
    Guarded(SetAttr),
    /// EXIST unless the existing file was created with this very verifier.
    Exclusive([u8; 8]),
}

/// One NFSv3 request, decoded in place. `handle`s are raw bytes (at most 64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub enum Request<'a> {
    Null,
    GetAttr {
        handle: &'a [u8],
    },
    SetAttr {
        handle: &'a [u8],
        set: SetAttr,
        guard: Option<Time>,
    },
    Lookup {
        what: DirName<'a>,
    },
    Access {
        handle: &'a [u8],
        want: u32,
    },
    ReadLink {
        handle: &'a [u8],
    },
    Read {
        handle: &'a [u8],
        offset: u64,
        count: u32,
    },
    /// `data` may be longer than `count`; only `count` bytes are written.
    Write {
        handle: &'a [u8],
        offset: u64,
        count: u32,
        stable: u32,
        data: &'a [u8],
    },
    Create {
        what: DirName<'a>,
        how: CreateHow,
    },
    MkDir {
        what: DirName<'a>,
        set: SetAttr,
    },
    SymLink {
        what: DirName<'a>,
        set: SetAttr,
        target: &'a [u8],
    },
    MkNod {
        what: DirName<'a>,
        kind: FileType,
        set: SetAttr,
        device: (u32, u32),
    },
    Remove {
        what: DirName<'a>,
    },
    RmDir {
        what: DirName<'a>,
    },
    Rename {
        from: DirName<'a>,
        to: DirName<'a>,
    },
    Link {
        handle: &'a [u8],
        to: DirName<'a>,
    },
    ReadDir {
        handle: &'a [u8],
        cookie: u64,
        verifier: [u8; 8],
        count: u32,
    },
    ReadDirPlus {
        handle: &'a [u8],
        cookie: u64,
        verifier: [u8; 8],
        dir_count: u32,
        max_count: u32,
    },
    FsStat {
        handle: &'a [u8],
    },
    FsInfo {
        handle: &'a [u8],
    },
    PathConf {
        handle: &'a [u8],
    },
    Commit {
        handle: &'a [u8],
        offset: u64,
        count: u32,
    },
}

/// `nfsstat3`, the ones Harp answers; the discriminants are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)] // the names are RFC 1813's
pub enum Status {
    Ok = 0,
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    Access = 13,
    Exist = 17,
    XDev = 18,
    NotDir = 20,
    IsDir = 21,
    Inval = 22,
    FBig = 27,
    NoSpc = 28,
    ReadOnly = 30,
    MLink = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    DQuot = 69,
    Stale = 70,
    BadHandle = 10001,
    NotSync = 10002,
    BadCookie = 10003,
    NotSupp = 10004,
    TooSmall = 10005,
    ServerFault = 10006,
    BadType = 10007,
    JukeBox = 10008,
}

/// `fattr3`: everything NFS shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Kind.
    pub kind: FileType,
    /// Permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of storage used.
    pub used: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The file system's identity, the same on every server.
    pub fsid: u64,
    /// The inode number.
    pub fileid: u64,
    /// Last access.
    pub atime: Time,
    /// Last modification of the data.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
}

/// `wcc_attr`: what a client compares with its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeforeAttr {
    /// Length before.
    pub size: u64,
    /// Modification time before.
    pub mtime: Time,
    /// Change time before.
    pub ctime: Time,
}

/// `wcc_data`: attributes before and after, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wcc {
    /// Before the operation.
    pub before: Option<BeforeAttr>,
    /// After it.
    pub after: Option<Attributes>,
}

/// An encoded file handle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HandleBytes {
    len: u8,
    bytes: [u8; 64],
}

impl HandleBytes {
    /// Copies `bytes`. Panics above 64: handles are made here, never taken from the wire.
    pub fn new(bytes: &[u8]) -> HandleBytes {
        let mut all = [0; 64];
        all[..bytes.len()].copy_from_slice(bytes);
        HandleBytes { len: bytes.len() as u8, bytes: all }
    }

    /// The bytes that go on the wire.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl std::fmt::Debug for HandleBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_slice().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// One entry of READDIR or READDIRPLUS. `name` lies in [`Listing::names`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// Inode number.
    pub fileid: u64,
    /// Where the name lies in [`Listing::names`].
    pub name: std::ops::Range<usize>,
    /// Position after this entry, for the next call.
    pub cookie: u64,
    /// READDIRPLUS: attributes and handle, if known.
    pub plus: Option<(Attributes, HandleBytes)>,
}

/// The entries that one READDIR or READDIRPLUS returns; they fit the sizes the client gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// All names, back to back.
    pub names: Vec<u8>,
    /// The entries in cookie order.
    pub entries: Vec<ListedEntry>,
    /// Whether the listing reaches the directory's end.
    pub end: bool,
    /// The directory's constant cookie verifier.
    pub verifier: [u8; 8],
}

/// The result of a request: its status and the body RFC 1813 gives that status.
///
/// A variant's `attr` and `wcc` fields are filled on failure too, where they are known; the fields
/// in `Option<...>` named `ok` exist exactly when `status` is [`Status::Ok`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub enum Response {
    Null,
    GetAttr {
        status: Status,
        ok: Option<Attributes>,
    },
    /// SETATTR, REMOVE, RMDIR: a status and one `wcc_data`.
    Wcc {
        status: Status,
        wcc: Wcc,
    },
    Lookup {
        status: Status,
        ok: Option<HandleBytes>,
        attr: Option<Attributes>,
        dir: Option<Attributes>,
    },
    Access {
        status: Status,
        attr: Option<Attributes>,
        granted: u32,
    },
    ReadLink {
        status: Status,
        attr: Option<Attributes>,
        target: Vec<u8>,
    },
    /// The data follows apart: `count` bytes that the caller appends (and pads) itself.
    Read {
        status: Status,
        attr: Option<Attributes>,
        count: u32,
        eof: bool,
    },
    Write {
        status: Status,
        wcc: Wcc,
        count: u32,
        verifier: [u8; 8],
    },
    /// CREATE, MKDIR, SYMLINK, MKNOD.
    Create {
        status: Status,
        ok: Option<HandleBytes>,
        attr: Option<Attributes>,
        dir: Wcc,
    },
    Rename {
        status: Status,
        from: Wcc,
        to: Wcc,
    },
    Link {
        status: Status,
        attr: Option<Attributes>,
        dir: Wcc,
    },
    ReadDir {
        status: Status,
        dir: Option<Attributes>,
        listing: Listing,
    },
    ReadDirPlus {
        status: Status,
        dir: Option<Attributes>,
        listing: Listing,
    },
    FsStat {
        status: Status,
        attr: Option<Attributes>,
        ok: Option<FsStat>,
    },
    FsInfo {
        status: Status,
        attr: Option<Attributes>,
        ok: Option<FsInfo>,
    },
    PathConf {
        status: Status,
        attr: Option<Attributes>,
        ok: Option<PathConf>,
    },
    Commit {
        status: Status,
        wcc: Wcc,
        verifier: [u8; 8],
    },
}

/// FSSTAT's numbers, in bytes and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub struct FsStat {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub available_bytes: u64,
    pub total_files: u64,
    pub free_files: u64,
    pub available_files: u64,
    pub invar_seconds: u32,
}

/// FSINFO's numbers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub struct FsInfo {
    pub read_max: u32,
    pub read_preferred: u32,
    pub read_multiple: u32,
    pub write_max: u32,
    pub write_preferred: u32,
    pub write_multiple: u32,
    pub dir_preferred: u32,
    pub file_size_max: u64,
    pub time_delta: Time,
    pub properties: u32,
}

/// PATHCONF's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are those of RFC 1813, by name
pub struct PathConf {
    pub link_max: u32,
    pub name_max: u32,
    pub no_trunc: bool,
    pub chown_restricted: bool,
    pub case_insensitive: bool,
    pub case_preserving: bool,
}
