//! Rebuild: hands parts of this copy's image to another one, and takes such parts in.
//! Owns: parts on their way, the order of emptying, loading, redoing and completing an image.
//! Never: reads or writes an image on the loop; moves one that is being loaded beyond the parts to come.
//! Invariant: an image under way stands at or below the op of every part that is not loaded yet.
//! Source: docs/notes/rebuild.md; docs/protocol.md, rule 9.

use std::collections::VecDeque;

use harp_store::{DamagedBlock, StoreError};
use harp_vr::{Message, Nanos, Op, PART_TIMEOUTS, ServerId, View};

use crate::api::{Notice, Now, Output};
use crate::clients::ClientTable;
use crate::jobs::{ImageState, StoreJob, Work};
use crate::node::{Copy, Node};
use crate::part::{Part, PartSource, Place, Section};

/// So many parts, of the usual length, wait to be loaded at most before no more are asked for.
const WAITING_PARTS: usize = 16;
/// A snapshot that a learner's client table is read from is kept for the next part of it as long as it takes to ask
/// so often.
const KEEP_ASKS: u64 = 2;
/// How often a learner says how far it is.
const TELL_NANOS: u64 = 10_000_000_000;

/// An image on its way into this copy.
#[derive(Debug)]
pub(crate) struct Load {
    /// Nothing is loaded before what was there is gone.
    discard_wanted: bool,
    /// Where the next part begins.
    place: Place,
    /// The op that all parts of the client table must have.
    clients_op: Option<u64>,
    waiting: VecDeque<Part>,
    waiting_bytes: usize,
    /// A job of the load is under way.
    pub busy: bool,
    /// Op of the newest part loaded.
    newest: u64,
    /// Every part is loaded.
    all: bool,
    since: Nanos,
    told: Nanos,
    rows: u64,
    bytes: u64,
}

impl Load {
    pub fn new(now: Nanos) -> Load {
        Load {
            discard_wanted: false,
            place: Place::start(),
            clients_op: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            busy: false,
            newest: 0,
            all: false,
            since: now,
            told: now,
            rows: 0,
            bytes: 0,
        }
    }

    /// Whether an image that stands at `op` has all that it needs to be whole.
    pub fn reaches(&self, op: u64) -> bool {
        self.all && op >= self.newest
    }
}

/// A snapshot of this copy's image that a learner reads its client table from.
#[derive(Debug)]
pub(crate) struct Lent {
    to: ServerId,
    source: Box<dyn PartSource>,
    since: Nanos,
}

/// A part that a store thread read.
#[derive(Debug)]
pub(crate) struct PartRead {
    pub to: ServerId,
    pub view: View,
    pub part: u64,
    pub at_least: u64,
    pub result: Result<(Box<dyn PartSource>, Vec<u8>), StoreError>,
    pub section: Section,
    pub damaged: Vec<DamagedBlock>,
}

impl Copy {
    /// Whether checkpoints go on top of an image that lacks parts, or has some that are newer.
    pub(crate) fn is_partial_at(&self, op: u64) -> bool {
        self.load.as_ref().is_some_and(|load| !load.reaches(op))
    }
}

impl Node {
    // ----- the copy that is asked -----

    /// A learner asks for the part that begins at `place`.
    pub(crate) fn read_part(
        &mut self,
        to: ServerId,
        (part, at_least): (u64, Op),
        place: &[u8],
        out: &mut Output,
    ) {
        let view = self.replica.formed();
        let Some(copy) = &mut self.copy else { return };
        let place = match Place::read(place) {
            Ok(place) if place.section != Section::End => place,
            _ => {
                let text = format!("{to} asks for a part of the image at no place");
                return out.notices.push(Notice::Remark { text });
            }
        };
        if copy.lb < at_least.0 || copy.reading_parts.contains(to) {
            return; // it asks again
        }
        copy.reading_parts.insert(to);
        let lent = copy.lent.extract_if(.., |lent| lent.to == to).next();
        let source = lent.filter(|_| place.section == Section::Clients).map(|lent| lent.source);
        let (at_least, enough) = (at_least.0, self.settings.image_part_bytes);
        let work = Work::ReadPart { to, view, part, at_least, place, enough, source };
        out.jobs.push(StoreJob(work));
    }

    pub(crate) fn on_part_read(&mut self, now: Now, read: PartRead, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies read parts");
        copy.reading_parts.remove(read.to);
        let (source, bytes) = match read.result {
            Ok(read) => read,
            Err(error) if error.is_fatal() => return self.store_failed(error.to_string(), out),
            Err(error) => {
                // What is damaged here no client may ever ask for: no reason to stop serving.
                let text = format!("{} cannot have a part of the image: {error}", read.to);
                return out.notices.push(Notice::Remark { text });
            }
        };
        // Whoever asks for parts has no image, so no block either.
        let others = self.replica.other_copies().filter(|other| *other != read.to);
        let (given, mended): (Vec<DamagedBlock>, Vec<DamagedBlock>) = (read.damaged.iter())
            .partition(|damaged| copy.repair.is_with_none(damaged, others.clone()));
        self.note_damage(now, &read.damaged, out);
        if !mended.is_empty() {
            return; // it asks again
        }
        if !given.is_empty() {
            // They stay damaged there, under the checksum of what they should be.
            let (to, count) = (read.to, given.len());
            let text = format!("{to} is given {count} damaged as they are: nobody else has them");
            out.notices.push(Notice::Remark { text });
        }
        let copy = self.copy.as_mut().expect("only copies read parts");
        let op = source.op();
        if read.view != self.replica.formed() || !self.replica.is_normal() || op < read.at_least {
            return;
        }
        if read.section == Section::Clients {
            copy.lent.push(Lent { to: read.to, source, since: now.steady });
        }
        let message = Message::ImagePart { view: read.view, part: read.part, op: Op(op) };
        self.send_copied(read.to, message, &[&bytes], out);
    }

    /// A snapshot keeps the store from using space again: a learner that went silent loses it.
    pub(crate) fn tend_lent(&mut self, now: Now) {
        let keep = KEEP_ASKS * PART_TIMEOUTS * self.settings.failure_timeout;
        if let Some(copy) = &mut self.copy {
            copy.lent.retain(|lent| now.steady.since(lent.since) <= keep);
        }
    }

    // ----- the copy that loads -----

    /// The protocol wants the image emptied, to be loaded anew.
    pub(crate) fn discard_image(&mut self, now: Now, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies have images");
        let busy = copy.load.as_ref().is_some_and(|load| load.busy);
        copy.load = Some(Load { discard_wanted: true, busy, ..Load::new(now.steady) });
        let text = "the image is being rebuilt from another copy".into();
        out.notices.push(Notice::Remark { text });
        self.try_discard(out);
    }

    /// Empties the image once nothing is on its way into it.
    pub(crate) fn try_discard(&mut self, out: &mut Output) {
        let Some(copy) = &mut self.copy else { return };
        if copy.load.is_none() {
            return;
        }
        copy.drop_unhanded_barrier();
        let Some(load) = &mut copy.load else { return };
        let writing = copy.checkpoint.as_ref().is_some_and(|c| c.frozen.is_none());
        let busy = load.busy || writing || copy.reloading || copy.digesting.is_some();
        if !load.discard_wanted || busy {
            return;
        }
        copy.reloading = true; // nothing is applied meanwhile
        copy.checkpoint = None;
        copy.barrier = None;
        out.jobs.push(StoreJob(Work::Discard));
    }

    pub(crate) fn on_discarded(&mut self, now: Now) {
        let copy = self.copy.as_mut().expect("only copies have images");
        let load = copy.load.as_mut().expect("an image is emptied to be loaded");
        load.discard_wanted = false;
        copy.halted = false;
        copy.repair.forget();
        let clients = ClientTable::default();
        copy.stand_at(ImageState { lb: 0, clients, whole: false });
        self.replica.on_image_discarded(now.steady, &mut self.actions);
    }

    /// Asks `to` for the part that is next.
    pub(crate) fn want_part(
        &mut self,
        to: ServerId,
        (view, part, at_least): (View, u64, Op),
        out: &mut Output,
    ) {
        let Some(load) = self.copy.as_ref().and_then(|copy| copy.load.as_ref()) else { return };
        let mut place = Vec::new();
        load.place.write(&mut place);
        let message = Message::ImageWant { view, part, at_least };
        self.send_copied(to, message, &[&place], out);
    }

    /// A part arrived that the protocol wants.
    pub(crate) fn take_part(
        &mut self,
        now: Now,
        from: ServerId,
        (number, op): (u64, Op),
        bytes: &[u8],
        out: &mut Output,
    ) {
        let waiting_max = WAITING_PARTS * self.settings.image_part_bytes;
        let Some(load) = self.copy.as_mut().and_then(|copy| copy.load.as_mut()) else { return };
        if load.discard_wanted {
            return;
        }
        let part = match Part::read(op.0, &load.place, bytes) {
            Ok(part) => part,
            Err(error) => {
                let text = format!("from {from}: {error}; it is asked for again");
                return out.notices.push(Notice::Remark { text });
            }
        };
        if part.section == Section::Clients && *load.clients_op.get_or_insert(op.0) != op.0 {
            // The one who is asked now has another snapshot.
            return self.replica.rebuild_anew();
        }
        load.place = part.next.clone();
        load.waiting_bytes += part.memory_bytes();
        let (last, room) = (part.is_last(), load.waiting_bytes < waiting_max);
        load.waiting.push_back(part);
        self.replica.on_image_taken(now.steady, (number, op), last, room, &mut self.actions);
        self.load_parts(out);
    }

    /// Hands out what waits to be loaded: parts of one section, for keys ascend within a commit.
    fn load_parts(&mut self, out: &mut Output) {
        let Some(load) = self.copy.as_mut().and_then(|copy| copy.load.as_mut()) else { return };
        let Some(section) = load.waiting.front().map(|part| part.section) else { return };
        if load.busy || load.discard_wanted {
            return;
        }
        let count = load.waiting.iter().take_while(|part| part.section == section).count();
        let parts: Vec<Part> = load.waiting.drain(..count).collect();
        load.waiting_bytes -= parts.iter().map(Part::memory_bytes).sum::<usize>();
        load.busy = true;
        out.jobs.push(StoreJob(Work::Load { parts }));
    }

    pub(crate) fn on_loaded(&mut self, now: Now, loaded: Loaded, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies load");
        let load = copy.load.as_mut().expect("only what is not whole is loaded");
        load.busy = false;
        if load.discard_wanted {
            return self.try_discard(out);
        }
        let Loaded { newest, last, begun, rows, bytes } = loaded;
        load.newest = newest;
        load.all = last;
        load.rows += rows;
        load.bytes += bytes;
        if now.steady.since(load.told) > TELL_NANOS {
            load.told = now.steady;
            let text = format!("rebuilding the image: {}", load.progress(now.steady));
            out.notices.push(Notice::Remark { text });
        }
        let begins = begun.is_some();
        if let Some(image) = begun {
            self.newest_time = self.newest_time.max(image.clients.log_time());
            copy.stand_at(image);
        }
        let what = (Op(newest), begins, last);
        self.replica.on_image_loaded(now.steady, what, &mut self.actions);
        self.load_parts(out);
        self.complete_image(out);
    }

    /// Once every part is there and the log redone over them, the image is whole.
    pub(crate) fn complete_image(&mut self, out: &mut Output) {
        let Some(copy) = &mut self.copy else { return };
        let Some(load) = &mut copy.load else { return };
        let ready = load.reaches(copy.lb) && copy.checkpoint.is_none() && !copy.reloading;
        if ready && !load.busy && !load.discard_wanted {
            load.busy = true;
            out.jobs.push(StoreJob(Work::CompleteImage));
        }
    }

    pub(crate) fn on_image_completed(&mut self, now: Now, out: &mut Output) {
        let copy = self.copy.as_mut().expect("only copies load");
        let load = copy.load.as_mut().expect("only what is not whole is completed");
        load.busy = false;
        if load.discard_wanted {
            return self.try_discard(out);
        }
        let text = format!("the image is rebuilt: {}", load.progress(now.steady));
        out.notices.push(Notice::Remark { text });
        copy.load = None;
        self.replica.on_image_whole();
    }
}

impl Load {
    fn progress(&self, now: Nanos) -> String {
        let seconds = now.since(self.since) as f64 / 1e9;
        let mib = self.bytes as f64 / (1 << 20) as f64;
        let rate = mib / seconds.max(1e-3);
        format!("{} rows, {mib:.1} MiB in {seconds:.1} s ({rate:.1} MiB/s)", self.rows)
    }
}

/// What a load brought.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Op of its newest part.
    pub newest: u64,
    /// Whether nothing follows.
    pub last: bool,
    /// The client table is complete with this load: the log can be redone from here on.
    pub begun: Option<ImageState>,
    pub rows: u64,
    pub bytes: u64,
}
