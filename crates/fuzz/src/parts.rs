//! Parts: pieces of an image on their way to a copy that loads it, and the places that are asked for; single blocks
//! under their names.
//! Owns: mending the checksum, so that what is wrong in an input lies behind it.
//! Source: docs/notes/rebuild.md; docs/notes/repair.md.
//!
//! Input: a part without its checksum: place, next place, items. Its place is the one that was asked for. It is also
//! tried as a block.

use harp_node::BlockName;
use harp_node::part::{Part, PartSource, Place, Section};
use harp_node::store::{
    BLOCK_BYTES, BlockWrite, Checkpoint, Content, Limits, MemDisk, MemEngine, MetadataSink, Store,
};

use crate::memory::within;

const OP: u64 = 9;
const LIMITS: Limits =
    Limits { grow_blocks: 64, blocks_max: 4096, cut_now_runs_max: 8, cut_later_runs_max: 16 };

type MemStore = Store<MemEngine, MemDisk>;

/// One input.
pub fn run(input: &[u8]) {
    on_block(input);
    // Section, length of the key, the key.
    let Some(len) = input.get(1..3).map(|len| u16::from_le_bytes([len[0], len[1]])) else { return };
    let place = within(1024, || Place::read(input.get(..3 + usize::from(len)).unwrap_or(input)));
    let Ok(place) = place else { return };
    let bytes = [&crc32c::crc32c(input).to_le_bytes()[..], input].concat();
    let part = within(4096 + 64 * bytes.len(), || Part::read(OP, &place, &bytes));
    let Ok(part) = part else { return };
    assert!(
        part.next > place && part.section == place.section && part.memory_bytes() == bytes.len()
    );
    assert_eq!(part.is_last(), part.next.section == Section::End);
    let keys: Vec<&[u8]> = part.rows().map(|(key, _)| key).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "rows out of order");
    let blocks: Vec<(u64, u64)> = part.blocks().map(|(file, block, ..)| (file, block)).collect();
    assert!(blocks.is_sorted_by(|a, b| a < b), "blocks out of order");
    assert!(keys.is_empty() || blocks.is_empty(), "two sections in one part");
    load(&part);
}

/// Where the checksum stands in a block's name, and where the block begins.
const NAME_CRC: std::ops::Range<usize> = 16..20;

/// A block is what its name says, to the byte.
fn on_block(input: &[u8]) {
    if let Some((name, data)) = within(0, || BlockName::read(input)) {
        assert_eq!([&name.bytes()[..], data.map_or(&[], |data| &data[..])].concat(), input);
        assert!(data.is_none_or(|data| crc32c::crc32c(data) == name.crc));
    }
    if input.len() > NAME_CRC.end {
        let mut sealed = input.to_vec();
        sealed[NAME_CRC].copy_from_slice(&crc32c::crc32c(&input[NAME_CRC.end..]).to_le_bytes());
        let named = within(0, || BlockName::read(&sealed)).is_some();
        assert!(!named || input.len() == NAME_CRC.end + BLOCK_BYTES);
    }
}

/// Whatever a part holds can be put into an image.
fn load(part: &Part) {
    let engine = MemEngine::new();
    MemStore::reformat(&engine, b"image", None).expect("memory");
    let store = Store::open(engine, MemDisk::new(LIMITS.blocks_max), LIMITS).expect("empty").store;
    let mut rows = |sink: &mut MetadataSink<'_>| {
        sink.extend(part.rows().map(|(key, value)| (key, Some(value))))
    };
    let mut blocks = part.blocks().map(|(file, block, _, data)| BlockWrite {
        file,
        block,
        content: Content::Data(data),
    });
    store.load(OP, &mut rows, &mut blocks).expect("room for what one input holds");
    let reader = store.reader().expect("an image");
    for (key, value) in part.rows() {
        assert_eq!(reader.get(key).expect("it is there"), Some(value));
    }
}

/// Every part of a small image, without its checksum.
pub fn seeds() -> Vec<Vec<u8>> {
    let engine = MemEngine::new();
    MemStore::format(&engine, b"image", &[]).expect("memory");
    let store = Store::open(engine, MemDisk::new(LIMITS.blocks_max), LIMITS).expect("empty").store;
    let keys: [&[u8]; 4] = [&[0x10], &[0x11, 1], &[0xc0], &[0xc0, 0, 0, 0, 0, 0, 0, 0, 1, 0]];
    let data = [7; 4096];
    let mut blocks = [(2, 0), (2, 1), (5, 9)].into_iter().map(|(file, block)| BlockWrite {
        file,
        block,
        content: Content::Data(&data),
    });
    let checkpoint = Checkpoint {
        op: OP,
        cuts: &[],
        metadata: &mut |sink| keys.iter().try_for_each(|key| sink.put(key, b"value")),
        blocks: &mut blocks,
        pause: &|| (),
    };
    store.checkpoint(checkpoint).expect("room");
    let reader = store.reader().expect("an image");
    let (mut place, mut seeds) = (Place::start(), Vec::new());
    while place.section != Section::End {
        let bytes = reader.part(&place, 1, &mut |damaged| panic!("{damaged}")).expect("a part");
        let part = Part::read(OP, &place, &bytes).expect("its own part");
        place = part.next;
        seeds.push(bytes[4..].to_vec());
    }
    let name = BlockName { file: 2, block: 1, crc: crc32c::crc32c(&data) };
    seeds.push([&name.bytes()[..], &data[..]].concat());
    seeds
}
