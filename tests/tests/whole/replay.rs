//! Replay: what it says of a row it has never seen is what the row counts when it runs.

use serde_json::Value;
use tests::place::Place;
use tests::record::rows;
use tests::scenario::{self, Scenario};

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
/// the next, so that what it faults on does not depend on the host's speed; on an emulated host, which is slow, there are
/// fewer victims and more time between them.
fn swapped() -> Scenario {
    let (count, pace) = if tests::host::emulated() { (20, "100ms") } else { (100, "4ms") };
    let victims = ["victims = \"sparse\"", &format!("count = {count}"), &format!("pace = {pace:?}")];
    let scenario = scenario::of("32MiB").top("seed = 11").backings(&["4k", "thp"]).reclaims(&["pageout"]);
    let scenario = scenario.policies(&["kernel", "page", "folio", "pmd", "slot", "vm"]).case("sparse");
    scenario.fill().hot(64).baseline("20ms").step("reclaim", &victims).stop().refault().sweep()
}

/// Pages thrown away without a loop beside: no swap, and nothing that could depend on time.
fn quiet(granule: &str) -> Scenario {
    let policies = ["kernel", "page", "folio", "modern", "pmd", "slot", "vm"];
    let scenario = scenario::of("16MiB").top("seed = 7").policies(&policies).axis("granule", &[granule]);
    let scenario = scenario.case("sparse").fill().sparse(100).refault().sweep();
    scenario.case("region").fill().range("2MiB..8MiB", "region").refault().sweep()
}

/// The counts that do not depend on any speed.
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

/// Runs a scenario into `out`. What else the host announces is another test's subject.
fn run(scenario: &Scenario, options: &[&str]) -> (Place, Value) {
    let place = Place::of(scenario);
    let record = place.record(&[&["--tap", "off"], options].concat());
    (place, record)
}

/// [`quiet`] on the software MMU.
fn soft() -> (Place, Value) {
    run(&quiet("512KiB"), &["--backend", "soft"])
}

/// Replays it.
fn replay(place: &Place, options: &[&str]) -> Value {
    place.run(&[&["replay", "out", "--json"], options].concat()).with(0).json()
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
    let (place, measured) = run(&swapped(), &["--zram", "1GiB", "--backend", "kvm"]);
    let predicted = replay(&place, &OTHERS);
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
    let (place, measured) = run(&quiet("512KiB"), &["--backend", "kvm"]);
    let predicted = replay(&place, &OTHERS);
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
    let (place, measured) = soft();
    for (ours, theirs) in pairs(&replay(&place, &OTHERS), &measured) {
        assert_equal(ours, theirs, &EXACT);
        let faults = ["refaults", "collateral_faults", "sptes_zapped_4k", "sptes_zapped_2m"];
        assert_equal(ours, theirs, &faults);
    }
}

fn other_slots_are_predicted() {
    let (place, _) = soft();
    let predicted = replay(&place, &["--policy", "slot", "--granule", "4MiB"]);
    let (_, measured) = run(&quiet("4MiB"), &["--backend", "soft"]);
    for (ours, theirs) in pairs(&predicted, &measured) {
        assert_equal(ours, theirs, &EXACT);
        assert_equal(ours, theirs, &["collateral_faults"]);
    }
}

fn a_damaged_log_is_refused_with_the_byte() {
    let (place, _) = soft();
    let log = std::fs::read(place.file("out/events.log")).unwrap();
    let mut flipped = log.clone();
    let middle = log.len() / 2;
    flipped[middle] ^= 0x10;
    for (bytes, said) in [
        (&log[..log.len() - 1], "ends in the middle of a section"),
        (&flipped[..], "checksum"),
        (&[][..], "byte 0: this is no event log"),
        (&b"zapscope\xff\xff\xff\xff\0\0\0\0"[..], "byte 8: an event log of version 4294967295"),
    ] {
        place.put("out/events.log", bytes);
        place.run(&["replay", "out"]).with(2).says(&["events.log: byte ", said]);
    }
}

fn what_is_no_run_is_refused() {
    let (place, _) = soft();
    let refused = |arguments: &[&str], said: &str| {
        place.run(arguments).with(2).says(&[said]);
    };
    refused(&["replay", "nowhere"], "name the directory of a run");
    refused(&["replay", "out", "--granule", "3KiB"], "a power of two");
    refused(&["replay", "out", "--policy", "folios"], "no range policy");
    refused(&["replay", "out", "--zram", "1GiB"], "--validate");
    let record = std::fs::read_to_string(place.file("out/run.json")).unwrap();
    place.put("out/run.json", record.replace("\"pmd\"", "\"slot\""));
    refused(&["replay", "out"], "keep the two files of a run together");
    place.put("out/run.json", "{}");
    refused(&["replay", "out"], "no run record");
    std::fs::remove_file(place.file("out/events.log")).unwrap();
    place.put("out/run.json", record);
    refused(&["replay", "out/run.json"], "cannot open the event log out/events.log");
}

fn validation_runs_what_was_predicted() {
    let (place, _) = soft();
    let arguments = ["replay", "out", "--validate", "--backend", "soft", "--policy", "folio,slot"];
    let text = place.run(&arguments).with(0).text();
    assert_eq!(text.matches("counts equal").count(), 4, "two cases under two policies: {text}");
}

/// No column of dashes, and once a case why there are no times.
fn a_table_shows_what_a_replay_knows() {
    let (place, _) = soft();
    let text = place.run(&["replay", "out"]).with(0).text();
    let rows = text.lines().filter(|line| line.trim_start().starts_with("4k "));
    assert_eq!(rows.clone().count(), 12, "two cases under six policies: {text}");
    for row in rows {
        assert!(!row.split_whitespace().any(|cell| ["-", "\u{2013}"].contains(&cell)), "{row} of {text}");
    }
    assert_eq!(text.matches("it has no clock").count(), 2, "once a case: {text}");
}
