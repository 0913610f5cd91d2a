//! What a swapper knows of its pages: those it was handed over, those it is about to drop, those that are cached.

use std::sync::Arc;

use guest_mem::{Backing, HvaRange, Operation, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, Page, Region, perform};
use swap::{
    Clock, Evicted, Evictor, FaultAround, HandOverError, Handlers, Kept, Options, Slot, SwapState, Swapper,
    checksum,
};

use crate::support::{Owner, Recorder, Reports, Rig, idle, lz4, rig, value};

test_memory::tests! {
    what_is_handed_over_comes_at_its_first_fault: [Userfault],
    memory_in_use_is_not_handed_over: [Userfault],
    what_will_be_dropped_is_known_before: [Userfault],
    cached_pages_are_mapped_by_the_window_until_they_are_watched: [Userfault],
    it_says_what_it_swaps_and_where_to: [Userfault],
}

const PAGES: u64 = 2 * PAGES_PER_PMD;

/// Every third page is stored, and the others are zeros.
fn what_is_handed_over_comes_at_its_first_fault() {
    let store = lz4();
    let (memory, swapper) = idle(PAGES, store.clone());
    let keep = |number: u64| {
        if !number.is_multiple_of(3) {
            return Kept::Zero;
        }
        let mut page = Page::ZERO;
        for at in [0, PAGE_SIZE as usize - 8] {
            page[at..at + 8].copy_from_slice(&value(number).to_ne_bytes());
        }
        let mut slots = [Slot::default()];
        store.put(std::slice::from_ref(&page), &mut slots).unwrap();
        Kept::Stored { slot: slots[0], checksum: checksum(&page, number) }
    };
    swapper.hand_over(keep).unwrap();
    assert_eq!(swapper.count(SwapState::is_out), PAGES);
    let reports = Arc::new(Reports::default());
    let handlers = Handlers::start(&swapper, vec![(Recorder(reports.clone()), None)]).unwrap();
    let rig = Rig { memory, swapper, handlers, reports };
    for page in 0..PAGES {
        assert_eq!(rig.read(page), if page.is_multiple_of(3) { value(page) } else { 0 }, "page {page}");
    }
    assert!(rig.reports.nothing_is_lost());
    let report = rig.handlers.stop().unwrap()[0];
    assert_eq!((report.faults, report.returned), (PAGES, PAGES));
    assert_eq!(store.usage().pages, 0);
}

fn memory_in_use_is_not_handed_over() {
    let memory = Arc::new(Owner(Region::map(PAGES * PAGE_SIZE, Backing::Base4k).unwrap()));
    let used = PAGES_PER_PMD + 3;
    memory.0.write_u64(memory.0.hva_at(used * PAGE_SIZE).unwrap(), 1).unwrap();
    let options = Options { store: lz4(), around: FaultAround::Fixed(1), events: false };
    let swapper = Swapper::attach(memory, options).unwrap();
    assert_eq!(swapper.hand_over(|_| Kept::Zero), Err(HandOverError { page: used }));
    assert_eq!(swapper.count(|state| state == SwapState::Zero), used, "those before it");
}

/// `Packed::ranges` has the pages to drop, and no page that was never there. A page that another thread has
/// discarded is found only at the drop: it is zeros by then, and not claimed.
fn what_will_be_dropped_is_known_before() {
    let rig = rig(1, Backing::Base4k, lz4(), FaultAround::Fixed(1), false);
    (0..12).filter(|page| ![4, 5].contains(page)).for_each(|page| rig.write(page, value(page)));
    let mut evictor = Evictor::new(&rig.swapper).unwrap();
    let claimed = evictor.claim(rig.range(0, 16)).unwrap();
    assert_eq!((claimed.len(), claimed.is_empty()), (10, false));
    perform(rig.region(), Operation::DontNeed, rig.range(8, 1)).unwrap();
    let packed = claimed.store().unwrap();
    let ranges: Vec<HvaRange> = packed.ranges().collect();
    assert_eq!(ranges, [rig.range(0, 4), rig.range(6, 6)]);
    assert_eq!(packed.drop_pages().unwrap(), Evicted { pages: 9, zeros: 0, stayed: 1 });
    assert!(evictor.claim(rig.range(0, 4)).unwrap().is_empty(), "they are out already");
}

/// Shared memory that only lost its mapping: a fault maps what is cached around it, but of memory that is watched it must
/// stand for one page alone.
fn cached_pages_are_mapped_by_the_window_until_they_are_watched() {
    let rig = rig(1, Backing::Memfd, lz4(), FaultAround::Fixed(16), false);
    (0..16).for_each(|page| rig.write(page, value(page)));
    let read_all = || (0..16).for_each(|page| assert_eq!(rig.read(page), value(page)));
    perform(rig.region(), Operation::DontNeed, rig.range(0, 16)).unwrap();
    read_all();
    Clock::new(&rig.swapper, 1).watch(rig.range(0, 16)).unwrap();
    read_all();
    // One for the first touch of them all, one for the first round, and one for each page of the second.
    let report = rig.handlers.stop().unwrap()[0];
    assert_eq!((report.faults, report.zeroed, report.returned), (1 + 1 + 16, 16, 0));
    assert!((1..=report.faults).contains(&report.wakes), "{report:?}");
}

fn it_says_what_it_swaps_and_where_to() {
    let (memory, swapper) = idle(PAGES, lz4());
    let (range, text) = (memory.0.range(), format!("{swapper:?}"));
    assert_eq!(range.len(), 2 * PMD_SIZE);
    assert!(text.contains(&format!("{range:?}")) && text.contains("CompressedStore"), "{text}");
}
