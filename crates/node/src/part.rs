//! Part: a piece of a copy's image on its way to another copy.
//! Owns: the order in which an image is handed over, where a part ends, its bytes.
//! Never: trusts bytes that came from a peer before all of them are checked.
//! Invariant: places ascend; each row and block of an image lies behind exactly one place.
//! Source: docs/notes/rebuild.md.
//!
//! First the client table, whose parts must all be exact at one op, since it is a function of the records
//! taken in order; then the rows of the file system; then the blocks. A part ends where its section does.

use std::ops::Range;

use harp_store::{BLOCK_BYTES, DamagedBlock, Disk, Engine, Reader, StoreError, Stretch, Walk};

use crate::clients::ROW_PREFIX;

/// Before the items: checksum of what follows, its place, the next one's.
const CRC_BYTES: usize = 4;
/// The longest key of a place.
const PLACE_KEY_MAX: usize = harp_store::KEY_BYTES_MAX;

/// Which section of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The client table.
    Clients = 1,
    /// Rows of the file system.
    Rows = 2,
    /// Blocks of files.
    Blocks = 3,
    /// Nothing is left.
    End = 4,
}

/// A place in an image: where a part begins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// In which section.
    pub section: Section,
    /// The first key that is not behind us; of blocks, file and block.
    key: Vec<u8>,
}

impl Place {
    /// The beginning.
    pub fn start() -> Place {
        Place { section: Section::Clients, key: vec![ROW_PREFIX] }
    }

    fn of(section: Section) -> Place {
        Place { section, key: Vec::new() }
    }

    fn block(file: u64, block: u64) -> Place {
        let key = [file.to_be_bytes(), block.to_be_bytes()].concat();
        Place { section: Section::Blocks, key }
    }

    /// Appends its bytes to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(self.section as u8);
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.key);
    }

    /// Reads a place that fills `bytes`.
    pub fn read(bytes: &[u8]) -> Result<Place, BadPart> {
        let mut take = Take { bytes, at: 0 };
        let place = take.place()?;
        take.done()?;
        Ok(place)
    }
}

/// Bytes that are no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPart(pub &'static str);

impl std::fmt::Display for BadPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a part of an image is malformed: {}", self.0)
    }
}

/// A row of an image, as ranges of its part's bytes.
#[derive(Clone, Debug)]
struct RowAt {
    key: Range<usize>,
    value: Range<usize>,
}

/// Blocks of a file that follow each other.
#[derive(Clone, Debug)]
struct BlocksAt {
    file: u64,
    first: u64,
    last: u64,
    crcs: Range<usize>,
    data: Range<usize>,
}

/// A part, checked.
#[derive(Debug)]
pub struct Part {
    /// The image it is of was exact at this op.
    pub op: u64,
    /// Its section: an image's rows and blocks do not mix in a part.
    pub section: Section,
    /// Where the next one begins.
    pub next: Place,
    bytes: Vec<u8>,
    rows: Vec<RowAt>,
    blocks: Vec<BlocksAt>,
}

impl Part {
    /// Checks a part that was asked for from `place` on.
    pub fn read(op: u64, place: &Place, bytes: &[u8]) -> Result<Part, BadPart> {
        let (crc, rest) = bytes.split_first_chunk::<CRC_BYTES>().ok_or(BadPart("its checksum"))?;
        if crc32c::crc32c(rest) != u32::from_le_bytes(*crc) {
            return Err(BadPart("its checksum"));
        }
        let mut take = Take { bytes, at: CRC_BYTES };
        // One that was asked for in an earlier load begins elsewhere.
        if take.place()? != *place {
            return Err(BadPart("its place"));
        }
        let next = take.place()?;
        if next <= *place {
            return Err(BadPart("it leads back"));
        }
        let section = place.section;
        let (mut rows, mut blocks) = (Vec::new(), Vec::new());
        let mut last: Option<Place> = None;
        while take.at < bytes.len() {
            let (here, end) = if section == Section::Blocks {
                let at = take.blocks()?;
                let ends = (Place::block(at.file, at.first), Place::block(at.file, at.last));
                blocks.push(at);
                ends
            } else {
                let at = take.row()?;
                let key = bytes[at.key.clone()].to_vec();
                if (key[0] == ROW_PREFIX) != (section == Section::Clients) || key[0] > ROW_PREFIX {
                    return Err(BadPart("a row of another section"));
                }
                rows.push(at);
                let here = Place { section, key };
                (here.clone(), here)
            };
            if here < *place || end >= next || last.is_some_and(|last| last >= here) {
                return Err(BadPart("its order"));
            }
            last = Some(end);
        }
        Ok(Part { op, section, next, bytes: bytes.to_vec(), rows, blocks })
    }

    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        self.next.section == Section::End
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Keys and values, ascending.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows.iter().map(|row| (&self.bytes[row.key.clone()], &self.bytes[row.value.clone()]))
    }

    /// (file, block, checksum, data), ascending.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u64, u32, &[u8; BLOCK_BYTES])> {
        self.blocks.iter().flat_map(|at| {
            let crcs = self.bytes[at.crcs.clone()].as_chunks::<4>().0.iter();
            let data = self.bytes[at.data.clone()].as_chunks::<BLOCK_BYTES>().0.iter();
            // The number comes last: beyond the last block there may be none.
            let numbered = crcs.zip(data).zip(at.first..);
            numbered.map(|((crc, data), block)| (at.file, block, u32::from_le_bytes(*crc), data))
        })
    }
}

/// An image that parts are read from, at one op.
pub trait PartSource: Send {
    /// The op it is exact at.
    fn op(&self) -> u64;

    /// The bytes of the part that begins at `place`; it ends at the first row or stretch that brings it to `enough`
    /// bytes. Damaged blocks are told, and are in it as they were found.
    fn part(
        &self,
        place: &Place,
        enough: usize,
        damaged: &mut dyn FnMut(DamagedBlock),
    ) -> Result<Vec<u8>, StoreError>;
}

impl std::fmt::Debug for dyn PartSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an image at {}", self.op())
    }
}

impl<E: Engine, D: Disk> PartSource for Reader<E, D> {
    fn op(&self) -> u64 {
        Reader::op(self)
    }

    fn part(
        &self,
        place: &Place,
        enough: usize,
        damaged: &mut dyn FnMut(DamagedBlock),
    ) -> Result<Vec<u8>, StoreError> {
        let mut items = Items { bytes: Vec::new(), enough };
        let next = match place.section {
            Section::Clients => {
                let ours = |key: &[u8]| key.first() == Some(&ROW_PREFIX);
                rows(self, place, Place::of(Section::Rows), &ours, &mut items)?
            }
            Section::Rows => {
                let ours = |key: &[u8]| key.first().is_some_and(|table| *table < ROW_PREFIX);
                rows(self, place, Place::block(0, 0), &ours, &mut items)?
            }
            Section::Blocks => blocks(self, place, &mut items, damaged)?,
            Section::End => place.clone(),
        };
        let mut bytes = vec![0; CRC_BYTES];
        place.write(&mut bytes);
        next.write(&mut bytes);
        bytes.extend_from_slice(&items.bytes);
        let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }
}

/// What a part is filled with.
struct Items {
    bytes: Vec<u8>,
    enough: usize,
}

impl Items {
    fn is_enough(&self) -> bool {
        self.bytes.len() >= self.enough
    }
}

/// Writes rows from `place` on into `out`, as long as they are `ours`; then comes `after`.
fn rows<E: Engine, D: Disk>(
    image: &Reader<E, D>,
    place: &Place,
    after: Place,
    ours: &dyn Fn(&[u8]) -> bool,
    items: &mut Items,
) -> Result<Place, StoreError> {
    let mut next = after;
    image.scan(&place.key, usize::MAX, &mut |key, value| {
        if !ours(key) {
            return Ok(Walk::Stop);
        }
        if items.is_enough() {
            next = Place { section: place.section, key: key.to_vec() };
            return Ok(Walk::Stop);
        }
        let out = &mut items.bytes;
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
        Ok(Walk::On)
    })?;
    Ok(next)
}

fn blocks<E: Engine, D: Disk>(
    image: &Reader<E, D>,
    place: &Place,
    items: &mut Items,
    damaged: &mut dyn FnMut(DamagedBlock),
) -> Result<Place, StoreError> {
    let number = |at: usize| {
        let bytes = place.key.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_be_bytes)
    };
    let mut next = Place::of(Section::End);
    image.stretches((number(0), number(8)), &mut |stretch: Stretch, crcs| {
        if items.is_enough() {
            next = Place::block(stretch.file, stretch.first);
            return Ok(Walk::Stop);
        }
        let out = &mut items.bytes;
        out.extend_from_slice(&stretch.file.to_le_bytes());
        out.extend_from_slice(&stretch.first.to_le_bytes());
        out.extend_from_slice(&(stretch.count as u32).to_le_bytes());
        crcs.for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
        let at = out.len();
        out.resize(at + stretch.count as usize * BLOCK_BYTES, 0);
        image.read_blocks_but(stretch.file, stretch.first, &mut out[at..], &mut |block| {
            damaged(block);
            Ok(())
        })?;
        Ok(Walk::On)
    })?;
    Ok(next)
}

/// Takes fields off the front of a part.
struct Take<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Take<'_> {
    fn range(&mut self, len: usize, what: &'static str) -> Result<Range<usize>, BadPart> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let range = self.at..end.ok_or(BadPart(what))?;
        self.at = range.end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], BadPart> {
        let range = self.range(N, what)?;
        Ok(self.bytes[range].try_into().expect("N bytes"))
    }

    fn place(&mut self) -> Result<Place, BadPart> {
        let section = match self.array::<1>("a place")?[0] {
            1 => Section::Clients,
            2 => Section::Rows,
            3 => Section::Blocks,
            4 => Section::End,
            _ => return Err(BadPart("an unknown section")),
        };
        let len = u16::from_le_bytes(self.array("a place")?) as usize;
        let fits = match section {
            Section::Clients | Section::Rows => len <= PLACE_KEY_MAX,
            Section::Blocks => len == 16,
            Section::End => len == 0,
        };
        if !fits {
            return Err(BadPart("the length of a place"));
        }
        let key = self.range(len, "a place")?;
        Ok(Place { section, key: self.bytes[key].to_vec() })
    }

    fn row(&mut self) -> Result<RowAt, BadPart> {
        let key_len = u16::from_le_bytes(self.array("a row")?) as usize;
        let value_len = u32::from_le_bytes(self.array("a row")?) as usize;
        let fits = (1..=harp_store::KEY_BYTES_MAX).contains(&key_len)
            && value_len <= harp_store::VALUE_BYTES_MAX;
        if !fits {
            return Err(BadPart("the length of a row"));
        }
        Ok(RowAt { key: self.range(key_len, "a row")?, value: self.range(value_len, "a row")? })
    }

    fn blocks(&mut self) -> Result<BlocksAt, BadPart> {
        let file = u64::from_le_bytes(self.array("blocks")?);
        let first = u64::from_le_bytes(self.array("blocks")?);
        let count = u32::from_le_bytes(self.array("blocks")?) as usize;
        let last = (count as u64).checked_sub(1).and_then(|more| first.checked_add(more));
        let Some(last) = last.filter(|last| *last <= harp_store::BLOCK_INDEX_MAX) else {
            return Err(BadPart("the number of blocks"));
        };
        let crcs = self.range(count.saturating_mul(4), "checksums")?;
        let data = self.range(count.saturating_mul(BLOCK_BYTES), "data")?;
        Ok(BlocksAt { file, first, last, crcs, data })
    }

    fn done(&self) -> Result<(), BadPart> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(BadPart("more than a place")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harp_store::{BlockWrite, Checkpoint, Content, MemDisk, MemEngine, Store};

    type MemStore = Store<MemEngine, MemDisk>;

    const ENOUGH: usize = 1 << 20;

    /// An image with more of everything than one part takes.
    fn image() -> MemStore {
        let (engine, disk) = (MemEngine::new(), MemDisk::new(4096));
        MemStore::format(&engine, b"id", &[]).unwrap();
        let limits = harp_store::Limits { grow_blocks: 64, ..Default::default() };
        let store = Store::open(engine, disk, limits).unwrap().store;
        let value = vec![7; 1000];
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for table in [0x11, ROW_PREFIX] {
            keys.extend((0..2_000u32).map(|i| [&[table][..], &i.to_be_bytes()].concat()));
        }
        keys.push(vec![0xC1]);
        let data: Vec<[u8; BLOCK_BYTES]> = (0..600).map(|i| [i as u8; BLOCK_BYTES]).collect();
        let mut blocks = (0..).zip(&data).map(|(i, data)| BlockWrite {
            file: 5 + i / 400,
            block: i * 3 / 2,
            content: Content::Data(data),
        });
        let checkpoint = Checkpoint {
            op: 9,
            cuts: &[],
            metadata: &mut |sink| keys.iter().try_for_each(|key| sink.put(key, &value)),
            blocks: &mut blocks,
            pause: &|| (),
        };
        store.checkpoint(checkpoint).unwrap();
        store
    }

    fn part_of(reader: &Reader<MemEngine, MemDisk>, place: &Place) -> Vec<u8> {
        reader.part(place, ENOUGH, &mut |damaged| panic!("{damaged}")).unwrap()
    }

    #[test]
    fn parts_hand_over_every_row_and_block_once_but_the_configuration() {
        let reader = image().reader().unwrap();
        let (mut place, mut rows, mut blocks, mut parts) = (Place::start(), 0, Vec::new(), 0);
        while place.section != Section::End {
            let mut bytes = Vec::new();
            place.write(&mut bytes);
            assert_eq!(Place::read(&bytes), Ok(place.clone()));
            let part = Part::read(9, &place, &part_of(&reader, &place)).unwrap();
            assert!(part.memory_bytes() < 2 * ENOUGH);
            rows +=
                part.rows().filter(|(key, value)| value.len() == 1000 && key.len() == 5).count();
            blocks.extend(part.blocks().map(|(file, block, crc, data)| {
                assert_eq!(crc, harp_store::block_crc(data));
                (file, block, data[0])
            }));
            place = part.next.clone();
            parts += 1;
        }
        let all: Vec<_> = (0..600u64).map(|i| (5 + i / 400, i * 3 / 2, i as u8)).collect();
        assert_eq!((rows, blocks == all), (4_000, true));
        assert!(parts >= 7, "{parts} parts");
    }

    #[test]
    fn a_part_with_any_byte_changed_or_missing_is_refused() {
        let reader = image().reader().unwrap();
        let place = Place::block(6, 800);
        let bytes = part_of(&reader, &place);
        assert!(Part::read(9, &place, &bytes).is_ok());
        assert!(Part::read(9, &Place::block(6, 799), &bytes).is_err());
        for at in (0..bytes.len()).step_by(997) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Part::read(9, &place, &flipped).is_err());
            assert!(Part::read(9, &place, &bytes[..at]).is_err());
        }
    }
}
