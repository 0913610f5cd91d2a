//! Whose figures a row has: the kernel's where it alone announces, and none that nobody measured.

use serde_json::Value;
use tests::program;
use tests::record::{self, number, rows};

crate::tests! {
    what_a_cgroup_takes_is_the_kernels_figure: [Kvm, Tap, Zram],
    what_a_target_takes_is_the_kernels_figure: [Kvm, Tap, Userfault],
    without_an_account_the_plan_is_marked_and_nothing_is_called_exact: [],
    the_readmes_scenario_comes_true: [Kvm, Zram],
}

/// A cgroup is squeezed, and chooses for itself. Nobody uses the memory meanwhile: under cgroups of version 1 a fault that
/// finds nothing to reclaim ends in the OOM killer.
const SQUEEZED: &str = r#"
name = "squeezed"
memory = "32MiB"
[matrix]
backing = ["4k"]
policy = ["kernel", "folio"]
reclaim = ["cgroup"]
[[case]]
name = "quiet"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
range = "0..8MiB"
[[case.step]]
do = "refault"
"#;

fn is_explained(row: &Value, key: &str) -> bool {
    let about = |warning: &Value| warning["keys"].as_array().is_some_and(|keys| keys.contains(&key.into()));
    row[key].is_null() && row["warnings"].as_array().unwrap().iter().any(about)
}

/// Nobody knows beforehand what a row's operations take.
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
    let directory = tempfile::tempdir().unwrap();
    let (record, said) = record::run(directory.path(), SQUEEZED, &["--zram", "128MiB"]);
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
    let (record, said) = record::run(directory.path(), SQUEEZED, &["--zram", "128MiB", "--tap", "off"]);
    let kernel = &rows(&record)[0];
    for key in ["invalidations", "invalidated_bytes", "amplification"] {
        assert!(is_explained(kernel, key), "{key} of {kernel:#}");
    }
    assert!(!said.contains("exactly"), "{said}");
}

/// Huge pages that a loop writes to are watched, in vain: what was announced for that was needed for nothing.
fn what_a_target_takes_is_the_kernels_figure() {
    let text = r#"
name = "target"
memory = "16MiB"
[matrix]
backing = ["thp", "4k"]
policy = ["kernel"]
reclaim = ["uffd"]
[[case]]
name = "target"
[[case.step]]
do = "fill"
[[case.step]]
do = "hot"
count = 64
access = "write"
[[case.step]]
do = "reclaim"
victims = "idle"
target = "8MiB"
after = "20ms"
unit = "folio"
[[case.step]]
do = "stop"
"#;
    let directory = tempfile::tempdir().unwrap();
    let (record, said) = record::run(directory.path(), text, &[]);
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

/// On the software MMU the kernel tells nobody. What stands under `kernel` is what was expected of it, and what no guest
/// did no guest is said to have done.
fn without_an_account_the_plan_is_marked_and_nothing_is_called_exact() {
    let text = "name = \"x\"\nmemory = \"8MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n\
        reclaim = [\"dontneed\"]\n[[case]]\nname = \"c\"\nexpect = [\"amplification == 1.0\"]\n[[case.step]]\ndo = \"fill\"\n\
        [[case.step]]\ndo = \"hot\"\n[[case.step]]\ndo = \"baseline\"\nfor = \"5ms\"\n[[case.step]]\ndo = \"reclaim\"\n\
        victims = \"sparse\"\ncount = 64\n[[case.step]]\ndo = \"stop\"\n[[case.step]]\ndo = \"refault\"\n\
        [[case.step]]\ndo = \"sweep\"\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("s.toml"), text).unwrap();
    let arguments = ["run", "s.toml", "--backend", "soft", "--out", "out"];
    let output = program::output(directory.path(), &arguments);
    assert!(output.status.success(), "{}", program::stderr(&output));
    let told = std::str::from_utf8(&output.stdout).unwrap();
    let heading = told.lines().next().unwrap();
    assert!(heading.starts_with("c: NO GUEST RAN"), "{told}");
    for cell in
        ["(64)", "(256 KiB)", "(1.0)", "note: ranges, invalidated, amplification: expected of the kernel"]
    {
        assert!(told.contains(cell), "{cell} in {told}");
    }
    let rest = told.strip_prefix(heading).unwrap();
    assert!(!rest.contains("guest") && !rest.contains("exactly"), "{told}");
    let record: Value =
        serde_json::from_slice(&std::fs::read(directory.path().join("out/run.json")).unwrap()).unwrap();
    let skipped = record["rows"][0]["expectations"][0]["skipped"].as_str().unwrap();
    assert!(skipped.contains("amplification is expected of the kernel"), "{skipped}");
    for arguments in [["timeline", "out"], ["replay", "out"]] {
        let output = program::output(directory.path(), &arguments);
        assert!(output.status.success(), "{}", program::stderr(&output));
        let told = std::str::from_utf8(&output.stdout).unwrap();
        assert!(told.lines().next().unwrap().contains(" RAN"), "{told}");
        // The log has how fast the loop was, undisturbed and after everything was dropped under it.
        assert!(!told.contains("does not say how fast"), "{told}");
    }
}

/// The README's scenario with the README's expectations in it.
fn the_readmes_scenario_comes_true() {
    let readme = include_str!("../../../README.md");
    let mut examples = readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let (scenario, expect) = (examples.next().unwrap(), examples.next().unwrap());
    let case = "[[case]]\nname = \"sparse\"\n";
    assert!(scenario.contains(case) && expect.contains(case));
    let text = scenario.replace(case, expect);
    let directory = tempfile::tempdir().unwrap();
    let (record, said) = record::run(directory.path(), &text, &["--zram", "256MiB"]);
    for row in rows(&record) {
        for expectation in row["expectations"].as_array().unwrap() {
            assert!(expectation["fails"].is_null(), "{expectation}: {said}");
        }
        assert!(number(row, "evicted_bytes") > 0, "{row:#}");
    }
}
