//! Real deployments: three `harp serve` from one `harp init`, on three loopback addresses.

mod client;
mod deployment;
mod exports;
mod faults;
mod formatting;
mod relays;
