//! harp-fs.
pub mod request;
