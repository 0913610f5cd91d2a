//! What a trial notes for the event log, beside what it measures: the steps, and where each operation began and what
//! left by it. The announcements themselves are the recorder's.
//!
//! ```text
//!   Trial ── steps, lists, layouts ──┐
//!   Attacker ── a mark an operation ─┤
//!   Recorder ── announcements ───────┼─ at the end of the trial ──> TrialEvents ── header ──> a section of the log
//!   Mailboxes ── stalls, a clock ────┤      all on the host's clock
//!   Watch ── the kernel's ranges ────┘
//! ```

use std::ops::Range;

use guest_abi::block::Stall;
use guest_abi::order::{Access, Walk};
use guest_mem::{Backing, HvaRange, PAGE_SIZE, PageRun};
use notifier_bridge::{InvalidationRecord, Recorder};

use super::measured::Measured;
use super::orders;
use crate::choice::Zap;
use crate::clock::{Moment, Offset, TscRate};
use crate::events::{
    Announcement, OperationEvent, RangeEvent, RowHeader, SecondaryMmu, Span, StallEvent, StepEvent, StepTime,
    TrialEvents, slot_runs,
};
use crate::host::processors;
use crate::kvm::FaultCounts;
use crate::record::RowLabel;
use crate::scenario::{GuestPages, HotSet, RowPlan, Scenario};
use crate::tap::RangeCause;
use crate::testbed::Testbed;

/// Where an operation began, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// `CLOCK_MONOTONIC` before anything was looked at.
    pub began_ns: u64,
    /// Touches that the hot loops had made by then.
    pub touches: u64,
    /// The pages it was asked for.
    pub pages: Range<u64>,
    /// Pages that left.
    pub evicted: u64,
    /// Records that there were when it was over.
    pub records: usize,
}

/// The most stalls, and the most ranges of the kernel's, that are kept of a trial.
const MOST_NOTED: usize = 1 << 16;

/// A range that the kernel announced: when, what and why.
pub type KernelRange = (u64, HvaRange, RangeCause);

/// When a step was begun, and what the secondary MMU had counted by then.
#[derive(Clone, Copy, Debug)]
pub struct StepBegin {
    at: Moment,
    counts: Counted,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    faults: Option<FaultCounts>,
    flushes: Option<u64>,
}

impl Counted {
    fn by(testbed: &dyn Testbed) -> Self {
        Self { faults: testbed.fault_counts(), flushes: testbed.remote_tlb_flushes() }
    }
}

/// A stall by the guest's clock.
#[derive(Clone, Copy, Debug)]
struct Noted {
    vcpu: u32,
    stall: Stall,
    ns: u64,
}

/// A trial's notes.
#[derive(Debug, Default)]
pub struct Journal {
    events: TrialEvents,
    /// Begin and end of each step, before it is known where time begins.
    spans: Vec<(Moment, Moment)>,
    stalls: Vec<Noted>,
    ranges: Vec<KernelRange>,
}

impl Journal {
    /// Before a step is carried out.
    pub fn begin(testbed: &dyn Testbed) -> StepBegin {
        StepBegin { at: Moment::now(), counts: Counted::by(testbed) }
    }

    /// After it.
    pub fn end(&mut self, begun: StepBegin, testbed: &dyn Testbed) {
        self.spans.push((begun.at, Moment::now()));
        let (before, now) = (begun.counts, Counted::by(testbed));
        let faults = now.faults.zip(before.faults).map(|(now, before)| now.since(before));
        self.events.step_times.push(StepTime {
            faults: faults.map(|faults| faults.fixed),
            retries: faults.and_then(|faults| faults.retried),
            flushes: now.flushes.zip(before.flushes).map(|(now, before)| now - before),
            ..StepTime::default()
        });
    }

    /// A vCPU stood still, for `ns`.
    pub fn stall(&mut self, vcpu: u32, stall: &Stall, ns: u64) {
        if self.stalls.len() < MOST_NOTED {
            self.stalls.push(Noted { vcpu, stall: *stall, ns });
        } else {
            self.events.stalls_left_out += 1;
        }
    }

    /// So many stalls found no room in the guests' own notebooks.
    pub fn stalls_lost(&mut self, stalls: u64) {
        self.events.stalls_left_out = self.events.stalls_left_out.saturating_add(stalls);
    }

    /// Where the ranges that the kernel announced go.
    pub fn ranges(&mut self) -> &mut Vec<KernelRange> {
        &mut self.ranges
    }

    /// The kernel's account of a step was kept, or failed: then what there is of it says nothing.
    pub fn account_kept(&mut self, kept: bool) {
        self.events.ranges_left_out = kept.then_some(0);
        if !kept {
            self.ranges.clear();
        }
    }

    /// A step that needs no more words.
    pub fn step(&mut self, step: StepEvent) {
        self.events.steps.push(step);
    }

    /// A hot loop over `set` was started on so many vCPUs.
    pub fn hot(&mut self, set: &HotSet, access: Access, loops: usize) {
        let (list, stride) = match set.walk {
            Walk::List { .. } => {
                (Some(self.events.body.list(set.table.iter().map(|&page| u64::from(page)))), None)
            }
            Walk::Sequential => (None, Some(1)),
            Walk::Strided { stride } => (None, Some(stride)),
            Walk::Random { .. } | Walk::Zipf { .. } => (None, None),
        };
        let writes = access == Access::Write;
        self.step(StepEvent::Hot { list, stride, writes, loops: loops as u32 });
    }

    /// How the host maps the arena now. Returns the layout's number.
    pub fn layout(&mut self, runs: &[PageRun]) -> u32 {
        self.events.body.layout(runs)
    }

    /// A reclaim step is over, of whose operations `marks` are all so far and `first` the number before it.
    pub fn reclaimed(&mut self, layout: u32, marks: &[Mark], first: usize, now_ns: u64) {
        let began_ns = marks.first().map_or(now_ns, |mark| mark.began_ns);
        let operations = (marks.len() - first) as u32;
        let ended_ns = now_ns.saturating_sub(began_ns);
        self.step(StepEvent::Reclaim { layout, operations, ended_ns });
    }

    /// All of it, with what the attacker kept.
    pub fn finish(
        mut self,
        testbed: &dyn Testbed,
        clock: &TscRate,
        marks: &[Mark],
        recorder: &Recorder,
    ) -> TrialEvents {
        let arena = testbed.arena().range();
        let first_span = self.spans.first().map_or(0, |span| span.0.ns);
        self.events.began_ns = marks.first().map_or(first_span, |mark| mark.began_ns);
        self.events.lost = recorder.lost();
        let (mut first, mut touches) = (0, marks.first().map_or(0, |mark| mark.touches));
        for mark in marks {
            let records = &recorder.records()[first..mark.records];
            first = mark.records;
            let event = OperationEvent {
                began_ns: mark.began_ns - self.events.began_ns,
                touches: mark.touches.saturating_sub(touches),
                first_page: mark.pages.start,
                pages: mark.pages.end - mark.pages.start,
                evicted: mark.evicted,
                announcements: records.len() as u32,
            };
            touches = mark.touches;
            let announced = records.iter().map(|record| announcement(arena, mark.began_ns, record));
            self.events.body.operation(&event, announced);
        }
        for (time, (began, ended)) in self.events.step_times.iter_mut().zip(&self.spans) {
            let relative = |ns: u64| ns.wrapping_sub(self.events.began_ns) as i64;
            (time.began_ns, time.ended_ns) = (relative(began.ns), relative(ended.ns));
        }
        self.put_stalls(testbed, clock);
        self.put_ranges(arena);
        self.events
    }

    /// Puts the stalls from the first operation on into the body, by the host's clock.
    fn put_stalls(&mut self, testbed: &dyn Testbed, clock: &TscRate) {
        let offsets: Vec<Option<Offset>> =
            (0..testbed.vcpus()).map(|vcpu| testbed.mailbox(vcpu).clock()).collect();
        let mut placed: Vec<StallEvent> = Vec::with_capacity(self.stalls.len());
        for Noted { vcpu, stall, ns } in &self.stalls {
            let Some(offset) = offsets[*vcpu as usize] else {
                self.events.stalls_left_out += 1;
                continue;
            };
            let ticks = stall.tsc.wrapping_sub(offset.ticks as u64);
            // The guest works in steps alone, and its stalls are asked for in the last of those that could have them.
            let step = self.spans.iter().rev().find(|(began, _)| began.ticks <= ticks);
            let began = step.map(|(began, ended)| began.interpolate(*ended, ticks));
            // One that began before the first operation is none of its doing.
            let Some(began_ns) = began.and_then(|began| began.checked_sub(self.events.began_ns)) else {
                continue;
            };
            let page = orders::page_of(stall).filter(|page| *page < testbed.arena().range().page_count());
            placed.push(StallEvent { began_ns, ns: *ns, vcpu: *vcpu, page });
        }
        placed.sort_by_key(|stall| stall.began_ns);
        placed.iter().for_each(|stall| self.events.body.stall(stall));
        let uncertain = offsets.iter().flatten().map(|offset| offset.uncertain).max().unwrap_or(0);
        self.events.clock_uncertain_ns = clock.nanoseconds(uncertain);
    }

    /// Puts the kernel's ranges into the body, as far as they lie in the arena.
    fn put_ranges(&mut self, arena: HvaRange) {
        let (mut noted, mut left_out) = (0, 0);
        for (at, range, cause) in &self.ranges {
            let Some(inside) = arena.intersection(*range).filter(|inside| !inside.is_empty()) else {
                continue;
            };
            if noted == MOST_NOTED {
                left_out += 1;
                continue;
            }
            noted += 1;
            self.events.body.range(&RangeEvent {
                at_ns: at.saturating_sub(self.events.began_ns),
                first_page: (inside.start().get() - arena.start().get()) / PAGE_SIZE,
                pages: inside.page_count(),
                cause: *cause,
            });
        }
        if let Some(kept) = &mut self.events.ranges_left_out {
            *kept = left_out;
        }
    }
}

fn announcement(arena: HvaRange, operation_ns: u64, record: &InvalidationRecord) -> Announcement {
    let offset = record.victim.start().get().saturating_sub(arena.start().get());
    Announcement {
        first_page: offset / PAGE_SIZE,
        pages: record.victim.page_count(),
        order: record.order,
        level: record.level,
        anonymous: record.anonymous,
        cause: record.cause,
        began_ns: record.start_ns.saturating_sub(operation_ns),
        zap_ns: record.zap_ns,
        operation_ns: record.operation_ns,
        end_ns: record.end_ns,
    }
}

/// The header of a row's section.
pub fn header(
    (scenario, plan, row): (&Scenario, &RowPlan<'_>, u32),
    label: RowLabel,
    testbed: &dyn Testbed,
    mmu: SecondaryMmu,
    measured: &Measured,
    events: &TrialEvents,
) -> RowHeader {
    let [lists, layouts, operations, stalls, ranges] = events.body.counts();
    let arena = testbed.arena().range();
    let small_backing = matches!(plan.combination.backing, Backing::Base4k | Backing::Memfd);
    let large_guest_pages = match (&scenario.linux, testbed.system()) {
        (Some(linux), Some(_)) => linux.pages == GuestPages::Huge,
        _ => true,
    };
    let guest = match (mmu, testbed.system()) {
        (SecondaryMmu::Soft, _) => "none",
        (_, Some(_)) => "linux",
        (_, None) => "bare",
    };
    RowHeader {
        row,
        label,
        mmu,
        guest: guest.to_owned(),
        processors: processors::allowed().len() as u32,
        large_guest_pages,
        slot_zap_drops_all: scenario.slot_zap_all_quirk,
        arena: Span { hva: arena.start().get(), gpa: guest_abi::layout::ARENA_GPA, bytes: arena.len() },
        slots: slot_runs(testbed.slots()),
        seamed: (plan.combination.zap == Zap::Protect && small_backing)
            || matches!(plan.combination.backing, Backing::Mthp(_)),
        began_ns: events.began_ns,
        steps: events.steps.clone(),
        step_times: events.step_times.clone(),
        undisturbed: measured.before.map(|rate| (rate.touches, rate.ns)),
        refill: measured.refill.clone(),
        causes: events.body.causes().iter().map(|cause| cause.name().to_owned()).collect(),
        lists,
        layouts,
        operations,
        stalls,
        stalls_left_out: events.stalls_left_out,
        clock_uncertain_ns: events.clock_uncertain_ns,
        range_causes: events.body.range_causes().iter().map(|cause| cause.name().to_owned()).collect(),
        ranges,
        ranges_left_out: events.ranges_left_out,
        lost: events.lost,
    }
}
