//! Handles: the bytes a client keeps for a file, for ever.
//! Owns: their layout, the keyed check, and the constants of a volume that clients compare.
//! Never: looks an inode up; whether the object still lives is the planner's question.
//! Invariant: the bytes for an (inode, generation) depend on the volume's identity alone, so every
//! server of the group gives and takes the same ones.
//! Source: RFC 1813 section 2.3.3 for the size; SipHash-2-4 (Aumasson, Bernstein) for the check.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::request::{HandleBytes, Status};

/// Length of every handle this version makes, in bytes. A multiple of four: XDR adds no padding.
pub const HANDLE_LEN: usize = 48;

/// First byte of a handle.
const VERSION: u8 = 1;
const GROUP: std::ops::Range<usize> = 1..17;
const EXPORT: std::ops::Range<usize> = 17..21;
const INO: std::ops::Range<usize> = 21..29;
const GENERATION: std::ops::Range<usize> = 29..33;
const CHECK: std::ops::Range<usize> = 33..HANDLE_LEN;

/// The object that a handle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Inode number.
    pub ino: u64,
    /// The generation its inode must have.
    pub generation: u32,
}

/// What a handle is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleError {
    /// Its length is not [`HANDLE_LEN`].
    Length(usize),
    /// Made by a version of Harp this one does not know.
    Version(u8),
    /// Of another group or export, or not made by any server at all.
    Check,
}

impl HandleError {
    /// What the client is told: a handle never given out is bad, not stale.
    pub fn status(self) -> Status {
        match self {
            HandleError::Length(_) | HandleError::Version(_) | HandleError::Check => {
                Status::BadHandle
            }
        }
    }
}

/// Makes and checks the handles of one export.
#[derive(Clone)]
pub struct HandleMaker {
    /// A handle with its constant first bytes in place.
    template: [u8; HANDLE_LEN],
    /// Has taken in the constant bytes, so that each check costs only what differs.
    hasher: SipHasher24,
}

impl std::fmt::Debug for HandleMaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandleMaker(key hidden)")
    }
}

impl HandleMaker {
    /// For the export `export` of the group `group`, whose handle key is `key` (made at format,
    /// replicated, never changed).
    pub fn new(group: &[u8; 16], export: u32, key: &[u8; 16]) -> HandleMaker {
        let mut template = [0; HANDLE_LEN];
        template[0] = VERSION;
        template[GROUP].copy_from_slice(group);
        template[EXPORT].copy_from_slice(&export.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(&template[..INO.start]);
        // The hash takes words of eight bytes: begin the rest with a fresh one.
        hasher.write(&[0; INO.start.next_multiple_of(8) - INO.start]);
        HandleMaker { template, hasher }
    }

    /// The handle of an object.
    pub fn make(&self, ino: u64, generation: u32) -> HandleBytes {
        let mut bytes = self.template;
        bytes[INO].copy_from_slice(&ino.to_be_bytes());
        bytes[GENERATION].copy_from_slice(&generation.to_be_bytes());
        let check = self.check(ino, generation);
        bytes[CHECK].copy_from_slice(&check[..CHECK.len()]);
        HandleBytes::new(&bytes)
    }

    /// What `handle`, any bytes from a client, names; nothing is copied out of it.
    pub fn read(&self, handle: &[u8]) -> Result<Target, HandleError> {
        let Ok(bytes) = <&[u8; HANDLE_LEN]>::try_from(handle) else {
            return Err(HandleError::Length(handle.len()));
        };
        if bytes[0] != VERSION {
            return Err(HandleError::Version(bytes[0]));
        }
        let ino = u64::from_be_bytes(fixed(&bytes[INO]));
        let generation = u32::from_be_bytes(fixed(&bytes[GENERATION]));
        if bytes[..INO.start] != self.template[..INO.start]
            || bytes[CHECK] != self.check(ino, generation)[..CHECK.len()]
        {
            return Err(HandleError::Check);
        }
        Ok(Target { ino, generation })
    }

    fn check(&self, ino: u64, generation: u32) -> [u8; 16] {
        let mut hasher = self.hasher;
        let mut words = [0; 16];
        words[..8].copy_from_slice(&ino.to_be_bytes());
        words[8..12].copy_from_slice(&generation.to_be_bytes());
        hasher.write(&words);
        hasher.finish128().as_bytes()
    }
}

/// What is constant for one exported volume: identity, limits, and the verifiers clients compare.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Makes and checks its handles.
    pub handles: HandleMaker,
    export: u32,
    /// `fsid` in every object's attributes.
    pub fsid: u64,
    /// READDIR's verifier: cookies are stable, so it never changes.
    pub list_verifier: [u8; 8],
    /// WRITE's and COMMIT's verifier: changes only when an operator override may have lost writes.
    pub write_verifier: [u8; 8],
    /// Blocks of 4 KiB that file data may use.
    pub capacity_blocks: u64,
    /// Inodes that may exist.
    pub capacity_inodes: u64,
}

impl Volume {
    /// The volume of the group `group` (its 16-byte identity) under operator epoch `epoch`.
    pub fn new(
        group: &[u8; 16],
        export: u32,
        key: &[u8; 16],
        epoch: u64,
        capacity_blocks: u64,
        capacity_inodes: u64,
    ) -> Volume {
        let handles = HandleMaker::new(group, export, key);
        let mut volume = Volume {
            handles,
            export,
            fsid: constant(group, export, b"fsid", 0),
            list_verifier: constant(group, export, b"list", 0).to_be_bytes(),
            write_verifier: [0; 8],
            capacity_blocks,
            capacity_inodes,
        };
        volume.set_epoch(group, epoch);
        volume
    }

    /// Another operator epoch has begun: nothing changes but the write verifier.
    pub fn set_epoch(&mut self, group: &[u8; 16], epoch: u64) {
        self.write_verifier = constant(group, self.export, b"write", epoch).to_be_bytes();
    }
}

/// A number that depends on nothing but its arguments. Public, so keyed with the group alone.
fn constant(group: &[u8; 16], export: u32, what: &[u8], epoch: u64) -> u64 {
    let mut hasher = SipHasher24::new_with_key(group);
    hasher.write(&export.to_be_bytes());
    hasher.write(&epoch.to_be_bytes());
    hasher.write(what);
    // Zero could be mistaken for "none".
    hasher.finish128().h1.max(1)
}

/// `bytes` as an array; its length is known from the ranges above.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a range of the layout has its length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> HandleMaker {
        HandleMaker::new(b"a group of three", 7, b"key of the group")
    }

    #[test]
    fn a_handle_names_its_object_again() {
        let handle = maker().make(0x1234_5678_9abc, 42);
        assert_eq!(handle.as_slice().len(), HANDLE_LEN);
        let target = Target { ino: 0x1234_5678_9abc, generation: 42 };
        assert_eq!(maker().read(handle.as_slice()), Ok(target));
    }

    #[test]
    fn any_changed_bit_is_refused() {
        let handle = maker().make(9, 1);
        for bit in 0..HANDLE_LEN * 8 {
            let mut bytes = handle.as_slice().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(maker().read(&bytes).is_err(), "bit {bit}");
        }
    }

    /// Clients keep handles for years: the bytes may never change.
    #[test]
    fn the_bytes_of_a_handle_are_for_ever() {
        let bytes = maker().make(2, 3);
        let hex: String = bytes.as_slice().iter().map(|b| format!("{b:02x}")).collect();
        let (constant, own) = hex.split_at(42);
        assert_eq!(constant, "01612067726f7570206f6620746872656500000007");
        assert_eq!(own, "0000000000000002000000036399d5a774e1beab3a53b3fa7afc7f");
    }

    #[test]
    fn any_other_length_is_refused() {
        let handle = maker().make(9, 1);
        for len in 0..HANDLE_LEN {
            assert_eq!(maker().read(&handle.as_slice()[..len]), Err(HandleError::Length(len)));
        }
        assert_eq!(maker().read(&[1; 64]), Err(HandleError::Length(64)));
    }

    #[test]
    fn another_key_group_or_export_is_refused() {
        let handle = maker().make(9, 1);
        let others = [
            HandleMaker::new(b"a group of three", 7, b"key of an other!"),
            HandleMaker::new(b"a group of five!", 7, b"key of the group"),
            HandleMaker::new(b"a group of three", 8, b"key of the group"),
        ];
        for other in others {
            assert_eq!(other.read(handle.as_slice()), Err(HandleError::Check));
        }
    }

    #[test]
    fn only_the_write_verifier_follows_the_epoch() {
        let volume = |epoch| Volume::new(b"a group of three", 1, b"key of the group", epoch, 1, 1);
        let (a, b) = (volume(0), volume(1));
        assert_eq!((a.fsid, a.list_verifier), (b.fsid, b.list_verifier));
        assert_ne!(a.write_verifier, b.write_verifier);
        assert_ne!(a.write_verifier, a.list_verifier);
    }
}
