//! Who else takes memory on this host: whatever reclaims, merges, moves or collapses pages on its own makes
//! invalidations that are strangers to an experiment.

use super::facts::HostFacts;
use super::reclaimers::what_it_does;

/// Below this share of free memory kswapd is likely to be at work.
const LOW_MEMORY_PERCENT: u64 = 10;

impl HostFacts {
    /// What on this host will disturb a measurement, with what would change it. `ours` is the swap device the run made for
    /// itself, if it made one.
    pub fn warnings(&self, ours: Option<&str>) -> Vec<String> {
        warnings_of(self, ours)
    }
}

fn warnings_of(host: &HostFacts, ours: Option<&str>) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(page_movers(host));
    warnings.extend(host.reclaimers.iter().filter_map(|one| {
        let deed = what_it_does(&one.name)?;
        Some(format!("{} (pid {}) {deed}: stop it for the measurement", one.name, one.pid))
    }));
    warnings.extend(swap_warnings(host, ours));
    warnings.extend(memory_warning(host));
    warnings
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

    /// A server with everything on that can be on.
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
    fn each_stranger_is_named_with_its_cure() {
        let warnings = warnings_of(&busy(), None);
        let cures = [
            "ksm/run",
            "transparent_hugepage/enabled",
            "numa_balancing=0",
            "demotion_enabled",
            "kdamond.0 (pid 77)",
            "zswap/parameters",
            "--zram",
            "free some memory",
        ];
        for cure in cures {
            assert!(warnings.iter().any(|warning| warning.contains(cure)), "{cure}: {warnings:?}");
        }
        assert_eq!(warnings.len(), cures.len());
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
        assert_eq!(warnings_of(&quiet, None), Vec::<String>::new());
        assert_eq!(warnings_of(&quiet, Some("/dev/zram1")), Vec::<String>::new());
    }

    #[test]
    fn another_swap_device_disturbs_only_if_it_is_filled_first() {
        let host = |other: i32| HostFacts {
            swaps: vec![swap("/dev/zram1", 100), swap("/dev/zram0", other)],
            ..HostFacts::default()
        };
        assert_eq!(warnings_of(&host(-2), Some("/dev/zram1")), Vec::<String>::new());
        assert!(warnings_of(&host(100), Some("/dev/zram1"))[0].contains("swapoff /dev/zram0"));
        assert!(warnings_of(&host(200), Some("/dev/zram1"))[0].contains("priority 200"));
    }
}
