//! The protocol's numbers, each a type of its own.
//! Owns: server identities, views, ops, incarnations, and the group's shape.
//! Never: reads a clock; a [`Nanos`] always comes from the caller.
//! Source: docs/protocol.md, "Glossary"; the Harp paper, sections 4.1 to 4.3.

use std::fmt;

/// At most this many servers form a group (n = 3; the supported groups have n = 1 or 2).
pub const SERVERS_MAX: usize = 7;

/// A server's index in its group: 0 is `a`, the designated primary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u8);

impl ServerId {
    /// The index as a `usize`, for tables of servers.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The one-letter name, `a` to `g`.
    pub fn letter(self) -> char {
        (b'a' + self.0) as char
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// A set of servers, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ServerSet(pub u8);

impl ServerSet {
    /// The empty set.
    pub const EMPTY: ServerSet = ServerSet(0);

    /// Whether `server` is in the set.
    pub fn contains(self, server: ServerId) -> bool {
        self.0 & (1 << server.0) != 0
    }

    /// Adds `server`.
    pub fn insert(&mut self, server: ServerId) {
        self.0 |= 1 << server.0;
    }

    /// Takes `server` out.
    pub fn remove(&mut self, server: ServerId) {
        self.0 &= !(1 << server.0);
    }

    /// How many servers it holds.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The servers in ascending order.
    pub fn iter(self) -> impl Iterator<Item = ServerId> {
        (0..8).map(ServerId).filter(move |s| self.contains(*s))
    }
}

impl FromIterator<ServerId> for ServerSet {
    fn from_iter<I: IntoIterator<Item = ServerId>>(servers: I) -> ServerSet {
        let mut set = ServerSet::EMPTY;
        servers.into_iter().for_each(|s| set.insert(s));
        set
    }
}

impl fmt::Debug for ServerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{")?;
        self.iter().try_for_each(|s| write!(f, "{s}"))?;
        write!(f, "}}")
    }
}

/// A view number: (epoch, configuration, counter, coordinator), packed so that integers order it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View(pub u64);

impl View {
    /// Before every view.
    pub const NONE: View = View(0);

    /// Packs the four parts.
    pub fn new(epoch: u8, configuration: u16, counter: u32, coordinator: ServerId) -> View {
        View(
            (epoch as u64) << 56
                | (configuration as u64) << 40
                | (counter as u64) << 8
                | coordinator.0 as u64,
        )
    }

    /// How many operator overrides there were.
    pub fn epoch(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The group's configuration number.
    pub fn configuration(self) -> u16 {
        (self.0 >> 40) as u16
    }

    /// Counts up by one for each attempt.
    pub fn counter(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// Who coordinates or coordinated the view's forming.
    pub fn coordinator(self) -> ServerId {
        ServerId(self.0 as u8)
    }

    /// The next view that `coordinator` may try above this one.
    pub fn next(self, coordinator: ServerId) -> View {
        let counter = self.counter().checked_add(1).expect("view counter ran out");
        View::new(self.epoch(), self.configuration(), counter, coordinator)
    }

    /// The same in a later epoch.
    pub fn in_epoch(self, epoch: u8) -> View {
        assert!(epoch >= self.epoch(), "epochs count up");
        View::new(epoch, self.configuration(), self.counter(), self.coordinator())
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (e, c, n) = (self.epoch(), self.configuration(), self.counter());
        write!(f, "{e}.{c}.{n}.{}", self.coordinator())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Position of an event record in the log, from 1; 0 is "before the first". Goes on across views.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op(pub u64);

impl Op {
    /// Before the first record.
    pub const ZERO: Op = Op(0);

    /// The op after this one.
    pub fn next(self) -> Op {
        Op(self.0 + 1)
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One life of one server on one disk: a random disk id and a counter made durable at each start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Incarnation {
    /// Drawn when the disk was formatted.
    pub disk: u64,
    /// Counts the starts on that disk, from 1.
    pub start: u64,
}

/// A moment of a clock that runs during suspend and never goes back, in nanoseconds. Only differences mean
/// anything.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This moment plus `nanos`.
    pub fn plus(self, nanos: u64) -> Nanos {
        Nanos(self.0.saturating_add(nanos))
    }

    /// Nanoseconds since `earlier`, 0 if that lies ahead.
    pub fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The group's shape: n+1 copies first, then n witnesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// How many failures the group rides out.
    pub n: u8,
}

impl Shape {
    /// All 2n+1 servers.
    pub fn servers(self) -> impl Iterator<Item = ServerId> + Clone {
        (0..2 * self.n + 1).map(ServerId)
    }

    /// The n+1 designated copies, the designated primary first.
    pub fn copies(self) -> impl Iterator<Item = ServerId> + Clone {
        (0..self.n + 1).map(ServerId)
    }

    /// Whether `server` is a designated copy.
    pub fn is_copy(self, server: ServerId) -> bool {
        server.0 <= self.n
    }

    /// How many members a view has.
    pub fn quorum(self) -> usize {
        self.n as usize + 1
    }

    /// The primary of a view with these members: the first designated copy among them.
    pub fn primary_of(self, members: ServerSet) -> Option<ServerId> {
        self.copies().find(|s| members.contains(*s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_order_by_their_parts_and_print_them() {
        let view = View::new(0, 1, 7, ServerId(0));
        assert_eq!(view.to_string(), "0.1.7.a");
        assert!(view.next(ServerId(2)) > view);
        assert!(View::new(1, 0, 0, ServerId(0)) > view);
        assert!(View::new(0, 1, 7, ServerId(1)) > view);
    }

    #[test]
    fn the_first_copy_among_the_members_is_primary() {
        let shape = Shape { n: 2 };
        let of = |ids: &[u8]| shape.primary_of(ids.iter().map(|i| ServerId(*i)).collect());
        assert_eq!(of(&[0, 1, 2]), Some(ServerId(0)));
        assert_eq!(of(&[1, 3, 2]), Some(ServerId(1)));
        assert_eq!(of(&[3, 4]), None);
    }
}
