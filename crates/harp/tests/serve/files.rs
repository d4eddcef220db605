//! Files are got out of a server's directory when nothing runs any more.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use nfs3_client::nfs3_types::nfs3::{Nfs3Option, nfstime3, sattr3, set_atime, set_mtime};
use rustix::process::Signal;

use crate::client::Client;
use crate::deployment::{Deployment, fails, succeeds};

/// Everything below a directory, by path: kind and mode, owner, size, times, device, names, content.
fn look(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            let facts = std::fs::symlink_metadata(&path).expect("is there");
            let content = match facts.file_type() {
                kind if kind.is_dir() => {
                    open.push(path.clone());
                    Vec::new()
                }
                kind if kind.is_file() => std::fs::read(&path).expect("reads"),
                kind if kind.is_symlink() => {
                    std::fs::read_link(&path).expect("reads").as_os_str().as_bytes().to_vec()
                }
                _ => Vec::new(),
            };
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let size = if facts.is_dir() { 0 } else { facts.len() };
            let text = format!(
                "{:o} {}:{} {size} {}.{} {:x} {} {}",
                facts.mode(),
                facts.uid(),
                facts.gid(),
                facts.mtime(),
                facts.mtime_nsec(),
                facts.rdev(),
                if facts.is_dir() { 0 } else { facts.nlink() },
                content.iter().fold(content.len() as u64, |sum, byte| {
                    sum.wrapping_mul(31).wrapping_add((*byte).into())
                }),
            );
            all.insert(name, text);
        }
    }
    all
}

fn dressed(mode: u32, uid: u32, gid: u32, seconds: u32) -> sattr3 {
    let time = nfstime3 { seconds, nseconds: 7 };
    sattr3 {
        mode: Nfs3Option::Some(mode),
        uid: Nfs3Option::Some(uid),
        gid: Nfs3Option::Some(gid),
        atime: set_atime::SET_TO_CLIENT_TIME(time),
        mtime: set_mtime::SET_TO_CLIENT_TIME(time),
        ..sattr3::default()
    }
}

/// A tree with one of each kind, made through NFS.
fn make_tree(client: &mut Client) {
    let root = client.root.clone();
    let dir = client.make_dir(&root, "dir", 0o755).expect("made");
    let deep = client.make_dir(&dir, "deeper", 0o700).expect("made");
    let file = client.make(&deep, "file").expect("made");
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8 | 1).collect();
    client.write(&file, 0, &data).expect("written");
    client.make_name(&file, &root, "another name").expect("linked");
    client.set(&file, dressed(0o750, 1000, 2000, 1_000_000_000)).expect("set");
    // Apart: a change of owner takes this bit away.
    let set_uid = sattr3 { mode: Nfs3Option::Some(0o4750), ..sattr3::default() };
    client.set(&file, set_uid).expect("set");
    let sparse = client.make(&dir, "sparse").expect("made");
    client.write(&sparse, 40 << 20, b"end").expect("written");
    client.write(&sparse, 5 << 20, b"middle").expect("written");
    client.set(&sparse, dressed(0o600, 0, 0, 1_100_000_000)).expect("set");
    client.make(&dir, "empty").expect("made");
    client.make_link(&dir, "link", "../nowhere at all").expect("made");
    client.make_device(&dir, "null").expect("made");
    for number in 0..700 {
        client.make(&deep, &format!("many-{number}")).expect("made");
    }
    client.set(&deep, dressed(0o1711, 5, 6, 1_200_000_000)).expect("set");
    client.set(&dir, dressed(0o750, 7, 8, 1_300_000_000)).expect("set");
}

fn check_tree(dest: &Path) {
    let meta = |name: &str| std::fs::symlink_metadata(dest.join(name)).expect("is there");
    let file = meta("dir/deeper/file");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4750, 1000, 2000));
    assert_eq!((file.mtime(), file.mtime_nsec(), file.atime()), (1_000_000_000, 7, 1_000_000_000));
    assert_eq!((file.nlink(), file.ino()), (2, meta("another name").ino()));
    let data = std::fs::read(dest.join("another name")).expect("reads");
    assert!(
        data.len() == 300_000 && data.iter().zip(0u32..).all(|(b, i)| *b == (i % 253) as u8 | 1)
    );
    let sparse = meta("dir/sparse");
    assert_eq!(sparse.len(), (40 << 20) + 3);
    assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", sparse.blocks());
    let content = std::fs::File::open(dest.join("dir/sparse")).expect("opens");
    for (at, want) in [(5 << 20, &b"middle"[..]), (40 << 20, b"end"), (6 << 20, b"\0\0")] {
        let mut seen = vec![9; want.len()];
        content.read_exact_at(&mut seen, at).expect("reads");
        assert_eq!(seen, want);
    }
    let link = std::fs::read_link(dest.join("dir/link")).expect("a link");
    assert_eq!(link.as_os_str(), "../nowhere at all");
    let null = meta("dir/null");
    assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o600));
    for (name, mode, uid, mtime) in
        [("dir/deeper", 0o1711, 5, 1_200_000_000), ("dir", 0o750, 7, 1_300_000_000)]
    {
        let dir = meta(name);
        assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.mtime()), (mode, uid, mtime), "{name}");
    }
    assert_eq!(std::fs::read_dir(dest.join("dir/deeper")).expect("lists").count(), 701);
}

/// What was written comes out of either copy, whether the image or only the log has it.
#[test]
fn a_copy_gives_its_files_without_its_group() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("left out: owners and devices are root's");
    }
    let mut group = Deployment::start("serve-export", &[]);
    let from = [127, 0, 0, 1].into();
    let mut client = Client::mount(from, group.nfs(0), Some((0, 0))).expect("mounts");
    make_tree(&mut client);
    // All of it in the images, and then some that is only in the logs.
    group.verify();
    let root = client.root.clone();
    let late = client.make(&root, "late").expect("made");
    client.write(&late, 0, b"only in the log").expect("written");
    let text = |path: &Path| path.to_str().expect("a plain path").to_string();
    let (a, b, c) = (group.server_dir(0), group.server_dir(1), group.server_dir(2));
    let place = group.dir.clone();
    let dest = |name: &str| place.join(name);
    let running = fails(&["export", &text(&a), &text(&dest("out"))]);
    assert!(running.contains("stop it first"), "{running}");
    // What a record finds committed is written with it. A checkpoint comes after 5 s.
    for name in ["later", "latest"] {
        std::thread::sleep(Duration::from_millis(200));
        client.make(&root, name).expect("made");
    }
    for server in [2, 1, 0] {
        group.end(server, Signal::KILL);
    }

    for (dir, name) in [(&a, "out-a"), (&b, "out-b")] {
        let said = succeeds(&["export", &text(dir), &text(&dest(name))]);
        assert!(said.contains("are from the log"), "{said}");
        check_tree(&dest(name));
        let late = std::fs::read(dest(name).join("late")).expect("there");
        assert_eq!(late, b"only in the log");
    }
    // What the one log knows to be committed at its end, the other may not.
    let mut looks = [look(&dest("out-a")), look(&dest("out-b"))];
    for look in &mut looks {
        look.retain(|name, _| name != "later" && name != "latest");
    }
    let [one, other] = looks;
    for (name, facts) in &one {
        assert_eq!(Some(facts), other.get(name), "{name}");
    }
    assert_eq!(one.len(), other.len());
    let again = fails(&["export", &text(&a), &text(&dest("out-a"))]);
    assert!(again.contains("not empty"), "{again}");
    assert!(fails(&["export", &text(&c), &text(&dest("out-c"))]).contains("witness"));
    assert!(fails(&["export", "/nowhere", &text(&dest("out-c"))]).contains("no directory"));

    // Without its log, a copy gives what its image holds, and says so.
    std::fs::remove_file(b.join("log/head")).expect("removes");
    let said = succeeds(&["export", &text(&b), &text(&dest("out-image"))]);
    assert!(said.contains("the log adds nothing"), "{said}");
    check_tree(&dest("out-image"));
    assert!(!dest("out-image").join("late").exists());

    // Nothing was changed: the group goes on, and b, whose log is gone, comes back.
    (0..3).for_each(|server| group.start_server(server));
    group.await_roles(&["primary", "backup", "witness"]);
    let mut client = Client::mount(from, group.nfs(1), Some((0, 0))).expect("mounts");
    client.find(&root, "late").expect("there");
    group.verify();

    // A damaged block costs its file that block, and is told; so is what is left out.
    for server in [2, 1, 0] {
        group.end(server, Signal::TERM);
    }
    damage(&b.join("store/data"), b"middle");
    let damaged = fails(&["export", &text(&b), &text(&dest("out-damaged"))]);
    assert!(damaged.contains("1 objects were not copied"), "{damaged}");
    let sparse = std::fs::File::open(dest("out-damaged").join("dir/sparse")).expect("opens");
    let mut end = [0; 3];
    sparse.read_exact_at(&mut end, 40 << 20).expect("reads");
    assert_eq!(&end, b"end");
    let dropped = fails(&["export", &text(&a), &text(&dest("out-mine")), "--drop-owners"]);
    assert!(dropped.contains("1 objects were not copied"), "{dropped}");
    let mine = std::fs::metadata(dest("out-mine").join("dir")).expect("there");
    assert_eq!(mine.uid(), 0);
    assert!(!dest("out-mine").join("dir/null").exists());
}

/// Changes one byte of a block that begins so, wherever it lies below `dir`.
pub fn damage(dir: &Path, begin: &[u8]) {
    let mut changed = 0;
    for entry in std::fs::read_dir(dir).expect("lists") {
        let path = entry.expect("an entry").path();
        let file = std::fs::File::options().read(true).write(true).open(&path).expect("opens");
        let (mut piece, mut at) = (vec![0; 1 << 20], 0);
        while let count @ 1.. = file.read_at(&mut piece, at).expect("reads") {
            for (index, block) in piece[..count].chunks(4096).enumerate() {
                if block.starts_with(begin) {
                    let place = at + index as u64 * 4096;
                    file.write_all_at(&[block[0] ^ 1], place).expect("writes");
                    changed += 1;
                }
            }
            at += count as u64;
        }
    }
    assert!(changed > 0, "no such block");
}
