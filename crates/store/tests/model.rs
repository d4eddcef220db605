//! The store against a model: random checkpoints, a crash at every step of each, readers kept
//! across commits, cuts freed late. Model: two ordered maps. Oracle: contents, op, digest, scrub.
//! Knobs: seeds, limits, sizes. A failure names its seed.

use harp_store::{
    BLOCK_BYTES, Block, BlockWrite, Checkpoint, CheckpointReport, Content, Cut, Damage,
    DamagedBlock, Digest, Disk, Engine, Fuse, Limits, MemDisk, MemEngine, MetadataSink, Reader,
    Remedy, ScrubPlace, Store, StoreError, Table, Walk, block_crc,
};
use std::collections::BTreeMap;

type MemStore = Store<MemEngine, MemDisk>;
type MemReader = Reader<MemEngine, MemDisk>;

const FILES: u64 = 3;
const FILE_BLOCKS: u64 = 40;
const LIMITS: Limits =
    Limits { grow_blocks: 16, blocks_max: 4096, cut_now_runs_max: 3, cut_later_runs_max: 4 };

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// A block told apart by its tag; tag 0 is a block of zeros.
fn block(tag: u64) -> Block {
    let mut block = [0; BLOCK_BYTES];
    for (index, bytes) in block.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = tag.wrapping_mul(index as u64 + 1).to_le_bytes();
    }
    block
}

/// What the image should hold.
#[derive(Clone, Default)]
struct Model {
    op: u64,
    metadata: BTreeMap<Vec<u8>, Vec<u8>>,
    blocks: BTreeMap<(u64, u64), u64>,
}

/// One checkpoint's changes.
#[derive(Default)]
struct Change {
    op: u64,
    cuts: Vec<Cut>,
    metadata: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    blocks: BTreeMap<(u64, u64), u64>,
}

impl Change {
    fn random(random: &mut Random, op: u64) -> Change {
        let mut metadata = BTreeMap::new();
        for _ in 0..random.below(6) {
            let key = random.below(30).to_be_bytes().to_vec();
            let value = (random.below(3) > 0).then(|| vec![op as u8; random.below(200) as usize]);
            metadata.insert(key, value);
        }
        let mut cuts = Vec::new();
        for file in 0..FILES {
            if random.below(4) == 0 {
                cuts.push(Cut { file, first: random.below(FILE_BLOCKS) });
            }
        }
        let mut blocks = BTreeMap::new();
        for _ in 0..random.below(5) {
            let file = random.below(FILES);
            let first = random.below(FILE_BLOCKS);
            let count = if random.below(2) == 0 { 1 } else { 1 + random.below(9) };
            let step = 1 + random.below(2);
            for index in 0..count {
                blocks.insert((file, first + index * step), random.below(1000));
            }
        }
        Change { op, cuts, metadata, blocks }
    }

    fn apply_to(&self, model: &mut Model) {
        model.op = self.op;
        for cut in &self.cuts {
            model.blocks.retain(|(file, block), _| *file != cut.file || *block < cut.first);
        }
        model.blocks.extend(&self.blocks);
        for (key, value) in &self.metadata {
            match value {
                Some(value) => model.metadata.insert(key.clone(), value.clone()),
                None => model.metadata.remove(key),
            };
        }
    }

    fn checkpoint<E: Engine, D: Disk>(
        &self,
        store: &Store<E, D>,
    ) -> Result<CheckpointReport, StoreError> {
        let data: Vec<Block> = self.blocks.values().map(|tag| block(*tag)).collect();
        let mut blocks = self.blocks.keys().zip(&data).map(|((file, block), data)| {
            let content = Content::Data(data);
            BlockWrite { file: *file, block: *block, content }
        });
        let pairs = self.metadata.iter();
        store.checkpoint(Checkpoint {
            op: self.op,
            cuts: &self.cuts,
            metadata: &mut |sink| sink.extend(pairs.clone().map(|(k, v)| (&k[..], v.as_deref()))),
            blocks: &mut blocks,
            pause: &|| (),
        })
    }
}

fn check(model: &Model, reader: &MemReader) {
    assert_eq!(reader.op(), model.op);
    let mut metadata = Vec::new();
    let shown = reader.scan(&[], usize::MAX, &mut |key, value| {
        metadata.push((key.to_vec(), value.to_vec()));
        Ok(Walk::On)
    });
    assert_eq!(shown.unwrap(), model.metadata.len());
    assert!(metadata.iter().map(|(k, v)| (k, v)).eq(&model.metadata));
    for file in 0..FILES {
        let end = FILE_BLOCKS + 30;
        let mut out = vec![7; end as usize * BLOCK_BYTES];
        reader.read_blocks(file, 0, &mut out).unwrap();
        for (index, found) in (0..).zip(out.as_chunks::<BLOCK_BYTES>().0) {
            let tag = model.blocks.get(&(file, index)).copied();
            assert!(*found == block(tag.unwrap_or(0)), "file {file} block {index}");
            let crc = reader.block_crc(file, index).unwrap();
            assert_eq!(crc, tag.map(|tag| harp_store::block_crc(&block(tag))));
        }
        let mut out = vec![7; 5 * BLOCK_BYTES];
        reader.read_blocks(file, 7, &mut out).unwrap();
        assert!(out[..BLOCK_BYTES] == block(model.blocks.get(&(file, 7)).copied().unwrap_or(0)));
    }
    let mut stretches = Vec::new();
    let all = reader.stretches((0, 0), &mut |stretch, crcs| {
        assert_eq!(crcs.count() as u64, stretch.count);
        stretches.extend((0..stretch.count).map(|index| (stretch.file, stretch.first + index)));
        Ok(Walk::On)
    });
    all.unwrap();
    assert!(stretches.iter().eq(model.blocks.keys()));
}

/// The digest of the model, from a store that took it in at once.
fn digest_of(model: &Model) -> Digest {
    let (engine, disk) = (MemEngine::new(), MemDisk::new(4096));
    MemStore::format(&engine, b"another", &[]).unwrap();
    let store = Store::open(engine, disk, LIMITS).unwrap().store;
    let metadata = model.metadata.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    let blocks = model.blocks.clone();
    Change { op: model.op.max(1), cuts: Vec::new(), metadata, blocks }.checkpoint(&store).unwrap();
    store.digest().unwrap().1
}

struct World {
    random: Random,
    fuse: Fuse,
    engine: MemEngine,
    disk: MemDisk,
    model: Model,
}

impl World {
    fn new(seed: u64) -> World {
        let fuse = Fuse::new();
        let engine = MemEngine::with_fuse(fuse.clone());
        let disk = MemDisk::with_fuse(4096, fuse.clone());
        MemStore::format(&engine, b"identity", &[]).unwrap();
        World { random: Random::new(seed), fuse, engine, disk, model: Model::default() }
    }

    fn open(&self) -> MemStore {
        let opened = Store::open(self.engine.clone(), self.disk.clone(), LIMITS).unwrap();
        assert_eq!(opened.identity, b"identity");
        assert_eq!(opened.op, opened.store.op());
        assert!(opened.complete);
        opened.store
    }

    /// Loses power and opens again; the image must be the old model or, if it says so, the new.
    fn crash(&mut self, store: MemStore, change: &Change) -> MemStore {
        drop(store);
        self.fuse.reset();
        let odds = self.random.below(3);
        let random = &mut self.random;
        self.disk.crash(&mut |_, _| random.below(2) < odds);
        let store = self.open();
        if store.op() == change.op {
            change.apply_to(&mut self.model);
        }
        check(&self.model, &store.reader().unwrap());
        assert_eq!(store.scrub(&mut |damage| panic!("{damage}")).unwrap().damaged, 0);
        store
    }
}

#[test]
fn crash_at_every_step_leaves_the_last_completed_checkpoint() {
    for seed in 1..=25 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        let mut store = world.open();
        for op in 1..=25 {
            let change = Change::random(&mut world.random, op * 10);
            let mut steps = 0;
            while world.model.op < change.op {
                world.fuse.arm(steps);
                let result = change.checkpoint(&store);
                world.fuse.reset();
                match result {
                    Ok(report) => {
                        assert_eq!(report.op, change.op);
                        change.apply_to(&mut world.model);
                    }
                    Err(error) => {
                        assert_eq!(error.is_fatal(), store.reader().is_err());
                        store = world.crash(store, &change);
                    }
                }
                steps += 1;
            }
            check(&world.model, &store.reader().unwrap());
        }
        assert_eq!(store.digest().unwrap().1, digest_of(&world.model));
    }
}

#[test]
fn stopped_checkpoint_may_be_tried_again_without_reopening() {
    for seed in 1..=40 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        let store = world.open();
        for op in 1..=25 {
            let change = Change::random(&mut world.random, op);
            // Steps before the engine commits: whatever fails there changed nothing.
            world.fuse.arm(world.random.below(3));
            let first = change.checkpoint(&store);
            world.fuse.reset();
            match first {
                Ok(_) => {}
                Err(error) if error.is_fatal() => break,
                Err(_) => {
                    check(&world.model, &store.reader().unwrap());
                    change.checkpoint(&store).unwrap();
                }
            }
            change.apply_to(&mut world.model);
            check(&world.model, &store.reader().unwrap());
            store.scrub(&mut |damage| panic!("{damage}")).unwrap();
        }
    }
}

#[test]
fn readers_see_their_own_moment_while_blocks_are_reused() {
    for seed in 1..=40 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        let store = world.open();
        let mut readers: Vec<(Model, MemReader)> = Vec::new();
        for op in 1..=60 {
            let change = Change::random(&mut world.random, op);
            change.checkpoint(&store).unwrap();
            change.apply_to(&mut world.model);
            if world.random.below(3) == 0 {
                readers.push((world.model.clone(), store.reader().unwrap()));
            }
            if world.random.below(3) == 0 && !readers.is_empty() {
                let index = world.random.below(readers.len() as u64) as usize;
                let (model, reader) = readers.swap_remove(index);
                check(&model, &reader);
            }
        }
        for (model, reader) in readers.drain(..) {
            check(&model, &reader);
        }
        assert_eq!(store.readers(), 0);
        // Empty checkpoints free what cuts left, until only live blocks are used.
        for op in 61..=260 {
            let change =
                Change { cuts: vec![], metadata: BTreeMap::new(), blocks: BTreeMap::new(), op };
            change.checkpoint(&store).unwrap();
            change.apply_to(&mut world.model);
        }
        check(&world.model, &store.reader().unwrap());
        assert_eq!(store.space().used_blocks, world.model.blocks.len() as u64);
        let store = world.open();
        assert_eq!(store.space().used_blocks, world.model.blocks.len() as u64);
        assert_eq!(store.digest().unwrap().1, digest_of(&world.model));
    }
}

/// A store with one checkpoint: `runs` single blocks of file 1, at even indices.
fn with_runs(world: &mut World, limits: Limits, runs: u64) -> MemStore {
    let opened = Store::open(world.engine.clone(), world.disk.clone(), limits).unwrap();
    let blocks = (0..runs).map(|index| ((1, index * 2), index + 1)).collect();
    let change = Change { op: 1, cuts: Vec::new(), metadata: BTreeMap::new(), blocks };
    change.checkpoint(&opened.store).unwrap();
    change.apply_to(&mut world.model);
    opened.store
}

#[test]
fn huge_cut_hides_at_once_and_frees_step_by_step() {
    let mut world = World::new(1);
    world.disk.set_blocks_max(1 << 20);
    let limits = Limits { blocks_max: 1 << 20, ..Limits::default() };
    let limits = Limits { grow_blocks: 1 << 12, cut_later_runs_max: 5000, ..limits };
    let store = with_runs(&mut world, limits, 12_000);
    assert_eq!(store.space().used_blocks, 12_000);
    // Cut at block 2, and write one block beyond it in the same checkpoint.
    let cuts = vec![Cut { file: 1, first: 2 }];
    let blocks = BTreeMap::from([((1, 30), 77)]);
    let change = Change { op: 2, cuts, metadata: BTreeMap::new(), blocks };
    let report = change.checkpoint(&store).unwrap();
    change.apply_to(&mut world.model);
    assert_eq!(report.cut_marks, 1);
    check(&world.model, &store.reader().unwrap());
    assert_eq!(store.space().used_blocks, 12_000);
    drop(store);
    let store = Store::open(world.engine.clone(), world.disk.clone(), limits).unwrap().store;
    let mut used = Vec::new();
    for op in 3..=6 {
        let blocks = BTreeMap::from([((1, 30 + op), op)]);
        let change = Change { op, cuts: Vec::new(), metadata: BTreeMap::new(), blocks };
        let report = change.checkpoint(&store).unwrap();
        change.apply_to(&mut world.model);
        check(&world.model, &store.reader().unwrap());
        used.push((report.cut_marks, store.space().used_blocks));
    }
    assert_eq!(used.last().unwrap(), &(0, world.model.blocks.len() as u64));
    assert_eq!(used[0].0, 1);
    assert!(used[0].1 > 6900 && used[0].1 < 7100, "{used:?}");
    assert_eq!(store.digest().unwrap().1, digest_of(&world.model));
}

#[test]
fn damaged_block_and_value_are_noticed_and_a_block_is_mended() {
    let mut world = World::new(1);
    let store = with_runs(&mut world, LIMITS, 3);
    let change = Change {
        op: 2,
        cuts: Vec::new(),
        metadata: BTreeMap::from([(b"key".to_vec(), Some(b"value".to_vec()))]),
        blocks: BTreeMap::new(),
    };
    change.checkpoint(&store).unwrap();
    change.apply_to(&mut world.model);
    let position = world.disk.positions()[1];
    assert!(world.disk.flip(position, 4000, 0x10));
    let reader = store.reader().unwrap();
    let mut out = vec![0; 5 * BLOCK_BYTES];
    let crc = block_crc(&block(2));
    let wanted = Damage::Block(DamagedBlock { file: 1, block: 2, position, crc });
    match reader.read_blocks(1, 0, &mut out) {
        Err(StoreError::Damaged(damage)) => assert_eq!(damage, wanted),
        other => panic!("{other:?}"),
    }
    reader.read_blocks(1, 0, &mut out[..2 * BLOCK_BYTES]).unwrap();
    assert!(matches!(store.digest(), Err(StoreError::Damaged(_))));
    let mut seen = Vec::new();
    let report = store.scrub(&mut |damage| seen.push(damage)).unwrap();
    assert_eq!(report.damaged, 1);
    // In parts, with a new reader for each, the same is seen.
    let (mut place, mut blocks, mut values) = (Some(ScrubPlace::default()), 0, 0);
    while let Some(from) = place {
        let reader = store.reader().unwrap();
        let part = reader.scrub_part(from, 2, &mut |damage| seen.push(damage)).unwrap();
        blocks += part.0.blocks;
        values += part.0.values;
        place = part.1;
    }
    assert_eq!((blocks, values), (report.blocks, report.values));
    assert_eq!(seen, [wanted.clone(), wanted]);

    let remedy =
        |block_index, byte| Remedy { file: 1, block: block_index, data: Box::new(block(byte)) };
    assert_eq!(store.mend(&[remedy(2, 5)]).unwrap(), [false]);
    assert!(store.scrub(&mut |_| ()).unwrap().damaged == 1);
    assert_eq!(store.mend(&[remedy(2, 2), remedy(2000, 7)]).unwrap(), [true, false]);
    check(&world.model, &store.reader().unwrap());
    drop(reader);
    store.scrub(&mut |damage| panic!("{damage}")).unwrap();

    // What the medium does not give back is damaged, and nothing beside it.
    let position = world.disk.positions()[2];
    world.disk.spoil(position);
    let (reader, mut seen) = (store.reader().unwrap(), Vec::new());
    reader
        .read_blocks_but(1, 0, &mut out, &mut |damaged| {
            seen.push(damaged);
            Ok(())
        })
        .unwrap();
    let unread = seen.pop().unwrap();
    assert_eq!((unread.position, seen.len()), (position, 0));
    let index = unread.block as usize * BLOCK_BYTES;
    assert_eq!(out[index..index + BLOCK_BYTES], [0; BLOCK_BYTES]);
    assert_eq!(store.mend(&[remedy(unread.block, unread.block / 2 + 1)]).unwrap(), [true]);
    check(&world.model, &store.reader().unwrap());
    drop(reader);
    let store = world.open();
    check(&world.model, &store.reader().unwrap());

    assert!(world.engine.flip(Table::Meta, b"key", 2, 1));
    let wanted = Damage::Value { table: "meta", key: b"key".to_vec() };
    match store.reader().unwrap().get(b"key") {
        Err(StoreError::Damaged(damage)) => assert_eq!(damage, wanted),
        other => panic!("{other:?}"),
    }
    let mut seen = Vec::new();
    store.scrub(&mut |damage| seen.push(damage)).unwrap();
    assert_eq!(seen, [wanted]);
}

#[test]
fn damage_anywhere_in_the_engine_is_an_error_and_never_a_wrong_answer() {
    for table in Table::ALL {
        let mut world = World::new(1);
        drop(with_runs(&mut world, LIMITS, 8));
        let store = world.open();
        let change = Change {
            op: 2,
            cuts: vec![Cut { file: 1, first: 2 }],
            metadata: BTreeMap::from([(b"key".to_vec(), Some(b"value".to_vec()))]),
            blocks: BTreeMap::new(),
        };
        change.checkpoint(&store).unwrap();
        drop(store);
        let keys = world.engine.keys(table);
        assert!(!keys.is_empty(), "{}", table.name());
        for key in keys {
            for byte in [0, 3, 9, 17] {
                assert!(world.engine.flip(table, &key, byte, 0x40));
                let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS);
                let result = opened.and_then(|opened| {
                    opened.store.digest()?;
                    opened.store.scrub(&mut |_| ()).map(|report| report.damaged)
                });
                assert!(matches!(result, Err(StoreError::Damaged(_)) | Ok(1..)), "{result:?}");
                assert!(world.engine.flip(table, &key, byte, 0x40));
            }
        }
    }
}

#[test]
fn failed_sync_ends_the_store() {
    let mut world = World::new(1);
    let store = with_runs(&mut world, LIMITS, 3);
    world.disk.fail_syncs();
    let change = Change::random(&mut Random::new(5), 9);
    let with_block = BTreeMap::from([((1, 0), 9)]);
    let change = Change { blocks: with_block, ..change };
    assert!(matches!(change.checkpoint(&store), Err(StoreError::SyncFailed { .. })));
    assert!(matches!(change.checkpoint(&store), Err(StoreError::Failed)));
    assert!(matches!(store.reader(), Err(StoreError::Failed)));
    let store = world.crash(store, &change);
    change.checkpoint(&store).unwrap();
}

#[test]
fn full_disk_changes_nothing_and_room_helps() {
    let mut world = World::new(1);
    world.disk.set_blocks_max(16);
    let store = with_runs(&mut world, LIMITS, 10);
    let blocks = (0..10).map(|index| ((2, index), index)).collect();
    let change = Change { op: 5, cuts: Vec::new(), metadata: BTreeMap::new(), blocks };
    assert!(matches!(change.checkpoint(&store), Err(StoreError::Full { .. })));
    assert_eq!(store.space().free_blocks, 6);
    check(&world.model, &store.reader().unwrap());
    world.disk.set_blocks_max(4096);
    change.checkpoint(&store).unwrap();
    change.apply_to(&mut world.model);
    check(&world.model, &store.reader().unwrap());
    assert_eq!(store.grow(100).unwrap().free_blocks, 108);
    // Less than a step is taken too.
    world.disk.set_blocks_max(130);
    assert_eq!(store.grow(109).unwrap().free_blocks, 110);
    assert!(matches!(store.grow(111), Err(StoreError::Full { .. })));
}

#[test]
fn placed_blocks_are_taken_in_and_claimed_again_after_a_crash() {
    let mut world = World::new(1);
    let store = world.open();
    let mut extents = Vec::new();
    // Nothing is owned yet, and reserving never waits for a disk to grow.
    assert!(matches!(store.reserve(20, &mut extents), Err(StoreError::Full { .. })));
    store.grow(20).unwrap();
    store.reserve(20, &mut extents).unwrap();
    let data: Vec<Block> = (1..=20).map(block).collect();
    let mut left = &data[..];
    let mut places = Vec::new();
    for extent in &extents {
        let (now, later) = left.split_at(extent.count as usize);
        left = later;
        let slices: Vec<_> = now.iter().map(|data| std::io::IoSlice::new(&data[..])).collect();
        store.write_reserved(extent.position, &slices).unwrap();
        places.extend(extent.position..extent.end());
    }
    store.sync_data().unwrap();
    drop(store);
    world.disk.crash(&mut |_, _| false);
    let store = world.open();
    assert_eq!(store.space().used_blocks, 0);
    extents.iter().for_each(|extent| store.claim(*extent).unwrap());
    assert!(matches!(store.claim(extents[0]), Err(StoreError::Damaged(_))));
    assert_eq!(store.space().used_blocks, 20);
    let mut blocks = (0..).zip(places.iter().zip(&data)).take(15).map(|(index, (place, data))| {
        let content = Content::Placed { position: *place, crc: harp_store::block_crc(data) };
        BlockWrite { file: 1, block: index, content }
    });
    let report = store.checkpoint(Checkpoint {
        op: 3,
        cuts: &[],
        metadata: &mut |_| Ok(()),
        blocks: &mut blocks,
        pause: &|| (),
    });
    assert_eq!(report.unwrap().data_bytes, 0);
    for position in &places[15..] {
        store.release(harp_store::Extent { position: *position, count: 1 });
    }
    assert_eq!(store.space().used_blocks, 15);
    world.model.op = 3;
    world.model.blocks = (0..15).map(|index| ((1, index), index + 1)).collect();
    check(&world.model, &store.reader().unwrap());
    store.scrub(&mut |damage| panic!("{damage}")).unwrap();
}

#[test]
fn image_loaded_in_pieces_is_complete_only_when_that_is_said() {
    let world = World::new(1);
    MemStore::reformat(&world.engine, b"new", None).unwrap();
    let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap();
    assert!(!opened.complete);
    let data = block(4);
    for piece in 0..3u64 {
        let write = BlockWrite { file: 1, block: piece, content: Content::Data(&data) };
        let key = piece.to_be_bytes();
        let mut row = |sink: &mut MetadataSink<'_>| sink.put(&key, b"value");
        let loaded = opened.store.load(3, &mut row, &mut std::iter::once(write));
        assert_eq!(loaded.unwrap().op, 3);
    }
    drop(opened);
    let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap();
    assert_eq!((opened.complete, opened.op), (false, 3));
    assert_eq!(opened.identity, b"new");
    let change = Change {
        op: 7,
        cuts: vec![Cut { file: 1, first: 2 }],
        metadata: BTreeMap::new(),
        blocks: BTreeMap::new(),
    };
    change.checkpoint(&opened.store).unwrap();
    drop(opened);
    let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap();
    assert!(!opened.complete);
    opened.store.complete_load().unwrap();
    drop(opened);
    let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap();
    assert!(opened.complete);
    let mut model = Model { op: 7, ..Model::default() };
    model.blocks = BTreeMap::from([((1, 0), 4), ((1, 1), 4)]);
    model.metadata = (0..3u64).map(|i| (i.to_be_bytes().to_vec(), b"value".to_vec())).collect();
    check(&model, &opened.store.reader().unwrap());
}

#[test]
fn a_mark_hides_what_was_loaded_before_it_and_nothing_loaded_after() {
    let world = World::new(1);
    MemStore::reformat(&world.engine, b"new", None).unwrap();
    let store = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap().store;
    let data = block(4);
    // Every other block: each is a run of its own, more than one cut frees at once.
    let many = 2 * LIMITS.cut_now_runs_max as u64;
    let piece = |at: u64| BlockWrite { file: 1, block: 2 * at, content: Content::Data(&data) };
    let load = |blocks: std::ops::Range<u64>| {
        store.load(store.op(), &mut |_| Ok(()), &mut blocks.map(piece)).unwrap();
    };
    load(0..many);
    let cut = Change { op: 5, cuts: vec![Cut { file: 1, first: 0 }], ..Change::default() };
    cut.checkpoint(&store).unwrap();
    let held = || {
        (0..many)
            .filter(|at| store.reader().unwrap().block_crc(1, 2 * at).unwrap().is_some())
            .count()
    };
    assert_eq!(held(), 0);
    load(0..3);
    assert_eq!(held(), 3);
}

#[test]
fn a_discarded_image_is_empty_and_its_blocks_are_used_again() {
    let world = World::new(1);
    let store = world.open();
    let data = block(4);
    let full: BTreeMap<(u64, u64), u64> = (0..40).map(|at| ((1, at), 4)).collect();
    let metadata = BTreeMap::from([(b"key".to_vec(), Some(b"value".to_vec()))]);
    Change { op: 7, cuts: Vec::new(), metadata, blocks: full }.checkpoint(&store).unwrap();
    let reader = store.reader().unwrap();
    store.discard().unwrap();
    assert_eq!((store.op(), store.complete()), (0, false));
    let mut seen = [0; BLOCK_BYTES];
    reader.read_blocks(1, 39, &mut seen).unwrap();
    assert_eq!((&seen[..], store.space().used_blocks), (&data[..], 40));
    drop(reader);
    assert_eq!(store.space().used_blocks, 0);
    check(&Model::default(), &store.reader().unwrap());
    drop(store);
    let opened = Store::open(world.engine.clone(), world.disk.clone(), LIMITS).unwrap();
    assert_eq!((opened.complete, opened.op, opened.store.space().used_blocks), (false, 0, 0));
}

#[test]
fn formatting_is_explicit() {
    let (engine, disk) = (MemEngine::new(), MemDisk::new(16));
    let open = || Store::open(engine.clone(), disk.clone(), LIMITS);
    assert!(matches!(open(), Err(StoreError::NotFormatted)));
    MemStore::format(&engine, b"one", &[]).unwrap();
    let again = MemStore::format(&engine, b"two", &[]);
    assert!(matches!(again, Err(StoreError::AlreadyFormatted)));
    assert_eq!(open().unwrap().identity, b"one");
    assert_eq!(open().unwrap().op, 0);
}
