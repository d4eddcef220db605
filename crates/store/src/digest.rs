//! Digest: one hash over what an image means; scrub: every checksum in it.
//! Owns: the order in which things are hashed.
//! Never: hashes positions, free space, the identity or the op, in which equal copies differ.
//! Invariant: equal digests at equal ops mean equal metadata and equal file data.
//! Source: README.md, `harp verify`.

use crate::reader::{ShowDamaged, read_span};
use crate::runs::{Apart, Mark, parse_run};
use crate::seal;
use crate::space::{PAGE_BLOCKS, PAGE_BYTES};
use crate::{
    BLOCK_BYTES, Damage, Disk, Engine, Extent, Reader, Snapshot, Store, StoreError, Table, Walk,
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
        self.digest_but(&mut |damaged| Err(damaged.into()))
    }

    /// The same, showing damaged blocks until `damaged` fails. With any of them the result means nothing.
    pub fn digest_but(&self, damaged: &mut ShowDamaged<'_>) -> Result<Digest, StoreError> {
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
        let mut data = Vec::new();
        self.visible_spans((0, 0), &mut |span, crcs| {
            data.resize(span.count as usize * BLOCK_BYTES, 0);
            read_span(self.disk(), &span, crcs, &mut data, damaged)?;
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

    /// Checks every value and block of this view, and that the block map and the bitmap of used
    /// blocks agree; shows what is damaged and goes on behind it.
    ///
    /// Errors: only those that are not damage.
    pub fn scrub(&self, show: &mut dyn FnMut(Damage)) -> Result<ScrubReport, StoreError> {
        let mut scrub = Scrub::new(self.disk());
        for table in Table::ALL {
            self.snapshot().scan(table, &[], &mut |key, sealed| {
                scrub.value(table, key, sealed, show)?;
                Ok(Walk::On)
            })?;
        }
        if scrub.report.damaged == 0 && scrub.mapped.words() != scrub.used.words() {
            scrub.report.damaged += 1;
            show(Damage::Contradiction { what: "block map and bitmap of used blocks" });
        }
        Ok(scrub.report)
    }

    /// Checks values and blocks from a place on, about `budget` of them. Returns where to go on,
    /// with this or a newer reader; `None` at the end.
    ///
    /// Errors: only those that are not damage.
    pub fn scrub_part(
        &self,
        from: ScrubPlace,
        budget: u64,
        show: &mut dyn FnMut(Damage),
    ) -> Result<(ScrubReport, Option<ScrubPlace>), StoreError> {
        let mut scrub = Scrub::new(self.disk());
        let mut place = Some(from);
        while let Some(ScrubPlace { table, key }) = place.take() {
            self.snapshot().scan(table, &key, &mut |key, sealed| {
                if scrub.report.values + scrub.report.blocks >= budget {
                    place = Some(ScrubPlace { table, key: key.to_vec() });
                    return Ok(Walk::Stop);
                }
                scrub.value(table, key, sealed, show)?;
                Ok(Walk::On)
            })?;
            if place.is_some() {
                break;
            }
            let next = Table::ALL.get(table as usize + 1);
            place = next.map(|table| ScrubPlace { table: *table, key: Vec::new() });
        }
        Ok((scrub.report, place))
    }
}

/// How far a scrub in parts has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubPlace {
    table: Table,
    key: Vec<u8>,
}

impl Default for ScrubPlace {
    /// The beginning.
    fn default() -> ScrubPlace {
        ScrubPlace { table: Table::Head, key: Vec::new() }
    }
}

/// A scrub under way.
struct Scrub<'r, D> {
    disk: &'r D,
    disk_blocks: u64,
    data: Vec<u8>,
    apart: Apart,
    mapped: Bits,
    used: Bits,
    report: ScrubReport,
}

impl<'r, D: Disk> Scrub<'r, D> {
    fn new(disk: &'r D) -> Scrub<'r, D> {
        Scrub {
            disk,
            disk_blocks: disk.blocks(),
            data: Vec::new(),
            apart: Apart::default(),
            mapped: Bits::default(),
            used: Bits::default(),
            report: ScrubReport::default(),
        }
    }

    /// Checks one value, and the blocks of a run.
    fn value(
        &mut self,
        table: Table,
        key: &[u8],
        sealed: &[u8],
        show: &mut dyn FnMut(Damage),
    ) -> Result<(), StoreError> {
        self.report.values += 1;
        let checked = match table {
            Table::Map => self.run(key, sealed, show),
            Table::Cut => Mark::parse((key, sealed)).map(|_| ()),
            Table::Used => self.used.add_page(key, sealed, self.disk_blocks),
            Table::Head | Table::Meta => seal::open(table, key, sealed).map(|_| ()),
        };
        match checked {
            Err(StoreError::Damaged(damage)) => {
                self.report.damaged += 1;
                show(damage);
                Ok(())
            }
            other => other,
        }
    }

    fn run(
        &mut self,
        key: &[u8],
        sealed: &[u8],
        show: &mut dyn FnMut(Damage),
    ) -> Result<(), StoreError> {
        let (span, crcs) = parse_run((key, sealed))?;
        self.apart.check(&span)?;
        if span.extent().end() > self.disk_blocks {
            return Err(Damage::Missing { what: "a data segment in use" }.into());
        }
        self.data.resize(span.count as usize * BLOCK_BYTES, 0);
        self.report.blocks += span.count;
        let report = &mut self.report;
        read_span(self.disk, &span, &mut crcs.iter(), &mut self.data, &mut |damaged| {
            report.damaged += 1;
            show(Damage::Block(damaged));
            Ok(())
        })?;
        if self.mapped.add(span.extent()) {
            Ok(())
        } else {
            Err(Damage::Contradiction { what: "two runs of the block map share a block" }.into())
        }
    }
}

/// Blocks seen in use.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// Adds blocks that the disk holds; false if one was there already.
    fn add(&mut self, extent: Extent) -> bool {
        let words = (extent.end() / 64 + 1) as usize;
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        let mut new = true;
        for block in extent.position..extent.end() {
            let word = &mut self.0[(block / 64) as usize];
            new &= *word & (1 << (block % 64)) == 0;
            *word |= 1 << (block % 64);
        }
        new
    }

    /// Adds a page of the bitmap. Pages come in ascending order.
    fn add_page(&mut self, key: &[u8], sealed: &[u8], disk_blocks: u64) -> Result<(), StoreError> {
        let value = seal::open(Table::Used, key, sealed)?;
        let page = key.try_into().map(u64::from_be_bytes).ok();
        let page = page.filter(|page| *page < disk_blocks.div_ceil(PAGE_BLOCKS));
        let page = page.ok_or_else(|| StoreError::value(Table::Used, key))?;
        let words = page as usize * PAGE_BYTES / 8;
        self.0.resize(words.max(self.0.len()), 0);
        self.0.extend(value.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        Ok(())
    }

    /// The words without the empty ones at the end.
    fn words(&self) -> &[u64] {
        let used = self.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        &self.0[..used]
    }
}
