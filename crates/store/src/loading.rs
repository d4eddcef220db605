//! Loading: an image that another copy's comes into, piece by piece, while that one changes.
//! Owns: the ways from no image to a complete one.
//! Never: calls an image exact before its owner says so.
//! Invariant: while it loads, the image's op is how far the log was redone over the pieces; a piece is
//! never older than that.
//! Source: docs/disk-format.md; docs/notes/rebuild.md; rule 9.

use crate::checkpoint::{Checkpoint, Commit, Metadata, MetadataSink};
use crate::{BlockWrite, CheckpointReport, Disk, Engine, Store, StoreError, Table};

impl<E: Engine, D: Disk> Store<E, D> {
    /// Throws the image away, in one commit: what is left is empty, at op 0, and not complete. Its blocks
    /// are used again once their readers have ended.
    ///
    /// Errors: `Full`, `Io` changed nothing; `SyncFailed` is fatal.
    pub fn discard(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        let mut writer = shared.writer();
        shared.check_alive()?;
        let head = crate::seal::Head { complete: false, op: 0, cut_marks: 0 };
        let cleared = shared.engine.commit(&mut |batch| {
            let sealed = &mut writer.sealed;
            crate::seal::seal(Table::Head, crate::seal::HEAD_KEY, &head.encode(), sealed);
            batch.put(Table::Head, crate::seal::HEAD_KEY, sealed)?;
            let emptied = Table::ALL.into_iter().filter(|table| *table != Table::Head);
            emptied.into_iter().try_for_each(|table| batch.clear(table))
        });
        shared.note(cleared)?;
        writer.marks.clear();
        let mut state = shared.state();
        let freed = state.bitmap.empty_image();
        (state.op, state.complete) = (head.op, head.complete);
        state.epochs.committed(freed);
        state.reclaim();
        Ok(())
    }

    /// Adds metadata and blocks of another copy's image to one that is not complete; `op` becomes its op.
    /// What is there under the same keys is replaced. Durable when it returns.
    pub fn load<'a>(
        &self,
        op: u64,
        metadata: &'a mut Metadata<'a>,
        blocks: &'a mut dyn Iterator<Item = BlockWrite<'_>>,
    ) -> Result<CheckpointReport, StoreError> {
        let mut writer = self.shared.writer();
        assert!(!self.complete(), "a complete image is not loaded over");
        assert!(op >= self.op(), "an image being loaded goes back");
        let checkpoint = Checkpoint { op, cuts: &[], metadata, blocks, pause: &|| () };
        let commit = Commit { complete: false, moves: false, checkpoint };
        self.shared.note(commit.run(&self.shared, &mut writer))
    }

    /// Says that everything was loaded and the log redone as far as that takes: the image is complete.
    pub fn complete_load(&self) -> Result<(), StoreError> {
        let mut writer = self.shared.writer();
        assert!(!self.complete(), "a complete image is completed");
        let op = self.op();
        let blocks = &mut std::iter::empty();
        let metadata = &mut |_: &mut MetadataSink<'_>| Ok(());
        let checkpoint = Checkpoint { op, cuts: &[], metadata, blocks, pause: &|| () };
        let commit = Commit { complete: true, moves: false, checkpoint };
        self.shared.note(commit.run(&self.shared, &mut writer))?;
        Ok(())
    }
}
