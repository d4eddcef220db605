//! `harp up`: a whole local group, supervised.
//! Owns: the group's directory and its formatting, the servers' processes, the clients' address.
//! Never: touches a server's own directory once the group is formatted.
//! Invariant: servers end when the supervisor ends, however it ends.
//! Source: README.md, "Commands".

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harp_node::fs::key::RootOwner;
use harp_node::vr::{Nanos, ServerId, ServerSet, Shape, View};
use harp_node::{Durability, Export, Network, Squash};
use rustix::process::Signal;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::children::{Children, Death, Pauses};
use crate::clock::{NANOS_PER_MS, steady};
use crate::config::{
    Config, FILE_NAME, MEMORY_DIR_DEFAULT, Place, Tuning, UNFINISHED_NAME, durability_name,
};
use crate::configcheck::SEGMENT_MIN;
use crate::control::{self, Packet, ToSupervisor};
use crate::error::HarpError;
use crate::front::Front;
use crate::http::{self, Http};
use crate::lock::Lock;
use crate::outliving::demand_memory;
use crate::poller::{Interest, Poller, Source};
use crate::reserve::left_bytes;
use crate::server::{Signals, raise_descriptor_limit};
use crate::serverdir;

/// Where clients connect unless told otherwise.
pub const NFS_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2049);
/// Where operators connect unless told otherwise.
pub const ADMIN_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8049);
/// Copies unless told otherwise.
pub const COPIES_DEFAULT: u8 = 2;
/// Ports for links are drawn from here: below those that the kernel gives to outgoing connections.
const PEER_PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How long servers may take to end when asked.
const STOP_MS: u64 = 10_000;
/// What the file system may hold at least.
const CAPACITY_BYTES_MIN: u64 = 1 << 30;

/// What the command line asks for; `None`: what the group has, or the default.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// The group's directory.
    pub dir: PathBuf,
    /// How many servers hold the files.
    pub copies: Option<u8>,
    /// When a record counts as held; a new group's alone.
    pub durability: Option<Durability>,
    /// Where clients connect.
    pub nfs: Option<SocketAddr>,
    /// Where operators connect.
    pub admin: Option<SocketAddr>,
    /// The networks whose clients may connect; a new group's alone.
    pub allow: Vec<Network>,
}

/// Says something on standard output; nobody listening is no fault.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], HarpError> {
    let mut bytes = [0; BYTES];
    let got = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| HarpError::io("draw random bytes", error))?;
    assert_eq!(got, BYTES, "the kernel gives few bytes at once");
    Ok(bytes)
}

/// Free ports of the loopback address, one for each server.
fn free_peer_addresses(count: usize) -> Result<Vec<SocketAddr>, HarpError> {
    let drawn = u16::from_le_bytes(random()?);
    let start = PEER_PORTS.start + drawn % PEER_PORTS.len() as u16;
    let ports = (start..PEER_PORTS.end).chain(PEER_PORTS.start..start);
    let addresses = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let free: Vec<_> =
        addresses.filter(|address| TcpListener::bind(address).is_ok()).take(count).collect();
    if free.len() < count {
        let why = format!("no {count} free ports between 20000 and 31999 for the servers' links");
        return Err(HarpError::Refused { why });
    }
    Ok(free)
}

/// What fits a disk with `free` bytes: each copy may hold its share of four fifths, and on a small disk the logs
/// and what is kept for need are small, so that they leave three quarters to the files.
fn tuning(free: u64, servers: usize, copies: u8) -> Tuning {
    let mut tuning = Tuning::default();
    let takes = |t: &Tuning| servers as u64 * (2 * t.ring_bytes + 8 * t.segment_bytes);
    while takes(&tuning) > free / 4 && tuning.segment_bytes > SEGMENT_MIN {
        tuning.ring_bytes /= 2;
        tuning.segment_bytes /= 2;
        tuning.checkpoint_bytes /= 2;
    }
    let share = free / 5 * 4 / copies as u64;
    tuning.capacity_bytes = (share & !0xf_ffff).max(CAPACITY_BYTES_MIN);
    tuning
}

impl Config {
    /// Makes a new local group's records count in memory; the servers' rings take half of what there is at most.
    fn hold_in_memory(&mut self) -> Result<(), HarpError> {
        demand_memory(&self.memory_dir)?;
        let free = left_bytes(&self.memory_dir).map_err(|error| {
            HarpError::file("look at the free space of", &self.memory_dir, error)
        })?;
        self.durability = Durability::Ups;
        let tuning = &mut self.tuning;
        while self.peers.len() as u64 * tuning.ring_bytes > free / 2
            && tuning.segment_bytes > SEGMENT_MIN
        {
            tuning.ring_bytes /= 2;
            tuning.segment_bytes = tuning.segment_bytes.min(tuning.ring_bytes / 4).max(SEGMENT_MIN);
            tuning.checkpoint_bytes =
                tuning.checkpoint_bytes.min(tuning.ring_bytes / 4).max(1 << 20);
        }
        Ok(())
    }
}

/// An export to this machine and these networks. If there are any, root is squashed.
pub fn export_to(allow: &[Network]) -> Export {
    let mut export = Export::default();
    export.allow.extend_from_slice(allow);
    if export.is_beyond_loopback() {
        export.squash = Squash::Root;
    }
    export
}

/// A new local group's configuration, with fresh identities and keys.
pub fn new_config(
    dir: &Path,
    copies: u8,
    (nfs, admin): (SocketAddr, SocketAddr),
    export: Export,
) -> Result<Config, HarpError> {
    let servers = (Shape { n: copies - 1 }).servers().count();
    let free = left_bytes(dir)
        .map_err(|error| HarpError::file("look at the free space of", dir, error))?;
    Ok(Config {
        file: dir.join(FILE_NAME),
        name: "harp".into(),
        id: random()?,
        copies,
        durability: Durability::Disk,
        memory_dir: MEMORY_DIR_DEFAULT.into(),
        peer_key: random()?,
        handle_key: random()?,
        place: Place::Here { nfs, admin },
        export,
        root: RootOwner::default(),
        register_rpcbind: false,
        peers: free_peer_addresses(servers)?,
        tuning: tuning(free, servers, copies),
    })
}

/// Formats a whole new group: all servers first, then the configuration gets its name.
pub fn format_group(config: &Config) -> Result<(), HarpError> {
    config.write_unfinished()?;
    std::thread::scope(|scope| {
        let formatting: Vec<_> = config
            .shape()
            .servers()
            .map(|server| scope.spawn(move || serverdir::format(config, server, true)))
            .collect();
        let ended = formatting.into_iter().map(|thread| thread.join().expect("no panic"));
        ended.collect::<Vec<_>>().into_iter().collect::<Result<(), HarpError>>()
    })?;
    config.publish()
}

/// Makes way for a new group: removes what an unfinished format left. Errors if there is anything else.
fn clear_unfinished(dir: &Path) -> Result<(), HarpError> {
    let unfinished = dir.join(UNFINISHED_NAME).exists();
    for server in (Shape { n: 2 }).servers() {
        let path = dir.join(server.to_string());
        if !path.exists() {
            continue;
        }
        if !unfinished {
            let why = format!(
                "{} exists but {} does not: bring it back, or remove the servers' directories",
                path.display(),
                dir.join(FILE_NAME).display()
            );
            return Err(HarpError::Refused { why });
        }
        std::fs::remove_dir_all(&path).map_err(|error| HarpError::file("remove", &path, error))?;
    }
    Ok(())
}

/// Runs a local group until a signal asks for its end.
pub fn up(options: &UpOptions) -> Result<(), HarpError> {
    raise_descriptor_limit();
    let signals = Signals::new()?;
    let dir = &options.dir;
    std::fs::create_dir_all(dir).map_err(|error| HarpError::file("create", dir, error))?;
    let _lock = Lock::take(&dir.join("harp.lock"))?;
    let file = dir.join(FILE_NAME);
    let known = if file.exists() { Some(Config::read(&file)?) } else { None };
    if let (Some(config), Some(copies)) = (&known, options.copies)
        && config.copies != copies
    {
        let why = format!("{} has {} copies, not {copies}", file.display(), config.copies);
        return Err(HarpError::Refused { why });
    }
    let written = match known.as_ref().map(|config| &config.place) {
        None => (NFS_DEFAULT, ADMIN_DEFAULT),
        Some(Place::Here { nfs, admin }) => (*nfs, *admin),
        Some(Place::Machines(_)) => {
            let file = file.display();
            let why = format!(
                "{file} is of a group over several machines: harp serve --config {file} --node NAME \
                 runs one server of it"
            );
            return Err(HarpError::Refused { why });
        }
    };
    if let (Some(config), Some(durability)) = (&known, options.durability)
        && config.durability != durability
    {
        let (file, has) = (file.display(), durability_name(config.durability));
        let why = format!(
            "{file} has durability \"{has}\": set group.durability there, once all servers were stopped cleanly"
        );
        return Err(HarpError::Refused { why });
    }
    if known.is_some() && !options.allow.is_empty() {
        let why = format!("the group exists: set export.allow in {} instead", file.display());
        return Err(HarpError::Refused { why });
    }
    let nfs = options.nfs.unwrap_or(written.0);
    let admin = options.admin.unwrap_or(written.1);
    let front = Front::listen(nfs)?;
    let operators = http::bind(admin)?;
    let admin = operators.local_addr().unwrap_or(admin);
    let config = match known {
        Some(config) => Config { place: Place::Here { nfs: front.address(), admin }, ..config },
        None => {
            clear_unfinished(dir)?;
            let copies = options.copies.unwrap_or(COPIES_DEFAULT);
            let export = export_to(&options.allow);
            let mut config = new_config(dir, copies, (front.address(), admin), export)?;
            if options.durability == Some(Durability::Ups) {
                config.hold_in_memory()?;
            }
            format_group(&config)?;
            config
        }
    };
    print_how_to_mount(&config, front.address(), admin);
    let operators = Http::new(operators, config.clone())?;
    Supervisor::new(&config, front, operators)?.run(signals)
}

fn print_how_to_mount(config: &Config, nfs: SocketAddr, admin: SocketAddr) {
    let port = nfs.port();
    let host = match nfs.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) if address.is_unspecified() => "[::1]".to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let (servers, copies) = (config.peers.len(), config.copies);
    let durability = durability_name(config.durability);
    let dir = config.dir().display();
    say(&format!("{servers} servers, {copies} copies, durability {durability}, in {dir}"));
    say(&format!(
        "mount with: mount -t nfs -o vers=3,proto=tcp,port={port},mountport={port},nolock {host}:/ /mnt"
    ));
    say(&format!("or libnfs:  nfs://{host}/?nfsport={port}&mountport={port}"));
    say(&format!("status:     harp status --dir {dir}, or http://{admin}/status"));
    if !nfs.ip().is_loopback() && !config.export.is_beyond_loopback() {
        let file = config.file.display();
        say(&format!(
            "only loopback addresses may connect: name the clients' networks in export.allow in {file}"
        ));
    }
}

/// The supervisor's loop.
struct Supervisor {
    front: Front,
    children: Children,
    operators: Http,
    poller: Poller,
    durability: Durability,
    ready: bool,
    since: Nanos,
    formed: View,
    refusals: Vec<String>,
    /// Set once all is to end: when the servers' time is up.
    stop_by: Option<Nanos>,
    /// The battery is low: servers write their logs out and end, however long that takes.
    power_low: bool,
    /// Those who heed signals.
    started: ServerSet,
}

impl Supervisor {
    /// Says what happened, and how many seconds after the start.
    fn tell(&self, event: &str) {
        let ms = steady().since(self.since) / NANOS_PER_MS;
        say(&format!("{:>6}.{:03} s  {event}", ms / 1000, ms % 1000));
    }

    fn new(config: &Config, front: Front, operators: Http) -> Result<Supervisor, HarpError> {
        let poller = Poller::new()?;
        front.watch(&poller)?;
        poller.add(operators.listener(), Source::AdminListener, Interest::READ)?;
        let program = std::env::current_exe()
            .map_err(|error| HarpError::io("find this program's file", error))?;
        let file = config.file.clone();
        let port = front.address().port();
        let command = move |server: ServerId| {
            // A program replaced since is still there under this name.
            let kept = Path::new("/proc/self/exe");
            let mut command = Command::new(if program.exists() { &program } else { kept });
            command.arg0("harp").arg("serve").arg("--config").arg(&file);
            command.arg("--node").arg(server.to_string());
            command.arg("--nfs-port").arg(port.to_string()).arg("--supervised");
            // Not in the terminal's group: Ctrl-C is for the supervisor, which asks them to end.
            command.stdout(Stdio::null()).process_group(0);
            command
        };
        let servers = config.peers.len();
        Ok(Supervisor {
            front,
            children: Children::new(servers, Pauses::default(), steady(), command),
            operators,
            poller,
            durability: config.durability,
            ready: false,
            since: steady(),
            formed: View::NONE,
            refusals: vec![String::new(); servers],
            stop_by: None,
            power_low: false,
            started: ServerSet::EMPTY,
        })
    }

    fn run(mut self, signals: Signals) -> Result<(), HarpError> {
        self.poller.add(&signals.fd, Source::Signal, Interest::READ)?;
        loop {
            let now = steady();
            match self.stop_by {
                _ if self.power_low && !self.children.any_running() => {
                    return Err(HarpError::PowerLow);
                }
                None if self.power_low => {}
                None => self.start_due(now),
                Some(_) if !self.children.any_running() => return Ok(()),
                Some(by) if by <= now => self.children.signal_all(Signal::KILL),
                Some(_) => {}
            }
            let deadlines = match self.stop_by {
                None if self.power_low => [None, None],
                None => [self.children.deadline(), self.front.deadline()],
                Some(by) if by > now => [Some(by), None],
                Some(_) => [None, None],
            };
            let until = deadlines.into_iter().flatten().min();
            for index in 0..self.poller.wait(now, until)? {
                match self.poller.event(index).source {
                    Source::Signal => self.on_signal(&signals),
                    Source::Child(server) => self.on_child(ServerId(server as u8)),
                    Source::Control(server) => self.on_control(ServerId(server as u8)),
                    Source::AdminListener => self.operators.on_listener(),
                    Source::ClientListener => {}
                    other => unreachable!("a supervisor does not watch {other:?}"),
                }
            }
            if self.stop_by.is_none() {
                self.accept();
            }
        }
    }

    fn start_due(&mut self, now: Nanos) {
        for (server, outcome) in self.children.start_due(now, &self.poller) {
            match outcome {
                Ok(pid) => self.tell(&format!("server {server} started, pid {pid}")),
                Err(error) => self.tell(&format!("{error}")),
            }
        }
    }

    fn accept(&mut self) {
        let control = self.front.serving().and_then(|(server, _)| self.children.control(server));
        self.front.accept(control, steady(), &self.poller);
    }

    /// The first signal asks the servers to end, the second ends them.
    fn on_signal(&mut self, signals: &Signals) {
        if signals.take() {
            return self.on_power_low();
        }
        if self.stop_by.is_some() {
            self.stop_by = Some(steady());
            return;
        }
        self.tell("stopping");
        self.stop_by = Some(steady().plus(STOP_MS * NANOS_PER_MS));
        self.children.signal_all(Signal::TERM);
        // A stopped process hears nothing before it goes on.
        self.children.signal_all(Signal::CONT);
    }

    /// Those who have not heard of it are told, also those who are stopped, and those who were to be started again: each
    /// has its log in memory. Where the log is on the disk nothing need happen.
    fn on_power_low(&mut self) {
        if self.durability == Durability::Ups && !self.power_low && self.stop_by.is_none() {
            self.power_low = true;
            self.tell("the battery is low: the servers write their logs out, and all ends");
            self.started.iter().for_each(|server| self.children.signal(server, Signal::POWER));
            self.children.signal_all(Signal::CONT);
            self.children.wake(steady());
            self.start_due(steady());
        }
    }

    fn on_child(&mut self, server: ServerId) {
        // Its last words first.
        self.on_control(server);
        let Some(Death { status, pause, .. }) = self.children.reap(server, steady()) else {
            return;
        };
        self.started.remove(server);
        let served = self.front.on_dead(server, &self.poller);
        if self.stop_by.is_some() || self.power_low {
            return;
        }
        let seconds = pause / (1000 * NANOS_PER_MS);
        self.tell(&format!("server {server} died ({status}); starting it again in {seconds} s"));
        if served {
            self.tell("clients wait: no server serves");
        }
    }

    fn on_control(&mut self, server: ServerId) {
        loop {
            let Some(control) = self.children.control(server) else { return };
            match control::receive::<ToSupervisor>(control) {
                Packet::Message(message, _) => self.on_message(server, message),
                Packet::Garbled => self.tell(&format!("server {server} said what makes no sense")),
                Packet::Nothing => return,
                // The process's end is what counts.
                Packet::Closed => return self.children.ignore_control(server, &self.poller),
            }
        }
    }

    fn on_message(&mut self, server: ServerId, message: ToSupervisor) {
        match message {
            ToSupervisor::Started => {
                self.started.insert(server);
                if self.power_low {
                    return self.children.signal(server, Signal::POWER);
                }
                self.tell(&format!("server {server} takes part"));
            }
            ToSupervisor::Serving { view } => self.on_serving(server, View(view)),
            ToSupervisor::Stopped { view } => {
                if self.front.on_stopped(server, View(view), &self.poller) {
                    self.tell(&format!("server {server} serves no more; clients wait"));
                }
            }
            ToSupervisor::Formed { view, .. } if View(view) > self.formed => {
                self.formed = View(view);
                self.refusals.iter_mut().for_each(String::clear);
                self.tell(&message.to_string());
            }
            ToSupervisor::Formed { .. } => {}
            ToSupervisor::Taken { handle } => self.front.on_taken(server, handle),
            ToSupervisor::Closed { handle } => {
                self.front.on_closed(server, handle, &self.poller);
            }
            ToSupervisor::Refusing { why } => {
                if self.refusals[server.index()] != why {
                    self.tell(&format!("server {server} forms no view: {why}"));
                    self.refusals[server.index()] = why;
                }
            }
            ToSupervisor::Remark { text } => self.tell(&format!("server {server}: {text}")),
            ToSupervisor::PowerLow => self.on_power_low(),
            ToSupervisor::Fatal { why } => self.tell(&format!("server {server} must stop: {why}")),
        }
    }

    fn on_serving(&mut self, server: ServerId, view: View) {
        if !self.front.on_serving(server, view, &self.poller) {
            return;
        }
        self.accept();
        if self.ready {
            self.tell(&format!("serving: server {server} is primary in view {view}"));
        } else {
            self.ready = true;
            say("ready");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_gets_a_small_log_and_a_large_one_the_usual() {
        let (small, large) = (tuning(1400 << 20, 3, 2), tuning(1 << 40, 3, 2));
        let usual = Tuning { capacity_bytes: large.capacity_bytes, ..Tuning::default() };
        assert_eq!(large, usual);
        assert!(3 * (2 * small.ring_bytes + 8 * small.segment_bytes) <= 350 << 20);
        let tiny = tuning(1 << 20, 5, 3);
        assert_eq!(tiny.segment_bytes, SEGMENT_MIN);
        assert!(tiny.ring_bytes >= 2 * tiny.segment_bytes && tiny.checkpoint_bytes >= 1 << 20);
    }
}
