//! A server that starts again and finds in its log what its view file knows already.
//! Owns: one server as it starts.
//! Source: docs/protocol.md, rule 3.

mod common;

use common::{MS, durable, settings};
use harp_vr::*;

const SHAPE: Shape = Shape { n: 1 };
const ME: ServerId = ServerId(0);
const WITNESS: ServerId = ServerId(2);
const FIRST_DISK: u64 = 12;
const SECOND_DISK: u64 = 22;

/// What a server finds that formed a view with a log up to op 222, and knows of all that is in it.
fn started() -> (Start, Configuration) {
    let mut disks = [0; SERVERS_MAX];
    disks[..3].copy_from_slice(&[10, 11, SECOND_DISK]);
    let configuration =
        Configuration { disks, needs_image: ServerSet::EMPTY, overridden: Override::NONE };
    let view = View::new(0, 1, 295, ME);
    let members = SHAPE.copies().collect();
    let incarnation = Incarnation { disk: 10, start: 2 };
    let durable = durable(SHAPE, incarnation, view, configuration);
    let durable = Durable { settled: Op(222), ..durable };
    let start = Start {
        durable,
        persist_sequence: 0,
        log: LogFacts { begin: Op(141), end: Op(222), durable: Op(222) },
        tag: Some(view),
        tag_members: members,
        tag_configuration: configuration,
        cp: Op(221),
        image: Some(Op(221)),
        image_whole: true,
    };
    (start, configuration)
}

/// The witness's disk was admitted twice, by ops 150 and 222, and this server formed a view with a log up to 222. It
/// starts again, and of its log knows only that 221 is committed: the first admission is no news to it.
#[test]
fn restart_old_change_in_the_log_does_not_undo_a_newer_one_that_is_settled() {
    let (start, configuration) = started();
    let mut replica = Replica::new(settings(SHAPE, ME), start, Nanos(MS));
    for (op, disk) in [(150, FIRST_DISK), (222, SECOND_DISK)] {
        replica.on_configuration(Op(op), ConfigurationChange::Admit { server: WITNESS, disk });
    }
    replica.tick(Nanos(2 * MS), &mut Vec::new());
    assert_eq!(replica.durable().configuration, configuration);
    assert_eq!(*replica.configuration(), configuration);
}

/// A copy whose log has a change at op 223 makes its image exact at 222: the change is not in it.
#[test]
fn restart_an_image_has_the_configuration_of_its_op_and_not_of_the_log_s_end() {
    let (start, configuration) = started();
    let mut replica = Replica::new(settings(SHAPE, ME), start, Nanos(MS));
    let change = ConfigurationChange::Admit { server: WITNESS, disk: 32 };
    replica.on_configuration(Op(223), change);
    assert_eq!(*replica.configuration_at(Op(222)), configuration);
    assert_eq!(replica.configuration_at(Op(223)).disks[WITNESS.index()], 32);
}
