//! Where the time went: sums that agree with the record, and a guest whose stalls stand on the host's clock.

use std::path::Path;

use serde_json::Value;
use tests::program;
use tests::record::{self, number};

crate::tests! {
    a_guests_stalls_stand_in_the_steps_that_made_them: [Kvm, SlotZap],
    the_kernels_ranges_stand_with_their_causes: [Kvm, SlotZap, Tap],
    the_software_mmu_has_a_timeline_too: [],
    what_is_no_run_is_refused: [],
}

/// Nobody runs beside: the guest can stand still in the two steps that read, and nowhere else.
const QUIET: &str = r#"
name = "quiet"
memory = "16MiB"
seed = 7
[matrix]
backing = ["4k"]
policy = ["kernel", "folio", "pmd", "slot"]
reclaim = ["dontneed"]
[[case]]
name = "sparse"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 100
[[case.step]]
do = "refault"
[[case.step]]
do = "sweep"
"#;

fn run(directory: &Path, options: &[&str]) -> Value {
    record::run(directory, QUIET, &[&["--out", "out"], options].concat()).0
}

fn timeline(directory: &Path) -> Vec<Value> {
    let (printed, _) = record::printed(directory, &["timeline", "out", "--json", "--trace", "trace.json"]);
    printed.as_array().expect("a sum a row").clone()
}

/// The row's own sums, and the same from its parts.
fn assert_sums(row: &Value, time: &Value) {
    for key in ["case", "backing", "policy", "reclaim"] {
        assert_eq!(row[key], time[key]);
    }
    let causes = time["causes"].as_array().unwrap();
    let sum = |key: &str| causes.iter().map(|cause| number(cause, key)).sum::<u64>();
    assert_eq!(sum("announcements"), number(row, "invalidations"), "{time}");
    if row["listener"] != "kernel" {
        // The row's histogram is exact in its count, its largest and its sum.
        assert_eq!(sum("zap_ns"), number(&row["zap_ns"], "sum"), "{time}");
    }
    let reclaim = number(&time["steps"]["reclaim"], "ns");
    assert!(sum("zap_ns") + sum("operation_ns") + sum("end_ns") <= reclaim, "{time}");
    for (step, times) in [("refault", "refault_ns"), ("sweep", "collateral_ns")] {
        let stalled = &time["steps"][step]["stalled"];
        // No stall at all is no distribution.
        let of = |key: &str| row[times][key].as_u64().unwrap_or(0);
        assert_eq!(number(stalled, "stalls"), of("count"), "{step}: {row} {time}");
        assert_eq!(number(stalled, "ns"), of("sum"), "{step}: {row} {time}");
    }
    assert_eq!(
        number(&time["counted"], "faults"),
        0,
        "nobody touched anything while memory was taken: {time}"
    );
    // Where the guest only waits for orders, it cannot stand still.
    assert_eq!(number(&time["steps"]["reclaim"]["stalled"], "stalls"), 0, "{time}");
    assert_eq!((sum_held(causes), number(time, "stalls_left_out")), (0, 0), "{time}");
}

fn sum_held(causes: &[Value]) -> u64 {
    causes.iter().map(|cause| number(&cause["held"], "stalls")).sum()
}

/// Every stall of the trace lies within a step that read.
fn assert_trace(directory: &Path, rows: usize) {
    let text = std::fs::read_to_string(directory.join("trace.json")).unwrap();
    let trace: Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name: &'static str| events.iter().filter(move |event| event["name"] == name);
    assert_eq!(named("process_name").count(), rows);
    let span = |event: &Value| {
        let (begin, length) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        (event["pid"].as_u64().unwrap(), begin, begin + length)
    };
    let reading: Vec<_> = named("refault").chain(named("sweep")).map(span).collect();
    let mut stalls = 0;
    for stall in named("stall").map(span) {
        let inside = |step: &&(u64, f64, f64)| step.0 == stall.0 && step.1 <= stall.1 && stall.2 <= step.2;
        assert!(reading.iter().any(|step| inside(&step)), "{stall:?} in none of {reading:?}");
        stalls += 1;
    }
    assert!(stalls > 0);
}

fn a_guests_stalls_stand_in_the_steps_that_made_them() {
    let directory = tempfile::tempdir().unwrap();
    let record = run(directory.path(), &["--backend", "kvm", "--tap", "off"]);
    let times = timeline(directory.path());
    assert_eq!(times.len(), record::rows(&record).len());
    for (row, time) in record::rows(&record).iter().zip(&times) {
        assert_sums(row, time);
        assert!(time["causes"][0]["kernel_ranges"].is_null(), "nobody kept the kernel's account");
    }
    assert_trace(directory.path(), times.len());
    // A second trace does not overwrite the first.
    let again = program::output(directory.path(), &["timeline", "out", "--trace", "trace.json"]);
    assert_eq!(again.status.code(), Some(2), "{}", program::stderr(&again));
}

fn the_kernels_ranges_stand_with_their_causes() {
    let directory = tempfile::tempdir().unwrap();
    let record = run(directory.path(), &["--backend", "kvm"]);
    for (row, time) in record::rows(&record).iter().zip(&timeline(directory.path())) {
        let causes = time["causes"].as_array().unwrap();
        let inside: u64 = causes.iter().map(|cause| number(cause, "kernel_ranges")).sum();
        assert_eq!(inside, number(row, "kernel_ranges"), "{row} {time}");
        let others: u64 = time["others"].as_array().unwrap().iter().map(|one| number(one, "ranges")).sum();
        let beside = ["kernel_zap_ranges", "stranger_ranges", "unattributed_ranges"];
        assert_eq!(others, beside.iter().map(|key| number(row, key)).sum::<u64>(), "{row} {time}");
    }
}

fn the_software_mmu_has_a_timeline_too() {
    let directory = tempfile::tempdir().unwrap();
    let record = run(directory.path(), &["--backend", "soft"]);
    let times = timeline(directory.path());
    for (row, time) in record::rows(&record).iter().zip(&times) {
        assert_sums(row, time);
        assert_eq!(number(time, "clock_uncertain_ns"), 0, "its workers read the host's own counter");
    }
    let text = program::output(directory.path(), &["timeline", "out"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("where the time went: sparse") && text.contains("retries"), "{text}");
}

fn what_is_no_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = program::output(directory.path(), &["timeline", "nowhere"]);
    let said = program::stderr(&output);
    assert!(output.status.code() == Some(2) && said.contains("name the directory of a run"), "{said}");
}
