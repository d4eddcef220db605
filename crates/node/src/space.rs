//! Space: what the members of the view have room for, less what is on its way to them.
//! Owns: how many blocks the records since each checkpoint touch, and when a request is to wait for room.
//! Never: counts a block that a server does not own; lets a write take what removes need.
//! Invariant: what a member's image has yet to take in is at most what is debited for it here.
//! Source: docs/notes/room.md; rule 13.

use std::collections::VecDeque;

use harp_fs::inode::BLOCK_BYTES;
use harp_fs::plan;
use harp_store::{Disk, Engine, Store};
use harp_vr::{Op, Room};

use crate::api::{Notice, Now, Output};
use crate::jobs::Frozen;
use crate::node::{Copy, Node};

/// Entries kept for records that some member's image has not taken in; more are made one.
const ENTRIES_MAX: usize = 64;
/// Where room is tight an image does not lag behind longer than this: what was overwritten is free again then.
const TIGHT_NANOS: u64 = 200_000_000;
/// Blocks that one record touches at most: those of the longest write, and one more at its end.
const RECORD_BLOCKS_MAX: u64 = plan::TRANSFER_MAX as u64 / BLOCK_BYTES as u64 + 1;
/// How long a checkpoint that found no room waits.
const RETRY_NANOS: u64 = 1_000_000_000;

/// Blocks that a copy should own ahead of what it uses: as many as two rings of records bring, and what is kept
/// for requests that only remove or shorten.
pub fn blocks_ahead(ring_bytes: u64, checkpoint_bytes: u64) -> u64 {
    2 * ring_bytes / BLOCK_BYTES as u64 + kept_blocks(checkpoint_bytes)
}

/// Blocks that no WRITE may take: shortening a file writes its last block anew.
fn kept_blocks(checkpoint_bytes: u64) -> u64 {
    checkpoint_bytes / BLOCK_BYTES as u64
}

/// The room of a copy with this image, which may come to own `more_blocks`.
pub fn image_room<E: Engine, D: Disk>(store: &Store<E, D>, more_blocks: u64, grows: bool) -> Room {
    let space = store.space();
    let blocks = space.free_blocks + space.under_way_blocks;
    let left = space.limit_blocks - space.total_blocks;
    Room { op: Op(space.op), blocks, more_blocks: more_blocks.min(left), grows }
}

/// Blocks touched by the records between this copy's own checkpoints. A member's checkpoints end elsewhere, so
/// that all blocks of a stretch count until its image has taken in the last of it.
#[derive(Debug, Default)]
pub(crate) struct Debits {
    /// (last op, blocks), ascending.
    closed: VecDeque<(u64, u64)>,
    /// What came up to this op was not counted here.
    since: u64,
}

impl Debits {
    /// Counts what comes above `op`.
    pub fn starting(op: u64) -> Debits {
        Debits { closed: VecDeque::new(), since: op }
    }

    /// A generation that changed so many blocks ends at `op`.
    pub fn close(&mut self, op: u64, blocks: u64) {
        if blocks > 0 {
            self.closed.push_back((op, blocks));
        }
        if self.closed.len() > ENTRIES_MAX
            && let Some((_, oldest)) = self.closed.pop_front()
        {
            self.closed[0].1 += oldest;
        }
    }

    /// Every image has taken in all up to `op`.
    pub fn settle(&mut self, op: u64) {
        while self.closed.front().is_some_and(|(last, _)| *last <= op) {
            self.closed.pop_front();
        }
    }

    /// Blocks that an image at `op` has yet to take in, as far as they were counted.
    fn above(&self, op: u64) -> u64 {
        self.closed.iter().rev().take_while(|(last, _)| *last > op).map(|(_, blocks)| blocks).sum()
    }

    /// Blocks that it may have to take in besides: as many as a record can touch, for each that was not counted.
    fn uncounted(&self, op: u64) -> u64 {
        self.since.saturating_sub(op).saturating_mul(RECORD_BLOCKS_MAX)
    }
}

/// What a request finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It can be planned with this.
    Known(plan::Room),
    /// Checkpoints or growth under way may bring the room it needs.
    Wait,
}

impl Node {
    /// What there is room for, if a request is to touch `blocks` blocks.
    pub(crate) fn room_for(&self, blocks: u64) -> Answer {
        let copy = self.copy.as_ref().expect("only copies plan");
        let open = copy.shadow.active().changed_blocks();
        let kept = kept_blocks(self.settings.checkpoint_bytes);
        let mut room = plan::Room::ENDLESS;
        let (mut waits, mut hopeless) = (false, false);
        for member in self.replica.member_rooms() {
            let op = member.op.0;
            let open = if op < copy.shadow_op { open } else { 0 };
            let coming = copy.debits.above(op).saturating_add(open);
            let free = member.blocks.saturating_sub(kept);
            let left = free.saturating_sub(coming);
            // Seldom that much: it need not be owned yet, only to be had.
            let most = copy.debits.uncounted(op).saturating_add(coming).saturating_add(blocks);
            let doubtful = blocks > 0 && most > free.saturating_add(member.more_blocks);
            if left < blocks || doubtful {
                let helps = free >= blocks || member.more_blocks > 0;
                (waits, hopeless) = (waits | helps, hopeless | !helps);
            }
            room.blocks = room.blocks.min(left);
            room.free_blocks = room.free_blocks.min(left.saturating_add(member.more_blocks));
            room.grows &= member.grows;
        }
        if waits && !hopeless && room.grows { Answer::Wait } else { Answer::Known(room) }
    }

    /// The world measured what this server has room for.
    pub(crate) fn on_space(&mut self, mut room: Room, out: &mut Output) {
        let stuck = |copy: &Copy| copy.checkpoint.as_ref().is_some_and(|c| c.retry_at.is_some());
        if self.copy.as_ref().is_some_and(stuck) {
            (room.blocks, room.more_blocks) = (0, 0);
        }
        let before = self.replica.room();
        let tell = |text: &str| Notice::Remark { text: text.into() };
        match (before.grows, room.grows) {
            (true, false) => out.notices.push(tell(
                "the disk is nearly full: what needs space is refused, removing goes on; free space there",
            )),
            (false, true) => out.notices.push(tell("the disk has room again")),
            _ => {}
        }
        self.replica.on_room(room);
        let settled = self.replica.member_rooms().map(|room| room.op.0).min();
        if let (Some(copy), Some(op)) = (&mut self.copy, settled) {
            copy.debits.settle(op);
        }
    }

    /// A checkpoint found no room and changed nothing. It is tried again.
    pub(crate) fn on_no_room(&mut self, now: Now, frozen: Frozen, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies checkpoint");
        let checkpoint = copy.checkpoint.as_mut().expect("a checkpoint nobody asked for");
        let again = std::mem::replace(&mut copy.no_room, true);
        if again && copy.load.as_ref().is_some_and(|load| !load.busy) {
            self.replica.on_image_without_room();
        } else if !again {
            let text = "the image cannot take in what is in the log: the disk is full; tried again until there is room";
            out.notices.push(Notice::Remark { text: text.into() });
        }
        checkpoint.frozen = Some(frozen);
        checkpoint.retry_at = Some(now.steady.plus(RETRY_NANOS));
        self.try_discard(out);
        self.try_stage(out);
    }

    /// Whether the disk has, or may have, less room than this copy wants ahead of need.
    fn room_is_tight(&self) -> bool {
        let room = self.replica.room();
        let ahead = blocks_ahead(self.bytes.0.len(), self.settings.checkpoint_bytes);
        room == Room::ENDLESS || room.more_blocks == 0 && room.blocks < ahead
    }

    /// How long this copy's image may lag behind, given `usual`.
    pub(crate) fn checkpoint_pause(&self, usual: u64) -> u64 {
        if self.replica.room() != Room::ENDLESS && self.room_is_tight() {
            TIGHT_NANOS.min(usual)
        } else {
            usual
        }
    }

    /// A generation that changed so many blocks is frozen as soon as may be.
    pub(crate) fn generation_blocks_max(&self) -> u64 {
        let kept = kept_blocks(self.settings.checkpoint_bytes);
        if self.room_is_tight() { kept / 2 } else { kept }
    }

    /// Whether another record would make too much of the active generation. The others went on from image to image
    /// while this copy was away, each with [`kept_blocks`] to spare; all at once would take the room for old and new
    /// content of everything that changed meanwhile.
    pub(crate) fn must_checkpoint_first(&self) -> bool {
        let Some(copy) = &self.copy else { return false };
        // One that waits for room may wait for long.
        let under_way = copy.checkpoint.as_ref().is_some_and(|c| c.frozen.is_none());
        let blocks = copy.shadow.active().changed_blocks();
        if !under_way || !self.room_is_tight() || blocks < self.generation_blocks_max() {
            return false;
        }
        // A primary asked for room before it planned, and its clients wait; what earlier views left it did not plan.
        let next = self.log.growing().record(copy.shadow_op + 1);
        let view = self.replica.formed().0;
        !(self.replica.is_serving() && next.is_some_and(|record| record.header.view == view))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_counts_until_its_last_op_is_in_the_image() {
        let mut debits = Debits::default();
        debits.close(10, 5);
        debits.close(20, 0);
        debits.close(30, 7);
        assert_eq!([0, 9, 10, 29, 30].map(|op| debits.above(op)), [12, 12, 7, 7, 0]);
        debits.settle(10);
        assert_eq!(debits.above(0), 7);
        let mut debits = Debits::starting(8);
        debits.close(10, 5);
        assert_eq!([6, 8, 10].map(|op| debits.above(op)), [5, 5, 0]);
        assert_eq!([6, 8, 10].map(|op| debits.uncounted(op)), [2 * RECORD_BLOCKS_MAX, 0, 0]);
    }

    #[test]
    fn entries_are_bounded_and_none_is_forgotten() {
        let mut debits = Debits::default();
        (1..=1000).for_each(|op| debits.close(op, 1));
        assert_eq!(debits.closed.len(), ENTRIES_MAX);
        assert_eq!(debits.above(0), 1000);
        assert!(debits.above(990) >= 10);
    }
}
