//! The client table: past replies, so that no request is carried out twice.
//! Owns: per client connection the last 256 modifying replies; their rows in the image.
//! Never: looks at a clock, or at which server runs it: it is a pure function of the records.
//! Invariant: equal at equal op on every copy; a request's key finds at most one reply.
//! Source: ARCHITECTURE.md; the Harp paper, section 4.5.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;

use harp_fs::blocks::LogBytes;
use rustc_hash::FxHashMap;

use crate::record::{RequestKey, STAMP_BYTES, Stamp};

/// Replies kept per connection.
pub const REPLIES_PER_CONNECTION: usize = 256;
/// Connections kept at most.
pub const CONNECTIONS_MAX: usize = 4_096;
/// A connection without a record for this long (nanoseconds of the table's time) is forgotten.
pub const KEEP_NANOS: u64 = 600 * 1_000_000_000;
/// The table's time advances from record to record as log time does, but by no more than this: a clock
/// that jumps must not make replies forgotten that clients still wait for.
const STEP_NANOS: u64 = 1_000_000_000;
/// First byte of the table's rows among the image's keys: above every table of `harp_fs`.
pub const ROW_PREFIX: u8 = 0xC0;

/// A reply as the table keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    key: RequestKey,
    op: u64,
    time: u64,
    reply: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Connection {
    port: u16,
    /// The table's time of its newest record.
    newest: u64,
    /// Op of its newest record, to know what a checkpoint must write.
    newest_op: u64,
    slots: Vec<Slot>,
    /// The slot that the next reply takes, once all are in use.
    next: usize,
}

/// Changes that are noted at least before those that are out of date are sorted out.
const NOTES_MIN: usize = 8_192;

/// Takes rows in key order, `None` for one to be removed.
pub type PutRow<'a, E> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), E> + 'a;

/// A reply that came into the table; its bytes are in the log.
#[derive(Clone, Copy, Debug)]
struct Note {
    connection: u64,
    slot: u8,
    op: u64,
    time: u64,
    /// Where the record's body lies, which begins with the stamp.
    body_at: u64,
    effects_len: u32,
    reply_len: u32,
}

/// A connection that was forgotten.
#[derive(Clone, Copy, Debug)]
struct Forgotten {
    connection: u64,
    slots: usize,
    op: u64,
}

/// What a checkpoint writes of the table. To make it costs nothing; to turn it into rows does, and is for the
/// store's thread.
#[derive(Debug)]
pub struct ChangedRows {
    clock: Option<[u8; 16]>,
    notes: Vec<Note>,
    forgotten: Vec<Forgotten>,
}

/// The table of one copy.
#[derive(Clone, Debug, Default)]
pub struct ClientTable {
    /// By name: the op of the connection's first record.
    connections: BTreeMap<u64, Connection>,
    index: FxHashMap<RequestKey, (u64, u8)>,
    /// Replies that came since the last checkpoint was frozen.
    notes: Vec<Note>,
    /// Connections forgotten since then.
    forgotten: Vec<Forgotten>,
    /// The newest record taken in, its log time, and the table's time then.
    newest_op: u64,
    log_time: u64,
    clock: u64,
}

impl ClientTable {
    /// The op and the stored reply of a request carried out before.
    pub fn find(&self, key: &RequestKey) -> Option<(u64, &[u8])> {
        let (connection, slot) = self.index.get(key)?;
        let slot = &self.connections[connection].slots[*slot as usize];
        Some((slot.op, &slot.reply))
    }

    /// Log time of the newest record taken in.
    pub fn log_time(&self) -> u64 {
        self.log_time
    }

    /// Whether the connection of that name is still known.
    pub fn knows(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Takes in the record of `op`, logged at `time`, whose body lies at `body_at` of the log until a checkpoint
    /// is through. Taking it in again changes nothing.
    pub fn record(&mut self, op: u64, time: u64, stamp: &Stamp, reply: &[u8], body_at: u64) {
        if op <= self.newest_op {
            return; // taken in before
        }
        self.newest_op = op;
        self.clock += time.saturating_sub(self.log_time).min(STEP_NANOS);
        self.log_time = time;
        let time = self.clock;
        if !self.connections.contains_key(&stamp.connection) {
            self.forget_old(op, time);
        }
        let connection = self.connections.entry(stamp.connection).or_default();
        connection.port = stamp.port;
        connection.newest = time;
        connection.newest_op = op;
        let at = if connection.slots.len() < REPLIES_PER_CONNECTION {
            connection.slots.push(Slot { key: stamp.key, op, time, reply: reply.to_vec() });
            connection.slots.len() - 1
        } else {
            let at = connection.next;
            connection.next = (at + 1) % REPLIES_PER_CONNECTION;
            let slot = &mut connection.slots[at];
            if let Entry::Occupied(entry) = self.index.entry(slot.key)
                && *entry.get() == (stamp.connection, at as u8)
            {
                entry.remove();
            }
            slot.key = stamp.key;
            slot.op = op;
            slot.time = time;
            slot.reply.clear();
            slot.reply.extend_from_slice(reply);
            at
        };
        self.index.insert(stamp.key, (stamp.connection, at as u8));
        self.note(op, time, stamp, at as u8, body_at);
    }

    fn note(&mut self, op: u64, time: u64, stamp: &Stamp, slot: u8, body_at: u64) {
        if self.notes.len() >= NOTES_MIN.max(2 * self.index.len()) {
            // Replies that others replaced since. As many as are left have come in between.
            let connections = &self.connections;
            self.notes.retain(|note| {
                let connection = connections.get(&note.connection);
                connection.is_some_and(|c| c.slots[note.slot as usize].op == note.op)
            });
        }
        let Stamp { connection, effects_len, reply_len, .. } = *stamp;
        self.notes.push(Note { connection, slot, op, time, body_at, effects_len, reply_len });
    }

    fn forget_old(&mut self, op: u64, time: u64) {
        let old = |c: &Connection| c.newest.saturating_add(KEEP_NANOS) < time;
        let mut gone: Vec<u64> =
            self.connections.iter().filter(|(_, c)| old(c)).map(|(name, _)| *name).collect();
        if gone.is_empty() && self.connections.len() >= CONNECTIONS_MAX {
            let oldest = self.connections.iter().min_by_key(|(name, c)| (c.newest_op, **name));
            gone.extend(oldest.map(|(name, _)| *name));
        }
        for name in gone {
            let connection = self.connections.remove(&name).expect("listed above");
            for (at, slot) in connection.slots.iter().enumerate() {
                if self.index.get(&slot.key) == Some(&(name, at as u8)) {
                    self.index.remove(&slot.key);
                }
            }
            let slots = connection.slots.len();
            self.forgotten.push(Forgotten { connection: name, slots, op });
        }
    }

    /// What changed since the last call, for the checkpoint of an applied set that is frozen now.
    pub fn freeze(&mut self) -> ChangedRows {
        let notes = std::mem::take(&mut self.notes);
        let forgotten = std::mem::take(&mut self.forgotten);
        let changed = !notes.is_empty();
        ChangedRows { clock: changed.then(|| self.clock_row()), notes, forgotten }
    }

    /// The table that the image's rows describe, exact at `op`. `None`: a row is malformed.
    pub fn load<'a>(
        op: u64,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Option<ClientTable> {
        let mut table = ClientTable { newest_op: op, ..ClientTable::default() };
        for (key, value) in rows {
            if key == [ROW_PREFIX] {
                let (clock, log_time) = value.split_first_chunk::<8>()?;
                table.clock = u64::from_le_bytes(*clock);
                table.log_time = u64::from_le_bytes(log_time.try_into().ok()?);
                if table.clock > table.log_time {
                    return None; // the table's time never runs ahead of the log's
                }
                continue;
            }
            let (name, at) = parse_key(key)?;
            let (port, slot) = parse_value(value)?;
            let connection = table.connections.entry(name).or_default();
            if connection.slots.len() != at as usize {
                return None; // rows of a connection count up without a gap
            }
            if slot.op > connection.newest_op {
                connection.newest_op = slot.op;
                connection.newest = slot.time;
                connection.port = port;
                connection.next = (at as usize + 1) % REPLIES_PER_CONNECTION;
            }
            table.index.insert(slot.key, (name, at));
            connection.slots.push(slot);
        }
        for connection in table.connections.values_mut() {
            if connection.slots.len() < REPLIES_PER_CONNECTION {
                connection.next = 0;
            }
        }
        Some(table)
    }
}

impl ClientTable {
    fn clock_row(&self) -> [u8; 16] {
        let mut row = [0; 16];
        row[..8].copy_from_slice(&self.clock.to_le_bytes());
        row[8..].copy_from_slice(&self.log_time.to_le_bytes());
        row
    }
}

impl ChangedRows {
    /// Gives the rows to `put`, ascending by key. `log`: what holds the records' bodies.
    pub fn put<E>(&self, log: &dyn LogBytes, put: &mut PutRow<'_, E>) -> Result<(), E> {
        if let Some(clock) = &self.clock {
            put(&[ROW_PREFIX], Some(clock))?;
        }
        // What happened to each slot; the last of it counts.
        let mut changes: Vec<(u64, u8, u64, Option<&Note>)> =
            self.notes.iter().map(|n| (n.connection, n.slot, n.op, Some(n))).collect();
        for gone in &self.forgotten {
            changes.extend((0..gone.slots).map(|at| (gone.connection, at as u8, gone.op, None)));
        }
        changes.sort_unstable_by_key(|(connection, slot, op, _)| (*connection, *slot, *op));
        let mut value = Vec::new();
        for (at, (connection, slot, _, note)) in changes.iter().enumerate() {
            let next = changes.get(at + 1);
            if next.is_some_and(|next| (next.0, next.1) == (*connection, *slot)) {
                continue;
            }
            if let Some(note) = note {
                note.row_value(log, &mut value);
            }
            put(&row_key(*connection, *slot), note.map(|_| &value[..]))?;
        }
        Ok(())
    }
}

/// Bytes of a stamp that begin a row's value as well: key and port.
const ROW_STAMP_BYTES: usize = 32;

impl Note {
    fn row_value(&self, log: &dyn LogBytes, value: &mut Vec<u8>) {
        let reply_at = self.body_at + STAMP_BYTES as u64 + u64::from(self.effects_len);
        value.clear();
        value.extend_from_slice(log.bytes(self.body_at, ROW_STAMP_BYTES as u32));
        value.extend_from_slice(&self.op.to_le_bytes());
        value.extend_from_slice(&self.time.to_le_bytes());
        value.extend_from_slice(log.bytes(reply_at, self.reply_len));
    }
}

fn row_key(connection: u64, slot: u8) -> [u8; 10] {
    let mut key = [ROW_PREFIX; 10];
    key[1..9].copy_from_slice(&connection.to_be_bytes());
    key[9] = slot;
    key
}

fn parse_key(key: &[u8]) -> Option<(u64, u8)> {
    let key: &[u8; 10] = key.try_into().ok()?;
    let name = u64::from_be_bytes(key[1..9].try_into().expect("eight bytes"));
    (key[0] == ROW_PREFIX).then_some((name, key[9]))
}

fn parse_value(value: &[u8]) -> Option<(u16, Slot)> {
    let (fixed, reply) = value.split_at_checked(48)?;
    let key = RequestKey {
        address: fixed[0..16].try_into().ok()?,
        xid: u32::from_le_bytes(fixed[16..20].try_into().ok()?),
        procedure: u16::from_le_bytes(fixed[20..22].try_into().ok()?),
        checksum: u64::from_le_bytes(fixed[24..32].try_into().ok()?),
    };
    let port = u16::from_le_bytes(fixed[22..24].try_into().ok()?);
    let op = u64::from_le_bytes(fixed[32..40].try_into().ok()?);
    let time = u64::from_le_bytes(fixed[40..48].try_into().ok()?);
    Some((port, Slot { key, op, time, reply: reply.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(connection: u64, xid: u32) -> Stamp {
        let key = RequestKey { address: [1; 16], xid, procedure: 8, checksum: xid as u64 * 3 };
        Stamp { key, port: 9, connection, effects_len: 0, reply_len: 0 }
    }

    /// A log of records without effects.
    #[derive(Default)]
    struct Log(Vec<u8>);

    impl Log {
        fn record(
            &mut self,
            tables: &mut [&mut ClientTable],
            at: (u64, u64),
            stamp: &Stamp,
            reply: &[u8],
        ) {
            let stamp = Stamp { reply_len: reply.len() as u32, ..*stamp };
            let body_at = self.0.len();
            self.0.resize(body_at + STAMP_BYTES, 0);
            stamp.write(&mut self.0[body_at..]);
            self.0.extend_from_slice(reply);
            for table in tables {
                table.record(at.0, at.1, &stamp, reply, body_at as u64);
            }
        }

        fn rows(&self, table: &mut ClientTable) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
            let mut rows = Vec::new();
            let mut put = |key: &[u8], value: Option<&[u8]>| -> Result<(), ()> {
                rows.push((key.to_vec(), value.map(<[u8]>::to_vec)));
                Ok(())
            };
            table.freeze().put(self, &mut put).unwrap();
            assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
            rows
        }
    }

    impl LogBytes for Log {
        fn bytes(&self, pos: u64, len: u32) -> &[u8] {
            &self.0[pos as usize..][..len as usize]
        }
    }

    #[test]
    fn the_last_256_replies_of_a_connection_are_found_and_no_others() {
        let mut table = ClientTable::default();
        for op in 1..=300u64 {
            table.record(op, op, &stamp(1, op as u32), &op.to_le_bytes(), 0);
        }
        assert_eq!(table.find(&stamp(1, 44).key), None);
        for op in 45..=300u64 {
            assert_eq!(table.find(&stamp(1, op as u32).key), Some((op, &op.to_le_bytes()[..])));
        }
    }

    #[test]
    fn rows_bring_the_table_back_and_both_go_on_alike() {
        let mut table = ClientTable::default();
        let mut image: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut log = Log::default();
        let save = |log: &Log, table: &mut ClientTable, image: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
            for (key, value) in log.rows(table) {
                match value {
                    Some(value) => image.insert(key, value),
                    None => image.remove(&key),
                };
            }
        };
        for op in 1..=900u64 {
            log.record(&mut [&mut table], (op, op * 7), &stamp(1 + op % 3, op as u32), b"r");
            if op % 130 == 0 {
                save(&log, &mut table, &mut image);
            }
        }
        save(&log, &mut table, &mut image);
        let rows = image.iter().map(|(k, v)| (&k[..], &v[..]));
        let mut loaded = ClientTable::load(900, rows).unwrap();
        for op in 901..=1000u64 {
            let time = op * 7 + KEEP_NANOS * (op / 950);
            let stamp = stamp(1 + op % 4, op as u32);
            log.record(&mut [&mut table, &mut loaded], (op, time), &stamp, b"s");
        }
        assert_eq!(log.rows(&mut table), log.rows(&mut loaded));
    }

    #[test]
    fn a_record_taken_in_twice_counts_once() {
        let mut table = ClientTable::default();
        for op in [1, 2, 3, 2, 3] {
            table.record(op, op, &stamp(1, op as u32), b"r", 0);
        }
        assert_eq!(table.connections[&1].slots.len(), 3);
    }

    #[test]
    fn connections_silent_for_ten_minutes_of_log_time_are_forgotten_with_their_rows() {
        let mut table = ClientTable::default();
        let mut log = Log::default();
        log.record(&mut [&mut table], (1, 5), &stamp(1, 1), b"r");
        let seconds = KEEP_NANOS / STEP_NANOS + 1;
        for s in 1..=seconds {
            log.record(&mut [&mut table], (1 + s, 5 + s * STEP_NANOS), &stamp(2, 2), b"r");
        }
        assert!(table.find(&stamp(1, 1).key).is_some());
        let at = (2 + seconds, 5 + (seconds + 1) * STEP_NANOS);
        log.record(&mut [&mut table], at, &stamp(3, 3), b"r");
        assert_eq!(table.find(&stamp(1, 1).key), None);
        assert!(log.rows(&mut table).contains(&(row_key(1, 0).to_vec(), None)));
    }

    #[test]
    fn rows_that_no_table_writes_are_refused() {
        let mut table = ClientTable::default();
        let mut log = Log::default();
        log.record(&mut [&mut table], (1, 5), &stamp(1, 1), b"r");
        log.record(&mut [&mut table], (2, 9), &stamp(1, 2), b"r");
        let rows: Vec<_> =
            log.rows(&mut table).into_iter().map(|(key, value)| (key, value.unwrap())).collect();
        let load = |rows: &[(Vec<u8>, Vec<u8>)]| {
            ClientTable::load(2, rows.iter().map(|(k, v)| (&k[..], &v[..]))).is_some()
        };
        assert!(load(&rows));
        assert!(!load(&rows[2..]), "the first reply is missing");
        let mut ahead = rows.clone();
        ahead[0].1[..8].copy_from_slice(&10u64.to_le_bytes());
        assert!(!load(&ahead), "a time ahead of the log's");
        for row in 0..rows.len() {
            let mut short = rows.clone();
            short[row].1.truncate(15);
            assert!(!load(&short));
        }
    }

    #[test]
    fn a_clock_that_jumps_forgets_nobody() {
        let mut table = ClientTable::default();
        table.record(1, 5, &stamp(1, 1), b"r", 0);
        table.record(2, 5 + 100 * KEEP_NANOS, &stamp(2, 2), b"r", 0);
        assert!(table.find(&stamp(1, 1).key).is_some());
    }

    #[test]
    fn a_reply_replaced_many_times_between_checkpoints_is_one_row() {
        let (mut table, mut log) = (ClientTable::default(), Log::default());
        let many = 5 * NOTES_MIN as u64;
        for op in 1..=many {
            log.record(&mut [&mut table], (op, op), &stamp(1, op as u32), &op.to_le_bytes());
        }
        assert!(table.notes.len() <= NOTES_MIN);
        let rows = log.rows(&mut table);
        assert_eq!(rows.len(), 1 + REPLIES_PER_CONNECTION);
        let rows = rows.iter().map(|(key, value)| (&key[..], value.as_deref().unwrap()));
        let loaded = ClientTable::load(many, rows).unwrap();
        assert_eq!(loaded.find(&stamp(1, many as u32).key), Some((many, &many.to_le_bytes()[..])));
    }
}
