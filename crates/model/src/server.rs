//! One server: the replica that is explored, its disk, and what happens to it.
//! Owns: the carrying out of a replica's actions, as `harp-node` does it, without waiting for anything.
//! Never: knows of other servers but by their mail.
//! Invariant: what a server does depends on nothing but itself and the event.

use std::collections::VecDeque;

use harp_vr::{
    Action, Envelope, Message, Nanos, Op, Past, Presence, Records, Replica, ServerId, ServerSet,
    View, Waited,
};

use crate::bounds::{Answers, Bounds, Durability, Leases, NOW};
use crate::disk::{Adopting, Disk, Log, Record, Tag};
use crate::restart::{self, Crash};

/// A message with the records attached to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mail {
    /// To whom.
    pub to: ServerId,
    /// What is said.
    pub envelope: Envelope,
    /// From the first op that it names on.
    pub records: Box<[Record]>,
}

/// What happens to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It waited.
    Wait {
        /// For more than any timeout.
        long: bool,
        /// These were not heard meanwhile.
        silent: ServerSet,
        /// It heard of this promised view.
        promised: View,
    },
    /// All leases ran out.
    LeasesEnd,
    /// The oldest write of the view file is done.
    ViewWritten,
    /// The log is durable to its end.
    LogWritten,
    /// The tag is on disk.
    Tagged,
    /// A client's operation is logged.
    Append(u8),
    /// The image moves to AP.
    Checkpoint,
    /// It dies and starts again.
    Crash(Crash),
}

/// One server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// The protocol.
    pub replica: Replica,
    /// What it keeps.
    pub disk: Disk,
}

/// Which of the writes that a turn asks for are done in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Done {
    /// None: they are done later.
    None,
    /// All.
    All,
    /// So many; before the next one the server dies, and starts again.
    Cut(u8),
}

/// What a primary committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its view.
    pub view: View,
    /// The view's members.
    pub members: ServerSet,
    /// The records up to its CP.
    pub records: Vec<Option<Record>>,
}

impl Server {
    /// What this server committed, if it is a primary that serves.
    pub fn committed(&self) -> Option<Committed> {
        let Server { replica, disk } = self;
        let records = (1..=replica.cp().0).map(|op| disk.record(op, &disk.log)).collect();
        let (view, members) = (replica.formed(), replica.members());
        replica.is_serving().then_some(Committed { view, members, records })
    }
}

/// A server while something happens to it.
pub struct Turn<'a> {
    pub bounds: &'a Bounds,
    /// Which writes are done.
    pub done: Done,
    /// Whether the server died in this turn.
    pub cut: bool,
    /// What it had committed as primary before it died.
    pub committed: Option<Committed>,
    pub me: ServerId,
    pub server: Server,
    pub sent: Vec<Mail>,
}

impl Turn<'_> {
    /// Something happens that is no message.
    pub fn happen(&mut self, event: Event) {
        let mut out = Vec::new();
        let replica = &mut self.server.replica;
        match event {
            Event::Wait { long, silent, promised } => {
                self.hear_of(promised, silent);
                let replica = &mut self.server.replica;
                let waited = if long { Waited::Long } else { Waited::Soon };
                replica.set_waits(NOW, waited, silent);
                replica.tick(NOW, &mut out);
            }
            Event::LeasesEnd => replica.end_leases(),
            Event::ViewWritten => {
                let (sequence, durable) = self.server.disk.writes.remove(0);
                self.server.disk.view_file = durable;
                replica.on_persisted(NOW, sequence, &mut out);
            }
            Event::LogWritten => self.log_written(),
            Event::Tagged => {
                let adopting = self.server.disk.adopting.take().expect("a tag is under way");
                self.server.disk.carry_out(adopting);
                let facts = self.server.disk.facts();
                replica.on_tagged(adopting.tag.view, facts, &mut out);
            }
            Event::Append(number) => self.append(Record::Client(number)),
            Event::Checkpoint => self.checkpoint(),
            Event::Crash(crash) => {
                let disk = self.server.disk.clone();
                self.server = restart::after(crash, disk, self.bounds, self.me);
            }
        }
        self.carry_out(out);
        self.wind_up();
    }

    /// Mail arrives.
    pub fn receive(&mut self, mail: &Mail) {
        let mut out = Vec::new();
        let verdict = self.server.replica.on_message(NOW, &mail.envelope, &mut out);
        self.carry_out(out);
        match verdict {
            Records::Ignore => {}
            Records::Current { above } => self.take_in(mail, above, false),
            Records::Staged { above } => self.take_in(mail, above, true),
            // Images and their blocks are not handed over here.
            Records::ImageWant { .. }
            | Records::ImagePart { .. }
            | Records::BlockWant { .. }
            | Records::BlockGrant { .. } => {}
        }
        self.wind_up();
    }

    /// A presence brings what somebody promised, as presences do all the time.
    fn hear_of(&mut self, promised: View, silent: ServerSet) {
        let replica = &mut self.server.replica;
        let known = promised > replica.promised();
        let me = self.me;
        let heard = |s: &ServerId| *s != me && !silent.contains(*s);
        let (true, Some(from)) = (known, self.bounds.shape().servers().find(heard)) else { return };
        let their = replica.envelope(from, Message::Decline { view: promised, promised });
        let presence = Presence {
            promised,
            formed: View::NONE,
            members: ServerSet::EMPTY,
            serving: false,
            normal: false,
            cp: Op::ZERO,
            lb: Op::ZERO,
            loading: None,
            branch: View::NONE,
            glb: Op::ZERO,
            configuration: *replica.configuration(),
            room: replica.room(),
        };
        let envelope = Envelope {
            from,
            from_incarnation: their.to_incarnation,
            to_incarnation: their.from_incarnation,
            message: Message::Presence(presence),
        };
        let mut out = Vec::new();
        replica.on_message(NOW, &envelope, &mut out);
        assert!(out.is_empty(), "hearing of a promise asks for nothing");
    }

    fn take_in(&mut self, mail: &Mail, above: Op, staged: bool) {
        let first = match mail.envelope.message {
            Message::Prepare(prepare) => prepare.first,
            Message::Grant { first, .. } => first,
            Message::Past(past) => past.first,
            _ => unreachable!("only these carry records"),
        };
        let disk = &mut self.server.disk;
        let ready = staged == disk.staged.is_some() && disk.growing().end() == above.0;
        if !ready {
            return; // they will come again
        }
        for (op, record) in (first.0..).zip(&mail.records) {
            if op <= above.0 {
                continue;
            }
            let log = self.server.disk.growing();
            assert_eq!(op, log.end() + 1, "records are attached from the first op on");
            log.records.push(*record);
            if let (Record::Change(change), false) = (record, staged) {
                self.server.replica.on_configuration(Op(op), *change);
            }
        }
        let end = Op(self.server.disk.growing().end());
        if end > above {
            let mut out = Vec::new();
            self.server.replica.on_appended(NOW, staged, end, &mut out);
            self.carry_out(out);
        }
    }

    /// The primary logs a record.
    fn append(&mut self, record: Record) {
        let disk = &mut self.server.disk;
        assert!(disk.staged.is_none(), "only a primary appends");
        disk.log.records.push(record);
        let end = Op(disk.log.end());
        let mut out = Vec::new();
        self.server.replica.on_appended(NOW, false, end, &mut out);
        if let Record::Change(change) = record {
            self.server.replica.on_configuration(end, change);
        }
        self.carry_out(out);
    }

    fn log_written(&mut self) {
        let disk = &mut self.server.disk;
        disk.durable = disk.log.end();
        self.server.replica.on_durable(NOW, Op(disk.durable));
    }

    fn checkpoint(&mut self) {
        let upto = self.may_checkpoint().expect("there is something to checkpoint");
        let disk = &mut self.server.disk;
        let log = disk.staged.clone().unwrap_or_else(|| disk.log.clone());
        let records = (1..=upto).map(|op| disk.record(op, &log).expect("what is applied was held"));
        disk.image = Some(records.collect());
        self.server.replica.on_applied(Op(upto));
        self.server.replica.on_checkpoint(Op(upto));
    }

    /// Up to where the image may be moved forward.
    pub fn may_checkpoint(&self) -> Option<u64> {
        let disk = &self.server.disk;
        let end = disk.staged.as_ref().unwrap_or(&disk.log).end();
        let upto = self.server.replica.may_apply().0.min(end);
        (disk.image.is_some() && disk.whole && upto > disk.lb()).then_some(upto)
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions: VecDeque<Action> = actions.into();
        while let Some(action) = actions.pop_front() {
            let mut more = Vec::new();
            self.carry_out_one(action, &mut more);
            actions.extend(more);
        }
    }

    fn carry_out_one(&mut self, action: Action, out: &mut Vec<Action>) {
        let Server { replica, disk } = &mut self.server;
        match action {
            // A decline only delays.
            Action::Send { message: Message::Decline { .. }, .. } => {}
            Action::Send { message: Message::CatchUp { .. }, .. } if !self.bounds.catch_up => {}
            Action::Send { to, message } => self.post(to, message, Box::default()),
            Action::Grant { to_server, view, from, to } => {
                let records = disk.log.range(from.0, to.0);
                let last = Op(from.0 + records.len() as u64 - 1);
                assert!(last >= from, "the holder has what it grants");
                self.post(to_server, Message::Grant { view, first: from, last }, records);
            }
            Action::Past { to_server, from } => {
                let cp = replica.cp();
                let records = disk.log.range(from.0, cp.0);
                let last = Op(from.0 + records.len() as u64 - 1);
                let begin = Op(disk.log.begin);
                let past = Past { view: replica.formed(), first: from, last, cp, begin };
                self.post(to_server, Message::Past(past), records);
            }
            Action::Persist { sequence, durable } => disk.writes.push((sequence, durable)),
            Action::Stage { begin, .. } => {
                disk.staged = Some(Log::empty(begin.0));
                if disk.image.is_some() {
                    replica.on_reapply();
                }
            }
            Action::DropStaged => disk.staged = None,
            Action::Adopt { view, members, staged, configuration } => {
                let tag = Tag { view, members, configuration };
                disk.adopting = Some(Adopting { tag, staged });
            }
            Action::DropLog => {
                disk.log = Log::empty(disk.log.end() + 1);
                disk.durable = disk.log.end();
                disk.tag = None;
                disk.staged = None;
                replica.on_staged_dropped();
            }
            Action::DiscardImage => {
                disk.image = Some(Vec::new());
                disk.whole = false;
                replica.on_image_discarded(NOW, out);
            }
            Action::LogConfiguration(change) => self.append(Record::Change(change)),
            Action::CrossedOver | Action::Overridden { .. } => {
                unreachable!("no operator orders an override here")
            }
            Action::WantImage { .. }
            | Action::Formed { .. }
            | Action::Serving { .. }
            | Action::Stopped { .. }
            | Action::Refusing { .. } => {}
        }
    }

    fn post(&mut self, to: ServerId, message: Message, records: Box<[Record]>) {
        let replica = &self.server.replica;
        let message = match message {
            // Who catches up is level with less than what this bounds, and room is for everything.
            Message::Presence(presence) => Message::Presence(Presence { cp: Op::ZERO, ..presence }),
            message => message,
        };
        let envelope = replica.envelope(to, message);
        self.sent.push(Mail { to, envelope, records });
    }

    /// Ends a turn: what is due is said, writes are done, what is over is forgotten.
    fn wind_up(&mut self) {
        if self.bounds.durability == Durability::Ups {
            self.log_written();
        }
        self.pass_time();
        if let (Done::All, Some(write)) = (self.done, self.next_write()) {
            return self.happen(write);
        }
        self.apply();
        self.trim();
        self.stream();
        let mut out = Vec::new();
        self.server.replica.finish(&mut out);
        if self.bounds.answers == Answers::Late && self.shows_itself() {
            self.server.replica.tell_presence(NOW, &mut out);
        }
        self.carry_out(out);
        if let Some(write) = self.next_write() {
            match self.done {
                Done::None | Done::All => {}
                Done::Cut(0) => {
                    let kept = self.server.disk.durable;
                    let crash = Crash::Soft { kept, written: 0, tagged: false };
                    self.committed = self.server.committed();
                    (self.done, self.cut) = (Done::All, true);
                    return self.happen(Event::Crash(crash));
                }
                Done::Cut(writes) => {
                    self.done = Done::Cut(writes - 1);
                    return self.happen(write);
                }
            }
        }
        let renumbered = self.server.replica.normalise(NOW);
        for (sequence, _) in &mut self.server.disk.writes {
            *sequence = sequence.saturating_sub(renumbered);
        }
    }

    /// The write that is done next.
    fn next_write(&self) -> Option<Event> {
        let disk = &self.server.disk;
        if disk.durable < disk.log.end() {
            return Some(Event::LogWritten);
        }
        let view = (!disk.writes.is_empty()).then_some(Event::ViewWritten);
        view.or(disk.adopting.is_some().then_some(Event::Tagged))
    }

    /// Heartbeats pass. Only a coordinator has a choice then: to wait for more promises or not.
    fn pass_time(&mut self) {
        let replica = &mut self.server.replica;
        if self.bounds.leases == Leases::Ignored {
            replica.end_lease_promises();
        }
        if self.bounds.checkpoints > 0 {
            replica.owe_heartbeats(); // they tell how images stand
        }
        if replica.judges().is_none() {
            let mut out = Vec::new();
            replica.set_waits(NOW, Waited::Soon, ServerSet::EMPTY);
            replica.tick(NOW, &mut out);
            self.carry_out(out);
        }
    }

    /// Whether its presence tells others anything that they do not learn elsewhere: that a view runs, or that
    /// there is a new disk.
    fn shows_itself(&self) -> bool {
        let replica = &self.server.replica;
        let admitted = replica.configuration().disks[self.me.index()];
        replica.is_serving() || admitted != replica.durable().incarnation.disk
    }

    /// What it says of itself at any time.
    pub fn presence(mut self) -> Vec<Mail> {
        if self.shows_itself() {
            let mut out = Vec::new();
            self.server.replica.tell_presence(NOW, &mut out);
            self.carry_out(out);
        }
        self.sent
    }

    /// What is applied matters to checkpoints only.
    fn apply(&mut self) {
        let Server { replica, disk } = &mut self.server;
        if self.bounds.checkpoints > 0 && disk.image.is_some() && disk.whole {
            let end = disk.staged.as_ref().unwrap_or(&disk.log).end();
            replica.on_applied(replica.may_apply().min(Op(end)));
        }
    }

    fn trim(&mut self) {
        let Server { replica, disk } = &mut self.server;
        let begin = replica.glb().0 + 1;
        let staged = disk.staged.is_some();
        let log = disk.growing();
        log.trim(begin);
        let begin = Op(log.begin);
        if staged {
            replica.on_staged_trimmed(begin);
        } else {
            replica.on_trimmed(begin);
        }
    }

    /// The primary tells each member what is news, or that it is there.
    fn stream(&mut self) {
        if !self.server.replica.is_primary() {
            return;
        }
        for member in self.bounds.shape().servers() {
            while let Some(first) = self.server.replica.prepare_due(NOW, member) {
                let log = &self.server.disk.log;
                let records = log.range(first.0, log.end());
                let last = Op(first.0 + records.len() as u64 - 1);
                let message = self.server.replica.prepare(NOW, member, first, last);
                self.post(member, message, records);
            }
        }
    }
}

/// The same mail when leases have run out: what was sent then was sent long ago. A heartbeat is of no use then: what
/// else it tells it might have told before, and a promise made to it would only make others wait.
pub fn aged(mail: &Mail) -> Option<Mail> {
    let mut mail = mail.clone();
    match &mut mail.envelope.message {
        Message::Prepare(prepare) if prepare.last < prepare.first => return None,
        Message::Prepare(prepare) => prepare.sent = Nanos(0),
        Message::PrepareOk(ok) => ok.echo = Nanos(0),
        _ => {}
    }
    Some(mail)
}
