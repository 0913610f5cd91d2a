//! The steps after memory was taken: the loops are stopped, the pages taken are touched again, and then all others.

use guest_abi::block::Stall;
use guest_abi::order::{Access, Task};
use guest_mem::PAGE_SIZE;

use super::Trial;
use crate::errors::TrialError;
use crate::hot_loops;
use crate::journal;
use crate::orders;
use experiment::choice::Reclaim;
use experiment::events::{Counter, STALL, StallOn};

impl Trial<'_> {
    pub(super) fn stop(&mut self) -> Result<(), TrialError> {
        let hot = std::mem::take(&mut self.hot);
        hot_loops::stop(self.testbed(), &hot)?;
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
            Some(faults) if self.hot_apart => self.journal.reading(Counter::CollateralFaults, Some(faults)),
            _ => {
                self.journal.reading(Counter::Refaults, Some(refaults));
                self.journal.reading(Counter::CollateralFaults, Some(collateral));
                self.journal.warn(format!(
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
    pub(super) fn refault(&mut self, vcpu: u32) -> Result<(), TrialError> {
        let pages: Vec<u64> =
            (0..self.setup.plan.pages()).filter(|&page| self.contents.is_taken(page)).collect();
        self.look_for_returned()?;
        let faults = self.touch_once(vcpu, pages)?;
        self.journal.reading(Counter::Refaults, Some(faults));
        Ok(())
    }

    /// Counts pages that the kernel swapped out and that are back already. No guest touched them: something else on the
    /// host brought them back, and one fault may map several of them.
    fn look_for_returned(&mut self) -> Result<(), TrialError> {
        if !self.tried().reclaim.uses_swap() {
            return Ok(());
        }
        let contents = &self.contents;
        let here = self.reclaimer.resident(|page| contents.is_taken(page))? * PAGE_SIZE;
        // A page that the cgroup left alone is not among the pages taken.
        let stayed = match self.tried().reclaim {
            Reclaim::Cgroup => 0,
            _ => self.reclaimer.stayed_bytes(),
        };
        self.journal.reading(Counter::ReturnedBytes, Some(here.saturating_sub(stayed)));
        Ok(())
    }

    /// Touches every page that was not taken.
    pub(super) fn sweep(&mut self, vcpu: u32) -> Result<(), TrialError> {
        let pages: Vec<u64> = self.contents.others().collect();
        let faults = self.touch_once(vcpu, pages)?;
        self.journal.reading(Counter::CollateralFaults, Some(faults));
        Ok(())
    }

    /// Touches each page once, files its stall, and returns how many faults that took.
    fn touch_once(&mut self, vcpu: u32, pages: Vec<u64>) -> Result<u64, TrialError> {
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
            self.journal.warn(format!(
                "this KVM does not count its faults: those of a refault or sweep are stalls of {} us and \
                 more, interrupts included",
                STALL.as_micros()
            ));
        }
        Ok(fixed.unwrap_or(stalls.len() as u64))
    }

    /// Records a stall where it belongs. Returns whether its page was taken.
    fn file_stall(&mut self, vcpu: u32, stall: &Stall) -> bool {
        let ns = self.setup.clock.nanoseconds(stall.cycles);
        let taken = journal::page_of(stall).is_some_and(|page| self.contents.is_taken(page));
        self.journal.stall(vcpu, *stall, ns, if taken { StallOn::Taken } else { StallOn::Other });
        taken
    }

    /// Forgets the stalls of the hot loops so far.
    pub(super) fn forget_stalls(&self) -> Result<(), TrialError> {
        for &vcpu in &self.hot {
            self.testbed().mailbox(vcpu).take_stalls(|_| {})?;
        }
        Ok(())
    }
}
