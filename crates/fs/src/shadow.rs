//! Shadow: the newest state of every object that memory knows, over the image.
//! Owns: the active generation, the frozen one, the last one checkpointed, and the clean cache.
//! Never: does I/O; what it lacks it says, and is given by [`Shadow::fetched`].
//! Invariant: lb <= every layer's begin; layers follow each other without a gap; what the clean
//! cache holds is the image's.
//! Source: ARCHITECTURE.md.
//!
//! ```text
//!   active     (F, FP]   changes with every apply
//!   frozen     (lb, F]   immutable; a store thread writes it to the image
//!   retired    (.., lb]  in the image already; drained into the clean cache, bit by bit
//!   clean      the image's objects, as far as memory goes; filters of names
//!   image      at lb, or at F a moment before the shadow hears of it
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::atime::{AccessTimes, Accesses};
use crate::cache::Clean;
use crate::filter::Filters;
use crate::generation::Generation;
use crate::hash::Seed;
use crate::inode::{BLOCK_BYTES, Known, Super};
use crate::need::{Fetched, FetchedValue, Need, Page};

pub use crate::apply::ApplyError;

/// How much the shadow may remember beyond what is not in the image yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowSettings {
    /// Memory for clean objects, in bytes. Below 16 MiB it counts as about that: one request
    /// must find all it needs.
    pub cache_bytes: usize,
    /// Memory for filters of names, in bytes; 12 to 30 bits a name.
    pub filter_bytes: usize,
    /// Keeps clients from guessing which names collide in hash tables; any secret will do. No
    /// result depends on it.
    pub seed: u64,
    /// Which reads are noted, for [`Shadow::access_effects`].
    pub access_times: AccessTimes,
}

/// The shadow. It belongs to one server's loop; frozen generations are read elsewhere.
#[derive(Debug)]
pub struct Shadow {
    pub(crate) seed: Seed,
    /// The image holds every op up to here.
    pub(crate) lb: u64,
    /// The last op applied.
    pub(crate) op: u64,
    pub(crate) active: Generation,
    pub(crate) frozen: Option<Arc<Generation>>,
    pub(crate) retired: Option<Arc<Generation>>,
    /// How far `retired` is drained.
    pub(crate) drained: crate::drain::Drained,
    /// A generation whose memory is used again.
    pub(crate) spare: Option<Generation>,
    pub(crate) clean: Clean,
    pub(crate) filters: Filters,
    pub(crate) counters: Option<(Super, u64)>,
    pub(crate) listing_need: Option<Need>,
    pub(crate) accesses: Accesses,
    /// Blocks of the image that nobody has the content of.
    pub(crate) lost: BTreeSet<(u64, u64)>,
}

/// Lost blocks remembered at most; others are found again when they are wanted.
const LOST_MAX: usize = 4096;

impl Shadow {
    /// Knows nothing, over an image exact at `lb`.
    pub fn new(settings: ShadowSettings, lb: u64) -> Shadow {
        let seed = Seed(settings.seed);
        Shadow {
            seed,
            lb,
            op: lb,
            active: Generation::new(seed, lb),
            frozen: None,
            retired: None,
            drained: Default::default(),
            spare: None,
            clean: Clean::new(seed, settings.cache_bytes),
            filters: Filters::new(seed, settings.filter_bytes),
            counters: None,
            listing_need: None,
            accesses: Accesses::new(settings.access_times),
            lost: BTreeSet::new(),
        }
    }

    /// The highest op applied, or the image's.
    pub fn op(&self) -> u64 {
        self.op
    }

    /// The op up to which the image holds everything, as far as the shadow was told.
    pub fn lb(&self) -> u64 {
        self.lb
    }

    /// Forgets everything; the image is exact at `lb`. For a primary whose planned records were
    /// dropped: the caller applies the log above `lb` again. A checkpoint that is under way may
    /// go on; [`Shadow::checkpointed`] is told of it as always.
    pub fn reset(&mut self, lb: u64) {
        self.lb = lb;
        self.op = lb;
        self.active.renew(lb);
        self.frozen = None;
        self.retired = None;
        self.drained = Default::default();
        self.clean.clear();
        self.filters.clear();
        self.counters = None;
        self.listing_need = None;
        self.accesses.clear();
        self.lost.clear();
    }

    /// Closes the active generation, which ends at `op` = [`Shadow::op`], in constant time. The
    /// result is to be checkpointed once `op` is committed, then [`Shadow::checkpointed`] called;
    /// give the result up before that, so that its memory can be used again.
    ///
    /// Panics if the last one frozen is not checkpointed yet, or if `op` is another: what was
    /// applied above an op cannot be taken out again.
    pub fn freeze(&mut self, op: u64) -> Arc<Generation> {
        assert!(self.frozen.is_none(), "the generation before is still being checkpointed");
        assert!(op == self.op, "a generation ends at the last op applied, {}, not {op}", self.op);
        self.active.end = op;
        let mut next = self.spare.take().unwrap_or_else(|| Generation::new(self.seed, op));
        next.renew(op);
        let frozen = Arc::new(std::mem::replace(&mut self.active, next));
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// The image holds every op up to `op` now. If that is where the frozen generation ends, it
    /// is drained from here on.
    pub fn checkpointed(&mut self, op: u64) {
        if op <= self.lb {
            return;
        }
        self.lb = op;
        self.lost.clear(); // what was written anew is not lost; the others are found again
        if self.frozen.as_ref().is_some_and(|frozen| frozen.end() == op) {
            self.discard_retired();
            self.retired = self.frozen.take();
        }
    }

    /// The image's content of a block is damaged and nobody has it: what needs it fails, until the next
    /// checkpoint, or [`Shadow::found_block`].
    pub fn lose_block(&mut self, ino: u64, block: u64) {
        if self.lost.len() == LOST_MAX {
            self.lost.clear();
        }
        self.lost.insert((ino, block));
    }

    /// The image has the content of a block again.
    pub fn found_block(&mut self, ino: u64, block: u64) {
        self.lost.remove(&(ino, block));
    }

    /// Whether the image's content of a block is needed and lost, as far as known.
    pub(crate) fn is_lost(&self, ino: u64, block: u64) -> bool {
        self.lost.contains(&(ino, block))
    }

    /// Whether a block that one of `needs` asks for is lost.
    pub(crate) fn any_lost(&self, needs: &[Need]) -> bool {
        let lost = |need: &Need| match need {
            Need::Blocks { ino, first, count } => {
                let end = first.saturating_add(u64::from(*count));
                self.lost.range((*ino, *first)..(*ino, end)).next().is_some()
            }
            _ => false,
        };
        !self.lost.is_empty() && needs.iter().any(lost)
    }

    /// Puts those of the blocks into the cache that are not damaged.
    fn put_sound_blocks(
        &mut self,
        (ino, first): (u64, u64),
        held: &[bool],
        data: &[u8],
        damaged: &[u64],
    ) {
        let mut begin = 0;
        for end in damaged.iter().map(|block| (block - first) as usize).chain([held.len()]) {
            if begin < end {
                let data = data[begin * BLOCK_BYTES..end * BLOCK_BYTES].to_vec();
                self.clean.put_blocks(ino, first + begin as u64, &held[begin..end], data);
            }
            begin = end + 1;
        }
    }

    /// Whether a generation is frozen and not known to be in the image.
    pub fn is_freezing(&self) -> bool {
        self.frozen.is_some()
    }

    /// Records above this op must stay readable in the log: layers refer to their data.
    pub fn needs_log_above(&self) -> u64 {
        self.layers().into_iter().flatten().map(Generation::begin).fold(self.lb, u64::min)
    }

    /// The generation that takes in what is applied; for its size.
    pub fn active(&self) -> &Generation {
        &self.active
    }

    /// Bytes that wait for a checkpoint to be over: memory of the active and the frozen
    /// generation, the effects in the log that they may refer to, and the blocks that the
    /// checkpoint must merge.
    pub fn dirty_bytes(&self) -> u64 {
        let waiting = [Some(&self.active), self.frozen.as_deref()];
        let bytes = |layer: &Generation| layer.memory_bytes() + layer.effect_bytes();
        waiting.into_iter().flatten().map(bytes).sum()
    }

    /// A need of the shadow's own: names that complete a filter, so that creates need no fetch.
    /// The caller fetches it when a store thread has time; `None` if there is none.
    pub fn wanted(&mut self) -> Option<Need> {
        self.filters.next_wanted()
    }

    /// Forgets all clean objects (not the filters). They are fetched again when needed.
    pub fn forget_clean(&mut self) {
        self.clean.clear();
    }

    /// Takes in what was read from the image. What is older than the last checkpoint that the
    /// shadow heard of is ignored: it may lack what that checkpoint wrote.
    pub fn fetched(&mut self, fetched: Fetched) {
        if fetched.op < self.lb {
            if let FetchedValue::Names { dir, .. } = fetched.value {
                self.filters.want_again(dir);
            }
            return;
        }
        match fetched.value {
            FetchedValue::Inode { ino, inode } => self.clean.put_inode(ino, inode, true),
            FetchedValue::Entry { dir, name, entry } => {
                let hash = self.seed.name(dir, &name);
                self.clean.put_entry(hash, dir, &name, entry, true);
                if entry.is_none() {
                    self.start_filter(dir);
                }
            }
            FetchedValue::Listing { dir, after, page } => self.clean.pages.insert(dir, after, page),
            FetchedValue::Names { dir, after, page } => self.add_names(dir, after, &page),
            FetchedValue::Blocks { ino, first, held, data, damaged } if damaged.is_empty() => {
                self.clean.put_blocks(ino, first, &held, data);
            }
            FetchedValue::Blocks { ino, first, held, data, damaged } => {
                self.put_sound_blocks((ino, first), &held, &data, &damaged);
            }
            FetchedValue::Target { ino, target } => self.clean.put_target(ino, target),
            FetchedValue::Super(counters) => {
                if let (None, Some(counters)) = (self.counters, counters) {
                    self.counters = Some((counters, 0));
                }
            }
        }
    }

    /// A name was proved absent by looking: from the next one on a filter shall do.
    fn start_filter(&mut self, dir: u64) {
        let Known::Is(inode, _) = self.look_inode(dir) else { return };
        if !self.filters.start_building(dir, inode.entry_count) {
            return;
        }
        // Links from now on are added as they come; the image's names come page by page; what
        // was linked and is not in every image that pages may come from is added here.
        let Shadow { active, frozen, retired, filters, seed, .. } = self;
        let layers = [Some(&*active), frozen.as_deref(), retired.as_deref()];
        for names in layers.into_iter().flatten().map(|layer| &layer.names) {
            let Some(slot) = names.dir(*seed, dir) else { continue };
            let mut cursor = names.seek(slot, 0);
            while let Some(name) = names.peek(slot, &mut cursor) {
                filters.add(dir, name.hash);
                names.advance(&mut cursor);
            }
        }
    }

    fn add_names(&mut self, dir: u64, after: u64, page: &Page) {
        let seed = self.seed;
        let hashes = (0..page.entries.len()).map(|index| seed.name(dir, page.name(index)));
        let last = page.entries.last().filter(|_| !page.end).map(|(entry, _)| entry.cookie);
        self.filters.add_page(dir, after, hashes, last);
    }
}

/// Frozen generations go to a store thread, the shadow wherever its server's loop runs.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<Generation>();
    moved::<Shadow>();
};
