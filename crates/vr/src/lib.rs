//! harp-vr.
