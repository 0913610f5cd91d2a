//! A count that may be unknown, which is not the same as 0.

use std::fmt;
use std::ops::AddAssign;

/// A count that may be unknown.
///
/// The sum of a known and an unknown count is unknown, since a partial sum would look like a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(Option<u64>);

impl Count {
    /// Known to be none.
    pub const ZERO: Self = Self(Some(0));
    /// Not counted.
    pub const UNKNOWN: Self = Self(None);

    /// A known count.
    pub const fn of(count: u64) -> Self {
        Self(Some(count))
    }
    /// The count, or `None` where it is unknown.
    pub const fn get(self) -> Option<u64> {
        self.0
    }
}

impl Default for Count {
    /// Nothing has been counted yet: none.
    fn default() -> Self {
        Self::ZERO
    }
}

impl From<Option<u64>> for Count {
    fn from(count: Option<u64>) -> Self {
        Self(count)
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.zip(other.0).map(|(a, b)| a + b);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => count.fmt(f),
            None => f.pad("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn a_sum_with_an_unknown_count_is_unknown_and_zero_is_not() {
        let mut sum = Count::of(2);
        sum += Count::of(3);
        assert_eq!(sum.get(), Some(5));
        sum += Count::UNKNOWN;
        assert_eq!((sum.get(), sum), (None, Count::UNKNOWN));
        assert_ne!(Count::ZERO, Count::UNKNOWN);
        assert_eq!(Count::UNKNOWN.to_string(), "unknown");
    }
}
