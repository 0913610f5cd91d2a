//! What each operation announces to KVM, on the kernel that runs.
//!
//! | operation | ranges | differs between kernels |
//! | --- | --- | --- |
//! | page-out of a 4 KiB page, a 64 KiB folio, a THP whole | one, of the folio's size | |
//! | page-out of one page of a THP | 2 MiB, 4 KiB | the 2 MiB twice on 6.12, once on 6.18; between: either |
//! | `MADV_COLD` | none; of a part of a THP 2 MiB | as above |
//! | `MADV_DONTNEED`, `MADV_FREE`, holes | the exact range, even if nothing is there | |
//! | `MADV_DONTNEED` of a part of a THP | the exact range, and in it 2 MiB | |
//! | `mprotect`, `munmap`, `mremap` of a part of a VMA | 2 MiB for each VMA split, the exact range | |
//! | collapse | 2 MiB; of shared memory 512 of 4 KiB before it | |
//! | fork; a write after it | the VMA; 4 KiB | |
//! | KSM | 4 KiB for each page that is protected, and for each that is replaced | |
//! | populate, swap-in | none | |
//!
//! | page-out of a folio for which swap has no contiguous room | its split, then 4 KiB for each page | a THP's split as above |
//!
//! Not here, because no test can bring them about alone: compaction, NUMA balancing.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_mem::{
    Address, Backing, Hva, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageScanner, Region, drain_lru, perform,
};
use host::HostChanges;
use kvm_ioctls::VmFd;
use machine::Kvm;
use tap::Collector;
use test_memory::ZramSwap;
use tests::host::{allow, mthp_64k};
use tests::kernel::{in_pages, listen, ranges, version};

crate::tests! {
    every_operation_announces_what_is_written(case in cases()): [Kvm, Tap, Zram, Has(case.memory())],
    a_fork_announces_the_vma_and_a_write_after_it_its_page: [Kvm, Tap],
    ksm_announces_each_page_it_protects_and_replaces: [Kvm, Tap, Zram, Ksm],
}

const LEN: u64 = 4 * PMD_SIZE;
/// How often a page-out may be tried: `MADV_PAGEOUT` passes over pages that are held at that moment.
const TRIES: u32 = 5;

/// Pages of a region: the first, and how many.
type Pages = (u64, u64);

/// One line of the table.
struct Case {
    what: &'static str,
    backing: Backing,
    pages: Pages,
    operation: fn(&Region, HvaRange),
    /// Whether pages leave, which may be passed over.
    takes: bool,
    /// What may be announced: one of these lists.
    announced: Vec<Vec<Pages>>,
}

impl Case {
    /// What it finds: for a collapse small pages.
    fn memory(&self) -> Backing {
        if self.backing == Backing::MemfdThp { Backing::Memfd } else { self.backing }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.what)
    }
}

fn by(operation: Operation) -> impl Fn(&Region, HvaRange) {
    move |region, range| perform(region, operation, range).unwrap()
}

fn page_out(region: &Region, range: HvaRange) {
    by(Operation::PageOut)(region, range);
}

fn cold(region: &Region, range: HvaRange) {
    by(Operation::Cold)(region, range);
}

fn discard(region: &Region, range: HvaRange) {
    by(Operation::DontNeed)(region, range);
}

fn discard_twice(region: &Region, range: HvaRange) {
    discard(region, range);
    discard(region, range);
}

fn free(region: &Region, range: HvaRange) {
    by(Operation::Free)(region, range);
}

fn remove(region: &Region, range: HvaRange) {
    by(Operation::PunchHole)(region, range);
}

fn punch(region: &Region, range: HvaRange) {
    by(Operation::Fallocate)(region, range);
}

fn collapse(region: &Region, range: HvaRange) {
    by(Operation::Collapse)(region, range);
}

/// Makes small pages of the block first, whose announcements are the first in the list.
fn discard_and_collapse(region: &Region, range: HvaRange) {
    discard(region, HvaRange::with_len(range.start(), PAGE_SIZE).unwrap());
    collapse(region, range);
}

fn populate_after_page_out(region: &Region, range: HvaRange) {
    page_out(region, range);
    region.populate(range).unwrap();
}

fn protect(_: &Region, range: HvaRange) {
    // SAFETY: memory of the test's own region, to which no reference exists; nothing writes to it any more.
    let done = unsafe { libc::mprotect(range.start().as_ptr(), range.len() as usize, libc::PROT_READ) };
    assert_eq!(done, 0);
}

fn unmap(_: &Region, range: HvaRange) {
    // SAFETY: memory of the test's own region, to which no reference exists; it is not touched again, and the region's
    // own unmapping does not mind a hole.
    let done = unsafe { libc::munmap(range.start().as_ptr(), range.len() as usize) };
    assert_eq!(done, 0);
}

fn remap(_: &Region, range: HvaRange) {
    let (len, flags) = (range.len() as usize, libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP);
    // The kernel reads the fifth argument for MREMAP_DONTUNMAP too: the address to move to, none here.
    let anywhere = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the pages move to a new place of the kernel's choice; no reference to either place exists.
    let moved = unsafe { libc::mremap(range.start().as_ptr(), len, len, flags, anywhere) };
    assert_ne!(moved, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping that was just made, whose address only this function has.
    unsafe { libc::munmap(moved, len) };
}

fn cases() -> Vec<Case> {
    let (small, huge, shared) = (Backing::Base4k, Backing::Thp, Backing::Memfd);
    let mthp = mthp_64k();
    let block = (512, 512);
    let once_or_twice = |rest: &[Pages]| {
        let times = |times: usize| [vec![block; times], rest.to_vec()].concat();
        match version() {
            old if old < (6, 13) => vec![times(2)],
            new if new >= (6, 18) => vec![times(1)],
            _ => vec![times(1), times(2)],
        }
    };
    let case = |what, backing, pages, operation, announced: &[Pages]| Case {
        what,
        backing,
        pages,
        operation,
        takes: false,
        announced: vec![announced.to_vec()],
    };
    let taken = |what, backing, pages, announced: &[Pages]| Case {
        takes: true,
        ..case(what, backing, pages, page_out, announced)
    };
    let small_pages: Vec<Pages> = (512..1024).map(|page| (page, 1)).collect();
    let collapsed = [small_pages.as_slice(), &[block]].concat();
    vec![
        taken("a 4 KiB page", small, (515, 1), &[(515, 1)]),
        taken("three of them", small, (515, 3), &[(515, 1), (516, 1), (517, 1)]),
        taken("a 64 KiB folio, whole", mthp, (528, 16), &[(528, 16)]),
        taken("a THP, whole", huge, block, &[block]),
        Case { announced: once_or_twice(&[(515, 1)]), ..taken("one page of a THP", huge, (515, 1), &[]) },
        case("a swap-in", small, (515, 1), populate_after_page_out, &[(515, 1)]),
        case("MADV_COLD of a page", small, (515, 1), cold, &[]),
        Case {
            announced: once_or_twice(&[]),
            ..case("MADV_COLD of a part of a THP", huge, (515, 1), cold, &[])
        },
        case("MADV_DONTNEED, then of nothing", small, (515, 4), discard_twice, &[(515, 4), (515, 4)]),
        case("MADV_DONTNEED of a THP", huge, block, discard, &[block]),
        case("MADV_DONTNEED in a THP", huge, (515, 4), discard, &[(515, 4), block]),
        case("MADV_FREE", small, (515, 4), free, &[(515, 4)]),
        case("MADV_REMOVE", shared, (515, 4), remove, &[(515, 4)]),
        case("fallocate of a hole", shared, (515, 4), punch, &[(515, 4)]),
        case("mprotect that splits a VMA", small, (515, 4), protect, &[block, (515, 4)]),
        case("mprotect of whole blocks", small, block, protect, &[block]),
        case("munmap that splits a VMA", small, (515, 4), unmap, &[block, (515, 4)]),
        case("mremap of a block", small, block, remap, &[block]),
        case("mremap of a THP", huge, block, remap, &[block]),
        case("collapse", huge, block, discard_and_collapse, &[(512, 1), block, block]),
        case("collapse of shared memory", Backing::MemfdThp, block, collapse, &collapsed),
    ]
}

/// A VM without memory is enough: ranges are announced before memslots are looked up.
fn vm() -> VmFd {
    Kvm::open().unwrap().create_vm().unwrap()
}

fn filled(backing: Backing) -> Region {
    let region = Region::map(LEN, backing).unwrap();
    region.populate(region.range()).unwrap();
    region.range().pages().for_each(|page| region.write_u64(page.start(), page.start().get()).unwrap());
    drain_lru().unwrap();
    region
}

/// What this thread announced in a region, in order.
fn announced(tap: &Collector, region: &Region) -> Vec<Pages> {
    let mine = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let of_mine = ranges(tap).into_iter().filter(|(event, _)| event.tid == mine);
    of_mine.map(|(_, range)| in_pages(region, range)).collect()
}

fn every_operation_announces_what_is_written(case: Case) {
    let _swap = ZramSwap::create(256 << 20, None).unwrap();
    let _vm = vm();
    let changes = HostChanges::new(|_| ());
    // What khugepaged collapses while a case runs is no part of it.
    let _ =
        changes.change_sysfs("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "1", "a test");
    if case.backing == Backing::MemfdThp {
        // Small pages first, which the collapse is to find; it does not ask the switch. Since 6.11 the size has its own.
        for (switch, word) in [("shmem_enabled", "never"), ("hugepages-2048kB/shmem_enabled", "inherit")] {
            let path = format!("/sys/kernel/mm/transparent_hugepage/{switch}");
            if Path::new(&path).exists() {
                changes.change_sysfs(path, word, "a test's memory").unwrap();
            }
        }
    }
    allow(&changes, case.memory());
    let done = attempt(&case);
    assert!(changes.undo_all().is_empty());
    assert_eq!(done, Ok(()), "on Linux {:?}", version());
}

fn attempt(case: &Case) -> Result<(), String> {
    let mut scanner = PageScanner::new().unwrap();
    let mut last = String::new();
    for _ in 0..TRIES {
        let region = filled(case.backing);
        let range = region.slice(case.pages.0 * PAGE_SIZE, case.pages.1 * PAGE_SIZE).unwrap();
        let tap = listen(&[region.range()]).unwrap();
        (case.operation)(&region, range);
        let found = announced(&tap, &region);
        if case.announced.contains(&found) {
            return Ok(());
        }
        last = format!("{}: announced {found:?}, not {:?}", case.what, case.announced);
        let stayed = scanner.counts(&region, range).is_ok_and(|counts| counts.resident() > 0);
        if !(case.takes && stayed) {
            break;
        }
    }
    Err(last)
}

fn a_fork_announces_the_vma_and_a_write_after_it_its_page() {
    let _vm = vm();
    let region = filled(Backing::Base4k);
    let tap = listen(&[region.range()]).unwrap();
    let (until, end) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child makes system calls only, and exits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // Holds the pages until its parent lets go of the pipe.
        drop(end);
        let _ = rustix::io::read(&until, &mut [0; 1]);
        // SAFETY: ends the child at once, without running what the parent would.
        unsafe { libc::_exit(0) };
    }
    let forked = announced(&tap, &region);
    region.write_u64(Hva::from_raw(region.range().start().get() + 515 * PAGE_SIZE), 1).unwrap();
    let written = announced(&tap, &region);
    drop(end);
    // SAFETY: waits for our own child; the status is not wanted.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!((forked, written), (vec![(0, LEN / PAGE_SIZE)], vec![(515, 1)]));
}

/// Both pages are protected, so that they cannot change while they are compared, and both are replaced by the one that
/// KSM keeps; the first to be merged is kept itself.
fn ksm_announces_each_page_it_protects_and_replaces() {
    let _vm = vm();
    let region = filled(Backing::Base4k);
    let pair = [
        region.slice(515 * PAGE_SIZE, PAGE_SIZE).unwrap(),
        region.slice(700 * PAGE_SIZE, PAGE_SIZE).unwrap(),
    ];
    for page in pair {
        region.write_u64(page.start(), 0x5a5a_1234_9876_0001).unwrap();
        // SAFETY: a page of the region; the advice changes no content.
        let done = unsafe { libc::madvise(page.start().as_ptr(), PAGE_SIZE as usize, libc::MADV_MERGEABLE) };
        assert_eq!(done, 0);
    }
    let tap = listen(&pair).unwrap();
    let changes = HostChanges::new(|_| ());
    for (file, value) in [("sleep_millisecs", "0"), ("pages_to_scan", "1000"), ("run", "1")] {
        changes.change_sysfs(format!("/sys/kernel/mm/ksm/{file}"), value, "a test merges two pages").unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut heard = Vec::new();
    let merged = || std::fs::read_to_string("/proc/self/ksm_merging_pages").unwrap().trim() != "0";
    while !merged() {
        assert!(Instant::now() < deadline, "ksmd merged nothing; it announced {heard:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(changes.undo_all().is_empty());
    heard.extend(ranges(&tap));
    let tasks = tap.tasks();
    let comm = |tid| tasks.iter().find(|task| task.tid == tid).map_or("", |task| task.comm.as_str());
    assert!(heard.iter().all(|(event, _)| comm(event.tid) == "ksmd"), "{heard:?}: {tasks:?}");
    let mut pages: Vec<_> = heard.iter().map(|(_, range)| in_pages(&region, *range)).collect();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages, [(515, 1), (700, 1)]);
    assert!((3..=4).contains(&heard.len()), "two protected, one or two replaced: {heard:?}");
}
