//! At or below CP, the same record at the same op everywhere.
//! Owns: the checksum of every committed record, by op.
//! Never: lets a committed record change.
//! Source: property 2.

use harp_node::vr::{ServerId, View};

use super::require;

/// The property, in words.
pub const NAME: &str = "2, one history";

/// The history, as first seen.
#[derive(Debug, Default)]
pub struct OneHistory {
    records: Vec<(u32, View)>,
}

impl OneHistory {
    /// Ops seen committed.
    pub fn committed(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether the record with this checksum is the one that was committed as `op`, if one was.
    pub fn agrees(&self, op: u64, crc: u32, view: View) -> bool {
        self.records.get(op as usize - 1).is_none_or(|known| *known == (crc, view))
    }

    /// An operator's override kept the history up to `kept`.
    pub fn overridden(&mut self, kept: u64) {
        self.records.truncate(kept as usize);
    }

    /// `server` counts `op` as committed and holds the record with this checksum. Returns whether the op
    /// is new.
    pub fn observe(
        &mut self,
        server: ServerId,
        op: u64,
        crc: u32,
        view: View,
    ) -> Result<bool, super::Violation> {
        let next = self.committed() + 1;
        require(NAME, op <= next, || {
            format!("{server} counts op {op} as committed; nobody committed op {next}")
        })?;
        if op == next {
            self.records.push((crc, view));
            return Ok(true);
        }
        let known = self.records[op as usize - 1];
        require(NAME, known == (crc, view), || {
            let (first, other) = (known.1, view);
            format!(
                "op {op} is a record of view {first} ({:08x}) in one log and of view {other} \
                 ({crc:08x}) at {server}",
                known.0
            )
        })?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_record_at_a_committed_op_is_noticed() {
        let mut history = OneHistory::default();
        let (a, b) = (ServerId(0), ServerId(1));
        assert_eq!(history.observe(a, 1, 5, View(9)), Ok(true));
        assert_eq!(history.observe(b, 1, 5, View(9)), Ok(false));
        assert!(history.observe(b, 1, 6, View(9)).is_err());
        assert!(history.observe(b, 3, 6, View(9)).is_err());
    }
}
