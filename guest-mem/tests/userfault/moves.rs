//! Pages that move: what arrives, what is left, and how large they are. No test forks meanwhile: see the last one.

use guest_mem::uffd::{Features, ResolveKind, Wake};
use guest_mem::{Backing, HostThp, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PageScanner, Region};

use crate::calls::{fork_a_child, forking_alone, wait_for};
use crate::{MISSING, Reader, memory, open, page, support};

#[test]
fn a_page_moves_and_leaves_nothing() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    std::thread::scope(|threads| {
        let Some(userfault) = open("move 4k", Features::MOVE) else { return };
        userfault.register(&target, target.range(), MISSING).unwrap();
        let from = page(&source, 5);
        source.write_u64(from.start(), 0x5eed).unwrap();
        let to = page(&target, 9);
        let touch = threads.spawn(|| target.read_u64(page(&target, 9).start()).unwrap());
        Reader::of(&userfault).next();
        userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
        assert_eq!(touch.join().unwrap(), 0x5eed);
        let mut scanner = PageScanner::new().unwrap();
        assert_eq!(support::counts(&mut scanner, &source, from).absent, 1);
        // It is not there twice.
        let error = userfault.move_pages(page(&target, 10).start(), &source, from, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::NoMapping, 0));
        source.write_u64(from.start(), 1).unwrap();
        let error = userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::Exists, 0));
    });
}

#[test]
fn holes_stop_a_move_or_are_passed_over() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    let Some(userfault) = open("move holes", Features::MOVE) else { return };
    userfault.register(&target, target.range(), MISSING).unwrap();
    for at in [0, 1, 3] {
        source.write_u64(page(&source, at).start(), at + 100).unwrap();
    }
    let (from, to) = (support::pages(&source, 0, 4), support::pages(&target, 0, 4));
    let error = userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Stopped, 2 * PAGE_SIZE));
    let (from, to) = (support::pages(&source, 2, 2), support::pages(&target, 2, 2));
    userfault.move_present(to.start(), &source, from, Wake::Yes).unwrap();
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(support::counts(&mut scanner, &target, to).present, 1);
    assert_eq!(target.read_u64(page(&target, 3).start()).unwrap(), 103);
    // Pages of another region are not this one's to move.
    let foreign = userfault.move_pages(to.start(), &source, page(&target, 0), Wake::Yes);
    assert_eq!(foreign.unwrap_err().kind, ResolveKind::Invalid);
}

/// A source of 2 MiB pages and a target for them, or the reason there is none.
fn huge(test: &str) -> Option<(Region, Region)> {
    if let Some(why) = Backing::Thp.unavailable(PMD_SIZE, &HostThp::read()) {
        support::could_not_run(test, format_args!("thp: {why}"));
        return None;
    }
    let source = support::filled(test, 2 * PMD_SIZE, Backing::Thp)?;
    let mut scanner = PageScanner::new().unwrap();
    let pages = support::counts(&mut scanner, &source, source.range()).pmd_mapped;
    if pages != 2 * PAGES_PER_PMD {
        support::could_not_run(
            test,
            format_args!("the host gave {pages} pages of 1024 by PMD: is memory short?"),
        );
        return None;
    }
    Some((source, Region::map(2 * PMD_SIZE, Backing::Thp).unwrap()))
}

#[test]
fn a_huge_page_moves_whole_and_stays_one() {
    let _alone = forking_alone();
    let Some((source, target)) = huge("move 2m") else { return };
    let Some(userfault) = open("move 2m", Features::MOVE) else { return };
    userfault.register(&target, target.range(), MISSING).unwrap();
    let from = source.slice(0, PMD_SIZE).unwrap();
    let to = target.slice(PMD_SIZE, PMD_SIZE).unwrap();
    userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(support::counts(&mut scanner, &target, to).pmd_mapped, PAGES_PER_PMD);
    assert_eq!(support::counts(&mut scanner, &source, from).absent, PAGES_PER_PMD);
    for (page, old) in to.pages().zip(from.pages()) {
        assert_eq!(target.read_u64(page.start()).unwrap(), old.start().get(), "{page}");
    }
}

#[test]
fn a_part_of_a_huge_page_moves_by_splitting_it() {
    let _alone = forking_alone();
    let Some((source, target)) = huge("move a part") else { return };
    let Some(userfault) = open("move a part", Features::MOVE) else { return };
    userfault.register(&target, target.range(), MISSING).unwrap();
    let from = support::pages(&source, 7, 1);
    let to = support::pages(&target, 7, 1);
    userfault.move_pages(to.start(), &source, from, Wake::Yes).unwrap();
    assert_eq!(target.read_u64(to.start()).unwrap(), from.start().get());
    let mut scanner = PageScanner::new().unwrap();
    let left = support::counts(&mut scanner, &source, source.range());
    assert_eq!((left.absent, left.pmd_mapped), (1, PAGES_PER_PMD), "the other huge page is whole");
}

/// A fork leaves the parent's pages shared, even when the child is gone: they do not move until they are written.
#[test]
fn a_page_that_was_shared_by_a_fork_does_not_move() {
    let _alone = forking_alone();
    let (source, target) = (memory(), memory());
    let Some(userfault) = open("move after fork", Features::MOVE) else { return };
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
