//! Sums of ranges.

use serde::{Deserialize, Serialize};

/// Ranges and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// The number of ranges.
    pub ranges: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl std::ops::AddAssign for Ranges {
    fn add_assign(&mut self, other: Self) {
        self.ranges = self.ranges.saturating_add(other.ranges);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Ranges that a guest's operating system gave back by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBack {
    /// By its balloon.
    pub balloon: Ranges,
    /// By reporting pages as free.
    pub reported: Ranges,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_largest_number() {
        let mut sum = Ranges { ranges: 1, bytes: 4096 };
        sum += Ranges { ranges: 2, bytes: u64::MAX };
        assert_eq!(sum, Ranges { ranges: 3, bytes: u64::MAX });
    }
}
