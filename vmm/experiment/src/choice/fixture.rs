//! Labels made by hand, for tests.
#![allow(clippy::unwrap_used, reason = "for tests")]

use super::{Combination, Granule, RowLabel};

/// The label of these words: case, backing, policy, reclaim, zap, listener. Memslots of 2 MiB.
pub fn label(words: [&str; 6]) -> RowLabel {
    let [case, backing, policy, reclaim, zap, listener] = words;
    let tried = Combination {
        backing: backing.parse().unwrap(),
        policy: policy.parse().unwrap(),
        reclaim: reclaim.parse().unwrap(),
        granule: Granule::DEFAULT,
        zap: zap.parse().unwrap(),
    };
    RowLabel { case: case.to_owned(), tried, listener: listener.parse().unwrap() }
}
