//! The built-in scenarios against a record of them that is kept in the tree: the same keys, and the same counts.
//!
//! A count is in the record if several runs agreed on it. What follows from the scenario alone is compared on every host;
//! what the kernel or KVM has a part in, where both are those of the record.
//!
//! `ZAPSCOPE_WRITE_RECORDS=RUNS cargo test -p tests --test whole -- built_in` writes the record anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tests::host::{Need, of_backend};
use tests::place::Place;
use tests::record::rows;

crate::tests! {
    a_built_in_scenario_counts_what_it_counted(case in cases()): [Zram, NotEmulated, case.needs()],
    the_record_is_of_the_built_in_scenarios: [],
}

/// A built-in scenario on a backend.
#[derive(Clone, Copy)]
struct Case {
    backend: &'static str,
    scenario: &'static str,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.backend, self.scenario)
    }
}

impl Case {
    fn needs(self) -> Need {
        if self.backend == "kvm" { Need::SlotZap } else { of_backend(self.backend) }
    }
}

const BACKENDS: [&str; 2] = ["soft", "kvm"];

fn cases() -> impl Iterator<Item = Case> {
    let of = |backend| resources::SCENARIOS.iter().map(move |(scenario, _)| Case { backend, scenario });
    BACKENDS.into_iter().flat_map(of)
}

/// What tells rows apart.
const LABEL: [&str; 6] = ["case", "backing", "policy", "reclaim", "granule", "zap"];

/// Counts that follow from the scenario, unless the kernel chooses or announces.
const BY_SCENARIO: [&str; 9] = [
    "victims",
    "victim_bytes",
    "needed_bytes",
    "invalidations",
    "invalidated_bytes",
    "sharing_calls",
    "double_calls",
    "slots_zapped",
    "integrity_errors",
];

/// Keys that say how long or how fast, or why; and a case's expectations, which say it in words.
const NO_COUNT: [&str; 8] = [
    "evicted_bytes_per_second",
    "guest_touches_before",
    "guest_touches_during",
    "guest_counters",
    "warnings",
    "switches",
    "expectations",
    "could_not_run",
];

/// KVM counts a flush only if it had to interrupt a vCPU: one that was in the guest just then, on another processor.
const BY_CHANCE: &str = "remote_tlb_flushes";

/// Counts that say how far hot loops came between two victims whose ranges take the loops' pages, too.
const BY_LOOPS: [&str; 4] = ["sptes_zapped_4k", "sptes_zapped_2m", "collateral_faults", "collateral_ns"];

/// Keys that a row without such a thing leaves out.
const MAY_BE_LEFT_OUT: [&str; 2] = ["expectations", "switches"];

/// How often a scenario may be run before a count that differs is a fault: the kernel passes over a page in use, at times.
const ATTEMPTS: usize = 3;

/// The scenarios on one backend.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// The kernel's version, and the secondary MMU.
    host: [String; 2],
    /// The keys of a record beside its rows, and of a row.
    record_keys: BTreeSet<String>,
    row_keys: BTreeSet<String>,
    /// The rows of each scenario: its counts by key.
    scenarios: BTreeMap<String, Vec<BTreeMap<String, Value>>>,
}

fn path_of(backend: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("records").join(format!("{backend}.json"))
}

/// The record as this program was compiled with: it runs where there is no source, too.
fn kept(backend: &str) -> Kept {
    let text = match backend {
        "kvm" => include_str!("../../records/kvm.json"),
        _ => include_str!("../../records/soft.json"),
    };
    serde_json::from_str(text).unwrap()
}

fn the_record_is_of_the_built_in_scenarios() {
    for backend in BACKENDS {
        if let Ok(runs) = std::env::var("ZAPSCOPE_WRITE_RECORDS") {
            write(&path_of(backend), backend, runs.parse().expect("a number of runs"));
            continue;
        }
        let names: BTreeSet<&str> = resources::SCENARIOS.iter().map(|(name, _)| *name).collect();
        assert_eq!(kept(backend).scenarios.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    }
}

fn a_built_in_scenario_counts_what_it_counted(Case { backend, scenario }: Case) {
    let kept = kept(backend);
    let mut differing: Option<BTreeSet<String>> = None;
    for _ in 0..ATTEMPTS {
        let record = record_of(scenario, backend);
        assert_eq!(keys(&record), kept.record_keys);
        let found = row_keys(&record);
        assert!(found.is_subset(&kept.row_keys), "added {:?}", &found - &kept.row_keys);
        let lost = &kept.row_keys - &found;
        assert!(lost.iter().all(|key| MAY_BE_LEFT_OUT.contains(&key.as_str())), "lost {lost:?}");
        let same_host = host(&record) == kept.host;
        let found = differences(&kept.scenarios[scenario], &counts(&record), same_host);
        // The same count, every time.
        let both = differing.map_or(found.clone(), |before| &before & &found);
        differing = Some(both);
        if differing.as_ref().is_some_and(BTreeSet::is_empty) {
            break;
        }
    }
    assert_eq!(differing, Some(BTreeSet::new()), "{ATTEMPTS} times");
}

fn record_of(name: &str, backend: &str) -> Value {
    let arguments = ["run", name, "--backend", backend, "--zram", "1GiB", "--tune", "--json", "--out", "out"];
    Place::new().run(&arguments).with(0).json()
}

fn host(record: &Value) -> [String; 2] {
    let text = |key: &str| record["host"][key].as_str().unwrap_or("").to_owned();
    [text("kernel").split('.').take(2).collect::<Vec<_>>().join("."), text("mmu_kind")]
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn row_keys(record: &Value) -> BTreeSet<String> {
    rows(record).iter().flat_map(keys).collect()
}

/// The counts of each row that are not null; of times, how many there are.
fn counts(record: &Value) -> Vec<BTreeMap<String, Value>> {
    let of_row = |row: &Value| {
        let wide = row["invalidated_bytes"] != row["needed_bytes"];
        let hot = wide && !row["guest_touches_during"].is_null();
        let by_chance =
            |key: &str| row["listener"] != "soft-mmu" && (key == BY_CHANCE || hot && BY_LOOPS.contains(&key));
        let no_count = |key: &str| NO_COUNT.contains(&key) || by_chance(key);
        let row = row.as_object().unwrap().iter();
        let counted = row.filter(|(key, value)| !value.is_null() && !no_count(key));
        counted.map(|(key, value)| (key.clone(), value.get("count").unwrap_or(value).clone())).collect()
    };
    rows(record).iter().map(of_row).collect()
}

/// The counts that are not as they were, in words.
fn differences(
    expected: &[BTreeMap<String, Value>],
    found: &[BTreeMap<String, Value>],
    same_host: bool,
) -> BTreeSet<String> {
    assert_eq!(expected.len(), found.len(), "rows");
    let of_row = |(was, is): (&BTreeMap<String, Value>, &BTreeMap<String, Value>)| {
        let label = LABEL.map(|key| is[key].to_string()).join(" ");
        let by_kernel = was["policy"] == "kernel" || was["reclaim"] == "cgroup";
        let compared =
            |key: &str| same_host || LABEL.contains(&key) || (!by_kernel && BY_SCENARIO.contains(&key));
        let all = was.iter().filter(|(key, _)| compared(key));
        let differ = all.filter(|(key, value)| is.get(*key) != Some(value));
        differ
            .map(|(key, was)| {
                format!("{label}: {key} was {was} and is {}", is.get(key).unwrap_or(&Value::Null))
            })
            .collect::<Vec<_>>()
    };
    expected.iter().zip(found).flat_map(of_row).collect()
}

/// Keeps what `runs` runs agree on.
fn write(path: &Path, backend: &str, runs: usize) {
    let mut kept: Option<Kept> = None;
    for (name, _) in resources::SCENARIOS {
        let records: Vec<Value> = (0..runs).map(|_| record_of(name, backend)).collect();
        let all: Vec<_> = records.iter().map(counts).collect();
        let mut rows = all[0].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            row.retain(|key, value| all.iter().all(|run| run[index].get(key) == Some(value)));
        }
        let kept = kept.get_or_insert_with(|| Kept {
            host: host(&records[0]),
            record_keys: keys(&records[0]),
            row_keys: BTreeSet::new(),
            scenarios: BTreeMap::new(),
        });
        kept.row_keys.extend(row_keys(&records[0]));
        kept.scenarios.insert((*name).to_owned(), rows);
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, one_row_a_line(&kept.unwrap())).unwrap();
}

/// As JSON with each row on a line of its own, so that a change is read line by line.
fn one_row_a_line(kept: &Kept) -> String {
    let mut text = format!(
        "{{\n\"host\": {},\n\"record_keys\": {},\n\"row_keys\": {},\n\"scenarios\": {{",
        serde_json::to_string(&kept.host).unwrap(),
        serde_json::to_string(&kept.record_keys).unwrap(),
        serde_json::to_string(&kept.row_keys).unwrap()
    );
    let scenarios = kept.scenarios.iter().map(|(name, rows)| {
        let lines: Vec<_> = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
        format!("\n\"{name}\": [\n{}\n]", lines.join(",\n"))
    });
    text += &scenarios.collect::<Vec<_>>().join(",");
    text + "\n}}\n"
}
