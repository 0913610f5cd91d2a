//! Whose figures stand in a row as announced.
//!
//! | policy | the kernel's account | `invalidations`, `invalidated_bytes`, `amplification` |
//! | --- | --- | --- |
//! | a rule of ours | | what we announced |
//! | `kernel` | complete | what the kernel announced |
//! | `kernel` | not kept, or events lost | what was expected of it, with a warning: [`Row::is_expected`] |
//! | `kernel` | the same, and an operation named no address | null |
//!
//! What was expected stands beside each as `expected_ranges` and `expected_bytes`, and what had to be covered is
//! [`notifier_bridge::Invalidation::needed_bytes`] in every row alike.

use notifier_bridge::By;

use super::measured::Warnings;
use super::row::{Row, amplification};
use crate::choice::{Listener, PolicyChoice, Reclaim, RowLabel};
use crate::events::Ranges;
use crate::fold::{Account, Sums};

/// Why nothing was expected of the kernel.
const NO_ADDRESS: &str = "an operation named no address: which pages go, and by how many ranges, the kernel or the use of \
                          the pages decided";
/// Why a replay says nothing of what the kernel announced while it chose for itself.
const NO_LOG: &str = "the kernel's own figure, of which a log without an address tells nothing";
/// What a listener of ours was told where an operation named no address.
const AFTERWARDS: &str = "announced after the fact, for what had gone by then: what the kernel announced while it chose \
                          stands by itself";

/// Who says what was announced.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Announced {
    /// We did it, or the kernel's account says so.
    Known(Ranges),
    /// Nobody: it was expected, for want of an account for this reason.
    Expected(Ranges, String),
    /// Nobody, and nothing could be expected.
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

    /// What stands in the row as announced.
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

/// What the kernel announced where it alone did: for the steps' operations, and where this process swaps, for what its
/// handlers protect or let go of again.
fn by_kernel(account: &Account) -> Ranges {
    account.sum(|cause| matches!(cause, By::Step | By::Userfault))
}
