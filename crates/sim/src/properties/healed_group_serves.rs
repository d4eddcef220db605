//! A healed group converges and serves; a refusal to form a view is justified.
//! Owns: the words for a group that does not.
//! Never: gives a group less time than its time-outs ask for.
//! Source: property 19.

use super::Violation;

/// The property, in words.
pub const NAME: &str = "19, a healed group serves";

/// The group was healed and did not get where it should in time.
pub fn stuck(what: String) -> Violation {
    Violation { property: NAME, what }
}
