//! A thread's own notebook of invalidations: nothing in it locks, allocates or formats while it records.

use crate::record::InvalidationRecord;
use crate::totals::TotalsTable;

/// Records of one thread, in a buffer of fixed size, and exact totals of all of them.
///
/// A record that finds the buffer full is lost as a record and still counted in the totals, and in
/// [`Recorder::lost`]. Recorders are merged once, by [`Ledger::merge`](crate::Ledger::merge).
#[derive(Debug)]
pub struct Recorder {
    records: Vec<InvalidationRecord>,
    /// What the caller chose; `Vec` may have given more.
    capacity: usize,
    next_number: u64,
    lost: u64,
    totals: TotalsTable,
}

impl Recorder {
    /// A recorder that keeps up to `capacity` records. 0 keeps totals only.
    ///
    /// The buffer is written to once here, so that the first records do not pay for page faults. Beside it
    /// stand about 60 KiB of totals.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut records = vec![InvalidationRecord::blank(); capacity];
        records.clear();
        Self { records, capacity, next_number: 0, lost: 0, totals: TotalsTable::new() }
    }

    /// Keeps one record. Its `number` is given here.
    #[inline]
    pub fn record(&mut self, record: &InvalidationRecord) {
        let number = self.next_number;
        self.next_number += 1;
        self.totals.add(record);
        if self.records.len() < self.capacity {
            self.records.push(InvalidationRecord { number, ..*record });
        } else {
            self.lost += 1;
        }
    }

    /// The records kept so far, in order.
    pub fn records(&self) -> &[InvalidationRecord] {
        &self.records
    }
    /// Records that found the buffer full. They are in the totals.
    pub fn lost(&self) -> u64 {
        self.lost
    }
    /// Exact totals of everything recorded, kept or lost.
    pub fn totals(&self) -> &TotalsTable {
        &self.totals
    }

    pub(crate) fn into_parts(self) -> (Vec<InvalidationRecord>, u64, TotalsTable) {
        (self.records, self.lost, self.totals)
    }
}
