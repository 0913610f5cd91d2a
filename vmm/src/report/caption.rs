//! What stands above and below a case's table: what its rows share, and what they could not say.

use crate::record::Row;

use super::names::{Differences, grouped};
use super::units;

/// `sparse: pageout, slots of 2 MiB, 256 victims of 4 KiB`: what all rows of the case share.
pub(super) fn heading(case: &str, rows: &[&Row], differences: Differences) -> String {
    let mut parts = Vec::new();
    if let Some(row) = rows.first() {
        if !differences.reclaim {
            parts.push(row.label.reclaim.clone());
        }
        if !differences.granule {
            parts.push(format!("slots of {}", units::bytes(row.label.granule)));
        }
    }
    let asked: Vec<String> = grouped(rows, victims_of).into_iter().filter_map(|(text, _)| text).collect();
    if let [only] = asked.as_slice() {
        parts.push(only.clone());
    }
    if parts.is_empty() { case.to_owned() } else { format!("{case}: {}", parts.join(", ")) }
}

/// `256 victims of 4 KiB`, if that is known and they are of one size.
fn victims_of(row: &Row) -> Option<String> {
    let (victims, bytes) = (row.victims.get()?, row.victim_bytes.get()?);
    if victims == 0 || !bytes.is_multiple_of(victims) {
        return None;
    }
    let noun = if victims == 1 { "victim" } else { "victims" };
    Some(format!("{} {noun} of {}", units::count(victims), units::bytes(bytes / victims)))
}

/// One line for each reason why rows could not run, with the rows.
pub(super) fn could_not_run(rows: &[&Row], differences: Differences) -> Vec<String> {
    let missing: Vec<&Row> = rows.iter().copied().filter(|row| row.could_not_run.is_some()).collect();
    let by_reason =
        grouped(&missing, |row| (row.could_not_run.as_deref().unwrap_or_default(), &row.label.backing));
    by_reason
        .into_iter()
        .map(|((reason, backing), rows)| {
            let names: Vec<String> = rows.iter().map(|row| differences.name(row)).collect();
            format!("could not run: {backing} {}: {reason}", super::names::enumerate(&names))
        })
        .collect()
}

/// One line for each warning about the rows as a whole or about a column that is shown.
pub(super) fn notes(rows: &[&Row], shown: &[&str]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for warning in rows.iter().flat_map(|row| row.warnings.iter()) {
        let about_shown: Vec<&str> =
            warning.keys.iter().map(String::as_str).filter(|key| shown.contains(key)).collect();
        let note = match (warning.keys.is_empty(), about_shown.is_empty()) {
            (true, _) => format!("note: {}", warning.text),
            (false, false) => format!("note: {}: {}", about_shown.join(", "), warning.text),
            (false, true) => continue,
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}
