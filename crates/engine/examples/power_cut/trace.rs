//! Trace: what a process did to the files of one directory, as strace tells it.
//! Owns: the reading of strace's lines.
//! Never: guesses: a call on those files that it does not know is an error.
//! Invariant: events come in the order in which the calls returned.
//! Source: strace(1), with `-y -xx` and strings at full length.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

/// Calls that strace is to tell of: all that may change a file, make it durable, or map it.
pub const CALLS: &str = "openat,open,openat2,creat,close,lseek,write,writev,pwrite64,pwritev,pwritev2,\
    ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,msync,mmap,dup,dup2,dup3,fcntl,rename,\
    renameat,renameat2,unlink,unlinkat,link,linkat,copy_file_range,sendfile,splice,io_uring_setup,sync,syncfs";

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A file came to be, without content.
    Made { file: String },
    /// Bytes were written; `through`: they were durable when the call returned.
    Written { file: String, at: u64, data: Vec<u8>, through: bool },
    /// A file was given this length.
    SetLength { file: String, length: u64 },
    /// What was written to a file is durable.
    Synced { file: String },
    /// The directory's entries are durable.
    DirectorySynced,
    /// The process said this.
    Said(String),
}

/// A file descriptor of a file that is watched.
#[derive(Clone, Debug)]
struct Descriptor {
    file: String,
    at: u64,
    through: bool,
}

/// Reads the lines of a trace.
pub struct Reader {
    dir: String,
    open: BTreeMap<u64, Descriptor>,
    made: Vec<String>,
    events: Vec<Event>,
}

/// Files that are no part of what must be durable.
const UNIMPORTANT: [&str; 1] = ["lock.mdb"];

/// Reads a whole trace of what happened in `dir`.
pub fn read(trace: impl BufRead, dir: &Path) -> Result<Vec<Event>, String> {
    let (dir, open, made, events) =
        (dir.display().to_string(), BTreeMap::new(), Vec::new(), Vec::new());
    let mut reader = Reader { dir, open, made, events };
    for line in trace.lines() {
        let line = line.map_err(|error| format!("the trace: {error}"))?;
        reader.line(&line).map_err(|why| {
            let start: String = line.chars().take(300).collect();
            format!("{why}: {start}")
        })?;
    }
    Ok(reader.events)
}

/// The bytes of text like `\x2f\x74`.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let digit = |c: u8| (c as char).to_digit(16).map(|digit| digit as u8);
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return Err("bytes that are not written in hexadecimal".into());
    }
    let pairs = text.chunks_exact(4).map(|c| match c {
        [b'\\', b'x', high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect::<Option<_>>().ok_or_else(|| "bytes that are not written in hexadecimal".into())
}

fn name(text: &str) -> Result<String, String> {
    String::from_utf8(bytes(text)?).map_err(|_| "a name that is no text".into())
}

/// Between the first `from` and the next `to`, and what follows.
fn between(text: &str, from: char, to: char) -> Option<(&str, &str)> {
    let (_, text) = text.split_once(from)?;
    text.split_once(to)
}

/// All strings of an argument list, decoded.
fn strings(arguments: &str) -> Result<Vec<u8>, String> {
    let (mut all, mut rest) = (Vec::new(), arguments);
    while let Some((string, behind)) = between(rest, '"', '"') {
        if behind.starts_with("...") {
            return Err("a string that strace cut".into());
        }
        all.extend(bytes(string)?);
        rest = behind;
    }
    Ok(all)
}

fn number(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("no number: '{text}'"))
}

impl Reader {
    /// The watched file of a path: its name in the directory; "" for the directory itself.
    fn watched(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&self.dir)?;
        let file = rest.strip_prefix('/').unwrap_or(rest);
        (!UNIMPORTANT.contains(&file)).then(|| file.to_string())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        // "PID  call(arguments) = result"
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        if call.starts_with("+++") || call.starts_with("---") {
            return Ok(());
        }
        if line.contains("<unfinished ...>") || line.contains(" resumed>") {
            return Err("two threads called at once".into());
        }
        let (what, rest) = call.split_once('(').ok_or("no call")?;
        let (arguments, result) = rest.rsplit_once(" = ").ok_or("a call without a result")?;
        let arguments = arguments.trim_end();
        let arguments = arguments.strip_suffix(')').ok_or("arguments without an end")?;
        if what == "io_uring_setup" {
            return Err("a call behind which others hide".into());
        }
        if result.starts_with('-') {
            return Ok(()); // it failed and changed nothing
        }
        match what {
            "openat" => self.on_open(arguments, result),
            "write" if arguments.starts_with("1<") => {
                let said = String::from_utf8(strings(arguments)?).map_err(|_| "no text")?;
                self.events.extend(said.lines().map(|line| Event::Said(line.to_string())));
                Ok(())
            }
            "mmap" => self.on_map(arguments),
            _ => self.on_descriptor(what, arguments, result),
        }
    }

    fn on_open(&mut self, arguments: &str, result: &str) -> Result<(), String> {
        let (path, flags) = between(arguments, '"', '"').ok_or("no path")?;
        let Some(file) = self.watched(&name(path)?) else { return Ok(()) };
        if flags.contains("O_TRUNC") {
            return Err("a file is cut when it is opened".into());
        }
        let fd = number(result.split('<').next().unwrap_or_default())?;
        if flags.contains("O_CREAT") && !self.made.contains(&file) {
            self.made.push(file.clone());
            self.events.push(Event::Made { file: file.clone() });
        }
        let through = flags.contains("O_DSYNC") || flags.contains("O_SYNC");
        self.open.insert(fd, Descriptor { file, at: 0, through });
        Ok(())
    }

    /// Bytes that change through a map are not seen.
    fn on_map(&self, arguments: &str) -> Result<(), String> {
        let parts: Vec<&str> = arguments.split(", ").collect();
        let [_, _, protection, flags, fd, ..] = parts[..] else {
            return Err("a strange map".into());
        };
        let Some((path, _)) = between(fd, '<', '>') else { return Ok(()) };
        let shared = flags.contains("MAP_SHARED") && protection.contains("PROT_WRITE");
        match self.watched(&name(path)?) {
            Some(_) if shared => Err("a file that matters is mapped to be written".into()),
            _ => Ok(()),
        }
    }

    /// Calls whose first argument is a descriptor.
    fn on_descriptor(&mut self, what: &str, arguments: &str, result: &str) -> Result<(), String> {
        let (first, others) = arguments.split_once(", ").unwrap_or((arguments, ""));
        let Some((fd, path)) = first.split_once('<') else {
            return match what {
                "unlinkat" | "unlink" | "rename" | "renameat" | "sync" | "link" => {
                    Err("a call that is not expected".into())
                }
                _ => Ok(()), // on no file
            };
        };
        let path = path.strip_suffix('>').ok_or("a descriptor without an end")?;
        let Some(file) = name(path).ok().and_then(|path| self.watched(&path)) else {
            return Ok(());
        };
        let fd = number(fd)?;
        let known = self.open.get_mut(&fd).ok_or("a descriptor that nobody opened")?;
        if known.file != file {
            return Err(format!("a descriptor of {} is one of {file}", known.file));
        }
        let numbers: Vec<&str> = others.rsplit(", ").collect();
        match what {
            "close" => {
                self.open.remove(&fd);
            }
            "fcntl" if others.starts_with("F_DUPFD") => {
                let copy = number(result.split('<').next().unwrap_or_default())?;
                let known = known.clone();
                self.open.insert(copy, known);
            }
            "fcntl" => {}
            "lseek" => known.at = number(result)?,
            "writev" | "write" => {
                let (at, through, data) = (known.at, known.through, strings(others)?);
                known.at += data.len() as u64;
                self.written(Event::Written { file, at, data, through }, result)?;
            }
            "pwrite64" | "pwritev" => {
                let (at, through, data) = (number(numbers[0])?, known.through, strings(others)?);
                self.written(Event::Written { file, at, data, through }, result)?;
            }
            "ftruncate" => {
                let length = number(others)?;
                self.events.push(Event::SetLength { file, length });
            }
            "fallocate" if others.starts_with("FALLOC_FL_KEEP_SIZE, ") => {}
            "fsync" if file.is_empty() => self.events.push(Event::DirectorySynced),
            "fsync" | "fdatasync" => self.events.push(Event::Synced { file }),
            _ => return Err("a call that is not expected".into()),
        }
        Ok(())
    }

    fn written(&mut self, event: Event, result: &str) -> Result<(), String> {
        if let Event::Written { data, .. } = &event
            && number(result)? != data.len() as u64
        {
            return Err("a write in part".into());
        }
        self.events.push(event);
        Ok(())
    }
}
