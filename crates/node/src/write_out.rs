//! A log whose records count in memory: writing behind it, and writing it out.
//! Owns: when what is in memory alone goes to the disk; the end of a server whose memory may go.
//! Never: keeps anybody waiting for the disk, but where the ring is full.
//! Invariant: nothing leaves the server from the moment on in which it begins to write out, and the mark that it
//! did names all that it ever acknowledged.
//! Source: docs/protocol.md, rule 3; the Harp paper, section 3.

use harp_log::{DiskCommand, Progress, RECORD_BYTES_MAX, Room};
use harp_vr::Planted;

use crate::api::{Durability, Notice, Now, Output, Power};
use crate::node::Node;

/// So much in memory alone is worth a write, or this part of the ring.
const BEHIND_BYTES: u64 = 1 << 20;
const BEHIND_PART: u64 = 32;
/// A primary with more than this part of the ring in memory alone takes no new work: the write-out stays short, and
/// a disk that cannot follow slows clients down instead of filling the members' rings.
const FAR_BEHIND_PART: u64 = 8;
/// Nothing stays in memory alone for longer, if the disk keeps up.
const BEHIND_NANOS: u64 = 50_000_000;

/// A log that is being written out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOut {
    /// The head write to wait for, and the log's last op, once they are handed out.
    handed: Option<(u64, u64)>,
}

impl Node {
    pub(crate) fn on_power(&mut self, power: Power, out: &mut Output) {
        self.on_battery = power == Power::Battery;
        if power == Power::Ending && self.write_out.is_none() {
            self.write_out = Some(WriteOut { handed: None });
            if self.is_silent() {
                self.forget_what_leaves(out);
            }
        }
    }

    /// Acknowledging stops before the write-out starts, and so does everything else.
    pub(crate) fn is_silent(&self) -> bool {
        self.write_out.is_some() && self.settings.planted != Some(Planted::AckWhileWritingOut)
    }

    /// Hands the log out for good, as soon as no other head is on its way.
    pub(crate) fn go_on_writing_out(&mut self, out: &mut Output) {
        if self.failing || self.write_out.is_none_or(|write_out| write_out.handed.is_some()) {
            return;
        }
        if self.settings.durability == Durability::Disk {
            // All that counts is on the disk already.
            let end = self.log.current().durable();
            self.write_out = Some(WriteOut { handed: Some((0, end)) });
            return out.notices.push(Notice::WrittenOut { end });
        }
        let disk = self.replica.durable().incarnation.disk;
        let cp = self.replica.cp().0;
        if let Some(sequence) = self.log.write_out(disk, cp, &mut out.disk) {
            let end = self.log.current().end();
            self.write_out = Some(WriteOut { handed: Some((sequence, end)) });
        }
    }

    /// Takes note of a disk command that is done while the log is written out. Returns whether that is all that it
    /// meant.
    pub(crate) fn on_written_out(&mut self, progress: Progress, out: &mut Output) -> bool {
        let handed = self.write_out.and_then(|write_out| write_out.handed);
        if let (Some(head), Some((sequence, end))) = (progress.head, handed)
            && head == sequence
        {
            let goes_on = self.settings.planted == Some(Planted::AckWhileWritingOut);
            assert!(
                goes_on || self.log.current().end() == end,
                "appended to after it was written out"
            );
            out.notices.push(Notice::WrittenOut { end });
        }
        self.is_silent()
    }

    /// Ends a turn of a server whose records count in memory: there is nothing to wait for.
    pub(crate) fn write_behind(&mut self, now: Now, out: &mut Output) {
        (self.unsealed, self.unsealed_bytes) = (0, 0);
        if self.write_out.is_some() {
            return; // only a planted bug comes here
        }
        let since = match self.log.unwritten_bytes() {
            0 => None,
            _ => Some(*self.behind_since.get_or_insert(now.steady)),
        };
        self.behind_since = since;
        let due = since.is_some_and(|since| now.steady.since(since) >= BEHIND_NANOS);
        let worth = BEHIND_BYTES.min(self.log.ring().len() / BEHIND_PART);
        let least = if self.on_battery || due { 1 } else { worth };
        let cp = self.replica.cp().0;
        let before = out.disk.len();
        if self.log.write_behind(cp, least, &mut out.disk) {
            self.behind_since = None;
            self.write_since.get_or_insert(now.steady);
        }
        for command in &out.disk[before..] {
            if let DiskCommand::Write { at, bytes, .. } = command {
                self.last_write_end = at.plus(*bytes as u64);
            }
        }
    }

    /// Whether anybody waits for the log's disk now.
    pub(crate) fn waits_for_disk(&self) -> bool {
        let longest = self.settings.segment_bytes.min(RECORD_BYTES_MAX as u64);
        !self.log.ring().outlives() || self.is_far_behind() || self.log.room(longest) != Room::Ok
    }

    /// Whether more is in memory alone than should be.
    pub(crate) fn is_far_behind(&self) -> bool {
        let ring = self.log.ring();
        ring.outlives() && self.log.unwritten_bytes() > ring.len() / FAR_BEHIND_PART
    }
}
