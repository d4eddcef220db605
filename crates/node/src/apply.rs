//! Applying committed records, and moving the image forward.
//! Owns: the shadow's position, freezing, barriers, the pace of checkpoints.
//! Never: applies beyond what the protocol allows; freezes what may still be dropped into the image.
//! Invariant: GLB <= LB <= AP <= CP <= FP; a checkpoint ends exactly at an op.
//! Source: ARCHITECTURE.md (apply, checkpoint), rule 14.

use harp_log::LogFull;
use harp_vr::{ConfigurationChange, Op, Planted};

use crate::api::{Notice, Now, Output};
use crate::jobs::{Frozen, StoreJob, Work};
use crate::node::{Node, RunningCheckpoint};
use crate::record::{self, Operation, kind};

/// Records applied in one turn at most, so that heartbeats never wait.
const APPLY_PER_TURN: u64 = 2_048;
/// Access times are recorded this long after the ones before.
const ACCESSES_NANOS: u64 = 1_000_000_000;
/// Bytes of effects in one record of access times.
const ACCESS_EFFECTS_BYTES: usize = 16 << 10;
/// So many such records at most, one after the other.
const ACCESS_RECORDS_MAX: usize = 16;
/// An image does not lag behind longer than this while anything changed.
const CHECKPOINT_NANOS: u64 = 5_000_000_000;

impl Node {
    /// Up to where the shadow may go: FP at the primary, which planned it or adopted it; AP's bound elsewhere.
    pub(crate) fn apply_limit(&self) -> u64 {
        let end = self.log.growing().end();
        if self.replica.is_primary() { end } else { self.replica.may_apply().0.min(end) }
    }

    /// Whether nothing may be applied to the shadow before something else about it ends.
    pub(crate) fn must_not_apply(&self) -> bool {
        let Some(copy) = &self.copy else { return true };
        let (next, body) = (copy.shadow_op + 1, self.log.growing());
        // The group went on without this copy and trimmed what its image lacks: only another image helps.
        let trimmed = next < body.begin() && body.record(next).is_none();
        copy.reloading || copy.halted || self.stage_wanted.is_some() || trimmed
    }

    /// Whether the image must move before more is applied.
    pub(crate) fn waits_for_checkpoint(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.barrier.is_some())
            || self.must_checkpoint_first()
    }

    /// Whether the shadow stands at FP of a primary's log, so that it may plan.
    pub(crate) fn may_plan(&self) -> bool {
        let at_fp = |c: &crate::node::Copy| !c.reloading && c.shadow_op == self.log.current().end();
        self.replica.is_serving() && !self.failing && self.copy.as_ref().is_some_and(at_fp)
    }

    pub(crate) fn apply_committed(&mut self, now: Now, out: &mut Output) {
        let limit = self.apply_limit();
        let Some(copy) = &self.copy else { return };
        let done = copy.shadow_op;
        if self.must_not_apply() {
            return self.redo_no_further(out);
        }
        let from = done + 1;
        let waits = self.waits_for_checkpoint();
        let stop = if waits { done } else { limit.min(done + APPLY_PER_TURN) };
        let stop = self.stop_with_care(now, stop, out);
        for op in from..=stop {
            if self.waits_for_checkpoint() {
                break; // at a barrier the image must be frozen exactly there
            }
            if self.is_lethal(op) {
                self.killed = true;
                return;
            }
            if let Err(why) = self.apply_next(op) {
                self.halt(now, op, &why);
                break;
            }
            self.pace_checkpoint(now, out);
        }
        // A shadow that planned in an earlier view may be ahead of what this view's primary applied.
        let ap = self.copy.as_ref().map_or(0, |c| c.shadow_op).min(self.replica.may_apply().0);
        self.replica.on_applied(Op(ap));
    }

    /// Errors: what is wrong with the record. Part of it may be in the shadow then.
    pub(crate) fn apply_next(&mut self, op: u64) -> Result<(), String> {
        let copy = self.copy.as_mut().expect("only copies apply");
        let record = self.log.growing().record(op).expect("records above LB stay in memory");
        let (header, at) = (record.header, record.body_at());
        match header.kind {
            kind::OPERATION => {
                let operation = record::operation(record.body);
                let operation = operation.map_err(|error| error.to_string())?;
                let effects_at = at.0 + record::STAMP_BYTES as u64;
                let applied = copy.shadow.apply(op, operation.effects, effects_at, &self.bytes);
                applied.map_err(|error| error.to_string())?;
                let Operation { stamp, reply, .. } = operation;
                copy.clients.record(op, header.time, &stamp, reply, at.0);
            }
            other => {
                let effects = if other == kind::ACCESSES { record.body } else { &[] };
                let applied = copy.shadow.apply(op, effects, at.0, &self.bytes);
                applied.map_err(|error| error.to_string())?;
                // An image that is being loaded has no digest.
                if other == kind::BARRIER && copy.load.is_none() {
                    copy.barrier = Some(op);
                }
            }
        }
        copy.shadow_op = op;
        Ok(())
    }

    // ----- checkpoints -----

    /// Starts or hands out a checkpoint when it is time.
    pub(crate) fn pace_checkpoint(&mut self, now: Now, out: &mut Output) {
        self.hand_out_checkpoint(now, out);
        let pinned = self.log.used_ring_bytes();
        let ring = self.bytes.0.len();
        let pause = self.checkpoint_pause(CHECKPOINT_NANOS);
        let blocks_max = self.generation_blocks_max();
        let Some(copy) = &mut self.copy else { return };
        if copy.reloading || copy.halted || copy.checkpoint.is_some() || copy.digesting.is_some() {
            return;
        }
        let changed = copy.shadow_op > copy.lb;
        let big = copy.shadow.dirty_bytes() >= self.settings.checkpoint_bytes
            || copy.shadow.active().changed_blocks() >= blocks_max;
        let full = pinned > ring / 2;
        let old = now.steady.since(copy.last_checkpoint) > pause;
        let barrier = copy.barrier.is_some();
        let mends = copy.repair.wants_checkpoint(copy.lb);
        let counts_sooner = self.replica.is_marked();
        let completes = copy.load.as_ref().is_some_and(|l| l.reaches(copy.shadow_op));
        if !(barrier || changed && (big || full || old || completes || mends || counts_sooner)) {
            return;
        }
        if let Some(op) = copy.barrier {
            assert_eq!(op, copy.shadow_op, "something was applied beyond a barrier");
        }
        copy.last_checkpoint = now.steady;
        let op = copy.shadow_op;
        if op == copy.lb {
            self.after_barrier(out);
            return;
        }
        copy.debits.close(op, copy.shadow.active().changed_blocks());
        let frozen = Frozen {
            op,
            generation: copy.shadow.freeze(op),
            clients: copy.clients.freeze(),
            configuration: configuration_row(self.replica.configuration_at(Op(op))),
            partial: copy.is_partial_at(op),
            seals_damage: self.settings.planted == Some(Planted::DamageSealed),
        };
        copy.log_bytes = 0;
        copy.checkpoint = Some(RunningCheckpoint { op, frozen: Some(frozen), retry_at: None });
        if barrier && self.replica.is_primary() {
            // The primary plans on while its barrier's generation is frozen.
            copy.barrier = None;
            copy.digesting = Some(op);
        }
        self.hand_out_checkpoint(now, out);
    }

    /// A frozen generation goes to the store once all of it may be applied here: what was planned in an earlier view
    /// may be ahead of what this view's primary applied.
    fn hand_out_checkpoint(&mut self, now: Now, out: &mut Output) {
        let limit = self.replica.may_apply().0;
        let Some(copy) = &mut self.copy else { return };
        let Some(checkpoint) = &mut copy.checkpoint else { return };
        let op = checkpoint.op;
        if op > limit || checkpoint.retry_at.is_some_and(|at| now.steady < at) {
            return;
        }
        let Some(frozen) = checkpoint.frozen.take() else { return };
        let first = copy.lb + 1;
        self.announce_checkpoint(first, op, out);
        self.replica.on_applied(Op(op));
        out.jobs.push(StoreJob(Work::Checkpoint(frozen)));
    }

    pub(crate) fn on_checkpointed(&mut self, op: u64, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies checkpoint");
        let done = copy.checkpoint.take().expect("a checkpoint nobody asked for");
        assert_eq!(done.op, op, "another checkpoint than the one asked for");
        copy.shadow.checkpointed(op);
        copy.lb = op;
        copy.no_room = false;
        self.replica.on_checkpoint(Op(op));
        self.checkpoint_survived(op, out);
        self.after_barrier(out);
        self.try_discard(out);
        self.complete_image(out);
        self.try_stage(out);
    }

    /// The image stands at a barrier: take its digest before anything moves it.
    fn after_barrier(&mut self, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies have barriers");
        let lb = copy.lb;
        if copy.barrier == Some(lb) {
            copy.barrier = None;
            copy.digesting = Some(lb);
        }
        if copy.digesting == Some(lb) {
            out.jobs.push(StoreJob(Work::Digest { op: lb }));
        }
    }

    // ----- records of the primary's own -----

    pub(crate) fn log_configuration(
        &mut self,
        now: Now,
        change: ConfigurationChange,
        out: &mut Output,
    ) {
        let mut body = [0; record::CONFIGURATION_BYTES];
        record::write_configuration(change, &mut body);
        match self.log_plain(now, kind::CONFIGURATION, &body) {
            Ok(op) => self.replica.on_configuration(Op(op), change),
            Err(full) => {
                let text = format!("{change:?} is not logged yet: the log is full ({full:?})");
                out.notices.push(Notice::Remark { text });
                self.replica.on_configuration_refused(change);
            }
        }
    }

    /// The operator's barrier waits until the shadow stands at FP and no checkpoint is under way.
    pub(crate) fn log_barrier(&mut self, now: Now, out: &mut Output) {
        let Some(token) = self.verify else { return };
        if !self.replica.is_serving() {
            self.verify = None;
            return out.notices.push(Notice::Barrier { token, op: None });
        }
        let idle =
            self.copy.as_ref().is_some_and(|c| c.checkpoint.is_none() && c.digesting.is_none());
        if !idle || !self.may_plan() {
            return;
        }
        if let Ok(op) = self.log_plain(now, kind::BARRIER, &[]) {
            self.verify = None;
            out.notices.push(Notice::Barrier { token, op: Some(op) });
            self.apply_committed(now, out);
            self.pace_checkpoint(now, out);
        }
    }

    /// Now and then the access times of what was read are recorded. If there is no room they are lost.
    pub(crate) fn log_accesses(&mut self, now: Now, out: &mut Output) {
        let due = now.steady.since(self.accesses_at) >= ACCESSES_NANOS;
        if !due || !self.may_plan() || !self.replica.may_answer(now.steady) {
            return;
        }
        self.accesses_at = now.steady;
        for _ in 0..ACCESS_RECORDS_MAX {
            let copy = self.copy.as_mut().expect("a primary is a copy");
            if !copy.shadow.has_accesses() {
                return;
            }
            let mut effects = [0; ACCESS_EFFECTS_BYTES];
            let len = copy.shadow.access_effects(&mut effects);
            if len == 0 {
                continue; // all forgotten
            }
            if self.log_plain(now, kind::ACCESSES, &effects[..len]).is_err() {
                return;
            }
            self.apply_committed(now, out);
        }
    }

    /// Appends a record that is not a client's, in place of the shadow's next op.
    fn log_plain(&mut self, now: Now, kind: u8, body: &[u8]) -> Result<u64, LogFull> {
        assert!(self.replica.is_primary() && !self.log_is_staged(), "only a primary appends");
        let time = self.next_time(now);
        let view = self.replica.formed().0;
        self.log.begin_record(body.len())?.copy_from_slice(body);
        let op = self.log.finish_record(kind, view, time, body.len());
        self.newest_time = time;
        self.unsealed_bytes += body.len() as u64;
        self.unsealed += 1;
        self.replica.on_appended(now.steady, false, Op(op), &mut self.actions);
        Ok(op)
    }

    /// Time of the next record: the clock's, but above that of every record before it.
    pub(crate) fn next_time(&self, now: Now) -> u64 {
        now.wall.max(self.newest_time + 1)
    }
}

/// The configuration as a row of the image, so that digests compare it.
fn configuration_row(configuration: &harp_vr::Configuration) -> Vec<u8> {
    let mut writer = harp_vr::codec::Writer::default();
    writer.configuration(configuration);
    writer.into_bytes()
}
