//! One series of checkpoints, on LMDB and files and again in memory: the images must be equal at
//! every step, reopened or not. Oracle: digest and scrub. Knobs: seed, sizes.

mod common;

use common::{Change, LIMITS, Random};
use harp_engine::{FileDisk, LmdbEngine, LmdbOptions};
use harp_store::{BLOCK_BYTES, MemDisk, MemEngine, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A directory for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("harp-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("a fresh directory");
        let engine = LmdbEngine::open(&dir, LmdbOptions::default()).expect("the engine opens");
        Store::<_, FileDisk>::format(&engine, b"one", &[]).expect("formats");
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory left behind fails no test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(dir: &Path) -> Store<LmdbEngine, FileDisk> {
    let options = LmdbOptions { map_bytes: 64 << 20, reserve_bytes: 1 << 20 };
    let engine = LmdbEngine::open(dir, options).expect("the engine opens");
    let disk = FileDisk::open(dir, 100).expect("the disk opens");
    Store::open(engine, disk, LIMITS).expect("the image opens").store
}

#[test]
fn image_on_files_equals_image_in_memory() {
    let scratch = Scratch::new("image");
    let (engine, disk) = (MemEngine::new(), MemDisk::new(1 << 16));
    Store::<_, MemDisk>::format(&engine, b"two", &[]).expect("formats");
    let memory = Store::open(engine, disk, LIMITS).expect("the image opens").store;

    let mut random = Random::seeded(77);
    let mut files = open(&scratch.0);
    for op in 1..=40 {
        let change = Change::random(&mut random, op, 40);
        change.checkpoint(&memory);
        change.checkpoint(&files);
        if op % 5 == 0 {
            // LMDB opens a directory once at a time.
            drop(files);
            files = open(&scratch.0);
        }
        assert_eq!(files.digest().expect("is sound"), memory.digest().expect("is sound"));
        files.scrub(&mut |damage| panic!("{damage}")).expect("reads");
    }
    assert_eq!(files.op(), 40);
}

/// Every checkpoint sets a key and all blocks of a file to its op; readers on other threads must
/// never see two ops at once, though blocks are reused all the time.
#[test]
fn readers_on_other_threads_see_whole_checkpoints() {
    const CHECKPOINTS: u64 = 150;
    const BLOCKS: u64 = 40;
    let scratch = Scratch::new("threads");
    let store = open(&scratch.0);
    let read_all = || {
        let mut op = 0;
        let mut out = vec![0; BLOCKS as usize * BLOCK_BYTES];
        while op < CHECKPOINTS {
            let reader = store.reader().expect("a view");
            op = reader.op();
            for _ in 0..3 {
                let value = reader.get(b"op").expect("reads");
                assert_eq!(value, (op > 0).then_some(&[op as u8][..]));
                reader.read_blocks(7, 0, &mut out).expect("reads");
                assert!(out.iter().all(|byte| *byte == op as u8));
            }
        }
    };
    std::thread::scope(|scope| {
        let readers = [scope.spawn(read_all), scope.spawn(read_all)];
        for op in 1..=CHECKPOINTS {
            let block = [op as u8; BLOCK_BYTES];
            let metadata = BTreeMap::from([(b"op".to_vec(), Some(vec![op as u8]))]);
            let blocks = (0..BLOCKS).map(|index| ((7, index), Box::new(block))).collect();
            Change { op, cuts: Vec::new(), metadata, blocks }.checkpoint(&store);
        }
        readers.into_iter().for_each(|reader| reader.join().expect("a reader saw one op"));
    });
    assert_eq!(store.space().used_blocks, BLOCKS);
}
