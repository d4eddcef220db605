//! Repair: copies give each other blocks that are damaged.
//! Owns: who may ask whom.
//! Never: looks into a block; takes part in views. Content goes by its checksum, so that it matters neither in which
//! view nor in which state a copy is, but that its image is whole.
//! Source: docs/notes/repair.md; docs/protocol.md, the message table.

use crate::action::Records;
use crate::replica::Replica;
use crate::types::{Op, ServerId};

impl Replica {
    /// The other copies.
    pub fn other_copies(&self) -> impl Iterator<Item = ServerId> + Clone + use<> {
        let me = self.settings.me;
        self.settings.shape.copies().filter(move |copy| *copy != me)
    }

    pub(crate) fn on_block_want(&self, from: ServerId, lb: Op) -> Records {
        let asks = self.settings.shape.is_copy(from);
        if asks && self.has_image() { Records::BlockWant { lb } } else { Records::Ignore }
    }

    pub(crate) fn on_block_grant(&self, from: ServerId, lb: Op) -> Records {
        let gives = self.settings.shape.is_copy(from);
        if gives && self.has_image() { Records::BlockGrant { lb } } else { Records::Ignore }
    }
}
