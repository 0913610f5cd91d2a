//! Two swaps side by side, in words: rows that differ in nothing but the swap, the kernel's or this process's.

use guest_mem::Operation;

use experiment::choice::Reclaim;
use experiment::record::Row;

use super::names::{enumerate, grouped};
use program::units::{self, Charset};

/// The kernel's swap, and that of this process.
const KERNELS: Reclaim = Reclaim::By(Operation::PageOut);
const OURS: Reclaim = Reclaim::Uffd;

/// Whether a row's story is that of another of these, told by [`side_by_side`].
pub(super) fn told_beside(row: &Row, rows: &[&Row]) -> bool {
    row.label.tried.reclaim == OURS && rows.iter().any(|other| beside(other, row))
}

fn beside(kernels: &Row, ours: &Row) -> bool {
    let mut label = ours.label.clone();
    label.tried.reclaim = KERNELS;
    kernels.label == label
}

/// ``Swap in user space, next to the kernel's: 2.0 ranges for each page in place of 1.0, …``: for each case and backing,
/// the first pair of rows that can be compared.
pub(super) fn side_by_side(rows: &[&Row], charset: Charset) -> Vec<String> {
    let ours: Vec<&Row> = rows.iter().copied().filter(|row| row.label.tried.reclaim == OURS).collect();
    let compared = grouped(&ours, |row| (&row.label.case, &row.label.tried.backing));
    let pairs = compared.iter().filter_map(|(_, ours)| {
        ours.iter().find_map(|ours| Some((*rows.iter().find(|row| beside(row, ours))?, *ours)))
    });
    pairs.filter_map(|(kernels, ours)| sentence(kernels, ours, charset)).collect()
}

fn sentence(kernels: &Row, ours: &Row, charset: Charset) -> Option<String> {
    let both = |of: &dyn Fn(&Row) -> Option<String>| Some((of(ours)?, of(kernels)?));
    let in_place_of =
        |what: &str, (ours, kernels): (String, String)| format!("{what} {ours} in place of {kernels}");
    let mut clauses = Vec::new();
    // What was only expected of either is no comparison.
    let ranges = |row: &Row| row.invalidations.get().filter(|_| !row.is_expected()).map(units::count);
    clauses.extend(both(&ranges).map(|pair| in_place_of("ranges", pair)));
    clauses.extend(both(&rate).map(|pair| in_place_of("out at", pair)));
    let stall = |row: &Row| Some(units::nanoseconds(row.refault_ns.get()?.p50? as f64, charset));
    clauses.extend(both(&stall).map(|pair| in_place_of("a refault of", pair)));
    clauses
        .extend(both(&|row| row.refaults.get().map(units::count)).map(|pair| in_place_of("refaults", pair)));
    let huge = ours.uffd_huge_returns.get().filter(|huge| *huge > 0);
    clauses.extend(huge.map(|huge| format!("{} of 2 MiB came back as one huge page", units::count(huge))));
    let (case, backing, policy) = (&ours.label.case, &ours.label.tried.backing, &ours.label.tried.policy);
    (!clauses.is_empty()).then(|| {
        let clauses = enumerate(&clauses);
        format!("Swap in user space next to the kernel's (case `{case}` on {backing} under `{policy}`): {clauses}.")
    })
}

/// `412 MiB/s`.
fn rate(row: &Row) -> Option<String> {
    row.evicted_bytes_per_second.get().map(|rate| format!("{}/s", units::bytes(rate as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::row;
    use experiment::record::Measured;

    fn swapped_by(who: Reclaim, ranges: u64, rate: f64) -> Row {
        let mut row = row("4k", "kernel");
        row.label.tried.reclaim = who;
        row.invalidations = Measured::of(ranges);
        row.evicted_bytes_per_second = Measured::of(rate * 1_048_576.0);
        row
    }

    #[test]
    fn two_swaps_are_compared_in_one_sentence() {
        let (kernels, mut ours) = (swapped_by(KERNELS, 256, 400.0), swapped_by(OURS, 512, 100.0));
        ours.uffd_huge_returns = Measured::of(0);
        let said = side_by_side(&[&kernels, &ours], Charset::Utf8);
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!(
            said,
            "Swap in user space next to the kernel's (case `sparse` on 4k under `kernel`): ranges 512 in place of 256, \
             out at 100 MiB/s in place of 400 MiB/s, a refault of 8 µs in place of 8 µs and refaults 256 in place of 256."
        );
        assert!(told_beside(&ours, &[&kernels, &ours]));
        ours.uffd_huge_returns = Measured::of(4);
        let said = side_by_side(&[&kernels, &ours], Charset::Utf8);
        assert!(said[0].ends_with("and 4 of 2 MiB came back as one huge page."), "{said:?}");
    }

    #[test]
    fn a_swap_alone_is_compared_with_nothing() {
        let ours = swapped_by(OURS, 512, 100.0);
        assert_eq!(side_by_side(&[&ours], Charset::Utf8), Vec::<String>::new());
        assert!(!told_beside(&ours, &[&ours]));
    }
}
