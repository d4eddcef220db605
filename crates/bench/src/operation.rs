//! Operation: one modification that the recorder makes, as a value and as a line of text.
//! Owns: the vocabulary of recordings and the contents of every byte they write.
//! Never: knows whether an operation succeeded.
//! Invariant: text read back is the operation that was written.
//! Source: the procedures of RFC 1813 that modify.

use std::fmt;
use std::str::FromStr;

/// The grain of sizes and offsets, in bytes. Below a block, so that writes overlap blocks in part.
pub const UNIT_BYTES: usize = 512;
/// The longest file, in units: long enough for writes that a server treats as large.
pub const FILE_UNITS_MAX: u32 = 256;

/// One modification in a lane's directory. Paths are relative to it: a name, or a directory's
/// name, a slash and a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields say it
pub enum Operation {
    CreateUnchecked {
        path: String,
    },
    CreateGuarded {
        path: String,
    },
    /// Exclusive, with a verifier made of `verifier`: the sequence number of its first use.
    CreateExclusive {
        path: String,
        verifier: u64,
    },
    /// Writes `units` units from unit `at`, with the contents of this operation.
    Write {
        path: String,
        at: u32,
        units: u32,
    },
    /// Sets the length.
    Truncate {
        path: String,
        units: u32,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    Remove {
        path: String,
    },
    MkDir {
        path: String,
    },
    RmDir {
        path: String,
    },
    /// The target is made of the sequence number.
    SymLink {
        path: String,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operation::*;
        match self {
            CreateUnchecked { path } => write!(f, "create {path}"),
            CreateGuarded { path } => write!(f, "create-guarded {path}"),
            CreateExclusive { path, verifier } => write!(f, "create-exclusive {path} {verifier}"),
            Write { path, at, units } => write!(f, "write {path} {at} {units}"),
            Truncate { path, units } => write!(f, "truncate {path} {units}"),
            Rename { from, to } => write!(f, "rename {from} {to}"),
            Link { from, to } => write!(f, "link {from} {to}"),
            Remove { path } => write!(f, "remove {path}"),
            MkDir { path } => write!(f, "mkdir {path}"),
            RmDir { path } => write!(f, "rmdir {path}"),
            SymLink { path } => write!(f, "symlink {path}"),
        }
    }
}

/// The text is no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnOperation;

impl FromStr for Operation {
    type Err = NotAnOperation;

    fn from_str(text: &str) -> Result<Operation, NotAnOperation> {
        use Operation::*;
        fn number<T: FromStr>(word: &str) -> Result<T, NotAnOperation> {
            word.parse().map_err(|_| NotAnOperation)
        }
        let words: Vec<&str> = text.split(' ').collect();
        let operation = match words[..] {
            ["create", path] => CreateUnchecked { path: path.into() },
            ["create-guarded", path] => CreateGuarded { path: path.into() },
            ["create-exclusive", path, verifier] => {
                CreateExclusive { path: path.into(), verifier: number(verifier)? }
            }
            ["write", path, at, units] => {
                Write { path: path.into(), at: number(at)?, units: number(units)? }
            }
            ["truncate", path, units] => Truncate { path: path.into(), units: number(units)? },
            ["rename", from, to] => Rename { from: from.into(), to: to.into() },
            ["link", from, to] => Link { from: from.into(), to: to.into() },
            ["remove", path] => Remove { path: path.into() },
            ["mkdir", path] => MkDir { path: path.into() },
            ["rmdir", path] => RmDir { path: path.into() },
            ["symlink", path] => SymLink { path: path.into() },
            _ => return Err(NotAnOperation),
        };
        match &operation {
            Write { at, units, .. } if at.saturating_add(*units) > FILE_UNITS_MAX => {
                Err(NotAnOperation)
            }
            Truncate { units, .. } if *units > FILE_UNITS_MAX => Err(NotAnOperation),
            _ => Ok(operation),
        }
    }
}

/// Which run and which of its lanes: with a sequence number, what every byte is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId {
    /// The recording's random number.
    pub run: u64,
    /// The lane in it.
    pub lane: u32,
}

impl LaneId {
    /// The name of the recording's directory in the export's root.
    pub fn run_dir(&self) -> String {
        format!("recording-{:016x}", self.run)
    }

    /// The name of the lane's directory in the recording's.
    pub fn lane_dir(&self) -> String {
        format!("lane-{:04}", self.lane)
    }

    /// What operation `sequence` writes at unit `unit` of a file. The head says whose it is; the
    /// rest is pseudo-random, so that no two units are alike.
    pub fn unit(&self, sequence: u64, unit: u32) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        let mut state = self.run ^ sequence.rotate_left(20) ^ u64::from(unit).rotate_left(48);
        state ^= u64::from(self.lane).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for word in bytes.chunks_exact_mut(8) {
            state = mixed(state);
            word.copy_from_slice(&state.to_be_bytes());
        }
        bytes[..8].copy_from_slice(&self.run.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.lane.to_be_bytes());
        bytes[12..20].copy_from_slice(&sequence.to_be_bytes());
        bytes[20..24].copy_from_slice(&unit.to_be_bytes());
        bytes
    }

    /// The sequence number that a unit's head names, if it is one of this lane's.
    pub fn sequence_in(&self, bytes: &[u8]) -> Option<u64> {
        let (run, rest) = bytes.split_first_chunk()?;
        let (lane, rest) = rest.split_first_chunk()?;
        let ours = u64::from_be_bytes(*run) == self.run && u32::from_be_bytes(*lane) == self.lane;
        ours.then(|| rest.first_chunk().map(|sequence| u64::from_be_bytes(*sequence)))?
    }
}

/// The target of the symbolic link that operation `sequence` makes.
pub fn symlink_target(sequence: u64) -> String {
    format!("made/by/{sequence}")
}

/// A step of the splitmix generator.
pub(crate) fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_read_back_is_the_operation() {
        use Operation::*;
        let (path, other) = ("d1/f2".to_string(), "f3".to_string());
        let operations = [
            CreateUnchecked { path: path.clone() },
            CreateGuarded { path: path.clone() },
            CreateExclusive { path: path.clone(), verifier: 77 },
            Write { path: path.clone(), at: 3, units: 4 },
            Truncate { path: path.clone(), units: 256 },
            Rename { from: path.clone(), to: other.clone() },
            Link { from: path.clone(), to: other },
            Remove { path: path.clone() },
            MkDir { path: path.clone() },
            RmDir { path: path.clone() },
            SymLink { path },
        ];
        for operation in operations {
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
        for bad in ["", "create", "write f 1", "write f 1 x", "write f 200 57", "truncate f 257"] {
            assert_eq!(bad.parse::<Operation>(), Err(NotAnOperation), "{bad}");
        }
    }

    #[test]
    fn a_unit_says_whose_it_is() {
        let id = LaneId { run: 7, lane: 3 };
        let unit = id.unit(99, 5);
        assert_eq!(id.sequence_in(&unit), Some(99));
        assert_eq!(LaneId { run: 7, lane: 4 }.sequence_in(&unit), None);
        assert_eq!(id.sequence_in(&[0; UNIT_BYTES]), None);
        assert_ne!(unit[24..], id.unit(99, 6)[24..]);
        assert_ne!(unit[24..], id.unit(100, 5)[24..]);
    }
}
