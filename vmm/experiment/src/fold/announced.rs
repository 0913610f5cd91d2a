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

use super::kernel::Account;
use super::sums::Sums;
use crate::choice::{Listener, PolicyChoice, Reclaim};
use crate::events::Ranges;
use crate::record::{Measured, Row, Warnings};
use notifier_bridge::By;

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
enum Announced {
    /// We did it, or the kernel's account says so.
    Known(Ranges),
    /// Nobody: it was expected, for want of an account for this reason.
    Expected(Ranges, String),
    /// Nobody, and nothing could be expected.
    Unknown(String),
}

impl Announced {
    fn of(row: &Row, sums: &Sums) -> Self {
        let expected = sums.expected.0.get().zip(sums.expected.1.get());
        let asked = sums.victims > 0 || sums.told.ranges.ranges > 0 || expected.is_none();
        if row.label.tried.policy != PolicyChoice::Kernel || !asked {
            return Self::Known(sums.told.ranges);
        }
        if row.label.listener == Listener::Replay {
            return match expected {
                // By address the kernel announces what is needed, and that was announced again.
                Some(_) => Self::Known(sums.told.ranges),
                None => Self::Unknown(NO_LOG.to_owned()),
            };
        }
        let why = match sums.account() {
            Some(account) if account.lost == 0 => return Self::Known(by_kernel(account)),
            Some(account) => format!("{} events of the kernel's account were lost", account.lost),
            None => sums.why_no_account(),
        };
        match expected {
            Some((ranges, bytes)) => Self::Expected(Ranges { ranges, bytes }, why),
            None => Self::Unknown(format!("{NO_ADDRESS}; and its own account is missing: {why}")),
        }
    }
}

/// What the kernel announced where it alone did: for the steps' operations, and where this process swaps, for what its
/// handlers protect or let go of again.
fn by_kernel(account: &Account) -> Ranges {
    account.sum(|cause| matches!(cause, By::Step | By::Userfault))
}

/// Fills in what was announced, what was expected and what was needed.
pub(super) fn fill(row: &mut Row, sums: &Sums, warnings: &mut Warnings) {
    row.needed_bytes = Measured::of(sums.told.needed_bytes);
    if row.label.listener != Listener::Replay {
        let expected = |count: Option<u64>, warnings: &mut Warnings, key| {
            Measured::or_why(count, warnings, key, NO_ADDRESS)
        };
        row.expected_ranges = expected(sums.expected.0.get(), warnings, "expected_ranges");
        row.expected_bytes = expected(sums.expected.1.get(), warnings, "expected_bytes");
        if row.label.tried.policy != PolicyChoice::Kernel && row.label.tried.reclaim == Reclaim::Cgroup {
            warnings.note("invalidations", AFTERWARDS);
        }
    }
    let announced = match Announced::of(row, sums) {
        Announced::Known(ranges) => ranges,
        Announced::Expected(ranges, why) => {
            let why = format!(
                "expected of the kernel, from pagemap before each operation, and not measured: {why}"
            );
            Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why.as_str()));
            ranges
        }
        Announced::Unknown(why) => {
            Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why.as_str()));
            return;
        }
    };
    row.announce(announced.ranges, announced.bytes, sums.told.needed_bytes, warnings);
}
