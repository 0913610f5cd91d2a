//! The needs of these tests.

use guest_mem::{Backing, HugetlbPool, PMD_SIZE, PageScanner, Region, ScanMethod, SwapInfo, drain_lru};
use uffd::{Faults, Features, OpenError, Userfault};

use crate::announced::Announcements;
use crate::cgroup::OwnCgroup;
use crate::host::{SysfsSwitch, alone, switches};
use crate::zram::ZramSwap;

/// A feature of the host that a test needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A swap device of its own: root, and zram.
    Swap,
    /// No swap at all.
    NoSwap,
    /// The kernel's tracepoint of its announcements.
    Announcements,
    /// The order of each page's folio, which only root may read.
    FolioOrders,
    /// PAGEMAP_SCAN.
    PagemapScan,
    /// A memory cgroup of its own.
    Cgroup,
    /// Memory of this backing, by a switch that root sets if it is off.
    Has(Backing),
    /// A kernel with 2 MiB hugetlb pages, also if the pool is empty.
    HugetlbPool,
    /// A userfaultfd for all faults.
    Userfault,
    /// One with these features.
    Feature(Features),
    /// One for user mode's faults.
    UserModeUserfault,
    /// Mounts that only this process sees.
    OwnMounts,
    /// A limit of mappings that a test can reach.
    FewMappings,
    /// MADV_COLLAPSE, which flushes every CPU's batch of pages.
    Collapse,
    /// The system call that a thread is in, as /proc shows it.
    SystemCalls,
}

impl harness::Need for Need {
    fn missing(self) -> Option<String> {
        let why = |error: &dyn std::fmt::Display| error.to_string();
        match self {
            Self::Swap => ZramSwap::create(PMD_SIZE, None).err(),
            Self::NoSwap => {
                (!SwapInfo::read().areas.is_empty()).then(|| "this host has swap: `swapoff -a`".to_owned())
            }
            Self::Announcements => Announcements::listen().err(),
            Self::FolioOrders => {
                let known = PageScanner::new().is_ok_and(|scanner| scanner.knows_folios());
                (!known).then(|| "the order of a page's folio is root's to read".to_owned())
            }
            Self::PagemapScan => PageScanner::with_method(ScanMethod::Scan).err().map(|error| why(&error)),
            Self::Cgroup => {
                let name = format!("guest-mem-probe-{}", std::process::id());
                OwnCgroup::enter(&name).err()
            }
            Self::Has(backing) => has(backing).err(),
            Self::HugetlbPool => {
                HugetlbPool::read().is_none().then(|| "this kernel has no hugetlb pages of 2 MiB".to_owned())
            }
            Self::Userfault => userfault(Features::empty()),
            Self::Feature(features) => userfault(features),
            Self::UserModeUserfault => {
                Userfault::open_for(Faults::UserMode, Features::empty()).err().map(|error| why(&error))
            }
            Self::OwnMounts => {
                own_mounts().err().map(|error| format!("a tmpfs of one's own: {error}; run as root"))
            }
            Self::FewMappings => {
                let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
                let few = limit.trim().parse().is_ok_and(|limit: u64| limit <= 1 << 20);
                (!few).then(|| "vm.max_map_count is huge: `sysctl vm.max_map_count=65530`".to_owned())
            }
            Self::Collapse => drain_lru()
                .err()
                .map(|errno| format!("MADV_COLLAPSE: {errno}; it takes Linux 6.1 with huge pages")),
            Self::SystemCalls => {
                let shown = std::fs::read_to_string("/proc/thread-self/syscall").is_ok();
                (!shown).then(|| "this kernel shows no thread's system call".to_owned())
            }
        }
    }

    fn may_run_out(self) -> bool {
        matches!(self, Self::Has(backing) if !matches!(backing, Backing::Base4k | Backing::Memfd))
    }
}

/// The host's switches that a backing needs on, for one test.
pub fn allow(backing: Backing) -> Vec<SysfsSwitch> {
    match switches(backing) {
        Ok(switches) => switches,
        Err(why) => harness::could_not_run(Need::Has(backing), why),
    }
}

/// A failed handshake is not a missing need: the tests are to find it.
fn userfault(features: Features) -> Option<String> {
    match Userfault::open(features) {
        Ok(_) | Err(OpenError::Handshake { .. }) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn has(backing: Backing) -> Result<(), String> {
    let _alone = alone();
    let _switches = switches(backing)?;
    let region = Region::map(PMD_SIZE, backing).map_err(|error| error.to_string())?;
    region.populate(region.range()).map_err(|error| error.to_string())
}

fn own_mounts() -> std::io::Result<()> {
    // In a thread that ends with what it did.
    let unshare = || {
        // SAFETY: no memory is passed; no other thread shares the view that this one changes.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    std::thread::spawn(unshare).join().expect("it makes one system call")
}
