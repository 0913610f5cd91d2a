//! Measures how fast hot loops get their translations back. A replay needs it to predict how far a loop comes between two zaps
//! of all its translations.
//!
//! After a row is over and verified, its hot loops start once more, and a few times every memslot is zapped under them.
//! Between two zaps nothing is done but look at the clock:
//!
//! ```text
//!   zap ── vCPUs enter ── fault ── fault ── fault ─ … ── vCPUs leave ── zap
//!       │<───────────────── GAP ────────────────────>│                    faults = (GAP - entering) / one fault
//! ```
//!
//! Two lengths of the gap give both unknowns, and a few gaps that last until every loop has come round say how many faults
//! are on the guest's own pages, and what a fault costs at most: where the loops come round in the shorter gap already, the
//! two lengths say nothing. The time to enter can come out negative, since a vCPU runs on until it has left the guest. Faults on
//! the guest's own pages (its code, its table) are counted with the others, as they are in a row whose policy drops them.

use std::sync::Arc;

use guest_mem::{MapLevel, Order, Victim};
use notifier_bridge::{Bridge, Cause, Invalidation, Policy, monotonic_ns};

use super::errors::TrialError;
use super::hot_loops::{self, HotLoops, Wait, until_touched};
use crate::testbed::Testbed;
use experiment::choice::Zap;
use experiment::events::{Refill, RefillRound};
use host::signals::Cancel;

/// The two gaps, nanoseconds: a few faults, and a few dozen.
const GAPS: [u64; 2] = [100_000, 500_000];
/// The number of gaps of each length: the medians count, so that a burst of other load moves nothing.
const TIMES: u64 = 11;
/// The number of times that the loops are let come round.
const AROUND: u64 = 5;
/// With more slots a zap of all takes longer than the answer is worth.
const MOST_SLOTS: usize = 512;

/// Measures it with the loops of one hot step; `None` where faults are not counted or there are too many slots.
pub fn measure(
    testbed: &dyn Testbed,
    loops: &HotLoops<'_>,
    cancel: &Cancel,
) -> Result<Option<Refill>, TrialError> {
    if testbed.faults_fixed().is_none() || testbed.slots().as_slice().len() > MOST_SLOTS {
        return Ok(None);
    }
    let Some(listener) = testbed.shadowing(Zap::Memslot) else { return Ok(None) };
    let bridge = Bridge::new(Policy::Vm, Arc::clone(testbed.slots())).shadowing(listener);
    // No touch is recorded as a stall.
    loops.start(testbed, u64::MAX, cancel)?;
    let refill = zap_and_look(testbed, &bridge, loops, cancel);
    hot_loops::stop(testbed, loops.vcpus)?;
    refill.map(Some)
}

fn zap_and_look(
    testbed: &dyn Testbed,
    bridge: &Bridge,
    loops: &HotLoops<'_>,
    cancel: &Cancel,
) -> Result<Refill, TrialError> {
    let arena = testbed.arena().range();
    let victim = Victim { pages: arena, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    let everything = Invalidation { cause: Cause::Unknown, victim, vma: arena };
    let mut records = Vec::with_capacity(((TIMES + 1) * GAPS.len() as u64 + AROUND) as usize);
    let mut rounds = Vec::new();
    let faults = || testbed.faults_fixed().unwrap_or_default();
    for gap_ns in GAPS {
        bridge.invalidate(&mut records, &everything, || ());
        let mut before = faults();
        for _ in 0..TIMES {
            cancel.check()?;
            let begun = monotonic_ns();
            let mut now = begun;
            while now < begun + gap_ns {
                std::hint::spin_loop();
                now = monotonic_ns();
            }
            bridge.invalidate(&mut records, &everything, || ());
            let after = faults();
            rounds.push(RefillRound { gap_ns, ns: now - begun, faults: after.saturating_sub(before) });
            before = after;
        }
    }
    let (mut around, mut around_ns) = (Vec::new(), Vec::new());
    for _ in 0..AROUND {
        bridge.invalidate(&mut records, &everything, || ());
        let (before, begun) = (faults(), monotonic_ns());
        let twice = |&vcpu| (vcpu, testbed.mailbox(vcpu).area().touches() + loops.two_passes());
        let wanted: Vec<(u32, u64)> = loops.vcpus.iter().map(twice).collect();
        for (vcpu, touches) in wanted {
            until_touched(testbed, vcpu, touches, Wait::Yielding, cancel)?;
        }
        around_ns.push(monotonic_ns() - begun);
        around.push(faults().saturating_sub(before));
    }
    Ok(Refill { rounds, around, around_ns })
}
