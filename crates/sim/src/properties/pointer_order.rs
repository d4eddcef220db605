//! Copies: GLB <= LB <= AP <= CP <= FP. Witnesses: GLB <= CP <= FP.
//! Never: counts GLB against a server that is catching up, nor CP against one that takes no part in its
//! view: it may have heard of commitments before it has their records.
//! Source: property 3.

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "3, the order of pointers";

/// Checks one server's pointers. `counts_for_glb`: whether GLB takes this copy's LB into account.
pub fn check(pulse: &Pulse, counts_for_glb: bool) -> Verdict {
    let Pulse { fp, cp, ap, lb, glb, .. } = *pulse;
    let images = !pulse.copy || (lb <= ap && (!counts_for_glb || pulse.learner || glb <= lb));
    let logs = !pulse.normal || (glb <= cp && cp <= fp && (!pulse.copy || ap <= cp));
    let ordered = images && logs;
    require(NAME, ordered, || {
        let server = pulse.server;
        format!("{server} has GLB {glb}, LB {lb}, AP {ap}, CP {cp}, FP {fp}")
    })
}
