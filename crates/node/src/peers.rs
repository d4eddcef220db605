//! Frames between servers: an envelope, then raw records.
//! Owns: attaching records to messages, from the ring or from disk; taking them in.
//! Never: lets a peer's bytes into the log unchecked.
//! Invariant: records go into the log in op order, each fitting the checksum of the one before.

use harp_log::{Body, DiskCommand, LogFull, LogPos, RawRecords, parse_extent};
use harp_vr::{Envelope, Message, Op, Past, Records, ServerId, View};

use crate::api::{Frame, Notice, Now, Output};
use crate::node::Node;
use crate::record::{self, kind};

/// Bytes of records that one frame carries at most (a single record may be longer).
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Beyond this much, records are sent to the members before the write before them has ended.
const GATHER_BYTES: u64 = 128 << 10;
/// Bytes of records in flight to one member at most.
const WINDOW_BYTES: u64 = 16 << 20;
/// Reads of the log's disk for those who catch up, at most at once.
const READS_MAX: usize = 16;

/// Why the log's disk is being read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingRead {
    pub to: ServerId,
    /// `Some`: for a grant in this view; else for one who catches up.
    pub grant: Option<View>,
    pub from: Op,
    pub last: Op,
}

impl Node {
    // ----- out -----

    /// Sends `message` with the records that lie in `ranges`.
    pub(crate) fn send(
        &mut self,
        to: ServerId,
        message: Message,
        ranges: &[(LogPos, u32)],
        out: &mut Output,
    ) {
        let start = out.bytes.len();
        self.replica.envelope(to, message).encode(&mut out.bytes);
        let first = out.ranges.len();
        out.ranges.extend_from_slice(ranges);
        let body = first..out.ranges.len();
        out.frames.push(Frame { to, head: start..out.bytes.len(), body });
    }

    /// Sends `message` with copied records, or whatever else is attached to it.
    pub(crate) fn send_copied(
        &mut self,
        to: ServerId,
        message: Message,
        records: &[&[u8]],
        out: &mut Output,
    ) {
        let start = out.bytes.len();
        self.replica.envelope(to, message).encode(&mut out.bytes);
        records.iter().for_each(|r| out.bytes.extend_from_slice(r));
        let at = out.ranges.len();
        out.frames.push(Frame { to, head: start..out.bytes.len(), body: at..at });
    }

    /// Streams new records, or heartbeats, to the members that are due.
    pub(crate) fn send_prepares(&mut self, now: Now, out: &mut Output) {
        if !self.replica.is_primary() {
            return;
        }
        // Records travel in the batches that they are written in: fewer, larger messages and writes. Bulk
        // data does not wait for that.
        let gathering = self.unsealed_bytes > 0 && self.unsealed_bytes < GATHER_BYTES;
        for member in self.replica.members().iter() {
            if gathering && !self.replica.heartbeat_due(now.steady, member) {
                continue;
            }
            while let Some(first) = self.replica.prepare_due(now.steady, member) {
                let body = self.log.current();
                let received = self.replica.received_by(member);
                let open = in_flight(body, received, first) < WINDOW_BYTES;
                let from = out.ranges.len();
                let mut last = Op(first.0 - 1);
                if open && first.0 <= body.end() {
                    // What a member has not received is pinned in memory.
                    let end = body.ranges(first.0, FRAME_BYTES_MAX, &mut out.ranges);
                    last = Op(end.expect("unreceived records stay in memory"));
                }
                let idle = last < first;
                if idle && !self.replica.heartbeat_due(now.steady, member) {
                    break;
                }
                let message = self.replica.prepare(now.steady, member, first, last);
                let start = out.bytes.len();
                self.replica.envelope(member, message).encode(&mut out.bytes);
                let head = start..out.bytes.len();
                out.frames.push(Frame { to: member, head, body: from..out.ranges.len() });
                if idle {
                    break;
                }
            }
        }
    }

    pub(crate) fn send_grant(
        &mut self,
        to: ServerId,
        view: View,
        from: Op,
        last: Op,
        out: &mut Output,
    ) {
        let mut ranges = Vec::new();
        match collect(self.log.current(), from, last, &mut ranges) {
            Some(last) => {
                let message = Message::Grant { view, first: from, last };
                self.send(to, message, &ranges, out);
            }
            None => self.read_for(to, Some(view), from, last, out),
        }
    }

    pub(crate) fn send_past(&mut self, to: ServerId, from: Op, out: &mut Output) {
        let body = self.log.current();
        let cp = self.replica.cp().min(Op(body.end()));
        if from > cp || from.0 < body.begin() {
            let past = self.past(from, Op(from.0 - 1));
            return self.send(to, Message::Past(past), &[], out);
        }
        let mut ranges = Vec::new();
        match collect(body, from, cp, &mut ranges) {
            Some(last) => {
                let past = self.past(from, last);
                self.send(to, Message::Past(past), &ranges, out);
            }
            None => self.read_for(to, None, from, cp, out),
        }
    }

    fn past(&self, first: Op, last: Op) -> Past {
        let view = self.replica.formed();
        Past { view, first, last, cp: self.replica.cp(), begin: Op(self.log.current().begin()) }
    }

    /// Memory lacks the records: the disk has them, or they are gone and the asker asks again.
    fn read_for(
        &mut self,
        to: ServerId,
        grant: Option<View>,
        from: Op,
        last: Op,
        out: &mut Output,
    ) {
        let asked = self.reads.values().any(|r| r.to == to);
        if asked || self.reads.len() >= READS_MAX {
            return;
        }
        let Some((at, bytes)) = self.log.current().disk_extent(from.0, FRAME_BYTES_MAX) else {
            return;
        };
        let token = self.next_read;
        self.next_read += 1;
        self.reads.insert(token, PendingRead { to, grant, from, last });
        out.disk.push(DiskCommand::Read { token, at, bytes });
    }

    pub(crate) fn on_read(&mut self, token: u64, at: LogPos, bytes: Vec<u8>, out: &mut Output) {
        let Some(read) = self.reads.remove(&token) else { return };
        let mut records: Vec<&[u8]> = Vec::new();
        let mut last = Op(read.from.0 - 1);
        for raw in parse_extent(&bytes, at, read.from.0) {
            let Ok(raw) = raw else { break }; // its place was used again meanwhile
            if raw.op() > read.last.0 || raw.op() != last.0 + 1 {
                break;
            }
            last = Op(raw.op());
            records.push(raw.bytes());
        }
        if last < read.from {
            let text = format!("records from op {} on could not be read back", read.from);
            out.notices.push(Notice::Remark { text });
            return;
        }
        let message = match read.grant {
            Some(view) => Message::Grant { view, first: read.from, last },
            None => Message::Past(self.past(read.from, last)),
        };
        self.send_copied(read.to, message, &records, out);
    }

    // ----- in -----

    pub(crate) fn on_frame(&mut self, now: Now, from: ServerId, frame: &[u8], out: &mut Output) {
        let (envelope, records) = match Envelope::decode(frame) {
            Ok((envelope, records)) if envelope.from == from => (envelope, records),
            Ok((envelope, _)) => {
                let text = format!("a frame from {from} claims to be from {}", envelope.from);
                return out.notices.push(Notice::Remark { text });
            }
            Err(error) => {
                let text = format!("a frame from {from} is malformed: {error}");
                return out.notices.push(Notice::Remark { text });
            }
        };
        let verdict = self.replica.on_message(now.steady, &envelope, &mut self.actions);
        // A staged log may have been asked for just now.
        self.carry_out(now, out);
        match verdict {
            Records::Ignore => {}
            Records::Current { above } => self.take_in(now, from, above, false, records, out),
            Records::Staged { above } => self.take_in(now, from, above, true, records, out),
            Records::ImageWant { part, at_least } => {
                self.read_part(from, (part, at_least), records, out)
            }
            Records::ImagePart { part, op } => {
                self.take_part(now, from, (part, op), records, out);
                self.carry_out(now, out);
            }
            Records::BlockWant { lb } => self.read_block(from, lb, records, out),
            Records::BlockGrant { lb } => self.on_block_grant(now, from, lb, records, out),
        }
    }

    fn take_in(
        &mut self,
        now: Now,
        from: ServerId,
        above: Op,
        staged: bool,
        records: &[u8],
        out: &mut Output,
    ) {
        let ready = staged == self.log_is_staged() && self.stage_wanted.is_none() && !self.failing;
        if !ready || self.log.growing().end() != above.0 {
            return; // they will come again
        }
        let (mut end, mut full) = (above, false);
        for raw in RawRecords::new(records) {
            let raw = match raw {
                Ok(raw) if raw.op() <= end.0 => continue,
                Ok(raw) => raw,
                Err(error) => {
                    let text = format!("a record from {from} after op {end} is malformed: {error}");
                    out.notices.push(Notice::Remark { text });
                    break;
                }
            };
            let header = *raw.header();
            match self.log.append_raw(&raw) {
                Ok(op) => end = Op(op),
                Err(harp_log::AppendError::Full(why)) => {
                    full = why == LogFull::Disk;
                    break; // checkpoints make room
                }
                Err(error) => {
                    let text = format!("a record from {from} does not follow op {end}: {error:?}");
                    out.notices.push(Notice::Remark { text });
                    break;
                }
            }
            self.newest_time = self.newest_time.max(header.time);
            if let Some(copy) = &mut self.copy {
                copy.log_bytes += header.len as u64;
            }
            if header.kind == kind::CONFIGURATION
                && !staged
                && let Ok(change) = record::configuration(raw.body())
            {
                self.replica.on_configuration(end, change);
            }
        }
        if end > above {
            if staged {
                // A tail in memory makes room for its newest records.
                self.replica.on_staged_trimmed(Op(self.log.growing().begin()));
            }
            self.replica.on_appended(now.steady, staged, end, &mut self.actions);
        }
        // They make no room on the disk where trimmed records of a staged log lie.
        if full && self.log.staged_gap_bytes() >= self.settings.segment_bytes {
            self.replica.on_staged_full(&mut self.actions);
        }
    }
}

/// Bytes between what a member received and what it would be sent next.
fn in_flight(body: &Body, received: Op, next: Op) -> u64 {
    let position = |op: Op| body.record(op.0).map(|r| r.at.0);
    let from = position(received.next());
    let to = position(next).or_else(|| position(Op(body.end())));
    match (from, to) {
        (Some(from), Some(to)) => to.saturating_sub(from),
        _ => 0,
    }
}

/// Ranges that hold the records `from..=last` of `body`, as many as one frame carries; the last op of
/// them. `None` if `from` is not in memory.
fn collect(body: &Body, from: Op, last: Op, out: &mut Vec<(LogPos, u32)>) -> Option<Op> {
    let mut end = None;
    let mut total = 0;
    for op in from.0..=last.0.min(body.end()) {
        let Some(record) = body.record(op) else { break };
        let len = record.header.len;
        if total > 0 && total + len as usize > FRAME_BYTES_MAX {
            break;
        }
        total += len as usize;
        end = Some(Op(op));
        match out.last_mut() {
            Some((at, bytes)) if at.plus(*bytes as u64) == record.at => *bytes += len,
            _ => out.push((record.at, len)),
        }
    }
    end
}
