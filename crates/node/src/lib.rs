//! harp-node.
