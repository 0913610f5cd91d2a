use super::*;
use crate::report::fixture::{announcing, expected, row, run, wider};
use experiment::choice::{Granule, Listener, Zap};
use experiment::events::Ranges;

#[test]
fn a_case_is_one_table_with_what_its_rows_share_above_it() {
    let run = run(vec![row("4k", "folio"), row("thp", "vm")]);
    let text = table(&run, Charset::Utf8);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "sparse: pageout, slots of 2 MiB, 256 victims of 4 KiB");
    assert!(lines.iter().all(|line| line.chars().count() <= 140), "{text}");
    let folio = lines.iter().find(|line| line.contains("folio")).unwrap();
    for cell in ["4k", "1 MiB", "256", "1.0", "256 / 0", "25 µs", "8 µs / 40 µs", "50 %"] {
        assert!(folio.contains(cell), "{cell} in {folio}");
    }
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn only_what_differs_has_a_column() {
    let (mut a, mut b) = (row("4k", "slot"), row("4k", "slot"));
    assert!(!table(&run(vec![a.clone(), b.clone()]), Charset::Utf8).contains("slots\n"));
    a.label.tried.granule = Granule::new(64 << 10).unwrap();
    b.label.tried.zap = Zap::Memslot;
    let text = table(&run(vec![a.clone(), b.clone()]), Charset::Utf8);
    assert!(text.contains("64 KiB") && !text.contains("memslot"), "{text}");
    b.label.tried.granule = a.label.tried.granule;
    let text = table(&run(vec![a, b]), Charset::Utf8);
    assert!(
        text.contains("slots of 64 KiB") && text.contains("memslot") && text.contains("protect"),
        "{text}"
    );
}

#[test]
fn a_row_that_could_not_run_gives_its_reason() {
    let missing = |policy| Row::could_not_run(row("thp", policy).label, "there is no swap; add --zram 1g");
    let text = table(&run(vec![row("4k", "folio"), missing("folio"), missing("vm")]), Charset::Utf8);
    assert!(
        text.contains("could not run: thp under `folio` and `vm`: there is no swap; add --zram 1g"),
        "{text}"
    );
    assert_eq!(text.matches("thp").count(), 1);
    let none = table(&run(vec![missing("vm")]), Charset::Utf8);
    assert_eq!(none.lines().count(), 2, "{none}");
}

#[test]
fn null_is_a_dash_and_zero_a_zero() {
    let mut row = row("4k", "folio");
    row.refaults = row.warnings.not_measured("refaults", "the guest died");
    row.lost_events = row.warnings.not_measured("lost_events", "the tap was off");
    row.collateral_faults = Measured::of(0);
    let text = table(&run(vec![row, self::row("thp", "vm")]), Charset::Ascii);
    let cells: Vec<&str> =
        text.lines().find(|line| line.contains("folio")).unwrap().split_whitespace().collect();
    assert!(cells.contains(&"-") && cells.contains(&"0"), "{text}");
    assert!(text.contains("note: refaults: the guest died [4k"), "{text}");
    assert!(!text.contains("lost_events"), "no column shows it: {text}");
    assert!(text.is_ascii(), "{text}");
}

/// As in a replay: why is told once, with the columns that it would have been in.
#[test]
fn a_column_that_no_row_has_is_left_out() {
    let rows: Vec<Row> = ["folio", "pmd", "vm"]
        .map(|policy| {
            let mut row = row("4k", policy);
            row.zap_ns = row.warnings.not_measured("zap_ns", "a replay has no clock");
            row.reclaim_ns = row.warnings.not_measured("reclaim_ns", "a replay has no clock");
            row
        })
        .to_vec();
    let text = table(&run(rows), Charset::Ascii);
    assert!(!text.lines().any(|line| line.contains(" - ")), "{text}");
    assert!(text.contains("note: zap p50, reclaim p50: a replay has no clock [all rows]\n"), "{text}");
    assert!(text.contains("8 us / 40 us"), "what is known stays: {text}");
}

#[test]
fn a_label_that_was_not_earned_says_so() {
    let mut row = row("thp", "folio");
    row.achieved = Measured::of([("thp".to_owned(), 0.62), ("4k".to_owned(), 0.38)].into());
    assert!(table(&run(vec![row.clone()]), Charset::Utf8).contains("thp (62 %)"));
    row.achieved = Measured::of([("4k".to_owned(), 1.0)].into());
    assert!(table(&run(vec![row]), Charset::Utf8).contains("thp (0 %)"));
}

#[test]
fn no_rows_are_no_table() {
    assert_eq!(table(&run(Vec::new()), Charset::Utf8), "");
}

#[test]
fn the_widest_row_still_fits_a_wide_terminal() {
    let mut wide = wider(row("mthp:512k", "modern"), 16_384.0);
    wide.achieved = Measured::of([("mthp:512k".to_owned(), 0.62)].into());
    (wide.victims, wide.refaults, wide.collateral_faults) =
        (Measured::of(131_072), Measured::of(131_072), Measured::of(131_072));
    (wide.sptes_zapped_4k, wide.sptes_zapped_2m) = (Measured::of(131_072), Measured::of(1_024));
    let mut times = wide.zap_ns.get().unwrap();
    (times.p50, times.p99) = (Some(123_456), Some(1_234_567));
    (wide.zap_ns, wide.reclaim_ns, wide.refault_ns) =
        (Measured::of(times), Measured::of(times), Measured::of(times));
    let widest = |wide: &Row| {
        let text = table(&run(vec![wide.clone(), row("4k", "folio")]), Charset::Utf8);
        text.lines().map(|line| line.chars().count()).max().unwrap()
    };
    assert!(widest(&wide) <= 140, "{}", widest(&wide));
    (wide.kernel_ranges, wide.kernel_bytes) = (Measured::of(131_072), Measured::of(512 << 20));
    assert!(widest(&wide) <= 160, "{}, with the kernel's account", widest(&wide));
}

#[test]
fn what_the_kernel_announced_stands_beside_what_we_did() {
    let mut told = row("4k", "folio");
    (told.kernel_ranges, told.kernel_bytes) = (Measured::of(257), Measured::of(3 << 20));
    let text = table(&run(vec![told, row("4k", "pmd")]), Charset::Ascii);
    let cells = |policy| -> Vec<&str> {
        let line = text.lines().find(|line| line.contains(policy)).unwrap();
        line.split_whitespace().skip(4).take(6).collect()
    };
    assert_eq!(cells("folio"), ["256", "1", "MiB", "257", "3", "MiB"]);
    assert_eq!(cells("pmd"), ["256", "1", "MiB", "-", "-", "1.0"]);
    assert!(!table(&run(vec![row("4k", "folio")]), Charset::Ascii).contains("by the"));
}

#[test]
fn what_was_expected_stands_in_parentheses_and_says_why() {
    let text = table(&run(vec![expected(row("4k", "kernel")), row("4k", "folio")]), Charset::Ascii);
    let cells = |policy| text.lines().find(|line| line.contains(policy)).unwrap();
    for cell in ["(256)", "(1 MiB)", "(1.0)"] {
        assert!(cells("kernel").contains(cell) && !cells("folio").contains(cell), "{text}");
    }
    let note = "note: ranges, invalidated, amplification: expected of the kernel, and not measured: the tap was off [kernel]";
    assert!(text.contains(note), "{text}");
}

#[test]
fn a_row_that_others_disturbed_is_marked_and_the_mark_explained() {
    let disturbed = |backing, cause: &str, ranges| {
        let mut row = row(backing, "kernel");
        row.stranger_ranges = Measured::of(ranges);
        let totals = Ranges { ranges, bytes: 4096 * ranges };
        row.kernel_causes = Measured::of([(cause.to_owned(), totals)].into());
        row.warnings.note("stranger_ranges", "others took memory of the guest meanwhile");
        row
    };
    let rows = vec![
        disturbed("4k", "migration", 29_068),
        row("4k", "folio"),
        disturbed("thp", "kswapd", 7),
        row("thp", "folio"),
    ];
    let text = table(&run(rows), Charset::Ascii);
    let marked: Vec<bool> = text
        .lines()
        .filter(|line| line.contains("MiB") && line.contains(" us"))
        .map(|line| line.contains('*'))
        .collect();
    assert_eq!(marked, [true, false, true, false], "{text}");
    let legend = "* others announced ranges of the same memory meanwhile, so many by cause: migration 29,068 [4k kernel]; kswapd 7 \
                  [thp kernel]";
    assert!(text.contains(legend), "{text}");
    assert!(!table(&run(vec![row("4k", "kernel")]), Charset::Ascii).contains('*'));
}

/// Ranges of an unknown cause may be another process's.
#[test]
fn a_row_with_ranges_of_nobody_is_marked() {
    let mut row = row("4k", "kernel");
    row.unattributed_ranges = Measured::of(3);
    let text = table(&run(vec![row]), Charset::Ascii);
    assert!(text.contains("kernel *") && text.contains("by cause: unknown 3"), "{text}");
}

#[test]
fn a_note_of_several_rows_is_one_with_the_tables_words() {
    let noted = |backing, policy| {
        let mut row = row(backing, policy);
        row.warnings.note("sptes_zapped_4k", "vCPUs ran on");
        row.warnings.note("sptes_zapped_2m", "vCPUs ran on");
        row
    };
    let mut slow = noted("thp", "vm");
    slow.warnings.say("MADV_PAGEOUT was repeated 4 times");
    let rows = vec![noted("4k", "folio"), row("4k", "vm"), noted("thp", "folio"), slow];
    let text = table(&run(rows), Charset::Ascii);
    let notes: Vec<&str> = text.lines().filter(|line| line.contains("note:")).collect();
    assert_eq!(
        notes,
        [
            " note: zapped 4k / 2m: vCPUs ran on [4k folio; thp]",
            " note: MADV_PAGEOUT was repeated 4 times [thp vm]",
        ]
    );
    let all = table(&run(vec![noted("4k", "folio"), noted("4k", "vm")]), Charset::Ascii);
    assert!(all.contains("note: zapped 4k / 2m: vCPUs ran on [all rows]"), "{all}");
}

#[test]
fn where_no_guest_ran_the_heading_says_so() {
    let by = |listener: Listener| {
        let mut row = row("4k", "folio");
        row.label.listener = listener;
        let text = table(&run(vec![row]), Charset::Ascii);
        text.lines().next().unwrap().to_owned()
    };
    assert!(
        by(Listener::SoftMmu).starts_with("sparse: NO GUEST RAN, worker threads used the memory"),
        "{}",
        by(Listener::SoftMmu)
    );
    assert!(
        by(Listener::Replay).starts_with("sparse: NO ROW RAN, all is predicted"),
        "{}",
        by(Listener::Replay)
    );
    assert!(!by(Listener::KvmSlots).contains("RAN"));
}

#[test]
fn a_difference_has_its_line_its_mark_and_its_column() {
    let wide = announcing(row("4k", "kernel"), 32, 37_015_552, 32);
    let text = table(&run(vec![wide, row("4k", "folio")]), Charset::Ascii);
    assert!(text.lines().nth(1).unwrap().starts_with(" ! kernel: THE KERNEL ANNOUNCED"), "{text}");
    assert!(text.contains("expec-") && text.contains("kernel !"), "{text}");
    assert!(!table(&run(vec![row("4k", "kernel")]), Charset::Ascii).contains("expec-"));
}
