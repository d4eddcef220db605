//! Digest: one hash over what an image means; scrub: every checksum in it.
//! Owns: the order in which things are hashed.
//! Never: hashes positions, free space, the identity or the op, in which equal copies differ.
//! Invariant: equal digests at equal ops mean equal metadata and equal file data.
//! Source: the design, section 9, `harp verify`.

use crate::reader::{READ_BLOCKS_MAX, check};
use crate::runs::{Mark, Span, parse_run};
use crate::seal;
use crate::{
    BLOCK_BYTES, Damage, Disk, Engine, Reader, Snapshot, Store, StoreError, Table, Walk, block_crc,
};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// SHA-256 over metadata and logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// What a scrub saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Engine values read.
    pub values: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Damaged values and blocks.
    pub damaged: u64,
}

impl<E: Engine, D: Disk> Store<E, D> {
    /// The digest of the image as last committed, and the op it belongs to.
    pub fn digest(&self) -> Result<(u64, Digest), StoreError> {
        let reader = self.reader()?;
        Ok((reader.op(), reader.digest()?))
    }

    /// Checks every value and block of the image as last committed; shows what is damaged and
    /// goes on behind it.
    pub fn scrub(&self, show: &mut dyn FnMut(Damage)) -> Result<ScrubReport, StoreError> {
        self.reader()?.scrub(show)
    }
}

impl<E: Engine, D: Disk> Reader<E, D> {
    /// The digest of this view. Every checksum is checked; blocks of zeros count as holes, which
    /// read the same.
    ///
    /// Errors: `Damaged` at the first damage.
    pub fn digest(&self) -> Result<Digest, StoreError> {
        let mut hash = Sha256::new();
        let mut entries = 0u64;
        self.scan(&[], usize::MAX, &mut |key, value| {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key);
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
            entries += 1;
            Ok(Walk::On)
        })?;
        hash.update(u64::MAX.to_le_bytes());
        hash.update(entries.to_le_bytes());
        let mut data = vec![0; READ_BLOCKS_MAX as usize * BLOCK_BYTES];
        self.visible_spans((0, 0), &mut |span, crcs| {
            let data = &mut data[..span.count as usize * BLOCK_BYTES];
            self.disk().read(span.position, data)?;
            check(&span, crcs, data)?;
            for (index, block) in (0..).zip(data.as_chunks::<BLOCK_BYTES>().0) {
                if *block != [0; BLOCK_BYTES] {
                    hash.update(span.file.to_le_bytes());
                    hash.update((span.first + index).to_le_bytes());
                    hash.update(block);
                }
            }
            Ok(Walk::On)
        })?;
        Ok(Digest(hash.finalize().into()))
    }

    /// Checks every value and block of this view; shows what is damaged and goes on behind it.
    ///
    /// Errors: only those that are not damage.
    pub fn scrub(&self, show: &mut dyn FnMut(Damage)) -> Result<ScrubReport, StoreError> {
        let mut report = ScrubReport::default();
        let mut data = vec![0; READ_BLOCKS_MAX as usize * BLOCK_BYTES];
        for table in Table::ALL {
            self.snapshot().scan(table, &[], &mut |key, sealed| {
                report.values += 1;
                let checked = match table {
                    Table::Map => parse_run((key, sealed)).map(Some),
                    Table::Cut => Mark::parse((key, sealed)).map(|_| None),
                    _ => seal::open(table, key, sealed).map(|_| None),
                };
                match checked {
                    Ok(None) => {}
                    Ok(Some((span, crcs))) => {
                        self.scrub_run(&span, &mut crcs.iter(), &mut data, &mut report, show)?;
                    }
                    Err(StoreError::Damaged(damage)) => {
                        report.damaged += 1;
                        show(damage);
                    }
                    Err(other) => return Err(other),
                }
                Ok(Walk::On)
            })?;
        }
        Ok(report)
    }

    fn scrub_run(
        &self,
        span: &Span,
        crcs: &mut dyn Iterator<Item = u32>,
        data: &mut [u8],
        report: &mut ScrubReport,
        show: &mut dyn FnMut(Damage),
    ) -> Result<(), StoreError> {
        let data = &mut data[..span.count as usize * BLOCK_BYTES];
        self.disk().read(span.position, data)?;
        for (index, (block, crc)) in (0..).zip(data.as_chunks::<BLOCK_BYTES>().0.iter().zip(crcs)) {
            report.blocks += 1;
            if block_crc(block) != crc {
                report.damaged += 1;
                let position = span.position + index;
                show(Damage::Block { file: span.file, block: span.first + index, position });
            }
        }
        Ok(())
    }
}
