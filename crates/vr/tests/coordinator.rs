//! A coordinator between phase 1 and phase 2.
//! Owns: one server that coordinates, told by hand what the others say.
//! Source: docs/protocol.md, rules 3 and 6; docs/notes/model.md.

mod common;

use common::{MS, durable, settings};
use harp_vr::*;

const SHAPE: Shape = Shape { n: 1 };
const ME: ServerId = ServerId(1);
const PRIMARY: ServerId = ServerId(0);
const WITNESS: ServerId = ServerId(2);

fn configuration() -> Configuration {
    let mut disks = [0; SERVERS_MAX];
    disks[..3].copy_from_slice(&[10, 11, 12]);
    Configuration { disks, needs_image: ServerSet::EMPTY, overridden: Override::NONE }
}

/// The backup of a view that held nothing, as it starts again.
fn backup() -> Replica {
    let view = View::new(0, 1, 1, PRIMARY);
    let members = SHAPE.copies().collect();
    let durable = durable(SHAPE, Incarnation { disk: 11, start: 2 }, view, configuration());
    let start = Start {
        durable,
        persist_sequence: 0,
        log: LogFacts { begin: Op(1), end: Op(0), durable: Op(0) },
        tag: Some(view),
        tag_members: members,
        tag_configuration: configuration(),
        cp: Op(0),
        image: Some(Op(0)),
        image_whole: true,
    };
    Replica::new(settings(SHAPE, ME), start, Nanos(MS))
}

/// What the primary of that view reports; one record is in its log that this server lacks.
fn report(view: View) -> Report {
    Report {
        formed: view,
        members: SHAPE.copies().collect(),
        log: Some((Op(1), Op(1))),
        cp: Op(0),
        image: Some(Op(0)),
        glb: Op(0),
        level: Op(0),
        lease_left: 0,
        configuration: configuration(),
        settled: configuration(),
        branch: View::NONE,
        reached: view,
        files: Some(Op(0)),
        applied: Op(0),
    }
}

struct Coordinator {
    replica: Replica,
    now: Nanos,
    out: Vec<Action>,
}

impl Coordinator {
    fn hear(&mut self, from: ServerId, from_incarnation: Incarnation, message: Message) {
        let to_incarnation = Incarnation { disk: 11, start: 2 };
        let envelope = Envelope { from, from_incarnation, to_incarnation, message };
        self.replica.on_message(self.now, &envelope, &mut self.out);
    }

    /// Time passes, and writes of the view file end at once.
    fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(millis * MS);
        self.replica.tick(self.now, &mut self.out);
        for sequence in self.out.clone().into_iter().filter_map(|action| match action {
            Action::Persist { sequence, .. } => Some(sequence),
            _ => None,
        }) {
            self.replica.on_persisted(self.now, sequence, &mut self.out);
        }
    }

    fn installs(&self, server: ServerId) -> usize {
        let to_server = |action: &&Action| matches!(action, Action::Send { to, message: Message::Install(_) } if *to == server);
        self.out.iter().filter(to_server).count()
    }
}

/// A server follows the history after an override, and has its log of the one before it still. When it starts, it says
/// nothing of how far that log was trimmed.
#[test]
fn coordinator_that_follows_an_override_knows_nothing_from_its_old_log() {
    let (view, over) = (View::new(0, 1, 1, PRIMARY), View::new(1, 1, 2, ME));
    let old = durable(SHAPE, Incarnation { disk: 12, start: 2 }, view, configuration());
    for (branch, glb) in [(View::NONE, Op(900)), (over, Op::ZERO)] {
        let start = Start {
            durable: Durable { branch, ..old },
            persist_sequence: 0,
            log: LogFacts { begin: Op(901), end: Op(1_000), durable: Op(1_000) },
            tag: Some(view),
            tag_members: SHAPE.copies().collect(),
            tag_configuration: configuration(),
            cp: Op(990),
            image: None,
            image_whole: false,
        };
        let report = Replica::new(settings(SHAPE, WITNESS), start, Nanos(MS)).report(Nanos(MS));
        assert_eq!((report.glb, report.branch), (glb, branch));
        assert_eq!(report.cp == Op::ZERO, branch == over);
    }
}

/// A coordinator that was stopped for long finds two promises, of which the first alone is not enough. It refuses nothing:
/// the second was there all the time.
#[test]
fn coordinator_that_was_stopped_refuses_nothing_before_it_has_heard_all_that_waited() {
    let mut c = Coordinator { replica: backup(), now: Nanos(MS), out: Vec::new() };
    let (primary, witness) =
        (Incarnation { disk: 10, start: 1 }, Incarnation { disk: 12, start: 1 });
    let nobody = Message::Decline { view: View::NONE, promised: View::NONE };
    for millis in [400, 10] {
        c.hear(WITNESS, witness, nobody);
        c.hear(PRIMARY, primary, nobody);
        c.wait(millis);
    }
    let (view, formed) = (c.replica.promised(), View::new(0, 1, 2, PRIMARY));
    assert!(view > formed, "it coordinates");
    c.out.clear();
    c.now = c.now.plus(1_000 * MS);
    // Both were members of a later view; the witness lost that log.
    let lost = Report { log: None, image: None, files: None, ..report(formed) };
    c.hear(WITNESS, witness, Message::Promise { view, report: lost });
    c.hear(PRIMARY, primary, Message::Promise { view, report: report(formed) });
    c.wait(0);
    assert!(!c.out.iter().any(|action| matches!(action, Action::Refusing { .. })), "{:?}", c.out);
    assert_eq!(c.installs(PRIMARY), 1, "{:?}", c.out);
}

/// Who restarts knows from its log of less that is committed than its image has. A view begins with all of that committed,
/// and with no log that ends below it.
#[test]
fn coordinator_counts_what_is_in_an_image_as_committed() {
    for (image, begins) in [(Op(2), true), (Op(4), false)] {
        let mut c = Coordinator { replica: backup(), now: Nanos(MS), out: Vec::new() };
        let nobody = Message::Decline { view: View::NONE, promised: View::NONE };
        let primary = Incarnation { disk: 10, start: 1 };
        for millis in [400, 10] {
            c.hear(PRIMARY, primary, nobody);
            c.wait(millis);
        }
        let (view, formed) = (c.replica.promised(), View::new(0, 1, 1, PRIMARY));
        assert!(view > formed, "it coordinates");
        c.out.clear();
        let held = Report { log: Some((Op(1), Op(3))), cp: Op(1), ..report(formed) };
        let held = Report { image: Some(image), files: Some(image), applied: image, ..held };
        c.hear(PRIMARY, primary, Message::Promise { view, report: held });
        c.wait(0);
        let begun = c.out.iter().find_map(|action| match action {
            Action::Send { to: PRIMARY, message: Message::Install(install) } => Some(install.cp),
            _ => None,
        });
        assert_eq!(begun, begins.then_some(image), "{:?}", c.out);
    }
}

/// The primary promises a view, and is to be its member and to hand out its log; it loses its disk. On the new one it
/// knows of no promise, so that an old invitation makes it promise again. Phase 2 is not for this life of it: it
/// counts for nothing, does not hold what it reported, and may have promised more in between.
#[test]
fn coordinator_member_lost_its_disk_after_its_promise_phase_two_is_not_for_the_new_one() {
    let mut c = Coordinator { replica: backup(), now: Nanos(MS), out: Vec::new() };
    let (old, new) = (Incarnation { disk: 10, start: 1 }, Incarnation { disk: 20, start: 1 });
    let nobody = Message::Decline { view: View::NONE, promised: View::NONE };
    c.hear(WITNESS, Incarnation { disk: 12, start: 1 }, nobody);
    c.hear(PRIMARY, old, nobody);
    c.wait(400); // nobody serves
    c.hear(WITNESS, Incarnation { disk: 12, start: 1 }, nobody);
    c.hear(PRIMARY, old, nobody);
    c.wait(10);
    let view = c.replica.promised();
    assert!(view > View::new(0, 1, 1, PRIMARY), "it coordinates");
    c.hear(PRIMARY, old, Message::Promise { view, report: report(c.replica.formed()) });
    c.wait(30); // no longer than it waits for the witness
    assert_eq!(c.installs(PRIMARY), 1, "{:?}", c.out);

    let nothing = Configuration {
        disks: [0; SERVERS_MAX],
        needs_image: ServerSet::EMPTY,
        overridden: Override::NONE,
    };
    let emptied = Report {
        formed: View::NONE,
        members: ServerSet::EMPTY,
        log: None,
        image: None,
        configuration: nothing,
        settled: nothing,
        ..report(view)
    };
    c.hear(PRIMARY, new, Message::Promise { view, report: emptied });
    c.wait(20);
    assert_eq!(c.installs(PRIMARY), 1, "{:?}", c.out);
    // It tries anew, without the promise that is lost.
    c.wait(400);
    c.hear(WITNESS, Incarnation { disk: 12, start: 1 }, nobody);
    c.wait(10);
    assert!(c.replica.promised() > view);
}
