//! Orders over all of the memory, for all vCPUs at once.

use std::time::Duration;

use guest_abi::block::{Outcome, STALL_ENTRIES, Stall};
use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::{Task, Walk, WorkOrder};

use crate::Machine;
use guest::GuestError;

/// A vCPU that shows no progress for so long is given up. A page from a slow disk takes milliseconds; a machine that is
/// being stopped in the middle of it, seconds; an emulated one, longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pages in one timed order: as many as the stall ring holds.
const RING: u64 = STALL_ENTRIES;

/// Pages of the arena, by number.
pub type Pages = std::ops::Range<u64>;

/// Cuts pages into as many parts as there are vCPUs, as even as it goes; none is empty.
pub fn parts(pages: &Pages, vcpus: u32) -> Vec<Pages> {
    let len = pages.end - pages.start;
    let cut = |part: u64| pages.start + (u128::from(len) * u128::from(part) / u128::from(vcpus)) as u64;
    (0..u64::from(vcpus)).map(|part| cut(part)..cut(part + 1)).filter(|part| !part.is_empty()).collect()
}

/// Has the vCPUs do `task` to `pages`, each to a part of them: the first part is vCPU `first`'s. Each outcome goes to
/// `each`.
pub fn all(
    machine: &Machine,
    pages: &Pages,
    task: Task,
    first: u32,
    mut each: impl FnMut(&Outcome),
) -> Result<(), GuestError> {
    let vcpus = machine.vcpus().len() as u32;
    let parts = parts(pages, vcpus);
    let of = |part: usize| (part as u32 + first) % vcpus;
    for (part, pages) in parts.iter().enumerate() {
        submit(machine, of(part), pages, task)?;
    }
    (0..parts.len()).try_for_each(|part| machine.wait(of(part), PATIENCE).map(|outcome| each(&outcome)))
}

/// The same with a task whose every touch is timed: in pieces, so that each finds its place in the ring.
///
/// # Errors
/// The guest fails, or its ring is corrupt.
pub fn timed(
    machine: &Machine,
    pages: &Pages,
    task: Task,
    mut each: impl FnMut(Stall),
) -> Result<(), GuestError> {
    let mut left = parts(pages, machine.vcpus().len() as u32);
    while left.iter().any(|part| !part.is_empty()) {
        for (vcpu, part) in (0..).zip(&mut left).filter(|(_, part)| !part.is_empty()) {
            let end = part.end.min(part.start.saturating_add(RING));
            submit(machine, vcpu, &(part.start..end), task)?;
            part.start = end;
        }
        // A vCPU without an order is idle, and its ring is empty.
        for vcpu in 0..left.len() as u32 {
            machine.wait(vcpu, PATIENCE)?;
            machine.vcpus()[vcpu as usize].mailbox().take_stalls(&mut each)?;
        }
    }
    Ok(())
}

fn submit(machine: &Machine, vcpu: u32, pages: &Pages, task: Task) -> Result<(), GuestError> {
    let (start, len) = (ARENA_GPA + pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE);
    let order = WorkOrder { start, len, walk: Walk::Sequential, task };
    machine.vcpus()[vcpu as usize].mailbox().submit(&order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_tile_their_pages_evenly(start in 0u64..1 << 40, len in 0u64..1 << 24, vcpus in 1u32..=32) {
            let pages = start..start + len;
            let parts = parts(&pages, vcpus);
            let mut next = start;
            for part in &parts {
                prop_assert_eq!(part.start, next);
                prop_assert!(part.end - part.start <= len / u64::from(vcpus) + 1);
                next = part.end;
            }
            prop_assert_eq!(next, pages.end);
            prop_assert!(parts.len() <= vcpus as usize && parts.iter().all(|part| !part.is_empty()));
        }
    }
}
