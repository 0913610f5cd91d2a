//! What a trial notes for the event log, beside what it measures: the steps, and where each operation began and what
//! left by it. The announcements themselves are the recorder's.
//!
//! ```text
//!   Trial ── steps, lists, layouts ──┐
//!   Attacker ── a mark an operation ─┼─ at the end of the trial ──> TrialEvents ── header ──> a section of the log
//!   Recorder ── announcements ───────┘
//! ```

use std::ops::Range;

use guest_abi::order::Walk;
use guest_mem::{Backing, HvaRange, PAGE_SIZE, PageRun};
use notifier_bridge::{InvalidationRecord, Recorder};

use super::measured::Measured;
use crate::events::{
    Announcement, OperationEvent, RowHeader, SecondaryMmu, Span, StepEvent, TrialEvents, slot_runs,
};
use crate::record::RowLabel;
use crate::scenario::{GuestPages, HotSet, RowPlan, Scenario, Zap};
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

/// A trial's notes.
#[derive(Debug, Default)]
pub struct Journal(TrialEvents);

impl Journal {
    /// A step that needs no more words.
    pub fn step(&mut self, step: StepEvent) {
        self.0.steps.push(step);
    }

    /// A hot loop over `set` was started on so many vCPUs.
    pub fn hot(&mut self, set: &HotSet, loops: usize) {
        let (list, stride) = match set.walk {
            Walk::List { .. } => {
                (Some(self.0.body.list(set.table.iter().map(|&page| u64::from(page)))), None)
            }
            Walk::Sequential => (None, Some(1)),
            Walk::Strided { stride } => (None, Some(stride)),
            Walk::Random { .. } | Walk::Zipf { .. } => (None, None),
        };
        self.step(StepEvent::Hot { list, stride, loops: loops as u32 });
    }

    /// How the host maps the arena now. Returns the layout's number.
    pub fn layout(&mut self, runs: &[PageRun]) -> u32 {
        self.0.body.layout(runs)
    }

    /// A reclaim step is over, of whose operations `marks` are all so far and `first` the number before it.
    pub fn reclaimed(&mut self, layout: u32, marks: &[Mark], first: usize, now_ns: u64) {
        let began_ns = marks.first().map_or(now_ns, |mark| mark.began_ns);
        let operations = (marks.len() - first) as u32;
        let ended_ns = now_ns.saturating_sub(began_ns);
        self.step(StepEvent::Reclaim { layout, operations, ended_ns });
    }

    /// All of it, with what the attacker kept.
    pub fn finish(mut self, arena: HvaRange, marks: &[Mark], recorder: &Recorder) -> TrialEvents {
        self.0.began_ns = marks.first().map_or(0, |mark| mark.began_ns);
        self.0.lost = recorder.lost();
        let (mut first, mut touches) = (0, marks.first().map_or(0, |mark| mark.touches));
        for mark in marks {
            let records = &recorder.records()[first..mark.records];
            first = mark.records;
            let event = OperationEvent {
                began_ns: mark.began_ns - self.0.began_ns,
                touches: mark.touches.saturating_sub(touches),
                first_page: mark.pages.start,
                pages: mark.pages.end - mark.pages.start,
                evicted: mark.evicted,
                announcements: records.len() as u32,
            };
            touches = mark.touches;
            self.0.body.operation(&event, records.iter().map(|record| announcement(arena, record)));
        }
        self.0
    }
}

fn announcement(arena: HvaRange, record: &InvalidationRecord) -> Announcement {
    let offset = record.victim.start().get().saturating_sub(arena.start().get());
    Announcement {
        first_page: offset / PAGE_SIZE,
        pages: record.victim.page_count(),
        order: record.order,
        level: record.level,
        anonymous: record.anonymous,
        cause: record.cause,
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
    let [lists, layouts, operations] = events.body.counts();
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
        large_guest_pages,
        slot_zap_drops_all: scenario.slot_zap_all_quirk,
        arena: Span { hva: arena.start().get(), gpa: guest_abi::layout::ARENA_GPA, bytes: arena.len() },
        slots: slot_runs(testbed.slots()),
        seamed: (plan.combination.zap == Zap::Protect && small_backing)
            || matches!(plan.combination.backing, Backing::Mthp(_)),
        began_ns: events.began_ns,
        steps: events.steps.clone(),
        undisturbed: measured.before.map(|rate| (rate.touches, rate.ns)),
        refill: measured.refill.clone(),
        causes: events.body.causes().iter().map(|cause| cause.name().to_owned()).collect(),
        lists,
        layouts,
        operations,
        lost: events.lost,
    }
}
