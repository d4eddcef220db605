//! A refusal to form a view is justified: from what the coordinator was told, rule 2 fails.
//! Owns: what each coordinator was told for the view it tries, and when it last heard of whom.
//! Never: asks the coordinator's own judgement; the three predicates are written down here once more.
//! Source: property 18, rule 2.

use harp_node::vr::{Incarnation, Refusal, Report, SERVERS_MAX, ServerId, Shape, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "18, a refusal is justified";

/// A server's word in a promise, and the disk it gave it under.
type Word = (u64, Report);

/// What one coordinator knows.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    view: View,
    words: [Option<Word>; SERVERS_MAX],
    /// The newest life of each sender, and when a message of it arrived last, in true time.
    heard: [(Incarnation, Option<u64>); SERVERS_MAX],
}

/// What all coordinators know.
#[derive(Debug, Default)]
pub struct Refusals {
    told: [Told; SERVERS_MAX],
}

impl Refusals {
    /// A message of `from`, sent in this life of it, arrived at `at`. Returns whether that life is its newest.
    pub fn heard(&mut self, at: ServerId, from: ServerId, life: Incarnation, now: u64) -> bool {
        let known = &mut self.told[at.index()].heard[from.index()];
        if known.0.disk == life.disk && life.start < known.0.start {
            return false;
        }
        *known = (life, Some(now));
        true
    }

    /// A promise of `view` from that newest life arrived.
    pub fn promised(&mut self, at: ServerId, from: ServerId, view: View, word: Word) {
        let told = &mut self.told[at.index()];
        if told.view < view {
            (told.view, told.words) = (view, Default::default());
        }
        if told.view == view {
            told.words[from.index()] = Some(word);
        }
    }

    /// A server's process ended, and what it was told with it.
    pub fn ended(&mut self, server: ServerId) {
        self.told[server.index()] = Told::default();
    }

    /// `pulse.server` refuses to form a view; `own` is its word about itself. `silence`: so long
    /// after its last message no server counts as silent, by whatever clock.
    pub fn check(
        &self,
        shape: Shape,
        pulse: &Pulse,
        own: Word,
        refusal: &Refusal,
        silence: u64,
    ) -> Verdict {
        let me = pulse.server;
        let told = &self.told[me.index()];
        let mut words = if told.view == pulse.promised { told.words } else { Default::default() };
        words[me.index()] = Some(own);
        let lately = |(_, at): &(Incarnation, Option<u64>)| {
            at.is_some_and(|at| pulse.at.saturating_sub(at) <= silence)
        };
        let alone = 1 + told.heard.iter().filter(|h| lately(h)).count() < shape.quorum();
        let few = matches!(refusal, Refusal::Promises { .. }) && alone;
        require(NAME, few || !may_form(shape, &words), || {
            format!(
                "{me} refuses to form {}, and could: {refusal}; it was told {words:?}",
                pulse.promised
            )
        })
    }
}

/// Rule 2, of the servers whose words these are.
fn may_form(shape: Shape, words: &[Option<Word>; SERVERS_MAX]) -> bool {
    let all = || shape.servers().filter_map(|s| words[s.index()].map(|word| (s, word)));
    let longest = |words: &mut dyn Iterator<Item = Report>| {
        words
            .filter_map(|r| r.log.map(|(begin, end)| (r.formed, end, begin, r)))
            .max_by_key(|l| (l.0, l.1))
    };
    // (a) Whose disk counts says the adopted history.
    let Some((.., history)) = longest(&mut all().map(|(_, (_, report))| report)) else {
        return false;
    };
    let counted: Vec<(ServerId, Report)> = all()
        .filter(|(s, (disk, _))| history.settled.disks[s.index()] == *disk)
        .map(|(s, (_, report))| (s, report))
        .collect();
    if counted.len() < shape.quorum() {
        return false;
    }
    // (b), (c) A whole log of the highest view that any of them formed, which lacks nothing known to be committed.
    let formed = counted.iter().map(|(_, r)| r.formed).max();
    let mut holders = counted.iter().filter(|(_, r)| Some(r.formed) == formed).map(|(_, r)| *r);
    let Some((_, end, begin, _)) = longest(&mut holders) else { return false };
    if counted.iter().any(|(_, r)| r.cp > end) {
        return false;
    }
    // (c) An image that reaches the log, and n+1 servers that can be members.
    let trimmed = counted.iter().map(|(_, r)| r.glb.0 + 1).max().unwrap_or(0);
    let begin = begin.0.max(trimmed);
    let reaches = |r: &Report| r.image.is_some_and(|lb| lb.0 + 1 >= begin);
    let able = |(s, r): &&(ServerId, Report)| !shape.is_copy(*s) || reaches(r);
    counted.iter().any(|(s, r)| shape.is_copy(*s) && reaches(r))
        && counted.iter().filter(able).count() >= shape.quorum()
}
