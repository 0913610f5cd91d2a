//! Expectations, and results in the form that kernel tests have: KTAP, read by a parser of this test's own.

use serde_json::Value;
use tests::program;

crate::tests! {
    expectations_decide_the_exit_code: [],
    an_expectation_that_cannot_be_is_refused_with_its_line: [],
    a_run_speaks_ktap: [],
    the_doctor_speaks_ktap: [],
    a_validation_speaks_ktap: [],
}

const SCENARIO: &str = r#"
name = "expected"
memory = "4MiB"
[matrix]
backing = ["4k"]
policy = ["folio", "pmd"]
reclaim = ["dontneed"]
[[case]]
name = "sparse"
expect = [EXPECT]
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 10
[[case.step]]
do = "sweep"
"#;

fn expecting(lines: &[&str]) -> String {
    let quoted: Vec<String> = lines.iter().map(|line| format!("{line:?}")).collect();
    SCENARIO.replace("EXPECT", &quoted.join(", "))
}

/// Runs a scenario on the software MMU.
fn run(scenario: &str, options: &[&str]) -> std::process::Output {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("s.toml"), scenario).unwrap();
    let mut arguments = vec!["run", "s.toml", "--backend", "soft"];
    arguments.extend(options);
    program::output(directory.path(), &arguments)
}

fn expectations_decide_the_exit_code() {
    let held = ["victims == 10", "amplification <= 1.0 for policy folio", "integrity_errors == 0"];
    let output = run(&expecting(&held), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_row = |row: usize| record["rows"][row]["expectations"].as_array().unwrap().len();
    assert_eq!((of_row(0), of_row(1)), (3, 2), "the second is of folio alone");

    let output = run(&expecting(&["victims == 10", "needed_bytes / victims > 4KiB"]), &["--json"]);
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("needed_bytes / victims > 4KiB is not so: 4096 against 4096"), "{said}");
    assert!(said.contains("2 expectations did not come true"), "{said}");

    let output = run(&expecting(&["tlb_empty_flushes == 0"]), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "what is null says nothing");
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    let skipped = record["rows"][0]["expectations"][0]["skipped"].as_str().unwrap();
    assert!(skipped.contains("tlb_empty_flushes is null: no device"), "{skipped}");
}

fn an_expectation_that_cannot_be_is_refused_with_its_line() {
    for (line, said) in [
        ("victim == 10", "a row has no key `victim`"),
        ("victims = 10", "cannot stand in an expectation"),
        ("victims == 10 for policy slot", "rows that this case does not have"),
    ] {
        let output = run(&expecting(&[line]), &[]);
        let why = program::stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{why}");
        assert!(why.contains("s.toml:10: ") && why.contains(said), "{why}");
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

fn parsed(output: &std::process::Output) -> Vec<Result> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let mut lines = text.lines().peekable();
    let results = level(&mut lines, "");
    assert_eq!(lines.next(), None, "nothing else stands on standard output:\n{text}");
    results
}

fn a_run_speaks_ktap() {
    let lines = ["victims == 10", "amplification <= 1.0", "tlb_empty_flushes == 0"];
    let output = run(&expecting(&lines), &["--format", "ktap"]);
    assert_eq!(output.status.code(), Some(1));
    let rows = parsed(&output);
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
    assert!(program::stderr(&output).contains("amplifi"), "the table is for people, and elsewhere");
}

fn the_doctor_speaks_ktap() {
    let directory = tempfile::tempdir().unwrap();
    let output = program::output(directory.path(), &["doctor", "--format", "ktap"]);
    assert!(output.status.success());
    let findings = parsed(&output);
    assert!(findings.len() > 10 && findings.iter().all(|finding| finding.ok), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.name.contains("userfaultfd")), "{findings:?}");
}

fn a_validation_speaks_ktap() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("s.toml"), expecting(&["victims == 10"])).unwrap();
    let output = program::output(directory.path(), &["run", "s.toml", "--backend", "soft", "--out", "out"]);
    assert!(output.status.success(), "{}", program::stderr(&output));
    let arguments =
        ["replay", "out", "--validate", "--backend", "soft", "--policy", "pmd,slot", "--format", "ktap"];
    let output = program::output(directory.path(), &arguments);
    assert!(output.status.success(), "{}", program::stderr(&output));
    let rows = parsed(&output);
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let exact = row.subtests.iter().find(|test| test.name == "invalidated_bytes").unwrap();
        assert!(row.ok && exact.skip.is_none(), "{row:?}");
    }
}
