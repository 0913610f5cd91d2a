//! Traces read back.

use notifier_bridge::Cause;
use serde_json::Value;

use super::*;
use experiment::events::fixture::{BEGAN, BEGIN, bracket, range, row, stall};
use notifier_bridge::By;

/// When the first operation begins, microseconds.
const BEGUN: f64 = (BEGAN + BEGIN) as f64 / 1e3;

#[test]
fn everything_stands_on_its_track_and_on_one_clock() {
    let mut row = row(vec![bracket(0, Cause::PageOut)]);
    row.events.extend([stall(250, 1_500), range(400, 1, By::Step)]);
    let mut out = Vec::new();
    write_trace([&row, &row].into_iter(), &mut out).unwrap();
    let trace: Value = serde_json::from_slice(&out).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
    let ends = |name: &str| of(name)["ts"].as_f64().unwrap() + of(name)["dur"].as_f64().unwrap();
    assert_eq!((of("page-out")["ts"].as_f64(), of("page-out")["dur"].as_f64()), (Some(BEGUN), Some(1.0)));
    assert_eq!((of("zap")["ts"].as_f64(), of("zap")["dur"].as_f64()), (Some(BEGUN), Some(0.3)));
    assert!((ends("zap") - of("operation")["ts"].as_f64().unwrap()).abs() < 1e-3);
    assert_eq!(of("stall")["tid"], FIRST_VCPU);
    assert_eq!(of("stall")["args"]["gpa"], "0x40007000");
    assert_eq!((of("step")["ph"].as_str(), of("step")["args"]["bytes"].as_u64()), (Some("i"), Some(4096)));
    assert_eq!(of("fill")["ts"].as_f64(), Some(BEGUN - 9.0));
    assert_eq!(of("reclaim")["args"]["retries"], 1);
    assert_eq!(events.iter().filter(|event| event["name"] == "process_name").count(), 2);
}
