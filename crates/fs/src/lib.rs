//! harp-fs: what files mean, as pure functions of requests and state.
//! Owns: the values of a file system, their bytes, planning, and the shadow over the image.
//! Never: does I/O, reads a clock, draws random numbers, starts a thread.
//! Invariant: primary and backups apply the same effects and come to the same image.
//! Source: ARCHITECTURE.md; docs/disk-format.md; RFC 1813.
//!
//! The way of a request: [`plan`] computes its outcome from the [`shadow::Shadow`] and writes the
//! outcome's [`effect`]s into the log; [`shadow::Shadow::apply`] takes them in, here and at every
//! other copy; a frozen [`generation::Generation`] goes into the image as rows ([`key`]), cuts and
//! blocks ([`checkpoint`]). What memory lacks is a [`need`], read on a store thread.

pub mod access;
mod apply;
pub mod atime;
pub mod blocks;
mod cache;
pub mod checkpoint;
mod clock;
mod content;
mod drain;
pub mod effect;
mod filter;
pub mod generation;
pub mod handle;
mod hash;
pub mod inode;
pub mod key;
mod listing;
mod look;
mod names;
pub mod need;
mod objects;
mod pages;
pub mod plan;
pub mod request;
pub mod shadow;

#[cfg(test)]
mod shadow_tests;
#[cfg(test)]
mod testing;
