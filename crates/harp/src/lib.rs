//! The program: sockets, disks, clocks, signals, processes, the command line.
//! Owns: everything that touches the operating system.
//! Never: decides anything about replication or files; that is the node's.
//! Invariant: what a node asks for is carried out in the order it asked, or the process ends.
//! Source: ARCHITECTURE.md.

pub mod admin;
pub mod aligned;
pub mod children;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod configcheck;
pub mod configtext;
pub mod connection;
pub mod control;
pub mod error;
pub mod eventloop;
pub mod export;
pub mod formatting;
pub mod front;
pub mod gate;
pub mod handshake;
pub mod http;
pub mod image;
pub mod init;
pub mod links;
pub mod lock;
pub mod logdisk;
pub mod marks;
pub mod netbuf;
pub mod offline;
pub mod operator;
pub mod outliving;
pub mod overriding;
pub mod poller;
pub mod power;
pub mod relay;
pub mod reserve;
pub mod ringmem;
pub mod rpcbind;
pub mod segments;
pub mod server;
pub mod serverdir;
pub mod space;
pub mod status;
pub mod suspects;

#[cfg(test)]
mod testdir;
pub mod untaken;
pub mod up;
pub mod users;
pub mod verify;
pub mod worker;
