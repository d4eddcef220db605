//! Guest: Debian's stock kernel in an emulator, for the tests that need the real NFS client or a
//! machine whose power can be cut.
//! Owns: the kept kernel and initial file system, and one running emulator per `Guest`.
//! Never: writes to the host's file system from inside the guest, apart from a disk image given
//! to it; needs root or hardware help from the host.
//! Invariant: the guest ends with the line `guest-exit N` on its console, or it did not end well.
//! Source: Linux's initramfs, 9p and overlayfs documentation.
//!
//! The host's root file system is the guest's, read-only over 9p with a memory file system laid
//! over it, so that a guest runs whatever is built and installed on the host. The host's
//! 127.0.0.1 is 10.0.2.2 inside.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{ProcessError, Running, Transcript, capture, find_program, indented};

/// The modules the guest needs; what they depend on comes along. ext4 asks for its checksum by
/// name, so the table of dependencies does not tell.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "9p",
    "9pnet_virtio",
    "overlay",
    "crc32c_generic",
    "ext4",
    "nfsv3",
];
/// Raised when the recipe below changes, so that a kept initial file system is made again.
const RECIPE: u32 = 1;
/// How long fetching or unpacking the kernel may take.
const PREPARE_PATIENCE: Duration = Duration::from_secs(300);
/// The guest's memory, in MiB: three servers and their logs fit.
const MEMORY_MIB: u32 = 3072;
/// What the guest prints last, followed by the script's exit status.
pub const EXIT_WORD: &str = "guest-exit ";

/// The emulator's control socket, in the job's directory, and how it asks for a command.
const CONTROL: &str = "control";
const PROMPT: &[u8] = b"(qemu) ";
const CONTROL_PATIENCE: Duration = Duration::from_secs(10);
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// The first program of the guest: mounts everything, runs `/job/script`, powers off.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
options=trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose
mkdir -p /host /memory /system
mount -t 9p -o $options host /host
mount -t tmpfs tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /system
mkdir -p /system/job /system/mnt/nfs /system/mnt/disk
mount -t 9p -o $options job /system/job
for each in proc sys dev; do mount --bind /$each /system/$each; done
chroot /system /bin/bash /job/script
echo "guest-exit $?"
sync
poweroff -f
"#;

/// Why no guest could be had.
#[derive(Debug)]
pub enum GuestError {
    /// A program that prepares it failed.
    Process(ProcessError),
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program or package is not here.
    Missing(String),
    /// The guest did not print its exit line in time, or stopped without it.
    NoExit {
        /// How long it had.
        patience: Duration,
        /// What the emulator complained about.
        complaints: String,
    },
    /// The emulator refused a command.
    Emulator(String),
    /// The script in the guest ended with another status than 0.
    Script(String),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestError::Process(error) => error.fmt(f),
            GuestError::Io { path, source } => write!(f, "{}: {source}", path.display()),
            GuestError::Missing(what) => write!(f, "missing: {what}"),
            GuestError::NoExit { patience, complaints } => {
                write!(
                    f,
                    "the guest stopped early or took over {patience:?}{}",
                    indented(complaints)
                )
            }
            GuestError::Emulator(complaint) => write!(f, "the emulator refused: {complaint}"),
            GuestError::Script(line) => write!(f, "the script in the guest failed: {line}"),
        }
    }
}

impl std::error::Error for GuestError {}

impl From<ProcessError> for GuestError {
    fn from(error: ProcessError) -> GuestError {
        GuestError::Process(error)
    }
}

/// Attaches the path to an error of the system.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, GuestError> {
    result.map_err(|source| GuestError::Io { path: path.to_owned(), source })
}

/// A kernel and an initial file system, ready to boot.
#[derive(Debug)]
pub struct Kit {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Kit {
    /// Uses what `cache` keeps from an earlier run, or fetches Debian's kernel and makes both.
    pub fn prepare(cache: &Path) -> Result<Kit, GuestError> {
        let kit = Kit { kernel: cache.join("vmlinuz"), initrd: cache.join("initrd") };
        let stamp = cache.join("recipe");
        let recipe = format!("{RECIPE} {}", MODULES.join(" "));
        let kept = std::fs::read_to_string(&stamp).is_ok_and(|kept| kept == recipe);
        if kept && kit.kernel.exists() && kit.initrd.exists() {
            return Ok(kit);
        }
        at(cache, std::fs::create_dir_all(cache))?;
        let unpacked = fetch_kernel(cache)?;
        let version = only_entry(&unpacked.join("lib/modules"))?;
        let image = unpacked.join("boot").join(format!("vmlinuz-{}", name_of(&version)));
        at(&image, std::fs::copy(&image, &kit.kernel))?;
        make_initrd(cache, &unpacked, &version, &kit.initrd)?;
        for scratch in [&unpacked, &cache.join("tree")] {
            at(scratch, std::fs::remove_dir_all(scratch))?;
        }
        at(&stamp, std::fs::write(&stamp, recipe))?;
        Ok(kit)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A command found also where only root's path looks.
fn tool(name: &str) -> Result<Command, GuestError> {
    find_program(name).map(Command::new).ok_or_else(|| GuestError::Missing(name.to_owned()))
}

/// The one entry of a directory.
fn only_entry(directory: &Path) -> Result<PathBuf, GuestError> {
    let mut entries = at(directory, std::fs::read_dir(directory))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.path()),
        _ => Err(GuestError::Missing(format!("exactly one entry in {}", directory.display()))),
    }
}

/// Fetches and unpacks Debian's kernel package into `cache/kernel`.
fn fetch_kernel(cache: &Path) -> Result<PathBuf, GuestError> {
    let mut query = tool("apt-cache")?;
    query.args(["depends", "--important", "linux-image-amd64"]);
    let answer = capture(&mut query, PREPARE_PATIENCE)?;
    let package = answer
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or_else(|| GuestError::Missing("a kernel package".into()))?;
    let (download, unpacked) = (cache.join("download"), cache.join("kernel"));
    for fresh in [&download, &unpacked] {
        // Left from an interrupted run, or not there.
        let _ = std::fs::remove_dir_all(fresh);
        at(fresh, std::fs::create_dir_all(fresh))?;
    }
    capture(tool("apt-get")?.args(["download", package]).current_dir(&download), PREPARE_PATIENCE)?;
    let archive = only_entry(&download)?;
    capture(tool("dpkg-deb")?.arg("-x").arg(&archive).arg(&unpacked), PREPARE_PATIENCE)?;
    at(&download, std::fs::remove_dir_all(&download))?;
    Ok(unpacked)
}

/// Makes the initial file system: busybox, the modules in loading order, and `INIT`.
fn make_initrd(
    cache: &Path,
    unpacked: &Path,
    version: &Path,
    initrd: &Path,
) -> Result<(), GuestError> {
    let tree = cache.join("tree");
    // Left from an interrupted run, or not there.
    let _ = std::fs::remove_dir_all(&tree);
    for directory in ["bin", "modules", "proc", "sys", "dev"] {
        let path = tree.join(directory);
        at(&path, std::fs::create_dir_all(&path))?;
    }
    let busybox = static_busybox().ok_or(GuestError::Missing("busybox-static".into()))?;
    at(&busybox, std::fs::copy(&busybox, tree.join("bin/busybox")))?;
    capture(tool("depmod")?.arg("-b").arg(unpacked).arg(name_of(version)), PREPARE_PATIENCE)?;
    let table = version.join("modules.dep");
    let dependencies = at(&table, std::fs::read_to_string(&table))?;
    let mut order = String::new();
    for module in loading_order(&dependencies, MODULES) {
        let target = tree.join("modules").join(name_of(Path::new(module)));
        at(&target, std::fs::copy(version.join(module), &target))?;
        let plain = target.to_string_lossy().ends_with(".ko");
        if !plain {
            capture(tool("xz")?.args(["-d", "-f"]).arg(&target), PREPARE_PATIENCE)?;
        }
        order.push_str(name_of(&target).trim_end_matches(".xz"));
        order.push('\n');
    }
    let (order_file, init) = (tree.join("modules/order"), tree.join("init"));
    at(&order_file, std::fs::write(&order_file, order))?;
    at(&init, std::fs::write(&init, INIT))?;
    at(&init, std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)))?;
    let archive = "find . | cpio --quiet -o -H newc | gzip -1 > \"$0\"";
    let mut pack = Command::new("sh");
    pack.args(["-c", archive]).arg(initrd).current_dir(&tree);
    capture(&mut pack, PREPARE_PATIENCE)?;
    Ok(())
}

/// The files of the wanted modules, each after all that it depends on, from `modules.dep`.
///
/// A module that is not in the table is part of the kernel itself.
fn loading_order<'a>(table: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let stem = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).to_owned()
    };
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let line = table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| stem(path) == *name);
        let Some((path, needs)) = line else { continue };
        // The table lists what a module needs nearest first, so loading goes backwards.
        for file in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// A busybox that runs where there is no C library.
pub fn static_busybox() -> Option<PathBuf> {
    let path = find_program("busybox")?;
    let program = std::fs::read(&path).ok()?;
    let interpreter = b"/ld-linux";
    let dynamic = program.windows(interpreter.len()).any(|window| window == interpreter);
    (!dynamic).then_some(path)
}

/// A running guest; dropped, its power is cut.
#[derive(Debug)]
pub struct Guest {
    emulator: Running,
    /// The directory given as its job, where the emulator's control socket lies too.
    job: File,
    /// What it prints on its console.
    pub console: Transcript,
}

impl Guest {
    /// Boots a machine that runs `script`, a text for bash, as root; `job` is a directory for it.
    ///
    /// `disk` is a raw image that becomes `/dev/vda`. What the guest flushed survives `cut_power`;
    /// what it did not flush was in its memory and is gone.
    pub fn boot(
        kit: &Kit,
        disk: Option<&Path>,
        job: &Path,
        script: &str,
    ) -> Result<Guest, GuestError> {
        at(job, std::fs::create_dir_all(job))?;
        let file = job.join("script");
        at(&file, std::fs::write(&file, script))?;
        let emulator = Running::start(&mut command(kit, disk, job)?)?;
        let console = emulator.stdout.clone();
        let job = at(job, File::open(job))?;
        Ok(Guest { emulator, job, console })
    }

    /// Lets TCP connections to a port of the host's 127.0.0.1 into the guest from now on.
    ///
    /// Call it when the guest listens. The emulator accepts a connection at once and keeps what it
    /// is sent until the guest takes it; to a guest that still boots it would deliver requests
    /// long after their client gave the connection up, which no network does.
    pub fn forward(&self, host: u16, inside: u16) -> Result<(), GuestError> {
        // The path through the descriptor is short enough for a socket's address.
        let path = format!("/proc/self/fd/{}/{CONTROL}", self.job.as_raw_fd());
        let path = Path::new(&path);
        let mut control = at(path, UnixStream::connect(path))?;
        at(path, control.set_read_timeout(Some(CONTROL_PATIENCE)))?;
        at(path, read_to_prompt(&mut control))?;
        let command = format!("hostfwd_add net tcp:127.0.0.1:{host}-:{inside}\n");
        at(path, control.write_all(command.as_bytes()))?;
        let answer = at(path, read_to_prompt(&mut control))?;
        // The command is echoed on the first line; a complaint would follow on the next.
        match answer.lines().nth(1) {
            None => Ok(()),
            Some(complaint) => Err(GuestError::Emulator(complaint.to_owned())),
        }
    }

    /// Waits for the script's end; an error unless it ended with status 0.
    pub fn finish(mut self, patience: Duration) -> Result<(), GuestError> {
        let line = self.console.wait_for(patience, |line| line.contains(EXIT_WORD));
        let Some(line) = line else {
            let complaints = self.emulator.stderr.text();
            return Err(GuestError::NoExit { patience, complaints });
        };
        let status = line.split(EXIT_WORD).nth(1).unwrap_or_default().trim();
        if status != "0" {
            return Err(GuestError::Script(line));
        }
        self.emulator.wait(Duration::from_secs(30))?;
        Ok(())
    }

    /// Cuts the power: the emulator is killed and the guest's memory is gone.
    pub fn cut_power(mut self) {
        self.emulator.kill();
    }
}

/// What the emulator's control socket says up to its next prompt.
fn read_to_prompt(control: &mut UnixStream) -> io::Result<String> {
    let mut said = Vec::new();
    while !said.ends_with(PROMPT) {
        let mut byte = [0];
        control.read_exact(&mut byte)?;
        said.extend_from_slice(&byte);
        if said.len() > CONTROL_BYTES_MAX {
            return Err(io::Error::other("no prompt"));
        }
    }
    said.truncate(said.len() - PROMPT.len());
    Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// The emulator's command line.
fn command(kit: &Kit, disk: Option<&Path>, job: &Path) -> Result<Command, GuestError> {
    let share = |path: &str, tag: &str| {
        // A comma in a path is doubled, as the emulator's option syntax wants.
        let path = path.replace(',', ",,");
        format!("local,path={path},mount_tag={tag},security_model=none,readonly=on,multidevs=remap")
    };
    let mut command = tool("qemu-system-x86_64")?;
    command
        .current_dir(job)
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-monitor", &format!("unix:{CONTROL},server=on,wait=off")])
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(&kit.kernel)
        .arg("-initrd")
        .arg(&kit.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .args(["-netdev", "user,id=net"])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-virtfs", &share("/", "host")])
        .args(["-virtfs", &share(&job.to_string_lossy(), "job")]);
    if let Some(disk) = disk {
        let path = disk.to_string_lossy().replace(',', ",,");
        command.args(["-drive", &format!("file={path},if=virtio,format=raw,cache=writeback")]);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::loading_order;

    #[test]
    fn modules_load_after_what_they_need() {
        let table = "fs/nfs/nfsv3.ko: fs/nfs/nfs.ko net/sunrpc.ko\n\
                     fs/nfs/nfs.ko: net/sunrpc.ko\n\
                     net/sunrpc.ko:\n\
                     fs/9p/9p.ko: net/9p/9pnet.ko\n";
        let order = loading_order(table, &["nfsv3", "built_in", "9p", "nfs"]);
        let expected =
            ["net/sunrpc.ko", "fs/nfs/nfs.ko", "fs/nfs/nfsv3.ko", "net/9p/9pnet.ko", "fs/9p/9p.ko"];
        assert_eq!(order, expected);
    }
}
