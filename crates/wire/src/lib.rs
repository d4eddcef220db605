//! harp-wire.
