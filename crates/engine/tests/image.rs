//! One series of checkpoints, on LMDB and files and again in memory: the images must be equal at
//! every step, reopened or not. Oracle: digest and scrub. Knobs: seed, sizes.

use harp_engine::{FileDisk, LmdbEngine, LmdbOptions};
use harp_store::{
    BLOCK_BYTES, Block, BlockWrite, Checkpoint, Content, Cut, Disk, Engine, Limits, MemDisk,
    MemEngine, Store,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LIMITS: Limits =
    Limits { grow_blocks: 64, blocks_max: 1 << 16, cut_now_runs_max: 3, cut_later_runs_max: 4 };

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

struct Change {
    op: u64,
    cuts: Vec<Cut>,
    metadata: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    blocks: BTreeMap<(u64, u64), Box<Block>>,
}

impl Change {
    fn random(random: &mut Random, op: u64) -> Change {
        let mut metadata = BTreeMap::new();
        for _ in 0..50 {
            let key = random.below(1000).to_be_bytes().to_vec();
            let value = (random.below(3) > 0).then(|| vec![op as u8; random.below(300) as usize]);
            metadata.insert(key, value);
        }
        let cuts = (0..4).filter(|_| random.below(4) == 0);
        let cuts: Vec<u64> = cuts.collect();
        let cuts = cuts.into_iter().map(|file| Cut { file, first: random.below(300) }).collect();
        let mut blocks = BTreeMap::new();
        for _ in 0..6 {
            let (file, first) = (random.below(4), random.below(300));
            for index in 0..random.below(40) {
                let block = Box::new([random.below(256) as u8; BLOCK_BYTES]);
                blocks.insert((file, first + index), block);
            }
        }
        Change { op, cuts, metadata, blocks }
    }

    fn checkpoint<E: Engine, D: Disk>(&self, store: &Store<E, D>) {
        let mut blocks = self.blocks.iter().map(|((file, block), data)| {
            let content = Content::Data(data);
            BlockWrite { file: *file, block: *block, content }
        });
        let report = store.checkpoint(Checkpoint {
            op: self.op,
            cuts: &self.cuts,
            metadata: &mut |sink| {
                sink.extend(self.metadata.iter().map(|(k, v)| (&k[..], v.as_deref())))
            },
            blocks: &mut blocks,
            pause: &|| (),
        });
        report.expect("there is room");
    }
}

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

    let mut random = Random(77);
    let mut files = open(&scratch.0);
    for op in 1..=40 {
        let change = Change::random(&mut random, op);
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
