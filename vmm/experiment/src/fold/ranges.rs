//! Sums of the ranges that the kernel announced: the one place where they are added up, for a run and for the VM of another
//! process.

use std::collections::BTreeMap;

use guest_mem::{PAGE_SIZE, PMD_SIZE};
use notifier_bridge::By;

use crate::events::{KernelRange, Ranges};

/// Classes of size: each range is in the first whose limit it does not exceed.
pub const RANGE_SIZES: [(&str, u64); 5] =
    [("4 KiB", PAGE_SIZE), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("2 MiB", PMD_SIZE), ("more", u64::MAX)];

/// Ranges by maker, by the maker's system call where that is known, and by class of size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSums<C>(BTreeMap<(By, Option<C>, usize), Ranges>);

impl<C> Default for RangeSums<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<C: Copy + Ord> RangeSums<C> {
    /// Adds a range, which `call` announced.
    pub fn add(&mut self, range: &KernelRange, call: Option<C>) {
        let size = RANGE_SIZES.iter().position(|(_, most)| range.bytes <= *most).unwrap_or_default();
        *self.0.entry((range.cause, call, size)).or_default() += Ranges { ranges: 1, bytes: range.bytes };
    }

    /// Adds the sums of another span.
    pub fn merge(&mut self, other: &Self) {
        for (key, ranges) in &other.0 {
            *self.0.entry(*key).or_default() += *ranges;
        }
    }

    /// The sum over the makers, calls and classes of size that `wanted` selects.
    pub fn sum(&self, wanted: impl Fn(By, Option<C>, usize) -> bool) -> Ranges {
        let mut sum = Ranges::default();
        self.iter().filter(|(by, call, size, _)| wanted(*by, *call, *size)).for_each(|(.., one)| sum += one);
        sum
    }

    /// Every maker, call and class of size of which there is a range, with its sum.
    pub fn iter(&self) -> impl Iterator<Item = (By, Option<C>, usize, Ranges)> {
        self.0.iter().map(|((by, call, size), ranges)| (*by, *call, *size, *ranges))
    }
}
