//! The facts of a host that bear on a measurement: the `host` part of a run record.
//!
//! All of them are read once. A fact that cannot be read is `None`, which is null in JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::reclaimers::Reclaimer;
use super::root::Root;
use super::swaps::{SwapDevice, parse_swaps};
use crate::kvm_module::KvmFacts;

/// The facts of a host at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// The processor's name.
    pub cpu: Option<String>,
    /// Cores this process may run on.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that are free or easily freed.
    pub available_bytes: Option<u64>,
    /// KVM's module and MMU.
    pub kvm: KvmFacts,
    /// The huge-page switches.
    pub thp: ThpFacts,
    /// khugepaged's settings.
    pub khugepaged: KhugepagedFacts,
    /// The swap devices in use.
    pub swaps: Vec<SwapDevice>,
    /// `vm.page-cluster`: swap reads ahead 2^this pages.
    pub page_cluster: Option<u32>,
    /// `vm.swappiness`.
    pub swappiness: Option<u32>,
    /// Whether pages go to zswap before they go to a swap device.
    pub zswap: Option<bool>,
    /// The version of the memory controller's cgroup hierarchy.
    pub memory_cgroup: Option<CgroupVersion>,
    /// The multi-generational LRU's switch mask (`0x0007`); `None` if the kernel was built without it.
    pub lru_gen: Option<String>,
    /// Whether ksmd merges pages.
    pub ksm_running: Option<bool>,
    /// `kernel.numa_balancing`: 1 samples accesses by unmapping, 2 also promotes.
    pub numa_balancing: Option<u32>,
    /// Whether reclaim moves pages to a slower node first.
    pub numa_demotion: Option<bool>,
    /// Daemons and threads that take memory from processes.
    pub reclaimers: Vec<Reclaimer>,
}

/// The huge-page switches: their bracketed words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThpFacts {
    /// `transparent_hugepage/enabled`.
    pub enabled: Option<String>,
    /// `transparent_hugepage/defrag`.
    pub defrag: Option<String>,
    /// `transparent_hugepage/shmem_enabled`.
    pub shmem_enabled: Option<String>,
    /// The switches of each size, by the size in KiB. Empty before Linux 6.8.
    pub sizes: BTreeMap<u64, ThpSize>,
}

/// The switches of one folio size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThpSize {
    /// For anonymous memory.
    pub enabled: Option<String>,
    /// For shared memory.
    pub shmem_enabled: Option<String>,
}

/// khugepaged, which collapses small pages into huge ones in the background.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KhugepagedFacts {
    /// Pages scanned in one pass.
    pub pages_to_scan: Option<u64>,
    /// Milliseconds between two passes.
    pub scan_sleep_ms: Option<u64>,
    /// Pages that may be missing where it collapses.
    pub max_ptes_none: Option<u64>,
    /// Pages that may be in swap where it collapses.
    pub max_ptes_swap: Option<u64>,
}

/// The version of a cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CgroupVersion {
    /// Version 1, without `memory.reclaim`.
    #[serde(rename = "v1")]
    V1,
    /// Version 2, the unified hierarchy.
    #[serde(rename = "v2")]
    V2,
}

impl HostFacts {
    /// Reads this host.
    pub fn read() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cores, ..Self::read_from(&Root::default()) }
    }

    /// Reads the files of a host. The number of cores that this process may use is not in them: `cores` is 0.
    pub fn read_from(root: &Root) -> Self {
        let meminfo = root.text("/proc/meminfo").unwrap_or_default();
        Self {
            kernel: root.text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cores: 0,
            cpu: root.text("/proc/cpuinfo").as_deref().and_then(parse_cpu_model),
            memory_bytes: parse_meminfo(&meminfo, "MemTotal"),
            available_bytes: parse_meminfo(&meminfo, "MemAvailable"),
            kvm: KvmFacts::read_from(root),
            thp: ThpFacts::read_from(root),
            khugepaged: KhugepagedFacts::read_from(root),
            swaps: root.text("/proc/swaps").as_deref().map(parse_swaps).unwrap_or_default(),
            page_cluster: root.number("/proc/sys/vm/page-cluster"),
            swappiness: root.number("/proc/sys/vm/swappiness"),
            zswap: root.flag("/sys/module/zswap/parameters/enabled"),
            memory_cgroup: root.text("/proc/self/mountinfo").as_deref().and_then(|mounts| {
                parse_memory_cgroup(mounts, root.text("/proc/cgroups").as_deref().unwrap_or_default())
            }),
            lru_gen: root.text("/sys/kernel/mm/lru_gen/enabled"),
            // 2 stands for stopped with all pages unmerged.
            ksm_running: root.number::<u32>("/sys/kernel/mm/ksm/run").map(|run| run == 1),
            numa_balancing: root.number("/proc/sys/kernel/numa_balancing"),
            numa_demotion: root.flag("/sys/kernel/mm/numa/demotion_enabled"),
            reclaimers: Reclaimer::find(root),
        }
    }
}

/// The limit on a guest's memory: the host's memory and swap. `None` if it cannot be read.
pub fn memory_and_swap(root: &Root) -> Option<u64> {
    let meminfo = root.text("/proc/meminfo")?;
    let swap = parse_meminfo(&meminfo, "SwapTotal").unwrap_or(0);
    parse_meminfo(&meminfo, "MemTotal")?.checked_add(swap)
}

impl ThpFacts {
    fn read_from(root: &Root) -> Self {
        const DIR: &str = "/sys/kernel/mm/transparent_hugepage";
        let choice = |name: &str| root.choice(&format!("{DIR}/{name}"));
        let size = |name: &String| {
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let size = ThpSize {
                enabled: choice(&format!("{name}/enabled")),
                shmem_enabled: choice(&format!("{name}/shmem_enabled")),
            };
            Some((kib, size))
        };
        Self {
            enabled: choice("enabled"),
            defrag: choice("defrag"),
            shmem_enabled: choice("shmem_enabled"),
            sizes: root.names(DIR).iter().filter_map(size).collect(),
        }
    }
}

impl KhugepagedFacts {
    fn read_from(root: &Root) -> Self {
        let number =
            |name: &str| root.number(&format!("/sys/kernel/mm/transparent_hugepage/khugepaged/{name}"));
        Self {
            pages_to_scan: number("pages_to_scan"),
            scan_sleep_ms: number("scan_sleep_millisecs"),
            max_ptes_none: number("max_ptes_none"),
            max_ptes_swap: number("max_ptes_swap"),
        }
    }
}

/// The first processor's `model name`.
fn parse_cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A line of `/proc/meminfo`, in bytes.
pub(crate) fn parse_meminfo(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The hierarchy with the memory controller: v1 if a v1 hierarchy is mounted with it, v2 if the unified one is mounted and
/// the controller is in hierarchy 0. A host can have both mounted; one of them has the controller.
pub(crate) fn parse_memory_cgroup(mountinfo: &str, cgroups: &str) -> Option<CgroupVersion> {
    let mounted = |wanted: &str, option: Option<&str>| {
        mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(_, end)| {
            let mut words = end.split(' ');
            let kind = words.next();
            let options = words.nth(1).unwrap_or_default();
            kind == Some(wanted) && option.is_none_or(|option| options.split(',').any(|one| one == option))
        })
    };
    if mounted("cgroup", Some("memory")) {
        return Some(CgroupVersion::V1);
    }
    // `memory <hierarchy> <cgroups> <enabled>`; a kernel without v1 may have no such file.
    let memory = cgroups.lines().find(|line| line.starts_with("memory\t") || line.starts_with("memory "));
    let disabled = memory.is_some_and(|line| line.split_whitespace().nth(3) == Some("0"));
    (mounted("cgroup2", None) && !disabled).then_some(CgroupVersion::V2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes files of a host into a directory.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = Root::at(dir.path());
        (dir, root)
    }

    #[test]
    fn all_facts_of_a_host_are_read() {
        let (_dir, root) = tree(&[
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu\n"),
            ("proc/meminfo", "MemTotal:       24684516 kB\nMemFree: 1 kB\nMemAvailable:   24000000 kB\n"),
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition\t262140\t4\t100\n"),
            ("proc/sys/vm/page-cluster", "3\n"),
            ("sys/module/kvm_pvm/parameters/stats", "N\n"),
            ("sys/module/kvm/parameters/tdp_mmu", "N\n"),
            ("sys/kernel/mm/ksm/run", "0\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled", "always inherit madvise [never]\n"),
            ("sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "4096\n"),
        ]);
        let facts = HostFacts::read_from(&root);
        assert_eq!(facts.cpu.as_deref(), Some("AMD EPYC"));
        assert_eq!(facts.memory_bytes, Some(24_684_516 * 1024));
        assert_eq!(facts.swaps[0].priority, 100);
        assert_eq!(facts.thp.enabled.as_deref(), Some("madvise"));
        assert_eq!(facts.thp.sizes[&64].enabled.as_deref(), Some("never"));
        assert_eq!(facts.khugepaged.pages_to_scan, Some(4096));
        assert_eq!((facts.page_cluster, facts.ksm_running), (Some(3), Some(false)));
        let json = serde_json::to_value(&facts).unwrap();
        assert_eq!(json["kvm"]["mmu"], "shadow (pvm)");
        assert!(json["lru_gen"].is_null(), "a missing file is null");
    }

    #[test]
    fn memory_includes_swap() {
        let (_dir, root) = tree(&[("proc/meminfo", "MemTotal: 24 kB\nSwapCached: 1 kB\nSwapTotal: 8 kB\n")]);
        assert_eq!(memory_and_swap(&root), Some(32 * 1024));
        let (_dir, root) = tree(&[("proc/meminfo", "MemTotal: 24 kB\n")]);
        assert_eq!(memory_and_swap(&root), Some(24 * 1024));
    }

    #[test]
    fn a_host_without_files_has_no_facts() {
        let (_dir, root) = tree(&[]);
        assert_eq!(memory_and_swap(&root), None);
        let facts = HostFacts::read_from(&root);
        assert_eq!(facts, HostFacts::default());
        assert_eq!(facts.warnings(None), Vec::<String>::new());
    }

    #[test]
    fn this_host_is_read() {
        let facts = HostFacts::read();
        assert!(facts.cores > 0 && !facts.kernel.is_empty());
        assert!(facts.memory_bytes.is_some_and(|bytes| bytes > 0));
    }

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
    const V2: &str = "31 25 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_memory_controller_is_in_one_hierarchy() {
        assert_eq!(parse_memory_cgroup(&[V1, V2].concat(), ""), Some(CgroupVersion::V1));
        assert_eq!(parse_memory_cgroup(V2, "memory\t0\t99\t1\n"), Some(CgroupVersion::V2));
        assert_eq!(parse_memory_cgroup(V2, ""), Some(CgroupVersion::V2));
    }

    #[test]
    fn a_controller_that_is_off_is_in_no_hierarchy() {
        assert_eq!(parse_memory_cgroup(V2, "memory\t0\t1\t0\n"), None, "cgroup_disable=memory");
        assert_eq!(parse_memory_cgroup(&V1.replace("memory", "cpuset"), ""), None);
    }

    #[test]
    fn meminfo_is_in_kib() {
        assert_eq!(parse_meminfo("MemTotal: 2 kB\n", "MemTotal"), Some(2048));
        assert_eq!(parse_meminfo("MemTotal: 2 kB\n", "Mem"), None);
        assert_eq!(parse_meminfo("HugePages_Total: 2\n", "HugePages_Total"), None);
    }
}
