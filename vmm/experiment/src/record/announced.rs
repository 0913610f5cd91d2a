//! The source of the figures that a row has as announced.
//!
//! | policy | the kernel's account | `invalidations`, `invalidated_bytes`, `amplification` |
//! | --- | --- | --- |
//! | a rule of ours | | our announcements |
//! | `kernel` | complete | the kernel's ranges |
//! | `kernel` | not kept, or events lost | the expected ranges, with a warning: [`Row::is_expected`] |
//! | `kernel` | the same, and an operation named no address | null |
//!
//! The expected ranges stand beside each as `expected_ranges` and `expected_bytes`. The bytes that had to be covered are
//! [`notifier_bridge::Invalidation::needed_bytes`] in every row.

use notifier_bridge::By;

use super::measured::Warnings;
use super::row::{Row, amplification};
use crate::choice::{Listener, PolicyChoice, Reclaim, RowLabel};
use crate::events::Ranges;
use crate::fold::{Account, Sums};

const NO_ADDRESS: &str = "an operation named no address: which pages go, and by how many ranges, the kernel or the use of \
                          the pages decided";
const NO_LOG: &str = "the kernel's own figure, of which a log without an address tells nothing";
const AFTERWARDS: &str = "announced after the fact, for what had gone by then: what the kernel announced while it chose \
                          stands by itself";

/// The ranges announced, and their source.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Announced {
    /// We did it, or the kernel's account says so.
    Known(Ranges),
    /// No account, for this reason: the ranges are expected.
    Expected(Ranges, String),
    /// No account, and nothing could be expected.
    Unknown(String),
}

impl Announced {
    pub(super) fn of(label: &RowLabel, sums: &Sums) -> Self {
        let expected = sums.expected;
        let asked = sums.victims > 0 || sums.announced.ranges.ranges > 0 || expected.is_none();
        if label.tried.policy != PolicyChoice::Kernel || !asked {
            return Self::Known(sums.announced.ranges);
        }
        if label.listener == Listener::Replay {
            return match expected {
                // By address the kernel announces what is needed, and that was announced again.
                Some(_) => Self::Known(sums.announced.ranges),
                None => Self::Unknown(NO_LOG.to_owned()),
            };
        }
        let why = match sums.account() {
            Some(account) if account.lost == 0 => return Self::Known(by_kernel(account)),
            Some(account) => format!("{} events of the kernel's account were lost", account.lost),
            None => sums.why_no_account(),
        };
        match expected {
            Some(ranges) => Self::Expected(ranges, why),
            None => Self::Unknown(format!("{NO_ADDRESS}; and its own account is missing: {why}")),
        }
    }

    /// The ranges that stand in the row as announced.
    pub(super) const fn ranges(&self) -> Option<Ranges> {
        match self {
            Self::Known(ranges) | Self::Expected(ranges, _) => Some(*ranges),
            Self::Unknown(_) => None,
        }
    }

    /// Says of the row where these figures are from, and why one is missing.
    pub(super) fn note(&self, row: &Row, warnings: &mut Warnings) {
        if row.label.listener != Listener::Replay {
            for (key, value) in
                [("expected_ranges", row.expected_ranges), ("expected_bytes", row.expected_bytes)]
            {
                if value.is_null() {
                    warnings.note(key, NO_ADDRESS);
                }
            }
            if row.label.tried.policy != PolicyChoice::Kernel && row.label.tried.reclaim == Reclaim::Cgroup {
                warnings.note("invalidations", AFTERWARDS);
            }
        }
        let why = match self {
            Self::Known(_) => None,
            Self::Expected(_, why) => Some(format!(
                "expected of the kernel, from pagemap before each operation, and not measured: {why}"
            )),
            Self::Unknown(why) => Some(why.clone()),
        };
        why.iter().for_each(|why| Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why.as_str())));
        if let Some((announced, needed)) = self.ranges().zip(row.needed_bytes.get())
            && let Err(why) = amplification(announced.bytes, needed)
        {
            warnings.note("amplification", why);
        }
    }
}

/// The ranges that the kernel announced, where only it did: for the steps' operations, and where this process swaps, for
/// its handlers.
fn by_kernel(account: &Account) -> Ranges {
    account.sum(|cause| matches!(cause, By::Step | By::Userfault))
}
