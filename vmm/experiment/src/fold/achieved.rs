//! What the memory of the victims really was.

use std::collections::BTreeMap;

use guest_mem::Backing;

use super::sums::Sums;
use crate::choice::{Combination, Reclaim};
use crate::events::Was;

/// What the victims of such a row really were, or why that is not known.
pub(crate) fn achieved(tried: &Combination, sums: &Sums) -> Result<BTreeMap<String, f64>, &'static str> {
    // A cgroup chooses what it takes; every other way takes what it is asked for, or a part.
    let taken = if tried.reclaim == Reclaim::Cgroup { sums.evicted_bytes } else { sums.victim_bytes };
    parts(tried.backing, &sums.was, taken)
}

/// What the victims really were, as parts of all that was taken: what PMDs mapped, what was as the backing says, and the
/// rest. Or why that is not known.
fn parts(backing: Backing, was: &Was, all: u64) -> Result<BTreeMap<String, f64>, &'static str> {
    const REST: &str = "other";
    if all == 0 {
        return Err("no step took anything");
    }
    let (large, small) = match backing {
        Backing::Base4k | Backing::Thp => ("thp", "4k"),
        Backing::Memfd | Backing::MemfdThp => ("memfd:thp", "memfd"),
        Backing::Hugetlb2m => ("hugetlb:2m", "4k"),
        Backing::Mthp(_) => ("thp", REST),
    };
    let named = match (backing, was.as_said) {
        (Backing::Mthp(_), Some(bytes)) => bytes,
        (Backing::Mthp(_), None) => {
            return Err("which folios there are is for root to see (/proc/kpageflags)");
        }
        _ => 0,
    };
    let rest = all.saturating_sub(was.by_pmd + named);
    let parts = [(large.to_owned(), was.by_pmd), (backing.to_string(), named), (small.to_owned(), rest)];
    let some = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
    Ok(some.map(|(name, bytes)| (name, bytes as f64 / all as f64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named_parts(
        backing: Backing,
        [by_pmd, as_said]: [u64; 2],
        all: u64,
    ) -> Result<Vec<(String, f64)>, &'static str> {
        let was = Was { resident: all, by_pmd, as_said: Some(as_said) };
        parts(backing, &was, all).map(|parts| parts.into_iter().collect())
    }

    #[test]
    fn a_label_is_earned() {
        let of = |parts: &[(&str, f64)]| {
            Ok(parts.iter().map(|(name, part)| ((*name).to_owned(), *part)).collect::<Vec<_>>())
        };
        assert_eq!(named_parts(Backing::Thp, [4, 4], 4), of(&[("thp", 1.0)]));
        assert_eq!(named_parts(Backing::Thp, [0, 0], 4), of(&[("4k", 1.0)]));
        assert_eq!(named_parts(Backing::Thp, [1, 1], 4), of(&[("4k", 0.75), ("thp", 0.25)]));
        assert_eq!(named_parts(Backing::Base4k, [0, 4], 4), of(&[("4k", 1.0)]));
        assert_eq!(named_parts(Backing::Memfd, [0, 4], 4), of(&[("memfd", 1.0)]));
        assert_eq!(named_parts(Backing::MemfdThp, [1, 1], 4), of(&[("memfd", 0.75), ("memfd:thp", 0.25)]));
        named_parts(Backing::Base4k, [0, 0], 0).unwrap_err();
    }

    #[test]
    fn folios_of_a_size_are_those_that_were_seen() {
        let mthp = Backing::mthp(64 << 10).unwrap();
        let of = |parts: &[(&str, f64)]| {
            Ok(parts.iter().map(|(name, part)| ((*name).to_owned(), *part)).collect::<Vec<_>>())
        };
        assert_eq!(named_parts(mthp, [0, 4], 4), of(&[("mthp:64k", 1.0)]));
        assert_eq!(named_parts(mthp, [0, 0], 4), of(&[("other", 1.0)]));
        assert_eq!(named_parts(mthp, [1, 2], 4), of(&[("mthp:64k", 0.5), ("other", 0.25), ("thp", 0.25)]));
        let hidden = Was { resident: 4, by_pmd: 0, as_said: None };
        assert!(parts(mthp, &hidden, 4).unwrap_err().contains("root"));
        assert!(parts(Backing::Thp, &hidden, 4).is_ok());
    }
}
