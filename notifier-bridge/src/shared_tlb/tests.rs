use std::sync::Arc;

use super::*;
use crate::bridge::Bridge;
use crate::doubles::{FakePrimary, Pfn, folio_at, pages, range, slots};
use crate::event::{Cause, Invalidation};
use crate::policy::Policy;
use crate::primary::Mapping;

const BASE: u64 = 4 << 20;

fn tlb(entries: usize) -> SharedTlb<FakePrimary> {
    SharedTlb::new(FakePrimary::new(Hva::new(BASE), 2), entries)
}

fn frame_of(tlb: &SharedTlb<FakePrimary>, hva: Hva) -> Pfn {
    tlb.access(hva, true, |frame, _| frame).unwrap()
}

#[test]
fn only_a_flush_makes_it_forget() {
    let tlb = tlb(64);
    let hva = Hva::new(BASE + 0x5123);
    let old = frame_of(&tlb, hva);
    tlb.primary.change(range(BASE + 0x5000, 0x1000));
    assert_eq!(frame_of(&tlb, hva), old, "nobody told it");
    tlb.invalidate_secondary_tlbs(range(BASE + 0x6000, 0x1000));
    assert_eq!(frame_of(&tlb, hva), old, "told of another page");
    tlb.invalidate_secondary_tlbs(range(BASE + 0x5000, 0x1000));
    assert_eq!(frame_of(&tlb, hva), tlb.primary.current(hva));
    assert_eq!(tlb.access(hva, false, |_, offset| offset), Ok(0x123));
    let stats = tlb.stats();
    assert_eq!((stats.flushes, stats.empty_flushes, stats.entries_dropped), (2, 1, 1));
    assert_eq!((stats.hits, stats.walks), (3, 2));
}

#[test]
fn a_flush_wider_than_the_tlb_looks_everywhere_and_drops_only_its_own() {
    let tlb = tlb(8);
    let inside = Hva::new(BASE + 0x3000);
    let outside = Hva::new(BASE + (300 << 12));
    frame_of(&tlb, inside);
    frame_of(&tlb, outside);
    tlb.invalidate_secondary_tlbs(range(BASE, 200 << 12));
    assert_eq!(tlb.stats().entries_dropped, 1);
    frame_of(&tlb, outside);
    assert_eq!(tlb.stats().hits, 1, "300 is out of the range and stays");
}

#[test]
fn a_flush_drops_every_page_of_its_range_and_no_neighbour() {
    let tlb = tlb(64);
    let page = |number: u64| Hva::new(BASE + (number << 12));
    for number in 4..9 {
        frame_of(&tlb, page(number));
    }
    tlb.invalidate_secondary_tlbs(range(BASE + (5 << 12), 3 << 12));
    assert_eq!(tlb.stats().entries_dropped, 3);
    for number in [4, 8] {
        frame_of(&tlb, page(number));
    }
    assert_eq!((tlb.stats().hits, tlb.stats().walks), (2, 5));
}

/// Gives a page for reading alone, unless it is wanted for writing: as a zero page that the first write replaces.
struct ForWhatIsWanted(FakePrimary);

impl PrimaryMmu for ForWhatIsWanted {
    type Frame = Pfn;

    fn resolve(&self, hva: Hva, write: bool) -> Result<Mapping<Pfn>, ResolveError> {
        self.0.resolve(hva, write).map(|mapping| Mapping { writable: write, ..mapping })
    }
}

#[test]
fn what_was_cached_for_reading_serves_no_write() {
    let tlb = SharedTlb::new(ForWhatIsWanted(FakePrimary::new(Hva::new(BASE), 1)), 8);
    let walks_after = |write| {
        tlb.access(Hva::new(BASE), write, |_, _| ()).unwrap();
        tlb.stats().walks
    };
    assert_eq!([false, false, true, true, false].map(walks_after), [1, 1, 2, 2, 2]);
}

#[test]
fn two_pages_of_one_place_take_turns() {
    let tlb = tlb(8);
    let (a, b) = (Hva::new(BASE), Hva::new(BASE + (8 << 12)));
    assert_ne!(frame_of(&tlb, a), frame_of(&tlb, b));
    assert_eq!(frame_of(&tlb, a), tlb.primary.current(a));
    assert_eq!(tlb.stats().walks, 3);
}

#[test]
fn no_such_page_is_an_error_and_not_a_panic() {
    let hva = Hva::new(0x1000);
    assert_eq!(tlb(8).access(hva, false, |_, _| ()), Err(ResolveError::Unmapped(hva)));
}

/// Changes and flushes while the first walk is on its way.
struct Overtaken {
    inner: FakePrimary,
    flush: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl PrimaryMmu for Arc<Overtaken> {
    type Frame = Pfn;

    fn resolve(&self, hva: Hva, write: bool) -> Result<Mapping<Pfn>, ResolveError> {
        let found = self.inner.resolve(hva, write);
        let flush = self.flush.lock().unwrap().take();
        if let Some(flush) = flush {
            self.inner.change(range(BASE, 0x1000));
            flush();
        }
        found
    }
}

#[test]
fn a_walk_overtaken_by_a_flush_is_not_cached() {
    let primary = Arc::new(Overtaken { inner: FakePrimary::new(Hva::new(BASE), 1), flush: None.into() });
    let tlb = Arc::new(SharedTlb::new(Arc::clone(&primary), 8));
    let same = Arc::clone(&tlb);
    let flush = move || same.invalidate_secondary_tlbs(range(BASE, 0x1000));
    *primary.flush.lock().unwrap() = Some(Box::new(flush));
    let seen = tlb.access(Hva::new(BASE), false, |frame, _| frame).unwrap();
    assert_eq!(seen, primary.inner.current(Hva::new(BASE)));
    assert_eq!((tlb.stats().walks, tlb.stats().retries), (2, 1));
}

/// Pages out 16 cached pages, each a folio of its own, and says what the TLB saw of it.
fn swap_out(policy: Policy) -> SharedTlbStats {
    let tlb = Arc::new(tlb(64));
    let slots = Arc::new(slots(&[(0, BASE, 4 << 20, 4 << 20)]));
    let bridge = Bridge::new(policy, slots).sharing(tlb.clone());
    let first = BASE >> 12;
    for page in pages(first, 16).pages() {
        frame_of(&tlb, page.start());
    }
    for page in pages(first, 16).pages() {
        let victim = folio_at(page.start().get(), 0);
        let out = Invalidation { cause: Cause::PageOut, victim, vma: range(BASE, 4 << 20) };
        bridge.invalidate(&mut Vec::new(), &out, || tlb.primary.change(page));
        assert_eq!(frame_of(&tlb, page.start()), tlb.primary.current(page.start()), "{policy}");
    }
    tlb.stats()
}

#[test]
fn the_double_call_is_harmless_and_not_free() {
    let (folio, modern) = (swap_out(Policy::Folio), swap_out(Policy::Modern));
    assert_eq!((modern.flushes, modern.empty_flushes, modern.entries_dropped), (16, 0, 16));
    assert_eq!((folio.flushes, folio.empty_flushes, folio.entries_dropped), (32, 16, 16));
    // The first 2017 version repeats more than it flushed: the first page's repeat takes the 15 pages behind
    // it, which never left, and the 30 flushes after it find nothing more.
    let pmd = swap_out(Policy::Pmd);
    assert_eq!((pmd.flushes, pmd.empty_flushes, pmd.entries_dropped), (32, 30, 16));
}
