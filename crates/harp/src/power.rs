//! `harp power`: what watches the power supply tells this machine's servers.
//! Owns: which servers are this machine's, and what is said of each.
//! Never: reaches over the network; another machine has another power supply.
//! Invariant: it succeeds only if every server here did as told: then, with `low`, their logs are on the disk.
//! Source: docs/operations.md, "Power".

use std::time::Duration;

use harp_node::vr::ServerId;

use crate::admin::{Answer, PowerState, Request};
use crate::config::{Config, durability_name};
use crate::error::HarpError;
use crate::operator::ask_socket;

/// A server's write-out may take so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tells every server of the group that runs on this machine.
pub fn tell(config: &Config, state: PowerState) -> Result<(), HarpError> {
    let here: Vec<ServerId> =
        config.shape().servers().filter(|server| config.admin_socket(*server).exists()).collect();
    if here.is_empty() {
        let file = config.file.display();
        let why = format!("no server of {file} runs on this machine");
        return Err(HarpError::Refused { why });
    }
    let ask = |server: ServerId| {
        ask_socket(&config.admin_socket(server), Request::Power(state), PATIENCE)
    };
    let ask = &ask;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = here.iter().map(|server| scope.spawn(move || ask(*server))).collect();
        asking.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    });
    let mut deaf = Vec::new();
    for (server, answer) in here.iter().zip(answers) {
        match answer {
            Ok(Answer::Done) => {}
            Ok(other) => deaf.push(format!("server {server} answered {other:?}")),
            Err(error) => deaf.push(format!("server {server} does not answer ({error})")),
        }
    }
    if !deaf.is_empty() {
        return Err(HarpError::Refused { why: deaf.join("; ") });
    }
    let servers = here.iter().map(ServerId::to_string).collect::<Vec<_>>().join(", ");
    let durability = durability_name(config.durability);
    println!("servers {servers} know; durability is {durability}");
    Ok(())
}
