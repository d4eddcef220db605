//! Copies: GLB <= LB <= AP <= CP <= FP. Witnesses: GLB <= CP <= FP.
//! Never: counts GLB against a server that is catching up.
//! Source: property 3.

use super::{Pulse, Verdict, require};

const NAME: &str = "3, the order of pointers";

/// Checks one server's pointers. `counts_for_glb`: whether GLB takes this copy's LB into account.
pub fn check(pulse: &Pulse, counts_for_glb: bool) -> Verdict {
    let Pulse { fp, cp, ap, lb, glb, .. } = *pulse;
    let ordered = match (pulse.copy, pulse.learner || !counts_for_glb) {
        (true, true) => lb <= ap && ap <= cp && cp <= fp,
        (true, false) => glb <= lb && lb <= ap && ap <= cp && cp <= fp,
        (false, true) => cp <= fp,
        (false, false) => glb <= cp && cp <= fp,
    };
    require(NAME, ordered, || {
        let server = pulse.server;
        format!("{server} has GLB {glb}, LB {lb}, AP {ap}, CP {cp}, FP {fp}")
    })
}
