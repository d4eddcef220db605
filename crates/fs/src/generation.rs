//! Generation.
/// Net changes between two checkpoints.
pub struct Generation {}
