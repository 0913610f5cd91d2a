//! Watching a VM that another process runs.
//!
//! ```text
//!   Holder ── pidfd, files ── which VMs        Counters ── debugfs: SPTEs, faults
//!      └── maps ── Memory ──┐                  PageScanner ── its pagemap: what is mapped by 2 MiB
//!                           ▼                      │
//!   tap ── ranges that meet it ── Span ── cause, size, amplification
//! ```
//!
//! Addresses are all that a range says of whose it is. Another VM that has memory at the same addresses is seen as well.

use std::collections::BTreeMap;

use guest_mem::{HvaRange, PageRun, PageScanner};
use notifier_bridge::monotonic_ns;

use super::account::{Account, Parties};
use super::counters::Counters;
use super::holder::{Holder, HolderError};
use super::memory::{Memory, guest_memory};
use crate::exit::{Class, Classified};
use crate::run::chain;
use crate::tap::source::SourceError;
use crate::tap::{AtWork, Collector, Deed, Event, Interest, Tap, TapError, Via};

/// Events that wait to be taken: half a million ranges between two looks.
const CAPACITY: usize = 1 << 19;

/// Why a VM cannot be watched, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Its process.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// No memory to watch.
    #[error("process {0} has no mapping that looks like a guest's memory: name it with `--memory START-END`")]
    NoMemory(u32),
    /// No account.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It ended.
    #[error("the kernel's account ended")]
    Source(#[from] SourceError),
}

impl Classified for SessionError {
    fn class(&self) -> Class {
        match self {
            Self::Holder(error) => error.class(),
            Self::NoMemory(_) => Class::Mistake,
            Self::Tap(_) => Class::Host,
            Self::Source(_) => Class::Fault,
        }
    }
}

/// What was seen between two looks.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// How long, nanoseconds.
    pub ns: u64,
    /// The ranges.
    pub account: Account,
    /// KVM's counters at its end.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A VM that is watched.
pub struct Session {
    holder: Holder,
    memory: Vec<Memory>,
    collector: Collector,
    counters: Option<Counters>,
    scanner: Option<PageScanner>,
    at_work: AtWork,
    pages: Vec<PageRun>,
    events: Vec<Event>,
    /// What the collector had lost, and the deeds it had counted, when it was last asked.
    lost: u64,
    deeds: [u64; Deed::ALL.len()],
    begun_ns: u64,
    warnings: Vec<String>,
}

impl Session {
    /// Watches the VMs that `holder` has: the memory named, or what looks like a guest's.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(holder: Holder, named: &[HvaRange], via: &Via) -> Result<Self, SessionError> {
        let memory = match named {
            [] => guest_memory(&holder.maps()?),
            named => {
                let of = |&range: &HvaRange| Memory { range, shared: false, name: "named".to_owned() };
                named.iter().map(of).collect()
            }
        };
        if memory.is_empty() {
            return Err(SessionError::NoMemory(holder.pid()));
        }
        let mut warnings = Vec::new();
        let mut or_warn = |what: &str, why: String| warnings.push(format!("{what}: {why}"));
        let counters = Counters::open(holder.pid(), holder.vms());
        let counters = counters.map_err(|error| or_warn("no SPTE and fault counters", chain(&error))).ok();
        // A kernel that is locked down opens only the files of debugfs that nobody can write to, and a counter of deeds
        // can be reset. Then they are counted one by one.
        let counts_faults =
            counters.as_ref().is_some_and(|counters| counters.read().contains_key("pf_fixed"));
        if counters.is_some() && !counts_faults {
            or_warn(
                "faults are counted by tracepoint",
                "a kernel that is locked down shows no counter".to_owned(),
            );
        }
        let scanner = PageScanner::of_process(holder.pid());
        let scanner =
            scanner.map_err(|error| or_warn("amplification takes every page for 4 KiB", chain(&error))).ok();
        let interest = Interest { causes: true, calls: true, deeds: !counts_faults };
        let ranges: Vec<HvaRange> = memory.iter().map(|memory| memory.range).collect();
        let collector = Tap::open(via, interest, &ranges, CAPACITY)?;
        warnings
            .extend(collector.missing().iter().map(|name| format!("this kernel has no tracepoint {name}")));
        let mut session = Self {
            holder,
            memory,
            collector,
            counters,
            scanner,
            at_work: AtWork::default(),
            pages: Vec::new(),
            events: Vec::new(),
            lost: 0,
            deeds: [0; Deed::ALL.len()],
            begun_ns: monotonic_ns(),
            warnings,
        };
        session.look();
        Ok(session)
    }

    /// Whose VM it is.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }
    /// The memory watched, lowest first.
    pub fn memory(&self) -> &[Memory] {
        &self.memory
    }
    /// What cannot be seen, and why.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
    /// KVM's counters now.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.as_ref().map(Counters::read).unwrap_or_default()
    }

    /// What was seen since the last look.
    ///
    /// # Errors
    /// The kernel's account ended.
    pub fn span(&mut self) -> Result<Span, SessionError> {
        self.events.clear();
        let seen = self.collector.take(&mut self.events)?;
        let now = monotonic_ns();
        let mut span = Span { ns: now - self.begun_ns, counters: self.counters(), ..Span::default() };
        self.begun_ns = now;
        let tasks = self.collector.tasks();
        let parties = Parties { tasks: &tasks, holder: self.holder.pid(), ours: std::process::id() };
        span.account.add(&self.events, &mut self.at_work, parties, &self.pages);
        span.account.lost = seen.lost - self.lost;
        for (deed, (now, before)) in Deed::ALL.into_iter().zip(seen.deeds.iter().zip(&self.deeds)) {
            if now > before {
                span.account.deeds.insert(deed.name(), now - before);
            }
        }
        if span.account.lost > 0 {
            // The end of something may be among it.
            self.at_work = AtWork::default();
        }
        (self.lost, self.deeds) = (seen.lost, seen.deeds);
        self.look();
        Ok(span)
    }

    /// Remembers what its pages are now. Of a process that is gone, what they were.
    fn look(&mut self) {
        let Some(scanner) = &mut self.scanner else { return };
        let mut pages = Vec::new();
        for memory in &self.memory {
            let mut runs = Vec::new();
            if scanner.scan(memory.range, &mut runs).is_err() {
                return;
            }
            pages.append(&mut runs);
        }
        self.pages = pages;
    }
}
