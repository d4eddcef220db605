//! The repository's own commands: `cargo xtask test`, `lint`, `e2e`, `sim`, `fuzz`.
//! Owns: the order of the steps and the exit status.
//! Never: linked into the product; takes part in serving files.
//! Invariant: exits 0 only if nothing failed; what was left out is said by name.
//! Source: none outside this repository; docs/testing.md explains how the tests are organised.

mod arrows;
mod e2e;
mod fuzz;
mod guest;
mod packages;
mod process;
mod random;
mod report;
mod suite;
mod tools;
mod workspace;

use std::process::ExitCode;

use e2e::{Choice, chaos};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test                 every test: lint, build, unit tests, simulator, real processes
  lint                 formatting, clippy and the arrows between the crates
  sim                  the simulator's bulk run and its hunt for planted bugs
  e2e [--full] [--seed N] [NAME]
                       tests on real processes; NAME selects by part of the name, N is
                       where random operations begin
  e2e --list           names them
  chaos [--minutes N | --seconds N] [--seed S] [--copies 2|3] [--keep]
                       faults of every kind on a group in a network of its own, for N minutes
                       (10), and a check of all that clients saw; --keep keeps its files
  fuzz [--minutes N] [--keep] [NAME]
                       gives each decoder, or the one called NAME, anything for N minutes (10);
                       --keep adds inputs that reach more to fuzz/corpus";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match Command::parse(&arguments) {
        Ok(command) => command.run(),
        Err(refusal) => {
            eprintln!("xtask: {refusal}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// One parsed command line.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Test,
    Lint,
    Sim,
    E2eList,
    E2e(Choice),
    Chaos(chaos::Options),
    Fuzz(fuzz::Options),
    Help,
}

impl Command {
    /// Reads the arguments after `xtask`; the error is one line for the person who typed them.
    fn parse(arguments: &[String]) -> Result<Command, String> {
        let Some((first, rest)) = arguments.split_first() else {
            return Err("no command given".into());
        };
        match (first.as_str(), rest) {
            ("test", []) => Ok(Command::Test),
            ("lint", []) => Ok(Command::Lint),
            ("sim", []) => Ok(Command::Sim),
            ("help" | "--help" | "-h", []) => Ok(Command::Help),
            ("e2e", [flag]) if flag == "--list" => Ok(Command::E2eList),
            ("e2e", rest) => Command::parse_e2e(rest),
            ("chaos", rest) => chaos::Options::parse(rest).map(Command::Chaos),
            ("fuzz", rest) => fuzz::Options::parse(rest).map(Command::Fuzz),
            ("test" | "lint" | "sim", [extra, ..]) => {
                Err(format!("{first} takes no argument, got {extra:?}"))
            }
            _ => Err(format!("unknown command {first:?}")),
        }
    }

    fn parse_e2e(rest: &[String]) -> Result<Command, String> {
        let mut choice = Choice::default();
        let mut rest = rest.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--full" => choice.full = true,
                "--seed" => {
                    let number = rest.next().and_then(|number| number.parse().ok());
                    choice.seed = Some(number.ok_or("--seed takes a number")?);
                }
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag:?}")),
                name => choice.names.push(name.to_owned()),
            }
        }
        Ok(Command::E2e(choice))
    }

    fn run(self) -> ExitCode {
        match self {
            Command::Test => suite::test(),
            Command::Lint => suite::lint(),
            Command::Sim => suite::sim(),
            Command::E2e(choice) => suite::e2e(&choice),
            Command::Chaos(options) => suite::chaos(&options),
            Command::Fuzz(options) => suite::fuzz(&options),
            Command::E2eList => {
                for scenario in e2e::SCENARIOS {
                    println!("{:<44} {}", scenario.name, scenario.story);
                }
                ExitCode::SUCCESS
            }
            Command::Help => {
                println!("{USAGE}");
                ExitCode::SUCCESS
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, Command};

    fn parse(line: &str) -> Result<Command, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Command::parse(&words)
    }

    #[test]
    fn commands_and_their_options_are_told_apart() {
        assert_eq!(parse("test"), Ok(Command::Test));
        assert_eq!(parse("e2e --list"), Ok(Command::E2eList));
        let selected = Choice { full: true, seed: None, names: vec!["power".into()] };
        assert_eq!(parse("e2e --full power"), Ok(Command::E2e(selected)));
        let seeded = Choice { seed: Some(7), ..Choice::default() };
        assert_eq!(parse("e2e --seed 7"), Ok(Command::E2e(seeded)));
        assert!(parse("e2e --seed often").is_err());
        assert!(parse("").is_err());
        assert!(parse("test now").is_err());
        assert!(parse("e2e --fast").is_err());
    }
}
