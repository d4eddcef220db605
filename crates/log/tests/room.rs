//! Room: a full log refuses and overwrites nothing; trimming and unpinning make room again.

mod common;

use common::{Rng, Server, settings};
use harp_log::{LogFull, Room, Verdict};

#[test]
fn log_full_on_disk_refuses_and_keeps_every_record() {
    let mut server = Server::new(settings(32 << 10, 8), 64 << 10);
    let mut rng = Rng(5);
    while server.append(1, &vec![1; rng.below(5000) as usize]).is_some() {
        server.settle();
        let end = server.log.current().end();
        server.log.pin(end);
    }
    assert_eq!(server.log.begin_record(100).unwrap_err(), LogFull::Disk);
    assert_eq!(server.log.room(100), Room::DiskFull);
    assert!(server.log.used_disk_bytes() > server.log.disk_bytes() * 3 / 4);
    let durable = server.durable;
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!((server.log.current().begin(), server.log.current().end()), (1, durable));

    // Room comes back when the head that says so is durable, not before.
    server.trimmed = durable / 2;
    server.log.trim(durable / 2);
    server.log.pin(durable);
    assert_eq!(server.log.begin_record(5000).unwrap_err(), LogFull::Disk);
    server.seal();
    server.settle();
    server.append(1, &[1; 5000]).expect("room again");
    server.settle();
    let recovered = server.power_cut(&mut rng);
    server.go_on(recovered);
}

#[test]
fn log_full_in_memory_refuses_what_would_overwrite_unwritten_records() {
    let mut server = Server::new(settings(32 << 10, 8), 64 << 10);
    while server.append(1, &[3; 900]).is_some() {
        let end = server.log.current().end();
        server.log.pin(end);
    }
    assert_eq!(server.log.begin_record(900).unwrap_err(), LogFull::Ring);
    assert_eq!(server.log.room(900), Room::RingFull);
    assert!(server.log.used_ring_bytes() > 60 << 10);
    let end = server.log.current().end();
    assert!(end > 40);
    assert_eq!(server.log.current().disk_extent(1, 4096), None, "nothing is written yet");
    server.settle();
    assert_eq!(server.durable, end);
    server.check_body(true);
    server.append(1, &[3; 900]).expect("room again");
}

#[test]
fn log_full_in_memory_refuses_what_would_overwrite_pinned_records() {
    let mut server = Server::new(settings(32 << 10, 8), 64 << 10);
    while server.append(1, &[3; 900]).is_some() {
        server.settle();
    }
    assert_eq!(server.log.begin_record(900).unwrap_err(), LogFull::Ring);
    assert!(server.log.record(1).is_some());
    server.log.pin(10);
    for _ in 0..5 {
        server.append(1, &[3; 900]).expect("room again");
    }
    assert!(server.log.record(11).is_some());
}

#[test]
fn log_restart_with_a_full_ring_brings_all_of_it_back() {
    // Nothing that was pinned may be missing: a server applies it from memory.
    for ring in [32 << 10, 64 << 10, 128 << 10] {
        let mut server = Server::new(settings(32 << 10, 8), ring);
        let mut rng = Rng(ring as u64);
        for _ in 0..3 {
            while server.append(1, &vec![4; rng.below(2000) as usize]).is_some() {
                server.settle();
            }
            let pinned = server.pin + 1;
            let recovered = server.restart();
            assert!(recovered.log.current().memory_begin() <= pinned);
            server.go_on(recovered);
            let end = server.log.current().end();
            server.pin(end - 2);
            server.trimmed = end - 2;
            server.log.trim(end - 2);
        }
    }
}

#[test]
fn log_room_promised_is_room_given() {
    // Whatever sizes the records have, what `room` says fits does fit.
    let (mut promised, mut full) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let mut server = Server::new(settings(32 << 10, 6), (32 << 10) << rng.below(3));
        for _ in 0..60 {
            let mut bytes = rng.below(40_000);
            if server.log.room(bytes) != Room::Ok {
                full += 1;
                server.settle();
                let end = server.log.current().end();
                server.log.pin(end);
                server.log.trim(end - end.min(rng.below(20)));
                server.seal();
                server.settle();
                continue;
            }
            promised += 1;
            while bytes > 48 {
                let len = rng.below(bytes.min(20_000));
                let record = (len + 48 + 7) & !7;
                if record > bytes {
                    break;
                }
                bytes -= record;
                let space = server.log.begin_record(len as usize);
                space.expect("promised").fill(0);
                server.log.finish_record(0, 1, 1, len as usize);
                if rng.one_in(4) {
                    server.seal();
                }
            }
        }
    }
    assert!(promised > 1000 && full > 1000, "{promised} {full}");
}

#[test]
fn log_trim_keeps_what_is_not_written() {
    let mut server = Server::new(settings(32 << 10, 8), 64 << 10);
    server.append(1, &[1; 100]).unwrap();
    server.seal();
    server.append(1, &[1; 100]).unwrap();
    server.log.trim(2);
    assert_eq!(server.log.current().begin(), 1, "not written yet");
    server.run_all();
    server.log.trim(2);
    assert_eq!(server.log.current().begin(), 2, "op 2 is in the open batch");
    server.settle();
    server.log.trim(2);
    assert!(server.log.current().is_empty());
    server.trimmed = 2;
    let recovered = server.restart();
    server.go_on(recovered);
    server.append_batches(&[10]);
    assert_eq!(server.durable, 3);
}

#[test]
fn log_laps_and_restarts_without_number() {
    // Sixty laps of the disk, restarted forty times, trimmed as a server would.
    let mut server = Server::new(settings(32 << 10, 6), 64 << 10);
    let mut rng = Rng(11);
    for round in 0..2000 {
        server.append(1, &vec![round as u8; rng.below(9000) as usize]).expect("room");
        server.settle();
        let end = server.log.current().end();
        server.pin(end.saturating_sub(2));
        server.trimmed = end.saturating_sub(5);
        server.log.trim(server.trimmed);
        if round % 50 == 49 {
            let recovered = server.restart();
            assert_eq!(recovered.verdict, Verdict::Intact);
            assert_eq!(recovered.log.current().end(), end);
            server.go_on(recovered);
            server.pin(end - 2);
        }
    }
    assert_eq!(server.durable, 2000);
}

#[test]
fn log_padding_is_zero_whatever_lay_there() {
    let mut server = Server::new(settings(32 << 10, 6), 32 << 10);
    for fill in 1..100 {
        server.append_batches(&[3000 + fill]);
        let end = server.log.current().end();
        server.log.pin(end);
        server.log.trim(end - 1);
    }
    server.append(1, b"short").unwrap();
    server.seal();
    let bytes = server.queue.back().unwrap().1.clone();
    assert_eq!(bytes.len(), 4096);
    assert!(bytes[72 + 56..].iter().all(|byte| *byte == 0));
}
