//! Real deployments: three `harp serve` from one `harp init`, on three loopback addresses.

#[path = "../common/blocking.rs"]
mod blocking;
mod client;
mod deployment;
mod exports;
mod faults;
mod files;
mod formatting;
mod overriding;
mod relays;
mod repair;
