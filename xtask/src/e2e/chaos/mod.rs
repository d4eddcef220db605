//! Chaos: a group in a network of its own under faults of every kind, and a history of what clients saw.
//! Owns: the run's order, its directory, the sum of what happened.
//! Never: touches a process, an address or a file system that it did not make.
//! Invariant: afterwards nothing of it is left but files, and those only if something was wrong or they are to be kept;
//! what a run that was killed left behind goes at the next one.
//! Source: docs/testing.md.

mod arena;
mod clients;
mod lanes;
mod linearizable;
mod network;
mod servers;
mod storm;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::clients::Clients;
use self::lanes::{Lanes, PATIENCE};
use self::network::Network;
use self::servers::Servers;
use self::storm::Storm;
use super::group::GroupStatus;
use super::small_disk::DISK_SUFFIX;
use super::{Context, E2eError, doing, fresh_directory};
use crate::process::capture;
use crate::random::Random;
use crate::report::Ending;
use crate::workspace::Workspace;

/// The scenario's name.
pub const NAME: &str = "chaos_for_a_minute_nothing_lost_and_every_answer_in_order";
/// Programs that a run needs.
pub const NEEDS: &[&str] = &["mke2fs", "mount", "umount", "ip", "nsenter"];

/// How long the group is under faults before it is looked at whole, in milliseconds: least and most.
const ROUND_MS: (u64, u64) = (8_000, 25_000);
/// How long a healed group may take until every server is in its role.
const WHOLE_PATIENCE: Duration = Duration::from_secs(90);
/// Operations that a whole group must answer, and how long it may take.
const PROGRESS: u64 = 50;
const PROGRESS_PATIENCE: Duration = Duration::from_secs(30);
/// How long clients may take to end when the run has failed already.
const FAILED_PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(5);
const TOOL_PATIENCE: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long faults go on.
    pub lasts: Duration,
    /// What faults and calls follow from; any if not given.
    pub seed: Option<u64>,
    /// Copies of the files.
    pub copies: usize,
    /// Whether files are kept although nothing was wrong.
    pub keep: bool,
}

impl Options {
    /// Reads the arguments after `chaos`.
    pub fn parse(words: &[String]) -> Result<Options, String> {
        let mut options =
            Options { lasts: Duration::from_secs(600), seed: None, copies: 2, keep: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || {
                let number = words.next().and_then(|number| number.parse::<u64>().ok());
                number.ok_or(format!("{word} takes a number"))
            };
            match word.as_str() {
                "--minutes" => options.lasts = Duration::from_secs(60 * number()?),
                "--seconds" => options.lasts = Duration::from_secs(number()?),
                "--seed" => options.seed = Some(number()?),
                "--copies" => options.copies = number()? as usize,
                "--keep" => options.keep = true,
                other => return Err(format!("unknown option {other:?}")),
            }
        }
        match options.copies {
            2 | 3 => Ok(options),
            other => Err(format!("--copies is 2 or 3, not {other}")),
        }
    }
}

/// A minute of it, always with the same seed unless another is given.
pub fn for_a_minute(context: &Context<'_>) -> Result<(), E2eError> {
    let (lasts, seed) = (Duration::from_secs(60), context.seed.or(Some(1)));
    let options = Options { lasts, seed, copies: 2, keep: false };
    run(context.workspace, &options)
}

/// A run as a step of its own.
pub fn step(workspace: &Workspace, options: &Options) -> Ending {
    match run(workspace, options) {
        Err(E2eError::NotHere(why)) => Ending::LeftOut(why),
        result => Ending::of(result),
    }
}

/// Runs, and says what happened; an error names what was wrong, the seed, and where everything is.
fn run(workspace: &Workspace, options: &Options) -> Result<(), E2eError> {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let seed = options.seed.unwrap_or_else(|| clock() as u64 % 1_000_000);
    let all = workspace.target.join("chaos");
    remove_leftovers(&all)?;
    let work = all.join(std::process::id().to_string());
    fresh_directory(&work)?;
    println!(
        "    seed {seed}, {} copies, {:?}, in {}",
        options.copies,
        options.lasts,
        work.display()
    );
    let (harp, interrupts) = (workspace.program("harp"), Interrupts::take()?);
    // A thread, since it moves to another namespace, and servers end with the thread that started them.
    let joined = std::thread::scope(|scope| {
        scope.spawn(|| in_a_network(harp, &work, options, seed, &interrupts)).join()
    });
    let result = joined.unwrap_or_else(|_| Err(E2eError::Wrong("the run panicked".into())));
    match result {
        Ok(()) if !options.keep => doing(work.display(), std::fs::remove_dir_all(&work)),
        Ok(()) => Ok(()),
        Err(E2eError::NotHere(why)) => Err(E2eError::NotHere(why)),
        Err(error) => {
            let copies = options.copies;
            let again = format!(
                "cargo xtask chaos --seconds {} --copies {copies} --seed {seed}",
                options.lasts.as_secs()
            );
            let kept = work.display();
            Err(E2eError::Wrong(format!("{error}\n    the same faults: {again}\n    kept: {kept}")))
        }
    }
}

/// Removes what runs that are over left: namespaces, and mounts below `all`.
fn remove_leftovers(all: &Path) -> Result<(), E2eError> {
    let ended = |run: u32| !is_a_run(run);
    let mut removed = network::remove_leftovers(ended)?;
    let mounts = doing("/proc/self/mounts", std::fs::read_to_string("/proc/self/mounts"))?;
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new) {
        let Ok(below) = at.strip_prefix(all) else { continue };
        let run = below.iter().next().and_then(|run| run.to_str()?.parse().ok());
        if run.is_some_and(ended) {
            capture(Command::new("umount").arg(at), TOOL_PATIENCE)?;
            let image = at.with_extension(DISK_SUFFIX);
            doing(image.display(), std::fs::remove_file(&image))?;
            removed += 1;
        }
    }
    if removed > 0 {
        println!("    removed what an earlier run left: {removed} mounts and namespaces");
    }
    Ok(())
}

/// Whether a process is one that may be running chaos now.
fn is_a_run(process: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    name.is_ok_and(|name| name.starts_with("xtask"))
}

/// Ctrl-C and SIGTERM, noticed instead of obeyed while this is there.
struct Interrupts {
    asked: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Interrupts {
    fn take() -> Result<Interrupts, E2eError> {
        let (asked, over) = (Arc::default(), Arc::default());
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            let taken = signal_hook::flag::register_conditional_default(signal, Arc::clone(&over))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&asked)));
            doing("watch for Ctrl-C", taken)?;
        }
        Ok(Interrupts { asked, over })
    }

    fn check(&self) -> Result<(), E2eError> {
        if self.asked.load(Ordering::Relaxed) {
            return Err(E2eError::Wrong("interrupted".into()));
        }
        Ok(())
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// What happened in all.
#[derive(Debug, Default)]
struct Sum {
    rounds: u64,
    arenas: usize,
    operations: usize,
    recorded: u64,
    /// Of the last view seen.
    counter: u64,
    views: u64,
    longest: Duration,
    violations: Vec<String>,
}

/// Makes the network, the group and the clients, lets faults happen, and ends all of it.
fn in_a_network(
    harp: PathBuf,
    work: &Path,
    options: &Options,
    seed: u64,
    interrupts: &Interrupts,
) -> Result<(), E2eError> {
    let count = 2 * options.copies - 1;
    let no_network = |error| E2eError::NotHere(format!("no network of its own: {error}"));
    let mut network = Network::make(count).map_err(no_network)?;
    network::join_clients()?;
    let mut servers = Servers::start(harp, work, options.copies)?;
    let whole = servers.wait_whole(WHOLE_PATIENCE, &|| interrupts.check())?;
    let began = Instant::now();
    let mut storm = Storm::new(Random(seed).next(), options.copies - 1, began);
    let clients = Clients::start(work, count, seed, began).map_err(E2eError::Wrong)?;
    let lanes = Arc::clone(&clients.lanes);
    let go_on = || match clients.one_ended() {
        true => Err(E2eError::Wrong("a client ended under load".into())),
        false => interrupts.check(),
    };
    let mut sum = Sum::default();
    let run = Run { lanes: &lanes, lasts: options.lasts, go_on: &go_on };
    let stormed = run.storm(&mut storm, &mut servers, &mut network, &mut sum);
    let calmed = storm.calm(&mut servers, &mut network);
    let mut result = stormed.and(calmed);
    // Nobody waits for the clients of a run that was interrupted.
    interrupts.check()?;
    let found = clients.finish(if result.is_ok() { PATIENCE } else { FAILED_PATIENCE });
    sum.recorded = found.recorded;
    sum.longest = sum.longest.max(found.longest).max(lanes.take_longest().lasted);
    sum.violations.extend(found.violations);
    if result.is_ok() {
        result = last_look(&mut servers, &lanes, work, &mut sum, interrupts);
    }
    sum.views = sum.counter.saturating_sub(counter_of(&whole));
    let (arenas, operations, wrong) = lanes.judge_all();
    (sum.arenas, sum.operations) = (arenas, operations);
    sum.violations.extend(wrong);
    sum.tell(&storm);
    let wrong = match result {
        Err(error) => std::iter::once(error.to_string()).chain(sum.violations).collect(),
        Ok(()) => sum.violations,
    };
    if !wrong.is_empty() || options.keep {
        let keep = |name: &str, text: String| {
            let path = work.join(name);
            doing(path.display(), std::fs::write(&path, text))
        };
        keep("histories.txt", lanes.histories())?;
        keep("faults.txt", storm.told())?;
        keep("status.json", servers.status_text().unwrap_or_else(|error| error.to_string()))?;
        keep("network.txt", network.describe())?;
    }
    if wrong.is_empty() { Ok(()) } else { Err(E2eError::Wrong(wrong.join("\n    "))) }
}

/// The counter in a view's number, which grows with each view that is tried.
fn counter_of(status: &GroupStatus) -> u64 {
    let number = status.view.as_deref().and_then(|view| view.split('.').nth(2));
    number.and_then(|counter| counter.parse().ok()).unwrap_or(0)
}

/// After all faults and calls: the group is whole, everything is there, the copies are equal.
fn last_look(
    servers: &mut Servers,
    lanes: &Lanes,
    work: &Path,
    sum: &mut Sum,
    interrupts: &Interrupts,
) -> Result<(), E2eError> {
    let status = servers.wait_whole(WHOLE_PATIENCE, &|| interrupts.check())?;
    sum.counter = counter_of(&status);
    lanes.look_again(servers.count()).map_err(E2eError::Wrong)?;
    sum.violations.extend(clients::check_journals(work, servers.count()));
    servers.verify()?;
    servers.expect_alive()
}

/// The time of the faults.
struct Run<'r> {
    lanes: &'r Lanes,
    lasts: Duration,
    /// An error if there is no use in going on.
    go_on: &'r dyn Fn() -> Result<(), E2eError>,
}

impl Run<'_> {
    /// Faults, round after round; after each the group must become whole, answer, and have equal copies.
    fn storm(
        &self,
        storm: &mut Storm,
        servers: &mut Servers,
        network: &mut Network,
        sum: &mut Sum,
    ) -> Result<(), E2eError> {
        let deadline = Instant::now() + self.lasts;
        while Instant::now() < deadline {
            let round_ends = deadline.min(Instant::now() + storm.time(ROUND_MS));
            while Instant::now() < round_ends {
                (self.go_on)()?;
                servers.expect_alive()?;
                storm.blow(servers, network)?;
                std::thread::sleep(TICK);
            }
            storm.calm(servers, network)?;
            self.demand_whole(storm, servers, sum)?;
            sum.rounds += 1;
            if storm.lose(servers)? {
                self.demand_whole(storm, servers, sum)?;
            }
            sum.violations.extend(self.lanes.judge_left());
            if !sum.violations.is_empty() {
                // What follows would only bury it.
                return Ok(());
            }
        }
        Ok(())
    }

    /// The healed group becomes whole, answers its clients, and its copies are equal.
    fn demand_whole(
        &self,
        storm: &mut Storm,
        servers: &mut Servers,
        sum: &mut Sum,
    ) -> Result<(), E2eError> {
        let begun = Instant::now();
        let status = servers.wait_whole(WHOLE_PATIENCE, self.go_on)?;
        let whole_after = begun.elapsed();
        let wanted = self.lanes.answered() + PROGRESS;
        let deadline = Instant::now() + PROGRESS_PATIENCE;
        while self.lanes.answered() < wanted {
            (self.go_on)()?;
            if Instant::now() >= deadline {
                let what = format!("a whole group answers {PROGRESS} calls");
                let seen = status.line();
                return Err(E2eError::NotReached { what, patience: PROGRESS_PATIENCE, seen });
            }
            std::thread::sleep(TICK);
        }
        let equal = servers.verify()?;
        let (wait, answered) = (self.lanes.take_longest(), self.lanes.answered());
        sum.longest = sum.longest.max(wait.lasted);
        sum.counter = counter_of(&status);
        let view = status.view.unwrap_or_default();
        let equal = equal.lines().next().unwrap_or_default().to_owned();
        storm.say(format_args!(
            "healed: whole after {whole_after:.1?}, view {view}, {answered} calls answered, longest wait {wait}, {equal}"
        ));
        Ok(())
    }
}

impl Sum {
    fn tell(&self, storm: &Storm) {
        let faults: Vec<String> =
            storm.counts.iter().map(|(class, count)| format!("{class} {count}")).collect();
        println!("    faults: {}", faults.join(", "));
        println!(
            "    {:.1} minutes, {} rounds; {} operations in {} arenas, {} recorded; {} view changes; \
             longest wait of a client {:.1?}; {} violations",
            storm.elapsed().as_secs_f64() / 60.0,
            self.rounds,
            self.operations,
            self.arenas,
            self.recorded,
            self.views,
            self.longest,
            self.violations.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words)
        };
        let lasts = Duration::from_secs(120);
        let expected = Options { lasts, seed: Some(7), copies: 3, keep: true };
        assert_eq!(parse("--minutes 2 --seed 7 --copies 3 --keep"), Ok(expected));
        assert_eq!(parse("--seconds 9").unwrap().lasts, Duration::from_secs(9));
        for wrong in ["--minutes", "--minutes x", "--copies 4", "--fast"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_processes_of_this_kind_count_as_runs() {
        assert!(is_a_run(std::process::id()));
        assert!(!is_a_run(1) && !is_a_run(u32::MAX));
    }
}
