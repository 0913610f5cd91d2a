//! Each backing on a real kernel: what was asked for against what pagemap says was got.

use guest_mem::{
    Backing, HostThp, Operation, Order, PAGE_SIZE, PMD_SIZE, PageCounts, PageRun, PageScanner, PageState,
    Region, ScanMethod, perform,
};
use test_memory::{
    allow, alone, assert_folios, assert_intact, backings, counts, fill, filled, pages, swap, vmas,
};

test_memory::tests! {
    each_backing_is_what_it_says(backing in backings()): [Has(backing)],
    mthp_beside_enabled_thp_stays_mthp(backing in sizes_of_mthp()): [Has(Backing::Thp), Has(backing), FolioOrders],
    both_ways_to_scan_agree(backing in backings()): [PagemapScan, Swap, Has(backing)],
    shared_memory_is_looked_at_behind_the_page_tables: [Swap],
    populating_keeps_content: [],
}

const LEN: u64 = 4 * PMD_SIZE;
const PAGES: u64 = LEN / PAGE_SIZE;

fn each_backing_is_what_it_says(backing: Backing) {
    let _alone = alone();
    let mut scanner = PageScanner::new().unwrap();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    let got = counts(&mut scanner, &region, region.range());
    let pmd_mapped = if backing.wanted_order() == Order::PMD { PAGES } else { 0 };
    assert_eq!((got.present, got.pmd_mapped), (PAGES, pmd_mapped), "{backing}");
    assert_folios(&region);
    assert_eq!(region.memfd().is_some(), backing.is_shared());
    assert_intact(&region, region.range());
}

/// Two sizes, and the largest below a huge page.
fn sizes_of_mthp() -> [Backing; 3] {
    [16u64 << 10, 64 << 10, 1 << 20].map(|bytes| Backing::mthp(bytes).unwrap())
}

/// A larger folio fits, and the host would give it: the seams of the region keep it out.
fn mthp_beside_enabled_thp_stays_mthp(backing: Backing) {
    let _alone = alone();
    let _thp = allow(Backing::Thp);
    let _switches = allow(backing);
    assert!(HostThp::read().anonymous_switch(Order::PMD).serves_madvised());
    let region = filled(LEN, backing);
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(counts(&mut scanner, &region, region.range()).pmd_mapped, 0);
    assert_eq!(vmas(&region), 8, "{backing}: two a block");
    assert_folios(&region);
}

fn scanned(scanner: &mut PageScanner, region: &Region) -> Vec<PageRun> {
    let mut runs = Vec::new();
    scanner.scan_region(region, region.range(), &mut runs).unwrap();
    let mut at = region.range().start();
    for run in &runs {
        assert_eq!(run.range.start(), at, "runs tile the range");
        at = run.range.end();
    }
    assert_eq!(at, region.range().end());
    runs
}

/// PAGEMAP_SCAN and the entries of pagemap, over memory in every state there is.
fn both_ways_to_scan_agree(backing: Backing) {
    let _alone = alone();
    let mut by_ioctl = PageScanner::with_method(ScanMethod::Scan).unwrap();
    let mut by_entries = PageScanner::with_method(ScanMethod::Entries).unwrap();
    assert_eq!(by_entries.method(), ScanMethod::Entries);
    let _swap = swap();
    let _switches = allow(backing);
    let region = Region::map(LEN, backing).unwrap();
    assert_eq!(scanned(&mut by_ioctl, &region).len(), 1, "{backing}: nothing yet");
    assert_eq!(scanned(&mut by_ioctl, &region), scanned(&mut by_entries, &region));
    // The last block stays empty; a read there maps the zero page (or, for a file, a page of its own).
    region.populate(pages(&region, 0, 3 * 512)).unwrap();
    if backing != Backing::Hugetlb2m {
        region.read_u64(pages(&region, 3 * 512 + 7, 1).start()).unwrap();
        perform(&region, Operation::PageOut, pages(&region, 512, 512)).unwrap();
    }
    perform(&region, Operation::DontNeed, pages(&region, 1024, 512)).unwrap();
    let runs = scanned(&mut by_ioctl, &region);
    assert_eq!(runs, scanned(&mut by_entries, &region), "{backing}");
    for run in &runs {
        let (first, last) = (run.range.start(), guest_mem::Hva::new(run.range.end().get() - 1));
        for at in [first, last] {
            assert_eq!(by_ioctl.page(at).unwrap(), by_entries.page(at).unwrap(), "{backing} at {at}");
        }
    }
}

/// An empty page-table entry of shared memory means three different things.
fn shared_memory_is_looked_at_behind_the_page_tables() {
    let _alone = alone();
    let _swap = swap();
    let mut scanner = PageScanner::new().unwrap();
    let region = Region::map(LEN, Backing::Memfd).unwrap();
    fill(&region, pages(&region, 0, 200));
    let _ = guest_mem::drain_lru();
    perform(&region, Operation::PageOut, pages(&region, 0, 50)).unwrap();
    perform(&region, Operation::DontNeed, pages(&region, 100, 30)).unwrap();
    let mut raw = Vec::new();
    scanner.scan(pages(&region, 0, 50), &mut raw).unwrap();
    assert_eq!(raw[0].state, PageState::Absent, "the page tables alone do not tell");
    let expected = PageCounts {
        present: 200 - 50 - 30,
        swapped: 50,
        cached: 30,
        absent: PAGES - 200,
        ..PageCounts::default()
    };
    assert_eq!(counts(&mut scanner, &region, region.range()), expected);
    assert_intact(&region, pages(&region, 0, 200));
}

fn populating_keeps_content() {
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    fill(&region, pages(&region, 3, 5));
    region.populate(region.range()).unwrap();
    assert_intact(&region, pages(&region, 3, 5));
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(counts(&mut scanner, &region, region.range()).present, 512);
}
