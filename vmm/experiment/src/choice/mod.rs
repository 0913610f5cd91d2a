//! The axes of an experiment's matrix, and the words and sizes they are written with. One value of each is a
//! [`Combination`]; with the case and the listener, the label of a row.

#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod quantity;
mod words;

use std::fmt;
use std::str::FromStr;

use guest_mem::{Backing, PAGE_SIZE};
use notifier_bridge::Policy;
use serde::{Deserialize, Serialize};

use program::output::visible;

pub use quantity::{BadNumber, BadQuantity, BadRange, ByteRange, Size, TimeSpan};
pub use words::{Listener, PolicyChoice, Reclaim, Zap, ZapChoice};
pub(crate) use words::{Word, vocabulary, word};

/// A slot granule: a power of two of at least a page. In JSON its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Granule(u64);

/// So many bytes are no slot granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are no slot granule: a granule is a power of two of at least 4 KiB")]
pub struct NoGranule(pub u64);

impl Granule {
    /// The granule when none is given: 2 MiB.
    pub const DEFAULT: Self = Self(2 << 20);

    /// The granule of so many bytes, or `None` if that is no power of two of at least a page.
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && bytes >= PAGE_SIZE).then_some(Self(bytes))
    }
    /// Bytes of one slot.
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// Memslots that an arena of `memory` bytes needs.
    pub const fn slots(self, memory: u64) -> u64 {
        memory.div_ceil(self.0)
    }
}

/// A text that is no slot granule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BadGranule {
    #[error(transparent)]
    Size(#[from] BadQuantity),
    #[error("a granule of {0}: it must be a power of two and at least 4 KiB")]
    Granule(Size),
}

impl FromStr for Granule {
    type Err = BadGranule;
    fn from_str(text: &str) -> Result<Self, BadGranule> {
        let size: Size = text.parse()?;
        Self::new(size.0).ok_or(BadGranule::Granule(size))
    }
}

impl TryFrom<u64> for Granule {
    type Error = NoGranule;
    fn try_from(bytes: u64) -> Result<Self, NoGranule> {
        Self::new(bytes).ok_or(NoGranule(bytes))
    }
}

impl From<Granule> for u64 {
    fn from(granule: Granule) -> Self {
        granule.0
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Size(self.0).fmt(f)
    }
}

/// One point of the matrix: what is tried in one row. In JSON each axis has the word that a scenario has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Combination {
    /// The backing that was asked for. The one that the memory really had is in a row's `achieved`.
    #[serde(with = "word")]
    pub backing: Backing,
    /// The range policy. `kernel`: no policy of ours; only the kernel's own invalidation.
    #[serde(with = "word")]
    pub policy: PolicyChoice,
    /// How memory is taken.
    #[serde(with = "word")]
    pub reclaim: Reclaim,
    /// How large a memslot is.
    pub granule: Granule,
    /// How the listener zaps: [`Zap::Nothing`] under [`PolicyChoice::Kernel`], never under another policy.
    #[serde(with = "word")]
    pub zap: Zap,
}

/// The label of a row, the only one in its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowLabel {
    /// The case. It is a heading and the name of rows, so it is of one line wherever it was read from.
    #[serde(deserialize_with = "visible::read_line")]
    pub case: String,
    /// What was tried.
    #[serde(flatten)]
    pub tried: Combination,
    /// The listener.
    #[serde(with = "word")]
    pub listener: Listener,
}

impl fmt::Display for RowLabel {
    /// Without the granule and the zap: `sparse, 4k, pmd, pageout`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.case, self.tried)
    }
}

impl fmt::Display for Combination {
    /// Without the granule and the zap: `4k, pmd, pageout`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.backing, self.policy, self.reclaim)
    }
}

/// A zap that a listener cannot do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CannotZap {
    #[error("zap = \"unmap\" loses the content of {0}: use \"protect\" or \"memslot\", or a memfd backing")]
    UnmapLosesContent(Backing),
    #[error(
        "zap = \"protect\" cannot zap one 4 KiB page of hugetlb:2m, as the policy `page` wants it: use zap = \
         \"memslot\" or another policy"
    )]
    ProtectHugetlbPage,
}

impl Combination {
    /// Whether a listener puts a VMA boundary into each 2 MiB block before the first zap, so that every toggle is exact. Not
    /// where PMD entries map the memory: there the first toggle of a part breaks the mapping, and the row pays for it.
    pub fn needs_seams(&self) -> bool {
        let small = match self.backing {
            Backing::Base4k | Backing::Memfd => true,
            Backing::Thp | Backing::Mthp(_) | Backing::Hugetlb2m | Backing::MemfdThp => false,
        };
        small && self.zap == Zap::Protect
    }

    /// Whether each 2 MiB block has such a boundary when a trial begins: mTHP memory is made with them.
    pub fn is_seamed(&self) -> bool {
        self.needs_seams() || matches!(self.backing, Backing::Mthp(_))
    }

    /// Whether a listener can zap so, and memory be taken so.
    pub fn is_possible(&self) -> bool {
        let zap = self.policy.announced().and_then(|policy| self.zap.refused_for(policy, self.backing));
        zap.is_none() && self.reclaim.refused_on(self.backing).is_none()
    }
}

impl Zap {
    /// Why it cannot zap the ranges of `policy` in memory of this backing; `None` if it can.
    pub fn refused_for(self, policy: Policy, backing: Backing) -> Option<CannotZap> {
        match self {
            Self::Unmap if !backing.is_shared() => Some(CannotZap::UnmapLosesContent(backing)),
            Self::Protect if backing == Backing::Hugetlb2m && policy == Policy::Page => {
                Some(CannotZap::ProtectHugetlbPage)
            }
            _ => None,
        }
    }
}

impl ZapChoice {
    /// What it comes to under `policy`. A policy that follows the victim gets a zap as exact as it is; one made of memslots
    /// is what deleting them does.
    pub fn under(self, policy: PolicyChoice) -> Zap {
        match (policy, self) {
            (PolicyChoice::Kernel, _) => Zap::Nothing,
            (_, Self::Memslot) => Zap::Memslot,
            (_, Self::Protect) => Zap::Protect,
            (_, Self::Unmap) => Zap::Unmap,
            (PolicyChoice::Announced(policy), Self::Auto) if policy.is_of_slots() => Zap::Memslot,
            (PolicyChoice::Announced(_), Self::Auto) => Zap::Protect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_exact_where_the_policy_is() {
        for &policy in Policy::ALL {
            let expected =
                if matches!(policy, Policy::Slot | Policy::Vm) { Zap::Memslot } else { Zap::Protect };
            assert_eq!(ZapChoice::Auto.under(PolicyChoice::Announced(policy)), expected);
        }
        for word in <ZapChoice as strum::VariantNames>::VARIANTS {
            let zap: ZapChoice = word.parse().unwrap();
            assert_eq!(zap.under(PolicyChoice::Kernel), Zap::Nothing);
            assert_ne!(zap.under(PolicyChoice::Announced(Policy::Folio)), Zap::Nothing);
        }
    }

    #[test]
    fn granules_are_powers_of_two_of_a_page_at_least() {
        for bytes in [0, 1, 3, 2048, 4097, 6 << 20, u64::MAX] {
            assert_eq!(Granule::new(bytes), None, "{bytes}");
            serde_json::from_value::<Granule>(bytes.into()).unwrap_err();
        }
        let granule = Granule::new(4 << 20).unwrap();
        assert_eq!((granule.slots(6 << 20), granule.slots(4 << 20), granule.slots(2 << 20)), (2, 1, 1));
        assert_eq!(Granule::new(1 << 63).map(Granule::bytes), Some(1 << 63));
        assert_eq!(serde_json::from_str::<Granule>("4096").unwrap(), Granule(4096));
    }

    #[test]
    fn a_combination_has_the_words_of_the_scenario() {
        let combination = Combination {
            backing: Backing::MemfdThp,
            policy: PolicyChoice::Kernel,
            reclaim: Reclaim::Cgroup,
            granule: Granule::DEFAULT,
            zap: Zap::Nothing,
        };
        let text = serde_json::to_string(&combination).unwrap();
        assert_eq!(
            text,
            r#"{"backing":"memfd:thp","policy":"kernel","reclaim":"cgroup","granule":2097152,"zap":"none"}"#
        );
        assert_eq!(serde_json::from_str::<Combination>(&text).unwrap(), combination);
        let why = serde_json::from_str::<Combination>(&text.replace("kernel", "kernels")).unwrap_err();
        assert!(why.to_string().contains("`kernels` is no range policy"), "{why}");
    }
}
