//! Every reply fits the model at an op within the request's time; no reply shows an op above CP.
//! Owns: the search for that op.
//! Never: accepts a state older than what any client knew when the request began.
//! Source: properties 14 and 15; the model is the specification.

use super::Violation;
use crate::intent::Intent;
use crate::model::{Answer, Content, Ino, Mismatch, Model};

/// The property, in words.
pub const NAME: &str = "14 and 15, replies are linearizable";

/// Which states a reply may show.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Not older than this op.
    pub from: u64,
    /// Not newer.
    pub to: u64,
}

/// Judges a reply that changed nothing. Returns what the client takes from it, and the lowest op at
/// which it is true.
pub fn check_view(
    model: &mut Model,
    intent: &Intent,
    content: Content<'_>,
    window: Window,
) -> Result<(Answer, u64), Violation> {
    let mut last = Mismatch("no state to compare with: the reply left before its request's time");
    for at in window.from..=window.to {
        match model.check_view(at, (window.from, window.to), intent, content) {
            Ok(answer) => return Ok((answer, at)),
            Err(mismatch) => last = mismatch,
        }
    }
    let Window { from, to } = window;
    let what = format!("the reply to {intent:?} fits no op in [{from}, {to}]; at {to}: {}", last.0);
    Err(Violation { property: NAME, what: what + &shown(content) })
}

/// Judges the reply to a request that was carried out as `op`.
pub fn check_change(
    model: &mut Model,
    intent: &Intent,
    content: Content<'_>,
    op: u64,
    touched: Option<Ino>,
) -> Result<Answer, Violation> {
    model.check_change(op, intent, touched, content).map_err(|mismatch| {
        let what = format!("the reply to {intent:?}, op {op}: {}", mismatch.0);
        Violation { property: NAME, what: what + &shown(content) }
    })
}

/// A reply came before the records it shows were committed at its server.
pub fn above_cp(intent: &Intent, op: u64, cp: u64) -> Violation {
    let what = format!("the reply to {intent:?} shows op {op}, the server's CP is {cp}");
    Violation { property: NAME, what }
}

fn shown(content: Content<'_>) -> String {
    match content {
        Content::Mount(handle) => format!("; it shows {handle:?}"),
        Content::Nfs(response, data) => {
            let head = &data[..data.len().min(16)];
            format!("; it shows {response:?} {head:02x?}")
        }
    }
}
