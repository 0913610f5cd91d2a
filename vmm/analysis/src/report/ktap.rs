//! Results as KTAP version 1, for systems that run kernel tests over many hosts:
//! <https://docs.kernel.org/dev-tools/ktap.html>.
//!
//! ```text
//!   KTAP version 1
//!   1..2
//!     KTAP version 1            a subtest's lines are indented by two spaces, and stand before its own result
//!     1..2
//!     ok 1 integrity
//!     # amplification <= 1.0 is not so: 265 against 1
//!     not ok 2 amplification <= 1.0
//!   not ok 1 sparse 4k pmd pageout
//!   ok 2 sparse thp pmd pageout # SKIP there is no swap
//! ```
//!
//! A parent is not ok if one of its subtests is not, and skipped if all of them are.

use std::fmt::Write;

use super::account;
use crate::replay::{Check, Judgement};
use experiment::record::{Row, RunRecord, Verdict};
use program::output::visible;
use program::units;

/// A test and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    name: String,
    result: Outcome,
    /// Lines that say more, before the result.
    diagnostics: Vec<String>,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Ok,
    NotOk,
    Skip(String),
    Parent(Vec<Test>),
}

impl Test {
    /// It is as it should be.
    pub fn ok(name: impl Into<String>) -> Self {
        Self { name: name.into(), result: Outcome::Ok, diagnostics: Vec::new() }
    }
    /// A check that failed, and the reason.
    pub fn not_ok(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), result: Outcome::NotOk, diagnostics: vec![why.into()] }
    }
    /// It cannot be said.
    pub fn skip(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), result: Outcome::Skip(why.into()), diagnostics: Vec::new() }
    }
    /// As its subtests are.
    pub fn parent(name: impl Into<String>, tests: Vec<Self>) -> Self {
        Self { name: name.into(), result: Outcome::Parent(tests), diagnostics: Vec::new() }
    }
    /// With a line that says more.
    #[must_use]
    pub fn note(mut self, line: impl Into<String>) -> Self {
        self.diagnostics.push(line.into());
        self
    }

    fn is_ok(&self) -> bool {
        match &self.result {
            Outcome::Ok | Outcome::Skip(_) => true,
            Outcome::NotOk => false,
            Outcome::Parent(tests) => tests.iter().all(Self::is_ok),
        }
    }

    /// The reason, if nothing of it could be said.
    fn skipped(&self) -> Option<&str> {
        match &self.result {
            Outcome::Ok | Outcome::NotOk => None,
            Outcome::Skip(why) => Some(why),
            Outcome::Parent(tests) if tests.iter().all(|test| test.skipped().is_some()) => {
                tests.first().map_or(Some("there is nothing to test"), Self::skipped)
            }
            Outcome::Parent(_) => None,
        }
    }
}

/// The tests as text.
pub fn ktap(tests: &[Test]) -> String {
    let mut text = String::new();
    write_level(&mut text, tests, 0);
    text
}

fn write_level(text: &mut String, tests: &[Test], depth: usize) {
    let indent = "  ".repeat(depth);
    let _ = writeln!(text, "{indent}KTAP version 1\n{indent}1..{}", tests.len());
    for (number, test) in (1..).zip(tests) {
        if let Outcome::Parent(inner) = &test.result {
            write_level(text, inner, depth + 1);
        }
        for line in test.diagnostics.iter().flat_map(|diagnostic| diagnostic.lines()) {
            let _ = writeln!(text, "{indent}# {}", visible::line(line));
        }
        let result = if test.is_ok() { "ok" } else { "not ok" };
        let _ = write!(text, "{indent}{result} {number} {}", plain(&test.name));
        if let Some(why) = test.skipped() {
            let _ = write!(text, " # SKIP {}", plain(why));
        }
        text.push('\n');
    }
}

/// Without what would end a description, and in one line.
fn plain(text: &str) -> String {
    visible::line(&text.replace(['#', '\n'], " ")).into_owned()
}

/// A test of each row: that it ran, its own checks, and the case's expectations.
pub fn of_run(record: &RunRecord) -> Vec<Test> {
    record.rows.iter().map(|row| test_of(row, || tests_of(row))).collect()
}

/// What the kernel announced is what was announced for it.
const ACCOUNTS: &str = "the kernel's account and ours agree";

/// What the row says about a key: why it is null, or doubtful.
fn reason_of<'r>(row: &'r Row, key: &str) -> &'r str {
    row.warnings.about(key).map_or("the row does not say why", |warning| &warning.text)
}

/// The test of a row, which could not run or has these subtests.
fn test_of(row: &Row, tests: impl FnOnce() -> Vec<Test>) -> Test {
    let name = name(row);
    match row.could_not_run.as_deref().map(|why| (why, why.strip_prefix("failed: "))) {
        None => Test::parent(name, tests()),
        Some((_, Some(failed))) => Test::not_ok(name, failed),
        Some((why, None)) => Test::skip(name, why),
    }
}

/// What the kernel announced in place of what was expected, and of which operations.
fn accounts_differ(row: &Row, differing: u64) -> String {
    let how = account::difference(row)
        .unwrap_or_else(|| format!("they differ over {}", units::counted(differing, "operation")));
    format!("the kernel announced {how}: {}", reason_of(row, "account_differences"))
}

fn tests_of(row: &Row) -> Vec<Test> {
    let mut tests = vec![
        match row.integrity_errors.get() {
            Some(0) => Test::ok("every page came back as it was"),
            Some(wrong) => Test::not_ok("every page came back as it was", format!("{wrong} came back wrong")),
            None => Test::skip("every page came back as it was", "no page was verified"),
        },
        match row.account_differences.get() {
            Some(0) => Test::ok(ACCOUNTS),
            Some(differing) => Test::not_ok(ACCOUNTS, accounts_differ(row, differing)),
            None => Test::skip(ACCOUNTS, reason_of(row, "account_differences")),
        },
        match row.unexplained().as_slice() {
            [] => Test::ok("every null has its reason"),
            keys => Test::not_ok("every null has its reason", keys.join(", ")),
        },
    ];
    tests.extend(row.expectations.iter().map(|checked| {
        let line = checked.line.as_str();
        match &checked.verdict {
            Verdict::Holds { .. } => Test::ok(line),
            Verdict::Fails { .. } => Test::not_ok(line, checked.to_string()),
            Verdict::Skipped(why) => Test::skip(line, why.as_str()),
        }
    }));
    tests
}

/// A test of each row that was predicted and run: that each count is as predicted.
pub fn of_comparison(rows: &[(&Row, Vec<Check>)]) -> Vec<Test> {
    let of_check = |check: &Check| {
        let number = |value: Option<u64>| value.map_or("null".to_owned(), |value| value.to_string());
        let (ours, theirs) = (number(check.predicted), number(check.measured));
        match &check.judgement {
            Judgement::Agrees => Test::ok(check.key),
            Judgement::Differs => Test::not_ok(check.key, format!("predicted {ours}, measured {theirs}")),
            Judgement::Undecided(why) => {
                Test::skip(check.key, why.as_str()).note(format!("{ours} and {theirs}"))
            }
        }
    };
    rows.iter().map(|(row, checks)| test_of(row, || checks.iter().map(of_check).collect())).collect()
}

/// `sparse 4k pmd pageout 2097152 protect`: stable, and without words that mean something to a parser.
fn name(row: &Row) -> String {
    let label = &row.label;
    let granule = label.tried.granule.bytes();
    format!(
        "{} {} {} {} {granule} {}",
        label.case, label.tried.backing, label.tried.policy, label.tried.reclaim, label.tried.zap
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;
    use experiment::record::{Checked, Measured};

    #[test]
    fn subtests_stand_before_their_parent() {
        let tests = [
            Test::parent("a", vec![Test::ok("b"), Test::not_ok("c # d", "why\nand how")]),
            Test::parent("e", vec![Test::skip("f", "no swap"), Test::skip("g", "no swap")]),
            Test::ok("h").note("because"),
        ];
        let text = "KTAP version 1\n1..3\n  KTAP version 1\n  1..2\n  ok 1 b\n  # why\n  # and how\n  not ok 2 c   d\n\
                    not ok 1 a\n  KTAP version 1\n  1..2\n  ok 1 f # SKIP no swap\n  ok 2 g # SKIP no swap\n\
                    ok 2 e # SKIP no swap\n# because\nok 3 h\n";
        assert_eq!(ktap(&tests), text);
    }

    #[test]
    fn a_row_is_its_checks_and_its_expectations() {
        let mut row = fixture::row("4k", "pmd");
        let verdict = Verdict::Fails { left: 265.0, right: 1.0 };
        row.expectations = vec![Checked { line: "amplification <= 1".to_owned(), verdict }];
        row.integrity_errors = Measured::of(2);
        let mut gone = fixture::row("4k", "slot");
        gone.could_not_run = Some("no swap".to_owned());
        let text = ktap(&of_run(&fixture::run(vec![row, gone])));
        assert!(text.contains("  # 2 came back wrong\n  not ok 1 every page"), "{text}");
        assert!(
            text.contains("  # amplification <= 1 is not so: 265 against 1\n  not ok 4 amplification <= 1\n"),
            "{text}"
        );
        assert!(text.contains("\nnot ok 1 sparse 4k pmd pageout 2097152 protect\n"), "{text}");
        assert!(text.ends_with("ok 2 sparse 4k slot pageout 2097152 protect # SKIP no swap\n"), "{text}");
    }
}
