//! The text and the record of a session.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::account::Account;
use super::pageout::PagedOut;
use super::session::{Session, Span};
use experiment::fold::RANGE_SIZES;
use program::units::{self, Charset};
use tap::KvmEvent;

/// The version of the record.
const SCHEMA: u32 = 1;

/// Ranges of one cause and class of size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranges {
    cause: String,
    /// The class of size, by its limit: `4 KiB`, `2 MiB`, `more`.
    size: &'static str,
    ranges: u64,
    bytes: u64,
}

/// The figures of a span.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    ns: u64,
    ranges: u64,
    bytes: u64,
    /// Bytes announced over bytes of the folios taken, at least 1; null if no folio was taken, or one of unknown size.
    amplification: Option<f64>,
    /// Ranges that took a folio of unknown size.
    folios_unknown: u64,
    by_cause: Vec<Ranges>,
    lost_events: u64,
    /// KVM's counters at the end of the span.
    counters: BTreeMap<&'static str, u64>,
    /// Events of KVM, where its counters cannot be read.
    deeds: BTreeMap<&'static str, u64>,
}

impl Entry {
    fn of(span: &Span) -> Self {
        let account = &span.account;
        let all = account.all();
        let by_cause = account.by_cause_and_size().into_iter();
        let by_cause =
            by_cause.map(|(cause, size, sum)| Ranges { cause, size, ranges: sum.ranges, bytes: sum.bytes });
        Self {
            ns: span.ns,
            ranges: all.ranges,
            bytes: all.bytes,
            amplification: account.amplification(),
            folios_unknown: account.unknown,
            by_cause: by_cause.collect(),
            lost_events: account.lost,
            counters: span.counters.clone(),
            deeds: account.kvm_events.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Mapping {
    start: u64,
    end: u64,
    shared: bool,
    name: String,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, strum::Display)]
pub enum Ended {
    /// After the time that was asked for.
    #[strum(to_string = "complete")]
    Complete,
    /// By a signal.
    #[strum(to_string = "cancelled")]
    Cancelled,
    #[strum(to_string = "the process ended")]
    ProcessGone,
    /// The kernel's account failed, for this reason.
    #[strum(to_string = "failed: {0}")]
    Failed(String),
}

/// The record of a session: `attach.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    schema: u32,
    /// The time of its begin, UTC.
    pub started_at: String,
    /// How the session ended; null while it runs, and if this program was killed.
    ended: Option<String>,
    pid: u32,
    comm: String,
    vms: usize,
    vcpus: u32,
    memory: Vec<Mapping>,
    /// KVM's counters at the begin.
    counters: BTreeMap<&'static str, u64>,
    warnings: Vec<String>,
    /// The result of `--pageout`; null without it.
    pub pageout: Option<PagedOut>,
    spans: Vec<Entry>,
    total: Option<Entry>,
}

impl Record {
    /// A record without spans.
    pub fn new(session: &Session, started_at: String) -> Self {
        let mapping = |memory: &super::Memory| Mapping {
            start: memory.range.start().get(),
            end: memory.range.end().get(),
            shared: memory.shared,
            name: memory.name.clone(),
        };
        let holder = session.holder();
        Self {
            schema: SCHEMA,
            started_at,
            ended: None,
            pid: holder.pid(),
            comm: holder.comm().to_owned(),
            vms: holder.vms().len(),
            vcpus: holder.vcpus(),
            memory: session.memory().iter().map(mapping).collect(),
            counters: session.counters(),
            warnings: session.warnings().to_vec(),
            pageout: None,
            spans: Vec::new(),
            total: None,
        }
    }

    /// Adds a span, and the sum of all so far.
    pub fn add(&mut self, span: &Span, total: &Span) {
        self.spans.push(Entry::of(span));
        self.total = Some(Entry::of(total));
    }

    /// The number of spans.
    pub fn spans(&self) -> usize {
        self.spans.len()
    }

    /// Notes how it ended.
    pub fn end(&mut self, ended: &Ended) {
        self.ended = Some(ended.to_string());
    }

    /// As JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|json| json + "\n")
    }
}

/// The watched process, and its memory.
pub fn heading(session: &Session) -> String {
    let holder = session.holder();
    let mut text = format!(
        "process {} ({}): {} with {}\n",
        holder.pid(),
        holder.comm(),
        units::counted(holder.vms().len() as u64, "VM"),
        units::counted(holder.vcpus().into(), "vCPU")
    );
    for memory in session.memory() {
        let (range, bytes) = (memory.range, units::bytes(memory.range.len()));
        let kind = if memory.shared { "shared" } else { "private" };
        let _ = writeln!(
            text,
            "  {:#x}-{:#x} {bytes} {kind} {}",
            range.start().get(),
            range.end().get(),
            memory.name
        );
    }
    for warning in session.warnings() {
        let _ = writeln!(text, "  note: {warning}");
    }
    text
}

/// The headings of the columns.
pub fn columns() -> String {
    let mut text = format!("{:>8} {:>9} {:>9}", "time", "ranges", "bytes");
    for (size, _) in RANGE_SIZES {
        let _ = write!(text, " {size:>8}");
    }
    text + &format!(" {:>8} {:>17} {:>9} {:>6}  causes", "amplif.", "SPTEs 4k / 2m", "faults", "lost")
}

/// A span as a line, `seconds` after the beginning. `before` has KVM's counters at the begin of the span.
pub fn line(seconds: f64, span: &Span, before: &BTreeMap<&'static str, u64>, charset: Charset) -> String {
    let account = &span.account;
    let all = account.all();
    let mut text = format!("{seconds:>7.1}s {:>9} {:>9}", units::count(all.ranges), units::bytes(all.bytes));
    for size in 0..RANGE_SIZES.len() {
        let _ = write!(text, " {:>8}", units::count(account.of_size(size).ranges));
    }
    let missing = || charset.missing().to_owned();
    let now = |name: &str| span.counters.get(name).copied();
    let leaves = now("pages_4k").zip(now("pages_2m"));
    let leaves = leaves.map(|(small, huge)| format!("{} / {}", units::count(small), units::count(huge)));
    let fixed = now("pf_fixed").map(|now| now.saturating_sub(before.get("pf_fixed").copied().unwrap_or(0)));
    let faults = fixed.or_else(|| faults_by_tracepoint(account)).map(units::count);
    let amplification = account.amplification().map(units::times);
    let _ = write!(
        text,
        " {:>8} {:>17} {:>9} {:>6}  {}",
        amplification.unwrap_or_else(missing),
        leaves.unwrap_or_else(missing),
        faults.unwrap_or_else(missing),
        units::count(account.lost),
        causes(account)
    );
    text
}

/// Faults by KVM's tracepoints: those that were resolved, as `pf_fixed` counts them, where this kernel has that tracepoint;
/// else all.
fn faults_by_tracepoint(account: &Account) -> Option<u64> {
    let count = |event: KvmEvent| account.kvm_events.get(event.name()).copied();
    count(KvmEvent::SptesRequested).or_else(|| count(KvmEvent::KvmPageFaults))
}

/// `kswapd 12, holder: madvise(DONTNEED) 3`.
fn causes(account: &Account) -> String {
    let causes: Vec<_> =
        account.causes().iter().map(|(cause, sum)| format!("{cause} {}", units::count(sum.ranges))).collect();
    causes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(account: Account) -> String {
        let span = Span { account, ..Span::default() };
        let line = line(1.0, &span, &BTreeMap::new(), Charset::Ascii);
        let cells: Vec<&str> = line.split_whitespace().collect();
        // The column before the losses, which are last without a cause.
        cells[cells.len() - 2].to_owned()
    }

    #[test]
    fn faults_are_counted_by_tracepoint_where_no_counter_opens() {
        let deeds = |told: &[(KvmEvent, u64)]| {
            let mut account = Account::default();
            account.kvm_events.extend(told.iter().map(|(event, count)| (event.name(), *count)));
            account
        };
        assert_eq!(faults(deeds(&[])), "-");
        assert_eq!(faults(deeds(&[(KvmEvent::KvmPageFaults, 7)])), "7");
        assert_eq!(faults(deeds(&[(KvmEvent::KvmPageFaults, 0), (KvmEvent::SptesRequested, 1234)])), "1,234");
        assert_eq!(
            faults(deeds(&[(KvmEvent::KvmPageFaults, 0), (KvmEvent::SptesRequested, 0)])),
            "0",
            "no fault was resolved"
        );
    }
}
