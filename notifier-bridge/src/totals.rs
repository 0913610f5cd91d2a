//! Sums over invalidations, by who said so, why, and under which rule.

use std::ops::AddAssign;

use crate::count::Count;
use crate::event::{Cause, Source};
use crate::policy::Policy;
use crate::record::{InvalidationRecord, Outcome};

/// What totals are kept apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TotalsKey {
    /// Who says so. Never add sources up blindly: a hook and the kernel tell of the same invalidation.
    pub source: Source,
    /// What the pages were taken for.
    pub cause: Cause,
    /// The rule for the range; `None` where the kernel chose it.
    pub policy: Option<Policy>,
}

/// Sums over records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Invalidations recorded, those refused included.
    pub records: u64,
    /// Those of them that a listener refused, so that the operation was not performed.
    pub refused: u64,
    /// Ranges told to shadowing listeners.
    pub invalidations: u64,
    /// Bytes the operations had to cover.
    pub needed_bytes: u64,
    /// Bytes of all ranges told.
    pub invalidated_bytes: u64,
    /// Calls to sharing listeners.
    pub sharing_calls: u64,
    /// Those of them that only repeated an earlier one.
    pub double_calls: u64,
    /// Memslots that lost translations.
    pub slots_zapped: u64,
    /// Bytes that shadowing listeners really dropped.
    pub zapped_bytes: u64,
    /// Leaf entries of 4 KiB dropped.
    pub sptes_zapped_4k: Count,
    /// Leaf entries of 2 MiB dropped.
    pub sptes_zapped_2m: Count,
    /// Time in starts and in page and range calls.
    pub zap_ns: u64,
    /// Time in the operations themselves.
    pub operation_ns: u64,
    /// Time in ends.
    pub end_ns: u64,
}

impl Totals {
    /// Of no records.
    pub const ZERO: Self = Self {
        records: 0,
        refused: 0,
        invalidations: 0,
        needed_bytes: 0,
        invalidated_bytes: 0,
        sharing_calls: 0,
        double_calls: 0,
        slots_zapped: 0,
        zapped_bytes: 0,
        sptes_zapped_4k: Count::ZERO,
        sptes_zapped_2m: Count::ZERO,
        zap_ns: 0,
        operation_ns: 0,
        end_ns: 0,
    };

    /// Bytes invalidated over bytes needed, or `None` if nothing was needed.
    pub fn amplification(&self) -> Option<f64> {
        (self.needed_bytes > 0).then(|| self.invalidated_bytes as f64 / self.needed_bytes as f64)
    }

    fn of(record: &InvalidationRecord) -> Self {
        Self {
            records: 1,
            refused: u64::from(record.outcome == Outcome::Refused),
            invalidations: record.ranges,
            needed_bytes: record.needed_bytes,
            invalidated_bytes: record.invalidated_bytes,
            sharing_calls: record.sharing_calls,
            double_calls: record.double_calls,
            slots_zapped: record.zapped.slots,
            zapped_bytes: record.zapped.bytes,
            sptes_zapped_4k: record.zapped.sptes_4k,
            sptes_zapped_2m: record.zapped.sptes_2m,
            zap_ns: record.zap_ns,
            operation_ns: record.operation_ns,
            end_ns: record.end_ns,
        }
    }
}

impl Default for Totals {
    fn default() -> Self {
        Self::ZERO
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        // Taken apart by name, so that a field added to the struct and forgotten here does not compile.
        let Self {
            records,
            refused,
            invalidations,
            needed_bytes,
            invalidated_bytes,
            sharing_calls,
            double_calls,
            slots_zapped,
            zapped_bytes,
            sptes_zapped_4k,
            sptes_zapped_2m,
            zap_ns,
            operation_ns,
            end_ns,
        } = other;
        self.records += records;
        self.refused += refused;
        self.invalidations += invalidations;
        self.needed_bytes += needed_bytes;
        self.invalidated_bytes += invalidated_bytes;
        self.sharing_calls += sharing_calls;
        self.double_calls += double_calls;
        self.slots_zapped += slots_zapped;
        self.zapped_bytes += zapped_bytes;
        self.sptes_zapped_4k += sptes_zapped_4k;
        self.sptes_zapped_2m += sptes_zapped_2m;
        self.zap_ns += zap_ns;
        self.operation_ns += operation_ns;
        self.end_ns += end_ns;
    }
}

/// The policies and "the kernel chose".
const POLICIES: usize = Policy::ALL.len() + 1;
/// Every key that can occur.
const KEYS: usize = Source::ALL.len() * Cause::ALL.len() * POLICIES;

/// One [`Totals`] for every key that can occur, so that adding a record is an index and not a search.
#[derive(Clone, Debug)]
pub struct TotalsTable(Box<[Totals]>);

impl TotalsTable {
    pub(crate) fn new() -> Self {
        Self(vec![Totals::ZERO; KEYS].into())
    }

    pub(crate) fn add(&mut self, record: &InvalidationRecord) {
        let key = TotalsKey { source: record.source, cause: record.cause, policy: record.policy };
        self.0[index(key)] += Totals::of(record);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (own, others) in self.0.iter_mut().zip(&other.0) {
            *own += *others;
        }
    }

    /// The totals of every key that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (TotalsKey, &Totals)> {
        keys().zip(&self.0).filter(|(_, totals)| totals.records > 0)
    }

    /// The totals of the keys that `wanted` picks, in one sum.
    pub fn sum(&self, wanted: impl Fn(TotalsKey) -> bool) -> Totals {
        let mut sum = Totals::ZERO;
        for (_, totals) in self.iter().filter(|(key, _)| wanted(*key)) {
            sum += *totals;
        }
        sum
    }
}

fn index(key: TotalsKey) -> usize {
    let policy = key.policy.map_or(Policy::ALL.len(), Policy::index);
    (key.source.index() * Cause::ALL.len() + key.cause.index()) * POLICIES + policy
}

/// Every key, in the order of [`index`].
fn keys() -> impl Iterator<Item = TotalsKey> {
    Source::ALL.iter().flat_map(|&source| {
        Cause::ALL.iter().flat_map(move |&cause| {
            let policies = Policy::ALL.iter().copied().map(Some).chain([None]);
            policies.map(move |policy| TotalsKey { source, cause, policy })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_field_by_field() {
        let of = |n: u64| Totals {
            records: n,
            refused: 2 * n,
            invalidations: 3 * n,
            needed_bytes: 4 * n,
            invalidated_bytes: 5 * n,
            sharing_calls: 6 * n,
            double_calls: 7 * n,
            slots_zapped: 8 * n,
            zapped_bytes: 9 * n,
            sptes_zapped_4k: Count::of(10 * n),
            sptes_zapped_2m: Count::of(11 * n),
            zap_ns: 12 * n,
            operation_ns: 13 * n,
            end_ns: 14 * n,
        };
        let mut sum = of(10);
        sum += of(1);
        assert_eq!(sum, of(11));
    }

    #[test]
    fn every_key_has_its_own_place() {
        assert_eq!(keys().count(), KEYS);
        assert!(keys().enumerate().all(|(place, key)| index(key) == place));
    }
}
