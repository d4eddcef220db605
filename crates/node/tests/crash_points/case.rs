//! Case: one workload with its schedule, by numbers.
//! Owns: which cases there are, and the words that name one.
//! Never: depends on a clock, a thread or what was tried before.
//! Invariant: the name of a case says all there is to say of it.
//! Source: none.

use std::fmt;

use harp_fs::request::Time;
use harp_vr::Planted;

use crate::disks::Lie;
use crate::group::Manner;
use crate::rng::Rng;
use crate::story::{Base, Counts, Schedule, Story};
use crate::workload::{OPS, Op};

/// Bits of a variant: a checkpoint after the first request, and after the second.
const CHECKPOINTS: u32 = 3;
/// The primary's log is written last.
const PRIMARY_LAST: u32 = 4;
/// Checkpoints wait until the next request is answered.
const CHECKPOINTS_WAIT: u32 = 8;

/// A workload and how it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Number of the tree it starts from.
    pub tree: usize,
    /// Numbers of its requests.
    pub ops: Vec<usize>,
    pub variant: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tree)?;
        self.ops.iter().try_for_each(|op| write!(f, ".{op}"))?;
        write!(f, "/{}", self.variant)
    }
}

impl Case {
    /// The manners in which a group may work.
    pub fn manners() -> impl Iterator<Item = u32> {
        [0, PRIMARY_LAST, CHECKPOINTS_WAIT, PRIMARY_LAST | CHECKPOINTS_WAIT].into_iter()
    }

    /// The case that is written so.
    pub fn named(text: &str) -> Option<Case> {
        let (numbers, variant) = text.split_once('/')?;
        let numbers: Result<Vec<usize>, _> = numbers.split('.').map(str::parse).collect();
        let numbers = numbers.ok()?;
        let (tree, ops) = numbers.split_first()?;
        let known = *tree < crate::TREES.len() && ops.iter().all(|op| *op < OPS.len());
        let variant = variant.parse().ok()?;
        known.then(|| Case { tree: *tree, ops: ops.to_vec(), variant })
    }

    /// Whatever is drawn for this case.
    pub fn rng(&self) -> Rng {
        let numbers = self.ops.iter().fold(self.tree as u64, |all, op| all * 64 + *op as u64);
        Rng(numbers * 16 + u64::from(self.variant))
    }

    fn operations(&self) -> Vec<Op> {
        self.ops.iter().map(|op| OPS[*op]).collect()
    }

    /// Carries it out. `None`: a client could not ask for one of its requests.
    pub fn tell(
        &self,
        bases: &[Base],
        lie: Option<Lie>,
        planted: Option<Planted>,
    ) -> Result<Option<Story>, String> {
        let manner = Manner {
            primary_writes_last: self.variant & PRIMARY_LAST != 0,
            checkpoints_wait: self.variant & CHECKPOINTS_WAIT != 0,
            planted,
        };
        let schedule = Schedule { checkpoints: self.variant & CHECKPOINTS, manner, lie };
        bases[self.tree].tell(&self.operations(), schedule)
    }

    fn run(&self, bases: &[Base], again: u64) -> Result<Counts, String> {
        let Some(story) = self.tell(bases, None, None)? else { return Ok(Counts::default()) };
        if !story.changes_at_last() {
            return Ok(Counts { workloads: 1, ..Counts::default() });
        }
        let mut counts = story.crash_everywhere(&mut self.rng(), again)?;
        counts.replays = story.replay_everything(None)?;
        Ok(counts)
    }
}

/// Runs all cases; the first one that fails is named with the line that repeats it.
pub fn survey(bases: &[Base], cases: impl Iterator<Item = Case>, again: u64) -> Counts {
    let mut total = Counts::default();
    for case in cases {
        match case.run(bases, again) {
            Ok(counts) => total += counts,
            Err(why) => panic!(
                "{:?}: {why}\nagain: CRASH_ONLY={case} cargo test -p harp-node --test crash_points one_workload",
                case.operations()
            ),
        }
    }
    println!("{total}");
    total
}

/// Cases of three requests, each of which changes something, drawn at random and without an end.
pub fn drawn(bases: &[Base], seed: u64) -> impl Iterator<Item = Case> {
    let mut rng = Rng(seed);
    std::iter::from_fn(move || {
        loop {
            let tree = rng.below(bases.len() as u64) as usize;
            let ops: Vec<usize> = (0..3).map(|_| rng.below(OPS.len() as u64) as usize).collect();
            let case = Case { tree, ops, variant: rng.below(16) as u32 };
            if changes_throughout(&bases[tree], &case) {
                return Some(case);
            }
        }
    })
}

fn changes_throughout(base: &Base, case: &Case) -> bool {
    let mut model = base.model();
    case.operations().iter().zip(1..).all(|(op, place)| {
        let now = Time { seconds: 1, nanos: place as u32 };
        op.changes()
            && op.bind(&model, place).is_some_and(|bound| bound.apply(&mut model, now).is_ok())
    })
}
