//! The kernel's account of another process's VM: by whom, how large, and how large the ranges had to be.
//!
//! ```text
//!   tap::Event ── by_whom ──> KernelRange, system call ── RangeSums (as a run's) ── line, record
//!                                     └─ Layout: the folio that was there ── announced, needed
//! ```

use std::collections::BTreeMap;

use guest_mem::{Address, HvaRange, LargeFolio, MapLevel, PAGE_SIZE, PMD_SIZE, PageRun, PageState};

use experiment::events::{KernelRange, Ranges};
use experiment::fold::{RANGE_SIZES, RangeSums};
use notifier_bridge::By;
use tap::{Call, Event, Ongoing, Task, Work, advice_name, of_range};

/// The ranges of a span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    ranges: RangeSums<Call>,
    /// Bytes of the ranges that took one folio each.
    pub announced: u64,
    /// Bytes of these folios.
    pub needed: u64,
    /// Ranges that took one folio of unknown size. They are in neither of the two sums.
    pub unknown: u64,
    /// KVM's faults, SPTEs set and so on, by name.
    pub kvm_events: BTreeMap<&'static str, u64>,
    /// Events that were lost.
    pub lost: u64,
}

/// The pages of the watched memory at the beginning of a span.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// The pages, lowest first.
    pub pages: &'a [PageRun],
    /// The folios of more than one page that PTEs map, lowest first; `None` if they are not known.
    pub folios: Option<&'a [LargeFolio]>,
}

/// The threads and processes that may announce a range.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// Threads of events, in order of thread ID.
    pub tasks: &'a [Task],
    /// The process that holds the VM.
    pub holder: u32,
    /// This process.
    pub ours: u32,
}

impl Account {
    /// Adds the events of a span, in order of time. `ongoing` is the work in progress at the beginning of the span, and
    /// afterwards that at its end; `layout` is the memory at its beginning.
    pub fn add(&mut self, events: &[Event], ongoing: &mut Ongoing, parties: Parties<'_>, layout: Layout<'_>) {
        for event in events {
            let Some(range) = ongoing.follow(event) else { continue };
            let (cause, call) = by_whom(event, ongoing, parties);
            let start = range.start().get() as i64;
            let kernel_range =
                KernelRange { at_ns: event.time_ns, start, bytes: range.len(), cause, call: None };
            self.ranges.add(&kernel_range, call);
            match layout.needed_by(range) {
                _ if !takes_folio(cause, call) => {}
                Some(needed) => {
                    self.announced = self.announced.saturating_add(range.len());
                    self.needed = self.needed.saturating_add(needed);
                }
                None => self.unknown += 1,
            }
        }
    }

    /// Adds the account of another span.
    pub fn merge(&mut self, other: &Self) {
        self.ranges.merge(&other.ranges);
        // A VMM may repeatedly unmap terabytes that it only reserved.
        self.announced = self.announced.saturating_add(other.announced);
        self.needed = self.needed.saturating_add(other.needed);
        self.unknown += other.unknown;
        self.lost += other.lost;
        for (name, count) in &other.kvm_events {
            *self.kvm_events.entry(name).or_default() += count;
        }
    }

    /// All ranges together.
    pub fn all(&self) -> Ranges {
        self.ranges.sum(|_, _, _| true)
    }

    /// The ranges of a class of size, by its place in [`RANGE_SIZES`].
    pub fn of_size(&self, size: usize) -> Ranges {
        self.ranges.sum(|_, _, of| of == size)
    }

    /// The causes, most ranges first.
    pub fn causes(&self) -> Vec<(String, Ranges)> {
        let mut causes: BTreeMap<String, Ranges> = BTreeMap::new();
        for (by, call, _, ranges) in self.ranges.iter() {
            *causes.entry(cause_name(by, call)).or_default() += ranges;
        }
        let mut causes: Vec<_> = causes.into_iter().collect();
        causes.sort_by_key(|(_, ranges)| std::cmp::Reverse(ranges.ranges));
        causes
    }

    /// Every cause and class of size of which there is a range, in order of name and size.
    pub fn by_cause_and_size(&self) -> Vec<(String, &'static str, Ranges)> {
        let mut all: Vec<_> =
            self.ranges.iter().map(|(by, call, size, sum)| (cause_name(by, call), size, sum)).collect();
        all.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
        all.into_iter().map(|(cause, size, sum)| (cause, RANGE_SIZES[size].0, sum)).collect()
    }

    /// Bytes announced for each byte of the folios taken, at least 1; `None` if no folio was taken, or one of unknown size: the
    /// unknown ones are the large ones.
    pub fn amplification(&self) -> Option<f64> {
        (self.needed > 0 && self.unknown == 0).then(|| self.announced as f64 / self.needed as f64)
    }
}

/// The maker of a range, as a run has it; and the system call that a process's thread was in.
fn by_whom(event: &Event, ongoing: &Ongoing, parties: Parties<'_>) -> (By, Option<Call>) {
    let by = of_range(event, ongoing, parties.tasks, |pid, task| match pid {
        pid if pid == parties.holder => Some(By::Holder),
        pid if pid == parties.ours => Some(By::OwnThread),
        _ => task.and_then(|task| task.pid).map(|_| By::AnotherProcess),
    });
    let call = match ongoing.innermost(event.tid) {
        Some(Work::Call(call)) if matches!(by, By::Holder | By::OwnThread | By::AnotherProcess) => Some(call),
        _ => None,
    };
    (by, call)
}

/// Whether each such range takes one folio: reclaim, compaction, migration and collapse do, and a fault.
fn takes_folio(by: By, call: Option<Call>) -> bool {
    match (by, call) {
        (
            By::Holder | By::OwnThread | By::AnotherProcess,
            Some(Call::Madvise(advice) | Call::ProcessMadvise(advice)),
        ) => advice as i32 == libc::MADV_PAGEOUT,
        (By::Holder, call) => call.is_none(),
        (By::OwnThread | By::AnotherProcess | By::Unattributed, _) => false,
        _ => true,
    }
}

/// `kswapd`, `holder: madvise(DONTNEED)`.
fn cause_name(by: By, call: Option<Call>) -> String {
    let process = match by {
        By::Holder => "holder",
        By::OwnThread => "zapscope",
        By::AnotherProcess => "another",
        by => return by.name().to_owned(),
    };
    match (by, call) {
        (_, Some(call)) => format!("{process}: {}", call_name(call)),
        (By::Holder, None) => "holder: fault".to_owned(),
        (_, None) => process.to_owned(),
    }
}

/// `madvise(PAGEOUT)`.
fn call_name(call: Call) -> String {
    let advised = |call: &str, advice: u32| match advice_name(advice) {
        Some(name) => format!("{call}({name})"),
        None => format!("{call}({advice})"),
    };
    match call {
        Call::Madvise(advice) => advised("madvise", advice),
        Call::ProcessMadvise(advice) => advised("process_madvise", advice),
        Call::Mprotect => "mprotect".to_owned(),
        Call::Munmap => "munmap".to_owned(),
        Call::Mmap => "mmap".to_owned(),
        Call::Mremap => "mremap".to_owned(),
        Call::Fallocate => "fallocate".to_owned(),
        Call::Fork => "fork".to_owned(),
        Call::Userfault(_) => "userfaultfd".to_owned(),
    }
}

impl Layout<'_> {
    /// Bytes of the folio that a range takes, at most the range: the folio may have been split within the span. `None` if the
    /// folio is not known.
    fn needed_by(&self, range: HvaRange) -> Option<u64> {
        if range.len() <= PAGE_SIZE {
            return Some(range.len());
        }
        let start = range.start();
        let after = self.pages.partition_point(|run| run.range.end() <= start);
        let run = self.pages.get(after).filter(|run| run.range.contains(start))?;
        match run.state {
            // A range of less than all of it is of what a split left.
            PageState::Mapped { level: MapLevel::Pmd, .. } => {
                (start.is_aligned(PMD_SIZE) && range.len() >= PMD_SIZE).then_some(PMD_SIZE)
            }
            PageState::Mapped { level: MapLevel::Pte, .. } => {
                let folios = self.folios?;
                let after = folios.partition_point(|folio| folio.pages.end() <= start);
                let folio = folios.get(after).filter(|folio| folio.pages.contains(start));
                Some(folio.map_or(PAGE_SIZE, |folio| folio.pages.len().min(range.len())))
            }
            // It was mapped and taken within the span.
            PageState::Absent | PageState::Cached | PageState::Swapped | PageState::Zero(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::{Hva, Order};
    use tap::What;

    const HOLDER: u32 = 100;
    const OURS: u32 = 200;

    fn range(start: u64, len: u64) -> HvaRange {
        HvaRange::with_len(Hva::new(start), len).unwrap()
    }

    fn event(tid: u32, what: What) -> Event {
        Event { time_ns: 0, pid: 0, tid, what }
    }

    fn task(tid: u32, pid: u32, comm: &str, kernel: bool) -> Task {
        Task { tid, pid: Some(pid), comm: comm.to_owned(), kernel }
    }

    fn account(events: &[Event], parties: Parties<'_>, layout: Layout<'_>) -> Account {
        let mut account = Account::default();
        account.add(events, &mut Ongoing::default(), parties, layout);
        account
    }

    #[test]
    fn each_range_has_a_cause_a_size_and_a_need() {
        let tasks = [
            task(7, 7, "kswapd0", true),
            task(HOLDER, HOLDER, "qemu", false),
            task(101, HOLDER, "CPU 0/KVM", false),
            task(OURS, OURS, "zapscope", false),
            task(300, 300, "stress", false),
        ];
        let call = |call| What::Begin(Work::Call(call));
        let events = [
            event(7, What::Range(range(0, PAGE_SIZE))),
            event(7, What::Range(range(PMD_SIZE, PMD_SIZE))),
            event(HOLDER, call(Call::Madvise(libc::MADV_DONTNEED as u32))),
            event(HOLDER, What::Range(range(0, 8 << 20))),
            event(HOLDER, What::End(Work::Call(Call::Madvise(0)))),
            event(101, What::Range(range(0, PAGE_SIZE))),
            event(OURS, call(Call::ProcessMadvise(libc::MADV_PAGEOUT as u32))),
            event(OURS, What::Range(range(0, PMD_SIZE))),
            event(300, What::Begin(Work::DirectReclaim)),
            event(300, What::Range(range(0, 16 * PAGE_SIZE))),
            event(999, What::Range(range(0, PAGE_SIZE))),
        ];
        let mapped = |level, range| PageRun { range, state: PageState::Mapped { level, file: false } };
        let pages =
            [mapped(MapLevel::Pte, range(0, PMD_SIZE)), mapped(MapLevel::Pmd, range(PMD_SIZE, PMD_SIZE))];
        let folios =
            [LargeFolio { pages: range(0, 4 * PAGE_SIZE), mapped: 4, order: Order::new(2).unwrap() }];
        let parties = Parties { tasks: &tasks, holder: HOLDER, ours: OURS };
        let account_of = |folios| account(&events, parties, Layout { pages: &pages, folios });
        let account = account_of(Some(folios.as_slice()));
        let seen = account.by_cause_and_size();
        let seen: Vec<_> =
            seen.iter().map(|(cause, size, sum)| (cause.as_str(), *size, sum.ranges)).collect();
        assert_eq!(
            seen,
            [
                ("direct-reclaim", "64 KiB", 1),
                ("holder: fault", "4 KiB", 1),
                ("holder: madvise(DONTNEED)", "more", 1),
                ("kswapd", "4 KiB", 1),
                ("kswapd", "2 MiB", 1),
                ("unattributed", "4 KiB", 1),
                ("zapscope: process_madvise(PAGEOUT)", "2 MiB", 1),
            ]
        );
        // 4 KiB for 4 KiB, 2 MiB for 2 MiB, 4 KiB for 4 KiB; and 2 MiB and 64 KiB for a folio of 16 KiB.
        let announced = 2 * PAGE_SIZE + 2 * PMD_SIZE + 16 * PAGE_SIZE;
        let needed = PMD_SIZE + 2 * PAGE_SIZE + 2 * 4 * PAGE_SIZE;
        assert_eq!((account.announced, account.needed, account.unknown), (announced, needed, 0));
        let account = account_of(None);
        let known = PMD_SIZE + 2 * PAGE_SIZE;
        assert_eq!((account.announced, account.needed, account.unknown), (known, known, 2));
        let mut twice = account.clone();
        twice.merge(&account);
        assert_eq!(twice.all().ranges, 14);
        assert_eq!(
            twice.causes()[0],
            ("kswapd".to_owned(), Ranges { ranges: 4, bytes: 2 * (PMD_SIZE + PAGE_SIZE) })
        );
    }

    /// A huge page that leaves page by page.
    #[test]
    fn what_a_range_needed_is_never_more_than_the_range() {
        let block = range(PMD_SIZE, PMD_SIZE);
        let huge = PageRun { range: block, state: PageState::Mapped { level: MapLevel::Pmd, file: false } };
        let kswapd = [task(7, 7, "kswapd0", true)];
        let parties = Parties { tasks: &kswapd, holder: HOLDER, ours: OURS };
        let of = |ranges: &[HvaRange], pages: &[PageRun]| {
            let events: Vec<Event> = ranges.iter().map(|range| event(7, What::Range(*range))).collect();
            account(&events, parties, Layout { pages, folios: Some(&[]) })
        };
        let apart: Vec<HvaRange> = std::iter::once(block).chain(block.pages()).collect();
        let account = of(&apart, &[huge]);
        assert_eq!((account.amplification(), account.unknown), (Some(1.0), 0));
        // A range of more than a page in a huge page, or where nothing was mapped.
        let part = range(PMD_SIZE + 4 * PAGE_SIZE, 8 * PAGE_SIZE);
        for pages in [&[huge][..], &[]] {
            let account = of(&[part], pages);
            assert_eq!((account.amplification(), account.unknown), (None, 1));
        }
    }

    #[test]
    fn an_advice_has_a_name() {
        assert_eq!(call_name(Call::Madvise(16)), "madvise(DONTDUMP)");
        assert_eq!(call_name(Call::ProcessMadvise(25)), "process_madvise(COLLAPSE)");
        assert_eq!(call_name(Call::Madvise(77)), "madvise(77)");
    }
}
