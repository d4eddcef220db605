//! Linearizable: whether a history can have come about one operation at a time.
//! Owns: the search for an order of the operations that explains every outcome.
//! Never: knows what the operations are; a model says what each does to a state.
//! Invariant: each operation that must have happened takes effect once, between its begin and its end.
//! Source: Gavin Lowe, "Testing for linearizability" (2017), just-in-time linearization: an operation is put into the
//! order at the latest when it ends. The work follows from how many overlap, not from the length of the history.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

/// Operations that may overlap at one time: as many as a mask has bits.
const OPEN_MAX: usize = 64;
/// Explanations that are followed at one time.
const EXPLANATIONS_MAX: usize = 1 << 18;
/// The end of what never ended.
pub const NEVER: u64 = u64::MAX;

/// What operations do.
pub trait Model {
    /// All that outcomes depend on.
    type State: Clone + Eq + Hash;
    /// An operation with its outcome.
    type Operation;

    /// The state after the operation, or `None` if it cannot have had its outcome in this state.
    fn step(state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// An operation and when it took place.
#[derive(Clone, Debug)]
pub struct Interval<O> {
    /// What happened.
    pub operation: O,
    /// A time before it took effect.
    pub begin: u64,
    /// A time after it took effect, or [`NEVER`].
    pub end: u64,
    /// Whether it must have taken effect; else it may have.
    pub must: bool,
    /// The index of another that took effect before it.
    pub after: Option<usize>,
}

/// Why a history is not accepted. Both name the interval at whose end no explanation was left or too many were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No order explains the outcomes up to this one.
    Impossible(usize),
    /// More overlaps than can be searched.
    Undecided(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Impossible(_) => write!(f, "no order of the operations explains"),
            Refusal::Undecided(_) => write!(f, "too much happened at once to judge"),
        }
    }
}

/// A state, and which of the open operations took effect on the way to it.
type Explanation<M> = (u64, <M as Model>::State);

/// The search, at one point of the history.
struct Search<'h, M: Model> {
    history: &'h [Interval<M::Operation>],
    /// The operations that have begun and not ended; each keeps its place, which is its bit in a mask.
    open: Vec<Option<usize>>,
    explanations: HashSet<Explanation<M>>,
}

/// Looks for an order that explains the history, from `initial` on.
pub fn check<M: Model>(
    initial: M::State,
    history: &[Interval<M::Operation>],
) -> Result<(), Refusal> {
    // At the same time, begins come first: the two may have overlapped.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(history.len() * 2);
    for (index, interval) in history.iter().enumerate() {
        assert!(interval.begin <= interval.end, "an operation ends after it began");
        events.push((interval.begin, false, index));
        if interval.end != NEVER {
            events.push((interval.end, true, index));
        }
    }
    events.sort_unstable();
    let explanations = HashSet::from([(0, initial)]);
    let mut search = Search::<M> { history, open: vec![None; OPEN_MAX], explanations };
    for (_, ends, index) in events {
        if ends { search.end(index)? } else { search.begin(index)? }
    }
    Ok(())
}

impl<M: Model> Search<'_, M> {
    fn begin(&mut self, index: usize) -> Result<(), Refusal> {
        let free = self.open.iter_mut().find(|place| place.is_none());
        *free.ok_or(Refusal::Undecided(index))? = Some(index);
        Ok(())
    }

    fn place_of(&self, index: usize) -> Option<usize> {
        self.open.iter().position(|place| *place == Some(index))
    }

    /// Keeps the explanations in which this operation has taken effect, and lets it take effect in the others.
    fn end(&mut self, index: usize) -> Result<(), Refusal> {
        let place = self.place_of(index).expect("what ends has begun");
        let bit = 1 << place;
        let optional = !self.history[index].must;
        let mut seen: HashSet<Explanation<M>> = HashSet::new();
        let mut kept: HashSet<Explanation<M>> = HashSet::new();
        let mut follow: Vec<Explanation<M>> = Vec::new();
        for (mask, state) in std::mem::take(&mut self.explanations) {
            if mask & bit != 0 {
                kept.insert((mask & !bit, state));
                continue;
            }
            if optional {
                kept.insert((mask, state.clone()));
            }
            if seen.insert((mask, state.clone())) {
                follow.push((mask, state));
            }
        }
        while let Some((mask, state)) = follow.pop() {
            for (next_place, next) in self.takeable(mask) {
                let Some(after) = M::step(&state, &self.history[next].operation) else { continue };
                let mask = mask | 1 << next_place;
                if next_place == place {
                    kept.insert((mask & !bit, after));
                } else if seen.insert((mask, after.clone())) {
                    follow.push((mask, after));
                }
            }
            if kept.len() + seen.len() > EXPLANATIONS_MAX {
                return Err(Refusal::Undecided(index));
            }
        }
        self.open[place] = None;
        self.explanations = kept;
        if self.explanations.is_empty() { Err(Refusal::Impossible(index)) } else { Ok(()) }
    }

    /// The open operations that may take effect next, by their places.
    fn takeable(&self, mask: u64) -> Vec<(usize, usize)> {
        let taken = |index| match self.place_of(index) {
            Some(place) => mask & 1 << place != 0,
            None => true,
        };
        let open = self.open.iter().enumerate();
        open.filter_map(|(place, index)| Some((place, (*index)?)))
            .filter(|(place, _)| mask & 1 << place == 0)
            .filter(|(_, index)| self.history[*index].after.is_none_or(taken))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// A number that is written, read, and added to; adding says what was there before.
    struct Register;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Op {
        Write(u8),
        Read(u8),
        AddOneTo(u8),
    }

    impl Model for Register {
        type State = u8;
        type Operation = Op;

        fn step(state: &u8, operation: &Op) -> Option<u8> {
            match operation {
                Op::Write(value) => Some(*value),
                Op::Read(seen) => (seen == state).then_some(*state),
                Op::AddOneTo(seen) => (seen == state).then_some(*state + 1),
            }
        }
    }

    fn at(begin: u64, end: u64, operation: Op) -> Interval<Op> {
        Interval { operation, begin, end, must: true, after: None }
    }

    fn maybe(begin: u64, end: u64, operation: Op) -> Interval<Op> {
        Interval { must: false, ..at(begin, end, operation) }
    }

    fn accepts(history: &[Interval<Op>]) -> bool {
        check::<Register>(0, history).is_ok()
    }

    #[test]
    fn what_overlaps_may_be_in_either_order_and_what_does_not_may_not() {
        use Op::*;
        assert!(accepts(&[at(0, 9, Write(1)), at(1, 2, Read(0)), at(3, 4, Read(1))]));
        assert!(!accepts(&[at(0, 9, Write(1)), at(1, 2, Read(1)), at(3, 4, Read(0))]));
        // A stale read, a lost write, a value that nobody wrote.
        assert!(!accepts(&[at(0, 1, Write(1)), at(2, 3, Read(0))]));
        assert!(!accepts(&[at(0, 1, Write(1)), at(2, 3, Write(2)), at(4, 5, Read(1))]));
        assert!(!accepts(&[at(0, 1, Write(1)), at(0, 1, Read(7))]));
        // Done twice: both saw the same number.
        assert!(!accepts(&[at(0, 5, AddOneTo(0)), at(0, 5, AddOneTo(0))]));
        assert!(accepts(&[at(0, 5, AddOneTo(1)), at(0, 5, AddOneTo(0))]));
        // Two readers may not see two writes in different orders.
        let writes = [at(0, 9, Write(1)), at(0, 9, Write(2))];
        let reads = |first: [u8; 2], second: [u8; 2]| {
            let read = |from, values: [u8; 2]| {
                [at(from, from + 1, Read(values[0])), at(from + 2, from + 3, Read(values[1]))]
            };
            [&writes[..], &read(1, first), &read(2, second)].concat()
        };
        assert!(accepts(&reads([1, 2], [1, 2])));
        assert!(!accepts(&reads([1, 2], [2, 1])));
    }

    #[test]
    fn what_may_have_happened_explains_and_is_not_demanded() {
        use Op::*;
        let read = |value| at(5, 6, Read(value));
        assert!(accepts(&[maybe(0, 9, Write(1)), read(1)]));
        assert!(accepts(&[maybe(0, 9, Write(1)), read(0)]));
        assert!(accepts(&[maybe(0, NEVER, Write(1)), read(0), at(7, 8, Read(1))]));
        assert!(!accepts(&[maybe(0, 9, Write(1)), read(1), at(7, 8, Read(0))]));
        // Over before the read began, and so not any more.
        assert!(!accepts(&[at(0, 1, Write(2)), maybe(0, 2, Write(1)), read(2), at(7, 8, Read(1))]));
        // Only behind the other.
        let behind = Interval { after: Some(0), ..maybe(0, 9, Write(1)) };
        assert!(accepts(&[at(0, 4, Write(2)), behind.clone(), read(1)]));
        assert!(!accepts(&[at(0, 4, Write(2)), behind, at(0, 1, Read(1)), at(2, 3, Read(0))]));
    }

    /// Tries every order.
    fn accepted_by_trying(history: &[Interval<Op>], state: u8, left: &[usize]) -> bool {
        left.iter().all(|index| !history[*index].must)
            || left.iter().any(|next| {
                let first = |other: &usize| history[*other].end >= history[*next].begin;
                let rest: Vec<usize> = left.iter().copied().filter(|i| i != next).collect();
                // One that may be left out need not go before.
                rest.iter().all(|other| !history[*other].must || first(other))
                    && Register::step(&state, &history[*next].operation).is_some_and(|state| {
                        let later = |i: &usize| first(i) || history[*i].must;
                        let rest: Vec<usize> = rest.iter().copied().filter(later).collect();
                        accepted_by_trying(history, state, &rest)
                    })
            })
    }

    #[test]
    fn the_search_agrees_with_trying_every_order() {
        let mut counts = [0; 2];
        for seed in 0..20_000 {
            let mut random = Random(seed);
            let one = |_| {
                let begin = random.below(12);
                let value = random.below(3) as u8;
                let operation = match random.below(5) {
                    0 | 1 => Op::Write(value),
                    2 | 3 => Op::Read(value),
                    _ => Op::AddOneTo(value),
                };
                let (end, must) = (begin + random.below(6), random.below(5) > 0);
                Interval { must, ..at(begin, end, operation) }
            };
            let history: Vec<Interval<Op>> = (0..6).map(one).collect();
            let all: Vec<usize> = (0..history.len()).collect();
            let accepted = accepts(&history);
            assert_eq!(accepted, accepted_by_trying(&history, 0, &all), "{history:?}");
            counts[usize::from(accepted)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 1000), "{counts:?}");
    }

    #[test]
    fn a_long_history_takes_little_and_its_last_fault_is_found() {
        let mut history: Vec<Interval<Op>> = Vec::new();
        for round in 0..50_000_u64 {
            let value = (round % 250) as u8;
            history.push(at(round * 10, round * 10 + 6, Op::Write(value)));
            history.push(at(round * 10 + 3, round * 10 + 9, Op::Read(value)));
        }
        assert!(accepts(&history));
        let last = history.len() - 1;
        history[last].operation = Op::Read(251);
        assert_eq!(check::<Register>(0, &history), Err(Refusal::Impossible(last)));
    }

    #[test]
    fn too_much_at_once_is_not_taken_for_right() {
        let history: Vec<Interval<Op>> = (0..30).map(|i| at(0, 9, Op::Write(i))).collect();
        assert!(matches!(check::<Register>(0, &history), Err(Refusal::Undecided(_))));
        let history: Vec<Interval<Op>> = (0..65).map(|_| maybe(0, 9, Op::Read(9))).collect();
        assert!(matches!(check::<Register>(0, &history), Err(Refusal::Undecided(_))));
    }
}
