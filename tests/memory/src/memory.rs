//! Memory in a known state.

use guest_mem::{
    Address, Backing, Hva, HvaRange, PAGE_SIZE, PageCounts, PageScanner, Region, ZramSwap, drain_lru,
};

/// A swap device for one test.
pub fn swap() -> ZramSwap {
    ZramSwap::create(512 << 20, None).unwrap()
}

/// A populated region. Each page holds its own address.
pub fn filled(len: u64, backing: Backing) -> Region {
    let region = Region::map(len, backing).unwrap();
    region.populate(region.range()).unwrap();
    fill(&region, region.range());
    // Otherwise pages that another CPU just faulted in are skipped by whatever the test does next.
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

/// How many pages are in which state.
pub fn counts(scanner: &mut PageScanner, region: &Region, range: HvaRange) -> PageCounts {
    scanner.counts(region, range).unwrap()
}

/// Page `index` of the region, `pages` of them.
pub fn pages(region: &Region, index: u64, pages: u64) -> HvaRange {
    region.slice(index * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
}

/// How many mappings `/proc/self/maps` shows inside a region.
pub fn vmas(region: &Region) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = |line: &&str| -> bool {
        let (start, _) = line.split_once('-').unwrap();
        region.range().contains(Hva::from_raw(u64::from_str_radix(start, 16).unwrap()))
    };
    maps.lines().filter(inside).count()
}

/// Those that can be paged out.
pub fn swappable() -> impl Iterator<Item = Backing> {
    backings().into_iter().filter(|backing| *backing != Backing::Hugetlb2m)
}

/// Every kind of backing, one size of mTHP.
pub fn backings() -> [Backing; 6] {
    ["4k", "mthp:64k", "thp", "hugetlb:2m", "memfd", "memfd:thp"].map(|text| text.parse().unwrap())
}
