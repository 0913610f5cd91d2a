//! The events of a row under another policy, against the model, one after another.

use guest_mem::{HvaRange, MapLevel, Order, PAGE_SIZE};
use notifier_bridge::{Call, Cause};

use super::{Play, Running};
use crate::replay::hot::HotLoop;
use crate::replay::machine::Faults;
use crate::replay::zapping::{Zapped, pieces};
use experiment::choice::PolicyChoice;
use experiment::events::{
    Announcement, Dropped, Event, HotLoops, Leaves, OperationEnd, Ranges, SecondaryMmu, Step,
    Zapped as ZappedEvent,
};

impl Play<'_> {
    /// Every event of the row.
    pub(super) fn all(&mut self) {
        let mut fresh = false;
        for event in self.replay.events {
            match event {
                Event::StepBegan { step, .. } => self.step(step, &mut fresh),
                Event::StepEnded { at_ns, .. } => self.run_until(*at_ns),
                Event::OperationBegan(operation) => {
                    self.run_until(operation.at_ns);
                    self.operation = Some(*operation);
                    self.announced.clear();
                }
                Event::Announced(one) => self.announced.push(*one),
                Event::OperationEnded(end) => self.operate(end),
                Event::Asked { .. } => self.found.fold.add(event),
                _ => {}
            }
        }
    }

    fn step(&mut self, step: &Step, fresh: &mut bool) {
        match step {
            Step::Fill => {
                self.machine.fill();
                *fresh = true;
            }
            Step::Hot(hot) => self.start(hot),
            Step::Reclaim(layout) => {
                self.machine.lay_out(layout, *fresh);
                *fresh = false;
            }
            Step::Stop => self.machine.loops.clear(),
            Step::Refault => self.found.refaults += self.machine.touch_all(true),
            Step::Sweep => self.found.sweep += self.machine.touch_all(false),
            Step::Baseline | Step::Other => {}
        }
    }

    /// Starts the loops of a hot step.
    pub(super) fn start(&mut self, hot: &HotLoops) {
        let pages = self.replay.setting.pages();
        for _ in 0..hot.loops {
            let mut one = match (&hot.list, hot.stride) {
                (Some(list), _) => HotLoop::listed(list, pages),
                (None, Some(stride)) => HotLoop::strided(stride, pages),
                (None, None) => return,
            };
            one.reads = !hot.writes;
            self.machine.loops.push(one);
        }
    }

    /// Lets the hot loops run from the last operation to the next, or to the end of the step: what the recorded row spent on
    /// zaps of its own is not there.
    fn run_until(&mut self, at_ns: u64) {
        let Some(operation) = self.operation.take() else { return };
        if self.machine.loops.is_empty() {
            return;
        }
        let zaps = match self.replay.setting.label.tried.policy {
            PolicyChoice::Kernel => 0,
            PolicyChoice::Announced(_) => {
                let each = self.announced.iter().map(|one| one.zap_ns.saturating_add(one.end_ns));
                each.fold(0, u64::saturating_add)
            }
        };
        let gap_ns = at_ns.saturating_sub(operation.at_ns);
        let gap = (gap_ns.saturating_sub(zaps) as f64 - self.entering).max(0.0);
        let faults = match self.running {
            Running::Never => Faults::default(),
            Running::Around => self.machine.run_loops(None, None),
            Running::Recorded => self.machine.run_loops(Some(gap), self.pace),
        };
        self.found.live += faults;
        if self.running != Running::Never {
            self.count_own_round();
        }
        if let Some(pace) = self.pace {
            let visits: u64 = self.machine.loops.iter().map(|hot| hot.visits).sum();
            let needed = faults.all() as f64 * pace.fault + visits as f64 * pace.touch;
            self.found.had_ns = self.found.had_ns.saturating_add(gap as u64);
            self.found.needed_ns = self.found.needed_ns.saturating_add(needed as u64);
        }
    }

    /// Lets the hot loops run for the moment between two brackets of one operation. A loop comes round in some ten
    /// microseconds, and a system call takes that long. A vCPU that was stopped for the first is not back before it is
    /// stopped for the second, unless it gets its processor from the very thread that announces.
    fn pause(&mut self) {
        let shares = self.machine.loops.len() >= self.replay.setting.processors as usize;
        if self.running == Running::Never || self.zapping.stops_vcpus() && !shares {
            return;
        }
        self.found.live += self.machine.run_loops(None, None);
        self.count_own_round();
    }

    fn count_own_round(&mut self) {
        if std::mem::take(&mut self.low_dropped) {
            self.found.own_rounds += 1;
        }
    }

    /// The operation whose announcements are known by now.
    fn operate(&mut self, end: &OperationEnd) {
        let recorded = std::mem::take(&mut self.announced);
        let cut = self.recut.map(|seamed| recut(&recorded, seamed));
        let announced = cut.as_deref().unwrap_or(&recorded);
        self.by_kernel = Leaves::default();
        if let (Some((last, first)), Some(operation)) = (announced.split_last(), self.operation) {
            for one in first {
                self.announce(one, |_| ());
                self.pause();
            }
            self.machine.take(operation.first_page..operation.first_page + operation.pages);
            let left = end.evicted_bytes / PAGE_SIZE >= operation.pages;
            self.announce(last, |play| play.perform(announced, left));
        }
        let dropped = match (self.kernel_alone, self.counts_leaves) {
            (false, _) => Dropped::ByListeners,
            (true, true) => Dropped::ByKernel(self.by_kernel),
            (true, false) => Dropped::Unknown,
        };
        self.announced = recorded;
        let ended = OperationEnd { dropped, spent_ns: None, repeated: 0, ..*end };
        self.found.fold.add(&Event::OperationEnded(ended));
    }

    /// One announcement, and in its bracket `perform`.
    fn announce(&mut self, one: &Announcement, perform: impl FnOnce(&mut Self)) {
        let replay = self.replay;
        let invalidation = one.invalidation(replay.arena);
        let (mut ranges, mut sharing_calls, mut double_calls) = (Ranges::default(), 0, 0);
        self.zapped = Zapped::default();
        let mut perform = Some(perform);
        for call in invalidation.rule(self.rule).calls(&invalidation.victim, replay.arena, &replay.slots) {
            match call {
                Call::Start(range) => {
                    ranges += Ranges { ranges: 1, bytes: range.len() };
                    self.tell(range);
                }
                Call::InvalidatePage(range) => {
                    sharing_calls += 1;
                    ranges += Ranges { ranges: 1, bytes: range.len() };
                    self.tell(range);
                }
                Call::Operation => {
                    if let Some(perform) = perform.take() {
                        perform(self);
                    }
                }
                Call::InvalidateRange(_) => sharing_calls += 1,
                Call::InvalidateRangeAgain(_) => {
                    sharing_calls += 1;
                    double_calls += 1;
                }
                Call::End(_) => {}
            }
        }
        let Zapped { slots, bytes, dropped, .. } = self.zapped;
        let zapped = ZappedEvent { slots, bytes, leaves: self.counts_leaves.then_some(dropped) };
        let (zap_ns, operation_ns, end_ns) = (0, 0, 0);
        self.found.fold.add(&Event::Announced(Announcement {
            ranges,
            sharing_calls,
            double_calls,
            zapped,
            zap_ns,
            operation_ns,
            end_ns,
            ..*one
        }));
    }

    fn tell(&mut self, range: HvaRange) {
        if self.zapping.makes_seam(range) {
            self.zapped += self.zapping.seam(&mut self.machine, range);
            self.pause();
        }
        let zapped = self.zapping.zap(&mut self.machine, &self.replay.slots, range);
        self.low_dropped |= zapped.low;
        self.zapped += zapped;
        // A toggle is two announcements. Between them the range may be read and not written: a loop that only reads gets
        // one fault through, seldom more and seldom none, and what that brought goes with the second.
        if self.zapping.toggles() && self.running != Running::Never {
            let read = self.machine.read_once();
            if read != Faults::default() {
                self.found.live += read;
                let _ = self.zapping.zap(&mut self.machine, &self.replay.slots, range);
            }
        }
    }

    /// The operation itself: the kernel drops what it announces, and pages leave. It knows nothing of the software MMU,
    /// whose entries go when its listener is told.
    fn perform(&mut self, announced: &[Announcement], left: bool) {
        let by_kernel = self.replay.setting.mmu != SecondaryMmu::Soft;
        let collapses = announced.iter().any(|one| one.cause == Cause::Collapse);
        for one in announced {
            let pages = one.first_page..one.first_page + one.pages;
            // A seam may have split it already: then there is nothing to announce.
            if one.cause == Cause::PmdSplit && !self.machine.map_by_ptes(one.first_page / 512) {
                continue;
            }
            let dropped = if by_kernel { self.machine.zap(pages.clone()) } else { Leaves::default() };
            if self.kernel_alone {
                self.by_kernel += dropped;
            }
            if one.cause.takes_pages() && left {
                self.machine.unmap(pages);
            } else if collapses && one.pages.is_multiple_of(512) {
                self.machine.collapse(one.first_page / 512);
            }
        }
    }
}

/// The announcements of a system call as they are where VMAs are cut otherwise: exact ranges that stand side by side are
/// one, or each is cut at its blocks' seams.
pub(super) fn recut(announced: &[Announcement], seamed: bool) -> Vec<Announcement> {
    let exact = |one: &Announcement| one.cause.is_one_range_a_vma();
    let mut whole: Vec<Announcement> = Vec::with_capacity(announced.len());
    for &one in announced {
        match whole.last_mut() {
            Some(last)
                if exact(&one)
                    && last.cause == one.cause
                    && last.first_page + last.pages == one.first_page =>
            {
                last.pages += one.pages;
                last.order = Order::of_bytes(last.pages * PAGE_SIZE).unwrap_or(Order::BASE);
            }
            _ => whole.push(one),
        }
    }
    let cut = |one: Announcement| {
        let seamed = seamed && exact(&one);
        let parts = pieces(one.first_page..one.first_page + one.pages, seamed);
        parts.map(move |part| {
            let pages = part.end - part.start;
            let order = match exact(&one) {
                true => Order::of_bytes(pages * PAGE_SIZE).unwrap_or(Order::BASE),
                false => one.order,
            };
            let level = if exact(&one) { MapLevel::Pte } else { one.level };
            Announcement { first_page: part.start, pages, order, level, ..one }
        })
    };
    whole.into_iter().flat_map(cut).collect()
}
