//! Command: `harp bench SUBCOMMAND ...`.
//! Owns: the options of the subcommands and what they print.
//! Never: measures or checks anything itself.
//! Invariant: a violation or a load's error makes the command fail.
//! Source: the usage text below.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lexopt::prelude::*;
use serde::Serialize;

use crate::BenchError;
use crate::checker::{CheckOptions, check};
use crate::client::Options;
use crate::load::{self, LoadOptions, Phase};
use crate::recorder::{RecordOptions, record};

/// What `harp bench --help` prints.
pub const USAGE: &str = "\
usage: harp bench load [OPTIONS]     put load on a server and print rates and latencies
       harp bench record [OPTIONS]   make operations and note every acknowledgement
       harp bench check [OPTIONS]    compare a server with a recording's journal
       harp bench codec              time the decoding and encoding of calls

  --nfs ADDR:PORT      the server (127.0.0.1:2049)
  --mount ADDR:PORT    where it serves MOUNT, if elsewhere
  --export PATH        the export to mount (/)
  --uid N, --gid N     who to call as (0, 0)
  --patience SECONDS   how long to go without any reply before giving up (60)
  --retransmit SECONDS how long a call waits before it is sent again on a new connection (15)
  --connections N      connections to the server (4; check uses 1)
  --depth N            calls outstanding on each connection (load 16, record 8)
  --json               print one JSON document

load:
  --files N            number of files (20000)
  --seq-mib N          length of the large file (256)
  --phase NAME         only this phase, after what it needs; may be repeated: create write4k
                       getattr lookup read4k rename remove seqw128k seqr128k randw4k randr4k
  --seconds N          let each phase but remove last that long
  --prefix NAME        begins the names of everything made (p)

record and check:
  --journal FILE       the journal: record makes it, check reads it
  --seconds N          record that long (10, unless --operations is given)
  --operations N       record until so many operations are acknowledged
  --break-every N      reset a connection after every N replies (never)
  --seed N             what to do (1)";

/// Every option of every subcommand, as given.
#[derive(Debug, Default)]
struct Given {
    nfs: Option<SocketAddr>,
    mount: Option<SocketAddr>,
    export: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    patience: Option<u64>,
    retransmit: Option<u64>,
    connections: Option<usize>,
    depth: Option<usize>,
    json: bool,
    files: Option<usize>,
    seq_mib: Option<usize>,
    phases: Vec<Phase>,
    seconds: Option<u64>,
    prefix: Option<String>,
    journal: Option<PathBuf>,
    operations: Option<u64>,
    break_every: Option<u64>,
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subcommand {
    Load,
    Record,
    Check,
    Codec,
    Help,
}

/// Runs `harp bench` with the arguments after `bench`, printing to standard output.
///
/// Errors: what the command line, the server or the outcome has wrong; violations of a recording
/// and errors of a load are errors too, after they are printed.
pub fn run(args: &[String]) -> Result<(), BenchError> {
    let (subcommand, given) = parse(args)?;
    let mut out = std::io::stdout().lock();
    let printing = |error| BenchError::Io { doing: "printing", error };
    match subcommand {
        Subcommand::Help => writeln!(out, "{USAGE}").map_err(printing),
        Subcommand::Codec => crate::codec::run(&mut out).map_err(printing),
        Subcommand::Load => run_load(&given, &mut out),
        Subcommand::Record => {
            let report = record(&given.record_options()?, &AtomicBool::new(false))?;
            print(&given, &report, &mut out)?;
            match report.gave_up {
                Some(why) => Err(BenchError::GaveUp(why)),
                None => fail_if(report.violations.len() as u64),
            }
        }
        Subcommand::Check => {
            let report = check(&given.check_options()?)?;
            print(&given, &report, &mut out)?;
            fail_if(report.violations)
        }
    }
}

fn run_load(given: &Given, out: &mut impl Write) -> Result<(), BenchError> {
    let mut printed = Ok(());
    let reports = load::run(&given.load_options(), |report| {
        if !given.json && printed.is_ok() {
            printed = writeln!(out, "{report}").and_then(|()| out.flush());
        }
    })?;
    printed.map_err(|error| BenchError::Io { doing: "printing", error })?;
    if given.json {
        print_json(&reports, out)?;
    }
    match reports.iter().map(|report| report.errors).sum() {
        0 => Ok(()),
        errors => Err(BenchError::LoadErrors(errors)),
    }
}

fn print<T: Serialize + std::fmt::Display>(
    given: &Given,
    report: &T,
    out: &mut impl Write,
) -> Result<(), BenchError> {
    if given.json {
        return print_json(report, out);
    }
    writeln!(out, "{report}").map_err(|error| BenchError::Io { doing: "printing", error })
}

fn print_json<T: Serialize>(report: &T, out: &mut impl Write) -> Result<(), BenchError> {
    let text = serde_json::to_string(report).expect("reports have string keys only");
    writeln!(out, "{text}").map_err(|error| BenchError::Io { doing: "printing", error })
}

fn fail_if(violations: u64) -> Result<(), BenchError> {
    if violations == 0 { Ok(()) } else { Err(BenchError::Violations(violations)) }
}

fn parse(args: &[String]) -> Result<(Subcommand, Given), BenchError> {
    let bad = |error: lexopt::Error| BenchError::Usage(error.to_string());
    let mut parser = lexopt::Parser::from_args(args.iter().map(OsString::from));
    let mut subcommand = None;
    let mut given = Given::default();
    while let Some(arg) = parser.next().map_err(bad)? {
        match arg {
            Value(word) if subcommand.is_none() => {
                subcommand = Some(match word.to_str() {
                    Some("load") => Subcommand::Load,
                    Some("record") => Subcommand::Record,
                    Some("check") => Subcommand::Check,
                    Some("codec") => Subcommand::Codec,
                    Some("help") => Subcommand::Help,
                    _ => return Err(bad(Value(word).unexpected())),
                });
            }
            Short('h') | Long("help") => return Ok((Subcommand::Help, given)),
            Long(name) => {
                let name = name.to_string();
                given.take(&name, &mut parser).map_err(bad)?;
            }
            other => return Err(bad(other.unexpected())),
        }
    }
    let subcommand =
        subcommand.ok_or_else(|| BenchError::Usage("a subcommand is missing".into()))?;
    Ok((subcommand, given))
}

impl Given {
    fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
        fn some<T: std::str::FromStr>(
            parser: &mut lexopt::Parser,
        ) -> Result<Option<T>, lexopt::Error>
        where
            T::Err: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
        {
            parser.value()?.parse().map(Some)
        }
        match name {
            "nfs" => self.nfs = some(parser)?,
            "mount" => self.mount = some(parser)?,
            "export" => self.export = some(parser)?,
            "uid" => self.uid = some(parser)?,
            "gid" => self.gid = some(parser)?,
            "patience" => self.patience = some(parser)?,
            "retransmit" => self.retransmit = some(parser)?,
            "connections" => self.connections = some(parser)?,
            "depth" => self.depth = some(parser)?,
            "json" => self.json = true,
            "files" => self.files = some(parser)?,
            "seq-mib" => self.seq_mib = some(parser)?,
            "seconds" => self.seconds = some(parser)?,
            "prefix" => self.prefix = some(parser)?,
            "journal" => self.journal = some(parser)?,
            "operations" => self.operations = some(parser)?,
            "break-every" => self.break_every = some(parser)?,
            "seed" => self.seed = some(parser)?,
            "phase" => {
                let name = parser.value()?.string()?;
                let phase = Phase::from_name(&name);
                self.phases.push(phase.ok_or_else(|| format!("no phase {name}"))?);
            }
            _ => return Err(Long(name).unexpected()),
        }
        Ok(())
    }

    fn server(&self) -> Options {
        let address = self.nfs.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 2049)));
        let mut server = Options::new(address);
        server.mount_address = self.mount;
        server.uid = self.uid.unwrap_or(server.uid);
        server.gid = self.gid.unwrap_or(server.gid);
        server.patience = self.patience.map_or(server.patience, Duration::from_secs);
        server.retransmit = self.retransmit.map_or(server.retransmit, Duration::from_secs);
        server
    }

    fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions::new(self.server());
        options.server.connections = self.connections.unwrap_or(options.server.connections);
        options.export = self.export.clone().unwrap_or(options.export);
        options.depth = self.depth.unwrap_or(options.depth);
        options.files = self.files.unwrap_or(options.files);
        options.seq_mib = self.seq_mib.unwrap_or(options.seq_mib);
        options.prefix = self.prefix.clone().unwrap_or(options.prefix);
        options.phases = self.phases.clone();
        options.seconds = self.seconds;
        options
    }

    fn journal(&self) -> Result<PathBuf, BenchError> {
        self.journal.clone().ok_or_else(|| BenchError::Usage("--journal FILE is missing".into()))
    }

    fn record_options(&self) -> Result<RecordOptions, BenchError> {
        let mut options = RecordOptions::new(self.server(), self.journal()?);
        options.server.connections = self.connections.unwrap_or(options.server.connections);
        options.export = self.export.clone().unwrap_or(options.export);
        options.depth = self.depth.unwrap_or(options.depth);
        options.operations = self.operations;
        options.seconds = self.seconds.or(if self.operations.is_none() { Some(10) } else { None });
        options.break_every = self.break_every.unwrap_or(options.break_every);
        options.seed = self.seed.unwrap_or(options.seed);
        Ok(options)
    }

    fn check_options(&self) -> Result<CheckOptions, BenchError> {
        let export = self.export.clone().unwrap_or_else(|| "/".into());
        Ok(CheckOptions { server: self.server(), export, journal: self.journal()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Subcommand, Given), BenchError> {
        parse(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_reach_their_subcommand() {
        let (subcommand, given) =
            parsed("load --nfs 127.0.0.1:99 --phase create --phase=remove --depth 2").unwrap();
        assert_eq!(subcommand, Subcommand::Load);
        let options = given.load_options();
        assert_eq!(options.server.address.port(), 99);
        assert_eq!(options.phases, [Phase::Create, Phase::Remove]);
        assert_eq!((options.depth, options.server.connections), (2, 4));
        let (_, given) = parsed("record --journal j --operations 5").unwrap();
        let options = given.record_options().unwrap();
        assert_eq!((options.operations, options.seconds), (Some(5), None));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["", "fly", "load extra", "load --phase fly", "load --depth x", "load --fly"] {
            assert!(matches!(parsed(line), Err(BenchError::Usage(_))), "{line}");
        }
        assert!(parsed("check").unwrap().1.check_options().is_err());
    }
}
