//! Every decoder of bytes from outside, as a function of an input that may be anything.
//! Owns: what must hold of each decoder whatever it is given, and the inputs to begin from.
//! Never: part of the product; looks for inputs itself: libFuzzer does (`fuzz/`), or a corpus has them.
//! Invariant: an input does the same every time, and a target panics only at a fault.
//! Source: docs/testing.md, "Fuzzing".

pub mod calls;
pub mod config;
pub mod control;
pub mod effects;
pub mod image;
pub mod links;
pub mod log_records;
pub mod log_recovery;
pub mod memory;
pub mod messages;
mod oracle;
pub mod parts;
pub mod record_marks;
pub mod replies;

/// One decoder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, that of its corpus and of its libFuzzer program.
    pub name: &'static str,
    /// Tries one input; panics if something does not hold.
    pub run: fn(&[u8]),
    /// Valid samples, to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "record_marks", run: record_marks::run, seeds: record_marks::seeds },
    Target { name: "calls", run: calls::run, seeds: calls::seeds },
    Target { name: "replies", run: replies::run, seeds: replies::seeds },
    Target { name: "log_records", run: log_records::run, seeds: log_records::seeds },
    Target { name: "log_recovery", run: log_recovery::run, seeds: log_recovery::seeds },
    Target { name: "messages", run: messages::run, seeds: messages::seeds },
    Target { name: "links", run: links::run, seeds: links::seeds },
    Target { name: "config", run: config::run, seeds: config::seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "image", run: image::run, seeds: image::seeds },
    Target { name: "effects", run: effects::run, seeds: effects::seeds },
    Target { name: "parts", run: parts::run, seeds: parts::seeds },
];
