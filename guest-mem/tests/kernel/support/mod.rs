//! What the tests on a real kernel share.
pub mod announced;
pub mod swapped;

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{
    Address, Backing, HostThp, Hva, HvaRange, PAGE_SIZE, PMD_SIZE, PageCounts, PageScanner, Region, ZramSwap,
    drain_lru,
};

use crate::needs::Need;

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

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// The host's switches that a backing needs on, for one test.
pub fn allow(backing: Backing) -> Vec<SysfsSwitch> {
    match switches(backing) {
        Ok(switches) => switches,
        Err(why) => harness::could_not_run(Need::Has(backing), why),
    }
}

/// What the largest region of a test has.
const LARGEST: u64 = 16 * PMD_SIZE;

/// The same, or why they cannot be had.
pub fn switches(backing: Backing) -> Result<Vec<SysfsSwitch>, String> {
    let missing = || backing.unavailable(LARGEST, &HostThp::read());
    let Some(why) = missing() else { return Ok(Vec::new()) };
    let settings = why.remedy.settings().iter();
    let switches = settings
        .map(|setting| SysfsSwitch::set(&setting.knob.path(), &setting.text()))
        .collect::<Result<Vec<_>, _>>()?;
    match missing() {
        Some(why) => Err(why.to_string()),
        None => Ok(switches),
    }
}

/// Keeps khugepaged away for one test: it collapses memory behind a plan's back.
pub fn without_khugepaged() -> SysfsSwitch {
    let switch = SysfsSwitch::set(&format!("{THP}/khugepaged/scan_sleep_millisecs"), "600000").unwrap();
    // Writing the switch wakes it for a last round.
    std::thread::sleep(std::time::Duration::from_millis(50));
    switch
}

/// Those that can be paged out.
pub fn swappable() -> impl Iterator<Item = Backing> {
    backings().into_iter().filter(|backing| *backing != Backing::Hugetlb2m)
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
    pub fn set(path: &str, value: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        // Most switches show all choices with the current one in brackets; plain numbers show themselves.
        let before = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let before = before.unwrap_or(text.trim()).to_owned();
        std::fs::write(path, value).map_err(|error| format!("writing {path}: {error}; run as root"))?;
        Ok(Self { path: path.to_owned(), before })
    }
}

impl Drop for SysfsSwitch {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).unwrap();
    }
}
