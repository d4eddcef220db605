//! Replacing a log: before its head is durable the old one votes, after it the new one.

mod common;

use common::{Rng, Server, settings};
use harp_log::{AppendError, BadRecord, DiskCommand, LogFull, RawRecords, Ring, SlotFile, Verdict};

fn small() -> Server {
    Server::new(settings(32 << 10, 8), 64 << 10)
}

#[test]
fn log_swap_interrupted_after_any_command_is_all_or_nothing() {
    // Commands of the swap: the staged log's last batch, then the head to one slot and to the other.
    for (done, new) in [(0, false), (1, false), (2, true), (3, true)] {
        for seed in 0..20 {
            let mut server = small();
            server.append_batches(&[300, 300, 300]);
            server.tag(1);
            server.run_all();
            server.stage(2, true);
            server.append_batches(&[100]);
            server.append(2, b"the last one").unwrap();
            server.swap(2);
            assert_eq!(server.queue.len(), 3);
            (0..done).for_each(|_| assert!(server.run_one()));
            assert_eq!(server.log.current().tag(), Some(if done == 3 { 2 } else { 1 }));
            server.queue.clear();
            let recovered = server.power_cut(&mut Rng(seed));
            server.go_on(recovered);
            let log = server.log.current();
            let expected = if new { (2, 3, Some(2)) } else { (1, 3, Some(1)) };
            assert_eq!((log.begin(), log.end(), log.tag()), expected, "after {done} commands");
            assert_eq!(log.members(), if new { 3 } else { 5 });
            assert_eq!(server.log.extra(), &[if new { 7 } else { 9 }; harp_log::HEAD_EXTRA_BYTES]);
        }
    }
}

#[test]
fn log_staged_is_forgotten_by_a_restart() {
    let mut server = small();
    server.append_batches(&[300]);
    server.stage(1, true);
    server.append_batches(&[10, 10, 10]);
    let recovered = server.restart();
    server.go_on(recovered);
    assert!(server.log.staged().is_none());
    assert_eq!(server.log.current().end(), 1);
    server.append_batches(&[10]);
    assert_eq!(server.durable, 2);
}

#[test]
fn log_swap_under_way_cannot_be_dropped() {
    let mut server = small();
    server.stage(1, true);
    server.append(1, b"x").unwrap();
    server.swap(1);
    assert!(server.log.swapping() && !server.log.drop_staged() && !server.stage(1, true));
    server.append(1, b"of the new view").unwrap();
    server.run_all();
    assert!(!server.log.swapping() && server.log.drop_staged());
    server.settle();
    assert_eq!((server.log.current().end(), server.durable), (2, 2));
}

#[test]
fn log_swap_of_an_empty_log_after_a_dropped_one_writes_no_batch() {
    let mut server = small();
    server.append_batches(&[300]);
    server.stage(1, true);
    server.append_batches(&[100]);
    server.drop_staged();
    server.stage(2, true);
    server.swap(4);
    let heads = |command: &DiskCommand| {
        matches!(command, DiskCommand::Slot { file: SlotFile::LogHead, .. })
    };
    assert!(server.queue.iter().all(|(command, _)| heads(command)));
    server.run_all();
    let recovered = server.restart();
    server.go_on(recovered);
    assert!(server.log.current().is_empty());
    assert_eq!((server.log.current().begin(), server.log.current().tag()), (2, Some(4)));
}

#[test]
fn log_in_memory_keeps_its_newest_and_can_be_put_on_disk() {
    // A standby witness hears far more than memory and disk hold, then becomes a member.
    let mut server = small();
    server.append_batches(&[300]);
    server.log.trim(1);
    server.trimmed = 1;
    server.stage(2, false);
    for op in 2..600 {
        server.append(1, &[op as u8; 1500]).expect("the oldest make room");
        server.pin(op);
        assert!(!server.seal(), "nothing is written");
    }
    let staged = server.log.staged().unwrap();
    assert!(staged.begin() > 500 && staged.end() == 599 && staged.durable() < staged.begin());
    assert!(server.swap(3));
    server.run_all();
    server.check_body(true);
    let recovered = server.power_cut(&mut Rng(1));
    server.trimmed = 599;
    server.go_on(recovered);
    assert_eq!((server.log.current().end(), server.log.current().tag()), (599, Some(3)));
    server.append_batches(&[1000; 10]);
}

#[test]
fn log_put_on_disk_over_an_empty_one_leaves_that_intact() {
    // The staged log's segments are those that the old head covers; the old log is empty by now.
    for seed in 0..20 {
        let mut server = small();
        server.append_batches(&[3000; 20]);
        server.log.trim(20);
        server.trimmed = 20;
        server.stage(21, false);
        for op in 21..600 {
            server.append(1, &[op as u8; 1500]).unwrap();
            server.log.pin(op);
        }
        assert!(server.persist());
        server.run_all();
        let mut rng = Rng(seed);
        let recovered = server.power_cut(&mut rng);
        assert_eq!(recovered.verdict, Verdict::Intact);
        let log = recovered.log.current();
        assert!(log.is_empty() && log.begin() == 21);
        assert!(log.begin_chain().is_some());
    }
}

#[test]
fn log_in_memory_stays_there_while_the_disk_is_needed() {
    let mut server = small();
    server.append_batches(&[300]);
    server.stage(2, false);
    for op in 2..600 {
        server.append(1, &[op as u8; 1500]).unwrap();
        server.pin(op);
    }
    assert!(!server.persist() && !server.swap(3), "op 1 is not trimmed");
    server.drop_staged();
    server.append_batches(&[300]);
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!(server.durable, 2);
}

#[test]
fn log_in_memory_pins_whole_batches() {
    let mut server = small();
    server.stage(1, false);
    for op in 1..=20 {
        server.append(1, &[op as u8; 1500]).unwrap();
    }
    server.pin(10);
    let mut op = 20;
    while server.append(1, &[op as u8; 1500]).is_some() {
        op += 1;
    }
    let staged = server.log.staged().unwrap();
    assert!(op > 30 && staged.begin() <= 11 && staged.record(11).is_some());
    assert!(server.swap(2));
    server.run_all();
    server.check_body(true);
}

#[test]
fn log_records_of_a_peer_are_appended_byte_for_byte_or_refused() {
    let mut primary = small();
    primary.append_batches(&[300, 0, 5000]);
    let mut ranges = Vec::new();
    assert_eq!(primary.log.ranges(1, 1 << 20, &mut ranges), Some(3));
    assert_eq!(ranges.len(), 3, "one for each batch");
    let ring: &Ring = primary.log.ring();
    let run: Vec<u8> = ranges.iter().flat_map(|(at, len)| ring.bytes(*at, *len).to_vec()).collect();

    let mut backup = small();
    for record in RawRecords::new(&run) {
        let record = record.unwrap();
        let op = backup.log.append_raw(&record).unwrap();
        assert_eq!(op, record.op());
        let again = backup.log.append_raw(&record).unwrap_err();
        assert_eq!(again, AppendError::Bad(BadRecord::Op { expected: op + 1, found: op }));
    }
    assert_eq!(backup.log.current().end_chain(), primary.log.current().end_chain());
    assert_eq!(backup.log.record(3).unwrap().body, primary.log.record(3).unwrap().body);

    // Another history: the record before is not ours.
    let mut other = small();
    other.append(9, b"something else").unwrap();
    let second = RawRecords::new(&run).nth(1).unwrap().unwrap();
    let refused = other.log.append_raw(&second).unwrap_err();
    assert!(matches!(refused, AppendError::Bad(BadRecord::Chain { .. })), "{refused:?}");

    // A log that begins at an image does not know the record before.
    let mut learner = small();
    learner.stage(2, true);
    assert_eq!(learner.log.append_raw(&second).unwrap(), 2);
}

#[test]
fn log_reset_after_amnesia_frees_the_disk() {
    let mut server = small();
    while server.append(1, &[0; 3000]).is_some() {
        server.settle();
        let end = server.log.current().end();
        server.log.pin(end);
    }
    assert_eq!(server.log.begin_record(3000).unwrap_err(), LogFull::Disk);
    server.log.reset(500, &mut server.out);
    server.run_all();
    (server.generation, server.tag) = (server.log.current().generation(), None);
    server.append_batches(&[3000; 20]);
    let recovered = server.restart();
    assert_eq!(recovered.verdict, Verdict::Intact);
    server.go_on(recovered);
    assert_eq!((server.log.current().begin(), server.durable), (500, 519));
}
