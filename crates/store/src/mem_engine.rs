//! MemEngine: an ordered map in memory that keeps the engine's contract.
//! Owns: the entries, as sorted chunks that snapshots share until they change.
//! Never: touches a disk; what is committed survives by sharing.
//! Invariant: a commit is applied whole under one lock, after its batch is complete.
//! Source: docs/disk-format.md.

use crate::{
    Batch, Engine, EngineSpace, Entry, Fill, Fuse, KEY_BYTES_MAX, Show, Snapshot, StoreError,
    Table, VALUE_BYTES_MAX, Walk,
};
use std::sync::{Arc, Mutex, MutexGuard};

/// Entries in a chunk before it is split.
const CHUNK_ENTRIES_MAX: usize = 64;

type Bytes = Arc<[u8]>;
type Chunk = Vec<(Bytes, Bytes)>;

/// Sorted, non-empty chunks of sorted entries.
#[derive(Debug, Clone, Default)]
struct Map {
    chunks: Vec<Arc<Chunk>>,
}

type Maps = [Map; Table::COUNT];

/// An engine in memory. Clones share it, so that it survives the crash of its user.
#[derive(Debug, Clone, Default)]
pub struct MemEngine {
    maps: Arc<Mutex<Arc<Maps>>>,
    fuse: Fuse,
}

/// A view of a [`MemEngine`].
#[derive(Debug, Clone)]
pub struct MemSnapshot(Arc<Maps>);

enum Change {
    Put(Table, Bytes, Bytes),
    Delete(Table, Bytes),
    Clear(Table),
}

#[derive(Default)]
struct MemBatch(Vec<Change>);

impl MemEngine {
    /// An empty engine.
    pub fn new() -> MemEngine {
        MemEngine::default()
    }

    /// An empty engine that stops when `fuse` blows.
    pub fn with_fuse(fuse: Fuse) -> MemEngine {
        MemEngine { fuse, ..MemEngine::default() }
    }

    /// An engine of its own that holds what was last committed to this one. It has no fuse.
    pub fn fork(&self) -> MemEngine {
        let maps = Arc::new(Mutex::new(Arc::clone(&self.maps())));
        MemEngine { maps, fuse: Fuse::new() }
    }

    fn maps(&self) -> MutexGuard<'_, Arc<Maps>> {
        self.maps.lock().expect("no holder of this lock panics")
    }

    /// Flips the bits of `mask` in one byte of a stored value, counted from its start and
    /// wrapping at its end. Returns whether the key is there with a value to damage.
    pub fn flip(&self, table: Table, key: &[u8], byte: usize, mask: u8) -> bool {
        let mut maps = self.maps();
        let Some(value) = maps[table as usize].get(key) else { return false };
        let mut value = value.to_vec();
        if value.is_empty() {
            return false;
        }
        let at = byte % value.len();
        value[at] ^= mask;
        Arc::make_mut(&mut maps)[table as usize].put(key.into(), value.into());
        true
    }

    /// All keys of a table, ascending: for faults that pick one.
    pub fn keys(&self, table: Table) -> Vec<Vec<u8>> {
        let maps = self.maps();
        maps[table as usize].from(&[]).map(|(key, _)| key.to_vec()).collect()
    }
}

impl Map {
    /// Index of the last chunk whose first key is at or before `key`, or 0.
    fn chunk_of(&self, key: &[u8]) -> usize {
        self.chunks.partition_point(|chunk| &*chunk[0].0 <= key).saturating_sub(1)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    fn from<'a>(&'a self, from: &[u8]) -> impl Iterator<Item = &'a (Bytes, Bytes)> + use<'a> {
        let first = self.chunk_of(from);
        let skip = match self.chunks.get(first) {
            Some(chunk) => chunk.partition_point(|(key, _)| &**key < from),
            None => 0,
        };
        self.chunks[first.min(self.chunks.len())..].iter().flat_map(|chunk| chunk.iter()).skip(skip)
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        if self.chunks.is_empty() {
            self.chunks.push(Arc::new(vec![(key, value)]));
            return;
        }
        let index = self.chunk_of(&key);
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => chunk[at].1 = value,
            Err(at) => chunk.insert(at, (key, value)),
        }
        if chunk.len() > CHUNK_ENTRIES_MAX {
            let upper = chunk.split_off(CHUNK_ENTRIES_MAX / 2);
            self.chunks.insert(index + 1, Arc::new(upper));
        }
    }

    fn delete(&mut self, key: &[u8]) {
        let index = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let Ok(at) = chunk.binary_search_by(|(k, _)| (**k).cmp(key)) else { return };
        if chunk.len() == 1 {
            self.chunks.remove(index);
        } else {
            Arc::make_mut(chunk).remove(at);
        }
    }
}

impl Engine for MemEngine {
    type Snapshot = MemSnapshot;

    fn snapshot(&self) -> Result<MemSnapshot, StoreError> {
        Ok(MemSnapshot(Arc::clone(&self.maps())))
    }

    fn commit(&self, fill: &mut Fill<'_>) -> Result<(), StoreError> {
        self.fuse.step("beginning a commit of the memory engine")?;
        let mut batch = MemBatch::default();
        fill(&mut batch)?;
        self.fuse.step("committing to the memory engine").map_err(after_commit)?;
        let mut maps = self.maps();
        // Chunks are copied only where a snapshot still shares them.
        let tables = Arc::make_mut(&mut maps);
        for change in batch.0 {
            match change {
                Change::Put(table, key, value) => tables[table as usize].put(key, value),
                Change::Delete(table, key) => tables[table as usize].delete(&key),
                Change::Clear(table) => tables[table as usize].chunks.clear(),
            }
        }
        drop(maps);
        self.fuse.step("returning from a commit of the memory engine").map_err(after_commit)
    }

    fn space(&self) -> Result<EngineSpace, StoreError> {
        let maps = Arc::clone(&self.maps());
        let chunks: usize = maps.iter().map(|map| map.chunks.len()).sum();
        let used_bytes = (chunks * CHUNK_ENTRIES_MAX * 64) as u64;
        Ok(EngineSpace { used_bytes, spare_bytes: u64::MAX, limit_bytes: u64::MAX })
    }
}

/// Whether a stopped commit happened is unknown to its caller.
fn after_commit(error: StoreError) -> StoreError {
    match error {
        StoreError::Io { what, source } => StoreError::SyncFailed { what, source },
        other => other,
    }
}

impl Snapshot for MemSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        Ok(self.0[table as usize].get(key))
    }

    fn seek(&self, table: Table, from: &[u8]) -> Result<Option<Entry<'_>>, StoreError> {
        Ok(self.0[table as usize].from(from).next().map(|(key, value)| (&**key, &**value)))
    }

    fn scan(&self, table: Table, from: &[u8], show: &mut Show<'_>) -> Result<(), StoreError> {
        for (key, value) in self.0[table as usize].from(from) {
            if show(key, value)? == Walk::Stop {
                break;
            }
        }
        Ok(())
    }
}

impl Batch for MemBatch {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX);
        self.0.push(Change::Put(table, key.into(), value.into()));
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX);
        self.0.push(Change::Delete(table, key.into()));
        Ok(())
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        self.0.push(Change::Clear(table));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_engine_keeps_the_contract() {
        let engine = MemEngine::new();
        crate::contract::check_engine(&engine);
        crate::contract::check_reopened(&engine.clone());
    }

    #[test]
    fn stopped_commit_is_all_or_nothing() {
        let fuse = Fuse::new();
        for steps in 0..3 {
            let engine = MemEngine::with_fuse(fuse.clone());
            fuse.arm(steps);
            let result = engine.commit(&mut |batch| {
                batch.put(Table::Meta, b"a", b"1")?;
                batch.put(Table::Map, b"b", b"2")
            });
            assert!(result.is_err());
            fuse.reset();
            let view = engine.snapshot().unwrap();
            let there = steps == 2;
            assert_eq!(view.get(Table::Meta, b"a").unwrap().is_some(), there);
            assert_eq!(view.get(Table::Map, b"b").unwrap().is_some(), there);
        }
    }
}
