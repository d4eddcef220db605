//! Small disk: a file system in a file, mounted, so that it can be filled apart.
//! Owns: the file, its mount, and another file in it that takes all space.
//! Never: leaves it mounted, whatever became of the scenario.
//! Invariant: the loop device goes with the mount.
//! Source: mount(8), option `loop`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::{E2eError, doing};
use crate::process::{capture, run};

const TOOL_PATIENCE: Duration = Duration::from_secs(60);
/// What the file's name ends with; the rest is the place of its mount.
pub const DISK_SUFFIX: &str = "disk";
/// The file that takes all space.
const HOG: &str = "hog";

/// A file system in a file, mounted.
#[derive(Debug)]
pub struct SmallDisk {
    image: PathBuf,
    /// Where it is mounted.
    pub at: PathBuf,
}

impl SmallDisk {
    /// Makes one of `bytes` in the file `NAME.disk` of a directory and mounts it there as `NAME`.
    pub fn mount(dir: &Path, name: &str, bytes: u64) -> Result<SmallDisk, E2eError> {
        let at = dir.join(name);
        let disk = SmallDisk { image: at.with_extension(DISK_SUFFIX), at };
        doing(disk.at.display(), std::fs::create_dir(&disk.at))?;
        let file = doing(disk.image.display(), File::create(&disk.image))?;
        doing(disk.image.display(), file.set_len(bytes))?;
        capture(
            Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk.image),
            TOOL_PATIENCE,
        )?;
        let mut mount = Command::new("mount");
        capture(mount.args(["-o", "loop"]).arg(&disk.image).arg(&disk.at), TOOL_PATIENCE)?;
        Ok(disk)
    }

    /// Bytes that processes of root may still take.
    pub fn left(&self) -> Result<u64, E2eError> {
        let space = doing(self.at.display(), rustix::fs::statvfs(&self.at).map_err(Into::into))?;
        Ok(space.f_bfree * space.f_frsize)
    }

    /// Takes all that is left. Returns how much that was.
    pub fn hog(&self) -> Result<u64, E2eError> {
        let path = self.at.join(HOG);
        let file = doing(path.display(), File::create(&path))?;
        let (mut taken, mut step) = (0, 256 << 20);
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), taken, step) {
                Ok(()) => taken += step,
                Err(_) => step /= 2,
            }
        }
        Ok(taken)
    }

    /// Gives back what [`SmallDisk::hog`] took.
    pub fn end_hog(&self) -> Result<(), E2eError> {
        let path = self.at.join(HOG);
        doing(path.display(), std::fs::remove_file(&path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached even if a process still has a file of it open; the loop device goes with it.
        let unmounted = run(Command::new("umount").arg(&self.at))
            .or_else(|_| run(Command::new("umount").arg("-l").arg(&self.at)));
        let removed = unmounted.is_ok().then(|| std::fs::remove_file(&self.image));
        if !matches!(removed, Some(Ok(()))) {
            eprintln!("    {} is left behind", self.image.display());
        }
    }
}
