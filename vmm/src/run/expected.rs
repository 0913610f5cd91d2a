//! What the kernel is expected to announce.

use guest_mem::Planned;
use notifier_bridge::Count;

/// Ranges that the kernel is expected to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// How many ranges.
    pub ranges: Count,
    /// Bytes of all of them.
    pub bytes: Count,
}

impl Expected {
    /// None.
    pub const NOTHING: Self = Self { ranges: Count::ZERO, bytes: Count::ZERO };
    /// The kernel chooses for itself.
    pub const UNKNOWN: Self = Self { ranges: Count::UNKNOWN, bytes: Count::UNKNOWN };

    /// What was planned for one operation.
    pub fn of(planned: &[Planned]) -> Self {
        let bytes = planned.iter().map(|planned| planned.range().len()).sum();
        Self { ranges: Count::of(planned.len() as u64), bytes: Count::of(bytes) }
    }
}

impl std::ops::AddAssign for Expected {
    fn add_assign(&mut self, other: Self) {
        self.ranges += other.ranges;
        self.bytes += other.bytes;
    }
}
