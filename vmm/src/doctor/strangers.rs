//! The parts of this host that reclaim memory on their own.

use super::finding::Finding;
use host::HostFacts;

const SUBJECT: &str = "quiet host";

pub(super) fn judge(host: &HostFacts) -> Vec<Finding> {
    let warnings = host.warnings(None);
    if warnings.is_empty() {
        return vec![Finding::can(SUBJECT, "nothing seen that reclaims, merges or moves pages on its own")];
    }
    warnings.into_iter().map(|warning| as_finding(&warning)).collect()
}

/// A warning is "what it does: what to do".
fn as_finding(warning: &str) -> Finding {
    match warning.rsplit_once(": ") {
        Some((what, remedy)) => Finding::limited(SUBJECT, what).remedy(remedy),
        None => Finding::limited(SUBJECT, warning),
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let swap =
        |path: &str| host::swaps::SwapDevice { path: path.to_owned(), bytes: 1, used_bytes: 0, priority: 0 };
    let host = HostFacts {
        ksm_running: Some(true),
        numa_balancing: Some(1),
        numa_demotion: Some(true),
        zswap: Some(true),
        swaps: vec![swap("/dev/sda2")],
        memory_bytes: Some(100 << 30),
        available_bytes: Some(1 << 30),
        ..HostFacts::default()
    };
    judge(&host)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_quiet_host_can() {
        assert_eq!(judge(&HostFacts::default())[0].verdict, Verdict::Can);
    }

    #[test]
    fn each_stranger_limits_and_names_its_cure() {
        let host = HostFacts { ksm_running: Some(true), numa_balancing: Some(1), ..HostFacts::default() };
        let findings = judge(&host);
        assert_eq!(findings.len(), 2);
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Limited));
        assert_eq!(findings[0].remedy.as_deref(), Some("`echo 0 > /sys/kernel/mm/ksm/run`"));
    }
}
