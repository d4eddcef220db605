//! Power cut: the metadata engine and the data segments on a disk that drops what was not synced.
//! Owns: the checkpoints whose calls are recorded, and what must be left after each of them.
//! Never: stands in for LMDB or the files: the calls are those of the real ones, told by strace.
//! Invariant: the image left is the last checkpoint's, or the one's under way if its head was written.
//! Source: docs/testing.md; CrashMonkey (Mohan et al., OSDI 2018); ALICE (Pillai et al., OSDI 2014).
//!
//! Usage: `power_cut DIR CHECKPOINTS`; DIR is there and empty. The program runs itself under strace (`write`), rebuilds the
//! files for each call as a power cut could leave them, and opens each by itself again (`check`), in a process
//! of its own, since a damaged file may kill whoever maps it. Then it does so for disks that ignore what they
//! are told, which must be noticed.

#[path = "../../tests/common/mod.rs"]
mod common;
mod platter;
mod trace;

use common::{Change, LIMITS, Random};
use harp_engine::{FileDisk, LmdbEngine, LmdbOptions};
use harp_store::{MemDisk, MemEngine, Store};
use platter::{Ignores, Platter, Rest};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use trace::Event;

/// The files are closed and opened again after so many.
const REOPEN: u64 = 8;
const SEED: u64 = 2024;
/// Blocks of a data segment, so that there come to be several.
const SEGMENT_BLOCKS: u64 = 150;
/// Disks that ignore what they are told do so from this checkpoint on.
const IGNORED_FROM: u64 = 2;
/// Ways to lose something that are tried at each call, besides losing everything.
const WAYS: u64 = 2;

type FileStore = Store<LmdbEngine, FileDisk>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", dir, checkpoints] => count(checkpoints).and_then(|n| write(Path::new(dir), n)),
        ["check", dir] => check(Path::new(dir)),
        [dir, checkpoints] => count(checkpoints).and_then(|n| run(Path::new(dir), n)),
        _ => Err("usage: power_cut DIR CHECKPOINTS".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("power_cut: {why}");
            ExitCode::FAILURE
        }
    }
}

fn count(text: &str) -> Result<u64, String> {
    let count = text.parse().ok().filter(|count| *count > IGNORED_FROM);
    count.ok_or_else(|| format!("'{text}' is no number above {IGNORED_FROM}"))
}

fn open(dir: &Path) -> Result<FileStore, String> {
    let options = LmdbOptions { map_bytes: 64 << 20, reserve_bytes: 1 << 20 };
    let engine = LmdbEngine::open(dir, options).map_err(|error| error.to_string())?;
    let disk = FileDisk::open(dir, SEGMENT_BLOCKS).map_err(|error| error.to_string())?;
    Ok(Store::open(engine, disk, LIMITS).map_err(|error| error.to_string())?.store)
}

/// The changes, in order. Each depends on the seed and its op alone.
fn change(op: u64) -> Change {
    Change::random(&mut Random::seeded(SEED + op), op, 8)
}

/// Formats and makes checkpoint after checkpoint, half of them past the page cache, as a server does.
fn write(dir: &Path, checkpoints: u64) -> Result<(), String> {
    let options = LmdbOptions { map_bytes: 64 << 20, reserve_bytes: 1 << 20 };
    let engine = LmdbEngine::open(dir, options).map_err(|error| error.to_string())?;
    Store::<_, FileDisk>::format(&engine, b"power", &[]).map_err(|error| error.to_string())?;
    drop(engine);
    let mut store = open(dir)?;
    println!("checkpoint 0");
    for op in 1..=checkpoints {
        if op % REOPEN == 0 {
            drop(store);
            store = open(dir)?;
        }
        store.disk().set_direct(op % 2 == 0);
        change(op).checkpoint(&store);
        println!("checkpoint {op}");
    }
    Ok(())
}

/// Opens what a power cut left. Tells its op and digest, then the digest after one more checkpoint.
fn check(dir: &Path) -> Result<(), String> {
    let store = open(dir)?;
    let mut damage = None;
    let scrubbed = store.scrub(&mut |found| damage = Some(found)).map_err(|e| e.to_string())?;
    if scrubbed.damaged > 0 {
        return Err(format!("{} places are damaged: {damage:?}", scrubbed.damaged));
    }
    let (op, digest) = store.digest().map_err(|error| error.to_string())?;
    change(op + 1).checkpoint(&store);
    let (_, next) = store.digest().map_err(|error| error.to_string())?;
    println!("{op} {digest} {next}");
    Ok(())
}

/// The digest of every op, from an image in memory.
fn expected(checkpoints: u64) -> Vec<String> {
    let (engine, disk) = (MemEngine::new(), MemDisk::new(1 << 16));
    Store::<_, MemDisk>::format(&engine, b"model", &[]).expect("an empty engine takes a format");
    let store = Store::open(engine, disk, LIMITS).expect("the image opens").store;
    let digest = || store.digest().expect("an image in memory is sound").1.to_string();
    let mut digests = vec![digest()];
    for op in 1..=checkpoints + 1 {
        change(op).checkpoint(&store);
        digests.push(digest());
    }
    digests
}

fn run(dir: &Path, checkpoints: u64) -> Result<(), String> {
    let dir = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
    let events = record(&dir, checkpoints)?;
    let scratch = Scratch::new(&dir)?;
    let judge = Judge { checkpoints, expected: expected(checkpoints), scratch };
    let Tried { calls, cuts } = judge.cut_everywhere(&events, None)?;
    println!("{checkpoints} checkpoints, {calls} calls, {cuts} power cuts: every image is exact");
    for ignores in Ignores::ALL {
        match judge.cut_everywhere(&events, Some(ignores)) {
            Ok(_) => return Err(format!("a disk that ignores {ignores:?} is not noticed")),
            Err(why) => println!("a disk that ignores {ignores:?} is noticed: {why}"),
        }
    }
    Ok(())
}

/// Runs the checkpoints under strace.
fn record(dir: &Path, checkpoints: u64) -> Result<Vec<Event>, String> {
    let (files, told) = (dir.join("files"), dir.join("trace"));
    std::fs::create_dir(&files).map_err(|error| format!("{}: {error}", files.display()))?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-xx", "-s", "16777216", "-e", "signal=none", "-e"]);
    strace.arg(format!("trace={}", trace::CALLS)).arg("-o").arg(&told);
    strace.arg(myself()?).arg("write").arg(&files).arg(checkpoints.to_string());
    let output = strace.output().map_err(|error| format!("strace: {error}"))?;
    if !output.status.success() {
        return Err(format!("strace: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let lines = BufReader::new(File::open(&told).map_err(|error| format!("the trace: {error}"))?);
    trace::read(lines, &files)
}

fn myself() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("this program: {error}"))
}

/// A directory in which files are put together again: in memory, if there is one, since what is synced there
/// is not what is tested.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Result<Scratch, String> {
        let memory = Path::new("/dev/shm").join(format!("harp-power-cut-{}", std::process::id()));
        let path = match std::fs::create_dir(&memory) {
            Ok(()) => memory,
            Err(_) => dir.join("left"),
        };
        Ok(Scratch(path))
    }

    /// The directory, emptied.
    fn fresh(&self) -> Result<&Path, String> {
        // It need not be there.
        let _ = std::fs::remove_dir_all(&self.0);
        std::fs::create_dir(&self.0).map_err(|error| format!("{}: {error}", self.0.display()))?;
        Ok(&self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory left behind fails nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Judge {
    checkpoints: u64,
    expected: Vec<String>,
    scratch: Scratch,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    calls: u64,
    cuts: u64,
}

/// Which checkpoints a power cut may leave: this one, and the next one if its head was begun to be written.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    done: u64,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Its head was not written: it must not be there.
    Not,
    /// Its head is being written.
    Maybe,
    /// Its head is durable: it must be there.
    Surely,
}

impl Judge {
    /// Cuts the power in the middle of every call and after it.
    fn cut_everywhere(&self, events: &[Event], ignores: Option<Ignores>) -> Result<Tried, String> {
        let mut platter = Platter::default();
        let mut allowed: Option<Allowed> = None;
        let mut tried = Tried::default();
        for (at, event) in events.iter().enumerate() {
            let head = matches!(event, Event::Written { through: true, .. });
            platter.begun(event);
            if let Event::Said(said) = event {
                let done = said.strip_prefix("checkpoint ").and_then(|op| op.parse().ok());
                let done = done.ok_or_else(|| format!("it says {said}"))?;
                allowed = Some(Allowed { done, next: Next::Not });
                if done == IGNORED_FROM {
                    platter.ignores = ignores;
                }
                continue;
            }
            if let Some(allowed) = &mut allowed {
                tried.calls += 1;
                if head {
                    allowed.next = Next::Maybe;
                }
                tried.cuts += self.cut(&platter, *allowed, at, "in the middle of")?;
            }
            platter.returned(event)?;
            if let Some(allowed) = &mut allowed {
                if head {
                    allowed.next = Next::Surely;
                }
                tried.cuts += self.cut(&platter, *allowed, at, "after")?;
            }
        }
        match allowed {
            Some(Allowed { done, .. }) if done == self.checkpoints => Ok(tried),
            _ => Err("the checkpoints were not all made".into()),
        }
    }

    fn cut(
        &self,
        platter: &Platter,
        allowed: Allowed,
        at: usize,
        when: &str,
    ) -> Result<u64, String> {
        let ways = if platter.is_settled() { 0 } else { WAYS };
        let some = (0..ways).map(|way| Rest::Some(at as u64 * WAYS + way));
        let mut cuts = 0;
        for rest in std::iter::once(Rest::Nothing).chain(some) {
            let dir = self.scratch.fresh()?;
            platter.cut(rest, dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            let told = |why| format!("{when} call {at}, {rest:?} is left, {allowed:?}: {why}");
            self.judge(dir, allowed).map_err(told)?;
            cuts += 1;
        }
        Ok(cuts)
    }

    fn judge(&self, dir: &Path, allowed: Allowed) -> Result<(), String> {
        let output = Command::new(myself()?).arg("check").arg(dir).output();
        let output = output.map_err(|error| format!("this program: {error}"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}", output.status, why.lines().next().unwrap_or_default()));
        }
        let told = String::from_utf8_lossy(&output.stdout);
        let words: Vec<&str> = told.split_whitespace().collect();
        let [op, digest, next] = words[..] else { return Err(format!("it tells {told}")) };
        let op: u64 = op.parse().map_err(|_| format!("it tells {told}"))?;
        let fits = match allowed.next {
            Next::Not => op == allowed.done,
            Next::Maybe => op == allowed.done || op == allowed.done + 1,
            Next::Surely => op == allowed.done + 1,
        };
        if !fits {
            return Err(format!("the image is that of checkpoint {op}"));
        }
        match (digest == self.expected[op as usize], next == self.expected[op as usize + 1]) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("the image at checkpoint {op} is another one")),
            (true, false) => Err(format!("the checkpoint after {op} makes another image")),
        }
    }
}
