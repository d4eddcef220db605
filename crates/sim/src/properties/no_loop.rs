//! A record that kills whoever applies it does not do so again and again.
//! Owns: how many of each server's processes in a row died of a record.
//! Never: counts across an end of another kind, which may take away what the next process would have known.
//! Source: rule 14.

use harp_node::vr::{SERVERS_MAX, ServerId};

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "rule 14, a record that kills does not loop";

/// Once by surprise, once among others, twice alone.
const DEATHS_MAX: u32 = 4;

/// Deaths in a row.
#[derive(Debug, Default)]
pub struct NoLoop {
    deaths: [u32; SERVERS_MAX],
}

impl NoLoop {
    /// A process of `server` died of a record.
    pub fn died(&mut self, server: ServerId) -> Verdict {
        let deaths = &mut self.deaths[server.index()];
        *deaths += 1;
        let deaths = *deaths;
        require(NAME, deaths <= DEATHS_MAX, || {
            format!("{deaths} processes of {server} in a row died of a record")
        })
    }

    /// A process of `server` ended in another way.
    pub fn ended_otherwise(&mut self, server: ServerId) {
        self.deaths[server.index()] = 0;
    }
}
