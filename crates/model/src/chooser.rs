//! Walks at random: which step comes next.
//! Owns: how likely each kind of step is, and the random numbers, the same for a seed for ever.
//! Never: rules a step out.

use stateright::{Chooser, Model};

use crate::server::Event;
use crate::world::{Group, State, Step};

/// Chooses a kind of step, then one of that kind. Evenly over all steps there would be crashes and view changes
/// before anything is committed: there are many ways to die, and few to go on.
#[derive(Clone)]
pub struct Weighted;

/// A walk's random numbers, after Steele, Lea and Flood's SplitMix64.
pub struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// How often a kind of step comes, against the others.
fn weight(step: &Step) -> usize {
    match step {
        Step::Deliver(_) => 60,
        Step::Hear(_) => 12,
        Step::Happen(_, event) => match event {
            Event::ViewWritten | Event::LogWritten | Event::Tagged => 40,
            Event::Wait { long: false, .. } => 12,
            Event::Append(_) => 12,
            Event::Checkpoint => 6,
            Event::Wait { long: true, .. } => 3,
            Event::Crash(_) => 1,
            Event::LeasesEnd => 4,
        },
        Step::LeasesEnd => 4,
        Step::Cut(..) => 1,
    }
}

impl Chooser<Group> for Weighted {
    type State = Random;

    fn new_state(&self, seed: u64) -> Random {
        Random(seed)
    }

    fn choose_initial_state(&self, random: &mut Random, initial: &[State]) -> usize {
        random.below(initial.len())
    }

    fn choose_action(
        &self,
        random: &mut Random,
        _: &<Group as Model>::State,
        steps: &[Step],
    ) -> usize {
        let mut weights: Vec<usize> = steps.iter().map(weight).collect();
        weights.sort_unstable();
        weights.dedup();
        let mut at = random.below(weights.iter().sum());
        let chosen = weights.iter().find(|weight| {
            let here = at < **weight;
            at = at.saturating_sub(**weight);
            here
        });
        let chosen = chosen.expect("the weights sum up");
        let of_kind = |(_, step): &(usize, &Step)| weight(step) == *chosen;
        let mut kind = steps.iter().enumerate().filter(of_kind);
        let count = kind.clone().count();
        kind.nth(random.below(count)).expect("some step has that weight").0
    }
}
