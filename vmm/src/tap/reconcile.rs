//! Two accounts of the same span: what we said would be announced, and what the kernel announced.
//!
//! ```text
//!   operations: thread, begin..end, what it was expected to announce ──┐
//!   events: ranges and works, by time, each with its thread ───────────┴─> cause of each range ──> sums
//!                                                                          the step's own, operation by operation,
//!                                                                          against what was expected
//! ```
//!
//! An event is a step's if its thread is the one that made the system call, between the clock's reading before the call
//! and the one after: system calls are synchronous, and both clocks are `CLOCK_MONOTONIC`. Pure code.

use guest_mem::{Hva, HvaRange, Order, PMD_SIZE, Planned};

use super::at_work::AtWork;
use super::cause::{RangeCause, of_own, of_stranger};
use super::tasks::Task;
use super::tracepoints::Event;

/// How often a split may be announced beside the first time: by the split of the PMD and by that of the folio (Linux 6.12 and
/// older), and each of them for both mappings that a seam cuts the folio into.
const MOST_REPEATS: usize = 3;

/// Sentences kept about operations that disagree; all are counted.
const MOST_SENTENCES: usize = 3;

/// System calls of steps, in order of time, and what each of them is to announce.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    thread: u32,
    calls: Vec<Call>,
    expected: Vec<Expected>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    begin_ns: u64,
    end_ns: u64,
    /// Where in `expected` its ranges end; they begin where those of the operation before end.
    expected_end: usize,
    promise: Promise,
}

/// How far it is known beforehand what an operation announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Exactly the expected ranges; but a folio for which there is no contiguous swap space comes apart, and leaves page by
    /// page.
    Exact,
    /// These, and besides how the kernel chose to split the folios at their ends, inside the same 2 MiB blocks.
    AtLeast,
    /// The kernel chooses, or the call was made again for what had stayed: nothing is compared.
    Open,
    /// As [`Promise::Open`], and the choice is made by reclaim.
    Reclaim,
}

impl Promise {
    const fn is_compared(self) -> bool {
        matches!(self, Self::Exact | Self::AtLeast)
    }
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    range: HvaRange,
    kind: Kind,
}

/// What may become of an expected range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is announced once.
    Once,
    /// A split: it may be announced again, see [`MOST_REPEATS`].
    Split,
    /// A folio of several pages is swapped out whole. Where swap has no contiguous room for it, it is split first, and its
    /// pages leave one by one.
    Folio(Order),
}

impl Kind {
    fn of(planned: &Planned) -> Self {
        match planned {
            Planned::SplitPmd(_) | Planned::SplitFolio(_) => Self::Split,
            Planned::Take(victim) if victim.order > Order::BASE => Self::Folio(victim.order),
            Planned::Take(_) | Planned::Exact(_) => Self::Once,
        }
    }
}

/// Ranges and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// How many ranges.
    pub ranges: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl std::ops::AddAssign for Ranges {
    fn add_assign(&mut self, other: Self) {
        self.ranges = self.ranges.saturating_add(other.ranges);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The kernel's account of some spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Ranges by cause, in the order of [`RangeCause::ALL`].
    by_cause: [Ranges; RangeCause::ALL.len()],
    /// Events that were lost.
    pub lost: u64,
    /// Operations whose ranges were compared with what was expected.
    pub compared: u64,
    /// Those that differed.
    pub differed: u64,
    /// Where and how, of the first few.
    pub sentences: Vec<String>,
    /// Folios of several pages that were to leave whole and left page by page.
    pub fallbacks: u64,
}

impl Operations {
    /// None yet, by the calling thread, numbered `thread`.
    pub fn of_thread(thread: u32) -> Self {
        Self { thread, ..Self::default() }
    }

    /// Notes a system call.
    pub fn note(&mut self, begin_ns: u64, end_ns: u64, planned: &[Planned], promise: Promise) {
        if promise.is_compared() {
            self.expected.extend(
                planned.iter().map(|planned| Expected { range: planned.range(), kind: Kind::of(planned) }),
            );
        }
        self.calls.push(Call { begin_ns, end_ns, expected_end: self.expected.len(), promise });
    }

    /// Notes that the last system call was made again: what the two announce between them is not known beforehand.
    pub fn again(&mut self, begin_ns: u64, end_ns: u64) {
        if let Some(at) = self.calls.len().checked_sub(1) {
            let before = at.checked_sub(1).map_or(0, |before| self.calls[before].expected_end);
            self.expected.truncate(before);
            let last = &mut self.calls[at];
            (last.expected_end, last.promise) = (before, Promise::Open);
        }
        self.note(begin_ns, end_ns, &[], Promise::Open);
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.calls.clear();
        self.expected.clear();
    }

    /// The call that this thread was in at a time.
    fn at(&self, time_ns: u64) -> Option<usize> {
        let after = self.calls.partition_point(|call| call.begin_ns <= time_ns);
        let index = after.checked_sub(1)?;
        (time_ns <= self.calls[index].end_ns).then_some(index)
    }

    fn expected(&self, index: usize) -> &[Expected] {
        let begin = index.checked_sub(1).map_or(0, |before| self.calls[before].expected_end);
        &self.expected[begin..self.calls[index].expected_end]
    }
}

impl Account {
    /// Ranges of one cause.
    pub fn of(&self, cause: RangeCause) -> Ranges {
        self.by_cause[cause as usize]
    }

    /// Ranges of all causes that `wanted` picks.
    pub fn sum(&self, wanted: impl Fn(RangeCause) -> bool) -> Ranges {
        let mut sum = Ranges::default();
        RangeCause::ALL.into_iter().filter(|cause| wanted(*cause)).for_each(|cause| sum += self.of(cause));
        sum
    }

    /// Adds the events of a span, in order of time, in which this process (number `pid`) made `operations`. Threads are
    /// looked up in `tasks`, which is in order of their numbers.
    ///
    /// Each range goes to `each` as well: when, what and why.
    pub fn add(
        &mut self,
        events: &[Event],
        operations: &Operations,
        tasks: &[Task],
        pid: u32,
        mut each: impl FnMut(u64, HvaRange, RangeCause),
    ) {
        let mut at_work = AtWork::default();
        let mut of_calls: Vec<(usize, HvaRange)> = Vec::new();
        for event in events {
            let Some(range) = at_work.follow(event) else { continue };
            let (cause, call) = attribute(event, operations, &at_work, tasks, pid);
            self.by_cause[cause as usize] += Ranges { ranges: 1, bytes: range.len() };
            each(event.time_ns, range, cause);
            of_calls.extend(call.map(|call| (call, range)));
        }
        self.compare(operations, &of_calls);
    }

    /// Compares each operation's ranges, which are in order of the operations, with what was expected.
    fn compare(&mut self, operations: &Operations, announced: &[(usize, HvaRange)]) {
        let mut rest = announced;
        for (index, call) in operations.calls.iter().enumerate() {
            let (its, others) = rest.split_at(rest.partition_point(|(of, _)| *of <= index));
            rest = others;
            if !call.promise.is_compared() {
                continue;
            }
            self.compared += 1;
            let expected = operations.expected(index);
            let mut announced: Vec<HvaRange> = its.iter().map(|(_, range)| *range).collect();
            self.fallbacks += fold_fallbacks(expected, &mut announced);
            if let Some(how) = difference(expected, announced, call.promise) {
                self.differed += 1;
                if self.sentences.len() < MOST_SENTENCES {
                    self.sentences.push(format!("operation {index}: {how}"));
                }
            }
        }
    }

    /// Adds what another account of the same steps says of losses and differences; ranges are of one.
    pub fn pool(&mut self, other: &Self) {
        self.lost += other.lost;
        self.compared += other.compared;
        self.differed += other.differed;
        self.fallbacks += other.fallbacks;
        let room = MOST_SENTENCES.saturating_sub(self.sentences.len());
        self.sentences.extend(other.sentences.iter().take(room).cloned());
    }
}

/// The cause of a range, and if it is a step's, which call's.
fn attribute(
    event: &Event,
    operations: &Operations,
    at_work: &AtWork,
    tasks: &[Task],
    pid: u32,
) -> (RangeCause, Option<usize>) {
    let task = tasks.binary_search_by_key(&event.tid, |task| task.tid).ok().map(|index| &tasks[index]);
    let work = at_work.cause(event.tid);
    if event.tid == operations.thread {
        let call = operations.at(event.time_ns);
        let promise = call.map(|call| operations.calls[call].promise);
        return match (work, promise) {
            (Some(_), Some(Promise::Reclaim)) | (None, Some(_)) => (RangeCause::Step, call),
            // Collapse and migration by address are what the call is for.
            (Some(RangeCause::Migration | RangeCause::Compaction), Some(_)) => (RangeCause::Step, call),
            (Some(work), _) => (work, None),
            (None, None) => (RangeCause::Zap, None),
        };
    }
    let ours = event.pid == pid || task.is_some_and(|task| task.pid == Some(pid));
    let cause = match (task, work) {
        (Some(task), _) if task.kernel => of_stranger(Some(task)),
        (_, Some(work)) => work,
        (Some(task), None) if ours => of_own(task),
        (None, None) if ours => RangeCause::OwnThread,
        (task, None) => of_stranger(task),
    };
    (cause, None)
}

/// Puts folios that were announced as their split and each of their pages in place of these, and says how many there were.
fn fold_fallbacks(expected: &[Expected], announced: &mut Vec<HvaRange>) -> u64 {
    if !expected.iter().any(|expected| matches!(expected.kind, Kind::Folio(_))) {
        return 0;
    }
    let mut folded = 0;
    announced.sort_by_key(key);
    for &Expected { range: whole, kind } in expected {
        let Kind::Folio(order) = kind else { continue };
        let starts_before = |at| announced.partition_point(|range| range.start() < at);
        let inside = starts_before(whole.start())..starts_before(whole.end());
        let its = &announced[inside.clone()];
        let splits = its.iter().filter(|range| **range == whole).count();
        // Up to Linux 6.12 the split of a folio that a PMD could map is announced for its mapping, too, mapped so or not.
        let most_splits = if order == Order::PMD { 2 } else { 1 };
        let pages = its.iter().copied().filter(|range| *range != whole);
        if (1..=most_splits).contains(&splits) && pages.eq(whole.pages()) {
            announced.splice(inside, [whole]);
            folded += 1;
        }
    }
    folded
}

fn key(range: &HvaRange) -> (Hva, Hva) {
    (range.start(), range.end())
}

/// How what was announced differs from what was expected, as sets with multiplicity; `None` if it does not.
fn difference(expected: &[Expected], mut announced: Vec<HvaRange>, promise: Promise) -> Option<String> {
    // In order, as they usually are: then there is nothing to sort.
    if announced.len() == expected.len() && announced.iter().zip(expected).all(|(is, was)| *is == was.range) {
        return None;
    }
    let was = expected.iter().map(|expected| expected.range);
    let mut expected: Vec<Expected> = expected.to_vec();
    announced.sort_by_key(key);
    expected.sort_by_key(|expected| key(&expected.range));
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    let mut rest = announced.into_iter().peekable();
    // The last that was found, and how often it may come again.
    let mut last: Option<(HvaRange, usize)> = None;
    let mut beside = |range: HvaRange, last: &mut Option<(HvaRange, usize)>| match last {
        Some((again, spare)) if *again == range && *spare > 0 => *spare -= 1,
        _ => extra.push(range),
    };
    for expected in expected {
        while let Some(early) = rest.next_if(|range| key(range) < key(&expected.range)) {
            beside(early, &mut last);
        }
        match rest.next_if_eq(&expected.range) {
            Some(range) => last = Some((range, if expected.kind == Kind::Split { MOST_REPEATS } else { 0 })),
            None => missing.push(expected.range),
        }
    }
    rest.for_each(|late| beside(late, &mut last));
    if promise == Promise::AtLeast {
        let blocks: Vec<_> = was.filter_map(|range| range.checked_align_outward(PMD_SIZE)).collect();
        extra.retain(|range| !blocks.iter().any(|block| block.covers(*range)));
    }
    let listed = |ranges: &[HvaRange]| {
        let some: Vec<_> =
            ranges.iter().take(2).map(|range| format!("{range} ({} bytes)", range.len())).collect();
        some.join(", ")
    };
    let told = |what: &str, ranges: &[HvaRange]| {
        (!ranges.is_empty()).then(|| format!("{} {what}: {}", ranges.len(), listed(ranges)))
    };
    let parts: Vec<String> = [
        told("that the kernel did not announce", &missing),
        told("that the kernel announced beside", &extra),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
