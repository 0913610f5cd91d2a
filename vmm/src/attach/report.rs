//! What a session prints and leaves behind.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;

use super::account::{Account, SIZES};
use super::pageout::Pushed;
use super::session::{Session, Span};
use program::units::{self, Charset};
use tap::Deed;

/// The version of the record.
const SCHEMA: u32 = 1;

/// Ranges of one cause and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ranges {
    cause: String,
    /// Up to so large: `4 KiB`, `2 MiB`, `more`.
    size: &'static str,
    ranges: u64,
    bytes: u64,
}

/// Everything of one span.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    ns: u64,
    ranges: u64,
    bytes: u64,
    /// Bytes announced over those of the folios taken, 1 or more; null if none was taken, or some whose size is not known.
    amplification: Option<f64>,
    /// Ranges that took a folio whose size is not known.
    folios_unknown: u64,
    by_cause: Vec<Ranges>,
    lost_events: u64,
    /// KVM's counters at its end.
    counters: BTreeMap<&'static str, u64>,
    /// What KVM did, where its counters cannot be read.
    deeds: BTreeMap<&'static str, u64>,
}

impl Entry {
    fn of(span: &Span) -> Self {
        let account = &span.account;
        let all = account.all();
        let by_cause = account.iter().map(|(cause, size, tally)| Ranges {
            cause: cause.to_owned(),
            size,
            ranges: tally.ranges,
            bytes: tally.bytes,
        });
        Self {
            ns: span.ns,
            ranges: all.ranges,
            bytes: all.bytes,
            amplification: account.amplification(),
            folios_unknown: account.unknown,
            by_cause: by_cause.collect(),
            lost_events: account.lost,
            counters: span.counters.clone(),
            deeds: account.deeds.clone(),
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

/// How a session came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time was over.
    Complete,
    /// The user stopped it.
    Cancelled,
    /// The process that was watched ended.
    ProcessEnded,
    /// The kernel's account ended, for this reason.
    Failed(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::ProcessEnded => f.write_str("the process ended"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// The record of a session: `attach.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    schema: u32,
    /// When it began, UTC.
    pub started_at: String,
    /// How the session ended; null while it goes on, and where this program was killed.
    ended: Option<String>,
    pid: u32,
    comm: String,
    vms: usize,
    vcpus: u32,
    memory: Vec<Mapping>,
    /// KVM's counters when it began.
    counters: BTreeMap<&'static str, u64>,
    warnings: Vec<String>,
    /// What `--pageout` did; null without it.
    pub pageout: Option<Pushed>,
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

    /// Puts down how it ended.
    pub fn end(&mut self, ended: &Ended) {
        self.ended = Some(ended.to_string());
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that a record of numbers and texts can have.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|json| json + "\n")
    }
}

/// Whose VM is watched, and where.
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

/// The heads of the columns.
pub fn columns() -> String {
    let mut text = format!("{:>8} {:>9} {:>9}", "time", "ranges", "bytes");
    for (size, _) in SIZES {
        let _ = write!(text, " {size:>8}");
    }
    text + &format!(" {:>8} {:>17} {:>9} {:>6}  causes", "amplif.", "SPTEs 4k / 2m", "faults", "lost")
}

/// A span as a line, `seconds` after the beginning. `before` is what KVM had counted until then.
pub fn line(seconds: f64, span: &Span, before: &BTreeMap<&'static str, u64>, charset: Charset) -> String {
    let account = &span.account;
    let all = account.all();
    let mut text = format!("{seconds:>7.1}s {:>9} {:>9}", units::count(all.ranges), units::bytes(all.bytes));
    for size in 0..SIZES.len() {
        let _ = write!(text, " {:>8}", units::count(account.of_size(size).ranges));
    }
    let missing = || charset.missing().to_owned();
    let now = |name: &str| span.counters.get(name).copied();
    let leaves = now("pages_4k").zip(now("pages_2m"));
    let leaves = leaves.map(|(small, huge)| format!("{} / {}", units::count(small), units::count(huge)));
    let fixed = now("pf_fixed").map(|now| now.saturating_sub(before.get("pf_fixed").copied().unwrap_or(0)));
    let faults = fixed.or_else(|| faults_told(account)).map(units::count);
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

/// Faults as KVM's tracepoints tell of them: those that were answered, where this kernel has that tracepoint, as `pf_fixed`
/// counts them; else all.
fn faults_told(account: &Account) -> Option<u64> {
    let told = |deed: Deed| account.deeds.get(deed.name()).copied();
    told(Deed::SpteRequest).or_else(|| told(Deed::PageFault))
}

/// `kswapd 12, holder: madvise(DONTNEED) 3`.
fn causes(account: &Account) -> String {
    let causes: Vec<_> = account
        .causes()
        .iter()
        .map(|(cause, tally)| format!("{cause} {}", units::count(tally.ranges)))
        .collect();
    causes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(account: Account) -> String {
        let span = Span { account, ..Span::default() };
        let line = line(1.0, &span, &BTreeMap::new(), Charset::Ascii);
        let cells: Vec<&str> = line.split_whitespace().collect();
        // Before the losses, and no cause behind them.
        cells[cells.len() - 2].to_owned()
    }

    #[test]
    fn faults_are_what_tracepoints_tell_where_no_counter_opens() {
        let deeds = |told: &[(Deed, u64)]| {
            let mut account = Account::default();
            account.deeds.extend(told.iter().map(|(deed, count)| (deed.name(), *count)));
            account
        };
        assert_eq!(faults(deeds(&[])), "-");
        assert_eq!(faults(deeds(&[(Deed::PageFault, 7)])), "7");
        assert_eq!(faults(deeds(&[(Deed::PageFault, 0), (Deed::SpteRequest, 1234)])), "1,234");
        assert_eq!(faults(deeds(&[(Deed::PageFault, 0), (Deed::SpteRequest, 0)])), "0", "none is known");
    }
}
