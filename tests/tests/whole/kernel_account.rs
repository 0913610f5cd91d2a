//! What a run makes of the kernel's own account.

use std::os::unix::process::CommandExt;

use guest_mem::{PAGE_SIZE, PMD_SIZE};
use host::HostChanges;
use tests::host::{allow, emulated, mthp_64k};
use tests::kernel::version;
use tests::place::{Ended, Place};
use tests::record::{number, rows, run};
use tests::scenario::{self, Scenario};

crate::tests! {
    the_built_in_scenario_announces_what_is_written: [Kvm, SlotZap, Tap, Zram],
    the_built_in_scenario_announces_it_to_a_program: [Kvm, SlotZap, Bpf, Zram],
    our_own_swap_announces_two_ranges_a_page: [Kvm, SlotZap, Tap, Userfault],
    folios_that_leave_page_by_page_are_followed(unit in ["folio", "range"]): [Kvm, Tap, Zram, Has(mthp_64k())],
    a_tap_by_tracefs_is_answered_by_another: [Kvm, Tap],
    without_the_account_the_run_goes_on: [Kvm, SlotZap],
    without_permission_the_run_goes_on: [Kvm, SlotZap, GuardedTracepoints],
}

fn the_built_in_scenario_announces_what_is_written() {
    the_built_in_scenario_announces_by("perf");
}

fn the_built_in_scenario_announces_it_to_a_program() {
    the_built_in_scenario_announces_by("bpf");
}

/// The built-in `swapout` under the policies that change nothing in what the kernel itself does; on an emulated host a
/// quarter of its memory.
fn the_built_in_scenario_announces_by(tap: &str) {
    let part = if emulated() { 4 } else { 1 };
    let text: String = scenario::swapout(part)
        .lines()
        // Rows that are left out here cannot be expected anything of.
        .filter(|line| !line.starts_with("exclude = ") && !line.ends_with(" for policy pmd slot vm\","))
        .filter(|line| !line.ends_with(" for policy slot vm\","))
        .map(|line| match line {
            line if line.starts_with("policy = ") => "policy = [\"kernel\", \"folio\"]\n".to_owned(),
            line if line.starts_with("reclaim = ") => "reclaim = [\"pageout\"]\n".to_owned(),
            line => format!("{line}\n"),
        })
        .collect();
    let place = Place::new();
    place.put("s.toml", text);
    let (record, _) = place.recorded(&["--zram", "512MiB", "--tap", tap]);
    assert_eq!(record["tap"], tap);
    let mut compared = 0;
    for row in rows(&record).iter().filter(|row| row["could_not_run"].is_null()) {
        let label: Vec<_> = ["case", "backing", "policy"].map(|key| row[key].as_str().unwrap()).to_vec();
        assert_eq!(number(row, "lost_events"), 0, "{label:?}");
        assert_eq!(number(row, "account_differences"), 0, "{label:?}: {}", row["warnings"]);
        // A huge page that loses some of its pages is split first.
        let splits = 32 / part * if version() < (6, 13) { 2 } else { 1 };
        let expected = match label[..] {
            ["sparse" | "discard", "4k", _] => (256, 256 * PAGE_SIZE),
            ["whole", "4k", _] => (2048 / part, 2048 / part * PAGE_SIZE),
            ["whole", "thp", "kernel"] => (4 / part, 4 / part * PMD_SIZE),
            ["sparse", "thp", "kernel"] => (256 + splits, 256 * PAGE_SIZE + splits * PMD_SIZE),
            _ => continue,
        };
        compared += 1;
        assert_eq!((number(row, "kernel_ranges"), number(row, "kernel_bytes")), expected, "{label:?}");
        // A toggle is two announcements; the kernel alone toggles nothing.
        assert_eq!(number(row, "kernel_zap_ranges") > 0, label[2] != "kernel", "{label:?}");
    }
    assert!(compared >= 6, "{compared} rows");
}

/// Folios of 64 KiB, one a call and all in one call. A device of 2 MiB, whose first page is its header, has room for many
/// pages and for no folio in one piece.
fn folios_that_leave_page_by_page_are_followed(unit: &str) {
    let changes = HostChanges::new(|_| ());
    allow(&changes, mthp_64k());
    let scarce = scenario::of("16MiB").backings(&["mthp:64k"]).policies(&["kernel", "folio"]);
    let scarce = scarce.reclaims(&["pageout"]).fill().range("4MiB..5MiB", unit).refault();
    let (record, _) = run(&scarce, &["--zram", "2MiB"]);
    for row in rows(&record) {
        assert!(row["could_not_run"].is_null(), "{row:#}");
        let wrong = number(row, "lost_events") + number(row, "integrity_errors");
        assert_eq!((wrong, number(row, "evicted_bytes")), (0, 1 << 20), "{row:#}");
        assert_eq!(number(row, "account_differences"), 0, "{}", row["warnings"]);
        let ranges = number(row, "kernel_ranges");
        assert!(ranges > 16 && ranges.is_multiple_of(16), "16 folios, and pages: {row:#}");
        let said = format!("{} folio", (ranges - 16) / 16);
        assert!(row["warnings"].to_string().contains(&said), "{}", row["warnings"]);
    }
    assert!(changes.undo_all().is_empty());
}

/// A page of 4 KiB leaves by a write protection and a drop: one range each, and both the step's own.
fn our_own_swap_announces_two_ranges_a_page() {
    let (record, _) = run(&scenario::of("8MiB").reclaims(&["uffd"]).fill().sparse(64), &["--tap", "perf"]);
    let row = &rows(&record)[0];
    assert_eq!((number(row, "kernel_ranges"), number(row, "kernel_bytes")), (128, 128 * PAGE_SIZE));
    assert_eq!((number(row, "kernel_zap_ranges"), number(row, "kernel_zap_bytes")), (0, 0));
    assert_eq!(number(row, "invalidations"), 128);
}

/// Gives up, for what is executed next, the right to mount tracefs and to listen to tracepoints.
fn drop_tracing() -> std::io::Result<()> {
    const CAP_SYS_ADMIN: u64 = 21;
    const CAP_PERFMON: u64 = 38;
    for capability in [CAP_SYS_ADMIN, CAP_PERFMON] {
        // SAFETY: takes numbers only. A process that is not root has nothing to drop, and is refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    Ok(())
}

fn discarding() -> Scenario {
    scenario::of("8MiB").fill()
}

/// Why the one row of a run has no account. There is no row less for it.
fn why_without(tap: &str, drops: bool) -> String {
    let place = Place::of(&discarding().sparse(64));
    let mut command = place.zapscope(&["run", "s.toml", "--json", "--tap", tap]);
    if drops {
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(drop_tracing) };
    }
    let record = Ended::from(command.output().unwrap()).with(0).json();
    let row = rows(&record)[0].clone();
    assert!(row["could_not_run"].is_null());
    assert_eq!((number(&row, "victims"), number(&row, "integrity_errors")), (64, 0));
    let keys = ["kernel_ranges", "kernel_bytes", "lost_events", "account_differences"];
    assert!(keys.iter().all(|key| row[key].is_null()), "{row}");
    let why = |warning: &&serde_json::Value| {
        let about: Vec<_> = warning["keys"].as_array().into_iter().flatten().collect();
        keys.iter().all(|key| about.iter().any(|one| one == key))
    };
    row["warnings"].as_array().unwrap().iter().find(why).unwrap()["text"].as_str().unwrap().to_owned()
}

/// An earlier way of the tap: the command line is accepted, and a sentence names the way that is taken.
fn a_tap_by_tracefs_is_answered_by_another() {
    let (record, said) = run(&discarding().sparse(4), &["--tap", "tracefs"]);
    assert!(["bpf", "perf"].contains(&record["tap"].as_str().unwrap()), "{record:#}");
    assert!(said.contains("--tap tracefs: tracefs instances are not used any more"), "{said}");
}

fn without_the_account_the_run_goes_on() {
    let off = why_without("off", false);
    assert!(off.contains("--tap off"), "{off}");
}

/// Root without the right to trace.
fn without_permission_the_run_goes_on() {
    let refused = why_without("perf", true);
    assert!(refused.contains("tracefs") || refused.contains("cap_perfmon"), "{refused}");
}
