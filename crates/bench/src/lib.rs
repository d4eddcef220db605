//! harp-bench.
