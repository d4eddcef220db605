//! The attribute structures that many procedures share.
//! Owns: the bytes of `fattr3`, `post_op_attr`, `wcc_data`, `post_op_fh3` and `sattr3`.
//! Never: knows which procedure it serves.
//! Invariant: each structure of fixed size goes out as one group.
//! Source: RFC 1813, sections 2.5 and 2.6.

use harp_fs::request::{
    Attributes, BeforeAttr, FileType, HandleBytes, SetAttr, SetTime, Time, Wcc,
};

use super::HANDLE_BYTES_MAX;
use crate::xdr::{Group, Reader, Sink, XdrError};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

type Result<T> = std::result::Result<T, XdrError>;

impl<const N: usize> Group<'_, N> {
    #[inline(always)]
    pub(super) fn time(self, time: Time) -> Self {
        self.u32(time.seconds).u32(time.nanos)
    }

    /// 84 bytes.
    #[inline(always)]
    pub(super) fn attributes(self, a: &Attributes) -> Self {
        self.u32(a.kind as u32)
            .u32(a.mode)
            .u32(a.nlink)
            .u32(a.uid)
            .u32(a.gid)
            .u64(a.size)
            .u64(a.used)
            .u32(a.device.0)
            .u32(a.device.1)
            .u64(a.fsid)
            .u64(a.fileid)
            .time(a.atime)
            .time(a.mtime)
            .time(a.ctime)
    }

    /// 24 bytes.
    #[inline(always)]
    fn before(self, before: &BeforeAttr) -> Self {
        self.u64(before.size).time(before.mtime).time(before.ctime)
    }
}

#[inline(always)]
pub(super) fn put_post_op(out: &mut impl Sink, attr: &Option<Attributes>) {
    match attr {
        Some(attr) => out.group::<88>(|g| g.u32(1).attributes(attr)),
        None => out.u32(0),
    }
}

#[inline(always)]
pub(super) fn put_wcc(out: &mut impl Sink, wcc: &Wcc) {
    match (&wcc.before, &wcc.after) {
        (Some(before), Some(after)) => {
            out.group::<116>(|g| g.u32(1).before(before).u32(1).attributes(after));
        }
        (Some(before), None) => {
            out.group::<32>(|g| g.u32(1).before(before).u32(0));
        }
        (None, after) => {
            out.u32(0);
            put_post_op(out, after);
        }
    }
}

#[inline(always)]
pub(super) fn put_post_op_handle(out: &mut impl Sink, handle: &Option<HandleBytes>) {
    match handle {
        Some(handle) => {
            out.u32(1);
            out.opaque(handle.as_slice());
        }
        None => out.u32(0),
    }
}

pub(super) fn put_set_attr(out: &mut impl Sink, set: &SetAttr) {
    for field in [set.mode, set.uid, set.gid] {
        match field {
            Some(value) => out.group::<8>(|g| g.u32(1).u32(value)),
            None => out.u32(0),
        }
    }
    match set.size {
        Some(size) => out.group::<12>(|g| g.u32(1).u64(size)),
        None => out.u32(0),
    }
    for time in [set.atime, set.mtime] {
        match time {
            SetTime::Keep => out.u32(0),
            SetTime::ToServer => out.u32(1),
            SetTime::ToClient(time) => out.group::<12>(|g| g.u32(2).time(time)),
        }
    }
}

#[inline(always)]
pub(super) fn get_time(reader: &mut Reader<'_>) -> Result<Time> {
    let both = reader.u64()?;
    let time = Time { seconds: (both >> 32) as u32, nanos: both as u32 };
    if time.nanos >= NANOS_PER_SECOND {
        return Err(XdrError::BadValue(time.nanos));
    }
    Ok(time)
}

#[inline(always)]
fn get_option<'a, T>(
    reader: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if reader.bool()? { get(reader).map(Some) } else { Ok(None) }
}

#[inline(always)]
pub(super) fn get_set_attr(reader: &mut Reader<'_>) -> Result<SetAttr> {
    Ok(SetAttr {
        mode: get_option(reader, Reader::u32)?,
        uid: get_option(reader, Reader::u32)?,
        gid: get_option(reader, Reader::u32)?,
        size: get_option(reader, Reader::u64)?,
        atime: get_set_time(reader)?,
        mtime: get_set_time(reader)?,
    })
}

#[inline(always)]
fn get_set_time(reader: &mut Reader<'_>) -> Result<SetTime> {
    match reader.u32()? {
        0 => Ok(SetTime::Keep),
        1 => Ok(SetTime::ToServer),
        2 => get_time(reader).map(SetTime::ToClient),
        other => Err(XdrError::BadValue(other)),
    }
}

#[inline(always)]
pub(super) fn get_guard(reader: &mut Reader<'_>) -> Result<Option<Time>> {
    get_option(reader, get_time)
}

#[inline(always)]
pub(super) fn get_file_type(reader: &mut Reader<'_>) -> Result<FileType> {
    let number = reader.u32()?;
    FileType::from_number(number).ok_or(XdrError::BadValue(number))
}

pub(super) fn get_attributes(reader: &mut Reader<'_>) -> Result<Attributes> {
    Ok(Attributes {
        kind: get_file_type(reader)?,
        mode: reader.u32()?,
        nlink: reader.u32()?,
        uid: reader.u32()?,
        gid: reader.u32()?,
        size: reader.u64()?,
        used: reader.u64()?,
        device: (reader.u32()?, reader.u32()?),
        fsid: reader.u64()?,
        fileid: reader.u64()?,
        atime: get_time(reader)?,
        mtime: get_time(reader)?,
        ctime: get_time(reader)?,
    })
}

pub(super) fn get_post_op(reader: &mut Reader<'_>) -> Result<Option<Attributes>> {
    get_option(reader, get_attributes)
}

pub(super) fn get_wcc(reader: &mut Reader<'_>) -> Result<Wcc> {
    let before = get_option(reader, |reader| {
        Ok(BeforeAttr { size: reader.u64()?, mtime: get_time(reader)?, ctime: get_time(reader)? })
    })?;
    Ok(Wcc { before, after: get_post_op(reader)? })
}

pub(super) fn get_handle(reader: &mut Reader<'_>) -> Result<HandleBytes> {
    reader.opaque(HANDLE_BYTES_MAX).map(HandleBytes::new)
}

pub(super) fn get_post_op_handle(reader: &mut Reader<'_>) -> Result<Option<HandleBytes>> {
    get_option(reader, get_handle)
}
