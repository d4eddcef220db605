//! Full disk: a group whose file system runs out of space, by others or by itself.
//! Owns: who fills the disk, and what must work on it all the same.
//! Never: fills a file system of others; it makes a small one for the scenario.
//! Invariant: everything here is bounded in number or time.
//! Source: docs/protocol.md, rule 13: running out is an outcome, not a crash.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::group::{Group, GroupStatus};
use super::raw::{Action, Handle, RawClient};
use super::small_disk::SmallDisk;
use super::{Context, E2eError};

/// Size of the file system that all servers share.
const DISK_BYTES: u64 = 1536 << 20;
const MIB: usize = 1 << 20;
/// MiB that one file gets.
const FILE_MIB: u64 = 16;
/// More MiB than the file system has.
const FILL_MIB_MAX: u64 = 2048;
/// More links than the metadata of so small a file system can hold.
const LINKS_MAX: u64 = 200_000;
/// Clients that make links at once.
const LINKERS: u64 = 8;
/// Bytes of a link's target: close to the longest, so that metadata fills quickly.
const TARGET_BYTES: usize = 4000;
/// How long room may take to come back once it was made.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

const OK: u32 = 0;
/// NFS3ERR_NOSPC.
const NO_SPACE: u32 = 28;
/// NFS3ERR_JUKEBOX: nothing was done; a client asks again with a new call.
const TRY_LATER: u32 = 10_008;

/// The status of a new call, made again while the server puts it off.
fn status(client: &mut RawClient, action: Action<'_>) -> Result<u32, E2eError> {
    loop {
        match client.perform(action)?.status()? {
            TRY_LATER => std::thread::sleep(PAUSE),
            status => return Ok(status),
        }
    }
}

fn expect(client: &mut RawClient, action: Action<'_>, wanted: u32) -> Result<(), E2eError> {
    let seen = status(client, action)?;
    if seen == wanted {
        return Ok(());
    }
    let mut action = format!("{action:?}");
    action.truncate(60);
    Err(E2eError::Wrong(format!("{action}: status {seen}, not {wanted}")))
}

/// Tries until it succeeds; any failure but a lack of space is one. Returns how long that took.
fn until_room(client: &mut RawClient, action: Action<'_>) -> Result<Duration, E2eError> {
    let begun = Instant::now();
    loop {
        match status(client, action)? {
            OK => return Ok(begun.elapsed()),
            NO_SPACE if begun.elapsed() < ROOM_PATIENCE => std::thread::sleep(PAUSE),
            other => {
                let what = "room after it was made".into();
                let seen = format!("status {other}");
                return Err(E2eError::NotReached { what, patience: ROOM_PATIENCE, seen });
            }
        }
    }
}

fn create(client: &mut RawClient, name: &str) -> Result<Handle, E2eError> {
    expect(client, Action::CreateGuarded(name), OK)?;
    client.handle_of(name)
}

/// Writes file after file until there is no space. Returns the MiB written.
fn fill(client: &mut RawClient, prefix: &str) -> Result<u64, E2eError> {
    let mut file = Handle::new();
    for written in 0..FILL_MIB_MAX {
        if written % FILE_MIB == 0 {
            let name = format!("{prefix}{}", written / FILE_MIB);
            if status(client, Action::CreateGuarded(&name))? == NO_SPACE {
                return Ok(written);
            }
            file = client.handle_of(&name)?;
        }
        let data: Vec<u8> = (0..MIB as u64).map(|i| (i * 31 + written * 7) as u8).collect();
        let offset = written % FILE_MIB * MIB as u64;
        match status(client, Action::Write(&file, offset, &data))? {
            OK => {}
            NO_SPACE => return Ok(written),
            other => return Err(E2eError::Wrong(format!("WRITE: status {other}"))),
        }
    }
    Err(E2eError::Wrong(format!("{FILL_MIB_MAX} MiB fit {DISK_BYTES} bytes")))
}

/// Makes links from several clients until none can be made. Returns how many there are of each client.
fn fill_names(address: SocketAddr) -> Result<Vec<u64>, E2eError> {
    let target = "x".repeat(TARGET_BYTES);
    let left = AtomicU64::new(LINKS_MAX);
    let link = |who: u64| -> Result<u64, E2eError> {
        let mut client = RawClient::connect(address)?;
        for number in 0.. {
            if left.fetch_sub(1, Ordering::Relaxed) == 0 {
                return Err(E2eError::Wrong(format!("{LINKS_MAX} links fit so small a disk")));
            }
            match status(&mut client, Action::SymbolicLink(&link_name(who, number), &target))? {
                OK => {}
                NO_SPACE => return Ok(number),
                other => return Err(E2eError::Wrong(format!("SYMLINK: status {other}"))),
            }
        }
        unreachable!("numbers do not end")
    };
    each_linker(link)
}

/// Removes those links.
fn remove_names(address: SocketAddr, counts: &[u64]) -> Result<(), E2eError> {
    let remove = |who: u64| -> Result<(), E2eError> {
        let mut client = RawClient::connect(address)?;
        (0..counts[who as usize])
            .try_for_each(|number| expect(&mut client, Action::Remove(&link_name(who, number)), OK))
    };
    each_linker(remove).map(|_| ())
}

fn link_name(who: u64, number: u64) -> String {
    format!("link-{who}-{number}")
}

fn each_linker<T: Send>(
    work: impl Fn(u64) -> Result<T, E2eError> + Sync,
) -> Result<Vec<T>, E2eError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..LINKERS).map(|who| scope.spawn(move || work(who))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        joined.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Every server is the process that it was, and in its role.
fn still_up(group: &Group<'_>, servers: &[(String, Pid)], when: &str) -> Result<(), E2eError> {
    group.wait_until(&format!("all in place {when}"), ROOM_PATIENCE, GroupStatus::settled)?;
    let now = group.servers()?;
    if now == servers {
        return Ok(());
    }
    Err(E2eError::Wrong(format!("{when}: processes {now:?}, not {servers:?}")))
}

fn free_mib(client: &mut RawClient) -> Result<u64, E2eError> {
    let (_, free) = client.perform(Action::Space)?.space()?;
    Ok(free >> 20)
}

/// A copy dies and comes back on the full disk. Returns the processes from then on.
fn restart_one(context: &Context<'_>, group: &Group<'_>) -> Result<Vec<(String, Pid)>, E2eError> {
    let (name, begun) = ("b", Instant::now());
    let server = group.server(name)?;
    group.signal(server, Signal::KILL)?;
    group.wait_gone(name, server)?;
    group.wait_settled()?;
    context.say(format!("{name} died and was back on the full disk after {:.1?}", begun.elapsed()));
    group.servers()
}

/// First another process takes all the space that there is, then the group's own files do.
pub fn full_disk_refuses_writes_and_lets_removes_go_on(
    context: &Context<'_>,
) -> Result<(), E2eError> {
    let disk = SmallDisk::mount(&context.work, "mounted", DISK_BYTES)?;
    let group = Group::start_in(context, 2, disk.at.join("group"))?;
    group.wait_settled()?;
    let mut client = RawClient::connect(group.nfs)?;
    let kept = create(&mut client, "kept")?;
    let block = [7; 4096];
    until_room(&mut client, Action::Write(&kept, 0, &block))?;
    let (left, free) = (disk.left()? >> 20, free_mib(&mut client)?);
    context.say(format!("{left} MiB left on the disk, {free} MiB free as clients see it"));
    filled_by_others(context, &disk, &group, &mut client, &kept)?;
    group.verify()?;
    let servers = group.servers()?;
    filled_by_itself(context, &disk, &mut client)?;
    still_up(&group, &servers, "after the group filled the disk")?;
    group.verify()
}

fn filled_by_others(
    context: &Context<'_>,
    disk: &SmallDisk,
    group: &Group<'_>,
    client: &mut RawClient,
    kept: &[u8],
) -> Result<(), E2eError> {
    let servers = group.servers()?;
    let hog = disk.hog()? >> 20;
    let written = fill(client, "squeezed")?;
    context.say(format!(
        "another process took {hog} MiB; {written} MiB were written until NFS3ERR_NOSPC, {} MiB free as clients see it",
        free_mib(client)?
    ));
    let data = vec![1; MIB];
    expect(client, Action::Write(kept, 0, &data), NO_SPACE)?;
    let begun = Instant::now();
    let names = fill_names(group.nfs)?;
    context.say(format!(
        "{} links were made until NFS3ERR_NOSPC, in {:.1?}",
        names.iter().sum::<u64>(),
        begun.elapsed()
    ));
    expect(client, Action::CreateGuarded("one-more"), NO_SPACE)?;
    // A rename takes as much as it gives back; clients remove files that are still open by one.
    expect(client, Action::Rename("kept", "another-name"), OK)?;
    expect(client, Action::Rename("another-name", "kept"), OK)?;
    expect(client, Action::SetLength(kept, 10 << 20), NO_SPACE)?;
    still_up(group, &servers, "while the disk is full")?;
    let servers = restart_one(context, group)?;
    expect(client, Action::SetLength(kept, 100), OK)?;
    expect(client, Action::Remove("squeezed0"), OK)?;
    let begun = Instant::now();
    remove_names(group.nfs, &names)?;
    context.say(format!("all of them were removed on the full disk, in {:.1?}", begun.elapsed()));
    let waited = until_room(client, Action::CreateGuarded("one-more"))?;
    context.say(format!("a name could be made again after {waited:.1?}, the disk still full"));
    still_up(group, &servers, "while the disk is full")?;
    disk.end_hog()?;
    let waited = until_room(client, Action::Write(kept, 0, &data))?;
    context.say(format!(
        "the other process gave its space back: a write of 1 MiB went through after {waited:.1?}, {} MiB free",
        free_mib(client)?
    ));
    Ok(())
}

fn filled_by_itself(
    context: &Context<'_>,
    disk: &SmallDisk,
    client: &mut RawClient,
) -> Result<(), E2eError> {
    let begun = Instant::now();
    let written = fill(client, "full")?;
    context.say(format!(
        "{written} MiB of its own fill the disk, in {:.1?}; {} MiB left on it, {} MiB free as clients see it",
        begun.elapsed(),
        disk.left()? >> 20,
        free_mib(client)?
    ));
    let file = client.handle_of("full0")?;
    let data = vec![2; MIB];
    expect(client, Action::Write(&file, 0, &data), NO_SPACE)?;
    let files = written.div_ceil(FILE_MIB);
    for number in 1..files {
        expect(client, Action::Remove(&format!("full{number}")), OK)?;
    }
    let waited = until_room(client, Action::Write(&file, 0, &data))?;
    let again = fill(client, "again")?;
    context.say(format!(
        "{} files were removed; a write went through after {waited:.1?}, and {again} MiB fit again",
        files - 1
    ));
    if again < written / 2 {
        return Err(E2eError::Wrong(format!("{again} MiB fit after {written} MiB were removed")));
    }
    Ok(())
}
