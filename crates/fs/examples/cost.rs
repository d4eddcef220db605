//! Cost: what planning and applying take on this machine, per operation.
//! Owns: one shadow over an empty image, a log in memory, and a table of figures.
//! Never: does I/O while it measures, nor checks results beyond their status.
//! Invariant: each figure is of one kind of request, plan and apply together, the best of its runs.
//! Source: ARCHITECTURE.md.
//!
//! `cargo run --release -p harp-fs --example cost -- [FILES] [--backup]`

use std::time::Instant;

use harp_fs::blocks::LogBytes;
use harp_fs::handle::Volume;
use harp_fs::inode::ROOT;
use harp_fs::key;
use harp_fs::need::{ImageError, ImageReader};
use harp_fs::plan::{Context, Planned, Room, plan};
use harp_fs::request::{
    CreateHow, Credential, DirName, HandleBytes, Request, Response, SetAttr, Time,
};
use harp_fs::shadow::{Shadow, ShadowSettings};

const RING_BYTES: usize = 512 << 20;
/// Files in the one directory, unless the first argument says otherwise.
const FILES: usize = 20_000;
const READS: usize = 200_000;
const REPEATS: usize = 10;

struct Ring<'a>(&'a [u8]);

impl LogBytes for Ring<'_> {
    fn bytes(&self, pos: u64, len: u32) -> &[u8] {
        &self.0[pos as usize..pos as usize + len as usize]
    }
}

/// A formatted image with nothing in it.
struct Empty(Vec<(Vec<u8>, Vec<u8>)>);

impl ImageReader for Empty {
    fn op(&self) -> u64 {
        0
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(self.0.iter().find(|row| row.0 == key).map(|row| row.1.clone()))
    }

    fn scan(
        &self,
        _from: &[u8],
        _limit: usize,
        _show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError> {
        Ok(())
    }

    fn read_blocks(
        &self,
        _file: u64,
        _first: u64,
        _count: u32,
        out: &mut [u8],
        _held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError> {
        out.fill(0);
        Ok(())
    }
}

struct Bench {
    shadow: Shadow,
    backup: Option<Shadow>,
    image: Empty,
    volume: Volume,
    ring: Vec<u8>,
    pos: usize,
    op: u64,
    data: Vec<u8>,
    fetches: u64,
}

impl Bench {
    fn new() -> Bench {
        let settings = ShadowSettings {
            cache_bytes: 64 << 20,
            filter_bytes: 16 << 20,
            seed: 0x5eed,
            access_times: harp_fs::atime::AccessTimes::Relative,
        };
        let mut ring = vec![0; RING_BYTES];
        // Touch every page, so that the kernel's zeroing is not measured.
        ring.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Bench {
            shadow: Shadow::new(settings, 0),
            backup: Some(Shadow::new(settings, 0)),
            image: Empty(key::format_rows(Time { seconds: 1, nanos: 0 })),
            volume: Volume::new(b"a group of three", 1, b"key of the group", 0, 1 << 30, 1 << 30),
            ring,
            pos: 0,
            op: 0,
            data: Vec::with_capacity(1 << 20),
            fetches: 0,
        }
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        let credential = Credential { uid: 0, gid: 0, groups_be: &[] };
        let mut needs = Vec::new();
        loop {
            let (past, room) = self.ring.split_at_mut(self.pos);
            let log = Ring(past);
            let now =
                Time { seconds: 2 + (self.op >> 20) as u32, nanos: self.op as u32 & 0xf_ffff };
            let context =
                Context { credential, now, volume: &self.volume, log: &log, room: Room::ENDLESS };
            self.data.clear();
            match plan(&mut self.shadow, request, &context, room, &mut self.data, &mut needs) {
                Planned::Record { response, effects_len } => {
                    self.op += 1;
                    let (past, _) = self.ring.split_at(self.pos + effects_len);
                    let (effects, at) = (&past[self.pos..], self.pos as u64);
                    self.shadow.apply(self.op, effects, at, &Ring(past)).expect("applies");
                    if let Some(backup) = &mut self.backup {
                        backup.apply(self.op, effects, at, &Ring(past)).expect("applies");
                    }
                    self.pos += effects_len;
                    return response;
                }
                Planned::Answer { response, .. } => return response,
                Planned::Need => {
                    self.fetches += 1;
                    for need in needs.drain(..) {
                        let fetched = need.fetch(&self.image).expect("an empty image reads");
                        self.shadow.fetched(fetched);
                    }
                }
            }
        }
    }

    fn make(&mut self, request: &Request<'_>) -> HandleBytes {
        match self.call(request) {
            Response::Create { ok: Some(handle), .. } => handle,
            response => panic!("not made: {response:?}"),
        }
    }

    /// Nanoseconds of one call, the best of some runs over `count` calls.
    fn measure(&mut self, count: usize, mut call: impl FnMut(&mut Bench, usize)) -> f64 {
        let mut best = f64::MAX;
        for run in 0..REPEATS {
            let part = count / REPEATS;
            let start = Instant::now();
            for i in run * part..(run + 1) * part {
                call(self, i);
            }
            best = best.min(start.elapsed().as_nanos() as f64 / part as f64);
        }
        best
    }
}

fn main() {
    let with_backup = std::env::args().any(|arg| arg == "--backup");
    let files = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(FILES);
    let mut bench = Bench::new();
    if !with_backup {
        bench.backup = None;
    }
    let top = bench.volume.handles.make(ROOT, 1);
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    let dir =
        bench.make(&Request::MkDir { what: DirName { dir: top.as_slice(), name: b"large" }, set });
    let dir = dir.as_slice();
    let names: Vec<String> = (0..files).map(|i| format!("file-{i:07}")).collect();
    let mut handles = Vec::with_capacity(files);

    let fetched = bench.fetches;
    let ns = bench.measure(files, |bench, i| {
        let what = DirName { dir, name: names[i].as_bytes() };
        handles.push(bench.make(&Request::Create { what, how: CreateHow::Guarded(set) }));
    });
    println!("create in a large directory  {ns:7.0} ns   {} fetches", bench.fetches - fetched);
    println!("bytes of effects per create  {:7.0}", bench.pos as f64 / files as f64);

    let spread = |i: usize| i * 7919 % files;
    let ns = bench.measure(READS, |bench, i| {
        bench.call(&Request::GetAttr { handle: handles[spread(i)].as_slice() });
    });
    println!("getattr                      {ns:7.0} ns");
    let ns = bench.measure(READS, |bench, i| {
        let what = DirName { dir, name: names[spread(i)].as_bytes() };
        bench.call(&Request::Lookup { what });
    });
    println!("lookup                       {ns:7.0} ns");

    for (label, size, count) in [
        ("write 4 KiB", 4096, 40_000),
        ("write 100 B at 50", 100, 40_000),
        ("write 64 KiB", 65_536, 2_000),
    ] {
        let payload = vec![0x5a; size];
        let offset = if size == 100 { 50 } else { 0 };
        let ns = bench.measure(count, |bench, i| {
            let handle = handles[spread(i)].as_slice();
            let (count, data) = (size as u32, &payload[..]);
            bench.call(&Request::Write { handle, offset, count, stable: 2, data });
        });
        println!("{label:27}  {ns:7.0} ns");
    }
    let ns = bench.measure(40_000, |bench, i| {
        let handle = handles[spread(i)].as_slice();
        bench.call(&Request::Read { handle, offset: 0, count: 4096 });
    });
    println!("read 4 KiB                   {ns:7.0} ns");
    let ns = bench.measure(files / 2, |bench, i| {
        let name = format!("moved-{i}");
        let from = DirName { dir, name: names[i].as_bytes() };
        let to = DirName { dir, name: name.as_bytes() };
        bench.call(&Request::Rename { from, to });
    });
    println!("rename in place              {ns:7.0} ns");
    let ns = bench.measure(files / 2, |bench, i| {
        let what = DirName { dir, name: names[files / 2 + i].as_bytes() };
        bench.call(&Request::Remove { what });
    });
    println!("remove                       {ns:7.0} ns");
}
