//! MapEdit: the changes a checkpoint makes to the block map.
//! Owns: runs to be put or deleted, laid over the map as it was; the blocks they free.
//! Never: writes to the engine or the disk.
//! Invariant: map and changes together never hold two runs over the same block.
//! Source: docs/disk-format.md.

use crate::runs::{
    BLOCK_INDEX_MAX, Mark, RUN_BLOCKS_MAX, Span, hidden, map_key, parse_map_key, parse_run,
};
use crate::{Extent, Snapshot, StoreError, Table, Walk};
use std::collections::{BTreeMap, BTreeSet};

/// (file, block): the last block of a run, the first of a mark.
type Place = (u64, u64);

/// Changes over the map of a snapshot.
pub(crate) struct MapEdit<'s, S> {
    base: &'s S,
    op: u64,
    /// `None` deletes. A run's checksums begin at the index beside it.
    changes: BTreeMap<Place, Option<(Span, usize)>>,
    crcs: Vec<u32>,
    freed: Vec<Extent>,
    marks: BTreeMap<Place, Mark>,
    marks_changed: BTreeSet<Place>,
}

/// The changes of a finished edit.
pub(crate) struct MapChanges {
    changes: BTreeMap<Place, Option<(Span, usize)>>,
    crcs: Vec<u32>,
    /// Blocks the image no longer uses.
    pub freed: Vec<Extent>,
    /// All marks as the changes leave them.
    pub marks: BTreeMap<Place, Mark>,
    marks_changed: BTreeSet<Place>,
}

impl<'s, S: Snapshot> MapEdit<'s, S> {
    /// No changes yet. `op` is the checkpoint's, `marks` are those of the snapshot.
    pub fn new(base: &'s S, op: u64, marks: BTreeMap<Place, Mark>) -> MapEdit<'s, S> {
        MapEdit {
            base,
            op,
            changes: BTreeMap::new(),
            crcs: Vec::new(),
            freed: Vec::new(),
            marks,
            marks_changed: BTreeSet::new(),
        }
    }

    /// The first run, hidden or not, that ends at or after a block of a file; its checksums'
    /// index if it is a new one.
    fn next(&self, file: u64, block: u64) -> Result<Option<(Span, Option<usize>)>, StoreError> {
        let mut from = block;
        loop {
            let old = match self.base.seek(Table::Map, &map_key(file, from))? {
                Some(entry) => Some(parse_run(entry)?.0).filter(|span| span.file == file),
                None => None,
            };
            let new = self.changes.range((file, from)..=(file, u64::MAX)).next();
            match (old, new) {
                (None, None) => return Ok(None),
                (Some(old), Some((place, _))) if (file, old.last()) < *place => {
                    return Ok(Some((old, None)));
                }
                (Some(old), None) => return Ok(Some((old, None))),
                (_, Some((_, Some((span, at))))) => return Ok(Some((*span, Some(*at)))),
                // Deleted: look behind it. No run ends beyond the greatest index.
                (_, Some((place, None))) => from = place.1 + 1,
            }
        }
    }

    /// Puts a part of a run that is there, under the part's own key.
    fn keep(&mut self, whole: &Span, at: Option<usize>, part: Span) -> Result<(), StoreError> {
        let skip = part.first - whole.first;
        let at = match at {
            Some(at) => at + skip as usize,
            None => {
                let at = self.crcs.len();
                let key = map_key(whole.file, whole.last());
                let value = self.base.get(Table::Map, &key)?;
                let value = value.ok_or_else(|| StoreError::value(Table::Map, &key))?;
                let (_, crcs) = parse_run((&key, value))?;
                self.crcs.extend(crcs.iter().skip(skip as usize).take(part.count as usize));
                at
            }
        };
        self.changes.insert((part.file, part.last()), Some((part, at)));
        Ok(())
    }

    fn free(&mut self, extent: Extent) {
        match self.freed.last_mut() {
            Some(before) if before.end() == extent.position => before.count += extent.count,
            _ => self.freed.push(extent),
        }
    }

    /// Takes the blocks `first` to `last` of a run out of the map.
    fn take_out(
        &mut self,
        span: Span,
        at: Option<usize>,
        first: u64,
        last: u64,
    ) -> Result<(), StoreError> {
        let first = first.max(span.first);
        let last = last.min(span.last());
        self.changes.insert((span.file, span.last()), None);
        self.free(span.part(first, last).extent());
        if span.first < first {
            self.keep(&span, at, span.part(span.first, first - 1))?;
        }
        if last < span.last() {
            self.keep(&span, at, span.part(last + 1, span.last()))?;
        }
        Ok(())
    }

    /// Takes the blocks `first` to `last` of a file out of the map.
    fn remove(&mut self, file: u64, first: u64, last: u64) -> Result<(), StoreError> {
        let mut from = first;
        while let Some((span, at)) = self.next(file, from)? {
            if span.first > last {
                break;
            }
            self.take_out(span, at, first, last)?;
            from = span.last() + 1;
        }
        Ok(())
    }

    /// Puts new blocks of a file into the map in place of whatever was there.
    pub fn write(
        &mut self,
        file: u64,
        first: u64,
        position: u64,
        crcs: &[u32],
    ) -> Result<(), StoreError> {
        for (index, crcs) in crcs.chunks(RUN_BLOCKS_MAX).enumerate() {
            let skip = (index * RUN_BLOCKS_MAX) as u64;
            let span = Span {
                file,
                first: first + skip,
                count: crcs.len() as u64,
                position: position + skip,
                op: self.op,
            };
            self.remove(file, span.first, span.last())?;
            let at = self.crcs.len();
            self.crcs.extend_from_slice(crcs);
            self.changes.insert((file, span.last()), Some((span, at)));
        }
        Ok(())
    }

    /// Cuts a file: nothing at or after block `first` is there any more. Frees the blocks now if
    /// at most `runs_left` runs hold them, else marks the cut. Returns the runs freed, at most
    /// `runs_left`.
    pub fn cut(&mut self, file: u64, first: u64, runs_left: usize) -> Result<usize, StoreError> {
        // Marks further on are superseded: this cut is newer and reaches as far.
        let places = self.marks.range((file, first)..=(file, u64::MAX));
        let superseded: Vec<Place> = places.map(|(place, _)| *place).collect();
        for place in superseded {
            self.marks.remove(&place);
            self.marks_changed.insert(place);
        }
        let runs = self.count_runs(file, first, runs_left + 1)?;
        if runs <= runs_left {
            self.remove(file, first, BLOCK_INDEX_MAX)?;
            return Ok(runs);
        }
        if let Some((span, at)) = self.next(file, first)?
            && span.first < first
        {
            self.take_out(span, at, first, span.last())?;
        }
        self.marks.insert((file, first), Mark { file, first, op: self.op, resume: first });
        self.marks_changed.insert((file, first));
        Ok(0)
    }

    /// Runs of a file that reach to or beyond a block, counted up to `limit`. A file is cut before
    /// anything else of the checkpoint changes its runs, so the snapshot tells.
    fn count_runs(&self, file: u64, first: u64, limit: usize) -> Result<usize, StoreError> {
        let mut runs = 0;
        self.base.scan(Table::Map, &map_key(file, first), &mut |key, _| {
            let place = parse_map_key(key).ok_or_else(|| StoreError::value(Table::Map, key))?;
            if place.0 != file || runs >= limit {
                return Ok(Walk::Stop);
            }
            runs += 1;
            Ok(Walk::On)
        })?;
        Ok(runs)
    }

    /// Frees what the marks of earlier checkpoints hide, visiting at most `runs_left` runs.
    pub fn free_hidden(&mut self, runs_left: usize) -> Result<(), StoreError> {
        let old = self.marks.values().filter(|mark| mark.op < self.op);
        let old: Vec<Mark> = old.copied().collect();
        let mut runs_left = runs_left;
        for mark in old {
            if runs_left == 0 {
                break;
            }
            let place = (mark.file, mark.first);
            let next = self.marks.range((mark.file, mark.first + 1)..=(mark.file, u64::MAX)).next();
            let end = next.map_or(u64::MAX, |(place, _)| place.1);
            let resume = self.free_hidden_by(mark, end, &mut runs_left)?;
            match resume {
                Some(resume) => {
                    self.marks.insert(place, Mark { resume, ..mark });
                }
                None => {
                    self.marks.remove(&place);
                }
            }
            self.marks_changed.insert(place);
        }
        Ok(())
    }

    /// Frees what one mark hides before block `end`. Returns where to go on, if anywhere.
    fn free_hidden_by(
        &mut self,
        mark: Mark,
        end: u64,
        runs_left: &mut usize,
    ) -> Result<Option<u64>, StoreError> {
        let mut from = mark.resume.max(mark.first);
        while let Some((span, at)) = self.next(mark.file, from)? {
            if span.first >= end {
                break;
            }
            if *runs_left == 0 {
                return Ok(Some(from));
            }
            *runs_left -= 1;
            if hidden(&span, &[mark]) {
                self.take_out(span, at, span.first, span.last())?;
            }
            from = span.last() + 1;
        }
        Ok(None)
    }

    /// The changes, without the snapshot.
    pub fn finish(self) -> MapChanges {
        let MapEdit { changes, crcs, freed, marks, marks_changed, .. } = self;
        MapChanges { changes, crcs, freed, marks, marks_changed }
    }
}

impl MapChanges {
    /// Runs to put (with their checksums) or delete, in key order.
    pub fn runs(&self) -> impl Iterator<Item = (Place, Option<(Span, &[u32])>)> {
        self.changes.iter().map(|(place, change)| {
            let run = change.map(|(span, at)| (span, &self.crcs[at..at + span.count as usize]));
            (*place, run)
        })
    }

    /// Marks to put or delete, in key order.
    pub fn mark_changes(&self) -> impl Iterator<Item = (Place, Option<&Mark>)> {
        self.marks_changed.iter().map(|place| (*place, self.marks.get(place)))
    }
}

/// Reads all marks.
pub(crate) fn load_marks(view: &impl Snapshot) -> Result<BTreeMap<Place, Mark>, StoreError> {
    let mut marks = BTreeMap::new();
    view.scan(Table::Cut, &[], &mut |key, value| {
        let mark = Mark::parse((key, value))?;
        marks.insert((mark.file, mark.first), mark);
        Ok(Walk::On)
    })?;
    Ok(marks)
}
