//! What the kernel's own account says of a run, in words.

use std::collections::BTreeMap;

use crate::record::Row;
use crate::tap::RangeCause;

/// Whether the two accounts agree, and who else took memory meanwhile.
pub(super) fn account(ran: &[&Row]) -> Vec<String> {
    let mut sentences = Vec::new();
    let compared: Vec<u64> = ran.iter().filter_map(|row| row.account_differences.get()).collect();
    let differed: u64 = compared.iter().sum();
    if differed > 0 {
        sentences.push(format!(
            "For {differed} operations the kernel announced something else than was expected: account_differences says where."
        ));
    } else if !compared.is_empty() {
        sentences.push(format!(
            "By its own account the kernel announced exactly what was expected, range for range, in each of the {} rows that can \
             be compared.",
            compared.len()
        ));
    }
    let mut others: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, totals) in ran.iter().filter_map(|row| row.kernel_causes.as_ref()).flatten() {
        if RangeCause::ALL.iter().any(|cause| cause.is_stranger() && cause.name() == name) {
            *others.entry(name).or_default() += totals.ranges;
        }
    }
    if !others.is_empty() {
        let each: Vec<String> = others.iter().map(|(name, ranges)| format!("{name} {ranges}")).collect();
        sentences.push(format!("Ranges that others announced meanwhile: {}.", each.join(", ")));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::super::fixture::row;
    use super::*;
    use crate::record::{CauseTotals, Measured};

    #[test]
    fn agreement_difference_and_strangers_are_told() {
        let mut exact = row("4k", "folio");
        exact.account_differences = Measured::of(0);
        let unknown = row("4k", "pmd");
        assert_eq!(account(&[&unknown]), Vec::<String>::new());
        assert!(account(&[&exact, &unknown])[0].contains("each of the 1 rows"));
        let mut wrong = row("4k", "kernel");
        wrong.account_differences = Measured::of(3);
        let totals = |ranges| CauseTotals { ranges, bytes: 4096 * ranges };
        wrong.kernel_causes =
            Measured::of([("kswapd".to_owned(), totals(7)), ("step".to_owned(), totals(9))].into());
        let said = account(&[&exact, &wrong]);
        assert!(said[0].starts_with("For 3 operations"), "{said:?}");
        assert_eq!(said[1], "Ranges that others announced meanwhile: kswapd 7.");
    }
}
