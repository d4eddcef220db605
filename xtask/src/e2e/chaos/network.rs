//! Network: a namespace for each server and one for the clients, joined by a bridge, and its faults.
//! Owns: the namespaces with all that is in them; none of its addresses exists outside.
//! Never: touches the machine's own network; answers a packet that it drops.
//! Invariant: when it is dropped the namespaces are gone; those of a run that was killed go at the next.
//! Source: ip-netns(8), ip-rule(8): a rule of the kind `blackhole` drops what arrives from an address, unheard by the
//! sender, so that each direction can be cut apart. Connections in use are looked up anew when rules change.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::{E2eError, doing};
use crate::process::capture;

/// Names of all namespaces begin so; the process id of the run follows.
const PREFIX: &str = "harp-chaos-";
/// Where ip(8) keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Where the clients are: on the bridge itself.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const PREFIX_BITS: u8 = 24;
/// The rule that finds a packet to be the machine's own; normally the first of all, here behind those that drop.
const LOCAL_RULE: &str = "30000";
const TOOL_PATIENCE: Duration = Duration::from_secs(20);
/// The port at which servers serve NFS.
const NFS_PORT: u16 = 2049;

/// One end of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The clients, on the bridge.
    Clients,
    /// A server, by its index.
    Server(usize),
}

impl Place {
    /// The address there.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Place::Clients => CLIENTS,
            Place::Server(index) => Ipv4Addr::new(10, 77, 0, 1 + index as u8),
        }
    }

    /// A server's own, or the one of the middle.
    pub fn name(self) -> String {
        match self {
            Place::Clients => "hub".into(),
            Place::Server(index) => server_name(index),
        }
    }
}

/// a, b, c and so on.
pub fn server_name(index: usize) -> String {
    char::from(b'a' + index as u8).to_string()
}

/// Where a server serves NFS.
pub fn nfs(index: usize) -> SocketAddr {
    (Place::Server(index).address(), NFS_PORT).into()
}

/// A direction in which nothing arrives any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    at: Place,
    /// The rule's number, which no other has.
    rule: u32,
}

/// The network of one run.
#[derive(Debug)]
pub struct Network {
    servers: usize,
    next_rule: u32,
}

impl Network {
    /// Makes it, for so many servers.
    pub fn make(servers: usize) -> Result<Network, E2eError> {
        // First, so that what was made is removed if the rest fails.
        let network = Network { servers, next_rule: 1 };
        for place in network.places() {
            ip(&["netns", "add", &namespace(place)])?;
            ip_in(place, &["link", "set", "lo", "up"])?;
            ip_in(place, &["rule", "add", "pref", LOCAL_RULE, "lookup", "local"])?;
            ip_in(place, &["rule", "del", "pref", "0"])?;
        }
        let address = |place: Place| format!("{}/{PREFIX_BITS}", place.address());
        let hub = Place::Clients;
        ip_in(hub, &["link", "add", "bridge", "type", "bridge"])?;
        ip_in(hub, &["addr", "add", &address(hub), "dev", "bridge"])?;
        ip_in(hub, &["link", "set", "bridge", "up"])?;
        for index in 0..servers {
            let (server, port) = (Place::Server(index), port(index));
            let peer = ["type", "veth", "peer", "name", "net", "netns", &namespace(server)];
            ip_in(hub, &[&["link", "add", &port][..], &peer].concat())?;
            ip_in(hub, &["link", "set", &port, "master", "bridge", "up"])?;
            ip_in(server, &["addr", "add", &address(server), "dev", "net"])?;
            ip_in(server, &["link", "set", "net", "up"])?;
        }
        Ok(network)
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.servers).map(Place::Server).chain([Place::Clients])
    }

    /// Every place but this one.
    pub fn others(&self, place: Place) -> Vec<Place> {
        self.places().filter(|other| *other != place).collect()
    }

    /// Links, rules and connections of every place, for somebody who looks for what went wrong.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for place in self.places() {
            let namespace = namespace(place);
            for words in [["ip", "-n", "link"], ["ip", "-n", "rule"], ["ss", "-N", "-tno"]] {
                let mut command = Command::new(words[0]);
                let said = capture(command.args([words[1], &namespace, words[2]]), TOOL_PATIENCE);
                let said = said.unwrap_or_else(|error| error.to_string());
                text.push_str(&format!("{namespace}: {words:?}\n{said}\n"));
            }
        }
        text
    }

    /// Plugs a server's cable out, or in again.
    pub fn plug(&self, server: usize, plugged: bool) -> Result<(), E2eError> {
        let to = if plugged { "up" } else { "down" };
        ip_in(Place::Clients, &["link", "set", &port(server), to])
    }

    /// From now on nothing of `from` arrives at `at`.
    pub fn cut(&mut self, at: Place, from: Place) -> Result<Cut, E2eError> {
        let cut = Cut { at, rule: self.next_rule };
        self.next_rule += 1;
        let (pref, from) = (cut.rule.to_string(), from.address().to_string());
        ip_in(at, &["rule", "add", "pref", &pref, "from", &from, "blackhole"])?;
        Ok(cut)
    }

    /// Mends a cut.
    pub fn mend(&self, cut: Cut) -> Result<(), E2eError> {
        ip_in(cut.at, &["rule", "del", "pref", &cut.rule.to_string()])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in self.places() {
            remove(&namespace(place));
        }
    }
}

fn namespace(place: Place) -> String {
    format!("{PREFIX}{}-{}", std::process::id(), place.name())
}

fn path(namespace: &str) -> PathBuf {
    Path::new(NAMESPACES).join(namespace)
}

/// The bridge's port for a server.
fn port(server: usize) -> String {
    format!("to-{}", server_name(server))
}

/// Moves the calling thread, and what it starts from now on, to the clients.
pub fn join_clients() -> Result<(), E2eError> {
    let path = path(&namespace(Place::Clients));
    let file = doing(path.display(), File::open(&path))?;
    let moved = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
    doing("join the clients' namespace", moved.map_err(Into::into))
}

/// The words before a command that run it where a server is; the process stays the same.
pub fn words_at(server: usize) -> [String; 2] {
    let path = path(&namespace(Place::Server(server)));
    ["nsenter".into(), format!("--net={}", path.display())]
}

fn ip(words: &[&str]) -> Result<(), E2eError> {
    capture(Command::new("ip").args(words), TOOL_PATIENCE)?;
    Ok(())
}

fn ip_in(place: Place, words: &[&str]) -> Result<(), E2eError> {
    ip(&[&["-n", &namespace(place)][..], words].concat())
}

/// Removes a namespace; one that is not there is none of our making.
fn remove(namespace: &str) {
    if path(namespace).exists()
        && let Err(error) = ip(&["netns", "del", namespace])
    {
        eprintln!("    {namespace} is left behind: {error}");
    }
}

/// The run that a namespace belongs to.
fn run_of(namespace: &str) -> Option<u32> {
    namespace.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Removes the namespaces of runs of which `ended` says that they are over. Returns how many there were.
pub fn remove_leftovers(ended: impl Fn(u32) -> bool) -> Result<usize, E2eError> {
    let entries = match std::fs::read_dir(NAMESPACES) {
        // Nobody ever made a namespace here.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => doing(NAMESPACES, entries)?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let old: Vec<String> = names.filter(|name| run_of(name).is_some_and(&ended)).collect();
    old.iter().for_each(|name| remove(name));
    Ok(old.len())
}

#[cfg(test)]
mod tests {
    use super::{Place, namespace, run_of};

    #[test]
    fn namespaces_say_whose_they_are() {
        for place in [Place::Clients, Place::Server(4)] {
            assert_eq!(run_of(&namespace(place)), Some(std::process::id()));
        }
        assert_eq!(run_of("harp-chaos-x"), None);
        assert_eq!(run_of("blue"), None);
    }
}
