//! Every scenario L1 to L36 is a test that says so in the first words of its story.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SCENARIOS: std::ops::RangeInclusive<u32> = 1..=36;

/// The files of tests of all crates.
fn test_files() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies among the crates");
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let listed = std::fs::read_dir(dir).into_iter().flatten();
        listed.map(|entry| entry.expect("a readable directory").path()).collect()
    };
    let tests = entries(crates).into_iter().flat_map(|one| entries(&one.join("tests")));
    tests.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// The numbers that a story begins with: `L5 and L6. The backups are cut off ...`.
fn numbers(story: &str) -> Vec<u32> {
    let words = story.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let number = |word: &str| word.strip_prefix('L').and_then(|n| n.parse().ok());
    words.take_while(|word| *word == "and" || number(word).is_some()).filter_map(number).collect()
}

#[test]
fn every_scenario_has_a_test() {
    let mut told = BTreeSet::new();
    for path in test_files() {
        let text = std::fs::read_to_string(&path).expect("a readable file");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(story) = line.strip_prefix("/// ") else { continue };
            let mut below = lines[at..].iter().skip_while(|line| line.starts_with("///"));
            if below.next() == Some(&"#[test]") {
                told.extend(numbers(story));
            }
        }
    }
    let missing: Vec<u32> = SCENARIOS.filter(|number| !told.contains(number)).collect();
    assert!(missing.is_empty(), "no test tells L{missing:?}; there are {told:?}");
}
