//! Stores for tests.

mod faulty;
// The model that the stores of `swap` are held against in its own tests; what the stores here have no use for, too.
#[cfg(test)]
#[allow(dead_code, reason = "see above")]
#[path = "../../../../guest-mem/swap/src/store/testing.rs"]
mod testing;

#[cfg(test)]
use swap::{Slot, Store, StoreError};

pub use faulty::{FaultyStore, StoreCall, StoreFault};
