//! Memory from the pool of huge pages, of which the kernel may refuse a page at any time: what it refuses is an error that
//! names the limit, and costs no more than the row that met it.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use guest_mem::{Backing, HugetlbPool};
use host::HostChanges;
use serde_json::Value;
use tests::host::{Need, allow};
use tests::hugetlb::{Group, POOL};
use tests::{program, scenario};

crate::tests! {
    a_limit_of_a_cgroup_costs_its_row(backend in BACKENDS): [Has(Backing::Hugetlb2m), HugetlbGroup, of(backend)],
    a_pool_that_shrinks_costs_its_row(backend in BACKENDS): [Has(Backing::Hugetlb2m), of(backend)],
    a_machine_names_the_limit: [Kvm, Has(Backing::Hugetlb2m), HugetlbGroup],
    a_snapshot_is_restored: [Kvm, Has(Backing::Hugetlb2m)],
}

const BACKENDS: [&str; 2] = ["soft", "kvm"];

/// What a backend needs; the software MMU nothing but memory.
fn of(backend: &str) -> Need {
    if backend == "kvm" { Need::Kvm } else { Need::Has(Backing::Base4k) }
}

const RUN: [&str; 6] = ["run", "s.toml", "--tap", "off", "--json", "--backend"];

/// 16 MiB of hugetlb pages, half of them dropped and wanted again; and the same of base pages.
fn write_scenario(directory: &Path, baseline: &str) {
    let scenario = scenario::of("16MiB").backings(&["hugetlb:2m", "4k"]).expect(&["integrity_errors == 0"]);
    let scenario = scenario.fill().hot(16).baseline(baseline).range("0..8MiB", "folio").stop().refault();
    fs::write(directory.join("s.toml"), scenario.text()).unwrap();
}

/// What the first row's reason is; the second has its numbers.
fn reason(output: &Output) -> String {
    let record: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}, {}", output.status, program::stderr(output)));
    let rows = record["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{record:#}");
    assert_eq!((&rows[1]["could_not_run"], &rows[1]["refaults"]), (&Value::Null, &2048.into()), "{record:#}");
    rows[0]["could_not_run"].as_str().unwrap_or_else(|| panic!("it ran: {record:#}")).to_owned()
}

/// The reservation is refused, or the page at its first touch: both before the guest is there.
fn a_limit_of_a_cgroup_costs_its_row(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    write_scenario(directory.path(), "10ms");
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    for limit in ["max", "rsvd.max"] {
        let group = Group::make().unwrap();
        fs::write(group.limit(limit), "0").unwrap();
        let _waiting = harness::waiting(format!("a run on {backend} with {limit} = 0"));
        let output = group.zapscope(directory.path(), &[&RUN[..], &[backend]].concat()).output().unwrap();
        let why = reason(&output);
        assert_eq!(output.status.code(), Some(3), "{}", program::stderr(&output));
        // How much is missing, and where to say so. The pool has enough, and is not named.
        let remedy = format!("`echo {} > {}`", 16 << 20, group.limit(limit).display());
        assert!(why.contains(&remedy) && !why.contains(POOL), "{limit}: {why}");
    }
    assert!(changes.undo_all().is_empty());
}

/// What the guest has is the host's no longer once it is dropped, when the pool has been lowered meanwhile.
fn a_pool_that_shrinks_costs_its_row(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    write_scenario(directory.path(), "3s");
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    let free = || HugetlbPool::read().unwrap().free;
    let before = free();
    let child = program::zapscope(directory.path(), &[&RUN[..], &[backend]].concat()).spawn().unwrap();
    {
        let _waiting = harness::waiting("the guest's memory to be taken from the pool");
        let deadline = Instant::now() + Duration::from_secs(60);
        while free() + 8 > before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // The guest keeps what it has: each page is a surplus one now.
    changes.change_sysfs(POOL, "0", "a test's refusal").unwrap();
    let _waiting = harness::waiting("the end of the run");
    let output = child.wait_with_output().unwrap();
    let why = reason(&output);
    assert_eq!(output.status.code(), Some(1), "{}", program::stderr(&output));
    assert!(why.contains("the guest got no page of the host's") && why.contains(POOL), "{why}");
    // Never lower than it is.
    let sizes: Vec<u64> =
        why.split("echo ").skip(1).filter_map(|text| text.split(' ').next()?.parse().ok()).collect();
    assert!(sizes.len() == 1 && sizes[0] > 4, "{why}");
    assert!(changes.undo_all().is_empty());
}

/// A snapshot's guest, and a PC with a kernel of its own: no signal, but the limit, and the exit code of a host.
fn a_machine_names_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, resources::GUEST).unwrap();
    let kernel = kernel.to_str().unwrap();
    let commands: [&[&str]; 2] = [
        &["snapshot", "--out", "s", "--memory", "8MiB", "--backing", "hugetlb:2m"],
        &["boot", "--kernel", kernel, "--memory", "32MiB", "--backing", "hugetlb:2m"],
    ];
    for arguments in commands {
        let group = Group::make().unwrap();
        fs::write(group.limit("max"), "0").unwrap();
        let _waiting = harness::waiting(format!("the end of {arguments:?}"));
        let output = group.zapscope(directory.path(), arguments).output().unwrap();
        let said = program::stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        assert!(said.contains(&group.limit("max").display().to_string()), "{arguments:?}: {said}");
    }
    assert!(!directory.path().join("s").exists());
    assert!(changes.undo_all().is_empty());
}

fn a_snapshot_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    for vcpus in ["1", "2"] {
        let made =
            ["snapshot", "--out", "s", "--memory", "16MiB", "--fill", "12MiB", "--backing", "hugetlb:2m"];
        let made = program::output(directory.path(), &[&made[..], &["--vcpus", vcpus]].concat());
        assert_eq!(made.status.code(), Some(0), "{}", program::stderr(&made));
        let restored = program::output(directory.path(), &["boot", "--restore", "s", "--eager", "--json"]);
        assert_eq!(restored.status.code(), Some(0), "{}", program::stderr(&restored));
        let record: Value = serde_json::from_slice(&restored.stdout).unwrap();
        for (key, value) in [("wrong_pages", 0), ("lost_writes", 0), ("filled_bytes", 12 << 20)] {
            assert_eq!(record[key], value, "{key}: {record:#}");
        }
        assert_eq!(record["backing"], "hugetlb:2m");
    }
    // Page by page it cannot come, and what can be done is said.
    let lazily = program::output(directory.path(), &["boot", "--restore", "s"]);
    let said = program::stderr(&lazily);
    assert_ne!(lazily.status.code(), Some(0));
    assert!(said.contains("hugetlb:2m") && said.contains("--eager"), "{said}");
    assert!(changes.undo_all().is_empty());
}
