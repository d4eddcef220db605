//! Engine: what keeps an image on real disks.
//! Owns: the LMDB metadata engine and the segment files.
//! Never: knows what keys, values or blocks mean; the store above checks their checksums.
//! Invariant: keeps the contracts of `harp_store::Engine` and `harp_store::Disk`.
//! Source: docs/disk-format.md.

mod file_disk;
mod lmdb;
mod make_room;

pub use file_disk::{FileDisk, SEGMENT_BLOCKS};
pub use lmdb::{LmdbEngine, LmdbOptions, LmdbSnapshot};
pub use make_room::{MakeRoom, nothing_to_give_up};

#[cfg(test)]
mod scratch {
    //! Directories for tests, removed at their end.
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    static COUNT: AtomicU32 = AtomicU32::new(0);

    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Scratch {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("harp-engine-{}-{count}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).expect("a fresh directory");
            Scratch(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // A directory left behind fails no test.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
