//! Work for the store's threads: fetches, checkpoints, digests, reloads.
//! Owns: turning a frozen generation into a checkpoint, and what the store tells into values.
//! Never: runs on the server's loop.
//! Invariant: one checkpoint at a time; a job runs to its end or the process ends.
//! Source: ARCHITECTURE.md ("Memory", "Checkpoints").

use std::cell::RefCell;
use std::sync::Arc;

use harp_fs::blocks::LogBytes;
use harp_fs::generation::Generation;
use harp_fs::key::RootOwner;
use harp_fs::need::{Fetched, ImageError, ImageReader, Need};
use harp_log::{LogPos, Ring};
use harp_store::{
    BLOCK_BYTES, Block, BlockWrite, Checkpoint, Content, Cut, DamagedBlock, Disk, Engine,
    MetadataSink, Reader, Remedy, Store, StoreError, Stretch, Table, Walk,
};
use harp_vr::{ServerId, View};

use crate::clients::{ChangedRows, ClientTable, ROW_PREFIX};
use crate::part::{Part, PartSource, Place, Section};
use crate::rebuild::{Loaded, PartRead};
use crate::repair::{BlockName, BlockRead};

/// First byte of the row that holds the configuration, behind the client table's.
const CONFIGURATION_KEY: &[u8] = &[0xC1];
/// Damaged blocks that a digest tells of at most; the next one tells of others.
const DAMAGED_SHOWN_MAX: usize = 1024;

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
    Fetch {
        id: u64,
        needs: Vec<Need>,
    },
    Checkpoint(Frozen),
    Digest {
        op: u64,
    },
    Reload,
    /// Empty the image, to load another one.
    Discard,
    /// Read the part of the image that begins at `place`, from `source` if there is one, for `to`.
    ReadPart {
        to: ServerId,
        view: View,
        part: u64,
        at_least: u64,
        place: Place,
        enough: usize,
        source: Option<Box<dyn PartSource>>,
    },
    /// Put parts of one section into the image.
    Load {
        parts: Vec<Part>,
    },
    /// Everything is loaded and redone.
    CompleteImage,
    /// Read a block for `to`.
    ReadBlock {
        to: ServerId,
        name: BlockName,
    },
    /// Look which of these are damaged.
    Examine {
        blocks: Vec<(u64, u64)>,
    },
    /// Write damaged blocks anew.
    Mend {
        remedies: Vec<Remedy>,
    },
}

/// What became of a [`StoreJob`].
#[derive(Debug)]
pub struct StoreDone(pub(crate) Done);

#[derive(Debug)]
pub(crate) enum Done {
    Fetched {
        id: u64,
        /// And which blocks of it are damaged.
        fetched: Result<(Vec<Fetched>, Vec<DamagedBlock>), ImageError>,
    },
    Checkpointed {
        op: u64,
        /// Blocks, as (file, block), that are damaged in the new image as their older content was.
        result: Result<Vec<(u64, u64)>, JobError>,
    },
    /// The checkpoint changed nothing, for there is no room; here it is back.
    NoRoom(Frozen),
    Digested {
        op: u64,
        result: Result<[u8; 32], StoreError>,
        damaged: Vec<DamagedBlock>,
    },
    Reloaded(Result<ImageState, StoreError>),
    Discarded(Result<(), StoreError>),
    PartRead(PartRead),
    Loaded(Result<Loaded, StoreError>),
    ImageCompleted(Result<(), StoreError>),
    BlockRead(BlockRead),
    Examined {
        blocks: Vec<(u64, u64)>,
        damaged: Result<Vec<DamagedBlock>, StoreError>,
    },
    Mended {
        remedies: Vec<Remedy>,
        result: Result<Vec<bool>, StoreError>,
    },
}

/// What a node needs to know of its image to start from it.
#[derive(Debug)]
pub struct ImageState {
    pub(crate) lb: u64,
    pub(crate) clients: ClientTable,
    /// False for one that is being loaded, or was when its process ended.
    pub(crate) whole: bool,
}

impl ImageState {
    pub(crate) fn empty() -> ImageState {
        ImageState { lb: 0, clients: ClientTable::default(), whole: false }
    }
}

impl StoreJob {
    /// Whether it reads a little and writes nothing: a fetch, which clients wait for, or a block or part of the
    /// image for another copy. The others take their time on another thread.
    pub fn is_short(&self) -> bool {
        use Work::{Examine, Fetch, ReadBlock, ReadPart};
        matches!(self.0, Fetch { .. } | ReadPart { .. } | ReadBlock { .. } | Examine { .. })
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
            Work::Checkpoint(frozen) => match frozen.checkpoint(store, ring, pause) {
                Err(error) if error.is_full() => Done::NoRoom(frozen),
                result => Done::Checkpointed { op: frozen.op, result },
            },
            Work::Digest { op } => {
                let mut damaged = Vec::new();
                let result = digest(store, op, &mut damaged);
                Done::Digested { op, result, damaged }
            }
            Work::Reload => Done::Reloaded(image_state(store)),
            Work::Discard => Done::Discarded(store.discard()),
            Work::ReadPart { to, view, part, at_least, place, enough, source } => {
                let (section, mut damaged) = (place.section, Vec::new());
                let result = read_part(store, (&place, enough), source, &mut damaged);
                Done::PartRead(PartRead { to, view, part, at_least, result, section, damaged })
            }
            Work::Load { parts } => Done::Loaded(load(store, &parts, pause)),
            Work::CompleteImage => Done::ImageCompleted(store.complete_load()),
            Work::ReadBlock { to, name } => {
                Done::BlockRead(BlockRead { to, name, result: read_block(store, &name) })
            }
            Work::Examine { blocks } => {
                let damaged = examine(store, &blocks);
                Done::Examined { blocks, damaged }
            }
            Work::Mend { remedies } => {
                let result = store.mend(&remedies);
                Done::Mended { remedies, result }
            }
        })
    }
}

/// The image below a generation.
pub(crate) struct Image<E: Engine, D: Disk> {
    pub reader: Reader<E, D>,
    pub partial: bool,
    /// Takes in the damaged blocks that were met where they do no harm; elsewhere they are errors.
    pub damaged: RefCell<Vec<DamagedBlock>>,
    /// Damaged blocks count as sound.
    seals_damage: bool,
}

impl<E: Engine, D: Disk> Image<E, D> {
    pub fn new(reader: Reader<E, D>) -> Image<E, D> {
        Image { reader, partial: false, damaged: RefCell::default(), seals_damage: false }
    }

    fn show_held(
        &self,
        file: u64,
        first: u64,
        count: u32,
        held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        let mut show = |stretch: Stretch, _: &mut dyn Iterator<Item = u32>| {
            held(stretch.first, stretch.count);
            Ok(Walk::On)
        };
        self.reader.locate(file, first, count.into(), &mut show).map_err(unread)
    }
}

pub(crate) fn unread(error: StoreError) -> ImageError {
    ImageError::Reader(Box::new(error))
}

impl<E: Engine, D: Disk> ImageReader for Image<E, D> {
    fn op(&self) -> u64 {
        self.reader.op()
    }

    fn is_partial(&self) -> bool {
        self.partial
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        let value = self.reader.get(key).map_err(unread)?;
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
        self.reader.scan(from, limit, &mut shown).map_err(unread)?;
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
        self.reader.read_blocks(file, first, out).map_err(unread)?;
        self.show_held(file, first, count, held)
    }

    fn read_blocks_but(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
        damaged: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        let mut seen = self.damaged.borrow_mut();
        let mut show = |block: DamagedBlock| {
            if !self.seals_damage {
                damaged(block.block);
                seen.push(block);
            }
            Ok(())
        };
        self.reader.read_blocks_but(file, first, out, &mut show).map_err(unread)?;
        self.show_held(file, first, count, held)
    }
}

fn fetch<E: Engine, D: Disk>(
    store: &Store<E, D>,
    needs: &[Need],
) -> Result<(Vec<Fetched>, Vec<DamagedBlock>), ImageError> {
    let image = Image::new(store.reader().map_err(unread)?);
    let fetched: Result<Vec<Fetched>, ImageError> =
        needs.iter().map(|need| need.fetch(&image)).collect();
    Ok((fetched?, image.damaged.into_inner()))
}

/// The block of that name, if the image has it; and what of it is damaged.
fn read_block<E: Engine, D: Disk>(
    store: &Store<E, D>,
    name: &BlockName,
) -> Result<(Option<Box<Block>>, Vec<DamagedBlock>), StoreError> {
    let reader = store.reader()?;
    if reader.block_crc(name.file, name.block)? != Some(name.crc) {
        return Ok((None, Vec::new()));
    }
    let (mut data, mut damaged) = (Box::new([0; BLOCK_BYTES]), Vec::new());
    reader.read_blocks_but(name.file, name.block, &mut data[..], &mut |block| {
        damaged.push(block);
        Ok(())
    })?;
    Ok((damaged.is_empty().then_some(data), damaged))
}

fn examine<E: Engine, D: Disk>(
    store: &Store<E, D>,
    blocks: &[(u64, u64)],
) -> Result<Vec<DamagedBlock>, StoreError> {
    let reader = store.reader()?;
    let (mut data, mut damaged) = (vec![0; BLOCK_BYTES], Vec::new());
    for (file, block) in blocks {
        reader.read_blocks_but(*file, *block, &mut data, &mut |block| {
            damaged.push(block);
            Ok(())
        })?;
    }
    Ok(damaged)
}

/// Why a job failed.
#[derive(Debug)]
pub enum JobError {
    /// The store refused or failed.
    Store(StoreError),
    /// What the image holds makes no sense, or not with what the log says.
    Image(ImageError),
}

impl JobError {
    /// Whether there was no room.
    fn is_full(&self) -> bool {
        let error = match self {
            JobError::Store(error) => Some(error),
            JobError::Image(ImageError::Reader(error)) => error.downcast_ref(),
            JobError::Image(_) => None,
        };
        matches!(error, Some(StoreError::Full { .. }))
    }
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
    pub clients: ChangedRows,
    pub configuration: Vec<u8>,
    /// The image lacks parts, or has some that are newer than `op`.
    pub partial: bool,
    /// [`harp_vr::Planted::DamageSealed`].
    pub seals_damage: bool,
}

impl Frozen {
    fn checkpoint<E: Engine, D: Disk>(
        &self,
        store: &Store<E, D>,
        ring: &Ring,
        pause: &dyn Fn(),
    ) -> Result<Vec<(u64, u64)>, JobError> {
        let Frozen { op, generation, clients, configuration, partial, seals_damage } = self;
        let (partial, seals_damage) = (*partial || *seals_damage, *seals_damage);
        let base = Image { partial, seals_damage, ..Image::new(store.reader()?) };
        let log = RingBytes(ring.clone());
        let cuts: Vec<Cut> =
            generation.cuts().into_iter().map(|(file, first)| Cut { file, first }).collect();
        let blocks = generation.blocks(&log, &base)?;
        let damaged = blocks.damaged().to_vec();
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
            clients.put(&log, &mut |key, value| match value {
                Some(value) => sink.put(key, value),
                None => sink.delete(key),
            })?;
            sink.put(CONFIGURATION_KEY, configuration)
        };
        let (metadata, blocks) = (&mut metadata, &mut writes);
        let result = store.checkpoint(Checkpoint { op: *op, cuts: &cuts, metadata, blocks, pause });
        match (trouble, result) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) => Ok(damaged),
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

/// The digest; all damaged blocks are found on the way, and the first is the error.
fn digest<E: Engine, D: Disk>(
    store: &Store<E, D>,
    op: u64,
    damaged: &mut Vec<DamagedBlock>,
) -> Result<[u8; 32], StoreError> {
    let reader = store.reader()?;
    assert_eq!(reader.op(), op, "the image moved on before its digest was taken");
    let digest = reader.digest_but(&mut |block| {
        if damaged.len() < DAMAGED_SHOWN_MAX {
            damaged.push(block);
        }
        Ok(())
    })?;
    match damaged.first() {
        Some(first) => Err((*first).into()),
        None => Ok(digest.0),
    }
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
    let whole = reader.complete();
    if !whole && reader.op() == 0 {
        return Ok(ImageState::empty()); // perhaps with half a client table
    }
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
    Ok(ImageState { lb, clients, whole })
}

fn read_part<E: Engine, D: Disk>(
    store: &Store<E, D>,
    (place, enough): (&Place, usize),
    source: Option<Box<dyn PartSource>>,
    damaged: &mut Vec<DamagedBlock>,
) -> Result<(Box<dyn PartSource>, Vec<u8>), StoreError> {
    let source = match source {
        Some(source) => source,
        None => Box::new(store.reader()?),
    };
    let bytes = source.part(place, enough, &mut |block| damaged.push(block))?;
    Ok((source, bytes))
}

/// Puts parts of one section into an image that is being loaded. With the end of the client table it stands at
/// their op.
fn load<E: Engine, D: Disk>(
    store: &Store<E, D>,
    parts: &[Part],
    pause: &dyn Fn(),
) -> Result<Loaded, StoreError> {
    let last = parts.last().expect("parts to load");
    let begins = last.section == Section::Clients && last.next.section != Section::Clients;
    let op = if begins { last.op } else { store.op() };
    let mut metadata = |sink: &mut MetadataSink<'_>| {
        let rows = parts.iter().flat_map(Part::rows);
        sink.extend(rows.map(|(key, value)| (key, Some(value))))
    };
    let blocks = parts.iter().flat_map(Part::blocks);
    let mut blocks = blocks.inspect(|_| pause()).map(|(file, block, crc, data)| BlockWrite {
        file,
        block,
        content: Content::Checked(data, crc),
    });
    let report = store.load(op, &mut metadata, &mut blocks)?;
    let begun = if begins { Some(image_state(store)?) } else { None };
    let bytes = parts.iter().map(|part| part.memory_bytes() as u64).sum();
    Ok(Loaded { newest: last.op, last: last.is_last(), begun, rows: report.entries, bytes })
}
