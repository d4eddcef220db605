//! The corpora again, without libFuzzer: what was found once stays found, and a little more is tried.

use std::path::Path;

use harp_fuzz::TARGETS;

/// Changed copies tried of each input.
const CHANGES: usize = 200;

/// A xorshift generator: enough to spread damage about.
struct Damage(u64);

impl Damage {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Overwrites, cuts or doubles a few places.
    fn strike(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len().max(1));
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                _ => bytes[at..].iter_mut().take(1).for_each(|byte| *byte = self.below(256) as u8),
            }
        }
    }
}

/// Tries the seeds and the corpus of a target, a part of each, and each with some damage.
fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut inputs = (target.seeds)();
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    assert!(!paths.is_empty(), "no corpus in {}", dir.display());
    paths.sort();
    inputs.extend(paths.iter().map(|path| std::fs::read(path).expect("readable")));
    let mut damage = Damage(0x9e37_79b9_7f4a_7c15);
    for input in &inputs {
        (target.run)(input);
        (target.run)(&input[..damage.below(input.len().max(1))]);
        for _ in 0..CHANGES {
            let mut changed = input.clone();
            damage.strike(&mut changed);
            (target.run)(&changed);
        }
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

replays! {
    record_marks calls replies log_records log_recovery messages links config control image effects parts
}
