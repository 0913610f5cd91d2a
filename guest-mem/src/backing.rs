//! The kind of memory behind a region. Whether this host has it is in `switches`.

use std::fmt;
use std::str::FromStr;

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
    /// The folio order this backing asks for. Pagemap has the order that it gets.
    pub fn wanted_order(&self) -> Order {
        match self {
            Self::Base4k | Self::Memfd => Order::BASE,
            Self::Mthp(order) => *order,
            Self::Thp | Self::Hugetlb2m | Self::MemfdThp => Order::PMD,
        }
    }
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
        let of_one_size = [Self::Base4k, Self::Thp, Self::Hugetlb2m, Self::Memfd, Self::MemfdThp];
        let named = of_one_size.into_iter().find(|backing| backing.to_string() == text);
        let mthp = || text.strip_prefix("mthp:").and_then(folio_bytes).and_then(Self::mthp);
        named.or_else(mthp).ok_or_else(|| UnknownBacking(text.to_owned()))
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
}
