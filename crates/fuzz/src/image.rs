//! Image: the rows of a copy's metadata engine, each under its checksum, and all that is read from them.
//! Owns: the seal, written here once more; an image that a few odd rows are laid over.
//! Source: docs/disk-format.md, "Image".
//!
//! Input: rows, each a table, the length of its key, the key, the length of its value (2 bytes,
//! little-endian), the value. A table above those that there are: the row is taken away.

use harp_node::clients::{ClientTable, ROW_PREFIX};
use harp_node::fs::blocks::LogBytes;
use harp_node::fs::inode::{FIRST_COOKIE, ROOT};
use harp_node::fs::key;
use harp_node::fs::request::Time;
use harp_node::image_state;
use harp_node::record::{RequestKey, STAMP_BYTES, Stamp};
use harp_node::store::{
    BLOCK_BYTES, BlockWrite, Checkpoint, Content, Disk, Engine, KEY_BYTES_MAX, Limits, MemDisk,
    MemEngine, Reader, Snapshot, Store, StoreError, Table, Walk,
};

use crate::memory::within;

const IDENTITY: &[u8; 16] = b"a group of three";
/// Blocks of the disk under the image.
const BLOCKS: u64 = 512;
const LIMITS: Limits =
    Limits { grow_blocks: BLOCKS, blocks_max: BLOCKS, cut_now_runs_max: 8, cut_later_runs_max: 16 };
/// A page of the bitmap and the pieces that a digest is read in, whatever the rows say.
const BYTES_MAX: usize = 2 << 20;
/// Rows are copied a few times at most; each has places in tables.
const BYTES_PER_BYTE: usize = 64;

type Image = Store<MemEngine, MemDisk>;

/// One input.
pub fn run(input: &[u8]) {
    let rows = rows_of(input);
    rows.iter().for_each(|(_, key, value)| one_encoding(key, value));
    client_rows(&rows);
    let (engine, disk) = sample();
    lay_over(&engine, &rows);
    let bytes_max = BYTES_MAX + BYTES_PER_BYTE * input.len();
    let opened = within(bytes_max, || Image::open(engine.clone(), disk.clone(), LIMITS));
    let Ok(opened) = opened else { return };
    let store = opened.store;
    let Ok(reader) = store.reader() else { return };
    let mut damages = 0;
    let scrubbed = within(bytes_max, || reader.scrub(&mut |_| damages += 1));
    let scrubbed = scrubbed.expect("memory never fails");
    assert_eq!(scrubbed.damaged, damages);
    let digest = within(bytes_max, || reader.digest());
    assert!(digest.is_ok() || damages > 0, "a digest failed where nothing is damaged: {digest:?}");
    let _ = within(bytes_max, || image_state(&store));
    blocks(&reader);
    drop(reader);
    if damages == 0 {
        assert!(go_on(&store), "a sound image takes no checkpoint");
    }
}

/// One row: its table, key and value.
type Row<'a> = (u8, &'a [u8], &'a [u8]);

fn rows_of(mut input: &[u8]) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    while let Some(([table, key_len], rest)) = input.split_first_chunk() {
        let Some((key, rest)) = rest.split_at_checked(usize::from(*key_len)) else { break };
        let Some((len, rest)) = rest.split_first_chunk() else { break };
        let (value, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
        if !key.is_empty() && key.len() <= KEY_BYTES_MAX {
            rows.push((*table, key, value));
        }
        input = rest;
    }
    rows
}

/// A value that is read as one of the file system's has no other encoding.
fn one_encoding(key: &[u8], value: &[u8]) {
    if let Some(counters) = within(0, || key::parse_super(value)) {
        assert_eq!(counters.encode(), value);
    }
    if let Some(inode) = within(0, || key::parse_inode(value)) {
        assert_eq!(*key::inode_value(&inode), *value);
    }
    if let Some(entry) = within(0, || key::parse_name(value)) {
        assert_eq!(*key::name_value(&entry), *value);
    }
    if let Some((dir, entry, name)) = within(0, || key::parse_cookie_row(key, value)) {
        assert_eq!(*key::cookie_key(dir, entry.cookie), *key);
        assert_eq!(*key::cookie_value(&entry, name), *value);
    }
}

/// The client table that rows describe goes on as any other, and its own rows describe it again.
fn client_rows(rows: &[Row<'_>]) {
    const OP: u64 = 1000;
    let mut sorted: Vec<(&[u8], &[u8])> = rows
        .iter()
        .filter(|(_, key, _)| key[0] == ROW_PREFIX)
        .map(|(_, key, value)| (*key, *value))
        .collect();
    sorted.sort();
    sorted.dedup_by_key(|(key, _)| *key);
    let bytes: usize = sorted.iter().map(|(key, value)| key.len() + value.len()).sum();
    let bytes_max = 4096 + 64 * bytes;
    let loaded = within(bytes_max, || ClientTable::load(OP, sorted.iter().copied()));
    let Some(mut table) = loaded else { return };
    let mut image: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
        sorted.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
    let stamp = |connection: u64, xid: u32| Stamp {
        key: RequestKey { address: [1; 16], xid, procedure: 8, checksum: 7 },
        port: 9,
        connection,
        effects_len: 0,
        reply_len: 1,
    };
    let mut log = Bodies::default();
    let mut record = |tables: &mut [&mut ClientTable], op: u64| {
        let time = tables[0].log_time().saturating_add(1_000_000);
        log.record(tables, (op, time), &stamp(1 + op % 2, op as u32), b"r");
    };
    (OP + 1..OP + 40).for_each(|op| record(&mut [&mut table], op));
    for (key, value) in log.rows(&mut table) {
        match value {
            Some(value) => image.insert(key, value),
            None => image.remove(&key),
        };
    }
    let rows = image.iter().map(|(key, value)| (&key[..], &value[..]));
    let mut again = ClientTable::load(OP + 39, rows).expect("the table's own rows");
    for op in OP + 40..OP + 60 {
        let (at, stamp) =
            (table.log_time().saturating_add(1_000_000), stamp(1 + op % 2, op as u32));
        log.record(&mut [&mut table, &mut again], (op, at), &stamp, b"r");
        let key = stamp.key;
        assert_eq!(table.find(&key), Some((op, &b"r"[..])));
        assert_eq!(again.find(&key), table.find(&key));
    }
    assert_eq!(log.rows(&mut table), log.rows(&mut again));
}

/// Bodies of records without effects, as a log holds them.
#[derive(Default)]
struct Bodies(Vec<u8>);

impl LogBytes for Bodies {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..][..len as usize]
    }
}

impl Bodies {
    fn record(
        &mut self,
        tables: &mut [&mut ClientTable],
        (op, time): (u64, u64),
        stamp: &Stamp,
        reply: &[u8],
    ) {
        let at = self.0.len();
        self.0.resize(at + STAMP_BYTES, 0);
        stamp.write(&mut self.0[at..]);
        self.0.extend_from_slice(reply);
        tables.iter_mut().for_each(|table| table.record(op, time, stamp, reply, at as u64));
    }

    fn rows(&self, table: &mut ClientTable) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut rows = Vec::new();
        let done: Result<(), ()> = table.freeze().put(self, &mut |key, value| {
            rows.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok(())
        });
        done.expect("nothing fails here");
        rows
    }
}

/// CRC32C over table, length of the key, key and value, behind the value.
fn seal(table: Table, key: &[u8], value: &[u8]) -> Vec<u8> {
    let place = [&[table as u8][..], &(key.len() as u32).to_le_bytes(), key].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place), value);
    [value, &crc.to_le_bytes()].concat()
}

fn lay_over(engine: &MemEngine, rows: &[Row<'_>]) {
    let laid = engine.commit(&mut |batch| {
        rows.iter().try_for_each(|(table, key, value)| {
            let place = Table::ALL[usize::from(*table) % Table::COUNT];
            match usize::from(*table) < Table::COUNT {
                true => batch.put(place, key, &seal(place, key, value)),
                false => batch.delete(place, key),
            }
        })
    });
    laid.expect("memory has room");
}

/// Reads blocks where the map says that there are some.
fn blocks(reader: &Reader<MemEngine, MemDisk>) {
    let mut places = Vec::new();
    let _ = reader.stretches((0, 0), &mut |stretch, crcs| {
        assert!(stretch.count > 0 && crcs.count() as u64 == stretch.count);
        assert!(stretch.first.checked_add(stretch.count).is_some());
        places.push((stretch.file, stretch.first));
        Ok(if places.len() < 32 { Walk::On } else { Walk::Stop })
    });
    let mut room = [0; 3 * BLOCK_BYTES];
    for (file, first) in places {
        let _ = reader.read_blocks(file, first, &mut room);
        let _ = reader.read_blocks(file, first.saturating_sub(1), &mut room);
        assert!(!matches!(reader.block_crc(file, first), Ok(None)), "a block that is no block");
    }
}

/// One more checkpoint, and the image after it is sound. False: the store refuses it.
fn go_on(store: &Image) -> bool {
    let block = [5; BLOCK_BYTES];
    let writes = [(1, 0), (2, 1), (2, 300)].map(|(file, block_index)| BlockWrite {
        file,
        block: block_index,
        content: Content::Data(&block),
    });
    let op = store.op() + 1;
    let cuts = [harp_node::store::Cut { file: 2, first: 1 }];
    let done = store.checkpoint(Checkpoint {
        op,
        cuts: &cuts,
        metadata: &mut |sink| sink.put(&[0xC1], b"more"),
        blocks: &mut writes.into_iter(),
        pause: &|| {},
    });
    match done {
        Ok(_) => {
            let mut damaged = Vec::new();
            store.scrub(&mut |damage| damaged.push(damage)).expect("memory never fails");
            assert!(damaged.is_empty(), "damaged by a checkpoint: {damaged:?}");
            assert_eq!(store.op(), op);
            true
        }
        Err(StoreError::Full { .. }) => true,
        Err(_) => false,
    }
}

/// An image of an empty file system with two files' blocks and a few replies.
fn sample() -> (MemEngine, MemDisk) {
    let (engine, disk) = (MemEngine::new(), MemDisk::new(BLOCKS));
    disk.grow(BLOCKS).expect("room");
    Image::format(&engine, IDENTITY, &key::format_rows(Time::default())).expect("empty");
    let store = Image::open(engine.clone(), disk.clone(), LIMITS).expect("formatted").store;
    let block = [7; BLOCK_BYTES];
    let writes = [(2, 0), (2, 1), (2, 2), (2, 9), (3, 0)].map(|(file, block_index)| BlockWrite {
        file,
        block: block_index,
        content: Content::Data(&block),
    });
    let (mut table, mut log) = (ClientTable::default(), Bodies::default());
    for op in 1..=3 {
        let key = RequestKey { address: [1; 16], xid: op as u32, procedure: 8, checksum: 7 };
        let stamp = Stamp { key, port: 9, connection: 1, effects_len: 0, reply_len: 5 };
        log.record(&mut [&mut table], (op, op * 1_000_000), &stamp, b"reply");
    }
    let rows = log.rows(&mut table);
    let done = store.checkpoint(Checkpoint {
        op: 3,
        cuts: &[],
        metadata: &mut |sink| {
            sink.extend(rows.iter().map(|(key, value)| (&key[..], value.as_deref())))
        },
        blocks: &mut writes.into_iter(),
        pause: &|| {},
    });
    done.expect("room");
    (engine, disk)
}

/// The rows of the sample, each table's apart, and odd ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let (engine, _) = sample();
    let view = engine.snapshot().expect("memory");
    let row = |table: u8, key: &[u8], value: &[u8]| {
        let len = (value.len() as u16).to_le_bytes();
        [&[table, key.len() as u8], key, &len, value].concat()
    };
    let mut seeds: Vec<Vec<u8>> = Table::ALL
        .into_iter()
        .map(|table| {
            let mut seed = Vec::new();
            let all = view.scan(table, &[], &mut |key, sealed| {
                let value = &sealed[..sealed.len() - 4];
                let value = &value[..value.len().min(600)];
                seed.extend(row(table as u8, key, value));
                Ok(Walk::On)
            });
            all.expect("memory");
            seed
        })
        .collect();
    let place = |file: u64, block: u64| [file.to_be_bytes(), block.to_be_bytes()].concat();
    let run = |position: u64, op: u64| {
        [&position.to_le_bytes()[..], &op.to_le_bytes(), &7u32.to_le_bytes()].concat()
    };
    let mark = [2u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    let mut head = row(0, b"head", b"HARPIMG\0\x01\0\0\0\x01\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    head.extend(row(3, &place(2, 1), &mark));
    seeds.push(head);
    seeds.push(row(2, &place(9, 4), &run(40, 2)));
    seeds.push(row(2, &place(u64::MAX, u64::MAX - 1), &run(u64::MAX - 9, 2)));
    seeds.push(row(Table::COUNT as u8 + 2, &place(2, 2), b""));
    let entry = harp_node::fs::inode::Entry {
        ino: 2,
        cookie: FIRST_COOKIE,
        kind: harp_node::fs::request::FileType::Regular,
    };
    let cookie = row(1, &key::cookie_key(ROOT, 3), &key::cookie_value(&entry, b"file"));
    let name = row(1, &key::name_key(ROOT, b"file"), &key::name_value(&entry));
    seeds.push([cookie, name].concat());
    seeds
}
