//! Storm: faults of every kind, one after the other and several at once, and their end.
//! Owns: which faults are under way, when each ends, how many there were.
//! Never: strikes more servers at a time than the group bears; takes a log or a disk while the group is not whole.
//! Invariant: after `calm` no fault is under way.
//! Source: DESIGN.md, section 5: what a group rides out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::super::E2eError;
use super::network::{Cut, Network, Place, server_name};
use super::servers::Servers;
use crate::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// kill -9, and a start later.
    Kill,
    /// kill -9 of every server at once.
    KillAll,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// Something else takes all space of a server's disk.
    FullDisk,
    /// Nothing passes a server's cable.
    Cable,
    /// A server hears nobody.
    Deaf,
    /// Nobody hears a server.
    Mute,
    /// Two servers do not hear each other; all others do.
    Pair,
    /// One server does not hear one other.
    HalfPair,
    /// A server and the clients do not hear each other; servers do.
    Clients,
    /// A server's log is gone when it starts again.
    LogLost,
    /// A server's disk is gone; it starts again as a replacement.
    DiskLost,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Kill => "killed",
            Class::KillAll => "all killed",
            Class::Pause => "stopped",
            Class::FullDisk => "disk full",
            Class::Cable => "cable out",
            Class::Deaf => "deaf",
            Class::Mute => "mute",
            Class::Pair => "two apart",
            Class::HalfPair => "one deaf to one",
            Class::Clients => "cut off from clients",
            Class::LogLost => "log lost",
            Class::DiskLost => "disk lost",
        })
    }
}

/// The kinds drawn at any time, and how often each is, of 100.
const CLASSES: &[(Class, u64)] = &[
    (Class::Kill, 20),
    (Class::KillAll, 4),
    (Class::Pause, 22),
    (Class::FullDisk, 9),
    (Class::Cable, 10),
    (Class::Deaf, 7),
    (Class::Mute, 7),
    (Class::Pair, 9),
    (Class::HalfPair, 6),
    (Class::Clients, 6),
];
/// Shortest and longest fault, in milliseconds; short ones are as frequent as long ones.
const FAULT_MS: (u64, u64) = (10, 10_000);
/// Shortest and longest time between two faults, likewise.
const REST_MS: (u64, u64) = (20, 4000);
/// A full disk is full for so long: what others leave and what is kept in reserve lasts for a while.
const FULL_MS: (u64, u64) = (1000, 15_000);
/// A killed server is started again within this.
const DOWN_MS: (u64, u64) = (10, 4000);

/// What ends a fault.
#[derive(Debug)]
enum End {
    Start(Vec<usize>),
    Continue(Pid),
    GiveSpaceBack,
    Plug,
    Mend(Vec<Cut>),
}

#[derive(Debug)]
struct Fault {
    class: Class,
    victim: usize,
    until: Instant,
    end: End,
}

/// The faults of one run.
#[derive(Debug)]
pub struct Storm {
    random: Random,
    /// Servers that may be struck at a time.
    bound: usize,
    began: Instant,
    under_way: Vec<Fault>,
    next_at: Instant,
    told: Vec<String>,
    /// How often each kind struck.
    pub counts: BTreeMap<Class, u64>,
}

impl Storm {
    /// Faults that follow from `seed`; at most `bound` servers are struck at a time. Times are told from `began` on.
    pub fn new(seed: u64, bound: usize, began: Instant) -> Storm {
        let (under_way, told, counts) = Default::default();
        Storm { random: Random(seed), bound, began, under_way, next_at: began, told, counts }
    }

    /// Prints one line, with the time, and keeps it.
    pub fn say(&mut self, line: impl fmt::Display) {
        let line = format!("{:8.2} s  {line}", self.elapsed().as_secs_f64());
        println!("    {line}");
        self.told.push(line);
    }

    /// All lines so far.
    pub fn told(&self) -> String {
        self.told.join("\n")
    }

    /// Since the times count.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A time between two, such that each order of magnitude is as likely.
    pub fn time(&mut self, (least, most): (u64, u64)) -> Duration {
        let share = self.random.below(1 << 20) as f64 / f64::from(1 << 20);
        let micros = least as f64 * 1000.0 * (most as f64 / least as f64).powf(share);
        Duration::from_micros(micros as u64)
    }

    /// The servers that faults are under way at.
    fn struck(&self) -> BTreeSet<usize> {
        let single = self.under_way.iter().filter(|fault| fault.class != Class::KillAll);
        single.map(|fault| fault.victim).collect()
    }

    /// One more may be struck, or one of those that are.
    fn victim(&mut self, servers: usize) -> usize {
        let struck: Vec<usize> = self.struck().into_iter().collect();
        if struck.len() < self.bound {
            self.random.below(servers as u64) as usize
        } else {
            *self.random.of(&struck)
        }
    }

    fn class(&mut self) -> Class {
        let mut left = self.random.below(CLASSES.iter().map(|(_, weight)| weight).sum());
        for (class, weight) in CLASSES {
            match left.checked_sub(*weight) {
                Some(less) => left = less,
                None => return *class,
            }
        }
        unreachable!("the number is below the sum")
    }

    /// Ends what is over and begins what is due.
    pub fn blow(&mut self, servers: &mut Servers, network: &mut Network) -> Result<(), E2eError> {
        let now = Instant::now();
        while let Some(over) = self.under_way.iter().position(|fault| fault.until <= now) {
            let fault = self.under_way.swap_remove(over);
            self.end(fault, servers, network)?;
        }
        if self.next_at <= now {
            let class = self.class();
            let victim = self.victim(servers.count());
            self.strike(class, victim, servers, network)?;
            self.next_at = Instant::now() + self.time(REST_MS);
        }
        Ok(())
    }

    /// Begins a fault, unless the same is under way or there is nothing to strike.
    fn strike(
        &mut self,
        class: Class,
        victim: usize,
        servers: &mut Servers,
        network: &mut Network,
    ) -> Result<(), E2eError> {
        let same = |fault: &Fault| fault.class == class && fault.victim == victim;
        if self.under_way.iter().any(same) {
            return Ok(());
        }
        let mut lasts = self.time(FAULT_MS);
        let (here, name) = (Place::Server(victim), server_name(victim));
        let others = network.others(here);
        let mut told = format!("{name}: {class}");
        let end = match class {
            Class::Kill => {
                lasts = self.time(DOWN_MS);
                if !servers.kill(victim)? {
                    return Ok(());
                }
                End::Start(vec![victim])
            }
            Class::KillAll => {
                lasts = self.time(DOWN_MS);
                let mut killed = Vec::new();
                for index in 0..servers.count() {
                    if servers.kill(index)? {
                        killed.push(index);
                    }
                }
                told = class.to_string();
                End::Start(killed)
            }
            Class::Pause => match servers.pause(victim) {
                Some(stopped) => End::Continue(stopped),
                None => return Ok(()),
            },
            Class::FullDisk => {
                lasts = self.time(FULL_MS);
                let taken = servers.disk(victim).hog()?;
                told = format!("{told}, {} MiB taken", taken >> 20);
                End::GiveSpaceBack
            }
            Class::Cable => {
                network.plug(victim, false)?;
                End::Plug
            }
            Class::Deaf => End::Mend(cuts(network, others.iter().map(|other| (here, *other)))?),
            Class::Mute => End::Mend(cuts(network, others.iter().map(|other| (*other, here)))?),
            Class::Pair | Class::HalfPair => {
                let peers: Vec<Place> =
                    others.into_iter().filter(|place| *place != Place::Clients).collect();
                let other = *self.random.of(&peers);
                told = format!("{told}, {}", other.name());
                let both = [(here, other), (other, here)];
                let first = self.random.below(2) as usize;
                let ways = if class == Class::Pair { &both[..] } else { &both[first..=first] };
                End::Mend(cuts(network, ways.iter().copied())?)
            }
            Class::Clients => {
                let both = [(here, Place::Clients), (Place::Clients, here)];
                End::Mend(cuts(network, both.into_iter())?)
            }
            Class::LogLost | Class::DiskLost => unreachable!("drawn apart"),
        };
        self.say(format_args!("{told}, for {lasts:.2?}"));
        *self.counts.entry(class).or_default() += 1;
        self.under_way.push(Fault { class, victim, until: Instant::now() + lasts, end });
        Ok(())
    }

    fn end(
        &mut self,
        fault: Fault,
        servers: &mut Servers,
        network: &mut Network,
    ) -> Result<(), E2eError> {
        match fault.end {
            End::Start(killed) => {
                for index in killed {
                    servers.start_one(index)?;
                }
            }
            End::Continue(stopped) => servers.resume(fault.victim, stopped),
            End::GiveSpaceBack => servers.disk(fault.victim).end_hog()?,
            End::Plug => network.plug(fault.victim, true)?,
            End::Mend(cuts) => {
                for cut in cuts {
                    network.mend(cut)?;
                }
            }
        }
        Ok(())
    }

    /// Ends every fault.
    pub fn calm(&mut self, servers: &mut Servers, network: &mut Network) -> Result<(), E2eError> {
        for fault in std::mem::take(&mut self.under_way) {
            self.end(fault, servers, network)?;
        }
        Ok(())
    }

    /// With some luck takes a server's log or disk; the group must be whole, and is not afterwards.
    pub fn lose(&mut self, servers: &mut Servers) -> Result<bool, E2eError> {
        assert!(self.under_way.is_empty(), "nothing is lost while a fault is under way");
        let class = match self.random.below(100) {
            0..30 => Class::LogLost,
            30..50 => Class::DiskLost,
            _ => return Ok(false),
        };
        let victim = self.random.below(servers.count() as u64) as usize;
        servers.kill(victim)?;
        let name = server_name(victim);
        if class == Class::LogLost {
            let files = servers.lose_log(victim)?;
            self.say(format_args!("{name}: {class}, {files} files"));
        } else {
            servers.lose_disk(victim)?;
            self.say(format_args!("{name}: {class}"));
        }
        *self.counts.entry(class).or_default() += 1;
        servers.start_one(victim)?;
        Ok(true)
    }
}

/// Cuts each direction, given as where nothing arrives any more, and from where.
fn cuts(
    network: &mut Network,
    ways: impl Iterator<Item = (Place, Place)>,
) -> Result<Vec<Cut>, E2eError> {
    ways.map(|(at, from)| network.cut(at, from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_between_their_bounds_and_kinds_are_all_drawn() {
        let mut storm = Storm::new(1, 1, Instant::now());
        let times: Vec<Duration> = (0..1000).map(|_| storm.time(FAULT_MS)).collect();
        assert!(times.iter().all(|time| (10..=10_000).contains(&time.as_millis())));
        assert!(times.iter().filter(|time| time.as_millis() < 100).count() > 200);
        let drawn: BTreeSet<Class> = (0..1000).map(|_| storm.class()).collect();
        assert_eq!(drawn.len(), CLASSES.len());
        assert_eq!(CLASSES.iter().map(|(_, weight)| weight).sum::<u64>(), 100);
    }

    #[test]
    fn no_more_servers_are_struck_than_the_group_bears() {
        let mut storm = Storm::new(2, 2, Instant::now());
        for victim in [4, 1] {
            let (until, end) = (Instant::now(), End::GiveSpaceBack);
            storm.under_way.push(Fault { class: Class::FullDisk, victim, until, end });
        }
        let victims: BTreeSet<usize> = (0..100).map(|_| storm.victim(5)).collect();
        assert_eq!(victims, BTreeSet::from([1, 4]));
        storm.under_way.pop();
        let victims: BTreeSet<usize> = (0..100).map(|_| storm.victim(5)).collect();
        assert_eq!(victims.len(), 5);
    }
}
