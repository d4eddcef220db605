//! A client of another hand (`nfs3_client`) that comes from a chosen address and as a chosen user.

use std::io::{ErrorKind, Result as IoResult};
use std::net::{IpAddr, SocketAddr, TcpStream};

use nfs3_client::net::Connector;
use nfs3_client::nfs3_types::nfs3::*;
use nfs3_client::nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use nfs3_client::{Nfs3Client, Nfs3ConnectionBuilder};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::blocking::{Blocking, done};
use crate::deployment::PATIENCE;

/// A connection from that loopback address.
pub fn connect_from(from: IpAddr, to: SocketAddr) -> IoResult<TcpStream> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

struct From(IpAddr);

impl Connector for From {
    type Connection = Blocking;

    async fn connect(&self, address: SocketAddr) -> IoResult<Blocking> {
        connect_from(self.0, address).map(Blocking)
    }

    async fn connect_with_port(&self, _: SocketAddr, _: u16) -> IoResult<Blocking> {
        Err(ErrorKind::Unsupported.into())
    }
}

pub struct Client {
    nfs: Nfs3Client<Blocking>,
    pub root: nfs_fh3,
}

fn at<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: filename3(Opaque::borrowed(name.as_bytes())) }
}

fn outcome<T, E>(result: Nfs3Result<T, E>) -> Result<T, nfsstat3> {
    match result {
        Nfs3Result::Ok(ok) => Ok(ok),
        Nfs3Result::Err((status, _)) => Err(status),
    }
}

/// Makes a call; no answer to it fails the test.
macro_rules! call {
    ($client:ident . $procedure:ident ( $($argument:tt)* )) => {
        outcome(done($client.nfs.$procedure(&$($argument)*)).expect("an answer"))
    };
}

fn credential(user: Option<(u32, u32)>) -> opaque_auth<'static> {
    let Some((uid, gid)) = user else { return opaque_auth::default() };
    let machinename = Opaque::borrowed(b"test");
    opaque_auth::auth_unix(&auth_unix { machinename, uid, gid, ..auth_unix::default() })
}

impl Client {
    /// Mounts `/`; `user`: uid and gid, or nobody's word at all. Errors: what the client says of a refusal.
    pub fn mount(from: IpAddr, to: SocketAddr, user: Option<(u32, u32)>) -> Result<Client, String> {
        let builder = Nfs3ConnectionBuilder::new(From(from), to.ip().to_string(), "/")
            .portmapper_port(to.port())
            .connect_from_privileged_port(false)
            .credential(credential(user));
        let connection = done(builder.mount()).map_err(|error| format!("{error:?}"))?;
        let root = connection.root_nfs_fh3();
        Ok(Client { nfs: connection.into_nfs3_client(), root })
    }

    /// A client that got its handle elsewhere.
    pub fn with_root(
        from: IpAddr,
        to: SocketAddr,
        user: Option<(u32, u32)>,
        root: nfs_fh3,
    ) -> Client {
        let stream = connect_from(from, to).expect("connects");
        let (credential, verifier) = (credential(user), opaque_auth::default());
        let nfs = Nfs3Client::new_with_auth(Blocking(stream), credential, verifier);
        Client { nfs, root }
    }

    pub fn make(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, nfsstat3> {
        let how = createhow3::UNCHECKED(sattr3::default());
        call!(self.create(CREATE3args { where_: at(dir, name), how }))?;
        self.find(dir, name)
    }

    /// Whether a CREATE is answered before the connection ends.
    pub fn make_is_answered(&mut self, dir: &nfs_fh3, name: &str) -> bool {
        let how = createhow3::UNCHECKED(sattr3::default());
        done(self.nfs.create(&CREATE3args { where_: at(dir, name), how })).is_ok()
    }

    pub fn make_dir(&mut self, dir: &nfs_fh3, name: &str, mode: u32) -> Result<nfs_fh3, nfsstat3> {
        let attributes = sattr3 { mode: Nfs3Option::Some(mode), ..sattr3::default() };
        call!(self.mkdir(MKDIR3args { where_: at(dir, name), attributes }))?;
        self.find(dir, name)
    }

    pub fn make_link(&mut self, dir: &nfs_fh3, name: &str, target: &str) -> Result<(), nfsstat3> {
        let symlink = symlinkdata3 {
            symlink_attributes: sattr3::default(),
            symlink_data: nfspath3(Opaque::borrowed(target.as_bytes())),
        };
        call!(self.symlink(SYMLINK3args { where_: at(dir, name), symlink }))?;
        Ok(())
    }

    pub fn make_device(&mut self, dir: &nfs_fh3, name: &str) -> Result<(), nfsstat3> {
        let what = mknoddata3::NF3CHR(devicedata3 {
            dev_attributes: sattr3 { mode: Nfs3Option::Some(0o600), ..sattr3::default() },
            spec: specdata3 { specdata1: 1, specdata2: 3 },
        });
        call!(self.mknod(MKNOD3args { where_: at(dir, name), what }))?;
        Ok(())
    }

    pub fn make_name(&mut self, file: &nfs_fh3, dir: &nfs_fh3, name: &str) -> Result<(), nfsstat3> {
        call!(self.link(LINK3args { file: file.clone(), link: at(dir, name) }))?;
        Ok(())
    }

    pub fn find(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, nfsstat3> {
        Ok(call!(self.lookup(LOOKUP3args { what: at(dir, name) }))?.object)
    }

    pub fn write(&mut self, file: &nfs_fh3, offset: u64, data: &[u8]) -> Result<(), nfsstat3> {
        for (index, part) in data.chunks(65_536).enumerate() {
            let written = call!(self.write(WRITE3args {
                file: file.clone(),
                offset: offset + 65_536 * index as u64,
                count: part.len() as u32,
                stable: stable_how::UNSTABLE,
                data: Opaque::borrowed(part),
            }))?;
            assert_eq!(written.count as usize, part.len());
        }
        Ok(())
    }

    pub fn read(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<Vec<u8>, nfsstat3> {
        let part = call!(self.read(READ3args { file: file.clone(), offset, count }))?;
        Ok(part.data.into_owned())
    }

    /// The file's bytes, at most 64 KiB.
    pub fn read_whole(&mut self, file: &nfs_fh3) -> Result<Vec<u8>, nfsstat3> {
        self.read(file, 0, 65_536)
    }

    /// The write verifier: when it changes, clients send again what they were not told to be stable.
    pub fn write_verifier(&mut self, file: &nfs_fh3) -> Result<[u8; 8], nfsstat3> {
        let args = COMMIT3args { file: file.clone(), offset: 0, count: 0 };
        Ok(call!(self.commit(args))?.verf.0)
    }

    pub fn attributes(&mut self, object: &nfs_fh3) -> Result<fattr3, nfsstat3> {
        Ok(call!(self.getattr(GETATTR3args { object: object.clone() }))?.obj_attributes)
    }

    pub fn set(&mut self, object: &nfs_fh3, new_attributes: sattr3) -> Result<(), nfsstat3> {
        let guard = Nfs3Option::None;
        call!(self.setattr(SETATTR3args { object: object.clone(), new_attributes, guard }))?;
        Ok(())
    }

    /// Whether a GETATTR is answered before the connection ends.
    pub fn answers(&mut self, object: &nfs_fh3) -> bool {
        let args = GETATTR3args { object: object.clone() };
        done(self.nfs.getattr(&args)).is_ok()
    }

    /// What a GETATTR of the root comes to when the answer itself is a refusal.
    pub fn root_refused(&mut self) -> String {
        let args = GETATTR3args { object: self.root.clone() };
        match done(self.nfs.getattr(&args)) {
            Ok(_) => panic!("it was answered"),
            Err(error) => format!("{error:?}"),
        }
    }
}
