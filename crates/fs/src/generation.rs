//! Generation: the net effect of the ops between two checkpoints.
//! Owns: everything that changed in (begin, end], one version per object.
//! Never: changes once it is frozen; then a store thread reads it beside the server's loop.
//! Invariant: the image at `begin` with this generation put in is the image at `end`.
//! Source: ARCHITECTURE.md.

use crate::blocks::Blocks;
use crate::hash::Seed;
use crate::inode::Super;
use crate::names::Names;
use crate::objects::Objects;

/// Net changes between two checkpoints; [`Generation::metadata`], [`Generation::cuts`] and
/// [`Generation::blocks`] give them to a checkpoint.
#[derive(Debug)]
pub struct Generation {
    pub(crate) seed: Seed,
    /// Everything changed is above this op.
    pub(crate) begin: u64,
    /// The last op applied.
    pub(crate) end: u64,
    pub(crate) objects: Objects,
    pub(crate) names: Names,
    pub(crate) blocks: Blocks,
    pub(crate) counters: Option<Super>,
    /// Bytes of effects applied.
    pub(crate) effect_bytes: u64,
}

impl Generation {
    pub(crate) fn new(seed: Seed, begin: u64) -> Generation {
        Generation {
            seed,
            begin,
            end: begin,
            objects: Objects::default(),
            names: Names::default(),
            blocks: Blocks::default(),
            counters: None,
            effect_bytes: 0,
        }
    }

    /// Empties it for ops above `begin`, keeping its memory.
    pub(crate) fn renew(&mut self, begin: u64) {
        self.begin = begin;
        self.end = begin;
        self.objects.clear();
        self.names.clear();
        self.blocks.clear();
        self.counters = None;
        self.effect_bytes = 0;
    }

    /// The op of the image that this generation goes on top of.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// The op the image is exact at with this generation in it.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Memory it takes, in bytes, the log's bytes that it refers to not counted.
    pub fn memory_bytes(&self) -> u64 {
        (self.objects.bytes_used() + self.names.bytes_used() + self.blocks.bytes_used()) as u64
    }

    /// Blocks of file data that changed: so many a checkpoint writes at most.
    pub fn changed_blocks(&self) -> u64 {
        self.blocks.count()
    }

    /// Bytes of the records' effects that went into it; it may refer to any of them.
    pub fn effect_bytes(&self) -> u64 {
        self.effect_bytes
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.effect_bytes == 0
    }
}
