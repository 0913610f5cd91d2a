//! The calls that every listener gets under each policy, and after a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use guest_mem::HvaRange;

use super::*;
use crate::doubles::{Journal, PanicsOnce, Told, folio_at, range, slots};
use crate::event::Cause;

const MIB: u64 = 1 << 20;

fn two_runs() -> Arc<SlotTable> {
    Arc::new(slots(&[(0, 4 * MIB, 4 * MIB, MIB), (16 * MIB, 12 * MIB, MIB, MIB)]))
}

/// An order-1 folio 12 KiB below a 2 MiB boundary.
fn page_out() -> Invalidation {
    let victim = folio_at(6 * MIB - 0x3000, 1);
    Invalidation { cause: Cause::PageOut, victim, vma: range(4 * MIB, 4 * MIB) }
}

/// A bridge with one listener of each kind, what they were told, and the record of it.
fn run(policy: Policy) -> (Vec<Told>, InvalidationRecord) {
    let journal = Journal::default();
    let bridge = Bridge::new(policy, two_runs())
        .shadowing(Arc::new(journal.shadowing("kvm")))
        .sharing(journal.sharing("iommu"));
    let mut records = Vec::new();
    let result = bridge.invalidate(&mut records, &page_out(), || {
        journal.write(Told::Operation);
        42
    });
    assert_eq!(result, 42);
    (journal.take(), records[0])
}

const FIRST: (u64, u64) = (0x5f_d000, 0x1000);
const SECOND: (u64, u64) = (0x5f_e000, 0x1000);

fn at((start, len): (u64, u64)) -> HvaRange {
    range(start, len)
}

#[test]
fn page_by_page_up_to_4_12() {
    let (told, record) = run(Policy::Page);
    assert_eq!(
        told,
        [
            Told::Operation,
            Told::Page("kvm", at(FIRST)),
            Told::Flush("iommu", at(FIRST)),
            Told::Page("kvm", at(SECOND)),
            Told::Flush("iommu", at(SECOND)),
        ]
    );
    assert_eq!((record.ranges, record.invalidated_bytes), (2, 0x2000));
    assert_eq!((record.sharing_calls, record.double_calls), (2, 0));
}

#[test]
fn the_double_call_of_the_range_eras() {
    for (policy, bytes) in [(Policy::Pmd, 0x3000), (Policy::Folio, 0x2000)] {
        let (told, record) = run(policy);
        let bracket = range(0x5f_d000, bytes);
        assert_eq!(
            told,
            [
                Told::Start("kvm", bracket),
                Told::Operation,
                Told::Flush("iommu", at(FIRST)),
                Told::Flush("iommu", at(SECOND)),
                Told::Flush("iommu", bracket),
                Told::End("kvm", bracket),
            ],
            "{policy}"
        );
        assert_eq!((record.ranges, record.invalidated_bytes), (1, bytes));
        assert_eq!((record.sharing_calls, record.double_calls), (3, 1));
    }
}

#[test]
fn no_double_call_since_6_6() {
    let (told, record) = run(Policy::Modern);
    let bracket = range(0x5f_d000, 0x2000);
    assert_eq!(
        told,
        [
            Told::Start("kvm", bracket),
            Told::Operation,
            Told::Flush("iommu", bracket),
            Told::End("kvm", bracket)
        ]
    );
    assert_eq!((record.sharing_calls, record.double_calls), (1, 0));
    assert_eq!((record.needed_bytes, record.zapped.bytes, record.zapped.slots), (0x2000, 0x2000, 1));
}

#[test]
fn a_slot_whole_and_every_slot() {
    let (told, _) = run(Policy::Slot);
    let (slot, victim) = (range(5 * MIB, MIB), range(0x5f_d000, 0x2000));
    let flush = Told::Flush("iommu", victim);
    assert_eq!(told, [Told::Start("kvm", slot), Told::Operation, flush, Told::End("kvm", slot)]);

    let (told, record) = run(Policy::Vm);
    let (first, second) = (range(4 * MIB, 4 * MIB), range(12 * MIB, MIB));
    assert_eq!(
        told,
        [
            Told::Start("kvm", first),
            Told::Start("kvm", second),
            Told::Operation,
            flush,
            Told::End("kvm", second),
            Told::End("kvm", first),
        ]
    );
    assert_eq!((record.ranges, record.invalidated_bytes, record.needed_bytes), (2, 5 * MIB, 0x2000));
}

#[test]
fn an_operation_that_panics_is_told_to_the_end() {
    let journal = Journal::default();
    let bridge = Bridge::new(Policy::Folio, two_runs())
        .shadowing(Arc::new(journal.shadowing("kvm")))
        .sharing(journal.sharing("iommu"));
    let mut records = Vec::new();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        bridge.invalidate(&mut records, &page_out(), || -> () { panic!("half done") })
    }));
    assert!(unwound.is_err());
    let r = range(0x5f_d000, 0x2000);
    assert_eq!(
        journal.take(),
        [
            Told::Start("kvm", r),
            Told::Flush("iommu", at(FIRST)),
            Told::Flush("iommu", at(SECOND)),
            Told::Flush("iommu", r),
            Told::End("kvm", r),
        ]
    );
    assert!(records.is_empty());
}

#[test]
fn a_start_that_panics_leaves_no_bracket_open() {
    let journal = Journal::default();
    let bridge = Bridge::new(Policy::Vm, two_runs())
        .shadowing(Arc::new(journal.shadowing("a")))
        .shadowing(Arc::new(PanicsOnce::new(journal.shadowing("b"), 1)));
    let mut records = Vec::new();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        bridge.invalidate(&mut records, &page_out(), || unreachable!("a start panics before"))
    }));
    assert!(unwound.is_err());
    let told = journal.take();
    let (first, second) = (range(4 * MIB, 4 * MIB), range(12 * MIB, MIB));
    assert_eq!(
        told[3..],
        [Told::End("a", second), Told::End("a", first), Told::End("b", first)],
        "of {told:?}"
    );
}

/// Ends with a panic, once.
struct BadEnd(crate::doubles::Journal);

impl crate::Listener for BadEnd {
    type Kind = crate::Shadowing;
}

impl ShadowingMmu for BadEnd {
    fn invalidate_range_start(&self, _: HvaRange) -> crate::Zapped {
        crate::Zapped::NOTHING
    }
    fn invalidate_range_end(&self, range: HvaRange) {
        self.0.write(Told::End("bad", range));
        panic!("bad end");
    }
}

#[test]
fn an_end_that_panics_keeps_nobody_else_from_theirs() {
    let journal = Journal::default();
    let bridge = Bridge::new(Policy::Modern, two_runs())
        .shadowing(Arc::new(BadEnd(journal.clone())))
        .shadowing(Arc::new(journal.shadowing("after")));
    let mut records = Vec::new();
    let unwound = catch_unwind(AssertUnwindSafe(|| bridge.invalidate(&mut records, &page_out(), || ())));
    assert!(unwound.is_err());
    let r = range(0x5f_d000, 0x2000);
    assert_eq!(journal.take(), [Told::Start("after", r), Told::End("bad", r), Told::End("after", r)]);
}

#[test]
fn the_parts_of_an_invalidation_are_timed_apart() {
    let bridge = Bridge::new(Policy::Modern, two_runs());
    let mut records = Vec::new();
    let before = monotonic_ns();
    let pause = std::time::Duration::from_millis(3);
    bridge.invalidate(&mut records, &page_out(), || std::thread::sleep(pause));
    let after = monotonic_ns();
    let record = records[0];
    assert!((before..=after).contains(&record.start_ns));
    assert!(record.operation_ns >= 3_000_000, "{record:?}");
    assert!(record.zap_ns + record.operation_ns + record.end_ns <= after - before, "{record:?}");
}

/// Takes its time over each kind of call.
struct Slow<K> {
    start: Duration,
    end: Duration,
    flush: Duration,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K> Slow<K> {
    const fn new(start: u64, end: u64, flush: u64) -> Self {
        let [start, end, flush] =
            [Duration::from_millis(start), Duration::from_millis(end), Duration::from_millis(flush)];
        Self { start, end, flush, kind: std::marker::PhantomData }
    }
}

impl<K: crate::ListenerKind> crate::Listener for Slow<K> {
    type Kind = K;
}

impl ShadowingMmu for Slow<crate::Shadowing> {
    fn invalidate_range_start(&self, _: HvaRange) -> crate::Zapped {
        std::thread::sleep(self.start);
        crate::Zapped::NOTHING
    }
    fn invalidate_range_end(&self, _: HvaRange) {
        std::thread::sleep(self.end);
    }
}

impl SharingMmu for Slow<crate::Sharing> {
    fn invalidate_secondary_tlbs(&self, _: HvaRange) {
        std::thread::sleep(self.flush);
    }
}

/// The record of an invalidation whose listeners take 2 ms for a start, 8 ms for an end and 4 ms for a flush. Its three
/// times add up to no more than it took, so an excess in one is missing in the other two.
fn timed(policy: Policy, sharing: bool) -> InvalidationRecord {
    let mut bridge = Bridge::new(policy, two_runs()).shadowing(Arc::new(Slow::new(2, 8, 0)));
    if sharing {
        bridge = bridge.sharing(Arc::new(Slow::new(0, 0, 4)));
    }
    let mut records = Vec::new();
    let before = monotonic_ns();
    bridge.invalidate(&mut records, &page_out(), || std::thread::sleep(Duration::from_millis(16)));
    let elapsed = monotonic_ns() - before;
    let record = records[0];
    assert!(record.zap_ns + record.operation_ns + record.end_ns <= elapsed, "{record:?} of {elapsed}");
    record
}

fn assert_at_least(record: &InvalidationRecord, zap: u64, operation: u64, end: u64) {
    let ms = 1_000_000;
    assert!(record.zap_ns >= zap * ms, "{record:?}");
    assert!(record.operation_ns >= operation * ms, "{record:?}");
    assert!(record.end_ns >= end * ms, "{record:?}");
}

#[test]
fn each_part_has_the_time_of_its_own_calls() {
    // Two pages are flushed one by one, and the repeat belongs to the end.
    assert_at_least(&timed(Policy::Folio, true), 2 + 2 * 4, 16, 4 + 8);
    assert_at_least(&timed(Policy::Modern, true), 2 + 4, 16, 8);
    assert_at_least(&timed(Policy::Modern, false), 2, 16, 8);
    // A page call is a start and an end of its own, and there is no other end.
    let page = timed(Policy::Page, true);
    assert_at_least(&page, 2 * (2 + 8 + 4), 16, 0);
    assert_eq!(page.end_ns, 0);
}

#[test]
fn several_threads_share_a_bridge() {
    const EACH: u64 = 500;
    let journal = Journal::default();
    let bridge = Bridge::new(Policy::Folio, two_runs()).shadowing(Arc::new(journal.shadowing("kvm")));
    let records: Vec<InvalidationRecord> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut records = Vec::new();
                    for _ in 0..EACH {
                        bridge.invalidate(&mut records, &page_out(), || ());
                    }
                    records
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let starts = journal.take().iter().filter(|told| matches!(told, Told::Start(..))).count() as u64;
    assert_eq!((starts, records.len() as u64), (3 * EACH, 3 * EACH));
    let needed: u64 = records.iter().map(|record| record.needed_bytes).sum();
    assert_eq!(needed, 3 * EACH * 0x2000);
}
