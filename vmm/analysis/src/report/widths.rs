//! How wide the ranges of rows were, in words.

use experiment::choice::{PolicyChoice, Reclaim};
use experiment::record::Row;

use super::names::{Differences, enumerate};
use program::units;

/// A width as it is printed, whether it is exactly what had to go, and the rows that have it.
struct Step {
    times: String,
    exact: bool,
    names: Vec<String>,
}

/// ``invalidated exactly what had to go under `folio` (amplification 1.0), 257 times as much under `pmd` …``; nothing of
/// rows whose width was not measured.
pub(super) fn widths(rows: &[&Row], differences: Differences) -> Option<String> {
    let mut known: Vec<(f64, &Row)> = rows
        .iter()
        .filter(|row| !row.is_expected())
        .filter_map(|row| Some((row.amplification.get()?, *row)))
        .filter(|(amplification, _)| amplification.is_finite())
        .collect();
    known.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    // Policies whose widths print alike are named together.
    let mut steps: Vec<Step> = Vec::new();
    for (amplification, row) in known {
        let (times, exact, name) = (units::times(amplification), is_exact(row), differences.name(row));
        match steps.iter_mut().find(|step| step.times == times && step.exact == exact) {
            Some(step) => step.names.push(name),
            None => steps.push(Step { times, exact, names: vec![name] }),
        }
    }
    in_words(&steps)
}

/// Whether not a byte more went, nor less, than had to: where an address was asked for, and no account says otherwise.
fn is_exact(row: &Row) -> bool {
    let covered = row.invalidated_bytes.get().is_some() && row.invalidated_bytes == row.needed_bytes;
    // Without an address it is known only afterwards which bytes went, and which had to.
    let asked = row.label.tried.policy == PolicyChoice::Kernel || !row.expected_bytes.is_null();
    covered && asked && !row.differs()
}

fn in_words(steps: &[Step]) -> Option<String> {
    let (first, wider) = steps.split_first()?;
    let mut text = match first.exact {
        true => format!("invalidated exactly what had to go {} (amplification 1.0)", enumerate(&first.names)),
        false => format!("invalidated {} times what had to go {}", first.times, enumerate(&first.names)),
    };
    let as_much = if first.exact { " as much" } else { "" };
    // More than a handful of numbers is what the table is for.
    let many = wider.len() > 4;
    let shown = if many { &wider[wider.len() - 1..] } else { wider };
    for (index, step) in shown.iter().enumerate() {
        let glue = match (many, index + 1 == shown.len()) {
            (true, _) => " and up to",
            (false, true) => " and",
            (false, false) => ",",
        };
        text += &format!("{glue} {} times{as_much} {}", step.times, enumerate(&step.names));
    }
    Some(text)
}

/// What had to go where that is much more than what left: the mapping of a huge page goes whole before a part of
/// the page can. Swap in user space takes every translation twice, to protect the page and to drop it.
pub(super) fn split(rows: &[&Row]) -> Option<String> {
    let huge = |row: &Row| {
        let named =
            |name: &str| matches!(name, "thp" | "memfd:thp" | "hugetlb:2m") || name.starts_with("mthp");
        row.achieved
            .as_ref()
            .is_some_and(|achieved| achieved.iter().any(|(name, part)| named(name) && *part > 0.0))
    };
    let known = rows.iter().find_map(|row| {
        let times = if row.label.tried.reclaim == Reclaim::Uffd { 2.0 } else { 1.0 };
        Some((*row, row.needed_bytes.get()?, row.evicted_bytes.get()?, times))
    });
    let (_, needed, evicted, _) = known.filter(|&(row, needed, evicted, times)| {
        evicted > 0 && needed as f64 >= 2.0 * times * evicted as f64 && huge(row)
    })?;
    Some(format!(
        "what had to go was {} for {} that left, since a huge page's mapping goes whole before a part of it can",
        units::bytes(needed),
        units::bytes(evicted)
    ))
}
