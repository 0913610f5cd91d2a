//! The timeline as a file that trace viewers read: the JSON of Chrome's trace event format, which Perfetto
//! (<https://ui.perfetto.dev>) opens too. Each row is a process, and what happened in it stands on tracks of its own.
//! Time is `CLOCK_MONOTONIC`, in microseconds, so that other traces of the same host can be laid beside.

use std::io::{self, Write};

use guest_mem::PAGE_SIZE;
use serde::Serialize;
use serde_json::{Value, json};

use experiment::events::{
    Announcement, Counted, Event, KernelRange, RowEvents, Setting, Stall, StallOn, Step,
};

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
        RowTrace { setting: row.setting(), pid: row.row.saturating_add(1) }
            .write(row.first_trial(), &mut sink)?;
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
    setting: &'a Setting,
    pid: u32,
}

impl RowTrace<'_> {
    fn write(&self, events: &[Event], sink: &mut Sink<'_>) -> io::Result<()> {
        self.name(sink, "process_name", 0, &self.setting.label.to_string())?;
        let tracks = [(STEPS, "steps"), (OPERATIONS, "operations"), (KERNEL, "ranges, by the kernel")];
        for (track, name) in tracks {
            self.name(sink, "thread_name", track, name)?;
        }
        let (mut begun, mut named) = (None, Vec::new());
        for event in events {
            match event {
                Event::StepBegan { at_ns, step } => begun = Some((*at_ns, step)),
                Event::StepEnded { at_ns, counted } => self.step(sink, begun.take(), *at_ns, counted)?,
                Event::Announced(one) => self.announced(sink, one)?,
                Event::KernelRange(range) => self.range(sink, range)?,
                Event::Stall(stall) if stall.on != StallOn::Undisturbed => {
                    self.stall(sink, stall, &mut named)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn step(
        &self,
        sink: &mut Sink<'_>,
        begun: Option<(u64, &Step)>,
        at_ns: u64,
        counted: &Counted,
    ) -> io::Result<()> {
        let Some((began, step)) = begun else { return Ok(()) };
        self.span(sink, STEPS, step.name(), (began, at_ns.saturating_sub(began)), json!(counted))
    }

    fn range(&self, sink: &mut Sink<'_>, range: &KernelRange) -> io::Result<()> {
        let Some((first_page, pages)) = range.pages(self.setting.pages()) else { return Ok(()) };
        sink.put(&TraceEvent {
            name: range.cause.name(),
            ph: "i",
            ts: self.microseconds(range.at_ns),
            dur: None,
            pid: self.pid,
            tid: KERNEL,
            args: json!({ "gpa": self.gpa(first_page), "bytes": pages.saturating_mul(PAGE_SIZE) }),
        })
    }

    fn stall(&self, sink: &mut Sink<'_>, stall: &Stall, named: &mut Vec<u32>) -> io::Result<()> {
        let Some(at_ns) = stall.at_ns else { return Ok(()) };
        let track = FIRST_VCPU.saturating_add(stall.vcpu);
        if !named.contains(&track) {
            named.push(track);
            self.name(sink, "thread_name", track, &format!("vCPU {} stands still", stall.vcpu))?;
        }
        let args = json!({ "gpa": stall.page.map(|page| self.gpa(page)) });
        self.span(sink, track, "stall", (at_ns, stall.ns), args)
    }

    /// A bracket with its parts inside.
    fn announced(&self, sink: &mut Sink<'_>, one: &Announcement) -> io::Result<()> {
        let args = json!({
            "gpa": self.gpa(one.first_page),
            "bytes": one.pages.saturating_mul(PAGE_SIZE),
            "folio_bytes": PAGE_SIZE << one.order.get(),
        });
        self.span(sink, OPERATIONS, one.cause.name(), (one.at_ns, one.total_ns()), args)?;
        let mut at = one.at_ns;
        for (name, length) in [("zap", one.zap_ns), ("operation", one.operation_ns), ("end", one.end_ns)] {
            if length > 0 {
                self.span(sink, OPERATIONS, name, (at, length), Value::Null)?;
            }
            at = at.saturating_add(length);
        }
        Ok(())
    }

    fn span(
        &self,
        sink: &mut Sink<'_>,
        tid: u32,
        name: &str,
        (began_ns, ns): (u64, u64),
        args: Value,
    ) -> io::Result<()> {
        let (ts, dur) = (self.microseconds(began_ns), Some(ns as f64 / 1e3));
        sink.put(&TraceEvent { name, ph: "X", ts, dur, pid: self.pid, tid, args })
    }

    fn name(&self, sink: &mut Sink<'_>, kind: &str, tid: u32, name: &str) -> io::Result<()> {
        let args = json!({ "name": name });
        sink.put(&TraceEvent { name: kind, ph: "M", ts: 0.0, dur: None, pid: self.pid, tid, args })
    }

    fn microseconds(&self, since_began: u64) -> f64 {
        self.setting.began_ns.saturating_add(since_began) as f64 / 1e3
    }

    fn gpa(&self, page: u64) -> String {
        format!("{:#x}", self.setting.arena.gpa.saturating_add(page.saturating_mul(PAGE_SIZE)))
    }
}

#[cfg(test)]
mod tests;
