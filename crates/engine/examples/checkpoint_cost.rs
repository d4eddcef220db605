//! Checkpoint cost: CPU and time of checkpoints on LMDB and segment files.
//! Owns: the series measured and the figures printed.
//! Never: compares machines; figures of one run belong together.
//! Invariant: every checkpoint is durable before its time is taken.
//! Source: ARCHITECTURE.md.
//!
//! Usage: `checkpoint_cost [DIR] [RECORDS]`; DIR is made, filled and removed.

use harp_engine::{FileDisk, LmdbEngine, LmdbOptions, SEGMENT_BLOCKS};
use harp_store::{
    BLOCK_BYTES, Block, BlockWrite, Checkpoint, CheckpointReport, Content, Limits, Metadata, Store,
    StoreError,
};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::Instant;

type FileStore = Store<LmdbEngine, FileDisk>;

/// Creates in one checkpoint.
const BATCH: u64 = 100_000;
/// Blocks in one checkpoint of data.
const BLOCKS: u64 = 20_000;
/// Blocks of the file that is overwritten at random.
const FILE_BLOCKS: u64 = 1 << 18;

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Runs one thing; prints CPU and time for each of `count` parts of it.
fn measure<T>(what: &str, count: u64, run: impl FnOnce() -> T) -> T {
    let (start, cpu) = (Instant::now(), cpu_us());
    let result = run();
    let (cpu, time) = (cpu_us() - cpu, start.elapsed().as_secs_f64() * 1e6);
    let each = count as f64;
    println!("{what:<52} {:8.3} us CPU  {:8.3} us elapsed", cpu / each, time / each);
    result
}

/// A bijection of 32 bits, to visit in an order that looks random.
fn scatter(index: u64) -> u64 {
    let mut x = index as u32;
    for _ in 0..3 {
        x = x.wrapping_mul(0x9e37_79b1);
        x ^= x >> 15;
    }
    u64::from(x)
}

/// The key of a name in directory 1.
fn entry_key(name: u64) -> Vec<u8> {
    let mut key = vec![1];
    key.extend_from_slice(&1u64.to_be_bytes());
    key.extend_from_slice(format!("file{name:012}").as_bytes());
    key
}

/// The key of a cookie in directory 1 (table 2) or of an inode (table 3).
fn number_key(table: u8, number: u64) -> Vec<u8> {
    let mut key = vec![table];
    if table == 2 {
        key.extend_from_slice(&1u64.to_be_bytes());
    }
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn checkpoint<'d>(
    store: &FileStore,
    op: u64,
    metadata: &mut Metadata<'_>,
    blocks: &mut dyn Iterator<Item = BlockWrite<'d>>,
) -> Result<CheckpointReport, StoreError> {
    store.checkpoint(Checkpoint {
        op,
        cuts: &[],
        metadata: &mut |sink| metadata(sink),
        blocks,
        pause: &|| (),
    })
}

fn creates(store: &FileStore, op: u64, first: u64, random: bool) -> Result<(), StoreError> {
    let name = |index| if random { scatter(index) } else { index };
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for index in first..first + BATCH {
        let key = entry_key(name(index));
        pairs.push((number_key(2, index), key[9..].to_vec()));
        pairs.push((key, vec![index as u8; 32]));
        pairs.push((number_key(3, index), vec![index as u8; 128]));
    }
    pairs.sort();
    let order = if random { "random names" } else { "sequential names" };
    let what = format!("create, {order}, from {first}");
    measure(&what, BATCH, || {
        let mut put = |sink: &mut harp_store::MetadataSink<'_>| {
            pairs.iter().try_for_each(|(key, value)| sink.put(key, value))
        };
        checkpoint(store, op, &mut put, &mut std::iter::empty())
    })?;
    Ok(())
}

fn writes(
    store: &FileStore,
    op: u64,
    what: &str,
    places: impl Iterator<Item = (u64, u64)>,
) -> Result<(), StoreError> {
    let data: Vec<Block> = (0..256).map(|byte| [byte as u8; BLOCK_BYTES]).collect();
    let mut places: Vec<(u64, u64)> = places.collect();
    places.sort_unstable();
    places.dedup();
    let mut blocks = places.iter().map(|(file, block)| {
        let content = Content::Data(&data[(block % 256) as usize]);
        BlockWrite { file: *file, block: *block, content }
    });
    measure(what, places.len() as u64, || checkpoint(store, op, &mut |_| Ok(()), &mut blocks))?;
    Ok(())
}

fn reads(store: &FileStore, count: u64) -> Result<(), StoreError> {
    let reader = store.reader()?;
    measure("get an inode, random, cached", count, || {
        (0..count).try_for_each(|index| {
            let key = number_key(3, scatter(index) % BATCH);
            reader.get(&key).map(|value| assert!(value.is_some()))
        })
    })?;
    let mut block = [0; BLOCK_BYTES];
    measure("read a 4 KiB block, random, cached", count, || {
        (0..count).try_for_each(|index| reader.read_blocks(1, scatter(index) % BLOCKS, &mut block))
    })?;
    measure("begin and end a reader", count, || {
        (0..count).try_for_each(|_| store.reader().map(drop))
    })
}

fn run(dir: &Path, records: u64) -> Result<(), StoreError> {
    let engine = LmdbEngine::open(dir, LmdbOptions::default())?;
    let disk = FileDisk::open(dir, SEGMENT_BLOCKS)?;
    Store::<_, FileDisk>::format(&engine, b"measured", &[])?;
    let store = Store::open(engine, disk, Limits::default())?.store;
    let mut op = 0;
    let mut next = || {
        op += 1;
        op
    };
    for random in [false, true] {
        for first in (0..records).step_by(BATCH as usize) {
            let first = if random { records + first } else { first };
            creates(&store, next(), first, random)?;
        }
    }
    measure("grow the disk, a block of it", 4 * FILE_BLOCKS, || store.grow(4 * FILE_BLOCKS))?;
    for round in 0..3 {
        let from = round * BLOCKS;
        let places = (0..BLOCKS).map(|index| (1, from + index));
        writes(&store, next(), "write 4 KiB, one file, sequential", places)?;
    }
    let places = (0..BLOCKS).map(|index| (1000 + index, 0));
    writes(&store, next(), "write 4 KiB, a file each", places)?;
    for round in 0..4 {
        let places = (0..BLOCKS).map(|index| (2, scatter(round * BLOCKS + index) % FILE_BLOCKS));
        writes(&store, next(), "write 4 KiB, one file, random", places)?;
    }
    reads(&store, 200_000)?;
    store.disk().set_direct(true);
    let places = (0..BLOCKS).map(|index| (3, index));
    writes(&store, next(), "write 4 KiB, one file, sequential, direct", places)?;
    for round in 0..2 {
        let places = (0..BLOCKS).map(|index| (2, scatter(round * BLOCKS + index) % FILE_BLOCKS));
        writes(&store, next(), "write 4 KiB, one file, random, direct", places)?;
    }
    println!("engine: {:?}; data: {:?}", store.engine(), store.space());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let scratch = std::env::temp_dir().join("harp-checkpoint-cost");
    let dir = arguments.next().map_or(scratch, Into::into);
    let records = arguments.next().map_or(Ok(1_000_000), |count| count.parse())?;
    std::fs::create_dir(&dir)?;
    let result = run(&dir, records);
    std::fs::remove_dir_all(&dir)?;
    Ok(result?)
}
