//! Listing: a large directory read from end to end while entries come and go.
//! Owns: the names in the directory, and counting how often each is shown.
//! Never: asserts a duration; the time per entry is printed, stretch by stretch.
//! Invariant: an entry that is there all along is shown exactly once, any other at most once.
//! Source: RFC 1813, sections 3.3.16 and 3.3.17.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harp_bench::client::{Client, Options};
use harp_bench::pipe::{Completion, Pipe};
use harp_bench::request::{
    CreateHow, DirName, HandleBytes, Listing, Request, Response, SetAttr, Status,
};

use super::group::Group;
use super::{Context, E2eError};

/// The scenario's name.
pub const NAME: &str = "large_directory_is_listed_while_it_changes";

/// Entries that are there, in a short and in a full run.
const ENTRIES: (u32, u32) = (100_000, 1_000_000);
/// Entries that come and go during each listing.
const PASSING: u64 = 10_000;
/// How many of them are there at the same time.
const PASSING_AT_ONCE: u64 = 100;
/// During each listing, one entry in so many is removed that was there before it.
const REMOVED_ONE_IN: usize = 200;
/// At the end all are removed but the last, one in so many.
const KEPT_ONE_IN: u64 = 20;
/// Stretches of a listing whose time per entry is printed.
const STRETCHES: u64 = 10;
const CONNECTIONS: usize = 4;
const CALLS_PER_CONNECTION: usize = 64;
/// Bytes of a reply, as Linux asks for them.
const LIST_BYTES: u32 = 32 << 10;
const LIST_PLUS_BYTES: u32 = 128 << 10;
const TICK: Duration = Duration::from_millis(100);

/// A directory on a server.
#[derive(Clone, Copy)]
struct Directory {
    server: SocketAddr,
    handle: HandleBytes,
    entries: u64,
}

/// Which procedure lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Procedure {
    ReadDir,
    ReadDirPlus,
}

/// What one listing showed.
struct Shown {
    /// How often each of the entries that were there at first was shown.
    entries: Vec<u8>,
    /// How many others were.
    passing: u64,
}

/// Fills the directory, lists it quietly, under change, after a restart, and nearly emptied.
pub fn large_directory(context: &Context<'_>) -> Result<(), E2eError> {
    let mut group = Group::start(context)?;
    group.wait_settled()?;
    let entries = context.times(ENTRIES.0, ENTRIES.1).into();
    let begun = Instant::now();
    let directory = fill(group.nfs, entries)?;
    let seconds = begun.elapsed().as_secs_f64();
    context.say(format_args!("{entries} files made in {seconds:.1} s"));
    let mut removed = Vec::new();
    for (first, procedure) in [(0, Procedure::ReadDir), (1, Procedure::ReadDirPlus)] {
        let quiet = list(context, &directory, procedure, "nothing changes")?;
        expect(&quiet, &removed, &removed)?;
        let before = removed.clone();
        removed.extend((first..entries).step_by(REMOVED_ONE_IN));
        list_under_change(context, &directory, procedure, &before, &removed)?;
    }
    group.stop()?;
    group.resume()?;
    group.wait_settled()?;
    for procedure in [Procedure::ReadDir, Procedure::ReadDirPlus] {
        let quiet = list(context, &directory, procedure, "after a restart")?;
        expect(&quiet, &removed, &removed)?;
    }
    remove_most(context, &directory, &mut removed)?;
    for procedure in [Procedure::ReadDir, Procedure::ReadDirPlus] {
        let quiet = list(context, &directory, procedure, "most was just removed")?;
        expect(&quiet, &removed, &removed)?;
    }
    group.verify()
}

/// Makes the directory and its entries.
fn fill(server: SocketAddr, entries: u64) -> Result<Directory, E2eError> {
    let mut client = connect(server, CONNECTIONS)?;
    let root = client.mount("/").map_err(wrong)?;
    let what = DirName { dir: root.as_slice(), name: b"large" };
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    let handle = match client.call(&Request::MkDir { what, set }).map_err(wrong)?.0 {
        Response::Create { ok: Some(handle), .. } => handle,
        other => return Err(E2eError::Wrong(format!("making the directory: {other:?}"))),
    };
    burst(&mut client, 0..entries, |pipe, number| create(pipe, number, &handle, &entry(number)))?;
    Ok(Directory { server, handle, entries })
}

fn entry(number: u64) -> String {
    format!("entry-{number:07}")
}

fn passing(number: u64) -> String {
    format!("passing-{number:07}")
}

fn create(pipe: &mut Pipe, token: u64, dir: &HandleBytes, name: &str) {
    let what = DirName { dir: dir.as_slice(), name: name.as_bytes() };
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    pipe.submit(token, &Request::Create { what, how: CreateHow::Guarded(set) });
}

fn remove(pipe: &mut Pipe, token: u64, dir: &HandleBytes, name: &str) {
    let what = DirName { dir: dir.as_slice(), name: name.as_bytes() };
    pipe.submit(token, &Request::Remove { what });
}

/// Makes the calls of these numbers, many at a time; each must go well.
fn burst(
    client: &mut Client,
    mut numbers: impl Iterator<Item = u64>,
    submit: impl Fn(&mut Pipe, u64),
) -> Result<(), E2eError> {
    let mut connection = 0;
    while client.outstanding() < CONNECTIONS * CALLS_PER_CONNECTION
        && let Some(number) = numbers.next()
    {
        submit(client.pipe(connection), number);
        connection = (connection + 1) % CONNECTIONS;
    }
    let mut refused = None;
    while client.outstanding() > 0 {
        let on_reply = |pipe: &mut Pipe, completion: Completion<'_>| {
            match completion.status_number() {
                Ok(0) => {}
                outcome => refused = Some(format!("call {}: {outcome:?}", completion.token)),
            }
            if let Some(number) = numbers.next() {
                submit(pipe, number);
            }
        };
        client.turn(TICK, on_reply).map_err(wrong)?;
    }
    refused.map_or(Ok(()), |text| Err(E2eError::Wrong(text)))
}

/// Removes the front of the directory: what the image still shows there is hidden by newer layers.
fn remove_most(
    context: &Context<'_>,
    directory: &Directory,
    removed: &mut Vec<u64>,
) -> Result<(), E2eError> {
    let gone: HashSet<u64> = removed.iter().copied().collect();
    let front = 0..directory.entries - directory.entries / KEPT_ONE_IN;
    let going: Vec<u64> = front.filter(|number| !gone.contains(number)).collect();
    let begun = Instant::now();
    let mut client = connect(directory.server, CONNECTIONS)?;
    let dir = &directory.handle;
    burst(&mut client, going.iter().copied(), |pipe, n| remove(pipe, n, dir, &entry(n)))?;
    let seconds = begun.elapsed().as_secs_f64();
    context.say(format_args!("{} files removed in {seconds:.1} s", going.len()));
    removed.extend(going);
    Ok(())
}

/// Lists again and again until the changes made meanwhile have come to their end.
fn list_under_change(
    context: &Context<'_>,
    directory: &Directory,
    procedure: Procedure,
    before: &[u64],
    after: &[u64],
) -> Result<(), E2eError> {
    let changed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let going = &after[before.len()..];
        let changes = scope.spawn(|| change(directory, going, &changed));
        loop {
            let ended = changes.is_finished();
            let first = changed.load(Ordering::Relaxed);
            let shown = list(context, directory, procedure, "entries come and go")?;
            expect(&shown, before, after)?;
            let meanwhile = changed.load(Ordering::Relaxed) - first;
            context.say(format_args!("{meanwhile} changes meanwhile, {} seen", shown.passing));
            if ended {
                break;
            }
        }
        changes.join().map_err(|_| E2eError::Wrong("the changing client panicked".into()))?
    })
}

/// Lets entries come and go, and takes those of `going` away.
fn change(directory: &Directory, going: &[u64], changed: &AtomicU64) -> Result<(), E2eError> {
    let mut client = connect(directory.server, CONNECTIONS)?;
    let rounds = PASSING / PASSING_AT_ONCE;
    let share = going.len().div_ceil(rounds as usize).max(1);
    let mut going = going.chunks(share);
    let dir = &directory.handle;
    for round in 0..rounds {
        let numbers = round * PASSING_AT_ONCE..(round + 1) * PASSING_AT_ONCE;
        burst(&mut client, numbers.clone(), |pipe, n| create(pipe, n, dir, &passing(n)))?;
        burst(&mut client, numbers, |pipe, n| remove(pipe, n, dir, &passing(n)))?;
        let gone = going.next().unwrap_or_default();
        burst(&mut client, gone.iter().copied(), |pipe, n| remove(pipe, n, dir, &entry(n)))?;
        changed.fetch_add(2 * PASSING_AT_ONCE + gone.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Reads the directory from end to end and prints the time per entry.
fn list(
    context: &Context<'_>,
    directory: &Directory,
    procedure: Procedure,
    when: &str,
) -> Result<Shown, E2eError> {
    let mut client = connect(directory.server, 1)?;
    let mut shown = Shown { entries: vec![0; directory.entries as usize], passing: 0 };
    let stretch = directory.entries / STRETCHES;
    let (mut cookie, mut verifier) = (0, [0; 8]);
    let (mut count, mut stretch_begun, mut nanos) = (0_u64, Instant::now(), Vec::new());
    loop {
        let listing = next(&mut client, directory, procedure, cookie, verifier)?;
        verifier = listing.verifier;
        for listed in &listing.entries {
            if listed.cookie <= cookie {
                return Err(E2eError::Wrong(format!("cookie {} after {cookie}", listed.cookie)));
            }
            cookie = listed.cookie;
            shown.count(&listing.names[listed.name.clone()])?;
            count += 1;
            if count % stretch == 0 {
                nanos.push(stretch_begun.elapsed().as_nanos() as u64 / stretch);
                stretch_begun = Instant::now();
            }
        }
        if listing.end {
            let rest = count % stretch;
            let spent = stretch_begun.elapsed().as_nanos() as u64;
            nanos.extend(spent.checked_div(rest));
            break;
        }
    }
    let nanos: Vec<String> = nanos.iter().map(ToString::to_string).collect();
    let nanos = nanos.join(" ");
    context.say(format_args!("{procedure:?}, {when}: ns per entry, by {stretch} entries: {nanos}"));
    Ok(shown)
}

fn next(
    client: &mut Client,
    directory: &Directory,
    procedure: Procedure,
    cookie: u64,
    verifier: [u8; 8],
) -> Result<Listing, E2eError> {
    let handle = directory.handle.as_slice();
    let request = match procedure {
        Procedure::ReadDir => Request::ReadDir { handle, cookie, verifier, count: LIST_BYTES },
        Procedure::ReadDirPlus => Request::ReadDirPlus {
            handle,
            cookie,
            verifier,
            dir_count: LIST_BYTES,
            max_count: LIST_PLUS_BYTES,
        },
    };
    match client.call(&request).map_err(wrong)?.0 {
        Response::ReadDir { status: Status::Ok, listing, .. }
        | Response::ReadDirPlus { status: Status::Ok, listing, .. } => Ok(listing),
        other => Err(E2eError::Wrong(format!("listing after cookie {cookie}: {other:?}"))),
    }
}

impl Shown {
    fn count(&mut self, name: &[u8]) -> Result<(), E2eError> {
        let text = String::from_utf8_lossy(name);
        let number = |prefix| text.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
        if let Some(times) = number("entry-").and_then(|n| self.entries.get_mut(n as usize)) {
            *times = times.saturating_add(1);
        } else if number("passing-").is_some() {
            self.passing += 1;
        } else if !matches!(name, b"." | b"..") {
            return Err(E2eError::Wrong(format!("a name that nobody made: {text:?}")));
        }
        Ok(())
    }
}

/// Every entry once, save those `gone` before (not at all) and those in `going` (at most once).
fn expect(shown: &Shown, gone: &[u64], going: &[u64]) -> Result<(), E2eError> {
    let mut allowed = vec![1..=1_u8; shown.entries.len()];
    going.iter().for_each(|number| allowed[*number as usize] = 0..=1);
    gone.iter().for_each(|number| allowed[*number as usize] = 0..=0);
    let all = shown.entries.iter().zip(allowed).enumerate();
    let wrong: Vec<String> = all
        .filter(|(_, (times, allowed))| !allowed.contains(times))
        .map(|(number, (times, allowed))| {
            format!("{} {times} not {allowed:?}", entry(number as u64))
        })
        .collect();
    match wrong.first() {
        None => Ok(()),
        Some(first) => {
            Err(E2eError::Wrong(format!("{} entries shown wrongly, first {first}", wrong.len())))
        }
    }
}

fn connect(server: SocketAddr, connections: usize) -> Result<Client, E2eError> {
    Client::connect(Options { connections, ..Options::new(server) }).map_err(wrong)
}

fn wrong(error: impl ToString) -> E2eError {
    E2eError::Wrong(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_missing_doubled_or_back_from_the_dead_are_noticed() {
        let shown = |names: &[&str]| {
            let mut shown = Shown { entries: vec![0; 3], passing: 0 };
            names.iter().for_each(|name| shown.count(name.as_bytes()).unwrap());
            shown
        };
        let [zero, one, two] = [entry(0), entry(1), entry(2)];
        let all = shown(&[".", "..", &zero, &one, &two, &passing(5)]);
        expect(&all, &[], &[]).unwrap();
        expect(&all, &[], &[1]).unwrap();
        assert!(expect(&all, &[1], &[1]).is_err());
        expect(&shown(&[&zero, &two]), &[], &[1]).unwrap();
        assert!(expect(&shown(&[&zero, &two]), &[], &[]).is_err());
        assert!(expect(&shown(&[&zero, &one, &one, &two]), &[], &[1]).is_err());
        assert!(Shown { entries: vec![0; 3], passing: 0 }.count(b"entry-0000003").is_err());
    }
}
