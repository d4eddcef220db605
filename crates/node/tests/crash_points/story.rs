//! Story: a workload carried out, and the same with the power cut at every step.
//! Owns: what happened without a crash, which all that follows a crash is compared with.
//! Never: goes on with a workload after a crash; what was asked last may only be asked again.
//! Invariant: a recovered group holds the requests up to some one of them, all that were answered included.
//! Source: properties 1, 12, 13 and 16.

use harp_fs::request::{Response, Status, Time};
use harp_vr::Planted;
use harp_wire::nfs3;

use crate::disks::{COMMITTED, Disks, Lie, Machines, Moment, Rest};
use crate::group::{Group, Manner, open_store, results};
use crate::model::Model;
use crate::rng::Rng;
use crate::tree::{self, Tree};
use crate::workload::Op;

const NANOS: u64 = 1_000_000_000;

/// A record of the log, taken out.
#[derive(Clone, Debug)]
pub struct Taken {
    pub op: u64,
    pub kind: u8,
    pub time: u64,
    pub body: Vec<u8>,
}

/// How things stand after a request.
#[derive(Clone, Debug)]
pub struct State {
    /// The log's end.
    pub end: u64,
    pub tree: Tree,
    /// That of the images, where a checkpoint was made here.
    pub digest: Option<[u8; 32]>,
    /// The call that led here, and its reply, if it made a record.
    pub logged: Option<(Vec<u8>, Vec<u8>)>,
}

/// A tree that workloads start from.
pub struct Base {
    disks: [Disks; 2],
    nodes: Vec<Option<crate::model::Node>>,
    handles: Vec<Vec<u8>>,
    state: State,
    records: Vec<Taken>,
    wall: u64,
}

/// What was done and came of it, without a crash.
pub struct Story {
    /// The state before the first request, then that after each.
    pub states: Vec<State>,
    /// Every step from the last request on.
    pub moments: Vec<Moment>,
    /// All records, those of the tree's making included.
    pub records: Vec<Taken>,
    /// The primary's disks when its image stood at this op.
    pub images: Vec<(u64, Disks)>,
    wall: u64,
    /// The rule that recovering groups break, too.
    planted: Option<Planted>,
}

/// Where checkpoints fall, and in which order the group does what it may do in any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    /// Bit `i`: a checkpoint after request `i`, counted from 0. One is always made at the end.
    pub checkpoints: u32,
    pub manner: Manner,
    /// What the disks do that they must not.
    pub lie: Option<Lie>,
}

/// How a group is led through requests.
struct Teller {
    group: Group,
    model: Model,
    handles: Vec<Vec<u8>>,
    records: Vec<Taken>,
    wall: u64,
    place: u64,
}

fn time_of(wall: u64) -> Time {
    Time { seconds: (wall / NANOS) as u32, nanos: (wall % NANOS) as u32 }
}

impl Teller {
    fn state(&mut self, logged: Option<(Vec<u8>, Vec<u8>)>) -> Result<State, String> {
        let tree = tree::walk(&mut self.group)?;
        tree::check(&tree, &self.model)?;
        self.take_records()?;
        Ok(State { end: self.group.end(), tree, digest: None, logged })
    }

    fn take_records(&mut self) -> Result<(), String> {
        let log = self.group.primary().log();
        let from = self.records.last().map_or(1, |record| record.op + 1);
        for op in from..=log.current().end() {
            let record = log.record(op).ok_or_else(|| format!("record {op} is not in memory"))?;
            let (kind, time) = (record.header.kind, record.header.time);
            self.records.push(Taken { op, kind, time, body: record.body.to_vec() });
        }
        Ok(())
    }

    /// Asks for `op` and compares the outcome with the model's. `None`: a client could not ask for it.
    fn ask(&mut self, op: Op) -> Result<Option<State>, String> {
        self.place += 1;
        let Some(bound) = op.bind(&self.model, self.place) else { return Ok(None) };
        self.wall += NANOS / 1000;
        let (wall, before) = (self.wall, self.group.end());
        let group = &mut self.group;
        let (procedure, call) = bound.request(&self.handles, |request| group.encode(request, wall));
        let reply = self.group.call(&call)?;
        let decoded = nfs3::decode_body(procedure, results(&reply)?);
        let response = decoded.map_err(|error| format!("unreadable: {error:?}"))?.response;
        let expected = bound.apply(&mut self.model, time_of(wall));
        let (status, made) = outcome(&response);
        if status != expected.map_or_else(|status| status, |_| Status::Ok) {
            return Err(format!("{op:?} gives {status:?}, in the model {expected:?}"));
        }
        if let Ok(Some(id)) = expected
            && id == self.handles.len()
        {
            self.handles.push(made.ok_or("a success without a handle")?);
        }
        let logged = self.group.end() > before;
        if logged && self.group.end() > before + 1 {
            return Err(format!("{op:?} makes more than one record"));
        }
        self.state(logged.then_some((call, reply))).map(Some)
    }
}

fn outcome(response: &Response) -> (Status, Option<Vec<u8>>) {
    match response {
        Response::Create { status, ok, .. } => {
            (*status, ok.map(|handle| handle.as_slice().to_vec()))
        }
        Response::Wcc { status, .. }
        | Response::Write { status, .. }
        | Response::Rename { status, .. }
        | Response::Link { status, .. } => (*status, None),
        other => panic!("nobody asked for {other:?}"),
    }
}

impl Base {
    /// Makes the tree on freshly formatted disks, its image exact at its end.
    pub fn new(ops: &[Op]) -> Result<Base, String> {
        let wall = 1_700_000_000 * NANOS;
        let machines = Machines::new(Group::format(), None);
        let mut group = Group::start(machines, Manner::default(), wall)?;
        let handles = vec![group.mount()?.as_slice().to_vec()];
        let model = Model::new(Time::default());
        let mut teller = Teller { group, model, handles, records: Vec::new(), wall, place: 1_000 };
        let mut state = teller.state(None)?;
        for op in ops {
            let after = teller.ask(*op)?.ok_or_else(|| format!("{op:?} comes too early"))?;
            state = after;
        }
        state.digest = Some(teller.group.checkpoint()?);
        teller.group.rest()?;
        teller.take_records()?;
        state.end = teller.group.end();
        let disks = [teller.group.machines.disks_of(0), teller.group.machines.disks_of(1)];
        let Teller { model, handles, records, wall, .. } = teller;
        Ok(Base { disks, nodes: model.nodes, handles, state, records, wall })
    }

    /// The model as it stands at the start.
    pub fn model(&self) -> Model {
        Model { nodes: self.nodes.clone() }
    }

    /// Carries a workload out. `None`: a client could not ask for one of its requests.
    pub fn tell(&self, ops: &[Op], schedule: Schedule) -> Result<Option<Story>, String> {
        let disks = [self.disks[0].fork(), self.disks[1].fork()];
        let machines = Machines::new(disks, schedule.lie);
        let group = Group::start(machines, schedule.manner, self.wall)?;
        let mut teller = Teller {
            group,
            model: self.model(),
            handles: self.handles.clone(),
            records: self.records.clone(),
            wall: self.wall,
            place: 0,
        };
        if teller.group.end() != self.state.end {
            return Err(format!("starting adds a record: {} ops", teller.group.end()));
        }
        let mut states = vec![self.state.clone()];
        teller.group.machines.record(self.state.end);
        let mut first = 0;
        let mut begun = false;
        for (place, op) in ops.iter().enumerate() {
            first = teller.group.machines.noted_moments() - 1;
            let Some(state) = teller.ask(*op)? else { return Ok(None) };
            states.push(state);
            if std::mem::take(&mut begun) {
                teller.finish_checkpoint(&mut states, place)?;
            }
            let last = place + 1 == ops.len();
            if !last && schedule.checkpoints >> place & 1 == 1 {
                teller.group.start_checkpoint()?;
                begun = schedule.manner.checkpoints_wait;
                if !begun {
                    teller.finish_checkpoint(&mut states, place + 1)?;
                }
            }
        }
        teller.group.start_checkpoint()?;
        let end = states.len() - 1;
        teller.finish_checkpoint(&mut states, end)?;
        let mut moments = teller.group.machines.take_moments();
        let mut images = vec![image(self.disks[0].fork())?];
        for moment in &moments {
            if moment.server == 0 && moment.what == COMMITTED {
                let [disks, _] = moment.cut(Rest::Nothing);
                images.push(image(disks)?);
            }
        }
        moments.drain(..first);
        let Teller { records, wall, .. } = teller;
        let planted = schedule.manner.planted;
        Ok(Some(Story { states, moments, records, images, wall, planted }))
    }
}

/// A server's disks with the op that its image stands at.
fn image(disks: Disks) -> Result<(u64, Disks), String> {
    let machines = Machines::new([disks.fork(), disks.fork()], None);
    Ok((open_store(&machines, 0)?.op(), disks))
}

impl Teller {
    /// The checkpoint under way ends; it shows the state with this number.
    fn finish_checkpoint(&mut self, states: &mut [State], number: usize) -> Result<(), String> {
        states[number].digest = Some(self.group.finish_checkpoint()?);
        self.take_records()
    }
}

/// What a recovered group must show.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// All that was answered up to this op of the log.
    AtLeast(u64),
    /// The state with this number.
    Exactly(usize),
}

/// How much was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub workloads: u64,
    /// Moments at which the power was cut, each as often as it could leave something else.
    pub crashes: u64,
    /// Recoveries: the first one after each crash, and those after crashes of recoveries.
    pub recoveries: u64,
    /// Replays of a suffix of the log over an image.
    pub replays: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.workloads += more.workloads;
        self.crashes += more.crashes;
        self.recoveries += more.recoveries;
        self.replays += more.replays;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { workloads, crashes, recoveries, replays } = self;
        write!(
            f,
            "{workloads} workloads, {crashes} crashes, {recoveries} recoveries, {replays} replays"
        )
    }
}

impl Story {
    /// Whether the last request left a record. If not, all steps are those of a shorter workload.
    pub fn changes_at_last(&self) -> bool {
        self.states.last().is_some_and(|state| state.logged.is_some())
    }

    /// The number of the newest state that a log ending at `end` shows.
    fn state_at(&self, end: u64) -> usize {
        self.states.partition_point(|state| state.end <= end).saturating_sub(1)
    }

    /// The power is cut at every step; the group recovers. After every `again`th crash it recovers from a crash
    /// in the middle of that, too, and from one in the middle of that.
    pub fn crash_everywhere(&self, rng: &mut Rng, again: u64) -> Result<Counts, String> {
        let mut counts = Counts { workloads: 1, ..Counts::default() };
        for (at, moment) in self.moments.iter().enumerate() {
            let rest = moment.rest(rng);
            let mut place =
                format!("step {at}, server {}: {}, {rest:?} is left", moment.server, moment.what);
            let more = rng.one_in(again);
            let expected = Expected::AtLeast(moment.answered);
            let recovered = self.recover(moment.cut(rest), expected, more);
            let (state, mut left) = recovered.map_err(|why| format!("{place}: {why}"))?;
            (counts.crashes, counts.recoveries) = (counts.crashes + 1, counts.recoveries + 1);
            for more in [true, false] {
                if left.is_empty() {
                    break;
                }
                let moment = rng.pick(&left);
                let rest = moment.rest(rng);
                place += &format!("; then server {}: {}, {rest:?}", moment.server, moment.what);
                let recovered = self.recover(moment.cut(rest), Expected::Exactly(state), more);
                (_, left) = recovered.map_err(|why| format!("{place}: {why}"))?;
                counts.recoveries += 1;
            }
        }
        Ok(counts)
    }

    /// Both servers start from what was left. Returns the state they show and, if wanted, every step they took.
    fn recover(
        &self,
        disks: [Disks; 2],
        expected: Expected,
        steps: bool,
    ) -> Result<(usize, Vec<Moment>), String> {
        let machines = Machines::new(disks, None);
        if steps {
            machines.record(0);
        }
        let manner = Manner { planted: self.planted, ..Manner::default() };
        let mut group = Group::start(machines, manner, self.wall + NANOS)?;
        let end = group.end();
        let number = match expected {
            Expected::Exactly(number) => number,
            Expected::AtLeast(answered) if end < answered => {
                return Err(format!("op {answered} was answered and the log ends at {end}"));
            }
            Expected::AtLeast(_) => self.state_at(end),
        };
        let state = &self.states[number];
        tree::compare(&tree::walk(&mut group)?, &state.tree)?;
        let digest = group.checkpoint()?;
        if state.digest.is_some_and(|expected| expected != digest) {
            return Err("the images differ from those without a crash".into());
        }
        group.scrub()?;
        if let Some((call, reply)) = &state.logged {
            let end = group.end();
            if group.call(call)? != *reply {
                return Err("the last request, asked again, gets another reply".into());
            }
            if group.end() != end {
                return Err("the last request, asked again, is carried out again".into());
            }
        }
        Ok((number, group.machines.take_moments()))
    }
}
