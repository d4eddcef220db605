//! Explores a small group of replicas: `harp-model --ops 2 --views 3 --crashes 2 --media-losses 1`.
//! Owns: the command line and what is printed.
//! Never: says that all is well of what was not explored to the end.

use std::process::ExitCode;
use std::time::Duration;

use harp_model::{Answers, Bounds, Durability, Leases, Limits, Outcome, Search, Writes, explore};
use harp_vr::Planted;
use lexopt::prelude::*;

const USAGE: &str = "\
usage: harp-model [--n 1|2] [--ops N] [--views N] [--crashes N] [--media-losses N] [--checkpoints N]
                  [--durability disk|ups] [--ignore-leases] [--writes-apart] [--answers-late] [--no-catch-up] [--planted NAME]
                  [--breadth | --walks STEPS [--seed S]] [--threads N] [--seconds N] [--transitions N]

Explores every behaviour of a group within these bounds and prints how many states that were. `--walks` goes at
random instead, `--breadth` finds the shortest way to a violation.";

struct Orders {
    bounds: Bounds,
    search: Search,
    limits: Limits,
}

fn orders() -> Result<Option<Orders>, lexopt::Error> {
    let mut bounds = Bounds::none(1, Durability::Disk);
    let (mut search, mut seed) = (Search::Depth, 1);
    let mut limits = Limits { threads: 1, time: None, transitions: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("n") => {
                bounds.n = parser.value()?.parse_with(|n| match n {
                    "1" => Ok(1),
                    "2" => Ok(2),
                    _ => Err("n is 1 or 2"),
                })?
            }
            Long("ops") => bounds.ops = parser.value()?.parse()?,
            Long("views") => bounds.views = parser.value()?.parse()?,
            Long("crashes") => bounds.crashes = parser.value()?.parse()?,
            Long("media-losses") => bounds.media_losses = parser.value()?.parse()?,
            Long("checkpoints") => bounds.checkpoints = parser.value()?.parse()?,
            Long("durability") => {
                bounds.durability = parser.value()?.parse_with(|d| match d {
                    "disk" => Ok(Durability::Disk),
                    "ups" => Ok(Durability::Ups),
                    _ => Err("durability is disk or ups"),
                })?
            }
            Long("ignore-leases") => bounds.leases = Leases::Ignored,
            Long("writes-apart") => bounds.writes = Writes::Apart,
            Long("answers-late") => bounds.answers = Answers::Late,
            Long("no-catch-up") => bounds.catch_up = false,
            Long("planted") => {
                let named = |name: &str| Planted::named(name).ok_or("no such planted bug");
                bounds.planted = Some(parser.value()?.parse_with(named)?);
            }
            Long("breadth") => search = Search::Breadth,
            Long("walks") => search = Search::Walks { seed, steps: parser.value()?.parse()? },
            Long("seed") => seed = parser.value()?.parse()?,
            Long("threads") => limits.threads = parser.value()?.parse()?,
            Long("seconds") => limits.time = Some(Duration::from_secs(parser.value()?.parse()?)),
            Long("transitions") => limits.transitions = Some(parser.value()?.parse()?),
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if let Search::Walks { seed: chosen, .. } = &mut search {
        *chosen = seed;
    }
    Ok(Some(Orders { bounds, search, limits }))
}

fn main() -> ExitCode {
    let Orders { bounds, search, limits } = match orders() {
        Ok(Some(orders)) => orders,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("harp-model: {error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = explore(bounds, search, limits);
    let Outcome { states, transitions, depth, sizes, took, violation, missed } = outcome;
    println!(
        "{states} states, {transitions} transitions, depth {depth}, {:.1} s; {} servers, {} mails, {} turns",
        took.as_secs_f64(),
        sizes.0,
        sizes.1,
        sizes.2
    );
    if let Some((property, trace)) = violation {
        trace.iter().for_each(|line| println!("{line}"));
        eprintln!("FAILED {property}");
        return ExitCode::FAILURE;
    }
    missed.iter().for_each(|name| println!("never: {name}"));
    ExitCode::SUCCESS
}
