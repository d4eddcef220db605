//! The world's agenda: what happens when, in virtual nanoseconds.
//! Owns: the order of events; ties go to the one that was put in first.
//! Never: reads a wall clock; time moves only by taking the next entry.
//! Invariant: entries come out in ascending (time, number).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use harp_node::vr::ServerId;

/// One thing due. Entries that name a `life` are void once that process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// A server's loop runs once.
    Turn {
        /// Whose.
        server: ServerId,
        /// Of which of its processes.
        life: u32,
    },
    /// A server wanted to hear that time passed.
    Wake {
        /// Which.
        server: ServerId,
        /// Of which of its processes.
        life: u32,
    },
    /// A message arrives; the number is its place in the mail room.
    Frame {
        /// Its place.
        slot: u32,
    },
    /// A server's log disk finished the command at its queue's head.
    DiskDone {
        /// Whose.
        server: ServerId,
        /// Of which of its processes.
        life: u32,
    },
    /// A server's store thread finished the job at a lane's head.
    JobDone {
        /// Whose.
        server: ServerId,
        /// Of which of its processes.
        life: u32,
        /// Which thread: 0 fetches, 1 checkpoints.
        lane: u8,
    },
    /// A server's user database answers.
    LookedUp {
        /// Whose.
        server: ServerId,
        /// Of which of its processes.
        life: u32,
        /// About whom.
        uid: u32,
    },
    /// What a client sent on a connection arrives.
    ToServer {
        /// The connection's number.
        conn: u32,
    },
    /// What a server answered on a connection arrives.
    ToClient {
        /// The connection's number.
        conn: u32,
    },
    /// A client looks what there is to do.
    Client {
        /// Which.
        client: u32,
    },
    /// A copy of a call that was answered arrives; the number is its place among the copies.
    Copy {
        /// Its place.
        slot: u32,
    },
    /// The supervisor looks who serves.
    Supervise,
    /// The next fault strikes.
    Strike,
    /// A fault that lasts ends; the number is its place among the lasting ones.
    Mend {
        /// Its place.
        slot: u32,
    },
    /// A machine goes off, whatever its process is about.
    PowerOff {
        /// Which server's.
        server: ServerId,
        /// Of which of its processes; void if that ended.
        life: u32,
    },
    /// A process starts (again).
    Start {
        /// Which server's.
        server: ServerId,
        /// The life that ended; void if it started since.
        life: u32,
    },
}

/// The agenda.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, Due)>>,
    number: u64,
}

impl Queue {
    /// Puts `due` in at `at`.
    pub fn put(&mut self, at: u64, due: Due) {
        self.number += 1;
        self.heap.push(Reverse((at, self.number, due)));
    }

    /// Takes the next entry out.
    pub fn take(&mut self) -> Option<(u64, Due)> {
        self.heap.pop().map(|Reverse((at, _, due))| (at, due))
    }

    /// When the next entry is due.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_come_out_in_the_order_they_went_in() {
        let mut queue = Queue::default();
        queue.put(5, Due::Strike);
        queue.put(5, Due::Supervise);
        queue.put(1, Due::Client { client: 9 });
        assert_eq!(queue.next_at(), Some(1));
        let order: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(order, [(1, Due::Client { client: 9 }), (5, Due::Strike), (5, Due::Supervise)]);
    }
}
