//! harp-fs: what files mean.
pub mod access;
pub mod blocks;
pub mod effect;
pub mod generation;
pub mod handle;
pub mod inode;
pub mod key;
pub mod need;
pub mod plan;
pub mod request;
pub mod shadow;
