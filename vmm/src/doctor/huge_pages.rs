//! Which backings a guest's memory can have here: THP, the single mTHP sizes, shared memory, hugetlb.

use std::collections::BTreeMap;

use super::finding::Finding;
use crate::host::facts::{ThpFacts, ThpSize};
use crate::host::{HostFacts, Root};

const DIR: &str = "/sys/kernel/mm/transparent_hugepage";
/// Of 2 MiB: below this no useful guest fits.
const USEFUL_POOL: u64 = 32;

/// What the host says about huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HugePages {
    thp: ThpFacts,
    /// Total and free pages of 2 MiB; `None` without hugetlb.
    pool_2m: Option<(u64, u64)>,
}

pub(super) fn probe(host: &HostFacts) -> HugePages {
    let root = Root::default();
    let pool = |name: &str| root.number(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
    let pool_2m = pool("nr_hugepages").zip(pool("free_hugepages"));
    HugePages { thp: host.thp.clone(), pool_2m }
}

pub(super) fn judge(pages: &HugePages) -> Vec<Finding> {
    let global = pages.thp.enabled.as_deref();
    let mut findings = vec![judge_thp(global, pages.thp.sizes.get(&2048))];
    findings.extend(judge_mthp(global, &pages.thp.sizes));
    findings.push(judge_shmem(&pages.thp));
    findings.push(judge_hugetlb(pages.pool_2m));
    findings
}

/// The switch that decides for one size, with `inherit` resolved.
fn effective<'a>(global: Option<&'a str>, own: Option<&'a str>) -> &'a str {
    match own {
        Some("inherit") | None => global.unwrap_or("never"),
        Some(own) => own,
    }
}

fn judge_thp(global: Option<&str>, own: Option<&ThpSize>) -> Finding {
    const SUBJECT: &str = "backing thp (2 MiB)";
    let Some(word) = global else {
        return Finding::cannot(SUBJECT, "this kernel has no transparent huge pages")
            .remedy("a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
    };
    let size_word = own.and_then(|own| own.enabled.as_deref());
    match effective(global, size_word) {
        "never" => {
            // The size's own switch, where it has one that is not "inherit", overrides the global one.
            let file = match size_word {
                Some("never") => "hugepages-2048kB/enabled",
                _ => "enabled",
            };
            Finding::cannot(SUBJECT, format!("{file} is \"never\""))
                .remedy(format!("echo madvise > {DIR}/{file}"))
        }
        effective => Finding::can(SUBJECT, format!("\"{effective}\" (global switch: \"{word}\")")),
    }
}

/// One line for the sizes that are on, one for those that are off.
fn judge_mthp(global: Option<&str>, sizes: &BTreeMap<u64, ThpSize>) -> Vec<Finding> {
    const SUBJECT: &str = "backing mthp";
    if sizes.is_empty() {
        return vec![
            Finding::cannot(SUBJECT, "this kernel has no folio sizes between 4 KiB and 2 MiB")
                .remedy("a host kernel of 6.8 or later"),
        ];
    }
    let switch = |size: &ThpSize| effective(global, size.enabled.as_deref()).to_owned();
    // Without a switch of its own a size is for shared memory alone, as 8 KiB is.
    let small = || sizes.iter().filter(|(kib, size)| **kib < 2048 && size.enabled.is_some());
    let on: Vec<_> = small()
        .filter(|(_, size)| switch(size) != "never")
        .map(|(kib, size)| format!("{} \"{}\"", size_name(*kib), switch(size)))
        .collect();
    let off: Vec<_> = small().filter(|(_, size)| switch(size) == "never").map(|(kib, _)| *kib).collect();
    let mut findings = Vec::new();
    if !on.is_empty() {
        findings.push(Finding::can(SUBJECT, on.join(", ")));
    }
    if !off.is_empty() {
        let names: Vec<_> = off.iter().map(|kib| size_name(*kib)).collect();
        findings.push(Finding::cannot(SUBJECT, format!("off: {}", names.join(", "))).remedy(switch_on(&off)));
    }
    findings
}

fn switch_on(sizes: &[u64]) -> String {
    let list = sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    // The shell takes braces around one word literally.
    let list = if sizes.len() > 1 { format!("{{{list}}}") } else { list };
    format!("echo madvise | tee {DIR}/hugepages-{list}kB/enabled")
}

fn size_name(kib: u64) -> String {
    if kib >= 1024 { format!("{}m", kib / 1024) } else { format!("{kib}k") }
}

fn judge_shmem(thp: &ThpFacts) -> Finding {
    const SUBJECT: &str = "backing memfd:thp";
    let own = thp.sizes.get(&2048).and_then(|size| size.shmem_enabled.as_deref());
    match (thp.shmem_enabled.as_deref(), own) {
        (None, _) => Finding::cannot(SUBJECT, "this kernel has no huge pages in shared memory")
            .remedy("a kernel with CONFIG_TRANSPARENT_HUGEPAGE and CONFIG_SHMEM"),
        (Some("deny"), _) => Finding::cannot(SUBJECT, "shmem_enabled is \"deny\"")
            .remedy(format!("echo advise > {DIR}/shmem_enabled")),
        (Some("force"), _) => Finding::can(SUBJECT, "shmem_enabled is \"force\""),
        (Some(global), own) => match effective(Some(global), own) {
            "never" if matches!(own, Some("never")) && global != "never" => {
                Finding::cannot(SUBJECT, "hugepages-2048kB/shmem_enabled is \"never\"")
                    .remedy(format!("echo inherit > {DIR}/hugepages-2048kB/shmem_enabled"))
            }
            "never" => Finding::cannot(SUBJECT, "shmem_enabled is \"never\"")
                .remedy(format!("echo advise > {DIR}/shmem_enabled")),
            word => Finding::can(SUBJECT, format!("\"{word}\"")),
        },
    }
}

fn judge_hugetlb(pool: Option<(u64, u64)>) -> Finding {
    const SUBJECT: &str = "backing hugetlb:2m";
    const REMEDY: &str = "echo 128 > /proc/sys/vm/nr_hugepages (256 MiB)";
    match pool {
        None => {
            Finding::cannot(SUBJECT, "this kernel has no hugetlb").remedy("a kernel with CONFIG_HUGETLBFS")
        }
        Some((0, _)) => Finding::cannot(SUBJECT, "the pool is empty").remedy(REMEDY),
        Some((total, free)) if free < USEFUL_POOL => {
            Finding::limited(SUBJECT, format!("only {free} of {total} pages are free")).remedy(REMEDY)
        }
        Some((total, free)) => Finding::can(SUBJECT, format!("{free} of {total} pages are free")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn size(word: &str) -> ThpSize {
        ThpSize { enabled: Some(word.to_owned()), shmem_enabled: Some(word.to_owned()) }
    }

    fn thp(global: &str, shmem: &str, sizes: &[(u64, &str)]) -> ThpFacts {
        ThpFacts {
            enabled: Some(global.to_owned()),
            defrag: None,
            shmem_enabled: Some(shmem.to_owned()),
            sizes: sizes.iter().map(|(kib, word)| (*kib, size(word))).collect(),
        }
    }

    fn find<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.subject.contains(subject)).unwrap()
    }

    #[test]
    fn a_debian_host_has_thp_and_no_mthp() {
        let thp = thp("madvise", "never", &[(64, "never"), (1024, "never"), (2048, "inherit")]);
        let shared_only = ThpSize { enabled: None, shmem_enabled: Some("never".to_owned()) };
        let mut thp = thp;
        thp.sizes.insert(8, shared_only);
        let findings = judge(&HugePages { thp, pool_2m: Some((0, 0)) });
        assert_eq!(find(&findings, "backing thp").verdict, Verdict::Can);
        assert!(!findings.iter().any(|finding| finding.detail.contains("8k")), "{findings:?}");
        assert!(find(&findings, "mthp").detail.contains("64k, 1m"), "{findings:?}");
        let remedy = find(&findings, "mthp").remedy.as_deref().unwrap();
        assert!(remedy.ends_with("hugepages-{64,1024}kB/enabled"), "{remedy}");
        assert!(switch_on(&[64]).ends_with("hugepages-64kB/enabled"));
        assert_eq!(find(&findings, "memfd:thp").verdict, Verdict::Cannot);
        assert!(find(&findings, "hugetlb").remedy.is_some());
    }

    #[test]
    fn a_size_of_its_own_mind_overrides_the_global_switch() {
        let thp = thp("madvise", "advise", &[(64, "madvise"), (2048, "never")]);
        let findings = judge(&HugePages { thp, pool_2m: Some((64, 64)) });
        let huge = find(&findings, "backing thp");
        assert_eq!(huge.verdict, Verdict::Cannot);
        assert!(huge.remedy.as_deref().unwrap().ends_with("hugepages-2048kB/enabled"));
        assert_eq!(find(&findings, "mthp").detail, "64k \"madvise\"");
        assert!(find(&findings, "memfd:thp").remedy.as_deref().unwrap().contains("hugepages-2048kB"));
        assert_eq!(find(&findings, "hugetlb").verdict, Verdict::Can);
    }

    #[test]
    fn a_kernel_without_any_says_so() {
        let findings = judge(&HugePages::default());
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Cannot), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.remedy.is_some()));
    }

    #[test]
    fn an_old_kernel_has_only_the_global_switch() {
        let thp = thp("always", "within_size", &[]);
        let findings = judge(&HugePages { thp, pool_2m: Some((512, 3)) });
        assert_eq!(find(&findings, "backing thp").verdict, Verdict::Can);
        assert!(find(&findings, "mthp").remedy.as_deref().unwrap().contains("6.8"));
        assert_eq!(find(&findings, "memfd:thp").verdict, Verdict::Can);
        assert_eq!(find(&findings, "hugetlb").verdict, Verdict::Limited);
    }
}
