//! What a durable write to the log costs on this machine's disk, and whether preparing the next segment
//! disturbs it.
//!
//! `cargo run --release -p harp --example logdisk_cost [DIR]` prints, for batches of 4, 64 and 256 KiB,
//! the mean, median, 99th percentile and worst latency in microseconds and the CPU time of a write:
//! first while segments are zero-written ahead for the first time, then once they are recycled.

use std::path::PathBuf;
use std::time::Instant;

use harp::logdisk::FileLogDisk;
use harp_node::log::{LogDisk, LogPos};
use rustix::time::{ClockId, clock_gettime};

const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENTS: u64 = 4;

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn measure(disk: &mut FileLogDisk, at: &mut u64, bytes: usize, until: u64, what: &str) {
    // A whole page too many, so that an aligned part of the length asked for lies within.
    let memory = vec![7u8; bytes + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let batch = &memory[start..start + bytes];
    let (mut taken, cpu) = (Vec::new(), cpu_us());
    while *at < until {
        let began = Instant::now();
        disk.write(LogPos(*at), batch).and_then(|()| disk.sync()).expect("the disk works");
        taken.push(began.elapsed().as_secs_f64() * 1e6);
        *at += bytes as u64;
    }
    let cpu = (cpu_us() - cpu) / taken.len() as f64;
    taken.sort_by(f64::total_cmp);
    let mean = taken.iter().sum::<f64>() / taken.len() as f64;
    let rank = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize];
    println!(
        "{:>4} KiB  {what:<18} mean {mean:>7.1}  p50 {:>7.1}  p99 {:>7.1}  max {:>8.1}  CPU {cpu:>6.1} us",
        bytes >> 10,
        rank(0.5),
        rank(0.99),
        rank(1.0)
    );
}

fn main() {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for bytes in [4 << 10, 64 << 10, 256 << 10] {
        let dir = dir.join(format!("harp-logdisk-cost-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut disk = FileLogDisk::format(&dir, SEGMENT_BYTES, SEGMENTS).expect("formats");
        // Small batches: only the last parts of a segment, where the next one is prepared.
        let part = (bytes as u64 * 2000).min(SEGMENT_BYTES / 2);
        for (lap, what) in ["preparing ahead", "recycled"].into_iter().enumerate() {
            let mut at = lap as u64 * SEGMENTS * SEGMENT_BYTES + SEGMENT_BYTES / 2;
            let until = at + part;
            measure(&mut disk, &mut at, bytes, until, what);
        }
        drop(disk);
        std::fs::remove_dir_all(&dir).expect("removes");
    }
}
