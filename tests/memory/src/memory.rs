//! Memory in a known state.

use guest_mem::{
    Address, Backing, Hva, HvaRange, Operation, Order, PAGE_SIZE, PageCounts, PageScanner, PageState, Region,
    drain_lru, perform,
};

/// A populated region. Each page holds its own address.
pub fn filled(len: u64, backing: Backing) -> Region {
    let region = Region::map(len, backing).unwrap();
    region.populate(region.range()).unwrap();
    fill(&region, region.range());
    // Otherwise reclaim skips pages that another CPU has just faulted in.
    let _ = drain_lru();
    region
}

/// Writes each page's pattern.
pub fn fill(region: &Region, range: HvaRange) {
    for page in range.pages() {
        region.write_u64(page.start(), page.start().get()).unwrap();
        region.write_u64(Hva::new(page.end().get() - 8), !page.start().get()).unwrap();
    }
}

/// Checks each page's pattern.
pub fn assert_intact(region: &Region, range: HvaRange) {
    for page in range.pages() {
        let last = Hva::new(page.end().get() - 8);
        let words = (region.read_u64(page.start()).unwrap(), region.read_u64(last).unwrap());
        assert_eq!(words, (page.start().get(), !page.start().get()), "page {page}");
    }
}

/// The numbers of pages in each state.
pub fn counts(scanner: &mut PageScanner, region: &Region, range: HvaRange) -> PageCounts {
    scanner.counts(region, range).unwrap()
}

/// Pages a range out, and again what stayed: MADV_PAGEOUT passes over pages that are in another CPU's LRU batch or in
/// motion, and over shared pages that are in the page cache and not mapped. Returns what there is then.
pub fn page_out(scanner: &mut PageScanner, region: &Region, range: HvaRange) -> PageCounts {
    let mut runs = Vec::new();
    for _ in 0..4 {
        let _ = drain_lru();
        scanner.scan_region(region, range, &mut runs).unwrap();
        for page in runs.iter().filter(|run| run.state == PageState::Cached).flat_map(|run| run.range.pages())
        {
            region.touch(page.start(), false).unwrap();
        }
        perform(region, Operation::PageOut, range).unwrap();
        if counts(scanner, region, range).resident() == 0 {
            break;
        }
    }
    counts(scanner, region, range)
}

/// Checks that all of a populated region is in folios of its backing's size, where that can be seen.
pub fn assert_folios(region: &Region) {
    let (mut scanner, order, backing) =
        (PageScanner::new().unwrap(), region.backing().wanted_order(), region.backing());
    let pmd_mapped = counts(&mut scanner, region, region.range()).pmd_mapped;
    assert_eq!(pmd_mapped, if order == Order::PMD { region.range().page_count() } else { 0 }, "{backing}");
    if order != Order::PMD && scanner.knows_folios() {
        let mut folios = Vec::new();
        scanner.large_folios(region.range(), &mut folios).unwrap();
        assert!(folios.iter().all(|folio| folio.order == order && folio.is_whole()), "{backing}: {folios:?}");
        let of_size: u64 = folios.iter().map(|folio| folio.mapped).sum();
        let expected = if order == Order::BASE { 0 } else { region.range().page_count() };
        assert_eq!(of_size, expected, "{backing}");
    }
}

/// Page `index` of the region, `pages` of them.
pub fn pages(region: &Region, index: u64, pages: u64) -> HvaRange {
    region.slice(index * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
}

/// The number of mappings in `/proc/self/maps` inside a region.
pub fn vmas(region: &Region) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = |line: &&str| -> bool {
        let (start, _) = line.split_once('-').unwrap();
        region.range().contains(Hva::from_raw(u64::from_str_radix(start, 16).unwrap()))
    };
    maps.lines().filter(inside).count()
}

/// The backings that can be paged out.
pub fn swappable() -> impl Iterator<Item = Backing> {
    backings().into_iter().filter(|backing| *backing != Backing::Hugetlb2m)
}

/// Every kind of backing, one size of mTHP.
pub fn backings() -> [Backing; 6] {
    ["4k", "mthp:64k", "thp", "hugetlb:2m", "memfd", "memfd:thp"].map(|text| text.parse().unwrap())
}
