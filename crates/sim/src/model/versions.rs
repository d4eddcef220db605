//! A value and what it was before, by op.
//! Owns: one object's past, as far back as anyone may still ask.
//! Never: forgets the newest value.
//! Invariant: ops ascend.

/// A value's versions: each holds from its op up to the next one's.
#[derive(Clone, Debug)]
pub struct Versions<T> {
    all: Vec<(u64, T)>,
}

impl<T: Clone> Versions<T> {
    /// A value that holds since `op`.
    pub fn since(op: u64, value: T) -> Versions<T> {
        Versions { all: vec![(op, value)] }
    }

    fn index_at(&self, op: u64) -> Option<usize> {
        self.all.iter().rposition(|(since, _)| *since <= op)
    }

    /// The value right after `op`; `None` before the first one, and where it was forgotten.
    pub fn at(&self, op: u64) -> Option<&T> {
        self.index_at(op).map(|index| &self.all[index].1)
    }

    /// The same, to be completed with what was learned.
    pub fn at_mut(&mut self, op: u64) -> Option<&mut T> {
        self.index_at(op).map(|index| &mut self.all[index].1)
    }

    /// Whether the same version holds from the first op to the last.
    pub fn is_same(&self, span: (u64, u64)) -> bool {
        self.index_at(span.0) == self.index_at(span.1)
    }

    /// The newest value.
    pub fn latest(&self) -> &T {
        &self.all.last().expect("there is always a version").1
    }

    /// What came after `op` never was. Returns whether anything is left.
    pub fn cut(&mut self, op: u64) -> bool {
        let first = self.all.first().expect("there is always a version").clone();
        self.all.retain(|(since, _)| *since <= op);
        let left = !self.all.is_empty();
        if !left {
            self.all.push(first);
        }
        left
    }

    /// The value changes at `op`. Versions that nobody asks for, since none asks below `floor`, are
    /// forgotten.
    pub fn set(&mut self, op: u64, value: T, floor: u64) {
        let last = self.all.last_mut().expect("there is always a version");
        assert!(last.0 <= op, "the model changes in op order");
        if last.0 == op {
            last.1 = value;
            return;
        }
        let needed = self.index_at(floor).unwrap_or(0);
        self.all.drain(..needed);
        self.all.push((op, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_op_sees_the_value_that_held_then() {
        let mut value = Versions::since(3, 'a');
        value.set(5, 'b', 0);
        value.set(5, 'c', 0);
        value.set(9, 'd', 0);
        let seen: Vec<_> = [2, 3, 4, 5, 8, 9, 99].iter().map(|op| value.at(*op).copied()).collect();
        let (a, c, d) = (Some('a'), Some('c'), Some('d'));
        assert_eq!(seen, [None, a, a, c, c, d, d]);
        value.set(12, 'e', 6);
        assert_eq!((value.at(4), value.at(6), value.latest()), (None, Some(&'c'), &'e'));
    }
}
