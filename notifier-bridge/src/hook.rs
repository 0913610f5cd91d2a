//! The hook: how an operation of this VMM on guest memory is announced. Every one goes through here, whoever wants
//! it: a scenario's step, a balloon, a report of free pages.
//!
//! ```text
//!   range, operation ── Planner: what the kernel will announce for it, read from pagemap now
//!     └─ announce: each planned range through the bridge; the last one's bracket holds the system call
//! ```
//!
//! One system call can announce many ranges (a region of 4 KiB pages, a split before the page it is made for). The
//! kernel makes them one after another inside the call; here they are made one after another before it, since no
//! other place can be had from outside.

use guest_mem::{HvaRange, MapLevel, Order, Planned, Region, Victim};

use crate::{Bridge, Cause, Invalidation, InvalidationRecord, WouldBlock};

/// Announces each planned range of `region`; the last bracket holds `call`, the system call. With nothing planned,
/// nothing is announced. What was goes to `records`.
///
/// # Errors
/// A listener refused, and the call was not made.
pub fn announce<R>(
    bridge: &Bridge,
    records: &mut Vec<InvalidationRecord>,
    region: &Region,
    planned: &[Planned],
    cause: Cause,
    call: impl FnOnce() -> R,
) -> Result<R, WouldBlock> {
    let Some((last, first)) = planned.split_last() else {
        return Ok(call());
    };
    for announcement in first {
        bridge.invalidate(records, &invalidation(region, announcement, cause), || ())?;
    }
    bridge.invalidate(records, &invalidation(region, last, cause), call)
}

fn invalidation(region: &Region, planned: &Planned, cause: Cause) -> Invalidation {
    let (vma, anonymous) = (region.range(), region.backing().is_anonymous());
    let exact = |pages: HvaRange| Victim {
        pages,
        order: Order::of_bytes(pages.len()).unwrap_or(Order::BASE),
        level: MapLevel::Pte,
        anonymous,
    };
    match *planned {
        Planned::SplitPmd(pages) => {
            let victim = Victim { pages, order: Order::PMD, level: MapLevel::Pmd, anonymous };
            Invalidation::hook(Cause::PmdSplit, victim, vma)
        }
        Planned::SplitFolio(pages) => Invalidation::hook(Cause::FolioSplit, exact(pages), vma),
        Planned::Take(victim) => Invalidation::hook(cause, victim, vma),
        Planned::Exact(pages) => Invalidation::hook(cause, exact(pages), vma),
    }
}
