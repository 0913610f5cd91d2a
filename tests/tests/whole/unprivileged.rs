//! Swap of our own without any privilege: what of it the kernel allows to everybody, and what is said of the rest.

use std::path::Path;
use std::process::{Output, Stdio};

use guest_abi::layout::PAGE_SIZE;
use serde_json::Value;
use tests::nobody::{Lent, zapscope};
use tests::program;

crate::tests! {
    the_software_mmu_swaps_without_a_privilege: [Nobody, UserModeUserfault],
    a_guest_needs_one_and_is_told_which: [Kvm, NobodyWithKvm, OnlyUserModeUserfault],
    a_snapshot_is_read_whole_without_one: [Kvm, NobodyWithKvm, OnlyUserModeUserfault],
}

/// Pages leave and come back by userfaultfd; the second row needs none.
const SCENARIO: &str = r#"
name = "own"
memory = "8MiB"
vcpus = 2
[matrix]
backing = ["4k", "memfd"]
policy = ["folio"]
reclaim = ["uffd", "dontneed"]
[[case]]
name = "sparse"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 50
[[case.step]]
do = "refault"
[[case.step]]
do = "sweep"
"#;

/// Runs it as nobody.
fn run(backend: &str, lent: Lent) -> Output {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("s.toml"), SCENARIO).unwrap();
    run_in(place.path(), &["run", "s.toml", "--json", "--backend", backend, "--out", "run"], lent)
}

fn run_in(place: &Path, arguments: &[&str], lent: Lent) -> Output {
    let mut command = zapscope(place, arguments, lent).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    let record: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|why| panic!("{why}: {}", program::stderr(output)));
    record["rows"].as_array().unwrap().clone()
}

/// Workers are threads: their faults are made in user mode, and a userfaultfd for those is everybody's.
fn the_software_mmu_swaps_without_a_privilege() {
    let output = run("soft", Lent::Nothing);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
    let rows = rows(&output);
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!((&row["could_not_run"], &row["integrity_errors"]), (&Value::Null, &0.into()), "{row:#}");
        if row["reclaim"] == "uffd" {
            assert_eq!(row["evicted_bytes"], 50 * PAGE_SIZE, "{row:#}");
            assert_eq!(row["uffd_returned"], 50, "{row:#}");
        }
    }
}

/// A guest's faults are made inside KVM, and whoever may see those could stop a system call of anybody's: the kernel
/// wants to be told. The rows that need no userfaultfd are made all the same.
fn a_guest_needs_one_and_is_told_which() {
    let output = run("kvm", Lent::Kvm);
    assert_eq!(output.status.code(), Some(3), "{}", program::stderr(&output));
    for row in rows(&output) {
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
    let place = tempfile::tempdir().unwrap();
    let made = program::output(place.path(), &["snapshot", "--out", "s", "--memory", "4MiB"]);
    assert_eq!(made.status.code(), Some(0), "{}", program::stderr(&made));
    let restore = |more: &[&str]| {
        let arguments = [&["boot", "--restore", "s"], more].concat();
        // Each wants a program and a device of its own.
        let _ = (
            std::fs::remove_file(place.path().join("zapscope")),
            std::fs::remove_file(place.path().join("kvm")),
        );
        run_in(place.path(), &arguments, Lent::Kvm)
    };
    let (lazy, eager) = (restore(&[]), restore(&["--eager"]));
    let said = program::stderr(&lazy);
    assert_eq!(lazy.status.code(), Some(3), "{said}");
    for word in ["--eager", "sysctl vm.unprivileged_userfaultfd=1", "/dev/userfaultfd"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(eager.status.code(), Some(0), "{}", program::stderr(&eager));
}
