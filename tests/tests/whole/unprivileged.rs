//! Swap of our own without any privilege: the part that the kernel allows to every user, and the messages for the rest.

use std::process::Stdio;

use guest_abi::layout::PAGE_SIZE;
use serde_json::Value;
use tests::nobody::{Lent, zapscope};
use tests::place::{Ended, Place};
use tests::record::rows;
use tests::scenario;

crate::tests! {
    the_software_mmu_swaps_without_a_privilege: [Nobody, UserModeUserfault],
    a_guest_needs_one_and_is_told_which: [Kvm, NobodyWithKvm, OnlyUserModeUserfault],
    a_snapshot_is_read_whole_without_one: [Kvm, NobodyWithKvm, OnlyUserModeUserfault],
}

/// Pages leave and come back by userfaultfd; the second row of each backing needs none. Runs it as the user `nobody`.
fn run(backend: &str, lent: Lent) -> Ended {
    let scenario = scenario::of("8MiB").top("vcpus = 2").backings(&["4k", "memfd"]).policies(&["folio"]);
    let scenario = scenario.reclaims(&["uffd", "dontneed"]).fill().sparse(50).refault().sweep();
    let arguments = ["run", "s.toml", "--json", "--backend", backend, "--out", "run"];
    run_in(&Place::of(&scenario), &arguments, lent)
}

fn run_in(place: &Place, arguments: &[&str], lent: Lent) -> Ended {
    let mut command = zapscope(place.path(), arguments, lent).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap().into()
}

/// Workers are threads: their faults are made in user mode, and every user may have a userfaultfd for those.
fn the_software_mmu_swaps_without_a_privilege() {
    let record = run("soft", Lent::Nothing).with(0).json();
    assert_eq!(rows(&record).len(), 4);
    for row in rows(&record) {
        assert_eq!((&row["could_not_run"], &row["integrity_errors"]), (&Value::Null, &0.into()), "{row:#}");
        if row["reclaim"] == "uffd" {
            assert_eq!(row["evicted_bytes"], 50 * PAGE_SIZE, "{row:#}");
            assert_eq!(row["uffd_returned"], 50, "{row:#}");
        }
    }
}

/// A guest's faults are made inside KVM. A process that handles faults of the kernel can stop system calls halfway, so
/// that takes a privilege. The rows that need no userfaultfd are made all the same.
fn a_guest_needs_one_and_is_told_which() {
    for row in rows(&run("kvm", Lent::Kvm).with(3).json()) {
        if row["reclaim"] != "uffd" {
            assert_eq!(
                (&row["could_not_run"], &row["integrity_errors"]),
                (&Value::Null, &0.into()),
                "{row:#}"
            );
            continue;
        }
        let why = row["could_not_run"].as_str().unwrap_or_else(|| panic!("it ran: {row:#}"));
        for word in ["KVM", "kernel mode", "sysctl vm.unprivileged_userfaultfd=1", "/dev/userfaultfd"] {
            assert!(why.contains(word), "{word}: {why}");
        }
    }
}

/// Page by page takes a userfaultfd; all at once does not.
fn a_snapshot_is_read_whole_without_one() {
    let place = Place::new();
    place.run(&["snapshot", "--out", "s", "--memory", "4MiB"]).with(0);
    let restore = |more: &[&str]| {
        // Each wants a program and a device of its own.
        let _ = ["zapscope", "kvm"].map(|name| std::fs::remove_file(place.file(name)));
        run_in(&place, &[&["boot", "--restore", "s"], more].concat(), Lent::Kvm)
    };
    restore(&[]).with(3).says(&["--eager", "sysctl vm.unprivileged_userfaultfd=1", "/dev/userfaultfd"]);
    restore(&["--eager"]).with(0);
}
