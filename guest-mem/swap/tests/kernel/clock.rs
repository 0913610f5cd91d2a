//! The clock on real memory: it evicts pages that were not used.

use std::collections::BTreeSet;

use guest_mem::{Backing, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PageScanner, Region};
use swap::{Clock, Evictor, FaultAround, SwapState};
use test_memory::Need;
use test_memory::allow;

use crate::support::{Rig, attach, lz4, rig, value};

test_memory::tests! {
    what_is_used_stays_and_the_rest_goes: [Userfault],
    a_page_that_came_back_is_passed_over: [Userfault],
    a_huge_page_that_is_used_stays_huge: [Userfault, Has(Backing::Thp)],
}

fn filled(blocks: u64, backing: Backing, events: bool) -> Rig {
    let rig = rig(blocks, backing, lz4(), FaultAround::Adaptive, events);
    (0..blocks * PAGES_PER_PMD).for_each(|page| rig.write(page, value(page)));
    rig
}

/// Evicts what a clock finds idle until it finds nothing more, and returns the first page of each unit.
fn evict_idle(rig: &Rig, clock: &mut Clock) -> BTreeSet<u64> {
    let (mut evictor, mut taken) = (Evictor::new(&rig.swapper).unwrap(), BTreeSet::new());
    while let Some(unit) = clock.next_idle() {
        assert_eq!(evictor.evict(unit).unwrap().pages, unit.page_count(), "{unit:?}");
        taken.insert(rig.region().offset_of(unit.start()).unwrap() / PAGE_SIZE);
    }
    taken
}

/// Reads and writes of shared memory are seen; of private memory, writes.
fn what_is_used_stays_and_the_rest_goes() {
    for (backing, events) in
        [(Backing::Base4k, false), (Backing::Base4k, true), (Backing::Memfd, false), (Backing::Memfd, true)]
    {
        let rig = filled(2, backing, events);
        let mut clock = Clock::new(&rig.swapper, 1);
        clock.watch(rig.region().range()).unwrap();
        for page in (0..1024).step_by(7) {
            rig.write(page, page);
        }
        for page in (1..1024).step_by(7).filter(|_| backing.is_shared()) {
            assert_eq!(rig.read(page), value(page), "{backing}");
        }
        let used = |page: &u64| page.is_multiple_of(7) || page % 7 == 1 && backing.is_shared();
        let idle: BTreeSet<u64> = (0..1024).filter(|page| !used(page)).collect();
        let taken = evict_idle(&rig, &mut clock);
        let wrong: Vec<_> = taken.symmetric_difference(&idle).collect();
        assert!(wrong.is_empty(), "{backing}, events: {events}: {wrong:?}");
        assert_eq!(rig.swapper.resident_bytes(), (1024 - idle.len() as u64) * PAGE_SIZE);
        for page in 0..1024 {
            assert_eq!(rig.read(page), if page % 7 == 0 { page } else { value(page) }, "{backing}");
        }
        // What came back was used, each at a fault of its own or with its neighbours.
        let back = |page: u64| rig.swapper.state(rig.range(page, 1).start()) == Some(SwapState::Resident);
        assert!((0..1024).all(back), "{backing}");
        assert!(rig.reports.nothing_is_lost());
    }
}

/// A page that is only read cannot be told from an idle one in private memory. It leaves once and stays then.
fn a_page_that_came_back_is_passed_over() {
    let rig = rig(1, Backing::Base4k, lz4(), FaultAround::Fixed(1), false);
    (0..512).for_each(|page| rig.write(page, value(page)));
    let mut clock = Clock::new(&rig.swapper, 1);
    clock.watch(rig.region().range()).unwrap();
    assert_eq!(evict_idle(&rig, &mut clock).len(), 512);
    for page in [3, 99, 511] {
        assert_eq!(rig.read(page), value(page));
    }
    assert_eq!(clock.next_idle(), None, "three pages in memory, each of them used");
    clock.watch(rig.region().range()).unwrap();
    assert_eq!(evict_idle(&rig, &mut clock), [3, 99, 511].into(), "watched again, in vain");
}

/// A huge page is watched as one, and stays one when it was written to.
fn a_huge_page_that_is_used_stays_huge() {
    let _switches = allow(Backing::Thp);
    let region = Region::map(3 * PMD_SIZE, Backing::Thp).unwrap();
    // Filled before it is watched: what a handler brings for a first touch are small pages.
    region.populate(region.range()).unwrap();
    let rig = attach(region, lz4(), FaultAround::Adaptive, false, 1);
    (0..3 * PAGES_PER_PMD).for_each(|page| rig.write(page, value(page)));
    let mut scanner = PageScanner::new().unwrap();
    let mut huge = |block: u64| scanner.page(rig.range(block * 512, 1).start()).unwrap().is_pmd_mapped();
    if !(0..3).all(&mut huge) {
        harness::could_not_run(Need::Has(Backing::Thp), "one of the three pages is none");
    }
    let mut clock = Clock::new(&rig.swapper, PAGES_PER_PMD);
    clock.watch(rig.region().range()).unwrap();
    rig.write(512 + 77, 5);
    rig.wait_faults(1);
    rig.write(512 + 78, 6);
    assert_eq!(rig.faults(), 1, "the second write to it meets no protection any more");
    assert_eq!(evict_idle(&rig, &mut clock), [0, 1024].into());
    assert!(huge(1), "it did not come apart");
    assert_eq!(
        (rig.read(512 + 77), rig.read(512 + 78), rig.read(0), rig.read(1535)),
        (5, 6, value(0), value(1535))
    );
}
