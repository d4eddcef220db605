//! Power cut: a whole machine with all servers loses power and boots again.
//! Owns: the disk image that the guest keeps its data on.
//! Never: counts on a clean stop; the emulator is killed.
//! Invariant: what the guest did not flush was only in its memory, and its memory is gone.
//! Source: qemu(1): with `cache=writeback` a guest's flushed writes are in the host's page cache,
//! which outlives the emulator.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::group::free_ports;
use super::load::Load;
use super::{Context, E2eError, doing};
use crate::guest::Guest;
use crate::process::{capture, find_program};

/// The image's size: three servers' logs and two copies fit. The file is sparse.
const DISK_BYTES: u64 = 16 << 30;
/// Booting, starting three servers and forming a view in an emulated machine.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// Operations acknowledged before the power is cut.
const PROGRESS: u64 = 300;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(120);
/// How long the clients wait for the machine to come back.
const CLIENT_PATIENCE: Duration = Duration::from_secs(240);
/// Where NFS is served inside the guest.
const GUEST_PORT: u16 = 2049;

/// Power is cut under load, twice; the same requests are repeated when the machine is back.
pub fn power_cut_nothing_lost(context: &Context<'_>) -> Result<(), E2eError> {
    let disk = context.work.join("disk.raw");
    make_disk(&disk)?;
    let [address, _] = free_ports()?;
    let script = format!("HARP='{}'\nPORT={GUEST_PORT}\n{BOOT}", context.harp().display());
    let boot = || boot(context, &disk, &script, address.port());
    let mut guest = boot()?;
    let load = Load::start(context, address, CLIENT_PATIENCE)?;
    for _ in 0..context.times(2, 10) {
        load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
        guest.cut_power();
        guest = boot()?;
    }
    load.wait_progress(PROGRESS, PROGRESS_PATIENCE)?;
    load.stop()?.check(address)?;
    guest.cut_power();
    Ok(())
}

/// Starts the machine, waits until it serves with equal copies, and lets the clients in.
fn boot(context: &Context<'_>, disk: &Path, script: &str, port: u16) -> Result<Guest, E2eError> {
    let guest = Guest::boot(context.kit()?, Some(disk), &context.work.join("job"), script)?;
    context.watch("the guest's console", &guest.console);
    let serves = |line: &str| line.trim_end() == "copies equal";
    if guest.console.wait_for(READY_PATIENCE, serves).is_none() {
        return Err(E2eError::NotReached {
            what: "the servers in the guest serve, with equal copies".into(),
            patience: READY_PATIENCE,
            seen: "see the console below".into(),
        });
    }
    guest.forward(port, GUEST_PORT)?;
    Ok(guest)
}

/// An empty ext4 file system in a sparse file.
fn make_disk(path: &Path) -> Result<(), E2eError> {
    let image = doing(path.display(), File::create(path))?;
    doing(path.display(), image.set_len(DISK_BYTES))?;
    let program = find_program("mke2fs").ok_or_else(|| E2eError::Wrong("mke2fs is gone".into()))?;
    let mut format = Command::new(program);
    format.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard"]).arg(path);
    capture(&mut format, Duration::from_secs(60))?;
    Ok(())
}

/// What the machine runs at each start: the disk, the group, one comparison of the copies.
const BOOT: &str = r#"
set -eu
mount -t ext4 /dev/vda /mnt/disk
up() { exec "$HARP" up --dir /mnt/disk/group --nfs 0.0.0.0:$PORT --admin 127.0.0.1:8049 "$@"; }
if [ ! -e /mnt/disk/group ]; then
  # Clients come from the network of the emulator, and call as root.
  coproc FIRST { up --allow 10.0.2.0/24; }
  while read -r line <&${FIRST[0]}; do [ "$line" != ready ] || break; done
  kill "$FIRST_PID"
  wait "$FIRST_PID"
  sed -i 's/^squash = "root"/squash = "none"/' /mnt/disk/group/harp.toml
fi
coproc GROUP { up; }
while read -r line <&${GROUP[0]}; do
  echo "$line"
  [ "$line" != ready ] || break
done
"$HARP" verify --dir /mnt/disk/group
echo copies equal
cat <&${GROUP[0]}
"#;
