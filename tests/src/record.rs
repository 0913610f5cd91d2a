//! Records that the program prints: of a run, of a replay.

use std::path::Path;

use serde_json::Value;

use crate::program;

/// Runs a command line that prints a record, in `directory`, and returns it with what was said beside.
///
/// # Panics
/// It fails, or prints something else.
pub fn printed(directory: &Path, arguments: &[&str]) -> (Value, String) {
    let output = program::output(directory, arguments);
    let said = program::stderr(&output);
    assert!(output.status.success(), "{said}");
    (serde_json::from_slice(&output.stdout).expect("it prints a record"), said)
}

/// Runs a scenario in `directory`, and returns its record with what was said beside.
///
/// # Panics
/// It fails.
pub fn run(directory: &Path, scenario: &str, options: &[&str]) -> (Value, String) {
    std::fs::write(directory.join("scenario.toml"), scenario).expect("the directory is ours");
    printed(directory, &[&["run", "scenario.toml", "--json"], options].concat())
}

/// The rows of a record.
///
/// # Panics
/// It has none.
pub fn rows(record: &Value) -> &[Value] {
    record["rows"].as_array().expect("a record has rows")
}

/// A row's number.
///
/// # Panics
/// It is none.
pub fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"))
}
