//! What the rows say, in words: one paragraph, and nothing in it that a number of the record does not support.

use guest_mem::{Backing, PAGE_SIZE};

use experiment::choice::{Combination, RowLabel};
use experiment::record::{Row, RunRecord, saturating_sum};
use program::output::visible;

use super::account::{account, differences, not_measured};
use super::names::{Differences, enumerate, grouped, rows_in_words};
use super::swaps::{side_by_side, told_beside};
use super::widths::{split, widths};
use program::units::{self, Charset};

/// A hot loop that keeps this much of its rate has not noticed: two runs of the same differ by as much.
const UNNOTICED: f64 = 0.95;

/// One paragraph in plain English.
pub fn words(record: &RunRecord, charset: Charset) -> String {
    let ran: Vec<&Row> = record.rows.iter().filter(|row| row.could_not_run.is_none()).collect();
    // What makes the rest doubtful comes first.
    let mut sentences: Vec<String> = differences(&ran).into_iter().collect();
    let apart: Vec<&Row> = ran.iter().copied().filter(|row| !told_beside(row, &ran)).collect();
    for (_, rows) in
        grouped(&apart, |row| (&row.label.case, &row.label.tried.backing, &row.label.tried.reclaim))
    {
        sentences.extend(setting(&rows));
    }
    sentences.extend(side_by_side(&ran, charset));
    sentences.extend(zap_times(&ran, charset));
    sentences.extend(backings(&ran, charset));
    sentences.extend(shortfall(&ran));
    sentences.extend(not_measured(&ran));
    sentences.extend(account(&ran));
    sentences.extend(missing_rows(&record.rows));
    sentences.extend(unfinished(record));
    sentences.extend(integrity(&ran, ran.len() < record.rows.len()));
    sentences.join(" ")
}

/// The rows that differ in the policy, the granule and the zap alone: one sentence.
fn setting(rows: &[&Row]) -> Option<String> {
    let differences = Differences::among(rows);
    let widths = widths(rows, differences);
    let mut clauses = Vec::new();
    let none_left = |row: &&Row| evicts(row) && row.evicted_bytes.get() == Some(0);
    clauses.extend(rows.iter().all(none_left).then(|| "nothing left".to_owned()));
    clauses.extend(split(rows));
    clauses.extend(collateral(rows, differences));
    clauses.extend(hot_loop(rows, differences));
    let first = rows.first()?;
    let what = format!("{} in case `{}`", taking(first), first.label.case);
    match widths {
        Some(widths) => clauses.insert(0, format!("{what} {widths}")),
        // Without widths the sentence must still say what it speaks of.
        None if clauses.is_empty() => return None,
        None => clauses[0] = format!("{what}: {}", clauses[0]),
    }
    Some(clauses.join("; ") + ".")
}

/// `Swapping out 256 pages of 4k memory`.
fn taking(row: &Row) -> String {
    let verb = row.label.tried.reclaim.verb();
    let what = match (row.victims.get(), row.victim_bytes.get()) {
        (Some(victims), Some(bytes)) if victims > 0 => {
            let noun = match (victims.checked_mul(PAGE_SIZE) == Some(bytes), victims) {
                (true, 1) => "page".to_owned(),
                (true, _) => "pages".to_owned(),
                (false, 1) => format!("piece ({})", units::bytes(bytes)),
                (false, _) => format!("pieces ({} in all)", units::bytes(bytes)),
            };
            format!("{} {noun}", units::count(victims))
        }
        _ => "pages".to_owned(),
    };
    format!("{verb} {what} of {} memory", row.label.tried.backing)
}

/// The user of the memory.
fn user(rows: &[&Row]) -> &'static str {
    let guest = rows.iter().all(|row| row.label.listener.has_guest());
    if guest { "the guest" } else { "the worker threads" }
}

/// ``the guest then faulted 16,128 times on pages that had never left under `vm`, never under `folio` ``. Times and
/// not pages: one fault may bring the translations of several neighbours back.
fn collateral(rows: &[&Row], differences: Differences) -> Option<String> {
    let known = rows.iter().filter_map(|row| Some((row.collateral_faults.get()?, *row)));
    let (least, most) = extremes(known.map(|(faults, row)| (faults as f64, row)))?;
    if most.0 == 0.0 {
        return Some("no page that had stayed faulted again".to_owned());
    }
    let times = |faults: f64| match faults as u64 {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        faults => format!("{} times", units::count(faults)),
    };
    let faulted = format!("{} then faulted {} on pages that had never left", user(rows), times(most.0));
    if least.0 == most.0 {
        return Some(faulted);
    }
    Some(format!("{faulted} {}, {} {}", differences.name(most.1), times(least.0), differences.name(least.1)))
}

/// ``the hot loop fell to 43 % of its undisturbed rate under `vm` and kept 98 % under `folio` ``.
fn hot_loop(rows: &[&Row], differences: Differences) -> Option<String> {
    let known = rows.iter().filter_map(|row| Some((row.hot_loop_ratio()?, *row)));
    let (worst, best) = extremes(known)?;
    let name = |row| differences.name(row);
    if worst.0 >= UNNOTICED {
        return Some(format!(
            "the hot loop kept at least {} of its undisturbed rate",
            units::percent(worst.0)
        ));
    }
    let fell = format!("the hot loop fell to {} of its undisturbed rate", units::percent(worst.0));
    if worst.0 == best.0 {
        return Some(fell);
    }
    // A loop that all but kept its rate did not fall.
    let verb = if best.0 >= UNNOTICED { "kept" } else { "to" };
    Some(format!("{fell} {} and {verb} {} {}", name(worst.1), units::percent(best.0), name(best.1)))
}

/// A value, and the row that has it.
type Of<'a> = (f64, &'a Row);

/// The smallest and the largest of the finite ones, the earliest of equals; `None` if there is none.
fn extremes<'a>(values: impl Iterator<Item = Of<'a>>) -> Option<(Of<'a>, Of<'a>)> {
    values.filter(|(value, _)| value.is_finite()).fold(None, |found, value| {
        let (least, most) = found.unwrap_or((value, value));
        Some((if value.0 < least.0 { value } else { least }, if value.0 > most.0 { value } else { most }))
    })
}

/// ``One zap took 25 µs under `folio` and 3.2 ms under `vm` (medians; case `sparse` on 4k).``, of the first case
/// and backing that has two to compare.
fn zap_times(rows: &[&Row], charset: Charset) -> Option<String> {
    grouped(rows, |row| (&row.label.case, &row.label.tried.backing, &row.label.tried.reclaim))
        .iter()
        .find_map(|(_, rows)| {
            let differences = Differences::among(rows);
            let medians = rows.iter().filter_map(|row| Some((row.zap_ns.get()?.p50? as f64, *row)));
            let ((least, quick), (most, slow)) = extremes(medians)?;
            if std::ptr::eq(quick, slow) {
                return None;
            }
            let time = |nanoseconds| units::nanoseconds(nanoseconds, charset);
            let (case, backing) = (&quick.label.case, &quick.label.tried.backing);
            Some(format!(
                "Dropping one range took {} {} and {} {} (medians; case `{case}` on {backing}).",
                time(least),
                differences.name(quick),
                time(most),
                differences.name(slow),
            ))
        })
}

/// ``A refault stopped the guest for 8 µs on 4k and 120 µs on thp (medians; case `sparse` under `kernel`).``, of
/// the first case and policy that has two backings to compare.
fn backings(rows: &[&Row], charset: Charset) -> Option<String> {
    // Any backing will do, if it is the same in all of them.
    let same_but_backing = |row: &Row| {
        let tried = Combination { backing: Backing::Base4k, ..row.label.tried };
        RowLabel { tried, ..row.label.clone() }
    };
    grouped(rows, same_but_backing).iter().find_map(|(label, rows)| {
        let medians: Vec<String> = rows
            .iter()
            .filter_map(|row| {
                let time = units::nanoseconds(row.refault_ns.get()?.p50? as f64, charset);
                Some(format!("for {time} on {}", row.label.tried.backing))
            })
            .collect();
        let (case, policy) = (&label.case, &label.tried.policy);
        (medians.len() > 1).then(|| {
            let medians = enumerate(&medians);
            let stopped = if user(rows) == "the guest" { "the guest" } else { "a worker thread" };
            format!("A refault stopped {stopped} {medians} (medians; case `{case}` under `{policy}`).")
        })
    })
}

/// Operations that are meant to take every byte asked for.
fn evicts(row: &Row) -> bool {
    row.label.tried.reclaim.evicts()
}

fn shortfall(rows: &[&Row]) -> Option<String> {
    let short: Vec<(f64, &Row)> = rows
        .iter()
        .filter(|row| evicts(row))
        .filter_map(|row| Some((row.evicted_bytes.get()?, row.victim_bytes.get()?, *row)))
        .filter(|(gone, asked, _)| gone < asked)
        .map(|(gone, asked, row)| (gone as f64 / asked as f64, row))
        .collect();
    let ((_, row), _) = extremes(short.iter().copied())?;
    let (gone, asked) = (row.evicted_bytes.get()?, row.victim_bytes.get()?);
    let (backing, policy, case) = (&row.label.tried.backing, &row.label.tried.policy, &row.label.case);
    let rows = rows_in_words(short.len());
    let (stayed, of) = (units::bytes(asked - gone), units::bytes(asked));
    // To three digits a little less than all is all.
    let stayed = if stayed == of && gone > 0 { format!("all but {}", units::bytes(gone)) } else { stayed };
    Some(format!(
        "In {rows} less left than was asked for: at worst {stayed} of {of} stayed ({backing} under `{policy}` in case `{case}`)."
    ))
}

fn missing_rows(rows: &[Row]) -> Option<String> {
    let missing: Vec<&Row> = rows.iter().filter(|row| row.could_not_run.is_some()).collect();
    let reasons = grouped(&missing, |row| row.could_not_run.as_deref().unwrap_or_default());
    let (first, _) = reasons.first()?;
    let others = match reasons.len() - 1 {
        0 => String::new(),
        1 => ", and one other reason".to_owned(),
        others => format!(", and {others} other reasons"),
    };
    let first = visible::item(first.trim_end_matches('.'));
    let rows = units::counted(rows.len() as u64, "row");
    Some(format!("{} of {rows} could not run: {first}{others}.", missing.len()))
}

/// That there are rows which were never tried.
fn unfinished(record: &RunRecord) -> Option<String> {
    let ended = record.ended.as_ref().filter(|ended| *ended != "complete")?;
    let rows = match record.rows.len() as u64 {
        0 => "no row was made".to_owned(),
        rows => format!(
            "the rows after {} were not made",
            if rows == 1 { "the first".to_owned() } else { format!("the first {rows}") }
        ),
    };
    Some(format!(
        "The run did not come to its end, and {rows}: {}.",
        visible::item(ended.trim_end_matches('.'))
    ))
}

/// Whether every page came back, in the rows that ran: `others` did not.
fn integrity(rows: &[&Row], others: bool) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let wrong = saturating_sum(rows.iter().filter_map(|row| row.integrity_errors.get()));
    let bad = rows.iter().filter(|row| row.integrity_errors.get().is_some_and(|errors| errors > 0)).count();
    let unverified = rows.iter().filter(|row| row.integrity_errors.is_null()).count();
    let rows = units::counted(rows.len() as u64, "row");
    if bad > 0 {
        let (rows, pages) = (rows.to_uppercase(), units::counted(wrong, "page"));
        return Some(format!("IN {bad} OF {rows} {pages} CAME BACK WRONG: do not trust this run."));
    }
    if unverified > 0 {
        return Some(format!("The memory of {unverified} of {rows} could not be verified."));
    }
    let which = if others { "every row that came to its end" } else { "every row" };
    Some(format!("Every page of {which} came back as it should."))
}

#[cfg(test)]
mod tests;
