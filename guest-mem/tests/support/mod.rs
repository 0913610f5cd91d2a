//! What the tests on a real kernel share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod announced;
pub mod swapped;

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{
    Address, Backing, HostThp, Hva, HvaRange, PAGE_SIZE, PMD_SIZE, PageCounts, PageScanner, Region, ZramSwap,
    drain_lru,
};

/// Says aloud that a test could not run. It then returns, and nobody can take it for a pass: unlike
/// `eprintln!`, the line is not captured with the output of tests that succeed.
#[expect(clippy::disallowed_methods, reason = "past the capture of the test harness")]
pub fn could_not_run(test: &str, why: impl std::fmt::Display) {
    // In one piece, so that lines of tests that run side by side do not mix.
    let line = format!("SKIPPED: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// One test at a time, in this process and in any other: they share the swap areas, the cgroup, the host's
/// switches and the LRU lists.
pub struct Alone {
    _process: MutexGuard<'static, ()>,
    _host: File,
}

/// Waits for the turn of this test.
pub fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let process = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = File::open(std::env::temp_dir()).unwrap();
    rustix::fs::flock(&host, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Alone { _process: process, _host: host }
}

/// A swap device for one test, or the reason there is none.
pub fn swap(test: &str) -> Option<ZramSwap> {
    ZramSwap::create(512 << 20, None).map_err(|error| could_not_run(test, error)).ok()
}

/// A populated region, or the reason there is none. Each page holds its own address.
pub fn filled(test: &str, len: u64, backing: Backing) -> Option<Region> {
    if let Some(why) = backing.unavailable(len, &HostThp::read()) {
        could_not_run(test, format_args!("{backing}: {why}"));
        return None;
    }
    let region = Region::map(len, backing).unwrap();
    region.populate(region.range()).unwrap();
    fill(&region, region.range());
    // Otherwise pages that another CPU just faulted in are skipped by whatever the test does next.
    let _ = drain_lru();
    Some(region)
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

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
/// What the largest region of a test has.
const LARGEST: u64 = 16 * PMD_SIZE;

/// The host's switches that a backing needs on, for one test; `None` if they cannot be had.
pub fn allow(test: &str, backing: Backing) -> Option<Vec<SysfsSwitch>> {
    let missing = || backing.unavailable(LARGEST, &HostThp::read());
    let Some(why) = missing() else { return Some(Vec::new()) };
    let settings = why.remedy.settings().iter();
    let switches: Option<Vec<_>> =
        settings.map(|setting| SysfsSwitch::set(test, &setting.knob.path(), &setting.text())).collect();
    let switches = switches?;
    if let Some(why) = missing() {
        could_not_run(test, format_args!("{backing}: {why}"));
        return None;
    }
    Some(switches)
}

/// Keeps khugepaged away for one test: it collapses memory behind a plan's back.
pub fn without_khugepaged(test: &str) -> Option<SysfsSwitch> {
    let switch = SysfsSwitch::set(test, &format!("{THP}/khugepaged/scan_sleep_millisecs"), "600000");
    // Writing the switch wakes it for a last round.
    std::thread::sleep(std::time::Duration::from_millis(50));
    switch
}

/// Every kind of backing, one size of mTHP.
pub fn backings() -> [Backing; 6] {
    ["4k", "mthp:64k", "thp", "hugetlb:2m", "memfd", "memfd:thp"].map(|text| text.parse().unwrap())
}

/// A switch of the host, set for one test and put back.
pub struct SysfsSwitch {
    path: String,
    before: String,
}

impl SysfsSwitch {
    /// Sets a switch, or says why not.
    pub fn set(test: &str, path: &str, value: &str) -> Option<Self> {
        let read = std::fs::read_to_string(path);
        let Ok(text) = read else {
            could_not_run(test, format_args!("no {path}"));
            return None;
        };
        // Most switches show all choices with the current one in brackets; plain numbers show themselves.
        let before = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let before = before.unwrap_or(text.trim()).to_owned();
        if let Err(error) = std::fs::write(path, value) {
            could_not_run(test, format_args!("writing {path}: {error}"));
            return None;
        }
        Some(Self { path: path.to_owned(), before })
    }
}

impl Drop for SysfsSwitch {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).unwrap();
    }
}

/// Returns from a test, aloud, where this process may not have a userfaultfd that serves the kernel's faults too.
#[allow(unused_macros, reason = "not every test of the folder needs one")]
macro_rules! uffd_or_skip {
    ($test:expr) => {
        if let Err(why) = guest_mem::uffd::Userfault::open(guest_mem::uffd::Features::empty()) {
            eprintln!("SKIPPED: {}: {why}", $test);
            return;
        }
    };
}
#[allow(unused_imports, reason = "not every test of the folder needs one")]
pub(crate) use uffd_or_skip;
