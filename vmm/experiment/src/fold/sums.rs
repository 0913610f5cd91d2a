//! What the events of a trial come to: counts, which must be the same every time, and times, which are pooled.

use std::collections::BTreeMap;

use guest_mem::HvaRange;
use notifier_bridge::{By, Count};

use super::kernel::Account;
use crate::events::{
    Announcement, Counter, DeviceCounts, Dropped, Event, GivenBack, OperationEnd, Ranges, Setting, StallOn,
    Swapped, Was, Zapped,
};
use program::distribution::Samples;

/// A hot loop's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub touches: u64,
    pub ns: u64,
}

impl Rate {
    /// Touches a second; `None` before anything was measured.
    pub fn per_second(self) -> Option<f64> {
        (self.ns > 0).then(|| self.touches as f64 * 1e9 / self.ns as f64)
    }

    fn and(self, other: Self) -> Self {
        Self { touches: self.touches.saturating_add(other.touches), ns: self.ns.saturating_add(other.ns) }
    }
}

/// All announcements together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Announcements {
    /// As the policy has it.
    pub ranges: Ranges,
    /// What had to be covered.
    pub needed_bytes: u64,
    pub sharing_calls: u64,
    pub double_calls: u64,
    pub slots_zapped: u64,
    pub zapped_bytes: u64,
}

/// The events of a trial, or of several pooled.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// The memory under test; `None` only before a trial.
    arena: Option<HvaRange>,
    /// Whether the listener is one of this program, whose zaps are timed.
    is_ours: bool,
    pub victims: u64,
    pub victim_bytes: u64,
    pub evicted_bytes: u64,
    /// What was expected of the kernel; unknown once an operation named no address.
    pub expected: Option<Ranges>,
    pub announced: Announcements,
    pub sptes_zapped_4k: Count,
    pub sptes_zapped_2m: Count,
    pub remote_tlb_flushes: Count,
    pub refaults: Count,
    pub collateral_faults: Count,
    pub was: Was,
    pub returned_bytes: Option<u64>,
    pub repeated: u64,
    pub lost_stalls: u64,
    pub wrong_pages: Option<u64>,
    pub device: Option<DeviceCounts>,
    pub given_back: Option<GivenBack>,
    pub swapped: Option<Swapped>,
    pub guest_counters: Option<BTreeMap<String, u64>>,
    /// Each zap by a listener.
    pub zap_ns: Samples,
    /// Each operation.
    pub reclaim_ns: Samples,
    /// Each stall, by what it was on.
    pub refault_ns: Samples,
    pub collateral_ns: Samples,
    pub undisturbed_ns: Samples,
    /// The hot loops undisturbed, and while memory was taken; `None` where none ran.
    pub before: Option<Rate>,
    pub during: Option<Rate>,
    /// The kernel's account of the steps that took memory.
    pub kernel: Option<Account>,
    /// Why there is none.
    pub no_account: Option<String>,
    pub warnings: Vec<String>,
}

impl Sums {
    /// Of a trial that begins.
    pub fn of(setting: &Setting) -> Self {
        Self {
            arena: setting.arena.range(),
            is_ours: setting.label.listener.is_ours(),
            expected: Some(Ranges::default()),
            was: Was { as_said: Some(0), ..Was::default() },
            ..Self::default()
        }
    }

    /// Adds an event of the trial.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Asked { victims, bytes } => {
                self.victims = self.victims.saturating_add(*victims);
                self.victim_bytes = self.victim_bytes.saturating_add(*bytes);
            }
            Event::Announced(one) => self.announced(one),
            Event::OperationEnded(end) => self.operation(end),
            Event::Touched { disturbed, touches, ns } => {
                let rate = if *disturbed { &mut self.during } else { &mut self.before };
                *rate = Some(rate.unwrap_or_default().and(Rate { touches: *touches, ns: *ns }));
            }
            Event::Reading { counter, count } => self.reading(*counter, *count),
            Event::Stall(stall) => {
                let samples = match stall.on {
                    StallOn::Taken => &mut self.refault_ns,
                    StallOn::Other => &mut self.collateral_ns,
                    StallOn::Undisturbed => &mut self.undisturbed_ns,
                };
                samples.record(stall.ns);
            }
            Event::Called(call) => {
                if let Some(arena) = self.arena {
                    self.kernel.get_or_insert_default().called(arena, call);
                }
            }
            Event::KernelRange(range) => {
                if let Some(arena) = self.arena {
                    self.kernel.get_or_insert_default().announced(arena, range);
                }
            }
            Event::KernelSpan { lost } => self.kernel.get_or_insert_default().close(*lost),
            Event::NoAccount(why) => self.no_account = Some(why.clone()),
            Event::Device(counts) => self.device = Some(*counts),
            Event::GivenBack(back) => self.given_back = Some(*back),
            Event::Swapped(swapped) => self.swapped = Some(*swapped),
            Event::GuestCounters(counters) => self.guest_counters = Some(counters.clone()),
            Event::Verified { wrong } => self.wrong_pages = Some(*wrong),
            Event::Warned(text) => self.warnings.push(text.clone()),
            Event::Trial(_)
            | Event::StepBegan { .. }
            | Event::StepEnded { .. }
            | Event::OperationBegan(_)
            | Event::Refill(_)
            | Event::Clock { .. } => {}
        }
    }

    /// What left, over the time in the operations of so many trials.
    pub fn evicted_bytes_per_second(&self, trials: u32) -> Option<f64> {
        let evicted = self.evicted_bytes.saturating_mul(u64::from(trials));
        let times = self.reclaim_ns.summary();
        (times.sum > 0).then(|| evicted as f64 * 1e9 / times.sum as f64)
    }

    /// The kernel's account, where one was kept to the end.
    pub fn account(&self) -> Option<&Account> {
        self.kernel.as_ref().filter(|_| self.no_account.is_none())
    }

    /// Why there is none.
    pub fn why_no_account(&self) -> String {
        self.no_account.clone().unwrap_or_else(|| "no step took memory".to_owned())
    }

    fn announced(&mut self, one: &Announcement) {
        let needed = self.arena.map_or(0, |arena| one.invalidation(arena).needed_bytes());
        let Zapped { slots, bytes, leaves } = one.zapped;
        let sums = &mut self.announced;
        sums.ranges += one.ranges;
        for (sum, more) in [
            (&mut sums.needed_bytes, needed),
            (&mut sums.sharing_calls, one.sharing_calls),
            (&mut sums.double_calls, one.double_calls),
            (&mut sums.slots_zapped, slots),
            (&mut sums.zapped_bytes, bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.sptes_zapped_4k += Count::from(leaves.map(|leaves| leaves.small));
        self.sptes_zapped_2m += Count::from(leaves.map(|leaves| leaves.large));
        if self.is_ours {
            self.zap_ns.record(one.zap_ns);
        }
    }

    fn operation(&mut self, end: &OperationEnd) {
        self.evicted_bytes = self.evicted_bytes.saturating_add(end.evicted_bytes);
        self.expected = self.expected.zip(end.expected).map(|(mut sum, more)| {
            sum += more;
            sum
        });
        let (small, large) = match end.dropped {
            Dropped::ByListeners => (Count::ZERO, Count::ZERO),
            Dropped::Unknown => (Count::UNKNOWN, Count::UNKNOWN),
            Dropped::ByKernel(leaves) => (Count::of(leaves.small), Count::of(leaves.large)),
        };
        self.sptes_zapped_4k += small;
        self.sptes_zapped_2m += large;
        let Was { resident, by_pmd, as_said } = end.was;
        self.was = Was {
            resident: self.was.resident.saturating_add(resident),
            by_pmd: self.was.by_pmd.saturating_add(by_pmd),
            as_said: self.was.as_said.zip(as_said).map(|(a, b)| a.saturating_add(b)),
        };
        end.spent_ns.into_iter().for_each(|ns| self.reclaim_ns.record(ns));
        self.repeated += u64::from(end.repeated);
    }

    fn reading(&mut self, counter: Counter, count: Option<u64>) {
        match counter {
            Counter::RemoteTlbFlushes => self.remote_tlb_flushes += Count::from(count),
            Counter::Refaults => self.refaults += Count::from(count),
            Counter::CollateralFaults => self.collateral_faults += Count::from(count),
            Counter::ReturnedBytes => self.returned_bytes = count,
            Counter::LostStalls => self.lost_stalls = self.lost_stalls.saturating_add(count.unwrap_or(0)),
        }
    }

    /// Adds another trial of the same row: its times, its rates, its warnings; its counts must agree.
    pub fn pool(&mut self, other: Self) {
        let mut differences = self.differences(&other);
        if let (Some(mine), Some(theirs)) = (&mut self.kernel, &other.kernel) {
            let [a, b] = [&*mine, theirs].map(|account| account.of(By::Step).ranges);
            if a != b {
                differences.push(format!("kernel_ranges {a} and {b}"));
            }
            mine.pool(theirs);
        }
        if !differences.is_empty() {
            self.warnings.push(format!("counts differ between repetitions: {}", differences.join(", ")));
        }
        self.repeated += other.repeated;
        self.lost_stalls += other.lost_stalls;
        self.wrong_pages = self.wrong_pages.zip(other.wrong_pages).map(|(a, b)| a.saturating_add(b));
        for (mine, theirs) in [
            (&mut self.zap_ns, &other.zap_ns),
            (&mut self.reclaim_ns, &other.reclaim_ns),
            (&mut self.refault_ns, &other.refault_ns),
            (&mut self.collateral_ns, &other.collateral_ns),
            (&mut self.undisturbed_ns, &other.undisturbed_ns),
        ] {
            mine.merge(theirs);
        }
        self.guest_counters = other.guest_counters.or(self.guest_counters.take());
        self.no_account = other.no_account.or(self.no_account.take());
        self.before = self.before.into_iter().chain(other.before).reduce(Rate::and);
        self.during = self.during.into_iter().chain(other.during).reduce(Rate::and);
        for warning in other.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// The names and both values of the counts in which another trial of the same row differs. Only those that
    /// depend on nothing but the scenario: what the guest faulted in while the host worked varies.
    fn differences(&self, other: &Self) -> Vec<String> {
        let counts = |sums: &Self| {
            [
                ("victims", sums.victims),
                ("evicted_bytes", sums.evicted_bytes),
                ("invalidations", sums.announced.ranges.ranges),
                ("needed_bytes", sums.announced.needed_bytes),
                ("invalidated_bytes", sums.announced.ranges.bytes),
                ("slots_zapped", sums.announced.slots_zapped),
            ]
        };
        let pairs = counts(self).into_iter().zip(counts(other));
        pairs.filter(|(a, b)| a != b).map(|((name, a), (_, b))| format!("{name} {a} and {b}")).collect()
    }
}
