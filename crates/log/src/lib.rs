//! harp-log.
