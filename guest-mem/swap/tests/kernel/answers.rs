//! What a pager answers to a single fault, and what a handler does with what it read at once.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};

use guest_mem::{Backing, Operation, PMD_SIZE, Page, PageScanner, Region, perform};
use rustix::mm::{MprotectFlags, mprotect};
use swap::{Evicted, Evictor, FaultAround, Handlers, Lost, Observer, Pager, Served, Store, SwapState};
use uffd::{Event, FaultKind, MapAs, PageFault, Userfault, Wake};

use crate::support::{Rig, Spoiler, attach, lz4, read, rig, value};

test_memory::tests! {
    a_page_in_the_cache_is_mapped_or_was_already: [Userfault],
    of_pages_of_zeros_only_the_one_that_is_written_to_costs_memory: [Userfault],
    pages_that_cannot_be_read_stay_and_the_others_leave: [Userfault],
    what_moved_before_a_page_in_the_way_leaves_the_store: [Userfault],
    blocks_cut_a_range_where_huge_pages_end: [Userfault],
    what_was_discarded_is_told_before_a_fault_that_was_read_with_it: [Userfault],
}

fn filled(pages: u64, backing: Backing, store: Arc<dyn Store>, around: FaultAround) -> Rig {
    let rig = rig(1, backing, store, around, false);
    (0..pages).for_each(|page| rig.write(page, value(page)));
    rig
}

fn fault(rig: &Rig, page: u64, kind: FaultKind, write: bool) -> PageFault {
    PageFault { address: rig.range(page, 1).start(), kind, write, thread: None }
}

fn a_page_in_the_cache_is_mapped_or_was_already() {
    let rig = filled(4, Backing::Memfd, lz4(), FaultAround::Fixed(1));
    let mut pager = Pager::new(&rig.swapper).unwrap();
    let mut serve = |page, write| pager.serve(&fault(&rig, page, FaultKind::Minor, write)).unwrap();
    assert_eq!(serve(3, true), Served::Present, "somebody was faster");
    perform(rig.region(), Operation::Fallocate, rig.range(3, 1)).unwrap();
    assert_eq!(serve(3, true), Served::Present, "gone meanwhile: whoever wants it faults again");
    perform(rig.region(), Operation::DontNeed, rig.range(0, 3)).unwrap();
    assert_eq!(serve(0, true), Served::Present, "it was not on its way out");
    let mut evictor = Evictor::new(&rig.swapper).unwrap();
    let packed = evictor.claim(rig.range(1, 2)).unwrap().store().unwrap();
    assert_eq!(serve(1, false), Served::Present, "reading takes nothing");
    assert_eq!(serve(2, true), Served::Kept);
    assert_eq!(packed.drop_pages().unwrap(), Evicted { pages: 1, zeros: 0, stayed: 1 });
    assert_eq!([0, 1, 2, 3].map(|page| rig.read(page)), [value(0), value(1), value(2), 0]);
}

/// A page of zeros comes back as the zero page, which costs none, unless it is about to be written to.
fn of_pages_of_zeros_only_the_one_that_is_written_to_costs_memory() {
    for write in [false, true] {
        let rig = rig(1, Backing::Base4k, lz4(), FaultAround::Fixed(16), false);
        (16..32).for_each(|page| rig.write(page, 0));
        assert_eq!(rig.evict(16, 16), 16);
        let mut pager = Pager::new(&rig.swapper).unwrap();
        let served = pager.serve(&fault(&rig, 21, FaultKind::Missing, write)).unwrap();
        assert_eq!(served, Served::Returned(16));
        let mut scanner = PageScanner::new().unwrap();
        for page in 16..32 {
            let state = scanner.page(rig.range(page, 1).start()).unwrap();
            let own = write && page == 21;
            assert_eq!((state.is_present(), state.is_zero()), (true, !own), "page {page}: {state:?}");
        }
    }
}

/// Some pages of a claim cannot be accessed: the first, two in the middle, the last.
fn pages_that_cannot_be_read_stay_and_the_others_leave() {
    let rig = filled(8, Backing::Base4k, lz4(), FaultAround::Fixed(1));
    let closed = [0, 3, 4, 7];
    let access = |flags| {
        for page in closed.map(|page| rig.range(page, 1)) {
            // SAFETY: pages of the region, which no thread touches while they are closed.
            unsafe { mprotect(page.start().as_ptr(), page.len() as usize, flags) }.unwrap();
        }
    };
    let mut evictor = Evictor::new(&rig.swapper).unwrap();
    let claimed = evictor.claim(rig.range(0, 8)).unwrap();
    access(MprotectFlags::empty());
    let dropped = claimed.store().unwrap().drop_pages().unwrap();
    assert_eq!((dropped, rig.stored()), (Evicted { pages: 4, zeros: 0, stayed: 4 }, 4));
    access(MprotectFlags::READ | MprotectFlags::WRITE);
    (0..8).for_each(|page| assert_eq!(rig.read(page), value(page), "page {page}"));
}

/// A block that is to come back whole moves up to a page that exists there already. The window is one page, so the rest
/// stays out, but for the page that was wanted.
fn what_moved_before_a_page_in_the_way_leaves_the_store() {
    let rig = filled(512, Backing::Thp, lz4(), FaultAround::Fixed(1));
    assert_eq!(rig.evict(0, 512), 512);
    let stranger = &Page::ZERO[..];
    rig.swapper.userfault().copy(rig.range(300, 1).start(), stranger, MapAs::Writable, Wake::No).unwrap();
    assert_eq!(rig.read(511), value(511));
    assert_eq!(rig.stored(), 512 - 300 - 1);
    assert_eq!(rig.swapper.count(|state| state == SwapState::Resident), 300 + 1);
    (0..512).filter(|page| *page != 300).for_each(|page| assert_eq!(rig.read(page), value(page), "{page}"));
}

fn blocks_cut_a_range_where_huge_pages_end() {
    let rig = rig(3, Backing::Base4k, lz4(), FaultAround::Fixed(1), false);
    let of = |first, pages| rig.range(first, pages).block_pieces().collect::<Vec<_>>();
    assert_eq!(of(510, 520), [rig.range(510, 2), rig.range(512, 512), rig.range(1024, 6)]);
    assert_eq!(of(512, 512), [rig.range(512, 512)]);
    assert_eq!(of(700, 1), [rig.range(700, 1)]);
    assert_eq!(of(700, 0), []);
}

/// Sends the name of each report, in their order.
struct SendsNames(Sender<&'static str>);

impl Observer for SendsNames {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {
        let _ = self.0.send("a fault");
    }
    fn event(&mut self, _event: &Event) {
        let _ = self.0.send("an event");
    }
    fn lost(&mut self, _lost: Lost) {
        let _ = self.0.send("a lost page");
    }
}

/// The number of threads that wait for a fault which no handler has read.
fn unread_faults(userfault: &Userfault) -> u64 {
    let info = format!("/proc/self/fdinfo/{}", userfault.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    info.lines().find_map(|line| line.strip_prefix("pending:")).unwrap().trim().parse().unwrap()
}

/// Whether a thread of ours sleeps and no signal but a deadly one wakes it, as who waits for an event to be read does.
fn sleeps_fast(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('D')
}

/// The secondary MMUs must let go of what was discarded as soon as its thread may go on. The fault is one at a lost page:
/// its answer needs nothing of the kernel, which answers no other before the thread that discards has gone on.
fn what_was_discarded_is_told_before_a_fault_that_was_read_with_it() {
    let store = Spoiler::new(lz4());
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    let rig = attach(region, store.clone(), FaultAround::Fixed(1), true, 1);
    (0..9).for_each(|page| rig.write(page, value(page)));
    assert_eq!(rig.evict(0, 1), 1);
    let missing = fault(&rig, 0, FaultKind::Missing, false);
    let (lost, discarded) = (rig.range(0, 1), rig.range(8, 1));
    let Rig { memory, swapper, handlers, .. } = rig;
    handlers.stop().unwrap();
    store.spoils.store(true, Ordering::SeqCst);
    Pager::new(&swapper).unwrap().serve(&missing).unwrap_err();

    let (tells, told) = channel();
    let (sends, thread) = channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&memory.0, 0));
        let waiting = harness::waiting("a fault at a lost page, and an event, that nobody reads");
        while unread_faults(swapper.userfault()) == 0 {
            std::thread::yield_now();
        }
        scope.spawn(|| {
            sends.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            perform(&memory.0, Operation::DontNeed, discarded).unwrap();
        });
        let thread = harness::receive(&thread, "the thread that discards");
        while !sleeps_fast(thread) {
            std::thread::yield_now();
        }
        drop(waiting);
        let handlers = Handlers::start(&swapper, vec![(SendsNames(tells), None)]).unwrap();
        let order = [(); 2].map(|()| harness::receive(&told, "the handler"));
        swapper.discard(lost).unwrap();
        swapper.userfault().wake(lost).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
        handlers.stop().unwrap();
        assert_eq!(order, ["an event", "a lost page"]);
    });
}
