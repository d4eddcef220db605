//! Apply: takes a record's effects into the active generation.
//! Owns: how each effect changes the layers' newest one, and what follows for the filters.
//! Never: writes to the image, looks at requests, or differs between primary and backup.
//! Invariant: it depends on the effects alone; what memory happens to know changes how a value is
//! kept, never the value.
//! Source: ARCHITECTURE.md.

use crate::blocks::LogBytes;
use crate::content::Filled;
use crate::effect::{BadEffects, DirTouch, Effect, Effects, FileTouch};
use crate::inode::{BLOCK_BYTES, BLOCK_BYTES_U64, Inode, Known, blocks_of};
use crate::objects::{self, Extent};
use crate::request::FileType;
use crate::shadow::Shadow;

/// So many blocks in one effect are a stream that few read again at once.
const BULK_BLOCKS: usize = 16;

/// Why a record could not be applied. The shadow is worthless afterwards, until a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApplyError {
    /// Its bytes are no effects.
    Bad(BadEffects),
    /// A target for an object that no record of this generation set.
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
    /// A block that does not have its checksum once its ranges are put in.
    BadBlock {
        /// Of which file.
        ino: u64,
        /// Its index in the file.
        block: u64,
    },
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApplyError::Bad(bad) => write!(f, "{bad}"),
            ApplyError::TargetAlone { ino } => write!(f, "a target without inode {ino}"),
            ApplyError::CookieBack { dir, cookie } => {
                write!(f, "cookie {cookie} of directory {dir} goes back")
            }
            ApplyError::Gone { ino } => write!(f, "inode {ino} is changed after its end"),
            ApplyError::BadBlock { ino, block } => {
                write!(f, "block {block} of inode {ino} does not have its checksum")
            }
        }
    }
}

impl std::error::Error for ApplyError {}

impl Shadow {
    /// Takes a record's effects in. `effects_pos` is where `effects` lies in the log; the shadow
    /// goes on referring to data there, until [`Shadow::needs_log_above`] passes `op`. A record
    /// at or below [`Shadow::op`] is in already and changes nothing. Records without effects may
    /// be given or left out.
    ///
    /// Errors: the record is damaged or contradicts earlier ones; nothing may be applied or
    /// looked up until [`Shadow::reset`].
    pub fn apply(
        &mut self,
        op: u64,
        effects: &[u8],
        effects_pos: u64,
        log: &dyn LogBytes,
    ) -> Result<(), ApplyError> {
        if op <= self.op {
            return Ok(());
        }
        for effect in Effects::new(effects) {
            self.take(op, effect.map_err(ApplyError::Bad)?, effects_pos, log)?;
        }
        self.op = op;
        self.active.end = op;
        self.active.effect_bytes += effects.len() as u64;
        Ok(())
    }

    fn take(
        &mut self,
        op: u64,
        effect: Effect<'_>,
        effects_pos: u64,
        log: &dyn LogBytes,
    ) -> Result<(), ApplyError> {
        let seed = self.seed;
        match effect {
            Effect::Inode { ino, inode, born } => self.set_inode(op, ino, inode, born),
            Effect::Target { ino, target } => {
                match self.active.objects.set_target(seed.one(ino), ino, target) {
                    true => Ok(()),
                    false => Err(ApplyError::TargetAlone { ino }),
                }
            }
            Effect::TouchDir { dir, touch } => self.touch_dir(op, dir, &touch),
            Effect::TouchFile { ino, touch } => self.touch_file(op, ino, &touch),
            Effect::Link { dir, entry, name } => {
                let hash = seed.name(dir, name);
                if !self.active.names.link(seed, hash, op, dir, &entry, name) {
                    return Err(ApplyError::CookieBack { dir, cookie: entry.cookie });
                }
                self.filters.add(dir, hash);
                Ok(())
            }
            Effect::Unlink { dir, cookie, name } => {
                let hash = seed.name(dir, name);
                self.active.names.unlink(seed, hash, op, dir, cookie, name);
                Ok(())
            }
            Effect::Drop { ino } => self.drop_object(op, ino),
            Effect::Blocks { ino, first, crcs, data_at, .. } => {
                let pos = effects_pos + data_at as u64;
                let bulk = crcs.len() >= 4 * BULK_BLOCKS;
                for (index, crc) in (0..).zip(crcs.as_chunks::<4>().0) {
                    let crc = u32::from_le_bytes(*crc);
                    let at = pos + index * BLOCK_BYTES_U64;
                    self.active.blocks.write(seed, op, (ino, first + index), (at, crc), bulk);
                }
                Ok(())
            }
            Effect::Range { ino, block, start, crc, data, data_at } => {
                let pos = effects_pos + data_at as u64;
                self.take_range(op, (ino, block), (start, crc), (pos, data), log)
            }
            Effect::Cut { ino, first } => {
                self.active.blocks.cut(seed, op, ino, first);
                Ok(())
            }
            Effect::Super(counters) => {
                self.counters = Some((counters, op));
                self.active.counters = Some(counters);
                Ok(())
            }
        }
    }

    fn set_inode(&mut self, op: u64, ino: u64, inode: Inode, born: bool) -> Result<(), ApplyError> {
        let seed = self.seed;
        if born {
            if inode.kind == FileType::Directory {
                self.active.names.bear(seed, op, ino);
                self.filters.start_empty(ino);
            }
        } else if inode.kind == FileType::Regular {
            self.note_growth(ino, inode.size, inode.used_blocks);
        }
        match self.active.objects.find_mut(seed.one(ino), ino) {
            Some(slot) if slot.is_gone() => return Err(ApplyError::Gone { ino }),
            Some(slot) => {
                slot.value = inode;
                slot.extent = Extent::Whole;
                slot.op = op;
            }
            None => self.active.objects.add(seed, ino, op, inode, Extent::Whole),
        }
        Ok(())
    }

    /// A file is about to have this size and so many blocks. If it is shorter now, or has none,
    /// then nothing exists in the layers below from its end on, or at all.
    fn note_growth(&mut self, ino: u64, size: u64, used_blocks: u64) {
        if let Known::Is(old, _) = self.look_inode(ino) {
            let end = if old.used_blocks == 0 { 0 } else { blocks_of(old.size) };
            if end < blocks_of(size) && old.used_blocks < used_blocks {
                self.active.blocks.note_absent(self.seed, ino, end);
            }
        }
    }

    fn touch_dir(&mut self, op: u64, dir: u64, touch: &DirTouch) -> Result<(), ApplyError> {
        if touch.entry_count == 0 {
            self.filters.start_empty(dir);
        }
        let apply = |value: &mut Inode| objects::touch_dir(value, touch);
        self.touch(op, dir, Extent::DirTouch, FileType::Directory, apply)
    }

    fn touch_file(&mut self, op: u64, ino: u64, touch: &FileTouch) -> Result<(), ApplyError> {
        self.note_growth(ino, touch.size, touch.used_blocks);
        let apply = |value: &mut Inode| objects::touch_file(value, touch);
        self.touch(op, ino, Extent::FileTouch, FileType::Regular, apply)
    }

    /// Changes some fields of an object, whose other fields may not be in memory.
    #[inline]
    fn touch(
        &mut self,
        op: u64,
        ino: u64,
        extent: Extent,
        kind: FileType,
        apply: impl Fn(&mut Inode),
    ) -> Result<(), ApplyError> {
        if let Some(slot) = self.active.objects.find_mut(self.seed.one(ino), ino) {
            if slot.is_gone() {
                return Err(ApplyError::Gone { ino });
            }
            apply(&mut slot.value);
            slot.op = op;
            return Ok(());
        }
        let (mut value, extent) = match self.look_inode(ino) {
            Known::Is(value, _) => (value, Extent::Whole),
            Known::Absent(_) => return Err(ApplyError::Gone { ino }),
            Known::Unknown => (objects::blank(kind), extent),
        };
        apply(&mut value);
        self.active.objects.add(self.seed, ino, op, value, extent);
        Ok(())
    }

    fn drop_object(&mut self, op: u64, ino: u64) -> Result<(), ApplyError> {
        let seed = self.seed;
        let known = self.look_inode(ino);
        match self.active.objects.find_mut(seed.one(ino), ino) {
            Some(slot) if slot.is_gone() => return Err(ApplyError::Gone { ino }),
            Some(slot) => {
                slot.extent = Extent::Gone { kind_known: true };
                slot.op = op;
            }
            None => {
                let (value, kind_known) = match known {
                    Known::Is(value, _) => (value, true),
                    Known::Absent(_) => return Err(ApplyError::Gone { ino }),
                    Known::Unknown => (objects::blank(FileType::Regular), false),
                };
                self.active.objects.add(seed, ino, op, value, Extent::Gone { kind_known });
            }
        }
        let may_hold_blocks = match known {
            Known::Is(value, _) => value.used_blocks > 0,
            _ => true,
        };
        if may_hold_blocks {
            self.active.blocks.cut(seed, op, ino, 0);
        }
        self.filters.remove(ino);
        Ok(())
    }

    fn take_range(
        &mut self,
        op: u64,
        (ino, block): (u64, u64),
        (start, crc): (u16, u32),
        (pos, data): (u64, &[u8]),
        log: &dyn LogBytes,
    ) -> Result<(), ApplyError> {
        let seed = self.seed;
        if self.active.blocks.find(seed, ino, block).is_none()
            && let Known::Is(inode, _) = self.look_inode(ino)
        {
            // The inode may have been touched by this very record already: then it knows of
            // this block, and its growth has been noted.
            let end = if inode.used_blocks == 0 { 0 } else { blocks_of(inode.size) };
            if block >= end {
                self.active.blocks.note_absent(seed, ino, end);
            }
        }
        let blocks = &mut self.active.blocks;
        let due = blocks.write_range(seed, op, (ino, block), (start, crc), (pos, data));
        let Some(slot) = due else { return Ok(()) };
        let mut content = [0; BLOCK_BYTES];
        if let Filled::Done(_) = self.fill(0, (ino, block), log, &mut content) {
            if crc32c::crc32c(&content) != self.active.blocks.slot_at(slot).crc {
                return Err(ApplyError::BadBlock { ino, block });
            }
            self.active.blocks.merged(slot, &content);
        }
        Ok(())
    }
}
