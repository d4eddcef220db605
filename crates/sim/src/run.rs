//! One whole run: faults for a while, then peace, then the reckoning.
//! Owns: the phases, their limits, and what a run reports.
//! Never: calls a run good that committed less than nine tenths of its operations.

use harp_node::vr::{Consent, Order, ServerId, ServerSet};

use crate::intent::Intent;
use crate::model::{Kind, ROOT};
use crate::profile::{Profile, SECOND, Wish};
use crate::properties::{Verdict, Violation, healed_group_serves::stuck};
use crate::world::World;

/// The fault phase ends at the latest after this much virtual time.
const FAULTS_MAX: u64 = 30 * SECOND;
/// A healed group must serve, and have answered everything, within this much virtual time.
const HEALING_MAX: u64 = 20 * SECOND;
/// A barrier or a digest may take this long.
const BARRIER_MAX: u64 = 5 * SECOND;
/// Times that all images are digested until no block is damaged any more.
const SCRUBS_MAX: u64 = 10;
/// Bytes that one READ of the reckoning asks for.
const READ_BYTES: u64 = 64 << 10;

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Hash over all events: equal for equal wishes.
    pub trace: u64,
    /// Requests answered, the reckoning's own not counted.
    pub answered: u64,
    /// Records committed.
    pub committed: u64,
    /// Views that a primary formed.
    pub views: u64,
    /// Faults that struck.
    pub faults: u32,
    /// Events of the agenda.
    pub events: u64,
    /// Virtual time.
    pub virtual_nanos: u64,
}

/// Runs the world of a wish to its end.
pub fn run(wish: Wish, tracing: bool) -> Result<Report, Violation> {
    let mut world = World::new(Profile::draw(wish));
    world.tracing = tracing;
    run_phases(&mut world).map_err(|violation| {
        crate::world::note!(world, "VIOLATION {violation}");
        violation
    })
}

fn run_phases(world: &mut World) -> Result<Report, Violation> {
    // The last tenth of the operations comes in peace, so that peace is tested too.
    let in_peace = world.profile.wish.ops / 10;
    world.run_until(FAULTS_MAX, |world| world.requests_left <= in_peace)?;
    world.calm_down();
    let limit = world.now + HEALING_MAX;
    heal(world, limit)?;
    let answered = world.observer.counts.answered;
    reckon(world)?;
    let Counted { issued, put_off } = counted(world);
    let done = answered - put_off.min(answered);
    if done * 10 < issued.min(world.profile.wish.ops) * 9 {
        return Err(stuck(format!("only {done} of {issued} operations were carried out")));
    }
    Ok(Report {
        trace: world.trace.0,
        answered,
        committed: world.observer.history.committed(),
        views: world.observer.counts.views,
        faults: world.nemesis.struck.iter().sum(),
        events: world.events,
        virtual_nanos: world.now,
    })
}

/// Ends all faults; then everyone must serve together, agree, and show what the model shows.
pub fn peace(world: &mut World) -> Verdict {
    world.calm_down();
    let limit = world.now + HEALING_MAX;
    heal(world, limit)?;
    reckon(world)
}

struct Counted {
    issued: u64,
    put_off: u64,
}

fn counted(world: &World) -> Counted {
    let counts = world.observer.counts;
    Counted { issued: counts.issued, put_off: counts.put_off }
}

/// All clients have asked and heard everything.
fn is_quiet(world: &World) -> bool {
    world.requests_left == 0
        && world.clients.iter().all(|client| client.open.is_empty() && client.told.is_empty())
}

/// All copies are members of a view that serves, and agree on it: one whose disk was lost has a whole image
/// again.
fn has_converged(world: &World) -> bool {
    let serving = world.serving().and_then(|server| world.pulse(server));
    let Some(serving) = serving else { return false };
    world.profile.shape.copies().all(|copy| {
        let pulse = world.pulse(copy);
        let agrees = pulse.is_some_and(|p| p.formed == serving.formed && !p.learner);
        serving.members.contains(copy) && agrees
    })
}

fn heal(world: &mut World, limit: u64) -> Verdict {
    let quiet = world.run_until(limit, is_quiet)?;
    if !quiet {
        let open: usize = world.clients.iter().map(|client| client.open.len()).sum();
        let left = world.requests_left;
        return Err(stuck(format!(
            "{open} requests wait for their answers, {left} were never made; {}",
            states(world)
        )));
    }
    if !converge(world, limit)? {
        return Err(stuck(format!("the copies do not serve together; {}", states(world))));
    }
    Ok(())
}

/// Waits until the copies serve together; looks now and then, since looking takes time.
fn converge(world: &mut World, limit: u64) -> Result<bool, Violation> {
    while !has_converged(world) {
        if world.now >= limit {
            return Ok(false);
        }
        let next = world.now + world.profile.heartbeat;
        world.run_until(next, |_| false)?;
    }
    Ok(true)
}

/// What every server says of itself, for people.
fn states(world: &World) -> String {
    let mut text = String::new();
    for server in world.profile.shape.servers() {
        match &world.hosts[server.index()].process {
            Some(process) => {
                let now = world.hosts[server.index()].clock.read(world.now);
                let status = process.node.status(now);
                text += &format!(
                    "{server}: {} {} promised {} formed {} {:?} fp {} cp {} ap {} lb {} glb {}; ",
                    status.role,
                    status.state,
                    status.promised,
                    status.formed,
                    status.members,
                    status.fp,
                    status.cp,
                    status.ap,
                    status.lb,
                    status.glb
                );
            }
            None => text += &format!("{server}: down; "),
        }
    }
    text
}

/// Compares the copies' images, and every file and directory with the model.
fn reckon(world: &mut World) -> Verdict {
    compare_images(world)?;
    if world.blocks_lost {
        return Ok(());
    }
    world.observer.model.may_lose_blocks = false;
    let objects: Vec<_> = world.observer.model.live().collect();
    for ino in objects {
        if world.observer.model.handle(ino).is_none() {
            continue; // nobody ever saw its handle; its entry is seen in its directory
        }
        world.tell(0, Intent::GetAttr { ino });
        let more = match world.observer.model.kind(ino) {
            Kind::Directory => Intent::ReadDir { dir: ino },
            Kind::File => Intent::Read { ino, offset: 0, count: READ_BYTES as u32 },
        };
        world.tell(0, more);
    }
    world.tell(0, Intent::ReadDir { dir: ROOT });
    let limit = world.now + HEALING_MAX;
    match world.run_until(limit, is_quiet)? {
        true => Ok(()),
        false => Err(stuck(format!("reading everything back hangs; {}", states(world)))),
    }
}

fn compare_images(world: &mut World) -> Verdict {
    let copies = world.profile.shape.copies().count() as u32;
    let mut patience = 3;
    for token in 1.. {
        if token > patience {
            break;
        }
        let Some(primary) = world.serving() else {
            world.run_until(world.now + BARRIER_MAX, |world| world.serving().is_some())?;
            continue;
        };
        world.verify(primary, token);
        let limit = world.now + BARRIER_MAX;
        world.run_until(limit, |world| world.barrier.is_some_and(|(t, _)| t == token))?;
        if let Some((answered, Some(op))) = world.barrier
            && answered == token
            && world.run_until(limit, |world| {
                let images = &world.observer.images;
                images.count(op) + images.damaged(op) == copies
            })?
        {
            if world.observer.images.damaged(op) == 0 || world.blocks_lost {
                return Ok(());
            }
            // Once all are mended, all are compared again.
            patience = SCRUBS_MAX;
            world.run_until(limit, |world| !is_mending(world))?;
        }
    }
    Err(stuck(format!("the copies do not digest their images; {}", states(world))))
}

/// Whether a copy still waits for damaged blocks.
fn is_mending(world: &World) -> bool {
    world.hosts.iter().any(|host| {
        let now = host.clock.read(world.now);
        let status = host.process.as_ref().map(|process| process.node.status(now).repair);
        status.is_some_and(|repair| repair.damaged + repair.lost > 0)
    })
}

impl World {
    /// The operator asks `server` for a barrier at which all copies digest their images.
    pub fn verify(&mut self, server: ServerId, token: u64) {
        self.deliver(server, crate::host::Incoming::Verify(token));
    }

    /// The operator asks `server` what an override without `absent` would do (`consent`: nothing), or orders it. Returns
    /// the order's number, by which [`World::answers`] has its answer and the override's record its time.
    pub fn order(&mut self, server: ServerId, absent: ServerSet, consent: Option<Consent>) -> u64 {
        self.orders += 1;
        let (token, by) = (self.orders, *b"the operator\0\0");
        let order = Order { token, absent, consent, at_seconds: token, by };
        self.deliver(server, crate::host::Incoming::Override(order));
        token
    }

    /// What every server says of itself, for people.
    pub fn states(&self) -> String {
        states(self)
    }
}
