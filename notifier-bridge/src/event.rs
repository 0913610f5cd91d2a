//! A change of the primary MMU.

use guest_mem::{HvaRange, Operation, PMD_SIZE, Victim};
use serde::{Deserialize, Serialize};

use crate::names::UnknownName;
use crate::policy::Policy;

/// Why a mapping changes.
#[non_exhaustive]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = unknown)]
pub enum Cause {
    /// `MADV_PAGEOUT` of a folio.
    PageOut,
    /// A PMD mapping replaced by 512 PTEs, because something smaller is about to happen inside it.
    PmdSplit,
    /// A folio mapped by PTEs is split, because a part of it is taken next.
    FolioSplit,
    /// `MADV_DONTNEED`.
    DontNeed,
    /// `MADV_FREE`.
    Free,
    /// `MADV_COLD`.
    Cold,
    /// `MADV_REMOVE` or `fallocate(FALLOC_FL_PUNCH_HOLE)`.
    PunchHole,
    /// khugepaged or `MADV_COLLAPSE` replaced 512 PTEs by a PMD mapping.
    Collapse,
    /// `mprotect` or userfaultfd write protection.
    Protect,
    /// Protection or unmapping that only finds out which pages are used. No page leaves for it.
    Watch,
    /// `mremap`: the old range.
    Remap,
    /// `munmap`.
    Unmap,
    /// Reclaim that a memory cgroup's limit or `memory.reclaim` asked for.
    CgroupReclaim,
    /// The guest gave the pages back.
    Balloon,
    /// The guest said that it does not use the pages at the moment: free page reporting.
    FreePageReport,
    /// Copy-on-write, fork or KSM.
    CopyOnWrite,
    /// The source does not say.
    Unknown,
}

fn unknown(given: &str) -> UnknownName {
    UnknownName::of::<Cause>("cause", given)
}

impl Cause {
    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The cause that an operation on memory is announced with.
    pub const fn of(operation: Operation) -> Self {
        match operation {
            Operation::PageOut => Self::PageOut,
            Operation::DontNeed => Self::DontNeed,
            Operation::Cold => Self::Cold,
            Operation::Free => Self::Free,
            Operation::Collapse => Self::Collapse,
            Operation::PunchHole | Operation::Fallocate => Self::PunchHole,
            Operation::Protect => Self::Protect,
            Operation::Remap => Self::Remap,
        }
    }

    /// Whether pages leave memory for it.
    pub const fn takes_pages(self) -> bool {
        match self {
            Self::PageOut | Self::DontNeed | Self::PunchHole | Self::CgroupReclaim => true,
            Self::Unmap | Self::Balloon | Self::FreePageReport => true,
            Self::PmdSplit | Self::FolioSplit | Self::Free | Self::Cold | Self::Collapse => false,
            Self::Protect | Self::Watch | Self::Remap | Self::CopyOnWrite | Self::Unknown => false,
        }
    }

    /// Whether a system call announces for it one range in each VMA, however many folios there are.
    pub const fn is_one_range_a_vma(self) -> bool {
        match self {
            Self::DontNeed | Self::Free | Self::PunchHole => true,
            Self::PageOut | Self::PmdSplit | Self::FolioSplit | Self::Cold | Self::Collapse => false,
            Self::Protect | Self::Watch | Self::Remap | Self::Unmap | Self::CgroupReclaim => false,
            Self::Balloon | Self::FreePageReport | Self::CopyOnWrite | Self::Unknown => false,
        }
    }
}

/// One change of the primary MMU, before a policy says how wide it is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The operation that takes the pages.
    pub cause: Cause,
    /// The pages taken.
    pub victim: Victim,
    /// The host mapping (VMA) the victim lies in: no era announces anything beyond its end.
    pub vma: HvaRange,
}

impl Invalidation {
    /// The policy whose rule this invalidation follows where `policy` is the one in force. A split was announced in
    /// a bracket even when the reverse map still told page by page: `__split_huge_pmd` had
    /// `mmu_notifier_invalidate_range_start`/`end` around it in 4.12.
    pub const fn rule(&self, policy: Policy) -> Policy {
        match (policy, self.cause) {
            (Policy::Page, Cause::PmdSplit | Cause::FolioSplit) => Policy::Folio,
            _ => policy,
        }
    }

    /// The bytes the operation itself had to cover, the divisor of the amplification. Only this function defines it; runs,
    /// replays and reports add it up:
    ///
    /// - of an operation on addresses, the memory it is asked to change, as pagemap shows it before the call: each folio that
    ///   leaves, whole; each range that is discarded, protected or moved, exactly;
    /// - of a PMD split, the whole 2 MiB that one entry mapped, however little of it is wanted next, and once, however
    ///   often a kernel announces it;
    /// - of an operation that names no address (a cgroup's squeeze), the pages that were resident before it and not after it;
    /// - of watching which pages are used, nothing: no page leaves for it.
    ///
    /// It does not depend on the range announced, which is the dividend.
    pub fn needed_bytes(&self) -> u64 {
        match self.cause {
            Cause::PmdSplit => PMD_SIZE,
            Cause::Watch => 0,
            _ => self.victim.pages.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    #[test]
    fn an_operations_cause_takes_pages_where_the_operation_evicts() {
        for &operation in Operation::ALL {
            assert_eq!(Cause::of(operation).takes_pages(), operation.evicts(), "{}", operation.name());
        }
        assert!(Cause::Unmap.takes_pages() && Cause::CgroupReclaim.takes_pages());
        assert!(!Cause::PmdSplit.takes_pages());
    }

    /// `zap_page_range_single` and `unmap_mapping_range` have one bracket for all of a VMA, the rmap one for each folio.
    #[test]
    fn zaps_by_range_are_announced_once_in_a_vma() {
        let once = Cause::VARIANTS.iter().copied().filter(|cause| cause.is_one_range_a_vma());
        assert_eq!(once.collect::<Vec<_>>(), [Cause::DontNeed, Cause::Free, Cause::PunchHole]);
    }

    #[test]
    fn watching_needs_nothing_and_a_split_all_of_its_block() {
        let block = HvaRange::with_len(guest_mem::Hva::new(PMD_SIZE), PMD_SIZE).unwrap();
        let page = HvaRange::with_len(block.start(), 4096).unwrap();
        let (order, level) = (guest_mem::Order::BASE, guest_mem::MapLevel::Pte);
        let needed = |cause| {
            let victim = Victim { pages: page, order, level, anonymous: true };
            Invalidation { cause, victim, vma: block }.needed_bytes()
        };
        assert_eq!((needed(Cause::PageOut), needed(Cause::Protect)), (4096, 4096));
        assert_eq!((needed(Cause::PmdSplit), needed(Cause::Watch)), (PMD_SIZE, 0));
    }

    #[test]
    fn splits_have_a_bracket_in_every_era() {
        let block = HvaRange::with_len(guest_mem::Hva::new(PMD_SIZE), PMD_SIZE).unwrap();
        let (order, level) = (guest_mem::Order::PMD, guest_mem::MapLevel::Pmd);
        let victim = Victim { pages: block, order, level, anonymous: true };
        let rule = |cause| Invalidation { cause, victim, vma: block }.rule(Policy::Page);
        assert_eq!(rule(Cause::PmdSplit), Policy::Folio);
        assert_eq!(rule(Cause::FolioSplit), Policy::Folio);
        assert_eq!(rule(Cause::PageOut), Policy::Page);
        assert_eq!(
            Invalidation { cause: Cause::PmdSplit, victim, vma: block }.rule(Policy::Pmd),
            Policy::Pmd
        );
    }
}
