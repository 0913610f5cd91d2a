//! What a row says was announced, up to the words and the table.

use guest_mem::PAGE_SIZE;

use crate::report::{ktap, table, words};
use experiment::choice::{RowLabel, fixture};
use experiment::events::fixture as made;
use experiment::events::{Called, Certainty, Event, Expected, ExpectedKind, KernelRange, OperationEnd};
use experiment::record::RowFold;
use experiment::record::{Row, RunRecord, Verdict};
use experiment::scenario::expect::{Expectation, check_all};
use notifier_bridge::{By, Ranges};
use program::units::Charset;

/// Victims of a row.
const VICTIMS: u64 = 32;

fn label(policy: &str, reclaim: &str) -> RowLabel {
    fixture::label(["sparse", "4k", policy, reclaim, "none", "kernel"])
}

/// Victim number `index`: a page somewhere in a 2 MiB of its own.
fn victim(index: u64) -> u64 {
    512 * index + 17 * index % 512
}

/// So many pages from there on.
type Width = fn(u64) -> u64;

/// To the end of the 2 MiB, as a `try_to_unmap_one` announces that was widened so.
fn to_the_end(page: u64) -> u64 {
    512 - page % 512
}

fn exactly(_: u64) -> u64 {
    1
}

/// The events of a trial of [`VICTIMS`] pages of 4 KiB, of which the kernel announces so much for each. By address,
/// unless it is `squeezed`.
fn trial(label: RowLabel, announced: Width, squeezed: bool) -> Vec<Event> {
    let setting = made::setting_of(label, VICTIMS * 512);
    let bytes = VICTIMS * PAGE_SIZE;
    let mut events = vec![Event::Trial(Box::new(setting)), Event::Asked { victims: VICTIMS, bytes }];
    for index in 0..VICTIMS {
        let (at_ns, first_page) = (1_000 * index, victim(index));
        events.push(Event::Announced(made::announcement(at_ns, first_page)));
        let expected = vec![Expected { first_page, pages: 1, kind: ExpectedKind::Once }];
        events.push(Event::Called(Called { at_ns, ns: 500, certainty: Certainty::Exact, expected }));
        let expected = (!squeezed).then_some(Ranges { ranges: 1, bytes: PAGE_SIZE });
        let end = OperationEnd { evicted_bytes: PAGE_SIZE, expected, ..OperationEnd::default() };
        events.push(Event::OperationEnded(end));
    }
    for index in 0..VICTIMS {
        let page = victim(index);
        events.push(Event::KernelRange(KernelRange {
            at_ns: 1_000 * index + 100,
            start: (page * PAGE_SIZE) as i64,
            bytes: announced(page) * PAGE_SIZE,
            cause: By::Step,
            call: Some(index as u32),
        }));
    }
    events
}

/// The row of such a trial, whose account has lost so many events.
fn losing(policy: &str, announced: Width, lost: u64) -> Row {
    let mut events = trial(label(policy, "pageout"), announced, false);
    events.push(Event::KernelSpan { lost });
    RowFold::of(events)
}

fn row(policy: &str, announced: Width) -> Row {
    losing(policy, announced, 0)
}

/// The row of one without an account.
fn untold(label: RowLabel, announced: Width, squeezed: bool) -> Row {
    let mut events = trial(label, announced, squeezed);
    events.retain(|event| !matches!(event, Event::Called(_) | Event::KernelRange(_)));
    events.push(Event::NoAccount("the tap was off".to_owned()));
    RowFold::of(events)
}

fn run(rows: Vec<Row>) -> RunRecord {
    crate::report::fixture::run(rows)
}

#[test]
fn a_kernel_that_announces_as_expected_is_the_rows_figure_and_called_exact() {
    let row = row("kernel", exactly);
    assert_eq!((row.invalidations.get(), row.invalidated_bytes.get()), (Some(VICTIMS), Some(VICTIMS << 12)));
    assert_eq!((row.expected_ranges.get(), row.amplification.get()), (Some(VICTIMS), Some(1.0)));
    assert!(!row.is_expected() && !row.differs());
    let said = words(&run(vec![row]), Charset::Ascii);
    assert!(said.contains("invalidated exactly what had to go under `kernel`"), "{said}");
}

/// A host kernel whose `try_to_unmap_one` was widened to the end of the 2 MiB: what it announced is the row's figure, and
/// the difference is the first that is said, wherever it is said.
#[test]
fn a_kernel_that_announces_more_is_the_rows_figure_and_the_first_word() {
    let (kernel, folio) = (row("kernel", to_the_end), row("folio", to_the_end));
    let bytes: u64 = (0..VICTIMS).map(|index| to_the_end(victim(index)) * PAGE_SIZE).sum();
    let amplification = bytes as f64 / (VICTIMS << 12) as f64;
    assert!(amplification > 200.0, "{amplification}");
    assert_eq!((kernel.invalidations.get(), kernel.invalidated_bytes.get()), (Some(VICTIMS), Some(bytes)));
    assert_eq!(kernel.amplification.get(), Some(amplification));
    assert_eq!(
        (kernel.expected_ranges.get(), kernel.expected_bytes.get()),
        (Some(VICTIMS), Some(VICTIMS << 12))
    );
    // What we announced under `folio` was as narrow as ever; beside it stands what the kernel took.
    assert_eq!((folio.invalidated_bytes.get(), folio.kernel_bytes.get()), (Some(VICTIMS << 12), Some(bytes)));

    let expectations = [Expectation::parse("amplification == 1.0").unwrap()];
    let mut failed = kernel.clone();
    failed.expectations = check_all(&expectations, &kernel);
    assert!(matches!(failed.expectations[0].verdict, Verdict::Fails { left, .. } if left == amplification));

    let record = run(vec![failed, folio]);
    let said = words(&record, Charset::Ascii);
    assert!(
        said.starts_with("THE KERNEL ANNOUNCED SOMETHING ELSE THAN WAS EXPECTED: 32 ranges of "),
        "{said}"
    );
    assert!(
        said.contains("in place of 32 of 128 KiB, over 32 operations (case `sparse` on 4k under `kernel`)"),
        "{said}"
    );
    assert!(!said.contains("exactly"), "{said}");
    let drawn = table(&record, Charset::Ascii);
    let lines: Vec<&str> = drawn.lines().collect();
    assert!(lines[1].starts_with(" ! kernel: THE KERNEL ANNOUNCED SOMETHING ELSE"), "{drawn}");
    assert!(lines[2].starts_with(" ! folio: THE KERNEL ANNOUNCED SOMETHING ELSE"), "{drawn}");
    assert!(lines.iter().any(|line| line.contains("kernel !") && line.contains("128 KiB")), "{drawn}");
    let told = ktap::ktap(&ktap::of_run(&record));
    let differ = told.lines().find(|line| line.contains("# the kernel announced")).unwrap();
    assert!(
        differ.contains("in place of 32 of 128 KiB, over 32 operations: the kernel announced something else"),
        "{told}"
    );
    assert!(told.contains("not ok 4 amplification == 1.0"), "{told}");
}

#[test]
fn without_a_whole_account_the_plan_is_marked_and_nothing_is_concluded() {
    let lost = losing("kernel", exactly, 1);
    let off = untold(label("kernel", "pageout"), exactly, false);
    for row in [lost, off] {
        assert!(row.is_expected());
        assert_eq!((row.invalidations.get(), row.amplification.get()), (Some(VICTIMS), Some(1.0)));
        assert!(Row::ANNOUNCED.iter().all(|key| row.warnings.explains(key)));
        let checked = check_all(&[Expectation::parse("amplification == 1.0").unwrap()], &row);
        assert!(
            matches!(&checked[0].verdict, Verdict::Skipped(why) if why.contains("not measured")),
            "{checked:?}"
        );
        let record = run(vec![row]);
        let (said, drawn) = (words(&record, Charset::Ascii), table(&record, Charset::Ascii));
        assert!(!said.contains("exactly") && !said.contains("amplification"), "{said}");
        assert!(
            said.contains("What the kernel announced under `kernel` was not measured in one row"),
            "{said}"
        );
        for cell in ["(32)", "(128 KiB)", "(1.0)"] {
            assert!(drawn.contains(cell), "{cell} in {drawn}");
        }
        assert!(
            drawn.contains("note: ranges, invalidated, amplification: expected of the kernel"),
            "{drawn}"
        );
    }
}

/// The victims of a cgroup or a target are not known beforehand: the figure is the kernel's, or there is none.
#[test]
fn where_no_address_was_asked_for_nothing_is_expected() {
    let mut events = trial(label("kernel", "cgroup"), to_the_end, true);
    events.push(Event::KernelSpan { lost: 0 });
    let told = RowFold::of(events);
    assert_eq!(told.invalidated_bytes, told.kernel_bytes);
    assert!(told.amplification.get().unwrap() > 200.0);
    assert!(told.expected_ranges.is_null() && told.warnings.explains("expected_ranges"));
    let untold_row = untold(label("kernel", "cgroup"), to_the_end, true);
    assert!(Row::ANNOUNCED.iter().all(|key| untold_row.warnings.explains(key)));
    assert_eq!((untold_row.invalidations.get(), untold_row.amplification.get()), (None, None));
    assert_eq!(untold_row.unexplained(), Vec::<&str>::new());
    let said = words(&run(vec![untold_row]), Charset::Ascii);
    assert!(!said.contains("exactly") && !said.contains("invalidated"), "{said}");
    // A rule of ours that was told what had gone by then is not called exact for it either.
    let ours = untold(label("folio", "cgroup"), exactly, true);
    let said = words(&run(vec![ours]), Charset::Ascii);
    assert!(said.contains("invalidated 1.0 times what had to go") && !said.contains("exactly"), "{said}");
}

/// What our own swap's handlers let go of again is announced by the kernel, too.
#[test]
fn the_handlers_ranges_are_in_the_figure_of_a_row_that_this_process_swaps() {
    let mut events = trial(label("kernel", "uffd"), exactly, false);
    let (start, bytes) = (0, PAGE_SIZE);
    events.extend([
        Event::KernelRange(KernelRange { at_ns: 1, start, bytes, cause: By::Userfault, call: None }),
        Event::KernelSpan { lost: 0 },
    ]);
    let row = RowFold::of(events);
    assert_eq!((row.invalidations.get(), row.kernel_ranges.get()), (Some(VICTIMS + 1), Some(VICTIMS)));
}
