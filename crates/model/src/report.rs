//! Runs of the checker, and what came out.
//! Owns: the choice of a search, traces in words.
//! Never: decides what holds.

use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

use crate::bounds::Bounds;
use crate::chooser::Weighted;
use crate::world::Group;

/// What a run of the checker showed.
#[derive(Debug)]
pub struct Outcome {
    /// Different states; with random walks, steps.
    pub states: usize,
    /// Transitions, those to known states included.
    pub transitions: usize,
    /// The longest way to a state.
    pub depth: usize,
    /// Different servers, mails, and turns of a server.
    pub sizes: (usize, usize, usize),
    /// How long it took.
    pub took: Duration,
    /// The property that failed and how, step by step.
    pub violation: Option<(&'static str, Vec<String>)>,
    /// What must come to pass and did not.
    pub missed: Vec<&'static str>,
}

/// How the states are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Deep first: little memory besides what is known.
    Depth,
    /// Wide first: the shortest way to a violation.
    Breadth,
    /// Walks at random from a seed, for so many steps in all.
    Walks {
        /// The seed.
        seed: u64,
        /// Steps, over all walks.
        steps: usize,
    },
}

/// How much is explored at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads.
    pub threads: usize,
    /// Time; none if it is to be explored to the end.
    pub time: Option<Duration>,
    /// Transitions.
    pub transitions: Option<usize>,
}

/// Explores what `bounds` allow; ends at the first violation.
pub fn explore(bounds: Bounds, search: Search, limits: Limits) -> Outcome {
    let begin = Instant::now();
    let group = match search {
        Search::Depth | Search::Breadth => Group::new(bounds),
        Search::Walks { .. } => Group::new(bounds).for_walks(),
    };
    let mut builder: CheckerBuilder<Group> =
        group.checker().threads(limits.threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(time) = limits.time {
        builder = builder.timeout(time);
    }
    if let Some(transitions) = limits.transitions {
        builder = builder.target_state_count(transitions);
    }
    match search {
        Search::Depth => outcome(begin, builder.spawn_dfs().join()),
        Search::Breadth => outcome(begin, builder.spawn_bfs().join()),
        Search::Walks { seed, steps } => {
            let builder = builder.target_state_count(steps);
            outcome(begin, builder.spawn_simulation(seed, Weighted).join())
        }
    }
}

fn outcome(begin: Instant, checker: impl Checker<Group>) -> Outcome {
    let group = checker.model();
    let discoveries = checker.discoveries();
    let (mut violation, mut missed) = (None, Vec::new());
    for property in group.properties() {
        let discovery = discoveries.get(property.name);
        match (property.expectation, discovery) {
            (Expectation::Always, Some(path)) => {
                violation =
                    violation.or(Some((property.name, trace(group, path.clone().into_vec()))))
            }
            (Expectation::Sometimes, None) => missed.push(property.name),
            _ => {}
        }
    }
    Outcome {
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        sizes: group.tables().sizes(),
        took: begin.elapsed(),
        violation,
        missed,
    }
}

type Path = Vec<(crate::world::State, Option<crate::world::Step>)>;

fn trace(group: &Group, path: Path) -> Vec<String> {
    let mut lines = Vec::new();
    for (state, step) in path {
        lines.push(group.stand(&state));
        match step {
            Some(step) => lines.push(group.words(step)),
            None => lines.extend(group.tables().words.clone().filter(|_| state.broken.is_some())),
        }
    }
    lines
}
