//! Pages that move: what arrives, what is left, and how large they are. No test forks meanwhile: see the last one.

use guest_mem::{Backing, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PageScanner, Region};
use test_memory::Need;
use uffd::{Features, ResolveKind, Wake};

use super::calls::{fork_a_child, forking_alone, wait_for};
use super::{MISSING, Reader, memory, open, page};

test_memory::tests! {
    a_page_moves_and_leaves_nothing: [Feature(Features::MOVE)],
    holes_stop_a_move: [Feature(Features::MOVE)],
    a_huge_page_moves_whole_and_stays_one: [Feature(Features::MOVE), Has(Backing::Thp)],
    a_part_of_a_huge_page_moves_by_splitting_it: [Feature(Features::MOVE), Has(Backing::Thp)],
    a_page_that_was_shared_by_a_fork_does_not_move: [Feature(Features::MOVE)],
}

fn a_page_moves_and_leaves_nothing() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    std::thread::scope(|threads| {
        let userfault = open(Features::MOVE);
        userfault.register(&target, target.range(), MISSING).unwrap();
        let from = page(&source, 5);
        source.write_u64(from.start(), 0x5eed).unwrap();
        let to = page(&target, 9);
        let touch = threads.spawn(|| target.read_u64(page(&target, 9).start()).unwrap());
        Reader::of(&userfault).next();
        userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
        assert_eq!(touch.join().unwrap(), 0x5eed);
        let mut scanner = PageScanner::new().unwrap();
        assert_eq!(test_memory::counts(&mut scanner, &source, from).absent, 1);
        // It is not there twice.
        let error = userfault.move_pages(page(&target, 10).start(), &source, from, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::NoMapping, 0));
        source.write_u64(from.start(), 1).unwrap();
        let error = userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::Exists, 0));
    });
}

fn holes_stop_a_move() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    let userfault = open(Features::MOVE);
    userfault.register(&target, target.range(), MISSING).unwrap();
    for at in [0, 1, 3] {
        source.write_u64(page(&source, at).start(), at + 100).unwrap();
    }
    let (from, to) = (test_memory::pages(&source, 0, 4), test_memory::pages(&target, 0, 4));
    let error = userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Stopped, 2 * PAGE_SIZE));
    // Pages of another region are not this one's to move.
    let foreign = userfault.move_pages(to.start(), &source, page(&target, 0), Wake::Yes);
    assert_eq!(foreign.unwrap_err().kind, ResolveKind::Invalid);
}

/// A source of 2 MiB pages and a target for them.
fn huge() -> (Region, Region) {
    let source = test_memory::filled(2 * PMD_SIZE, Backing::Thp);
    let pages = test_memory::counts(&mut PageScanner::new().unwrap(), &source, source.range()).pmd_mapped;
    if pages != 2 * PAGES_PER_PMD {
        harness::could_not_run(Need::Has(Backing::Thp), format!("{pages} pages of 1024 by PMD"));
    }
    (source, Region::map(2 * PMD_SIZE, Backing::Thp).unwrap())
}

fn a_huge_page_moves_whole_and_stays_one() {
    let _alone = forking_alone();
    let _switches = test_memory::allow(Backing::Thp);
    let (source, target) = huge();
    let userfault = open(Features::MOVE);
    userfault.register(&target, target.range(), MISSING).unwrap();
    let from = source.slice(0, PMD_SIZE).unwrap();
    let to = target.slice(PMD_SIZE, PMD_SIZE).unwrap();
    userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(test_memory::counts(&mut scanner, &target, to).pmd_mapped, PAGES_PER_PMD);
    assert_eq!(test_memory::counts(&mut scanner, &source, from).absent, PAGES_PER_PMD);
    for (page, old) in to.pages().zip(from.pages()) {
        assert_eq!(target.read_u64(page.start()).unwrap(), old.start().get(), "{page}");
    }
}

fn a_part_of_a_huge_page_moves_by_splitting_it() {
    let _alone = forking_alone();
    let _switches = test_memory::allow(Backing::Thp);
    let (source, target) = huge();
    let userfault = open(Features::MOVE);
    userfault.register(&target, target.range(), MISSING).unwrap();
    let from = test_memory::pages(&source, 7, 1);
    let to = test_memory::pages(&target, 7, 1);
    userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
    assert_eq!(target.read_u64(to.start()).unwrap(), from.start().get());
    let mut scanner = PageScanner::new().unwrap();
    let left = test_memory::counts(&mut scanner, &source, source.range());
    assert_eq!((left.absent, left.pmd_mapped), (1, PAGES_PER_PMD), "the other huge page is whole");
}

/// A fork leaves the parent's pages shared, even when the child is gone: they do not move until they are written.
fn a_page_that_was_shared_by_a_fork_does_not_move() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    let userfault = open(Features::MOVE);
    userfault.register(&target, target.range(), MISSING).unwrap();
    let (from, to) = (page(&source, 0), page(&target, 0));
    source.write_u64(from.start(), 1).unwrap();
    assert_eq!(wait_for(fork_a_child()), 0);
    let error = userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Busy, 0));
    source.write_u64(from.start(), 2).unwrap();
    userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
    assert_eq!(target.read_u64(to.start()).unwrap(), 2);
}
