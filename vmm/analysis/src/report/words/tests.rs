use super::*;
use crate::report::fixture::{row, run, wider};
use experiment::choice::{Granule, Listener, Reclaim};
use experiment::record::{Measured, Row};

fn said(rows: Vec<Row>) -> String {
    words(&run(rows), Charset::Utf8)
}

fn touched(mut row: Row, during: f64) -> Row {
    row.guest_touches_during = Measured::of(during);
    row
}

fn collaterals(mut row: Row, faults: u64) -> Row {
    row.collateral_faults = Measured::of(faults);
    row
}

#[test]
fn widths_are_compared_with_what_had_to_go() {
    let text = said(vec![
        row("4k", "folio"),
        wider(row("4k", "pmd"), 256.9),
        row("4k", "modern"),
        wider(row("4k", "vm"), 16_384.0),
    ]);
    assert!(
        text.starts_with(
            "Swapping out 256 pages of 4k memory in case `sparse` invalidated exactly what had to go under `folio` and \
             `modern` (amplification 1.0), 257 times as much under `pmd` and 16,384 times as much under `vm`;"
        ),
        "{text}"
    );
}

#[test]
fn a_narrowest_that_is_not_exact_is_not_called_so() {
    let text = said(vec![wider(row("4k", "pmd"), 256.9), wider(row("4k", "vm"), 512.0)]);
    assert!(
        text.contains("invalidated 257 times what had to go under `pmd` and 512 times under `vm`"),
        "{text}"
    );
    assert!(!text.contains("exactly"), "{text}");
}

#[test]
fn many_widths_are_cut_to_the_ends() {
    let granules = (0..8).map(|step| {
        let mut row = wider(row("4k", "slot"), f64::from(16 << step));
        row.label.tried.granule = Granule::new((64 << 10) << step).unwrap();
        row
    });
    let text = said(granules.collect());
    assert!(
        text.contains("invalidated 16.0 times what had to go with slots of 64 KiB and up to 2,048 times with slots of 8 MiB"),
        "{text}"
    );
}

#[test]
fn collateral_and_hot_loop_name_the_extremes() {
    let text = said(vec![
        touched(row("4k", "kernel"), 1.96e6),
        touched(row("4k", "folio"), 1.5e6),
        collaterals(touched(row("4k", "vm"), 0.86e6), 16_128),
    ]);
    assert!(
        text.contains("faulted 16,128 times on pages that had never left under `vm`, never under `kernel`"),
        "{text}"
    );
    let fell = "the hot loop fell to 43 % of its undisturbed rate under `vm` and kept 98 % under `kernel`";
    assert!(text.contains(fell), "{text}");
    let text = said(vec![touched(row("4k", "folio"), 1.5e6), touched(row("4k", "vm"), 0.86e6)]);
    assert!(
        text.contains("fell to 43 % of its undisturbed rate under `vm` and to 75 % under `folio`"),
        "{text}"
    );
    assert!(text.contains("; no page that had stayed faulted again;"), "{text}");
    let text = said(vec![collaterals(row("4k", "folio"), 1)]);
    assert!(
        text.contains("faulted once on pages that had never left; the hot loop fell to 50 % of"),
        "{text}"
    );
    let text = said(vec![touched(row("4k", "folio"), 1.94e6)]);
    assert!(text.contains("kept at least 97 % of its undisturbed rate"), "{text}");
}

#[test]
fn times_are_medians_and_say_of_what() {
    let slow = |mut row: Row, p50| {
        let mut times = row.zap_ns.get().unwrap();
        times.p50 = Some(p50);
        row.zap_ns = Measured::of(times);
        row
    };
    let text = said(vec![row("4k", "folio"), slow(row("4k", "vm"), 3_200_000)]);
    let expected = "took 25 µs under `folio` and 3.2 ms under `vm` (medians; case `sparse` on 4k).";
    assert!(text.contains(expected), "{text}");
    let mut huge = row("thp", "folio");
    huge.refault_ns = slow(row("thp", "folio"), 120_000).zap_ns;
    let text = said(vec![row("4k", "folio"), huge]);
    let expected =
        "stopped the guest for 8 µs on 4k and 120 µs on thp (medians; case `sparse` under `folio`).";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn what_did_not_leave_is_said() {
    let mut short = row("thp", "folio");
    short.evicted_bytes = Measured::of(512 << 10);
    let text = said(vec![row("4k", "folio"), short.clone()]);
    let expected = "In one row less left than was asked for: at worst 512 KiB of 1 MiB stayed (thp under `folio` in case `sparse`).";
    assert!(text.contains(expected), "{text}");
    short.victim_bytes = Measured::of(195 << 20);
    for (gone, told) in [
        ((195 << 20) - 4096, "at worst 4 KiB of 195 MiB stayed"),
        (4096, "at worst all but 4 KiB of 195 MiB stayed"),
        (0, "at worst 195 MiB of 195 MiB stayed"),
    ] {
        short.evicted_bytes = Measured::of(gone);
        let text = said(vec![short.clone()]);
        assert!(text.contains(told), "{told} in {text}");
    }
    short.label.tried.reclaim = Reclaim::By(guest_mem::Operation::Cold);
    assert!(!said(vec![short]).contains("less left"), "MADV_COLD takes nothing");
}

#[test]
fn rows_that_could_not_run_are_counted_and_compared_with_nothing() {
    let missing = Row::could_not_run(row("thp", "vm").label, "there is no swap; add --zram 1g");
    let text = said(vec![row("4k", "folio"), missing.clone()]);
    assert!(text.contains("1 of 2 rows could not run: there is no swap; add --zram 1g."), "{text}");
    assert!(!text.contains("`vm`"), "{text}");
    assert_eq!(said(vec![missing]), "1 of 1 row could not run: there is no swap; add --zram 1g.");
}

#[test]
fn integrity_is_the_last_word() {
    assert!(said(vec![row("4k", "folio")]).ends_with("Every page of every row came back as it should."));
    // A row that did not come to its end may have lost a page.
    let missing = Row::could_not_run(row("4k", "vm").label, "failed: a page cannot be brought back");
    let text = said(vec![row("4k", "folio"), missing]);
    assert!(text.ends_with("Every page of every row that came to its end came back as it should."), "{text}");
    let mut bad = row("4k", "folio");
    bad.integrity_errors = Measured::of(3);
    assert!(
        said(vec![bad, row("4k", "vm")])
            .ends_with("IN 1 OF 2 ROWS 3 pages CAME BACK WRONG: do not trust this run.")
    );
    let mut unknown = row("4k", "folio");
    unknown.integrity_errors = unknown.warnings.not_measured("integrity_errors", "the guest died");
    assert!(said(vec![unknown]).ends_with("The memory of 1 of 1 row could not be verified."));
}

#[test]
fn numbers_that_are_missing_are_passed_over_in_silence() {
    let bare = || {
        let mut row = Row::could_not_run(row("4k", "folio").label, "");
        row.could_not_run = None;
        row
    };
    assert_eq!(said(vec![bare(), bare()]), "The memory of 2 of 2 rows could not be verified.");
    assert_eq!(said(Vec::new()), "");
    let mut still = row("4k", "folio");
    (still.guest_touches_before, still.victims, still.victim_bytes) =
        (Measured::of(0.0), Measured::of(0), Measured::of(0));
    let text = said(vec![still]);
    assert!(!text.contains("hot loop") && !text.contains("NaN") && !text.contains("inf"), "{text}");
    assert!(text.starts_with("Swapping out pages of 4k memory"), "{text}");
}

#[test]
fn what_a_huge_page_takes_along_is_said_only_where_it_does() {
    let mut row = row("thp", "kernel");
    row.needed_bytes = Measured::of(65 << 20);
    row.evicted_bytes = Measured::of(1 << 20);
    let text = said(vec![row.clone()]);
    assert!(text.contains("what had to go was 65 MiB for 1 MiB that left"), "{text}");
    row.needed_bytes = Measured::of(1 << 20);
    assert!(!said(vec![row]).contains("what had to go was"));
}

#[test]
fn nobody_speaks_of_a_guest_where_none_ran() {
    let soft = |backing, collateral, refault| {
        let mut row = collaterals(row(backing, "folio"), collateral);
        row.label.listener = Listener::SoftMmu;
        let mut times = row.refault_ns.get().unwrap();
        times.p50 = Some(refault);
        row.refault_ns = Measured::of(times);
        row
    };
    let text = said(vec![soft("4k", 7, 500), soft("thp", 9, 700)]);
    assert!(text.contains("the worker threads then faulted 7 times"), "{text}");
    assert!(text.contains("A refault stopped a worker thread for"), "{text}");
    assert!(!text.contains("guest"), "{text}");
}

/// 1.004 is printed as 1.0, and is not exact.
#[test]
fn exactly_is_said_of_equal_bytes_alone() {
    let mut close = wider(row("4k", "folio"), 1.004);
    assert!(!said(vec![close.clone()]).contains("exactly"));
    close.invalidated_bytes = close.needed_bytes;
    assert!(said(vec![close]).contains("exactly"));
}

#[test]
fn where_nothing_left_that_is_said() {
    let mut none = row("thp", "kernel");
    none.label.tried.reclaim = Reclaim::Uffd;
    none.evicted_bytes = Measured::of(0);
    none.amplification = none.warnings.not_measured("amplification", "nothing had to be invalidated");
    let text = said(vec![none]);
    assert!(
        text.contains("of thp memory in case `sparse`: nothing left;") && !text.contains("exactly"),
        "{text}"
    );
}

/// What did not leave stayed for another reason than a huge page's mapping.
#[test]
fn small_pages_that_stayed_are_no_huge_pages_mapping() {
    let mut stayed = row("4k", "folio");
    stayed.evicted_bytes = Measured::of(256 << 10);
    assert!(!said(vec![stayed]).contains("huge page"));
}
