//! Tries inputs without libFuzzer: `harp-fuzz NAME FILE...`; or writes seeds: `harp-fuzz --seeds DIR`.
//! Owns: the command line of a replay.
//! Never: searches for inputs.
//! Invariant: exits 0 only if every input passed.

use std::path::Path;
use std::process::ExitCode;

use harp_fuzz::TARGETS;

const USAGE: &str = "\
usage: harp-fuzz NAME FILE...   tries each file as an input of the target NAME
       harp-fuzz --seeds DIR    writes every target's seeds to DIR/NAME
       harp-fuzz --list         names the targets";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--list"] => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["--seeds", dir] => write_seeds(Path::new(dir)),
        [name, ref files @ ..] if !files.is_empty() => replay(name, files),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn replay(name: &str, files: &[&str]) -> Result<(), String> {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.ok_or_else(|| format!("harp-fuzz: no target {name}; try --list"))?;
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("harp-fuzz: {file}: {error}"))?;
        (target.run)(&input);
        println!("{file}: passed");
    }
    Ok(())
}

fn write_seeds(dir: &Path) -> Result<(), String> {
    for target in TARGETS {
        let dir = dir.join(target.name);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&dir)?;
            for (number, seed) in (target.seeds)().iter().enumerate() {
                std::fs::write(dir.join(format!("seed-{number:03}")), seed)?;
            }
            Ok(())
        };
        write().map_err(|error| format!("harp-fuzz: {}: {error}", dir.display()))?;
    }
    Ok(())
}
