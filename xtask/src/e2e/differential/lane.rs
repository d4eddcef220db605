//! Lane: one directory of its own on both sides, and one operation after the other in it.
//! Owns: the objects that both sides have, the comparison, the report of a difference.
//! Never: goes on after a difference: everything after it would be another world.
//! Invariant: between two operations every object was last seen alike on both sides.
//! Source: none.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};

use harp_bench::client::{Client, Options};
use harp_bench::request::{CreateHow, DirName, FileType, Request, Response, SetAttr, Status};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, statat};

use super::generator::{Generator, HOME, WINDOW_BYTES, WINDOWS};
use super::host::Host;
use super::object::Object;
use super::operation::{Guard, Operation};
use super::outcome::{Outcome, Shows, Told, first_difference};
use super::served::{Answered, Served};
use super::user::User;
use super::{E2eError, doing};
use crate::random::Random;

/// The root that all lanes share among a lane's objects; other lanes change it.
const TOP: usize = 0;
/// Handles of removed objects that are tried again.
const DEAD_MAX: usize = 4;
/// After so many operations everything is compared.
const AUDIT_EVERY: u64 = 2000;
/// Operations remembered for a report, and shown in one.
const HISTORY_MAX: usize = 5000;
const HISTORY_SHOWN: usize = 15;

/// How often each procedure succeeded and failed.
pub type Tally = BTreeMap<String, (u64, u64)>;

/// One lane.
pub struct Lane {
    seed: u64,
    client: Client,
    random: Random,
    objects: Vec<Object>,
    next_label: u32,
    /// Number of the operation under way.
    number: u64,
    history: VecDeque<(Vec<u32>, String)>,
    pub tally: Tally,
}

impl Lane {
    /// Makes the lane's directory on both sides, open to everybody.
    pub fn start(seed: u64, server: Options, host_root: &OwnedFd) -> Result<Lane, E2eError> {
        let wrong = |error: &dyn Display| E2eError::Wrong(error.to_string());
        let mut client = Client::connect(server).map_err(|error| wrong(&error))?;
        let top = client.mount("/").map_err(|error| wrong(&error))?;
        let request = Request::GetAttr { handle: top.as_slice() };
        let (response, _) = client.call(&request).map_err(|error| wrong(&error))?;
        let Response::GetAttr { ok: Some(top_seen), .. } = response else {
            return Err(E2eError::Wrong(format!("the root's attributes: {response:?}")));
        };
        let name = format!("lane-{seed}");
        let what = DirName { dir: top.as_slice(), name: name.as_bytes() };
        let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        let made = client.call(&Request::MkDir { what, set }).map_err(|error| wrong(&error))?.0;
        let Response::Create { ok: Some(home), attr: Some(home_seen), .. } = made else {
            return Err(E2eError::Wrong(format!("making the lane's directory: {made:?}")));
        };
        doing("mkdir", mkdirat(host_root, &name, Mode::from_raw_mode(0o777)).map_err(Into::into))?;
        let refer = |path: &str| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            doing(path, openat(host_root.as_fd(), path, flags, Mode::empty()).map_err(Into::into))
        };
        let objects = vec![
            Object::new(0, top, &top_seen, refer(".")?),
            Object::new(1, home, &home_seen, refer(&name)?),
        ];
        Ok(Lane {
            seed,
            client,
            random: Random(seed),
            objects,
            next_label: 2,
            number: 0,
            history: VecDeque::new(),
            tally: Tally::new(),
        })
    }

    /// Performs operations as long as `goes_on` says of their number so far, compares all there is
    /// now and then and at the end.
    pub fn run(&mut self, goes_on: &dyn Fn(u64) -> bool) -> Result<(), E2eError> {
        while goes_on(self.number) {
            self.number += 1;
            let (user, operation) = self.generate();
            let went_well = self.both(user, &operation)?;
            let procedure = self.text(&operation).split(' ').next().unwrap_or_default().to_owned();
            let (successes, failures) = self.tally.entry(procedure).or_default();
            *(if went_well { successes } else { failures }) += 1;
            self.forget_dead();
            if self.number.is_multiple_of(AUDIT_EVERY) {
                self.audit()?;
            }
        }
        self.audit()
    }

    fn generate(&mut self) -> (&'static User, Operation) {
        let objects = &self.objects;
        let names = |dir: usize| Host::new(objects, User::ROOT).children(dir);
        Generator { random: &mut self.random, objects, names: &names }.next()
    }

    fn text(&self, operation: &Operation) -> String {
        operation.text(|object| format!("#{}", self.objects[object].label))
    }

    /// Performs one operation on both sides and compares; says whether it succeeded.
    fn both(&mut self, user: &User, operation: &Operation) -> Result<bool, E2eError> {
        let concerned = self.concerned(operation);
        let text = format!("{} {user}: {}", self.number, self.text(operation));
        let client = &mut self.client;
        let answered = Served { client, objects: &self.objects, user }.perform(operation)?;
        let mut host = Host::new(&self.objects, user);
        let expected = match operation {
            Operation::SetAttr { object, guard: Guard::Wrong, .. } => {
                host.alive(*object).and(Err(Status::NotSync))
            }
            _ => host.perform(operation),
        };
        let (made, disturbed) = (host.made.take(), host.disturbed.get());
        let labels = concerned.iter().map(|place| self.objects[*place].label).collect();
        self.remember(labels, format!("{text} -> {}", Told(&expected)));
        if disturbed {
            self.objects[concerned[0]].disturb();
        }
        let checked = self.compare(operation, &expected, &answered, made, &concerned);
        match checked {
            Ok(()) => Ok(expected.is_ok()),
            Err(difference) => Err(self.report(&difference, &concerned)),
        }
    }

    fn remember(&mut self, labels: Vec<u32>, line: String) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back((labels, line));
    }

    /// The objects that the operation may change: those it is said of, then those that its names
    /// lead to.
    fn concerned(&self, operation: &Operation) -> Vec<usize> {
        let mut places = operation.objects();
        for at in operation.names() {
            let dir = &self.objects[at.dir];
            if dir.dead || dir.kind != FileType::Directory || at.name.contains(&b'/') {
                continue;
            }
            if let Ok(stat) = statat(&dir.fd, &at.name[..], AtFlags::SYMLINK_NOFOLLOW) {
                places.extend(self.objects.iter().position(|o| o.host_ino == stat.st_ino));
            }
        }
        places
    }

    fn compare(
        &mut self,
        operation: &Operation,
        expected: &Outcome,
        answered: &Answered,
        made: Option<OwnedFd>,
        concerned: &[usize],
    ) -> Result<(), String> {
        if answered.outcome != *expected {
            let mut told =
                format!("host: {}\n    harp: {}", Told(expected), Told(&answered.outcome));
            if let (Ok(Shows::Data(one, _)), Ok(Shows::Data(other, _))) =
                (expected, &answered.outcome)
            {
                told.push_str(&format!("\n    {}", first_difference(one, other)));
            }
            return Err(told);
        }
        for (place, before) in answered.before.iter().filter(|(place, _)| *place != TOP) {
            self.objects[*place].expect_before(before)?;
        }
        if let (Some((handle, attributes)), Some(fd)) = (&answered.made, made) {
            let mut object = Object::new(self.next_label, *handle, attributes, fd);
            self.next_label += 1;
            if let Operation::Create { how: CreateHow::Exclusive(verifier), .. } = operation {
                object.verifier = Some(*verifier);
            }
            if self.objects.iter().any(|other| other.fileid == object.fileid) {
                return Err(format!("a new object has the file id {} of another", object.fileid));
            }
            object.observe(attributes)?;
            self.objects.push(object);
        } else if expected == &Ok(Shows::New) {
            return Err("the reply shows no handle or no attributes of the new object".into());
        }
        let shown = answered.after.iter().filter(|(place, _)| *place != TOP);
        for (place, attributes) in shown.clone() {
            self.objects[*place].observe(attributes)?;
        }
        let shown: Vec<usize> = shown.map(|(place, _)| *place).collect();
        let unseen = |place: &&usize| **place != TOP && !shown.contains(place);
        concerned.iter().filter(unseen).try_for_each(|place| self.look(*place))
    }

    /// Looks at an object on both sides: the same attributes, or gone from both.
    fn look(&mut self, place: usize) -> Result<(), String> {
        let user = User::ROOT;
        let seen = Served { client: &mut self.client, objects: &self.objects, user }.look(place);
        let object = &mut self.objects[place];
        match seen.map_err(|error| error.to_string())? {
            Ok(attributes) if object.stat().st_nlink > 0 => object.observe(&attributes),
            Err(Status::Stale) if object.stat().st_nlink == 0 => {
                object.dead = true;
                Ok(())
            }
            seen => Err(format!(
                "#{}: {} names on the host, harp says {seen:?}",
                object.label,
                object.stat().st_nlink
            )),
        }
    }

    fn forget_dead(&mut self) {
        let dead = self.objects.iter().enumerate().filter(|(_, object)| object.dead);
        let oldest = dead.clone().min_by_key(|(_, object)| object.label).map(|(place, _)| place);
        if let Some(place) = oldest.filter(|_| dead.count() > DEAD_MAX) {
            self.objects.swap_remove(place);
        }
    }

    /// Compares every object, its data, its entries, its target.
    fn audit(&mut self) -> Result<(), E2eError> {
        for object in HOME..self.objects.len() {
            if self.objects[object].dead {
                continue;
            }
            self.both(User::ROOT, &Operation::GetAttr { object })?;
            match self.objects[object].kind {
                FileType::Directory => {
                    self.both(User::ROOT, &Operation::List { object, bytes: 8192, plus: true })?;
                }
                FileType::Symlink => {
                    self.both(User::ROOT, &Operation::ReadLink { object })?;
                }
                FileType::Regular => {
                    let size = self.objects[object].served_size();
                    for offset in WINDOWS.into_iter().filter(|window| *window < size) {
                        let count = WINDOW_BYTES as u32;
                        self.both(User::ROOT, &Operation::Read { object, offset, count })?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Everything a person needs who looks for the cause.
    fn report(&self, difference: &str, concerned: &[usize]) -> E2eError {
        let labels: Vec<u32> = concerned.iter().map(|place| self.objects[*place].label).collect();
        let related = |entry: &&(Vec<u32>, String)| entry.0.iter().any(|l| labels.contains(l));
        let lines: Vec<&str> = self
            .history
            .iter()
            .rev()
            .filter(related)
            .take(HISTORY_SHOWN)
            .map(|(_, line)| line.as_str())
            .collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        E2eError::Wrong(format!(
            "seed {}, operation {}: the two sides differ\n    {difference}\n  the last operations \
             on these objects, the one that differs last:\n    {}\n  again: cargo xtask e2e \
             --full --seed {} {}",
            self.seed,
            self.number,
            lines.join("\n    "),
            self.seed,
            super::NAME
        ))
    }
}
