//! Linux's own NFS client, in a guest with Debian's kernel.
//! Owns: the scripts that run in the guest.
//! Never: mounts anything on the host.
//! Invariant: the group runs on the host; the guest reaches it through the emulator's network.
//! Source: nfs(5) for the mount options.

use std::time::Duration;

use rustix::process::Signal;

use super::group::Group;
use super::{Context, E2eError};
use crate::guest::Guest;

/// A whole scenario in an emulated machine that shares two cores with the servers.
const PATIENCE: Duration = Duration::from_secs(240);

/// How the guest mounts the group, without a helper program that would fill in the rest.
pub fn mount_options(group: &Group<'_>) -> String {
    let port = group.nfs.port();
    format!(
        "vers=3,proto=tcp,addr=10.0.2.2,port={port},mountport={port},\
         mountvers=3,mountproto=tcp,nolock"
    )
}

/// Bash that mounts the group at /mnt/nfs and stops at the first error.
fn preamble(group: &Group<'_>) -> String {
    let options = mount_options(group);
    format!("set -euo pipefail\nmount -i -t nfs -o {options} 10.0.2.2:/ /mnt/nfs\n")
}

/// Copies a tree in and out, compares, lists, renames, removes; reads as an ordinary user too.
const TREE: &str = r#"
step() { echo "$SECONDS s: $*"; }
cd /mnt/nfs
step copy in
cp -a "$SOURCE" tree
diff -r "$SOURCE" tree
step mount again and copy out
cd /
umount /mnt/nfs
mount_again
mkdir /tmp/out
cp -a /mnt/nfs/tree /tmp/out/tree
diff -r "$SOURCE" /tmp/out/tree
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
[ "$(sums "$SOURCE")" = "$(sums /mnt/nfs/tree)" ]
cd /mnt/nfs
step links, holes, modes and times
ln -s tree/store symbolic
[ "$(readlink symbolic)" = tree/store ]
echo one > linked
ln linked linked.too
[ "$(stat -c %h linked)" = 2 ]
truncate -s 10M hole
echo end >> hole
[ "$(stat -c %s hole)" = 10485764 ]
[ "$(head -c 10485760 hole | tr -d '\0' | wc -c)" = 0 ]
touch -d '2001-02-03 04:05:06.789 UTC' dated
[ "$(TZ=UTC stat -c %y dated)" = "2001-02-03 04:05:06.789000000 +0000" ]
mkfifo pipe
[ -p pipe ]
step many names
mkdir many
(cd many && seq -f 'file-%g' 1 1000 | xargs touch)
[ "$(ls many | wc -l)" = 1000 ]
[ "$(ls -f many | sort -u | wc -l)" = 1002 ]
step rename
for i in $(seq 1 50); do mv many/file-$i many/moved-$i; done
mv many/moved-1 linked
[ ! -s linked ]
mkdir full empty
touch full/x
if mv -T empty full 2>/dev/null; then exit 41; fi
mv many/file-51 full/
step an ordinary user
mkdir -m 1777 shared
mkdir -m 700 private
as_user() { setpriv --reuid 1000 --regid 1000 --clear-groups "$@"; }
as_user sha256sum tree/store/Cargo.toml >/dev/null
as_user sh -c 'echo mine > shared/mine && chmod 400 shared/mine && cat shared/mine' >/dev/null
[ "$(stat -c %u:%g shared/mine)" = 1000:1000 ]
if as_user ls private 2>/dev/null; then exit 42; fi
if as_user touch not-allowed 2>/dev/null; then exit 43; fi
if as_user mv shared/mine many/ 2>/dev/null; then exit 44; fi
if command -v git >/dev/null; then
  step git as an ordinary user
  as_user mkdir shared/repository
  git_as_user() { as_user env HOME=/nowhere git -C shared/repository "$@"; }
  git_as_user init -q
  as_user cp -r tree/wire shared/repository/
  git_as_user add -A
  git_as_user -c user.name=one -c user.email=one@example.org commit -q -m first
  git_as_user fsck --strict --no-progress
  git_as_user gc -q
  [ -z "$(git_as_user status --porcelain)" ]
fi
step remove
if rmdir many 2>/dev/null; then exit 45; fi
rm -r tree many full empty shared private
rm symbolic linked linked.too hole dated pipe
[ -z "$(ls -A)" ]
df /mnt/nfs >/dev/null
cd /
umount /mnt/nfs
"#;

/// A tree of sources goes in, comes out the same, and is taken apart again.
pub fn copies_a_source_tree(context: &Context<'_>) -> Result<(), E2eError> {
    let group = Group::start(context)?;
    group.wait_settled()?;
    let source = context.workspace.root.join("crates");
    let mount = preamble(&group);
    let again = mount.replace("set -euo pipefail\n", "mount_again() {\n") + "}\n";
    let script = format!("{mount}{again}SOURCE='{}'\n{TREE}", source.display());
    let guest = Guest::boot(context.kit()?, None, &context.work.join("job"), &script)?;
    context.watch("the guest's console", &guest.console);
    guest.finish(PATIENCE)?;
    group.verify()
}

/// Rounds of making, renaming and checking files; each round says that it has begun.
const ROUNDS: &str = r#"
cd /mnt/nfs
for round in $(seq 1 $ROUNDS); do
  echo "round $round"
  mkdir round-$round
  for i in $(seq 1 20); do
    echo "$round $i" > round-$round/new
    mv round-$round/new round-$round/file-$i
  done
  seq 1 20000 > round-$round/long
done
echo 3 > /proc/sys/vm/drop_caches
for round in $(seq 1 $ROUNDS); do
  for i in $(seq 1 20); do
    [ "$(cat round-$round/file-$i)" = "$round $i" ]
  done
  seq 1 20000 | cmp - round-$round/long
  [ "$(ls round-$round | wc -l)" = 21 ]
done
cd /
umount /mnt/nfs
"#;

/// The primary is killed in the middle of the client's work; the client only waits a little.
pub fn rides_out_a_killed_primary(context: &Context<'_>) -> Result<(), E2eError> {
    let group = Group::start(context)?;
    group.wait_settled()?;
    let kills = context.times(2, 10);
    let script = format!("{}ROUNDS={}\n{ROUNDS}", preamble(&group), kills * 4);
    let guest = Guest::boot(context.kit()?, None, &context.work.join("job"), &script)?;
    context.watch("the guest's console", &guest.console);
    for kill in 0..kills {
        let round = format!("round {}", kill * 4 + 2);
        let begun = guest.console.wait_for(PATIENCE, |line| line.trim() == round);
        if begun.is_none() {
            let (what, seen) = (format!("the guest in {round}"), guest.console.text());
            return Err(E2eError::NotReached { what, patience: PATIENCE, seen });
        }
        let primary = group.wait_settled()?.primary.unwrap_or_default();
        group.signal(group.server(&primary)?, Signal::KILL)?;
    }
    guest.finish(PATIENCE)?;
    group.wait_settled()?;
    group.verify()
}
