//! Expectations, and results in the form that kernel tests have: KTAP, read by a parser of this test's own.

use tests::place::{Ended, Place};
use tests::scenario;

crate::tests! {
    expectations_decide_the_exit_code: [],
    an_expectation_that_cannot_be_is_refused_with_its_line: [],
    a_run_speaks_ktap: [],
    the_doctor_speaks_ktap: [],
    a_validation_speaks_ktap: [],
}

fn expecting(expect: &[&str]) -> Place {
    let scenario = scenario::of("4MiB").policies(&["folio", "pmd"]).case("sparse").expect(expect);
    Place::of(&scenario.fill().sparse(10).sweep())
}

/// Runs its scenario on the software MMU.
fn run(place: &Place, options: &[&str]) -> Ended {
    place.run(&[&["run", "s.toml", "--backend", "soft", "--out", "out"], options].concat())
}

fn expectations_decide_the_exit_code() {
    let held = ["victims == 10", "amplification <= 1.0 for policy folio", "integrity_errors == 0"];
    let record = run(&expecting(&held), &["--json"]).with(0).json();
    let of_row = |row: usize| record["rows"][row]["expectations"].as_array().unwrap().len();
    assert_eq!((of_row(0), of_row(1)), (3, 2), "the second is of folio alone");

    let broken = run(&expecting(&["victims == 10", "needed_bytes / victims > 4KiB"]), &["--json"]).with(1);
    let why = "needed_bytes / victims > 4KiB is not so: 4096 against 4096";
    broken.says(&[why, "2 expectations did not come true"]);

    // What is null says nothing.
    let record = run(&expecting(&["tlb_empty_flushes == 0"]), &["--json"]).with(0).json();
    let skipped = record["rows"][0]["expectations"][0]["skipped"].as_str().unwrap();
    assert!(skipped.contains("tlb_empty_flushes is null: no device"), "{skipped}");
}

fn an_expectation_that_cannot_be_is_refused_with_its_line() {
    for (line, said) in [
        ("victim == 10", "a row has no key `victim`"),
        ("victims = 10", "cannot stand in an expectation"),
        ("victims == 10 for policy slot", "rows that this case does not have"),
    ] {
        run(&expecting(&[line]), &[]).with(2).says(&["s.toml:9: ", said]);
    }
}

/// A result line.
#[derive(Debug, PartialEq)]
struct Result {
    ok: bool,
    name: String,
    skip: Option<String>,
    subtests: Vec<Result>,
    diagnostics: Vec<String>,
}

/// Reads one level of KTAP: the version, the plan, then results numbered from 1, each after its own subtests.
fn level(lines: &mut std::iter::Peekable<std::str::Lines<'_>>, indent: &str) -> Vec<Result> {
    let mut next = || lines.next_if(|line| line.starts_with(indent)).map(|line| &line[indent.len()..]);
    assert_eq!(next(), Some("KTAP version 1"));
    let plan = next().unwrap().strip_prefix("1..").expect("a plan").parse::<usize>().unwrap();
    let (mut results, mut subtests, mut diagnostics) = (Vec::new(), Vec::new(), Vec::new());
    let deeper = format!("{indent}  ");
    while results.len() < plan {
        let line = *lines.peek().unwrap_or_else(|| panic!("{} of {plan} results", results.len()));
        if line.starts_with(&deeper) {
            assert!(subtests.is_empty(), "subtests without a parent");
            subtests = level(lines, &deeper);
            continue;
        }
        let line = &lines.next().unwrap()[indent.len()..];
        if let Some(text) = line.strip_prefix("# ") {
            diagnostics.push(text.to_owned());
            continue;
        }
        let (ok, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ").unwrap_or_else(|| panic!("no result: {line}"))),
        };
        let (number, rest) = rest.split_once(' ').expect("a number and a name");
        assert_eq!(number.parse(), Ok(results.len() + 1), "{line}");
        let (name, skip) = match rest.split_once(" # SKIP ") {
            Some((name, why)) => (name, Some(why.to_owned())),
            None => (rest, None),
        };
        assert!(!name.contains('#') && !name.is_empty(), "{line}");
        results.push(Result {
            ok,
            name: name.to_owned(),
            skip,
            subtests: std::mem::take(&mut subtests),
            diagnostics: std::mem::take(&mut diagnostics),
        });
    }
    results
}

fn parsed(ended: &Ended) -> Vec<Result> {
    let text = ended.text();
    let mut lines = text.lines().peekable();
    let results = level(&mut lines, "");
    assert_eq!(lines.next(), None, "nothing else stands on standard output:\n{text}");
    results
}

fn a_run_speaks_ktap() {
    let lines = ["victims == 10", "amplification <= 1.0", "tlb_empty_flushes == 0"];
    let ended = run(&expecting(&lines), &["--format", "ktap"]).with(1);
    let rows = parsed(&ended);
    let [folio, pmd] = rows.as_slice() else { panic!("two rows: {rows:?}") };
    assert!(folio.ok && folio.name.contains("sparse 4k folio dontneed"), "{folio:?}");
    assert!(!pmd.ok && pmd.subtests.len() == folio.subtests.len());
    let find = |row: &Result, name: &str| {
        let found = row.subtests.iter().find(|test| test.name == name);
        found.map(|test| (test.ok, test.skip.is_some(), test.diagnostics.len())).unwrap()
    };
    assert_eq!(find(pmd, "every page came back as it was"), (true, false, 0));
    assert_eq!(find(pmd, "victims == 10"), (true, false, 0));
    assert_eq!(find(pmd, "amplification <= 1.0"), (false, false, 1));
    assert_eq!(find(folio, "amplification <= 1.0"), (true, false, 0));
    assert_eq!(find(folio, "tlb_empty_flushes == 0"), (true, true, 0));
    // The table is for people, and elsewhere.
    ended.says(&["amplifi"]);
}

fn the_doctor_speaks_ktap() {
    let findings = parsed(&Place::new().run(&["doctor", "--format", "ktap"]).with(0));
    assert!(findings.len() > 10 && findings.iter().all(|finding| finding.ok), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.name.contains("userfaultfd")), "{findings:?}");
}

fn a_validation_speaks_ktap() {
    let place = expecting(&["victims == 10"]);
    run(&place, &[]).with(0);
    let arguments =
        ["replay", "out", "--validate", "--backend", "soft", "--policy", "pmd,slot", "--format", "ktap"];
    let rows = parsed(&place.run(&arguments).with(0));
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let exact = row.subtests.iter().find(|test| test.name == "invalidated_bytes").unwrap();
        assert!(row.ok && exact.skip.is_none(), "{row:?}");
    }
}
