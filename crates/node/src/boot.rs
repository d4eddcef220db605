//! Starting: formatting a disk, and coming back from one.
//! Owns: the order of trust: view file, then log, then image; what is amnesia and what is media loss.
//! Never: takes a missing file for a first start (rule 4).
//! Invariant: the raised incarnation is durable before the node speaks.
//! Source: docs/protocol.md, rules 2, 3, 4, 8.

use harp_fs::handle::Volume;
use harp_fs::shadow::{Shadow, ShadowSettings};
use harp_log::{
    DiskError, Evidence, Log, LogDisk, LogSettings, Ring, SlotFile, Verdict, head_clean,
    head_geometry,
};
use harp_vr::{
    Configuration, Durable, Incarnation, LogFacts, Nanos, Op, Override, Planted, Replica,
    SERVERS_MAX, ServerId, ServerSet, Start, View,
};

use crate::api::{Durability, Now, Settings};
use crate::halt::{Redo, Suspects};
use crate::jobs::{ImageState, RingBytes};
use crate::node::{Copy, Node};
use crate::rebuild::Load;
use crate::record::{self, kind};
use crate::space::Debits;

/// Why a server cannot be formatted or started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The disk failed.
    Disk(DiskError),
    /// The disk holds a server already.
    Formatted,
    /// No whole view file: this disk remembers no promise (rule 4).
    MediaLoss,
    /// The view file or the log was written by a newer version.
    Newer,
    /// The view file was written by an older version, whose layout this one does not know.
    Older,
    /// The disk belongs to another group.
    OtherGroup {
        /// That group.
        found: [u8; 16],
    },
    /// A copy without its image, or a witness with one.
    Image,
    /// The log on disk has other segments than the settings name.
    Segments {
        /// Length of its segments.
        segment_bytes: u64,
        /// How many it may have.
        segments_max: u64,
    },
}

impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BootError::Disk(error) => write!(f, "{error}"),
            BootError::Formatted => write!(f, "this directory holds a server already"),
            BootError::MediaLoss => write!(
                f,
                "the view file is missing or damaged, so this server may have forgotten promises: move \
                 its directory away; an empty one starts over under a new identity"
            ),
            BootError::Newer => write!(
                f,
                "it was written by a newer version of harp: run that version or a later one"
            ),
            BootError::Older => write!(
                f,
                "it was written by an older version of harp, and nothing is wrong with it: run that version, copy \
                 the files out, and bring them into a new group"
            ),
            BootError::OtherGroup { found } => {
                write!(f, "this directory belongs to another group, ")?;
                found.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            BootError::Image => write!(f, "the files of this copy are missing"),
            BootError::Segments { segment_bytes, segments_max } => write!(
                f,
                "the log on disk was made with segment_bytes = {segment_bytes} and segments_max = \
                 {segments_max}: set the first to that again, and the second to that or more"
            ),
        }
    }
}

impl std::error::Error for BootError {}

impl From<DiskError> for BootError {
    fn from(error: DiskError) -> BootError {
        BootError::Disk(error)
    }
}

/// The view that a group is formatted in. It never serves: the first start forms another above it.
pub fn first_view() -> View {
    View::new(0, 1, 0, ServerId(0))
}

/// The disk id of a server formatted together with its group: everybody knows it without being told.
fn first_disk(group: &[u8; 16], server: ServerId) -> u64 {
    let mut id = 0xcbf2_9ce4_8422_2325u64 ^ u64::from(server.0) << 56;
    for byte in group.iter().chain(&[server.0, 0x5a]) {
        id = (id ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    id | 1
}

/// The configuration as the log's head keeps it with a tag.
pub(crate) fn head_extra(configuration: &Configuration) -> [u8; harp_log::HEAD_EXTRA_BYTES] {
    let mut writer = harp_vr::codec::Writer::default();
    writer.configuration(configuration);
    let bytes = writer.into_bytes();
    let mut extra = [0; harp_log::HEAD_EXTRA_BYTES];
    extra[..bytes.len()].copy_from_slice(&bytes);
    extra
}

fn head_configuration(extra: &[u8; harp_log::HEAD_EXTRA_BYTES]) -> Configuration {
    let configuration = harp_vr::codec::Reader::new(extra).configuration();
    configuration.expect("a head has room for a configuration")
}

fn log_settings(settings: &Settings, start: u64) -> LogSettings {
    LogSettings {
        segment_bytes: settings.segment_bytes,
        segments_max: settings.segments_max,
        start,
        keeps_clean_mark: settings.planted == Some(Planted::CleanMarkNotVoided),
    }
}

impl Node {
    /// Formats one server's disk: its view file and its empty log. The image of a copy is formatted apart.
    ///
    /// `first`: the whole group is being formatted. Otherwise the disk is a new one in a formatted group
    /// (media loss): it counts for nothing until a view formed without it admits `disk_id`.
    pub fn format(
        settings: &Settings,
        disk_id: u64,
        first: bool,
        disk: &mut dyn LogDisk,
    ) -> Result<(), BootError> {
        let slots = [disk.read_slot(SlotFile::View, 0)?, disk.read_slot(SlotFile::View, 1)?];
        if Durable::newest([slots[0].as_deref(), slots[1].as_deref()]).is_some() {
            return Err(BootError::Formatted);
        }
        let mut disks = [0; SERVERS_MAX];
        if first {
            for server in settings.shape.servers() {
                disks[server.index()] = first_disk(&settings.group, server);
            }
        }
        let disk_id = if first { disks[settings.me.index()] } else { disk_id };
        let formed = if first { first_view() } else { View::NONE };
        let members = settings.shape.copies().collect();
        let durable = Durable {
            group: settings.group,
            incarnation: Incarnation { disk: disk_id, start: 0 },
            promised: formed,
            formed,
            members: if first { members } else { ServerSet::EMPTY },
            log_void: false,
            configuration: Configuration {
                disks,
                needs_image: ServerSet::EMPTY,
                overridden: Override::NONE,
            },
            settled: Op::ZERO,
            memory: 0,
            branch: View::NONE,
            learned: View::NONE,
        };
        // The log first: a server without a view file has no promises to lose.
        let ring = Ring::on_heap(settings.segment_bytes as usize);
        let settings_log = log_settings(settings, 0);
        let mut commands = Vec::new();
        let mut log = Log::format(ring.clone(), settings_log, 1, &mut commands);
        run_all(&mut commands, disk, &ring, &mut log)?;
        if first {
            let extra = head_extra(&durable.configuration);
            log.tag(formed.0, durable.members.0, extra, 0, &mut commands);
            run_all(&mut commands, disk, &ring, &mut log)?;
        }
        for sequence in [0u64, 1] {
            disk.write_slot(SlotFile::View, sequence as usize, &durable.encode(sequence))?;
        }
        Ok(())
    }

    /// Starts a server from its disk. `ring` lies in memory that outlives the process if records count there.
    /// `image`: what [`crate::image_state`] read; `None` at a witness. `suspects`: what this server's last process
    /// left behind. `clock` is read when the log is: reading it takes time, and what is to be waited for counts
    /// from then on.
    pub fn boot(
        settings: Settings,
        disk: &mut dyn LogDisk,
        image: Option<ImageState>,
        ring: Ring,
        suspects: Suspects,
        clock: impl FnOnce() -> Now,
    ) -> Result<Node, BootError> {
        if image.is_some() != settings.shape.is_copy(settings.me) {
            return Err(BootError::Image);
        }
        let held = settings.durability == Durability::Ups;
        assert_eq!(
            ring.outlives(),
            held,
            "records count in memory that outlives the process alone"
        );
        let (mut durable, sequence) = read_view_file(&settings, disk)?;
        refuse_newer_log(disk)?;
        let log_settings = log_settings(&settings, durable.incarnation.start + 1);
        refuse_other_segments(&log_settings, disk)?;
        let evidence = evidence(&settings, &durable, disk, &ring);
        let recovered = harp_log::recover_by(disk, ring.clone(), log_settings, evidence)?;
        // The last thing before the server may speak, all at once: its start, where its records count from now on,
        // and that no mark of the start before counts any more.
        durable.incarnation.start += 1;
        durable.memory = ring.memory_head().map_or(0, |memory| memory.id());
        let sequence = sequence + 1;
        disk.write_slot(SlotFile::View, (sequence % 2) as usize, &durable.encode(sequence))?;
        let mut log = recovered.log;
        let intact = recovered.verdict == Verdict::Intact && !durable.log_void;
        let amnesia = match &recovered.verdict {
            Verdict::Amnesia(why) => Some(why.to_string()),
            Verdict::Intact if durable.log_void => Some("a write to it failed".into()),
            Verdict::Intact => None,
        };
        // An image whose loading was interrupted is loaded anew, and so is one that the log does not reach.
        let reached = |i: &ImageState| !intact || i.lb + 1 >= log.current().begin();
        let image = image.map(|i| if i.whole && reached(&i) { i } else { ImageState::empty() });
        let image_whole = image.as_ref().is_some_and(|i| i.whole);
        let lb = image.as_ref().map(|i| i.lb);
        if !intact {
            // Amnesia: the log counts for nothing until a view change brings a whole one.
            let begin = lb.unwrap_or(0) + 1;
            let mut commands = Vec::new();
            log.reset(begin, &mut commands);
            run_all(&mut commands, disk, &ring, &mut log)?;
        }
        let body = log.current();
        let tag = body.tag().map(View).filter(|tag| intact && *tag >= durable.formed);
        let facts =
            LogFacts { begin: Op(body.begin()), end: Op(body.end()), durable: Op(log.held()) };
        let members = ServerSet(body.members());
        let cp = if intact { Op(recovered.cp_known.min(body.end())) } else { Op::ZERO };
        let start = Start {
            durable,
            persist_sequence: sequence,
            log: facts,
            tag,
            tag_members: members,
            tag_configuration: head_configuration(log.extra()),
            cp,
            image: lb.map(Op),
            image_whole,
        };
        let now = clock();
        let replica = Replica::new(replica_settings(&settings), start, now.steady);
        let redo = Redo::starting(log.current().end(), suspects);
        let mut node = Node::assemble(settings, replica, log, image, ring, now);
        let says = |why| format!("the log is not intact and counts for nothing here: {why}");
        node.remark = amnesia.map(says);
        node.redo = Some(redo);
        Ok(node)
    }

    fn assemble(
        settings: Settings,
        mut replica: Replica,
        log: Log,
        image: Option<ImageState>,
        ring: Ring,
        now: Now,
    ) -> Node {
        let body = log.current();
        // Records that are gone from the log may be newer than all that are left.
        let mut newest_time = image.as_ref().map_or(0, |image| image.clients.log_time());
        for op in body.memory_begin().max(body.begin())..=body.end() {
            let record = body.record(op).expect("in memory");
            newest_time = newest_time.max(record.header.time);
            if record.header.kind == kind::CONFIGURATION
                && let Ok(change) = record::configuration(record.body)
            {
                replica.on_configuration(Op(op), change);
            }
        }
        let copy = image.map(|image| Copy {
            shadow: Shadow::new(shadow_settings(&settings), image.lb),
            shadow_op: image.lb,
            lb: image.lb,
            clients: image.clients,
            checkpoint: None,
            log_bytes: 0,
            last_checkpoint: now.steady,
            reloading: false,
            barrier: None,
            digesting: None,
            digest: None,
            draining: false,
            filling: false,
            load: (!image.whole).then(|| Load::new(now.steady)),
            reading_parts: ServerSet::EMPTY,
            lent: Vec::new(),
            repair: Default::default(),
            debits: Debits::starting(image.lb),
            no_room: false,
            halted: false,
        });
        let volume = volume(&settings);
        let mut node = Node {
            settings,
            replica,
            log,
            bytes: RingBytes(ring),
            volume,
            copy,
            actions: Vec::new(),
            conns: Default::default(),
            awaiting: Default::default(),
            held: Vec::new(),
            early: Vec::new(),
            waiting: Vec::new(),
            users: Default::default(),
            needs: Vec::new(),
            next_fetch: 1,
            scratch: Vec::new(),
            newest_time,
            unsealed_bytes: 0,
            unsealed: 0,
            kept_bytes: 0,
            gather: Default::default(),
            gather_until: None,
            write_since: None,
            fed: false,
            mark_since: None,
            on_battery: false,
            behind_since: None,
            write_out: None,
            adopting: None,
            stage_wanted: None,
            last_write_end: harp_log::LogPos(0),
            failing: false,
            bound_warned: false,
            reads: Default::default(),
            next_read: 1,
            verify: None,
            next_tick: Nanos(0),
            accesses_at: now.steady,
            redo: None,
            killed: false,
            remark: None,
        };
        node.trim();
        node
    }
}

fn read_view_file(
    settings: &Settings,
    disk: &mut dyn LogDisk,
) -> Result<(Durable, u64), BootError> {
    let slots = [disk.read_slot(SlotFile::View, 0)?, disk.read_slot(SlotFile::View, 1)?];
    if slots.iter().flatten().any(|slot| Durable::is_newer(slot)) {
        return Err(BootError::Newer);
    }
    if slots.iter().flatten().any(|slot| Durable::is_older(slot)) {
        return Err(BootError::Older);
    }
    let newest = Durable::newest([slots[0].as_deref(), slots[1].as_deref()]);
    let (durable, sequence) = newest.ok_or(BootError::MediaLoss)?;
    if durable.group != settings.group {
        return Err(BootError::OtherGroup { found: durable.group });
    }
    Ok((durable, sequence))
}

/// A log of a newer version is no amnesia: this version would write over it.
fn refuse_newer_log(disk: &mut dyn LogDisk) -> Result<(), BootError> {
    for slot in 0..2 {
        // What cannot be read is recovery's to judge.
        if let Ok(Some(bytes)) = disk.read_slot(SlotFile::LogHead, slot)
            && harp_log::head_is_newer(&bytes)
        {
            return Err(BootError::Newer);
        }
    }
    Ok(())
}

/// A log in segments that the settings do not allow is no amnesia either, and nothing may change before they are
/// set right: a start that counted would void a mark that the log was written out.
fn refuse_other_segments(settings: &LogSettings, disk: &mut dyn LogDisk) -> Result<(), BootError> {
    let slots = [0, 1].map(|slot| disk.read_slot(SlotFile::LogHead, slot).ok().flatten());
    match head_geometry(&slots) {
        Some((segment_bytes, segments_max)) if !settings.allow(segment_bytes, segments_max) => {
            Err(BootError::Segments { segment_bytes, segments_max })
        }
        _ => Ok(()),
    }
}

/// What is to say whether the log is whole: it depends on where its records counted in the last life.
fn evidence(
    settings: &Settings,
    durable: &Durable,
    disk: &mut dyn LogDisk,
    ring: &Ring,
) -> Evidence {
    let Incarnation { disk: disk_id, start } = durable.incarnation;
    if durable.memory == 0 {
        return Evidence::Marks;
    }
    if ring.memory_head().is_some_and(|memory| memory.id() == durable.memory) {
        return Evidence::Memory;
    }
    match settings.planted {
        Some(Planted::TornWriteOutIsIntact) => Evidence::Marks,
        Some(Planted::CleanMarkNotVoided) if is_marked_clean(disk) => Evidence::Marks,
        _ => Evidence::CleanMark { disk: disk_id, start },
    }
}

/// Whether the newest head has a mark that the log was written out, of whatever start.
fn is_marked_clean(disk: &mut dyn LogDisk) -> bool {
    let slots = [0, 1].map(|slot| disk.read_slot(SlotFile::LogHead, slot).ok().flatten());
    let heads = slots.iter().flatten().filter_map(|slot| head_clean(slot));
    heads.max_by_key(|(sequence, _)| *sequence).is_some_and(|(_, clean)| clean.is_some())
}

/// Carries out commands on the spot: there is no loop to disturb yet.
fn run_all(
    commands: &mut Vec<harp_log::DiskCommand>,
    disk: &mut dyn LogDisk,
    ring: &Ring,
    log: &mut Log,
) -> Result<(), BootError> {
    while !commands.is_empty() {
        for command in std::mem::take(commands) {
            let done = command.run(disk, ring);
            if let harp_log::DiskDone::Failed { error, .. } = done {
                return Err(BootError::Disk(error));
            }
            log.on_disk(&done);
        }
        if !log.ring().outlives() {
            log.seal(0, commands);
        }
    }
    Ok(())
}

fn replica_settings(settings: &Settings) -> harp_vr::Settings {
    harp_vr::Settings {
        shape: settings.shape,
        me: settings.me,
        heartbeat: settings.heartbeat,
        failure_timeout: settings.failure_timeout,
        lease: settings.lease,
        clock_drift_ppm: settings.clock_drift_ppm,
        ack_received: settings.durability == Durability::Ups,
        planted: settings.planted.filter(|p| *p != Planted::SyncFailureIgnored),
    }
}

fn shadow_settings(settings: &Settings) -> ShadowSettings {
    let secret = settings.handle_key[..8].try_into().expect("eight bytes");
    ShadowSettings {
        cache_bytes: settings.cache_bytes as usize,
        filter_bytes: settings.cache_bytes as usize / 4,
        seed: u64::from_le_bytes(secret),
        access_times: settings.access_times,
    }
}

fn volume(settings: &Settings) -> Volume {
    let inodes = u64::MAX / 2;
    Volume::new(&settings.group, 1, &settings.handle_key, 0, settings.capacity_blocks, inodes)
}
