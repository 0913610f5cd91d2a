//! One trial: a case, in one combination, on a machine of its own.

mod faults;
mod verify;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use guest_abi::order::{Task, Walk};
use guest_mem::{Backing, MemoryCgroup, PAGE_SIZE, PMD_SIZE, Remains, SwapInfo, drain_lru};
use notifier_bridge::{Bridge, monotonic_ns};

use super::contents::Contents;
use super::errors::TrialError;
use super::hot_loops::HotLoops;
use super::journal::{self, Journal};
use super::orders;
use super::own_swap::OwnSwap;
use super::reclaimer::{Method, Reclaimer};
use super::refill;
use super::tapping::Tapping;
use super::wiring::Wiring;
use crate::testbed::{GuestSystem, Testbed};
use experiment::choice::{Combination, Reclaim};
use experiment::events::{Counter, Event, STALL, Setting, StallOn, Step as StepKind};
use experiment::scenario::{HotPages, HotWalk, Idle, Plan, ReclaimStep, Step, Uffd, VictimChoice};
use guest::clock::TscRate;
use host::signals::Cancel;
use program::output::visible;

/// The generation that every fill writes: a machine lives for one trial.
const GENERATION: u64 = 1;

/// The parts of a trial.
pub struct TrialSetup<'a> {
    pub testbed: &'a dyn Testbed,
    pub steps: &'a [Step],
    /// The pages of each step.
    pub plan: &'a Plan,
    /// The cgroup this process is in, where the combination squeezes one.
    pub cgroup: Option<&'a MemoryCgroup>,
    pub uffd: &'a Uffd,
    /// The processor of each vCPU, if it has one.
    pub processors: &'a [Option<usize>],
    /// The kernel's account, where the kernel has a listener.
    pub tap: Option<&'a Tapping>,
    pub clock: TscRate,
    /// Whether to find out afterwards how fast the hot loops get their translations back.
    pub refill: bool,
    pub cancel: &'a Cancel,
    /// Its first event, with the row's label.
    pub setting: Setting,
}

/// A case, in one combination, on a machine of its own.
pub struct Trial<'a> {
    setup: TrialSetup<'a>,
    reclaimer: Reclaimer<'a>,
    bridge: &'a Arc<Bridge>,
    /// The swap, once memory was filled, if this process swaps it.
    own_swap: Option<OwnSwap>,
    journal: &'a mut Journal,
    /// The loops of the last hot step.
    last_hot: Option<HotLoops<'a>>,
    contents: Contents,
    /// vCPUs that run a hot loop.
    hot: Vec<u32>,
    /// Whether every hot loop keeps away from all victims: then each of its faults is collateral.
    hot_apart: bool,
    /// Since the first reclaim step with hot loops running: the faults counted before it.
    live_since: Option<Option<u64>>,
    stall_cycles: u64,
}

impl<'a> Trial<'a> {
    /// Prepares a trial over `wiring`, which was made for the same testbed and combination.
    ///
    /// # Errors
    /// Page state cannot be read, or the memory cannot be prepared.
    pub fn new(
        setup: TrialSetup<'a>,
        wiring: &'a Wiring,
        journal: &'a mut Journal,
    ) -> Result<Self, TrialError> {
        let reclaimer = Reclaimer::new(setup.testbed, wiring, &setup.setting.label, setup.cancel)?;
        let arena = setup.testbed.arena();
        if setup.setting.label.tried.needs_seams() {
            arena.seam(arena.range())?;
        }
        Ok(Self {
            stall_cycles: setup.clock.ticks(STALL),
            contents: Contents::new(setup.plan.pages()),
            reclaimer,
            bridge: &wiring.bridge,
            own_swap: None,
            journal,
            last_hot: None,
            hot: Vec::new(),
            // A cgroup takes any pages, the hot ones too, and a clock the idle ones.
            hot_apart: setup.setting.label.tried.reclaim != Reclaim::Cgroup
                && !setup.steps.iter().any(takes_idle),
            live_since: None,
            setup,
        })
    }

    /// Carries the steps out and verifies every page: what happens goes into the journal. Returns whether it was measured how
    /// fast the hot loops get their translations back.
    ///
    /// # Errors
    /// [`TrialError`]: the guest's failure, the kernel's refusal, or the user's wish to stop.
    pub fn run(mut self) -> Result<bool, TrialError> {
        self.journal.trial(self.setup.setting.clone());
        for (index, step) in self.setup.steps.iter().enumerate() {
            self.setup.cancel.check()?;
            self.step(index, step)?;
            self.journal.step_ended(self.testbed());
        }
        self.stop()?;
        self.verify()?;
        if let Some(swap) = self.own_swap.take() {
            self.journal.push(&Event::Swapped(swap.finish()?));
        }
        if let Some(system) = self.testbed().system() {
            self.journal.push(&Event::GuestCounters(system.counters()?));
        }
        let refilled = self.measure_refill()?;
        self.finish();
        Ok(refilled)
    }

    fn step(&mut self, index: usize, step: &'a Step) -> Result<(), TrialError> {
        let testbed = self.testbed();
        let kind = match step {
            // The step begins after its preparation.
            Step::Reclaim(reclaim) => return self.reclaim(index, reclaim),
            Step::Hot(hot) => {
                let set = self.setup.plan.hot(index).expect("the plan has every hot step");
                StepKind::Hot(journal::hot_loops(set, hot.access, hot.vcpus.len()))
            }
            Step::Fill => StepKind::Fill,
            Step::Baseline(_) => StepKind::Baseline,
            Step::Stop => StepKind::Stop,
            Step::Refault { .. } => StepKind::Refault,
            Step::Sweep { .. } => StepKind::Sweep,
            Step::Shell(_) | Step::Inflate(_) | Step::Deflate => StepKind::Other,
        };
        self.journal.step_began(kind, testbed);
        match step {
            Step::Hot(hot) => {
                let set = self.setup.plan.hot(index).expect("the plan has every hot step");
                self.hot_apart &= matches!(hot.walk, HotWalk::List { pages: HotPages::Others, .. });
                self.start_hot(HotLoops { set, access: hot.access, vcpus: &hot.vcpus })?;
            }
            Step::Fill => self.fill()?,
            Step::Baseline(time) => self.baseline(*time)?,
            Step::Reclaim(_) => {}
            Step::Stop => self.stop()?,
            Step::Refault { vcpu } => self.refault(*vcpu)?,
            Step::Sweep { vcpu } => self.sweep(*vcpu)?,
            Step::Shell(command) => self.shell(command)?,
            Step::Inflate(bytes) => self.system().set_balloon(*bytes)?,
            Step::Deflate => self.system().set_balloon(0)?,
        }
        Ok(())
    }

    /// Once all is measured and verified: measures the facts about the hot loops that a replay needs. Not done in a
    /// Linux guest, whose own pages would be zapped with the rest.
    fn measure_refill(&mut self) -> Result<bool, TrialError> {
        let Some(loops) = self.last_hot.filter(|_| self.setup.refill) else { return Ok(false) };
        if self.testbed().system().is_some() {
            return Ok(false);
        }
        let refill = refill::measure(self.testbed(), &loops, self.setup.cancel)?;
        Ok(refill.map(|refill| self.journal.push(&Event::Refill(refill))).is_some())
    }

    fn system(&self) -> &'a dyn GuestSystem {
        self.testbed().system().expect("a scenario with such a step has a Linux guest: it was checked")
    }

    fn shell(&mut self, command: &str) -> Result<(), TrialError> {
        let end = self.system().shell(command)?;
        if end.status != 0 {
            let (status, tail) = (end.status, visible::quoted(end.tail.trim_end()));
            self.journal.warn(format!("sh: `{command}` ended with {status}:{tail}"));
        }
        Ok(())
    }

    fn testbed(&self) -> &'a dyn Testbed {
        self.setup.testbed
    }

    fn tried(&self) -> &Combination {
        &self.setup.setting.label.tried
    }

    fn fill(&mut self) -> Result<(), TrialError> {
        let fill = Task::Fill { generation: GENERATION };
        let order = orders::arena_order(self.testbed(), Walk::Sequential, fill);
        orders::run(self.testbed(), 0, &order)?;
        self.contents.filled();
        if !self.makes_huge_pages() {
            self.testbed().arena().settle()?;
        }
        // Pages in a CPU's batch on their way to the LRU would be passed over by reclaim. Where the kernel
        // has no way to flush the batches, what stays shows in `evicted_bytes`.
        let _ = drain_lru();
        // After the fill: its first touches are the kernel's to serve, with whatever folios the backing has.
        if self.tried().reclaim == Reclaim::Uffd && self.own_swap.is_none() {
            self.own_swap =
                Some(OwnSwap::start(self.testbed(), self.bridge, self.setup.uffd, self.setup.processors)?);
        }
        Ok(())
    }

    /// Whether huge pages come into being after the fill: by a collapse, or because whole ones come back.
    fn makes_huge_pages(&self) -> bool {
        let tried = self.tried();
        let whole = |step: &Step| matches!(step, Step::Reclaim(reclaim) if reclaim.unit_bytes(tried.backing).is_multiple_of(PMD_SIZE));
        match tried.reclaim {
            Reclaim::By(operation) => operation.makes_huge_pages(),
            Reclaim::Uffd => tried.backing == Backing::Thp && self.setup.steps.iter().any(whole),
            Reclaim::Cgroup => false,
        }
    }

    fn start_hot(&mut self, loops: HotLoops<'a>) -> Result<(), TrialError> {
        for &vcpu in loops.vcpus {
            orders::warm_control_area(self.testbed(), vcpu)?;
        }
        self.hot.extend(loops.vcpus);
        loops.start(self.testbed(), self.stall_cycles, self.setup.cancel)?;
        self.last_hot = Some(loops);
        self.forget_stalls()
    }

    fn touches(&self) -> u64 {
        self.hot.iter().map(|&vcpu| self.testbed().mailbox(vcpu).area().touches()).sum()
    }

    /// Runs `during` and tells how fast the hot loops were meanwhile; under pressure, if any ran.
    fn rated<R>(
        &mut self,
        disturbed: bool,
        during: impl FnOnce(&mut Self) -> Result<R, TrialError>,
    ) -> Result<(), TrialError> {
        let (touches, begun) = (self.touches(), monotonic_ns());
        during(self)?;
        let (touches, ns) = (self.touches() - touches, monotonic_ns() - begun);
        if !disturbed || !self.hot.is_empty() {
            self.journal.push(&Event::Touched { disturbed, touches, ns });
        }
        Ok(())
    }

    fn baseline(&mut self, time: Duration) -> Result<(), TrialError> {
        self.rated(false, |trial| Ok(trial.setup.cancel.sleep(time)?))?;
        let mut noise = Vec::new();
        for &vcpu in &self.hot {
            self.testbed().mailbox(vcpu).take_stalls(|stall| noise.push((vcpu, stall)))?;
        }
        for (vcpu, stall) in noise {
            let ns = self.setup.clock.nanoseconds(stall.cycles);
            self.journal.stall(vcpu, stall, ns, StallOn::Undisturbed);
        }
        Ok(())
    }

    /// Takes memory. The step begins when all is prepared for it.
    fn reclaim(&mut self, index: usize, reclaim: &ReclaimStep) -> Result<(), TrialError> {
        // First: to open a tap takes a while, in which the hot loops run on.
        let arena = self.testbed().arena().range();
        let tap = self.setup.tap.filter(|tap| tap.begin(arena));
        if tap.is_some() {
            self.reclaimer.notes.begin_step();
        }
        let layout = journal::layout(self.reclaimer.layout()?);
        self.reclaimer.hot.clone_from(&self.hot);
        if !self.hot.is_empty() && self.live_since.is_none() {
            self.live_since = Some(self.testbed().faults_fixed());
        }
        self.journal.step_began(StepKind::Reclaim(layout), self.testbed());
        let flushes = self.testbed().remote_tlb_flushes();
        self.rated(true, |trial| trial.take_victims(index, reclaim))?;
        let flushed = flushes.zip(self.testbed().remote_tlb_flushes()).map(|(before, after)| after - before);
        self.journal.reading(Counter::RemoteTlbFlushes, flushed);
        if let Some((tap, calls)) = tap.zip(self.reclaimer.notes.end_step()) {
            tap.end(arena, &calls, self.journal);
        }
        self.look_for_room();
        Ok(())
    }

    /// Warns if swap had no room for the pages that stayed. Asked at once: other processes may soon free some of it.
    fn look_for_room(&mut self) {
        let stayed = self.reclaimer.stayed_bytes();
        let free = SwapInfo::read().free();
        if self.tried().reclaim.uses_swap() && free < stayed {
            self.journal.warn(format!(
                "swap is full: {} KiB stayed and {} KiB are free; give it more (`--zram SIZE`), or stop who else swaps out",
                stayed >> 10,
                free >> 10
            ));
        }
    }

    fn take_victims(&mut self, index: usize, reclaim: &ReclaimStep) -> Result<(), TrialError> {
        if let VictimChoice::Idle(idle) = reclaim.victims {
            return self.take_idle(reclaim, idle);
        }
        let victims = self.setup.plan.victims(index).expect("the plan has every reclaim step");
        let backing = self.testbed().arena().backing();
        let (method, remains) = match (self.tried().reclaim, self.setup.cgroup) {
            (Reclaim::By(operation), _) => (Method::Call(operation), operation.remains(backing)),
            (Reclaim::Cgroup, Some(cgroup)) => (Method::Squeeze(cgroup), Remains::Content),
            (Reclaim::Cgroup, None) => unreachable!("whoever squeezes enters a cgroup first"),
            (Reclaim::Uffd, _) => {
                let swap = self.own_swap.as_ref().expect("a checked case fills the memory first");
                (Method::Own(swap), Remains::Content)
            }
        };
        let contents = &mut self.contents;
        let taken = |pages: Range<u64>| contents.take(pages, remains);
        self.reclaimer.take_all(victims, method, reclaim.pace, self.journal, taken)
    }

    fn take_idle(&mut self, reclaim: &ReclaimStep, idle: Idle) -> Result<(), TrialError> {
        let swap = self.own_swap.as_ref().expect("a checked case fills the memory first");
        let unit_pages = reclaim.unit_bytes(self.tried().backing) / PAGE_SIZE;
        let contents = &mut self.contents;
        let taken = |pages: Range<u64>| contents.take(pages, Remains::Content);
        let missed = self.reclaimer.take_idle(swap, idle, unit_pages, reclaim.pace, self.journal, taken)?;
        if missed > 0 {
            let (missed, target) = (missed >> 10, idle.target >> 10);
            self.journal.warn(format!(
                "{missed} KiB more than the target of {target} KiB stayed in memory: they were in use whenever they were watched"
            ));
        }
        Ok(())
    }

    fn finish(self) {
        let testbed = self.setup.testbed;
        if let Some(system) = testbed.system() {
            self.journal.push(&Event::GivenBack(system.take_given_back()));
        }
        if let Some(counts) = self.reclaimer.device_counts() {
            self.journal.push(&Event::Device(counts));
        }
        let lost = (0..testbed.vcpus()).map(|vcpu| testbed.mailbox(vcpu).area().stalls_dropped()).sum();
        self.journal.reading(Counter::LostStalls, Some(lost));
        self.journal.trial_ended(testbed, &self.setup.clock);
    }
}

/// Whether a step takes units that are not used.
fn takes_idle(step: &Step) -> bool {
    matches!(step, Step::Reclaim(ReclaimStep { victims: VictimChoice::Idle(_), .. }))
}
