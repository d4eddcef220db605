//! The nemesis: what fails when, within what the design promises to ride out.
//! Owns: the classes of faults, the faults that last, and the judgement whether more can be borne.
//! Never: takes a log or a disk whose loss the group could not survive.
//! Source: the fault classes of the project's tests; docs/protocol.md, "Rules".

use harp_node::Suspects;
use harp_node::log::SlotFile;
use harp_node::vr::{ServerId, ServerSet, View};

use crate::disk::Failing;
use crate::glue;
use crate::power::LogLoss;
use crate::profile::{MILLI, SECOND};
use crate::properties::Verdict;
use crate::queue::Due;
use crate::rng::Rng;
use crate::world::{World, note};

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// The servers fall into two sides.
    Partition,
    /// One way between two servers is cut.
    OneWay,
    /// Two sides that only one server reaches both of.
    Bridge,
    /// One server is cut off.
    Isolate,
    /// One way between two servers stands still for a while.
    Stall,
    /// A process dies and starts again.
    Crash,
    /// A process dies in the middle of letting a turn's outputs go.
    CrashInTurn,
    /// A process is stopped for up to ten leases.
    Pause,
    /// A process is stopped after computing, before letting go.
    PauseInTurn,
    /// A server computes slowly.
    SlowServer,
    /// A server's disk is slow.
    SlowDisk,
    /// A machine loses power.
    Power,
    /// All machines lose power.
    GroupPower,
    /// A write or sync of the log, or of a small file, fails.
    DiskFailure,
    /// A log is lost, its server's view file is kept.
    LogLoss,
    /// A disk is lost.
    MediaLoss,
    /// A clock's rate changes within the bound.
    ClockRate,
    /// A wall clock jumps.
    WallClock,
    /// A server runs another version for a while, whose links the others refuse.
    OtherVersion,
    /// Blocks of one copy's image are not what was written.
    BlockDamage,
}

const ALL: [Fault; 20] = [
    Fault::Partition,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Isolate,
    Fault::Stall,
    Fault::Crash,
    Fault::CrashInTurn,
    Fault::Pause,
    Fault::PauseInTurn,
    Fault::SlowServer,
    Fault::SlowDisk,
    Fault::Power,
    Fault::GroupPower,
    Fault::DiskFailure,
    Fault::LogLoss,
    Fault::MediaLoss,
    Fault::ClockRate,
    Fault::WallClock,
    Fault::OtherVersion,
    Fault::BlockDamage,
];

/// The classes of faults that a world knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSet(u32);

impl FaultSet {
    /// No faults.
    pub const NONE: FaultSet = FaultSet(0);
    /// All of them.
    pub const ALL: FaultSet = FaultSet((1 << ALL.len()) - 1);

    /// Each class is in with a fair chance; a set is never empty.
    pub fn draw(rng: &mut Rng) -> FaultSet {
        let each = *rng.pick(&[150, 400, 700]);
        let mut set = 0;
        for fault in ALL {
            set |= (rng.chance(each) as u32) << fault as u32;
        }
        set |= 1 << *rng.pick(&ALL) as u32;
        FaultSet(set)
    }

    /// The class with this name.
    pub fn named(name: &str) -> Option<FaultSet> {
        let fault = ALL.iter().find(|fault| format!("{fault:?}") == name)?;
        Some(FaultSet(1 << *fault as u32))
    }

    /// The names of the classes it has.
    pub fn names(self) -> Vec<String> {
        let have = ALL.iter().filter(|fault| self.contains(**fault));
        have.map(|fault| format!("{fault:?}")).collect()
    }

    /// These classes and those.
    pub fn and(self, other: FaultSet) -> FaultSet {
        FaultSet(self.0 | other.0)
    }

    /// These classes, except those.
    pub fn without(self, other: FaultSet) -> FaultSet {
        FaultSet(self.0 & !other.0)
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it has this one.
    pub fn contains(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u32) != 0
    }

    fn pick(self, rng: &mut Rng) -> Fault {
        loop {
            let fault = *rng.pick(&ALL);
            if self.contains(fault) {
                return fault;
            }
        }
    }
}

/// A fault that ends by itself.
#[derive(Clone, Copy, Debug)]
enum Lasting {
    Parted(ServerSet, ServerSet),
    OneWay(ServerId, ServerId),
    SlowServer(ServerId),
    SlowDisk(ServerId),
    LethalRecord,
    OtherVersion(ServerId),
    Battery(ServerId),
}

/// What the nemesis keeps.
#[derive(Debug)]
pub struct Nemesis {
    rng: Rng,
    lasting: Vec<Option<Lasting>>,
    /// Copies whose disks were lost and that have not been members since.
    recovering: ServerSet,
    /// Faults that struck, by class.
    pub struck: [u32; ALL.len()],
}

impl Nemesis {
    /// A nemesis with its own stream.
    pub fn new(rng: Rng) -> Nemesis {
        Nemesis { rng, lasting: Vec::new(), recovering: ServerSet::EMPTY, struck: [0; ALL.len()] }
    }
}

impl World {
    /// The next fault strikes, and the one after it is planned.
    pub(crate) fn strike(&mut self) -> Verdict {
        if self.calm {
            return Ok(());
        }
        let rng = &mut self.nemesis.rng;
        let fault = self.profile.faults.pick(rng);
        let server = ServerId(rng.below(self.hosts.len() as u64) as u8);
        let gap = rng.wait(self.profile.fault_gap);
        self.queue.put(self.now + gap + MILLI / 10, Due::Strike);
        self.nemesis.struck[fault as usize] += 1;
        self.trace.add(fault as u64);
        note!(self, "fault: {fault:?} {server}");
        match fault {
            Fault::Partition | Fault::OneWay | Fault::Bridge | Fault::Isolate | Fault::Stall => {
                self.strike_network(fault, server);
            }
            Fault::Crash | Fault::CrashInTurn | Fault::Power | Fault::GroupPower => {
                self.strike_process(fault, server);
            }
            Fault::Pause | Fault::PauseInTurn | Fault::SlowServer | Fault::SlowDisk => {
                self.strike_speed(fault, server);
            }
            Fault::DiskFailure => self.fail_disk(server),
            Fault::LogLoss => self.strike_log(server),
            Fault::MediaLoss => self.strike_media(server),
            Fault::ClockRate | Fault::WallClock => self.strike_clock(fault, server),
            Fault::OtherVersion => self.install_version(server),
            Fault::BlockDamage => self.strike_blocks(server),
        }
        Ok(())
    }

    fn last(&mut self, lasting: Lasting) {
        let mean = *self.nemesis.rng.pick(&[3, 15, 60]) * MILLI;
        self.last_for(lasting, mean);
    }

    fn last_for(&mut self, lasting: Lasting, mean: u64) {
        let slot = self.nemesis.lasting.len() as u32;
        self.nemesis.lasting.push(Some(lasting));
        let time = self.nemesis.rng.wait(mean);
        self.queue.put(self.now + time, Due::Mend { slot });
    }

    /// A record ended a process: before long somebody installs a version that can apply it.
    pub(crate) fn lethal_record_struck(&mut self) {
        let known = |lasting: &Option<Lasting>| matches!(lasting, Some(Lasting::LethalRecord));
        let scripted = self.profile.faults.is_empty();
        let faulty = self.profile.lethal_request.is_some();
        if faulty && !scripted && !self.nemesis.lasting.iter().any(known) {
            self.last_for(Lasting::LethalRecord, 150 * MILLI);
        }
    }

    /// A version without the fault is installed everywhere: another program, which heeds nobody's suspicions.
    pub fn mend_software(&mut self) {
        if self.profile.lethal_request.take().is_none() {
            return;
        }
        for index in 0..self.hosts.len() {
            let server = ServerId(index as u8);
            self.hosts[index].suspects = Suspects::default();
            if self.hosts[index].is_up() {
                self.kill(server, false);
                self.restart_later(server);
            }
        }
    }

    /// A lasting fault ends.
    pub(crate) fn mend(&mut self, slot: u32) {
        let Some(lasting) = self.nemesis.lasting[slot as usize].take() else { return };
        note!(self, "mended: {lasting:?}");
        match lasting {
            Lasting::Parted(one, other) => self.network.part(one, other, false),
            Lasting::OneWay(from, to) => self.network.cut(from, to, false),
            Lasting::SlowServer(server) => self.hosts[server.index()].turn_slowness = 1,
            Lasting::SlowDisk(server) => self.hosts[server.index()].disk_slowness = 1,
            Lasting::LethalRecord => self.mend_software(),
            Lasting::OtherVersion(server) => {
                self.part_from_all(server, false);
                self.replace_program(server);
            }
            Lasting::Battery(server) => self.on_battery(server, false),
        }
    }

    fn all_servers(&self) -> ServerSet {
        self.profile.shape.servers().collect()
    }

    fn part(&mut self, one: ServerSet, other: ServerSet) {
        self.network.part(one, other, true);
        self.last(Lasting::Parted(one, other));
    }

    fn part_from_all(&mut self, server: ServerId, cut: bool) {
        let mut others = self.all_servers();
        others.remove(server);
        self.network.part(ServerSet(1 << server.0), others, cut);
    }

    /// Another version of the program is installed at `server`, which speaks to nobody until the old one is back.
    fn install_version(&mut self, server: ServerId) {
        self.replace_program(server);
        self.part_from_all(server, true);
        self.last(Lasting::OtherVersion(server));
    }

    /// Another program heeds nobody's suspicions.
    fn replace_program(&mut self, server: ServerId) {
        self.kill(server, false);
        self.hosts[server.index()].suspects = Suspects::default();
        self.restart_later(server);
    }

    fn strike_network(&mut self, fault: Fault, server: ServerId) {
        let all = self.all_servers();
        let count = all.len() as u64;
        let other =
            ServerId(((server.0 as u64 + 1 + self.nemesis.rng.below(count - 1)) % count) as u8);
        match fault {
            Fault::Partition => {
                let side = ServerSet(self.nemesis.rng.between(1, (1 << count) - 2) as u8);
                self.part(side, ServerSet(all.0 & !side.0));
            }
            Fault::Bridge => {
                let mut rest = all;
                rest.remove(server);
                let side = ServerSet(self.nemesis.rng.below(1 << count) as u8 & rest.0);
                self.part(side, ServerSet(rest.0 & !side.0));
            }
            Fault::Isolate => {
                let one = ServerSet(1 << server.0);
                self.part(one, ServerSet(all.0 & !one.0));
            }
            Fault::OneWay => {
                self.network.cut(server, other, true);
                self.last(Lasting::OneWay(server, other));
            }
            _ => {
                let time = self.nemesis.rng.wait(20 * MILLI);
                self.network.stall(server, other, self.now + time);
            }
        }
    }

    fn strike_process(&mut self, fault: Fault, server: ServerId) {
        match fault {
            Fault::Power | Fault::GroupPower if self.profile.is_ups() => {
                let hit = match fault {
                    Fault::Power => ServerSet::from_iter([server]),
                    _ => self.all_servers(),
                };
                self.strike_power(hit, server);
            }
            Fault::Crash if self.profile.is_ups() && self.nemesis.rng.chance(200) => {
                self.end(server, false);
            }
            Fault::GroupPower => {
                for server in self.all_servers().iter() {
                    self.kill(server, true);
                    self.restart_later(server);
                }
            }
            Fault::CrashInTurn => {
                if let Some(process) = &mut self.hosts[server.index()].process {
                    process.dies_next_turn = true;
                }
            }
            _ => {
                self.kill(server, fault == Fault::Power);
                self.restart_later(server);
            }
        }
    }

    /// The mains fail for machines with batteries. At most one log, that of `victim`, is lost, and only if the
    /// group can bear it; the others' are written out in time, or the mains are back before that.
    fn strike_power(&mut self, hit: ServerSet, victim: ServerId) {
        let bearable = self.stands();
        let rng = &mut self.nemesis.rng;
        let (flaps, loses, torn) = (rng.chance(300), rng.chance(600), rng.chance(600));
        let mean = *rng.pick(&[MILLI / 10, MILLI]);
        let soon = rng.wait(mean);
        for server in hit.iter() {
            if flaps {
                self.on_battery(server, true);
                self.last(Lasting::Battery(server));
            } else if server != victim || !loses || bearable.is_none() {
                self.end(server, true);
            } else if torn && self.hosts[server.index()].is_up() {
                let (view, _) = bearable.expect("looked at above");
                self.end(server, true);
                self.observer.log_doubtful(server, view);
                let life = self.hosts[server.index()].life;
                self.queue.put(self.now + soon, Due::PowerOff { server, life });
            } else {
                self.kill(server, true);
                self.restart_later(server);
            }
        }
    }

    fn strike_speed(&mut self, fault: Fault, server: ServerId) {
        let lease = self.profile.lease;
        let rng = &mut self.nemesis.rng;
        let host = &mut self.hosts[server.index()];
        let factor = *rng.pick(&[5, 30, 200]);
        let mean = *rng.pick(&[lease / 4, lease, 4 * lease]);
        let time = rng.wait(mean);
        match (fault, &mut host.process) {
            (Fault::Pause, Some(process)) => {
                process.busy_until = process.busy_until.max(self.now) + time.min(10 * lease);
                // A turn that was due happens when the pause is over.
                if process.turn_at.is_some() {
                    process.turn_at = Some(process.busy_until);
                    self.queue.put(process.busy_until, Due::Turn { server, life: host.life });
                }
            }
            (Fault::PauseInTurn, Some(process)) => process.stalls_next_turn = time.min(10 * lease),
            (Fault::SlowServer, _) => {
                host.turn_slowness = factor.min(30);
                self.last(Lasting::SlowServer(server));
            }
            (Fault::SlowDisk, _) => {
                host.disk_slowness = factor;
                self.last(Lasting::SlowDisk(server));
            }
            _ => {}
        }
    }

    fn strike_clock(&mut self, fault: Fault, server: ServerId) {
        let most = self.profile.clock_ppm_max;
        let rng = &mut self.nemesis.rng;
        let clock = &mut self.hosts[server.index()].clock;
        match fault {
            Fault::ClockRate => {
                let ppm = rng.between(0, 2 * most) as i64 - most as i64;
                clock.set_rate(self.now, ppm);
                // What was planned by the old rate is planned again.
                if let Some(process) = &mut self.hosts[server.index()].process {
                    process.wake_due = u64::MAX;
                }
                self.schedule_wake(server);
            }
            _ => {
                let reach = *rng.pick(&[MILLI, SECOND, 86_400 * SECOND]);
                clock.jump(rng.between(0, 2 * reach) as i64 - reach as i64);
            }
        }
    }

    /// The highest formed view and its members, if the group can bear the loss of a log or a disk: all
    /// members formed it and have intact logs, and no server is still getting over the loss of its disk.
    fn stands(&mut self) -> Option<(View, ServerSet)> {
        let (view, members) = self.highest_formed();
        if self.is_getting_over() {
            return None;
        }
        // Where records count in memory, a disk may fail long after its server became a member.
        if self.hosts.iter().any(|host| host.disk.failing.is_some()) {
            return None;
        }
        let sound = |server: ServerId| {
            let durable = glue::view_file(&self.hosts[server.index()].disk);
            durable.is_some_and(|durable| durable.formed == view)
                && !self.observer.votes.is_doubtful(server)
        };
        (view > View::NONE && members.iter().all(sound)).then_some((view, members))
    }

    /// Whether a server has lost its disk and is not back in a view, or a copy was away for so long that it has no image
    /// any more.
    fn is_getting_over(&mut self) -> bool {
        let (view, members) = self.highest_formed();
        for member in members.iter() {
            let durable = glue::view_file(&self.hosts[member.index()].disk);
            if durable.is_some_and(|durable| durable.formed == view) {
                self.nemesis.recovering.remove(member);
            }
        }
        let imageless = self.profile.shape.copies().any(|copy| self.observer.needs_image(copy));
        imageless || !self.unadmitted().is_empty() || !self.nemesis.recovering.is_empty()
    }

    /// Servers whose disks are lost and not admitted again.
    fn unadmitted(&self) -> ServerSet {
        let (_, members) = self.highest_formed();
        let Some(configuration) = (members.iter())
            .find_map(|member| glue::view_file(&self.hosts[member.index()].disk))
            .map(|durable| durable.configuration)
        else {
            return self.all_servers();
        };
        let counts = |server: ServerId| {
            let host = &self.hosts[server.index()];
            let durable = glue::view_file(&host.disk).filter(|_| !host.emptied);
            durable.is_some_and(|durable| {
                durable.incarnation.disk == configuration.disks[server.index()]
            })
        };
        self.all_servers().iter().filter(|server| !counts(*server)).collect()
    }

    /// A disk fails in a way that its server notices. A failed log is as good as lost.
    fn fail_disk(&mut self, server: ServerId) {
        let Some((view, _)) = self.stands() else { return };
        let failing = *self.nemesis.rng.pick(&[
            Failing::Write,
            Failing::Room,
            Failing::Sync,
            Failing::Sync,
            Failing::Slot(SlotFile::LogHead),
        ]);
        if !self.hosts[server.index()].is_up() {
            return;
        }
        self.hosts[server.index()].disk.failing = Some(failing);
        self.observer.log_doubtful(server, view);
    }

    fn strike_log(&mut self, server: ServerId) {
        if self.stands().is_none() {
            return; // the group could not bear it
        }
        let how = *self.nemesis.rng.pick(&LogLoss::ALL);
        // What is wrong on the disk does not matter while the log lies in memory; it would be forgotten here, and
        // found long after.
        let hidden = how.is_on_disk_alone() && self.profile.is_ups();
        let power = self.nemesis.rng.chance(500) || hidden;
        self.kill(server, power);
        self.lose_log(server, how);
        self.restart_later(server);
    }

    fn strike_media(&mut self, server: ServerId) {
        let Some((_, members)) = self.stands() else { return };
        let shape = self.profile.shape;
        let other_copy = members.iter().any(|member| member != server && shape.is_copy(member));
        let serves = self.serving().is_some_and(|serving| serving != server);
        if !serves || !other_copy || self.any_damage() {
            return; // the group could not bear it
        }
        self.kill(server, true);
        if shape.is_copy(server) {
            self.nemesis.recovering.insert(server);
        }
        if self.nemesis.rng.chance(500) {
            self.empty(server);
        } else if self.nemesis.rng.chance(500) {
            self.hosts[server.index()].disk.lose_view();
        } else {
            self.hosts[server.index()].disk.damage_file(SlotFile::View);
        }
        self.restart_later(server);
    }

    /// Blocks at rest change, at one copy, while every other one has a whole and sound image.
    fn strike_blocks(&mut self, server: ServerId) {
        let copies = self.profile.shape.copies().count() as u8;
        let struck = ServerId(server.0 % copies);
        let bears = |copy: ServerId| {
            let host = self.hosts[copy.index()].store.as_ref().expect("copies have stores");
            let whole = host.damage().is_some_and(|damaged| copy == struck || damaged == 0);
            whole && !self.observer.needs_image(copy)
        };
        if !self.profile.shape.copies().all(bears) || self.is_getting_over() {
            return; // the group could not bear it
        }
        let rng = &mut self.nemesis.rng;
        let host = self.hosts[struck.index()].store.as_ref().expect("copies have stores");
        let blocks = host.used_blocks();
        if blocks.is_empty() {
            return;
        }
        for _ in 0..rng.between(1, 6) {
            host.damage_one(*rng.pick(&blocks), *rng.pick(&blocks), rng);
        }
        note!(self, "{struck} has {:?} damaged blocks", host.damage());
    }

    /// Whether a block of any copy is damaged.
    pub(crate) fn any_damage(&self) -> bool {
        let stores = self.hosts.iter().filter_map(|host| host.store.as_ref());
        let mut damage = stores.map(|store| store.damage().unwrap_or(0));
        self.profile.faults.contains(Fault::BlockDamage) && damage.any(|damaged| damaged > 0)
    }

    /// Faults are over: everything that lasts ends, everyone who is down starts.
    pub fn calm_down(&mut self) {
        note!(self, "faults are over");
        self.calm = true;
        for slot in 0..self.nemesis.lasting.len() {
            self.mend(slot as u32);
        }
        self.mend_software();
        self.network.calm_down();
        for index in 0..self.hosts.len() {
            let server = ServerId(index as u8);
            let host = &mut self.hosts[index];
            host.disk.failing = None;
            host.stays_down = false;
            (host.disk_slowness, host.turn_slowness) = (1, 1);
            if let Some(process) = &mut host.process {
                process.dies_next_turn = false;
                process.stalls_next_turn = 0;
            } else {
                self.restart(server);
            }
        }
        self.queue.put(self.now, Due::Supervise);
    }
}
