//! Sources of invalidations on this host that do not belong to an experiment: reclaim, merging, migration and collapse by
//! the kernel or by other processes.

use super::facts::HostFacts;
use super::reclaimers::what_it_does;

/// Below this share of available memory kswapd probably reclaims.
const LOW_MEMORY_PERCENT: u64 = 10;

impl HostFacts {
    /// What disturbs a measurement on this host, each with its remedy. `ours` is the run's own swap device, if it has one.
    pub fn warnings(&self, ours: Option<&str>) -> Vec<String> {
        let mut warnings = page_movers(self);
        warnings.extend(self.reclaimers.iter().filter_map(|one| {
            let effect = what_it_does(&one.name)?;
            Some(format!("{} (pid {}) {effect}: stop it for the measurement", one.name, one.pid))
        }));
        warnings.extend(swap_warnings(self, ours));
        warnings.extend(memory_warning(self));
        warnings
    }
}

fn page_movers(host: &HostFacts) -> Vec<String> {
    let always = host.thp.enabled.as_deref() == Some("always");
    let scans = host.khugepaged.pages_to_scan.is_some_and(|pages| pages > 0);
    let mut warnings = Vec::new();
    if host.ksm_running == Some(true) {
        warnings.push(
            "ksmd merges pages and announces a range for each: `echo 0 > /sys/kernel/mm/ksm/run`".to_owned(),
        );
    }
    if always && scans {
        let pause = host.khugepaged.scan_sleep_ms.map_or(String::new(), |ms| format!(" every {ms} ms"));
        warnings.push(format!(
            "khugepaged collapses any process's pages{pause} because THP is \"always\": \
             `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"
        ));
    }
    if host.numa_balancing.is_some_and(|mode| mode != 0) {
        warnings.push(
            "NUMA balancing unmaps pages to sample accesses: `sysctl kernel.numa_balancing=0`".to_owned(),
        );
    }
    if host.numa_demotion == Some(true) {
        warnings.push(
            "reclaim demotes pages to a slower node before it swaps them: \
             `echo false > /sys/kernel/mm/numa/demotion_enabled`"
                .to_owned(),
        );
    }
    warnings
}

fn swap_warnings(host: &HostFacts, ours: Option<&str>) -> Vec<String> {
    let mut warnings = Vec::new();
    if host.zswap == Some(true) {
        warnings.push(
            "zswap takes pages before the swap device sees them: \
             `echo N > /sys/module/zswap/parameters/enabled`"
                .to_owned(),
        );
    }
    let our_priority =
        ours.and_then(|ours| host.swaps.iter().find(|swap| swap.path == ours)).map(|swap| swap.priority);
    for swap in host.swaps.iter().filter(|swap| Some(swap.path.as_str()) != ours) {
        match our_priority {
            Some(priority) if swap.priority >= priority => warnings.push(format!(
                "swap device {} (priority {}) takes pages before or beside ours (priority {priority}): \
                 `swapoff {}`",
                swap.path, swap.priority, swap.path
            )),
            None if !swap.is_zram() => warnings.push(format!(
                "swap device {} is a disk, its latency is part of every refault: use `--zram SIZE`",
                swap.path
            )),
            _ => {}
        }
    }
    warnings
}

fn memory_warning(host: &HostFacts) -> Option<String> {
    let (total, available) = (host.memory_bytes?, host.available_bytes?);
    let short = available < total / 100 * LOW_MEMORY_PERCENT;
    short.then(|| {
        format!(
            "only {} MiB of {} MiB are available, kswapd is likely to reclaim on its own: free some memory",
            available >> 20,
            total >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{KhugepagedFacts, ThpFacts};
    use crate::reclaimers::Reclaimer;
    use crate::swaps::SwapDevice;

    fn swap(path: &str, priority: i32) -> SwapDevice {
        SwapDevice { path: path.to_owned(), bytes: 1 << 30, used_bytes: 0, priority }
    }

    /// A server on which every source is active.
    fn busy() -> HostFacts {
        HostFacts {
            ksm_running: Some(true),
            numa_balancing: Some(1),
            numa_demotion: Some(true),
            zswap: Some(true),
            thp: ThpFacts { enabled: Some("always".to_owned()), ..ThpFacts::default() },
            khugepaged: KhugepagedFacts {
                pages_to_scan: Some(4096),
                scan_sleep_ms: Some(10_000),
                ..KhugepagedFacts::default()
            },
            reclaimers: vec![Reclaimer { name: "kdamond.0".to_owned(), pid: 77 }],
            swaps: vec![swap("/dev/sda2", -2)],
            memory_bytes: Some(100 << 30),
            available_bytes: Some(1 << 30),
            ..HostFacts::default()
        }
    }

    #[test]
    fn each_source_is_named_with_its_remedy() {
        let warnings = busy().warnings(None);
        let remedies = [
            "ksm/run",
            "transparent_hugepage/enabled",
            "numa_balancing=0",
            "demotion_enabled",
            "kdamond.0 (pid 77)",
            "zswap/parameters",
            "--zram",
            "free some memory",
        ];
        for remedy in remedies {
            assert!(warnings.iter().any(|warning| warning.contains(remedy)), "{remedy}: {warnings:?}");
        }
        assert_eq!(warnings.len(), remedies.len());
    }

    #[test]
    fn a_quiet_host_gets_no_warning() {
        let quiet = HostFacts {
            ksm_running: Some(false),
            numa_balancing: Some(0),
            thp: ThpFacts { enabled: Some("madvise".to_owned()), ..ThpFacts::default() },
            khugepaged: KhugepagedFacts { pages_to_scan: Some(4096), ..KhugepagedFacts::default() },
            swaps: vec![swap("/dev/zram1", 100)],
            memory_bytes: Some(8 << 30),
            available_bytes: Some(7 << 30),
            ..HostFacts::default()
        };
        assert_eq!(quiet.warnings(None), Vec::<String>::new());
        assert_eq!(quiet.warnings(Some("/dev/zram1")), Vec::<String>::new());
    }

    #[test]
    fn another_swap_device_disturbs_only_if_it_is_filled_first() {
        let host = |other: i32| HostFacts {
            swaps: vec![swap("/dev/zram1", 100), swap("/dev/zram0", other)],
            ..HostFacts::default()
        };
        assert_eq!(host(-2).warnings(Some("/dev/zram1")), Vec::<String>::new());
        assert!(host(100).warnings(Some("/dev/zram1"))[0].contains("swapoff /dev/zram0"));
        assert!(host(200).warnings(Some("/dev/zram1"))[0].contains("priority 200"));
    }
}
