//! The operations on a real kernel: the effect each promises, and the plan against what was really announced.

use guest_mem::{
    Backing, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageScanner, Planned, Planner, ReclaimError, Region,
    drain_lru, perform,
};
use test_memory::announced::Announcements;
use test_memory::{
    allow, alone, assert_intact, backings, counts, filled, page_out, pages, swap, swappable,
    without_khugepaged,
};

test_memory::tests! {
    plans_are_what_the_kernel_announces(backing in backings()): [Swap, Announcements, FolioOrders, Has(backing)],
    plans_hold_for_memory_with_a_past(backing in with_a_past()): [Swap, Announcements, FolioOrders, Has(backing)],
    page_out_leaves_and_comes_back_whole(backing in swappable()): [Swap, Has(backing)],
    what_another_cpu_holds_leaves_once_its_batch_is_drained: [Swap, Collapse],
    page_out_without_swap_gets_nothing: [NoSwap],
    dontneed_discards_anonymous_and_only_unmaps_shared(backing in [Backing::Base4k, Backing::Thp, Backing::Memfd]): [Has(backing)],
    cold_takes_nothing: [],
    free_pages_go_without_being_written_to_swap: [Swap],
    collapse_makes_split_and_swapped_memory_huge_again(backing in [Backing::Thp, Backing::MemfdThp]): [Swap, Has(backing)],
    holes_empty_the_file_by_either_way(backing in [Backing::Memfd, Backing::MemfdThp]): [Has(backing)],
    remap_and_protect_keep_content_and_leave_writable_memory(backing in swappable()): [Has(backing)],
    refusals_name_what_and_why: [],
}

const LEN: u64 = 4 * PMD_SIZE;

/// How often a page-out may be tried on fresh memory. MADV_PAGEOUT passes over pages that are held at that
/// moment (by kdamond, a shrinker, an LRU batch), announces nothing for them, and returns no error.
const TRIES: u32 = 5;

/// Plans, performs, and compares with the kernel's tracepoint. `fresh` makes the memory. A page-out
/// that left resident what it was planned to take proves nothing, and is tried again.
fn assert_announced_as_planned(
    kernel: &Announcements,
    fresh: impl Fn() -> Region,
    span: (u64, u64),
    operation: Operation,
) {
    for left in (0..TRIES).rev() {
        let region = fresh();
        let range = pages(&region, span.0, span.1);
        let Err(difference) = announced_as_planned(kernel, &region, range, operation) else { return };
        let mut scanner = PageScanner::new().unwrap();
        let stayed = counts(&mut scanner, &region, range).resident() > 0;
        assert!(operation == Operation::PageOut && stayed && left > 0, "{difference}");
        eprintln!("again, the kernel passed over pages in use: {difference}");
    }
}

fn announced_as_planned(
    kernel: &Announcements,
    region: &Region,
    range: HvaRange,
    operation: Operation,
) -> Result<(), String> {
    let what = format!("{operation} of {} pages in {}", range.page_count(), region.backing());
    let (mut scanner, mut planner) = (PageScanner::new().unwrap(), Planner::new());
    let mut plan = Vec::new();
    planner.plan(&mut scanner, region, range, operation, &mut plan).unwrap();
    kernel.clear();
    match perform(region, operation, range) {
        Ok(()) => {}
        // A block that is already huge, or less than a block: nothing to collapse.
        Err(ReclaimError::Call { .. }) if operation == Operation::Collapse => {}
        Err(error) => panic!("{what}: {error}"),
    }
    let splits: Vec<HvaRange> =
        plan.iter().filter(|p| matches!(p, Planned::SplitFolio(_))).map(Planned::range).collect();
    let mut announced = kernel.inside(region.range());
    if matches!(operation, Operation::PunchHole | Operation::Fallocate) {
        // How finely the folio at the end of a hole is split differs between kernels; one split is planned.
        announced.retain(|range| {
            let finer = |split: &HvaRange| split.covers(*range) && split != range;
            plan.iter().any(|planned| planned.range() == *range) || !splits.iter().any(finer)
        });
    }
    // Linux 6.12 announces the split of a huge page twice.
    let twice = |a: &mut HvaRange, b: &mut HvaRange| a == b && a.len() == PMD_SIZE;
    announced.dedup_by(twice);
    let mut planned: Vec<HvaRange> = plan.iter().map(Planned::range).collect();
    planned.dedup_by(twice);
    // Only where they part: whole plans are thousands of lines.
    let parted = announced.iter().zip(&planned).take_while(|(a, b)| a == b).count();
    let from_there = |ranges: &[HvaRange]| -> Vec<(u64, u64)> {
        let page = |range: &HvaRange| region.offset_of(range.start()).map_or(u64::MAX, |at| at / PAGE_SIZE);
        ranges.iter().skip(parted).take(6).map(|range| (page(range), range.page_count())).collect()
    };
    let (announced, planned) = (from_there(&announced), from_there(&planned));
    if announced == planned {
        return Ok(());
    }
    Err(format!("{what}: (page, pages) announced {announced:?}, planned {planned:?}"))
}

/// Performs an operation, and counts what it got.
fn got(region: &Region, operation: Operation, range: HvaRange) -> u64 {
    let mut scanner = PageScanner::new().unwrap();
    let before = counts(&mut scanner, region, range);
    perform(region, operation, range).unwrap();
    operation.got_bytes(region.backing(), &before, &counts(&mut scanner, region, range))
}

fn plans_are_what_the_kernel_announces(backing: Backing) {
    let _alone = alone();
    let _swap = swap();
    let _khugepaged = without_khugepaged();
    let kernel = Announcements::listen().unwrap();
    let parts = [(515, 1), (528, 16), (520, 40), (512, 512), (0, 2048), (500, 600)];
    let _switches = allow(backing);
    for &operation in Operation::ALL.iter().filter(|op| op.refused_on(backing).is_none()) {
        for (first, count) in parts {
            if backing == Backing::Hugetlb2m && (first % 512, count % 512) != (0, 0) {
                continue;
            }
            let fresh = || filled(LEN, backing);
            assert_announced_as_planned(&kernel, fresh, (first, count), operation);
        }
    }
}

fn with_a_past() -> [Backing; 4] {
    [Backing::Base4k, Backing::mthp(64 << 10).unwrap(), Backing::Thp, Backing::Memfd]
}

/// Memory that is no longer as it was populated: PTE-mapped huge pages, holes, swapped pages, seams.
fn plans_hold_for_memory_with_a_past(backing: Backing) {
    let _alone = alone();
    let _swap = swap();
    let _khugepaged = without_khugepaged();
    let kernel = Announcements::listen().unwrap();
    let _switches = allow(backing);
    for operation in [
        Operation::PageOut,
        Operation::Cold,
        Operation::Free,
        Operation::DontNeed,
        Operation::Protect,
        Operation::Remap,
        Operation::Collapse,
    ] {
        if operation.refused_on(backing).is_some() {
            continue;
        }
        let fresh = || {
            let region = filled(LEN, backing);
            perform(&region, Operation::DontNeed, pages(&region, 20, 3)).unwrap();
            perform(&region, Operation::PageOut, pages(&region, 560, 7)).unwrap();
            perform(&region, Operation::Protect, pages(&region, 1100, 9)).unwrap();
            region.seam(pages(&region, 1024, 512)).unwrap();
            region
        };
        for part in [(8, 1300), (561, 1), (1030, 40), (512, 512)] {
            assert_announced_as_planned(&kernel, fresh, part, operation);
        }
    }
}

fn page_out_leaves_and_comes_back_whole(backing: Backing) {
    let _alone = alone();
    let _swap = swap();
    let mut scanner = PageScanner::new().unwrap();
    let _switches = allow(backing);
    for (first, count) in [(515, 1), (528, 16), (512, 512), (0, 2048), (500, 600)] {
        let region = filled(LEN, backing);
        let range = pages(&region, first, count);
        let before = counts(&mut scanner, &region, range);
        let after = page_out(&mut scanner, &region, range);
        let got = Operation::PageOut.got_bytes(backing, &before, &after);
        assert_eq!((got, after.swapped), (range.len(), count), "{backing} {first}+{count}");
        assert_intact(&region, region.range());
        assert_eq!(counts(&mut scanner, &region, range).swapped, 0);
    }
}

/// Pages that another CPU faulted in a moment ago wait in its batch, where MADV_PAGEOUT does not look.
fn what_another_cpu_holds_leaves_once_its_batch_is_drained() {
    let _alone = alone();
    let _swap = swap();
    let mut scanner = PageScanner::new().unwrap();
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run_on(1);
            test_memory::fill(&region, pages(&region, 0, 5));
        });
    });
    run_on(0);
    drain_lru().unwrap();
    assert_eq!(page_out(&mut scanner, &region, pages(&region, 0, 5)).swapped, 5);
    assert_intact(&region, pages(&region, 0, 5));
}

fn run_on(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu % std::thread::available_parallelism().unwrap().get());
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// With nowhere to go nothing leaves, and the call succeeds all the same.
fn page_out_without_swap_gets_nothing() {
    let _alone = alone();
    let mut scanner = PageScanner::new().unwrap();
    let region = filled(PMD_SIZE, Backing::Base4k);
    assert_eq!(page_out(&mut scanner, &region, region.range()).resident(), 512);
    assert_intact(&region, region.range());
}

fn dontneed_discards_anonymous_and_only_unmaps_shared(backing: Backing) {
    let _alone = alone();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    let (gone, rest) = (pages(&region, 10, 20), pages(&region, 30, 2000));
    assert_eq!(got(&region, Operation::DontNeed, gone), gone.len(), "{backing}");
    if backing.is_shared() {
        assert_intact(&region, gone);
    } else {
        assert_eq!(region.read_u64(gone.start()).unwrap(), 0);
    }
    assert_intact(&region, rest);
}

fn cold_takes_nothing() {
    let _alone = alone();
    let mut scanner = PageScanner::new().unwrap();
    let region = filled(LEN, Backing::Base4k);
    let before = counts(&mut scanner, &region, region.range());
    assert_eq!(got(&region, Operation::Cold, region.range()), 0);
    assert_eq!(counts(&mut scanner, &region, region.range()), before);
    assert_intact(&region, region.range());
}

/// Freed pages stay until memory is wanted; then they are dropped, not swapped. A written page is kept.
fn free_pages_go_without_being_written_to_swap() {
    let _alone = alone();
    let _swap = swap();
    let mut scanner = PageScanner::new().unwrap();
    let region = filled(PMD_SIZE, Backing::Base4k);
    let freed = pages(&region, 0, 100);
    assert_eq!(got(&region, Operation::Free, freed), 0, "lazily");
    test_memory::fill(&region, pages(&region, 0, 10));
    let after = page_out(&mut scanner, &region, freed);
    assert_eq!((after.swapped, after.absent), (10, 90));
    assert_intact(&region, pages(&region, 0, 10));
    assert_eq!(region.read_u64(pages(&region, 50, 1).start()).unwrap(), 0);
}

fn collapse_makes_split_and_swapped_memory_huge_again(backing: Backing) {
    let _alone = alone();
    let _swap = swap();
    let mut scanner = PageScanner::new().unwrap();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    page_out(&mut scanner, &region, pages(&region, 0, 512));
    page_out(&mut scanner, &region, pages(&region, 600, 3));
    assert_intact(&region, region.range());
    let before = counts(&mut scanner, &region, region.range());
    assert!(before.pmd_mapped < 2048, "{backing}: a refault does not restore the mapping");
    let got = got(&region, Operation::Collapse, region.range());
    assert_eq!(got, (2048 - before.pmd_mapped) * PAGE_SIZE, "{backing}");
    assert_eq!(counts(&mut scanner, &region, region.range()).pmd_mapped, 2048);
    assert_intact(&region, region.range());
}

fn holes_empty_the_file_by_either_way(backing: Backing) {
    let _alone = alone();
    let _switches = allow(backing);
    for operation in [Operation::PunchHole, Operation::Fallocate] {
        let region = filled(LEN, backing);
        let hole = pages(&region, 700, 33);
        assert_eq!(got(&region, operation, hole), hole.len(), "{operation} of {backing}");
        assert_eq!(region.read_u64(hole.start()).unwrap(), 0);
        assert_intact(&region, pages(&region, 0, 700));
        assert_intact(&region, pages(&region, 733, 1000));
    }
}

fn remap_and_protect_keep_content_and_leave_writable_memory(backing: Backing) {
    let _alone = alone();
    let mut scanner = PageScanner::new().unwrap();
    let _switches = allow(backing);
    for operation in [Operation::Remap, Operation::Protect] {
        let region = filled(LEN, backing);
        let before = counts(&mut scanner, &region, region.range());
        perform(&region, operation, region.range()).unwrap();
        let after = counts(&mut scanner, &region, region.range());
        assert_eq!(after, before, "{operation} of all of {backing} splits nothing");
        region.seam(pages(&region, 1024, 1)).unwrap();
        perform(&region, operation, pages(&region, 500, 700)).unwrap();
        assert_intact(&region, region.range());
        test_memory::fill(&region, region.range());
        assert_eq!(test_memory::vmas(&region), region.vma_pieces(region.range()).count(), "{operation}");
    }
}

fn refusals_name_what_and_why() {
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    let refused = perform(&region, Operation::PunchHole, region.range()).unwrap_err();
    assert!(refused.to_string().starts_with("remove of `4k`: only a file"), "{refused}");
    let odd = HvaRange::with_len(region.range().start(), 100).unwrap();
    assert!(matches!(perform(&region, Operation::DontNeed, odd), Err(ReclaimError::Range(_))));
    let elsewhere = HvaRange::with_len(region.range().end(), PAGE_SIZE).unwrap();
    assert!(matches!(perform(&region, Operation::PageOut, elsewhere), Err(ReclaimError::Range(_))));
    let nothing = HvaRange::empty(region.range().start());
    for &operation in Operation::ALL.iter().filter(|op| op.refused_on(Backing::Base4k).is_none()) {
        assert!(perform(&region, operation, nothing).is_ok(), "{operation} of nothing");
    }
}
