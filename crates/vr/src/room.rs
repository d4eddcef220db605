//! Room: the space that servers say they have.
//! Owns: the server's own room and what the members of its view last told of theirs.
//! Never: decides what a request may take; the caller plans by it.
//! Invariant: a room counts only what its server owns, so that nobody else can take it away.
//! Source: docs/notes/room.md; rule 13.

use crate::replica::Replica;
use crate::types::Op;

/// What a server could still take in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// The image stood here when its free blocks were counted: what lies above takes some of them.
    pub op: Op,
    /// Free blocks for file data that the server owns.
    pub blocks: u64,
    /// Blocks that it may come to own; 0 when it tried in vain.
    pub more_blocks: u64,
    /// Whether its metadata and its log have room for more than what removes need.
    pub grows: bool,
}

impl Room {
    /// That of a server without an image, as far as data goes; and of one that has said nothing yet.
    pub const ENDLESS: Room =
        Room { op: Op(u64::MAX), blocks: u64::MAX, more_blocks: u64::MAX, grows: true };
}

impl Replica {
    /// This server's room, to be told to the others.
    pub fn on_room(&mut self, room: Room) {
        self.room = room;
    }

    /// This server's room as it was last told.
    pub fn room(&self) -> Room {
        self.room
    }

    /// What each member of the formed view said last.
    pub fn member_rooms(&self) -> impl Iterator<Item = Room> {
        let me = self.settings.me;
        self.durable.members.iter().filter_map(move |member| {
            if member == me {
                return Some(self.room);
            }
            self.peers[member.index()].presence.map(|presence| presence.room)
        })
    }
}
