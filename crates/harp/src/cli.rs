//! The command line.
//! Owns: words, defaults, usage texts, what is printed at the end.
//! Never: does a command's work.
//! Invariant: a command that fails leaves exactly one line on standard error.
//! Source: README.md, "Commands".

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::Arg::Long;
use lexopt::{Parser, ValueExt};

use crate::config::{Config, FILE_NAME};
use crate::error::HarpError;
use crate::up::{UpOptions, up};
use crate::{server, status, verify};

/// The directory of a local group unless told otherwise.
const DIR_DEFAULT: &str = "./harp-data";

const USAGE: &str = "\
Harp: a file server that does not go away.

harp up [--dir DIR] [--copies 2|3] [--durability disk] [--nfs ADDR:PORT] [--nbd ADDR:PORT]
        [--admin ADDR:PORT]             run a whole local group (DIR: ./harp-data)
harp serve --config FILE --node NAME    run one server
harp status [--dir DIR | --config FILE] [--json]
                                        show every server's state
harp verify [--dir DIR | --config FILE] [--json]
                                        compare all copies at the same op
harp bench ...                          load generators and reports
harp init, volume, override, export     not built yet
";

fn usage(why: impl Into<String>) -> HarpError {
    HarpError::Usage { why: why.into() }
}

impl From<lexopt::Error> for HarpError {
    fn from(error: lexopt::Error) -> HarpError {
        usage(error.to_string())
    }
}

/// Runs the command that `arguments` (without the program's name) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match command(arguments.into_iter().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("harp: {}", error.to_string().replace('\n', " "));
            ExitCode::from(error.exit_code())
        }
    }
}

fn command(mut arguments: Vec<OsString>) -> Result<(), HarpError> {
    if arguments.is_empty() {
        return Err(usage("say what to do; harp --help lists it"));
    }
    let rest = arguments.split_off(1);
    let name = arguments[0].to_string_lossy().into_owned();
    let parser = Parser::from_args(rest.iter().cloned());
    let help = rest.iter().any(|word| word == "--help" || word == "-h");
    if help && name != "bench" {
        print!("{USAGE}");
        return Ok(());
    }
    let built_not = |what, why| Err(HarpError::NotBuilt { what, why });
    match name.as_str() {
        "up" => run_up(parser),
        "serve" => run_serve(parser),
        "status" => run_status(parser),
        "verify" => run_verify(parser),
        "bench" => run_bench(&rest),
        "init" => built_not("init", "harp up keeps a whole group on one machine"),
        "volume" => built_not("volume", "there are no block volumes"),
        "override" => built_not("override", "bring back the servers that harp status names"),
        "export" => built_not("export", "mount the group and copy the files"),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        "--version" | "-V" => {
            println!("harp {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        other => Err(usage(format!("unknown command {other:?}; harp --help lists them"))),
    }
}

fn address(option: &str, value: OsString) -> Result<SocketAddr, HarpError> {
    let why = || usage(format!("--{option} wants an address and a port, like 127.0.0.1:2049"));
    value.to_str().and_then(|text| text.parse().ok()).ok_or_else(why)
}

fn parse_up(mut parser: Parser) -> Result<UpOptions, HarpError> {
    let mut options = UpOptions { dir: DIR_DEFAULT.into(), ..UpOptions::default() };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => options.dir = parser.value()?.into(),
            Long("copies") => match parser.value()?.string()?.as_str() {
                "2" => options.copies = Some(2),
                "3" => options.copies = Some(3),
                other => return Err(usage(format!("--copies is 2 or 3, not {other}"))),
            },
            Long("durability") => match parser.value()?.string()?.as_str() {
                "disk" => {}
                "ups" => {
                    let why = "records would not outlive a power failure; use disk";
                    return Err(HarpError::NotBuilt { what: "--durability ups", why });
                }
                other => return Err(usage(format!("--durability is disk or ups, not {other}"))),
            },
            Long("nfs") => options.nfs = Some(address("nfs", parser.value()?)?),
            Long("admin") => options.admin = Some(address("admin", parser.value()?)?),
            Long("nbd") => {
                address("nbd", parser.value()?)?;
                println!("--nbd: block volumes are not built yet; going on without");
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn run_up(parser: Parser) -> Result<(), HarpError> {
    up(&parse_up(parser)?)
}

fn run_serve(mut parser: Parser) -> Result<(), HarpError> {
    let (mut file, mut node, mut nfs_port, mut supervised) = (None, None, None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => file = Some(PathBuf::from(parser.value()?)),
            Long("node") => node = Some(parser.value()?.string()?),
            // The supervisor's: the port that it was told, and its control socket for standard input.
            Long("supervised") => supervised = true,
            Long("nfs-port") => nfs_port = Some(parser.value()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let file = file.ok_or_else(|| usage("serve wants --config FILE"))?;
    let node = node.ok_or_else(|| usage("serve wants --node NAME"))?;
    let mut config = Config::read(&file)?;
    if let Some(port) = nfs_port {
        config.nfs.set_port(port);
    }
    let unknown = || usage(format!("{} names no server {node:?}", file.display()));
    let me = config.server_named(&node).ok_or_else(unknown)?;
    let control = match supervised {
        true => Some(server::tie_to_supervisor(std::io::stdin())?),
        false => None,
    };
    server::serve(&config, me, control)
}

/// Where the group is that `status` and `verify` ask about, and whether to answer in JSON.
fn parse_group(mut parser: Parser) -> Result<(Config, bool), HarpError> {
    let (mut file, mut json) = (Path::new(DIR_DEFAULT).join(FILE_NAME), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => file = PathBuf::from(parser.value()?).join(FILE_NAME),
            Long("config") => file = parser.value()?.into(),
            Long("json") => json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((Config::read(&file)?, json))
}

fn run_status(parser: Parser) -> Result<(), HarpError> {
    let (config, json) = parse_group(parser)?;
    let document = status::gather(&config);
    if json {
        println!("{}", status::json(&document));
    } else {
        print!("{}", status::table(&document));
    }
    Ok(())
}

fn run_verify(parser: Parser) -> Result<(), HarpError> {
    let (config, json) = parse_group(parser)?;
    let verify::Verified { op, digest } = verify::verify(&config)?;
    if json {
        println!("{}", serde_json::json!({ "equal": true, "op": op, "digest": digest }));
    } else {
        println!("equal at op {op}: {digest}");
    }
    Ok(())
}

fn run_bench(rest: &[OsString]) -> Result<(), HarpError> {
    let strings: Option<Vec<String>> =
        rest.iter().map(|word| word.to_str().map(str::to_string)).collect();
    let strings = strings.ok_or_else(|| usage("bench wants arguments in UTF-8"))?;
    harp_bench::run(&strings).map_err(|error| HarpError::Refused { why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(words: &str) -> HarpError {
        let words = words.split_whitespace().map(OsString::from).collect();
        command(words).expect_err("this must fail")
    }

    fn parsed(words: &[&str]) -> Result<UpOptions, HarpError> {
        parse_up(Parser::from_args(words))
    }

    #[test]
    fn up_has_the_promised_defaults_and_options() {
        let options = parsed(&[]).expect("parses");
        assert_eq!((options.dir, options.copies), (PathBuf::from("./harp-data"), None));
        let words = ["--dir", "/x", "--copies=3", "--nfs", "127.0.0.1:1", "--admin", "[::1]:2"];
        let options = parsed(&words).expect("parses");
        assert_eq!(options.copies, Some(3));
        assert_eq!(options.nfs, Some("127.0.0.1:1".parse().expect("an address")));
        parsed(&["--nbd", "127.0.0.1:10809", "--durability", "disk"]).expect("accepted");
    }

    #[test]
    fn what_would_weaken_a_promise_is_refused() {
        let error = parsed(&["--durability", "ups"]).expect_err("refused");
        assert!(matches!(error, HarpError::NotBuilt { .. }));
        assert!(parsed(&["--copies", "1"]).is_err());
        assert!(parsed(&["--nfs", "localhost"]).is_err());
    }

    #[test]
    fn every_failure_is_one_line_and_a_code() {
        for words in ["", "fly", "init --dir x", "volume list", "override", "export a b"] {
            let error = fails(words);
            assert_eq!(error.to_string().lines().count(), 1, "{words}: {error}");
            assert_ne!(error.exit_code(), 0);
        }
        for words in ["up --copies 9", "serve", "serve --config /nowhere --node a"] {
            assert_eq!(fails(words).to_string().lines().count(), 1, "{words}");
        }
        assert!(fails("status --dir /nowhere").to_string().contains("/nowhere/harp.toml"));
    }
}
