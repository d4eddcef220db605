//! A coordinator adopts the longest of the complete logs that it was told of.
//! Owns: what each coordinator was told for the view it tries, until its first phase 2.
//! Never: counts a promise that did not arrive, or arrived after the choice.
//! Source: rule 2 (c).

use harp_node::vr::{Install, Op, Report, SERVERS_MAX, ServerId, View};

use super::{Verdict, require};

const NAME: &str = "the longest complete log is adopted";

/// What a coordinator was told: for which view, the highest formed view, the longest log of that.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    view: View,
    formed: View,
    end: Op,
    chosen: bool,
}

/// What the coordinators were told.
#[derive(Debug, Default)]
pub struct LongestLog {
    told: [Told; SERVERS_MAX],
}

impl LongestLog {
    /// A promise of `view` arrived at the coordinator `at`.
    pub fn arrived(&mut self, at: ServerId, view: View, report: &Report) {
        let told = &mut self.told[at.index()];
        if told.view != view {
            *told = Told { view, ..Told::default() };
        }
        let Some((_, end)) = report.log else { return };
        if report.formed > told.formed {
            (told.formed, told.end) = (report.formed, end);
        } else if report.formed == told.formed {
            told.end = told.end.max(end);
        }
    }

    /// The coordinator `from` sends a phase 2.
    pub fn sent(&mut self, from: ServerId, install: &Install) -> Verdict {
        let told = &mut self.told[from.index()];
        if told.view != install.view || std::mem::replace(&mut told.chosen, true) {
            return Ok(());
        }
        let Told { formed, end, view, .. } = *told;
        require(NAME, install.adopted != formed || install.end >= end, || {
            let adopted = install.end;
            format!(
                "{from} forms view {view} with a log up to {adopted}; it knew of one up to {end}"
            )
        })
    }
}
