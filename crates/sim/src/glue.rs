//! The one place that knows the node's interface: formatting, booting, looking inside.
//! Owns: the translation between the world's words and the node's.
//! Never: changes a node but through its events.

use harp_node::fs::key::RootOwner;
use harp_node::log::{Ring, SlotFile};
use harp_node::store::{Disk, Fuse, Limits, MemDisk, MemEngine, Reader, Store, Stretch, Walk};
use harp_node::vr::{Durable, Envelope, Nanos, Room, ServerId, View};
use harp_node::{
    BootError, ImageState, Node, Now, StoreDone, StoreJob, Suspects, blocks_ahead, change_in,
    image_room, image_state,
};

use crate::clock::Clock;
use crate::disk::SimLogDisk;
use crate::observer::CommittedRecord;
use crate::profile::Profile;
use crate::properties::Pulse;
use crate::rng::Rng;

/// Blocks that a simulated store's disk grows by.
const GROW_BLOCKS: u64 = 256;

/// The kind of records that answer a client's request; its transaction id lies there in the body.
const OPERATION: u8 = 1;
const XID_AT: usize = 16;

/// Why a server did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoStart {
    /// Its disk counts as lost: it must be formatted as an emptied server.
    MediaLost(String),
}

/// A copy's durable store; it outlives the processes that open it.
#[derive(Debug)]
pub struct StoreHost {
    engine: MemEngine,
    disk: MemDisk,
    blocks_max: u64,
    /// Blows in the middle of a job when the process dies there.
    pub fuse: Fuse,
}

/// A store as a process has it open.
pub type OpenStore = Store<MemEngine, MemDisk>;

impl StoreHost {
    /// An empty store disk that can grow to so many blocks.
    pub fn new(blocks_max: u64) -> StoreHost {
        let fuse = Fuse::new();
        let engine = MemEngine::with_fuse(fuse.clone());
        let disk = MemDisk::with_fuse(blocks_max, fuse.clone());
        StoreHost { engine, disk, blocks_max, fuse }
    }

    fn limits(&self) -> Limits {
        Limits { grow_blocks: GROW_BLOCKS, blocks_max: self.blocks_max, ..Limits::default() }
    }

    /// Loses power: unsynced sectors are old or new, as `rng` says.
    pub fn power_cut(&self, rng: &mut Rng) {
        self.disk.crash(&mut |_, _| rng.chance(500));
    }

    /// Damaged blocks of the image; `None` if it is not whole.
    pub fn damage(&self) -> Option<usize> {
        let reader = self.reader()?;
        let mut damaged = 0;
        let digest = reader.digest_but(&mut |_| {
            damaged += 1;
            Ok(())
        });
        digest.expect("only blocks are damaged");
        Some(damaged)
    }

    /// Where the image's blocks lie.
    pub fn used_blocks(&self) -> Vec<u64> {
        let mut blocks = Vec::new();
        let reader = self.reader().expect("an image that is whole");
        let mut show = |stretch: Stretch, _: &mut dyn Iterator<Item = u32>| {
            blocks.extend(stretch.position..stretch.position + stretch.count);
            Ok(Walk::On)
        };
        reader.stretches((0, 0), &mut show).expect("a sound block map");
        blocks
    }

    /// Flips a bit of a block on the medium.
    pub fn flip(&self, position: u64, byte: usize) {
        assert!(self.disk.flip(position, byte, 1), "no block is there");
    }

    /// Does something to a block on the medium; `other` may come to harm by it too.
    pub fn damage_one(&self, position: u64, other: u64, rng: &mut Rng) {
        match rng.below(4) {
            0 => drop(self.disk.flip(position, rng.below(4096) as usize, 1 << rng.below(8))),
            1 => drop(self.disk.lose_write(position)),
            2 => drop(self.disk.misdirect(position, other)),
            _ => self.disk.spoil(position),
        }
    }

    /// The image as it is on the medium, if it is whole.
    fn reader(&self) -> Option<Reader<MemEngine, MemDisk>> {
        let opened = OpenStore::open(self.engine.clone(), self.disk.clone(), self.limits()).ok()?;
        let reader = opened.store.reader().expect("a store that was just opened");
        reader.complete().then_some(reader)
    }

    /// Blocks that the disk owns.
    pub fn blocks(&self) -> u64 {
        self.disk.blocks()
    }
}

/// Formats one server's disks. `first`: with the whole group; otherwise as an emptied server.
pub fn format(
    profile: &Profile,
    server: ServerId,
    disk_id: u64,
    first: bool,
    disk: &mut SimLogDisk,
    store: Option<&StoreHost>,
) {
    let settings = profile.settings(server);
    if let Some(store) = store {
        let owner = RootOwner { uid: profile.user, ..RootOwner::default() };
        harp_node::format_image(&store.engine, &store.disk, &settings.group, owner, first)
            .expect("a memory engine takes a format");
    }
    Node::format(&settings, disk_id, first, disk).expect("an empty disk takes a format");
}

/// A process just started.
pub struct Booted {
    /// The server's logic.
    pub node: Node,
    /// Its store, if it is a copy.
    pub store: Option<OpenStore>,
}

/// Starts a server's process from its disks.
pub fn boot(
    profile: &Profile,
    server: ServerId,
    disk: &mut SimLogDisk,
    host: Option<&StoreHost>,
    ring: Ring,
    suspects: Suspects,
    now: Now,
) -> Result<Booted, NoStart> {
    let lost = |what: &dyn std::fmt::Display| NoStart::MediaLost(what.to_string());
    let store = match host {
        Some(host) => {
            host.fuse.reset();
            let opened = OpenStore::open(host.engine.clone(), host.disk.clone(), host.limits());
            Some(opened.map_err(|error| lost(&error))?.store)
        }
        None => None,
    };
    let image: Option<ImageState> = match &store {
        Some(store) => Some(image_state(store).map_err(|error| lost(&error))?),
        None => None,
    };
    let node = match Node::boot(profile.settings(server), disk, image, ring, suspects, || now) {
        Ok(node) => node,
        Err(error @ BootError::MediaLoss) => return Err(lost(&error)),
        Err(error) => panic!("{server} cannot start: {error}"),
    };
    Ok(Booted { node, store })
}

/// What there is room for at a server, which takes blocks ahead of need as the program does.
pub fn room(profile: &Profile, store: Option<&OpenStore>) -> Room {
    let Some(store) = store else { return Room::ENDLESS };
    let (ring_bytes, checkpoint_bytes) = (profile.ring_bytes as u64, profile.checkpoint_bytes);
    let wanted = blocks_ahead(ring_bytes, checkpoint_bytes);
    let room = image_room(store, u64::MAX, true);
    if room.blocks < wanted && room.more_blocks > 0 {
        let space = store.space();
        let step = room.more_blocks.min(wanted - room.blocks);
        store.grow(space.free_blocks + step).expect("a memory disk has what it may have");
    }
    image_room(store, u64::MAX, true)
}

/// Carries a store job out.
pub fn run_job(job: StoreJob, store: &OpenStore, ring: &Ring) -> StoreDone {
    job.run(store, ring, &|| ())
}

/// What the view file on this disk says.
pub fn view_file(disk: &SimLogDisk) -> Option<Durable> {
    let slots = [disk.slot(SlotFile::View, 0), disk.slot(SlotFile::View, 1)];
    Durable::newest(slots).map(|(durable, _)| durable)
}

/// What a slot of the view file says.
pub fn view_slot(bytes: &[u8]) -> Option<Durable> {
    Durable::decode(bytes).ok().map(|(durable, _)| durable)
}

/// What a frame says, without the records attached to it.
pub fn envelope(frame: &[u8]) -> Envelope {
    let (envelope, _) = Envelope::decode(frame).expect("a node sends what it can read");
    envelope
}

/// What the world sees of a node at `at`.
pub fn pulse(node: &Node, clock: &Clock, at: u64, life: u32) -> Pulse {
    let now = clock.read(at);
    let status = node.status(now);
    let lease_until = match status.lease_left {
        0 => 0,
        left => clock.when(Nanos(now.steady.0 + left), at),
    };
    Pulse {
        server: status.me,
        life,
        at,
        copy: matches!(status.role, "primary" | "backup" | "learner"),
        primary: status.role == "primary",
        normal: node.replica().is_normal(),
        learner: status.role == "learner",
        serving: status.serving,
        promised: status.promised,
        formed: status.formed,
        members: status.members,
        fp: status.fp,
        log_begin: node.log().current().begin(),
        log_end: node.log().current().end(),
        log_empty: node.log().current().end() < node.log().current().begin(),
        complete: node.log().current().tag() == Some(status.formed.0),
        cp: status.cp,
        ap: status.ap,
        lb: status.lb,
        glb: status.glb,
        marked: node.replica().durable().configuration.needs_image,
        overridden: status.overridden,
        lease_until,
    }
}

/// The record of `op`, if the node's log has it in memory.
pub fn committed(node: &Node, op: u64) -> Option<CommittedRecord> {
    let record = node.log().record(op)?;
    let xid = match record.header.kind {
        OPERATION => record.body.get(XID_AT..XID_AT + 4),
        _ => None,
    };
    let xid = xid.map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let view = View(record.header.view);
    let change = change_in(record.header.kind, record.body);
    Some(CommittedRecord { op, crc: record.header.crc, view, xid, change })
}
