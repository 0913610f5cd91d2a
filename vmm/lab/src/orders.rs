//! Gives a worker orders over many pages, and collects its outcomes.

use std::time::Duration;

use guest_abi::block::{Outcome, STALL_ENTRIES, Stall};
use guest_abi::layout::{ARENA_GPA, PAGE_SIZE, STALLS_OFFSET, area_gpa};
use guest_abi::order::{Access, Task, Walk, WorkOrder};

use super::errors::TrialError;
use crate::testbed::Testbed;

/// A worker that shows no progress for so long is given up. A page that has to come back from swap takes
/// microseconds; a machine that is being stopped in the middle of it, seconds; an emulated one, longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pages in one list order: as many as the stall ring holds, so that a stall on each of them is kept.
const LIST: usize = STALL_ENTRIES as usize;

/// An order over the whole arena.
pub fn arena_order(testbed: &dyn Testbed, walk: Walk, task: Task) -> WorkOrder {
    WorkOrder { start: ARENA_GPA, len: testbed.arena().range().len(), walk, task }
}

/// Gives one order and waits for its end.
pub fn run(testbed: &dyn Testbed, vcpu: u32, order: &WorkOrder) -> Result<Outcome, TrialError> {
    testbed.mailbox(vcpu).submit(order)?;
    Ok(testbed.wait(vcpu, PATIENCE)?)
}

/// Does `task` to the listed pages of the arena, in as many orders as it takes. Each order's outcome and
/// stalls go to `each`.
pub fn run_list(
    testbed: &dyn Testbed,
    vcpu: u32,
    task: Task,
    pages: impl Iterator<Item = u64>,
    mut each: impl FnMut(&Outcome, &[Stall]),
) -> Result<(), TrialError> {
    let mut pages = pages.peekable();
    let area = testbed.mailbox(vcpu).area();
    let mut stalls = Vec::new();
    while pages.peek().is_some() {
        let mut count = 0;
        for page in pages.by_ref().take(LIST) {
            area.set_table(count, u32::try_from(page).expect("an arena has fewer than 2^32 pages"));
            count += 1;
        }
        let outcome = run(testbed, vcpu, &arena_order(testbed, Walk::List { count }, task))?;
        stalls.clear();
        testbed.mailbox(vcpu).take_stalls(|stall| stalls.push(stall))?;
        each(&outcome, &stalls);
    }
    Ok(())
}

/// Makes a worker touch its own table and stall ring, and has an operating system's memory mapped, so that the first
/// use of each page of them does not count as a fault of the experiment.
pub fn warm_control_area(testbed: &dyn Testbed, vcpu: u32) -> Result<(), TrialError> {
    let touch = |start, len| WorkOrder {
        start,
        len,
        walk: Walk::Sequential,
        task: Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX },
    };
    let area = area_gpa(vcpu);
    let table = area + guest_abi::layout::TABLE_OFFSET;
    run(testbed, vcpu, &touch(table, STALLS_OFFSET - guest_abi::layout::TABLE_OFFSET))?;
    let ring_bytes = STALL_ENTRIES * size_of::<Stall>() as u64;
    run(testbed, vcpu, &touch(area + STALLS_OFFSET, ring_bytes / PAGE_SIZE * PAGE_SIZE))?;
    testbed.warm();
    Ok(())
}
