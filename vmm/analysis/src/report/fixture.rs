//! Rows made by hand, for the tests of the report.
#![allow(clippy::unwrap_used, reason = "for tests")]

use serde_json::{Value, json};

use experiment::choice::PolicyChoice;
use experiment::record::{Measured, Row, RunRecord};

/// 256 pages of 4 KiB, taken exactly.
pub fn row(backing: &str, policy: &str) -> Row {
    let mut value = json!({
        "case": "sparse", "backing": backing, "policy": policy, "reclaim": "pageout", "granule": 2 << 20,
        "zap": "protect", "listener": "kvm-slots", "trials": 1, "achieved": {},
        "victims": 256, "victim_bytes": 1 << 20, "evicted_bytes": 1 << 20,
        "invalidations": 256, "needed_bytes": 1 << 20, "invalidated_bytes": 1 << 20, "amplification": 1.0,
        "expected_ranges": 256, "expected_bytes": 1 << 20,
        "sptes_zapped_4k": 256, "sptes_zapped_2m": 0, "refaults": 256, "collateral_faults": 0,
        "zap_ns": times(25_000), "reclaim_ns": times(7_000), "refault_ns": times(8_000),
        "guest_touches_before": 2e6, "guest_touches_during": 1e6, "integrity_errors": 0,
    });
    value["achieved"][backing] = Value::from(1.0);
    let row = serde_json::from_value(value).unwrap();
    // Under `kernel` the figures are the account's.
    if policy == "kernel" { accounted(row, 256, 1 << 20) } else { row }
}

/// The row with the kernel's account of it, which was not compared.
fn accounted(mut row: Row, ranges: u64, bytes: u64) -> Row {
    (row.kernel_ranges, row.kernel_bytes) = (Measured::of(ranges), Measured::of(bytes));
    row.lost_events = Measured::of(0);
    row
}

/// The row for which the kernel announced so much, something else than was expected in so many operations. Under `kernel`
/// all that follows from it.
pub fn announcing(row: Row, ranges: u64, bytes: u64, differing: u64) -> Row {
    let mut row = accounted(row, ranges, bytes);
    row.account_differences = Measured::of(differing);
    if row.label.tried.policy == PolicyChoice::Kernel {
        (row.invalidations, row.invalidated_bytes) = (Measured::of(ranges), Measured::of(bytes));
        row.amplification = Measured::of(bytes as f64 / 1_048_576.0);
    }
    row
}

/// The row with nothing but what was expected of the kernel.
pub fn expected(mut row: Row) -> Row {
    for key in ["kernel_ranges", "kernel_bytes", "lost_events"] {
        row.warnings.note(key, "the tap was off");
    }
    for key in Row::ANNOUNCED {
        row.warnings.note(key, "expected of the kernel, and not measured: the tap was off");
    }
    (row.kernel_ranges, row.kernel_bytes, row.lost_events) =
        (Measured::absent(), Measured::absent(), Measured::absent());
    row
}

fn times(p50: u64) -> Value {
    json!({"count": 256, "min": p50, "p50": p50, "p90": p50, "p99": 5 * p50, "p999": 5 * p50, "max": 5 * p50,
           "sum": 256 * p50})
}

/// The row with another amplification, and all that follows from it.
pub fn wider(mut row: Row, amplification: f64) -> Row {
    row.amplification = Measured::of(amplification);
    row.invalidated_bytes = Measured::of((amplification * 1_048_576.0) as u64);
    row
}

/// A run of these rows.
pub fn run(rows: Vec<Row>) -> RunRecord {
    let mut run: RunRecord = serde_json::from_value(json!({
        "schema": 1, "started_at": "2017-08-29T00:00:00Z", "host": {}, "backend": "kvm", "scenario": "", "seed": 42,
        "rows": [],
    }))
    .unwrap();
    run.rows = rows;
    run
}
