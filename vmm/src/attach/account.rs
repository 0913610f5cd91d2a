//! The ranges that the kernel announced of somebody's memory: why, how large, and how large they had to be.

use std::collections::BTreeMap;

use guest_mem::{Address, HvaRange, LargeFolio, MapLevel, PAGE_SIZE, PMD_SIZE, PageRun, PageState};

use notifier_bridge::Ranges;
use tap::{AtWork, Call, Event, Task, Work, advice_name, cause};

/// How large ranges are: up to so much.
pub const SIZES: [(&str, u64); 5] =
    [("4 KiB", PAGE_SIZE), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("2 MiB", PMD_SIZE), ("more", u64::MAX)];

/// Ranges by cause and by size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    tallies: BTreeMap<(String, usize), Ranges>,
    /// Bytes of ranges that took a folio each, and of these folios.
    pub announced: u64,
    /// See `announced`.
    pub needed: u64,
    /// Ranges that took a folio whose size is not known, which neither of the two has.
    pub unknown: u64,
    /// KVM's faults, SPTEs set and so on, by name.
    pub deeds: BTreeMap<&'static str, u64>,
    /// Events that were lost.
    pub lost: u64,
}

/// What the memory is that ranges are about, as it was when a span began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// Its pages, lowest first.
    pub pages: &'a [PageRun],
    /// The folios of more than one page that PTEs map, lowest first; `None` if it is not known which there are.
    pub folios: Option<&'a [LargeFolio]>,
}

/// What is known of whoever made an event.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// Threads heard of, in order of number.
    pub tasks: &'a [Task],
    /// The process whose memory it is.
    pub holder: u32,
    /// This one.
    pub ours: u32,
}

impl Account {
    /// Adds the events of a span, in order of time. `at_work` is what threads were at when it began, and in the end what
    /// they are at then; `layout` is what the memory was before it.
    pub fn add(&mut self, events: &[Event], at_work: &mut AtWork, parties: Parties<'_>, layout: Layout<'_>) {
        for event in events {
            let Some(range) = at_work.follow(event) else { continue };
            let (name, takes_folios) = cause_of(event, at_work, parties);
            self.count(&name, range);
            match layout.needed_by(range) {
                _ if !takes_folios => {}
                Some(needed) => {
                    self.announced = self.announced.saturating_add(range.len());
                    self.needed = self.needed.saturating_add(needed);
                }
                None => self.unknown += 1,
            }
        }
    }

    fn count(&mut self, cause: &str, range: HvaRange) {
        let size = SIZES.iter().position(|(_, most)| range.len() <= *most).unwrap_or(SIZES.len() - 1);
        *self.tallies.entry((cause.to_owned(), size)).or_default() +=
            Ranges { ranges: 1, bytes: range.len() };
    }

    /// Adds another span's.
    pub fn merge(&mut self, other: &Self) {
        for (key, tally) in &other.tallies {
            *self.tallies.entry(key.clone()).or_default() += *tally;
        }
        // A VMM may unmap what it only reserved, over and over: terabytes each time.
        self.announced = self.announced.saturating_add(other.announced);
        self.needed = self.needed.saturating_add(other.needed);
        self.unknown += other.unknown;
        self.lost += other.lost;
        for (name, count) in &other.deeds {
            *self.deeds.entry(name).or_default() += count;
        }
    }

    /// All of them together.
    pub fn all(&self) -> Ranges {
        self.sum(|_, _| true)
    }

    /// Those of a size, by its place in [`SIZES`].
    pub fn of_size(&self, size: usize) -> Ranges {
        self.sum(|_, of| of == size)
    }

    /// Those of a cause.
    pub fn of_cause(&self, cause: &str) -> Ranges {
        self.sum(|of, _| of == cause)
    }

    /// The causes, most ranges first.
    pub fn causes(&self) -> Vec<(&str, Ranges)> {
        let mut names: Vec<&str> = self.tallies.keys().map(|(cause, _)| cause.as_str()).collect();
        names.dedup();
        let mut causes: Vec<_> = names.into_iter().map(|name| (name, self.of_cause(name))).collect();
        causes.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.ranges));
        causes
    }

    /// Every cause and size that there was.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'static str, Ranges)> {
        self.tallies.iter().map(|((cause, size), tally)| (cause.as_str(), SIZES[*size].0, *tally))
    }

    /// Bytes announced for each byte of the folios taken, 1 at least; `None` if none was taken, or some of which that is not
    /// known: they would be the wide ones.
    pub fn amplification(&self) -> Option<f64> {
        (self.needed > 0 && self.unknown == 0).then(|| self.announced as f64 / self.needed as f64)
    }

    fn sum(&self, wanted: impl Fn(&str, usize) -> bool) -> Ranges {
        let mut sum = Ranges::default();
        for ((cause, size), tally) in &self.tallies {
            if wanted(cause, *size) {
                sum += *tally;
            }
        }
        sum
    }
}

/// Why, in a word, and whether each such range takes one folio.
fn cause_of(event: &Event, at_work: &AtWork, parties: Parties<'_>) -> (String, bool) {
    let task =
        parties.tasks.binary_search_by_key(&event.tid, |task| task.tid).ok().map(|at| &parties.tasks[at]);
    let work = at_work.innermost(event.tid);
    if let Some(cause) = work.and_then(cause::of_work) {
        return (cause.name().to_owned(), true);
    }
    let kernels = cause::of_stranger(task);
    let pid = task.and_then(|task| task.pid);
    let whose = match pid {
        // Of kernel threads, what they are called says what they do.
        _ if task.is_some_and(|task| task.kernel) => return (kernels.name().to_owned(), true),
        Some(pid) if pid == parties.holder => "holder",
        Some(pid) if pid == parties.ours => "zapscope",
        Some(_) => "another",
        None => return (kernels.name().to_owned(), false),
    };
    match work {
        Some(Work::Call(call)) => (format!("{whose}: {}", name_of(call)), takes_folios(call)),
        _ if whose == "holder" => ("holder: fault".to_owned(), true),
        _ => (whose.to_owned(), false),
    }
}

fn takes_folios(call: Call) -> bool {
    matches!(call, Call::Madvise(advice) | Call::ProcessMadvise(advice) if advice as i32 == libc::MADV_PAGEOUT)
}

/// `madvise(PAGEOUT)`.
fn name_of(call: Call) -> String {
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
    /// How much a range that takes one folio had to cover: the folio that was there, and no more than was announced, since a
    /// folio may have been split within the span. `None` where what was there is not known.
    fn needed_by(&self, range: HvaRange) -> Option<u64> {
        if range.len() <= PAGE_SIZE {
            return Some(range.len());
        }
        let start = range.start();
        let after = self.pages.partition_point(|run| run.range.end() <= start);
        let run = self.pages.get(after).filter(|run| run.range.contains(start))?;
        match run.state {
            // Less than all of it is what was left of it after a split.
            PageState::Mapped { level: MapLevel::Pmd, .. } => {
                (start.is_aligned(PMD_SIZE) && range.len() >= PMD_SIZE).then_some(PMD_SIZE)
            }
            PageState::Mapped { level: MapLevel::Pte, .. } => {
                let folios = self.folios?;
                let after = folios.partition_point(|folio| folio.pages.end() <= start);
                let folio = folios.get(after).filter(|folio| folio.pages.contains(start));
                Some(folio.map_or(PAGE_SIZE, |folio| folio.pages.len().min(range.len())))
            }
            // It came and went within the span.
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
        let account_of = |folios| {
            let mut account = Account::default();
            account.add(&events, &mut AtWork::default(), parties, Layout { pages: &pages, folios });
            account
        };
        let account = account_of(Some(folios.as_slice()));
        let seen: Vec<_> = account.iter().map(|(cause, size, tally)| (cause, size, tally.ranges)).collect();
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
        // 4 KiB for 4, 2 MiB for 2 MiB, 4 KiB for 4, and for a folio of 16 KiB 2 MiB and 64 KiB.
        let announced = 2 * PAGE_SIZE + 2 * PMD_SIZE + 16 * PAGE_SIZE;
        let needed = PMD_SIZE + 2 * PAGE_SIZE + 2 * 4 * PAGE_SIZE;
        assert_eq!((account.announced, account.needed, account.unknown), (announced, needed, 0));
        let account = account_of(None);
        let known = PMD_SIZE + 2 * PAGE_SIZE;
        assert_eq!((account.announced, account.needed, account.unknown), (known, known, 2));
        let mut twice = account.clone();
        twice.merge(&account);
        assert_eq!(twice.all().ranges, 14);
        assert_eq!(twice.causes()[0], ("kswapd", Ranges { ranges: 4, bytes: 2 * (PMD_SIZE + PAGE_SIZE) }));
    }

    /// A huge page that leaves page by page, whatever was known of it before.
    #[test]
    fn nothing_is_announced_of_which_less_than_all_was_needed() {
        let block = range(PMD_SIZE, PMD_SIZE);
        let huge = PageRun { range: block, state: PageState::Mapped { level: MapLevel::Pmd, file: false } };
        let kswapd = [task(7, 7, "kswapd0", true)];
        let parties = Parties { tasks: &kswapd, holder: HOLDER, ours: OURS };
        let of = |ranges: &[HvaRange], pages: &[PageRun]| {
            let events: Vec<Event> = ranges.iter().map(|range| event(7, What::Range(*range))).collect();
            let mut account = Account::default();
            account.add(&events, &mut AtWork::default(), parties, Layout { pages, folios: Some(&[]) });
            account
        };
        let apart: Vec<HvaRange> = std::iter::once(block).chain(block.pages()).collect();
        let account = of(&apart, &[huge]);
        assert_eq!((account.amplification(), account.unknown), (Some(1.0), 0));
        // Wider than a page, in what was a huge page, or where nothing was.
        let part = range(PMD_SIZE + 4 * PAGE_SIZE, 8 * PAGE_SIZE);
        for pages in [&[huge][..], &[]] {
            let account = of(&[part], pages);
            assert_eq!((account.amplification(), account.unknown), (None, 1));
        }
    }

    #[test]
    fn an_advice_is_told_by_name() {
        assert_eq!(name_of(Call::Madvise(16)), "madvise(DONTDUMP)");
        assert_eq!(name_of(Call::ProcessMadvise(25)), "process_madvise(COLLAPSE)");
        assert_eq!(name_of(Call::Madvise(77)), "madvise(77)");
    }
}
