//! Dropping translations without taking pages: toggles, seams and unmapping, on a real kernel.

use guest_mem::{
    Backing, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageScanner, Region, SeamError, ZapError, perform,
    toggle_protection, unmap_shared,
};
use test_memory::announced::Announcements;
use test_memory::{
    allow, alone, assert_folios, assert_intact, backings, counts, fill, filled, pages, swappable, vmas,
};

test_memory::tests! {
    toggles_keep_content_and_give_write_permission_back(backing in backings()): [Has(backing)],
    a_seamed_toggle_announces_exactly_its_range(backing in swappable()): [Announcements, Has(backing)],
    only_a_part_of_a_block_costs_its_huge_page: [Has(Backing::Thp)],
    seams_do_not_cut_folios_and_toggles_leave_no_vmas_behind(backing in with_small_folios()): [Has(backing)],
    private_memory_is_not_unmapped: [],
    unmapped_shared_memory_keeps_its_content(backing in [Backing::Memfd, Backing::MemfdThp]): [Has(backing)],
    what_cannot_be_toggled_or_seamed_is_refused: [],
    a_huge_page_of_a_pool_is_toggled_whole_or_not_at_all: [Has(Backing::Hugetlb2m)],
    a_region_too_large_to_seam_is_refused: [FewMappings],
}

const LEN: u64 = 4 * PMD_SIZE;

fn toggles_keep_content_and_give_write_permission_back(backing: Backing) {
    let _alone = alone();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    let parts: &[(u64, u64)] = match backing {
        Backing::Hugetlb2m => &[(512, 512), (0, 2048)],
        _ => &[(0, 1), (1, 1), (515, 1), (511, 2), (528, 16), (500, 700), (0, 2048), (2047, 1)],
    };
    for &(first, count) in parts {
        toggle_protection(&region, pages(&region, first, count)).unwrap();
        assert_intact(&region, region.range());
        fill(&region, region.range());
    }
}

/// The reason for seams: without one a page costs its whole 2 MiB, with one it costs itself.
fn a_seamed_toggle_announces_exactly_its_range(backing: Backing) {
    let _alone = alone();
    let kernel = Announcements::listen().unwrap();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    let guarded = matches!(backing, Backing::Mthp(_));
    let page = pages(&region, 515, 1);
    kernel.clear();
    perform(&region, Operation::Protect, page).unwrap();
    let block = pages(&region, 512, 512);
    assert_eq!(kernel.inside(region.range()).contains(&block), !guarded, "{backing} without a seam");

    // The first exact toggle pays for the seam; the others do not.
    toggle_protection(&region, page).unwrap();
    for (first, count) in [(515, 1), (513, 1), (560, 64), (1023, 1)] {
        let range = pages(&region, first, count);
        kernel.clear();
        toggle_protection(&region, range).unwrap();
        let announced = kernel.inside(region.range());
        let exact: Vec<HvaRange> = region.vma_pieces(range).collect();
        assert_eq!(announced, [exact.clone(), exact].concat(), "{backing} {first}+{count}");
    }
}

/// Whole blocks have nothing to split, so a huge page stays huge; a part of one takes the seam, once.
fn only_a_part_of_a_block_costs_its_huge_page() {
    let _alone = alone();
    let _switches = allow(Backing::Thp);
    let region = filled(LEN, Backing::Thp);
    let mut scanner = PageScanner::new().unwrap();
    toggle_protection(&region, pages(&region, 512, 1024)).unwrap();
    assert_eq!(counts(&mut scanner, &region, region.range()).pmd_mapped, 2048);
    assert_eq!(vmas(&region), 1);
    toggle_protection(&region, pages(&region, 600, 1)).unwrap();
    assert_eq!(counts(&mut scanner, &region, region.range()).pmd_mapped, 3 * 512);
    assert_intact(&region, region.range());
}

fn with_small_folios() -> [Backing; 3] {
    [Backing::Base4k, Backing::mthp(64 << 10).unwrap(), Backing::Memfd]
}

fn seams_do_not_cut_folios_and_toggles_leave_no_vmas_behind(backing: Backing) {
    let _alone = alone();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    region.seam(region.range()).unwrap();
    assert_eq!(vmas(&region), 8, "{backing}");
    for page in (0..2048).step_by(37) {
        toggle_protection(&region, pages(&region, page, 1)).unwrap();
    }
    assert_eq!(vmas(&region), 8, "{backing}");
    assert_folios(&region);
    assert_intact(&region, region.range());
}

fn unmapped_shared_memory_keeps_its_content(backing: Backing) {
    let _alone = alone();
    let mut scanner = PageScanner::new().unwrap();
    let _switches = allow(backing);
    let region = filled(LEN, backing);
    unmap_shared(&region, pages(&region, 512, 512)).unwrap();
    let got = counts(&mut scanner, &region, region.range());
    assert_eq!((got.cached, got.present), (512, 1536), "{backing}");
    unmap_shared(&region, region.range()).unwrap();
    assert_eq!(counts(&mut scanner, &region, region.range()).cached, 2048);
    assert_intact(&region, region.range());
}

fn private_memory_is_not_unmapped() {
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    let refused = unmap_shared(&region, region.range()).unwrap_err();
    assert!(matches!(refused, ZapError::NotShared { .. }), "{refused}");
}

fn what_cannot_be_toggled_or_seamed_is_refused() {
    let _alone = alone();
    let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
    let odd = HvaRange::with_len(region.range().start(), 17).unwrap();
    assert!(matches!(toggle_protection(&region, odd), Err(ZapError::Range(_))));
    let beyond = HvaRange::with_len(region.range().end(), PAGE_SIZE).unwrap();
    assert!(matches!(toggle_protection(&region, beyond), Err(ZapError::Range(_))));
    toggle_protection(&region, HvaRange::empty(region.range().start())).unwrap();
}

fn a_huge_page_of_a_pool_is_toggled_whole_or_not_at_all() {
    let _alone = alone();
    let _switches = allow(Backing::Hugetlb2m);
    let region = filled(LEN, Backing::Hugetlb2m);
    assert!(matches!(region.seam(region.range()), Err(SeamError::Hugetlb)));
    assert!(toggle_protection(&region, pages(&region, 1, 1)).is_err());
}

/// A region of 64 GiB would need more VMAs than the kernel's default allows: refused before any is made.
fn a_region_too_large_to_seam_is_refused() {
    let _alone = alone();
    let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let region = Region::map((limit / 2 + 1) * PMD_SIZE, Backing::Base4k).unwrap();
    let refused = region.seam(region.range()).unwrap_err();
    assert!(refused.to_string().contains("sysctl vm.max_map_count="), "{refused}");
    assert_eq!(vmas(&region), 1);
}
