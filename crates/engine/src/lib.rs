//! harp-engine.
