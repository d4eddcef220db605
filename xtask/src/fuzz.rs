//! Fuzz: libFuzzer's programs, one per decoder, each for a time.
//! Owns: building them, the inputs that they begin from and find, and the table of what they did.
//! Never: part of the test run, which replays the committed inputs without libFuzzer.
//! Invariant: what is found stays in `fuzz/artifacts` and fails the run.
//! Source: docs/testing.md, "Fuzzing"; libFuzzer's documentation.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::process::{ProcessError, Running, capture, on_path, run as carry_out};
use crate::report::{Ending, Report};
use crate::workspace::{Workspace, cargo};

/// One input may use so much memory, so much time, and be so long.
const LIMITS: [&str; 3] = ["-rss_limit_mb=1024", "-timeout=10", "-max_len=8192"];
/// An input is kept for an edge of its own, however often it takes it, and longer ones are cut: the committed
/// corpus stays small.
const KEEP: [&str; 3] = ["-set_cover_merge=1", "-use_counters=0", "-max_len=1024"];
/// What a program may take beyond its time, to start and to end, or to merge.
const SLACK: Duration = Duration::from_secs(900);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For each decoder.
    pub minutes: u64,
    /// Whether inputs that reach more than the committed ones are added to them.
    pub keep: bool,
    /// Decoders; none means all.
    pub names: Vec<String>,
}

impl Options {
    /// Reads the arguments after `fuzz`.
    pub fn parse(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options { minutes: 10, keep: false, names: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--keep" => options.keep = true,
                "--minutes" => {
                    let minutes = rest.next().and_then(|number| number.parse().ok());
                    options.minutes = minutes.ok_or("--minutes wants a number")?;
                }
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag:?}")),
                name => options.names.push(name.to_owned()),
            }
        }
        Ok(options)
    }
}

/// What libFuzzer said at its end.
#[derive(Debug, Default)]
struct Figures {
    executions: u64,
    per_second: u64,
    edges: u64,
    inputs: u64,
}

impl Figures {
    fn of(output: &str) -> Figures {
        let mut figures = Figures::default();
        let number = |text: &str| {
            let digits = text.trim().split(|c: char| !c.is_ascii_digit()).next();
            digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
        };
        for line in output.lines() {
            if let Some((_, rest)) = line.split_once(" cov: ") {
                figures.edges = number(rest);
                figures.inputs = rest.split_once(" corp: ").map_or(0, |(_, rest)| number(rest));
            } else if let Some(rest) = line.strip_prefix("stat::number_of_executed_units:") {
                figures.executions = number(rest);
            } else if let Some(rest) = line.strip_prefix("stat::average_exec_per_sec:") {
                figures.per_second = number(rest);
            }
        }
        figures
    }
}

/// Where everything lies.
struct Places {
    fuzz: PathBuf,
    programs: PathBuf,
    /// Below the target directory: valid samples, and what was found to reach more.
    seeds: PathBuf,
    grown: PathBuf,
}

/// Runs the programs, one after the other.
pub fn run(workspace: &Workspace, report: &mut Report, options: &Options) {
    let fuzz = workspace.root.join("fuzz");
    let mut places = None;
    let built = report.step("fuzzing programs", || {
        if !on_path("cargo-fuzz") {
            return Ending::Failed("cargo-fuzz is missing; run: cargo install cargo-fuzz".into());
        }
        Ending::of(build(workspace, &fuzz).map(|built| places = Some(built)))
    });
    let (true, Some(places)) = (built, places) else { return };
    let known = names(&places.fuzz);
    if let Some(other) = options.names.iter().find(|name| !known.contains(name)) {
        report.step(other, || Ending::Failed(format!("no such decoder; there are {known:?}")));
        return;
    }
    let mut rows = Vec::new();
    for name in known.iter().filter(|n| options.names.is_empty() || options.names.contains(n)) {
        report.step(&format!("{name}, {} min", options.minutes), || {
            match fuzz_one(&places, name, options) {
                Ok((figures, finding)) => {
                    rows.push((name.clone(), figures, u32::from(finding.is_some())));
                    Ending::of(finding.map_or(Ok(()), Err))
                }
                Err(error) => Ending::Failed(error.to_string()),
            }
        });
    }
    print(&rows);
}

fn print(rows: &[(String, Figures, u32)]) {
    println!();
    let head = ["decoder", "executions", "a second", "edges", "inputs", "findings"];
    let [name, executions, second, edges, inputs, findings] = head;
    println!(
        "| {name:<13} | {executions:>12} | {second:>9} | {edges:>6} | {inputs:>6} | {findings:>8} |"
    );
    for (name, figures, findings) in rows {
        let Figures { executions, per_second, edges, inputs } = figures;
        println!(
            "| {name:<13} | {executions:>12} | {per_second:>9} | {edges:>6} | {inputs:>6} | {findings:>8} |"
        );
    }
}

fn build(workspace: &Workspace, fuzz: &Path) -> Result<Places, ProcessError> {
    let mut build = cargo();
    build.args(["fuzz", "build", "--sanitizer", "none", "--debug-assertions", "--fuzz-dir"]);
    carry_out(build.arg(fuzz))?;
    let seeds = workspace.target.join("fuzz").join("seeds");
    let mut seed = cargo();
    seed.args(["run", "--quiet", "-p", "harp-fuzz", "--", "--seeds"]).arg(&seeds);
    carry_out(&mut seed)?;
    let version = capture(Command::new("rustc").arg("-vV"), SLACK)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    Ok(Places {
        programs: fuzz.join("target").join(host).join("release"),
        fuzz: fuzz.to_path_buf(),
        seeds,
        grown: workspace.target.join("fuzz").join("grown"),
    })
}

/// The programs that there are, in order.
fn names(fuzz: &Path) -> Vec<String> {
    let files = std::fs::read_dir(fuzz.join("fuzz_targets")).into_iter().flatten().flatten();
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(|file| stem(file.path())).collect();
    names.sort();
    names
}

/// Runs one program; gives what it did, and what to say of a finding.
fn fuzz_one(
    places: &Places,
    name: &str,
    options: &Options,
) -> Result<(Figures, Option<String>), ProcessError> {
    let (corpus, grown) = (places.fuzz.join("corpus").join(name), places.grown.join(name));
    let artifacts = places.fuzz.join("artifacts").join(name);
    for directory in [&corpus, &grown, &artifacts] {
        std::fs::create_dir_all(directory)
            .map_err(|source| ProcessError::Io { program: name.to_owned(), source })?;
    }
    let mut program = Command::new(places.programs.join(name));
    // New inputs go to the first directory.
    program.args([&grown, &corpus, &places.seeds.join(name)]).args(LIMITS);
    program.arg(format!("-max_total_time={}", options.minutes * 60));
    program.arg("-print_final_stats=1");
    program.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let (status, output) = finish(&mut program, Duration::from_secs(options.minutes * 60))?;
    let figures = Figures::of(&output);
    if !status.success() {
        return Ok((figures, Some(finding(name, &output))));
    }
    if options.keep {
        let mut merge = Command::new(places.programs.join(name));
        merge.args([&corpus, &grown, &places.seeds.join(name)]);
        finish(merge.args(KEEP), Duration::ZERO)?;
    }
    Ok((figures, None))
}

fn finish(program: &mut Command, time: Duration) -> Result<(ExitStatus, String), ProcessError> {
    let mut running = Running::start(program)?;
    let status = running.wait(time + SLACK)?;
    Ok((status, running.stderr.text()))
}

/// Why it stopped, and the line that tries the input again.
fn finding(name: &str, output: &str) -> String {
    let said = |marker: &str| {
        let at = output.lines().position(|line| line.contains(marker))?;
        Some(output.lines().skip(at).take(3).collect::<Vec<_>>().join("\n"))
    };
    let why = said("panicked at").or_else(|| said("ERROR: libFuzzer")).unwrap_or_default();
    let input = output.lines().find_map(|line| line.split_once("Test unit written to "));
    let input = input.map_or("", |(_, path)| path);
    format!("{why}\n    replay: cargo run -p harp-fuzz -- {name} {input}")
}

#[cfg(test)]
mod tests {
    use super::{Figures, Options, finding};

    #[test]
    fn options_are_told_apart() {
        let parse = |line: &str| {
            Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let all = Options { minutes: 10, keep: false, names: Vec::new() };
        assert_eq!(parse(""), Ok(all));
        let some = Options { minutes: 2, keep: true, names: vec!["calls".into()] };
        assert_eq!(parse("--minutes 2 calls --keep"), Ok(some));
        assert!(parse("--minutes").is_err() && parse("--fast").is_err());
    }

    #[test]
    fn figures_and_findings_are_read_from_what_libfuzzer_prints() {
        let output = "#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 28Mb\n\
                      #9\tDONE   cov: 1257 ft: 1478 corp: 451/31Kb lim: 8192 exec/s: 1 rss: 63Mb\n\
                      stat::number_of_executed_units: 76211811\n\
                      stat::average_exec_per_sec:     126808\n";
        let Figures { executions, per_second, edges, inputs } = Figures::of(output);
        assert_eq!((executions, per_second, edges, inputs), (76_211_811, 126_808, 1257, 451));
        let output = "thread '<unnamed>' panicked at src/x.rs:1:2:\nwhy\nstack backtrace:\n   0: y\n\
                      artifact_prefix='a/'; Test unit written to a/crash-1\n";
        let said = finding("calls", output);
        assert!(said.contains("x.rs:1:2") && said.ends_with("-- calls a/crash-1"), "{said}");
    }
}
