//! The hook: every operation of this VMM on guest memory is announced here, whether a scenario's step, a balloon or a
//! report of free pages causes it.
//!
//! ```text
//!   range, operation ── Planner: the ranges the kernel will announce for it, by pagemap
//!     └─ announce: each planned range through the bridge; the last one's bracket holds the system call
//! ```
//!
//! One system call can announce many ranges (a region of 4 KiB pages, a split before the page it is made for). The
//! kernel makes them one after another inside the call; here they are made one after another before it, since user
//! space cannot act inside the call. Between the bracket of a split and that of its page the memory is still mapped as it
//! was, so a hot loop may bring a large translation back, which the second bracket drops again.

use guest_mem::{HvaRange, MapLevel, Order, Planned, Region, Victim};

use crate::{Bridge, Cause, Invalidation, InvalidationRecord};

/// Announces each planned range of `region`; the last bracket holds `call`, the system call. With nothing planned,
/// nothing is announced. One record of each announcement goes to `records`.
pub fn announce<R>(
    bridge: &Bridge,
    records: &mut Vec<InvalidationRecord>,
    region: &Region,
    planned: &[Planned],
    cause: Cause,
    call: impl FnOnce() -> R,
) -> R {
    let Some((last, first)) = planned.split_last() else {
        return call();
    };
    for announcement in first {
        bridge.invalidate(records, &invalidation(region, announcement, cause), || ());
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
            Invalidation { cause: Cause::PmdSplit, victim, vma }
        }
        Planned::SplitFolio(pages) => Invalidation { cause: Cause::FolioSplit, victim: exact(pages), vma },
        Planned::Take(victim) => Invalidation { cause, victim, vma },
        Planned::Exact(pages) => Invalidation { cause, victim: exact(pages), vma },
    }
}
