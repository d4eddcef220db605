//! Common: changes of an image, the same on every engine and disk.
//! Owns: random changes by seed, and how one becomes a checkpoint.
//! Never: judges an image.
//! Invariant: the same seed gives the same changes.
//! Source: none.

use harp_store::{
    BLOCK_BYTES, Block, BlockWrite, Checkpoint, Content, Cut, Disk, Engine, Limits, Store,
};
use std::collections::BTreeMap;

pub const LIMITS: Limits =
    Limits { grow_blocks: 64, blocks_max: 1 << 16, cut_now_runs_max: 3, cut_later_runs_max: 4 };

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    /// Numbers that have nothing to do with those of the next seed.
    pub fn seeded(seed: u64) -> Random {
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// One checkpoint's changes.
pub struct Change {
    pub op: u64,
    pub cuts: Vec<Cut>,
    pub metadata: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub blocks: BTreeMap<(u64, u64), Box<Block>>,
}

impl Change {
    /// Some rows, cuts, and stretches of fewer than `stretch` blocks.
    pub fn random(random: &mut Random, op: u64, stretch: u64) -> Change {
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
            for index in 0..random.below(stretch) {
                let block = Box::new([random.below(256) as u8; BLOCK_BYTES]);
                blocks.insert((file, first + index), block);
            }
        }
        Change { op, cuts, metadata, blocks }
    }

    /// Moves the image of `store` by it.
    pub fn checkpoint<E: Engine, D: Disk>(&self, store: &Store<E, D>) {
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
