//! Crashes, and what a server finds when it starts again.
//! Owns: what each kind of crash leaves, and the order of trust at a start, as in `harp-node`'s `boot`.
//! Never: leaves a server down: one that does nothing is the same.
//! Source: docs/protocol.md, rules 2, 3, 4.

use harp_vr::{
    Configuration, Durable, Incarnation, Op, Override, Planted, Replica, SERVERS_MAX, ServerId,
    ServerSet, Start, View,
};

use crate::bounds::{Bounds, Durability, NOW};
use crate::disk::{Disk, Log, Record, Tag};
use crate::server::Server;

/// How a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The log is intact up to what is durable, and holds more up to `kept`.
    Soft {
        /// Its end.
        kept: u64,
        /// So many writes of the view file under way were done.
        written: u8,
        /// The tag under way was.
        tagged: bool,
    },
    /// The log is not intact.
    Amnesia {
        /// So many writes of the view file under way were done.
        written: u8,
    },
    /// The disk is gone; the server is formatted as an emptied one.
    MediaLoss,
}

/// The view that a group is formatted in.
pub fn first_view() -> View {
    View::new(0, 1, 0, ServerId(0))
}

/// The disks of a newly formatted group.
fn first_disks(bounds: &Bounds) -> [u64; SERVERS_MAX] {
    let mut disks = [0; SERVERS_MAX];
    bounds.shape().servers().for_each(|s| disks[s.index()] = 101 + s.0 as u64);
    disks
}

/// A server's disk, formatted with the whole group (`first`) or alone, under the id `disk`.
pub fn formatted(bounds: &Bounds, me: ServerId, first: bool, disk: u64) -> Disk {
    let none = Configuration {
        disks: [0; SERVERS_MAX],
        needs_image: ServerSet::EMPTY,
        overridden: Override::NONE,
    };
    let members = bounds.shape().copies().collect();
    let (view, members, configuration) = match first {
        true => (first_view(), members, Configuration { disks: first_disks(bounds), ..none }),
        false => (View::NONE, ServerSet::EMPTY, none),
    };
    let id = if first { configuration.disks[me.index()] } else { disk };
    Disk {
        log: Log::empty(1),
        durable: 0,
        tag: first.then_some(Tag { view, members, configuration }),
        staged: None,
        view_file: Durable {
            group: [1; 16],
            incarnation: Incarnation { disk: id, start: 0 },
            promised: view,
            formed: view,
            members,
            log_void: false,
            configuration,
            settled: Op::ZERO,
            memory: 0,
            branch: View::NONE,
            learned: View::NONE,
        },
        writes: Vec::new(),
        adopting: None,
        image: bounds.shape().is_copy(me).then(Vec::new),
        whole: first,
        lost: !first,
    }
}

/// Every way in which a server with this disk may die softly, and with amnesia.
pub fn crashes(disk: &Disk, bounds: &Bounds) -> Vec<Crash> {
    let mut all = Vec::new();
    let end = disk.log.end();
    let durable = if bounds.durability == Durability::Ups { end } else { disk.durable };
    for written in 0..=disk.writes.len() as u8 {
        all.extend((durable..=end).map(|kept| Crash::Soft { kept, written, tagged: false }));
        if disk.adopting.is_some() {
            all.push(Crash::Soft { kept: end, written, tagged: true });
        }
        all.push(Crash::Amnesia { written });
    }
    all
}

/// The server after it died so and started again.
pub fn after(crash: Crash, mut disk: Disk, bounds: &Bounds, me: ServerId) -> Server {
    let written = match crash {
        Crash::Soft { written, .. } | Crash::Amnesia { written } => written as usize,
        Crash::MediaLoss => 0,
    };
    if let Some((_, durable)) = disk.writes.drain(..).take(written).next_back() {
        disk.view_file = durable;
    }
    let adopting = disk.adopting.take();
    match crash {
        Crash::Soft { kept, tagged, .. } => {
            if let Some(adopting) = adopting.filter(|_| tagged) {
                disk.carry_out(adopting);
            } else {
                disk.log.records.truncate((kept + 1 - disk.log.begin) as usize);
                disk.durable = kept;
            }
        }
        Crash::Amnesia { .. } => {
            disk.tag = None;
            disk.log = Log::empty(disk.lb() + 1);
            disk.durable = disk.lb();
            disk.lost = true;
        }
        Crash::MediaLoss => {
            let first = bounds.planted == Some(Planted::MissingIsFirstStart);
            disk = formatted(bounds, me, first, disk.view_file.incarnation.disk + 100);
            disk.lost = true;
        }
    }
    disk.staged = None;
    let intact = !matches!(crash, Crash::Amnesia { .. });
    start(disk, intact, bounds, me)
}

/// A server starts from its disk.
pub fn start(mut disk: Disk, intact: bool, bounds: &Bounds, me: ServerId) -> Server {
    disk.view_file.incarnation.start += 1;
    // An image that the log does not reach is loaded anew.
    if disk.image.is_some() && intact && disk.lb() + 1 < disk.log.begin {
        disk.image = Some(Vec::new());
        disk.whole = false;
    }
    let tag = disk.tag.filter(|tag| tag.view >= disk.view_file.formed);
    let durable = disk.view_file;
    let start = Start {
        durable,
        persist_sequence: 0,
        log: disk.facts(),
        tag: tag.map(|tag| tag.view),
        tag_members: tag.map_or(ServerSet::EMPTY, |tag| tag.members),
        tag_configuration: tag.map_or(durable.configuration, |tag| tag.configuration),
        cp: Op::ZERO,
        image: disk.image.as_ref().map(|records| Op(records.len() as u64)),
        image_whole: disk.whole,
    };
    let mut replica = Replica::new(bounds.settings(me), start, NOW);
    for op in disk.log.begin..=disk.log.end() {
        if let Some(Record::Change(change)) = disk.log.get(op) {
            replica.on_configuration(Op(op), change);
        }
    }
    Server { replica, disk }
}
