//! A log in memory that outlives its process: what was appended is found again after any end of the process, and
//! after the loss of the memory only if it was written out whole.

mod common;

use common::{DISK, Rng, Server, memory, settings};
use harp_log::{AmnesiaWhy, DiskCommand, Evidence, Recovered, SlotFile, Verdict};

const SEGMENT: u64 = 32 << 10;

/// A server's process ends in the middle of whatever it was about, and the next one looks at the memory.
fn killed(server: &mut Server, rng: &mut Rng) -> Recovered {
    if rng.one_in(3) {
        // In the middle of a record.
        if let Ok(space) = server.log.begin_record(600) {
            space.fill(rng.next() as u8);
        }
    }
    server.restart()
}

/// One random life, with kills between and within its steps.
fn world(seed: u64, steps: u32) -> [u64; 3] {
    let mut rng = Rng(seed);
    let segments = 6 + rng.below(6);
    let ring_bytes = (SEGMENT as usize) << rng.below(3);
    let mut server = Server::over(memory(ring_bytes, 1), settings(SEGMENT, segments));
    let (mut restarts, mut view, mut full, mut swaps) = (0, 1, 0, 0);
    for _ in 0..steps {
        match rng.below(100) {
            0..50 => {
                let long = if rng.one_in(20) { 30_000 } else { 700 };
                let body = vec![rng.next() as u8; rng.below(long) as usize];
                full += server.append(view, &body).is_none() as u64;
            }
            50..62 => drop(server.seal()),
            62..80 => drop(server.run_one()),
            80..86 => {
                let log = server.log.growing();
                let op = log.begin() + rng.below(log.end() + 2 - log.begin());
                server.pin(op.min(log.end()).max(server.pin));
            }
            86..89 => {
                let log = server.log.current();
                server.trimmed = server.trimmed.max(log.begin().max(log.durable()) - 1);
                server.log.trim(server.trimmed);
            }
            89 => drop(server.persist()),
            90 => {
                let begin = server.log.current().end() + 1;
                server.stage(begin, rng.one_in(2));
            }
            91 => server.drop_staged(),
            92 => {
                if server.log.staged().is_some() && !server.log.swapping() {
                    view += 1;
                    swaps += server.swap(view) as u64;
                }
            }
            93 => {
                if !server.log.swapping() {
                    view += 1;
                    server.tag(view);
                }
            }
            94 => server.run_all(),
            95 => server.check_body(false),
            _ => {
                let recovered = killed(&mut server, &mut rng);
                server.go_on(recovered);
                restarts += 1;
            }
        }
        server.check_pin();
    }
    [restarts, full, swaps]
}

#[test]
fn memory_process_is_killed_at_any_moment_every_record_is_there() {
    let mut seen = [0; 3];
    for seed in 0..300 {
        let counts = world(seed, 600);
        seen.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    assert!(seen.iter().all(|count| *count > 50), "restarts, full logs, swaps: {seen:?}");
}

/// Writes the log out; the last `left` commands are not carried out.
fn write_out(server: &mut Server, left: usize) {
    server.run_all();
    let mut commands = Vec::new();
    let sequence = server.log.write_out(DISK, server.durable, &mut commands);
    sequence.expect("no head is under way");
    let done = commands.len().saturating_sub(left);
    for command in commands.drain(..done) {
        let done = command.run(&mut server.disk, server.log.ring());
        server.log.on_disk(&done);
    }
}

fn after_power_cut(server: &mut Server, start: u64) -> Recovered {
    server.disk.power_cut(&mut Rng(5));
    let ring = memory(server.ring_bytes, server.settings.start + 100);
    server.restart_by(ring, Evidence::CleanMark { disk: DISK, start })
}

fn with_records() -> Server {
    let mut server = Server::over(memory(4 * SEGMENT as usize, 1), settings(SEGMENT, 8));
    for op in 1..=10u8 {
        server.append(1, &vec![op; 700]).expect("room");
        if op == 4 {
            server.settle();
        }
    }
    server
}

#[test]
fn memory_gone_and_log_written_out_it_is_intact() {
    let mut server = with_records();
    write_out(&mut server, 0);
    let start = server.settings.start;
    let recovered = after_power_cut(&mut server, start);
    assert_eq!(recovered.log.current().end(), 10);
    server.go_on(recovered);
    assert!(server.append(2, b"more").is_some());
}

/// The batch that named the commit point was left out by the next recovery, and taken for the open one's by that after it.
#[test]
fn memory_an_empty_batch_behind_the_records_is_not_taken_for_the_open_one() {
    for bodies in [1, 40] {
        let mut server = with_records();
        write_out(&mut server, 0);
        let start = server.settings.start;
        let recovered = after_power_cut(&mut server, start);
        server.go_on(recovered);
        let recovered = server.restart();
        server.go_on(recovered);
        for n in 0..bodies {
            server.append(2, &[n; 900]).expect("room");
        }
        let recovered = server.restart();
        assert_eq!(recovered.verdict, Verdict::Intact, "{bodies} records in the open batch");
        server.go_on(recovered);
        server.check_body(false);
    }
}

#[test]
fn memory_gone_and_write_out_cut_short_it_is_amnesia() {
    let commands = {
        let mut server = with_records();
        let mut commands = Vec::new();
        server.log.write_out(DISK, 0, &mut commands).expect("no head is under way");
        commands
    };
    let is_head = |c: &DiskCommand| matches!(c, DiskCommand::Slot { file: SlotFile::LogHead, .. });
    assert!(commands.len() > 2 && commands[commands.len() - 2..].iter().all(is_head));
    // With one of the two slots the mark stands: all that it speaks of was synced before.
    for left in 0..=commands.len() {
        let mut server = with_records();
        write_out(&mut server, left);
        let start = server.settings.start;
        let verdict = after_power_cut(&mut server, start).verdict;
        match left {
            0 | 1 => assert_eq!(verdict, Verdict::Intact, "{left} left"),
            _ => assert_eq!(verdict, Verdict::Amnesia(AmnesiaWhy::NotWrittenOut), "{left} left"),
        }
    }
}

#[test]
fn memory_gone_the_mark_of_an_earlier_start_or_another_disk_is_void() {
    let mut server = with_records();
    write_out(&mut server, 0);
    let ring = || memory(4 * SEGMENT as usize, 9);
    for (disk, start) in [(DISK, 2), (DISK, 0), (DISK + 1, 1)] {
        let recovered = server.restart_by(ring(), Evidence::CleanMark { disk, start });
        assert_eq!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::NotWrittenOut));
    }
    let recovered = server.restart_by(ring(), Evidence::CleanMark { disk: DISK, start: 1 });
    server.go_on(recovered);
    server.append(2, b"of a later start").expect("room");
    server.tag(2);
    server.settle();
    let recovered = after_power_cut(&mut server, 1);
    assert_eq!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::NotWrittenOut));
}

#[test]
fn memory_gone_and_a_written_out_batch_lost_it_is_amnesia() {
    let mut server = with_records();
    write_out(&mut server, 0);
    let end = server.log.used_disk_bytes();
    server.disk.zero(end - 4096..end);
    let recovered = after_power_cut(&mut server, 1);
    assert!(matches!(
        recovered.verdict,
        Verdict::Amnesia(AmnesiaWhy::Damaged { .. } | AmnesiaWhy::EndsElsewhere { .. })
    ));
}

#[test]
fn memory_that_lost_a_record_is_amnesia() {
    for op in 1..=10 {
        let mut server = with_records();
        let at = server.log.record(op).expect("in memory").at;
        // SAFETY: nobody reads it meanwhile.
        let bytes = unsafe { server.log.ring().bytes_mut(at, 100) };
        bytes[60] ^= 1;
        let recovered = server.restart();
        assert!(
            matches!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::EndsElsewhere { .. })),
            "op {op}: {:?}",
            recovered.verdict
        );
    }
}

#[test]
fn memory_of_another_log_than_the_heads_is_amnesia() {
    let mut server = with_records();
    server.settle();
    let other = with_records();
    // The same generation would be found; one that was reset is not.
    let mut commands = Vec::new();
    server.log.reset(11, &mut commands);
    for command in commands {
        let done = command.run(&mut server.disk, server.log.ring());
        server.log.on_disk(&done);
    }
    let ring = other.log.ring().clone();
    let recovered = server.restart_by(ring, Evidence::Memory);
    assert_eq!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::NotInMemory));
}

/// A checkpoint may still read the records of a staged log while the current one is written out.
#[test]
fn memory_of_a_staged_log_stays_as_it_is_while_the_current_one_is_written_out() {
    let mut server = with_records();
    server.settle();
    assert!(server.stage(11, true));
    let first = server.log.growing().begin();
    let mut op = first;
    // Around the ring, up to what lies behind the current log's end.
    while server.log.growing().memory_begin() <= first + 20 {
        match server.append(2, &[op as u8; 900]) {
            Some(appended) => op = appended,
            None => server.pin(op - 5),
        }
        server.settle();
    }
    let bodies = |server: &Server| -> Vec<Vec<u8>> {
        let log = server.log.growing();
        let held = log.memory_begin()..=log.end();
        held.map(|op| server.log.record(op).expect("in memory").body.to_vec()).collect()
    };
    let before = bodies(&server);
    server.durable = op;
    write_out(&mut server, 0);
    assert!(bodies(&server) == before);
    let start = server.settings.start;
    let recovered = after_power_cut(&mut server, start);
    assert_eq!((recovered.verdict, recovered.log.current().end()), (Verdict::Intact, 10));
}
