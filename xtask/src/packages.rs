//! Packages: the Debian packages that the tests on real processes need.
//! Owns: the list of packages with the program that shows whether one is there.
//! Never: installs anything unless it runs as root on Debian.
//! Invariant: package lists are fetched only when something is missing.
//! Source: none.

use std::path::Path;
use std::process::Command;

use crate::guest;
use crate::process::{on_path, run};

/// What the tests need: a package, and a program that it brings, or a file by its path.
const NEEDED: &[(&str, &str)] = &[
    ("libnfs-utils", "nfs-ls"),
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("cpio", "cpio"),
    ("kmod", "depmod"),
    ("e2fsprogs", "mke2fs"),
    ("xz-utils", "xz"),
    ("util-linux", "setpriv"),
    ("util-linux", "nsenter"),
    ("mount", "mount"),
    ("iproute2", "ip"),
    ("git", "git"),
    ("make", "make"),
    ("binutils", "ar"),
    ("sqlite3", "sqlite3"),
    ("strace", "strace"),
    ("tcc", "tcc"),
    ("libacl1-dev", "/usr/include/sys/acl.h"),
];

/// Whether this system's packages are Debian's.
pub fn on_debian() -> bool {
    Path::new("/etc/debian_version").exists() && on_path("apt-get")
}

/// The packages whose programs are missing.
fn missing() -> Vec<&'static str> {
    let present = |program: &str| match program {
        // Another busybox package brings a program of the same name that needs a C library.
        "busybox" => guest::static_busybox().is_some(),
        program => on_path(program),
    };
    NEEDED.iter().filter(|(_, program)| !present(program)).map(|(package, _)| *package).collect()
}

/// Installs what is missing when that is possible; otherwise says why it is not.
pub fn install() -> Result<(), String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !on_debian() {
        return Err(format!("not Debian, and these are missing: {list}"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(format!("not root; as root: apt-get install {list}"));
    }
    println!("    installing {list}");
    let mut update = Command::new("apt-get");
    update.args(["update", "-qq"]);
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
    for command in [&mut update, &mut install] {
        command.env("DEBIAN_FRONTEND", "noninteractive");
        run(command).map_err(|error| error.to_string())?;
    }
    let still = self::missing();
    if still.is_empty() { Ok(()) } else { Err(format!("still missing: {}", still.join(" "))) }
}

/// Says which of the named programs is missing, if any.
pub fn lacks(programs: &[&str]) -> Option<String> {
    let absent: Vec<&str> = programs.iter().copied().filter(|program| !on_path(program)).collect();
    (!absent.is_empty()).then(|| format!("missing: {}", absent.join(", ")))
}
