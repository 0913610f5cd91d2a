//! The timeline as a file that trace viewers read: the JSON of Chrome's trace event format, which Perfetto
//! (<https://ui.perfetto.dev>) opens too. Each row is a process, and what happened in it stands on tracks of its own.
//! Time is `CLOCK_MONOTONIC`, in microseconds, so that other traces of the same host can be laid beside.

use std::io::{self, Write};

use guest_mem::PAGE_SIZE;
use serde::Serialize;
use serde_json::{Value, json};

use crate::events::{RowEvents, StepEvent};

/// Tracks; those of vCPUs come after.
const STEPS: u32 = 1;
const OPERATIONS: u32 = 2;
const KERNEL: u32 = 3;
const FIRST_VCPU: u32 = 10;

#[derive(Serialize)]
struct TraceEvent<'a> {
    name: &'a str,
    /// `X` has a length, `i` has none, `M` names a process or track.
    ph: &'static str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

/// Writes the trace of `rows`.
///
/// # Errors
/// `out` cannot be written.
pub fn write_trace<'a>(
    rows: impl Iterator<Item = &'a RowEvents>,
    out: &mut dyn Write,
) -> Result<(), io::Error> {
    out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    let mut sink = Sink { out, first: true };
    for row in rows {
        RowTrace { row, pid: row.header.row.saturating_add(1) }.write(&mut sink)?;
    }
    out.write_all(b"\n]}\n")
}

struct Sink<'w> {
    out: &'w mut dyn Write,
    first: bool,
}

impl Sink<'_> {
    fn put(&mut self, event: &TraceEvent<'_>) -> io::Result<()> {
        self.out.write_all(if self.first { b"\n" } else { b",\n" })?;
        self.first = false;
        Ok(serde_json::to_writer(&mut *self.out, event)?)
    }
}

struct RowTrace<'a> {
    row: &'a RowEvents,
    pid: u32,
}

impl RowTrace<'_> {
    fn write(&self, sink: &mut Sink<'_>) -> io::Result<()> {
        let label = &self.row.header.label;
        let name = format!(
            "{}, {}, {}, {}",
            label.case, label.tried.backing, label.tried.policy, label.tried.reclaim
        );
        self.name(sink, "process_name", 0, &name)?;
        let tracks = [(STEPS, "steps"), (OPERATIONS, "operations"), (KERNEL, "ranges, by the kernel")];
        for (track, name) in tracks {
            self.name(sink, "thread_name", track, name)?;
        }
        for (step, time) in self.row.header.steps.iter().zip(&self.row.header.step_times) {
            let length = time.ended_ns.saturating_sub(time.began_ns).max(0) as u64;
            let counted = json!({ "faults": time.faults, "retries": time.retries, "flushes": time.flushes });
            self.span(sink, STEPS, name_of(step), (time.began_ns, length), counted)?;
        }
        self.operations(sink)?;
        for range in &self.row.ranges {
            let args =
                json!({ "gpa": self.gpa(range.first_page), "bytes": range.pages.saturating_mul(PAGE_SIZE) });
            sink.put(&TraceEvent {
                name: range.cause.name(),
                ph: "i",
                ts: self.microseconds(range.at_ns as i64),
                dur: None,
                pid: self.pid,
                tid: KERNEL,
                args,
            })?;
        }
        let mut named = Vec::new();
        for stall in &self.row.stalls {
            let track = FIRST_VCPU.saturating_add(stall.vcpu);
            if !named.contains(&track) {
                named.push(track);
                self.name(sink, "thread_name", track, &format!("vCPU {} stands still", stall.vcpu))?;
            }
            let args = json!({ "gpa": stall.page.map(|page| self.gpa(page)) });
            self.span(sink, track, "stall", (stall.began_ns as i64, stall.ns), args)?;
        }
        Ok(())
    }

    /// Each bracket with its parts inside.
    fn operations(&self, sink: &mut Sink<'_>) -> io::Result<()> {
        for (began, one) in self.row.brackets() {
            let args = json!({
                "gpa": self.gpa(one.first_page),
                "bytes": one.pages.saturating_mul(PAGE_SIZE),
                "folio_bytes": PAGE_SIZE << one.order.get(),
            });
            self.span(sink, OPERATIONS, one.cause.name(), (began as i64, one.total_ns()), args)?;
            let mut at = began;
            for (name, length) in [("zap", one.zap_ns), ("operation", one.operation_ns), ("end", one.end_ns)]
            {
                if length > 0 {
                    self.span(sink, OPERATIONS, name, (at as i64, length), Value::Null)?;
                }
                at = at.saturating_add(length);
            }
        }
        Ok(())
    }

    fn span(
        &self,
        sink: &mut Sink<'_>,
        tid: u32,
        name: &str,
        (began_ns, ns): (i64, u64),
        args: Value,
    ) -> io::Result<()> {
        let (ts, dur) = (self.microseconds(began_ns), Some(ns as f64 / 1e3));
        sink.put(&TraceEvent { name, ph: "X", ts, dur, pid: self.pid, tid, args })
    }

    fn name(&self, sink: &mut Sink<'_>, kind: &str, tid: u32, name: &str) -> io::Result<()> {
        let args = json!({ "name": name });
        sink.put(&TraceEvent { name: kind, ph: "M", ts: 0.0, dur: None, pid: self.pid, tid, args })
    }

    fn microseconds(&self, since_began: i64) -> f64 {
        self.row.header.began_ns.saturating_add_signed(since_began) as f64 / 1e3
    }

    fn gpa(&self, page: u64) -> String {
        format!("{:#x}", self.row.header.arena.gpa.saturating_add(page.saturating_mul(PAGE_SIZE)))
    }
}

fn name_of(step: &StepEvent) -> &'static str {
    match step {
        StepEvent::Fill => "fill",
        StepEvent::Hot { .. } => "hot",
        StepEvent::Baseline => "baseline",
        StepEvent::Reclaim { .. } => "reclaim",
        StepEvent::Stop => "stop",
        StepEvent::Refault => "refault",
        StepEvent::Sweep => "sweep",
        StepEvent::Other => "other",
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
