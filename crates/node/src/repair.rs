//! Repair: damaged blocks of this copy's image, on their way back from another copy.
//! Owns: the list of them, whom to ask for which, and what calls that wait for one are told.
//! Never: takes bytes that have not the checksum the image wants there; holds up a checkpoint or any other call.
//! Invariant: a block leaves the list when the image has it, durably, or wants other bytes there.
//! Source: docs/notes/repair.md.

use std::collections::{BTreeMap, BTreeSet};

use harp_fs::need::Need;
use harp_store::{
    BLOCK_BYTES, BLOCK_INDEX_MAX, Block, DamagedBlock, Remedy, StoreError, block_crc,
};
use harp_vr::{Message, Nanos, Op, SERVERS_MAX, ServerId, ServerSet};

use crate::api::{Notice, Now, Output, RepairStatus};
use crate::jobs::{StoreJob, Work};
use crate::node::Node;

/// Damaged blocks known at once. Others are found again when somebody meets them.
const DAMAGED_MAX: usize = 1024;
/// Blocks that one copy asks for at once.
const ASKED_MAX: usize = 64;
/// Blocks looked at in one job.
const EXAMINED_MAX: usize = 64;
/// A copy that did not answer in so many failure timeouts has not got the block.
const ANSWER_TIMEOUTS: u64 = 10;
/// When nobody had a block, all are asked again after so many failure timeouts: images move on.
const ROUND_TIMEOUTS: u64 = 1;
/// After so many failure timeouts a block counts as lost, and what needs it fails.
const PATIENCE_TIMEOUTS: u64 = 50;
/// Between rounds for a lost block.
const LOST_ROUND_TIMEOUTS: u64 = 50;
/// Blocks that a remark names.
const NAMED_MAX: usize = 3;

/// Which block, and the checksum of what it should hold. As bytes: file, block, checksum, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockName {
    /// The file.
    pub file: u64,
    /// The block's index in the file.
    pub block: u64,
    /// CRC32C of the content.
    pub crc: u32,
}

/// Length of a name's bytes.
const NAME_BYTES: usize = 20;

impl BlockName {
    /// Its bytes.
    pub fn bytes(&self) -> [u8; NAME_BYTES] {
        let mut bytes = [0; NAME_BYTES];
        bytes[..8].copy_from_slice(&self.file.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.block.to_le_bytes());
        bytes[16..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    /// Reads a name and the block behind it, if one is there. `None`: the bytes are neither, or the block is not the
    /// one named.
    pub fn read(bytes: &[u8]) -> Option<(BlockName, Option<&Block>)> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (block, rest) = rest.split_first_chunk()?;
        let (crc, data) = rest.split_first_chunk()?;
        let name = BlockName {
            file: u64::from_le_bytes(*file),
            block: u64::from_le_bytes(*block),
            crc: u32::from_le_bytes(*crc),
        };
        let data: Option<&Block> = match data {
            [] => None,
            data => Some(data.try_into().ok()?),
        };
        let sound = data.is_none_or(|data| block_crc(data) == name.crc);
        (name.block <= BLOCK_INDEX_MAX && sound).then_some((name, data))
    }
}

/// The damaged blocks of a copy's image.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    damaged: BTreeMap<(u64, u64), Damaged>,
    /// To be looked at: the image changed since they were found.
    to_examine: BTreeSet<(u64, u64)>,
    examining: bool,
    writing: bool,
    /// Blocks being read for each other copy.
    reading: [usize; SERVERS_MAX],
    /// A checkpoint up to here brings this image and another one to the same content of a block.
    checkpoint_wanted: u64,
    told_no_room: bool,
    /// Blocks mended since the process began.
    mended: u64,
    /// The last of them, in words.
    last: Option<String>,
}

/// A damaged block.
#[derive(Debug)]
struct Damaged {
    /// The checksum of what it should hold.
    crc: u32,
    position: u64,
    since: Nanos,
    /// Who has not got it, in this round.
    tried: ServerSet,
    /// Each other copy was asked once, and none gave it.
    asked_all: bool,
    /// Nobody has it, for all we know. It is still asked for now and then.
    lost: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// To be asked for from then on.
    Due(Nanos),
    Asked(ServerId, Nanos),
    Here(ServerId, Box<Block>),
    /// On its way into the image.
    Writing(ServerId),
}

impl Repair {
    /// For people.
    pub fn status(&self) -> RepairStatus {
        let lost = self.damaged.values().filter(|damaged| damaged.lost).count() as u64;
        RepairStatus {
            damaged: (self.damaged.len() + self.to_examine.len()) as u64 - lost,
            lost,
            mended: self.mended,
            last_mended: self.last.clone(),
        }
    }

    /// Whether one of `needs` asks for a block that is being fetched.
    pub fn concerns(&self, needs: &[Need]) -> bool {
        let fetched = |need: &Need| match need {
            Need::Blocks { ino, first, count } => {
                let end = first.saturating_add(u64::from(*count));
                self.damaged.range((*ino, *first)..(*ino, end)).any(|(_, damaged)| !damaged.lost)
            }
            _ => false,
        };
        !self.damaged.is_empty() && needs.iter().any(fetched)
    }

    /// Whether a checkpoint of an image at `lb` would help a block to be found, here or elsewhere.
    pub fn wants_checkpoint(&self, lb: u64) -> bool {
        lb < self.checkpoint_wanted
    }

    /// Whether `damaged` was asked of everybody who may have it, `others`, and nobody gave it.
    pub fn is_with_none(
        &self,
        damaged: &DamagedBlock,
        mut others: impl Iterator<Item = ServerId>,
    ) -> bool {
        let known = self.damaged.get(&(damaged.file, damaged.block));
        match known.filter(|known| known.crc == damaged.crc) {
            Some(known) => known.asked_all || others.all(|other| known.tried.contains(other)),
            None => others.next().is_none(),
        }
    }

    /// Whether another block can be known. If there are too many, the one that has been lost for longest makes place: it
    /// is found again by whoever meets it.
    fn has_place(&mut self) -> bool {
        if self.damaged.len() < DAMAGED_MAX {
            return true;
        }
        let lost = self.damaged.iter().filter(|(_, damaged)| damaged.is_given_up());
        let oldest = lost.min_by_key(|(_, damaged)| damaged.since).map(|(place, _)| *place);
        oldest.is_some_and(|place| self.damaged.remove(&place).is_some())
    }

    /// The image is another one now.
    pub fn forget(&mut self) {
        self.damaged.clear();
        self.to_examine.clear();
    }

    fn examine_later(&mut self, blocks: impl Iterator<Item = (u64, u64)>) {
        for block in blocks {
            if self.to_examine.len() < 2 * DAMAGED_MAX {
                self.to_examine.insert(block);
            }
        }
    }
}

/// The first few of a number of blocks, for people.
fn names(damaged: &[DamagedBlock]) -> String {
    let first: Vec<String> = (damaged.iter().take(NAMED_MAX))
        .map(|d| format!("block {} of inode {} at position {}", d.block, d.file, d.position))
        .collect();
    let more = if damaged.len() > NAMED_MAX { ", ..." } else { "" };
    format!("{}{more}", first.join(", "))
}

impl Node {
    // ----- what is damaged -----

    /// Somebody met damaged blocks in the image.
    pub(crate) fn note_damage(&mut self, now: Now, found: &[DamagedBlock], out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies have images");
        if copy.load.is_some() {
            return; // it is exact at no op: nobody knows what it wants
        }
        let mut new = Vec::new();
        for damaged in found {
            let place = (damaged.file, damaged.block);
            match copy.repair.damaged.get(&place).map(|known| (known.crc, known.lost)) {
                Some((crc, lost)) if crc == damaged.crc => {
                    if lost {
                        copy.shadow.lose_block(place.0, place.1);
                    }
                }
                // The image moved on since either was seen: which is right will be seen.
                Some(_) => copy.repair.examine_later([place].into_iter()),
                None if !copy.repair.has_place() => copy.shadow.lose_block(place.0, place.1),
                None => {
                    copy.repair.damaged.insert(place, Damaged::new(damaged, now.steady));
                    new.push(*damaged);
                }
            }
        }
        if !new.is_empty() {
            let (count, names) = (new.len(), names(&new));
            let text = format!("{count} damaged in the image, to be mended: {names}");
            out.notices.push(Notice::Remark { text });
        }
    }

    /// The operator had the whole image looked at: what counts as lost is asked for as if it were new.
    pub(crate) fn note_scrub(&mut self, now: Now, found: &[DamagedBlock], out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies have images");
        for damaged in copy.repair.damaged.values_mut().filter(|damaged| damaged.lost) {
            damaged.lost = false;
            damaged.since = now.steady;
            if let Stage::Due(at) = &mut damaged.stage {
                *at = now.steady;
            }
        }
        self.note_damage(now, found, out);
    }

    /// The image moved on: what was damaged may be overwritten, `carried` is damaged in a new place.
    pub(crate) fn repair_moved(&mut self, carried: Vec<(u64, u64)>) {
        let copy = self.copy.as_mut().expect("only copies have images");
        let known: Vec<(u64, u64)> = copy.repair.damaged.keys().copied().collect();
        copy.repair.examine_later(known.into_iter().chain(carried));
    }

    /// Blocks were looked at; `damaged` are those that are damaged now.
    pub(crate) fn on_examined(
        &mut self,
        now: Now,
        examined: &[(u64, u64)],
        damaged: &[DamagedBlock],
        out: &mut Output,
    ) {
        let copy = self.copy.as_mut().expect("only copies have images");
        copy.repair.examining = false;
        for place in examined {
            let still = damaged.iter().find(|d| (d.file, d.block) == *place);
            let Some(known) = copy.repair.damaged.get_mut(place) else { continue };
            // What is being written is judged when that is over.
            if still.is_some_and(|d| d.crc == known.crc) || matches!(known.stage, Stage::Writing(_))
            {
                continue;
            }
            copy.shadow.found_block(place.0, place.1);
            match still {
                // It should be newer content now.
                Some(still) => {
                    *known = Damaged { since: known.since, ..Damaged::new(still, now.steady) }
                }
                None => drop(copy.repair.damaged.remove(place)),
            }
        }
        self.note_damage(now, damaged, out);
        self.wake_mended();
    }

    // ----- the copy that asks -----

    /// Asks for what is damaged, writes what came.
    pub(crate) fn tend_repair(&mut self, now: Now, out: &mut Output) {
        let Some(copy) = &mut self.copy else { return };
        let repair = &mut copy.repair;
        if repair.damaged.is_empty() && repair.to_examine.is_empty() {
            return;
        }
        if copy.load.is_some() {
            return repair.forget();
        }
        if !repair.examining && !repair.to_examine.is_empty() {
            let mut blocks = Vec::new();
            while blocks.len() < EXAMINED_MAX
                && let Some(block) = repair.to_examine.pop_first()
            {
                blocks.push(block);
            }
            repair.examining = true;
            out.jobs.push(StoreJob(Work::Examine { blocks }));
        }
        if !repair.writing {
            let remedies = repair.take_remedies();
            if !remedies.is_empty() {
                repair.writing = true;
                out.jobs.push(StoreJob(Work::Mend { remedies }));
            }
        }
        self.ask_for_blocks(now, out);
    }

    fn ask_for_blocks(&mut self, now: Now, out: &mut Output) {
        let timeout = self.settings.failure_timeout;
        let copy = self.copy.as_mut().expect("only copies have images");
        let (lb, repair) = (copy.lb, &mut copy.repair);
        let asked = |d: &&Damaged| matches!(d.stage, Stage::Asked(..) | Stage::Here(..));
        let mut open = repair.damaged.values().filter(asked).count();
        let (mut asks, mut lost, mut round_over) = (Vec::new(), Vec::new(), Vec::new());
        for ((file, block), damaged) in &mut repair.damaged {
            if let Stage::Asked(whom, at) = damaged.stage
                && now.steady.since(at) > ANSWER_TIMEOUTS * timeout
            {
                damaged.refused(whom, now.steady);
                open -= 1;
            }
            let Stage::Due(at) = damaged.stage else { continue };
            if at > now.steady || open >= ASKED_MAX {
                continue;
            }
            let others = self.replica.other_copies();
            if let Some(whom) = others.into_iter().find(|other| !damaged.tried.contains(*other)) {
                damaged.stage = Stage::Asked(whom, now.steady);
                asks.push((whom, BlockName { file: *file, block: *block, crc: damaged.crc }));
                open += 1;
                continue;
            }
            damaged.tried = ServerSet::EMPTY;
            damaged.asked_all = true;
            round_over.push((*file, *block));
            let tired = now.steady.since(damaged.since) > PATIENCE_TIMEOUTS * timeout;
            if tired && !damaged.lost {
                damaged.lost = true;
                let (file, block, position, crc) = (*file, *block, damaged.position, damaged.crc);
                lost.push(DamagedBlock { file, block, position, crc });
            }
            let pause = if damaged.lost { LOST_ROUND_TIMEOUTS } else { ROUND_TIMEOUTS };
            damaged.stage = Stage::Due(now.steady.plus(pause * timeout));
        }
        // Perhaps the image does not want it any more.
        repair.examine_later(round_over.into_iter());
        for (whom, name) in asks {
            let message = Message::BlockWant { lb: Op(lb) };
            self.send_copied(whom, message, &[&name.bytes()], out);
        }
        if !lost.is_empty() {
            self.give_up(&lost, out);
        }
    }

    /// What needs these blocks fails from now on.
    fn give_up(&mut self, lost: &[DamagedBlock], out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies have images");
        lost.iter().for_each(|d| copy.shadow.lose_block(d.file, d.block));
        let (count, names) = (lost.len(), names(lost));
        let text = format!(
            "{count} damaged and no other copy has them: {names}. Reading them fails. Start the other copies, or \
             write or remove those files"
        );
        out.notices.push(Notice::Remark { text });
        self.wake_mended();
    }

    /// Another copy answers.
    pub(crate) fn on_block_grant(
        &mut self,
        now: Now,
        from: ServerId,
        lb: Op,
        bytes: &[u8],
        out: &mut Output,
    ) {
        let Some((name, data)) = BlockName::read(bytes) else {
            let text = format!("{from} gives a block that is not the one it names");
            return out.notices.push(Notice::Remark { text });
        };
        let Some(copy) = &mut self.copy else { return };
        let place = (name.file, name.block);
        let Some(damaged) = copy.repair.damaged.get_mut(&place) else { return };
        let awaited = matches!(damaged.stage, Stage::Asked(whom, _) if whom == from);
        if !awaited || damaged.crc != name.crc {
            return; // an answer to an earlier question
        }
        match data {
            Some(data) => damaged.stage = Stage::Here(from, Box::new(*data)),
            None => {
                damaged.refused(from, now.steady);
                let wanted = lb.0.min(copy.shadow_op);
                let repair = &mut copy.repair;
                repair.checkpoint_wanted = repair.checkpoint_wanted.max(wanted);
            }
        }
    }

    /// Blocks are in the image again, durably, as far as it wanted them.
    pub(crate) fn on_mended(
        &mut self,
        now: Now,
        remedies: &[Remedy],
        result: Result<Vec<bool>, StoreError>,
        out: &mut Output,
    ) {
        let copy = self.copy.as_mut().expect("only copies have images");
        let repair = &mut copy.repair;
        repair.writing = false;
        let written = match result {
            Ok(written) => written,
            Err(StoreError::Full { .. }) => return self.put_mending_off(now, out),
            Err(error) => return self.store_failed(error.to_string(), out),
        };
        assert_eq!(written.len(), remedies.len(), "each remedy helped or not");
        repair.told_no_room = false;
        let mut mended = Vec::new();
        let mut givers = ServerSet::EMPTY;
        for (Remedy { file, block, .. }, written) in remedies.iter().zip(written) {
            let place = (*file, *block);
            // The image may have been emptied meanwhile.
            let Some(damaged) = repair.damaged.remove(&place) else { continue };
            copy.shadow.found_block(*file, *block);
            let Stage::Writing(from) = damaged.stage else {
                panic!("block {block} of inode {file} was mended without being written")
            };
            if !written {
                repair.to_examine.insert(place); // it moved on, perhaps damaged still
                continue;
            }
            givers.insert(from);
            let (file, block, position, crc) = (*file, *block, damaged.position, damaged.crc);
            mended.push(DamagedBlock { file, block, position, crc });
        }
        repair.mended += mended.len() as u64;
        if let Some(last) = mended.last() {
            repair.last = Some(names(std::slice::from_ref(last)));
            let (count, names) = (mended.len(), names(&mended));
            let givers: Vec<String> = givers.iter().map(|giver| giver.to_string()).collect();
            let text = format!("{count} mended from {}: {names}", givers.join(" and "));
            out.notices.push(Notice::Remark { text });
        }
        self.wake_mended();
    }

    /// There is no room to write what came. It is asked for again; until then it is as good as lost.
    fn put_mending_off(&mut self, now: Now, out: &mut Output) {
        let again = now.steady.plus(LOST_ROUND_TIMEOUTS * self.settings.failure_timeout);
        let copy = self.copy.as_mut().expect("only copies have images");
        for ((file, block), damaged) in &mut copy.repair.damaged {
            if matches!(damaged.stage, Stage::Writing(_)) {
                damaged.stage = Stage::Due(again);
                damaged.lost = true;
                copy.shadow.lose_block(*file, *block);
            }
        }
        if !std::mem::replace(&mut copy.repair.told_no_room, true) {
            let text = "there is no room to mend damaged blocks: reading them fails until there is";
            out.notices.push(Notice::Remark { text: text.into() });
        }
        self.wake_mended();
    }

    // ----- the copy that is asked -----

    /// Another copy, whose image is at `lb`, lacks a block.
    pub(crate) fn read_block(&mut self, to: ServerId, lb: Op, bytes: &[u8], out: &mut Output) {
        let Some((name, None)) = BlockName::read(bytes) else {
            let text = format!("{to} asks for a block by no name");
            return out.notices.push(Notice::Remark { text });
        };
        let Some(copy) = &mut self.copy else { return };
        // The newest content, if it is in memory: the image's may be older.
        let mut content: Box<Block> = Box::new([0; BLOCK_BYTES]);
        let known = copy.shadow.read_block(name.file, name.block, &self.bytes, &mut content[..]);
        if matches!(known, harp_fs::inode::Known::Is(..)) && block_crc(&content) == name.crc {
            return self.grant_block(to, &name, Some(&content), out);
        }
        let repair = &mut copy.repair;
        if repair.reading[to.index()] >= ASKED_MAX {
            return; // it asks again
        }
        repair.reading[to.index()] += 1;
        repair.checkpoint_wanted = repair.checkpoint_wanted.max(lb.0.min(copy.shadow_op));
        out.jobs.push(StoreJob(Work::ReadBlock { to, name }));
    }

    pub(crate) fn on_block_read(&mut self, now: Now, read: BlockRead, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies read blocks");
        copy.repair.reading[read.to.index()] -= 1;
        match read.result {
            Ok((data, damaged)) => {
                self.note_damage(now, &damaged, out);
                self.grant_block(read.to, &read.name, data.as_deref(), out);
            }
            Err(error) if error.is_fatal() => self.store_failed(error.to_string(), out),
            Err(error) => {
                let text = format!("{} cannot have a block of the image: {error}", read.to);
                out.notices.push(Notice::Remark { text });
                self.grant_block(read.to, &read.name, None, out);
            }
        }
    }

    fn grant_block(
        &mut self,
        to: ServerId,
        name: &BlockName,
        data: Option<&Block>,
        out: &mut Output,
    ) {
        let lb = Op(self.copy.as_ref().map_or(0, |copy| copy.lb));
        let data: &[u8] = data.map_or(&[], |data| &data[..]);
        let message = Message::BlockGrant { lb };
        self.send_copied(to, message, &[&name.bytes(), data], out);
    }
}

/// What was read for another copy.
#[derive(Debug)]
pub(crate) struct BlockRead {
    pub to: ServerId,
    pub name: BlockName,
    /// The block, if the image has it; and what of it is damaged here too.
    pub result: Result<(Option<Box<Block>>, Vec<DamagedBlock>), StoreError>,
}

impl Repair {
    /// What came and is to be written, in order.
    fn take_remedies(&mut self) -> Vec<Remedy> {
        let mut remedies = Vec::new();
        for ((file, block), damaged) in &mut self.damaged {
            let Stage::Here(from, _) = damaged.stage else { continue };
            let here = std::mem::replace(&mut damaged.stage, Stage::Writing(from));
            let Stage::Here(_, data) = here else { unreachable!("looked at just now") };
            remedies.push(Remedy { file: *file, block: *block, data });
        }
        remedies
    }
}

impl Damaged {
    fn new(damaged: &DamagedBlock, now: Nanos) -> Damaged {
        Damaged {
            crc: damaged.crc,
            position: damaged.position,
            since: now,
            tried: ServerSet::EMPTY,
            asked_all: false,
            lost: false,
            stage: Stage::Due(now),
        }
    }

    /// Nobody has it, and nothing of it is under way.
    fn is_given_up(&self) -> bool {
        self.lost && matches!(self.stage, Stage::Due(_))
    }

    /// `whom` has not got it.
    fn refused(&mut self, whom: ServerId, now: Nanos) {
        self.tried.insert(whom);
        self.stage = Stage::Due(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_blocks_make_place_for_others_longest_lost_first() {
        let mut repair = Repair::default();
        for block in 0..DAMAGED_MAX as u64 {
            assert!(repair.has_place());
            let damaged = DamagedBlock { file: 1, block, position: block, crc: 7 };
            repair.damaged.insert((1, block), Damaged::new(&damaged, Nanos(10_000 - block)));
        }
        assert!(!repair.has_place(), "all are to be mended");
        for block in [3, 9] {
            repair.damaged.get_mut(&(1, block)).expect("known").lost = true;
        }
        assert!(repair.has_place());
        assert!(!repair.damaged.contains_key(&(1, 9)), "lost for longest");
        assert!(repair.damaged.contains_key(&(1, 3)));
    }

    #[test]
    fn a_block_comes_under_its_name_or_not_at_all() {
        let data = [7; BLOCK_BYTES];
        let name = BlockName { file: 9, block: 5, crc: block_crc(&data) };
        let bytes = [&name.bytes()[..], &data[..]].concat();
        assert_eq!(BlockName::read(&name.bytes()), Some((name, None)));
        assert_eq!(BlockName::read(&bytes), Some((name, Some(&data))));
        for cut in (0..bytes.len()).filter(|cut| *cut != NAME_BYTES) {
            assert_eq!(BlockName::read(&bytes[..cut]), None, "cut at {cut}");
        }
        for at in 16..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(BlockName::read(&flipped), None, "flipped at {at}");
        }
        let beyond = BlockName { block: BLOCK_INDEX_MAX + 1, ..name };
        assert_eq!(BlockName::read(&beyond.bytes()), None);
    }
}
