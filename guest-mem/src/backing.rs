//! What fills a region: the kind of page, and whether this host can give it.

use std::fmt;
use std::str::FromStr;

use crate::thp::{HostThp, Switch};
use crate::victim::Order;

/// The kind of memory behind a region. Its text form is what scenarios and reports say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// `4k`: anonymous base pages, huge pages kept away by `MADV_NOHUGEPAGE`.
    Base4k,
    /// `mthp:SIZE`: anonymous folios of one size between 16 KiB and 1 MiB, mapped by PTEs.
    Mthp(Order),
    /// `thp`: anonymous 2 MiB folios, mapped by a PMD until something splits it.
    Thp,
    /// `hugetlb:2m`: pages of the hugetlb pool. Can never be paged out.
    Hugetlb2m,
    /// `memfd`: a shared file in memory, in base pages.
    Memfd,
    /// `memfd:thp`: a shared file in memory, in 2 MiB folios.
    MemfdThp,
}

/// A text that names no backing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown backing `{0}`: use 4k, mthp:SIZE (a power of two from 16k to 1m), thp, hugetlb:2m, memfd or memfd:thp"
)]
pub struct UnknownBacking(pub String);

/// Why a host cannot give a backing, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// What stands in the way.
    pub reason: String,
    /// The command, or the change, that would clear it.
    pub remedy: String,
}

impl Unavailable {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

const MTHP_MIN: u64 = 16 << 10;
const MTHP_MAX: u64 = 1 << 20;

impl Backing {
    /// The mTHP backing of `bytes`, or `None` if that is no mTHP size.
    pub fn mthp(bytes: u64) -> Option<Self> {
        if !(MTHP_MIN..=MTHP_MAX).contains(&bytes) {
            return None;
        }
        Order::of_bytes(bytes).map(Self::Mthp)
    }
    /// Whether the memory is a shared file, which outlives a mapping and can be unmapped without loss.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Memfd | Self::MemfdThp)
    }
    /// Whether the pages are anonymous to the reverse map. hugetlb pages are counted apart: they are no LRU
    /// pages at all.
    pub fn is_anonymous(&self) -> bool {
        matches!(self, Self::Base4k | Self::Mthp(_) | Self::Thp)
    }
    /// The folio order this backing asks for. What it gets is another question: read pagemap.
    pub fn wanted_order(&self) -> Order {
        match self {
            Self::Base4k | Self::Memfd => Order::BASE,
            Self::Mthp(order) => *order,
            Self::Thp | Self::Hugetlb2m | Self::MemfdThp => Order::PMD,
        }
    }

    /// Why this host cannot give the backing, or `None` if its switches allow it.
    pub fn unavailable(&self, host: &HostThp) -> Option<Unavailable> {
        match self {
            Self::Base4k | Self::Memfd => None,
            Self::Thp => thp_unavailable(host),
            Self::Mthp(order) => mthp_unavailable(*order, host),
            Self::MemfdThp => memfd_thp_unavailable(host),
            Self::Hugetlb2m if host.hugetlb_2m_total == 0 => Some(Unavailable::new(
                "the pool of 2 MiB hugetlb pages is empty",
                "`echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages` reserves 1 GiB",
            )),
            Self::Hugetlb2m if host.hugetlb_2m_free == 0 => Some(Unavailable::new(
                format!("all {} hugetlb pages of 2 MiB are taken", host.hugetlb_2m_total),
                "raise /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            )),
            Self::Hugetlb2m => None,
        }
    }
}

fn thp_unavailable(host: &HostThp) -> Option<Unavailable> {
    if host.anonymous_switch(Order::PMD).serves_madvised() {
        return None;
    }
    // Kernels before 6.8 have no switch for each size.
    let remedy = match host.anonymous.get(&Order::PMD) {
        Some(Switch::Never) => {
            "`echo inherit > /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled` lets the global switch decide"
        }
        _ => "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
    };
    Some(Unavailable::new("transparent huge pages of 2 MiB are switched off", remedy))
}

fn mthp_unavailable(order: Order, host: &HostThp) -> Option<Unavailable> {
    let kib = order.bytes() >> 10;
    if !host.anonymous.contains_key(&order) {
        return Some(Unavailable::new(
            format!("this kernel offers no anonymous folios of {kib} KiB"),
            "multi-size THP needs Linux 6.8 or later",
        ));
    }
    if !host.anonymous_switch(order).serves_madvised() {
        return Some(Unavailable::new(
            format!("anonymous folios of {kib} KiB are switched off"),
            format!("`echo madvise > /sys/kernel/mm/transparent_hugepage/hugepages-{kib}kB/enabled`"),
        ));
    }
    // The kernel takes the largest size that is enabled and fits. 2 MiB is kept out by seams (see `Region`),
    // anything between cannot be: the VMAs would have to be as small as the folios.
    let larger = host.anonymous.keys().find(|&&other| {
        other > order && other < Order::PMD && host.anonymous_switch(other).serves_madvised()
    })?;
    let other = larger.bytes() >> 10;
    Some(Unavailable::new(
        format!("folios of {other} KiB are enabled too, and the kernel takes the largest that fits"),
        format!("`echo never > /sys/kernel/mm/transparent_hugepage/hugepages-{other}kB/enabled`"),
    ))
}

fn memfd_thp_unavailable(host: &HostThp) -> Option<Unavailable> {
    if host.shmem_switch(Order::PMD).serves_madvised() {
        return None;
    }
    let remedy = match host.shmem.get(&Order::PMD) {
        Some(Switch::Never) => {
            "`echo advise > /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled`"
        }
        _ => "`echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`",
    };
    Some(Unavailable::new("huge pages in shared memory are switched off", remedy))
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base4k => f.write_str("4k"),
            Self::Mthp(order) if order.bytes() >= 1 << 20 => write!(f, "mthp:{}m", order.bytes() >> 20),
            Self::Mthp(order) => write!(f, "mthp:{}k", order.bytes() >> 10),
            Self::Thp => f.write_str("thp"),
            Self::Hugetlb2m => f.write_str("hugetlb:2m"),
            Self::Memfd => f.write_str("memfd"),
            Self::MemfdThp => f.write_str("memfd:thp"),
        }
    }
}

impl FromStr for Backing {
    type Err = UnknownBacking;

    fn from_str(text: &str) -> Result<Self, UnknownBacking> {
        let known = match text {
            "4k" => Some(Self::Base4k),
            "thp" => Some(Self::Thp),
            "hugetlb:2m" => Some(Self::Hugetlb2m),
            "memfd" => Some(Self::Memfd),
            "memfd:thp" => Some(Self::MemfdThp),
            _ => text.strip_prefix("mthp:").and_then(folio_bytes).and_then(Self::mthp),
        };
        known.ok_or_else(|| UnknownBacking(text.to_owned()))
    }
}

/// `64k` or `1m`, in exactly the form [`Backing`] prints.
fn folio_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match (text.strip_suffix('k'), text.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => return None,
    };
    if digits.starts_with('+') || digits.starts_with('0') {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thp::ShmemSwitch;

    #[test]
    fn every_backing_reads_back_as_it_prints() {
        let texts =
            ["4k", "mthp:16k", "mthp:64k", "mthp:512k", "mthp:1m", "thp", "hugetlb:2m", "memfd", "memfd:thp"];
        for text in texts {
            assert_eq!(text.parse::<Backing>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_choices() {
        for text in [
            "",
            "4K",
            "2m",
            "mthp",
            "mthp:",
            "mthp:8k",
            "mthp:2m",
            "mthp:48k",
            "mthp:+64k",
            "mthp:064k",
            "hugetlb:1g",
        ] {
            let error = text.parse::<Backing>().unwrap_err();
            assert!(error.to_string().contains("mthp:SIZE"), "{error}");
        }
    }

    fn host() -> HostThp {
        let sizes = [16u64, 32, 64, 128, 256, 512, 1024];
        let off = |kib: &u64| (Order::of_bytes(kib << 10).unwrap(), Switch::Never);
        let mut anonymous: std::collections::BTreeMap<_, _> = sizes.iter().map(off).collect();
        anonymous.insert(Order::PMD, Switch::Inherit);
        HostThp {
            global: Switch::Madvise,
            anonymous,
            shmem_global: ShmemSwitch::Never,
            shmem: [(Order::PMD, Switch::Inherit)].into(),
            hugetlb_2m_total: 0,
            hugetlb_2m_free: 0,
        }
    }

    #[test]
    fn a_default_host_gives_base_pages_and_thp_only() {
        let host = host();
        for text in ["4k", "thp", "memfd"] {
            assert_eq!(text.parse::<Backing>().unwrap().unavailable(&host), None, "{text}");
        }
        for (text, remedy) in [
            ("mthp:64k", "echo madvise > /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"),
            ("memfd:thp", "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            ("hugetlb:2m", "nr_hugepages"),
        ] {
            let why = text.parse::<Backing>().unwrap().unavailable(&host).expect(text);
            assert!(why.remedy.contains(remedy), "{why}");
        }
    }

    #[test]
    fn switches_decide_with_the_global_one_behind_inherit() {
        let order = Order::of_bytes(64 << 10).unwrap();
        let mut host = host();
        host.anonymous.insert(order, Switch::Inherit);
        assert_eq!(Backing::Mthp(order).unavailable(&host), None);
        host.global = Switch::Never;
        assert!(Backing::Mthp(order).unavailable(&host).is_some());
        assert!(Backing::Thp.unavailable(&host).unwrap().remedy.contains("enabled"));
        host.anonymous.insert(order, Switch::Always);
        assert_eq!(Backing::Mthp(order).unavailable(&host), None);
    }

    #[test]
    fn a_larger_enabled_size_would_win_and_is_named() {
        let mut host = host();
        host.anonymous.insert(Order::of_bytes(64 << 10).unwrap(), Switch::Madvise);
        host.anonymous.insert(Order::of_bytes(256 << 10).unwrap(), Switch::Madvise);
        let why = Backing::mthp(64 << 10).unwrap().unavailable(&host).unwrap();
        assert!(why.remedy.contains("never > /sys/kernel/mm/transparent_hugepage/hugepages-256kB"), "{why}");
        assert_eq!(Backing::mthp(256 << 10).unwrap().unavailable(&host), None);
    }

    #[test]
    fn a_full_hugetlb_pool_is_told_from_an_empty_one() {
        let mut host = host();
        host.hugetlb_2m_total = 4;
        assert!(Backing::Hugetlb2m.unavailable(&host).unwrap().reason.contains("all 4"));
        host.hugetlb_2m_free = 1;
        assert_eq!(Backing::Hugetlb2m.unavailable(&host), None);
    }
}
