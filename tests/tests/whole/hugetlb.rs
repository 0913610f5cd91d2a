//! Memory from the pool of huge pages, of which the kernel may refuse a page at any time: what it refuses is an error that
//! names the limit, and costs no more than the row that met it.

use std::fs;
use std::time::{Duration, Instant};

use guest_mem::{Backing, HugetlbPool};
use host::HostChanges;
use serde_json::Value;
use tests::host::{allow, of_backend};
use tests::hugetlb::{Group, POOL};
use tests::place::{Ended, Place};
use tests::record::rows;
use tests::scenario;

crate::tests! {
    a_limit_of_a_cgroup_costs_its_row(backend in BACKENDS): [Has(Backing::Hugetlb2m), HugetlbGroup, of_backend(backend)],
    a_pool_that_shrinks_costs_its_row(backend in BACKENDS): [Has(Backing::Hugetlb2m), of_backend(backend)],
    a_machine_names_the_limit: [Kvm, Has(Backing::Hugetlb2m), HugetlbGroup],
    a_snapshot_is_restored: [Kvm, Has(Backing::Hugetlb2m)],
}

const BACKENDS: [&str; 2] = ["soft", "kvm"];

const RUN: [&str; 6] = ["run", "s.toml", "--tap", "off", "--json", "--backend"];

/// 16 MiB of hugetlb pages, 4 of them dropped and wanted again; and the same of base pages.
fn place(baseline: &str) -> Place {
    let scenario = scenario::of("16MiB").backings(&["hugetlb:2m", "4k"]).expect(&["integrity_errors == 0"]);
    let scenario = scenario.fill().hot(16).baseline(baseline).range("0..4MiB", "folio").stop().refault();
    Place::of(&scenario)
}

/// What the first row's reason is; the second has its numbers.
fn reason(ended: &Ended) -> String {
    let record = ended.json();
    let rows = rows(&record);
    assert_eq!(rows.len(), 2, "{record:#}");
    assert_eq!((&rows[1]["could_not_run"], &rows[1]["refaults"]), (&Value::Null, &1024.into()), "{record:#}");
    rows[0]["could_not_run"].as_str().unwrap_or_else(|| panic!("it ran: {record:#}")).to_owned()
}

/// The reservation is refused, or the page at its first touch: both before the guest is there.
fn a_limit_of_a_cgroup_costs_its_row(backend: &str) {
    let place = place("10ms");
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    for limit in ["max", "rsvd.max"] {
        let group = Group::make().unwrap();
        fs::write(group.limit(limit), "0").unwrap();
        let _waiting = harness::waiting(format!("a run on {backend} with {limit} = 0"));
        let command = &mut group.zapscope(place.path(), &[&RUN[..], &[backend]].concat());
        let why = reason(&Ended::from(command.output().unwrap()).with(3));
        // How much is missing, and where to say so. The pool has enough, and is not named.
        let remedy = format!("`echo {} > {}`", 16 << 20, group.limit(limit).display());
        assert!(why.contains(&remedy) && !why.contains(POOL), "{limit}: {why}");
    }
    assert!(changes.undo_all().is_empty());
}

/// What the guest has is the host's no longer once it is dropped, when the pool has been lowered meanwhile.
fn a_pool_that_shrinks_costs_its_row(backend: &str) {
    let place = place("3s");
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    let free = || HugetlbPool::read().unwrap().free;
    let before = free();
    let child = place.zapscope(&[&RUN[..], &[backend]].concat()).spawn().unwrap();
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
    let why = reason(&Ended::from(child.wait_with_output().unwrap()).with(1));
    assert!(why.contains("the guest got no page of the host's") && why.contains(POOL), "{why}");
    // Never lower than it is.
    let sizes: Vec<u64> =
        why.split("echo ").skip(1).filter_map(|text| text.split(' ').next()?.parse().ok()).collect();
    assert!(sizes.len() == 1 && sizes[0] > 6, "{why}");
    assert!(changes.undo_all().is_empty());
}

/// A snapshot's guest, and a PC with a kernel of its own: no signal, but the limit, and the exit code of a host.
fn a_machine_names_the_limit() {
    let place = Place::new();
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    place.put("kernel", resources::GUEST);
    let commands: [&[&str]; 2] = [
        &["snapshot", "--out", "s", "--memory", "8MiB", "--backing", "hugetlb:2m"],
        &["boot", "--kernel", "kernel", "--memory", "32MiB", "--backing", "hugetlb:2m"],
    ];
    for arguments in commands {
        let group = Group::make().unwrap();
        fs::write(group.limit("max"), "0").unwrap();
        let _waiting = harness::waiting(format!("the end of {arguments:?}"));
        let ended = Ended::from(group.zapscope(place.path(), arguments).output().unwrap()).with(3);
        ended.says(&[&group.limit("max").display().to_string()]);
    }
    assert!(!place.file("s").exists());
    assert!(changes.undo_all().is_empty());
}

fn a_snapshot_is_restored() {
    let place = Place::new();
    let changes = HostChanges::new(|_| ());
    allow(&changes, Backing::Hugetlb2m);
    for vcpus in ["1", "2"] {
        let made =
            ["snapshot", "--out", "s", "--memory", "16MiB", "--fill", "12MiB", "--backing", "hugetlb:2m"];
        place.run(&[&made[..], &["--vcpus", vcpus]].concat()).with(0);
        let record = place.run(&["boot", "--restore", "s", "--eager", "--json"]).with(0).json();
        for (key, value) in [("wrong_pages", 0), ("lost_writes", 0), ("filled_bytes", 12 << 20)] {
            assert_eq!(record[key], value, "{key}: {record:#}");
        }
        assert_eq!(record["backing"], "hugetlb:2m");
    }
    // Page by page it cannot come, and what can be done is said.
    let lazily = place.run(&["boot", "--restore", "s"]).says(&["hugetlb:2m", "--eager"]);
    assert_ne!(lazily.status.code(), Some(0));
    assert!(changes.undo_all().is_empty());
}
