//! Space: looks what room this server has, and takes some ahead of need.
//! Owns: growing the data segments ahead of use, and making the reserve whole.
//! Never: runs on the server's loop; counts what is not this server's own.
//! Invariant: what it reports can be taken in whatever other processes do to the file system.
//! Source: docs/notes/room.md; rule 13.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use harp_node::store::Engine;
use harp_node::vr::{Room, ServerId};
use harp_node::{blocks_ahead, image_room};

use crate::config::{Config, Tuning};
use crate::image::{self, Image};
use crate::reserve::{Reserve, left_bytes};

const BLOCK_BYTES: u64 = 4096;
/// Fewer blocks are not worth growing by.
const GROWTH_MIN: u64 = 256;
/// After growth failed, it is tried again once the file system has so much more left.
const REGAINED_BYTES: u64 = 4 << 20;

/// Bytes of a part of the reserve, and how many parts it has: as much as two rings of records and four segments.
pub fn reserve_parts(tuning: &Tuning) -> (u64, u64) {
    (tuning.segment_bytes, 2 * tuning.ring_bytes / tuning.segment_bytes + 4)
}

/// What looks at one server's space.
pub struct Watch {
    dir: PathBuf,
    reserve: Arc<Reserve>,
    /// What the log has of its own to go on with.
    log_bytes: Arc<AtomicU64>,
    image: Option<Image>,
    /// Copies whose directories lie on the same file system, this one included.
    sharers: u64,
    ahead_blocks: u64,
    metadata_step: u64,
    /// What the file system had left when growth failed.
    failed_at: Option<u64>,
    grows: bool,
}

/// How many copies keep their files where `me` does.
fn sharers(config: &Config, me: ServerId) -> u64 {
    let device =
        |server| std::fs::metadata(config.server_dir(server)).ok().map(|found| found.dev());
    let mine = device(me);
    let copies = config.shape().copies().filter(|copy| *copy == me || device(*copy) == mine);
    copies.count().max(1) as u64
}

impl Watch {
    /// For the server `me`, whose log has `log_bytes` free, and whose image is `image` if it is a copy.
    pub fn new(
        config: &Config,
        me: ServerId,
        (reserve, log_bytes): (Arc<Reserve>, Arc<AtomicU64>),
        image: Option<Image>,
    ) -> Watch {
        let tuning = &config.tuning;
        Watch {
            dir: config.server_dir(me),
            reserve,
            log_bytes,
            image,
            sharers: sharers(config, me),
            ahead_blocks: blocks_ahead(tuning.ring_bytes, tuning.checkpoint_bytes),
            metadata_step: image::metadata_step(tuning),
            failed_at: None,
            grows: true,
        }
    }

    /// Makes room ahead of need, then says what there is. Errors leave the last answer standing.
    pub fn look(&mut self) -> io::Result<Room> {
        self.reserve.fill(|| left_bytes(&self.dir))?;
        let room = match self.image.clone() {
            None => Room::ENDLESS,
            Some(image) => {
                let more = self.grow(&image)?;
                image_room(&image, more, true)
            }
        };
        self.grows = self.judge()?;
        Ok(Room { grows: self.grows, ..room })
    }

    /// Blocks that this copy may yet come to own: its share of what is left beside the reserve.
    fn share(&self, left: u64) -> u64 {
        let missing = self.reserve.whole_bytes() - self.reserve.held_bytes();
        let share = left.saturating_sub(missing) / self.sharers / BLOCK_BYTES;
        if share < GROWTH_MIN { 0 } else { share }
    }

    /// Grows the data segments if fewer blocks are free than should be. Returns how many more there may be.
    fn grow(&mut self, image: &Image) -> io::Result<u64> {
        let left = left_bytes(&self.dir)?;
        if self.failed_at.is_some_and(|at| left < at.saturating_add(REGAINED_BYTES)) {
            return Ok(0);
        }
        self.failed_at = None;
        let space = image.space();
        let wanted = self.ahead_blocks.saturating_sub(space.free_blocks + space.under_way_blocks);
        let wanted = wanted.min(space.limit_blocks - space.total_blocks);
        let share = self.share(left);
        if wanted == 0 || share == 0 {
            return Ok(share);
        }
        // Not a word about why: a full disk is what is to be found out.
        if image.grow(space.free_blocks + wanted.min(share)).is_err() {
            self.failed_at = Some(left);
            return Ok(0);
        }
        Ok(self.share(left_bytes(&self.dir)?))
    }

    /// Whether metadata and log may grow by more than what removes need.
    fn judge(&self) -> io::Result<bool> {
        let (whole, held) = (self.reserve.whole_bytes(), self.reserve.held_bytes());
        let left = left_bytes(&self.dir)?;
        let own = self.log_bytes.load(Ordering::Relaxed);
        // Once refused, an eighth more is needed before it goes on.
        let again = if self.grows { 0 } else { whole / 8 };
        let log = left.saturating_add(held).saturating_add(own) >= whole / 4 + again;
        let Some(image) = &self.image else { return Ok(log) };
        let spare = image.engine().space().map_err(io::Error::other)?.spare_bytes;
        // A quarter is for what is on its way, and for removes.
        let kept = self.reserve.log_bytes(own);
        let has = left.saturating_add(held).saturating_add(spare);
        Ok(log && has >= kept + whole / 4 + self.metadata_step / 2 + again)
    }
}
