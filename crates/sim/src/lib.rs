//! harp-sim.
