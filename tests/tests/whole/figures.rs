//! The source of a row's figures: the kernel's account where it alone announces. A figure not measured is null.

use host::HostChanges;
use serde_json::Value;
use tests::host::{Need, allow, mthp_64k};
use tests::place::Place;
use tests::record::{self, number, rows};
use tests::scenario;

crate::tests! {
    what_a_cgroup_takes_is_the_kernels_figure: [Kvm, Tap, Zram],
    what_a_target_takes_is_the_kernels_figure: [Kvm, Tap, Userfault],
    without_an_account_the_plan_is_marked_and_nothing_is_called_exact: [],
    the_books_scenario_comes_true: [Kvm, Zram],
    folios_of_a_size_are_those_that_are_there(backend in ["soft", "kvm"]): [Has(mthp_64k()), of(backend)],
}

/// A cgroup is squeezed, and chooses for itself. No vCPU uses the memory meanwhile: under cgroups of version 1 a fault
/// that finds nothing to reclaim ends in the OOM killer.
fn squeezed(options: &[&str]) -> (Value, String) {
    let scenario = scenario::of("32MiB").policies(&["kernel", "folio"]).reclaims(&["cgroup"]);
    record::run(&scenario.fill().range("0..8MiB", "folio").refault(), options)
}

fn is_explained(row: &Value, key: &str) -> bool {
    let about = |warning: &Value| warning["keys"].as_array().is_some_and(|keys| keys.contains(&key.into()));
    row[key].is_null() && row["warnings"].as_array().unwrap().iter().any(about)
}

/// The victims of the row are not known beforehand.
fn assert_nothing_expected(row: &Value) {
    for key in ["expected_ranges", "expected_bytes", "account_differences"] {
        assert!(is_explained(row, key), "{key} of {row:#}");
    }
}

/// The quotient of what a row has, or null where nothing had to go.
fn assert_amplification(row: &Value) {
    match number(row, "needed_bytes") {
        0 => assert!(is_explained(row, "amplification"), "{row:#}"),
        needed => {
            let quotient = number(row, "invalidated_bytes") as f64 / needed as f64;
            assert_eq!(row["amplification"].as_f64(), Some(quotient), "{row:#}");
        }
    }
}

fn what_a_cgroup_takes_is_the_kernels_figure() {
    let (record, said) = squeezed(&["--zram", "128MiB"]);
    for row in rows(&record) {
        assert_nothing_expected(row);
        assert_amplification(row);
        assert_eq!(number(row, "needed_bytes"), number(row, "evicted_bytes"), "{row:#}");
    }
    let kernel = &rows(&record)[0];
    assert_eq!(kernel["policy"], "kernel");
    for (figure, account) in [("invalidations", "kernel_ranges"), ("invalidated_bytes", "kernel_bytes")] {
        assert_eq!(number(kernel, figure), number(kernel, account), "{kernel:#}");
    }
    if number(kernel, "invalidated_bytes") != number(kernel, "needed_bytes") {
        assert!(!said.contains("exactly"), "{said}");
    }
    // Without the account there is no figure at all.
    let (record, said) = squeezed(&["--zram", "128MiB", "--tap", "off"]);
    let kernel = &rows(&record)[0];
    for key in ["invalidations", "invalidated_bytes", "amplification"] {
        assert!(is_explained(kernel, key), "{key} of {kernel:#}");
    }
    assert!(!said.contains("exactly"), "{said}");
}

/// Huge pages that a loop writes to are watched, in vain: what was announced for that was needed for nothing.
fn what_a_target_takes_is_the_kernels_figure() {
    let watched = ["victims = \"idle\"", "target = \"8MiB\"", "after = \"20ms\"", "unit = \"folio\""];
    let scenario = scenario::of("16MiB").backings(&["thp", "4k"]).reclaims(&["uffd"]);
    let scenario = scenario.fill().step("hot", &["count = 64", "access = \"write\""]);
    let (record, said) = record::run(&scenario.step("reclaim", &watched).stop(), &[]);
    for row in rows(&record) {
        assert_nothing_expected(row);
        assert_amplification(row);
        // Each page that left was protected and dropped.
        assert_eq!(number(row, "needed_bytes"), 2 * number(row, "evicted_bytes"), "{row:#}");
        let by = |cause: &str| row["kernel_causes"][cause]["ranges"].as_u64().unwrap_or(0);
        assert_eq!(number(row, "invalidations"), by("step") + by("userfaultfd"), "{row:#}");
        assert!(number(row, "invalidated_bytes") > number(row, "needed_bytes"), "watching is in it: {row:#}");
    }
    assert!(!said.contains("exactly"), "{said}");
}

/// The kernel has no listener under the software MMU. The figures under `kernel` are the expected ones, and the text
/// does not speak of a guest.
fn without_an_account_the_plan_is_marked_and_nothing_is_called_exact() {
    let scenario = scenario::of("8MiB").expect(&["amplification == 1.0"]);
    let scenario = scenario.fill().step("hot", &[]).baseline("5ms").sparse(64).stop().refault();
    let place = Place::of(&scenario.sweep());
    let told = place.run(&["run", "s.toml", "--backend", "soft", "--out", "out"]).with(0).text();
    let heading = told.lines().next().unwrap();
    assert!(heading.starts_with("c: NO GUEST RAN"), "{told}");
    for cell in
        ["(64)", "(256 KiB)", "(1.0)", "note: ranges, invalidated, amplification: expected of the kernel"]
    {
        assert!(told.contains(cell), "{cell} in {told}");
    }
    let rest = told.strip_prefix(heading).unwrap();
    assert!(!rest.contains("guest") && !rest.contains("exactly"), "{told}");
    let record = place.json("out/run.json");
    let skipped = record["rows"][0]["expectations"][0]["skipped"].as_str().unwrap();
    assert!(skipped.contains("amplification is expected of the kernel"), "{skipped}");
    for command in ["timeline", "replay"] {
        let told = place.run(&[command, "out"]).with(0).text();
        assert!(told.lines().next().unwrap().contains(" RAN"), "{told}");
        // The log has how fast the loop was, undisturbed and after everything was dropped under it.
        assert!(!told.contains("does not say how fast"), "{told}");
    }
}

/// The book's scenario with the book's expectations in it.
fn the_books_scenario_comes_true() {
    let example = |page: &'static str| page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let scenario = example(include_str!("../../../docs/src/scenarios.md"));
    let expect = example(include_str!("../../../docs/src/expectations.md"));
    let case = "[[case]]\nname = \"sparse\"\n";
    assert!(scenario.contains(case) && expect.contains(case));
    let text = scenario.replace(case, expect);
    let place = Place::new();
    place.put("s.toml", text);
    let (record, said) = place.recorded(&["--zram", "256MiB"]);
    for row in rows(&record) {
        for expectation in row["expectations"].as_array().unwrap() {
            assert!(expectation["fails"].is_null(), "{expectation}: {said}");
        }
        assert!(number(row, "evicted_bytes") > 0, "{row:#}");
    }
}

/// What a backend needs. The software MMU takes a page for writing by a locked compare-exchange, which QEMU, with all vCPUs on
/// one thread, carries out as a load and a store: the load maps the zero page, and the store copies it into a page of 4 KiB.
fn of(backend: &str) -> Need {
    if backend == "kvm" { Need::Kvm } else { Need::NotEmulated }
}

/// A label of a folio size is earned page by page. Taken whole, each folio is what was asked for; page by page, the first
/// page that goes leaves the other fifteen in a folio that is none of that size any more.
fn folios_of_a_size_are_those_that_are_there(backend: &str) {
    let changes = HostChanges::new(|_| ());
    allow(&changes, mthp_64k());
    for (unit, whole) in [("folio", 1.0), ("page", 1.0 / 16.0)] {
        let place = Place::of(&scenario::of("8MiB").backings(&["mthp:64k"]).fill().range("2MiB..4MiB", unit));
        let told = place.run(&["run", "s.toml", "--backend", backend, "--out", unit]).with(0).text();
        let record = place.json(&format!("{unit}/run.json"));
        let row = &rows(&record)[0];
        let earned = row["achieved"]["mthp:64k"].as_f64();
        assert_eq!(earned, Some(whole), "{unit}: {row:#}");
        assert_eq!(row["achieved"]["other"].as_f64().unwrap_or(0.0), 1.0 - whole, "{unit}: {row:#}");
        let said = if whole == 1.0 { "mthp:64k " } else { "mthp:64k (6.2 %)" };
        assert!(told.contains(said) && (whole < 1.0 || !told.contains(" %)")), "{unit}: {told}");
    }
    assert!(changes.undo_all().is_empty());
}
