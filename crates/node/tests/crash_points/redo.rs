//! Redo: suffixes of a log replayed over images that hold some of them already.
//! Owns: the replays, and redos that are wrong on purpose.
//! Never: serves anybody; the records go through the shadow and a checkpoint into the image.
//! Invariant: whichever suffix begins at or below the image, and however often, the same image comes of it.
//! Source: property 12.

use harp_fs::atime::AccessTimes;
use harp_fs::blocks::LogBytes;
use harp_fs::effect::{Effect, EffectWriter, Effects};
use harp_fs::inode::Inode;
use harp_fs::key;
use harp_fs::need::{ImageError, ImageReader};
use harp_fs::shadow::{Shadow, ShadowSettings};
use harp_node::clients::{ClientTable, ROW_PREFIX};
use harp_node::record::{self, STAMP_BYTES, kind};
use harp_store::{
    BlockWrite, Checkpoint, Content, Cut, MetadataSink, Reader, Store, Stretch, Walk,
};

use crate::disks::{DataOf, Disks, EngineOf, Machines};
use crate::group::open_store;
use crate::story::{Story, Taken};

/// How far below the image a suffix begins at most.
const BELOW_MAX: u64 = 3;
/// How often each suffix is replayed.
const TIMES: u64 = 3;

/// A redo that is wrong, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The first record of the suffix is left out.
    LeavesOneOut,
    /// The last record is left out.
    StopsEarly,
    /// Numbers of entries and sizes are changed by as much as the record changed them, not set.
    CountsUp,
    /// A new entry takes the next free cookie, not the one in its record.
    TakesNextCookie,
    /// Times are those of the redo.
    TakesOwnTime,
    /// A cut is not redone.
    ForgetsCuts,
    /// What a record puts into a block goes into an empty one.
    ForgetsBase,
}

impl Wrong {
    pub const ALL: [Wrong; 7] = [
        Wrong::LeavesOneOut,
        Wrong::StopsEarly,
        Wrong::CountsUp,
        Wrong::TakesNextCookie,
        Wrong::TakesOwnTime,
        Wrong::ForgetsCuts,
        Wrong::ForgetsBase,
    ];
}

type OpenStore = Store<EngineOf, DataOf>;

/// Bodies of records, back to back.
#[derive(Default)]
struct Bodies(Vec<u8>);

impl LogBytes for Bodies {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..][..len as usize]
    }
}

/// An image below a generation.
struct Image(Reader<EngineOf, DataOf>);

fn unread(error: harp_store::StoreError) -> ImageError {
    ImageError::Reader(Box::new(error))
}

impl ImageReader for Image {
    fn op(&self) -> u64 {
        self.0.op()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(self.0.get(key).map_err(unread)?.map(<[u8]>::to_vec))
    }

    fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        let mut shown =
            |key: &[u8], value: &[u8]| Ok(if show(key, value) { Walk::On } else { Walk::Stop });
        self.0.scan(from, limit, &mut shown).map_err(unread).map(|_| ())
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

impl Story {
    /// Replays every suffix that begins at or a little below each image, three times each; the image must come to
    /// be the one without a crash. Returns how many replays that were.
    pub fn replay_everything(&self, wrong: Option<Wrong>) -> Result<u64, String> {
        let last = self.states.last().expect("the state at the start");
        let expected = last.digest.expect("a checkpoint at the end");
        let end = self.records.last().map_or(0, |record| record.op);
        let mut replays = 0;
        for (at, disks) in &self.images {
            for from in at.saturating_sub(BELOW_MAX)..=*at {
                let machines = Machines::new([disks.fork(), Disks::empty()], None);
                let store = open_store(&machines, 0)?;
                for time in 0..TIMES {
                    // An image moves forward only: records without effects follow the last one.
                    let suffix = Suffix { from, end, op: end + 1 + time, wrong };
                    let told = |why| {
                        format!(
                            "records {} to {end} over the image at {at}, replay {time}: {why}",
                            from + 1
                        )
                    };
                    suffix.redo(&store, &self.records).map_err(told)?;
                    let (_, digest) = store.digest().map_err(|error| told(error.to_string()))?;
                    if digest.0 != expected {
                        return Err(told("another image than without a crash".into()));
                    }
                    replays += 1;
                }
                let mut damage = None;
                let scrubbed = store.scrub(&mut |found| damage = Some(found));
                if scrubbed.map_err(|error| error.to_string())?.damaged > 0 {
                    return Err(format!("from {from} over the image at {at}: {damage:?}"));
                }
            }
        }
        Ok(replays)
    }
}

/// Records `from + 1` to `end`, to be redone; the image stands at `op` then.
struct Suffix {
    from: u64,
    end: u64,
    op: u64,
    wrong: Option<Wrong>,
}

impl Suffix {
    fn redo(&self, store: &OpenStore, records: &[Taken]) -> Result<(), String> {
        let settings = ShadowSettings {
            cache_bytes: 64 << 10,
            filter_bytes: 0,
            seed: self.from,
            access_times: AccessTimes::Off,
        };
        let reader = store.reader().map_err(|error| error.to_string())?;
        let mut clients = clients_of(&reader)?;
        let (base, mut log) = (Image(reader), Bodies::default());
        let mut shadow = Shadow::new(settings, self.from);
        let suffix =
            records.iter().filter(|record| (self.from + 1..=self.end).contains(&record.op));
        let last = records.iter().rfind(|record| record.kind == kind::OPERATION);
        let last = last.map_or(0, |record| record.op);
        for taken in suffix {
            let skipped = match self.wrong {
                Some(Wrong::LeavesOneOut) => taken.op == self.from + 1,
                Some(Wrong::StopsEarly) => taken.op == last,
                _ => false,
            };
            if !skipped {
                self.redo_one(taken, &base, &mut log, &mut shadow, &mut clients)?;
            }
        }
        shadow.apply(self.op, &[], 0, &log).map_err(|error| error.to_string())?;
        let generation = shadow.freeze(self.op);
        let cuts = generation.cuts().into_iter().map(|(file, first)| Cut { file, first });
        let cuts: Vec<Cut> = cuts.filter(|_| self.wrong != Some(Wrong::ForgetsCuts)).collect();
        let blocks = generation.blocks(&log, &base).map_err(|error| error.to_string())?;
        let mut writes = blocks.iter().map(|out| BlockWrite {
            file: out.ino,
            block: out.block,
            content: Content::Checked(out.data, out.crc),
        });
        let rows = clients.freeze();
        let configuration = base.get(CONFIGURATION_KEY).map_err(|error| error.to_string())?;
        let mut metadata = |sink: &mut MetadataSink<'_>| {
            let put = generation.metadata(&base, &mut |key, value| {
                let put = match value {
                    Some(value) => sink.put(key, value),
                    None => sink.delete(key),
                };
                put.map_err(unread)
            });
            put.expect("the rows of sound records");
            rows.put(&log, &mut |key, value| match value {
                Some(value) => sink.put(key, value),
                None => sink.delete(key),
            })?;
            sink.put(CONFIGURATION_KEY, configuration.as_deref().unwrap_or_default())
        };
        let (metadata, blocks) = (&mut metadata, &mut writes);
        let checkpoint = Checkpoint { op: self.op, cuts: &cuts, metadata, blocks, pause: &|| () };
        store.checkpoint(checkpoint).map(|_| ()).map_err(|error| error.to_string())
    }

    fn redo_one(
        &self,
        taken: &Taken,
        base: &Image,
        log: &mut Bodies,
        shadow: &mut Shadow,
        clients: &mut ClientTable,
    ) -> Result<(), String> {
        if taken.kind != kind::OPERATION {
            return shadow.apply(taken.op, &[], 0, log).map_err(|error| error.to_string());
        }
        let operation = record::operation(&taken.body).map_err(|error| error.to_string())?;
        let effects = match self.wrong {
            Some(wrong) => distort(wrong, operation.effects, base),
            None => operation.effects.to_vec(),
        };
        let at = log.0.len();
        log.0.extend_from_slice(&taken.body[..STAMP_BYTES]);
        log.0.extend_from_slice(&effects);
        log.0.extend_from_slice(operation.reply);
        let effects_at = (at + STAMP_BYTES) as u64;
        let stamp = record::Stamp { effects_len: effects.len() as u32, ..operation.stamp };
        let applied = shadow.apply(taken.op, &effects, effects_at, log);
        applied.map_err(|error| format!("record {}: {error}", taken.op))?;
        clients.record(taken.op, taken.time, &stamp, operation.reply, at as u64);
        Ok(())
    }
}

/// First byte of the row that holds the configuration.
const CONFIGURATION_KEY: &[u8] = &[0xC1];

fn clients_of(reader: &Reader<EngineOf, DataOf>) -> Result<ClientTable, String> {
    let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let scanned = reader.scan(&[ROW_PREFIX], usize::MAX, &mut |key, value| {
        if key[0] == ROW_PREFIX {
            rows.push((key.to_vec(), value.to_vec()));
        }
        Ok(Walk::On)
    });
    scanned.map_err(|error| error.to_string())?;
    let table = ClientTable::load(reader.op(), rows.iter().map(|(k, v)| (&k[..], &v[..])));
    table.ok_or_else(|| "the client table is malformed".into())
}

/// The effects as a wrong redo would take them.
fn distort(wrong: Wrong, effects: &[u8], base: &Image) -> Vec<u8> {
    let mut room = vec![0; 2 * effects.len() + 4_096];
    let mut out = EffectWriter::new(&mut room);
    let below =
        |ino: u64| -> Option<Inode> { key::parse_inode(&base.get(&key::inode_key(ino)).ok()??) };
    let now = harp_fs::request::Time { seconds: 1, nanos: base.op() as u32 };
    let all = || Effects::new(effects).map(|effect| effect.expect("sound effects"));
    for effect in all() {
        match effect {
            Effect::TouchDir { dir, touch: mut t } => {
                if let (Wrong::CountsUp, Some(inode)) = (wrong, below(dir)) {
                    let more =
                        all().filter(|e| matches!(e, Effect::Link { dir: d, .. } if *d == dir));
                    let less =
                        all().filter(|e| matches!(e, Effect::Unlink { dir: d, .. } if *d == dir));
                    t.entry_count = (inode.entry_count + more.count() as u64)
                        .saturating_sub(less.count() as u64);
                }
                if wrong == Wrong::TakesOwnTime {
                    t.mtime = now;
                }
                out.touch_dir(dir, t.mtime, t.ctime, t.nlink, t.next_cookie, t.entry_count);
            }
            Effect::Link { dir, mut entry, name } => {
                if let (Wrong::TakesNextCookie, Some(inode)) = (wrong, below(dir)) {
                    entry.cookie = entry.cookie.max(inode.next_cookie);
                }
                out.link(dir, &entry, name);
            }
            Effect::Range { ino, block, start, data, .. } if wrong == Wrong::ForgetsBase => {
                let mut content = [0; harp_fs::inode::BLOCK_BYTES];
                content[usize::from(start)..][..data.len()].copy_from_slice(data);
                out.blocks(ino, block, &[crc32c::crc32c(&content)], &content);
            }
            other => write(&mut out, &other),
        }
    }
    let len = out.finish().expect("room enough");
    room.truncate(len);
    room
}

fn write(out: &mut EffectWriter<'_>, effect: &Effect<'_>) {
    match *effect {
        Effect::Inode { ino, ref inode, born: true } => out.new_inode(ino, inode),
        Effect::Inode { ino, ref inode, born: false } => out.set_inode(ino, inode),
        Effect::Target { ino, target } => out.set_target(ino, target),
        Effect::TouchFile { ino, touch: t } => {
            out.touch_file(ino, t.size, t.used_blocks, t.mtime, t.ctime, t.mode);
        }
        Effect::Unlink { dir, cookie, name } => out.unlink(dir, cookie, name),
        Effect::Drop { ino } => out.drop_inode(ino),
        Effect::Blocks { ino, first, crcs, data, .. } => {
            let crcs = crcs.as_chunks().0.iter().map(|crc| u32::from_le_bytes(*crc));
            out.blocks(ino, first, &crcs.collect::<Vec<_>>(), data);
        }
        Effect::Range { ino, block, start, crc, data, .. } => {
            out.range(ino, block, start.into(), crc, data);
        }
        Effect::Cut { ino, first } => out.cut(ino, first),
        Effect::Super(ref counters) => out.set_super(counters),
        Effect::TouchDir { .. } | Effect::Link { .. } => unreachable!("taken care of before"),
    }
}
