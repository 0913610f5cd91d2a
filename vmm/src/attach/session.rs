//! The watch of a VM that another process runs.
//!
//! ```text
//!   Holder ── pidfd, files ── its VMs          Counters ── debugfs: SPTEs, faults
//!      └── maps ── Memory ──┐                  PageScanner ── its pagemap: mappings of 2 MiB
//!                           ▼                      │
//!   tap ── ranges that meet it ── Span ── cause, size, amplification
//! ```
//!
//! A range has addresses and no process: ranges of another VM that has memory at the same addresses are included.

use std::collections::BTreeMap;

use guest_mem::{HvaRange, LargeFolio, MapLevel, PageRun, PageScanner, PageState, ScanError, with_causes};
use notifier_bridge::monotonic_ns;

use super::account::{Account, Layout, Parties};
use super::counters::Counters;
use super::holder::{Holder, HolderError};
use super::memory::{Memory, NotMapped, guest_memory, mapping_of, named};
use program::exit::{Class, Classified};
use program::units;
use tap::{Collector, Damaged, Event, Interest, KvmEvent, Ongoing, Tap, TapError, Via};

/// The limit on memory mapped by PTEs whose frames' flags are read for each span: some 40 ms.
const MOST_FLAGS: u64 = 1 << 30;

/// Events that wait to be taken: half a million ranges in a span.
const CAPACITY: usize = 1 << 19;

/// The consequence of unknown folios.
const NO_FOLIOS: &str = "no amplification where ranges are larger than 4 KiB";

/// A VM cannot be watched, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Holder(#[from] HolderError),
    #[error("process {0} has no mapping that looks like a guest's memory: name it with `--memory START-END`")]
    NoMemory(u32),
    #[error("`--memory` of process {pid}")]
    NotMapped { pid: u32, source: NotMapped },
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("the kernel's account ended")]
    Source(#[from] Damaged),
}

impl Classified for SessionError {
    fn class(&self) -> Class {
        match self {
            Self::Holder(error) => error.class(),
            Self::NoMemory(_) | Self::NotMapped { .. } => Class::Mistake,
            Self::Tap(_) => Class::Host,
            Self::Source(_) => Class::Fault,
        }
    }
}

/// The figures between two readings.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Its length, nanoseconds.
    pub ns: u64,
    /// The ranges.
    pub account: Account,
    /// KVM's counters at its end.
    pub counters: BTreeMap<&'static str, u64>,
}

impl Span {
    /// Appends the span that follows.
    pub fn add(&mut self, next: &Self) {
        self.ns += next.ns;
        self.account.merge(&next.account);
        self.counters.clone_from(&next.counters);
    }
}

/// A VM that is watched.
pub struct Session {
    holder: Holder,
    memory: Vec<Memory>,
    collector: Collector,
    counters: Option<Counters>,
    scanner: Option<PageScanner>,
    /// Whether PTEs may map folios of more than one page.
    large_folios: bool,
    ongoing: Ongoing,
    pages: Vec<PageRun>,
    /// `None` if they are not known.
    folios: Option<Vec<LargeFolio>>,
    events: Vec<Event>,
    /// The collector's losses and its counts of KVM's events at the last look.
    lost: u64,
    kvm_events: BTreeMap<KvmEvent, u64>,
    begun_ns: u64,
    warnings: Vec<String>,
}

impl Session {
    /// Begins to watch the VMs of `holder`: the memory `wanted`, or the mappings that look like a guest's memory.
    pub fn open(holder: Holder, wanted: &[HvaRange], via: Via) -> Result<Self, SessionError> {
        let memory = watched_memory(&holder, wanted)?;
        let mut warnings = Vec::new();
        let mut or_warn = |what: &str, why: String| warnings.push(format!("{what}: {why}"));
        let counters = Counters::open(holder.pid(), holder.vms());
        let counters =
            counters.map_err(|error| or_warn("no SPTE and fault counters", with_causes(&error))).ok();
        // A kernel that is locked down opens only the read-only files of debugfs, and counters that can be reset are not.
        // Then the tap counts KVM's events.
        let counts_faults =
            counters.as_ref().is_some_and(|counters| counters.read().contains_key("pf_fixed"));
        let threads = holder.threads();
        if !counts_faults {
            let why = match counters {
                Some(_) => "a kernel that is locked down opens no counter that can be reset",
                None => "there are no counters",
            };
            or_warn(
                "faults are those that tracepoints tell of the threads that there are now",
                why.to_owned(),
            );
        }
        let scanner = PageScanner::of_process(holder.pid());
        let scanner = scanner.map_err(|error| or_warn(NO_FOLIOS, with_causes(&error))).ok();
        let interest = Interest { causes: true, calls: true, kvm: !counts_faults };
        let ranges: Vec<HvaRange> = memory.iter().map(|memory| memory.range).collect();
        let collector = Tap::open_for(via, interest, &ranges, &threads, CAPACITY)?;
        warnings
            .extend(collector.missing().iter().map(|name| format!("this kernel has no tracepoint {name}")));
        let mut session = Self {
            memory,
            collector,
            counters,
            large_folios: scanner.is_some() && may_have_large_folios(&holder, &ranges),
            scanner,
            ongoing: Ongoing::default(),
            pages: Vec::new(),
            folios: None,
            events: Vec::new(),
            lost: 0,
            kvm_events: BTreeMap::new(),
            begun_ns: monotonic_ns(),
            warnings,
            holder,
        };
        session.read_layout();
        session.warn_of_unknown_folios();
        Ok(session)
    }

    /// The process that holds the VM.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }
    /// The memory watched, lowest first.
    pub fn memory(&self) -> &[Memory] {
        &self.memory
    }
    /// What cannot be measured, each with the reason.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
    /// KVM's counters now.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.as_ref().map(Counters::read).unwrap_or_default()
    }

    /// The figures since the last span.
    ///
    /// # Errors
    /// The tap failed.
    pub fn span(&mut self) -> Result<Span, SessionError> {
        self.events.clear();
        let seen = self.collector.take(&mut self.events)?;
        let now = monotonic_ns();
        let mut span = Span { ns: now - self.begun_ns, counters: self.counters(), ..Span::default() };
        self.begun_ns = now;
        let tasks = self.collector.tasks();
        let parties = Parties { tasks: &tasks, holder: self.holder.pid(), ours: std::process::id() };
        let layout = Layout { pages: &self.pages, folios: self.folios.as_deref() };
        span.account.add(&self.events, &mut self.ongoing, parties, layout);
        span.account.lost = seen.lost - self.lost;
        let events: BTreeMap<_, _> = self.collector.kvm_events_of(self.holder.pid()).into_iter().collect();
        for (event, now) in &events {
            let before = self.kvm_events.get(event).copied().unwrap_or(0);
            span.account.kvm_events.insert(event.name(), now - before);
        }
        if span.account.lost > 0 {
            // The end of some work may be among the lost events.
            self.ongoing = Ongoing::default();
        }
        (self.lost, self.kvm_events) = (seen.lost, events);
        self.read_layout();
        Ok(span)
    }

    /// Reads the present layout of the memory; keeps the last one if the process has ended.
    fn read_layout(&mut self) {
        let Some(scanner) = &mut self.scanner else { return };
        let mut pages = Vec::new();
        for memory in &self.memory {
            let mut runs = Vec::new();
            if scanner.scan(memory.range, &mut runs).is_err() {
                return;
            }
            pages.append(&mut runs);
        }
        self.folios = match self.large_folios || pages.iter().any(|run| run.state.is_pmd_mapped()) {
            true => large_folios(scanner, &pages).ok().flatten(),
            false => Some(Vec::new()),
        };
        self.pages = pages;
    }

    fn warn_of_unknown_folios(&mut self) {
        let Some(scanner) = self.scanner.as_ref().filter(|_| self.folios.is_none()) else { return };
        let why = match scanner.knows_folios() {
            true => format!("there is more than {} mapped by 4 KiB to look at", units::bytes(MOST_FLAGS)),
            false => "which folios there are is for root to see (/proc/kpageflags)".to_owned(),
        };
        self.warnings.push(format!("{NO_FOLIOS}: {why}"));
    }
}

/// The memory to watch: what is `wanted`, or the mappings that look like a guest's memory.
fn watched_memory(holder: &Holder, wanted: &[HvaRange]) -> Result<Vec<Memory>, SessionError> {
    let (pid, maps) = (holder.pid(), holder.maps()?);
    let of =
        |&range: &HvaRange| named(&maps, range).map_err(|source| SessionError::NotMapped { pid, source });
    let memory = match wanted {
        [] => guest_memory(&maps),
        wanted => wanted.iter().map(of).collect::<Result<_, _>>()?,
    };
    if memory.is_empty() { Err(SessionError::NoMemory(pid)) } else { Ok(memory) }
}

/// Folios of more than one page that PTEs map; `None` if they cannot be known, or there is too much memory to read.
fn large_folios(scanner: &mut PageScanner, pages: &[PageRun]) -> Result<Option<Vec<LargeFolio>>, ScanError> {
    let by_pte = |run: &&PageRun| matches!(run.state, PageState::Mapped { level: MapLevel::Pte, .. });
    let small = || pages.iter().filter(by_pte);
    if !scanner.knows_folios() || small().map(|run| run.range.len()).sum::<u64>() > MOST_FLAGS {
        return Ok(None);
    }
    let mut folios = Vec::new();
    for run in small() {
        scanner.large_folios(run.range, &mut folios)?;
    }
    Ok(Some(folios))
}

/// Whether the kernel may give this memory folios of more than one page; true if the kernel does not tell.
fn may_have_large_folios(holder: &Holder, watched: &[HvaRange]) -> bool {
    let Ok(smaps) = holder.smaps() else { return true };
    let mut inside = false;
    let (mut told, mut eligible) = (false, false);
    for line in smaps.lines() {
        if let Some(range) = mapping_of(line) {
            inside = watched.iter().any(|one| one.overlaps(range));
        } else if let Some(word) = line.strip_prefix("THPeligible:").filter(|_| inside) {
            told = true;
            eligible |= word.trim() != "0";
        }
    }
    eligible || !told
}
