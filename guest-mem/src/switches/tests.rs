//! Every possible host, and every backing: the proposed settings make the backing available, and no fewer do.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::thp::HugetlbPool;

const BYTES: u64 = 64 << 20;

fn backing(text: &str) -> Backing {
    text.parse().unwrap()
}

/// As Debian has it: every size off, 2 MiB as the global switch says.
fn host() -> HostThp {
    let sizes = [16u64, 32, 64, 128, 256, 512, 1024];
    let off = |kib: &u64| (Order::of_bytes(kib << 10).unwrap(), Switch::Never);
    let mut anonymous: BTreeMap<_, _> = sizes.iter().map(off).collect();
    anonymous.insert(Order::PMD, Switch::Inherit);
    HostThp {
        global: Some(Switch::Madvise),
        anonymous,
        shmem_global: Some(ShmemSwitch::Never),
        shmem: [(Order::PMD, Switch::Inherit)].into(),
        hugetlb_2m: Some(HugetlbPool::default()),
    }
}

fn remedy(text: &str, host: &HostThp) -> String {
    backing(text).unavailable(BYTES, host).expect(text).remedy.to_string()
}

#[test]
fn a_default_host_gives_base_pages_and_thp_only() {
    let host = host();
    for text in ["4k", "thp", "memfd"] {
        assert_eq!(backing(text).unavailable(BYTES, &host), None, "{text}");
    }
    assert_eq!(remedy("mthp:64k", &host), format!("`echo madvise > {THP}/hugepages-64kB/enabled`"));
    assert_eq!(remedy("memfd:thp", &host), format!("`echo advise > {THP}/hugepages-2048kB/shmem_enabled`"));
    assert_eq!(remedy("hugetlb:2m", &host), format!("`echo 32 > {HUGETLB_2M}/nr_hugepages`"));
}

#[test]
fn switches_decide_with_the_global_one_behind_inherit() {
    let order = Order::of_bytes(64 << 10).unwrap();
    let mut host = host();
    host.anonymous.insert(order, Switch::Inherit);
    assert_eq!(Backing::Mthp(order).unavailable(BYTES, &host), None);
    host.global = Some(Switch::Never);
    assert!(Backing::Mthp(order).unavailable(BYTES, &host).is_some());
    assert_eq!(remedy("thp", &host), format!("`echo madvise > {THP}/hugepages-2048kB/enabled`"));
    host.anonymous.insert(order, Switch::Always);
    assert_eq!(Backing::Mthp(order).unavailable(BYTES, &host), None);
}

#[test]
fn an_old_kernel_is_switched_by_its_one_switch() {
    let mut host = host();
    (host.anonymous, host.shmem) = (BTreeMap::new(), BTreeMap::new());
    host.global = Some(Switch::Never);
    assert_eq!(remedy("thp", &host), format!("`echo madvise > {THP}/enabled`"));
    assert_eq!(remedy("memfd:thp", &host), format!("`echo advise > {THP}/shmem_enabled`"));
    assert!(remedy("mthp:64k", &host).contains("6.8"), "no setting helps");
}

#[test]
fn every_larger_enabled_size_would_win_and_is_switched_off() {
    let mut host = host();
    for kib in [64u64, 256, 1024] {
        host.anonymous.insert(Order::of_bytes(kib << 10).unwrap(), Switch::Madvise);
    }
    let expected =
        format!("`echo never > {THP}/hugepages-256kB/enabled; echo never > {THP}/hugepages-1024kB/enabled`");
    assert_eq!(remedy("mthp:64k", &host), expected);
    assert_eq!(backing("mthp:1m").unavailable(BYTES, &host), None);
}

#[test]
fn a_pool_is_raised_by_what_is_missing_and_never_lowered() {
    let mut host = host();
    let pool = |total, free, reserved| Some(HugetlbPool { total, free, reserved, ..HugetlbPool::default() });
    host.hugetlb_2m = pool(128, 16, 4);
    let why = backing("hugetlb:2m").unavailable(BYTES, &host).unwrap();
    assert!(why.reason.contains("32 hugetlb pages") && why.reason.contains("12 of 128"), "{why}");
    assert_eq!(remedy("hugetlb:2m", &host), format!("`echo 148 > {HUGETLB_2M}/nr_hugepages`"));
    host.hugetlb_2m = pool(128, 36, 4);
    assert_eq!(backing("hugetlb:2m").unavailable(BYTES, &host), None);
    host.hugetlb_2m = Some(HugetlbPool { overcommit: 40, surplus: 8, ..HugetlbPool::default() });
    assert_eq!(backing("hugetlb:2m").unavailable(BYTES, &host), None, "it grows by itself");
    host.hugetlb_2m = None;
    assert!(remedy("hugetlb:2m", &host).contains("CONFIG_HUGETLBFS"));
}

#[test]
fn a_kernel_without_huge_pages_is_not_told_to_set_them() {
    let host = HostThp::default();
    for text in ["thp", "mthp:64k", "memfd:thp", "hugetlb:2m"] {
        let why = backing(text).unavailable(BYTES, &host).unwrap();
        assert_eq!(why.remedy.settings(), [], "{text}: {why}");
    }
}

fn switch() -> impl Strategy<Value = Switch> {
    prop_oneof![Just(Switch::Always), Just(Switch::Madvise), Just(Switch::Inherit), Just(Switch::Never)]
}

fn shmem_switch() -> impl Strategy<Value = ShmemSwitch> {
    use ShmemSwitch::{Advise, Always, Deny, Force, Never};
    prop_oneof![Just(Always), Just(Advise), Just(Never), Just(Deny), Just(Force)]
}

fn sizes() -> impl Strategy<Value = BTreeMap<Order, Switch>> {
    let order = (2u8..=9).prop_map(|order| Order::new(order).unwrap());
    // A kernel has a switch for 2 MiB where it has one for any size.
    let with_pmd =
        (proptest::collection::btree_map(order, switch(), 0..8), switch()).prop_map(|(mut sizes, pmd)| {
            sizes.insert(Order::PMD, pmd);
            sizes
        });
    prop_oneof![Just(BTreeMap::new()), with_pmd]
}

prop_compose! {
    fn pool()(total in 0u64..200, free in 0u64..200, reserved in 0u64..50, overcommit in 0u64..60, surplus in 0u64..60)
        -> HugetlbPool {
        let free = free.min(total);
        HugetlbPool { total, free, reserved: reserved.min(free), overcommit, surplus: surplus.min(total) }
    }
}

prop_compose! {
    fn any_host()(
        global in proptest::option::of(switch()),
        anonymous in sizes(),
        shmem_global in proptest::option::of(shmem_switch()),
        shmem in sizes(),
        hugetlb_2m in proptest::option::of(pool()),
    ) -> HostThp {
        // The global switches do not inherit.
        let global = global.map(|switch| if switch == Switch::Inherit { Switch::Never } else { switch });
        HostThp { global, anonymous, shmem_global, shmem, hugetlb_2m }
    }
}

fn any_backing() -> impl Strategy<Value = Backing> {
    let texts = ["4k", "mthp:16k", "mthp:64k", "mthp:1m", "thp", "hugetlb:2m", "memfd", "memfd:thp"];
    proptest::sample::select(texts.to_vec()).prop_map(backing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_to_be_set_is_enough_and_none_of_it_too_much(
        host in any_host(), backing in any_backing(), huge_pages in 1u64..120,
    ) {
        let bytes = huge_pages * PMD_SIZE;
        let Some(why) = backing.unavailable(bytes, &host) else { return Ok(()) };
        let settings = why.remedy.settings();
        let with = |skipped: Option<usize>| {
            let mut host = host.clone();
            let chosen = settings.iter().enumerate().filter(|(index, _)| Some(*index) != skipped);
            chosen.for_each(|(_, setting)| host.apply(*setting));
            backing.unavailable(bytes, &host)
        };
        if settings.is_empty() {
            prop_assert!(matches!(why.remedy, Remedy::Other(_)));
            return Ok(());
        }
        prop_assert_eq!(with(None), None, "after {}", why.remedy);
        for skipped in 0..settings.len() {
            prop_assert!(with(Some(skipped)).is_some(), "without number {} of {}", skipped, why.remedy);
        }
        let mut knobs: Vec<_> = settings.iter().map(|setting| setting.knob).collect();
        knobs.sort();
        knobs.dedup();
        prop_assert_eq!(knobs.len(), settings.len(), "each switch once: {}", why.remedy);
    }
}
