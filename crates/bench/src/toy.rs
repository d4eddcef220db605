//! Toy: an NFS server in memory for the tests of the client and the recorder, with faults.
//! Owns: a small file system, a reply cache, and the planted faults.
//! Never: leaves the tests.
//! Invariant: without a planted fault it is a faithful server whose network is bad.
//! Source: RFC 1813, as far as the recorder and the load need it.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use harp_wire::incoming::{Body, decode};
use harp_wire::nfs3;
use harp_wire::record::{RECORD_BYTES_MAX, Split, split};
use harp_wire::request::*;
use harp_wire::rpc::{CallError, begin_reply, encode_refusal, finish};
use harp_wire::xdr::pad;
use harp_wire::{mount, portmap};

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// After every so many calls, the call is executed and the connection closed unanswered; the
    /// first hundred calls are spared.
    pub drop_reply_every: u64,
    /// After every so many calls, the call is executed, and its reply forgotten to be sent.
    pub swallow_reply_every: u64,
    /// Repeated calls are executed again.
    pub forgets_replies: bool,
    /// From this WRITE on, counted from 1, twenty are acknowledged and not done; 0 for none. One
    /// alone might be written over or removed, and rightly be missed by nobody.
    pub loses_writes: u64,
    /// Likewise of RENAME.
    pub loses_renames: u64,
    /// Every so many modifying calls are answered with JUKEBOX.
    pub jukebox_every: u64,
    /// Every so many modifying calls are refused for want of space.
    pub full_every: u64,
}

#[derive(Clone, Debug)]
enum Kind {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, u64>),
    Symlink(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    nlink: u32,
    exclusive: Option<[u8; 8]>,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    replies: HashMap<Vec<u8>, Vec<u8>>,
    calls: u64,
    modifying: u64,
    writes: u64,
    renames: u64,
}

const ROOT: u64 = 1;

/// A running server; it ends with its connections.
#[derive(Clone, Debug)]
pub struct Toy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Toy {
    /// Starts a server on a free port.
    pub fn start(faults: Faults) -> Toy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let root = Inode { kind: Kind::Directory(BTreeMap::new()), nlink: 2, exclusive: None };
        let state = State {
            faults,
            inodes: HashMap::from([(ROOT, root)]),
            next_inode: ROOT + 1,
            replies: HashMap::new(),
            calls: 0,
            modifying: 0,
            writes: 0,
            renames: 0,
        };
        let toy = Toy { address, state: Arc::new(Mutex::new(state)) };
        let accepting = toy.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let toy = accepting.clone();
                std::thread::spawn(move || toy.serve(stream));
            }
        });
        toy
    }

    /// Number of names in the root directory.
    pub fn names_in_root(&self) -> usize {
        let state = self.state.lock().expect("no test panics inside");
        match &state.inodes[&ROOT].kind {
            Kind::Directory(names) => names.len(),
            other => unreachable!("the root is {other:?}"),
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut input = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(bytes) => input.extend_from_slice(&chunk[..bytes]),
            }
            let mut out = Vec::new();
            let mut keep = true;
            while keep && let Ok(Split::Complete { record }) = split(&input, RECORD_BYTES_MAX) {
                let mut state = self.state.lock().expect("no test panics inside");
                keep = state.answer(&input[record.clone()], &mut out);
                input.drain(..record.end);
            }
            if stream.write_all(&out).is_err() || !keep {
                // An error means that the client was faster.
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

impl State {
    /// Executes a call and appends its reply; false when the connection is to be closed instead.
    fn answer(&mut self, record: &[u8], out: &mut Vec<u8>) -> bool {
        let (call, body) = match decode(record) {
            Ok(decoded) => decoded,
            Err(CallError::Refused { xid, refusal }) => {
                encode_refusal(xid, refusal, out);
                return true;
            }
            Err(CallError::NotACall) => return false,
        };
        let modifying = matches!(body, Body::Nfs(_)) && nfs3::is_modifying(call.procedure);
        let mut reply = Vec::new();
        match self.replies.get(record).filter(|_| modifying && !self.faults.forgets_replies) {
            Some(known) => reply.clone_from(known),
            None => {
                let mark = begin_reply(call.xid, &mut reply);
                self.execute(&body, modifying, &mut reply);
                finish(mark, &mut reply);
                if modifying {
                    self.replies.insert(record.to_vec(), reply.clone());
                }
            }
        }
        self.calls += 1;
        if self.calls > 100 && due(self.calls, self.faults.drop_reply_every) {
            return false;
        }
        if self.calls <= 100 || !due(self.calls, self.faults.swallow_reply_every) {
            out.extend_from_slice(&reply);
        }
        true
    }

    fn execute(&mut self, body: &Body<'_>, modifying: bool, out: &mut Vec<u8>) {
        match body {
            Body::Portmap(request) => portmap::encode_answer(request, 0, out),
            Body::Mount(mount::Request::Mnt { .. }) => {
                let reply = mount::Reply::Mounted { handle: handle(ROOT), flavors: &[1] };
                mount::encode_body(&reply, out);
            }
            Body::Mount(_) => {}
            Body::Nfs(request) => {
                self.modifying += u64::from(modifying);
                let (response, data) =
                    if modifying && due(self.modifying, self.faults.jukebox_every) {
                        (failed(request, Status::JukeBox), Vec::new())
                    } else if modifying && due(self.modifying, self.faults.full_every) {
                        (failed(request, Status::NoSpc), Vec::new())
                    } else {
                        match self.plan(request) {
                            Ok(done) => done,
                            Err(status) => (failed(request, status), Vec::new()),
                        }
                    };
                nfs3::encode_body(&response, out);
                out.extend_from_slice(&data);
                out.extend_from_slice(pad(data.len()));
            }
        }
    }

    fn plan(&mut self, request: &Request<'_>) -> Result<(Response, Vec<u8>), Status> {
        let (status, wcc, verifier) = (Status::Ok, Wcc::default(), [0; 8]);
        let response = match *request {
            Request::Null => Response::Null,
            Request::GetAttr { handle } => {
                Response::GetAttr { status, ok: Some(self.attributes(inode_of(handle)?)?) }
            }
            Request::Lookup { what } => {
                let id = self.find(&what)?.ok_or(Status::NoEnt)?;
                let attr = Some(self.attributes(id)?);
                Response::Lookup { status, ok: Some(handle(id)), attr, dir: None }
            }
            Request::Read { handle, offset, count } => {
                let bytes = self.file(handle)?;
                let from = bytes.len().min(offset as usize);
                let to = bytes.len().min(from + count as usize);
                let (eof, data) = (to == bytes.len(), bytes[from..to].to_vec());
                let count = data.len() as u32;
                return Ok((Response::Read { status, attr: None, count, eof }, data));
            }
            Request::ReadLink { handle } => match &self.inode(inode_of(handle)?)?.kind {
                Kind::Symlink(target) => {
                    Response::ReadLink { status, attr: None, target: target.clone() }
                }
                _ => return Err(Status::Inval),
            },
            Request::Write { handle, offset, data, .. } => {
                self.write(handle, offset as usize, data)?;
                Response::Write { status, wcc, count: data.len() as u32, verifier }
            }
            Request::SetAttr { handle, set, .. } => {
                if let Some(size) = set.size {
                    self.file(handle)?.resize(size as usize, 0);
                }
                Response::Wcc { status, wcc }
            }
            Request::ReadDirPlus { handle, cookie, .. } => {
                Response::ReadDirPlus { status, dir: None, listing: self.list(handle, cookie)? }
            }
            _ => self.plan_names(request)?,
        };
        Ok((response, Vec::new()))
    }

    fn plan_names(&mut self, request: &Request<'_>) -> Result<Response, Status> {
        let (status, wcc) = (Status::Ok, Wcc::default());
        let made = |id| Response::Create { status, ok: Some(handle(id)), attr: None, dir: wcc };
        Ok(match *request {
            Request::Create { what, how } => made(self.create(&what, how)?),
            Request::MkDir { what, .. } => {
                made(self.make(&what, Kind::Directory(BTreeMap::new()), None)?)
            }
            Request::SymLink { what, target, .. } => {
                made(self.make(&what, Kind::Symlink(target.to_vec()), None)?)
            }
            Request::Remove { what } => {
                let id = self.find(&what)?.ok_or(Status::NoEnt)?;
                self.unlink(&what, id)?;
                Response::Wcc { status, wcc }
            }
            Request::RmDir { what } => {
                let id = self.find(&what)?.ok_or(Status::NoEnt)?;
                if !self.directory(handle(id).as_slice())?.is_empty() {
                    return Err(Status::NotEmpty);
                }
                self.unlink(&what, id)?;
                Response::Wcc { status, wcc }
            }
            Request::Rename { from, to } => {
                self.rename(&from, &to)?;
                Response::Rename { status, from: wcc, to: wcc }
            }
            Request::Link { handle, to } => {
                let id = inode_of(handle)?;
                if self.find(&to)?.is_some() {
                    return Err(Status::Exist);
                }
                self.inode(id)?.nlink += 1;
                self.directory(to.dir)?.insert(to.name.to_vec(), id);
                Response::Link { status, attr: None, dir: wcc }
            }
            _ => return Err(Status::NotSupp),
        })
    }

    fn inode(&mut self, id: u64) -> Result<&mut Inode, Status> {
        self.inodes.get_mut(&id).ok_or(Status::Stale)
    }

    fn file(&mut self, handle: &[u8]) -> Result<&mut Vec<u8>, Status> {
        match &mut self.inode(inode_of(handle)?)?.kind {
            Kind::File(bytes) => Ok(bytes),
            _ => Err(Status::Inval),
        }
    }

    fn directory(&mut self, handle: &[u8]) -> Result<&mut BTreeMap<Vec<u8>, u64>, Status> {
        match &mut self.inode(inode_of(handle)?)?.kind {
            Kind::Directory(names) => Ok(names),
            _ => Err(Status::NotDir),
        }
    }

    fn find(&mut self, what: &DirName<'_>) -> Result<Option<u64>, Status> {
        Ok(self.directory(what.dir)?.get(what.name).copied())
    }

    fn create(&mut self, what: &DirName<'_>, how: CreateHow) -> Result<u64, Status> {
        let exclusive = match how {
            CreateHow::Exclusive(verifier) => Some(verifier),
            _ => None,
        };
        match (self.find(what)?, how) {
            (None, _) => self.make(what, Kind::File(Vec::new()), exclusive),
            (Some(id), CreateHow::Unchecked(_)) => Ok(id),
            (Some(id), CreateHow::Exclusive(_)) if self.inodes[&id].exclusive == exclusive => {
                Ok(id)
            }
            (Some(_), _) => Err(Status::Exist),
        }
    }

    fn make(
        &mut self,
        what: &DirName<'_>,
        kind: Kind,
        exclusive: Option<[u8; 8]>,
    ) -> Result<u64, Status> {
        if self.find(what)?.is_some() {
            return Err(Status::Exist);
        }
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode { kind, nlink: 1, exclusive });
        self.directory(what.dir)?.insert(what.name.to_vec(), id);
        Ok(id)
    }

    fn unlink(&mut self, what: &DirName<'_>, id: u64) -> Result<(), Status> {
        self.directory(what.dir)?.remove(what.name);
        let inode = self.inode(id)?;
        inode.nlink -= 1;
        if inode.nlink == 0 {
            self.inodes.remove(&id);
        }
        Ok(())
    }

    fn rename(&mut self, from: &DirName<'_>, to: &DirName<'_>) -> Result<(), Status> {
        let id = self.find(from)?.ok_or(Status::NoEnt)?;
        self.renames += 1;
        if lost(self.renames, self.faults.loses_renames) {
            return Ok(());
        }
        match self.find(to)? {
            Some(replaced) if replaced == id => return Ok(()),
            Some(replaced) => self.unlink(to, replaced)?,
            None => {}
        }
        self.directory(from.dir)?.remove(from.name);
        self.directory(to.dir)?.insert(to.name.to_vec(), id);
        Ok(())
    }

    fn write(&mut self, handle: &[u8], offset: usize, data: &[u8]) -> Result<(), Status> {
        self.writes += 1;
        let lost = lost(self.writes, self.faults.loses_writes);
        let bytes = self.file(handle)?;
        if !lost {
            let end = bytes.len().max(offset + data.len());
            bytes.resize(end, 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    /// A few entries at a time, so that listings go on over several calls.
    fn list(&mut self, handle: &[u8], cookie: u64) -> Result<Listing, Status> {
        const ENTRIES: usize = 5;
        let names: Vec<Vec<u8>> = self.directory(handle)?.keys().cloned().collect();
        let mut listing = Listing::default();
        let from = (cookie as usize).min(names.len());
        for (at, name) in names.iter().enumerate().skip(from).take(ENTRIES) {
            let start = listing.names.len();
            listing.names.extend_from_slice(name);
            listing.entries.push(ListedEntry {
                fileid: at as u64,
                name: start..listing.names.len(),
                cookie: at as u64 + 1,
                plus: None,
            });
        }
        listing.end = from + listing.entries.len() == names.len();
        Ok(listing)
    }

    fn attributes(&mut self, id: u64) -> Result<Attributes, Status> {
        let inode = self.inode(id)?;
        let (kind, size) = match &inode.kind {
            Kind::File(bytes) => (FileType::Regular, bytes.len()),
            Kind::Directory(names) => (FileType::Directory, names.len()),
            Kind::Symlink(target) => (FileType::Symlink, target.len()),
        };
        let (size, time) = (size as u64, Time::default());
        Ok(Attributes {
            kind,
            mode: 0o644,
            nlink: inode.nlink,
            uid: 0,
            gid: 0,
            size,
            used: size,
            device: (0, 0),
            fsid: 1,
            fileid: id,
            atime: time,
            mtime: time,
            ctime: time,
        })
    }
}

fn due(count: u64, every: u64) -> bool {
    every > 0 && count.is_multiple_of(every)
}

fn lost(count: u64, from: u64) -> bool {
    from > 0 && (from..from + 20).contains(&count)
}

fn handle(id: u64) -> HandleBytes {
    HandleBytes::new(&id.to_be_bytes())
}

fn inode_of(handle: &[u8]) -> Result<u64, Status> {
    handle.try_into().map(u64::from_be_bytes).map_err(|_| Status::BadHandle)
}

/// A failure's response, of the kind that the request's procedure has.
fn failed(request: &Request<'_>, status: Status) -> Response {
    let (wcc, attr) = (Wcc::default(), None);
    match request {
        Request::GetAttr { .. } => Response::GetAttr { status, ok: None },
        Request::Lookup { .. } => Response::Lookup { status, ok: None, attr, dir: None },
        Request::Read { .. } => Response::Read { status, attr, count: 0, eof: false },
        Request::ReadLink { .. } => Response::ReadLink { status, attr, target: Vec::new() },
        Request::Write { .. } => Response::Write { status, wcc, count: 0, verifier: [0; 8] },
        Request::Create { .. } | Request::MkDir { .. } | Request::SymLink { .. } => {
            Response::Create { status, ok: None, attr, dir: wcc }
        }
        Request::Rename { .. } => Response::Rename { status, from: wcc, to: wcc },
        Request::Link { .. } => Response::Link { status, attr, dir: wcc },
        Request::ReadDirPlus { .. } => {
            Response::ReadDirPlus { status, dir: None, listing: Listing::default() }
        }
        _ => Response::Wcc { status, wcc },
    }
}
