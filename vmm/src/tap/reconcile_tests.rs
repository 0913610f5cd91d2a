use guest_mem::{Hva, MapLevel, Order, Victim};
use proptest::prelude::*;

use super::super::tracepoints::Call as Syscall;
use super::super::tracepoints::{What, Work};
use super::*;

const US: u32 = 100;
const WORKER: u32 = 101;
const VCPU: u32 = 102;
const KSWAPD: u32 = 50;
const OTHER: u32 = 900;

fn range(page: u64, pages: u64) -> HvaRange {
    HvaRange::with_len(Hva::new(page << 12), pages << 12).unwrap()
}

fn tasks() -> Vec<Task> {
    let task = |tid, pid, comm: &str, kernel| Task { tid, pid: Some(pid), comm: comm.to_owned(), kernel };
    vec![
        task(KSWAPD, KSWAPD, "kswapd0", true),
        task(WORKER, US, "zapscope", false),
        task(VCPU, US, "vcpu0", false),
        task(OTHER, 800, "qemu", false),
    ]
}

fn event(time_ns: u64, tid: u32, what: What) -> Event {
    let pid = match tid {
        WORKER | VCPU => US,
        OTHER => 800,
        other => other,
    };
    Event { time_ns, pid, tid, what }
}

fn announced(time_ns: u64, tid: u32, pages: HvaRange) -> Event {
    event(time_ns, tid, What::Range(pages))
}

fn take(pages: HvaRange) -> Planned {
    Planned::Take(Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true })
}

/// One exact operation from 100 to 200 that takes pages 1 and 3.
fn operations() -> Operations {
    let mut operations = Operations::of_thread(WORKER);
    operations.note(100, 200, &[take(range(1, 1)), take(range(3, 1))], Promise::Exact);
    operations
}

fn account(events: &[Event], operations: &Operations) -> Account {
    let mut account = Account::default();
    account.add(events, operations, &tasks(), US, |_, _, _| ());
    account
}

#[test]
fn a_range_is_a_steps_by_thread_and_time() {
    let events = [
        announced(99, WORKER, range(1, 1)),
        announced(100, WORKER, range(1, 1)),
        announced(150, KSWAPD, range(7, 1)),
        announced(160, VCPU, range(8, 2)),
        announced(170, OTHER, range(9, 1)),
        announced(175, 12345, range(9, 1)),
        announced(200, WORKER, range(3, 1)),
        announced(201, WORKER, range(3, 1)),
    ];
    let account = account(&events, &operations());
    assert_eq!(account.of(RangeCause::Step), Ranges { ranges: 2, bytes: 8192 });
    assert_eq!(account.of(RangeCause::Zap).ranges, 2);
    assert_eq!(account.of(RangeCause::GuestFault), Ranges { ranges: 1, bytes: 8192 });
    assert_eq!(account.of(RangeCause::Kswapd).ranges, 1);
    assert_eq!(account.of(RangeCause::AnotherProcess).ranges, 1);
    assert_eq!(account.of(RangeCause::Unattributed).ranges, 1);
    assert_eq!(account.sum(RangeCause::is_stranger).ranges, 2);
    assert_eq!((account.compared, account.differed), (1, 0));
}

#[test]
fn what_a_thread_is_at_is_the_cause() {
    let events = [
        event(110, WORKER, What::Begin(Work::DirectReclaim)),
        announced(120, WORKER, range(30, 1)),
        event(130, WORKER, What::End(Work::DirectReclaim)),
        announced(140, WORKER, range(1, 1)),
        event(150, VCPU, What::Begin(Work::Call(Syscall::Madvise(4)))),
        event(151, VCPU, What::Begin(Work::Compaction)),
        event(152, VCPU, What::Begin(Work::Migration)),
        announced(153, VCPU, range(31, 1)),
        event(154, VCPU, What::End(Work::Migration)),
        announced(155, VCPU, range(31, 1)),
        event(156, VCPU, What::End(Work::Compaction)),
        announced(157, VCPU, range(31, 1)),
        event(158, VCPU, What::End(Work::Call(Syscall::Madvise(0)))),
        announced(160, WORKER, range(3, 1)),
    ];
    let account = account(&events, &operations());
    for (cause, ranges) in [
        (RangeCause::DirectReclaim, 1),
        (RangeCause::Migration, 1),
        (RangeCause::Compaction, 1),
        (RangeCause::GuestFault, 1),
        (RangeCause::Step, 2),
    ] {
        assert_eq!(account.of(cause).ranges, ranges, "{cause:?}");
    }
    assert_eq!(account.differed, 0);
}

#[test]
fn reclaim_that_a_step_asks_for_is_the_steps() {
    let mut operations = Operations::of_thread(WORKER);
    operations.note(100, 200, &[], Promise::Reclaim);
    let events = [
        event(110, WORKER, What::Begin(Work::MemcgReclaim)),
        announced(120, WORKER, range(30, 1)),
        event(130, WORKER, What::End(Work::MemcgReclaim)),
    ];
    let account = account(&events, &operations);
    assert_eq!((account.of(RangeCause::Step).ranges, account.compared), (1, 0));
}

#[test]
fn accounts_that_disagree_say_where() {
    let missing = account(&[announced(110, WORKER, range(1, 1))], &operations());
    assert_eq!((missing.compared, missing.differed), (1, 1));
    assert!(missing.sentences[0].contains("1 that the kernel did not announce: "), "{:?}", missing.sentences);
    let wider = [announced(110, WORKER, range(1, 1)), announced(111, WORKER, range(3, 2))];
    let wider = account(&wider, &operations());
    assert!(wider.sentences[0].contains("did not announce") && wider.sentences[0].contains("beside"));
    let mut all = missing.clone();
    all.pool(&wider);
    assert_eq!((all.differed, all.sentences.len(), all.of(RangeCause::Step).ranges), (2, 2, 1));
}

#[test]
fn a_split_may_be_announced_again_and_a_page_may_not() {
    let block = range(512, 512);
    let mut operations = Operations::of_thread(WORKER);
    operations.note(100, 200, &[Planned::SplitPmd(block), take(range(513, 1))], Promise::Exact);
    let differed = |ranges: &[HvaRange]| {
        let events: Vec<_> = ranges.iter().map(|range| announced(150, WORKER, *range)).collect();
        account(&events, &operations).differed
    };
    assert_eq!(differed(&[block, range(513, 1)]), 0);
    assert_eq!(differed(&[block, block, range(513, 1)]), 0);
    assert_eq!(differed(&[block, block, block, block, range(513, 1)]), 0);
    assert_eq!(differed(&[block, block, block, block, block, range(513, 1)]), 1);
    assert_eq!(differed(&[block, range(513, 1), range(513, 1)]), 1);
    assert_eq!(differed(&[range(513, 1)]), 1);
}

#[test]
fn a_hole_may_split_folios_at_its_ends_and_nothing_elsewhere() {
    let mut operations = Operations::of_thread(WORKER);
    operations.note(100, 200, &[Planned::Exact(range(600, 4))], Promise::AtLeast);
    let differed = |ranges: &[HvaRange]| {
        let events: Vec<_> = ranges.iter().map(|range| announced(150, WORKER, *range)).collect();
        account(&events, &operations).differed
    };
    assert_eq!(differed(&[range(600, 4), range(512, 64), range(1000, 24)]), 0);
    assert_eq!(differed(&[range(600, 4), range(1023, 2)]), 1);
    assert_eq!(differed(&[range(512, 64)]), 1);
}

/// What `difference` must say, by counting.
fn naive(expected: &[(HvaRange, bool)], announced: &[HvaRange]) -> bool {
    let count =
        |ranges: &mut dyn Iterator<Item = HvaRange>, range| ranges.filter(|one| *one == range).count();
    expected.iter().map(|(range, _)| *range).chain(announced.iter().copied()).any(|range| {
        let was = count(&mut expected.iter().map(|(range, _)| *range), range);
        let is = count(&mut announced.iter().copied(), range);
        let again = expected.iter().any(|(one, repeats)| *one == range && *repeats);
        let spare = if again { MOST_REPEATS } else { 0 };
        is < was || is > was + spare
    })
}

proptest! {
    #[test]
    fn differences_are_those_of_counting(
        expected in prop::collection::vec((0u64..5, any::<bool>()), 0..6),
        announced in prop::collection::vec(0u64..5, 0..14),
    ) {
        // Whether a range may come again is a property of the range here, as it is of splits.
        let may = |page: u64| expected.iter().any(|(one, repeats)| *one == page && *repeats);
        let expected: Vec<_> = expected.iter().map(|(page, _)| (range(*page, 1), may(*page))).collect();
        let announced: Vec<_> = announced.into_iter().map(|page| range(page, 1)).collect();
        let listed: Vec<_> =
            expected.iter().map(|&(range, repeats)| Expected { range, kind: if repeats { Kind::Split } else { Kind::Once } }).collect();
        let found = difference(&listed, announced.clone(), Promise::Exact).is_some();
        prop_assert_eq!(found, naive(&expected, &announced));
    }
}

/// The folio of `order` that is number `index` in a row of them, from 2 MiB on.
fn folio(order: u8, index: u64) -> Victim {
    let order = Order::new(order).unwrap();
    let level = if order == Order::PMD { MapLevel::Pmd } else { MapLevel::Pte };
    Victim { pages: range(512 + index * order.pages(), order.pages()), order, level, anonymous: true }
}

/// A folio without contiguous swap space: its split, then its pages, in one operation with another that leaves whole.
#[test]
fn a_folio_of_any_order_may_leave_page_by_page() {
    for order in 1..=9 {
        let (apart, whole) = (folio(order, 0), folio(order, 1));
        let operation = |planned: fn(Victim) -> Planned| {
            let mut operations = Operations::of_thread(WORKER);
            operations.note(100, 1000, &[planned(apart), planned(whole)], Promise::Exact);
            operations
        };
        let pages = || apart.pages.pages().map(|page| announced(300, WORKER, page));
        let times = |range, times| (0..times).map(move |_| announced(200, WORKER, range));
        let most = if order == 9 { 2 } else { 1 };
        for (splits, missing, twice, differs) in
            [(1, 0, 0, 0), (most, 0, 0, 0), (0, 0, 0, 1), (most + 1, 0, 0, 1), (1, 1, 0, 1), (1, 0, 1, 1)]
        {
            let split = times(apart.pages, splits);
            let events: Vec<Event> = split
                .chain(pages().skip(missing))
                .chain(pages().take(twice))
                .chain(times(whole.pages, 1))
                .collect();
            let found = account(&events, &operation(Planned::Take));
            let what = format!("order {order}: {splits} splits, {missing} missing, {twice} twice");
            assert_eq!((found.differed, found.fallbacks), (differs, 1 - differs), "{what}");
            let exact = account(&events, &operation(|victim| Planned::Exact(victim.pages)));
            assert_eq!((exact.differed, exact.fallbacks), (1, 0), "no other operation may: {what}");
        }
        let both = times(apart.pages, 1).chain(times(whole.pages, 1)).collect::<Vec<_>>();
        let found = account(&both, &operation(Planned::Take));
        assert_eq!((found.differed, found.fallbacks), (0, 0), "order {order}");
    }
}

/// Which folios came apart, by looking at each range again for each of them.
fn naive_fallbacks(folios: &[Victim], announced: &[HvaRange]) -> u64 {
    let apart = |folio: &&Victim| {
        let whole = folio.pages;
        let starts_in = |range: &&HvaRange| whole.contains(range.start());
        let count = |wanted| announced.iter().filter(|range| **range == wanted).count();
        let others = announced.iter().filter(starts_in).filter(|range| **range != whole);
        let split = count(whole) == 1 || folio.order == Order::PMD && count(whole) == 2;
        split && others.count() as u64 == whole.page_count() && whole.pages().all(|page| count(page) == 1)
    };
    folios.iter().filter(apart).count() as u64
}

proptest! {
    /// Folios of one order, of which some come apart, in whatever order that is told; and some ranges too many or too few.
    #[test]
    fn folios_that_come_apart_are_those_of_counting(
        order in 1u8..=9,
        apart in prop::collection::vec((any::<bool>(), 0usize..3), 1..4),
        extra in prop::collection::vec(0u64..64, 0..2),
        dropped in prop::option::of(any::<prop::sample::Index>()),
        seed in any::<u64>(),
    ) {
        let folios: Vec<Victim> = (0..apart.len() as u64).map(|index| folio(order, index)).collect();
        let mut ranges: Vec<HvaRange> = Vec::new();
        for (folio, (apart, splits)) in folios.iter().zip(&apart) {
            ranges.extend(std::iter::repeat_n(folio.pages, *splits));
            if *apart {
                ranges.extend(folio.pages.pages());
            }
        }
        ranges.extend(extra.iter().map(|page| range(512 + page, 1)));
        if let Some(dropped) = dropped.filter(|_| !ranges.is_empty()) {
            ranges.remove(dropped.index(ranges.len()));
        }
        ranges.sort_by_key(|range| range.start().get().wrapping_mul(seed | 1));
        let planned: Vec<Planned> = folios.iter().copied().map(Planned::Take).collect();
        let mut operations = Operations::of_thread(WORKER);
        operations.note(100, 200, &planned, Promise::Exact);
        let events: Vec<Event> = ranges.iter().map(|range| announced(150, WORKER, *range)).collect();
        let found = account(&events, &operations);
        prop_assert_eq!(found.fallbacks, naive_fallbacks(&folios, &ranges));
        let exact = apart.iter().zip(&folios).all(|((apart, splits), folio)| match apart {
            true => *splits == 1 || folio.order == Order::PMD && *splits == 2,
            false => *splits == 1,
        });
        if extra.is_empty() && dropped.is_none() {
            prop_assert_eq!(found.differed, u64::from(!exact));
        }
    }
}
