//! A copy's files without its group: what one server's disk shows when nobody serves from it.
//! Owns: the image with the committed part of the log redone over it, in memory; answers to reading requests.
//! Never: writes anything; shows a record that is not known to be committed.
//! Invariant: exact at one op, [`Offline::op`].
//! Source: docs/operations.md, "Getting files out of a directory".

use harp_fs::atime::AccessTimes;
use harp_fs::handle::Volume;
use harp_fs::inode::ROOT;
use harp_fs::need::{ImageError, Need};
use harp_fs::plan::{self, Context, Planned};
use harp_fs::request::{Credential, HandleBytes, Request, Response, Time};
use harp_fs::shadow::{Shadow, ShadowSettings};
use harp_log::Log;
use harp_store::{Disk, Engine, Store, StoreError};

use crate::jobs::{Image, RingBytes, unread};
use crate::record::{self, kind};
use crate::serve::ROOT_GENERATION;

/// Memory for what is read of the image.
const CACHE_BYTES: usize = 64 << 20;

/// Why the log's records could not be redone.
#[derive(Debug)]
pub struct RedoError {
    /// The record's op.
    pub op: u64,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for RedoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the log's record {} cannot be redone: {}", self.op, self.why)
    }
}

impl std::error::Error for RedoError {}

/// A copy's files.
pub struct Offline<E: Engine, D: Disk> {
    store: Store<E, D>,
    shadow: Shadow,
    log: RingBytes,
    volume: Volume,
    lb: u64,
    op: u64,
}

impl<E: Engine, D: Disk> Offline<E, D> {
    /// The files of the image `store`. `log` is one that is found intact, or an empty one.
    pub fn open(store: Store<E, D>, log: &Log) -> Result<Offline<E, D>, StoreError> {
        let lb = store.reader()?.op();
        let access_times = AccessTimes::Off;
        let settings =
            ShadowSettings { cache_bytes: CACHE_BYTES, filter_bytes: 0, seed: 0, access_times };
        // Handles are made and read here alone: any key will do.
        let volume = Volume::new(&[0; 16], 1, &[0; 16], 0, u64::MAX / 8192, u64::MAX / 2);
        let (shadow, log) = (Shadow::new(settings, lb), RingBytes(log.ring().clone()));
        Ok(Offline { store, shadow, log, volume, lb, op: lb })
    }

    /// Redoes the records of `log` up to `cp`, which are committed. Those that are in the image are passed
    /// over; a log that does not reach down to it adds nothing.
    pub fn redo(&mut self, log: &Log, cp: u64) -> Result<(), RedoError> {
        let body = log.current();
        for op in self.lb + 1..=cp.min(body.end()) {
            let failed = |why: String| RedoError { op, why };
            let Some(record) = body.record(op) else {
                return Err(failed("it is not there".into()));
            };
            let at = record.body_at().0;
            let (skip, effects) = match record.header.kind {
                kind::OPERATION => {
                    let operation = record::operation(record.body);
                    let operation = operation.map_err(|why| failed(why.to_string()))?;
                    (record::STAMP_BYTES as u64, operation.effects)
                }
                kind::ACCESSES => (0, record.body),
                _ => (0, &[][..]),
            };
            let applied = self.shadow.apply(op, effects, at + skip, &self.log);
            applied.map_err(|why| failed(format!("{why:?}")))?;
            self.op = op;
        }
        Ok(())
    }

    /// The op that the image alone is exact at.
    pub fn lb(&self) -> u64 {
        self.lb
    }

    /// The op that the files are exact at.
    pub fn op(&self) -> u64 {
        self.op
    }

    /// The root's handle.
    pub fn root(&self) -> HandleBytes {
        self.volume.handles.make(ROOT, ROOT_GENERATION)
    }

    /// The answer to a request that changes nothing, asked by root; READ's bytes are appended to `data`.
    ///
    /// Errors: the image cannot be read there. Panics if the request would change something.
    pub fn ask(
        &mut self,
        request: &Request<'_>,
        data: &mut Vec<u8>,
    ) -> Result<Response, ImageError> {
        let credential = Credential { uid: 0, gid: 0, groups_be: &[] };
        let now = Time::default();
        let Offline { shadow, volume, log, store, .. } = self;
        loop {
            let room = plan::Room::ENDLESS;
            let context = Context { credential, now, volume, log, room };
            let mut needs: Vec<Need> = Vec::new();
            match plan::plan(shadow, request, &context, &mut [], data, &mut needs) {
                Planned::Answer { response, .. } => return Ok(response),
                Planned::Record { .. } => unreachable!("a request that reads makes no record"),
                Planned::Need => {
                    let reader = store.reader().map_err(unread)?;
                    let image = Image::new(reader);
                    for need in needs {
                        shadow.fetched(need.fetch(&image)?);
                    }
                    if let Some(damaged) = image.damaged.into_inner().first() {
                        return Err(unread((*damaged).into()));
                    }
                }
            }
        }
    }
}
