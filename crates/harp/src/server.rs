//! One server as a process: opens what is its own, boots the node, turns the loop.
//! Owns: the order in which a server comes up, and its signals.
//! Never: takes an emptied directory for a first start; it is media loss (rule 4), and says so.
//! Invariant: one process at a time serves from one directory, by its lock.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harp_node::log::{DiskCommand, DiskRunner, LogDisk, MemoryTie, Ring, SlotFile};
use harp_node::vr::{Durable, ServerId};
use harp_node::{BootError, Durability, GroupSource, Node, StoreJob, image_state};
use rustix::process::{Resource, Rlimit, Signal};

use crate::admin::Admins;
use crate::clock;
use crate::config::{Config, Place, durability_name, to_hex};
use crate::control::ToSupervisor;
use crate::error::HarpError;
use crate::eventloop::{Door, End, EventLoop, Parts, StoreWorkers, Workers};
use crate::formatting;
use crate::gate::{self, Gate};
use crate::handshake::{Identity, PROTOCOL_VERSION};
use crate::image::{self, Image};
use crate::links::Links;
use crate::lock::Lock;
use crate::logdisk::FileLogDisk;
use crate::outliving::{self, Outliving};
use crate::poller::Poller;
use crate::relay::Relays;
use crate::reserve::Reserve;
use crate::ringmem::RingMapping;
use crate::rpcbind::{self, Registration};
use crate::serverdir::{self, Contents};
use crate::space::{Watch, reserve_parts};
use crate::suspects::SuspectsFile;
use crate::users;
use crate::worker::{Bell, Courtesy, Pace, Worker};

/// The signals that a process listens to.
pub struct Signals {
    /// Readable when one arrived.
    pub fd: OwnedFd,
    low: Arc<AtomicBool>,
}

/// SIGPWR: the battery is low.
const SIGPWR: i32 = Signal::POWER.as_raw();

impl Signals {
    /// Listens to SIGTERM, SIGINT and SIGPWR from now on.
    pub fn new() -> Result<Signals, HarpError> {
        let failed = |error| HarpError::io("watch for signals", error);
        let (read, write) = UnixStream::pair().map_err(failed)?;
        read.set_nonblocking(true).map_err(failed)?;
        let low = Arc::new(AtomicBool::new(false));
        // The flag first: whoever is woken finds it.
        signal_hook::flag::register(SIGPWR, low.clone()).map_err(failed)?;
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, SIGPWR] {
            let write = write.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(signal, write).map_err(failed)?;
        }
        Ok(Signals { fd: read.into(), low })
    }

    /// Takes note of what arrived. Returns whether it was SIGPWR.
    pub fn take(&self) -> bool {
        let mut bytes = [0; 16];
        // How many there were does not matter.
        let _ = rustix::io::read(&self.fd, &mut bytes);
        self.low.swap(false, Ordering::Relaxed)
    }
}

/// Lets the process have as many descriptors as it may.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused: fewer clients, nothing worse.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

/// Ties this process's life to its supervisor's; `control` is the descriptor it was given.
pub fn tie_to_supervisor(control: impl AsFd) -> Result<OwnedFd, HarpError> {
    // The supervisor may have ended already: then the control socket says so.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| HarpError::io("tie this process to its supervisor", error))?;
    control
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| HarpError::io("take the control socket", error))
}

/// Runs the server `me` until it is asked to end.
pub fn serve(config: &Config, me: ServerId, control: Option<OwnedFd>) -> Result<(), HarpError> {
    raise_descriptor_limit();
    let signals = Signals::new()?;
    let dir = config.server_dir(me);
    if let Place::Machines(_) = config.place {
        formatting::demand(config, me)?;
    }
    std::fs::create_dir_all(&dir).map_err(|error| HarpError::file("create", &dir, error))?;
    let _lock = Lock::take(&dir.join("lock"))?;
    // First of all, so that a peer that starts at the same time connects at once.
    let address = config.peers[me.index()];
    let listener = TcpListener::bind(address).map_err(|error| {
        HarpError::listen("peers", address, &format!("server.{me}.peer"), error)
    })?;
    // Clients wait in its queue until somebody serves.
    let gate = match config.place {
        Place::Here { .. } => None,
        Place::Machines(_) => Some(gate::listen(config.nfs(me), &format!("server.{me}.nfs"))?),
    };
    let mut remarks = Vec::new();
    // Before the server takes part, for it may have to wait; kept until the server ends.
    let _registration = config.register_rpcbind.then(|| {
        let (registration, faults) = Registration::make(rpcbind::ADDRESS, config.nfs(me).port());
        remarks.extend(faults);
        registration
    });
    match serverdir::contents(&dir)? {
        Contents::Formatted => {}
        Contents::Empty | Contents::Unfinished => {
            serverdir::format(config, me, false)?;
            remarks.push(format!(
                "media loss: {} was empty; formatted anew under another disk id",
                dir.display()
            ));
        }
    }
    let parts = boot(config, me, (listener, gate), control, signals)?;
    let mut turning = EventLoop::new(parts)?;
    turning.tell(ToSupervisor::Started);
    for text in remarks {
        turning.tell(ToSupervisor::Remark { text });
    }
    match turning.run()? {
        End::Asked => Ok(()),
        End::PowerLow => Err(HarpError::PowerLow),
        End::Fatal(why) => Err(HarpError::Fatal { why }),
    }
}

fn boot(
    config: &Config,
    me: ServerId,
    (listener, gate): (TcpListener, Option<TcpListener>),
    control: Option<OwnedFd>,
    signals: Signals,
) -> Result<Parts, HarpError> {
    let dir = config.server_dir(me);
    let settings = config.settings(me);
    let tuning = &config.tuning;
    let (part_bytes, parts) = reserve_parts(tuning);
    let reserve = Reserve::open(&dir, part_bytes, parts).map(Arc::new);
    let reserve = reserve.map_err(|error| HarpError::file("open the reserve in", &dir, error))?;
    let mut disk = FileLogDisk::open(&dir, tuning.segment_bytes, tuning.segments_max)
        .map_err(|error| HarpError::file("open the log in", &dir, error))?
        .with_room(reserve.for_log());
    let disk_id = check_view_file(config, me, &mut disk)?;
    let (mapping, ring, memory) = match config.durability {
        Durability::Disk => {
            let mapping = Arc::new(RingMapping::new(tuning.ring_bytes as usize)?);
            (mapping.clone(), Ring::new(mapping), None)
        }
        Durability::Ups => {
            let (boot, group) = (outliving::boot_id()?, config.id);
            let tie = MemoryTie { boot, group, server: me.0, disk: disk_id };
            let Outliving { ring, mapping } =
                Outliving::open(&config.memory_dir, &tie, tuning.ring_bytes)?;
            (mapping, ring, Some((config.memory_dir.clone(), tie)))
        }
    };
    std::thread::Builder::new()
        .name("harp-warm".into())
        .spawn(move || {
            Pace::Background.take();
            mapping.warm();
        })
        .map_err(|error| HarpError::io("start a thread", error))?;
    let image = match settings.shape.is_copy(me) {
        true => {
            let make_room = reserve.for_store(disk.free_bytes());
            Some(image::open(&dir.join("store"), tuning, &config.id, make_room)?)
        }
        false => None,
    };
    let state = image.as_ref().map(image_state).transpose();
    let state = state.map_err(|error| HarpError::Fatal { why: format!("the image: {error}") })?;
    let (suspects, left) = SuspectsFile::open(&dir)?;
    let node = Node::boot(settings, &mut disk, state, ring.clone(), left, clock::now)
        .map_err(|error| cannot_boot(config, me, error))?;
    let room = (reserve.clone(), disk.free_bytes());
    let watch = Watch::new(config, me, room, image.clone());
    let workers = start_workers(disk, image, watch, config.export.groups, &ring)?;
    let poller = Poller::new()?;
    let identity = Identity {
        group: config.id,
        key: config.peer_key,
        me,
        servers: config.peers.len() as u8,
        version: PROTOCOL_VERSION,
    };
    let door = match gate {
        None => None,
        Some(gate) => Some(Door {
            gate: Gate::new(gate, &poller)?,
            relays: Relays::new(identity.clone(), &config.peers),
        }),
    };
    let links = Links::new(identity, listener, &config.peers, clock::steady(), &poller)?;
    let admins = Admins::listen(&config.admin_socket(me), &poller)?;
    let durability = durability_name(config.durability);
    Ok(Parts {
        node,
        suspects,
        ring,
        workers,
        reserve,
        links,
        admins,
        control,
        door,
        signals,
        poller,
        durability,
        memory,
    })
}

/// Why a server does not come up from its directory, and what to do.
fn cannot_boot(config: &Config, me: ServerId, error: BootError) -> HarpError {
    let dir = config.server_dir(me);
    let shown = dir.display();
    match error {
        BootError::MediaLoss => {
            let why = "its view file is damaged, so it may have forgotten promises".into();
            HarpError::MediaLoss { dir, why }
        }
        BootError::OtherGroup { found } => {
            let (found, mine, file) = (to_hex(&found), to_hex(&config.id), config.file.display());
            HarpError::Refused {
                why: format!(
                    "{shown} belongs to another group, {found}; {file} is of group {mine}: nothing was touched; \
                     check the file and the directory"
                ),
            }
        }
        error => {
            HarpError::Fatal { why: format!("server {me} cannot start from {shown}: {error}") }
        }
    }
}

/// A server without its view file has forgotten what it promised: media loss, never a first start. One of another
/// group is the wrong directory, or the wrong configuration. Returns the disk's id; 0 if the file is damaged.
fn check_view_file(
    config: &Config,
    me: ServerId,
    disk: &mut FileLogDisk,
) -> Result<u64, HarpError> {
    let slots = [disk.read_slot(SlotFile::View, 0)?, disk.read_slot(SlotFile::View, 1)?];
    if slots[0].is_none() {
        let (dir, why) = (config.server_dir(me), "its view file is missing".into());
        return Err(HarpError::MediaLoss { dir, why });
    }
    match Durable::newest([slots[0].as_deref(), slots[1].as_deref()]) {
        Some((Durable { group: found, .. }, _)) if found != config.id => {
            Err(cannot_boot(config, me, BootError::OtherGroup { found }))
        }
        Some((durable, _)) => Ok(durable.incarnation.disk),
        // What else may be wrong with it the node finds.
        None => Ok(0),
    }
}

fn start_workers(
    mut disk: FileLogDisk,
    image: Option<Image>,
    mut watch: Watch,
    groups: GroupSource,
    ring: &Ring,
) -> Result<Workers, HarpError> {
    let bell = Bell::new()?;
    let of_log = ring.clone();
    let mut runner = DiskRunner::default();
    let run = move |command: DiskCommand| runner.run(command, &mut disk, &of_log);
    let log = Worker::start("harp-log", bell.clone(), Pace::Prompt, run)?;
    let store = match image {
        None => None,
        Some(image) => {
            let start = |name, pace| {
                let (image, ring) = (image.clone(), ring.clone());
                let courtesy = Courtesy::default();
                let run = move |job: StoreJob| job.run(&image, &ring, &|| courtesy.pause());
                Worker::start(name, bell.clone(), pace, run)
            };
            let fetch = start("harp-fetch", Pace::Prompt)?;
            let checkpoint = start("harp-store", Pace::Background)?;
            Some(StoreWorkers { fetch, checkpoint })
        }
    };
    let space = Worker::start("harp-space", bell.clone(), Pace::Prompt, move |()| watch.look())?;
    let users = match groups {
        GroupSource::Client => None,
        GroupSource::Server => {
            let look_up = |uid| (uid, users::look_up(uid));
            let worker = Worker::start("harp-users", bell.clone(), Pace::Prompt, look_up)?;
            Some(worker.unawaited())
        }
    };
    Ok(Workers { bell, log, store, space, users })
}
