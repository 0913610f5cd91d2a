//! How fast hot loops get their translations back: what a replay must know to say how far a loop comes between two
//! zaps that take all it has.
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
//! two lengths say nothing. Entering may be less than nothing: a vCPU goes on until it has left. The faults on the guest's own pages (its code, its table) are among those
//! counted, as they are in a row whose policy drops them.

use std::sync::Arc;

use guest_abi::order::{Access, Task};
use guest_mem::{MapLevel, Order, Victim};
use notifier_bridge::{Bridge, Cause, Invalidation, Policy, monotonic_ns};

use super::errors::TrialError;
use super::orders::{self, PATIENCE};
use crate::testbed::Testbed;
use experiment::choice::Zap;
use experiment::events::{Refill, RefillRound};
use experiment::scenario::HotSet;
use guest::GuestError;
use host::signals::Cancel;

/// The two gaps, nanoseconds: a few faults, and a few dozen.
const GAPS: [u64; 2] = [100_000, 500_000];
/// How many of each: the medians count, so that a neighbour's burst moves nothing.
const TIMES: u64 = 11;
/// How often the loops are let come round.
const AROUND: u64 = 5;
/// With more slots a zap of all takes longer than the answer is worth.
const MOST_SLOTS: usize = 512;

/// Measures it with the loops of one hot step; `None` where faults are not counted or there are too many slots.
pub fn measure(
    testbed: &dyn Testbed,
    (set, access, vcpus): (&HotSet, Access, &[u32]),
    cancel: &Cancel,
) -> Result<Option<Refill>, TrialError> {
    if testbed.faults_fixed().is_none() || testbed.slots().as_slice().len() > MOST_SLOTS {
        return Ok(None);
    }
    let Some(listener) = testbed.shadowing(Zap::Memslot) else { return Ok(None) };
    let bridge = Bridge::builder(Policy::Vm, Arc::clone(testbed.slots())).shadowing(listener).build();
    start(testbed, (set, access, vcpus), cancel)?;
    let refill = zap_and_look(testbed, &bridge, (set, vcpus), cancel);
    for &vcpu in vcpus {
        testbed.mailbox(vcpu).area().request_stop();
    }
    for &vcpu in vcpus {
        testbed.wait(vcpu, PATIENCE)?;
    }
    refill.map(Some)
}

/// Starts the loops, and waits until each has been round twice.
fn start(
    testbed: &dyn Testbed,
    (set, access, vcpus): (&HotSet, Access, &[u32]),
    cancel: &Cancel,
) -> Result<(), TrialError> {
    // What is no stall is not written down.
    let task = Task::Touch { access, passes: None, stall_cycles: u64::MAX };
    for &vcpu in vcpus {
        let area = testbed.mailbox(vcpu).area();
        for (index, &entry) in (0u64..).zip(&set.table) {
            area.set_table(index, entry);
        }
        testbed.mailbox(vcpu).submit(&orders::arena_order(testbed, set.walk, task))?;
    }
    let warm = vec![2 * visits(set); vcpus.len()];
    until_touched(testbed, vcpus, &warm, cancel)
}

/// Visits of a pass, as far as a list says.
fn visits(set: &HotSet) -> u64 {
    (set.table.len() as u64).max(1)
}

/// Waits until each loop has made so many touches in all.
fn until_touched(
    testbed: &dyn Testbed,
    vcpus: &[u32],
    wanted: &[u64],
    cancel: &Cancel,
) -> Result<(), TrialError> {
    let deadline = monotonic_ns() + PATIENCE.as_nanos() as u64;
    for (&vcpu, &wanted) in vcpus.iter().zip(wanted) {
        loop {
            let touches = testbed.mailbox(vcpu).area().touches();
            if touches >= wanted {
                break;
            }
            cancel.check().map_err(|_| TrialError::Cancelled)?;
            testbed.mailbox(vcpu).alive()?;
            if monotonic_ns() > deadline {
                return Err(GuestError::Silent { vcpu, waited: PATIENCE, touches }.into());
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn zap_and_look(
    testbed: &dyn Testbed,
    bridge: &Bridge,
    (set, vcpus): (&HotSet, &[u32]),
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
            cancel.check().map_err(|_| TrialError::Cancelled)?;
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
        let twice = |&vcpu| testbed.mailbox(vcpu).area().touches() + 2 * visits(set);
        let wanted: Vec<u64> = vcpus.iter().map(twice).collect();
        until_touched(testbed, vcpus, &wanted, cancel)?;
        around_ns.push(monotonic_ns() - begun);
        around.push(faults().saturating_sub(before));
    }
    Ok(Refill { rounds, around, around_ns })
}
