//! Where the time went: sums that agree with the record, and a guest whose stalls stand on the host's clock.

use serde_json::Value;
use tests::place::Place;
use tests::record::{self, number};
use tests::scenario;

crate::tests! {
    a_guests_stalls_stand_in_the_steps_that_made_them: [Kvm, SlotZap],
    the_kernels_ranges_stand_with_their_causes: [Kvm, SlotZap, Tap],
    the_software_mmu_has_a_timeline_too: [],
    what_is_no_run_is_refused: [],
}

/// No loop runs beside: the guest can stall in the two steps that read, and nowhere else.
fn quiet() -> Place {
    let scenario = scenario::of("16MiB").top("seed = 7").policies(&["kernel", "folio", "pmd", "slot"]);
    Place::of(&scenario.fill().sparse(100).refault().sweep())
}

fn timeline(place: &Place) -> Vec<Value> {
    let printed = place.run(&["timeline", "out", "--json", "--trace", "trace.json"]).with(0).json();
    printed.as_array().expect("a sum for each row").clone()
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
fn assert_trace(place: &Place, rows: usize) {
    let trace = place.json("trace.json");
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
    let place = quiet();
    let record = place.record(&["--backend", "kvm", "--tap", "off"]);
    let times = timeline(&place);
    assert_eq!(times.len(), record::rows(&record).len());
    for (row, time) in record::rows(&record).iter().zip(&times) {
        assert_sums(row, time);
        assert!(time["causes"][0]["kernel_ranges"].is_null(), "nobody kept the kernel's account");
    }
    assert_trace(&place, times.len());
    // A second trace does not overwrite the first.
    place.run(&["timeline", "out", "--trace", "trace.json"]).with(2);
}

fn the_kernels_ranges_stand_with_their_causes() {
    let place = quiet();
    let record = place.record(&["--backend", "kvm"]);
    for (row, time) in record::rows(&record).iter().zip(&timeline(&place)) {
        let causes = time["causes"].as_array().unwrap();
        let inside: u64 = causes.iter().map(|cause| number(cause, "kernel_ranges")).sum();
        assert_eq!(inside, number(row, "kernel_ranges"), "{row} {time}");
        let others: u64 = time["others"].as_array().unwrap().iter().map(|one| number(one, "ranges")).sum();
        let beside = ["kernel_zap_ranges", "stranger_ranges", "unattributed_ranges"];
        assert_eq!(others, beside.iter().map(|key| number(row, key)).sum::<u64>(), "{row} {time}");
    }
}

fn the_software_mmu_has_a_timeline_too() {
    let place = quiet();
    let record = place.record(&["--backend", "soft"]);
    let times = timeline(&place);
    for (row, time) in record::rows(&record).iter().zip(&times) {
        assert_sums(row, time);
        assert_eq!(number(time, "clock_uncertain_ns"), 0, "its workers read the host's own counter");
    }
    let text = place.run(&["timeline", "out"]).with(0).text();
    assert!(text.contains("where the time went: c") && text.contains("retries"), "{text}");
}

fn what_is_no_run_is_refused() {
    Place::new().run(&["timeline", "nowhere"]).with(2).says(&["name the directory of a run"]);
}
