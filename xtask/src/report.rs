//! Report: what ran, how long it took, and the closing line.
//! Owns: the counts of passed, failed and skipped tests and the names of what was left out.
//! Never: decides what runs; it only counts and prints.
//! Invariant: in CI a step that is left out counts as failed.
//! Source: none; the closing line's form is fixed so that tools can read it.

use std::process::ExitCode;
use std::time::Instant;

/// Numbers of single tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were present and not run.
    pub skipped: u64,
}

impl Counts {
    /// One test, passed.
    pub const ONE: Counts = Counts { passed: 1, failed: 0, skipped: 0 };
}

/// How a step ended.
#[derive(Debug)]
pub enum Ending {
    /// It ran to its end; `failed` among the counts makes the run fail.
    Ran(Counts),
    /// It failed as a whole; the text says why.
    Failed(String),
    /// It could not run here; the text says why.
    LeftOut(String),
}

impl Ending {
    /// A step that is one test: passed, or failed with the error's text.
    pub fn of<E: std::fmt::Display>(result: Result<(), E>) -> Ending {
        match result {
            Ok(()) => Ending::Ran(Counts::ONE),
            Err(error) => Ending::Failed(error.to_string()),
        }
    }
}

/// The running tally of one command.
#[derive(Debug)]
pub struct Report {
    counts: Counts,
    failures: Vec<String>,
    left_out: Vec<String>,
    strict: bool,
    started: Instant,
}

impl Report {
    /// An empty report; strict when the environment says that this is continuous integration.
    pub fn new() -> Report {
        let ci = std::env::var("CI").unwrap_or_default();
        Report::with_strictness(!matches!(ci.as_str(), "" | "0" | "false"))
    }

    fn with_strictness(strict: bool) -> Report {
        let started = Instant::now();
        let (failures, left_out) = (Vec::new(), Vec::new());
        Report { counts: Counts::default(), failures, left_out, strict, started }
    }

    /// Runs one step, prints its name before and its duration after; true when nothing failed.
    pub fn step(&mut self, name: &str, run: impl FnOnce() -> Ending) -> bool {
        println!("==> {name}");
        let started = Instant::now();
        let ending = run();
        let seconds = started.elapsed().as_secs_f64();
        self.note(name, ending, seconds)
    }

    /// Notes a step that cannot run here.
    pub fn leave_out(&mut self, name: &str, why: &str) {
        self.note(name, Ending::LeftOut(why.to_owned()), 0.0);
    }

    fn note(&mut self, name: &str, ending: Ending, seconds: f64) -> bool {
        match ending {
            Ending::Ran(counts) => {
                self.counts.passed += counts.passed;
                self.counts.failed += counts.failed;
                self.counts.skipped += counts.skipped;
                let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
                println!("    {name}: {verdict} in {seconds:.1} s");
                if counts.failed > 0 {
                    self.failures.push(format!("{name}: {} failed", counts.failed));
                }
                counts.failed == 0
            }
            Ending::Failed(why) => {
                self.counts.failed += 1;
                println!("    {name}: FAILED in {seconds:.1} s\n{why}");
                let first = why.lines().next().unwrap_or_default();
                self.failures.push(format!("{name}: {first}"));
                false
            }
            Ending::LeftOut(why) => {
                self.counts.skipped += 1;
                let line = format!("left out: {name} ({why})");
                println!("{line}");
                self.left_out.push(line);
                !self.strict
            }
        }
    }

    /// Prints what failed, what was left out and the closing line; the exit status follows it.
    pub fn close(self) -> ExitCode {
        println!();
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        for line in &self.left_out {
            println!("{line}");
        }
        println!("whole run: {:.0} s", self.started.elapsed().as_secs_f64());
        let (line, good) = self.verdict();
        println!("{line}");
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// The closing line and whether the run is good.
    fn verdict(&self) -> (String, bool) {
        let mut counts = self.counts;
        if self.strict {
            let left_out = self.left_out.len() as u64;
            counts.failed += left_out;
            counts.skipped -= left_out;
        }
        let mut line = format!("{} passed, {} failed", counts.passed, counts.failed);
        if counts.skipped > 0 {
            line.push_str(&format!(", {} skipped", counts.skipped));
        }
        (line, counts.failed == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Ending, Report};

    #[test]
    fn the_closing_line_counts_single_tests() {
        let mut report = Report::with_strictness(false);
        report.note("unit", Ending::Ran(Counts { passed: 7, failed: 0, skipped: 2 }), 0.1);
        report.note("one", Ending::Ran(Counts::ONE), 0.1);
        assert_eq!(report.verdict(), ("8 passed, 0 failed, 2 skipped".into(), true));
        report.note("bad", Ending::Failed("why".into()), 0.1);
        assert_eq!(report.verdict(), ("8 passed, 1 failed, 2 skipped".into(), false));
    }

    #[test]
    fn what_is_left_out_fails_only_in_ci() {
        for (strict, line) in
            [(false, "0 passed, 0 failed, 1 skipped"), (true, "0 passed, 1 failed")]
        {
            let mut report = Report::with_strictness(strict);
            report.leave_out("guest", "no emulator");
            assert_eq!(report.verdict(), (line.into(), !strict));
        }
    }
}
