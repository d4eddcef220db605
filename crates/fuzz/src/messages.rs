//! Messages: what servers say to each other, and the view file, which has the same codec.
//! Owns: nothing but the trial.
//! Source: docs/protocol.md, the message table; docs/disk-format.md, "View file".
//!
//! Input: a frame. It is also tried as a slot of the view file, and as the content of one, its seal put on.

use harp_node::vr::codec::Writer;
use harp_node::vr::{
    Configuration, Durable, Envelope, Incarnation, Message, Nanos, Op, Override, Prepare,
    SERVERS_MAX, ServerId, ServerSet, Shape, View,
};

use crate::memory::within;

/// One input.
pub fn run(input: &[u8]) {
    if let Ok((envelope, records)) = within(0, || Envelope::decode(input)) {
        let mut again = Vec::new();
        envelope.encode(&mut again);
        again.extend_from_slice(records);
        assert_eq!(again.len(), input.len(), "a message has one length");
        can_be_used(&envelope.message);
        assert_eq!(Envelope::decode(&again), Ok((envelope, records)), "it does not come back");
    }
    on_slot(input);
    let mut sealed = Writer::default();
    sealed.bytes(input);
    on_slot(&sealed.sealed());
}

/// Everything in a message can be named, printed, looked up and gone on from.
fn can_be_used(message: &Message) {
    assert!(!format!("{message:?}").is_empty());
    match message {
        Message::Presence(p) => {
            servers_are_known(p.members, &p.configuration);
            views_go_on(&[p.promised, p.formed]);
        }
        Message::Promise { view, report } => {
            servers_are_known(report.members, &report.configuration);
            servers_are_known(report.members, &report.settled);
            views_go_on(&[*view, report.formed]);
        }
        Message::Install(i) => {
            servers_are_known(i.members, &i.configuration);
            assert!(i.holder.index() < SERVERS_MAX);
            views_go_on(&[i.view, i.adopted]);
        }
        Message::Invite { view }
        | Message::Decline { view, .. }
        | Message::Want { view, .. }
        | Message::Grant { view, .. }
        | Message::Installed { view, .. }
        | Message::CatchUp { view, .. }
        | Message::ImageWant { view, .. } => views_go_on(&[*view]),
        Message::ImagePart { view, op, .. } => {
            views_go_on(&[*view]);
            assert!(op.next() > *op);
        }
        Message::BlockWant { lb } | Message::BlockGrant { lb } => assert!(lb.next() > *lb),
        Message::Prepare(p) => {
            views_go_on(&[p.view]);
            assert!(p.last.next() > p.last && p.first.next() > p.first);
        }
        Message::PrepareOk(p) => {
            views_go_on(&[p.view]);
            assert!(p.received.next() > p.received);
        }
        Message::Past(p) => {
            views_go_on(&[p.view]);
            assert!(p.cp.next() > p.cp && p.last.next() > p.last);
        }
    }
}

fn servers_are_known(members: ServerSet, configuration: &Configuration) {
    for server in members.iter().chain(configuration.needs_image.iter()) {
        assert!(configuration.disks.get(server.index()).is_some(), "{server} has no place");
    }
    let primary = Shape { n: 1 }.primary_of(members);
    assert!(primary.is_none_or(|primary| members.contains(primary)));
}

fn views_go_on(views: &[View]) {
    for view in views {
        assert!(view.coordinator().index() < SERVERS_MAX);
        assert!(view.next(ServerId(0)) > *view);
        assert!(view.to_string().ends_with(view.coordinator().letter()));
    }
}

fn on_slot(slot: &[u8]) {
    let newer = within(0, || Durable::is_newer(slot));
    let Ok((durable, sequence)) = within(0, || Durable::decode(slot)) else {
        assert_eq!(Durable::newest([Some(slot), None]), None);
        return;
    };
    assert!(!newer, "what this version reads is not of a newer one");
    assert_eq!(Durable::decode(&durable.encode(sequence)), Ok((durable, sequence)));
    assert_eq!(Durable::newest([None, Some(slot)]), Some((durable, sequence)));
    servers_are_known(durable.members, &durable.configuration);
    views_go_on(&[durable.promised, durable.formed]);
    assert!(durable.promised >= durable.formed);
    assert!(durable.incarnation.start < 1 << 35, "the log takes no later start");
}

/// A message of each number, one with records, and a view file.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (1..=16)
        .map(|number| {
            let mut frame = vec![0; 520];
            frame[33] = number;
            frame
        })
        .collect();
    let incarnation = Incarnation { disk: 8, start: 1 };
    let view = View::new(0, 1, 7, ServerId(0));
    let prepare = Prepare {
        view,
        first: Op(5),
        last: Op(6),
        cp: Op(4),
        ap: Op(4),
        glb: Op(2),
        all_formed: true,
        sent: Nanos(77),
        stalled: 0,
    };
    let envelope = Envelope {
        from: ServerId(0),
        from_incarnation: incarnation,
        to_incarnation: incarnation,
        message: Message::Prepare(prepare),
    };
    let mut frame = Vec::new();
    envelope.encode(&mut frame);
    frame.extend_from_slice(b"records");
    seeds.push(frame);
    let durable = Durable {
        group: [7; 16],
        incarnation,
        promised: view,
        formed: view,
        members: ServerSet(3),
        log_void: false,
        configuration: Configuration {
            disks: [1, 2, 3, 0, 0, 0, 0],
            needs_image: ServerSet::EMPTY,
            overridden: Override::NONE,
        },
        settled: Op(3),
        memory: 5,
        branch: View::NONE,
        learned: View::NONE,
    };
    let slot = durable.encode(9);
    seeds.push(slot[8..].to_vec());
    seeds.push(slot);
    seeds
}
