//! Each request executes at most once, and every reply to it is the same.
//! Owns: which op each request became, and the digest of its reply.
//! Never: mixes requests up; the world numbers them once.
//! Source: property 13.

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "13, each request executes once";

#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    op: u64,
    reply: Option<u64>,
}

/// Requests and what became of them.
#[derive(Debug, Default)]
pub struct ExecutedOnce {
    outcomes: Vec<Outcome>,
}

impl ExecutedOnce {
    /// The request with this number became `op`.
    pub fn committed(&mut self, request: u32, op: u64) -> Verdict {
        let index = request as usize;
        if self.outcomes.len() <= index {
            self.outcomes.resize(index + 1, Outcome::default());
        }
        let before = std::mem::replace(&mut self.outcomes[index].op, op);
        require(NAME, before == 0, || format!("request {request} is op {before} and op {op}"))
    }

    /// An operator's override kept the history up to `kept`: what came after it never happened.
    pub fn overridden(&mut self, kept: u64) {
        for outcome in self.outcomes.iter_mut().filter(|outcome| outcome.op > kept) {
            *outcome = Outcome::default();
        }
    }

    /// The op that the request became, if it is committed.
    pub fn op(&self, request: u32) -> Option<u64> {
        self.outcomes.get(request as usize).map(|outcome| outcome.op).filter(|op| *op > 0)
    }

    /// A reply to a committed request left; `digest` stands for its bytes.
    pub fn replied(&mut self, request: u32, digest: u64) -> Verdict {
        let outcome = &mut self.outcomes[request as usize];
        let first = *outcome.reply.get_or_insert(digest);
        let op = outcome.op;
        require(NAME, first == digest, || {
            format!("request {request}, op {op}, was answered in two ways")
        })
    }
}
