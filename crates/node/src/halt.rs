//! Records that end whoever applies them (rule 14): found by redoing with care after a start.
//! Owns: what a process leaves behind for the next one while it redoes, and when a copy halts.
//! Never: costs anything once the log that was there at the start is redone.
//! Invariant: what is about to be redone after a start was announced in an earlier turn.
//! Source: docs/notes/halt.md.

use harp_vr::Planted;

use crate::api::{Now, Output};
use crate::node::Node;
use crate::record::{self, kind};

/// Processes that end at one and the same record before a copy halts there.
const DEATHS_MAX: u32 = 2;
/// Processes that end in one and the same checkpoint before a copy halts. It takes long, and whoever kills servers
/// on purpose may well meet it again.
const CHECKPOINT_DEATHS_MAX: u32 = 5;

/// Records that a process was at, for the next process to find if that one died of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// How many processes ended at these very records, if the one that announced this did.
    pub deaths: u32,
}

/// What the world keeps for this server's next process. It need not outlive the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// About to be redone.
    pub redo: Option<Suspect>,
    /// On their way into the image.
    pub checkpoint: Option<Suspect>,
}

/// Redoing what the log held at the start, and bringing it into the image.
#[derive(Debug)]
pub(crate) struct Redo {
    /// The log's end at the start, then that of what was gathered before this server took part in a view, and what
    /// earlier processes ended at. Any other record that ends it is in its log at the next start.
    upto: u64,
    /// What earlier processes ended at, as long as it is not over.
    found: Suspects,
    /// What is under way.
    announced: Suspects,
}

/// What may be done about the records that are next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// They may be redone up to here.
    Apply(u64),
    /// First the world must know.
    Announce,
    /// So many processes ended at the next one.
    Halt(u32),
}

impl Redo {
    /// A process starts with a log up to `upto`, after one that left `found` behind.
    pub fn starting(upto: u64, found: Suspects) -> Redo {
        let upto = found.redo.map_or(upto, |suspect| upto.max(suspect.last));
        Redo { upto, found, announced: Suspects::default() }
    }

    /// What the world is to know.
    fn note(&self) -> Suspects {
        let Suspects { redo, checkpoint } = self.announced;
        Suspects {
            redo: redo.or(self.found.redo),
            checkpoint: checkpoint.or(self.found.checkpoint),
        }
    }

    /// What to do about the records from `next` on, if there is reason to go up to `stop`. All at once where no
    /// process ended; one by one where one did.
    fn step(&mut self, next: u64, stop: u64) -> Step {
        if let Some(announced) = self.announced.redo
            && (announced.first..=announced.last).contains(&next)
        {
            return Step::Apply(stop.min(announced.last));
        }
        let stop = stop.min(self.upto);
        let suspect = match self.found.redo {
            Some(s) if (s.first..=s.last).contains(&next) => {
                let alone = s.first == s.last;
                if alone && s.deaths >= DEATHS_MAX {
                    return Step::Halt(s.deaths);
                }
                let before = if alone { s.deaths } else { 0 };
                Suspect { first: next, last: next, deaths: before.saturating_add(1) }
            }
            Some(s) if s.first > next => {
                Suspect { first: next, last: stop.min(s.first - 1), deaths: 1 }
            }
            _ => Suspect { first: next, last: stop, deaths: 1 },
        };
        self.announced.redo = Some(suspect);
        Step::Announce
    }

    /// Whether what was announced is no longer about to be redone: it went well, or there is no reason any more to
    /// go on beyond `done`. The next may be long in coming, and whatever ended this process meanwhile would be
    /// held against these. What earlier processes ended at stays known until it is redone.
    fn take_back(&mut self, done: u64, stop: u64) -> bool {
        self.found.redo.take_if(|found| found.last <= done);
        let over = |announced: &mut Suspect| announced.last <= done || stop <= done;
        self.announced.redo.take_if(over).is_some()
    }

    /// How often a checkpoint that begins at `first` ended a process.
    fn checkpoint_deaths(&self, first: u64) -> u32 {
        self.found.checkpoint.filter(|s| s.first == first).map_or(0, |s| s.deaths)
    }
}

impl Node {
    /// Up to where records may be applied in this turn, of those up to `stop`.
    pub(crate) fn stop_with_care(&mut self, now: Now, stop: u64, out: &mut Output) -> u64 {
        let (Some(copy), Some(redo)) = (&self.copy, &mut self.redo) else { return stop };
        let done = copy.shadow_op;
        if self.settings.planted == Some(Planted::RedoWithoutCare) {
            return stop;
        }
        if !self.replica.is_normal() {
            redo.upto = redo.upto.max(stop); // these records are in no log of ours that lasts
        }
        if redo.take_back(done, stop) {
            out.remember = Some(redo.note());
        }
        if done >= redo.upto || stop <= done {
            return stop;
        }
        let deaths = redo.checkpoint_deaths(copy.lb + 1);
        if deaths >= CHECKPOINT_DEATHS_MAX {
            let why = format!("a checkpoint that begins with it ended this server {deaths} times");
            self.halt(now, copy.lb + 1, &why);
            return done;
        }
        match redo.step(done + 1, stop) {
            Step::Apply(stop) => stop,
            Step::Announce => {
                out.remember = Some(redo.note());
                done
            }
            Step::Halt(deaths) => {
                let why = format!("it ended this server {deaths} times");
                self.halt(now, done + 1, &why);
                done
            }
        }
    }

    /// Nothing may be redone now, for what may take long: nothing is about to be.
    pub(crate) fn redo_no_further(&mut self, out: &mut Output) {
        let (Some(copy), Some(redo)) = (&self.copy, &mut self.redo) else { return };
        if redo.take_back(copy.shadow_op, copy.shadow_op) {
            out.remember = Some(redo.note());
        }
    }

    /// A checkpoint of `first..=last` is about to begin.
    pub(crate) fn announce_checkpoint(&mut self, first: u64, last: u64, out: &mut Output) {
        let Some(redo) = &mut self.redo else { return };
        let deaths = redo.checkpoint_deaths(first).saturating_add(1);
        redo.announced.checkpoint = Some(Suspect { first, last, deaths });
        out.remember = Some(redo.note());
    }

    /// The image is exact at `lb`: what was there at the start is done with when it is in the image, and this server
    /// gathers no more that is in no log of its own.
    pub(crate) fn checkpoint_survived(&mut self, lb: u64, out: &mut Output) {
        let Some(redo) = &mut self.redo else { return };
        (redo.announced.checkpoint, redo.found.checkpoint) = (None, None);
        redo.found.redo.take_if(|found| found.last <= lb);
        if lb >= redo.upto && self.replica.is_normal() {
            self.redo = None;
            out.remember = Some(Suspects::default());
        } else {
            out.remember = Some(redo.note());
        }
    }

    /// Another history is followed: records with the same ops are other ones.
    pub(crate) fn forget_suspects(&mut self, out: &mut Output) {
        let Some(redo) = &mut self.redo else { return };
        (redo.found, redo.announced) = (Suspects::default(), Suspects::default());
        out.remember = Some(Suspects::default());
    }

    /// Whether a lethal record ended this process ([`crate::Settings::lethal_xid`]).
    pub fn died_of_record(&self) -> bool {
        self.killed
    }

    /// Whether applying `op` is to end this process, as the settings say.
    pub(crate) fn is_lethal(&self, op: u64) -> bool {
        let Some(xid) = self.settings.lethal_xid else { return false };
        let Some(record) = self.log.growing().record(op) else { return false };
        record.header.kind == kind::OPERATION
            && record::operation(record.body).is_ok_and(|o| o.stamp.key.xid == xid)
    }

    /// This copy goes no further than the record before `op`.
    pub(crate) fn halt(&mut self, now: Now, op: u64, why: &str) {
        let copy = self.copy.as_mut().expect("only copies apply");
        copy.halted = true;
        let why = format!(
            "op {op} cannot be applied here: {why}; the log is kept; install a version of harp that can apply it"
        );
        self.replica.on_halted(now.steady, why, &mut self.actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes redo `1..=100`; each dies at `killer`, or not. Returns how many died, and whether the last halts.
    fn processes(killer: u64) -> (u32, bool) {
        let (mut left, mut deaths) = (Suspects::default(), 0);
        'process: loop {
            let mut redo = Redo::starting(100, left);
            let mut done = 0;
            while done < 100 {
                match redo.step(done + 1, (done + 32).min(100)) {
                    Step::Announce => left = redo.note(),
                    Step::Apply(upto) if (done + 1..=upto).contains(&killer) => {
                        deaths += 1;
                        continue 'process;
                    }
                    Step::Apply(upto) => done = upto,
                    Step::Halt(_) => {
                        assert_eq!(done + 1, killer, "halts at another record");
                        return (deaths, true);
                    }
                }
            }
            return (deaths, false);
        }
    }

    #[test]
    fn a_record_that_kills_is_found_wherever_it_is() {
        for killer in 1..=100 {
            assert_eq!(processes(killer), (1 + DEATHS_MAX, true), "op {killer}");
        }
        assert_eq!(processes(101), (0, false));
    }

    #[test]
    fn ends_at_different_records_halt_nobody() {
        let mut left = Suspects::default();
        for end in [40, 41, 40, 42, 39, 40] {
            let mut redo = Redo::starting(100, left);
            let mut done = 0;
            while done < end {
                match redo.step(done + 1, (done + 32).min(100)) {
                    Step::Announce => left = redo.note(),
                    Step::Apply(upto) => done = upto,
                    Step::Halt(_) => panic!("halted at {}", done + 1),
                }
            }
        }
    }

    /// A view that was about to let records be applied ended, and the process died much later for another reason.
    #[test]
    fn what_is_not_redone_after_all_is_taken_back() {
        let mut redo = Redo::starting(100, Suspects::default());
        assert_eq!(redo.step(41, 60), Step::Announce);
        assert!(!redo.take_back(40, 60), "about to be redone");
        assert!(redo.take_back(40, 40), "nothing may be redone now");
        assert_eq!(redo.note(), Suspects::default());
        assert_eq!(redo.step(41, 60), Step::Announce);
        assert!(redo.take_back(60, 60), "all of it was redone");
    }

    /// The same for a record that an earlier process ended at: that stays known, also if this process's log ended below.
    #[test]
    fn what_ended_an_earlier_process_stays_known_until_it_is_redone() {
        let ended = Suspect { first: 50, last: 50, deaths: 1 };
        let left = Suspects { redo: Some(ended), checkpoint: None };
        let mut redo = Redo::starting(40, left);
        assert_eq!(redo.step(41, 60), Step::Announce);
        assert_eq!(redo.step(41, 60), Step::Apply(49));
        assert!(redo.take_back(49, 49));
        assert_eq!(redo.note(), left);
        assert_eq!(redo.step(50, 60), Step::Announce);
        assert_eq!(redo.note().redo, Some(Suspect { deaths: 2, ..ended }));
        assert!(redo.take_back(49, 49), "not about to be redone any more");
        assert_eq!(redo.note(), left);
        assert_eq!(redo.step(50, 60), Step::Announce);
        assert!(redo.take_back(50, 50), "it did no harm");
        assert_eq!(redo.note(), Suspects::default());
    }

    #[test]
    fn only_a_checkpoint_from_the_same_place_counts() {
        let checkpoint = Some(Suspect { first: 11, last: 40, deaths: 3 });
        let redo = Redo::starting(100, Suspects { redo: None, checkpoint });
        assert_eq!((redo.checkpoint_deaths(11), redo.checkpoint_deaths(41)), (3, 0));
    }
}
