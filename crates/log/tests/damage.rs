//! Damage on the medium: below a mark it is noticed as amnesia, above it cut off as a torn tail.

mod common;

use common::{Rng, SECTOR, Server, settings};
use harp_log::{
    AmnesiaWhy, DiskError, LogDisk, LogPos, LogSettings, Ring, SlotFile, Verdict, recover,
};

fn small() -> Server {
    Server::new(settings(32 << 10, 8), 64 << 10)
}

fn damaged(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Amnesia(AmnesiaWhy::Damaged { .. }))
}

#[test]
fn log_damage_below_a_mark_is_amnesia_wherever_it_hits() {
    // Several segments of batches, the last one followed by an empty batch that marks it.
    let build = || {
        let mut server = small();
        server.append_batches(&[300; 10]);
        server.append_batches(&[9000, 20, 15_000, 15_000, 100]);
        assert!(server.log.mark_due(0) && server.seal_mark());
        server.run_all();
        assert!(!server.log.mark_due(0));
        server
    };
    let end = build().end_pos();
    let (mut noticed, mut harmless) = (0, 0);
    for sector in (0..end - 4096).step_by(SECTOR) {
        let mut server = build();
        server.disk.flip(sector + 20);
        let recovered = server.restart();
        if damaged(&recovered.verdict) {
            noticed += 1;
        } else {
            // Padding, or the place that a long record skipped.
            server.go_on(recovered);
            assert_eq!(server.durable, 15);
            harmless += 1;
        }
    }
    assert!(noticed >= 85 && harmless > 0, "{noticed} {harmless}");
}

#[test]
fn log_damage_above_every_mark_is_a_torn_tail() {
    let mut server = small();
    server.append_batches(&[300, 300, 300]);
    let end = server.end_pos();
    server.disk.flip(end - 4096 + 100);
    let recovered = server.restart();
    assert_eq!(recovered.end, LogPos(end - 4096));
    // What was durable but not marked cannot be told from a torn write: the model shrinks.
    server.durable = 2;
    server.go_on(recovered);
    assert_eq!(server.log.current().end(), 2);
    server.append_batches(&[500]);
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!(server.durable, 3);
}

#[test]
fn log_the_next_batch_marks_the_one_before() {
    let mut server = small();
    server.append_batches(&[300, 300, 300]);
    let end = server.end_pos();
    server.disk.flip(end - 8192 + 100);
    assert!(damaged(&server.restart().verdict));
}

#[test]
fn log_damage_across_a_segments_start_is_found_behind_it() {
    // The damage takes the end of one segment and the start of the next; a mark lies behind it.
    let mut server = small();
    server.append_batches(&[3000; 12]);
    let end = server.end_pos();
    assert!(end >= 48 << 10);
    server.disk.zero((32 << 10) - 4096..(32 << 10) + 4096);
    assert!(damaged(&server.restart().verdict));
}

#[test]
fn log_damage_to_a_segment_that_one_sync_covered_with_more_is_found_behind_both() {
    // A batch of a whole segment, and another at the next one's start, become durable at once: the mark of both is below
    // them. The batch that marks them stands in the middle of a segment.
    let mut server = small();
    server.append_batches(&[300]);
    server.append(1, &[1; (32 << 10) - 600]).expect("room");
    server.append(1, &[2; 300]).expect("room");
    server.settle();
    server.append_batches(&[300]);
    assert_eq!(server.end_pos(), (64 << 10) + 8192);
    server.disk.flip((32 << 10) + 100);
    assert!(damaged(&server.restart().verdict));
}

#[test]
fn log_a_lost_segment_is_amnesia() {
    let mut server = small();
    server.append_batches(&[3000; 30]);
    server.disk.zero(32 << 10..64 << 10);
    assert!(damaged(&server.restart().verdict));
    server.disk.fail_reads = true;
    assert!(matches!(server.restart().verdict, Verdict::Amnesia(AmnesiaWhy::Unreadable(_))));
}

#[test]
fn log_a_missing_head_is_amnesia_never_an_empty_log() {
    let mut server = small();
    server.append_batches(&[300]);
    *server.disk.slots() = [None, None];
    let recovered = server.restart();
    assert_eq!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::HeadMissing));

    // The way on is a reset, which is durable before anything is appended.
    server.log = recovered.log;
    server.log.reset(41, &mut server.out);
    server.run_all();
    (server.generation, server.tag) = (server.log.current().generation(), None);
    server.append_batches(&[300, 10]);
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!((server.log.current().begin(), server.log.current().end()), (41, 42));
    assert_eq!(server.log.current().tag(), None);
}

#[test]
fn log_of_a_later_start_is_amnesia_and_its_batches_are_never_taken_for_new_ones() {
    // A view file from a backup: the start counter goes back, so that new batches would not follow old ones.
    let mut server = small();
    server.settings.start = 7;
    server.append_batches(&[300]);
    let recovered = server.restart();
    server.go_on(recovered);
    server.append_batches(&[300, 300]);
    for (found, start) in [(8, 7), (8, 3)] {
        server.settings.start = start - 1;
        let recovered = server.restart();
        let later = AmnesiaWhy::LaterStart { found, start };
        assert_eq!(recovered.verdict, Verdict::Amnesia(later));
        server.log = recovered.log;
    }
    // The log made anew is not one that was there before, though this start may have numbered one alike.
    let old = server.generation;
    server.log.reset(1, &mut server.out);
    server.run_all();
    assert!(server.log.current().generation() > old);
}

#[test]
fn log_one_damaged_head_slot_takes_nothing_back() {
    for slot in 0..2 {
        let mut server = small();
        server.append_batches(&[300]);
        server.stage(2, true);
        server.append_batches(&[300, 300]);
        server.swap(7);
        server.run_all();
        assert_eq!(server.tag, Some(7));
        server.disk.slots()[slot].as_mut().unwrap()[40] ^= 1;
        let recovered = server.restart();
        server.go_on(recovered);
        assert_eq!((server.log.current().begin(), server.durable), (2, 3));

        // Recovery mended the slot: now the other one may go.
        server.disk.slots()[1 - slot].as_mut().unwrap()[40] ^= 1;
        let recovered = server.restart();
        server.go_on(recovered);
        server.disk.slots().iter_mut().for_each(|slot| slot.as_mut().unwrap()[40] ^= 1);
        let verdict = server.restart().verdict;
        assert_eq!(verdict, Verdict::Amnesia(AmnesiaWhy::HeadInvalid));
    }
}

#[test]
fn log_with_fewer_segments_than_on_disk_is_refused_and_with_more_goes_on() {
    let mut server = small();
    server.append_batches(&[300]);
    server.settings.segments_max = 7;
    let verdict = server.restart().verdict;
    let why = AmnesiaWhy::Geometry { segment_bytes: 32 << 10, segments_max: 8 };
    assert_eq!(verdict, Verdict::Amnesia(why));
    server.settings.segments_max = 8;
    server.settings.segment_bytes = 16 << 10;
    assert!(matches!(server.restart().verdict, Verdict::Amnesia(AmnesiaWhy::Geometry { .. })));
    (server.settings.segment_bytes, server.settings.segments_max) = (32 << 10, 9);
    assert_eq!(server.restart().verdict, Verdict::Intact);
}

#[test]
fn log_a_swapped_log_is_marked_by_its_head() {
    let mut server = small();
    server.stage(1, true);
    server.append_batches(&[300, 300]);
    server.swap(7);
    server.run_all();
    assert!(!server.log.mark_due(0));
    let end = server.end_pos();
    server.disk.flip(end - 4096 + 80);
    assert!(damaged(&server.restart().verdict));
}

#[test]
fn log_at_rest_names_what_is_committed() {
    let mut server = small();
    server.append(1, b"one").unwrap();
    server.append(1, b"two").unwrap();
    assert!(server.seal(), "both are written before anything is known to be committed");
    server.run_all();
    assert!(server.log.seal_mark(1, &mut server.out));
    server.run_all();
    assert!(!server.log.mark_due(1) && server.log.mark_due(2));
    assert!(server.log.seal_mark(2, &mut server.out));
    server.run_all();
    assert!(!server.log.mark_due(2) && !server.log.mark_due(9), "op 2 is the last there is");
    let recovered = server.restart();
    assert_eq!(recovered.cp_known, 2);
    assert!(!recovered.log.mark_due(2));
}

#[test]
fn log_behind_a_staged_log_is_marked_by_a_head() {
    let mut server = small();
    server.append_batches(&[300]);
    server.stage(2, true);
    server.append(1, b"staged").unwrap();
    assert!(server.log.mark_due(0) && server.seal_mark());
    server.run_all();
    assert!(!server.log.mark_due(0));
    server.disk.flip(80);
    assert!(damaged(&server.restart().verdict));
}

#[test]
fn log_a_stale_batch_never_continues_a_log_rewritten_before_it() {
    // Two batches in one group commit; the first is lost, the second arrives. The same records are
    // appended again, to the byte, and only the first batch of them: the stale one is not adopted.
    let mut server = small();
    server.append_batches(&[300]);
    let first = server.end_pos();
    let body = vec![5; 25_000];
    server.append(1, &body).unwrap();
    server.append(1, &body).unwrap();
    assert!(server.seal());
    let write = server.queue.pop_back().unwrap().0;
    server.queue.clear();
    write.run(&mut server.disk, server.log.ring());
    assert!(
        server.disk.bytes(32 << 10, SECTOR).iter().any(|byte| *byte != 0),
        "the second arrived"
    );
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!(server.durable, 1);

    server.append(1, &body).unwrap();
    server.settle();
    assert!(server.end_pos() > first);
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!(server.log.current().end(), 2);
}

#[test]
fn log_a_long_torn_batch_does_not_spoil_the_memory_of_what_came_before() {
    // The segment is as long as the ring, so reading the torn batch overwrites older records there.
    let mut server = Server::new(settings(64 << 10, 4), 64 << 10);
    server.append_batches(&[3000; 4]);
    server.log.pin(4);
    let op = server.append(1, &[1; 60_000]).unwrap();
    assert_eq!(op, 5);
    server.seal();
    let at = server.queue.front().unwrap().0.clone();
    server.queue.clear();
    at.run(&mut server.disk, server.log.ring());
    server.disk.flip((64 << 10) + 40_000);
    let recovered = server.restart();
    server.go_on(recovered);
    assert_eq!(server.log.current().end(), 4);
}

#[test]
fn log_any_bytes_on_the_disk_are_read_without_panic() {
    // Random damage of random extent, to segments and head; what is found intact is a prefix.
    let mut outcomes = [0; 2];
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let mut server = small();
        for _ in 0..rng.below(30) {
            server.append(1, &vec![seed as u8; rng.below(4000) as usize]).unwrap();
            if rng.one_in(2) {
                server.settle();
                let op = server.log.current().end();
                server.log.pin(op);
            }
        }
        server.settle();
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(server.log.used_disk_bytes() + 8192);
            match rng.below(3) {
                0 => server.disk.flip(at),
                1 => server.disk.damage(at, |sector| sector.fill_with(|| rng.next() as u8)),
                _ => {
                    let slot = server.disk.slots()[rng.below(2) as usize].as_mut().unwrap();
                    let at = rng.below(slot.len() as u64) as usize;
                    slot[at] ^= 1 << rng.below(8);
                }
            }
        }
        let recovered = server.restart();
        match recovered.verdict {
            Verdict::Intact => {
                server.durable = server.durable.min(recovered.log.current().end());
                server.go_on(recovered);
                outcomes[0] += 1;
            }
            Verdict::Amnesia(_) => outcomes[1] += 1,
        }
    }
    assert!(outcomes.iter().all(|count| *count > 100), "{outcomes:?}");
}

/// A disk whose every read is noise.
struct Noise(Rng);

impl LogDisk for Noise {
    fn read(&mut self, _: LogPos, into: &mut [u8]) -> Result<(), harp_log::DiskError> {
        into.fill_with(|| self.0.next() as u8);
        Ok(())
    }

    fn write(&mut self, _: LogPos, _: &[u8]) -> Result<(), harp_log::DiskError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), harp_log::DiskError> {
        Ok(())
    }

    fn prepare(&mut self, _: LogPos) -> Result<(), DiskError> {
        Ok(())
    }

    fn lost_segment(&mut self, _: LogPos) -> Result<Option<String>, DiskError> {
        Ok(None)
    }

    fn read_slot(&mut self, _: SlotFile, _: usize) -> Result<Option<Vec<u8>>, harp_log::DiskError> {
        let len = self.0.below(5000) as usize;
        Ok(Some((0..len).map(|_| self.0.next() as u8).collect()))
    }

    fn write_slot(&mut self, _: SlotFile, _: usize, _: &[u8]) -> Result<(), harp_log::DiskError> {
        Ok(())
    }
}

#[test]
fn log_noise_is_not_a_log() {
    for seed in 0..100 {
        let settings: LogSettings = settings(32 << 10, 4);
        let recovered = recover(&mut Noise(Rng(seed)), Ring::on_heap(64 << 10), settings).unwrap();
        assert_eq!(recovered.verdict, Verdict::Amnesia(AmnesiaWhy::HeadInvalid));
    }
}
