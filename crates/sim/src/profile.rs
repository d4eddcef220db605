//! What kind of world a seed makes: sizes, speeds, manners, and which faults it knows.
//! Owns: every parameter that is drawn once, and the node settings of the group.
//! Never: changes while the world runs.
//! Invariant: the lease is shorter than the failure timeout, as the settings demand.
//!
//! Times are a tenth of a deployment's, so that a few thousand operations see many failovers.

use harp_node::fs::atime::AccessTimes;
use harp_node::log::{MemoryTie, Ring};
use harp_node::vr::{Planted, ServerId, Shape};
use harp_node::{Durability, Export, GroupSource, Settings};

use crate::nemesis::FaultSet;
use crate::rng::{Rng, Stream};

/// Nanoseconds in a microsecond.
pub const MICRO: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub const MILLI: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// Ring and segments of a simulated server, in bytes.
const RING_BYTES: usize = 1 << 20;
const SEGMENT_BYTES: u64 = 128 << 10;
const SEGMENTS_MAX: u64 = 64;
/// The same of a small one.
const SMALL_RING_BYTES: usize = 256 << 10;
const SMALL_SEGMENT_BYTES: u64 = 32 << 10;
/// At least four times the ring and four, as the program's configuration wants it.
pub(crate) const SMALL_SEGMENTS: (u64, u64) = (36, 48);
/// Blocks that a copy's store may have where space is no matter.
const STORE_BLOCKS: u64 = 1 << 16;

/// How far clocks that keep no bound run off, in parts per million.
const WILD_PPM: u64 = 700_000;

/// What the caller asks of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The seed.
    pub seed: u64,
    /// How many failures the group rides out: 1 or 2.
    pub n: u8,
    /// How many operations the clients issue.
    pub ops: u64,
    /// The rule broken on purpose, if any.
    pub planted: Option<Planted>,
    /// Classes of faults that must not occur, whatever the seed says.
    pub without: FaultSet,
    /// Clocks leave the bound that the settings name: outside of what is promised, and stale reads must be seen.
    pub wild_clocks: bool,
}

impl Wish {
    /// The world of a seed, with all its faults.
    pub fn new(seed: u64, n: u8, ops: u64) -> Wish {
        Wish { seed, n, ops, planted: None, without: FaultSet::NONE, wild_clocks: false }
    }
}

/// The manners of the network between servers.
#[derive(Clone, Debug)]
pub struct NetworkProfile {
    /// Least delay.
    pub delay_min: u64,
    /// Mean of what comes on top.
    pub delay_mean: u64,
    /// Nanoseconds per 1,024 bytes.
    pub nanos_per_kib: u64,
    /// Messages lost.
    pub loss_per_mille: u32,
    /// Messages that arrive twice.
    pub duplicate_per_mille: u32,
    /// Whether messages overtake each other.
    pub reorders: bool,
}

impl NetworkProfile {
    /// A network without faults.
    pub fn calm() -> NetworkProfile {
        NetworkProfile {
            delay_min: 20 * MICRO,
            delay_mean: 10 * MICRO,
            nanos_per_kib: 100,
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            reorders: false,
        }
    }

    fn draw(rng: &mut Rng) -> NetworkProfile {
        let calm = NetworkProfile::calm();
        let (lossy, doubling, slow) = (rng.chance(400), rng.chance(400), rng.chance(250));
        NetworkProfile {
            delay_mean: if slow { rng.between(100, 600) * MICRO } else { calm.delay_mean },
            loss_per_mille: if lossy { pick_rate(rng, 300) } else { 0 },
            duplicate_per_mille: if doubling { pick_rate(rng, 500) } else { 0 },
            reorders: rng.chance(500),
            ..calm
        }
    }
}

/// A rate in per mille up to `max`; small ones are as likely as large ones.
fn pick_rate(rng: &mut Rng, max: u64) -> u32 {
    let top = *rng.pick(&[max / 50, max / 10, max]);
    rng.between(1, top.max(1)) as u32
}

/// The speed of a server's log disk and store.
#[derive(Clone, Debug)]
pub struct DiskProfile {
    /// A write without its sync.
    pub write: u64,
    /// Mean of a sync.
    pub sync_mean: u64,
    /// Mean of a slot's durable write.
    pub slot_mean: u64,
    /// Mean of a fetch from the store.
    pub fetch_mean: u64,
    /// Mean of a checkpoint or digest.
    pub checkpoint_mean: u64,
}

/// How the clients behave.
#[derive(Clone, Debug)]
pub struct ClientProfile {
    /// How many there are.
    pub clients: u32,
    /// Requests each keeps outstanding.
    pub depth: u32,
    /// Mean pause between a client's bursts.
    pub pause_mean: u64,
    /// Mean delay of bytes between client and server, each way.
    pub delay_mean: u64,
    /// File names in use per directory.
    pub files: u8,
    /// Directory names in use per directory.
    pub directories: u8,
    /// Bursts after which a client drops its connection on its own.
    pub reset_per_mille: u32,
    /// Moves to another server that the supervisor is late for.
    pub linger_per_mille: u32,
    /// Successes of which a copy arrives later on.
    pub late_per_mille: u32,
}

/// Everything drawn once.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What was asked for.
    pub wish: Wish,
    /// The group's shape.
    pub shape: Shape,
    /// The network.
    pub network: NetworkProfile,
    /// The disks.
    pub disk: DiskProfile,
    /// The clients.
    pub clients: ClientProfile,
    /// Which faults occur.
    pub faults: FaultSet,
    /// Mean time between faults.
    pub fault_gap: u64,
    /// A turn of a server's loop, and each event in it.
    pub turn: (u64, u64),
    /// Largest deviation of a clock's rate from true time that the settings allow for, in parts per million.
    pub drift_ppm_max: u64,
    /// That of the clocks as they are.
    pub clock_ppm_max: u64,
    /// A server's silence that counts as failure.
    pub failure_timeout: u64,
    /// A member's promise.
    pub lease: u64,
    /// The primary's heartbeat.
    pub heartbeat: u64,
    /// Dirty bytes at which a checkpoint starts at the latest.
    pub checkpoint_bytes: u64,
    /// Blocks that a copy's store may have.
    pub store_blocks: u64,
    /// Bytes of a log's ring.
    pub ring_bytes: usize,
    /// Bytes of one of its segments.
    pub segment_bytes: u64,
    /// Segments that a log's disk may have: half of them bound what is kept for an absent copy.
    pub segments_max: u64,
    /// The record of this request ends every process that applies it, as long as the software has that fault.
    pub lethal_request: Option<u32>,
    /// Whose word counts on a user's groups.
    pub groups: GroupSource,
    /// The user who calls, and owns everything.
    pub user: u32,
    /// Mean of a look-up in the user database.
    pub look_up_mean: u64,
    /// Where records count as held.
    pub durability: Durability,
    image_part_bytes: usize,
    cache_bytes: u64,
    access_times: AccessTimes,
}

impl Profile {
    /// A world without faults, where times are short and even: for scripted scenarios.
    pub fn calm(wish: Wish) -> Profile {
        Profile {
            wish,
            shape: Shape { n: wish.n },
            network: NetworkProfile::calm(),
            disk: DiskProfile {
                write: 10 * MICRO,
                sync_mean: 40 * MICRO,
                slot_mean: 60 * MICRO,
                fetch_mean: 30 * MICRO,
                checkpoint_mean: 500 * MICRO,
            },
            clients: ClientProfile {
                clients: 4,
                depth: 8,
                pause_mean: 2 * MILLI,
                delay_mean: 20 * MICRO,
                files: 12,
                directories: 3,
                reset_per_mille: 0,
                linger_per_mille: 0,
                late_per_mille: 0,
            },
            faults: FaultSet::NONE,
            fault_gap: SECOND,
            turn: (3 * MICRO, MICRO),
            drift_ppm_max: 500,
            clock_ppm_max: 500,
            failure_timeout: 20 * MILLI,
            lease: 14 * MILLI,
            heartbeat: 2 * MILLI,
            checkpoint_bytes: 256 << 10,
            store_blocks: STORE_BLOCKS,
            ring_bytes: RING_BYTES,
            segment_bytes: SEGMENT_BYTES,
            segments_max: SEGMENTS_MAX,
            lethal_request: None,
            groups: GroupSource::Client,
            user: 0,
            look_up_mean: 200 * MICRO,
            durability: Durability::Disk,
            image_part_bytes: 4 << 10,
            cache_bytes: 256 << 10,
            access_times: AccessTimes::Relative,
        }
    }

    /// The world of the wish's seed.
    pub fn draw(wish: Wish) -> Profile {
        let rng = &mut Rng::new(wish.seed, Stream::Profile);
        let mut profile = Profile::calm(wish);
        profile.network = NetworkProfile::draw(rng);
        profile.faults = FaultSet::draw(rng).without(wish.without);
        profile.fault_gap = rng.between(8, 80) * MILLI;
        profile.drift_ppm_max = *rng.pick(&[0, 100, 1_000, 10_000]);
        profile.clock_ppm_max = if wish.wild_clocks { WILD_PPM } else { profile.drift_ppm_max };
        profile.lease = rng.between(8, 16) * MILLI;
        profile.heartbeat = rng.between(15, 30) * MILLI / 10;
        profile.checkpoint_bytes = rng.between(64, 320) << 10;
        profile.cache_bytes = *rng.pick(&[32 << 10, 128 << 10, 1 << 20]);
        profile.draw_disk(rng);
        profile.draw_clients(rng);
        profile.image_part_bytes = *rng.pick(&[1 << 10, 4 << 10, 16 << 10, 256 << 10]);
        profile.access_times = *rng.pick(&[AccessTimes::Relative, AccessTimes::Off]);
        if rng.chance(150) {
            profile.lethal_request = Some(rng.between(20, wish.ops.max(40) / 2) as u32);
        }
        if rng.chance(200) {
            profile.store_blocks = rng.between(60, 200);
        }
        if rng.chance(300) {
            // A copy that is away for long needs another image when it is back.
            profile.with_small_log(rng.between(SMALL_SEGMENTS.0, SMALL_SEGMENTS.1));
        }
        if rng.chance(300) {
            // Root's groups are not looked up.
            (profile.groups, profile.user) = (GroupSource::Server, 1000);
            profile.look_up_mean *= *rng.pick(&[1, 100]);
        }
        if rng.chance(333) {
            profile.durability = Durability::Ups;
        }
        profile
    }

    pub(crate) fn with_small_log(&mut self, segments: u64) {
        (self.ring_bytes, self.segment_bytes) = (SMALL_RING_BYTES, SMALL_SEGMENT_BYTES);
        self.segments_max = segments;
    }

    fn draw_disk(&mut self, rng: &mut Rng) {
        let slow = *rng.pick(&[1, 1, 3, 10]);
        self.disk.sync_mean *= slow;
        self.disk.slot_mean *= slow;
        self.disk.fetch_mean *= *rng.pick(&[1, 5]);
        self.disk.checkpoint_mean *= *rng.pick(&[1, 4, 20]);
    }

    fn draw_clients(&mut self, rng: &mut Rng) {
        let clients = &mut self.clients;
        clients.clients = rng.between(2, 6) as u32;
        clients.depth = *rng.pick(&[1, 4, 8, 16]);
        clients.files = *rng.pick(&[3, 8, 24]);
        clients.directories = rng.between(1, 4) as u8;
        clients.linger_per_mille = *rng.pick(&[0, 300, 700]);
        clients.reset_per_mille = *rng.pick(&[0, 0, 5, 30]);
        clients.late_per_mille = *rng.pick(&[0, 20, 100]);
        // However many operations there are, the clients' work spans many faults.
        let bursts = self.wish.ops / (clients.clients * clients.depth) as u64 + 1;
        let span = rng.between(30, 60) * self.fault_gap;
        clients.pause_mean = (span / bursts).clamp(200 * MICRO, 20 * MILLI);
    }

    /// Whether writes may be refused for lack of space.
    pub fn may_run_out(&self) -> bool {
        self.store_blocks < STORE_BLOCKS
    }

    /// The settings of server `me`.
    pub fn settings(&self, me: ServerId) -> Settings {
        let mut identity = Rng::new(self.wish.seed, Stream::Identity);
        let mut key = || {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&identity.draw().to_le_bytes());
            bytes[8..].copy_from_slice(&identity.draw().to_le_bytes());
            bytes
        };
        let allow = vec!["0.0.0.0/0".parse().expect("every client")];
        Settings {
            shape: self.shape,
            me,
            group: key(),
            handle_key: key(),
            durability: self.durability,
            heartbeat: self.heartbeat,
            failure_timeout: self.failure_timeout,
            lease: self.lease,
            clock_drift_ppm: 2 * self.drift_ppm_max,
            segment_bytes: self.segment_bytes,
            segments_max: self.segments_max,
            checkpoint_bytes: self.checkpoint_bytes,
            image_part_bytes: self.image_part_bytes,
            cache_bytes: self.cache_bytes,
            capacity_blocks: 1 << 20,
            access_times: self.access_times,
            export: Export { allow, groups: self.groups, ..Export::default() },
            nfs_port: 2049,
            lethal_xid: self.lethal_request.map(crate::observer::xid_of),
            planted: self.wish.planted,
        }
    }

    /// Whether records count in memory.
    pub fn is_ups(&self) -> bool {
        self.durability == Durability::Ups
    }

    /// Memory for the ring of `server`, the `count`th of its machine: as good as new.
    pub fn ring(&self, server: ServerId, count: u64) -> Ring {
        if !self.is_ups() {
            return Ring::on_heap(self.ring_bytes);
        }
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&count.to_le_bytes());
        let tie = MemoryTie { boot, group: self.settings(server).group, server: server.0, disk: 0 };
        Ring::outliving_on_heap(self.ring_bytes, count, &tie)
    }

    /// An empty log disk for one server.
    pub fn log_disk(&self) -> crate::disk::SimLogDisk {
        crate::disk::SimLogDisk::new(self.segment_bytes, self.segments_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drawn_world_keeps_the_settings_rules() {
        for seed in 0..200 {
            let profile = Profile::draw(Wish::new(seed, 1, 5000));
            let settings = profile.settings(ServerId(0));
            assert!(settings.lease < settings.failure_timeout);
            assert_eq!(profile.ring_bytes as u64 % settings.segment_bytes, 0);
            assert!(
                settings.segment_bytes * (settings.segments_max - 4)
                    >= 4 * profile.ring_bytes as u64
            );
            assert_eq!(settings.group, profile.settings(ServerId(1)).group);
            assert_ne!(settings.group, settings.handle_key);
        }
    }
}
