//! Faults in the store: a page stays, or it is reported and no thread sees another in its place.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use guest_mem::{Backing, PAGE_SIZE, PAGES_PER_PMD};
use rustix::io::Errno;
use swap::{
    Codec, CompressedStore, EvictError, Evicted, Evictor, FaultAround, FileStore, HandlerError, Handlers,
    Lost, LostWhy, Observer, Served, Store, StoreError, SwapState,
};
use test_memory::stores::FaultyStore;
use test_memory::stores::StoreCall::{self, Get, Put};
use test_memory::stores::StoreFault::{self, Die, Flip, Io, Short, Slow};
use uffd::{Event, PageFault};

use crate::support::{Rig, assert_lost, idle, lz4, read, rig, value};

test_memory::tests! {
    what_cannot_be_stored_stays_as_if_nothing_had_been: [Userfault],
    a_full_store_keeps_nothing_of_what_does_not_fit: [Userfault],
    what_cannot_be_read_back_is_named_and_never_replaced: [Userfault],
    a_slow_store_is_waited_for: [Userfault],
    a_neighbour_that_cannot_be_read_costs_nobody_else: [Userfault],
    of_a_huge_page_the_damaged_page_is_named: [Userfault],
    a_handler_that_does_not_stop_is_named_and_keeps_its_memory: [Userfault],
}

const SHARED_AND_NOT: [Backing; 2] = [Backing::Base4k, Backing::Memfd];

fn stores() -> [Arc<dyn Store>; 2] {
    [lz4(), Arc::new(FileStore::new(&std::env::temp_dir(), 64 << 20).unwrap())]
}

fn faulty(store: Arc<dyn Store>, plan: &[(StoreCall, u64, StoreFault)]) -> Arc<FaultyStore> {
    Arc::new(FaultyStore::new(store, plan))
}

fn fill(rig: &Rig, pages: u64) {
    (0..pages).for_each(|page| rig.write(page, value(page)));
}

fn assert_filled(rig: &Rig, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
}

/// Page 3 is zeros, so there are two batches: the first is stored when the second fails.
fn what_cannot_be_stored_stays_as_if_nothing_had_been() {
    for fault in [Io(Errno::IO), Io(Errno::NOSPC), Short, Die] {
        for nth in [1, 2] {
            for (store, backing) in
                stores().into_iter().flat_map(|store| SHARED_AND_NOT.map(|b| (store.clone(), b)))
            {
                let store = faulty(store, &[(Put, nth, fault)]);
                let rig = rig(1, backing, store.clone(), FaultAround::Fixed(1), false);
                fill(&rig, 8);
                rig.write(3, 0);
                let refused = Evictor::new(&rig.swapper).unwrap().evict(rig.range(0, 8));
                let (before, EvictError::Store { range, .. }) = refused.unwrap_err() else {
                    panic!("{fault:?}")
                };
                assert_eq!((before, store.calls(StoreCall::Put)), (Evicted::default(), nth));
                assert!(
                    rig.range(0, 8).covers(range) && range.overlaps(rig.range([0, 4][nth as usize - 1], 1))
                );
                assert_eq!(
                    (rig.stored(), rig.swapper.count(|state| state == SwapState::Resident)),
                    (0, 8),
                    "{fault:?}"
                );
                let before = rig.faults();
                fill(&rig, 8);
                assert!(rig.faults() - before <= 8, "more than one fault a page");
                fill(&rig, 8);
                assert!(rig.faults() - before <= 8, "it was to be once");
                if fault != Die {
                    assert_eq!(rig.evict(0, 8), 8);
                }
                assert_filled(&rig, 0..8);
                assert!(rig.reports.nothing_is_lost());
                assert_eq!(rig.stored(), 0);
            }
        }
    }
}

fn a_full_store_keeps_nothing_of_what_does_not_fit() {
    let file = FileStore::new(&std::env::temp_dir(), 4 * PAGE_SIZE).unwrap();
    let memory = CompressedStore::new(Codec::Lz4, 1 << 20).unwrap();
    for store in [Arc::new(file) as Arc<dyn Store>, Arc::new(memory)] {
        let rig = rig(1, Backing::Base4k, store, FaultAround::Fixed(1), false);
        let pages = 512;
        let words = PAGE_SIZE / 8;
        let word = |at: u64| {
            (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        let at = |at: u64| rig.region().hva_at(at * 8).unwrap();
        (0..pages * words).for_each(|word_at| rig.region().write_u64(at(word_at), word(word_at)).unwrap());
        let refused = Evictor::new(&rig.swapper).unwrap().evict(rig.range(0, pages)).unwrap_err();
        assert!(
            matches!(refused.1, EvictError::Store { source: StoreError::Full { .. }, .. }),
            "{:?}",
            refused.1
        );
        assert_eq!(rig.stored(), 0);
        assert_eq!(rig.evict(0, 4), 4, "what fits, goes");
        for word_at in 0..pages * words {
            assert_eq!(rig.region().read_u64(at(word_at)).unwrap(), word(word_at), "word {word_at}");
        }
    }
}

fn what_cannot_be_read_back_is_named_and_never_replaced() {
    let plans = [
        (Get, 3, Io(Errno::IO)),
        (Get, 3, Short),
        (Get, 3, Flip(12_345)),
        (Get, 3, Die),
        (Put, 1, Flip(66_000)),
    ];
    for plan in plans {
        let (.., fault) = plan;
        for (store, backing) in
            stores().into_iter().flat_map(|store| SHARED_AND_NOT.map(|b| (store.clone(), b)))
        {
            let rig = rig(1, backing, faulty(store, &[plan]), FaultAround::Fixed(1), false);
            fill(&rig, 8);
            assert_eq!(rig.evict(0, 8), 8);
            assert_filled(&rig, 0..2);
            let why = assert_lost(&rig, 2);
            assert_eq!(matches!(why, LostWhy::Checksum { .. }), matches!(fault, Flip(_)), "{plan:?}: {why}");
            assert_eq!(rig.stored(), 5, "a lost page takes no room: {plan:?}");
            if fault == Die {
                assert!(matches!(assert_lost(&rig, 3), LostWhy::Store(StoreError::Io { .. })));
            } else {
                assert_filled(&rig, 3..8);
            }
        }
    }
}

fn a_slow_store_is_waited_for() {
    for store in stores() {
        let store = faulty(store, &[Put, Get].map(|call| (call, 1, Slow(Duration::from_millis(20)))));
        let rig = rig(1, Backing::Base4k, store.clone(), FaultAround::Fixed(4), true);
        fill(&rig, 8);
        assert_eq!(rig.evict(0, 8), 8);
        assert_filled(&rig, 0..8);
        assert_eq!(store.struck(), 2);
        assert!(rig.reports.nothing_is_lost());
    }
}

/// Page 5 is damaged for good, or for once.
fn a_neighbour_that_cannot_be_read_costs_nobody_else() {
    let flip = 5 * PAGE_SIZE * 8 + 77;
    for fault in [(Put, 1, Flip(flip)), (Get, 1, Flip(flip)), (Get, 1, Io(Errno::IO))] {
        for (store, backing) in
            stores().into_iter().flat_map(|store| SHARED_AND_NOT.map(|b| (store.clone(), b)))
        {
            let rig = rig(1, backing, faulty(store, &[fault]), FaultAround::Fixed(16), false);
            fill(&rig, 16);
            assert_eq!(rig.evict(0, 16), 16);
            assert_filled(&rig, (0..16).filter(|page| *page != 5));
            assert!(rig.reports.nothing_is_lost(), "{fault:?}");
            if fault.0 == Put {
                assert!(matches!(assert_lost(&rig, 5), LostWhy::Checksum { .. }));
            } else {
                assert_filled(&rig, [5]);
            }
        }
    }
}

/// All of a block comes back at once, as a huge page where there are such: of the one that is damaged the right page is
/// named.
fn of_a_huge_page_the_damaged_page_is_named() {
    let flip = 300 * PAGE_SIZE * 8 + 5;
    for store in stores() {
        for plan in [(Put, 2, Flip(flip)), (Get, 1, Flip(flip))] {
            let rig = rig(2, Backing::Thp, faulty(store.clone(), &[plan]), FaultAround::Fixed(512), false);
            fill(&rig, 1024);
            assert_eq!(rig.evict(0, 1024), 1024);
            if plan.0 == Put {
                assert!(matches!(assert_lost(&rig, 512 + 300), LostWhy::Checksum { .. }), "{plan:?}");
                assert_filled(&rig, (0..1024).filter(|page| *page != 812));
            } else {
                assert_filled(&rig, 0..1024);
            }
            assert!(rig.reports.nothing_is_lost());
            assert_eq!(rig.stored(), 0);
        }
    }
}

/// Waits within the report of a fault until the test lets it go on.
struct Blocked {
    reports: Sender<()>,
    let_go: Receiver<()>,
}

impl Observer for Blocked {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {
        self.reports.send(()).unwrap();
        let _waiting = harness::waiting("the end of the test");
        let _ = self.let_go.recv();
    }
    fn event(&mut self, _event: &Event) {}
    fn lost(&mut self, lost: Lost) {
        panic!("{lost}");
    }
}

fn a_handler_that_does_not_stop_is_named_and_keeps_its_memory() {
    let (memory, swapper) = idle(PAGES_PER_PMD, lz4());
    let ((reports, reported), (lets_go, let_go)) = (channel(), channel());
    let handlers = Handlers::start(&swapper, vec![(Blocked { reports, let_go }, None)]).unwrap();
    assert_eq!(read(&memory.0, 0), 0);
    harness::receive(&reported, "the handler");
    let error = handlers.stop_within(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, HandlerError::Overdue(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(" waited 50 ms for the end of thread uffd0, in vain: its thread is "), "{text}");
    assert_eq!(Arc::strong_count(&swapper), 2, "what it can reach stays");
    drop(lets_go);
}
