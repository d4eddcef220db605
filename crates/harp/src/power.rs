//! `harp power`: what watches the power supply tells this machine's servers.
//! Owns: which servers are this machine's, and what is said of each.
//! Never: reaches over the network; another machine has another power supply.
//! Invariant: it succeeds only if every server here did as told, or if with `low` the disk says that its log was written
//! out before it could be asked.
//! Source: docs/operations.md, "Power".

use std::time::{Duration, Instant};

use harp_node::vr::ServerId;

use crate::admin::{Answer, PowerState, Request};
use crate::config::{Config, durability_name};
use crate::error::HarpError;
use crate::offline;
use crate::operator::ask_socket;
use crate::outliving::Outliving;

/// A server's write-out may take so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// A server that cannot be reached may be about to start, by its supervisor or by whatever else starts it, for so long.
const STARTING: Duration = Duration::from_secs(10);
const ASKED_AGAIN: Duration = Duration::from_millis(100);

/// Tells one server. Errors: what it did instead.
fn tell_one(config: &Config, server: ServerId, state: PowerState) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let error = match ask_socket(&config.admin_socket(server), Request::Power(state), PATIENCE)
        {
            Ok(Answer::Done) => return Ok(()),
            Ok(other) => return Err(format!("server {server} answered {other:?}")),
            Err(error) => error,
        };
        // The first server that is done has the supervisor tell the others: they may end before they hear it from here.
        if state == PowerState::Low && is_written_out(config, server) {
            return Ok(());
        }
        if began.elapsed() > STARTING {
            return Err(format!("server {server} does not answer ({error})"));
        }
        std::thread::sleep(ASKED_AGAIN);
    }
}

/// Whether a server that does not answer has nothing in memory that its disk lacks.
fn is_written_out(config: &Config, server: ServerId) -> bool {
    let memory = Outliving::path(&config.memory_dir, config.id, server);
    let gone = memory.try_exists().is_ok_and(|there| !there);
    gone && offline::is_at_rest(&config.server_dir(server), &config.id).unwrap_or(false)
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
