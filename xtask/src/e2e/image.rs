//! Image: LMDB and data segments on a disk that drops what was not synced.
//! Owns: how many checkpoints are made.
//! Never: judges an image; the program under `crates/engine/examples/power_cut` does.
//! Invariant: none.
//! Source: docs/testing.md.

use std::process::Command;
use std::time::Duration;

use super::{Context, E2eError};
use crate::process::capture;
use crate::workspace::cargo;

/// Building the program.
const BUILD_PATIENCE: Duration = Duration::from_secs(900);
/// Rebuilding and opening thousands of images.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// The calls of checkpoints are recorded, and every image that a power cut leaves is opened.
pub fn image_is_exact_after_a_power_cut_at_any_call(context: &Context<'_>) -> Result<(), E2eError> {
    let mut trial = Command::new("strace");
    trial.args(["-o", "/dev/null", "true"]);
    if let Err(error) = capture(&mut trial, Duration::from_secs(10)) {
        return Err(E2eError::NotHere(format!("strace cannot trace here: {error}")));
    }
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "-p", "harp-engine", "--example", "power_cut"]);
    capture(&mut build, BUILD_PATIENCE)?;
    let mut cut = Command::new(context.workspace.program("examples/power_cut"));
    cut.arg(&context.work).arg(context.times(30, 200).to_string());
    for line in capture(&mut cut, PATIENCE)?.lines() {
        context.say(line);
    }
    Ok(())
}
