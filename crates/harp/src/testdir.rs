//! A directory for one test, gone when the test ends.
//! Owns: its files.
//! Never: shared between tests.

use std::path::{Path, PathBuf};

/// A fresh directory below the build's own, removed on drop.
pub struct TestDir(PathBuf);

impl TestDir {
    /// Makes one; `name` must be the test's own.
    pub fn new(name: &str) -> TestDir {
        let dir = std::env::temp_dir().join(format!("harp-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        TestDir(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
