//! What a process leaves behind for the next one of its server: the records it was at (rule 14).
//! Owns: the file `suspects` in a server's directory.
//! Never: syncs it; a machine that lost power did not die of a record.
//! Invariant: what was written with another program counts for nothing: that one may have mended it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use harp_node::{Suspect, Suspects};

use crate::error::HarpError;

const FILE: &str = "suspects";
/// Length of the file: it is always written whole.
const BYTES: usize = 256;

/// The open file.
#[derive(Debug)]
pub struct SuspectsFile {
    file: File,
    program: String,
}

fn shown(suspect: Option<Suspect>) -> String {
    match suspect {
        None => "none".into(),
        Some(Suspect { first, last, deaths }) => format!("{first}..{last} {deaths}"),
    }
}

fn read(text: &str) -> Option<Suspect> {
    let (range, deaths) = text.split_once(' ')?;
    let (first, last) = range.split_once("..")?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let deaths = deaths.parse().ok()?;
    (first <= last).then_some(Suspect { first, last, deaths })
}

/// A text that differs between any two programs.
fn this_program() -> String {
    let known = std::env::current_exe().and_then(std::fs::metadata);
    known.map_or_else(
        |_| env!("CARGO_PKG_VERSION").into(),
        |exe| format!("{} {}.{}", exe.len(), exe.mtime(), exe.mtime_nsec()),
    )
}

impl SuspectsFile {
    /// Opens the file in `dir`, which may not have it yet. Returns also what the last process left in it.
    pub fn open(dir: &Path) -> Result<(SuspectsFile, Suspects), HarpError> {
        SuspectsFile::open_for(dir, this_program())
    }

    fn open_for(dir: &Path, program: String) -> Result<(SuspectsFile, Suspects), HarpError> {
        let path = dir.join(FILE);
        let failed = |error| HarpError::file("open", &path, error);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let left = match lines.next() == Some(&program) {
            true => Suspects {
                redo: lines.next().and_then(read),
                checkpoint: lines.next().and_then(read),
            },
            false => Suspects::default(),
        };
        Ok((SuspectsFile { file, program }, left))
    }

    /// Writes what the next process is to find.
    pub fn write(&self, suspects: Suspects) -> std::io::Result<()> {
        let Suspects { redo, checkpoint } = suspects;
        let mut text = format!("{}\n{}\n{}\n", self.program, shown(redo), shown(checkpoint));
        text.extend(std::iter::repeat_n(' ', BYTES.saturating_sub(text.len() + 1)));
        text.push('\n');
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn the_next_process_of_the_same_program_finds_what_was_left() {
        let dir = TestDir::new("suspects");
        let open =
            |program: &str| SuspectsFile::open_for(dir.path(), program.into()).expect("opens");
        let (file, left) = open("one");
        assert_eq!(left, Suspects::default());
        let redo = Some(Suspect { first: 7, last: u64::MAX, deaths: 1 });
        let checkpoint = Some(Suspect { first: 3, last: 9, deaths: 0 });
        for suspects in [
            Suspects { redo, checkpoint },
            Suspects { redo: None, checkpoint },
            Suspects::default(),
        ] {
            file.write(suspects).expect("writes");
            assert_eq!(open("one").1, suspects);
            assert_eq!(open("another").1, Suspects::default());
        }
    }

    #[test]
    fn anything_in_the_file_is_taken() {
        let dir = TestDir::new("suspects-odd");
        for odd in ["", "one", "one\n", "one\n5..3 1\n", "one\nx..y z\n1..2", "one\n1..2 -1\n"] {
            std::fs::write(dir.path().join(FILE), odd).expect("writes");
            let (_, left) = SuspectsFile::open_for(dir.path(), "one".into()).expect("opens");
            assert_eq!(left, Suspects::default(), "{odd:?}");
        }
    }
}
