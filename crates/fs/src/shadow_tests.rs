//! The shadow against a model, under random freezing, forgetting, fetching and replaying.
//! Model: `testing::World`. Oracle: every look equals the model's; every image equals the
//! model's own. Knobs: the seed, and how often each kind of disturbance comes.

use crate::effect::EffectWriter;
use crate::generation::Generation;
use crate::inode::{BLOCK_BYTES, Block, Known};
use crate::need::{FetchedValue, ImageError, ImageReader, NEED_BLOCKS_MAX, Need};
use crate::request::FileType;
use crate::shadow::{Shadow, ShadowSettings};
use crate::testing::{Dice, MemImage, MemLog, World};
use std::sync::Arc;

const SETTINGS: ShadowSettings = ShadowSettings {
    cache_bytes: 0,
    filter_bytes: 0,
    seed: 5,
    access_times: crate::atime::AccessTimes::Relative,
};

/// One copy: a shadow, its image, and older views of the image that fetches may still use.
struct Copy {
    shadow: Shadow,
    image: MemImage,
    older: MemImage,
    freezing: Option<Arc<Generation>>,
}

/// Where each record lies in the log.
type Records = Vec<(u64, std::ops::Range<usize>)>;

impl Copy {
    fn new(image: MemImage, lb: u64) -> Copy {
        let shadow = Shadow::new(SETTINGS, lb);
        Copy { shadow, older: image.clone(), image, freezing: None }
    }

    fn apply(&mut self, records: &Records, log: &MemLog) {
        for (op, place) in records {
            let effects = &log.0[place.clone()];
            self.shadow.apply(*op, effects, place.start as u64, log).unwrap();
        }
    }

    /// Whatever the world does to a copy now and then.
    fn disturb(&mut self, dice: &mut Dice, log: &MemLog, records: &Records) {
        match dice.roll(40) {
            0..=2 if self.freezing.is_none() => {
                self.freezing = Some(self.shadow.freeze(self.shadow.op()));
            }
            3..=5 => {
                // The image moves first; the shadow hears of it now or later.
                if let Some(generation) = &self.freezing
                    && self.image.op < generation.end()
                {
                    self.older = self.image.clone();
                    self.image.checkpoint(generation, log);
                }
            }
            6..=9 => {
                if let Some(generation) = &self.freezing
                    && self.image.op == generation.end()
                {
                    self.shadow.checkpointed(self.image.op);
                    self.freezing = None;
                }
            }
            10..=20 => {
                self.shadow.drain(dice.roll(20) as usize, log);
            }
            21 => self.shadow.forget_clean(),
            22 if dice.roll(4) == 0 => {
                // A checkpoint under way goes on, and the image may be ahead already.
                let lb = self.shadow.lb();
                self.shadow.reset(lb);
                self.apply(records, log);
            }
            23..=25 => {
                if let Some(need) = self.shadow.wanted() {
                    self.fetch(&need, dice);
                }
            }
            _ => {}
        }
    }

    fn fetch(&mut self, need: &Need, dice: &mut Dice) {
        let image = if dice.roll(3) == 0 { &self.older } else { &self.image };
        self.shadow.fetched(need.fetch(image).unwrap());
    }

    /// Looks until it is known.
    fn known<T>(
        &mut self,
        dice: &mut Dice,
        mut look: impl FnMut(&mut Shadow) -> Result<T, Need>,
    ) -> T {
        for _ in 0..100 {
            match look(&mut self.shadow) {
                Ok(value) => return value,
                Err(need) => self.fetch(&need, dice),
            }
        }
        panic!("fetching gets nowhere");
    }

    fn finish(&mut self, log: &MemLog) {
        if let Some(generation) = self.freezing.take() {
            if self.image.op < generation.end() {
                self.image.checkpoint(&generation, log);
            }
            self.shadow.checkpointed(self.image.op);
        }
        let generation = self.shadow.freeze(self.shadow.op());
        self.image.checkpoint(&generation, log);
        self.shadow.checkpointed(self.image.op);
    }
}

fn value<T>(known: Known<T>, need: Need) -> Result<Option<T>, Need> {
    match known {
        Known::Is(value, _) => Ok(Some(value)),
        Known::Absent(_) => Ok(None),
        Known::Unknown => Err(need),
    }
}

/// Compares some of what the copy says with the model.
fn compare(copy: &mut Copy, world: &World, log: &MemLog, dice: &mut Dice) {
    let ino = 1 + dice.roll(world.counters.next_ino);
    let inode = copy.known(dice, |shadow| value(shadow.inode(ino), Need::Inode(ino)));
    assert_eq!(inode.as_ref(), world.inodes.get(&ino), "inode {ino}");
    let dir = dice.pick(&world.of_kind(FileType::Directory)).unwrap();
    let name = format!("n{}", dice.roll(12)).into_bytes();
    let need = Need::Entry { dir, name: name.clone().into() };
    let entry = copy.known(dice, |shadow| value(shadow.entry(dir, &name), need.clone()));
    assert_eq!(entry, world.find(dir, &name), "{dir}/{}", name.escape_ascii());
    if let Some(link) = dice.pick(&world.of_kind(FileType::Symlink)) {
        let target = copy.known(dice, |shadow| value(shadow.target(link), Need::Target(link)));
        assert_eq!(target.as_ref(), world.targets.get(&link));
    }
    if let Some(file) = dice.pick(&world.of_kind(FileType::Regular)) {
        compare_data(copy, world, log, dice, file);
    }
    if dice.roll(4) == 0 {
        compare_listing(copy, world, dice, dir);
    }
}

fn compare_data(copy: &mut Copy, world: &World, log: &MemLog, dice: &mut Dice, ino: u64) {
    let block = dice.roll(9);
    let need = Need::Blocks { ino, first: block, count: 1 };
    let exists = copy.known(dice, |shadow| value(shadow.block_exists(ino, block), need.clone()));
    assert_eq!(exists, Some(world.blocks.contains_key(&(ino, block))), "block {ino}/{block}");
    let mut out = [1; BLOCK_BYTES];
    copy.known(dice, |shadow| value(shadow.read_block(ino, block, log, &mut out), need.clone()));
    assert!(out == world.block(ino, block), "content of block {ino}/{block}");
    let (offset, len) = (dice.roll(30_000), dice.roll(60_000) as usize);
    let mut out = vec![7];
    copy.known(dice, |shadow| {
        let mut needs = Vec::new();
        match shadow.read_range(ino, offset, len, log, &mut out, &mut needs) {
            Known::Unknown => {
                assert_eq!(out, [7]);
                let Need::Blocks { count, .. } = needs[0] else { panic!("{needs:?}") };
                assert!(count <= NEED_BLOCKS_MAX);
                Err(needs.remove(0))
            }
            _ => Ok(()),
        }
    });
    let whole: Vec<u8> = (0..24).flat_map(|block| world.block(ino, block)).collect();
    assert!(out[1..] == whole[offset as usize..offset as usize + len], "range of {ino}");
}

fn compare_listing(copy: &mut Copy, world: &World, dice: &mut Dice, dir: u64) {
    let mut after = dice.roll(10);
    let limit = 1 + dice.roll(8) as usize;
    let want: Vec<_> = world.entries.range((dir, after + 1)..=(dir, u64::MAX)).collect();
    let mut got = Vec::new();
    for _ in 0..1000 {
        let mut page = Vec::new();
        let end = copy.known(dice, |shadow| {
            page.clear();
            let known = shadow.list(dir, after, limit, &mut |entry, name| {
                page.push((*entry, name.to_vec()));
                true
            });
            let need = shadow.listing_need();
            value(known, need.unwrap_or(Need::Super))
        });
        after = page.last().map_or(after, |(entry, _)| entry.cookie);
        assert!(page.len() <= limit);
        got.append(&mut page);
        if end == Some(true) {
            let want: Vec<_> = want.into_iter().map(|(_, entry)| entry.clone()).collect();
            assert_eq!(got, want, "listing of {dir}");
            return;
        }
    }
    panic!("the listing of {dir} does not end");
}

fn world_runs(seed: u64, steps: usize) {
    let mut dice = Dice(seed);
    let mut world = World::new();
    let mut log = MemLog::default();
    let mut records = Records::new();
    let mut reader = Copy::new(MemImage::formatted(), 0);
    let mut writer = Copy::new(MemImage::formatted(), 0);
    let mut images = Vec::new();
    for _ in 0..steps {
        let mut buffer = vec![0; 128 << 10];
        let mut effects = EffectWriter::new(&mut buffer);
        world.step(&mut dice, &mut effects);
        let len = effects.finish().unwrap();
        let place = log.0.len()..log.0.len() + len;
        log.0.extend_from_slice(&buffer[..len]);
        records.push((world.op, place));
        for copy in [&mut reader, &mut writer] {
            copy.apply(&vec![records[records.len() - 1].clone()], &log);
            copy.disturb(&mut dice, &log, &records);
        }
        compare(&mut reader, &world, &log, &mut dice);
        if dice.roll(100) == 0 {
            images.push(reader.image.clone());
            images.push(writer.image.clone());
        }
    }
    let want = world.image();
    for copy in [&mut reader, &mut writer] {
        copy.finish(&log);
        assert!(copy.image == want, "seed {seed}: a copy's image is not the model's");
    }
    // From any earlier image, and over the final one, the log's later part leads to the same.
    for image in images {
        let mut again = Copy::new(image.clone(), image.op);
        again.apply(&records, &log);
        again.finish(&log);
        assert!(again.image == want, "seed {seed}: replayed from {}", image.op);
        let mut over = Copy::new(want.clone(), image.op);
        over.apply(&records, &log);
        over.finish(&log);
        assert!(over.image == want, "seed {seed}: replayed from {} over the end", image.op);
    }
}

#[test]
fn random_records_leave_what_the_model_says() {
    for seed in 0..60 {
        world_runs(seed, 400);
    }
}

#[test]
fn entries_that_were_given_the_same_cookie_are_an_error_of_the_checkpoint() {
    let mut room = [0; 200];
    let mut writer = EffectWriter::new(&mut room);
    writer.unlink(1, 7, b"one");
    writer.unlink(1, 7, b"other");
    let len = writer.finish().unwrap();
    let log = MemLog(room[..len].to_vec());
    let mut shadow = Shadow::new(SETTINGS, 0);
    shadow.apply(1, &log.0, 0, &log).unwrap();
    let made = shadow.freeze(1).metadata(&MemImage::formatted(), &mut |_, _| Ok(()));
    assert!(matches!(made, Err(ImageError::CookieTwice { dir: 1, cookie: 7 })), "{made:?}");
}

/// An image all of whose blocks hold these bytes, which are not what they should be.
struct Damaged(Block);

impl ImageReader for Damaged {
    fn op(&self) -> u64 {
        0
    }

    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(None)
    }

    fn scan(
        &self,
        _: &[u8],
        _: usize,
        _: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        Ok(())
    }

    fn read_blocks(
        &self,
        ino: u64,
        block: u64,
        _: u32,
        _: &mut [u8],
        _: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        Err(ImageError::BadBlock { ino, block })
    }

    fn read_blocks_but(
        &self,
        _: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
        damaged: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        out.chunks_exact_mut(BLOCK_BYTES).for_each(|block| block.copy_from_slice(&self.0));
        held(first, count.into());
        (first..first + u64::from(count)).for_each(damaged);
        Ok(())
    }
}

#[test]
fn a_part_written_over_a_damaged_block_keeps_the_checksum_of_what_should_be_there() {
    let sound = [7; BLOCK_BYTES];
    let mut wanted = sound;
    wanted[100..150].fill(9);
    // A flipped bit in what is overwritten is none any more.
    for (flipped, left) in [(99, &[(5, 3)][..]), (120, &[])] {
        let mut content = sound;
        content[flipped] ^= 1;
        let mut room = [0; 200];
        let mut writer = EffectWriter::new(&mut room);
        writer.range(5, 3, 100, crc32c::crc32c(&wanted), &[9; 50]);
        let len = writer.finish().unwrap();
        let log = MemLog(room[..len].to_vec());
        let mut shadow = Shadow::new(SETTINGS, 0);
        shadow.apply(1, &log.0, 0, &log).unwrap();
        let generation = shadow.freeze(1);
        let blocks = generation.blocks(&log, &Damaged(content)).unwrap();
        let out = blocks.iter().next().unwrap();
        assert_eq!((out.crc, blocks.damaged()), (crc32c::crc32c(&wanted), left));
        assert_eq!(*out.data == wanted, left.is_empty());
    }
}

#[test]
fn damaged_blocks_are_not_taken_for_content() {
    let mut shadow = Shadow::new(SETTINGS, 0);
    let fetched = Need::Blocks { ino: 5, first: 3, count: 2 }.fetch(&Damaged([7; BLOCK_BYTES]));
    let mut fetched = fetched.unwrap();
    let FetchedValue::Blocks { damaged, .. } = &mut fetched.value else { panic!("blocks") };
    assert_eq!(damaged[..], [3, 4]);
    damaged.remove(0);
    shadow.fetched(fetched);
    let mut out = [0; BLOCK_BYTES];
    let mut look = |block| shadow.read_block(5, block, &MemLog::default(), &mut out);
    assert!(matches!(look(3), Known::Is(..)) && matches!(look(4), Known::Unknown));
    // Known to be lost, it still counts as there.
    shadow.lose_block(5, 4);
    assert!(matches!(shadow.block_exists(5, 4), Known::Is(true, 0)));
}
