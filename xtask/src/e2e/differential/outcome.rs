//! Outcome: what an operation came to, in words that both sides share.
//! Owns: the form in which replies are compared.
//! Never: carries attributes; those are compared object by object.
//! Invariant: equal outcomes mean that a client could not tell the two sides apart.
//! Source: RFC 1813, section 3.3.

use std::collections::BTreeMap;
use std::fmt;

use harp_bench::request::Status;

use super::operation::Shown;

/// A status other than success, or what a success shows.
pub type Outcome = Result<Shows, Status>;

/// What a success shows.
#[derive(Debug, PartialEq, Eq)]
pub enum Shows {
    /// Nothing but itself.
    Done,
    /// An object by its place among the lane's objects; `None` is one that nobody knows.
    Object(Option<usize>),
    /// A new object.
    New,
    /// ACCESS's bits.
    Bits(u32),
    /// READ's bytes, and whether the file ends there.
    Data(Vec<u8>, bool),
    /// A symbolic link's target.
    Target(Vec<u8>),
    /// A directory's names and the objects they lead to.
    Names(BTreeMap<Vec<u8>, Option<usize>>),
}

/// An outcome for a report.
pub struct Told<'a>(pub &'a Outcome);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Err(status) => write!(f, "{status:?}"),
            Ok(Shows::Data(bytes, end)) => write!(f, "{} bytes, end {end}", bytes.len()),
            Ok(Shows::Target(target)) => write!(f, "target {}", Shown(target)),
            Ok(Shows::Names(names)) => {
                write!(f, "{} names:", names.len())?;
                names.iter().try_for_each(|(name, place)| write!(f, " {}={place:?}", Shown(name)))
            }
            Ok(other) => write!(f, "{other:?}"),
        }
    }
}

/// Where two data differ first, for a report.
pub fn first_difference(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).position(|(a, b)| a != b);
    match at {
        Some(at) => format!("byte {at} of the reply: {:#04x} and {:#04x}", one[at], other[at]),
        None => format!("lengths {} and {}", one.len(), other.len()),
    }
}
