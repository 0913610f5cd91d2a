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

use guest_mem::{HvaRange, LargeFolio, MapLevel, PageRun, PageScanner, PageState, ScanError, with_causes};
use notifier_bridge::monotonic_ns;

use super::account::{Account, Layout, Parties};
use super::counters::Counters;
use super::holder::{Holder, HolderError};
use super::memory::{Memory, NotMapped, guest_memory, mapping_of, named};
use program::exit::{Class, Classified};
use program::units;
use tap::source::SourceError;
use tap::{AtWork, Collector, Deed, Event, Interest, Tap, TapError, Via};

/// The most memory mapped by PTEs whose frames' flags are read at every look: some 40 ms.
const MOST_FLAGS: u64 = 1 << 30;

/// Events that wait to be taken: half a million ranges between two looks.
const CAPACITY: usize = 1 << 19;

/// What follows if it is not known which folios there are.
const NO_FOLIOS: &str = "no amplification where ranges are larger than 4 KiB";

/// Why a VM cannot be watched, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Its process.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// No memory to watch.
    #[error("process {0} has no mapping that looks like a guest's memory: name it with `--memory START-END`")]
    NoMemory(u32),
    /// Memory that was named is not there.
    #[error("`--memory` of process {pid}")]
    NotMapped {
        /// The process that was to have it.
        pid: u32,
        /// What is there.
        source: NotMapped,
    },
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
            Self::NoMemory(_) | Self::NotMapped { .. } => Class::Mistake,
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

impl Span {
    /// Makes it longer by the one that follows it.
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
    /// Whether PTEs may map folios of more than one page here.
    large_folios: bool,
    at_work: AtWork,
    pages: Vec<PageRun>,
    /// `None` if it is not known which there are.
    folios: Option<Vec<LargeFolio>>,
    events: Vec<Event>,
    /// What the collector had lost, and the deeds it had counted, when it was last asked.
    lost: u64,
    deeds: BTreeMap<Deed, u64>,
    begun_ns: u64,
    warnings: Vec<String>,
}

impl Session {
    /// Watches the VMs that `holder` has: the memory named, or what looks like a guest's.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(holder: Holder, wanted: &[HvaRange], via: &Via) -> Result<Self, SessionError> {
        let maps = holder.maps()?;
        let memory = match wanted {
            [] => guest_memory(&maps),
            wanted => {
                let pid = holder.pid();
                let of = |&range: &HvaRange| {
                    named(&maps, range).map_err(|source| SessionError::NotMapped { pid, source })
                };
                wanted.iter().map(of).collect::<Result<_, _>>()?
            }
        };
        if memory.is_empty() {
            return Err(SessionError::NoMemory(holder.pid()));
        }
        let mut warnings = Vec::new();
        let mut or_warn = |what: &str, why: String| warnings.push(format!("{what}: {why}"));
        let counters = Counters::open(holder.pid(), holder.vms());
        let counters =
            counters.map_err(|error| or_warn("no SPTE and fault counters", with_causes(&error))).ok();
        // A kernel that is locked down opens only the files of debugfs that nobody can write to, and a counter of deeds
        // can be reset. Then they are counted one by one.
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
        let interest = Interest { causes: true, calls: true, deeds: !counts_faults };
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
            at_work: AtWork::default(),
            pages: Vec::new(),
            folios: None,
            events: Vec::new(),
            lost: 0,
            deeds: BTreeMap::new(),
            begun_ns: monotonic_ns(),
            warnings,
            holder,
        };
        session.look();
        session.say_what_folios_are_unknown();
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
        let layout = Layout { pages: &self.pages, folios: self.folios.as_deref() };
        span.account.add(&self.events, &mut self.at_work, parties, layout);
        span.account.lost = seen.lost - self.lost;
        let deeds = self.collector.deeds_of(self.holder.pid()).into_iter().collect::<BTreeMap<_, _>>();
        for (deed, now) in &deeds {
            let before = self.deeds.get(deed).copied().unwrap_or(0);
            span.account.deeds.insert(deed.name(), now - before);
        }
        if span.account.lost > 0 {
            // The end of something may be among it.
            self.at_work = AtWork::default();
        }
        (self.lost, self.deeds) = (seen.lost, deeds);
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
        self.folios = match self.large_folios || pages.iter().any(|run| run.state.is_pmd_mapped()) {
            true => large_folios(scanner, &pages).ok().flatten(),
            false => Some(Vec::new()),
        };
        self.pages = pages;
    }

    fn say_what_folios_are_unknown(&mut self) {
        let Some(scanner) = self.scanner.as_ref().filter(|_| self.folios.is_none()) else { return };
        let why = match scanner.knows_folios() {
            true => format!("there is more than {} mapped by 4 KiB to look at", units::bytes(MOST_FLAGS)),
            false => "which folios there are is for root to see (/proc/kpageflags)".to_owned(),
        };
        self.warnings.push(format!("{NO_FOLIOS}: {why}"));
    }
}

/// Folios of more than one page that PTEs map; `None` if they cannot be known, or there is too much to look at.
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

/// Whether the kernel may give this memory folios of more than one page. One that does not say so may.
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
