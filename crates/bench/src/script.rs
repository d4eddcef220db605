//! Script: which operation a lane tries next.
//! Owns: the mixture of operations and the bounds on a lane's size.
//! Never: knows how earlier ones went, except through the model.
//! Invariant: the next operation follows from the seed and the model alone.
//! Source: what clients of file servers do, with repeats and clashes stirred in.

use crate::expected::{Expected, Node};
use crate::operation::{FILE_UNITS_MAX, Operation, mixed};

const NAMES_MAX: usize = 24;
const DIRECTORIES_MAX: usize = 3;
/// Sizes of small and large writes, in units.
const SMALL_UNITS_MAX: u32 = 24;

/// What a lane does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A modification.
    Modify(Operation),
    /// Read `units` units of a file from unit `at` and compare.
    Read {
        /// The file.
        path: String,
        /// First unit.
        at: u32,
        /// Number of units, possibly beyond the end.
        units: u32,
    },
}

/// A lane's generator.
#[derive(Clone, Debug)]
pub struct Script {
    state: u64,
    /// The exclusive creation just made, to be repeated by chance.
    exclusive: Option<(String, u64)>,
}

impl Script {
    /// A generator whose choices follow from `seed`.
    pub fn new(seed: u64) -> Script {
        Script { state: seed, exclusive: None }
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.state = self.state.wrapping_add(1);
        (((mixed(self.state) >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// The next step, which if it modifies will be the lane's number `sequence`.
    pub fn next(&mut self, expected: &Expected, sequence: u64) -> Step {
        if let Some((path, verifier)) = self.exclusive.take()
            && self.below(2) == 0
        {
            return Step::Modify(Operation::CreateExclusive { path, verifier });
        }
        let files = paths(expected, |node| matches!(node, Node::File(_)));
        if files.is_empty() || self.below(100) < 60 {
            return Step::Modify(self.names(expected, &files, sequence));
        }
        let path = self.pick(&files).to_string();
        let len = expected.contents(&path).map_or(0, |contents| contents.len_units());
        let units = if self.below(8) == 0 { FILE_UNITS_MAX } else { SMALL_UNITS_MAX };
        match self.below(8) {
            0 => Step::Modify(Operation::Truncate { path, units: self.below(len + 9).min(units) }),
            1 | 2 => Step::Read { path, at: self.below(len + 1), units: 1 + self.below(units) },
            _ => {
                let at = self.below((len + 1).min(FILE_UNITS_MAX));
                let units = (1 + self.below(units)).min(FILE_UNITS_MAX - at);
                Step::Modify(Operation::Write { path, at, units })
            }
        }
    }

    /// An operation on names.
    fn names(&mut self, expected: &Expected, files: &[&str], sequence: u64) -> Operation {
        let dirs = paths(expected, |node| matches!(node, Node::Directory(_)));
        let full = expected.names().count() >= NAMES_MAX;
        let others = paths(expected, |node| !matches!(node, Node::Directory(_)));
        let new = self.new_path(&dirs, sequence);
        match self.below(20) {
            0 if dirs.len() < DIRECTORIES_MAX => Operation::MkDir { path: format!("d{sequence}") },
            0 | 1 if !dirs.is_empty() => self.with_directory(&dirs, sequence),
            2 if !others.is_empty() => Operation::Remove { path: format!("missing{sequence}") },
            3 if !files.is_empty() => {
                Operation::CreateGuarded { path: self.pick(files).to_string() }
            }
            4 if !files.is_empty() => {
                Operation::CreateUnchecked { path: self.pick(files).to_string() }
            }
            5..=8 if !others.is_empty() => {
                Operation::Rename { from: self.pick(&others).to_string(), to: new }
            }
            9 if others.len() > 1 => {
                let (from, to) = (self.pick(&others), self.pick(&others));
                Operation::Rename { from: from.to_string(), to: to.to_string() }
            }
            10 if !files.is_empty() && !full => {
                Operation::Link { from: self.pick(files).to_string(), to: new }
            }
            11..=13 if !others.is_empty() => {
                Operation::Remove { path: self.pick(&others).to_string() }
            }
            _ if full => Operation::Remove { path: self.pick(&others).to_string() },
            14 => Operation::SymLink { path: new },
            15 | 16 => Operation::CreateGuarded { path: new },
            17 | 18 => {
                self.exclusive = Some((new.clone(), sequence));
                Operation::CreateExclusive { path: new, verifier: sequence }
            }
            _ => Operation::CreateUnchecked { path: new },
        }
    }

    fn with_directory(&mut self, dirs: &[&str], sequence: u64) -> Operation {
        let path = self.pick(dirs).to_string();
        match self.below(4) {
            0 => Operation::MkDir { path },
            1 => Operation::Rename { from: path, to: format!("d{sequence}") },
            _ => Operation::RmDir { path },
        }
    }

    /// A name that was never used, in any directory.
    fn new_path(&mut self, dirs: &[&str], sequence: u64) -> String {
        match self.below(dirs.len() as u32 + 1) as usize {
            0 => format!("f{sequence}"),
            at => format!("{}/f{sequence}", dirs[at - 1]),
        }
    }

    fn pick<'p>(&mut self, paths: &[&'p str]) -> &'p str {
        paths[self.below(paths.len() as u32) as usize]
    }
}

fn paths(expected: &Expected, keep: impl Fn(Node) -> bool) -> Vec<&str> {
    expected.names().filter(|(_, node)| keep(*node)).map(|(path, _)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::LaneId;
    use harp_wire::request::Status;
    use std::collections::BTreeSet;

    #[test]
    fn the_mixture_has_everything_and_stays_bounded() {
        let mut expected = Expected::new(LaneId { run: 1, lane: 0 });
        let mut script = Script::new(42);
        let mut seen = BTreeSet::new();
        for sequence in 1..20_000 {
            let Step::Modify(operation) = script.next(&expected, sequence) else {
                seen.insert("read".to_string());
                continue;
            };
            let status = expected.outcome(&operation);
            let text = operation.to_string();
            assert_eq!(text.parse().as_ref(), Ok(&operation));
            let verb = text.split(' ').next().unwrap();
            seen.insert(format!("{verb} {status:?}"));
            expected.apply(sequence, &operation);
            assert!(expected.names().count() <= NAMES_MAX + DIRECTORIES_MAX);
            assert!(!matches!(status, Status::Stale | Status::NotDir | Status::IsDir), "{text}");
        }
        let want = [
            "create Ok",
            "create-exclusive Ok",
            "create-guarded Exist",
            "create-guarded Ok",
            "link Ok",
            "mkdir Exist",
            "mkdir Ok",
            "read",
            "remove NoEnt",
            "remove Ok",
            "rename Ok",
            "rmdir NotEmpty",
            "rmdir Ok",
            "symlink Ok",
            "truncate Ok",
            "write Ok",
        ];
        assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), want);
    }
}
