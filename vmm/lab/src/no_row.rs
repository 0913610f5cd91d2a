//! Rows without numbers: the reason, and the consequence for the rows after them.

use guest_mem::{SwapInfo, with_causes};
use swap::{AttachError, EvictError, StoreError};

use super::ended::RunError;
use super::errors::TrialError;
use super::tune::offer_of_tune;
use experiment::scenario::RowPlan;
use machine::VmError;

const INCOMPRESSIBLE: &str = "the guest fills its pages with a pattern that does not compress, so that `limit` under [uffd] \
                              is to be more than all that is taken";

/// The reason for a row without numbers.
pub enum NoRow {
    /// This host cannot run it.
    Unavailable(String),
    /// It was tried and failed.
    Failed(String),
    Cancelled,
    Fatal(RunError),
}

/// The consequence of an error. One of a guest that may have met a limit of the host costs that row alone: the next row has
/// another guest, or memory of its own.
pub fn failure(plan: &RowPlan<'_>, error: TrialError, one_row: Option<String>) -> NoRow {
    match (error, one_row) {
        (TrialError::Cancelled(_), _) => NoRow::Cancelled,
        (TrialError::Guest(_), Some(limit)) => NoRow::Failed(limit),
        (error @ TrialError::Guest(_), None) => NoRow::Fatal(RunError::Guest {
            case: plan.case.name.clone(),
            row: describe(plan),
            source: Box::new(error),
        }),
        (TrialError::Attach(AttachError::Open(why)), _) => NoRow::Unavailable(with_causes(&why)),
        (error @ TrialError::Evict(EvictError::Store { source: StoreError::Full { .. }, .. }), _) => {
            NoRow::Failed(format!("{}; {INCOMPRESSIBLE}", with_causes(&error)))
        }
        (error, _) => NoRow::Failed(with_causes(&error)),
    }
}

/// The consequence of a VM that cannot be made, or cannot be given the memory of a row.
pub fn no_vm(error: VmError) -> NoRow {
    match error {
        VmError::NoKvm(_) | VmError::Memory(_) | VmError::Slots(_) | VmError::QuirkStays(_) => {
            NoRow::Unavailable(with_causes(&error))
        }
        VmError::Slot { .. } | VmError::Broken(_) | VmError::Thread { .. } | VmError::ThreadLost => {
            NoRow::Failed(with_causes(&error))
        }
        VmError::Call { .. } | VmError::Boot(_) => NoRow::Fatal(RunError::Machine(error)),
    }
}

/// The thing that this row needs and the host lacks, with the remedy.
pub fn unavailable(plan: &RowPlan<'_>, memory: u64, tuned: bool) -> Option<String> {
    let combination = &plan.combination;
    if let Some(why) = combination.backing.unavailable_here(memory) {
        let tune = if tuned { "" } else { offer_of_tune(&why) };
        return Some(format!("{why}{tune}"));
    }
    if combination.reclaim.uses_swap() && SwapInfo::read().free() == 0 {
        let what = combination.reclaim.to_string();
        return Some(format!(
            "{what} needs swap and there is none: run as root with `--zram 1GiB`, or `swapon` a device"
        ));
    }
    None
}

/// A row in words: `4k, folio, pageout, granule 2 MiB, zap protect`.
pub fn describe(plan: &RowPlan<'_>) -> String {
    let c = &plan.combination;
    format!("{c}, granule {}, zap {}", c.granule, c.zap)
}
