//! Faults of other threads, each served in its way.

use std::thread::scope;

use guest_mem::{Address, Backing, PageScanner, Region};
use rustix::io::Errno;
use uffd::{Event, FaultKind, Faults, Features, MapAs, Modes, PageFault, ResolveKind, Userfault, Wake};

use super::calls::read_by_kernel;
use super::{MISSING, PROTECTED, Reader, content, memory, open, page, word};

test_memory::tests! {
    a_missing_page_is_served: [Feature(Features::THREAD_ID)],
    the_address_is_exact_when_asked_for: [Feature(Features::EXACT_ADDRESS)],
    one_wake_serves_pages_that_were_put_in_before: [Userfault],
    a_page_of_zeroes_is_the_zero_page: [Userfault],
    a_page_of_the_cache_is_continued: [Feature(Features::MINOR_SHMEM)],
    a_write_to_a_protected_page_is_served: [Feature(Features::PAGEFAULT_FLAG_WP)],
    a_page_can_be_protected_from_its_first_moment: [Feature(Features::PAGEFAULT_FLAG_WP)],
    a_system_call_waits_for_a_missing_page_or_fails_as_was_asked: [Feature(Features::SIGBUS)],
    closing_gives_ordinary_pages_to_who_waits: [Userfault],
    one_for_user_mode_does_not_see_the_kernels_faults: [UserModeUserfault],
}

fn a_missing_page_is_served() {
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::THREAD_ID);
        userfault.register(&region, region.range(), MISSING).unwrap();
        let at = page(&region, 3).start();
        let touch = threads.spawn(|| {
            let inside = page(&region, 3).start().checked_add(64).unwrap();
            let value = region.read_u64(inside).unwrap();
            (value, rustix::thread::gettid().as_raw_nonzero().get() as u32)
        });
        let event = Reader::of(&userfault).next();
        userfault.copy(at, &content(1), MapAs::Writable, Wake::Yes).unwrap();
        let (value, thread) = touch.join().unwrap();
        assert_eq!(value, word(0));
        let fault = PageFault { address: at, kind: FaultKind::Missing, write: false, thread: Some(thread) };
        assert!(matches!(event, Event::Fault(seen) if seen == fault), "{event:?}");
    });
}

fn the_address_is_exact_when_asked_for() {
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::EXACT_ADDRESS);
        userfault.register(&region, region.range(), MISSING).unwrap();
        let (at, region) = (page(&region, 1).start().checked_add(0x128).unwrap(), &region);
        let touch = threads.spawn(move || region.write_u64(at, 7).unwrap());
        let event = Reader::of(&userfault).next();
        userfault.zero(page(region, 1), Wake::Yes).unwrap();
        touch.join().unwrap();
        assert_eq!(region.read_u64(at).unwrap(), 7);
        let Event::Fault(fault) = event else { panic!("{event:?}") };
        assert_eq!((fault.address, fault.page()), (at, page(region, 1).start()));
        assert!(fault.write && fault.thread.is_none());
    });
}

fn one_wake_serves_pages_that_were_put_in_before() {
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::empty());
        userfault.register(&region, region.range(), MISSING).unwrap();
        let four = test_memory::pages(&region, 0, 4);
        let touches: Vec<_> = four
            .pages()
            .map(|page| {
                let region = &region;
                threads.spawn(move || region.read_u64(page.start()).unwrap())
            })
            .collect();
        let mut reader = Reader::of(&userfault);
        // Each of the four waits before anything is resolved.
        for _ in 0..4 {
            assert!(matches!(reader.next(), Event::Fault(_)));
        }
        userfault.copy(four.start(), &content(4), MapAs::Writable, Wake::No).unwrap();
        assert!(touches.iter().all(|touch| !touch.is_finished()));
        userfault.wake(four).unwrap();
        let values: Vec<_> = touches.into_iter().map(|touch| touch.join().unwrap()).collect();
        assert_eq!(values, [word(0), word(1), word(2), word(3)]);
    });
}

fn a_page_of_zeroes_is_the_zero_page() {
    let region = memory();
    let userfault = open(Features::empty());
    userfault.register(&region, region.range(), MISSING).unwrap();
    userfault.zero(test_memory::pages(&region, 0, 2), Wake::Yes).unwrap();
    assert_eq!(region.read_u64(page(&region, 1).start()).unwrap(), 0);
    let counts =
        test_memory::counts(&mut PageScanner::new().unwrap(), &region, test_memory::pages(&region, 0, 4));
    assert_eq!((counts.present, counts.zero), (2, 2));
}

fn a_page_of_the_cache_is_continued() {
    const MINOR: Modes = Modes { missing: false, minor: true, write_protect: false };
    let region = Region::map(2 << 20, Backing::Memfd).unwrap();
    rustix::io::pwrite(region.memfd().unwrap(), &content(2), 0).unwrap();
    scope(|threads| {
        let userfault = open(Features::MINOR_SHMEM);
        userfault.register(&region, region.range(), MINOR).unwrap();
        let touch = threads.spawn(|| region.read_u64(page(&region, 1).start()).unwrap());
        let event = Reader::of(&userfault).next();
        userfault.continue_(test_memory::pages(&region, 0, 2), MapAs::Writable, Wake::Yes).unwrap();
        assert_eq!(touch.join().unwrap(), word(1));
        let Event::Fault(fault) = event else { panic!("{event:?}") };
        assert_eq!((fault.address, fault.kind), (page(&region, 1).start(), FaultKind::Minor));
        assert_eq!(region.read_u64(page(&region, 0).start()).unwrap(), word(0));
        // A page that the cache does not have, behind one that it has.
        let error = userfault.continue_(page(&region, 2), MapAs::Writable, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::Unreadable, 0));
    });
}

/// A write to page 2 faults, and goes on when its protection is taken away.
fn expect_write_fault(region: &Region, userfault: uffd::Userfault) {
    let at = page(region, 2).start();
    scope(|threads| {
        // So that a failed assertion frees the thread.
        let userfault = userfault;
        let touch = threads.spawn(move || region.write_u64(at, 42).unwrap());
        let event = Reader::of(&userfault).next();
        let fault = PageFault { address: at, kind: FaultKind::WriteProtect, write: true, thread: None };
        assert!(matches!(event, Event::Fault(seen) if seen == fault), "{event:?}");
        assert_eq!(read_by_kernel(at), Ok(word(2)), "not written yet");
        userfault.write_unprotect(page(region, 2), Wake::Yes).unwrap();
        touch.join().unwrap();
        assert_eq!(region.read_u64(at).unwrap(), 42);
        // Its neighbour is protected still, and can be read.
        assert_eq!(region.read_u64(page(region, 1).start()).unwrap(), word(1));
    });
}

fn a_write_to_a_protected_page_is_served() {
    let region = memory();
    let userfault = open(Features::PAGEFAULT_FLAG_WP);
    userfault.register(&region, region.range(), PROTECTED).unwrap();
    userfault.copy(region.range().start(), &content(4), MapAs::Writable, Wake::Yes).unwrap();
    userfault.write_protect(test_memory::pages(&region, 0, 4)).unwrap();
    expect_write_fault(&region, userfault);
}

fn a_page_can_be_protected_from_its_first_moment() {
    let region = memory();
    let userfault = open(Features::PAGEFAULT_FLAG_WP);
    userfault.register(&region, region.range(), PROTECTED).unwrap();
    userfault.copy(region.range().start(), &content(4), MapAs::WriteProtected, Wake::Yes).unwrap();
    expect_write_fault(&region, userfault);
}

fn a_system_call_waits_for_a_missing_page_or_fails_as_was_asked() {
    let region = memory();
    let at = page(&region, 0).start();
    {
        let userfault = open(Features::SIGBUS);
        userfault.register(&region, region.range(), MISSING).unwrap();
        assert_eq!(read_by_kernel(at), Err(Errno::FAULT));
        userfault.copy(at, &content(1), MapAs::Writable, Wake::Yes).unwrap();
        assert_eq!(read_by_kernel(at), Ok(word(0)));
        // The rest is given back: an ordinary page.
        userfault.unregister(region.range()).unwrap();
        assert_eq!(read_by_kernel(page(&region, 1).start()), Ok(0));
    }
    scope(|threads| {
        let userfault = open(Features::empty());
        userfault.register(&region, region.range(), MISSING).unwrap();
        let touch = threads.spawn(|| read_by_kernel(page(&region, 2).start()));
        assert!(matches!(Reader::of(&userfault).next(), Event::Fault(_)));
        userfault.copy(page(&region, 2).start(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
        assert_eq!(touch.join().unwrap(), Ok(word(0)));
    });
}

fn closing_gives_ordinary_pages_to_who_waits() {
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::empty());
        userfault.register(&region, region.range(), MISSING).unwrap();
        let touch = threads.spawn(|| region.read_u64(page(&region, 0).start()).unwrap());
        Reader::of(&userfault).wait();
        drop(userfault);
        assert_eq!(touch.join().unwrap(), 0);
    });
}

/// The kind that any user may have: a thread waits for its page, a system call does not.
fn one_for_user_mode_does_not_see_the_kernels_faults() {
    let region = memory();
    scope(|threads| {
        let userfault = Userfault::open_for(Faults::UserMode, Features::empty()).unwrap();
        userfault.register(&region, region.range(), MISSING).unwrap();
        assert_eq!(read_by_kernel(page(&region, 0).start()), Err(Errno::FAULT));
        let touch = threads.spawn(|| region.read_u64(page(&region, 0).start()).unwrap());
        let event = Reader::of(&userfault).next();
        userfault.copy(page(&region, 0).start(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
        assert!(matches!(event, Event::Fault(_)), "{event:?}");
        assert_eq!(touch.join().unwrap(), word(0));
        assert_eq!(read_by_kernel(page(&region, 0).start()), Ok(word(0)), "what is there the kernel reads");
    });
}
