//! LmdbEngine: the metadata engine on LMDB.
//! Owns: one LMDB environment with a named database per table; its map size and disk space.
//! Never: runs without syncing; writes through the map; keeps a reader open by itself.
//! Invariant: a commit is durable when it returns, and whole.
//! Source: LMDB's documentation; docs/disk-format.md.
//!
//! The map is only address space: it is opened as large as `map_bytes` (1 TiB unless told
//! otherwise, halved until the system grants it), so that it need not grow while readers use it;
//! a file that has come to half of it gets a map four times its size at the next start. Disk
//! space is taken ahead of use in steps of `reserve_bytes`, so that a full disk shows before a
//! commit begins and not in its middle.

use crate::make_room::{MakeRoom, nothing_to_give_up};
use harp_store::{
    Batch, Damage, Engine, EngineSpace, Entry, Fill, KEY_BYTES_MAX, Show, Snapshot, StoreError,
    Table, VALUE_BYTES_MAX, Walk,
};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Snapshots alive at once, over all threads.
const READERS_MAX: u32 = 1024;
/// The smallest map worth having.
const MAP_BYTES_MIN: usize = 64 << 20;
/// Maps are multiples of this, a multiple of every page size.
const MAP_BYTES_UNIT: usize = 1 << 20;

/// How large the environment may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LmdbOptions {
    /// Address space for the map, in bytes.
    pub map_bytes: usize,
    /// Disk space taken ahead of what is used, in bytes; more than one commit dirties.
    pub reserve_bytes: u64,
}

impl Default for LmdbOptions {
    fn default() -> LmdbOptions {
        LmdbOptions { map_bytes: 1 << 40, reserve_bytes: 128 << 20 }
    }
}

type Tables = [Database<Bytes, Bytes>; Table::COUNT];

/// An LMDB environment.
pub struct LmdbEngine {
    env: Env<WithoutTls>,
    tables: Tables,
    /// The data file, to reserve space in.
    file: File,
    reserve_bytes: u64,
    /// Asked when the file system is full.
    make_room: MakeRoom,
    /// Bytes of the data file that the disk has room for already.
    reserved: Mutex<u64>,
    /// Set by a failed commit, for ever.
    failed: AtomicBool,
}

/// A view of an [`LmdbEngine`]. While it lives, pages freed by later commits are not reused.
pub struct LmdbSnapshot {
    txn: RoTxn<'static, WithoutTls>,
    tables: Tables,
}

struct LmdbBatch<'e, 't> {
    txn: &'t mut RwTxn<'e>,
    tables: &'t Tables,
}

impl fmt::Debug for LmdbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LmdbEngine({})", self.env.path().display())
    }
}

impl fmt::Debug for LmdbSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LmdbSnapshot({})", self.txn.id())
    }
}

/// What an LMDB error means before a commit has begun to write.
fn error(what: &'static str, error: heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => {
            StoreError::Full { what: "metadata" }
        }
        heed::Error::Mdb(
            MdbError::PageNotFound
            | MdbError::Corrupted
            | MdbError::Invalid
            | MdbError::VersionMismatch
            | MdbError::Incompatible,
        ) => Damage::Contradiction { what: "pages of the metadata engine" }.into(),
        heed::Error::Io(source) => StoreError::Io { what, source },
        other => StoreError::Io { what, source: io::Error::other(other.to_string()) },
    }
}

/// What an LMDB error means once a commit has begun to write.
fn commit_error(error: heed::Error) -> StoreError {
    let source = match error {
        heed::Error::Io(source) => source,
        other => io::Error::other(other.to_string()),
    };
    StoreError::SyncFailed { what: "a commit of metadata", source }
}

impl LmdbEngine {
    /// Opens the environment in a directory that exists, making an empty one if there is none.
    /// The directory must be used by this process alone, and opened once at a time in it.
    ///
    /// Errors: `Io`, `Full` if not even the reserve fits, `Damaged` if LMDB refuses the file.
    pub fn open(dir: &Path, options: LmdbOptions) -> Result<LmdbEngine, StoreError> {
        LmdbEngine::open_with(dir, options, nothing_to_give_up())
    }

    /// The same; asks `make_room` when a commit needs space that the file system does not have.
    pub fn open_with(
        dir: &Path,
        options: LmdbOptions,
        make_room: MakeRoom,
    ) -> Result<LmdbEngine, StoreError> {
        let path = dir.join("data.mdb");
        let there = match path.metadata() {
            Ok(metadata) => usize::try_from(metadata.len()).unwrap_or(usize::MAX),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(StoreError::io("looking for metadata", error)),
        };
        let env = open_env(dir, options.map_bytes, there)?;
        if used_bytes(&env) > there as u64 && there > 0 {
            // Reading what the file lacks through the map would kill the process.
            return Err(Damage::Missing { what: "pages of the metadata engine" }.into());
        }
        let mut txn = env.write_txn().map_err(|e| error("opening metadata", e))?;
        let mut create = |table: Table| {
            let database = env.create_database(&mut txn, Some(table.name()));
            database.map_err(|e| error("opening a table of metadata", e))
        };
        let [head, meta, map, cut, used] = Table::ALL;
        let tables = [create(head)?, create(meta)?, create(map)?, create(cut)?, create(used)?];
        txn.commit().map_err(commit_error)?;
        let file = env.try_clone_inner_file().map_err(|e| error("opening metadata", e))?;
        let entries = File::open(dir).and_then(|dir| dir.sync_all());
        entries.map_err(|source| StoreError::SyncFailed { what: "a directory", source })?;
        let engine = LmdbEngine {
            env,
            tables,
            file,
            reserve_bytes: options.reserve_bytes,
            make_room,
            reserved: Mutex::new(0),
            failed: AtomicBool::new(false),
        };
        engine.reserve()?;
        Ok(engine)
    }

    /// Bytes in use, and bytes of the map.
    fn sizes(&self) -> (u64, u64) {
        (used_bytes(&self.env), self.env.info().map_size as u64)
    }

    /// Takes disk space ahead of the next commit: a whole step if there is room for it, else half a step, for
    /// which something else may be given up, else what a quarter of a step holds must do.
    fn reserve(&self) -> Result<(), StoreError> {
        let (used, map) = self.sizes();
        let mut reserved = self.reserved.lock().expect("no holder of this lock panics");
        let ahead = |part: u64| map.min(used + self.reserve_bytes / part);
        // Half a step left is still more than a commit needs.
        if *reserved >= ahead(2) {
            return Ok(());
        }
        let mut wanted = ahead(1);
        loop {
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, wanted) {
                // Where a file system cannot reserve, a full disk ends in a failed commit.
                Ok(()) | Err(Errno::OPNOTSUPP) => break,
                Err(Errno::NOSPC | Errno::DQUOT) if wanted > ahead(2) => wanted = ahead(2),
                Err(Errno::NOSPC | Errno::DQUOT) if (self.make_room)() => {}
                Err(Errno::NOSPC | Errno::DQUOT) if wanted > ahead(4) => wanted = ahead(4),
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    return Err(StoreError::Full { what: "metadata" });
                }
                Err(errno) => {
                    return Err(StoreError::io("reserving space for metadata", errno.into()));
                }
            }
        }
        *reserved = wanted.max(*reserved);
        Ok(())
    }

    /// Bytes of pages that hold something.
    fn live_bytes(&self) -> Result<u64, StoreError> {
        let measuring = |e| error("measuring metadata", e);
        let txn = self.env.read_txn().map_err(measuring)?;
        let mut pages = 0;
        for table in &self.tables {
            let stat = table.stat(&txn).map_err(measuring)?;
            pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        }
        Ok(pages as u64 * u64::from(self.env.stat().page_size))
    }

    fn check_alive(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) { Err(StoreError::Failed) } else { Ok(()) }
    }
}

/// Bytes of the data file up to the last page in use. Reads nothing but the newest head page.
fn used_bytes(env: &Env<WithoutTls>) -> u64 {
    (env.info().last_page_number as u64 + 1) * u64::from(env.stat().page_size)
}

/// Opens the environment with as much address space as the system grants.
fn open_env(dir: &Path, map_bytes: usize, there: usize) -> Result<Env<WithoutTls>, StoreError> {
    let mut map_bytes = map_bytes.max(MAP_BYTES_MIN);
    if there > map_bytes / 2 {
        map_bytes = there.saturating_mul(4);
    }
    loop {
        map_bytes -= map_bytes % MAP_BYTES_UNIT;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_bytes).max_readers(READERS_MAX).max_dbs(Table::COUNT as u32);
        // SAFETY: this flag changes how the kernel reads ahead and nothing of LMDB's guarantees.
        unsafe { options.flags(EnvFlags::NO_READ_AHEAD) };
        // SAFETY: the directory belongs to this process alone (the caller's promise), so nobody
        // else changes the file under the map.
        match unsafe { options.open(dir) } {
            Ok(env) => return Ok(env),
            Err(heed::Error::Io(e))
                if e.raw_os_error() == Some(Errno::NOMEM.raw_os_error())
                    && map_bytes / 2 >= MAP_BYTES_MIN.max(there) =>
            {
                map_bytes /= 2;
            }
            Err(e) => return Err(error("opening metadata", e)),
        }
    }
}

impl Engine for LmdbEngine {
    type Snapshot = LmdbSnapshot;

    fn snapshot(&self) -> Result<LmdbSnapshot, StoreError> {
        self.check_alive()?;
        let txn = self.env.clone().static_read_txn();
        let txn = txn.map_err(|e| error("beginning to read metadata", e))?;
        Ok(LmdbSnapshot { txn, tables: self.tables })
    }

    fn commit(&self, fill: &mut Fill<'_>) -> Result<(), StoreError> {
        self.check_alive()?;
        self.reserve()?;
        let txn = self.env.write_txn();
        let mut txn = txn.map_err(|e| error("beginning to write metadata", e))?;
        fill(&mut LmdbBatch { txn: &mut txn, tables: &self.tables })?;
        txn.commit().map_err(|error| {
            self.failed.store(true, Ordering::Release);
            commit_error(error)
        })
    }

    fn space(&self) -> Result<EngineSpace, StoreError> {
        let (used_bytes, limit_bytes) = self.sizes();
        let reserved = *self.reserved.lock().expect("no holder of this lock panics");
        let spare_bytes = reserved.max(used_bytes).saturating_sub(self.live_bytes()?);
        Ok(EngineSpace { used_bytes, spare_bytes, limit_bytes })
    }
}

impl Snapshot for LmdbSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let value = self.tables[table as usize].get(&self.txn, key);
        value.map_err(|e| error("reading metadata", e))
    }

    fn seek(&self, table: Table, from: &[u8]) -> Result<Option<Entry<'_>>, StoreError> {
        let table = &self.tables[table as usize];
        // LMDB knows no empty key, not even to search from.
        let entry = match from {
            [] => table.first(&self.txn),
            from => table.get_greater_than_or_equal_to(&self.txn, from),
        };
        entry.map_err(|e| error("searching metadata", e))
    }

    fn scan(&self, table: Table, from: &[u8], show: &mut Show<'_>) -> Result<(), StoreError> {
        let table = &self.tables[table as usize];
        let range = match from {
            [] => (Bound::Unbounded, Bound::Unbounded),
            from => (Bound::Included(from), Bound::Unbounded),
        };
        let entries = table.range(&self.txn, &range).map_err(|e| error("scanning metadata", e))?;
        for entry in entries {
            let (key, value) = entry.map_err(|e| error("scanning metadata", e))?;
            if show(key, value)? == Walk::Stop {
                break;
            }
        }
        Ok(())
    }
}

impl Batch for LmdbBatch<'_, '_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX);
        let result = self.tables[table as usize].put(self.txn, key, value);
        result.map_err(|e| error("writing metadata", e))
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX);
        let result = self.tables[table as usize].delete(self.txn, key);
        result.map(|_| ()).map_err(|e| error("deleting metadata", e))
    }

    fn clear(&mut self, table: Table) -> Result<(), StoreError> {
        let result = self.tables[table as usize].clear(self.txn);
        result.map_err(|e| error("clearing metadata", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use harp_store::contract::{check_engine, check_reopened};
    use std::fs::OpenOptions;

    const SMALL: LmdbOptions = LmdbOptions { map_bytes: MAP_BYTES_MIN, reserve_bytes: 1 << 20 };

    fn fill_up(engine: &LmdbEngine) -> Result<(), StoreError> {
        engine.commit(&mut |batch| {
            (0..40_000u32)
                .try_for_each(|i| batch.put(Table::Meta, &i.to_be_bytes(), &[i as u8; 3000]))
        })
    }

    #[test]
    fn lmdb_keeps_the_contract_and_its_contents() {
        let scratch = Scratch::new();
        let engine = LmdbEngine::open(scratch.path(), LmdbOptions::default()).unwrap();
        check_engine(&engine);
        drop(engine);
        check_reopened(&LmdbEngine::open(scratch.path(), LmdbOptions::default()).unwrap());
    }

    #[test]
    fn full_map_changes_nothing_and_a_larger_one_helps() {
        let scratch = Scratch::new();
        let engine = LmdbEngine::open(scratch.path(), SMALL).unwrap();
        let key = 0u32.to_be_bytes();
        engine.commit(&mut |batch| batch.put(Table::Meta, &key, b"old")).unwrap();
        assert!(matches!(fill_up(&engine), Err(StoreError::Full { .. })));
        let view = engine.snapshot().unwrap();
        assert_eq!(view.get(Table::Meta, &key).unwrap(), Some(&b"old"[..]));
        drop((view, engine));
        let larger = LmdbOptions { map_bytes: 4 * MAP_BYTES_MIN, ..SMALL };
        let engine = LmdbEngine::open(scratch.path(), larger).unwrap();
        fill_up(&engine).unwrap();
        drop(engine);
        // The file outgrew the small map: it is opened with a larger one.
        let engine = LmdbEngine::open(scratch.path(), SMALL).unwrap();
        assert!(engine.space().unwrap().limit_bytes > 4 * MAP_BYTES_MIN as u64);
        assert!(engine.snapshot().unwrap().get(Table::Meta, &key).unwrap().is_some());
    }

    #[test]
    fn views_move_between_threads_and_outlive_commits() {
        let scratch = Scratch::new();
        let engine = LmdbEngine::open(scratch.path(), SMALL).unwrap();
        let set = |value: &[u8]| engine.commit(&mut |batch| batch.put(Table::Meta, b"k", value));
        set(b"1").unwrap();
        let views: Vec<_> = (0..200).map(|_| engine.snapshot().unwrap()).collect();
        set(b"2").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for view in views {
                    assert_eq!(view.get(Table::Meta, b"k").unwrap(), Some(&b"1"[..]));
                }
            });
        });
    }

    #[test]
    fn file_that_is_no_environment_is_refused() {
        let scratch = Scratch::new();
        std::fs::write(scratch.path().join("data.mdb"), [7; 8192]).unwrap();
        assert!(matches!(LmdbEngine::open(scratch.path(), SMALL), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn file_that_lost_its_end_is_refused() {
        let scratch = Scratch::new();
        let engine = LmdbEngine::open(scratch.path(), SMALL).unwrap();
        let put = |i: u32| {
            engine.commit(&mut |batch| batch.put(Table::Meta, &i.to_be_bytes(), &[1; 3000]))
        };
        (0..20).try_for_each(put).unwrap();
        drop(engine);
        let file = OpenOptions::new().write(true).open(scratch.path().join("data.mdb")).unwrap();
        file.set_len(6 * 4096).unwrap();
        let opened = LmdbEngine::open(scratch.path(), SMALL);
        assert!(matches!(opened, Err(StoreError::Damaged(Damage::Missing { .. }))));
    }
}
