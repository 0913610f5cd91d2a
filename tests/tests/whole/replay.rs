//! Replay: what it says of a row it has never seen is what the row counts when it runs.

use std::path::Path;

use serde_json::Value;
use tests::program;
use tests::record::{self, rows};

crate::tests! {
    a_row_predicts_the_rows_of_other_policies: [Kvm, SlotZap, Zram],
    without_a_hot_loop_every_count_is_exact: [Kvm, SlotZap],
    the_software_mmu_is_predicted_too: [],
    other_slots_are_predicted: [],
    a_damaged_log_is_refused_with_the_byte: [],
    what_is_no_run_is_refused: [],
    validation_runs_what_was_predicted: [],
    a_table_shows_what_a_replay_knows: [],
}

/// Single pages swapped out next to a hot loop, in both layouts. The pace lets the loop come round from one victim to
/// the next, so that what it faults on does not depend on the host's speed.
const SWAPPED: &str = r#"
name = "swapped"
memory = "32MiB"
seed = 11
[matrix]
backing = ["4k", "thp"]
policy = ["kernel", "page", "folio", "pmd", "slot", "vm"]
[[case]]
name = "sparse"
[[case.step]]
do = "fill"
[[case.step]]
do = "hot"
count = 64
[[case.step]]
do = "baseline"
for = "20ms"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 100
pace = "4ms"
[[case.step]]
do = "stop"
[[case.step]]
do = "refault"
[[case.step]]
do = "sweep"
"#;

/// Pages thrown away with nobody beside: no swap, and nothing that could depend on time.
const QUIET: &str = r#"
name = "quiet"
memory = "16MiB"
seed = 7
[matrix]
backing = ["4k"]
policy = ["kernel", "page", "folio", "modern", "pmd", "slot", "vm"]
reclaim = ["dontneed"]
granule = ["512KiB"]
[[case]]
name = "sparse"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 100
[[case.step]]
do = "refault"
[[case.step]]
do = "sweep"
[[case]]
name = "region"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
range = "2MiB..8MiB"
unit = "region"
[[case.step]]
do = "refault"
[[case.step]]
do = "sweep"
"#;

/// The counts that no speed of anybody's changes.
const EXACT: [&str; 10] = [
    "victims",
    "victim_bytes",
    "evicted_bytes",
    "invalidations",
    "needed_bytes",
    "invalidated_bytes",
    "sharing_calls",
    "double_calls",
    "slots_zapped",
    "zapped_bytes",
];

/// Runs a scenario into `out` and returns its record.
fn run(directory: &Path, scenario: &str, options: &[&str]) -> Value {
    // What else the host announces is another test's subject.
    record::run(directory, scenario, &[&["--out", "out", "--tap", "off"], options].concat()).0
}

/// Replays it.
fn replay(directory: &Path, options: &[&str]) -> Value {
    record::printed(directory, &[&["replay", "out", "--json"], options].concat()).0
}

/// Each predicted row beside the one that ran.
fn pairs<'a>(predicted: &'a Value, measured: &'a Value) -> Vec<(&'a Value, &'a Value)> {
    let same = |a: &Value, b: &Value| {
        ["case", "backing", "policy", "reclaim", "granule"].iter().all(|key| a[key] == b[key])
    };
    let found = |row| rows(measured).iter().find(|other| same(row, other)).expect("each of them ran");
    rows(predicted).iter().map(|row| (row, found(row))).collect()
}

fn assert_equal(predicted: &Value, measured: &Value, keys: &[&str]) {
    for key in keys {
        assert!(measured[key].is_u64(), "{key} was measured: {measured}");
        let what = [&measured["case"], &measured["backing"], &measured["policy"]];
        assert_eq!(predicted[key], measured[key], "{key} of {what:?}");
    }
}

/// The policies of the tracker's line, replayed from the row of policy `kernel`.
const OTHERS: [&str; 2] = ["--policy", "page,pmd,folio,slot,vm"];

/// How often the prediction of collateral faults is tried: from a row that ran while the host had something else to do,
/// rows that ran while it had not are predicted badly.
const TRIES: usize = 3;

fn a_row_predicts_the_rows_of_other_policies() {
    let apart: Vec<f64> = (0..TRIES)
        .map(|_| {
            let apart = worst_prediction();
            println!("    the worst is {:.1} % off", 100.0 * apart);
            apart
        })
        .take_while(|apart| *apart > 0.1)
        .collect();
    assert!(apart.len() < TRIES, "collateral faults predicted and measured are apart by {apart:?}");
}

/// Runs every policy, predicts each from the row of policy `kernel`, and says how far collateral faults are apart at the
/// worst, as a part of what was measured. All other counts are equal.
fn worst_prediction() -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let scenario = if tests::host::emulated() {
        SWAPPED.replace("\"4ms\"", "\"100ms\"").replace("count = 100", "count = 20")
    } else {
        SWAPPED.to_owned()
    };
    let measured = run(directory.path(), &scenario, &["--zram", "1GiB", "--backend", "kvm"]);
    let predicted = replay(directory.path(), &OTHERS);
    let source = predicted["warnings"].to_string();
    assert!(source.contains("sparse, 4k, kernel, pageout") && !source.contains("folio"), "{source}");
    assert_eq!(rows(&predicted).len(), 10);
    let mut worst = 0f64;
    for (ours, theirs) in pairs(&predicted, &measured) {
        assert_equal(ours, theirs, &EXACT);
        assert_equal(ours, theirs, &["refaults"]);
        let collateral = |row: &Value| row["collateral_faults"].as_u64().unwrap();
        let (ours_count, theirs_count) = (collateral(ours), collateral(theirs));
        let apart = ours_count.abs_diff(theirs_count) as f64 / theirs_count.max(1) as f64;
        println!(
            "    {} {}: collateral faults predicted {ours_count}, measured {theirs_count}",
            theirs["backing"], theirs["policy"]
        );
        worst = worst.max(apart);
    }
    worst
}

fn without_a_hot_loop_every_count_is_exact() {
    let directory = tempfile::tempdir().unwrap();
    let measured = run(directory.path(), QUIET, &["--backend", "kvm"]);
    let predicted = replay(directory.path(), &OTHERS);
    for (ours, theirs) in pairs(&predicted, &measured) {
        assert_equal(ours, theirs, &EXACT);
        assert_equal(ours, theirs, &["refaults", "collateral_faults"]);
        // What is in low memory under `vm` is not recorded.
        if theirs["policy"] != "vm" {
            assert_equal(ours, theirs, &["sptes_zapped_4k", "sptes_zapped_2m"]);
        }
    }
}

fn the_software_mmu_is_predicted_too() {
    let directory = tempfile::tempdir().unwrap();
    let measured = run(directory.path(), QUIET, &["--backend", "soft"]);
    let predicted = replay(directory.path(), &OTHERS);
    for (ours, theirs) in pairs(&predicted, &measured) {
        assert_equal(ours, theirs, &EXACT);
        let faults = ["refaults", "collateral_faults", "sptes_zapped_4k", "sptes_zapped_2m"];
        assert_equal(ours, theirs, &faults);
    }
}

fn other_slots_are_predicted() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), QUIET, &["--backend", "soft"]);
    let predicted = replay(directory.path(), &["--policy", "slot", "--granule", "4MiB"]);
    let other = tempfile::tempdir().unwrap();
    let wider = QUIET.replace("512KiB", "4MiB");
    let measured = run(other.path(), &wider, &["--backend", "soft"]);
    for (ours, theirs) in pairs(&predicted, &measured) {
        assert_equal(ours, theirs, &EXACT);
        assert_equal(ours, theirs, &["collateral_faults"]);
    }
}

fn a_damaged_log_is_refused_with_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), QUIET, &["--backend", "soft"]);
    let path = directory.path().join("out/events.log");
    let log = std::fs::read(&path).unwrap();
    let mut flipped = log.clone();
    let middle = log.len() / 2;
    flipped[middle] ^= 0x10;
    for (bytes, said) in [
        (&log[..log.len() - 1], "ends in the middle of a section"),
        (&flipped[..], "checksum"),
        (&[][..], "byte 0: this is no event log"),
        (&b"zapscope\xff\xff\xff\xff\0\0\0\0"[..], "byte 8: an event log of version 4294967295"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let output = program::output(directory.path(), &["replay", "out"]);
        let why = program::stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{why}");
        assert!(why.contains("events.log: byte ") && why.contains(said), "{why}");
    }
}

fn what_is_no_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], code, said: &str| {
        let output = program::output(directory.path(), arguments);
        let why = program::stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{why}");
        assert!(why.contains(said), "{said}: {why}");
    };
    refused(&["replay", "nowhere"], 2, "name the directory of a run");
    refused(&["replay", "out", "--granule", "3KiB"], 2, "a power of two");
    refused(&["replay", "out", "--policy", "folios"], 2, "no range policy");
    refused(&["replay", "out", "--zram", "1GiB"], 2, "--validate");
    run(directory.path(), QUIET, &["--backend", "soft"]);
    let json = directory.path().join("out/run.json");
    let record = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, record.replace("\"pmd\"", "\"slot\"")).unwrap();
    refused(&["replay", "out"], 2, "keep the two files of a run together");
    std::fs::write(&json, "{}").unwrap();
    refused(&["replay", "out"], 2, "no run record");
    std::fs::remove_file(directory.path().join("out/events.log")).unwrap();
    std::fs::write(&json, record).unwrap();
    refused(&["replay", "out/run.json"], 2, "cannot open the event log out/events.log");
}

fn validation_runs_what_was_predicted() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), QUIET, &["--backend", "soft"]);
    let output = program::output(
        directory.path(),
        &["replay", "out", "--validate", "--backend", "soft", "--policy", "folio,slot"],
    );
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}\n{}", program::stderr(&output));
    assert_eq!(text.matches("counts equal").count(), 4, "two cases under two policies: {text}");
}

/// No column of dashes, and once a case why there are no times.
fn a_table_shows_what_a_replay_knows() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), QUIET, &["--backend", "soft"]);
    let output = program::output(directory.path(), &["replay", "out"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text}\n{}", program::stderr(&output));
    let rows = text.lines().filter(|line| line.trim_start().starts_with("4k "));
    assert_eq!(rows.clone().count(), 12, "two cases under six policies: {text}");
    for row in rows {
        assert!(!row.split_whitespace().any(|cell| ["-", "\u{2013}"].contains(&cell)), "{row} of {text}");
    }
    assert_eq!(text.matches("it has no clock").count(), 2, "once a case: {text}");
}
