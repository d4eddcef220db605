//! The client table: past replies, so that no request is carried out twice.
//! Owns: per client connection the last 256 modifying replies; their rows in the image.
//! Never: looks at a clock, or at which server runs it: it is a pure function of the records.
//! Invariant: equal at equal op on every copy; a request's key finds at most one reply.
//! Source: ARCHITECTURE.md; the Harp paper, section 4.5.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use crate::record::{RequestKey, Stamp};

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

/// A key and its value, or `None` where the row goes away.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// The table of one copy.
#[derive(Clone, Debug, Default)]
pub struct ClientTable {
    /// By name: the op of the connection's first record.
    connections: BTreeMap<u64, Connection>,
    index: FxHashMap<RequestKey, (u64, u8)>,
    /// Connections forgotten since the last checkpoint, with the number of their rows.
    forgotten: Vec<(u64, usize)>,
    /// Rows above this op are not in the image yet.
    saved: u64,
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

    /// Takes in the record of `op`, logged at `time`. Taking it in again changes nothing.
    pub fn record(&mut self, op: u64, time: u64, stamp: &Stamp, reply: &[u8]) {
        if op <= self.newest_op {
            return; // taken in before
        }
        self.newest_op = op;
        self.clock += time.saturating_sub(self.log_time).min(STEP_NANOS);
        self.log_time = time;
        let time = self.clock;
        if !self.connections.contains_key(&stamp.connection) {
            self.forget_old(time);
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
    }

    fn forget_old(&mut self, time: u64) {
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
            self.forgotten.push((name, connection.slots.len()));
        }
    }

    /// The rows that changed since the last call, ascending by key; called when the applied set is frozen
    /// at `op`.
    pub fn changed_rows(&mut self, op: u64) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        if self.newest_op > self.saved {
            rows.push((vec![ROW_PREFIX], Some(self.clock_row())));
        }
        for (name, count) in self.forgotten.drain(..) {
            rows.extend((0..count).map(|at| (row_key(name, at as u8), None)));
        }
        for (name, connection) in &self.connections {
            if connection.newest_op <= self.saved {
                continue;
            }
            for (at, slot) in connection.slots.iter().enumerate().filter(|(_, s)| s.op > self.saved)
            {
                rows.push((row_key(*name, at as u8), Some(row_value(connection.port, slot))));
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        self.saved = op;
        rows
    }

    /// The table that the image's rows describe, exact at `op`. `None`: a row is malformed.
    pub fn load<'a>(
        op: u64,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Option<ClientTable> {
        let mut table = ClientTable { saved: op, newest_op: op, ..ClientTable::default() };
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
    fn clock_row(&self) -> Vec<u8> {
        [self.clock.to_le_bytes(), self.log_time.to_le_bytes()].concat()
    }
}

fn row_key(connection: u64, slot: u8) -> Vec<u8> {
    let mut key = vec![ROW_PREFIX];
    key.extend_from_slice(&connection.to_be_bytes());
    key.push(slot);
    key
}

fn parse_key(key: &[u8]) -> Option<(u64, u8)> {
    let key: &[u8; 10] = key.try_into().ok()?;
    let name = u64::from_be_bytes(key[1..9].try_into().expect("eight bytes"));
    (key[0] == ROW_PREFIX).then_some((name, key[9]))
}

fn row_value(port: u16, slot: &Slot) -> Vec<u8> {
    let mut value = Vec::with_capacity(48 + slot.reply.len());
    value.extend_from_slice(&slot.key.address);
    value.extend_from_slice(&slot.key.xid.to_le_bytes());
    value.extend_from_slice(&slot.key.procedure.to_le_bytes());
    value.extend_from_slice(&port.to_le_bytes());
    value.extend_from_slice(&slot.key.checksum.to_le_bytes());
    value.extend_from_slice(&slot.op.to_le_bytes());
    value.extend_from_slice(&slot.time.to_le_bytes());
    value.extend_from_slice(&slot.reply);
    value
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

    #[test]
    fn the_last_256_replies_of_a_connection_are_found_and_no_others() {
        let mut table = ClientTable::default();
        for op in 1..=300u64 {
            table.record(op, op, &stamp(1, op as u32), &op.to_le_bytes());
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
        let save = |table: &mut ClientTable, op: u64, image: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
            for (key, value) in table.changed_rows(op) {
                match value {
                    Some(value) => image.insert(key, value),
                    None => image.remove(&key),
                };
            }
        };
        for op in 1..=900u64 {
            table.record(op, op * 7, &stamp(1 + op % 3, op as u32), b"r");
            if op % 130 == 0 {
                save(&mut table, op, &mut image);
            }
        }
        save(&mut table, 900, &mut image);
        let rows = image.iter().map(|(k, v)| (&k[..], &v[..]));
        let mut loaded = ClientTable::load(900, rows).unwrap();
        for op in 901..=1000u64 {
            for table in [&mut table, &mut loaded] {
                table.record(
                    op,
                    op * 7 + KEEP_NANOS * (op / 950),
                    &stamp(1 + op % 4, op as u32),
                    b"s",
                );
            }
        }
        assert_eq!(table.changed_rows(1000), loaded.changed_rows(1000));
    }

    #[test]
    fn a_record_taken_in_twice_counts_once() {
        let mut table = ClientTable::default();
        for op in [1, 2, 3, 2, 3] {
            table.record(op, op, &stamp(1, op as u32), b"r");
        }
        assert_eq!(table.connections[&1].slots.len(), 3);
    }

    #[test]
    fn connections_silent_for_ten_minutes_of_log_time_are_forgotten_with_their_rows() {
        let mut table = ClientTable::default();
        table.record(1, 5, &stamp(1, 1), b"r");
        let seconds = KEEP_NANOS / STEP_NANOS + 1;
        (1..=seconds).for_each(|s| table.record(1 + s, 5 + s * STEP_NANOS, &stamp(2, 2), b"r"));
        assert!(table.find(&stamp(1, 1).key).is_some());
        table.record(2 + seconds, 5 + (seconds + 1) * STEP_NANOS, &stamp(3, 3), b"r");
        assert_eq!(table.find(&stamp(1, 1).key), None);
        let rows = table.changed_rows(2 + seconds);
        assert!(rows.contains(&(row_key(1, 0), None)));
    }

    #[test]
    fn rows_that_no_table_writes_are_refused() {
        let mut table = ClientTable::default();
        table.record(1, 5, &stamp(1, 1), b"r");
        table.record(2, 9, &stamp(1, 2), b"r");
        let rows: Vec<_> =
            table.changed_rows(2).into_iter().map(|(key, value)| (key, value.unwrap())).collect();
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
        table.record(1, 5, &stamp(1, 1), b"r");
        table.record(2, 5 + 100 * KEEP_NANOS, &stamp(2, 2), b"r");
        assert!(table.find(&stamp(1, 1).key).is_some());
    }
}
