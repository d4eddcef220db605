//! Suite: the steps of each command, in order.
//! Owns: which step follows which, and what a failed build leaves out.
//! Never: knows how a scenario works; it runs what the rooms beside it offer.
//! Invariant: steps later in the order run even after a failure, unless they need its result.
//! Source: docs/testing.md.

use std::process::{Command, ExitCode};

use crate::arrows;
use crate::e2e::{self, Choice, chaos};
use crate::fuzz;
use crate::packages;
use crate::process::{on_path, run, tee};
use crate::report::{Counts, Ending, Report};
use crate::workspace::{Workspace, cargo};

/// The simulator's bulk runs: enough seeds and operations to meet every fault class many times.
const BULK_SEEDS: &str = "0..2000";
const BULK_OPS: &str = "5000";
/// Every so many of these seeds run twice, and must take the same way: 200 in all.
const BULK_TWICE: &str = "20";

/// Every test of the repository.
pub fn test() -> ExitCode {
    with_workspace(|workspace, report| {
        install_packages(report);
        lint_steps(workspace, report);
        let built = build(report, &["--workspace"]);
        unit_tests(report);
        if built {
            simulate(workspace, report);
            e2e::run(workspace, report, &Choice::default());
        }
    })
}

/// Formatting, clippy and the crates' arrows.
pub fn lint() -> ExitCode {
    with_workspace(lint_steps)
}

/// The simulator's bulk run.
pub fn sim() -> ExitCode {
    with_workspace(|workspace, report| {
        if build(report, &["-p", "harp-sim"]) {
            simulate(workspace, report);
        }
    })
}

/// The tests on real processes that were chosen.
pub fn e2e(choice: &Choice) -> ExitCode {
    with_workspace(|workspace, report| {
        install_packages(report);
        if build(report, &["-p", "harp"]) {
            e2e::run(workspace, report, choice);
        }
    })
}

/// Faults of every kind for as long as asked.
pub fn chaos(options: &chaos::Options) -> ExitCode {
    with_workspace(|workspace, report| {
        install_packages(report);
        if !build(report, &["-p", "harp"]) {
            return;
        }
        match e2e::not_here(chaos::NEEDS) {
            Some(why) => report.leave_out("chaos", &why),
            None => {
                report.step("chaos", || chaos::step(workspace, options));
            }
        }
    })
}

/// Fuzzing of the decoders.
pub fn fuzz(options: &fuzz::Options) -> ExitCode {
    with_workspace(|workspace, report| fuzz::run(workspace, report, options))
}

fn with_workspace(steps: impl FnOnce(&Workspace, &mut Report)) -> ExitCode {
    let workspace = match Workspace::load() {
        Ok(workspace) => workspace,
        Err(error) => {
            eprintln!("xtask: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new();
    steps(&workspace, &mut report);
    report.close()
}

fn install_packages(report: &mut Report) {
    report.step("packages", || match packages::install() {
        Ok(()) => Ending::Ran(Counts::default()),
        Err(why) => Ending::LeftOut(why),
    });
}

fn lint_steps(workspace: &Workspace, report: &mut Report) {
    report.step("rustfmt", || Ending::of(run(cargo().args(["fmt", "--all", "--", "--check"]))));
    report.step("clippy", || {
        let mut clippy = cargo();
        clippy.args(["clippy", "--quiet", "--workspace", "--all-targets", "--"]);
        Ending::of(run(clippy.args(["-D", "warnings"])))
    });
    report.step("crate arrows", || {
        let violations = arrows::violations(workspace);
        if violations.is_empty() {
            return Ending::Ran(Counts::ONE);
        }
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Ending::Failed(lines.join("\n"))
    });
}

fn build(report: &mut Report, which: &[&str]) -> bool {
    report.step("release build", || {
        Ending::of(run(cargo().args(["build", "--quiet", "--release"]).args(which)))
    })
}

/// Runs the unit tests and the crates' own tests, with nextest where it is installed.
fn unit_tests(report: &mut Report) {
    report.step("unit tests", || {
        if on_path("cargo-nextest") {
            // Every test is named, the scenarios above all.
            let named = ["nextest", "run", "--workspace", "--status-level", "pass"];
            counted(cargo().args(named), nextest_counts)
        } else {
            counted(cargo().args(["test", "--workspace", "--no-fail-fast"]), libtest_counts)
        }
    });
    report.step("examples in the documentation", || {
        counted(cargo().args(["test", "--quiet", "--workspace", "--doc"]), libtest_counts)
    });
}

/// Runs a test command and counts its tests by the lines it prints.
fn counted(command: &mut Command, counts_of: fn(&str) -> Option<Counts>) -> Ending {
    let mut total = Counts::default();
    let status = tee(command, |line| {
        if let Some(counts) = counts_of(line) {
            total.passed += counts.passed;
            total.failed += counts.failed;
            total.skipped += counts.skipped;
        }
    });
    match status {
        Ok(status) if status.success() || total.failed > 0 => Ending::Ran(total),
        Ok(status) => Ending::Failed(format!("{status}, with no failed test named")),
        Err(error) => Ending::Failed(error.to_string()),
    }
}

/// Reads the counts from nextest's summary line.
fn nextest_counts(line: &str) -> Option<Counts> {
    let (_, counts) = line.trim().strip_prefix("Summary")?.split_once("run:")?;
    Some(words_to_counts(counts, ','))
}

/// Reads the counts from a result line of the standard test harness.
fn libtest_counts(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    Some(words_to_counts(counts, ';'))
}

/// Adds up `NUMBER WORD` phrases; words that name no outcome count nothing.
fn words_to_counts(phrases: &str, separator: char) -> Counts {
    let mut counts = Counts::default();
    for phrase in phrases.split(separator) {
        let mut words = phrase.split_whitespace();
        let number = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match words.next() {
            Some("passed") => counts.passed += number,
            Some("failed" | "timed") => counts.failed += number,
            Some("skipped" | "ignored") => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

/// Runs the simulator in bulk and lets it hunt the planted bugs.
fn simulate(workspace: &Workspace, report: &mut Report) {
    let simulator = workspace.program("harp-sim");
    for n in ["1", "2"] {
        report.step(&format!("simulator, n = {n}, seeds {BULK_SEEDS}"), || {
            let mut bulk = Command::new(&simulator);
            bulk.args(["--seeds", BULK_SEEDS, "--ops", BULK_OPS, "--n", n, "--twice", BULK_TWICE]);
            simulated(&mut bulk)
        });
    }
    for (what, order) in [("planted bugs", "--hunt-all"), ("each property alone", "--each")] {
        let step = format!("simulator, {what}");
        report.step(&step, || simulated(Command::new(&simulator).arg(order)));
    }
}

/// Runs the simulator; a failure is told by the lines that say what happened and how to replay it.
fn simulated(command: &mut Command) -> Ending {
    let mut told = Vec::new();
    let status = tee(command, |line| {
        if ["FAILED", "replay:", "not found"].iter().any(|word| line.contains(word)) {
            told.push(line.to_owned());
        }
    });
    match status {
        Ok(status) if status.success() => Ending::Ran(Counts::ONE),
        Ok(status) if told.is_empty() => Ending::Failed(status.to_string()),
        Ok(_) => Ending::Failed(told.join("; ")),
        Err(error) => Ending::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, libtest_counts, nextest_counts};

    #[test]
    fn summaries_of_both_runners_are_counted() {
        let line = "     Summary [   1.2s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped";
        let expected = Counts { passed: 10, failed: 2, skipped: 3 };
        assert_eq!(nextest_counts(line), Some(expected));
        let line = "test result: FAILED. 4 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(libtest_counts(line), Some(Counts { passed: 4, failed: 1, skipped: 2 }));
        assert_eq!(nextest_counts("test result: ok"), None);
    }
}
