//! What others do to the memory while the swapper works on it: each of these once cost a page.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use guest_mem::{Backing, HvaRange, Operation, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, Page, Region, perform};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use swap::{EvictError, Evicted, Evictor, FaultAround, Handlers, Lost, Observer, Served, SwapState};
use test_memory::Need;
use uffd::{Event, MapAs, PageFault, Wake};

use crate::support::{self, Owner, attach, idle, lz4, rig, value};

test_memory::tests! {
    a_claim_that_is_given_up_leaves_the_next_one_protected: [Userfault],
    a_page_that_another_has_claimed_since_is_not_taken_from_him: [Userfault],
    what_is_unmapped_is_forgotten: [Userfault],
    a_mapping_that_was_cut_is_dropped_piece_by_piece: [Userfault],
    what_cannot_be_dropped_stays_and_what_was_before_it_is_stored: [Userfault],
    shared_memory_that_is_only_unmapped_keeps_what_is_out: [Userfault],
    a_large_folio_that_cannot_be_split_shows_no_zeros: [Userfault, Has(Backing::MemfdThp)],
    a_swapper_that_ends_leaves_nothing_in_its_store: [Userfault],
    a_handler_that_panics_leaves_its_faults_to_the_others: [Userfault],
    the_faults_of_a_handler_that_panicked_are_for_the_next_one: [Userfault],
    what_was_discarded_does_not_come_back: [Userfault],
    a_block_that_comes_back_in_part_loses_nothing: [Userfault],
    a_window_with_pages_in_its_way_comes_back_around_them: [Userfault],
}

/// Cuts the mapping at both ends of a range, as madvise(2) on a part of it may.
fn cut_out(range: HvaRange) {
    // SAFETY: the advice concerns core dumps alone.
    unsafe { rustix::mm::madvise(range.start().as_ptr(), range.len() as usize, Advice::LinuxDontDump) }
        .unwrap();
}

/// One evictor gives up many pages in many pieces, the last of which another claims as soon as it can.
fn a_claim_that_is_given_up_leaves_the_next_one_protected() {
    const ROUNDS: u64 = 30;
    for backing in [Backing::Base4k, Backing::Memfd] {
        let rig = rig(1, backing, lz4(), FaultAround::Fixed(1), false);
        (0..512).step_by(2).for_each(|page| rig.write(page, value(page)));
        let (together, mut lost) = (Barrier::new(2), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut evictor = Evictor::new(&rig.swapper).unwrap();
                for _ in 0..ROUNDS {
                    let claimed = evictor.claim(rig.range(0, 512)).unwrap();
                    assert_eq!(claimed.len(), 256);
                    together.wait();
                    drop(claimed);
                    together.wait();
                    together.wait();
                }
            });
            let mut evictor = Evictor::new(&rig.swapper).unwrap();
            for round in 1..=ROUNDS {
                together.wait();
                while evictor.claim(rig.range(510, 1)).unwrap().is_empty() {
                    std::hint::spin_loop();
                }
                // That one was given up at once, and is no other's now.
                let packed = evictor.claim(rig.range(510, 1)).unwrap().store().unwrap();
                together.wait();
                rig.write(510, round);
                packed.drop_pages().unwrap();
                lost += u64::from(rig.read(510) != round);
                rig.write(510, round);
                together.wait();
            }
        });
        assert_eq!(lost, 0, "writes of {ROUNDS} on {backing}");
    }
}

/// The page was written to after the first claim copied it out, which took it from that claim, and claimed by a second.
fn a_page_that_another_has_claimed_since_is_not_taken_from_him() {
    for backing in [Backing::Base4k, Backing::Memfd] {
        let rig = rig(1, backing, lz4(), FaultAround::Fixed(1), false);
        let [mut first, mut second] = [(); 2].map(|()| Evictor::new(&rig.swapper).unwrap());
        rig.write(0, 1);
        let packed = first.claim(rig.range(0, 1)).unwrap().store().unwrap();
        rig.write(0, 2);
        let claimed = second.claim(rig.range(0, 1)).unwrap();
        assert_eq!(claimed.len(), 1);
        assert_eq!(packed.drop_pages().unwrap(), Evicted { pages: 0, zeros: 0, stayed: 1 });
        assert_eq!((rig.read(0), rig.stored()), (2, 0), "{backing}");
        assert_eq!(claimed.store().unwrap().drop_pages().unwrap().pages, 1);
        assert_eq!(rig.read(0), 2, "{backing}");
    }
}

/// Unmapped pages are never wanted from the store again. The event is sent after they went, and read at any time
/// afterwards.
fn what_is_unmapped_is_forgotten() {
    let rig = rig(2, Backing::Base4k, lz4(), FaultAround::Fixed(1), true);
    (0..16).for_each(|page| rig.write(page, value(page)));
    assert_eq!(rig.evict(0, 16), 16);
    let gone = rig.range(0, 8);
    // SAFETY: pages of the region, which no thread touches any more; what takes their place goes with the region.
    unsafe {
        let (at, len) = (gone.start().as_ptr(), gone.len() as usize);
        rustix::mm::mmap_anonymous(at, len, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED)
    }
    .unwrap();
    let _waiting = harness::waiting("a handler to read that pages were unmapped");
    while rig.reports.events.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(rig.stored(), 8);
    (8..16).for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
    assert_eq!((rig.swapper.state(gone.start()), rig.stored()), (Some(SwapState::Absent), 0));
}

fn a_mapping_that_was_cut_is_dropped_piece_by_piece() {
    for events in [false, true] {
        for around in [FaultAround::Fixed(1), FaultAround::Fixed(512)] {
            let rig = rig(1, Backing::Base4k, lz4(), around, events);
            cut_out(rig.range(100, 50));
            (0..512).for_each(|page| rig.write(page, value(page)));
            assert_eq!(rig.evict(0, 512), 512);
            (0..512).for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
            assert!(rig.reports.nothing_is_lost());
            assert_eq!(rig.reports.events.load(Ordering::SeqCst), 0, "its own drops make no events");
            assert_eq!(rig.stored(), 0);
        }
    }
}

fn what_cannot_be_dropped_stays_and_what_was_before_it_is_stored() {
    for events in [false, true] {
        let rig = rig(1, Backing::Base4k, lz4(), FaultAround::Fixed(1), events);
        (0..16).for_each(|page| rig.write(page, value(page)));
        let locked = rig.range(8, 4);
        // SAFETY: pages of the region, which no thread unmaps meanwhile.
        unsafe { rustix::mm::mlock(locked.start().as_ptr(), locked.len() as usize) }.unwrap();
        let (before, error) = Evictor::new(&rig.swapper).unwrap().evict(rig.range(0, 16)).unwrap_err();
        assert!(matches!(error, EvictError::Drop { .. }), "{error}");
        assert_eq!(before.pages, 0);
        assert_eq!((rig.stored(), rig.swapper.count(|state| state == SwapState::Resident)), (8, 8));
        (8..16).for_each(|page| rig.write(page, value(page) + 1));
        (0..16)
            .for_each(|page| assert_eq!(rig.read(page), value(page) + u64::from(page >= 8), "page {page}"));
        assert_eq!(rig.stored(), 0);
        // SAFETY: as above.
        unsafe { rustix::mm::munlock(locked.start().as_ptr(), locked.len() as usize) }.unwrap();
        assert_eq!(rig.evict(0, 16), 16);
    }
}

fn shared_memory_that_is_only_unmapped_keeps_what_is_out() {
    let rig = rig(1, Backing::Memfd, lz4(), FaultAround::Fixed(4), true);
    (0..16).for_each(|page| rig.write(page, value(page)));
    assert_eq!(rig.evict(0, 8), 8);
    perform(rig.region(), Operation::DontNeed, rig.range(0, 16)).unwrap();
    (0..16).for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
    assert_eq!(rig.reports.events.load(Ordering::SeqCst), 1, "the event is reported");
    // In the middle of an eviction: a page that is mapped again is protected still.
    let mut evictor = Evictor::new(&rig.swapper).unwrap();
    let packed = evictor.claim(rig.range(0, 4)).unwrap().store().unwrap();
    perform(rig.region(), Operation::DontNeed, rig.range(0, 4)).unwrap();
    assert_eq!(rig.read(0), value(0));
    rig.write(0, 7);
    rig.write(1, 7);
    assert_eq!(packed.drop_pages().unwrap().pages, 2);
    assert_eq!([0, 1, 2, 3].map(|page| rig.read(page)), [7, 7, value(2), value(3)]);
}

/// A reference from a pipe keeps a folio from being split.
fn a_large_folio_that_cannot_be_split_shows_no_zeros() {
    let _alone = test_memory::alone();
    let _switches = test_memory::allow(Backing::MemfdThp);
    let region = Region::map(PMD_SIZE, Backing::MemfdThp).unwrap();
    region.populate(region.range()).unwrap();
    let counts = guest_mem::PageScanner::new().unwrap().counts(&region, region.range()).unwrap();
    if counts.pmd_mapped < 512 {
        harness::could_not_run(Need::Has(Backing::MemfdThp), "none for shared memory");
    }
    let rig = attach(region, lz4(), FaultAround::Fixed(16), false, 1);
    (0..512).for_each(|page| rig.write(page, value(page)));
    let (_reader, writer) = std::io::pipe().unwrap();
    let page = rig.range(300, 1);
    let part = libc::iovec { iov_base: page.start().as_ptr(), iov_len: page.len() as usize };
    // SAFETY: the kernel takes a reference to a page of the region, and reads nothing.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const part, 1, 0) };
    assert_eq!(spliced, page.len() as isize);
    for round in 0..2 {
        assert_eq!(rig.evict(0, 64), 64);
        for page in 0..512 {
            assert_eq!(rig.read(page), value(page), "page {page}, round {round}");
        }
        (0..64).for_each(|page| rig.write(page, value(page)));
    }
    assert!(rig.reports.nothing_is_lost());
    assert_eq!(rig.stored(), 0);
}

/// A store outlives a swapper, and other swappers use it.
fn a_swapper_that_ends_leaves_nothing_in_its_store() {
    let store = lz4();
    let rig = rig(1, Backing::Base4k, store.clone(), FaultAround::Fixed(1), true);
    (0..16).for_each(|page| rig.write(page, value(page)));
    rig.evict(0, 16);
    assert_eq!(store.usage().pages, 16);
    drop(rig);
    assert_eq!(store.usage().pages, 0);
}

/// Panics over the fifth fault that is reported.
struct PanicsOverTheFifth(Arc<AtomicU64>);

impl Observer for PanicsOverTheFifth {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {
        assert!(self.0.fetch_add(1, Ordering::SeqCst) != 4, "this one is too many");
    }
    fn event(&mut self, _event: &Event) {}
    fn lost(&mut self, lost: Lost) {
        panic!("{lost}");
    }
}

/// Sixteen threads fault while there is no handler, so that the first to read has them all; `start` brings handlers.
/// Returns what it returns, once every fault is served.
fn with_sixteen_faults<T>(memory: &Owner, start: impl FnOnce() -> T) -> T {
    let touching = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for page in 0..16 {
            let touching = &touching;
            scope.spawn(move || {
                touching.fetch_add(1, Ordering::SeqCst);
                assert_eq!(support::read(&memory.0, page), 0);
            });
        }
        let waiting = harness::waiting("sixteen threads to touch");
        while touching.load(Ordering::SeqCst) < 16 {
            std::thread::yield_now();
        }
        drop(waiting);
        start()
    })
}

fn a_handler_that_panics_leaves_its_faults_to_the_others() {
    let (memory, swapper) = idle(PAGES_PER_PMD, lz4());
    let served = Arc::new(AtomicU64::new(0));
    let handlers = with_sixteen_faults(&memory, || {
        let observers = (0..2).map(|_| (PanicsOverTheFifth(served.clone()), None)).collect();
        Handlers::start(&swapper, observers).unwrap()
    });
    drop(handlers);
    assert!(served.load(Ordering::SeqCst) >= 16, "one of them has panicked");
}

/// One handler reads the faults of many at once, and panics over one of them: the next handler serves the rest.
fn the_faults_of_a_handler_that_panicked_are_for_the_next_one() {
    let (memory, swapper) = idle(PAGES_PER_PMD, lz4());
    let served = Arc::new(AtomicU64::new(0));
    let start = || Handlers::start(&swapper, vec![(PanicsOverTheFifth(served.clone()), None)]).unwrap();
    let handlers = with_sixteen_faults(&memory, || {
        let first = start();
        let waiting = harness::waiting("a handler to panic over the fifth fault");
        while served.load(Ordering::SeqCst) < 5 {
            std::thread::yield_now();
        }
        drop((first, waiting));
        start()
    });
    drop(handlers);
    assert_eq!(swapper.count(|state| state == SwapState::Resident), 16);
}

/// A thread that discards finds zeros afterwards, though another thread's fault brings pages back at that moment.
fn what_was_discarded_does_not_come_back() {
    let memory = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    let rig = attach(memory, lz4(), FaultAround::Fixed(16), true, 2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (1..16).for_each(|page| {
                    rig.region().read_u64(rig.range(page, 1).start()).unwrap();
                });
            }
        });
        let mut came_back = None;
        for round in 1..=3000 {
            rig.write(0, round);
            (1..16).for_each(|page| rig.write(page, 1));
            rig.evict(0, 16);
            perform(rig.region(), Operation::DontNeed, rig.range(0, 1)).unwrap();
            let found = rig.read(0);
            if found != 0 {
                came_back = Some((round, found));
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        neighbour.join().unwrap();
        assert_eq!(came_back, None, "round, and what was there");
    });
}

/// A page exists in the middle of a block that is to come back whole: the pages before it move, and the rest is copied.
fn a_block_that_comes_back_in_part_loses_nothing() {
    for wanted in [0, 300, 511] {
        let rig = rig(1, Backing::Thp, lz4(), FaultAround::Fixed(512), false);
        (0..512).for_each(|page| rig.write(page, value(page)));
        assert_eq!(rig.evict(0, 512), 512);
        let mut page = Page::ZERO;
        for at in [0, PAGE_SIZE as usize - 8] {
            page[at..at + 8].copy_from_slice(&value(300).to_ne_bytes());
        }
        rig.swapper
            .userfault()
            .copy(rig.range(300, 1).start(), &page[..], MapAs::Writable, Wake::No)
            .unwrap();
        assert_eq!(rig.read(wanted), value(wanted));
        (0..512).for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
        let report = rig.handlers.stop().unwrap()[0];
        assert_eq!(report.huge, 0, "it came in two parts: {report:?}");
        assert!(rig.reports.nothing_is_lost());
        assert!(rig.swapper.count(|state| state == SwapState::Resident) >= 511);
    }
}

/// Of shared memory the pages in the way are in the page cache, and what is stored is written over them; of private memory
/// they are left as they are.
fn a_window_with_pages_in_its_way_comes_back_around_them() {
    for backing in [Backing::Base4k, Backing::Memfd] {
        let rig = rig(1, backing, lz4(), FaultAround::Fixed(16), false);
        (0..16).for_each(|page| rig.write(page, value(page)));
        assert_eq!(rig.evict(0, 16), 16);
        let stranger = [7; PAGE_SIZE as usize];
        for page in [5, 9].map(|page| rig.range(page, 1).start()) {
            rig.swapper.userfault().copy(page, &stranger, MapAs::Writable, Wake::No).unwrap();
        }
        assert_eq!(rig.read(0), value(0));
        // Who reads page 0 is woken before the rest of the window is there, and the stranger has mapped his two.
        let report = rig.handlers.stop().unwrap()[0];
        assert!(rig.reports.nothing_is_lost());
        for page in 0..16 {
            let left = !backing.is_shared() && [5, 9].contains(&page);
            let expected = if left { u64::from_ne_bytes([7; 8]) } else { value(page) };
            assert_eq!(support::read(&rig.memory.0, page), expected, "page {page} of {backing}");
        }
        // The first touch of all, and the window.
        assert_eq!((report.faults, rig.swapper.store().usage().pages), (2, 0), "{backing}");
    }
}
