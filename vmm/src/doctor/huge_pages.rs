//! Which backings a guest's memory can have here: THP, the single mTHP sizes, shared memory, hugetlb. What stands in the
//! way, and what removes it, is [`guest_mem`]'s to say.

use guest_mem::{Backing, HostThp, Order, ShmemSwitch, Switch, Unavailable};

use super::finding::{Finding, Verdict};
use lab::offer_of_tune;

/// What a guest of a built-in scenario has.
const GUEST: u64 = 256 << 20;

pub(super) fn probe() -> HostThp {
    HostThp::read()
}

pub(super) fn judge(host: &HostThp) -> Vec<Finding> {
    let mut findings = vec![judge_thp(host)];
    findings.extend(judge_mthp(host));
    findings.push(judge_shmem(host));
    findings.push(judge_hugetlb(host));
    findings
}

/// What was found of a backing that cannot be had.
fn cannot(subject: &str, why: Unavailable) -> Finding {
    cannot_of(subject, &why, "")
}

/// The same; `of` says which of several the remedy is for.
fn cannot_of(subject: &str, why: &Unavailable, of: &str) -> Finding {
    let remedy = format!("{}{of}{}", why.remedy, offer_of_tune(why));
    Finding::cannot(subject, why.reason.clone()).remedy(remedy)
}

fn judge_thp(host: &HostThp) -> Finding {
    const SUBJECT: &str = "backing thp (2 MiB)";
    match Backing::Thp.unavailable(GUEST, host) {
        Some(why) => cannot(SUBJECT, why),
        None => {
            let global = host.global.map_or("never", word);
            Finding::can(
                SUBJECT,
                format!("\"{}\" (global switch: \"{global}\")", word(host.anonymous_switch(Order::PMD))),
            )
        }
    }
}

/// One line for the sizes that can be had, one for each of those that cannot.
fn judge_mthp(host: &HostThp) -> Vec<Finding> {
    const SUBJECT: &str = "backing mthp";
    let sizes: Vec<Order> = host.anonymous.keys().copied().filter(|order| *order < Order::PMD).collect();
    if sizes.is_empty() {
        return vec![
            Finding::cannot(SUBJECT, "this kernel has no folio sizes between 4 KiB and 2 MiB")
                .remedy("a host kernel of 6.8 or later"),
        ];
    }
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for order in sizes {
        let Some(backing) = Backing::mthp(order.bytes()) else { continue };
        match backing.unavailable(GUEST, host) {
            None => on.push(format!("{} \"{}\"", size_name(order), word(host.anonymous_switch(order)))),
            Some(why) => off.push((order, why)),
        }
    }
    let mut findings = Vec::new();
    if !on.is_empty() {
        findings.push(Finding::can(SUBJECT, on.join(", ")));
    }
    // One size at a time: of those that are on, the kernel takes the largest.
    if let Some((first, why)) = off.first() {
        let names: Vec<_> = off.iter().map(|(order, _)| size_name(*order)).collect();
        let detail = format!("not to be had: {}", names.join(", "));
        findings.push(Finding { detail, ..cannot_of(SUBJECT, why, &format!(" for {}", size_name(*first))) });
    }
    findings
}

fn size_name(order: Order) -> String {
    let kib = order.bytes() >> 10;
    if kib >= 1024 { format!("{}m", kib / 1024) } else { format!("{kib}k") }
}

fn judge_shmem(host: &HostThp) -> Finding {
    const SUBJECT: &str = "backing memfd:thp";
    match Backing::MemfdThp.unavailable(GUEST, host) {
        Some(why) => cannot(SUBJECT, why),
        None if host.shmem_global == Some(ShmemSwitch::Force) => {
            Finding::can(SUBJECT, "shmem_enabled is \"force\"")
        }
        None => {
            let word = if host.shmem_switch(Order::PMD) == Switch::Always { "always" } else { "advise" };
            Finding::can(SUBJECT, format!("\"{word}\""))
        }
    }
}

fn judge_hugetlb(host: &HostThp) -> Finding {
    const SUBJECT: &str = "backing hugetlb:2m";
    let pool = host.hugetlb_2m.unwrap_or_default();
    match Backing::Hugetlb2m.unavailable(GUEST, host) {
        // Smaller guests fit.
        Some(why) if pool.available() > 0 => {
            let detail = format!("only {} of {} pages are to be had", pool.available(), pool.total);
            Finding { verdict: Verdict::Limited, detail, ..cannot(SUBJECT, why) }
        }
        Some(why) => cannot(SUBJECT, why),
        None => Finding::can(SUBJECT, format!("{} of {} pages are to be had", pool.available(), pool.total)),
    }
}

/// The switch as the kernel spells it.
fn word(switch: Switch) -> &'static str {
    match switch {
        Switch::Always => "always",
        Switch::Madvise => "madvise",
        Switch::Inherit => "inherit",
        Switch::Never => "never",
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    // All sizes off, and all but the smallest on; a kernel with none of it.
    let host = |switches: [Switch; 4]| {
        let orders = [4, 6, 8, 9].into_iter().filter_map(Order::new);
        let sizes: std::collections::BTreeMap<_, _> = orders.zip(switches).collect();
        HostThp {
            global: Some(Switch::Never),
            anonymous: sizes.clone(),
            shmem_global: Some(ShmemSwitch::Deny),
            shmem: sizes,
            ..HostThp::default()
        }
    };
    let on = [Switch::Never, Switch::Always, Switch::Always, Switch::Inherit];
    [host([Switch::Never; 4]), host(on), HostThp::default()].iter().flat_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use guest_mem::HugetlbPool;

    use super::*;

    fn order(kib: u64) -> Order {
        Order::of_bytes(kib << 10).unwrap()
    }

    fn host(global: Switch, shmem: ShmemSwitch, sizes: &[(u64, Switch)], pool: (u64, u64)) -> HostThp {
        let sizes = || sizes.iter().map(|(kib, switch)| (order(*kib), *switch)).collect();
        let (total, free) = pool;
        HostThp {
            global: Some(global),
            anonymous: sizes(),
            shmem_global: Some(shmem),
            shmem: sizes(),
            hugetlb_2m: Some(HugetlbPool { total, free, ..HugetlbPool::default() }),
        }
    }

    fn find<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.subject.contains(subject)).unwrap()
    }

    fn remedy<'a>(findings: &'a [Finding], subject: &str) -> &'a str {
        find(findings, subject).remedy.as_deref().unwrap()
    }

    #[test]
    fn a_debian_host_has_thp_and_no_mthp() {
        let sizes = [(64, Switch::Never), (1024, Switch::Never), (2048, Switch::Inherit)];
        let findings = judge(&host(Switch::Madvise, ShmemSwitch::Never, &sizes, (0, 0)));
        assert_eq!(find(&findings, "backing thp").verdict, Verdict::Can);
        assert!(find(&findings, "mthp").detail.contains("64k, 1m"), "{findings:?}");
        assert!(
            remedy(&findings, "mthp").ends_with("hugepages-64kB/enabled` for 64k, or run with `--tune`"),
            "{findings:?}"
        );
        assert_eq!(find(&findings, "memfd:thp").verdict, Verdict::Cannot);
        assert!(remedy(&findings, "hugetlb").contains("echo 128 > "), "{findings:?}");
        for subject in ["mthp", "memfd:thp", "hugetlb"] {
            assert!(remedy(&findings, subject).starts_with("`echo "), "{findings:?}");
            assert!(!remedy(&findings, subject).contains('{'), "a shell other than bash expands no braces");
            assert!(remedy(&findings, subject).ends_with(", or run with `--tune`"), "{findings:?}");
        }
    }

    #[test]
    fn a_size_of_its_own_mind_overrides_the_global_switch() {
        let sizes = [(64, Switch::Madvise), (2048, Switch::Never)];
        let findings = judge(&host(Switch::Madvise, ShmemSwitch::Advise, &sizes, (128, 128)));
        assert_eq!(find(&findings, "backing thp").verdict, Verdict::Cannot);
        assert!(remedy(&findings, "backing thp").contains("hugepages-2048kB/enabled"));
        assert_eq!(find(&findings, "mthp").detail, "64k \"madvise\"");
        assert!(remedy(&findings, "memfd:thp").contains("hugepages-2048kB"));
        assert_eq!(find(&findings, "hugetlb").verdict, Verdict::Can);
    }

    #[test]
    fn a_smaller_size_that_a_larger_one_would_win_over_is_not_to_be_had() {
        let sizes = [(64, Switch::Madvise), (256, Switch::Madvise), (2048, Switch::Inherit)];
        let findings = judge(&host(Switch::Madvise, ShmemSwitch::Never, &sizes, (0, 0)));
        assert_eq!(find(&findings, "mthp").detail, "256k \"madvise\"");
        assert!(findings.iter().any(|one| one.detail == "not to be had: 64k"), "{findings:?}");
    }

    #[test]
    fn a_kernel_without_any_says_so() {
        let findings = judge(&HostThp::default());
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Cannot), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.remedy.is_some()));
        for word in ["echo", "--tune"] {
            assert!(!findings.iter().any(|finding| finding.remedy.as_deref().unwrap().contains(word)));
        }
    }

    #[test]
    fn an_old_kernel_has_only_the_global_switch() {
        let findings = judge(&host(Switch::Always, ShmemSwitch::Advise, &[], (512, 3)));
        assert_eq!(find(&findings, "backing thp").verdict, Verdict::Can);
        assert!(remedy(&findings, "mthp").contains("6.8"));
        assert_eq!(find(&findings, "memfd:thp").verdict, Verdict::Can);
        assert_eq!(find(&findings, "hugetlb").verdict, Verdict::Limited);
    }
}
