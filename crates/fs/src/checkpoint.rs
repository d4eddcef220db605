//! Checkpoint: a frozen generation as changes of the image.
//! Owns: which rows, cuts and blocks a generation comes to, in the order the store wants.
//! Never: runs on the server's loop; writes anything itself.
//! Invariant: rows ascend by key, cuts by file, blocks by file and block; every merged block has
//! the checksum that its last record promised, unless the image below is partial. One whose content below is
//! damaged is written under that checksum: it stays damaged until somebody brings the bytes that have it.
//! Source: ARCHITECTURE.md; docs/disk-format.md.

use crate::blocks::{Base, BlockSlot, LogBytes};
use crate::generation::Generation;
use crate::inode::{BLOCK_BYTES, Block, Inode};
use crate::key;
use crate::names::{Fate, NameSlot};
use crate::need::{ImageError, ImageReader};
use crate::objects::{Extent, ObjectSlot};
use crate::request::FileType;

/// Takes rows in key order, `None` for one to be removed. What fails underneath may come back as
/// [`ImageError::Reader`].
pub type PutRow<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), ImageError> + 'a;

/// One block to be written.
#[derive(Clone, Copy, Debug)]
pub struct BlockOut<'a> {
    /// The file.
    pub ino: u64,
    /// The block's index in the file.
    pub block: u64,
    /// CRC32C of the data, as the record promised it and, where blocks were merged, checked; of what the data
    /// should be, where the block is damaged.
    pub crc: u32,
    /// The data.
    pub data: &'a Block,
}

/// The blocks of a generation, merged where they must be.
pub struct MergedBlocks<'a> {
    generation: &'a Generation,
    log: &'a dyn LogBytes,
    /// Slots in order of file and block, each with its place in `merged` if it has one.
    order: Vec<(u32, Option<u32>)>,
    /// With its checksum.
    merged: Vec<(Box<Block>, u32)>,
    damaged: Vec<(u64, u64)>,
}

impl MergedBlocks<'_> {
    /// The blocks in ascending order of file and block.
    pub fn iter(&self) -> impl Iterator<Item = BlockOut<'_>> {
        self.order.iter().map(|(slot, merged)| {
            let blocks = &self.generation.blocks;
            let slot = &blocks.slots()[*slot as usize];
            let (data, crc) = match merged {
                Some(merged) => {
                    let (data, crc) = &self.merged[*merged as usize];
                    (&**data, *crc)
                }
                None => {
                    let data = blocks.whole(slot, self.log);
                    (data.expect("a block that needs no merging"), slot.crc)
                }
            };
            BlockOut { ino: slot.ino, block: slot.block, crc, data }
        })
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Those whose content below is damaged, so that they have not the checksum they are given with, as (file,
    /// block).
    pub fn damaged(&self) -> &[(u64, u64)] {
        &self.damaged
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Generation {
    /// Gives every row that changes to `put`, in key order, until it fails. `base` is an image
    /// that this generation goes on top of: at [`Generation::begin`], or between that and its end.
    ///
    /// Errors: those of `put` and of the base; [`ImageError::NoInode`] if it lacks an inode that
    /// was touched and is not partial; [`ImageError::CookieTwice`] if the records contradict each other.
    pub fn metadata(&self, base: &dyn ImageReader, put: &mut PutRow<'_>) -> Result<(), ImageError> {
        if let Some(counters) = &self.counters {
            put(&key::super_key(), Some(&counters.encode()))?;
        }
        let mut objects: Vec<&ObjectSlot> = self.objects.slots().iter().collect();
        objects.sort_unstable_by_key(|slot| slot.ino);
        for slot in &objects {
            let value = match self.inode_value(base, slot) {
                // It comes with a later part of the image, or went before the part that is here.
                Err(ImageError::NoInode { .. }) if base.is_partial() => continue,
                value => value?,
            };
            put(&key::inode_key(slot.ino), value.as_deref())?;
        }
        for slot in &objects {
            let value = match self.objects.target(slot) {
                _ if slot.is_gone() && slot.surely_not(FileType::Symlink) => continue,
                _ if slot.is_gone() => None,
                Some(target) => Some(target),
                None => continue,
            };
            put(&key::target_key(slot.ino), value)?;
        }
        self.names_by_name(put)?;
        self.names_by_cookie(put)
    }

    fn inode_value(
        &self,
        base: &dyn ImageReader,
        slot: &ObjectSlot,
    ) -> Result<Option<key::RowBytes>, ImageError> {
        let whole: Inode = match slot.extent {
            Extent::Gone { .. } => return Ok(None),
            Extent::Whole => slot.value,
            Extent::DirTouch | Extent::FileTouch => {
                let key = key::inode_key(slot.ino);
                let value = base.get(&key)?.ok_or(ImageError::NoInode { ino: slot.ino })?;
                let below = key::parse_inode(&value);
                slot.over(&below.ok_or_else(|| ImageError::BadRow { key: key.to_vec() })?)
            }
        };
        Ok(Some(key::inode_value(&whole)))
    }

    fn names_by_name(&self, put: &mut PutRow<'_>) -> Result<(), ImageError> {
        let names = &self.names;
        // Most comparisons are decided by the directory and the first eight bytes.
        let sort_key = |slot: &NameSlot| {
            let name = names.name(slot);
            let mut front = [0; 8];
            let len = name.len().min(8);
            front[..len].copy_from_slice(&name[..len]);
            (slot.dir, u64::from_be_bytes(front))
        };
        let current = names.slots().iter().filter(|slot| slot.fate != Fate::Replaced);
        let mut order: Vec<_> = current.map(|slot| (sort_key(slot), slot)).collect();
        order.sort_unstable_by(|(front_a, a), (front_b, b)| {
            front_a.cmp(front_b).then_with(|| names.name(a).cmp(names.name(b)))
        });
        for (_, slot) in order {
            let value = (slot.fate == Fate::Linked).then(|| key::name_value(&slot.entry));
            put(&key::name_key(slot.dir, names.name(slot)), value.as_deref())?;
        }
        Ok(())
    }

    fn names_by_cookie(&self, put: &mut PutRow<'_>) -> Result<(), ImageError> {
        let names = &self.names;
        let place = |slot: &NameSlot| (slot.dir, slot.entry.cookie);
        let mut order: Vec<_> = names.slots().iter().map(|slot| (place(slot), slot)).collect();
        order.sort_by_key(|(place, _)| *place);
        let mut last = None;
        for (place, slot) in order {
            if last.replace(place) == Some(place) {
                return Err(ImageError::CookieTwice { dir: place.0, cookie: place.1 });
            }
            let linked = slot.fate == Fate::Linked;
            let value = linked.then(|| key::cookie_value(&slot.entry, names.name(slot)));
            put(&key::cookie_key(place.0, place.1), value.as_deref())?;
        }
        Ok(())
    }

    /// The cuts, in ascending order of files: (file, first block that goes). They come before
    /// the generation's blocks.
    pub fn cuts(&self) -> Vec<(u64, u64)> {
        let cut = self.blocks.files().iter().filter(|file| file.cut != u64::MAX);
        let mut cuts: Vec<_> = cut.map(|file| (file.ino, file.cut)).collect();
        cuts.sort_unstable();
        cuts
    }

    /// Merges what must be merged and gives all blocks. `log` and `base` as for the shadow and
    /// [`Generation::metadata`].
    ///
    /// Errors: the base's own; [`ImageError::BadBlock`] if a merged block is not what its record
    /// promised though the base is not partial.
    pub fn blocks<'a>(
        &'a self,
        log: &'a dyn LogBytes,
        base: &dyn ImageReader,
    ) -> Result<MergedBlocks<'a>, ImageError> {
        let slots = self.blocks.slots();
        let written = (0..slots.len()).filter(|slot| slots[*slot].base != Base::Cut);
        let mut order: Vec<(u32, Option<u32>)> = written.map(|slot| (slot as u32, None)).collect();
        order.sort_unstable_by_key(|(slot, _)| {
            let slot = &slots[*slot as usize];
            (slot.ino, slot.block)
        });
        let (mut merged, mut damaged) = (Vec::new(), Vec::new());
        for (slot, place) in &mut order {
            let slot = &slots[*slot as usize];
            match self.blocks.whole(slot, log) {
                // Whole blocks in the log lie under their record's checksum.
                Some(_) if matches!(slot.base, Base::Log(_)) => {}
                Some(data) => _ = check(slot, data)?,
                None => {
                    let (content, sound) = self.merge(slot, log, base)?;
                    let crc = match (sound, base.is_partial()) {
                        (true, true) => crc32c::crc32c(&content[..]),
                        (true, false) => check(slot, &content)?,
                        // Perhaps all that was damaged was overwritten.
                        (false, _) if crc32c::crc32c(&content[..]) == slot.crc => slot.crc,
                        (false, _) => {
                            damaged.push((slot.ino, slot.block));
                            slot.crc
                        }
                    };
                    *place = Some(merged.len() as u32);
                    merged.push((content, crc));
                }
            }
        }
        Ok(MergedBlocks { generation: self, log, order, merged, damaged })
    }

    /// The content, and whether what lies below is sound.
    fn merge(
        &self,
        slot: &BlockSlot,
        log: &dyn LogBytes,
        base: &dyn ImageReader,
    ) -> Result<(Box<Block>, bool), ImageError> {
        let mut sound = true;
        let mut content = Box::new([0; BLOCK_BYTES]);
        let file = self.blocks.file(self.seed, slot.ino);
        let absent = file.is_some_and(|file| file.absent <= slot.block);
        match self.blocks.base(slot, log) {
            Some(data) => *content = *data,
            None if absent => {}
            None => {
                let damage = &mut |_| sound = false;
                let held = &mut |_, _| ();
                base.read_blocks_but(slot.ino, slot.block, 1, &mut content[..], held, damage)?;
            }
        }
        self.blocks.put_ranges(slot, log, &mut content);
        Ok((content, sound))
    }
}

fn check(slot: &BlockSlot, data: &Block) -> Result<u32, ImageError> {
    match crc32c::crc32c(data) == slot.crc {
        true => Ok(slot.crc),
        false => Err(ImageError::BadBlock { ino: slot.ino, block: slot.block }),
    }
}
