use guest_mem::{Backing, Hva, HvaRange, MapLevel, Order, PAGE_SIZE, Planned, Victim};

use super::*;
use crate::record::{Row, RowLabel, Verdict, fixture};
use crate::report::{ktap, table, words};
use crate::run::rows;
use crate::scenario::expect::{Expectation, check_all};
use crate::tap::{Event, Operations, Promise, What};
use crate::units::Charset;

const US: u32 = 100;
/// Victims of a row.
const VICTIMS: u64 = 32;

fn label(policy: &str, reclaim: &str) -> RowLabel {
    fixture::label(["sparse", "4k", policy, reclaim, "none", "kernel"])
}

/// Victim number `index`: a page somewhere in a 2 MiB of its own.
fn victim(index: u64) -> HvaRange {
    HvaRange::with_len(Hva::new((512 * index + 17 * index % 512) * PAGE_SIZE), PAGE_SIZE).unwrap()
}

fn planned(pages: HvaRange) -> Planned {
    Planned::Take(Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true })
}

/// To the end of the 2 MiB, as a `try_to_unmap_one` announces that was widened so.
fn to_the_end(page: HvaRange) -> HvaRange {
    let start = page.start().get();
    HvaRange::with_len(page.start(), (start / (2 << 20) + 1) * (2 << 20) - start).unwrap()
}

/// A trial of [`VICTIMS`] pages of 4 KiB, of which the kernel announces `announced` for each, as the tap hears it.
fn trial(announced: impl Fn(HvaRange) -> HvaRange) -> Trial {
    let (mut operations, mut events) = (Operations::of_thread(US), Vec::new());
    let mut trial = Trial::default();
    for index in 0..VICTIMS {
        let (begin, plan) = (1_000 * index, [planned(victim(index))]);
        operations.note(begin, begin + 500, &plan, Promise::Exact);
        let what = What::Range(announced(victim(index)));
        events.push(Event { time_ns: begin + 100, pid: US, tid: US, what });
        trial.counts.expected += Expected::of(&plan);
    }
    let mut account = Account::default();
    account.add(&events, &operations, &[], US, |_, _, _| ());
    let bytes = VICTIMS * PAGE_SIZE;
    let counts = &mut trial.counts;
    (counts.victims, counts.victim_bytes, counts.evicted_bytes) = (VICTIMS, bytes, bytes);
    (counts.totals.invalidations, counts.totals.needed_bytes, counts.totals.invalidated_bytes) =
        (VICTIMS, bytes, bytes);
    trial.kernel = Some(account);
    trial
}

fn row(policy: &str, trial: &Trial) -> Row {
    rows::row(label(policy, "pageout"), Backing::Base4k, 1, trial, None)
}

fn run(rows: Vec<Row>) -> crate::record::RunRecord {
    crate::report::fixture::run(rows)
}

#[test]
fn a_kernel_that_announces_as_expected_is_the_rows_figure_and_called_exact() {
    let row = row("kernel", &trial(|page| page));
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
    let wide = trial(to_the_end);
    let (kernel, folio) = (row("kernel", &wide), row("folio", &wide));
    let bytes: u64 = (0..VICTIMS).map(|index| to_the_end(victim(index)).len()).sum();
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
    let (mut lost, mut off) = (trial(|page| page), trial(|page| page));
    lost.kernel.as_mut().unwrap().lost = 1;
    off.kernel = None;
    let lost = row("kernel", &lost);
    let off = rows::row(label("kernel", "pageout"), Backing::Base4k, 1, &off, Some("the tap was off"));
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

/// What a cgroup or a target takes, nobody knows beforehand: the figure is the kernel's, or there is none.
#[test]
fn where_no_address_was_asked_for_nothing_is_expected() {
    let mut squeezed = trial(to_the_end);
    squeezed.counts.expected = Expected::UNKNOWN;
    let row = |trial: &Trial, why| rows::row(label("kernel", "cgroup"), Backing::Base4k, 1, trial, why);
    let told = row(&squeezed, None);
    assert_eq!(told.invalidated_bytes, told.kernel_bytes);
    assert!(told.amplification.get().unwrap() > 200.0);
    assert!(told.expected_ranges.is_null() && told.warnings.explains("expected_ranges"));
    squeezed.kernel = None;
    let untold = row(&squeezed, Some("the tap was off"));
    assert!(Row::ANNOUNCED.iter().all(|key| untold.warnings.explains(key)));
    assert_eq!((untold.invalidations.get(), untold.amplification.get()), (None, None));
    assert_eq!(untold.unexplained(), Vec::<&str>::new());
    let said = words(&run(vec![untold]), Charset::Ascii);
    assert!(!said.contains("exactly") && !said.contains("invalidated"), "{said}");
    // A rule of ours that was told what had gone by then is not called exact for it either.
    let mut after = trial(|page| page);
    after.counts.expected = Expected::UNKNOWN;
    let ours = rows::row(label("folio", "cgroup"), Backing::Base4k, 1, &after, Some("the tap was off"));
    let said = words(&run(vec![ours]), Charset::Ascii);
    assert!(said.contains("invalidated 1.0 times what had to go") && !said.contains("exactly"), "{said}");
}

/// What our own swap's handlers let go of again is announced by the kernel, too.
#[test]
fn the_handlers_ranges_are_in_the_figure_of_a_row_that_this_process_swaps() {
    let mut trial = trial(|page| page);
    let handler = crate::tap::Task { tid: 7, pid: Some(US), comm: "uffd0".to_owned(), kernel: false };
    let event = Event { time_ns: 1, pid: US, tid: 7, what: What::Range(victim(0)) };
    let none = Operations::of_thread(US);
    trial.kernel.as_mut().unwrap().add(&[event], &none, &[handler], US, |_, _, _| ());
    let row = row("kernel", &trial);
    assert_eq!((row.invalidations.get(), row.kernel_ranges.get()), (Some(VICTIMS + 1), Some(VICTIMS)));
}
