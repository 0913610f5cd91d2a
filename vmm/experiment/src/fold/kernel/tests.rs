use guest_mem::Order;
use proptest::prelude::*;

use super::*;
use crate::events::Expected as ExpectedPages;

/// The memory under test begins here.
const ARENA: u64 = 1 << 40;

fn arena() -> HvaRange {
    HvaRange::with_len(Hva::new(ARENA), 1 << 30).unwrap()
}

/// Pages of it: the first, and how many.
type Pages = (u64, u64);

fn call(certainty: Certainty, expected: &[(Pages, ExpectedKind)]) -> Called {
    let expected =
        expected.iter().map(|&((first_page, pages), kind)| ExpectedPages { first_page, pages, kind });
    Called { at_ns: 100, ns: 100, certainty, expected: expected.collect() }
}

fn range(pages: Pages, cause: By, call: Option<u32>) -> KernelRange {
    KernelRange { at_ns: 150, start: (pages.0 << 12) as i64, bytes: pages.1 << 12, cause, call }
}

/// The account of one step of one call, for which the kernel announced these.
fn account(call: &Called, announced: &[Pages]) -> Account {
    let mut account = Account::default();
    account.called(arena(), call);
    for &pages in announced {
        account.announced(arena(), &range(pages, By::Step, Some(0)));
    }
    account.close(0);
    account
}

const ONCE: ExpectedKind = ExpectedKind::Once;

/// Pages 1 and 3.
fn two_pages() -> Called {
    call(Certainty::Exact, &[((1, 1), ONCE), ((3, 1), ONCE)])
}

#[test]
fn ranges_are_summed_by_cause() {
    let mut account = Account::default();
    account.called(arena(), &two_pages());
    for (pages, cause, call) in [
        ((1, 1), By::Step, Some(0)),
        ((7, 1), By::Kswapd, None),
        ((8, 2), By::GuestFault, None),
        ((3, 1), By::Step, Some(0)),
    ] {
        account.announced(arena(), &range(pages, cause, call));
    }
    account.close(2);
    assert_eq!(account.of(By::Step), Ranges { ranges: 2, bytes: 8192 });
    assert_eq!(account.of(By::GuestFault), Ranges { ranges: 1, bytes: 8192 });
    assert_eq!(account.sum(By::is_stranger).ranges, 1);
    assert_eq!((account.compared, account.differed, account.lost), (1, 0, 2));
}

#[test]
fn accounts_that_disagree_say_where() {
    let missing = account(&two_pages(), &[(1, 1)]);
    assert_eq!((missing.compared, missing.differed), (1, 1));
    assert!(missing.sentences[0].contains("1 that the kernel did not announce: "), "{:?}", missing.sentences);
    let wider = account(&two_pages(), &[(1, 1), (3, 2)]);
    assert!(wider.sentences[0].contains("did not announce") && wider.sentences[0].contains("beside"));
    let mut all = missing.clone();
    all.pool(&wider);
    assert_eq!((all.differed, all.sentences.len(), all.of(By::Step).ranges), (2, 2, 1));
    let open = account(&call(Certainty::Unknown, &[]), &[(9, 9)]);
    assert_eq!((open.compared, open.differed), (0, 0));
}

#[test]
fn each_call_has_its_own_ranges_in_whatever_order_they_came() {
    let mut account = Account::default();
    for page in [1, 3] {
        account.called(arena(), &call(Certainty::Exact, &[((page, 1), ONCE)]));
    }
    for (page, of) in [(3, 1), (1, 0)] {
        account.announced(arena(), &range((page, 1), By::Step, Some(of)));
    }
    account.close(0);
    assert_eq!((account.compared, account.differed), (2, 0));
    // The next step's calls are counted from 0 again.
    account.called(arena(), &call(Certainty::Exact, &[((5, 1), ONCE)]));
    account.close(0);
    assert_eq!((account.compared, account.differed), (3, 1));
}

#[test]
fn a_split_may_be_announced_again_and_a_page_may_not() {
    let (block, page) = ((512, 512), (513, 1));
    let asked = call(Certainty::Exact, &[(block, ExpectedKind::Split), (page, ONCE)]);
    let differed = |ranges: &[Pages]| account(&asked, ranges).differed;
    assert_eq!(differed(&[block, page]), 0);
    assert_eq!(differed(&[block, block, page]), 0);
    assert_eq!(differed(&[block, block, block, block, page]), 0);
    assert_eq!(differed(&[block, block, block, block, block, page]), 1);
    assert_eq!(differed(&[block, page, page]), 1);
    assert_eq!(differed(&[page]), 1);
}

#[test]
fn a_hole_may_split_folios_at_its_ends_and_nothing_elsewhere() {
    let asked = call(Certainty::AtLeast, &[((600, 4), ONCE)]);
    let differed = |ranges: &[Pages]| account(&asked, ranges).differed;
    assert_eq!(differed(&[(600, 4), (512, 64), (1000, 24)]), 0);
    assert_eq!(differed(&[(600, 4), (1023, 2)]), 1);
    assert_eq!(differed(&[(512, 64)]), 1);
}

/// What a comparison must say, by counting.
fn naive(expected: &[(Pages, ExpectedKind)], announced: &[Pages]) -> bool {
    let count = |ranges: &mut dyn Iterator<Item = Pages>, range| ranges.filter(|one| *one == range).count();
    expected.iter().map(|(range, _)| *range).chain(announced.iter().copied()).any(|range| {
        let was = count(&mut expected.iter().map(|(range, _)| *range), range);
        let is = count(&mut announced.iter().copied(), range);
        let again = expected.iter().any(|(one, kind)| *one == range && *kind == ExpectedKind::Split);
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
        let kind = |page| if may(page) { ExpectedKind::Split } else { ONCE };
        let expected: Vec<_> = expected.iter().map(|(page, _)| ((*page, 1), kind(*page))).collect();
        let announced: Vec<Pages> = announced.into_iter().map(|page| (page, 1)).collect();
        let found = account(&call(Certainty::Exact, &expected), &announced).differed > 0;
        prop_assert_eq!(found, naive(&expected, &announced));
    }
}

/// The folio of `order` that is number `index` in a row of them, from 2 MiB on.
fn folio(order: u8, index: u64) -> (Pages, ExpectedKind) {
    let order = Order::new(order).unwrap();
    ((512 + index * order.pages(), order.pages()), ExpectedKind::Folio(order))
}

fn pages_of((first, pages): Pages) -> impl Iterator<Item = Pages> {
    (first..first + pages).map(|page| (page, 1))
}

/// A folio without contiguous swap space: its split, then its pages, in one operation with another that leaves whole.
#[test]
fn a_folio_of_any_order_may_leave_page_by_page() {
    for order in 1..=9 {
        let (apart, whole) = (folio(order, 0), folio(order, 1));
        let asked = call(Certainty::Exact, &[apart, whole]);
        let exactly = call(Certainty::Exact, &[(apart.0, ONCE), (whole.0, ONCE)]);
        let times = |range: Pages, times| std::iter::repeat_n(range, times);
        let most = if order == 9 { 2 } else { 1 };
        for (splits, missing, twice, differs) in
            [(1, 0, 0, 0), (most, 0, 0, 0), (0, 0, 0, 1), (most + 1, 0, 0, 1), (1, 1, 0, 1), (1, 0, 1, 1)]
        {
            let announced: Vec<Pages> = times(apart.0, splits)
                .chain(pages_of(apart.0).skip(missing))
                .chain(pages_of(apart.0).take(twice))
                .chain(times(whole.0, 1))
                .collect();
            let found = account(&asked, &announced);
            let what = format!("order {order}: {splits} splits, {missing} missing, {twice} twice");
            assert_eq!((found.differed, found.fallbacks), (differs, 1 - differs), "{what}");
            let exact = account(&exactly, &announced);
            assert_eq!((exact.differed, exact.fallbacks), (1, 0), "no other operation may: {what}");
        }
        let found = account(&asked, &[apart.0, whole.0]);
        assert_eq!((found.differed, found.fallbacks), (0, 0), "order {order}");
    }
}

/// Which folios came apart, by looking at each range again for each of them.
fn naive_fallbacks(folios: &[(Pages, ExpectedKind)], announced: &[Pages]) -> u64 {
    let apart = |(whole, kind): &&(Pages, ExpectedKind)| {
        let starts_in = |range: &&Pages| (whole.0..whole.0 + whole.1).contains(&range.0);
        let count = |wanted| announced.iter().filter(|range| **range == wanted).count();
        let others = announced.iter().filter(starts_in).filter(|range| *range != whole);
        let split = count(*whole) == 1 || *kind == ExpectedKind::Folio(Order::PMD) && count(*whole) == 2;
        split && others.count() as u64 == whole.1 && pages_of(*whole).all(|page| count(page) == 1)
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
        let folios: Vec<_> = (0..apart.len() as u64).map(|index| folio(order, index)).collect();
        let mut ranges: Vec<Pages> = Vec::new();
        for ((folio, _), (apart, splits)) in folios.iter().zip(&apart) {
            ranges.extend(std::iter::repeat_n(*folio, *splits));
            if *apart {
                ranges.extend(pages_of(*folio));
            }
        }
        ranges.extend(extra.iter().map(|page| (512 + page, 1)));
        if let Some(dropped) = dropped.filter(|_| !ranges.is_empty()) {
            ranges.remove(dropped.index(ranges.len()));
        }
        ranges.sort_by_key(|range| range.0.wrapping_mul(seed | 1));
        let found = account(&call(Certainty::Exact, &folios), &ranges);
        prop_assert_eq!(found.fallbacks, naive_fallbacks(&folios, &ranges));
        let exact = apart.iter().all(|(apart, splits)| match apart {
            true => *splits == 1 || order == 9 && *splits == 2,
            false => *splits == 1,
        });
        if extra.is_empty() && dropped.is_none() {
            prop_assert_eq!(found.differed, u64::from(!exact));
        }
    }
}
