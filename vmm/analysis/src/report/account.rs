//! What the kernel's own account says of rows, in words.

use std::collections::BTreeMap;

use experiment::record::Row;
use notifier_bridge::By;

use super::names::rows_in_words;
use program::units;

/// How many rows a sentence names before it counts the rest.
const NAMED: usize = 3;

/// What the kernel announced in place of what was expected: `32 ranges of 35.3 MiB in place of 32 of 128 KiB, over 32
/// operations`; `None` where it announced what was expected, or that is not known.
pub(super) fn difference(row: &Row) -> Option<String> {
    let operations = row.account_differences.get().filter(|_| row.differs())?;
    let ranges = |ranges: Option<u64>, bytes: Option<u64>, noun: &str| match (ranges, bytes) {
        (Some(ranges), Some(bytes)) => format!("{}{noun} of {}", units::count(ranges), units::bytes(bytes)),
        _ => "something".to_owned(),
    };
    let noun = if row.kernel_ranges.get() == Some(1) { " range" } else { " ranges" };
    let found = ranges(row.kernel_ranges.get(), row.kernel_bytes.get(), noun);
    let expected = ranges(row.expected_ranges.get(), row.expected_bytes.get(), "");
    let over = units::counted(operations, "operation");
    let expected = if expected == "something" { "something else".to_owned() } else { expected };
    Some(format!("{found} in place of {expected}, over {over}"))
}

/// Ranges of other makers than the experiment, by cause: `kswapd 7, migration 29,068`.
pub(super) fn strangers(rows: &[&Row]) -> String {
    let mut others: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        let told: Vec<(&str, u64)> = row
            .kernel_causes
            .as_ref()
            .into_iter()
            .flatten()
            .filter(|(name, _)| is_stranger(name))
            .map(|(name, totals)| (name.as_str(), totals.ranges))
            .collect();
        let told =
            if told.is_empty() && row.strangers() > 0 { vec![("unknown", row.strangers())] } else { told };
        for (name, ranges) in told {
            let sum = others.entry(name).or_default();
            *sum = sum.saturating_add(ranges);
        }
    }
    let each: Vec<String> =
        others.iter().map(|(name, ranges)| format!("{name} {}", units::count(*ranges))).collect();
    each.join(", ")
}

fn is_stranger(name: &str) -> bool {
    name.parse::<By>().is_ok_and(|cause| cause.is_stranger() || cause == By::Unattributed)
}

/// Where the kernel announced something else than was expected. It stands before everything else.
pub(super) fn differences(ran: &[&Row]) -> Option<String> {
    let differing: Vec<&Row> = ran.iter().copied().filter(|row| row.differs()).collect();
    let named: Vec<String> = differing
        .iter()
        .take(NAMED)
        .filter_map(|row| {
            let label = &row.label;
            let (case, backing, policy) = (&label.case, &label.tried.backing, &label.tried.policy);
            Some(format!("{} (case `{case}` on {backing} under `{policy}`)", difference(row)?))
        })
        .collect();
    let rest = match differing.len().saturating_sub(NAMED) {
        0 => String::new(),
        1 => "; and in 1 more row".to_owned(),
        more => format!("; and in {more} more rows"),
    };
    (!named.is_empty()).then(|| {
        format!("THE KERNEL ANNOUNCED SOMETHING ELSE THAN WAS EXPECTED: {}{rest}.", named.join("; "))
    })
}

/// Whether the two accounts agree, where they can be compared, and which others took memory meanwhile.
pub(super) fn account(ran: &[&Row]) -> Vec<String> {
    let mut sentences = Vec::new();
    let compared: Vec<&Row> = ran.iter().copied().filter(|row| !row.account_differences.is_null()).collect();
    let agreeing: Vec<&Row> = compared.iter().copied().filter(|row| !row.differs()).collect();
    let exact = agreeing.iter().filter(|row| is_exact(row)).count();
    sentences.extend(agreement(exact, agreeing.len(), compared.len()));
    let disturbed: Vec<&Row> = ran.iter().copied().filter(|row| row.strangers() > 0).collect();
    if !disturbed.is_empty() {
        let (some, others) = (disturbed.len(), strangers(&disturbed));
        let all = units::counted(ran.len() as u64, "row");
        sentences.push(format!(
            "Others announced ranges of the same memory meanwhile, in {some} of {all}, which are marked with *: {others}."
        ));
    }
    sentences
}

/// `exact` of `agreeing` rows have the very numbers that were expected, of all that were `compared`.
fn agreement(exact: usize, agreeing: usize, compared: usize) -> Option<String> {
    const MORE: &str = "more inside the same blocks of 2 MiB, as where it splits a huge page or takes pages that had come \
                        back";
    let of = |some: usize| match (some, compared) {
        (1, 1) => "the one row that can be compared".to_owned(),
        (some, all) if some == all => format!("each of the {all} rows that can be compared"),
        (some, all) => format!("{some} of the {all} rows that can be compared"),
    };
    let more = match agreeing.checked_sub(exact)? {
        0 => String::new(),
        1 => format!("; in one it announced {MORE}"),
        rows => format!("; in {rows} it announced {MORE}"),
    };
    match (exact, agreeing) {
        (0, 0) => None,
        (0, agreeing) => Some(format!(
            "By its own account the kernel announced what was expected in {}, and {MORE}.",
            of(agreeing)
        )),
        (exact, _) => Some(format!(
            "By its own account the kernel announced exactly what was expected, range for range, in {}{more}.",
            of(exact)
        )),
    }
}

/// Whether the kernel announced as many ranges and bytes as were expected.
fn is_exact(row: &Row) -> bool {
    (row.kernel_ranges, row.kernel_bytes) == (row.expected_ranges, row.expected_bytes)
}

/// What the rows that were only expected of the kernel lack, in one sentence.
pub(super) fn not_measured(ran: &[&Row]) -> Option<String> {
    let expected: Vec<&Row> = ran.iter().copied().filter(|row| row.is_expected()).collect();
    let first = expected.first()?;
    let why = first.warnings.about("invalidations").filter(|warning| !warning.text.is_empty());
    let why = why.map(|warning| format!(" ({})", warning.text)).unwrap_or_default();
    let rows = rows_in_words(expected.len());
    Some(format!("What the kernel announced under `kernel` was not measured in {rows}{why}."))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{announcing, row};
    use super::*;
    use experiment::events::Ranges;
    use experiment::record::Measured;

    #[test]
    fn agreement_is_told_as_far_as_it_goes() {
        let compared = |policy, ranges, bytes| announcing(row("4k", policy), ranges, bytes, 0);
        let (exact, more) = (compared("folio", 256, 1 << 20), compared("kernel", 288, 65 << 20));
        assert_eq!(account(&[&row("4k", "pmd")]), Vec::<String>::new());
        let said = |rows: &[&Row]| account(rows).concat();
        assert!(
            said(&[&exact, &row("4k", "pmd")])
                .ends_with("range for range, in the one row that can be compared.")
        );
        assert!(said(&[&exact, &exact]).contains("range for range, in each of the 2 rows"));
        assert!(
            said(&[&exact, &more])
                .contains("in 1 of the 2 rows that can be compared; in one it announced more")
        );
        let told = said(&[&more]);
        assert!(told.contains("what was expected in the one row") && !told.contains("exactly"), "{told}");
    }

    #[test]
    fn a_difference_is_told_with_both_numbers() {
        let wide = announcing(row("4k", "kernel"), 32, 37_015_552, 32);
        let said = differences(&[&row("4k", "folio"), &wide]).unwrap();
        assert_eq!(
            said,
            "THE KERNEL ANNOUNCED SOMETHING ELSE THAN WAS EXPECTED: 32 ranges of 35.3 MiB in place of 256 of 1 MiB, over \
             32 operations (case `sparse` on 4k under `kernel`)."
        );
        assert_eq!(differences(&[&row("4k", "folio")]), None);
        let many = differences(&[&wide; 5]).unwrap();
        assert!(many.ends_with("; and in 2 more rows."), "{many}");
        assert_eq!(account(&[&wide]), Vec::<String>::new(), "and no word of agreement");
    }

    #[test]
    fn strangers_are_told_by_cause_and_by_rows() {
        let mut row = row("4k", "kernel");
        let totals = |ranges| Ranges { ranges, bytes: 4096 * ranges };
        row.kernel_causes = Measured::of(
            [
                ("kswapd".to_owned(), totals(7)),
                ("step".to_owned(), totals(9)),
                ("unattributed".to_owned(), totals(2)),
            ]
            .into(),
        );
        row.stranger_ranges = Measured::of(7);
        let said = account(&[&row, &super::super::fixture::row("4k", "folio")]).concat();
        assert!(
            said.contains("in 1 of 2 rows, which are marked with *: kswapd 7, unattributed 2."),
            "{said}"
        );
    }
}
