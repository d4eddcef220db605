//! Every committed op was held by all n+1 members of the view in which it committed.
//! Owns: up to where each member acknowledged records of each view.
//! Never: takes a primary's word for what a member holds.
//! Source: property 7.

use std::collections::BTreeMap;

use harp_node::vr::{Envelope, Message, ServerId, ServerSet, View};

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "7, committed operations are held by all members";

/// Acknowledgements, as they were sent.
#[derive(Debug, Default)]
pub struct HeldByMembers {
    acknowledged: BTreeMap<(View, ServerId), u64>,
}

impl HeldByMembers {
    /// A server sent a message; acknowledgements are remembered.
    pub fn sent(&mut self, from: ServerId, envelope: &Envelope) {
        let (view, upto) = match &envelope.message {
            Message::Installed { view, end } => (*view, end.0),
            Message::PrepareOk(ok) => (ok.view, ok.durable.0),
            _ => return,
        };
        let known = self.acknowledged.entry((view, from)).or_default();
        *known = upto.max(*known);
    }

    /// What `server` acknowledged in `view`.
    pub fn acknowledged(&self, view: View, server: ServerId) -> u64 {
        self.acknowledged.get(&(view, server)).copied().unwrap_or(0)
    }

    /// The primary of `view` has committed up to `cp`.
    pub fn check(&self, primary: ServerId, view: View, members: ServerSet, cp: u64) -> Verdict {
        for member in members.iter().filter(|member| *member != primary) {
            let held = self.acknowledged(view, member);
            require(NAME, held >= cp, || {
                format!(
                    "{primary} committed up to op {cp} in view {view}, \
                     but {member} acknowledged only up to {held}"
                )
            })?;
        }
        Ok(())
    }
}
