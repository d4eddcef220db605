//! Seal: the checksum around every engine value, and the head of an image.
//! Owns: how a value is wrapped, and the head's bytes.
//! Never: decides what to do about damage.
//! Invariant: a sealed value opens only under its own table and key.
//! Source: docs/disk-format.md.

use crate::{Damage, Snapshot, StoreError, Table};

/// Bytes of checksum after each value.
const SEAL_BYTES: usize = 4;
/// First bytes of an image's head.
const MAGIC: [u8; 8] = *b"HARPIMG\0";
/// The format this program writes.
const VERSION: u32 = 1;
/// Bytes of a head.
const HEAD_BYTES: usize = 8 + 4 + 1 + 8 + 8;
/// Key of the head in `Table::Head`.
pub(crate) const HEAD_KEY: &[u8] = b"head";
/// Key of the identity in `Table::Head`.
pub(crate) const IDENTITY_KEY: &[u8] = b"identity";

/// CRC32C over table, key length, key and value.
fn checksum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let length = u32::try_from(key.len()).expect("keys are short");
    let [a, b, c, d] = length.to_le_bytes();
    let crc = crc32c::crc32c(&[table as u8, a, b, c, d]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, key), value)
}

/// Puts `value` and its checksum into `sealed`, replacing what was there.
pub(crate) fn seal(table: Table, key: &[u8], value: &[u8], sealed: &mut Vec<u8>) {
    sealed.clear();
    sealed.extend_from_slice(value);
    sealed.extend_from_slice(&checksum(table, key, value).to_le_bytes());
}

/// The value inside a sealed one, if its checksum holds.
pub(crate) fn open<'a>(table: Table, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    match sealed.split_last_chunk::<SEAL_BYTES>() {
        Some((value, crc)) if u32::from_le_bytes(*crc) == checksum(table, key, value) => Ok(value),
        _ => Err(StoreError::value(table, key)),
    }
}

/// What an image is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// False while the image is being loaded from another copy.
    pub complete: bool,
    /// The op the image is exact at, if complete; else how far the log was redone over what is loaded.
    pub op: u64,
    /// How many cut marks there are, so that readers need not look for them.
    pub cut_marks: u64,
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = u8::from(self.complete);
        bytes[13..21].copy_from_slice(&self.op.to_le_bytes());
        bytes[21..29].copy_from_slice(&self.cut_marks.to_le_bytes());
        bytes
    }

    /// Reads the head; `NotFormatted` if there is none.
    pub fn read(view: &impl Snapshot) -> Result<Head, StoreError> {
        let Some(sealed) = view.get(Table::Head, HEAD_KEY)? else {
            return Err(StoreError::NotFormatted);
        };
        let damaged = || StoreError::value(Table::Head, HEAD_KEY);
        let value = open(Table::Head, HEAD_KEY, sealed)?;
        let mut fields = Fields(value);
        if fields.take::<8>() != Some(MAGIC) {
            return Err(damaged());
        }
        let version = u32::from_le_bytes(fields.take().ok_or_else(damaged)?);
        if version != VERSION {
            return Err(StoreError::Version { found: version });
        }
        let [complete] = fields.take::<1>().ok_or_else(damaged)?;
        let op = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
        let cut_marks = u64::from_le_bytes(fields.take().ok_or_else(damaged)?);
        if complete > 1 || !fields.0.is_empty() {
            return Err(damaged());
        }
        Ok(Head { complete: complete == 1, op, cut_marks })
    }
}

/// Reads the identity; damaged or missing is damage.
pub(crate) fn read_identity(view: &impl Snapshot) -> Result<Vec<u8>, StoreError> {
    let Some(sealed) = view.get(Table::Head, IDENTITY_KEY)? else {
        return Err(Damage::Missing { what: "the image's identity" }.into());
    };
    Ok(open(Table::Head, IDENTITY_KEY, sealed)?.to_vec())
}

/// Takes fixed-size fields off the front of bytes.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes, if there are as many.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_value_opens_only_in_its_place() {
        let mut sealed = Vec::new();
        seal(Table::Meta, b"key", b"value", &mut sealed);
        assert_eq!(open(Table::Meta, b"key", &sealed).unwrap(), b"value");
        assert!(open(Table::Meta, b"kez", &sealed).is_err());
        assert!(open(Table::Map, b"key", &sealed).is_err());
        assert!(open(Table::Meta, b"key", &sealed[..3]).is_err());
        // A byte moved from value to key does not go unseen.
        assert!(open(Table::Meta, b"keyv", &sealed[1..]).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Table::Meta, b"key", &flipped).is_err());
        }
    }
}
