//! Work for the store's threads: fetches, checkpoints, digests, reloads.
//! Owns: turning a frozen generation into a checkpoint, and what the store tells into values.
//! Never: runs on the server's loop.
//! Invariant: one checkpoint at a time; a job runs to its end or the process ends.
//! Source: ARCHITECTURE.md ("Memory", "Checkpoints").

use std::sync::Arc;

use harp_fs::blocks::LogBytes;
use harp_fs::generation::Generation;
use harp_fs::key::RootOwner;
use harp_fs::need::{Fetched, ImageError, ImageReader, Need};
use harp_log::{LogPos, Ring};
use harp_store::{
    BlockWrite, Checkpoint, Content, Cut, Disk, Engine, MetadataSink, Reader, Store, StoreError,
    Stretch, Table, Walk,
};

use crate::clients::{ClientTable, ROW_PREFIX, Row};

/// First byte of the row that holds the configuration, behind the client table's.
const CONFIGURATION_KEY: &[u8] = &[0xC1];

/// The ring as `harp_fs` sees it.
#[derive(Clone, Debug)]
pub(crate) struct RingBytes(pub Ring);

impl LogBytes for RingBytes {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        self.0.bytes(LogPos(pos), len)
    }
}

/// Something for a store thread to do.
#[derive(Debug)]
pub struct StoreJob(pub(crate) Work);

#[derive(Debug)]
pub(crate) enum Work {
    Fetch { id: u64, needs: Vec<Need> },
    Checkpoint(Frozen),
    Digest { op: u64 },
    Reload,
}

/// What became of a [`StoreJob`].
#[derive(Debug)]
pub struct StoreDone(pub(crate) Done);

#[derive(Debug)]
pub(crate) enum Done {
    Fetched { id: u64, fetched: Result<Vec<Fetched>, ImageError> },
    Checkpointed { op: u64, result: Result<(), JobError> },
    Digested { op: u64, result: Result<[u8; 32], StoreError> },
    Reloaded(Result<ImageState, StoreError>),
}

/// What a node needs to know of its image to start from it.
#[derive(Debug)]
pub struct ImageState {
    pub(crate) lb: u64,
    pub(crate) clients: ClientTable,
}

impl StoreJob {
    /// Whether this is a fetch, which clients wait for; the others take their time on another thread.
    pub fn is_fetch(&self) -> bool {
        matches!(self.0, Work::Fetch { .. })
    }

    /// Carries the job out. A checkpoint calls `pause` between small pieces of its work, so that the thread can
    /// let others go first.
    pub fn run<E: Engine, D: Disk>(
        self,
        store: &Store<E, D>,
        ring: &Ring,
        pause: &dyn Fn(),
    ) -> StoreDone {
        StoreDone(match self.0 {
            Work::Fetch { id, needs } => Done::Fetched { id, fetched: fetch(store, &needs) },
            Work::Checkpoint(frozen) => {
                Done::Checkpointed { op: frozen.op, result: frozen.checkpoint(store, ring, pause) }
            }
            Work::Digest { op } => Done::Digested { op, result: digest(store, op) },
            Work::Reload => Done::Reloaded(image_state(store)),
        })
    }
}

struct Image<E: Engine, D: Disk>(Reader<E, D>);

fn unread(error: StoreError) -> ImageError {
    ImageError::Reader(Box::new(error))
}

impl<E: Engine, D: Disk> ImageReader for Image<E, D> {
    fn op(&self) -> u64 {
        self.0.op()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        let value = self.0.get(key).map_err(unread)?;
        Ok(value.map(<[u8]>::to_vec))
    }

    fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        let mut shown =
            |key: &[u8], value: &[u8]| Ok(if show(key, value) { Walk::On } else { Walk::Stop });
        self.0.scan(from, limit, &mut shown).map_err(unread)?;
        Ok(())
    }

    fn read_blocks(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        self.0.read_blocks(file, first, out).map_err(unread)?;
        let mut show = |stretch: Stretch, _: &mut dyn Iterator<Item = u32>| {
            held(stretch.first, stretch.count);
            Ok(Walk::On)
        };
        self.0.locate(file, first, count.into(), &mut show).map_err(unread)
    }
}

fn fetch<E: Engine, D: Disk>(
    store: &Store<E, D>,
    needs: &[Need],
) -> Result<Vec<Fetched>, ImageError> {
    let image = Image(store.reader().map_err(unread)?);
    needs.iter().map(|need| need.fetch(&image)).collect()
}

/// Why a job failed.
#[derive(Debug)]
pub enum JobError {
    /// The store refused or failed.
    Store(StoreError),
    /// What the image holds makes no sense, or not with what the log says.
    Image(ImageError),
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JobError::Store(error) => write!(f, "{error}"),
            JobError::Image(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for JobError {}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> JobError {
        JobError::Store(error)
    }
}

impl From<ImageError> for JobError {
    fn from(error: ImageError) -> JobError {
        JobError::Image(error)
    }
}

/// What a checkpoint puts into the image.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub op: u64,
    pub generation: Arc<Generation>,
    /// Rows of the client table.
    pub rows: Vec<Row>,
    pub configuration: Vec<u8>,
}

impl Frozen {
    fn checkpoint<E: Engine, D: Disk>(
        &self,
        store: &Store<E, D>,
        ring: &Ring,
        pause: &dyn Fn(),
    ) -> Result<(), JobError> {
        let Frozen { op, generation, rows, configuration } = self;
        let base = Image(store.reader()?);
        let log = RingBytes(ring.clone());
        let cuts: Vec<Cut> =
            generation.cuts().into_iter().map(|(file, first)| Cut { file, first }).collect();
        let blocks = generation.blocks(&log, &base)?;
        let mut writes = blocks.iter().map(|out| BlockWrite {
            file: out.ino,
            block: out.block,
            content: Content::Checked(out.data, out.crc),
        });
        // What stops the rows in the middle: the commit is given up, and this says why.
        let mut trouble: Option<JobError> = None;
        let mut metadata = |sink: &mut MetadataSink<'_>| {
            let given_up = put_rows(generation, &base, sink);
            if let Err(error) = given_up {
                trouble = Some(error);
                return Err(StoreError::value(Table::Meta, CONFIGURATION_KEY));
            }
            // The rows of the node lie above those of the file system.
            sink.extend(rows.iter().map(|(key, value)| (&key[..], value.as_deref())))?;
            sink.put(CONFIGURATION_KEY, configuration)
        };
        let (metadata, blocks) = (&mut metadata, &mut writes);
        let result = store.checkpoint(Checkpoint { op: *op, cuts: &cuts, metadata, blocks, pause });
        match (trouble, result) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) => Ok(()),
        }
    }
}

fn put_rows(
    generation: &Generation,
    base: &dyn ImageReader,
    sink: &mut MetadataSink<'_>,
) -> Result<(), JobError> {
    generation.metadata(base, &mut |key, value| {
        let put = match value {
            Some(value) => sink.put(key, value),
            None => sink.delete(key),
        };
        put.map_err(unread)
    })?;
    Ok(())
}

fn digest<E: Engine, D: Disk>(store: &Store<E, D>, op: u64) -> Result<[u8; 32], StoreError> {
    let (at, digest) = store.digest()?;
    assert_eq!(at, op, "the image moved on before its digest was taken");
    Ok(digest.0)
}

/// Makes the image of a copy: that of an empty file system if the whole group is being formatted (`first`),
/// else one without content, to be loaded from another copy. `owner` is that of an empty file system's root.
pub fn format_image<E: Engine, D: Disk>(
    engine: &E,
    _disk: &D,
    group: &[u8; 16],
    owner: RootOwner,
    first: bool,
) -> Result<(), StoreError> {
    if first {
        let rows = harp_fs::key::format_rows_for(owner, harp_fs::request::Time::default());
        Store::<E, D>::format(engine, group, &rows)
    } else {
        Store::<E, D>::reformat(engine, group, None)
    }
}

/// Reads what a node needs to start from `store`.
pub fn image_state<E: Engine, D: Disk>(store: &Store<E, D>) -> Result<ImageState, StoreError> {
    let reader = store.reader()?;
    let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    reader.scan(&[ROW_PREFIX], usize::MAX, &mut |key, value| {
        if key.first() != Some(&ROW_PREFIX) {
            return Ok(Walk::Stop);
        }
        rows.push((key.to_vec(), value.to_vec()));
        Ok(Walk::On)
    })?;
    let lb = reader.op();
    let clients = ClientTable::load(lb, rows.iter().map(|(k, v)| (&k[..], &v[..])));
    let clients = clients.ok_or_else(|| StoreError::value(Table::Meta, &[ROW_PREFIX]))?;
    Ok(ImageState { lb, clients })
}
