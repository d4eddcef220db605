//! Mend: damaged blocks written anew with bytes that another copy holds.
//! Owns: the judgement whether the image still wants those bytes.
//! Never: writes in place, moves the image to another op, or takes bytes that have another checksum.
//! Invariant: after a crash in the middle a block is as damaged as before, or mended.
//! Source: docs/notes/repair.md.

use crate::checkpoint::{BlockWrite, Checkpoint, Commit, Content};
use crate::{Block, Disk, Engine, Store, StoreError, block_crc};

/// What a damaged block should hold.
#[derive(Debug, Clone)]
pub struct Remedy {
    /// The file.
    pub file: u64,
    /// The block's index in the file.
    pub block: u64,
    /// Its content.
    pub data: Box<Block>,
}

impl<E: Engine, D: Disk> Store<E, D> {
    /// Writes blocks anew, elsewhere, in one commit; the op stays. They come in ascending order of file and block.
    /// Returns for each whether it was written: not if the image wants other bytes there by now, going by the
    /// checksum.
    ///
    /// Errors: `Full`, `Io`, `Damaged` (of the block map) changed nothing; `SyncFailed` is fatal.
    pub fn mend(&self, remedies: &[Remedy]) -> Result<Vec<bool>, StoreError> {
        let mut writer = self.shared.writer();
        let reader = self.reader()?;
        let (mut wanted, mut writes) = (Vec::new(), Vec::new());
        for Remedy { file, block, data } in remedies {
            let crc = block_crc(data);
            let fits = reader.block_crc(*file, *block)? == Some(crc);
            wanted.push(fits);
            if fits {
                let content = Content::Checked(data, crc);
                writes.push(BlockWrite { file: *file, block: *block, content });
            }
        }
        let (op, complete) = (reader.op(), reader.complete());
        drop(reader);
        if writes.is_empty() {
            return Ok(wanted);
        }
        let checkpoint = Checkpoint {
            op,
            cuts: &[],
            metadata: &mut |_| Ok(()),
            blocks: &mut writes.into_iter(),
            pause: &|| (),
        };
        let commit = Commit { complete, moves: false, checkpoint };
        self.shared.note(commit.run(&self.shared, &mut writer))?;
        Ok(wanted)
    }
}
