//! Taking memory to a store of our own: victims of the scenario's choice, or units that are not used.

use std::ops::Range;
use std::time::Duration;

use guest_mem::{Earned, HvaRange, PAGE_SIZE};

use super::{Reclaimer, pages_of};
use crate::errors::TrialError;
use crate::journal::Journal;
use crate::own_swap::{OwnEvictor, OwnSwap};
use experiment::events::OperationEnd;
use experiment::scenario::{Idle, Victims};

/// The most rounds in which the memory is watched for one target. Pages in use all the time stay in any case.
const ROUNDS: u32 = 8;

impl Reclaimer<'_> {
    /// Takes every victim to our own store.
    pub(super) fn swap_out(
        &mut self,
        swap: &OwnSwap,
        victims: &Victims,
        pace: Duration,
        journal: &mut Journal,
        mut taken: impl FnMut(Range<u64>),
    ) -> Result<(), TrialError> {
        let mut evictor = swap.evictor()?;
        for pages in victims.iter() {
            self.evict(&mut evictor, self.range_of(&pages), pace, journal)?;
            taken(pages);
        }
        Ok(())
    }

    /// Takes units that are not in use, watched for a while each time, until at most the target is in memory. Returns by how
    /// many bytes the target is missed.
    pub fn take_idle(
        &mut self,
        swap: &OwnSwap,
        idle: Idle,
        unit_pages: u64,
        pace: Duration,
        journal: &mut Journal,
        mut taken: impl FnMut(Range<u64>),
    ) -> Result<u64, TrialError> {
        let (mut evictor, mut clock) = (swap.evictor()?, swap.clock(unit_pages));
        let units = self.arena().range().page_count() / unit_pages;
        for _ in 0..ROUNDS {
            let mut excess = swap.resident_bytes().saturating_sub(idle.target);
            if excess == 0 {
                return Ok(0);
            }
            let leaves = self.leaves();
            let arena = self.testbed.arena().range();
            self.begin(&(0..arena.page_count()), journal);
            let reading = (&mut self.scanner, &mut self.planner);
            evictor.watch(&clock, arena, self.bridge, &mut self.notes, reading)?;
            // The pages, and the number of rounds, are not known beforehand: nothing is expected.
            let dropped = self.dropped_since(leaves);
            self.end(
                &OperationEnd { dropped, was: Earned::NOTHING.into(), ..OperationEnd::default() },
                journal,
            );
            self.cancel.sleep(idle.after)?;
            for _ in 0..units {
                let Some(unit) = clock.next_idle().filter(|_| excess > 0) else { break };
                let evicted = self.evict(&mut evictor, unit, pace, journal)?;
                excess = excess.saturating_sub(evicted * PAGE_SIZE);
                self.ask(1, unit.len(), journal);
                taken(pages_of(self.arena(), unit));
            }
        }
        Ok(swap.resident_bytes().saturating_sub(idle.target))
    }

    /// Takes one victim. Returns how many pages left.
    fn evict(
        &mut self,
        evictor: &mut OwnEvictor<'_>,
        range: HvaRange,
        pace: Duration,
        journal: &mut Journal,
    ) -> Result<u64, TrialError> {
        self.cancel.check()?;
        self.begin(&pages_of(self.arena(), range), journal);
        if let Some(device) = self.device {
            device.read(range)?;
        }
        self.page_counts(range)?;
        let was = self.what_it_was(range)?;
        let leaves = self.leaves();
        let reading = (&mut self.scanner, &mut self.planner);
        let (evicted, expected, spent) = evictor.take(range, self.bridge, &mut self.notes, reading)?;
        let end = OperationEnd {
            evicted_bytes: evicted.pages * PAGE_SIZE,
            expected: Some(expected),
            dropped: self.dropped_since(leaves),
            was,
            spent_ns: Some(spent),
            repeated: 0,
        };
        self.end(&end, journal);
        if !pace.is_zero() {
            self.cancel.sleep(pace)?;
        }
        Ok(evicted.pages)
    }
}
