//! An override gives up what it declares, and nothing else; one that was refused is never done.
//! Owns: nothing.
//! Never: takes a server's word for what was committed.
//! Source: properties 1 and 18; docs/notes/override.md.

use harp_node::vr::{Override, OverrideAnswer, View};

use super::{Verdict, require};

const NAME: &str = "an override keeps what it says";

/// `kept`: the last op at which the new history is the old one. `committed`: the last op of the old one.
/// `adopted`: the last op that was committed in views up to the one whose log went on.
pub fn check(overridden: &Override, kept: u64, committed: u64, adopted: u64) -> Verdict {
    let least = if overridden.adopted == View::NONE { overridden.cut.0 } else { adopted };
    let least = least.min(committed);
    require(NAME, kept >= least, || {
        let (view, cut) = (overridden.view, overridden.cut);
        format!("override {view} cut at op {cut}: {kept} ops were kept, and must be {least}")
    })
}

/// `answer`: what was said to whoever ordered an override that is done now.
pub fn check_order(answer: Option<&OverrideAnswer>) -> Verdict {
    let done = matches!(answer, None | Some(OverrideAnswer::Done { .. }));
    require(NAME, done, || format!("an order is carried out that was answered {answer:?}"))
}
