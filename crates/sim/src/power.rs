//! Ends of processes and machines, and what each leaves behind.
//! Owns: the state of disks after an end at any moment, and the damage done to them on purpose.
//! Never: takes away what a disk promised to keep, but where a fault says so.

use harp_node::log::{DiskCommand, SlotFile};
use harp_node::vr::ServerId;
use harp_node::{Power, Suspects};

use crate::glue;
use crate::host::{Incoming, Process};
use crate::profile::MILLI;
use crate::queue::Due;
use crate::rng::Rng;
use crate::world::{World, note};

/// How a log is taken away while the view file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLoss {
    /// Its head file is gone.
    HeadGone,
    /// Both slots of its head are damaged.
    HeadDamaged,
    /// All segments are gone.
    SegmentsGone,
    /// A bit flipped in a batch that was flushed.
    BitFlipped,
    /// A batch that was flushed never reached the medium.
    WriteLost,
    /// A batch that was flushed went over another one.
    WriteMisdirected,
}

impl LogLoss {
    /// All of them.
    pub const ALL: [LogLoss; 6] = [
        LogLoss::HeadGone,
        LogLoss::HeadDamaged,
        LogLoss::SegmentsGone,
        LogLoss::BitFlipped,
        LogLoss::WriteLost,
        LogLoss::WriteMisdirected,
    ];

    /// Whether nobody looks at what it damages while the log lies in memory.
    pub fn is_on_disk_alone(self) -> bool {
        matches!(self, LogLoss::BitFlipped | LogLoss::WriteLost | LogLoss::WriteMisdirected)
    }
}

impl World {
    /// Somebody or something ends a server's process, or its machine's power.
    pub fn kill(&mut self, server: ServerId, power: bool) {
        self.observer.no_loop.ended_otherwise(server);
        self.crash(server, power);
    }

    /// A server's process ends in the middle of the long store job under way, after so many steps of it.
    pub fn crash_in_job(&mut self, server: ServerId, steps: u64) {
        let host = &mut self.hosts[server.index()];
        let process = host.process.as_mut().expect("it is up");
        let job = process.lanes[1].pop_front().expect("a job is under way");
        let (store, store_host) = (process.store.as_ref(), host.store.as_ref());
        let (store, store_host) = store.zip(store_host).expect("a copy has a store");
        store_host.fuse.arm(steps);
        let _ = glue::run_job(job, store, &host.ring);
        process.lanes[1].clear();
        store_host.fuse.reset();
        self.kill(server, false);
    }

    /// A server's process ends where it stands. With `power`, its machine loses power as well.
    pub(crate) fn crash(&mut self, server: ServerId, power: bool) {
        let host = &mut self.hosts[server.index()];
        let rng = &mut self.streams.disk;
        if let Some(process) = host.process.take() {
            host.life += 1;
            leave_command(&process, host, power, rng);
            leave_jobs(*process, host, rng);
            self.observer.ended(server);
            note!(self, "{server} {}", if power { "loses power" } else { "crashes" });
        }
        if power {
            self.lose_memory(server);
        }
        let host = &mut self.hosts[server.index()];
        if power {
            host.suspects = Suspects::default(); // was never synced
            host.disk.power_cut(&mut self.streams.disk);
            if let Some(store) = &host.store {
                store.power_cut(&mut self.streams.disk);
            }
        }
        if self.supervisor.serving.is_some_and(|(serving, _)| serving == server) {
            self.supervisor.serving = None;
        }
        self.reset_all(server);
    }

    /// What the machine had in memory is gone; with it the log, if its records counted there and it was not
    /// written out.
    pub(crate) fn lose_memory(&mut self, server: ServerId) {
        if !self.profile.is_ups() {
            return;
        }
        let host = &mut self.hosts[server.index()];
        host.rings += 1;
        host.ring = self.profile.ring(server, host.rings);
        let Some(durable) = glue::view_file(&host.disk) else { return };
        // A disk that no process has started from yet knows no memory.
        match host.ending {
            _ if host.written_out || durable.memory == 0 => {}
            Some(_) => self.observer.log_doubtful(server, durable.formed),
            None => self.observer.log_damaged(server, durable.formed),
        }
    }

    /// The process of `server` is told to write its log out, and to end. `off`: then the machine goes off.
    pub fn end(&mut self, server: ServerId, off: bool) {
        let host = &mut self.hosts[server.index()];
        if host.is_up() && host.ending.is_none() {
            host.ending = Some(off);
            self.deliver(server, Incoming::Power(Power::Ending));
        }
    }

    /// The machine of `server` goes over to its battery, or back to the mains.
    pub fn on_battery(&mut self, server: ServerId, battery: bool) {
        let power = if battery { Power::Battery } else { Power::Mains };
        self.deliver(server, Incoming::Power(power));
    }

    /// An ended process starts again after a while.
    pub(crate) fn restart_later(&mut self, server: ServerId) {
        let after = MILLI + self.streams.turns.wait(10 * MILLI);
        let life = self.hosts[server.index()].life;
        self.queue.put(self.now + after, Due::Start { server, life });
    }

    /// A server's process, which is down, starts now.
    pub fn restart(&mut self, server: ServerId) {
        let host = &mut self.hosts[server.index()];
        assert!(!host.is_up(), "{server} is up");
        host.stays_down = false;
        self.queue.put(self.now, Due::Start { server, life: host.life });
    }

    /// Takes the log of a server that is down away; its view file stays. Returns whether anything was
    /// there to take.
    pub fn lose_log(&mut self, server: ServerId, how: LogLoss) -> bool {
        let host = &mut self.hosts[server.index()];
        assert!(!host.is_up(), "{server} is up");
        let rng = &mut self.streams.disk;
        let aimed = match how {
            LogLoss::HeadGone => {
                host.disk.lose_head();
                None
            }
            LogLoss::HeadDamaged => {
                host.disk.damage_file(SlotFile::LogHead);
                None
            }
            LogLoss::SegmentsGone => {
                // In memory alone nothing is there to lose.
                Some(host.disk.lose_segments() || !self.profile.is_ups())
            }
            LogLoss::BitFlipped => Some(host.disk.flip_flushed(rng)),
            LogLoss::WriteLost => Some(host.disk.lose_flushed(rng)),
            LogLoss::WriteMisdirected => Some(host.disk.misdirect_flushed(rng)),
        };
        if aimed == Some(false) {
            return false;
        }
        let formed = glue::view_file(&host.disk).map(|durable| durable.formed).unwrap_or_default();
        note!(self, "{server} loses its log: {how:?}");
        // What was aimed at a batch may lie below the log's begin, where nobody reads it.
        if aimed.is_none() {
            self.observer.log_damaged(server, formed);
        } else {
            self.observer.log_doubtful(server, formed);
        }
        true
    }

    /// The disk of a server that is down is replaced by an empty one.
    pub fn empty(&mut self, server: ServerId) {
        let host = &mut self.hosts[server.index()];
        assert!(!host.is_up(), "{server} is up");
        let formed = glue::view_file(&host.disk).map(|durable| durable.formed).unwrap_or_default();
        host.disk.wipe();
        if host.store.is_some() {
            host.store = Some(glue::StoreHost::new(self.profile.store_blocks));
        }
        host.suspects = Suspects::default();
        host.emptied = true;
        self.observer.wiped(server, formed);
        note!(self, "{server} loses its disk");
    }
}

/// The disk command under way is done in part.
fn leave_command(process: &Process, host: &mut crate::host::Host, power: bool, rng: &mut Rng) {
    // A failure that nobody was told of leaves a cache that lies; no server can survive that.
    host.disk.failing = None;
    let Some(command) = process.commands.front() else { return };
    if process.runner.refuses(command) {
        return;
    }
    match command {
        DiskCommand::Write { at, bytes, .. } => {
            let bytes = host.ring.bytes(*at, *bytes);
            if rng.chance(700) {
                host.disk.write_part(*at, bytes, rng);
            } else if rng.chance(500) {
                // Written and synced; only the answer is lost.
                let _ = command.clone().run(&mut host.disk, &host.ring);
            }
        }
        DiskCommand::Slot { file, sequence, bytes } => {
            let slot = (*sequence % 2) as usize;
            if power && rng.chance(500) {
                host.disk.tear_slot(*file, slot, bytes, rng);
            } else if rng.chance(500) {
                let _ = command.clone().run(&mut host.disk, &host.ring);
            }
        }
        DiskCommand::Read { .. } => {}
    }
}

/// Store jobs under way are done in part.
fn leave_jobs(process: Process, host: &mut crate::host::Host, rng: &mut Rng) {
    let (Some(store), Some(store_host)) = (&process.store, &host.store) else { return };
    let Process { lanes: [_, mut checkpoints], .. } = process;
    if let Some(job) = checkpoints.pop_front() {
        // A step is a write, a sync or a commit; most jobs end within twenty.
        store_host.fuse.arm(rng.below(20));
        let _ = glue::run_job(job, store, &host.ring);
    }
    store_host.fuse.reset();
}
