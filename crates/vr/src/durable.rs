//! The view file: what a server must remember to keep its promises.
//! Owns: its fields and their bytes.
//! Never: goes back: promised and formed only grow on one disk.
//! Invariant: promised >= formed.
//! Source: docs/protocol.md, rules 1 to 4; docs/disk-format.md has the layout.

use crate::codec::{CodecError, Reader, Writer};
use crate::message::Configuration;
use crate::types::{Incarnation, Op, ServerSet, View};

const MAGIC: u32 = 0x4852_5056; // "HRPV"
const VERSION: u32 = 2;

/// The content of the view file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Durable {
    /// The group this disk belongs to.
    pub group: [u8; 16],
    /// This life on this disk.
    pub incarnation: Incarnation,
    /// Highest view this server agreed to join.
    pub promised: View,
    /// Highest view whose complete initial log it holds.
    pub formed: View,
    /// The members of `formed`.
    pub members: ServerSet,
    /// Set when a write to the log failed: the log is not intact until rewritten (rule 8).
    pub log_void: bool,
    /// Who counts, as far as that is settled: committed, or in the log that `formed` began with.
    pub configuration: Configuration,
    /// The changes up to this op are in it. A start finds them in the log again and must not go back to them.
    pub settled: Op,
    /// The memory in which the log's newest records count as held, by its id; 0: they count once they are on the
    /// disk. Written with the start that it holds for.
    pub memory: u64,
    /// The override that the image comes after; none: an image of the group's first history.
    pub branch: View,
    /// No record of a view above this one and `formed` is in the image.
    pub learned: View,
}

impl Durable {
    /// The bytes of one slot, its sequence number included; the slot file adds nothing.
    pub fn encode(&self, sequence: u64) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32(MAGIC).u32(VERSION).u64(sequence).bytes(&self.group);
        w.incarnation(self.incarnation).u64(self.promised.0).u64(self.formed.0);
        w.u8(self.members.0).u8(self.log_void as u8).configuration(&self.configuration);
        w.u64(self.settled.0).u64(self.memory).u64(self.branch.0).u64(self.learned.0);
        w.sealed()
    }

    /// Reads a slot: the content and its sequence number.
    pub fn decode(slot: &[u8]) -> Result<(Durable, u64), CodecError> {
        let mut r = Reader::unsealed(slot)?;
        if r.u32()? != MAGIC {
            return Err(CodecError::Malformed("view file magic"));
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(CodecError::Malformed("view file version: written by another harp"));
        }
        let sequence = r.u64()?;
        let durable = Durable {
            group: r.array()?,
            incarnation: r.incarnation()?,
            promised: r.view()?,
            formed: r.view()?,
            members: r.servers()?,
            log_void: r.flag()?,
            configuration: r.configuration()?,
            settled: r.op()?,
            memory: r.u64()?,
            branch: r.view()?,
            learned: r.view()?,
        };
        if durable.promised < durable.formed {
            return Err(CodecError::Malformed("promised view below the formed one"));
        }
        Ok((durable, sequence))
    }

    /// Whether a slot was written whole by a newer version, whose content this one cannot know.
    pub fn is_newer(slot: &[u8]) -> bool {
        Durable::version(slot).is_some_and(|version| version > VERSION)
    }

    /// Whether a slot was written whole by an older version, whose layout this one does not know.
    pub fn is_older(slot: &[u8]) -> bool {
        Durable::version(slot).is_some_and(|version| version < VERSION)
    }

    /// The version of a slot that was written whole.
    fn version(slot: &[u8]) -> Option<u32> {
        let mut r = Reader::unsealed(slot).ok()?;
        (r.u32() == Ok(MAGIC)).then(|| r.u32().ok())?
    }

    /// The newest content among the two slots; `None` if neither is whole (media loss, rule 4).
    pub fn newest(slots: [Option<&[u8]>; 2]) -> Option<(Durable, u64)> {
        let whole = slots.into_iter().flatten().filter_map(|s| Durable::decode(s).ok());
        whole.max_by_key(|(_, sequence)| *sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overriding::Override;
    use crate::types::ServerId;

    fn sample() -> Durable {
        Durable {
            group: [7; 16],
            incarnation: Incarnation { disk: 9, start: 3 },
            promised: View::new(0, 1, 5, ServerId(0)),
            formed: View::new(0, 1, 4, ServerId(1)),
            members: ServerSet(0b101),
            log_void: false,
            configuration: Configuration {
                disks: [1, 2, 3, 0, 0, 0, 0],
                needs_image: ServerSet(2),
                overridden: Override::NONE,
            },
            settled: Op(12),
            memory: 6,
            branch: View::NONE,
            learned: View::new(0, 1, 3, ServerId(1)),
        }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let (old, new) =
            (sample(), Durable { promised: View::new(0, 1, 6, ServerId(0)), ..sample() });
        let (a, b) = (old.encode(1), new.encode(2));
        assert_eq!(Durable::newest([Some(&a), Some(&b)]), Some((new, 2)));
        let mut torn = b.clone();
        torn[40] ^= 1;
        assert_eq!(Durable::newest([Some(&a), Some(&torn)]), Some((old, 1)));
        assert_eq!(Durable::newest([None, Some(&torn)]), None);
    }

    #[test]
    fn a_newer_version_is_not_taken_for_damage() {
        let slot = |version| {
            let mut w = Writer::default();
            w.u32(MAGIC).u32(version).bytes(b"what a later version keeps");
            w.sealed()
        };
        assert!(Durable::is_newer(&slot(VERSION + 1)));
        assert!(!Durable::is_newer(&slot(VERSION)) && !Durable::is_older(&slot(VERSION)));
        assert!(Durable::is_older(&slot(VERSION - 1)));
        let mut damaged = slot(VERSION + 1);
        *damaged.last_mut().expect("not empty") ^= 1;
        assert!(!Durable::is_newer(&damaged));
    }
}
