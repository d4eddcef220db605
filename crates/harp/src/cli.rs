//! The command line.
//! Owns: words, defaults, usage texts, what is printed at the end.
//! Never: does a command's work.
//! Invariant: a command that fails leaves exactly one line on standard error.
//! Source: README.md, "Commands".

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::Arg::{Long, Value};
use lexopt::{Parser, ValueExt};

use harp_node::fs::key::RootOwner;
use harp_node::{Durability, Network, Squash};

use crate::admin::PowerState;
use crate::config::{Config, FILE_NAME, Place, durability_named};
use crate::configcheck::{group_source_named, squash_named};
use crate::error::HarpError;
use crate::export::{Exported, Owners, export};
use crate::formatting::{self, Act};
use crate::init::{InitOptions, init};
use crate::overriding::{OverrideOptions, override_group};
use crate::up::{UpOptions, up};
use crate::{power, server, status, verify};

/// The directory of a local group unless told otherwise.
const DIR_DEFAULT: &str = "./harp-data";

const USAGE: &str = "\
Harp: a file server that does not go away.

harp up [--dir DIR] [--copies 2|3] [--durability disk|ups] [--nfs ADDR:PORT] [--nbd ADDR:PORT]
        [--admin ADDR:PORT] [--allow NETWORK]...
                                        run a whole local group (DIR: ./harp-data)
harp init --dir DIR --server NAME=ADDRESS[:PORT]... [--allow NETWORK]... [--copies 2|3] [--name NAME]
        [--nfs-port PORT] [--data DIR] [--squash root|all|none] [--groups client|server]
        [--root-uid N] [--root-gid N] [--root-mode OCTAL] [--capacity BYTES[K|M|G|T]]
        [--durability disk|ups] [--memory-dir DIR]
                                        write DIR/harp.toml for a group over several machines
harp serve --config FILE --node NAME    run one server of it
harp serve --config FILE --node NAME --format | --replace
                                        make its directory: in a new group | after its disk was lost
harp status [--dir DIR | --config FILE] [--json]
                                        show every server's state
harp verify [--dir DIR | --config FILE] [--json]
                                        compare all copies at the same op
harp power mains|on-battery|low [--dir DIR | --config FILE]
                                        tell this machine's servers what it runs on
harp export DIR DEST [--drop-owners]      copy the files out of a stopped server's directory
harp bench ...                          load generators and reports
harp override [--absent NAMES] [--dir DIR | --config FILE] [--yes-lose-data] [--json]
                                        go on without servers that are gone for good
harp volume                             not built yet
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
        "power" => run_power(parser),
        "bench" => run_bench(&rest),
        "init" => run_init(parser),
        "volume" => built_not("volume", "there are no block volumes"),
        "override" => run_override(parser),
        "export" => run_export(parser),
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
            Long("copies") => options.copies = Some(copies(parser.value()?)?),
            Long("durability") => options.durability = Some(durability(parser.value()?)?),
            Long("nfs") => options.nfs = Some(address("nfs", parser.value()?)?),
            Long("admin") => options.admin = Some(address("admin", parser.value()?)?),
            Long("allow") => options.allow.push(network(parser.value()?)?),
            Long("nbd") => {
                address("nbd", parser.value()?)?;
                println!("--nbd: block volumes are not built yet; going on without");
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn network(value: OsString) -> Result<Network, HarpError> {
    let text = value.to_string_lossy();
    text.parse().map_err(|why| usage(format!("--allow {text:?} {why}")))
}

/// A server's name, address and (if it was said) port.
fn named_server(value: OsString) -> Result<(String, IpAddr, Option<u16>), HarpError> {
    let text = value.to_string_lossy().into_owned();
    let why = || {
        usage(format!(
            "--server {text:?} must be a name and an address, like a=10.1.0.1, a=10.1.0.1:2050 or a=[fd00::1]:2050"
        ))
    };
    let (name, place) = text.split_once('=').ok_or_else(why)?;
    if let Ok(address) = place.parse::<SocketAddr>() {
        return Ok((name.into(), address.ip(), Some(address.port())));
    }
    let host = place.strip_prefix('[').and_then(|p| p.strip_suffix(']')).unwrap_or(place);
    Ok((name.into(), host.parse().map_err(|_| why())?, None))
}

/// A number of bytes, perhaps with K, M, G or T behind it.
fn bytes(option: &str, value: OsString) -> Result<u64, HarpError> {
    let text = value.to_string_lossy().into_owned();
    let shift = match text.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    let digits = if shift > 0 { &text[..text.len() - 1] } else { &text[..] };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| {
        usage(format!("--{option} wants a number of bytes, like 500G, not {text:?}"))
    })
}

fn durability(value: OsString) -> Result<Durability, HarpError> {
    let name = value.to_string_lossy();
    let why = || usage(format!("--durability is disk or ups, not {name}"));
    durability_named(&name).ok_or_else(why)
}

fn copies(value: OsString) -> Result<u8, HarpError> {
    match value.to_string_lossy().as_ref() {
        "2" => Ok(2),
        "3" => Ok(3),
        other => Err(usage(format!("--copies is 2 or 3, not {other}"))),
    }
}

fn parse_init(mut parser: Parser) -> Result<InitOptions, HarpError> {
    let mut dir = None;
    let mut options = InitOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => dir = Some(parser.value()?.into()),
            Long("name") => options.name = Some(parser.value()?.string()?),
            Long("copies") => options.copies = Some(copies(parser.value()?)?),
            Long("server") => options.servers.push(named_server(parser.value()?)?),
            Long("nfs-port") => options.nfs_port = Some(parser.value()?.parse()?),
            Long("data") => options.data = Some(parser.value()?.into()),
            Long("allow") => options.allow.push(network(parser.value()?)?),
            Long("squash") => {
                let name = parser.value()?.string()?;
                let why = || usage(format!("--squash is root, all or none, not {name:?}"));
                options.squash = Some(squash_named(&name).ok_or_else(why)?);
            }
            Long("groups") => {
                let name = parser.value()?.string()?;
                let why = || usage(format!("--groups is client or server, not {name:?}"));
                options.groups = Some(group_source_named(&name).ok_or_else(why)?);
            }
            Long("root-uid") => options.root.uid = parser.value()?.parse()?,
            Long("root-gid") => options.root.gid = parser.value()?.parse()?,
            Long("root-mode") => {
                let text = parser.value()?.string()?;
                let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
                let why =
                    || usage(format!("--root-mode wants an octal mode like 1777, not {text:?}"));
                options.root.mode = mode.ok_or_else(why)?;
            }
            Long("durability") => options.durability = Some(durability(parser.value()?)?),
            Long("memory-dir") => options.memory_dir = Some(parser.value()?.into()),
            Long("capacity") => options.capacity = Some(bytes("capacity", parser.value()?)?),
            other => return Err(other.unexpected().into()),
        }
    }
    options.dir = dir.ok_or_else(|| usage("init wants --dir DIR, to write harp.toml there"))?;
    Ok(options)
}

fn run_init(parser: Parser) -> Result<(), HarpError> {
    let config = init(&parse_init(parser)?)?;
    let file = config.file.display();
    println!(
        "{file} describes the group; copy it to each server's machine, mode 0600, then there, once:"
    );
    for server in config.shape().servers() {
        let machine = config.peers[server.index()].ip();
        println!("  on {machine}: harp serve --config {FILE_NAME} --node {server} --format");
    }
    println!("and then the same without --format, to run it.");
    let RootOwner { uid, mode, .. } = config.root;
    if config.export.squash != Squash::None && uid == 0 && mode & 0o022 == 0 {
        println!(
            "root is squashed and the root directory is root's: nobody can make anything there. Before --format, set \
             root_uid, root_gid or root_mode in the file, or squash to \"none\"."
        );
    }
    Ok(())
}

fn run_up(parser: Parser) -> Result<(), HarpError> {
    up(&parse_up(parser)?)
}

fn run_serve(mut parser: Parser) -> Result<(), HarpError> {
    let (mut file, mut node, mut nfs_port, mut supervised) = (None, None, None, false);
    let mut act = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => file = Some(PathBuf::from(parser.value()?)),
            Long("node") => node = Some(parser.value()?.string()?),
            Long("format") => act = Some(Act::First),
            Long("replace") => act = Some(Act::Replacement),
            // The supervisor's: the port that it was told, and its control socket for standard input.
            Long("supervised") => supervised = true,
            Long("nfs-port") => nfs_port = Some(parser.value()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let file = file.ok_or_else(|| usage("serve wants --config FILE"))?;
    let node = node.ok_or_else(|| usage("serve wants --node NAME"))?;
    let mut config = Config::read(&file)?;
    match (&mut config.place, nfs_port) {
        (Place::Here { nfs, .. }, Some(port)) => nfs.set_port(port),
        (Place::Here { .. }, None) => {
            let why = format!("{} has a section [listen]: harp up runs its group", file.display());
            return Err(HarpError::Refused { why });
        }
        (Place::Machines(_), Some(_)) => return Err(usage("--nfs-port is harp up's")),
        (Place::Machines(_), None) => {}
    }
    let unknown = || usage(format!("{} names no server {node:?}", file.display()));
    let me = config.server_named(&node).ok_or_else(unknown)?;
    if let Some(act) = act {
        formatting::format(&config, me, act)?;
        println!("server {me} is formatted in {}", config.server_dir(me).display());
        return Ok(());
    }
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
    let verify::Verified { op, digest, mended } = verify::verify(&config)?;
    if json {
        let mended: serde_json::Map<String, serde_json::Value> =
            mended.iter().map(|(copy, count)| (copy.to_string(), (*count).into())).collect();
        let equal =
            serde_json::json!({ "equal": true, "op": op, "digest": digest, "mended": mended });
        println!("{equal}");
    } else {
        for (copy, count) in mended {
            println!("{count} blocks were damaged at {copy} and are mended from another copy");
        }
        println!("equal at op {op}: {digest}");
    }
    Ok(())
}

fn run_power(mut parser: Parser) -> Result<(), HarpError> {
    let (mut file, mut state) = (Path::new(DIR_DEFAULT).join(FILE_NAME), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => file = PathBuf::from(parser.value()?).join(FILE_NAME),
            Long("config") => file = parser.value()?.into(),
            Value(name) if state.is_none() => {
                let name = name.to_string_lossy();
                let why = || usage(format!("power is mains, on-battery or low, not {name}"));
                state = Some(PowerState::named(&name).ok_or_else(why)?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let state = state.ok_or_else(|| usage("power wants one of mains, on-battery and low"))?;
    power::tell(&Config::read(&file)?, state)
}

fn run_override(mut parser: Parser) -> Result<(), HarpError> {
    let mut file = Path::new(DIR_DEFAULT).join(FILE_NAME);
    let (mut options, mut names) = (OverrideOptions::default(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("dir") => file = PathBuf::from(parser.value()?).join(FILE_NAME),
            Long("config") => file = parser.value()?.into(),
            Long("absent") => {
                let list = parser.value()?.string()?;
                names.extend(list.split(',').map(|name| name.trim().to_string()));
            }
            Long("yes-lose-data") => options.yes_lose_data = true,
            Long("json") => options.json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let config = Config::read(&file)?;
    for name in names {
        let unknown = || usage(format!("{} names no server {name:?}", file.display()));
        options.absent.push(config.server_named(&name).ok_or_else(unknown)?);
    }
    override_group(&config, &options)
}

fn run_export(mut parser: Parser) -> Result<(), HarpError> {
    let (mut places, mut owners) = (Vec::new(), Owners::Keep);
    while let Some(argument) = parser.next()? {
        match argument {
            Value(place) => places.push(PathBuf::from(place)),
            Long("drop-owners") => owners = Owners::Drop,
            other => return Err(other.unexpected().into()),
        }
    }
    let [dir, dest] = &places[..] else {
        return Err(usage("export wants a server's directory and a new one: harp export DIR DEST"));
    };
    let done = export(dir, dest, owners)?;
    let Exported { op, lb, objects, bytes, .. } = done;
    println!("{objects} objects and {bytes} bytes, exact at op {op}, are in {}", dest.display());
    match &done.log_fault {
        None if op > lb => {
            println!("ops {} to {op} are from the log, all below from the image", lb + 1)
        }
        None => {}
        Some(why) => println!("the log adds nothing ({why}): what came after op {lb} is not here"),
    }
    if done.log_fault.is_none() && done.log_end > op {
        let (first, last) = (op + 1, done.log_end);
        println!(
            "ops {first} to {last} are left out: this log does not say that they were committed"
        );
    }
    done.faults.iter().for_each(|fault| println!("not copied, or not as it was: {fault}"));
    match done.fault_count {
        0 => Ok(()),
        count => {
            let why = format!("{count} objects were not copied, or not as they were; see above");
            Err(HarpError::Refused { why })
        }
    }
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
        let options = parsed(&["--durability", "ups"]).expect("accepted");
        assert_eq!(options.durability, Some(Durability::Ups));
    }

    #[test]
    fn what_would_weaken_a_promise_is_refused() {
        assert!(parsed(&["--durability", "none"]).is_err());
        assert!(parsed(&["--copies", "1"]).is_err());
        assert!(parsed(&["--nfs", "localhost"]).is_err());
    }

    #[test]
    fn every_failure_is_one_line_and_a_code() {
        for words in [
            "",
            "fly",
            "init --dir x",
            "volume list",
            "override --absent a",
            "export /nowhere b",
            "power",
        ] {
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
