//! A small cluster of replicas over instant messages: the protocol without log, disk or node.
//! Owns: a toy log (one number per op) and the carrying out of actions.
//! Never: loses, delays or reorders a message by itself; the simulator does that with whole nodes.

mod common;

use std::collections::VecDeque;

use common::{MS, durable, settings};
use harp_vr::*;

struct Server {
    replica: Replica,
    /// The current log: (op, content), and its tag on disk.
    log: Vec<(u64, u64)>,
    tag: Option<(View, ServerSet)>,
    staged: Option<(u64, Vec<(u64, u64)>)>,
    durable: Durable,
    sequence: u64,
    up: bool,
    /// It does not run for now, and what is sent to it waits.
    stopped: bool,
    serving: bool,
    mail: VecDeque<(Envelope, Vec<(u64, u64)>)>,
}

struct Cluster {
    shape: Shape,
    servers: Vec<Server>,
    now: Nanos,
    cut: Vec<(u8, u8)>,
}

fn facts(log: &[(u64, u64)], begin: u64) -> LogFacts {
    let end = log.last().map_or(begin - 1, |r| r.0);
    LogFacts { begin: Op(log.first().map_or(begin, |r| r.0)), end: Op(end), durable: Op(end) }
}

impl Server {
    fn start(&mut self, shape: Shape, me: ServerId, now: Nanos) {
        self.durable.incarnation.start += 1;
        let start = Start {
            durable: self.durable,
            persist_sequence: self.sequence,
            log: facts(&self.log, 1),
            tag: self.tag.map(|t| t.0),
            tag_members: self.tag.map_or(ServerSet::EMPTY, |t| t.1),
            tag_configuration: self.durable.configuration,
            cp: Op(0),
            image: shape.is_copy(me).then_some(Op(0)),
            image_whole: true,
        };
        self.replica = Replica::new(settings(shape, me), start, now);
        self.staged = None;
        self.mail.clear();
        self.serving = false;
        self.up = true;
    }
}

impl Cluster {
    fn new(n: u8) -> Cluster {
        let shape = Shape { n };
        let mut disks = [0; SERVERS_MAX];
        shape.servers().for_each(|s| disks[s.index()] = 100 + s.0 as u64);
        let first = View::new(0, 1, 0, ServerId(0));
        let members: ServerSet = shape.copies().collect();
        let servers = shape.servers().map(|me| {
            let incarnation = Incarnation { disk: disks[me.index()], start: 0 };
            let configuration =
                Configuration { disks, needs_image: ServerSet::EMPTY, overridden: Override::NONE };
            let durable = durable(shape, incarnation, first, configuration);
            let start = Start {
                durable,
                persist_sequence: 0,
                log: facts(&[], 1),
                tag: Some(first),
                tag_members: members,
                tag_configuration: durable.configuration,
                cp: Op(0),
                image: shape.is_copy(me).then_some(Op(0)),
                image_whole: true,
            };
            let replica = Replica::new(settings(shape, me), start, Nanos(MS));
            let mut server = Server {
                replica,
                log: Vec::new(),
                tag: Some((first, members)),
                staged: None,
                durable,
                sequence: 0,
                up: true,
                stopped: false,
                serving: false,
                mail: VecDeque::new(),
            };
            server.start(shape, me, Nanos(MS));
            server
        });
        Cluster { shape, servers: servers.collect(), now: Nanos(MS), cut: Vec::new() }
    }

    fn carry_out(&mut self, me: usize, actions: Vec<Action>) {
        let mut actions: VecDeque<Action> = actions.into();
        while let Some(action) = actions.pop_front() {
            let mut more = Vec::new();
            let now = self.now;
            let server = &mut self.servers[me];
            match action {
                Action::Send { to, message } => self.post(me, to, message, Vec::new()),
                Action::Grant { to_server, view, from, to } => {
                    let records: Vec<_> = server
                        .log
                        .iter()
                        .filter(|r| r.0 >= from.0 && r.0 <= to.0)
                        .copied()
                        .collect();
                    let last = Op(records.last().expect("the holder has them").0);
                    self.post(me, to_server, Message::Grant { view, first: from, last }, records);
                }
                Action::Past { to_server, from } => {
                    let cp = server.replica.cp();
                    let records: Vec<_> = server
                        .log
                        .iter()
                        .filter(|r| r.0 >= from.0 && r.0 <= cp.0)
                        .copied()
                        .collect();
                    let last = Op(records.last().map_or(from.0 - 1, |r| r.0));
                    let view = server.replica.formed();
                    let begin = Op(server.log.first().map_or(1, |r| r.0));
                    self.post(
                        me,
                        to_server,
                        Message::Past(Past { view, first: from, last, cp, begin }),
                        records,
                    );
                }
                Action::Persist { sequence, durable } => {
                    server.durable = durable;
                    server.sequence = sequence;
                    server.replica.on_persisted(now, sequence, &mut more);
                }
                Action::Stage { begin, .. } => server.staged = Some((begin.0, Vec::new())),
                Action::DropStaged => server.staged = None,
                Action::Adopt { view, members, staged, .. } => {
                    let mut begin = 1;
                    if staged {
                        let (first, records) = server.staged.take().expect("a staged log");
                        begin = first;
                        server.log = records;
                    }
                    server.tag = Some((view, members));
                    let facts = facts(&server.log, begin);
                    server.replica.on_tagged(view, facts, &mut more);
                }
                Action::DropLog => {
                    server.log.clear();
                    server.tag = None;
                    server.staged = None;
                    server.replica.on_staged_dropped();
                }
                Action::DiscardImage | Action::WantImage { .. } => panic!("no image is lost here"),
                Action::Serving { .. } => server.serving = true,
                Action::Stopped { .. } => server.serving = false,
                Action::LogConfiguration(_)
                | Action::Formed { .. }
                | Action::CrossedOver
                | Action::Overridden { .. }
                | Action::Refusing { .. } => {}
            }
            actions.extend(more);
        }
    }

    fn post(&mut self, from: usize, to: ServerId, message: Message, records: Vec<(u64, u64)>) {
        let envelope = self.servers[from].replica.envelope(to, message);
        let cut = self.cut.iter().any(|(a, b)| {
            (*a as usize, *b as usize) == (from, to.index())
                || (*b as usize, *a as usize) == (from, to.index())
        });
        if self.servers[to.index()].up && !cut {
            self.servers[to.index()].mail.push_back((envelope, records));
        }
    }

    fn deliver(&mut self, me: usize) {
        while let Some((envelope, records)) = self.servers[me].mail.pop_front() {
            let mut out = Vec::new();
            let now = self.now;
            let verdict = self.servers[me].replica.on_message(now, &envelope, &mut out);
            self.carry_out(me, out);
            let mut out = Vec::new();
            let server = &mut self.servers[me];
            let (above, staged) = match verdict {
                Records::Ignore => continue,
                Records::Current { above } => (above, false),
                Records::Staged { above } => (above, true),
                Records::ImageWant { .. }
                | Records::ImagePart { .. }
                | Records::BlockWant { .. }
                | Records::BlockGrant { .. } => panic!("no image is lost here"),
            };
            let log = if staged {
                &mut server.staged.as_mut().expect("staged").1
            } else {
                &mut server.log
            };
            log.extend(records.into_iter().filter(|r| r.0 > above.0));
            let end = Op(log.last().expect("records came").0);
            server.replica.on_appended(now, staged, end, &mut out);
            if !staged {
                server.replica.on_durable(now, end);
            }
            self.carry_out(me, out);
        }
    }

    /// Lets `millis` pass, a millisecond at a time.
    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.now = self.now.plus(MS);
            for me in 0..self.servers.len() {
                if !self.servers[me].up || self.servers[me].stopped {
                    continue;
                }
                self.deliver(me);
                let mut out = Vec::new();
                self.servers[me].replica.tick(self.now, &mut out);
                self.carry_out(me, out);
                self.stream(me);
                let mut out = Vec::new();
                let server = &mut self.servers[me];
                let limit =
                    server.replica.may_apply().min(Op(server.log.last().map_or(0, |r| r.0)));
                if server.replica.is_normal() {
                    server.replica.on_applied(limit);
                }
                server.replica.finish(&mut out);
                self.carry_out(me, out);
            }
        }
    }

    fn stream(&mut self, me: usize) {
        for member in self.shape.servers() {
            let Some(first) = self.servers[me].replica.prepare_due(self.now, member) else {
                continue;
            };
            let records: Vec<_> =
                self.servers[me].log.iter().filter(|r| r.0 >= first.0).copied().collect();
            let last = Op(records.last().map_or(first.0 - 1, |r| r.0));
            let message = self.servers[me].replica.prepare(self.now, member, first, last);
            self.post(me, member, message, records);
        }
    }

    fn serving(&self) -> Option<usize> {
        let all: Vec<usize> = (0..self.servers.len())
            .filter(|s| self.servers[*s].up && self.servers[*s].serving)
            .collect();
        all.into_iter().max_by_key(|s| self.servers[*s].replica.formed())
    }

    /// Appends at the primary; returns the op.
    fn append(&mut self, content: u64) -> u64 {
        let me = self.serving().expect("somebody serves");
        let server = &mut self.servers[me];
        let op = server.log.last().map_or(server.replica.fp().0, |r| r.0) + 1;
        server.log.push((op, content));
        let mut out = Vec::new();
        server.replica.on_appended(self.now, false, Op(op), &mut out);
        server.replica.on_durable(self.now, Op(op));
        self.carry_out(me, out);
        op
    }

    fn append_all(&mut self, contents: std::ops::RangeInclusive<u64>) {
        for content in contents {
            self.append(content);
        }
    }

    fn crash(&mut self, server: usize) {
        self.servers[server].up = false;
        self.servers[server].serving = false;
    }

    fn restart(&mut self, server: usize) {
        let (shape, now) = (self.shape, self.now);
        self.servers[server].start(shape, ServerId(server as u8), now);
    }
}

#[test]
fn a_formatted_group_forms_a_view_of_its_copies_and_commits() {
    for n in [1, 2] {
        let mut c = Cluster::new(n);
        c.run(600);
        assert_eq!(c.serving(), Some(0), "n = {n}");
        let members: ServerSet = c.shape.copies().collect();
        assert_eq!(c.servers[0].replica.members(), members);
        let op = c.append(7);
        c.run(30);
        assert_eq!(c.servers[0].replica.cp(), Op(op));
        assert!(c.servers[0].replica.may_answer(c.now));
    }
}

#[test]
fn the_backup_takes_over_with_the_witness_and_the_primary_comes_back_in_its_role() {
    let mut c = Cluster::new(1);
    c.run(600);
    c.append_all(1..=20);
    c.run(50);
    c.crash(0);
    c.run(400);
    assert_eq!(c.serving(), Some(1));
    assert_eq!(c.servers[1].replica.cp(), Op(20));
    assert!(c.servers[1].replica.members().contains(ServerId(2)));
    c.append_all(21..=40);
    c.run(50);
    c.restart(0);
    c.run(1_500);
    assert_eq!(c.serving(), Some(0));
    assert_eq!(c.servers[0].replica.cp(), Op(40));
    assert_eq!(c.servers[0].log, c.servers[1].log);
    assert_eq!(c.servers[0].replica.members(), ServerSet(0b011));
}

#[test]
fn a_primary_cut_off_commits_nothing_and_rejoins() {
    let mut c = Cluster::new(1);
    c.run(600);
    c.append(1);
    c.run(30);
    c.cut = vec![(0, 1), (0, 2)];
    c.append(666);
    c.run(20);
    assert_eq!(c.servers[0].replica.cp(), Op(1));
    c.run(500);
    assert_eq!(c.serving(), Some(1));
    c.append(2);
    c.run(30);
    assert!(!c.servers[0].replica.may_answer(c.now));
    c.cut.clear();
    c.run(2_000);
    assert_eq!(c.serving(), Some(0));
    assert_eq!(c.servers[0].log, vec![(1, 1), (2, 2)]);
}

/// The backup is stopped for a moment while the witness is away, so the primary can begin no view change; then the
/// backup goes on, in the same view. The primary does not go on saying that it refuses.
#[test]
fn a_silence_that_ends_before_a_view_change_leaves_no_refusal() {
    let mut c = Cluster::new(1);
    c.run(600);
    let view = c.servers[0].replica.formed();
    c.crash(2);
    c.servers[1].stopped = true;
    c.run(150);
    let state = c.servers[0].replica.state();
    assert!(state.starts_with("refusing: only {a} can promise"), "{state}");
    c.servers[1].stopped = false;
    c.run(100);
    assert_eq!((c.serving(), c.servers[0].replica.formed()), (Some(0), view));
    c.append(1);
    c.run(30);
    assert_eq!(c.servers[0].replica.cp(), Op(1));
    for server in &c.servers[..2] {
        assert_eq!(server.replica.state(), "normal");
    }
}

/// Runs until the witness has promised a view that has not formed: the backup died.
fn run_until_promised(c: &mut Cluster) {
    c.run(600);
    c.crash(1);
    let before = c.servers[2].durable.promised;
    for _ in 0..500 {
        if c.servers[2].durable.promised > before {
            return;
        }
        c.run(1);
    }
    panic!("no view was tried");
}

fn serves_soon(c: &mut Cluster) {
    let begun = c.now;
    while c.serving().is_none() && c.now.since(begun) < 20_000 * MS {
        c.run(10);
    }
    let waited = c.now.since(begun) / MS;
    assert!(waited <= 1_000, "nobody served for {waited} ms");
}

/// The witness promised a view and then heard nothing of its coordinator for longer than it waits; the coordinator was
/// only stopped. It goes on, and the view is not long in coming.
#[test]
fn a_coordinator_stopped_between_the_phases_goes_on_soon() {
    let mut c = Cluster::new(1);
    run_until_promised(&mut c);
    c.servers[0].stopped = true;
    c.run(150);
    c.servers[0].stopped = false;
    serves_soon(&mut c);
}

/// The witness restarts between its promise and phase 2, so quickly that nobody misses it.
#[test]
fn a_member_restarted_between_the_phases_is_asked_anew() {
    let mut c = Cluster::new(1);
    run_until_promised(&mut c);
    c.servers[0].stopped = true;
    c.crash(2);
    c.run(5);
    c.restart(2);
    c.run(5);
    c.servers[0].stopped = false;
    serves_soon(&mut c);
}

/// The new view's primary has formed it, its backup not yet, and may still ask for the log from where the view began:
/// what the images hold meanwhile does not let the primary trim it.
#[test]
fn nothing_is_trimmed_before_all_members_formed_the_view() {
    let mut c = Cluster::new(1);
    c.run(600);
    c.append_all(1..=20);
    c.run(50);
    c.servers[1].replica.on_checkpoint(Op(20));
    c.servers[0].replica.on_checkpoint(Op(10));
    c.run(50);
    assert_eq!(c.servers[0].replica.glb(), Op(10));
    let view = c.servers[0].replica.formed();
    // The witness takes the backup's place, and the backup its own again.
    c.cut = vec![(0, 1), (1, 2)];
    c.run(400);
    assert!(c.servers[0].replica.members().contains(ServerId(2)));
    c.cut.clear();
    for _ in 0..2_000 {
        c.run(1);
        let a = &c.servers[0].replica;
        if a.formed() > view && a.members().contains(ServerId(1)) && c.serving().is_none() {
            break;
        }
    }
    c.servers[1].stopped = true;
    assert!(c.serving().is_none());
    c.servers[0].replica.on_checkpoint(Op(20));
    assert_eq!(c.servers[0].replica.glb(), Op(10));
    c.servers[1].stopped = false;
    c.run(200);
    assert_eq!(c.serving(), Some(0));
    assert_eq!(c.servers[0].replica.glb(), Op(20));
}

#[test]
fn two_of_five_may_die_and_the_rest_go_on() {
    let mut c = Cluster::new(2);
    c.run(600);
    c.append_all(1..=5);
    c.run(50);
    c.crash(0);
    c.run(600);
    assert_eq!(c.serving(), Some(1));
    c.append(6);
    c.run(50);
    c.crash(1);
    c.run(800);
    assert_eq!(c.serving(), Some(2));
    c.append(7);
    c.run(50);
    assert_eq!(c.servers[2].replica.cp(), Op(7));
    c.crash(3);
    c.run(500);
    c.restart(0);
    c.run(3_000);
    c.restart(1);
    c.run(3_000);
    assert_eq!(c.serving(), Some(0));
    assert_eq!(c.servers[0].replica.cp(), Op(7));
    assert_eq!(c.servers[0].replica.members(), ServerSet(0b111));
}

#[test]
fn all_restart_at_once_and_resume() {
    let mut c = Cluster::new(1);
    c.run(600);
    c.append_all(1..=9);
    c.run(50);
    (0..3).for_each(|s| c.crash(s));
    c.run(10);
    (0..3).for_each(|s| c.restart(s));
    c.run(1_000);
    assert_eq!(c.serving(), Some(0));
    assert_eq!(c.servers[0].replica.cp(), Op(9));
}
