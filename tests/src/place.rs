//! A directory of a test's own, and zapscope run in it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use serde_json::Value;

use crate::program;
use crate::scenario::Scenario;

/// A directory, removed with everything in it when dropped.
pub struct Place(tempfile::TempDir);

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory for temporary files"))
    }

    /// One with this scenario as `s.toml`.
    pub fn of(scenario: &Scenario) -> Self {
        let place = Self::new();
        place.put("s.toml", scenario.text());
        place
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of a file in it.
    pub fn file(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path().join(name.as_ref())
    }

    /// Writes a file.
    pub fn put(&self, name: impl AsRef<OsStr>, bytes: impl AsRef<[u8]>) {
        fs::write(self.file(name), bytes).expect("the directory is ours");
    }

    /// What it holds, or a directory in it.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path().join(directory)).expect("a directory");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A file in it that holds JSON.
    pub fn json(&self, name: &str) -> Value {
        let text = fs::read(self.file(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        serde_json::from_slice(&text).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    /// A command line of zapscope.
    pub fn zapscope<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        program::zapscope(self.path(), arguments)
    }

    /// Runs zapscope to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ended {
        program::output(self.path(), arguments).into()
    }

    /// Runs `s.toml` into `out`, with more options, to a success. The record that it prints.
    #[track_caller]
    pub fn record(&self, options: &[&str]) -> Value {
        self.recorded(options).0
    }

    /// The same, with what was said beside.
    #[track_caller]
    pub fn recorded(&self, options: &[&str]) -> (Value, String) {
        let ended = self.run(&[&["run", "s.toml", "--json", "--out", "out"], options].concat()).with(0);
        (ended.json(), ended.said)
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

/// How a program ended, and what it wrote.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub said: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let said = program::stderr(&output);
        Self { status: output.status, out: output.stdout, said }
    }
}

impl Ended {
    /// It ended with this exit code, and without a panic.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.said);
        assert!(!self.said.contains("panicked"), "{}", self.said);
        self
    }

    /// Its standard error has each of these.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        words.iter().for_each(|word| assert!(self.said.contains(word), "no {word:?} in: {}", self.said));
        self
    }

    /// Its standard error has none of these.
    #[track_caller]
    pub fn never_says(self, words: &[&str]) -> Self {
        words.iter().for_each(|word| assert!(!self.said.contains(word), "{word:?} in: {}", self.said));
        self
    }

    /// Its standard output.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.out)
            .unwrap_or_else(|why| panic!("{why}: {}\n{}", self.said, self.text()))
    }
}
