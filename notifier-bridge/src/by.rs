//! The party that announced a range.

use serde::{Deserialize, Serialize};

use crate::names::UnknownName;

/// The party whose work announced a range. [`Cause`](crate::Cause) tells the operation, where it is known: this process
/// knows its own operations, and the kernel's tracepoints tell none.
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
pub enum By {
    /// A step's own operation.
    Step,
    /// This process, beside its operations: a listener's zap, the write protection of a swapper.
    Zap,
    /// A vCPU's fault: copy-on-write, a NUMA hint.
    GuestFault,
    /// A userfaultfd handler of ours.
    #[strum(serialize = "userfaultfd")]
    Userfault,
    /// A device of ours: the balloon.
    Device,
    /// Another thread of ours.
    OwnThread,
    /// kswapd, on its own.
    Kswapd,
    /// khugepaged collapses.
    Khugepaged,
    /// kcompactd compacts.
    Kcompactd,
    /// ksmd merges.
    Ksmd,
    /// DAMON reclaims or moves.
    Kdamond,
    /// Another thread of the kernel.
    KernelThread,
    /// A thread that found no free memory.
    DirectReclaim,
    /// A cgroup's limit.
    MemcgReclaim,
    /// A thread that made room for a large page.
    Compaction,
    /// A thread that moved pages.
    Migration,
    /// Another process.
    AnotherProcess,
    /// Unknown.
    Unattributed,
    /// The process that holds a VM which another process watches.
    Holder,
}

fn unknown(given: &str) -> UnknownName {
    UnknownName::of::<By>("maker of a range", given)
}

impl By {
    /// Every member, in order of declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether this process announced it, but not by a step.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Zap | Self::GuestFault | Self::Userfault | Self::Device | Self::OwnThread)
    }

    /// Whether the host or another process announced it.
    pub const fn is_stranger(self) -> bool {
        !self.is_ours() && !matches!(self, Self::Step | Self::Unattributed | Self::Holder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_maker_of_a_range_has_one_side() {
        for &by in By::ALL {
            let neither = matches!(by, By::Step | By::Unattributed | By::Holder);
            assert_eq!(u8::from(neither) + u8::from(by.is_ours()) + u8::from(by.is_stranger()), 1, "{by}");
        }
        assert!(By::Zap.is_ours() && By::OwnThread.is_ours());
        assert!(By::Kswapd.is_stranger() && By::AnotherProcess.is_stranger());
    }
}
