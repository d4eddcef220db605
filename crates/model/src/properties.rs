//! What must hold in every state, and what must come to pass in some.
//! Owns: the properties.
//! Never: repairs or decides anything.
//! Source: docs/protocol.md, "Rules"; docs/notes/model.md says which rule each property guards.

use harp_vr::{Message, ServerId, View};
use stateright::Property;

use crate::bounds::Leases;
use crate::disk::Record;
use crate::server::{Mail, Server};
use crate::tables::Facts;
use crate::world::{Group, State};

/// What broke in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// An assertion of the protocol failed.
    Assertion,
    /// A durable promise or formed view went back on one disk.
    WentBack,
    /// Something was said in a view that is not durably promised.
    SaidTooEarly,
    /// Something was acknowledged or logged in a view below the promise.
    SaidTooLate,
    /// A view begins with less than what its members reported.
    NotTheLongest,
    /// A record was committed that not all members of the view held.
    NotHeldByAll,
}

impl Broken {
    /// What broke at one server in its turn.
    pub fn in_turn(before: &Server, after: &Server, sent: &[Mail]) -> Option<Broken> {
        let (old, new) = (&before.disk.view_file, &after.disk.view_file);
        let same_disk = old.incarnation.disk == new.incarnation.disk;
        if same_disk && (new.promised < old.promised || new.formed < old.formed) {
            return Some(Broken::WentBack);
        }
        if sent.iter().any(|mail| said_in(&mail.envelope.message) > new.promised) {
            return Some(Broken::SaidTooEarly);
        }
        // What is said in the turn of the promise may have been said before it.
        if same_disk && sent.iter().any(|mail| counts_in(&mail.envelope.message) < old.promised) {
            return Some(Broken::SaidTooLate);
        }
        let judged = after.replica.judged();
        let shorter = judged.is_some_and(|(install, longest)| install.end < longest);
        shorter.then_some(Broken::NotTheLongest)
    }
}

/// The view that a message commits its sender to.
fn said_in(message: &Message) -> View {
    match *message {
        Message::Invite { view }
        | Message::Promise { view, .. }
        | Message::Want { view, .. }
        | Message::Grant { view, .. }
        | Message::Installed { view, .. }
        | Message::CatchUp { view, .. } => view,
        Message::Install(install) => install.view,
        Message::Prepare(prepare) => prepare.view,
        Message::PrepareOk(ok) => ok.view,
        Message::Past(past) => past.view,
        Message::Presence(_)
        | Message::Decline { .. }
        | Message::ImageWant { .. }
        | Message::ImagePart { .. }
        | Message::BlockWant { .. }
        | Message::BlockGrant { .. } => View::NONE,
    }
}

/// The view in which a message commits records or lets them be committed.
fn counts_in(message: &Message) -> View {
    match *message {
        Message::Installed { view, .. } => view,
        Message::Prepare(prepare) => prepare.view,
        Message::PrepareOk(ok) => ok.view,
        _ => View(u64::MAX),
    }
}

/// All properties, by name.
pub fn all() -> Vec<Property<Group>> {
    vec![
        Property::always("no assertion of the protocol fails", |_, s: &State| {
            s.broken != Some(Broken::Assertion)
        }),
        Property::always("promises and formed views only grow (rule 1)", |_, s: &State| {
            s.broken != Some(Broken::WentBack)
        }),
        Property::always("nothing is said above the durable promise (rule 1)", |_, s: &State| {
            s.broken != Some(Broken::SaidTooEarly)
        }),
        Property::always("nothing is acknowledged below the promise (rule 1)", |_, s: &State| {
            s.broken != Some(Broken::SaidTooLate)
        }),
        Property::always("a view begins with the longest log (rule 2)", |_, s: &State| {
            s.broken != Some(Broken::NotTheLongest)
        }),
        Property::always("what is committed was held by all members", |_, s: &State| {
            s.broken != Some(Broken::NotHeldByAll)
        }),
        Property::always("one history up to CP", one_history),
        Property::always("a view's log holds all that was committed (rule 2)", logs_are_complete),
        Property::always("what a copy lacks is kept (rule 10)", kept_for_the_absent),
        Property::always("one primary a view", one_primary),
        Property::always("no stale read (rule 7)", no_stale_read),
        Property::sometimes("an op is committed", |g: &Group, s: &State| {
            g.look(s, |_, history| !history.is_empty())
        }),
        Property::sometimes("ops are committed in two views", |g: &Group, s: &State| {
            g.look(s, |_, history| history.windows(2).any(|pair| pair[0].1 < pair[1].1))
        }),
        Property::sometimes("the last view change serves", |g: &Group, s: &State| {
            let last = s.used.views == g.bounds().views;
            last && g.look(s, |facts, _| {
                let serving = facts.iter().filter(|f| f.serving).map(|f| f.formed);
                let promised = facts.iter().map(|f| f.promised).max();
                serving.max() == promised
            })
        }),
        Property::sometimes("a read is answered in the last view", |g: &Group, s: &State| {
            let last = s.used.views == g.bounds().views;
            last && g.look(s, |facts, _| {
                let answering = facts.iter().filter(|f| f.may_answer).map(|f| f.formed);
                let promised = facts.iter().map(|f| f.promised).max();
                answering.max() == promised
            })
        }),
    ]
}

/// What any server knows to be committed is what was committed.
fn one_history(group: &Group, state: &State) -> bool {
    group.look(state, |facts, history| {
        facts.iter().all(|server| {
            let known = server.committed.len();
            let agrees = |(record, (committed, _)): (&Option<Record>, &(Record, View))| {
                record.is_none_or(|record| record == *committed)
            };
            known <= history.len() && server.committed.iter().zip(history).all(agrees)
        })
    })
}

/// A log that may be voted holds every op that its view, or one before it, committed.
fn logs_are_complete(group: &Group, state: &State) -> bool {
    group.look(state, |facts, history| {
        facts.iter().all(|server| {
            let Some((view, log)) = &server.votable else { return true };
            (1..).zip(history).all(|(op, (record, committed_in))| {
                committed_in > view || op < log.begin || log.get(op) == Some(*record)
            })
        })
    })
}

/// The logs of the highest view reach back to the image of every copy that counts, absent ones too.
fn kept_for_the_absent(group: &Group, state: &State) -> bool {
    group.look(state, |facts, _| {
        let logs = facts.iter().filter_map(|f| Some((f, f.votable.as_ref()?)));
        let highest = logs.clone().map(|(_, (view, _))| *view).max();
        logs.filter(|(_, (view, _))| Some(*view) == highest).all(|(holder, (_, log))| {
            let counts = |(me, copy): &(ServerId, &&Facts)| {
                let configuration = &holder.configuration;
                let admitted = configuration.disks[me.index()] == copy.incarnation.disk;
                admitted && !configuration.needs_image.contains(*me)
            };
            let copies = (0..).map(ServerId).zip(facts).filter(counts);
            copies.filter_map(|(_, copy)| copy.lb).all(|lb| log.begin <= lb + 1)
        })
    })
}

fn one_primary(group: &Group, state: &State) -> bool {
    group.look(state, |facts, _| {
        let mut views: Vec<View> = facts.iter().filter_map(|f| f.primary_of).collect();
        views.sort_unstable();
        let primaries = views.windows(2).all(|pair| pair[0] != pair[1]);
        let agree = |a: &Facts, b: &Facts| a.formed != b.formed || a.members == b.members;
        primaries && facts.iter().all(|a| facts.iter().all(|b| agree(a, b)))
    })
}

/// Whoever may answer a read has all that was committed.
fn no_stale_read(group: &Group, state: &State) -> bool {
    let judged = group.bounds().leases == Leases::End;
    !judged
        || group.look(state, |facts, history| {
            facts.iter().all(|server| !server.may_answer || server.committed.len() == history.len())
        })
}
