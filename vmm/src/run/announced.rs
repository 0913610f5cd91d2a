//! Whose figures stand in a row as announced.
//!
//! | policy | the kernel's account | `invalidations`, `invalidated_bytes`, `amplification` |
//! | --- | --- | --- |
//! | a rule of ours | | what we announced, from the ledger |
//! | `kernel` | complete | what the kernel announced |
//! | `kernel` | not kept, or events lost | what was expected of it, with a warning: [`Row::is_expected`] |
//! | `kernel` | the same, and an operation named no address | null |
//!
//! What was expected stands beside each as `expected_ranges` and `expected_bytes`, and what had to be covered is
//! [`notifier_bridge::Invalidation::needed_bytes`] in every row alike.

use notifier_bridge::Totals;

use super::expected::Expected;
use super::measured::Measured as Trial;
use crate::choice::PolicyChoice;
use crate::choice::Reclaim;
use crate::record::{Measured, Row, Warnings};
use crate::tap::{Account, RangeCause, Ranges};

/// Why nothing was expected of the kernel.
const NO_ADDRESS: &str = "an operation named no address: which pages go, and by how many ranges, the kernel or the use of \
                          the pages decided";
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
    fn of(
        policy: PolicyChoice,
        totals: &Totals,
        expected: Expected,
        account: Result<&Account, String>,
        asked: bool,
    ) -> Self {
        let ours = Ranges { ranges: totals.invalidations, bytes: totals.invalidated_bytes };
        if policy != PolicyChoice::Kernel || !asked {
            return Self::Known(ours);
        }
        let why = match account {
            Ok(account) if account.lost == 0 => return Self::Known(by_kernel(account)),
            Ok(account) => format!("{} events of the kernel's account were lost", account.lost),
            Err(why) => why,
        };
        match expected.ranges.get().zip(expected.bytes.get()) {
            Some((ranges, bytes)) => Self::Expected(Ranges { ranges, bytes }, why),
            None => Self::Unknown(why),
        }
    }
}

/// What the kernel announced where it alone did: for the steps' operations, and where this process swaps, for what its
/// handlers protect or let go of again.
fn by_kernel(account: &Account) -> Ranges {
    account.sum(|cause| matches!(cause, RangeCause::Step | RangeCause::Userfault))
}

/// Fills in what was announced, what was expected and what was needed. `no_account` says why the kernel's own account is
/// missing, if it is.
pub fn fill(row: &mut Row, measured: &Trial, no_account: Option<&str>, warnings: &mut Warnings) {
    let (totals, expected) = (&measured.counts.totals, measured.counts.expected);
    let account = match (&measured.kernel, no_account) {
        (Some(account), None) => Ok(account),
        (_, why) => Err(why.unwrap_or("no step took memory").to_owned()),
    };
    row.needed_bytes = Measured::of(totals.needed_bytes);
    row.expected_ranges = Measured::or_why(expected.ranges.get(), warnings, "expected_ranges", NO_ADDRESS);
    row.expected_bytes = Measured::or_why(expected.bytes.get(), warnings, "expected_bytes", NO_ADDRESS);
    let asked = measured.counts.victims > 0 || totals.invalidations > 0 || expected == Expected::UNKNOWN;
    if row.label.tried.policy != PolicyChoice::Kernel && row.label.tried.reclaim == Reclaim::Cgroup {
        warnings.note("invalidations", AFTERWARDS);
    }
    let announced = match Announced::of(row.label.tried.policy, totals, expected, account, asked) {
        Announced::Known(ranges) => ranges,
        Announced::Expected(ranges, why) => {
            let why = format!(
                "expected of the kernel, from pagemap before each operation, and not measured: {why}"
            );
            Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why.as_str()));
            ranges
        }
        Announced::Unknown(why) => {
            let why = format!("{NO_ADDRESS}; and its own account is missing: {why}");
            Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why.as_str()));
            return;
        }
    };
    row.announce(announced.ranges, announced.bytes, totals.needed_bytes, warnings);
}

#[cfg(test)]
#[path = "announced_tests.rs"]
mod tests;
