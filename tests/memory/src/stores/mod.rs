//! Stores for tests.

mod discard;
mod faulty;
mod plan;
// The model that the stores of `swap` are held against in its own tests; what the stores here have no use for, too.
#[cfg(test)]
#[allow(dead_code, reason = "see above")]
#[path = "../../../../guest-mem/swap/src/store/testing.rs"]
mod testing;

#[cfg(test)]
use swap::{Slot, Store, StoreError};

pub use discard::DiscardStore;
pub use faulty::FaultyStore;
pub use plan::{Fault, FaultKind, FaultPlan, FaultPlanError, StoreCall};

fn check_shape(pages: usize, slots: usize) -> Result<(), swap::StoreError> {
    if pages == slots { Ok(()) } else { Err(swap::StoreError::Shape { pages, slots }) }
}
