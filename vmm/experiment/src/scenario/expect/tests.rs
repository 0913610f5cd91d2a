use proptest::prelude::*;

use super::*;
use program::distribution::Samples;

use crate::choice::fixture;
use crate::record::Measured;

fn row(policy: &str) -> Row {
    let mut row = Row::could_not_run(fixture::label(["a", "thp", policy, "pageout", "none", "kernel"]), "");
    row.could_not_run = None;
    row.victims = Measured::of(256);
    row.victim_bytes = Measured::of(1 << 20);
    row.amplification = Measured::of(1.5);
    row.kernel_ranges = row.warnings.not_measured("kernel_ranges", "the tap was off");
    let mut samples = Samples::default();
    samples.record(2_000);
    row.zap_ns = Measured::of(samples.summary());
    row
}

fn check(line: &str) -> Verdict {
    Expectation::parse(line).unwrap().check(&row("folio")).verdict
}

#[test]
fn arithmetic_is_as_it_is_written() {
    for (line, left, right) in [
        ("victims == 256", 256.0, 256.0),
        ("victim_bytes == 1MiB", 1_048_576.0, 1_048_576.0),
        ("victims + 2 * 3 >= 262", 262.0, 262.0),
        ("(victims + 2) * 3 == 774", 774.0, 774.0),
        ("victims - 6 - 50 > 199", 200.0, 199.0),
        ("victim_bytes / victims <= 4KiB", 4096.0, 4096.0),
        ("amplification != 1", 1.5, 1.0),
        ("1.5<=amplification", 1.5, 1.5),
        ("zap_ns.p50 < 3000", 2_000.0, 3_000.0),
        ("granule == 2MiB", 2_097_152.0, 2_097_152.0),
    ] {
        assert_eq!(check(line), Verdict::Holds { left, right }, "{line}");
    }
    assert_eq!(check("amplification <= 1.0"), Verdict::Fails { left: 1.5, right: 1.0 });
}

#[test]
fn what_is_null_says_why() {
    let Verdict::Skipped(why) = check("kernel_ranges == victims") else { panic!("it is null") };
    assert_eq!(why, "kernel_ranges is null: the tap was off");
    assert!(matches!(check("victims / (victims - 256) > 1"), Verdict::Skipped(_)));
    let expectation = Expectation::parse("victims == 256").unwrap();
    let gone = Row::could_not_run(row("folio").label, "no swap");
    assert_eq!(expectation.check(&gone).verdict, Verdict::Skipped("no swap".to_owned()));
}

#[test]
fn a_line_can_be_limited_to_rows() {
    let expectation =
        Expectation::parse("amplification <= 1.0 for policy kernel folio for backing thp").unwrap();
    assert!(expectation.concerns(&row("folio").label.tried));
    assert!(!expectation.concerns(&row("pmd").label.tried));
    assert_eq!(check_all(&[expectation], &row("pmd")), []);
    let punch = Expectation::parse("victims == 1 for reclaim punch-hole");
    assert!(punch.is_err(), "a hyphen is a minus: {punch:?}");
    assert!(
        !Expectation::parse("victims == 1 for reclaim remove").unwrap().concerns(&row("pmd").label.tried)
    );
}

#[test]
fn nonsense_is_refused_with_a_remedy() {
    for (line, said) in [
        ("", "nothing where a key or a number"),
        ("victims", "one of < <= == != >= >"),
        ("victims = 3", "`=` cannot stand"),
        ("victims == ", "nothing where a key"),
        ("victims == 3 4", "`4` where `for`"),
        ("victims < = 3", "`=` cannot stand"),
        ("victim == 3", "no key `victim`: use one of"),
        ("zap_ns == 3", "use its count, min, p50"),
        ("zap_ns.p51 == 3", "have no `p51`"),
        ("achieved == 3", "cannot"),
        ("1 == 1", "name a key"),
        ("victims == 3 for colour red", "`colour` is nothing"),
        ("victims == 3 for policy folios", "use kernel, page"),
        ("victims == 3 for policy", "a word of the axis"),
        ("victims == 3TiB", "`3TiB` is no number"),
        ("victims == 1.2.3", "`1.2.3` is no number"),
        ("(victims == 3", "closing parenthesis"),
        ("victims == \u{e9}", "cannot stand"),
    ] {
        let why = Expectation::parse(line).unwrap_err().to_string();
        assert!(why.contains(said), "{line}: {why}");
    }
    assert!(matches!(Expectation::parse(&"(".repeat(200)), Err(BadExpectation::Deep(_))));
    assert!(matches!(Expectation::parse(&"1+".repeat(200)), Err(BadExpectation::TooLong(_))));
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(line in "\\PC{0,80}", words in prop::collection::vec("(victims|\\(|\\)|<=|==|[0-9.]{1,4}|[+*/-]|for|policy|folio| )", 0..20)) {
        let _ = Expectation::parse(&line);
        if let Ok(expectation) = Expectation::parse(&words.join(" ")) {
            expectation.check(&row("folio"));
        }
    }
}
