//! One row under one policy: the operations of the log, announced as the policy says, against the model.

mod play;

use guest_mem::{HvaRange, PAGE_SIZE, PMD_SIZE, SlotError, SlotTable};
use notifier_bridge::Policy;

use super::machine::{Faults, Machine, Pace};
use super::speed::{Hot, median};
use super::zapping::{Zapped, Zapping};
use experiment::choice::{Combination, Granule, Listener, PolicyChoice, Reclaim, RowLabel, Zap};
use experiment::events::{
    Announcement, Counter, Event, GuestKind, Leaves, Operation, RowEvents, SecondaryMmu, Setting,
};
use experiment::record::RowFold;
use program::exit::{Class, Classified};

/// The assumption about how far the hot loops come between two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Running {
    /// As far as the recorded times and the measured pace let them.
    Recorded,
    /// Nowhere.
    Never,
    /// All the way round.
    Around,
}

/// The predicted events of a row, folded, and counts that they do not have.
#[derive(Debug, Default)]
pub struct Prediction {
    /// The events.
    pub fold: RowFold,
    /// Faults by the hot loops while memory is taken and until they are stopped.
    pub live: Faults,
    /// Faults when all that was taken is touched.
    pub refaults: Faults,
    /// Faults when all else is touched.
    pub sweep: Faults,
    /// The number of times that the hot loops ran after the guest's own pages had been dropped: each costs faults on them.
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
    pub(super) setting: &'a Setting,
    /// The events of its first trial.
    pub(super) events: &'a [Event],
    pub(super) hot: Hot<'a>,
    pub(super) arena: HvaRange,
    slots: SlotTable,
    granule: u64,
}

/// A row that cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[error("with memslots of {granule} bytes: use a larger --granule")]
pub struct ReplayError {
    granule: u64,
    source: SlotError,
}

impl Classified for ReplayError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

impl<'a> Replay<'a> {
    /// Prepares a row, under slots of another size if `granule` says so.
    pub fn new(row: &'a RowEvents, granule: Option<Granule>) -> Result<Self, ReplayError> {
        let setting = row.setting();
        let bytes = granule.unwrap_or(setting.label.tried.granule).bytes();
        let slots = setting.slot_table(granule).map_err(|source| ReplayError { granule: bytes, source })?;
        let arena = setting.arena.range().unwrap_or(HvaRange::empty(guest_mem::Hva::new(0)));
        let hot = Hot::of(row, setting.pages());
        Ok(Self { setting, events: &row.events[..hot.events], hot, arena, slots, granule: bytes })
    }

    /// The row under `policy`, zapped by `zap`.
    pub fn predict(&self, policy: PolicyChoice, zap: Zap, running: Running) -> Prediction {
        let mut play = self.play(policy, zap, running);
        play.all();
        if play.found.own_rounds > 0 {
            let own = play.found.own_rounds.saturating_mul(self.own_faults());
            play.found.live.others = play.found.live.others.saturating_add(own);
        }
        let known = self.unknown_faults(zap).is_none();
        for (counter, count) in [
            (Counter::Refaults, play.found.refaults()),
            (Counter::CollateralFaults, play.found.collateral_faults()),
        ] {
            play.found.fold.add(&Event::Reading { counter, count: known.then_some(count) });
        }
        play.found.fold.add(&Event::Reading { counter: Counter::RemoteTlbFlushes, count: None });
        play.found
    }

    /// The reason why faults cannot be predicted, if they cannot.
    pub fn unknown_faults(&self, zap: Zap) -> Option<&'static str> {
        match self.setting.label.tried.reclaim {
            Reclaim::Uffd => return Some("how pages come back through userfaultfd is not in the model"),
            Reclaim::Cgroup => return Some("the kernel chose for itself, and may choose otherwise"),
            Reclaim::By(_) => {}
        }
        if self.setting.mmu == SecondaryMmu::Unknown {
            return Some("the log does not say which secondary MMU translated: /sys did not");
        }
        if self.setting.guest == GuestKind::Linux {
            return Some("a Linux guest touches memory of its own accord, which the log does not have");
        }
        if zap == Zap::Unmap {
            return Some("what the host maps after an unmapping zap is not in the model");
        }
        let drawn = self.hot.loops.iter().any(|hot| hot.draws());
        drawn.then_some("the hot loop draws its pages, and the log does not have them")
    }

    fn play(&self, policy: PolicyChoice, zap: Zap, running: Running) -> Play<'_> {
        let setting = self.setting;
        let large = setting.large_guest_pages || setting.mmu != SecondaryMmu::Shadow;
        let aligned = (setting.arena.hva ^ setting.arena.gpa).is_multiple_of(PMD_SIZE);
        let machine = Machine::new(setting.pages(), setting.mmu, self.granule / PAGE_SIZE, large && aligned);
        let granule = Granule::new(self.granule).unwrap_or(setting.label.tried.granule);
        let tried = Combination { policy, granule, zap, ..setting.label.tried };
        let seamed = tried.is_seamed();
        let label = RowLabel { case: setting.label.case.clone(), tried, listener: Listener::Replay };
        let replayed = Setting { label, seamed, ..setting.clone() };
        let zapping = Zapping::new(&replayed, self.arena, &self.slots);
        let mut found = Prediction::default();
        found.fold.add(&Event::Trial(Box::new(replayed)));
        Play {
            replay: self,
            machine,
            zapping,
            rule: policy.announced().unwrap_or(Policy::Modern),
            // Zaps by the kernel are counted around the operation; those of a listener, by the listener.
            kernel_alone: Listener::of(policy, setting.mmu.has_guest()) == Listener::Kernel,
            counts_leaves: self.unknown_faults(zap).is_none(),
            recut: (setting.seamed != seamed).then_some(seamed),
            running,
            pace: self.hot.pace(),
            entering: self.hot.entering().filter(|_| zap == Zap::Memslot).unwrap_or(0.0),
            low_dropped: false,
            operation: None,
            announced: Vec::new(),
            by_kernel: Leaves::default(),
            zapped: Zapped::default(),
            found,
        }
    }

    /// Faults on the guest's own pages each time all of them are dropped under its loops: what was counted until the loops
    /// had come round, less what the model says of the loops themselves.
    pub fn own_faults(&self) -> u64 {
        let counted = self.hot.refill.and_then(|refill| median(refill.around.clone()));
        let Some(counted) = counted.filter(|_| self.setting.mmu != SecondaryMmu::Soft) else { return 0 };
        // They were counted after the row: what it did to the host's mappings is done.
        let tried = self.setting.label.tried;
        let mut play = self.play(tried.policy, tried.zap, Running::Around);
        play.all();
        play.machine.loops.clear();
        let Some(last) = self.hot.loops.last() else { return 0 };
        play.start(last);
        play.machine.zap(0..self.setting.pages());
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
    /// Whether the model knows which entries go.
    counts_leaves: bool,
    /// Whether VMA boundaries cut system calls, where they do not in the recorded row, or the reverse.
    recut: Option<bool>,
    running: Running,
    pace: Option<Pace>,
    entering: f64,
    /// Whether the guest's own pages were dropped since the loops last ran.
    low_dropped: bool,
    /// The last operation, after which the loops have not run yet, and what the recorded row announced in it.
    operation: Option<Operation>,
    announced: Vec<Announcement>,
    /// The translations that only the kernel dropped in the operation in progress.
    by_kernel: Leaves,
    /// The effect of the listener's zaps for the announcement in progress.
    zapped: Zapped,
    found: Prediction,
}

#[cfg(test)]
mod tests;
