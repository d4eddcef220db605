//! harp-store.
