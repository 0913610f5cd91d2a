//! The stream of a row while its trials are performed: one thread appends to it, between operations and never inside a bracket
//! that is measured.
//!
//! Stalls are by the guests' counters. They are kept until the trial is over, when it is known how those stand to the host's.

use guest_abi::block::Stall as GuestStall;
use guest_abi::layout::ARENA_GPA;
use guest_abi::order::{Access, Walk};
use guest_mem::{PAGE_SIZE, PageRun};
use notifier_bridge::monotonic_ns;

use crate::testbed::Testbed;
use experiment::choice::RowLabel;
use experiment::events::{
    Counted, Counter, Event, GuestKind, HotLoops, LayoutRun, SecondaryMmu, Setting, Span, Stall, StallOn,
    Step, Stream, slot_runs,
};
use experiment::scenario::{GuestPages, HotSet, Scenario};
use guest::clock::{Moment, Offset, TscRate};
use host::processors;
use machine::FaultCounts;

/// When a step was begun, and the secondary MMU's counters at that time.
#[derive(Clone, Copy, Debug)]
struct StepBegin {
    at: Moment,
    faults: Option<FaultCounts>,
    flushes: Option<u64>,
}

/// A stall by the guest's clock.
#[derive(Clone, Copy, Debug)]
struct Noted {
    vcpu: u32,
    stall: GuestStall,
    ns: u64,
    on: StallOn,
}

/// A row's events so far.
#[derive(Debug, Default)]
pub struct Journal {
    stream: Stream,
    /// `CLOCK_MONOTONIC` when the trial in progress began.
    began_ns: u64,
    begun: Option<StepBegin>,
    /// Begin and end of each step of the trial.
    spans: Vec<(Moment, Moment)>,
    stalls: Vec<Noted>,
}

impl Journal {
    /// A trial begins.
    pub fn trial(&mut self, setting: Setting) {
        self.began_ns = monotonic_ns();
        self.spans.clear();
        self.stalls.clear();
        self.push(&Event::Trial(Box::new(Setting { began_ns: self.began_ns, ..setting })));
    }

    /// Appends an event.
    pub fn push(&mut self, event: &Event) {
        self.stream.push(event);
    }

    /// Appends the reading of a counter.
    pub fn reading(&mut self, counter: Counter, count: Option<u64>) {
        self.push(&Event::Reading { counter, count });
    }

    /// Appends a sentence for the reader of the row.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.push(&Event::Warned(text.into()));
    }

    /// A time of `CLOCK_MONOTONIC`, as an event has it.
    pub fn at(&self, ns: u64) -> u64 {
        ns.saturating_sub(self.began_ns)
    }

    /// A step begins.
    pub fn step_began(&mut self, step: Step, testbed: &dyn Testbed) {
        let at = Moment::now();
        self.push(&Event::StepBegan { at_ns: self.at(at.ns), step });
        let (faults, flushes) = (testbed.fault_counts(), testbed.remote_tlb_flushes());
        self.begun = Some(StepBegin { at, faults, flushes });
    }

    /// It is over.
    pub fn step_ended(&mut self, testbed: &dyn Testbed) {
        let Some(begun) = self.begun.take() else { return };
        let ended = Moment::now();
        self.spans.push((begun.at, ended));
        let faults = testbed.fault_counts().zip(begun.faults).map(|(now, before)| now.since(before));
        let flushes = testbed.remote_tlb_flushes().zip(begun.flushes).map(|(now, before)| now - before);
        let counted = Counted {
            faults: faults.map(|faults| faults.fixed),
            retries: faults.and_then(|faults| faults.retried),
            flushes,
        };
        self.push(&Event::StepEnded { at_ns: self.at(ended.ns), counted });
    }

    /// A vCPU stood still, for `ns`.
    pub fn stall(&mut self, vcpu: u32, stall: GuestStall, ns: u64, on: StallOn) {
        self.stalls.push(Noted { vcpu, stall, ns, on });
    }

    /// The trial is over: its stalls are put on the host's clock.
    pub fn trial_ended(&mut self, testbed: &dyn Testbed, clock: &TscRate) {
        let offsets: Vec<Option<Offset>> =
            (0..testbed.vcpus()).map(|vcpu| testbed.mailbox(vcpu).clock()).collect();
        let pages = testbed.arena().range().page_count();
        for Noted { vcpu, stall, ns, on } in std::mem::take(&mut self.stalls) {
            let at_ns = offsets[vcpu as usize].and_then(|offset| self.placed(&stall, offset));
            let page = page_of(&stall).filter(|page| *page < pages);
            self.push(&Event::Stall(Stall { at_ns, ns, vcpu, page, on }));
        }
        let uncertain = offsets.iter().flatten().map(|offset| offset.uncertain).max().unwrap_or(0);
        self.push(&Event::Clock { uncertain_ns: clock.nanoseconds(uncertain) });
    }

    /// When a stall began. The guest works in steps alone, and its stalls are asked for in the last of those that could have
    /// them.
    fn placed(&self, stall: &GuestStall, offset: Offset) -> Option<u64> {
        let ticks = stall.tsc.wrapping_sub(offset.ticks as u64);
        let step = self.spans.iter().rev().find(|(began, _)| began.ticks <= ticks);
        step.and_then(|(began, ended)| began.interpolate(*ended, ticks).checked_sub(self.began_ns))
    }

    /// The events of the row, and none from now on.
    pub fn take(&mut self) -> Stream {
        std::mem::take(self).stream
    }
}

/// The arena's page that a stall was on; `None` for memory below the arena.
pub fn page_of(stall: &GuestStall) -> Option<u64> {
    stall.gpa.checked_sub(ARENA_GPA).map(|offset| offset / PAGE_SIZE)
}

/// Hot loops over `set`, on so many vCPUs.
pub fn hot_loops(set: &HotSet, access: Access, loops: usize) -> HotLoops {
    let (list, stride) = match set.walk {
        Walk::List { .. } => (Some(set.table.clone()), None),
        Walk::Sequential => (None, Some(1)),
        Walk::Strided { stride } => (None, Some(stride)),
        Walk::Random { .. } | Walk::Zipf { .. } => (None, None),
    };
    HotLoops { list, stride, writes: access == Access::Write, loops: loops as u32 }
}

/// A layout, as an event has it.
pub fn layout(runs: &[PageRun]) -> Vec<LayoutRun> {
    let mut layout: Vec<LayoutRun> = Vec::new();
    for run in runs.iter().map(LayoutRun::from) {
        match layout.last_mut() {
            Some(last) if last.state == run.state => last.pages += run.pages,
            _ => layout.push(run),
        }
    }
    layout
}

/// The setting of a row's trials.
pub fn setting(scenario: &Scenario, label: RowLabel, testbed: &dyn Testbed, mmu: SecondaryMmu) -> Setting {
    let arena = testbed.arena().range();
    let large_guest_pages = match (&scenario.linux, testbed.system()) {
        (Some(linux), Some(_)) => linux.pages == GuestPages::Huge,
        _ => true,
    };
    let guest = match (mmu, testbed.system()) {
        (SecondaryMmu::Soft, _) => GuestKind::None,
        (_, Some(_)) => GuestKind::Linux,
        (_, None) => GuestKind::Bare,
    };
    Setting {
        seamed: label.tried.is_seamed(),
        label,
        mmu,
        guest,
        processors: processors::allowed().len() as u32,
        large_guest_pages,
        slot_zap_drops_all: scenario.slot_zap_all_quirk,
        arena: Span { hva: arena.start().get(), gpa: ARENA_GPA, bytes: arena.len() },
        slots: slot_runs(testbed.slots()),
        began_ns: 0,
    }
}
