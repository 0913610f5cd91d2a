//! hugetlb memory: what the kernel refuses comes back as an error that names the limit, at every way into the memory.

use guest_mem::{
    Backing, ContentError, HostThp, HugetlbLimit, HugetlbPool, Operation, PAGE_SIZE, PMD_SIZE, Page, Region,
    RegionError, perform,
};
use test_memory::{SysfsSwitch, allow, alone};

test_memory::tests! {
    a_pool_that_is_too_small_says_how_large_it_must_be: [HugetlbPool],
    content_goes_in_and_out_in_pages_of_4_kib: [Has(Backing::Hugetlb2m)],
    a_page_that_the_pool_cannot_give_is_an_error_at_every_touch: [Has(Backing::Hugetlb2m)],
}

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

fn limit_of(error: &RegionError) -> &HugetlbLimit {
    match error {
        RegionError::Hugetlb { limit, .. } | RegionError::NotGiven { limit, .. } => limit,
        other => panic!("{other:?}"),
    }
}

fn a_pool_that_is_too_small_says_how_large_it_must_be() {
    let _alone = alone();
    let pool = HugetlbPool::read().unwrap();
    for more in [1, 100] {
        let pages = pool.available() + more;
        let error = Region::map(pages * PMD_SIZE, Backing::Hugetlb2m).unwrap_err();
        // One need, one number.
        let why = Backing::Hugetlb2m.unavailable(pages * PMD_SIZE, &HostThp::read()).unwrap();
        assert_eq!(*limit_of(&error), HugetlbLimit::Pool(why), "{error}");
        // The pool is never lowered, not even where it is larger than what is wanted.
        let remedy = format!("`echo {} > {POOL}`", pool.total + more);
        assert!(error.to_string().ends_with(&remedy), "{error}");
    }
}

fn content_goes_in_and_out_in_pages_of_4_kib() {
    let _alone = alone();
    let _switches = allow(Backing::Hugetlb2m);
    let region = Region::map(2 * PMD_SIZE, Backing::Hugetlb2m).unwrap();
    let pages: Vec<Page> = (1..4).map(|byte| Page::new([byte; 4096])).collect();
    // Across the border of the two huge pages.
    let at = region.hva_at(PMD_SIZE - PAGE_SIZE).unwrap();
    region.write_pages(at, &pages).unwrap();
    let mut back = vec![Page::new([9; 4096]); 5];
    region.read_pages(region.hva_at(PMD_SIZE - 2 * PAGE_SIZE).unwrap(), &mut back).unwrap();
    assert!(back[1..4] == pages && back[0] == Page::ZERO && back[4] == Page::ZERO);
    region.populate(region.slice(PAGE_SIZE, PAGE_SIZE).unwrap()).unwrap();
    // An operation still takes whole pages only.
    let part = region.slice(0, PAGE_SIZE).unwrap();
    assert!(perform(&region, Operation::DontNeed, part).is_err());
}

/// Every way in which the host gets at memory, over a page that is mapped and that the pool cannot give again.
fn a_page_that_the_pool_cannot_give_is_an_error_at_every_touch() {
    let _alone = alone();
    let _switches = allow(Backing::Hugetlb2m);
    // All of it: then nothing is left for a page that comes back.
    let pages = HugetlbPool::read().unwrap().available();
    let region = Region::map(pages * PMD_SIZE, Backing::Hugetlb2m).unwrap();
    region.write_u64(region.hva_at(PMD_SIZE).unwrap(), 7).unwrap();
    // Lowered, every page is a surplus one, and goes back to the host when it is dropped.
    let _lowered = SysfsSwitch::set(POOL, "0").unwrap();
    perform(&region, Operation::DontNeed, region.slice(0, PMD_SIZE).unwrap()).unwrap();
    assert_eq!(HugetlbPool::read().unwrap().free, 0, "another process has pages of the pool to spare");

    let gone = region.hva_at(PAGE_SIZE).unwrap();
    let range = region.slice(PAGE_SIZE, PAGE_SIZE).unwrap();
    let content = |result: Result<(), ContentError>| match result.unwrap_err() {
        ContentError::Region(error) => error,
        other => panic!("{other}"),
    };
    let refused = [
        region.read_u64(gone).unwrap_err(),
        region.write_u64(gone, 1).unwrap_err(),
        region.touch(gone, false).unwrap_err(),
        region.touch(gone, true).unwrap_err(),
        region.reach(range).unwrap_err(),
        region.populate(range).unwrap_err(),
        content(region.read_pages(gone, &mut [Page::ZERO])),
        content(region.write_pages(gone, &[Page::ZERO])),
    ];
    for error in &refused {
        assert!(matches!(error, RegionError::NotGiven { .. }), "{error}");
        assert!(matches!(limit_of(error), HugetlbLimit::Pool(_)), "{error}");
        assert!(error.to_string().contains(POOL), "{error}");
    }
    // What is there is as it was.
    assert_eq!(region.read_u64(region.hva_at(PMD_SIZE).unwrap()).unwrap(), 7);
}
