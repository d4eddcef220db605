//! Shadow: the newest state of every object that memory knows.
use crate::blocks::LogBytes;
use crate::effect::BadEffects;
use crate::generation::Generation;
use crate::inode::*;
use crate::need::*;
use std::sync::Arc;

/// How much the shadow may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowSettings {
    /// Memory for clean objects, in bytes.
    pub cache_bytes: usize,
    /// Memory for filters of names, in bytes.
    pub filter_bytes: usize,
    /// Makes the order of hash tables unguessable for clients; any secret will do.
    pub seed: u64,
}

/// Why a record could not be applied. The shadow is worthless afterwards, until a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApplyError {
    /// Its bytes are no effects.
    Bad(BadEffects),
    /// A target for an object that this record does not set.
    TargetAlone {
        /// Which.
        ino: u64,
    },
    /// An entry whose cookie is not above the earlier ones of its directory.
    CookieBack {
        /// The directory.
        dir: u64,
        /// The cookie.
        cookie: u64,
    },
    /// A change of an object that is gone.
    Gone {
        /// Which.
        ino: u64,
    },
    /// A block that does not have its checksum after a range was put in.
    BadBlock {
        /// Of which file.
        ino: u64,
        /// Its index.
        block: u64,
    },
}

/// The shadow.
pub struct Shadow {}

#[allow(unused_variables)]
impl Shadow {
    /// Knows nothing, over an image exact at `lb`.
    pub fn new(settings: ShadowSettings, lb: u64) -> Shadow {
        todo!()
    }
    /// The highest op applied.
    pub fn op(&self) -> u64 {
        todo!()
    }
    /// An object's inode.
    pub fn inode(&mut self, ino: u64) -> Known<Inode> {
        todo!()
    }
    /// What a name leads to; not for "." and "..".
    pub fn entry(&mut self, dir: u64, name: &[u8]) -> Known<Entry> {
        todo!()
    }
    /// The counters of the whole.
    pub fn super_block(&self) -> Known<Super> {
        todo!()
    }
    /// A symbolic link's target.
    pub fn target(&mut self, ino: u64) -> Known<Vec<u8>> {
        todo!()
    }
    /// Shows entries of `dir` with cookies above `after`, ascending, at most `limit`, until `show`
    /// returns false (that entry counts as shown). The result says whether the directory's end was
    /// reached. `Unknown`: a page must be fetched, [`Shadow::listing_need`] says which; entries
    /// shown before are then to be thrown away.
    pub fn list(
        &mut self,
        dir: u64,
        after: u64,
        limit: usize,
        show: &mut dyn FnMut(&Entry, &[u8]) -> bool,
    ) -> Known<bool> {
        todo!()
    }
    /// The page that the last [`Shadow::list`] lacked.
    pub fn listing_need(&self) -> Option<Need> {
        todo!()
    }
    /// The content of one block (holes are zeros) into `out`, 4096 bytes long.
    pub fn read_block(
        &mut self,
        ino: u64,
        block: u64,
        log: &dyn LogBytes,
        out: &mut [u8],
    ) -> Known<()> {
        todo!()
    }
    /// Appends bytes of a file to `out`. On `Unknown` pushes what is lacking to `needs`, and `out` is as before.
    pub fn read_range(
        &mut self,
        ino: u64,
        offset: u64,
        len: usize,
        log: &dyn LogBytes,
        out: &mut Vec<u8>,
        needs: &mut Vec<Need>,
    ) -> Known<()> {
        todo!()
    }
    /// Whether the file holds a block there, or a hole.
    pub fn block_exists(&mut self, ino: u64, block: u64) -> Known<bool> {
        todo!()
    }
    /// Takes a record's effects in.
    pub fn apply(
        &mut self,
        op: u64,
        effects: &[u8],
        effects_pos: u64,
        log: &dyn LogBytes,
    ) -> Result<(), ApplyError> {
        todo!()
    }
    /// Takes in what was read from the image.
    pub fn fetched(&mut self, fetched: Fetched) {
        todo!()
    }
    /// Closes the active generation, which ends at `op` = [`Shadow::op`].
    pub fn freeze(&mut self, op: u64) -> Arc<Generation> {
        todo!()
    }
    /// The image is exact at `op`, where the frozen generation ends.
    pub fn checkpointed(&mut self, op: u64) {
        todo!()
    }
    /// Moves up to `objects` of what was checkpointed into the clean cache; whether more is left.
    pub fn drain(&mut self, objects: usize, log: &dyn LogBytes) -> bool {
        todo!()
    }
    /// Forgets everything; the image is exact at `lb`.
    pub fn reset(&mut self, lb: u64) {
        todo!()
    }
}
