//! A healed group converges and serves; a refusal to form a view is justified; who has nothing to do sleeps.
//! Owns: the words for a group that does not.
//! Never: gives a group less time than its time-outs ask for.
//! Source: property 19.

use harp_node::vr::ServerId;

use super::{Verdict, Violation, require};

/// A server may take so many turns in a row that want nothing done: what it moves into its cache takes some.
const SPINS_MAX: u32 = 50;

/// The property, in words.
pub const NAME: &str = "19, a healed group serves";

/// The group was healed and did not get where it should in time.
pub fn stuck(what: String) -> Violation {
    Violation { property: NAME, what }
}

/// `server` took so many turns in a row for nothing.
pub fn demand_sleep(server: ServerId, spins: u32) -> Verdict {
    require(NAME, spins <= SPINS_MAX, || format!("{server} takes turns without end, for nothing"))
}
