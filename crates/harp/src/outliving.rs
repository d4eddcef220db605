//! Memory that outlives a server's process: a file on a tmpfs.
//! Owns: the file's name, making it, and telling whether one that is there is this server's, of this boot.
//! Never: takes a file on a disk for memory, or another user's; looks at the records.
//! Invariant: a file under its name has all of its pages, so that no write to it can fail later.
//! Source: docs/disk-format-log.md, "Memory that outlives the process".

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use harp_node::log::{MEMORY_HEAD_BYTES, MemoryTie, Ring};
use harp_node::vr::ServerId;
use rustix::fs::{FallocateFlags, OFlags, fallocate, statfs};
use rustix::process::geteuid;

use crate::config::to_hex;
use crate::error::HarpError;
use crate::ringmem::RingMapping;
use crate::up::random;

/// The kind of file system that lies in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Names this run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A ring in memory that outlives the process.
pub struct Outliving {
    /// The ring.
    pub ring: Ring,
    /// The memory that it lies in.
    pub mapping: Arc<RingMapping>,
}

/// The kernel's name for this run of the machine.
pub fn boot_id() -> Result<[u8; 16], HarpError> {
    let path = Path::new(BOOT_ID);
    let text =
        std::fs::read_to_string(path).map_err(|error| HarpError::file("read", path, error))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    crate::config::from_hex(&digits)
        .ok_or_else(|| HarpError::Fatal { why: format!("{BOOT_ID} names no boot: {text:?}") })
}

/// Errors unless files in `dir` lie in memory.
pub fn demand_memory(dir: &Path) -> Result<(), HarpError> {
    let found =
        statfs(dir).map_err(|error| HarpError::file("look at the file system of", dir, error))?;
    // The field's type differs between machines; the number is positive everywhere.
    if found.f_type as u64 == TMPFS_MAGIC {
        return Ok(());
    }
    let why = format!(
        "group.memory_dir is {}, which is on no tmpfs: with durability \"ups\" the log's newest records lie there, in \
         memory",
        dir.display()
    );
    Err(HarpError::Refused { why })
}

fn open_existing(path: &Path, bytes: u64) -> Result<Option<File>, HarpError> {
    let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as i32;
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HarpError::file("open", path, error)),
    };
    let meta = file.metadata().map_err(|error| HarpError::file("look at", path, error))?;
    if !meta.is_file() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        let why = format!("{} is not this user's alone: remove it", path.display());
        return Err(HarpError::Refused { why });
    }
    Ok((meta.len() == bytes).then_some(file))
}

fn create(path: &Path, bytes: u64) -> Result<File, HarpError> {
    let make = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        // Without its pages a write to it would end the process when the tmpfs is full.
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        Ok(file)
    };
    make().map_err(|error: std::io::Error| {
        // What there is of it would only take room.
        let _ = std::fs::remove_file(path);
        let what = format!(
            "make {} of {} MiB (a smaller settings.ring_bytes, or another group.memory_dir, needs less there)",
            path.display(),
            bytes >> 20
        );
        HarpError::io(what, error)
    })
}

impl Outliving {
    /// Where the memory of a group's server lies in `dir`.
    pub fn path(dir: &Path, group: [u8; 16], server: ServerId) -> PathBuf {
        dir.join(format!("harp-{}-{server}", to_hex(&group)))
    }

    fn path_of(dir: &Path, tie: &MemoryTie) -> PathBuf {
        Outliving::path(dir, tie.group, ServerId(tie.server))
    }

    /// Opens the memory of `tie` in `dir`, or makes it anew where there is none that belongs to it.
    pub fn open(dir: &Path, tie: &MemoryTie, ring_bytes: u64) -> Result<Outliving, HarpError> {
        demand_memory(dir)?;
        let path = Outliving::path_of(dir, tie);
        let bytes = MEMORY_HEAD_BYTES as u64 + ring_bytes;
        if let Some(file) = open_existing(&path, bytes)? {
            let outliving = Outliving::over(file, bytes)?;
            let head = outliving.ring.memory_head().expect("it begins with one");
            if head.belongs(tie, ring_bytes) {
                return Ok(outliving);
            }
        }
        let unfinished = path.with_extension("new");
        let file = create(&unfinished, bytes)?;
        let outliving = Outliving::over(file, bytes)?;
        let id = u64::from_le_bytes(random()?).max(1);
        outliving.ring.memory_head().expect("it begins with one").format(id, tie, ring_bytes);
        std::fs::rename(&unfinished, &path)
            .map_err(|error| HarpError::file("rename to", &path, error))?;
        Ok(outliving)
    }

    fn over(file: File, bytes: u64) -> Result<Outliving, HarpError> {
        let mapping = Arc::new(RingMapping::of(file.into(), bytes as usize)?);
        let ring = Ring::outliving(mapping.clone());
        Ok(Outliving { ring, mapping })
    }
}

/// Gives the memory of a server back whose log was written out.
pub fn remove(dir: &Path, tie: &MemoryTie) {
    // What is left there is void: the next start finds the mark of the log that was written out.
    let _ = std::fs::remove_file(Outliving::path_of(dir, tie));
}

#[cfg(test)]
mod tests {
    use harp_node::log::LogPos;

    use super::*;
    use crate::testdir::TestDir;

    const RING: u64 = 64 << 10;

    fn tie() -> MemoryTie {
        let group = random().expect("random bytes");
        MemoryTie { boot: boot_id().expect("a boot id"), group, server: 1, disk: 9 }
    }

    #[test]
    fn memory_is_found_again_by_whom_it_belongs_to_alone() {
        let (dir, tie) = (Path::new("/dev/shm"), tie());
        let open = |tie: &MemoryTie| Outliving::open(dir, tie, RING).expect("opens");
        let first = open(&tie);
        let id = first.ring.memory_head().expect("a head").id();
        // SAFETY: no reader exists yet.
        unsafe { first.ring.bytes_mut(LogPos(8), 4) }.copy_from_slice(b"kept");
        drop(first);
        let again = open(&tie);
        assert_eq!(again.ring.memory_head().expect("a head").id(), id);
        assert_eq!(again.ring.bytes(LogPos(8), 4), b"kept");
        drop(again);
        for other in [MemoryTie { boot: [1; 16], ..tie }, MemoryTie { disk: 10, ..tie }] {
            let found = open(&other);
            assert_ne!(found.ring.memory_head().expect("a head").id(), id);
            assert_eq!(found.ring.bytes(LogPos(8), 4), [0; 4], "as good as new");
        }
        remove(dir, &tie);
        assert!(!Outliving::path_of(dir, &tie).exists());
    }

    #[test]
    fn a_directory_on_a_disk_is_no_memory() {
        let dir = TestDir::new("outliving-disk");
        if demand_memory(dir.path()).is_ok() {
            return; // temporary files lie in memory on this machine
        }
        let error = Outliving::open(dir.path(), &tie(), RING).err().expect("refused");
        assert!(error.to_string().contains("tmpfs"), "{error}");
    }
}
