//! One row under one policy: the operations of the log, announced as the policy says, against the model.

use guest_mem::{Backing, HvaRange, MapLevel, Order, PAGE_SIZE, PMD_SIZE, SlotError, SlotTable, Victim};
use notifier_bridge::{Call, Cause, Invalidation, Policy, Source};

use super::hot::HotLoop;
use super::machine::{Faults, Machine, Pace};
use super::median::median;
use super::sptes::Dropped;
use super::zapping::{Zapped, Zapping, begins_seamed, pieces};
use crate::choice::{Granule, PolicyChoice, Zap};
use crate::events::{Announcement, OperationEvent, RowEvents, SecondaryMmu, StepEvent};
use crate::exit::{Class, Classified};

/// What is asked of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose range is announced.
    pub policy: PolicyChoice,
    /// How the listener zaps it.
    pub zap: Zap,
    /// How large a memslot is, if not as in the row.
    pub granule: Option<Granule>,
}

/// How far the hot loops come between two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Running {
    /// As far as the recorded times and the measured pace let them.
    Recorded,
    /// Nowhere.
    Never,
    /// All the way round.
    Around,
}

/// What the row would have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Ranges announced.
    pub invalidations: u64,
    /// Bytes the operations had to cover.
    pub needed_bytes: u64,
    /// Bytes of all ranges.
    pub invalidated_bytes: u64,
    /// Calls to sharing listeners.
    pub sharing_calls: u64,
    /// Those that only repeat one.
    pub double_calls: u64,
    /// What the listener drops, or where there is none, the kernel.
    pub zapped: Zapped,
    /// Faults by the hot loops while memory is taken and until they are stopped.
    pub live: Faults,
    /// Faults when all that was taken is touched.
    pub refaults: Faults,
    /// Faults when all else is touched.
    pub sweep: Faults,
    /// How often the hot loops ran when the guest's own pages had been dropped: each costs faults on them.
    pub own_rounds: u64,
    /// Nanoseconds that the hot loops had from one operation to the next, all together.
    pub had_ns: u64,
    /// And what they needed of them to come round; 0 where the log does not say how fast they are.
    pub needed_ns: u64,
}

impl Prediction {
    /// Guest faults on pages that had left.
    pub fn refaults(&self) -> u64 {
        self.live.taken.saturating_add(self.refaults.all())
    }
    /// Guest faults on pages that never left.
    pub fn collateral_faults(&self) -> u64 {
        self.live.others.saturating_add(self.sweep.all())
    }
}

/// A row ready to be put through policies.
#[derive(Debug)]
pub struct Replay<'a> {
    pub(super) row: &'a RowEvents,
    backing: Backing,
    pub(super) arena: HvaRange,
    slots: SlotTable,
    granule: u64,
}

/// Why a row cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// No VM has such slots.
    #[error("with memslots of {granule} bytes: use a larger --granule")]
    Slots {
        /// Bytes of each.
        granule: u64,
        /// What went wrong there.
        source: SlotError,
    },
}

impl Classified for ReplayError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

impl<'a> Replay<'a> {
    /// Prepares a row, under slots of another size if `granule` says so.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn new(row: &'a RowEvents, granule: Option<Granule>) -> Result<Self, ReplayError> {
        let tried = &row.header.label.tried;
        let backing = tried.backing;
        let of_slot = granule.unwrap_or(tried.granule).bytes();
        let slots = row
            .header
            .slot_table(granule)
            .map_err(|source| ReplayError::Slots { granule: of_slot, source })?;
        let arena = row.header.arena.range().unwrap_or(HvaRange::empty(guest_mem::Hva::new(0)));
        Ok(Self { row, backing, arena, slots, granule: of_slot })
    }

    /// What the row would have counted under `policy`, zapped by `zap`.
    pub fn predict(&self, policy: PolicyChoice, zap: Zap, running: Running) -> Prediction {
        let mut play = self.play(policy, zap, running);
        play.steps();
        if play.found.own_rounds > 0 {
            let own = play.found.own_rounds.saturating_mul(self.own_faults());
            play.found.live.others = play.found.live.others.saturating_add(own);
        }
        play.found
    }

    fn play(&self, policy: PolicyChoice, zap: Zap, running: Running) -> Play<'_> {
        let header = &self.row.header;
        let large = header.large_guest_pages || header.mmu != SecondaryMmu::Shadow;
        let aligned = (header.arena.hva ^ header.arena.gpa).is_multiple_of(PMD_SIZE);
        let machine = Machine::new(
            self.arena.len() / PAGE_SIZE,
            header.mmu,
            self.granule / PAGE_SIZE,
            large && aligned,
        );
        let seamed = begins_seamed(self.backing, zap);
        let zapping =
            Zapping::new(zap, (header.mmu, header.slot_zap_drops_all, seamed), self.arena, &self.slots);
        let rule = policy.announced().unwrap_or(Policy::Modern);
        Play {
            replay: self,
            machine,
            zapping,
            rule,
            // What the kernel alone drops is counted around the operation; what a listener drops, by itself.
            kernel_alone: zap == Zap::Nothing && header.mmu != SecondaryMmu::Soft,
            recut: header.seamed != seamed,
            seamed,
            running,
            pace: self.pace(),
            entering: self.entering().filter(|_| zap == Zap::Memslot).unwrap_or(0.0),
            low_dropped: false,
            found: Prediction::default(),
        }
    }

    /// Whether a hot loop runs while memory is taken.
    pub fn is_hot(&self) -> bool {
        let mut hot = false;
        self.row.header.steps.iter().any(|step| {
            match step {
                StepEvent::Hot { .. } => hot = true,
                StepEvent::Stop => hot = false,
                _ => {}
            }
            hot && matches!(step, StepEvent::Reclaim { .. })
        })
    }

    /// Visits that all hot loops make if they come round after every operation.
    pub fn rounds_of_all_loops(&self) -> u64 {
        let pages = self.arena.len() / PAGE_SIZE;
        let visits = |step: &StepEvent| match step {
            StepEvent::Hot { list: Some(list), loops, .. } => {
                (self.row.lists[*list as usize].len() as u64).saturating_mul(u64::from(*loops))
            }
            StepEvent::Hot { stride: Some(stride), loops, .. } => {
                pages.div_ceil((*stride).max(1)).saturating_mul(u64::from(*loops))
            }
            _ => 0,
        };
        let all = self.row.header.steps.iter().map(visits).fold(0, u64::saturating_add);
        all.saturating_mul(self.row.operations.len() as u64)
    }

    /// Faults on the guest's own pages each time all of them are dropped under its loops: what was counted until the loops
    /// had come round, less what the model says of the loops themselves.
    pub fn own_faults(&self) -> u64 {
        let counted = self.row.header.refill.as_ref().and_then(|refill| median(refill.around.clone()));
        let Some(counted) = counted.filter(|_| self.row.header.mmu != SecondaryMmu::Soft) else { return 0 };
        // They were counted after the row: what it did to the host's mappings is done.
        let tried = &self.row.header.label.tried;
        let mut play = self.play(tried.policy, tried.zap, Running::Around);
        play.steps();
        play.machine.stop();
        let last = self.row.header.steps.iter().rfind(|step| matches!(step, StepEvent::Hot { .. }));
        let Some(last) = last else { return 0 };
        play.start(last);
        play.machine.zap(0..self.arena.len() / PAGE_SIZE);
        counted.saturating_sub(play.machine.run_loops(None, None).all())
    }
}

/// One pass through a row.
struct Play<'r> {
    replay: &'r Replay<'r>,
    machine: Machine,
    zapping: Zapping,
    rule: Policy,
    kernel_alone: bool,
    /// Whether system calls are cut by VMA boundaries that the recorded row had and this one has not, or the reverse.
    recut: bool,
    seamed: bool,
    running: Running,
    pace: Option<Pace>,
    entering: f64,
    /// Whether the guest's own pages were dropped since the loops last ran.
    low_dropped: bool,
    found: Prediction,
}

impl Play<'_> {
    fn steps(&mut self) {
        let row = self.replay.row;
        let (mut operations, mut announcements) = (row.operations.as_slice(), row.announcements.as_slice());
        let mut fresh = false;
        for step in &row.header.steps {
            match step {
                StepEvent::Fill => {
                    self.machine.fill();
                    fresh = true;
                }
                hot @ StepEvent::Hot { .. } => self.start(hot),
                StepEvent::Reclaim { layout, operations: count, ended_ns } => {
                    self.machine.lay_out(&row.layouts[*layout as usize], fresh);
                    fresh = false;
                    let (mine, rest) = operations.split_at((*count as usize).min(operations.len()));
                    operations = rest;
                    announcements = self.reclaim(mine, announcements, *ended_ns);
                }
                StepEvent::Stop => self.machine.stop(),
                StepEvent::Refault => self.found.refaults += self.machine.touch_all(true),
                StepEvent::Sweep => self.found.sweep += self.machine.touch_all(false),
                StepEvent::Baseline | StepEvent::Other => {}
            }
        }
    }

    /// Starts the loops of a hot step.
    fn start(&mut self, step: &StepEvent) {
        let StepEvent::Hot { list, stride, writes, loops } = *step else { return };
        let pages = self.replay.arena.len() / PAGE_SIZE;
        for _ in 0..loops {
            let hot = match (list, stride) {
                (Some(list), _) => HotLoop::listed(&self.replay.row.lists[list as usize], pages),
                (None, Some(stride)) => HotLoop::strided(stride, pages),
                (None, None) => return,
            };
            self.machine.start(hot.writing(writes));
        }
    }

    /// One step's operations. Returns the announcements of the others.
    fn reclaim<'e>(
        &mut self,
        operations: &[OperationEvent],
        mut announcements: &'e [Announcement],
        ended_ns: u64,
    ) -> &'e [Announcement] {
        for (index, operation) in operations.iter().enumerate() {
            let (mine, rest) =
                announcements.split_at((operation.announcements as usize).min(announcements.len()));
            announcements = rest;
            if self.recut {
                self.operate(operation, &recut(mine, self.seamed));
            } else {
                self.operate(operation, mine);
            }
            let until = operations.get(index + 1).map_or(ended_ns, |next| next.began_ns);
            self.run_loops(until.saturating_sub(operation.began_ns), mine);
        }
        announcements
    }

    /// Lets the hot loops run until the next operation: what the recorded row spent on zaps of its own is not there.
    fn run_loops(&mut self, gap_ns: u64, announced: &[Announcement]) {
        if !self.machine.is_hot() {
            return;
        }
        let zaps: u64 = match self.replay.row.header.label.tried.policy {
            PolicyChoice::Kernel => 0,
            PolicyChoice::Announced(_) => {
                announced.iter().map(|one| one.zap_ns.saturating_add(one.end_ns)).fold(0, u64::saturating_add)
            }
        };
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
            let needed = faults.all() as f64 * pace.fault + self.machine.visits() as f64 * pace.touch;
            self.found.had_ns = self.found.had_ns.saturating_add(gap as u64);
            self.found.needed_ns = self.found.needed_ns.saturating_add(needed as u64);
        }
    }

    /// Lets the hot loops run for the moment between two brackets of one operation. A loop comes round in some ten
    /// microseconds, and a system call takes that long. A vCPU that was stopped for the first is not back before it is
    /// stopped for the second, unless it gets its processor from the very thread that announces.
    fn pause(&mut self) {
        let shares = self.machine.loops() >= self.replay.row.header.processors as usize;
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

    fn operate(&mut self, operation: &OperationEvent, announced: &[Announcement]) {
        let Some((last, first)) = announced.split_last() else { return };
        let pages = operation.first_page..operation.first_page + operation.pages;
        for one in first {
            self.announce(one, |_| ());
            self.pause();
        }
        self.machine.take(pages.clone());
        let left = operation.evicted >= operation.pages;
        self.announce(last, |play| play.perform(announced, left));
    }

    /// One announcement, and in its bracket `perform`.
    fn announce(&mut self, one: &Announcement, perform: impl FnOnce(&mut Self)) {
        let replay = self.replay;
        let start = guest_mem::Hva::new(replay.arena.start().get() + one.first_page * PAGE_SIZE);
        let pages = HvaRange::with_len(start, one.pages * PAGE_SIZE).unwrap_or(HvaRange::empty(start));
        let victim = Victim { pages, order: one.order, level: one.level, anonymous: one.anonymous };
        let invalidation =
            Invalidation { source: Source::Hook, ..Invalidation::hook(one.cause, victim, replay.arena) };
        let needed = &mut self.found.needed_bytes;
        *needed = needed.saturating_add(invalidation.needed_bytes());
        let mut perform = Some(perform);
        for call in invalidation.rule(self.rule).calls(&victim, replay.arena, &replay.slots) {
            match call {
                Call::Start(range) => self.tell(range),
                Call::InvalidatePage(range) => {
                    self.found.sharing_calls += 1;
                    self.tell(range);
                }
                Call::Operation => {
                    if let Some(perform) = perform.take() {
                        perform(self);
                    }
                }
                Call::InvalidateRange(_) => self.found.sharing_calls += 1,
                Call::InvalidateRangeAgain(_) => {
                    self.found.sharing_calls += 1;
                    self.found.double_calls += 1;
                }
                Call::End(_) => {}
            }
        }
    }

    fn tell(&mut self, range: HvaRange) {
        self.found.invalidations += 1;
        self.found.invalidated_bytes = self.found.invalidated_bytes.saturating_add(range.len());
        if self.zapping.makes_seam(range) {
            let zapped = self.zapping.seam(&mut self.machine, range);
            self.found.zapped += zapped;
            self.pause();
        }
        let zapped = self.zapping.zap(&mut self.machine, &self.replay.slots, range);
        self.low_dropped |= zapped.low;
        self.found.zapped += zapped;
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
        let told = self.replay.row.header.mmu != SecondaryMmu::Soft;
        let collapses = announced.iter().any(|one| one.cause == Cause::Collapse);
        for one in announced {
            let pages = one.first_page..one.first_page + one.pages;
            // A seam may have split it already: then there is nothing to announce.
            if one.cause == Cause::PmdSplit && !self.machine.map_by_ptes(one.first_page / 512) {
                continue;
            }
            let dropped = if told { self.machine.zap(pages.clone()) } else { Dropped::default() };
            if self.kernel_alone {
                self.found.zapped.dropped += dropped;
            }
            let gone = matches!(
                one.cause,
                Cause::PageOut | Cause::DontNeed | Cause::PunchHole | Cause::CgroupReclaim
            );
            if gone && left {
                self.machine.unmap(pages);
            } else if collapses && one.pages.is_multiple_of(512) {
                self.machine.collapse(one.first_page / 512);
            }
        }
    }
}

/// The announcements of a system call as they are where VMAs are cut otherwise: exact ranges that stand side by side are
/// one, or each is cut at its blocks' seams.
fn recut(announced: &[Announcement], seamed: bool) -> Vec<Announcement> {
    let exact = |one: &Announcement| matches!(one.cause, Cause::DontNeed | Cause::Free | Cause::PunchHole);
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

#[cfg(test)]
mod tests;
