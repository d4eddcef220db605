//! A server's directory without its server: what it holds, read and not changed.
//! Owns: the lock on the directory, and the order of trust: view file, log, image.
//! Never: starts anything, writes a byte of a server's files.
//! Invariant: what it shows is committed: the image, and the log above it as far as the log itself says so.
//! Source: docs/protocol.md, rule 3; docs/operations.md, "Getting files out of a directory".

use std::path::Path;
use std::sync::Arc;

use harp_engine::{FileDisk, LmdbEngine};
use harp_node::Offline;
use harp_node::log::{
    DiskError, Evidence, LogDisk, LogPos, LogSettings, Recovered, Ring, SlotFile, Verdict,
    head_clean, head_geometry, recover_by,
};
use harp_node::vr::{Durable, Incarnation};

use crate::error::HarpError;
use crate::image;
use crate::lock::Lock;
use crate::logdisk::FileLogDisk;
use crate::ringmem::RingMapping;

/// Memory for the log's records at first; more if those above the image do not fit.
const RING_BYTES: u64 = 256 << 20;
/// Segments of a log whose head does not say them: nothing will be read of it.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENTS_MAX: u64 = 8;

/// The files of a server that does not run.
pub struct OfflineServer {
    /// The files.
    pub files: Offline<LmdbEngine, FileDisk>,
    /// Why the log adds nothing to the image, if it does not.
    pub log_fault: Option<String>,
    /// The log's last op; those above the files' are not known to be committed.
    pub log_end: u64,
    _lock: Lock,
}

/// A log's disk that takes writes for done: what recovery would make good stays as it is.
struct Untouched(FileLogDisk);

impl LogDisk for Untouched {
    fn read(&mut self, at: LogPos, into: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(at, into)
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        Ok(())
    }

    fn write(&mut self, _: LogPos, _: &[u8]) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn read_slot(&mut self, file: SlotFile, slot: usize) -> Result<Option<Vec<u8>>, DiskError> {
        self.0.read_slot(file, slot)
    }

    fn write_slot(&mut self, _: SlotFile, _: usize, _: &[u8]) -> Result<(), DiskError> {
        Ok(())
    }

    fn lost_segment(&mut self, begin: LogPos) -> Result<Option<String>, DiskError> {
        self.0.lost_segment(begin)
    }
}

fn refused(why: String) -> HarpError {
    HarpError::Refused { why }
}

/// Opens the directory of one server. Errors: it runs, it is no server's, or a witness's, which holds no files.
pub fn open(dir: &Path) -> Result<OfflineServer, HarpError> {
    let shown = dir.display();
    if !dir.is_dir() {
        return Err(refused(format!(
            "{shown} is no directory: name one server's, like harp-data/a"
        )));
    }
    let store = dir.join("store");
    if !store.is_dir() {
        let what = match dir.join("view").exists() {
            true => "is a witness's, which keeps no files: name a copy's directory",
            false => "holds no server's files: name one server's directory, like harp-data/a",
        };
        return Err(refused(format!("{shown} {what}")));
    }
    let lock = Lock::take(&dir.join("lock")).map_err(|error| match error {
        HarpError::Locked { .. } => {
            refused(format!("the server of {shown} runs: mount it, or stop it first"))
        }
        other => other,
    })?;
    let opened = image::open_whatever(&store)?;
    if !opened.complete {
        let why =
            "its image was being loaded from another copy and is not whole: take another copy's";
        return Err(refused(format!("{shown}: {why}")));
    }
    let op = opened.op;
    let (recovered, fault) = read_log(dir, &opened.identity, op)?;
    let mut files = Offline::open(opened.store, &recovered.log).map_err(|error| {
        HarpError::Fatal { why: format!("the image in {}: {error}", store.display()) }
    })?;
    if fault.is_none() {
        let redone = files.redo(&recovered.log, recovered.cp_known);
        redone.map_err(|error| HarpError::Fatal { why: format!("{shown}: {error}") })?;
    }
    let log_end = recovered.log.current().end();
    Ok(OfflineServer { files, log_fault: fault, log_end, _lock: lock })
}

/// Reads the log, and says why it must not be used if that is so.
fn read_log(dir: &Path, group: &[u8], op: u64) -> Result<(Recovered, Option<String>), HarpError> {
    let opened = FileLogDisk::open(dir, SEGMENT_BYTES, SEGMENTS_MAX);
    let mut disk = opened.map_err(|error| HarpError::file("open the log in", dir, error))?;
    let Judged { fault: view_fault, start, evidence } = judge_view(&mut disk, group)?;
    let heads = [disk.read_slot(SlotFile::LogHead, 0)?, disk.read_slot(SlotFile::LogHead, 1)?];
    let (segment_bytes, segments_max) =
        head_geometry(&heads).unwrap_or((SEGMENT_BYTES, SEGMENTS_MAX));
    let disk_bytes = segment_bytes.saturating_mul(segments_max);
    let mut ring_bytes = RING_BYTES.min(1 << disk_bytes.ilog2()).max(segment_bytes);
    loop {
        let disk = FileLogDisk::open(dir, segment_bytes, segments_max)
            .map_err(|error| HarpError::file("open the log in", dir, error))?;
        let ring = Ring::new(Arc::new(RingMapping::new(ring_bytes as usize)?));
        let settings = LogSettings { segment_bytes, segments_max, start, keeps_clean_mark: false };
        let recovered = recover_by(&mut Untouched(disk), ring, settings, evidence)?;
        let body = recovered.log.current();
        let fits = body.memory_begin() <= op + 1 || body.end() <= op;
        if !fits && 2 * ring_bytes <= disk_bytes {
            ring_bytes *= 2;
            continue;
        }
        let fault = match &recovered.verdict {
            Verdict::Amnesia(why) => Some(why.to_string()),
            Verdict::Intact if !fits => Some(format!("it begins above op {}", op + 1)),
            Verdict::Intact => None,
        };
        return Ok((recovered, view_fault.or(fault)));
    }
}

/// Whether the log of the server in `dir` is all on the disk: it never counted in memory, or it was written out and no
/// process started since. Errors: it cannot be read.
pub fn is_at_rest(dir: &Path, group: &[u8]) -> Result<bool, HarpError> {
    let opened = FileLogDisk::open(dir, SEGMENT_BYTES, SEGMENTS_MAX);
    let mut disk = opened.map_err(|error| HarpError::file("open the log in", dir, error))?;
    let judged = judge_view(&mut disk, group)?;
    let Evidence::CleanMark { disk: disk_id, start } = judged.evidence else {
        return Ok(judged.fault.is_none());
    };
    let heads = [disk.read_slot(SlotFile::LogHead, 0)?, disk.read_slot(SlotFile::LogHead, 1)?];
    let heads = heads.iter().flatten().filter_map(|slot| head_clean(slot));
    let newest = heads.max_by_key(|(sequence, _)| *sequence).and_then(|(_, clean)| clean);
    let marked = newest.is_some_and(|mark| mark.disk == disk_id && mark.start == start);
    Ok(marked && judged.fault.is_none())
}

/// What the view file says of the log.
struct Judged {
    /// Why the log must not be used.
    fault: Option<String>,
    /// The number that the server's next start would have.
    start: u64,
    /// What shows that the log is whole.
    evidence: Evidence,
}

fn judge_view(disk: &mut FileLogDisk, group: &[u8]) -> Result<Judged, HarpError> {
    let slots = [disk.read_slot(SlotFile::View, 0)?, disk.read_slot(SlotFile::View, 1)?];
    let newest = Durable::newest([slots[0].as_deref(), slots[1].as_deref()]);
    let start = newest.as_ref().map_or(0, |(durable, _)| durable.incarnation.start + 1);
    let evidence = match &newest {
        Some((Durable { memory, incarnation: Incarnation { disk, start }, .. }, _))
            if *memory != 0 =>
        {
            Evidence::CleanMark { disk: *disk, start: *start }
        }
        _ => Evidence::Marks,
    };
    let fault = match newest {
        None => Some("the view file is missing or damaged".into()),
        Some((durable, _)) if durable.group != group => {
            Some("log and image are of different groups".into())
        }
        Some((durable, _)) if durable.log_void => Some("a write to it failed".into()),
        Some(_) => None,
    };
    Ok(Judged { fault, start, evidence })
}
