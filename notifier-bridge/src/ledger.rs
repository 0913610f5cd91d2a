//! The ledger: the notebooks of all threads, merged once at the end.

use crate::record::InvalidationRecord;
use crate::recorder::Recorder;
use crate::totals::{Totals, TotalsKey, TotalsTable};

/// Every record of a span, in order of time, and exact totals.
#[derive(Debug)]
pub struct Ledger {
    records: Vec<InvalidationRecord>,
    lost: u64,
    totals: TotalsTable,
}

impl Ledger {
    /// Merges the recorders of all threads. Each record then says which of them made it.
    pub fn merge(recorders: impl IntoIterator<Item = Recorder>) -> Self {
        let mut ledger = Self { records: Vec::new(), lost: 0, totals: TotalsTable::new() };
        for (recorder, number) in recorders.into_iter().zip(0..) {
            let (records, lost, totals) = recorder.into_parts();
            ledger.records.extend(records.into_iter().map(|r| InvalidationRecord { recorder: number, ..r }));
            ledger.lost += lost;
            ledger.totals.merge(&totals);
        }
        ledger.records.sort_by_key(|r| (r.start_ns, r.recorder, r.number));
        ledger
    }

    /// The records that were kept, by time.
    pub fn records(&self) -> &[InvalidationRecord] {
        &self.records
    }
    /// Records that found their recorder's buffer full. They are missing above and counted below.
    pub fn lost(&self) -> u64 {
        self.lost
    }
    /// Exact totals by source, cause and policy, of every key that occurred.
    pub fn totals(&self) -> impl Iterator<Item = (TotalsKey, &Totals)> {
        self.totals.iter()
    }
    /// Exact totals of the keys that `wanted` picks, in one sum.
    pub fn sum(&self, wanted: impl Fn(TotalsKey) -> bool) -> Totals {
        self.totals.sum(wanted)
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::{Hva, HvaRange, MapLevel, Order, Victim};

    use super::*;
    use crate::count::Count;
    use crate::event::{Cause, Invalidation, Source};
    use crate::policy::Policy;

    fn record(start_ns: u64, source: Source, cause: Cause) -> InvalidationRecord {
        let pages = HvaRange::with_len(Hva::new(0x10_0000), 0x1000).unwrap();
        let victim = Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
        let invalidation = Invalidation { source, ..Invalidation::hook(cause, victim, pages) };
        InvalidationRecord::observed(&invalidation, start_ns)
    }

    #[test]
    fn a_full_recorder_loses_records_and_no_totals() {
        let mut recorder = Recorder::with_capacity(2);
        for time in 0..5 {
            recorder.record(&record(time, Source::Kernel, Cause::PageOut));
        }
        assert_eq!((recorder.records().len(), recorder.lost()), (2, 3));
        assert_eq!(recorder.totals().sum(|_| true).records, 5);
        assert_eq!(recorder.records()[1].number, 1);
    }

    #[test]
    fn merging_sorts_by_time_and_says_who() {
        let (mut a, mut b) = (Recorder::with_capacity(4), Recorder::with_capacity(4));
        for time in [1, 4] {
            a.record(&record(time, Source::Hook, Cause::PageOut));
        }
        for time in [2, 4, 9] {
            b.record(&record(time, Source::Kernel, Cause::PageOut));
        }
        let ledger = Ledger::merge([a, b]);
        let order: Vec<_> = ledger.records().iter().map(|r| (r.start_ns, r.recorder, r.number)).collect();
        assert_eq!(order, [(1, 0, 0), (2, 1, 0), (4, 0, 1), (4, 1, 1), (9, 1, 2)]);
        let sources: Vec<_> = ledger.totals().map(|(key, t)| (key.source, t.records)).collect();
        assert_eq!(sources, [(Source::Hook, 2), (Source::Kernel, 3)], "sources are kept apart");
        assert_eq!(ledger.sum(|key| key.source == Source::Hook).needed_bytes, 0x2000);
    }

    #[test]
    fn amplification_is_invalidated_over_needed_and_unknown_stays_unknown() {
        let mut recorder = Recorder::with_capacity(0);
        let mut wide = record(0, Source::Hook, Cause::PageOut);
        wide.policy = Some(Policy::Pmd);
        wide.invalidated_bytes = 0x10_0000;
        recorder.record(&wide);
        let sum = recorder.totals().sum(|_| true);
        assert_eq!(sum.amplification(), Some(256.0));
        assert_eq!(sum.sptes_zapped_4k, Count::UNKNOWN);
        assert_eq!(Totals::ZERO.amplification(), None, "of nothing there is no ratio");
    }

    #[test]
    fn a_pmd_split_needs_its_two_mebibytes() {
        assert_eq!(record(0, Source::Hook, Cause::PmdSplit).needed_bytes, 2 << 20);
        assert_eq!(record(0, Source::Hook, Cause::PageOut).needed_bytes, 0x1000);
    }
}
