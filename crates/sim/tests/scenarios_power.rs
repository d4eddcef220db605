//! Scenarios of groups whose records count in memory (`ups`): one story each, n = 1 unless it says so.
//! Servers: A the designated primary, B the designated backup, C the witness.

use harp_node::fs::request::Status;
use harp_node::{BootError, Node, Settings, Suspects};
use harp_sim::profile::{MICRO, MILLI};
use harp_sim::script::{A, B, C, D, E, Kind, Stage, create, lookup};

/// Creates the files with these numbers, one after the other.
fn create_all(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    numbers.for_each(|number| {
        stage.create(number);
    });
}

/// All these files are there.
fn all_there(stage: &mut Stage, numbers: std::ops::Range<u8>) {
    for number in numbers {
        assert_eq!(stage.call(1, lookup(number)).0, Status::Ok, "file {number}");
    }
}

/// The machines of these servers write their logs out and go off; then they stay so.
fn go_off(stage: &mut Stage, servers: &[harp_node::vr::ServerId]) {
    for server in servers {
        stage.world.hosts[server.index()].stays_down = true;
        stage.world.end(*server, true);
    }
    stage.until("all logs are written out", |world| {
        servers.iter().all(|server| !world.hosts[server.index()].is_up())
    });
}

/// Soft crash of all servers in the middle of work: the memory is there, and nothing was on a disk yet.
/// Every acknowledged operation is there.
#[test]
fn power_all_processes_die_at_once_every_acknowledged_op_is_there() {
    for after in [0, 50, 120, 200, 300, 450, 700, 1500] {
        let mut stage = Stage::with_ups(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..4);
        let numbers: Vec<u32> = (4..12).map(|number| stage.ask(0, create(number))).collect();
        stage.pass(after * MICRO);
        [A, B, C].into_iter().for_each(|server| stage.crash(server));
        stage.pass(MILLI);
        [C, B, A].into_iter().for_each(|server| stage.restart(server));
        for number in numbers {
            assert_eq!(stage.answer(number).0, Status::Ok, "made once, killed after {after} us");
        }
        all_there(&mut stage, 0..12);
        stage.reckon();
    }
}

/// L11. All lose power, all logs are written out, at any moment of their work.
/// They resume, and nothing is lost.
#[test]
fn power_all_machines_go_off_written_out_nothing_is_lost() {
    for after in [0, 80, 200, 400, 900] {
        let mut stage = Stage::with_ups(1);
        stage.until_serves(&[A, B]);
        create_all(&mut stage, 0..4);
        let numbers: Vec<u32> = (4..12).map(|number| stage.ask(0, create(number))).collect();
        stage.pass(after * MICRO);
        go_off(&mut stage, &[A, B, C]);
        [C, B, A].into_iter().for_each(|server| stage.restart(server));
        for number in numbers {
            assert_eq!(stage.answer(number).0, Status::Ok, "made once, off after {after} us");
        }
        all_there(&mut stage, 0..12);
        stage.reckon();
    }
}

/// A member starts with another segment length than its log has, by a mistake in the settings. It is refused, and
/// nothing has changed: with the right one its log counts, from memory or as it was written out.
#[test]
fn power_a_start_with_other_segments_changes_nothing() {
    for written_out in [false, true] {
        let mut stage = Stage::with_ups(1);
        stage.until_serves(&[A, B]);
        stage.crash(A);
        stage.world.hosts[A.index()].stays_down = true;
        stage.until_serves(&[B, C]);
        create_all(&mut stage, 0..4);
        if written_out {
            go_off(&mut stage, &[B, C]);
        } else {
            [B, C].into_iter().for_each(|server| stage.crash(server));
        }
        let settings = stage.world.profile.settings(C);
        let wrong = Settings { segment_bytes: settings.segment_bytes / 2, ..settings };
        let now = stage.world.now;
        let host = &mut stage.world.hosts[C.index()];
        let (ring, clock) = (host.ring.clone(), &host.clock);
        let started =
            Node::boot(wrong, &mut host.disk, None, ring, Suspects::default(), || clock.read(now));
        assert!(matches!(started, Err(BootError::Segments { .. })));
        stage.restart(C);
        stage.until("C is up", |world| world.pulse(C).is_some());
        let c = stage.pulse(C);
        assert!(c.complete && c.log_end >= 4, "its log counts (written out: {written_out})");
        stage.restart(B);
        stage.until_serves(&[B, C]);
        all_there(&mut stage, 0..4);
        stage.reckon();
    }
}

/// L12, n = 2. All lose power, and the write-out of the third copy is cut short.
/// It has amnesia and keeps its views; the view forms through the others, and nothing is lost.
#[test]
fn power_one_write_out_is_torn_the_others_form_the_view() {
    let mut stage = Stage::with_ups(2);
    stage.until_serves(&[A, B, C]);
    create_all(&mut stage, 0..8);
    stage.world.hosts[C.index()].disk_slowness = 1000;
    for server in [A, B, C, D, E] {
        stage.world.hosts[server.index()].stays_down = true;
        stage.world.end(server, true);
    }
    stage.until("all others are written out", |world| {
        [A, B, D, E].iter().all(|server| !world.hosts[server.index()].is_up())
    });
    assert!(stage.world.hosts[C.index()].is_up(), "still writing");
    stage.power_off(C);
    stage.world.hosts[C.index()].disk_slowness = 1;
    [A, B, C, D, E].into_iter().for_each(|server| stage.restart(server));
    stage.until_serves(&[A, B, C]);
    all_there(&mut stage, 0..8);
    stage.reckon();
}

/// L24. Written out clean, resumed, more is acknowledged, then the machine of the backup crashes.
/// The old mark is void: it has amnesia, not a log that ends where the mark says, and votes none.
#[test]
fn power_mark_of_an_earlier_write_out_is_void_after_a_machine_crash() {
    let mut stage = Stage::with_ups(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..10);
    go_off(&mut stage, &[A, B, C]);
    [A, B, C].into_iter().for_each(|server| stage.restart(server));
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 10..20);
    stage.crash(A);
    stage.world.hosts[A.index()].stays_down = true;
    stage.world.hosts[C.index()].stays_down = true;
    stage.crash(C);
    stage.power_off(B);
    stage.restart(B);
    stage.restart(C);
    stage.settle();
    assert!(stage.world.serving().is_none(), "B's log is gone, and C has none of that view");
    assert!(!stage.pulse(B).complete, "amnesia, not a log that ends at the mark");
    stage.restart(A);
    stage.until_serves(&[A, B]);
    all_there(&mut stage, 0..20);
    stage.reckon();
}

/// All machines lose power and none wrote out: more than was promised. Nobody has the log of the view.
/// The group refuses, and says whom to bring back; it does not come up with less than it acknowledged.
#[test]
fn power_all_memory_is_gone_the_group_refuses() {
    let mut stage = Stage::with_ups(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..6);
    [A, B, C].into_iter().for_each(|server| stage.power_off(server));
    [A, B, C].into_iter().for_each(|server| stage.restart(server));
    stage.settle();
    assert!(stage.world.serving().is_none());
    let states = stage.world.states();
    assert!(states.contains("none of the servers at hand has its log"), "{states}");
}

/// L36. The primary alone formed a view and then lost its memory, before the other member installed it.
/// Backup and witness suffice: one server's amnesia does not block the group.
#[test]
fn power_amnesia_of_the_only_server_that_formed_a_view_does_not_block() {
    let mut stage = Stage::with_ups(1);
    stage.until_serves(&[A, B]);
    create_all(&mut stage, 0..3);
    let view = stage.pulse(A).formed;
    stage.lose(A, C, Kind::Install);
    stage.crash(B);
    stage.world.hosts[B.index()].stays_down = true;
    stage.until("A forms a view alone", |world| {
        world.durable(A).is_some_and(|durable| durable.formed > view)
    });
    stage.power_off(A);
    stage.world.hosts[A.index()].stays_down = true;
    stage.no_rules();
    stage.restart(B);
    stage.until_serves(&[B, C]);
    all_there(&mut stage, 0..3);
    stage.reckon();
}

/// The mains flap: on battery, back, on battery again, then low while work goes on.
/// Service goes on until the last, and nothing is lost.
#[test]
fn power_mains_flap_service_goes_on_until_the_battery_is_low() {
    let mut stage = Stage::with_ups(1);
    stage.until_serves(&[A, B]);
    for round in 0..4 {
        [A, B, C].into_iter().for_each(|server| stage.world.on_battery(server, round % 2 == 0));
        create_all(&mut stage, 4 * round..4 * round + 4);
    }
    let number = stage.ask(0, create(16));
    go_off(&mut stage, &[A, B, C]);
    [A, B, C].into_iter().for_each(|server| stage.restart(server));
    assert_eq!(stage.answer(number).0, Status::Ok);
    all_there(&mut stage, 0..17);
    stage.reckon();
}
