//! One trial: a case, in one combination, on a machine of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use guest_abi::block::Stall;
use guest_abi::order::{Access, Task, Walk};
use guest_abi::page::{HEADER_WORDS, WORDS};
use guest_mem::{Backing, MemoryCgroup, Operation, PAGE_SIZE, PMD_SIZE, SwapInfo, drain_lru};
use notifier_bridge::{Bridge, Count, monotonic_ns};

use super::attack::{Attacker, Listening, Method};
use super::errors::TrialError;
use super::fate::{Content, Fates, left_by};
use super::journal::{Journal, StepBegin};
use super::measured::{Counts, Measured, Rate};
use super::orders::{self, PATIENCE};
use super::own_swap::OwnSwap;
use super::refill;
use super::tapping::Watch;
use super::wiring::Wiring;
use crate::choice::{Combination, Listener, Reclaim, Zap};
use crate::clock::TscRate;
use crate::events::StepEvent;
use crate::guest::GuestError;
use crate::host::signals::Cancel;
use crate::output::visible;
use crate::scenario::{Attack, HotPages, HotSet, HotWalk, Idle, Plan, Step, Uffd, VictimChoice};
use crate::testbed::{GuestSystem, Testbed};

/// A touch that takes at least this long is a stall. A TLB miss with cold caches takes a few hundred
/// nanoseconds; the fastest fault that a hypervisor resolves, more than a microsecond.
pub const STALL: Duration = Duration::from_micros(1);

/// The generation that every fill writes: a machine lives for one trial.
const GENERATION: u64 = 1;

/// The most records kept of single invalidations in one trial, 12 MiB. Totals go on beyond.
const MOST_RECORDS: u64 = 1 << 16;

/// What a trial is given.
pub struct TrialSetup<'a> {
    /// The machine.
    pub testbed: &'a dyn Testbed,
    /// What is tried.
    pub combination: Combination,
    /// The case's steps.
    pub steps: &'a [Step],
    /// Which pages each of them concerns.
    pub plan: &'a Plan,
    /// The cgroup this process is in, where the combination squeezes one.
    pub cgroup: Option<&'a MemoryCgroup>,
    /// How memory is taken where this process swaps it.
    pub uffd: &'a Uffd,
    /// The processor of each vCPU, if it has one.
    pub processors: &'a [Option<usize>],
    /// Who keeps the kernel's account, where the kernel has a listener.
    pub tap: Option<&'a dyn Watch>,
    /// The TSC's rate.
    pub clock: TscRate,
    /// Whether to find out afterwards how fast the hot loops get their translations back.
    pub refill: bool,
    /// Whether to stop.
    pub cancel: &'a Cancel,
}

/// A case, in one combination, on a machine of its own.
pub struct Trial<'a> {
    setup: TrialSetup<'a>,
    attacker: Attacker<'a>,
    bridge: &'a Arc<Bridge>,
    /// Once memory was filled: what swaps it, where this process does.
    own_swap: Option<OwnSwap>,
    listener: Listener,
    journal: Journal,
    /// The last hot step: its number, its access, its vCPUs.
    last_hot: Option<(usize, Access, &'a [u32])>,
    fates: Fates,
    measured: Measured,
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
    pub fn new(setup: TrialSetup<'a>, wiring: &'a Wiring) -> Result<Self, TrialError> {
        let listener = wiring.listener;
        let listening = match (listener, setup.combination.zap) {
            (Listener::Kernel, _) => Listening::KernelAlone,
            (_, Zap::Unmap) => Listening::Unmaps,
            _ => Listening::Spares,
        };
        // Each operation announces its range, and a split before it at most once a huge page; swap in user space is two
        // operations.
        let each = if setup.combination.reclaim == Reclaim::Uffd { 4 } else { 2 };
        let pages = match setup.steps.iter().any(takes_idle) {
            true => setup.plan.pages(),
            false => setup.plan.taken_pages(),
        };
        let records = (each * pages).min(MOST_RECORDS) as usize;
        let attacker = Attacker::new(setup.testbed, wiring, listening, records, setup.cancel)?;
        let arena = setup.testbed.arena();
        // Where nothing is mapped by PMDs, exact toggles cost nothing more; where something is, the first
        // toggle of a part breaks the mapping, and that is its price.
        let small = matches!(setup.combination.backing, Backing::Base4k | Backing::Memfd);
        if setup.combination.zap == Zap::Protect && small {
            arena.seam(arena.range())?;
        }
        Ok(Self {
            stall_cycles: setup.clock.ticks(STALL),
            fates: Fates::new(setup.plan.pages()),
            attacker,
            bridge: &wiring.bridge,
            own_swap: None,
            listener,
            journal: Journal::default(),
            last_hot: None,
            measured: Measured::default(),
            hot: Vec::new(),
            // A cgroup takes what it likes, the hot pages too, and a clock what it finds idle.
            hot_apart: setup.combination.reclaim != Reclaim::Cgroup && !setup.steps.iter().any(takes_idle),
            live_since: None,
            setup,
        })
    }

    /// Carries the steps out, verifies every page, and returns what was measured.
    ///
    /// # Errors
    /// [`TrialError`]: the guest's failure, the kernel's refusal, or the user's wish to stop.
    pub fn run(mut self) -> Result<Measured, TrialError> {
        for (index, step) in self.setup.steps.iter().enumerate() {
            self.setup.cancel.check().map_err(|_| TrialError::Cancelled)?;
            let mut begun = Journal::begin(self.testbed());
            match step {
                Step::Fill => self.fill()?,
                Step::Hot(hot) => {
                    let set = self.setup.plan.hot(index).expect("the plan has every hot step");
                    let apart = matches!(hot.walk, HotWalk::List { pages: HotPages::Others, .. });
                    self.hot_apart &= apart;
                    self.start_hot(set, hot.access, &hot.vcpus)?;
                    self.journal.hot(set, hot.access, hot.vcpus.len());
                    self.last_hot = Some((index, hot.access, &hot.vcpus));
                }
                Step::Baseline(time) => self.baseline(*time)?,
                Step::Reclaim(attack) => begun = self.reclaim(index, attack)?,
                Step::Stop => self.stop()?,
                Step::Refault { vcpu } => self.refault(*vcpu)?,
                Step::Sweep { vcpu } => self.sweep(*vcpu)?,
                Step::Shell(command) => self.shell(command)?,
                Step::Inflate(bytes) => self.system().set_balloon(*bytes)?,
                Step::Deflate => self.system().set_balloon(0)?,
            }
            match step {
                Step::Hot(_) | Step::Reclaim(_) => {}
                Step::Fill => self.journal.step(StepEvent::Fill),
                Step::Baseline(_) => self.journal.step(StepEvent::Baseline),
                Step::Stop => self.journal.step(StepEvent::Stop),
                Step::Refault { .. } => self.journal.step(StepEvent::Refault),
                Step::Sweep { .. } => self.journal.step(StepEvent::Sweep),
                Step::Shell(_) | Step::Inflate(_) | Step::Deflate => self.journal.step(StepEvent::Other),
            }
            self.journal.end(begun, self.testbed());
        }
        self.stop()?;
        self.verify()?;
        if let Some(swap) = self.own_swap.take() {
            self.measured.counts.own_swap = Some(swap.finish()?);
        }
        if let Some(system) = self.testbed().system() {
            self.measured.guest_counters = Some(system.counters()?);
        }
        self.measure_refill()?;
        Ok(self.finish())
    }

    /// Once nothing is left to be measured or verified: what a replay must know of the hot loops. A Linux guest's own
    /// pages would go with the rest; there it is not done.
    fn measure_refill(&mut self) -> Result<(), TrialError> {
        let Some((step, access, vcpus)) = self.last_hot.filter(|_| self.setup.refill) else { return Ok(()) };
        if self.testbed().system().is_none() {
            let set = self.setup.plan.hot(step).expect("the plan has every hot step");
            self.measured.refill = refill::measure(self.testbed(), (set, access, vcpus), self.setup.cancel)?;
        }
        Ok(())
    }

    fn system(&self) -> &'a dyn GuestSystem {
        self.testbed().system().expect("a scenario with such a step has a Linux guest: it was checked")
    }

    fn shell(&mut self, command: &str) -> Result<(), TrialError> {
        let end = self.system().shell(command)?;
        if end.status != 0 {
            let (status, tail) = (end.status, visible::quoted(end.tail.trim_end()));
            self.measured.warnings.push(format!("sh: `{command}` ended with {status}:{tail}"));
        }
        Ok(())
    }

    fn testbed(&self) -> &'a dyn Testbed {
        self.setup.testbed
    }

    fn counts(&mut self) -> &mut Counts {
        &mut self.measured.counts
    }

    fn fill(&mut self) -> Result<(), TrialError> {
        let fill = Task::Fill { generation: GENERATION };
        let order = orders::arena_order(self.testbed(), Walk::Sequential, fill);
        orders::run(self.testbed(), 0, &order)?;
        self.fates.filled();
        if !self.makes_huge_pages() {
            self.testbed().arena().settle()?;
        }
        // Pages in a CPU's batch on their way to the LRU would be passed over by reclaim. Where the kernel
        // has no way to flush the batches, what stays shows in `evicted_bytes`.
        let _ = drain_lru();
        // After the fill: its first touches are the kernel's to serve, with whatever folios the backing has.
        if self.setup.combination.reclaim == Reclaim::Uffd && self.own_swap.is_none() {
            self.own_swap =
                Some(OwnSwap::start(self.testbed(), self.bridge, self.setup.uffd, self.setup.processors)?);
        }
        Ok(())
    }

    /// Whether huge pages come into being after the fill: by a collapse, or because whole ones come back.
    fn makes_huge_pages(&self) -> bool {
        let combination = &self.setup.combination;
        let whole = |step: &Step| matches!(step, Step::Reclaim(attack) if attack.unit_bytes(combination.backing).is_multiple_of(PMD_SIZE));
        match combination.reclaim {
            Reclaim::By(operation) => operation == Operation::Collapse,
            Reclaim::Uffd => combination.backing == Backing::Thp && self.setup.steps.iter().any(whole),
            Reclaim::Cgroup => false,
        }
    }

    fn start_hot(&mut self, set: &HotSet, access: Access, vcpus: &[u32]) -> Result<(), TrialError> {
        let task = Task::Touch { access, passes: None, stall_cycles: self.stall_cycles };
        let order = orders::arena_order(self.testbed(), set.walk, task);
        for &vcpu in vcpus {
            orders::warm_control_area(self.testbed(), vcpu)?;
            let area = self.testbed().mailbox(vcpu).area();
            for (index, &entry) in (0u64..).zip(&set.table) {
                area.set_table(index, entry);
            }
            self.testbed().mailbox(vcpu).submit(&order)?;
            self.hot.push(vcpu);
        }
        // Two passes: then every page of the loop has been touched, and its table is in the caches.
        let warm = 2 * (set.table.len() as u64).max(1);
        for &vcpu in vcpus {
            self.until_touched(vcpu, warm)?;
        }
        self.take_stalls(|_, _| {})
    }

    /// Waits until a hot loop has made so many touches.
    fn until_touched(&self, vcpu: u32, touches: u64) -> Result<(), TrialError> {
        let deadline = monotonic_ns() + PATIENCE.as_nanos() as u64;
        while self.testbed().mailbox(vcpu).area().touches() < touches {
            self.setup.cancel.sleep(Duration::from_micros(200)).map_err(|_| TrialError::Cancelled)?;
            self.testbed().mailbox(vcpu).alive()?;
            if monotonic_ns() > deadline {
                // It is not stuck, then, only slow beyond reason; or it is, and the report says where.
                self.testbed().mailbox(vcpu).area().request_stop();
                self.testbed().wait(vcpu, PATIENCE)?;
                return Err(GuestError::Silent { vcpu, waited: PATIENCE, touches }.into());
            }
        }
        Ok(())
    }

    fn touches(&self) -> u64 {
        self.hot.iter().map(|&vcpu| self.testbed().mailbox(vcpu).area().touches()).sum()
    }

    /// Runs `during` and says how fast the hot loops were meanwhile.
    fn rated<R>(
        &mut self,
        during: impl FnOnce(&mut Self) -> Result<R, TrialError>,
    ) -> Result<Rate, TrialError> {
        let (touches, begun) = (self.touches(), monotonic_ns());
        during(self)?;
        Ok(Rate { touches: self.touches() - touches, ns: monotonic_ns() - begun })
    }

    fn baseline(&mut self, time: Duration) -> Result<(), TrialError> {
        let rate = self.rated(|trial| trial.setup.cancel.sleep(time).map_err(|_| TrialError::Cancelled))?;
        self.measured.before = Some(self.measured.before.unwrap_or_default().and(rate));
        let mut noise = Vec::new();
        self.take_stalls(|_, ns| noise.push(ns))?;
        for ns in noise {
            self.measured.times.undisturbed.record(ns);
        }
        Ok(())
    }

    /// Takes memory. When it was begun with: what prepares for it is not in the step's time.
    fn reclaim(&mut self, index: usize, attack: &Attack) -> Result<StepBegin, TrialError> {
        // First: to open a tap takes a while, in which the hot loops run on.
        let arena = self.testbed().arena().range();
        let tap = self.setup.tap.filter(|tap| tap.begin(arena));
        if tap.is_some() {
            self.attacker.note_operations();
        }
        let hot = !self.hot.is_empty();
        let layout = self.journal.layout(self.attacker.layout()?);
        let first = self.attacker.marks().len();
        self.attacker.beside(&self.hot);
        if hot && self.live_since.is_none() {
            self.live_since = Some(self.testbed().faults_fixed());
        }
        let begun = Journal::begin(self.testbed());
        let flushes = self.testbed().remote_tlb_flushes();
        let rate = self.rated(|trial| trial.attack(index, attack))?;
        if hot {
            self.measured.during = Some(self.measured.during.unwrap_or_default().and(rate));
        }
        let flushed = flushes.zip(self.testbed().remote_tlb_flushes()).map(|(before, after)| after - before);
        self.counts().remote_tlb_flushes += Count::from(flushed);
        if let Some((tap, operations)) = tap.zip(self.attacker.take_operations()) {
            let account = self.measured.kernel.get_or_insert_default();
            let kept = tap.end(&operations, account, self.journal.ranges());
            self.journal.account_kept(kept);
        }
        self.journal.reclaimed(layout, self.attacker.marks(), first, monotonic_ns());
        self.look_for_room();
        Ok(begun)
    }

    /// Whether what stayed had anywhere to go. Asked at once: whoever filled the swap device may make room again.
    fn look_for_room(&mut self) {
        let swaps = match self.setup.combination.reclaim {
            Reclaim::By(operation) => operation == Operation::PageOut,
            Reclaim::Cgroup => true,
            Reclaim::Uffd => false,
        };
        let counts = &self.measured.counts;
        let stayed = counts.victim_bytes.saturating_sub(counts.evicted_bytes);
        let free = SwapInfo::read().free();
        if swaps && free < stayed {
            self.measured.warnings.push(format!(
                "swap is full: {} KiB stayed and {} KiB are free; give it more (`--zram SIZE`), or stop who else swaps out",
                stayed >> 10,
                free >> 10
            ));
        }
    }

    fn attack(&mut self, index: usize, attack: &Attack) -> Result<(), TrialError> {
        if let VictimChoice::Idle(idle) = attack.victims {
            return self.take_idle(attack, idle);
        }
        let victims = self.setup.plan.victims(index).expect("the plan has every reclaim step");
        let shared = self.testbed().arena().backing().is_shared();
        let (method, left) = match (self.setup.combination.reclaim, self.setup.cgroup) {
            (Reclaim::By(operation), _) => (Method::Call(operation), left_by(operation, shared)),
            (Reclaim::Cgroup, Some(cgroup)) => (Method::Squeeze(cgroup), None),
            (Reclaim::Cgroup, None) => unreachable!("whoever squeezes enters a cgroup first"),
            (Reclaim::Uffd, _) => {
                let swap = self.own_swap.as_ref().expect("a checked case fills the memory first");
                (Method::Own(swap), None)
            }
        };
        let (fates, counts) = (&mut self.fates, &mut self.measured.counts);
        let taken = |pages: Range<u64>| fates.take(pages, left);
        self.attacker.take_all(victims, method, attack.pace, counts, taken)
    }

    fn take_idle(&mut self, attack: &Attack, idle: Idle) -> Result<(), TrialError> {
        let swap = self.own_swap.as_ref().expect("a checked case fills the memory first");
        let unit_pages = attack.unit_bytes(self.setup.combination.backing) / PAGE_SIZE;
        let (fates, counts) = (&mut self.fates, &mut self.measured.counts);
        let taken = |pages: Range<u64>| fates.take(pages, None);
        let missed = self.attacker.take_idle(swap, idle, unit_pages, attack.pace, counts, taken)?;
        if missed > 0 {
            let (missed, target) = (missed >> 10, idle.target >> 10);
            self.measured.warnings.push(format!(
                "{missed} KiB more than the target of {target} KiB stayed in memory: they were in use whenever they were watched"
            ));
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), TrialError> {
        let hot = std::mem::take(&mut self.hot);
        for &vcpu in &hot {
            self.testbed().mailbox(vcpu).area().request_stop();
        }
        for &vcpu in &hot {
            self.testbed().wait(vcpu, PATIENCE)?;
        }
        let (mut refaults, mut collateral) = (0, 0);
        for &vcpu in &hot {
            let mut stalls = Vec::new();
            self.testbed().mailbox(vcpu).take_stalls(|stall| stalls.push(stall))?;
            for stall in &stalls {
                if self.file_stall(vcpu, stall) { refaults += 1 } else { collateral += 1 }
            }
        }
        if let Some(before) = self.live_since.take() {
            self.count_live(before, refaults, collateral);
        }
        Ok(())
    }

    /// Counts the faults that the hot loops met while memory was taken. The secondary MMU's own count is
    /// exact but does not say where; the guest's stalls say where but contain its interrupts.
    fn count_live(&mut self, before: Option<u64>, refaults: u64, collateral: u64) {
        let fixed = before.zip(self.testbed().faults_fixed()).map(|(before, after)| after - before);
        match fixed {
            Some(faults) if self.hot_apart => self.counts().collateral_faults += Count::of(faults),
            _ => {
                self.counts().refaults += Count::of(refaults);
                self.counts().collateral_faults += Count::of(collateral);
                self.measured.warnings.push(format!(
                    "faults during the reclaim steps are stalls of the hot loops of {} us and more, interrupts \
                     included: {}",
                    STALL.as_micros(),
                    if fixed.is_some() {
                        "the hot loops touch victims too, and KVM's count does not say where"
                    } else {
                        "this KVM does not count its faults"
                    }
                ));
            }
        }
    }

    /// Touches every page that was taken.
    fn refault(&mut self, vcpu: u32) -> Result<(), TrialError> {
        let pages: Vec<u64> =
            (0..self.setup.plan.pages()).filter(|&page| self.fates.is_taken(page)).collect();
        self.look_for_returned()?;
        let faults = self.touch_once(vcpu, pages)?;
        self.counts().refaults += faults;
        Ok(())
    }

    /// Counts what was swapped out by the kernel and is back already. With nobody of the guest's near it, somebody else
    /// brought it, and a fault may bring several of such pages back to the guest.
    fn look_for_returned(&mut self) -> Result<(), TrialError> {
        let swaps =
            matches!(self.setup.combination.reclaim, Reclaim::By(Operation::PageOut) | Reclaim::Cgroup);
        if !swaps {
            return Ok(());
        }
        let fates = &self.fates;
        let here = self.attacker.resident(|page| fates.is_taken(page))? * PAGE_SIZE;
        let counts = &mut self.measured.counts;
        // What a cgroup left alone is none of the pages that were taken.
        let stayed = match self.setup.combination.reclaim {
            Reclaim::Cgroup => 0,
            _ => counts.victim_bytes.saturating_sub(counts.evicted_bytes),
        };
        counts.returned_bytes = Some(here.saturating_sub(stayed));
        Ok(())
    }

    /// Touches every page that was not taken.
    fn sweep(&mut self, vcpu: u32) -> Result<(), TrialError> {
        let pages: Vec<u64> = self.fates.others().collect();
        let faults = self.touch_once(vcpu, pages)?;
        self.counts().collateral_faults += faults;
        Ok(())
    }

    /// Touches each page once, files its stall, and returns how many faults that took.
    fn touch_once(&mut self, vcpu: u32, pages: Vec<u64>) -> Result<Count, TrialError> {
        orders::warm_control_area(self.testbed(), vcpu)?;
        self.testbed().mailbox(vcpu).take_stalls(|_| {})?;
        let task = Task::Touch { access: Access::Read, passes: Some(1), stall_cycles: self.stall_cycles };
        let testbed = self.testbed();
        let before = testbed.faults_fixed();
        let mut stalls: Vec<Stall> = Vec::new();
        orders::run_list(testbed, vcpu, task, pages.into_iter(), |_, more| stalls.extend(more))?;
        let fixed = before.zip(testbed.faults_fixed()).map(|(before, after)| after - before);
        for stall in &stalls {
            self.file_stall(vcpu, stall);
        }
        if fixed.is_none() {
            self.measured.warnings.push(format!(
                "this KVM does not count its faults: those of a refault or sweep are stalls of {} us and \
                 more, interrupts included",
                STALL.as_micros()
            ));
        }
        Ok(fixed.map_or(Count::of(stalls.len() as u64), Count::of))
    }

    /// Records a stall where it belongs. Returns whether its page was taken.
    fn file_stall(&mut self, vcpu: u32, stall: &Stall) -> bool {
        let ns = self.setup.clock.nanoseconds(stall.cycles);
        self.journal.stall(vcpu, stall, ns);
        let taken = orders::page_of(stall).is_some_and(|page| self.fates.is_taken(page));
        let times = &mut self.measured.times;
        let histogram = if taken { &mut times.refault } else { &mut times.collateral };
        histogram.record(ns);
        taken
    }

    /// Takes the hot loops' stalls: the page and the nanoseconds of each.
    fn take_stalls(&self, mut each: impl FnMut(Option<u64>, u64)) -> Result<(), TrialError> {
        for &vcpu in &self.hot {
            self.testbed().mailbox(vcpu).take_stalls(|stall| {
                each(orders::page_of(&stall), self.setup.clock.nanoseconds(stall.cycles));
            })?;
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), TrialError> {
        let mut wrong = 0;
        let mut first: Option<String> = None;
        for (content, generation) in [(Content::Pattern, GENERATION), (Content::Zeros, 0)] {
            let task = Task::Verify { generation };
            let pages = self.fates.with(content);
            orders::run_list(self.setup.testbed, 0, task, pages, |outcome, _| {
                wrong += outcome.wrong_pages;
                if outcome.wrong_pages > 0 && first.is_none() {
                    first = Some(format!(
                        "first wrong word at gpa {:#x}: {:#x} in place of {:#x}",
                        outcome.wrong_gpa, outcome.wrong_found, outcome.wrong_expected
                    ));
                }
            })?;
        }
        for page in self.fates.with(Content::Either) {
            wrong += u64::from(!self.is_pattern_or_zeros(page));
        }
        self.measured.counts.integrity_errors = wrong;
        self.measured.warnings.extend(first);
        Ok(())
    }

    /// Checks a page that was given up with `MADV_FREE` from outside: it holds its pattern until the kernel
    /// takes it, then zeros, and the guest's verify knows only one of the two.
    fn is_pattern_or_zeros(&self, page: u64) -> bool {
        let arena = self.testbed().arena();
        let gpa = guest_abi::layout::ARENA_GPA + page * PAGE_SIZE;
        let matches = |generation| {
            (HEADER_WORDS as u64..WORDS as u64).all(|word| {
                let at = arena.hva_at(page * PAGE_SIZE + 8 * word).expect("a page of the arena");
                arena.read_u64(at).ok() == Some(guest_abi::page::pattern(gpa + 8 * word, generation))
            })
        };
        matches(GENERATION) || matches(0)
    }

    fn finish(mut self) -> Measured {
        self.measured.counts.given_back = self.testbed().system().map(GuestSystem::take_given_back);
        let announced = self.listener != Listener::Kernel;
        self.measured.counts.device = self.attacker.device_stats();
        let (recorder, reclaim, marks) = self.attacker.finish();
        let mailboxes = (0..self.setup.testbed.vcpus()).map(|vcpu| self.setup.testbed.mailbox(vcpu));
        let lost_stalls = mailboxes.map(|mailbox| mailbox.area().stalls_dropped()).sum();
        self.journal.stalls_lost(lost_stalls);
        let events = self.journal.finish(self.setup.testbed, &self.setup.clock, &marks, &recorder);
        self.measured.events = Some(Box::new(events));
        if announced {
            for record in recorder.records() {
                self.measured.times.zap.record(record.zap_ns);
            }
        }
        self.measured.times.reclaim = reclaim;
        let totals = recorder.totals().sum(|_| true);
        let counts = &mut self.measured.counts;
        counts.totals = totals;
        counts.lost_records = recorder.lost();
        if announced {
            (counts.sptes_zapped_4k, counts.sptes_zapped_2m) =
                (totals.sptes_zapped_4k, totals.sptes_zapped_2m);
        }
        counts.lost_stalls = lost_stalls;
        self.measured
    }
}

/// Whether a step takes whatever nobody uses.
fn takes_idle(step: &Step) -> bool {
    matches!(step, Step::Reclaim(Attack { victims: VictimChoice::Idle(_), .. }))
}
