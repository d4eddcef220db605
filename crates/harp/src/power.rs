//! `harp power`: what watches the power supply tells this machine's servers.
//! Owns: which servers are this machine's, and what is said of each.
//! Never: reaches over the network; another machine has another power supply.
//! Invariant: it succeeds only if every server here did as told: then, with `low`, their logs are on the disk.
//! Source: docs/operations.md, "Power".

use std::time::{Duration, Instant};

use harp_node::Durability;
use harp_node::vr::ServerId;

use crate::admin::{Answer, PowerState, Request};
use crate::config::{Config, durability_name};
use crate::error::HarpError;
use crate::operator::ask_socket;
use crate::outliving::Outliving;

/// A server's write-out may take so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// A server that answers nobody may be about to start, by its supervisor or by whatever else starts it, for so long.
/// One whose memory is there holds what is in memory alone: it is given longer.
const STARTING_WITHOUT_MEMORY: Duration = Duration::from_secs(1);
const STARTING_WITH_MEMORY: Duration = Duration::from_secs(10);
const ASKED_AGAIN: Duration = Duration::from_millis(100);

/// Tells one server. Errors: what it did instead.
fn tell_one(config: &Config, server: ServerId, state: PowerState) -> Result<(), String> {
    let (path, memory) =
        (config.admin_socket(server), Outliving::path(&config.memory_dir, config.id, server));
    let mut silent_since = None;
    loop {
        let error = match ask_socket(&path, Request::Power(state), PATIENCE) {
            Ok(Answer::Done) => return Ok(()),
            Ok(other) => return Err(format!("server {server} answered {other:?}")),
            Err(error) => error,
        };
        // The first server that is done has the supervisor tell the others, which may be before this here does, and
        // end before they hear it: that its memory is gone says that its log is written out.
        let silent = silent_since.get_or_insert_with(Instant::now).elapsed();
        let held = memory.exists();
        if silent > if held { STARTING_WITH_MEMORY } else { STARTING_WITHOUT_MEMORY } {
            let written_out = config.durability == Durability::Ups && !held;
            return if state == PowerState::Low && written_out {
                Ok(())
            } else {
                Err(format!("server {server} does not answer ({error})"))
            };
        }
        std::thread::sleep(ASKED_AGAIN);
    }
}

/// Tells every server of the group that runs on this machine.
pub fn tell(config: &Config, state: PowerState) -> Result<(), HarpError> {
    let here: Vec<ServerId> =
        config.shape().servers().filter(|server| config.admin_socket(*server).exists()).collect();
    if here.is_empty() {
        let file = config.file.display();
        let why = format!("no server of {file} runs on this machine");
        return Err(HarpError::Refused { why });
    }
    let told: Vec<_> = std::thread::scope(|scope| {
        let telling: Vec<_> =
            here.iter().map(|server| scope.spawn(|| tell_one(config, *server, state))).collect();
        telling.into_iter().map(|thread| thread.join().expect("telling does not panic")).collect()
    });
    let deaf: Vec<String> = told.into_iter().filter_map(Result::err).collect();
    if !deaf.is_empty() {
        return Err(HarpError::Refused { why: deaf.join("; ") });
    }
    let servers = here.iter().map(ServerId::to_string).collect::<Vec<_>>().join(", ");
    let durability = durability_name(config.durability);
    println!("servers {servers} know; durability is {durability}");
    Ok(())
}
