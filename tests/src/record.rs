//! Records that the program prints: of a run, of a replay.

use serde_json::Value;

use crate::place::Place;
use crate::scenario::Scenario;

/// Runs a scenario, and returns its record with what was said beside.
#[track_caller]
pub fn run(scenario: &Scenario, options: &[&str]) -> (Value, String) {
    Place::of(scenario).recorded(options)
}

/// The rows of a record.
pub fn rows(record: &Value) -> &[Value] {
    record["rows"].as_array().expect("a record has rows")
}

/// A row's number.
#[track_caller]
pub fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"))
}
