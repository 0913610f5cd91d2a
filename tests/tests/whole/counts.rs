//! Exact counts: what a run says was invalidated is what a naive enumeration of its victims says, and two runs
//! say the same.

use guest_abi::layout::PAGE_SIZE;
use serde_json::Value;
use tests::naive;
use tests::place::Place;
use tests::record::{number, rows};
use tests::scenario::{self, Scenario};

crate::tests! {
    sparse_victims_cost_what_enumeration_says: [Kvm, SlotZap],
    two_runs_count_the_same: [Kvm, SlotZap, Zram],
    swapped_pages_come_back_and_each_is_one_refault: [Kvm, SlotZap, Zram],
    the_double_call_is_watched_and_finds_nothing: [],
    every_way_to_zap_takes_the_same_pages: [Kvm, SlotZap, Zram],
    the_software_mmu_counts_as_kvm_does: [Kvm, SlotZap],
    the_software_mmu_needs_no_kvm: [],
}

const POLICIES: [&str; 6] = ["kernel", "page", "folio", "modern", "pmd", "slot"];

/// Sparse victims over every policy. Discarded, so that it needs no swap.
fn sparse() -> Scenario {
    let scenario = scenario::of("16MiB").top("seed = 7").policies(&POLICIES).axis("granule", &["512KiB"]);
    scenario.fill().sparse(100).refault().sweep()
}

/// The policies of [`swap`]; on an emulated host one of each kind.
fn swap_policies() -> &'static [&'static str] {
    if tests::host::emulated() {
        &["kernel", "pmd", "slot"]
    } else {
        &["kernel", "folio", "pmd", "slot", "vm"]
    }
}

/// Both ways to lay memory out, swapped out next to a hot loop; on an emulated host half as much of it taken whole: one huge
/// page still, 512 small ones.
fn swap() -> Scenario {
    let taken = if tests::host::emulated() { "0..2MiB" } else { "0..4MiB" };
    println!("    {taken} taken whole");
    let scenario = scenario::of("16MiB").top("seed = 8").backings(&["4k", "thp"]).reclaims(&["pageout"]);
    let scenario = scenario.policies(swap_policies()).case("sparse");
    let scenario = scenario.fill().hot(64).baseline("5ms").sparse(50).stop().refault().sweep();
    scenario.case("whole").fill().range(taken, "folio").refault()
}

/// Runs a scenario and returns its record.
fn run(scenario: &Scenario, options: &[&str]) -> Value {
    Place::of(scenario).record(options)
}

/// The pages a scenario's first reclaim step takes.
fn victims(scenario: &Scenario) -> Vec<u64> {
    let scenario = experiment::scenario::Scenario::parse(&scenario.text(), "test").unwrap();
    let row = scenario.rows().next().unwrap();
    let plan = scenario.plan(&row);
    let step = (0..).find(|&step| plan.victims(step).is_some()).unwrap();
    plan.victims(step).unwrap().iter().flatten().collect()
}

fn sparse_victims_cost_what_enumeration_says() {
    let record = run(&sparse(), &["--backend", "kvm"]);
    assert_sparse(&record);
    for row in rows(&record) {
        assert_eq!(number(row, "refaults"), 100, "every victim comes back by a fault of its own");
    }
}

/// Checks every row of [`sparse`] against the enumeration.
fn assert_sparse(record: &Value) {
    let (memory, granule) = (16 << 20, 512 << 10);
    let victims = victims(&sparse());
    assert_eq!(victims.len(), 100);
    assert_eq!(rows(record).len(), 6);
    for row in rows(record) {
        let policy = row["policy"].as_str().unwrap();
        let pages: u64 =
            victims.iter().map(|page| naive::pages_lost(policy, page * PAGE_SIZE, memory, granule)).sum();
        assert_eq!(number(row, "invalidated_bytes"), pages * PAGE_SIZE, "{policy}");
        assert_eq!(number(row, "needed_bytes"), 100 * PAGE_SIZE, "{policy}");
        assert_eq!(number(row, "evicted_bytes"), 100 * PAGE_SIZE, "{policy}");
        assert_eq!(number(row, "invalidations"), 100, "{policy}");
        assert_eq!(row["amplification"].as_f64(), Some(pages as f64 / 100.0), "{policy}");
        assert_eq!(number(row, "integrity_errors"), 0, "{policy}");
        let slots = if policy == "slot" { 100 } else { 0 };
        if row["listener"] == "kvm-slots" {
            assert_eq!(number(row, "slots_zapped"), slots, "{policy}");
        }
    }
}

/// What must not differ from run to run.
const COUNTS: [&str; 9] = [
    "victims",
    "victim_bytes",
    "evicted_bytes",
    "invalidations",
    "needed_bytes",
    "invalidated_bytes",
    "slots_zapped",
    "zapped_bytes",
    "integrity_errors",
];

fn two_runs_count_the_same() {
    let [first, second] = [0, 1].map(|_| run(&swap(), &["--backend", "kvm", "--zram", "64MiB"]));
    assert_eq!(rows(&first).len(), 4 * swap_policies().len());
    let mut disturbed = 0;
    for (a, b) in rows(&first).iter().zip(rows(&second)) {
        assert_eq!(a["could_not_run"], Value::Null);
        // On a busy host the kernel passes over a page in use, which is announced once more: the row says how often.
        if repeats(a) != repeats(b) {
            disturbed += 1;
            continue;
        }
        for key in COUNTS {
            assert_eq!(a[key], b[key], "{key} of {}, {}, {}", a["case"], a["backing"], a["policy"]);
        }
        assert_eq!((&a["achieved"], &a["refaults"]), (&b["achieved"], &b["refaults"]));
    }
    assert!(disturbed <= 5, "{disturbed} rows were repeated in one run alone");
}

/// How often a row repeated MADV_PAGEOUT.
fn repeats(row: &Value) -> Option<&str> {
    let texts = row["warnings"].as_array().unwrap().iter().map(|warning| warning["text"].as_str().unwrap());
    texts.into_iter().find(|text| text.contains("MADV_PAGEOUT passed over"))
}

fn swapped_pages_come_back_and_each_is_one_refault() {
    let record = run(&swap(), &["--backend", "kvm", "--zram", "64MiB"]);
    for row in rows(&record).iter().filter(|row| row["backing"] == "4k") {
        let (evicted, refaults) = (number(row, "evicted_bytes"), number(row, "refaults"));
        assert_eq!(evicted, number(row, "victim_bytes"), "{row}");
        assert_eq!(refaults * PAGE_SIZE, evicted, "{row}");
        assert_eq!(number(row, "integrity_errors"), 0);
        let warnings = row["warnings"].as_array().unwrap();
        let explained = |key: &str| {
            warnings.iter().any(|w| w["keys"].as_array().is_some_and(|k| k.contains(&key.into())))
        };
        for (key, value) in row.as_object().unwrap() {
            assert!(
                !value.is_null() || key == "could_not_run" || explained(key),
                "{key} is null for no reason"
            );
        }
    }
}

/// A device on the host's own page tables has read each victim: its TLB holds it once. The first call of an era
/// drops it, and the second finds nothing.
fn the_double_call_is_watched_and_finds_nothing() {
    let record = run(&sparse().top("shared_tlb = true"), &["--backend", "soft"]);
    for row in rows(&record) {
        let policy = row["policy"].as_str().unwrap();
        let doubled = if matches!(policy, "pmd" | "folio") { 100 } else { 0 };
        assert_eq!(number(row, "double_calls"), doubled, "{policy}");
        assert_eq!(number(row, "sharing_calls"), 100 + doubled, "{policy}");
        assert_eq!(number(row, "tlb_entries_dropped"), 100, "{policy}");
        // A wide range's second call may meet a page that the device has read since; one page's never does.
        assert_eq!(number(row, "tlb_empty_flushes"), doubled, "{policy}");
    }
}

/// Unmapping takes away the mapping by which MADV_PAGEOUT finds a page, and must not be in its way.
fn every_way_to_zap_takes_the_same_pages() {
    let zaps = swap().backings(&["memfd"]).axis("zap", &["memslot", "protect", "unmap"]);
    let record = run(&zaps, &["--backend", "kvm", "--zram", "64MiB"]);
    let unmapped = rows(&record).iter().filter(|row| row["zap"] == "unmap").count();
    assert_eq!(unmapped, 2 * (swap_policies().len() - 1), "all but `kernel`, two cases");
    for row in rows(&record) {
        let what = format!("{}, {}, {}", row["case"], row["policy"], row["zap"]);
        assert_eq!(number(row, "evicted_bytes"), number(row, "victim_bytes"), "{what}");
        assert_eq!(number(row, "refaults") * PAGE_SIZE, number(row, "victim_bytes"), "{what}");
        let twin = |other: &&Value| (&other["case"], &other["policy"]) == (&row["case"], &row["policy"]);
        for other in rows(&record).iter().filter(twin) {
            assert_eq!(number(row, "invalidated_bytes"), number(other, "invalidated_bytes"), "{what}");
        }
    }
}

fn the_software_mmu_counts_as_kvm_does() {
    let [kvm, soft] = ["kvm", "soft"].map(|backend| run(&sparse(), &["--backend", backend]));
    assert_eq!((&kvm["backend"], &soft["backend"]), (&"kvm".into(), &"soft".into()));
    assert!(kvm["first_kvm_run_monotonic_ns"].is_u64() && soft["first_kvm_run_monotonic_ns"].is_null());
    for (a, b) in rows(&kvm).iter().zip(rows(&soft)) {
        for key in
            ["victims", "evicted_bytes", "invalidations", "needed_bytes", "invalidated_bytes", "refaults"]
        {
            assert_eq!(a[key], b[key], "{key} under {}", a["policy"]);
        }
    }
}

fn the_software_mmu_needs_no_kvm() {
    let place = Place::of(&sparse());
    let arguments = ["run", "s.toml", "--json", "--backend", "soft", "--out", "out"];
    let record = place.run(&arguments).with(0).says(&["no guest runs"]).json();
    assert_sparse(&record);
    for row in rows(&record) {
        let dropped = number(row, "sptes_zapped_4k");
        assert_eq!(row["listener"], "soft-mmu");
        assert!(dropped >= 100 && dropped * PAGE_SIZE <= number(row, "invalidated_bytes"), "{row}");
    }
    assert_eq!(place.json("out/run.json"), record);
}
