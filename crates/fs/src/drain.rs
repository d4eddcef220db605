//! Drain: moves what was checkpointed from its generation into the clean cache, bit by bit.
//! Owns: the order of moving and how far it got.
//! Never: makes the loop wait for a whole generation.
//! Invariant: until all is moved the generation stays a layer; when it goes, the clean cache
//! holds nothing older than it.
//! Source: ARCHITECTURE.md.

use std::sync::Arc;

use crate::blocks::{Base, LogBytes};
use crate::content::Filled;
use crate::generation::Generation;
use crate::inode::BLOCK_BYTES;
use crate::names::Fate;
use crate::objects::Extent;
use crate::shadow::Shadow;

/// What is moved; in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Pages of changed directories are forgotten.
    #[default]
    Dirs,
    /// Blocks that were cut off are forgotten.
    Cuts,
    Objects,
    Names,
    Blocks,
    Over,
}

/// How far a generation is drained.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    stage: Stage,
    at: usize,
}

/// What moving a block costs, in objects.
const BLOCK_EFFORT: usize = 16;

/// The layer that is drained, counted as [`Shadow::layers`] does.
const RETIRED: usize = 2;

impl Shadow {
    /// Moves some of what was checkpointed into the clean cache: up to `effort` objects or names; a block, which
    /// is copied, counts for several. Returns whether more is left; the caller calls again soon, for
    /// until then the log's records are needed.
    pub fn drain(&mut self, effort: usize, log: &dyn LogBytes) -> bool {
        self.drain_some(effort, Some(log))
    }

    /// Gets rid of a generation that is not drained yet, forgetting what it would replace. Afterwards the log
    /// up to the image is needed no more.
    pub fn discard_retired(&mut self) {
        while self.drain_some(usize::MAX, None) {}
    }

    /// Without a log, values are forgotten and not moved.
    fn drain_some(&mut self, effort: usize, log: Option<&dyn LogBytes>) -> bool {
        let Some(retired) = self.retired.clone() else { return false };
        let mut left = effort;
        while left > 0 && self.drained.stage != Stage::Over {
            let Drained { stage, at } = self.drained;
            let (next, len) = match stage {
                Stage::Dirs => (Stage::Cuts, retired.names.dirs().len()),
                Stage::Cuts => {
                    self.drain_cuts(&retired, &mut left);
                    continue;
                }
                Stage::Objects => (Stage::Names, retired.objects.slots().len()),
                Stage::Names => (Stage::Blocks, retired.names.slots().len()),
                Stage::Blocks => (Stage::Over, retired.blocks.slots().len()),
                Stage::Over => unreachable!("tested above"),
            };
            let each = if stage == Stage::Blocks { BLOCK_EFFORT } else { 1 };
            let end = len.min(at.saturating_add(left.div_ceil(each)));
            for index in at..end {
                match stage {
                    Stage::Dirs => self.clean.pages.remove_dir(retired.names.dirs()[index].dir),
                    Stage::Objects => self.drain_object(&retired, index, log.is_some()),
                    Stage::Names => self.drain_name(&retired, index, log.is_some()),
                    _ => self.drain_block(&retired, index, log),
                }
            }
            left = left.saturating_sub((end - at).saturating_mul(each));
            self.drained = match end == len {
                true => Drained { stage: next, at: 0 },
                false => Drained { stage, at: end },
            };
        }
        if self.drained.stage != Stage::Over {
            return true;
        }
        self.drained = Drained::default();
        self.retired = None;
        if let Ok(mut generation) = Arc::try_unwrap(retired) {
            generation.renew(self.lb);
            self.spare = Some(generation);
        }
        false
    }

    fn drain_cuts(&mut self, retired: &Generation, left: &mut usize) {
        let at = self.drained.at;
        let any = retired.blocks.files().iter().any(|file| file.cut != u64::MAX);
        let gone =
            |ino, block| retired.blocks.file(self.seed, ino).is_some_and(|file| file.cut <= block);
        let more = any && self.clean.sweep_blocks(at, *left, gone);
        self.drained = match more {
            true => Drained { stage: Stage::Cuts, at: at + *left },
            false => Drained { stage: Stage::Objects, at: 0 },
        };
        if more {
            *left = 0;
        }
    }

    fn drain_object(&mut self, retired: &Generation, index: usize, keep: bool) {
        let slot = &retired.objects.slots()[index];
        let below = *self.clean.inode(slot.ino).unwrap_or(&None);
        match (slot.extent, below) {
            (Extent::Whole, _) if keep => self.clean.put_inode(slot.ino, Some(slot.value), false),
            (Extent::DirTouch | Extent::FileTouch, Some(below)) if keep => {
                self.clean.put_inode(slot.ino, Some(slot.over(&below)), false);
            }
            _ => self.clean.forget_inode(slot.ino),
        }
        match retired.objects.target(slot) {
            Some(target) if keep && !slot.is_gone() => {
                self.clean.put_target(slot.ino, Some(target.into()));
            }
            Some(_) => self.clean.forget_target(slot.ino),
            None if slot.is_gone() => self.clean.forget_target(slot.ino),
            None => {}
        }
    }

    fn drain_name(&mut self, retired: &Generation, index: usize, keep: bool) {
        let slot = &retired.names.slots()[index];
        let name = retired.names.name(slot);
        match slot.fate {
            Fate::Replaced => {}
            _ if !keep => self.clean.forget_entry(slot.hash, slot.dir, name),
            fate => {
                let entry = (fate == Fate::Linked).then_some(slot.entry);
                self.clean.put_entry(slot.hash, slot.dir, name, entry, false);
            }
        }
    }

    fn drain_block(&mut self, retired: &Generation, index: usize, log: Option<&dyn LogBytes>) {
        let slot = &retired.blocks.slots()[index];
        let (ino, block) = (slot.ino, slot.block);
        if slot.base == Base::Cut {
            return;
        }
        let Some(log) = log.filter(|_| !slot.bulk || slot.has_ranges()) else {
            return self.clean.forget_block(ino, block);
        };
        if let Some(data) = retired.blocks.whole(slot, log) {
            return self.clean.put_block(ino, block, Some(data), false);
        }
        let mut content = [0; BLOCK_BYTES];
        // What is lacking below, the clean cache does not have: nothing is to be forgotten.
        if let Filled::Done(_) = self.fill(RETIRED, (ino, block), log, &mut content) {
            self.clean.put_block(ino, block, Some(&content), false);
        }
    }
}
