use proptest::prelude::*;

use super::*;

fn gfns(start: u64, end: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Gfn::new(end)).unwrap()
}

fn sequence() -> Sequence<()> {
    Sequence::new(())
}

fn begin(sequence: &Sequence<()>, range: GfnRange) {
    let mut locked = sequence.lock();
    locked.invalidate_begin();
    locked.invalidate_range_add(range);
}

#[test]
fn a_fault_that_spans_an_invalidation_retries_and_the_next_one_does_not() {
    let s = sequence();
    let before = s.snapshot();
    assert!(!s.lock().retry_locked(before, Gfn::new(5)));
    begin(&s, gfns(4, 6));
    assert!(s.lock().retry_locked(before, Gfn::new(5)), "in progress");
    assert!(s.retry_unsafe(before, Gfn::new(5)));
    s.lock().invalidate_end();
    assert!(s.lock().retry_locked(before, Gfn::new(5)), "the sequence moved");
    assert!(s.lock().retry_locked(before, Gfn::new(500)), "for every gfn: the sequence knows no ranges");
    let after = s.snapshot();
    assert!(!s.lock().retry_locked(after, Gfn::new(5)));
    assert!(!s.retry_unsafe(after, Gfn::new(5)));
    assert!(!s.retry(after));
}

#[test]
fn a_gfn_outside_the_range_in_progress_is_let_through() {
    let s = sequence();
    begin(&s, gfns(4, 6));
    let during = s.snapshot();
    assert!(!s.lock().retry_locked(during, Gfn::new(6)));
    assert!(!s.lock().retry_locked(during, Gfn::new(3)));
    assert!(s.lock().retry_locked(during, Gfn::new(4)));
    assert!(s.retry(during), "the question without a gfn knows no ranges");
}

#[test]
fn the_hull_lets_go_only_when_everything_has_ended() {
    let s = sequence();
    begin(&s, gfns(0, 1));
    begin(&s, gfns(9, 10));
    s.lock().invalidate_end();
    let during = s.snapshot();
    assert!(s.lock().retry_locked(during, Gfn::new(0)), "ended, but still in the hull");
    assert!(s.lock().retry_locked(during, Gfn::new(5)), "between two ranges: a false positive");
    s.lock().invalidate_end();
    begin(&s, gfns(9, 10));
    assert_eq!(s.lock().hull(), Some(gfns(9, 10)), "the next one begins from nothing");
}

#[test]
fn a_begun_invalidation_without_a_range_covers_everything() {
    let s = sequence();
    s.lock().invalidate_begin();
    assert!(s.lock().retry_locked(s.snapshot(), Gfn::new(77)));
}

#[test]
#[should_panic(expected = "never began")]
fn an_end_without_a_begin_is_a_bug() {
    sequence().lock().invalidate_end();
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(u64, u64),
    /// Ends the n-th of those in progress.
    End(usize),
    /// Takes a snapshot, to be asked about at every later step.
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..24, 1u64..6).prop_map(|(start, len)| Step::Begin(start, start + len)),
        any::<usize>().prop_map(Step::End),
        Just(Step::Look),
    ]
}

/// The protocol without its shortcuts: every range is remembered on its own, and a look-up remembers what
/// happened since.
#[derive(Default)]
struct Oracle {
    open: Vec<GfnRange>,
    /// All ranges since something was last in progress, ended ones too: what a hull is made of.
    episode: Vec<GfnRange>,
    looks: Vec<(Snapshot, Vec<GfnRange>)>,
}

proptest! {
    #[test]
    fn no_false_negatives_and_false_positives_only_inside_the_hull(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let s = sequence();
        let mut oracle = Oracle::default();
        for step in steps {
            match step {
                Step::Begin(start, end) => {
                    if oracle.open.is_empty() {
                        oracle.episode.clear();
                    }
                    begin(&s, gfns(start, end));
                    oracle.open.push(gfns(start, end));
                    oracle.episode.push(gfns(start, end));
                }
                Step::End(which) if !oracle.open.is_empty() => {
                    let ended = oracle.open.swap_remove(which % oracle.open.len());
                    s.lock().invalidate_end();
                    oracle.looks.iter_mut().for_each(|(_, since)| since.push(ended));
                }
                Step::End(_) => {}
                Step::Look => oracle.looks.push((s.snapshot(), Vec::new())),
            }
            prop_assert_eq!(s.in_progress(), oracle.open.len() as u64);
            for gfn in (0..32).map(Gfn::new) {
                check(&s, &oracle, gfn)?;
            }
        }
        for _ in 0..oracle.open.len() {
            s.lock().invalidate_end();
        }
        prop_assert_eq!(s.in_progress(), 0);
    }
}

fn check(s: &Sequence<()>, oracle: &Oracle, gfn: Gfn) -> Result<(), TestCaseError> {
    let in_progress = oracle.open.iter().any(|range| range.contains(gfn));
    let hull = oracle.episode.iter().copied().reduce(GfnRange::hull);
    let in_hull = !oracle.open.is_empty() && hull.is_some_and(|hull| hull.contains(gfn));
    for (snapshot, since) in &oracle.looks {
        let stale = in_progress || since.iter().any(|range| range.contains(gfn));
        let retry = s.lock().retry_locked(*snapshot, gfn);
        prop_assert!(retry || !stale, "a stale look-up of {gfn} was let through");
        prop_assert!(!retry || in_hull || !since.is_empty(), "{gfn} retries for no reason");
        prop_assert_eq!(s.retry_unsafe(*snapshot, gfn), retry, "alone, the pre-check is exact");
        prop_assert!(s.retry(*snapshot) || !retry, "the question without a gfn is the stricter one");
    }
    Ok(())
}
