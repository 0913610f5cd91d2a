//! Whatever a record, a guest or a file is called, or says: a report's lines are its own.

use proptest::prelude::*;

use crate::report::fixture::{row, run};
use crate::report::ktap::{Test, ktap};
use crate::report::{comparison, table, words};
use experiment::record::Row;
use program::units::Charset;

/// Text that tries to be more than text.
fn foreign() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        prop::sample::select(vec![
            "\n",
            "\r",
            "\r\n",
            "\u{1b}[2J",
            "\u{9b}m",
            "\u{7}",
            "\u{85}",
            "\u{2028}",
            "\u{c}",
            "#",
            "# SKIP",
            " ",
            "ok 1 forged",
            "not ok 2 forged",
            "KTAP version 1",
            "1..9",
            "sparse: forged",
        ]),
        prop::sample::select(vec!["a", "é", "4k", "in\tside"]),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

/// The row as it comes out of a run.json in which what stands under the key is this.
fn with(key: &str, text: &str) -> serde_json::Result<Row> {
    let mut json = serde_json::to_value(row("4k", "folio")).unwrap();
    json[key] = text.into();
    serde_json::from_value(json)
}

/// Lines as the most eager reader sees them: Python's `splitlines`.
fn split(text: &str) -> Vec<&str> {
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    text.strip_suffix('\n').unwrap_or(text).split(ends).collect()
}

proptest! {
    #[test]
    fn a_result_in_ktap_is_one_line(name in foreign(), why in foreign()) {
        let tests = [
            Test::parent(name.clone(), vec![Test::ok(name.clone()), Test::skip(name.clone(), why.clone())]),
            Test::not_ok(name.clone(), why.clone()),
            Test::ok("last").note(why.clone()),
        ];
        let text = ktap(&tests);
        let lines = split(&text);
        let results: Vec<_> = lines.iter().filter(|line| !line.trim_start().starts_with('#')).collect();
        let beginnings =
            ["KTAP version 1", "1..3", "  KTAP version 1", "  1..2", "  ok 1 ", "  ok 2 ", "ok 1 ", "not ok 2 ", "ok 3 "];
        prop_assert_eq!(results.len(), beginnings.len(), "{}", text);
        for (line, beginning) in results.iter().zip(beginnings) {
            prop_assert!(line.starts_with(beginning), "{line:?} for {beginning:?}");
        }
        let skips = results.iter().filter(|line| line.contains('#')).count();
        prop_assert_eq!(skips, 1, "only what is skipped says so: {}", text);
    }

    #[test]
    fn a_name_read_from_a_record_is_of_one_line(name in foreign()) {
        let case = with("case", &name).unwrap().label.case;
        prop_assert!(!case.contains(char::is_control), "{case:?}");
        for key in ["policy", "reclaim", "zap", "listener"] {
            prop_assert!(with(key, &name).is_err(), "{key}");
        }
    }

    #[test]
    fn a_table_begins_a_line_for_nobody(why in foreign(), note in foreign()) {
        let mut ran = row("4k", "folio");
        ran.warnings.say(note);
        let mut gone = row("4k", "pmd");
        gone.could_not_run = Some(why);
        let record = run(vec![ran, gone.clone()]);
        let text = table(&record, Charset::Utf8) + &words(&record, Charset::Utf8) + &comparison(&[(&gone, vec![])], Charset::Utf8);
        let forged = text.lines().find(|line| line.starts_with("sparse: forged") || line.starts_with("ok 1"));
        prop_assert_eq!(forged, None, "{}", text);
    }
}

#[test]
fn a_warning_is_shown_with_all_its_lines() {
    let mut ran = row("4k", "folio");
    ran.warnings.say("one\ntwo");
    let text = table(&run(vec![ran]), Charset::Utf8);
    assert!(text.contains(" note: one\n  two\n"), "{text}");
}
