//! harp-sim: runs simulated worlds by seed, and hunts planted bugs.
//! Owns: the command line, the threads over seeds, and the one line that replays a failure.
//! Never: lets anything but the command line into a world.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use harp_node::vr::Planted;
use harp_sim::nemesis::FaultSet;
use harp_sim::properties::{self, look_only_for};
use harp_sim::{Report, Wish, run};

const USAGE: &str = "\
harp-sim --seed S [--ops N] [--n 1|2] [--planted NAME] [--trace]   one world
harp-sim --seeds A..B [--ops N] [--n 1|2] [--planted NAME]         one world a seed, B excluded
         [--keep-going]                                            all of them, whatever fails
         [--twice K]                                               every K-th of them twice: the traces must be equal
harp-sim --hunt NAME --seeds A..B [--ops N] [--n 1|2]              the first seed that finds a planted bug
harp-sim --hunt-all [--seeds A..B] [--ops N] [--n 1|2]             the same for every planted bug
harp-sim --each [--seeds A..B] [--ops N] [--n 1|2]                 whether each property alone sees its planted bug
harp-sim --coverage [--seeds A..B] [--ops N] [--n 1|2]             which checker sees which planted bug

--without FAULT, as often as you like, leaves a class of faults out. --wild-clocks lets clocks leave their bound:
such worlds may show stale reads, and report them. --only PROPERTY, by name, looks at no other property.
N defaults to 5000, the group to n = 1, seeds of a hunt to 0..2000, threads (--threads T) to 2.";

#[derive(Clone, Debug)]
struct Orders {
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    ops: u64,
    n: u8,
    planted: Option<Planted>,
    without: FaultSet,
    wild_clocks: bool,
    hunt: Vec<Planted>,
    coverage: bool,
    each: bool,
    only: Option<&'static str>,
    trace: bool,
    keep_going: bool,
    twice: Option<u64>,
    threads: u64,
}

fn main() -> ExitCode {
    let orders = match read_orders() {
        Ok(Some(orders)) => orders,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("harp-sim: {error}");
            return ExitCode::from(2);
        }
    };
    install_hook();
    if let Some(only) = orders.only {
        look_only_for(only);
    }
    match (&orders.hunt[..], orders.seed, orders.seeds) {
        (_, None, seeds) if orders.each => each(&orders, seeds.unwrap_or((0, 200))),
        (_, None, seeds) if orders.coverage => coverage(&orders, seeds.unwrap_or((0, 40))),
        ([], Some(seed), _) => one(&orders, seed),
        ([], None, Some(seeds)) if orders.keep_going => all(&orders, seeds),
        ([], None, Some(seeds)) => many(&orders, seeds),
        (hunt, None, seeds) if !hunt.is_empty() => hunt_all(&orders, seeds.unwrap_or((0, 2000))),
        _ => {
            eprintln!("harp-sim: say --seed, --seeds or --hunt; --help tells more");
            ExitCode::from(2)
        }
    }
}

fn read_orders() -> Result<Option<Orders>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut orders = Orders {
        seed: None,
        seeds: None,
        ops: 5000,
        n: 1,
        planted: None,
        without: FaultSet::NONE,
        wild_clocks: false,
        hunt: Vec::new(),
        coverage: false,
        each: false,
        only: None,
        trace: false,
        keep_going: false,
        twice: None,
        threads: 2,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed") => orders.seed = Some(parser.value()?.parse()?),
            Long("seeds") => orders.seeds = Some(parser.value()?.parse_with(range)?),
            Long("ops") => orders.ops = parser.value()?.parse()?,
            Long("n") => orders.n = parser.value()?.parse_with(shape)?,
            Long("planted") => orders.planted = Some(parser.value()?.parse_with(planted)?),
            Long("without") => {
                orders.without = orders.without.and(parser.value()?.parse_with(fault)?);
            }
            Long("hunt") => orders.hunt = vec![parser.value()?.parse_with(planted)?],
            Long("hunt-all") => orders.hunt = Planted::ALL.iter().map(|(bug, _)| *bug).collect(),
            Long("coverage") => orders.coverage = true,
            Long("each") => orders.each = true,
            Long("only") => orders.only = Some(parser.value()?.parse_with(property)?),
            Long("keep-going") => orders.keep_going = true,
            Long("twice") => orders.twice = Some(parser.value()?.parse::<u64>()?.max(1)),
            Long("wild-clocks") => orders.wild_clocks = true,
            Long("trace") => orders.trace = true,
            Long("threads") => orders.threads = parser.value()?.parse::<u64>()?.clamp(1, 64),
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(orders))
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let numbers = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.filter(|(a, b)| a < b).ok_or(format!("'{text}' is no range like 0..2000"))
}

fn shape(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|n| (1..=2).contains(n)).ok_or(format!("n is 1 or 2, not '{text}'"))
}

fn planted(text: &str) -> Result<Planted, String> {
    let names: Vec<_> = Planted::ALL.iter().map(|(_, name)| *name).collect();
    Planted::named(text).ok_or(format!("no planted bug '{text}'; there are {}", names.join(", ")))
}

fn property(text: &str) -> Result<&'static str, String> {
    let names: Vec<_> = properties::ALL.iter().map(|(name, _)| *name).collect();
    let unknown = || format!("no property '{text}'; there are '{}'", names.join("', '"));
    properties::named(text).ok_or_else(unknown)
}

fn fault(text: &str) -> Result<FaultSet, String> {
    let all = FaultSet::ALL.names().join(", ");
    FaultSet::named(text).ok_or(format!("no fault '{text}'; there are {all}"))
}

fn name_of(bug: Planted) -> &'static str {
    Planted::ALL.iter().find(|(b, _)| *b == bug).map_or("unnamed", |(_, name)| name)
}

/// The line that runs this world again.
fn replay(wish: Wish) -> String {
    let Wish { seed, n, ops, planted, without, wild_clocks } = wish;
    let without: String = without.names().iter().map(|name| format!(" --without {name}")).collect();
    let planted = planted.map_or(String::new(), |bug| format!(" --planted {}", name_of(bug)));
    let clocks = if wild_clocks { " --wild-clocks" } else { "" };
    format!(
        "cargo run --release -p harp-sim -- --seed {seed} --ops {ops} --n {n}{planted}{without}{clocks} --trace"
    )
}

thread_local! {
    /// The world that this thread runs.
    static RUNNING: Cell<Option<Wish>> = const { Cell::new(None) };
}

/// An assert that fires in a node is a finding: it is printed like one, with its replay line.
fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        eprintln!("FAILED an assert: {panic}\n{backtrace}");
        if let Some(wish) = RUNNING.get() {
            eprintln!("replay: {}", replay(wish));
        }
        std::process::exit(1);
    }));
}

/// Runs one world; a failure is printed.
fn run_one(wish: Wish, trace: bool) -> Option<Report> {
    RUNNING.set(Some(wish));
    let outcome = run(wish, trace);
    RUNNING.set(None);
    match outcome {
        Ok(report) => Some(report),
        Err(violation) => {
            eprintln!("FAILED property {violation}\nreplay: {}", replay(wish));
            None
        }
    }
}

fn wish(orders: &Orders, seed: u64) -> Wish {
    Wish {
        seed,
        n: orders.n,
        ops: orders.ops,
        planted: orders.planted,
        without: orders.without,
        wild_clocks: orders.wild_clocks,
    }
}

fn one(orders: &Orders, seed: u64) -> ExitCode {
    let begin = Instant::now();
    let Some(report) = run_one(wish(orders, seed), orders.trace) else {
        return ExitCode::FAILURE;
    };
    let Report { trace, answered, committed, views, faults, events, virtual_nanos } = report;
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "seed {seed}: {answered} answered, {committed} committed, {views} views, {faults} faults, \
         {events} events in {:.3} virtual seconds, {:.0} operations a second, trace {trace:016x}",
        virtual_nanos as f64 / 1e9,
        answered as f64 / seconds
    );
    ExitCode::SUCCESS
}

/// Hands out the seeds of a range to threads until one of them says stop.
fn over_seeds(orders: &Orders, seeds: (u64, u64), work: impl Fn(u64) -> bool + Sync) {
    let (next, stop) = (AtomicU64::new(seeds.0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..orders.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.1 {
                        break;
                    }
                    if !work(seed) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// What worlds added up to.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    answered: u64,
    committed: u64,
    views: u64,
    faults: u64,
    /// Worlds that ran twice.
    twice: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.answered += report.answered;
        self.committed += report.committed;
        self.views += report.views;
        self.faults += u64::from(report.faults);
    }

    /// Adds what [`one`] printed of a world.
    fn add_printed(&mut self, line: &str) {
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let number = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words[at.checked_sub(1)?].parse::<u64>().ok()
        };
        self.answered += number("answered").unwrap_or(0);
        self.committed += number("committed").unwrap_or(0);
        self.views += number("views").unwrap_or(0);
        self.faults += number("faults").unwrap_or(0);
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Totals { answered, committed, views, faults, twice } = self;
        write!(f, "{answered} answered, {committed} committed, {views} views, {faults} faults")?;
        if *twice > 0 {
            write!(f, ", {twice} worlds twice with equal traces")?;
        }
        Ok(())
    }
}

/// Runs a seed's world, and once more if it is its turn. A failure, or another trace, is printed.
fn run_checked(orders: &Orders, seed: u64, totals: &Mutex<Totals>) -> bool {
    let wish = wish(orders, seed);
    let Some(report) = run_one(wish, false) else { return false };
    totals.lock().expect("no holder panics").add(&report);
    if orders.twice.is_none_or(|every| !seed.is_multiple_of(every)) {
        return true;
    }
    let Some(again) = run_one(wish, false) else { return false };
    if again.trace != report.trace {
        let (first, second) = (report.trace, again.trace);
        eprintln!(
            "FAILED the world of seed {seed} went two ways: traces {first:016x} and {second:016x}"
        );
        eprintln!("replay: {}", replay(wish));
        return false;
    }
    totals.lock().expect("no holder panics").twice += 1;
    true
}

fn many(orders: &Orders, seeds: (u64, u64)) -> ExitCode {
    let begin = Instant::now();
    let totals = Mutex::new(Totals::default());
    let failed = AtomicBool::new(false);
    over_seeds(orders, seeds, |seed| {
        let held = run_checked(orders, seed, &totals);
        failed.fetch_or(!held, Ordering::Relaxed);
        held
    });
    let totals = *totals.lock().expect("no holder panics");
    let seconds = begin.elapsed().as_secs_f64();
    let rate = totals.answered as f64 / seconds;
    let (from, to, threads) = (seeds.0, seeds.1, orders.threads);
    println!("seeds {from}..{to}: {totals}; {rate:.0} operations a second over {threads} threads");
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs a world in a process of its own, so that an assert that fires ends that world only. Returns what
/// it printed, or what failed.
fn run_apart(wish: Wish, only: Option<&str>) -> Result<String, String> {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(program);
    command.args(["--seed", &wish.seed.to_string(), "--ops", &wish.ops.to_string()]);
    command.args(["--n", &wish.n.to_string()]);
    if let Some(bug) = wish.planted {
        command.args(["--planted", name_of(bug)]);
    }
    for name in wish.without.names() {
        command.args(["--without", &name]);
    }
    if wish.wild_clocks {
        command.arg("--wild-clocks");
    }
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    let output = command.output().expect("the program that runs can be run");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let mut lines = errors.lines().skip_while(|line| !line.starts_with("FAILED")).take(2);
    let failed = lines.next().unwrap_or("FAILED without a word");
    // An assert's own words stand below its place.
    let words = if failed.starts_with("FAILED an assert") { lines.next() } else { None };
    Err(format!("{failed} {}", words.unwrap_or_default()))
}

fn all(orders: &Orders, seeds: (u64, u64)) -> ExitCode {
    let (failed, totals) = (AtomicU64::new(0), Mutex::new(Totals::default()));
    over_seeds(orders, seeds, |seed| {
        match run_apart(wish(orders, seed), orders.only) {
            Ok(line) => totals.lock().expect("no holder panics").add_printed(&line),
            Err(what) => {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("{seed}: {what}");
            }
        }
        true
    });
    let (failed, totals) = (failed.into_inner(), *totals.lock().expect("no holder panics"));
    println!("seeds {}..{}: {failed} failed; {totals}", seeds.0, seeds.1);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What fails in a seed's world with a planted bug and holds without it. If only one property is looked at, that one.
fn finding(orders: &Orders, bug: Planted, seed: u64) -> Option<String> {
    let sound = wish(orders, seed);
    let broken = Wish { planted: Some(bug), ..sound };
    let failure = run_apart(broken, orders.only).err()?;
    let counts = orders.only.is_none_or(|only| checker(&failure) == only);
    (counts && run_apart(sound, None).is_ok()).then_some(failure)
}

/// The property that a failure names, or the assert that fired.
fn checker(failure: &str) -> &'static str {
    let named = |(name, _): &&(&str, Planted)| failure.contains(&format!("property {name}:"));
    properties::ALL.iter().find(named).map_or("an assert in the node", |(name, _)| name)
}

/// Which planted bug is seen by which checker, over all of these seeds; which checkers see none.
fn coverage(orders: &Orders, seeds: (u64, u64)) -> ExitCode {
    let mut seen = BTreeSet::new();
    for (bug, name) in Planted::ALL {
        let by = Mutex::new(BTreeMap::<String, u64>::new());
        over_seeds(orders, seeds, |seed| {
            if let Some(failure) = finding(orders, bug, seed) {
                let mut by = by.lock().expect("no thread panics with it");
                *by.entry(checker(&failure).to_owned()).or_default() += 1;
            }
            true
        });
        let by = by.into_inner().expect("no thread panics with it");
        let shown: Vec<String> = by.iter().map(|(by, seeds)| format!("{by} ({seeds})")).collect();
        println!("{name}: {}", if shown.is_empty() { "nothing".into() } else { shown.join("; ") });
        seen.extend(by.into_keys());
    }
    let names = properties::ALL.iter().map(|(name, _)| *name);
    let blind: Vec<&str> = names.filter(|name| !seen.contains(*name)).collect();
    if blind.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("see no planted bug in seeds {}..{}: {}", seeds.0, seeds.1, blind.join("; "));
    ExitCode::FAILURE
}

/// The first of these seeds whose world shows a planted bug, and what failed there.
fn first_finding(orders: &Orders, bug: Planted, seeds: (u64, u64)) -> Option<(u64, String)> {
    let found = Mutex::new(None);
    over_seeds(orders, seeds, |seed| {
        let finding = finding(orders, bug, seed);
        let missed = finding.is_none();
        if let Some(failure) = finding {
            let mut found = found.lock().expect("no thread panics with it");
            if found.as_ref().is_none_or(|(earlier, _)| seed < *earlier) {
                *found = Some((seed, failure));
            }
        }
        missed
    });
    found.into_inner().expect("no thread panics with it")
}

/// Whether each property sees its planted bug while no other property is looked at.
fn each(orders: &Orders, seeds: (u64, u64)) -> ExitCode {
    let mut blind = 0;
    for (name, bug) in properties::ALL {
        let alone = Orders { only: Some(name), ..orders.clone() };
        match first_finding(&alone, bug, seeds) {
            Some((seed, _)) => {
                let count = seed - seeds.0 + 1;
                println!("{name}: sees {} after {count} seeds", name_of(bug));
            }
            None => {
                blind += 1;
                let (from, to) = seeds;
                println!("{name}: {} not found in seeds {from}..{to}", name_of(bug));
            }
        }
    }
    if blind == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hunt_all(orders: &Orders, seeds: (u64, u64)) -> ExitCode {
    let mut missed = 0;
    for bug in &orders.hunt {
        match first_finding(orders, *bug, seeds) {
            None => {
                missed += 1;
                println!("{}: not found in seeds {}..{}", name_of(*bug), seeds.0, seeds.1);
            }
            Some((seed, failure)) => {
                let wish = Wish { planted: Some(*bug), ..wish(orders, seed) };
                let (count, by) = (seed - seeds.0 + 1, checker(&failure));
                println!("{}: found after {count} seeds by {by}; {}", name_of(*bug), replay(wish));
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
