//! What stands above and below a case's table: what its rows share, and what they could not say.

use experiment::record::Row;
use program::output::visible;

use super::account;
use super::names::{Differences, grouped, which};
use program::units;

/// `sparse: pageout, slots of 2 MiB, 256 victims of 4 KiB`: what all rows of the case share. Whether a guest ran at all
/// comes first.
pub(super) fn heading(case: &str, rows: &[&Row], differences: Differences) -> String {
    let mut parts = Vec::new();
    let ran = rows.iter().filter(|row| row.could_not_run.is_none());
    for notice in ran.filter_map(|row| row.label.listener.notice()) {
        if !parts.iter().any(|known| known == notice) {
            parts.push(notice.to_owned());
        }
    }
    if let Some(row) = rows.first() {
        if !differences.reclaim {
            parts.push(row.label.tried.reclaim.to_string());
        }
        if !differences.granule {
            parts.push(format!("slots of {}", units::bytes(row.label.tried.granule.bytes())));
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
    Some(format!("{} of {}", units::counted(victims, "victim"), units::bytes(bytes / victims)))
}

/// One line for each reason why rows could not run, with the rows.
pub(super) fn could_not_run(rows: &[&Row], differences: Differences) -> Vec<String> {
    let missing: Vec<&Row> = rows.iter().copied().filter(|row| row.could_not_run.is_some()).collect();
    let by_reason = grouped(&missing, |row| {
        let reclaim = differences.reclaim.then_some(row.label.tried.reclaim);
        (row.could_not_run.as_deref().unwrap_or_default(), row.label.tried.backing, reclaim)
    });
    by_reason
        .into_iter()
        .map(|((reason, backing, reclaim), rows)| {
            let names: Vec<String> = rows.iter().map(|row| differences.name(row)).collect();
            let reclaim = reclaim.map(|reclaim| format!(" {reclaim}")).unwrap_or_default();
            let (names, reason) = (super::names::enumerate(&names), visible::item(reason));
            format!("could not run: {backing}{reclaim} {names}: {reason}")
        })
        .collect()
}

/// A line for each row for which the kernel announced something else than was expected.
pub(super) fn differing(rows: &[&Row], differences: Differences) -> Vec<String> {
    let line = |row: &&Row| {
        let name = which(&[row], rows, differences);
        let colon = if name.is_empty() { "" } else { ": " };
        let how = account::difference(row)?;
        Some(format!("! {name}{colon}THE KERNEL ANNOUNCED SOMETHING ELSE THAN WAS EXPECTED: {how}"))
    };
    rows.iter().filter_map(line).collect()
}

/// The meaning of the mark of disturbed rows, and the makers of the disturbance of each.
pub(super) fn disturbed(rows: &[&Row], differences: Differences) -> Option<String> {
    let disturbed: Vec<&Row> = rows.iter().copied().filter(|row| row.strangers() > 0).collect();
    let each: Vec<String> = grouped(&disturbed, |row| account::strangers(&[row]))
        .into_iter()
        .map(|(makers, some)| format!("{makers}{}", of_rows(&some, rows, differences)))
        .collect();
    (!each.is_empty()).then(|| {
        format!(
            "* others announced ranges of the same memory meanwhile, so many by cause: {}",
            each.join("; ")
        )
    })
}

/// ` [thp kernel/folio]`, ` [all rows]`; nothing where there is but one row.
fn of_rows(some: &[&Row], all: &[&Row], differences: Differences) -> String {
    if all.len() < 2 {
        return String::new();
    }
    match which(some, all, differences) {
        name if name.is_empty() => " [all rows]".to_owned(),
        name => format!(" [{name}]"),
    }
}

/// One line for each warning about rows as a whole or about a column, by the columns' titles, with the rows
/// that have it.
pub(super) fn notes(rows: &[&Row], columns: &[(&str, String)], differences: Differences) -> Vec<String> {
    let mut notes: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in rows {
        for warning in row.warnings.iter() {
            let mut titles: Vec<&str> = Vec::new();
            for (key, title) in columns {
                if warning.keys.iter().any(|known| known == key) && !titles.contains(&title.as_str()) {
                    titles.push(title);
                }
            }
            let note = match (warning.keys.is_empty(), titles.is_empty()) {
                (true, _) => format!("note: {}", visible::item(&warning.text)),
                (false, false) => format!("note: {}: {}", titles.join(", "), visible::item(&warning.text)),
                (false, true) => continue,
            };
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, of)) if of.iter().any(|known| std::ptr::eq(*known, *row)) => {}
                Some((_, of)) => of.push(row),
                None => notes.push((note, vec![row])),
            }
        }
    }
    notes.into_iter().map(|(note, of)| note + &of_rows(&of, rows, differences)).collect()
}
