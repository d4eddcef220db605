//! At most one primary can commit in a view; view numbers are unique.
//! Owns: each view's members and the server that commits in it.
//! Never: accepts two meanings of one view number.
//! Source: property 5.

use std::collections::BTreeMap;

use harp_node::vr::{ServerId, ServerSet, Shape, View};

use super::{Pulse, Verdict, require};

/// The property, in words.
pub const NAME: &str = "5, one primary a view";

/// What is known of the views.
#[derive(Debug, Default)]
pub struct OnePrimary {
    members: BTreeMap<View, ServerSet>,
    primaries: BTreeMap<View, ServerId>,
}

impl OnePrimary {
    /// The members of `view`, if a server formed it.
    pub fn members(&self, view: View) -> Option<ServerSet> {
        self.members.get(&view).copied()
    }

    /// A server formed a view with these members.
    pub fn formed(&mut self, shape: Shape, view: View, members: ServerSet) -> Verdict {
        if view == View::NONE {
            return Ok(());
        }
        let known = *self.members.entry(view).or_insert(members);
        require(NAME, known == members, || {
            format!("view {view} has the members {known:?} and {members:?}")
        })?;
        require(NAME, members.len() == shape.quorum(), || {
            format!("view {view} has {members:?}, not {} members", shape.quorum())
        })
    }

    /// A server acts as a view's primary.
    pub fn check(&mut self, shape: Shape, pulse: &Pulse) -> Verdict {
        self.formed(shape, pulse.formed, pulse.members)?;
        if !pulse.primary {
            return Ok(());
        }
        let (view, server) = (pulse.formed, pulse.server);
        let known = *self.primaries.entry(view).or_insert(server);
        require(NAME, known == server, || {
            format!("{known} and {server} are primaries of view {view}")
        })?;
        require(NAME, shape.primary_of(pulse.members) == Some(server), || {
            format!("{server} is primary of view {view} of {:?}", pulse.members)
        })
    }
}
