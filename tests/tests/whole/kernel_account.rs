//! The kernel's own account: what each operation announces, on the kernel that runs; and what a run makes of it.
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
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_mem::{
    Address, Backing, Hva, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageScanner, Region, drain_lru, perform,
};
use host::HostChanges;
use kvm_ioctls::VmFd;
use machine::Kvm;
use serde_json::Value;
use tap::Collector;
use test_memory::ZramSwap;
use tests::host::allow;
use tests::kernel::{in_pages, listen, ranges, version};
use tests::program;
use tests::record::{number, rows, run};

crate::tests! {
    every_operation_announces_what_is_written(case in cases()): [Kvm, Tap, Zram, Has(case.memory())],
    a_fork_announces_the_vma_and_a_write_after_it_its_page: [Kvm, Tap],
    ksm_announces_each_page_it_protects_and_replaces: [Kvm, Tap, Zram, Ksm],
    the_built_in_scenario_announces_what_is_written: [Kvm, SlotZap, Tap, Zram],
    the_built_in_scenario_announces_it_to_a_program: [Kvm, SlotZap, Bpf, Zram],
    our_own_swap_announces_two_ranges_a_page: [Kvm, SlotZap, Tap, Userfault],
    folios_that_leave_page_by_page_are_followed(unit in ["folio", "range"]): [Kvm, Tap, Zram, Has(mthp_64k())],
    without_the_account_the_run_goes_on: [Kvm, SlotZap],
    without_permission_the_run_goes_on: [Kvm, SlotZap, GuardedTracepoints],
    a_killed_run_leaves_no_instance: [Kvm, Tap],
}

const LEN: u64 = 4 * PMD_SIZE;
/// How often a page-out may be tried: `MADV_PAGEOUT` passes over pages that somebody holds at that moment.
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
    // SAFETY: the pages move to a new place of the kernel's choice; no reference to either place exists.
    let moved = unsafe { libc::mremap(range.start().as_ptr(), len, len, flags) };
    assert_ne!(moved, libc::MAP_FAILED);
    // SAFETY: what was just moved, which nobody else knows of.
    unsafe { libc::munmap(moved, len) };
}

fn cases() -> Vec<Case> {
    let (small, huge, shared) = (Backing::Base4k, Backing::Thp, Backing::Memfd);
    let mthp = Backing::mthp(64 << 10).unwrap();
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

fn quietly() -> HostChanges {
    HostChanges::new(|_| ())
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
    let changes = quietly();
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
    let changes = quietly();
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

fn the_built_in_scenario_announces_what_is_written() {
    ["perf", "tracefs"].into_iter().for_each(the_built_in_scenario_announces_by);
}

fn the_built_in_scenario_announces_it_to_a_program() {
    the_built_in_scenario_announces_by("bpf");
}

/// The policies that change nothing in what the kernel itself does.
fn the_built_in_scenario_announces_by(tap: &str) {
    let (_, text) = resources::SCENARIOS.iter().find(|(name, _)| *name == "swapout").unwrap();
    let text: String = text
        .lines()
        // Rows that are left out here cannot be expected anything of.
        .filter(|line| !line.starts_with("exclude = ") && !line.ends_with(" for policy pmd slot vm\","))
        .filter(|line| !line.ends_with(" for policy slot vm\","))
        .map(|line| match line {
            line if line.starts_with("policy = ") => "policy = [\"kernel\", \"folio\"]\n".to_owned(),
            line if line.starts_with("reclaim = ") => "reclaim = [\"pageout\"]\n".to_owned(),
            line => format!("{line}\n"),
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let (record, said) = run(directory.path(), &text, &["--zram", "512MiB", "--tap", tap]);
    assert_eq!(said.contains("made the tracefs instance"), tap == "tracefs", "{said}");
    let mut compared = 0;
    for row in rows(&record).iter().filter(|row| row["could_not_run"].is_null()) {
        let label: Vec<_> = ["case", "backing", "policy"].map(|key| row[key].as_str().unwrap()).to_vec();
        assert_eq!(number(row, "lost_events"), 0, "{label:?}");
        assert_eq!(number(row, "account_differences"), 0, "{label:?}: {}", row["warnings"]);
        let split = if version() < (6, 13) { 2 } else { 1 };
        let expected = match label[..] {
            ["sparse" | "discard", "4k", _] => (256, 256 * PAGE_SIZE),
            ["whole", "4k", _] => (2048, 2048 * PAGE_SIZE),
            ["whole", "thp", "kernel"] => (4, 4 * PMD_SIZE),
            // 32 huge pages lose eight pages each.
            ["sparse", "thp", "kernel"] => (256 + 32 * split, 256 * PAGE_SIZE + 32 * split * PMD_SIZE),
            _ => continue,
        };
        compared += 1;
        assert_eq!((number(row, "kernel_ranges"), number(row, "kernel_bytes")), expected, "{label:?}");
        // A toggle is two announcements; the kernel alone toggles nothing.
        assert_eq!(number(row, "kernel_zap_ranges") > 0, label[2] != "kernel", "{label:?}");
    }
    assert!(compared >= 6, "{compared} rows");
}

/// A device of 2 MiB, whose first page is its header, has room for many pages and for no folio in one piece.
const SCARCE: &str = r#"
name = "scarce"
memory = "16MiB"
[matrix]
backing = ["mthp:64k"]
policy = ["kernel", "folio"]
reclaim = ["pageout"]
[[case]]
name = "folio"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
range = "4MiB..5MiB"
unit = "UNIT"
[[case.step]]
do = "refault"
"#;

fn mthp_64k() -> Backing {
    Backing::mthp(64 << 10).unwrap()
}

/// Folios of 64 KiB, one a call and all in one call.
fn folios_that_leave_page_by_page_are_followed(unit: &str) {
    let changes = quietly();
    allow(&changes, mthp_64k());
    let directory = tempfile::tempdir().unwrap();
    let (record, _) = run(directory.path(), &SCARCE.replace("UNIT", unit), &["--zram", "2MiB"]);
    for row in rows(&record) {
        assert!(row["could_not_run"].is_null(), "{row:#}");
        let wrong = number(row, "lost_events") + number(row, "integrity_errors");
        assert_eq!((wrong, number(row, "evicted_bytes")), (0, 1 << 20), "{row:#}");
        assert_eq!(number(row, "account_differences"), 0, "{}", row["warnings"]);
        let ranges = number(row, "kernel_ranges");
        assert!(ranges > 16 && ranges.is_multiple_of(16), "16 folios, and pages: {row:#}");
        let said = format!("{} folio", (ranges - 16) / 16);
        assert!(row["warnings"].to_string().contains(&said), "{}", row["warnings"]);
    }
    assert!(changes.undo_all().is_empty());
}

/// A page of 4 KiB leaves by a write protection and a drop: one range each, and both the step's own.
fn our_own_swap_announces_two_ranges_a_page() {
    let text = "name = \"own\"\nmemory = \"8MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n\
        reclaim = [\"uffd\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"reclaim\"\n\
        victims = \"sparse\"\ncount = 64\n";
    let directory = tempfile::tempdir().unwrap();
    let (record, _) = run(directory.path(), text, &["--tap", "perf"]);
    let row = &rows(&record)[0];
    assert_eq!((number(row, "kernel_ranges"), number(row, "kernel_bytes")), (128, 128 * PAGE_SIZE));
    assert_eq!((number(row, "kernel_zap_ranges"), number(row, "kernel_zap_bytes")), (0, 0));
    assert_eq!(number(row, "invalidations"), 128);
}

/// Gives up, for what is executed next, the right to mount tracefs and to listen to tracepoints.
fn drop_tracing() -> std::io::Result<()> {
    const CAP_SYS_ADMIN: u64 = 21;
    const CAP_PERFMON: u64 = 38;
    for capability in [CAP_SYS_ADMIN, CAP_PERFMON] {
        // SAFETY: takes numbers only. Whoever is not root has nothing to drop, and is refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    Ok(())
}

/// Why the one row of a run has no account. There is no row less for it.
fn why_without(tap: &str, drops: bool) -> String {
    let text = "name = \"x\"\nmemory = \"8MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n\
        reclaim = [\"dontneed\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"reclaim\"\n\
        victims = \"sparse\"\ncount = 64\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("scenario.toml"), text).unwrap();
    let arguments = ["run", "scenario.toml", "--json", "--tap", tap];
    let mut command: Command = program::zapscope(directory.path(), &arguments);
    if drops {
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(drop_tracing) };
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", program::stderr(&output));
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = rows(&record)[0].clone();
    assert!(row["could_not_run"].is_null());
    assert_eq!((number(&row, "victims"), number(&row, "integrity_errors")), (64, 0));
    let keys = ["kernel_ranges", "kernel_bytes", "lost_events", "account_differences"];
    assert!(keys.iter().all(|key| row[key].is_null()), "{row}");
    let why = |warning: &&Value| {
        let about: Vec<_> = warning["keys"].as_array().into_iter().flatten().collect();
        keys.iter().all(|key| about.iter().any(|one| one == key))
    };
    row["warnings"].as_array().unwrap().iter().find(why).unwrap()["text"].as_str().unwrap().to_owned()
}

fn without_the_account_the_run_goes_on() {
    let off = why_without("off", false);
    assert!(off.contains("--tap off"), "{off}");
}

/// Root without the right to trace.
fn without_permission_the_run_goes_on() {
    let refused = why_without("perf", true);
    assert!(refused.contains("tracefs") || refused.contains("cap_perfmon"), "{refused}");
}

fn a_killed_run_leaves_no_instance() {
    use std::io::{BufRead, BufReader};
    let text = "name = \"x\"\nmemory = \"8MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n\
        reclaim = [\"dontneed\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"reclaim\"\n\
        victims = \"sparse\"\ncount = 512\npace = \"1s\"\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("scenario.toml"), text).unwrap();
    let arguments = ["run", "scenario.toml", "--json", "--tap", "tracefs"];
    let mut child = program::zapscope(directory.path(), &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let name = lines.by_ref().find_map(|line| {
        let line = line.unwrap();
        Some(line.split_once("made the tracefs instance ")?.1.split(' ').next()?.to_owned())
    });
    let name = name.expect("it says what it makes");
    let tracefs = host::Tracefs::open().unwrap();
    let there = || tracefs.directory(&format!("instances/{name}")).is_ok();
    let was_there = there();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(was_there);
    // The guardian, which writes to the same pipe, ends when it is done.
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(!there(), "{said:?}");
    assert!(
        said.iter().any(|line| line.contains(&format!("remove the tracefs instance {name}"))),
        "{said:?}"
    );
}
