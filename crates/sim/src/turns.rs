//! A server's turn: what waited is fed to its node, what the node wants done is set going.
//! Owns: the order in which a turn's outputs leave, and who sees them.
//! Never: lets an output leave that the observer has not seen.
//! Invariant: outputs leave when the turn ends; a process that dies there lets a first part go.

use harp_node::log::{DiskCommand, DiskDone, SlotFile};
use harp_node::vr::{ConfigurationChange, Message, Op, ServerId};
use harp_node::wire::record::{self, Split};
use harp_node::{Event, LookedUp, Notice, Now, Output, Power, StoreJob};

use crate::glue;
use crate::host::{Incoming, Process, conn_id, conn_number};
use crate::nemesis::Fault;
use crate::profile::{MICRO, SECOND};
use crate::properties::{Pulse, Verdict, Violation, healed_group_serves, override_keeps};
use crate::queue::Due;
use crate::world::{Fate, World, note};

/// The longest call that clients of the simulator make.
const CALL_BYTES_MAX: usize = 128 << 10;

/// How much of a turn's outputs leave.
#[derive(Clone, Copy)]
struct Quota {
    left: u64,
}

impl Quota {
    fn take(&mut self) -> bool {
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

fn wants_nothing(out: &Output) -> bool {
    let Output { replies, frames, disk, jobs, notices, remember, .. } = out;
    replies.is_empty()
        && frames.is_empty()
        && disk.is_empty()
        && jobs.is_empty()
        && notices.is_empty()
        && remember.is_none()
}

impl World {
    /// Runs a server's loop once, unless the turn was put off.
    pub(crate) fn turn_if_due(&mut self, server: ServerId) -> Verdict {
        let process = self.hosts[server.index()].process.as_ref().expect("it lives");
        if process.turn_at == Some(self.now) { self.turn(server) } else { Ok(()) }
    }

    fn turn(&mut self, server: ServerId) -> Verdict {
        let host = &mut self.hosts[server.index()];
        let mut process = host.process.take().expect("it lives");
        process.turn_at = None;
        let inbox = std::mem::take(&mut process.inbox);
        self.trace.add((server.0 as u64) << 32 | inbox.len() as u64);
        let begin = host.clock.read(self.now);
        let woken = inbox.iter().all(|incoming| matches!(incoming, Incoming::Tick));
        let inbox = self.feed(&mut process, server, begin, inbox);

        let host = &mut self.hosts[server.index()];
        let (base, each) = self.profile.turn;
        let cost = (base + each * inbox.1) * host.turn_slowness;
        let end = self.now + cost + std::mem::take(&mut process.stalls_next_turn);
        process.node.finish(host.clock.read(end), &mut process.out);
        process.busy_until = end;
        process.inbox = inbox.0;
        let mut out = std::mem::take(&mut process.out);
        let spins = woken && out.wake_at <= host.clock.read(end).steady && wants_nothing(&out);
        process.spins = if spins { process.spins + 1 } else { 0 };
        healed_group_serves::demand_sleep(server, process.spins)?;
        host.process = Some(process);

        let pulse = self.turn_out(server, end, !out.replies.is_empty())?;
        self.judge_refusal(&pulse, &out.notices)?;
        self.set_going(server, end, &mut out)?;
        self.observer.longest_log.turn_ended(&pulse);
        let host = &mut self.hosts[server.index()];
        if let Some(process) = &mut host.process {
            process.wake_at = out.wake_at;
            out.clear();
            process.out = out;
            self.schedule_wake(server);
        }
        Ok(())
    }

    /// Feeds what waited. Returns the emptied inbox, and how many events there were.
    fn feed(
        &mut self,
        process: &mut Process,
        server: ServerId,
        now: Now,
        mut inbox: Vec<Incoming>,
    ) -> (Vec<Incoming>, u64) {
        let mut fed = 0;
        for incoming in inbox.drain(..) {
            fed += 1;
            let Process { node, out, .. } = process;
            match incoming {
                Incoming::Tick => {
                    let room = glue::room(&self.profile, process.store.as_ref());
                    node.step(now, Event::Space { room }, out);
                    node.step(now, Event::Tick, out);
                }
                Incoming::Disk(done) => {
                    if let DiskDone::Failed { read: false, .. } = done {
                        let life = self.hosts[server.index()].life;
                        // What is on its way to the view file may yet arrive there.
                        let view = node.replica().durable().promised;
                        self.observer.disk_failed(server, life, view);
                    }
                    node.step(now, Event::Disk(done), out);
                }
                Incoming::Store(done) => node.step(now, Event::Store(done), out),
                Incoming::Groups(uid, answer) => {
                    node.step(now, Event::Groups { uid, answer }, out);
                }
                Incoming::Power(power) => {
                    if power == Power::Ending {
                        self.observer.ending.told(server, self.hosts[server.index()].life);
                    }
                    node.step(now, Event::Power(power), out);
                }
                Incoming::Override(order) => node.step(now, Event::Override(order), out),
                Incoming::Verify(token) => node.step(now, Event::Verify { token }, out),
                Incoming::Frame(slot) => {
                    let message = self.mail.get(slot);
                    self.trace.add(message.bytes.len() as u64);
                    let own = node.replica().durable().incarnation;
                    self.observer.message_arrived(server, own, message, self.now);
                    let event = Event::Peer { from: message.from, frame: &message.bytes };
                    node.step(now, event, out);
                    self.mail.close(slot);
                }
                Incoming::Opened(conn) => {
                    let connection = &self.connections[conn as usize];
                    let address = self.clients[connection.client as usize].address;
                    let port = connection.port;
                    node.step(now, Event::ConnOpened { conn: conn_id(conn), address, port }, out);
                }
                Incoming::Closed(conn) => {
                    node.step(now, Event::ConnClosed { conn: conn_id(conn) }, out);
                }
                Incoming::Calls(conn, bytes) => {
                    fed += feed_calls(node, now, conn, &bytes, out) - 1;
                    self.buffers.push(bytes);
                }
            }
        }
        (inbox, fed)
    }

    /// The observer sees the turn's end: first what is committed now, then what leaves.
    fn turn_out(&mut self, server: ServerId, end: u64, answers: bool) -> Result<Pulse, Violation> {
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it lives");
        let pulse = glue::pulse(&process.node, &host.clock, end, host.life);
        if self.observer.is_overridden(&pulse) {
            self.override_seen(server, &pulse)?;
        }
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it lives");
        // A server that takes no part in its view may know of commitments that its own log lacks; but a
        // primary may commit, answer, and leave its view in one turn.
        let led = self.observer.led(&pulse) && answers;
        let counted = if pulse.normal || led { pulse.cp } else { process.counted };
        let mut given_up = false;
        for op in process.counted + 1..=counted {
            if let Some(record) = glue::committed(&process.node, op)
                && self.observer.counts_committed(server, record)?
            {
                given_up |= matches!(record.change, Some(ConfigurationChange::NeedsImage { .. }));
                let number = record.xid.and_then(|xid| self.observer.number_of(xid));
                note!(self, "op {op} commits at {server}: request {number:?}");
            }
        }
        process.counted = process.counted.max(counted);
        process.cp = pulse.cp;
        let whole = process.node.replica().has_image();
        process.images = (process.images.1, whole.then_some(pulse.lb));
        if given_up && self.any_damage() {
            note!(self, "an image is given up while blocks of another one are damaged");
            self.blocks_lost = true;
        }
        self.observer.turn_ended(&pulse)?;
        Ok(pulse)
    }

    /// A server that refuses to form a view must have reason to.
    fn judge_refusal(&self, pulse: &Pulse, notices: &[Notice]) -> Verdict {
        if !notices.iter().any(|notice| matches!(notice, Notice::Refusing { .. })) {
            return Ok(());
        }
        let host = &self.hosts[pulse.server.index()];
        let process = host.process.as_ref().expect("it lives");
        let replica = process.node.replica();
        let Some(refusal) = replica.refusal() else { return Ok(()) };
        let mut report = replica.report(host.clock.read(pulse.at).steady);
        // It may have refused before its image moved, or became whole, in this very turn.
        let before = process.images.0.map(Op);
        report.image = report.image.zip(before).map(|(now, before)| now.min(before));
        let own = (replica.durable().incarnation.disk, report);
        // By a clock that is as fast as may be.
        let timeout = self.profile.failure_timeout;
        let silence = timeout - timeout.min(timeout * 2 * self.profile.clock_ppm_max / 1_000_000);
        self.observer.refusals.check(self.profile.shape, pulse, own, refusal, silence)
    }

    /// The first primary of a new epoch serves: the observer goes back to where its history begins.
    fn override_seen(&mut self, server: ServerId, pulse: &Pulse) -> Verdict {
        override_keeps::check_order(self.answers.get(&pulse.overridden.at_seconds))?;
        let process = self.hosts[server.index()].process.as_ref().expect("it lives");
        let begin = process.node.log().current().begin();
        let records =
            (begin..=pulse.overridden.cut.0).filter_map(|op| glue::committed(&process.node, op));
        let needs_image = process.node.replica().configuration().needs_image;
        self.observer.overridden(pulse, needs_image, records)?;
        let kept = *self.observer.overrides.last().expect("just overridden");
        note!(self, "{server} serves after an override that kept {kept} ops");
        // What another copy had is given up with its image.
        self.blocks_lost |= self.any_damage();
        for host in &mut self.hosts {
            if let Some(process) = &mut host.process {
                process.counted = process.counted.min(kept);
            }
        }
        Ok(())
    }

    /// Sends, answers, and hands commands and jobs to their threads.
    fn set_going(&mut self, server: ServerId, end: u64, out: &mut Output) -> Verdict {
        let host = &mut self.hosts[server.index()];
        host.suspects = out.remember.take().unwrap_or(host.suspects);
        let process = host.process.as_mut().expect("it lives");
        let dies = std::mem::take(&mut process.dies_next_turn);
        let things =
            (out.frames.len() + out.replies.len() + out.disk.len() + out.jobs.len()) as u64;
        let left = if dies { self.streams.turns.between(0, things) } else { u64::MAX };
        let mut quota = Quota { left };
        self.send_frames(server, end, out, &mut quota)?;
        self.send_replies(server, end, out, &mut quota)?;
        for (conn, hold) in out.hold.drain(..) {
            self.hold(conn_number(conn), hold);
        }
        for command in out.disk.drain(..) {
            if quota.take() {
                self.queue_command(server, end, command);
            }
        }
        for job in out.jobs.drain(..) {
            if quota.take() {
                self.queue_job(server, end, job);
            }
        }
        for uid in out.users.drain(..) {
            self.ask_for_groups(server, end, uid);
        }
        let mut notices = std::mem::take(&mut out.notices);
        let ends = self.hear(server, &notices)?;
        notices.clear();
        out.notices = notices;
        if dies || ends {
            note!(self, "{server} dies at the end of a turn");
            let host = &self.hosts[server.index()];
            let machine_ends = host.written_out && host.ending == Some(true);
            let process = host.process.as_ref().expect("it lives");
            if process.node.died_of_record() {
                self.observer.no_loop.died(server)?;
                self.lethal_record_struck();
            } else {
                self.observer.no_loop.ended_otherwise(server);
            }
            self.crash(server, machine_ends);
            if self.hosts[server.index()].written_out {
                self.lose_memory(server);
            }
            self.restart_later(server);
        }
        Ok(())
    }

    fn send_frames(
        &mut self,
        server: ServerId,
        end: u64,
        out: &Output,
        quota: &mut Quota,
    ) -> Verdict {
        for frame in &out.frames {
            if !quota.take() {
                break;
            }
            let slot = self.mail.open(server, frame.to);
            let ring = &self.hosts[server.index()].ring;
            let bytes = &mut self.mail.get_mut(slot).bytes;
            bytes.extend_from_slice(&out.bytes[frame.head.clone()]);
            for (at, len) in &out.ranges[frame.body.clone()] {
                bytes.extend_from_slice(ring.bytes(*at, *len));
            }
            self.post(slot, end)?;
        }
        Ok(())
    }

    /// A message leaves at `end`: the observer sees it, a script may stop it, the network decides.
    fn post(&mut self, slot: u32, end: u64) -> Verdict {
        let message = self.mail.get(slot);
        let (from, to, bytes) = (message.from, message.to, message.bytes.len());
        let envelope = glue::envelope(&message.bytes);
        self.observer.sent(from, &envelope)?;
        let kept = self.mail.get_mut(slot);
        kept.lives = (envelope.from_incarnation, envelope.to_incarnation);
        if let Message::Promise { view, report } = envelope.message {
            kept.report = Some((view, report));
        }
        let life = self.hosts[from.index()].life;
        self.observer.failed_disk.sent(from, life, &envelope)?;
        self.observer.ending.sent(from, life, &envelope)?;
        note!(self, "{from} -> {to} {bytes} bytes {}", words(&envelope.message));
        match self.filter.as_mut().map_or(Fate::Pass, |f| f(self.mail.get(slot), &envelope)) {
            Fate::Hold => {
                self.held.push(slot);
                return Ok(());
            }
            Fate::Drop => {
                self.mail.close(slot);
                return Ok(());
            }
            Fate::Copy => {
                let copy = self.mail.copy(slot);
                self.held.push(copy);
            }
            Fate::Pass => {}
        }
        let [once, again] = self.network.fate(end, from, to, bytes);
        if let Some(at) = again {
            let copy = self.mail.copy(slot);
            self.queue.put(at, Due::Frame { slot: copy });
        }
        match once {
            Some(at) => self.queue.put(at, Due::Frame { slot }),
            None => self.mail.close(slot),
        }
        Ok(())
    }

    /// Lets the held messages go that `which` names, in the order they were sent.
    pub fn release(&mut self, mut which: impl FnMut(&crate::network::Message) -> bool) {
        let held = std::mem::take(&mut self.held);
        for slot in held {
            if which(self.mail.get(slot)) {
                self.queue.put(self.now, Due::Frame { slot });
            } else {
                self.held.push(slot);
            }
        }
    }

    /// The messages that a script holds, in the order they were sent.
    pub fn held_messages(&self) -> Vec<&crate::network::Message> {
        self.held.iter().map(|slot| self.mail.get(*slot)).collect()
    }

    fn send_replies(
        &mut self,
        server: ServerId,
        end: u64,
        out: &Output,
        quota: &mut Quota,
    ) -> Verdict {
        if out.replies.is_empty() {
            return Ok(());
        }
        let cp = self.hosts[server.index()].process.as_ref().expect("it lives").cp;
        for reply in &out.replies {
            if !quota.take() {
                break;
            }
            let bytes = &out.bytes[reply.bytes.clone()];
            let number = self.observer.replied(cp, &bytes[record::MARK_BYTES..])?;
            self.trace.add(number as u64);
            note!(self, "{server} answers request {number}: {:?}", {
                let request = &self.observer.requests[number as usize];
                (request.intent, request.answer)
            });
            self.send_to_client(conn_number(reply.conn), end, bytes);
        }
        Ok(())
    }

    /// Listens to what a node has to say. Returns whether its process is to end.
    fn hear(&mut self, server: ServerId, notices: &[Notice]) -> Result<bool, Violation> {
        let mut ends = false;
        for notice in notices {
            note!(self, "{server} says {notice:?}");
            match notice {
                Notice::Serving { view } => self.now_serves(server, *view),
                Notice::Stopped { view } => self.serves_no_longer(server, *view),
                Notice::Barrier { token, op } => self.barrier = Some((*token, *op)),
                Notice::Overridden { token, answer } => {
                    let before = self.answers.insert(*token, answer.clone());
                    assert!(before.is_none(), "an order gets one answer");
                }
                Notice::Digest { op, digest } => {
                    let damage = self.profile.faults.contains(Fault::BlockDamage);
                    self.observer.images.digested(server, *op, digest, damage)?;
                }
                Notice::Fatal { .. } => ends = true,
                Notice::WrittenOut { .. } => {
                    self.hosts[server.index()].written_out = true;
                    ends = true;
                }
                Notice::Formed { primary, .. } => {
                    self.observer.counts.views += (*primary == server) as u64;
                }
                Notice::Refusing { .. } | Notice::Remark { .. } => {}
            }
        }
        Ok(ends)
    }

    fn queue_command(&mut self, server: ServerId, at: u64, command: DiskCommand) {
        let process = self.hosts[server.index()].process.as_mut().expect("it lives");
        process.commands.push_back(command);
        if process.commands.len() == 1 {
            self.start_command(server, at);
        }
    }

    /// The command at the queue's head begins at `at`.
    fn start_command(&mut self, server: ServerId, at: u64) {
        let host = &self.hosts[server.index()];
        let process = host.process.as_ref().expect("it lives");
        let disk = &self.profile.disk;
        let rng = &mut self.streams.disk;
        let Some(command) = process.commands.front() else { return };
        let time = match command {
            DiskCommand::Write { bytes, sync, .. } => {
                let sync = if *sync { rng.wait(disk.sync_mean) } else { 0 };
                disk.write + *bytes as u64 / 16 + sync
            }
            DiskCommand::Slot { .. } => disk.write + rng.wait(disk.slot_mean),
            DiskCommand::Read { .. } => disk.write + rng.wait(disk.sync_mean),
        };
        let due = Due::DiskDone { server, life: host.life };
        self.queue.put(at + time * host.disk_slowness, due);
    }

    /// The disk command under way is done.
    pub(crate) fn disk_done(&mut self, server: ServerId) -> Verdict {
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it lives");
        let command = process.commands.pop_front().expect("a command is under way");
        let view = match &command {
            DiskCommand::Slot { file: SlotFile::View, bytes, .. } => glue::view_slot(bytes),
            _ => None,
        };
        let done = process.runner.run(command, &mut host.disk, &host.ring);
        if let (Some(durable), DiskDone::Slot { .. }) = (view, &done) {
            self.observer.view_written(server, &durable)?;
        }
        if let DiskDone::Failed { read: false, .. } = done {
            // A view may be formed in memory whose view file is written behind the failure.
            let formed = process.node.replica().formed();
            self.observer.log_doubtful(server, formed);
        }
        self.deliver(server, Incoming::Disk(done));
        self.start_command(server, self.now);
        Ok(())
    }

    fn ask_for_groups(&mut self, server: ServerId, at: u64, uid: u32) {
        if self.silent_users.contains(&uid) {
            return;
        }
        let life = self.hosts[server.index()].life;
        let rng = &mut self.streams.users;
        // Now and then longer than anybody waits for it.
        let hangs = if rng.chance(15) { 5 * SECOND } else { 0 };
        let time = MICRO + hangs + rng.wait(self.profile.look_up_mean);
        self.queue.put(at + time, Due::LookedUp { server, life, uid });
    }

    /// What a server's user database says this time.
    pub(crate) fn look_up(&mut self, uid: u32) -> LookedUp {
        let rng = &mut self.streams.users;
        match rng.below(8) {
            0 => LookedUp::Unknown,
            1 => LookedUp::Failed { why: "it is not there".into() },
            groups => LookedUp::Groups((0..groups as u32).map(|group| uid + group).collect()),
        }
    }

    fn queue_job(&mut self, server: ServerId, at: u64, job: StoreJob) {
        let lane = if job.is_short() { 0 } else { 1 };
        let process = self.hosts[server.index()].process.as_mut().expect("it lives");
        process.lanes[lane].push_back(job);
        if process.lanes[lane].len() == 1 {
            self.start_job(server, at, lane);
        }
    }

    fn start_job(&mut self, server: ServerId, at: u64, lane: usize) {
        let host = &self.hosts[server.index()];
        let disk = &self.profile.disk;
        let mean = if lane == 0 { disk.fetch_mean } else { disk.checkpoint_mean };
        let time = MICRO + self.streams.disk.wait(mean);
        let due = Due::JobDone { server, life: host.life, lane: lane as u8 };
        self.queue.put(at + time * host.disk_slowness, due);
    }

    /// The store job under way in this lane is done.
    pub(crate) fn job_done(&mut self, server: ServerId, lane: u8) {
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it lives");
        let lane = lane as usize;
        let job = process.lanes[lane].pop_front().expect("a job is under way");
        let store = process.store.as_ref().expect("copies have jobs");
        let done = glue::run_job(job, store, &host.ring);
        let more = !process.lanes[lane].is_empty();
        self.deliver(server, Incoming::Store(done));
        if more {
            self.start_job(server, self.now, lane);
        }
    }
}

/// A message in few words: configurations and idle heartbeats are left out.
fn words(message: &Message) -> String {
    match message {
        Message::Presence(p) => {
            let mood = if p.serving {
                "serving"
            } else if p.normal {
                "normal"
            } else {
                "outside"
            };
            format!(
                "Presence({mood} promised {} formed {} cp {} lb {})",
                p.promised, p.formed, p.cp, p.lb
            )
        }
        Message::Promise { view, report: r } => {
            let (formed, log, cp, image, level) = (r.formed, r.log, r.cp, r.image, r.level);
            format!(
                "Promise({view} formed {formed} log {log:?} cp {cp} image {image:?} level {level})"
            )
        }
        Message::Install(i) => {
            let (view, members, adopted, holder) = (i.view, i.members, i.adopted, i.holder);
            let (begin, end, cp) = (i.begin, i.end, i.cp);
            format!(
                "Install({view} {members:?} adopts {adopted} of {holder} [{begin}, {end}] cp {cp})"
            )
        }
        other => format!("{other:?}"),
    }
}

/// Feeds the calls in `bytes`, record marks included. Returns how many there were.
fn feed_calls(
    node: &mut harp_node::Node,
    now: Now,
    conn: u32,
    bytes: &[u8],
    out: &mut Output,
) -> u64 {
    let (mut rest, mut fed) = (bytes, 0);
    while !rest.is_empty() {
        let split = record::split(rest, CALL_BYTES_MAX).expect("clients mark records rightly");
        let Split::Complete { record } = split else { panic!("clients send whole records") };
        let (call, end) = (&rest[record.clone()], record.end);
        node.step(now, Event::Call { conn: conn_id(conn), call }, out);
        rest = &rest[end..];
        fed += 1;
    }
    fed
}
