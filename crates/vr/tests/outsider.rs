//! A server outside of the running view: what it may take in of it, and what it promises for that.

mod common;

use common::{MS, durable, settings};
use harp_vr::*;

const N: u8 = 2;
const PRIMARY: ServerId = ServerId(1);
const CUT_OFF: ServerId = ServerId(0);
const ME: ServerId = ServerId(4);

fn incarnation(server: ServerId) -> Incarnation {
    Incarnation { disk: 100 + server.0 as u64, start: 1 }
}

fn configuration() -> Configuration {
    let mut disks = [0; SERVERS_MAX];
    Shape { n: N }.servers().for_each(|s| disks[s.index()] = incarnation(s).disk);
    Configuration { disks, needs_image: ServerSet::EMPTY, overridden: Override::NONE }
}

/// A witness of five servers that took part in nothing since the group was formatted.
fn outsider() -> Replica {
    let shape = Shape { n: N };
    let first = View::new(0, 1, 0, CUT_OFF);
    let durable = durable(shape, incarnation(ME), first, configuration());
    let start = Start {
        durable,
        persist_sequence: 0,
        log: LogFacts { begin: Op(1), end: Op(0), durable: Op(0) },
        tag: None,
        tag_members: ServerSet::EMPTY,
        tag_configuration: configuration(),
        cp: Op(0),
        image: None,
        image_whole: false,
    };
    Replica::new(settings(shape, ME), start, Nanos(MS))
}

/// `message` arrives at the outsider; what it wants done about it and about the time.
fn tell(replica: &mut Replica, at: u64, from: ServerId, message: Message) -> Vec<Action> {
    let (from_incarnation, to_incarnation) = (incarnation(from), incarnation(ME));
    let envelope = Envelope { from, from_incarnation, to_incarnation, message };
    let mut out = Vec::new();
    replica.on_message(Nanos(at * MS), &envelope, &mut out);
    replica.tick(Nanos(at * MS), &mut out);
    out
}

fn running(view: View) -> Message {
    Message::Presence(Presence {
        branch: View::NONE,
        promised: view,
        formed: view,
        members: ServerSet::from_iter([PRIMARY, ServerId(2), ServerId(3)]),
        serving: true,
        normal: true,
        cp: Op(490),
        lb: Op(0),
        loading: None,
        glb: Op(0),
        configuration: configuration(),
        room: Room::ENDLESS,
    })
}

fn catches_up(actions: &[Action]) -> bool {
    let is_catch_up =
        |a: &Action| matches!(a, Action::Send { message: Message::CatchUp { .. }, .. });
    actions.iter().any(is_catch_up)
}

/// What a view committed must not come to a coordinator of a lower view that adopts another history: a
/// server that takes it in is, durably, lost to all lower views.
#[test]
fn what_a_running_view_committed_is_taken_in_only_under_its_promise() {
    let mut replica = outsider();
    let view = View::new(0, 1, 7, PRIMARY);
    let actions = tell(&mut replica, 10, PRIMARY, running(view));
    let promised = actions.iter().find_map(|action| match action {
        Action::Persist { sequence, durable } => Some((*sequence, durable.promised)),
        _ => None,
    });
    assert_eq!(promised, Some((1, view)), "the promise is written first");
    assert!(!catches_up(&actions));
    assert!(!catches_up(&tell(&mut replica, 20, PRIMARY, running(view))), "not written yet");

    replica.on_persisted(Nanos(25 * MS), 1, &mut Vec::new());
    assert!(catches_up(&tell(&mut replica, 30, PRIMARY, running(view))));

    let lower = View::new(0, 1, 6, CUT_OFF);
    let actions = tell(&mut replica, 40, CUT_OFF, Message::Invite { view: lower });
    let answer = Message::Decline { view: lower, promised: view };
    assert!(actions.contains(&Action::Send { to: CUT_OFF, message: answer }), "{actions:?}");
    assert_eq!(replica.promised(), view);
}
