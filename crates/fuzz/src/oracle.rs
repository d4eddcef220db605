//! Oracle: `nfs3_types`, an independent codec, asked what bytes mean.
//! Owns: which of its types belongs to which procedure.
//! Never: calls our own codec.
//! Source: the crate `nfs3_types`.

use harp_node::wire::nfs3::proc;
use nfs3_types::nfs3 as theirs;
use nfs3_types::xdr_codec::{Pack, Unpack, Void};

/// Lets the oracle read a `T` at the front of `bytes` and write it again. `None`: it finds none, or one that it
/// cannot write.
pub fn reread<T: Pack + Unpack>(bytes: &[u8]) -> Option<Vec<u8>> {
    let (value, _) = T::unpack(&mut &bytes[..]).ok()?;
    let mut again = Vec::new();
    value.pack(&mut again).ok()?;
    Some(again)
}

/// The arguments of a procedure as the oracle writes them again. `None`: it cannot read them.
pub fn args(procedure: u32, bytes: &[u8]) -> Option<Vec<u8>> {
    match procedure {
        proc::NULL => reread::<Void>(bytes),
        proc::GETATTR => reread::<theirs::GETATTR3args>(bytes),
        proc::SETATTR => reread::<theirs::SETATTR3args>(bytes),
        proc::LOOKUP => reread::<theirs::LOOKUP3args<'_>>(bytes),
        proc::ACCESS => reread::<theirs::ACCESS3args>(bytes),
        proc::READLINK => reread::<theirs::READLINK3args>(bytes),
        proc::READ => reread::<theirs::READ3args>(bytes),
        proc::WRITE => reread::<theirs::WRITE3args<'_>>(bytes),
        proc::CREATE => reread::<theirs::CREATE3args<'_>>(bytes),
        proc::MKDIR => reread::<theirs::MKDIR3args<'_>>(bytes),
        proc::SYMLINK => reread::<theirs::SYMLINK3args<'_>>(bytes),
        proc::MKNOD => reread::<theirs::MKNOD3args<'_>>(bytes),
        proc::REMOVE => reread::<theirs::REMOVE3args<'_>>(bytes),
        proc::RMDIR => reread::<theirs::RMDIR3args<'_>>(bytes),
        proc::RENAME => reread::<theirs::RENAME3args<'_, '_>>(bytes),
        proc::LINK => reread::<theirs::LINK3args<'_>>(bytes),
        proc::READDIR => reread::<theirs::READDIR3args>(bytes),
        proc::READDIRPLUS => reread::<theirs::READDIRPLUS3args>(bytes),
        proc::FSSTAT => reread::<theirs::FSSTAT3args>(bytes),
        proc::FSINFO => reread::<theirs::FSINFO3args>(bytes),
        proc::PATHCONF => reread::<theirs::PATHCONF3args>(bytes),
        proc::COMMIT => reread::<theirs::COMMIT3args>(bytes),
        other => panic!("procedure {other}"),
    }
}

/// The results of a procedure, likewise.
pub fn results(procedure: u32, bytes: &[u8]) -> Option<Vec<u8>> {
    match procedure {
        proc::NULL => reread::<Void>(bytes),
        proc::GETATTR => reread::<theirs::GETATTR3res>(bytes),
        proc::SETATTR => reread::<theirs::SETATTR3res>(bytes),
        proc::LOOKUP => reread::<theirs::LOOKUP3res>(bytes),
        proc::ACCESS => reread::<theirs::ACCESS3res>(bytes),
        proc::READLINK => reread::<theirs::READLINK3res<'_>>(bytes),
        proc::READ => reread::<theirs::READ3res<'_>>(bytes),
        proc::WRITE => reread::<theirs::WRITE3res>(bytes),
        proc::CREATE => reread::<theirs::CREATE3res>(bytes),
        proc::MKDIR => reread::<theirs::MKDIR3res>(bytes),
        proc::SYMLINK => reread::<theirs::SYMLINK3res>(bytes),
        proc::MKNOD => reread::<theirs::MKNOD3res>(bytes),
        proc::REMOVE => reread::<theirs::REMOVE3res>(bytes),
        proc::RMDIR => reread::<theirs::RMDIR3res>(bytes),
        proc::RENAME => reread::<theirs::RENAME3res>(bytes),
        proc::LINK => reread::<theirs::LINK3res>(bytes),
        proc::READDIR => reread::<theirs::READDIR3res<'_>>(bytes),
        proc::READDIRPLUS => reread::<theirs::READDIRPLUS3res<'_>>(bytes),
        proc::FSSTAT => reread::<theirs::FSSTAT3res>(bytes),
        proc::FSINFO => reread::<theirs::FSINFO3res>(bytes),
        proc::PATHCONF => reread::<theirs::PATHCONF3res>(bytes),
        proc::COMMIT => reread::<theirs::COMMIT3res>(bytes),
        other => panic!("procedure {other}"),
    }
}
