//! File-system images are equal at equal op.
//! Owns: the digest of every op at which a copy was asked for one.
//! Never: compares digests of different ops.
//! Source: property 16.

use std::collections::BTreeMap;

use harp_node::vr::ServerId;

use super::{Verdict, Violation, require};

/// The property, in words.
pub const NAME: &str = "16, images are equal at equal op";

/// Digests.
#[derive(Debug, Default)]
pub struct EqualImages {
    digests: BTreeMap<u64, (ServerId, [u8; 32])>,
    counts: BTreeMap<u64, u32>,
    /// Copies that had no digest to give for damaged blocks, which they mend.
    damaged: BTreeMap<u64, u32>,
}

impl EqualImages {
    /// A copy digested its image at `op`. `damage`: blocks may be damaged.
    pub fn digested(
        &mut self,
        server: ServerId,
        op: u64,
        digest: &Result<[u8; 32], String>,
        damage: bool,
    ) -> Verdict {
        if damage && digest.is_err() {
            *self.damaged.entry(op).or_default() += 1;
            return Ok(());
        }
        let digest = digest.as_ref().map_err(|error| Violation {
            property: NAME,
            what: format!("{server} cannot digest its image at op {op}: {error}"),
        })?;
        *self.counts.entry(op).or_default() += 1;
        let (first, known) = *self.digests.entry(op).or_insert((server, *digest));
        require(NAME, known == *digest, || format!("{first} and {server} differ at op {op}"))
    }

    /// How many copies were damaged at `op`.
    pub fn damaged(&self, op: u64) -> u32 {
        self.damaged.get(&op).copied().unwrap_or(0)
    }

    /// An operator's override: the configuration changed without an op.
    pub fn overridden(&mut self) {
        self.digests.clear();
        self.counts.clear();
    }

    /// How many digests there are at `op`.
    pub fn count(&self, op: u64) -> u32 {
        self.counts.get(&op).copied().unwrap_or(0)
    }
}
