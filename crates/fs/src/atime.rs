//! Access times: which objects were read since their time of access was last recorded.
//! Owns: the rule when a new time is due, and the objects that it is due for.
//! Never: makes a read wait; what is gathered here may be lost with its server.
//! Invariant: bounded; an object is forgotten rather than fetched for its access time.
//! Source: mount(8), "relatime".

use std::collections::BTreeMap;

use crate::effect::EffectWriter;
use crate::inode::{INODE_BYTES_MAX, Inode, Known};
use crate::request::Time;
use crate::shadow::Shadow;

/// Objects that are remembered at most; more are noted when they are read again.
const OBJECTS_MAX: usize = 4_096;
/// An access time this old is due for a new one, whatever happened to the object since.
const OLD_SECONDS: u32 = 24 * 60 * 60;
/// Bytes of an effect around its inode at most.
const EFFECT_BYTES: usize = 16;

/// When reading an object changes its access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessTimes {
    /// When it was changed since it was last read, or was last read a day ago. Recorded a moment later.
    Relative,
    /// Never.
    Off,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Accesses {
    mode: AccessTimes,
    /// When each was read last.
    objects: BTreeMap<u64, Time>,
}

impl Accesses {
    pub fn new(mode: AccessTimes) -> Accesses {
        Accesses { mode, objects: BTreeMap::new() }
    }

    pub fn clear(&mut self) {
        self.objects.clear();
    }
}

fn is_due(inode: &Inode, now: Time) -> bool {
    let Inode { atime, mtime, ctime, .. } = *inode;
    atime <= mtime || atime <= ctime || now.seconds.saturating_sub(atime.seconds) >= OLD_SECONDS
}

impl Shadow {
    /// The object `ino` is read at `now`.
    #[inline]
    pub(crate) fn note_access(&mut self, ino: u64, inode: &Inode, now: Time) {
        let Accesses { mode, objects } = &mut self.accesses;
        if *mode == AccessTimes::Relative && objects.len() < OBJECTS_MAX && is_due(inode, now) {
            objects.insert(ino, now);
        }
    }

    /// Whether access times wait to be recorded.
    pub fn has_accesses(&self) -> bool {
        !self.accesses.objects.is_empty()
    }

    /// Writes the effects that set the access times of what was read, as many as `out` has room for; returns their
    /// length. What is no longer in memory is forgotten, and what was changed after it was read: a client may have set
    /// its access time.
    pub fn access_effects(&mut self, out: &mut [u8]) -> usize {
        let fit = out.len() / (EFFECT_BYTES + INODE_BYTES_MAX);
        let mut writer = EffectWriter::new(out);
        for _ in 0..fit {
            let Some((ino, atime)) = self.accesses.objects.pop_first() else { break };
            if let Known::Is(inode, _) = self.look_inode(ino)
                && inode.ctime < atime
            {
                writer.set_inode(ino, &Inode { atime, ..inode });
            }
        }
        writer.finish().expect("counted before")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::format_rows;

    fn inode(atime: u32, mtime: u32, ctime: u32) -> Inode {
        let time = |seconds| Time { seconds, nanos: 0 };
        let root = crate::key::parse_inode(&format_rows(Time::default())[1].1).unwrap();
        Inode { atime: time(atime), mtime: time(mtime), ctime: time(ctime), ..root }
    }

    #[test]
    fn an_access_time_is_due_after_a_change_or_after_a_day() {
        let now = Time { seconds: 1_000_000, nanos: 0 };
        assert!(is_due(&inode(999_990, 999_990, 5), now), "changed as it was read");
        assert!(is_due(&inode(999_990, 5, 999_995), now));
        assert!(!is_due(&inode(999_990, 5, 5), now));
        assert!(is_due(&inode(now.seconds - OLD_SECONDS, 5, 5), now));
    }
}
