//! A coordinator adopts the longest of the complete logs that it was told of.
//! Owns: what each coordinator was told for the view it tries, until its first phase 2.
//! Never: counts a promise that did not arrive, or that may have arrived after the choice.
//! Source: rule 2 (c).

use harp_node::vr::{Install, Op, Report, SERVERS_MAX, ServerId, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "rule 2, the longest complete log is adopted";

/// What a coordinator was told: for which view, the highest formed view, the longest log of that.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    view: View,
    formed: View,
    end: Op,
    chosen: bool,
}

impl Told {
    fn hear(&mut self, formed: View, end: Op) {
        if formed > self.formed {
            (self.formed, self.end) = (formed, end);
        } else if formed == self.formed {
            self.end = self.end.max(end);
        }
    }
}

/// What the coordinators were told.
#[derive(Debug, Default)]
pub struct LongestLog {
    told: [Told; SERVERS_MAX],
    /// Promises that arrived in the turn that has not ended.
    fresh: [Vec<(View, View, Option<Op>)>; SERVERS_MAX],
    /// Each server's own log, if it is complete: its view and end.
    own: [Option<(View, Op)>; SERVERS_MAX],
}

impl LongestLog {
    /// A promise of `view` arrived at the coordinator `at`.
    pub fn arrived(&mut self, at: ServerId, view: View, report: &Report) {
        let end = report.log.map(|(_, end)| end);
        self.fresh[at.index()].push((view, report.formed, end));
    }

    fn take_in(&mut self, at: ServerId) {
        let told = &mut self.told[at.index()];
        for (view, formed, end) in self.fresh[at.index()].drain(..) {
            if told.view < view {
                *told = Told { view, ..Told::default() };
            }
            if let Some(end) = end.filter(|_| told.view == view) {
                told.hear(formed, end);
            }
        }
    }

    /// The coordinator `from` sends a phase 2.
    pub fn sent(&mut self, from: ServerId, install: &Install) -> Verdict {
        // Of several promises in one turn, some may have come after the choice.
        if self.fresh[from.index()].len() == 1 {
            self.take_in(from);
        }
        let own = self.own[from.index()];
        let told = &mut self.told[from.index()];
        if told.view < install.view {
            *told = Told { view: install.view, ..Told::default() };
        }
        if std::mem::replace(&mut told.chosen, true) {
            return Ok(());
        }
        if let Some((formed, end)) = own {
            told.hear(formed, end);
        }
        let Told { formed, end, view, .. } = *told;
        require(NAME, install.adopted != formed || install.end >= end, || {
            let adopted = install.end;
            format!(
                "{from} forms view {view} with a log up to {adopted}; it knew of one up to {end}"
            )
        })
    }

    /// A server's turn ended, and what it sent was seen.
    pub fn turn_ended(&mut self, pulse: &Pulse) {
        self.take_in(pulse.server);
        let own = (pulse.formed, Op(pulse.log_end));
        self.own[pulse.server.index()] = pulse.complete.then_some(own);
    }
}
